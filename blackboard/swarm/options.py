"""What a file says about an agent beside its name: its program and the options that defaults may give too."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import yaml

from .nodes import Fields, Reader
from .spec import AgentSpec, Program, Restart

__all__ = ["AGENT", "DEFAULTS", "HOW", "PROGRAM", "Options"]

PROGRAM = ("run", "command")
DEFAULTS = (*PROGRAM, "restart", "env", "attempts", "timeout", "capabilities")
AGENT = (*DEFAULTS, "focus", "expertise")
HOW = "add `run: package.module:function` or `command: [program, argument]` here, or once for all under `defaults`"
_RUN = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


class Options:
    """Reads them; the defaults are known once ``set_defaults`` was called.

    Attributes:
        defaults: an agent that is nothing but the defaults.
    """

    def __init__(self, reader: Reader) -> None:
        """There are no defaults yet."""
        self.reader = reader
        self.defaults = AgentSpec("defaults")

    def set_defaults(self, node: yaml.Node) -> None:
        """What stands under ``defaults`` is everybody's."""
        self.defaults = self.options("defaults", self.reader.fields(node, "`defaults`", DEFAULTS))

    def options(self, agent_id: str, fields: Fields | None) -> AgentSpec:
        """What the file says about an agent, the defaults applied."""
        base = replace(self.defaults, id=agent_id, capabilities=())
        if fields is None:
            return base
        reader = self.reader
        changes: dict[str, Any] = {}
        program = self.program(fields)
        if program is not None:
            changes["program"] = program
        if (node := fields.get("capabilities")) is not None:
            changes["capabilities"] = reader.texts(node, "`capabilities`")
            if not changes["capabilities"] and isinstance(node, yaml.SequenceNode):
                reader.add(node, "`capabilities` must not be empty; leave it out for the usual ones")
        if (node := fields.get("expertise")) is not None:
            changes["expertise"] = self._expertise(node)
        if (node := fields.get("restart")) is not None:
            changes["restart"] = self._restart(node)
        if (node := fields.get("env")) is not None:
            own = {
                name: reader.text(value, f"`{name}` of `env`") if _is_filled(value) else ""
                for name, _, value in reader.pairs(node, "`env`")
            }
            changes["env"] = {**base.env, **own}
        if (node := fields.get("attempts")) is not None:
            changes["attempts"] = reader.number(node, "`attempts`", 1, 1000)
        if (node := fields.get("timeout")) is not None:
            changes["timeout"] = reader.duration(node, "`timeout`")
        return replace(base, **changes)

    def program(self, fields: Fields) -> Program | None:
        reader = self.reader
        run, command = fields.get("run"), fields.get("command")
        if run is not None and command is not None:
            reader.add(fields.key("command"), "there are both `run` and `command`; leave one out")
        if run is not None:
            text = reader.text(run, "`run`")
            if text.strip() and not _RUN.fullmatch(text):
                reader.add(run, f"`run` must be like package.module:function, not {text!r:.80}")
            return Program(run=text)
        if command is not None:
            if isinstance(command, yaml.ScalarNode):
                reader.add(command, "`command` must be a list, such as [program, argument]; no shell is in between")
                return Program(command=(str(command.value),))
            words = tuple(
                str(word.value) if isinstance(word, yaml.ScalarNode) else reader.text(word, "each word of `command`")
                for word in reader.items(command, "`command`")
            )
            if isinstance(command, yaml.SequenceNode) and (not words or not words[0]):
                reader.add(command, "`command` must begin with a program")
            return Program(command=words)
        return None

    def _expertise(self, node: yaml.Node) -> dict[str, float]:
        expertise: dict[str, float] = {}
        for name, _, value in self.reader.pairs(node, "`expertise`"):
            weight = self.reader.value(value, f"`{name}` of `expertise`")
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
                self.reader.add(value, f"`{name}` of `expertise` must be a number from 0 to 1")
            else:
                expertise[name] = 0.0 if math.isnan(weight) else float(weight)
        return expertise

    def _restart(self, node: yaml.Node) -> Restart:
        value = self.reader.value(node, "`restart`")
        if isinstance(value, str) and value in {"never", "on-failure", "always"}:
            return Restart(on=value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1000:
            return Restart(on="on-failure", at_most=value)
        self.reader.add(node, "`restart` must be never, on-failure, always, or how often at most (0 to 1000)")
        return Restart()


def _is_filled(node: yaml.Node) -> bool:
    return not (isinstance(node, yaml.ScalarNode) and not str(node.value))

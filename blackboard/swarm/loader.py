"""From a file to a ``SwarmSpec``, or to everything that is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import yaml

from .nodes import Fields, Reader
from .options import AGENT, HOW, PROGRAM, Options
from .spec import (
    INVESTIGATE,
    REFINE,
    SYNTHESIZE,
    AgentSpec,
    Coordination,
    Program,
    StageSpec,
    SwarmSpec,
    SwarmType,
    SynthesisSpec,
)

__all__ = ["load_swarm"]

_SWARM = (
    "type", "task", "session", "context", "defaults", "agents", "coordination", "synthesis", "stages",
)  # fmt: skip
_COORDINATION = ("share_findings", "avoid_duplicate_queries", "timeout", "lease")
_SYNTHESIS = (*PROGRAM, "agent", "action", "timeout")
_STAGE = (*PROGRAM, "stage", "agent", "task", "input", "output", "timeout")
_AGENT_ID = re.compile(r"\S{1,100}")
_NAME = re.compile(r"[A-Za-z_][\w.-]{0,99}")


def load_swarm(path: Path | str) -> SwarmSpec:
    """The swarm that the file describes. Nothing of it is imported or started.

    Raises:
        SwarmFileError: the file cannot be read or says something that makes no sense; lists every problem with its
            line and column (``problems``), and the first one's as ``line`` and ``column``.
    """
    return _Loader(Path(path)).load()


@dataclass(frozen=True)
class _Entry:
    """An agent as it stands in the file."""

    id: str
    key: yaml.Node
    fields: Fields | None


class _Loader:
    def __init__(self, path: Path) -> None:
        self.reader = Reader(path)
        self.options = Options(self.reader)

    def load(self) -> SwarmSpec:
        reader = self.reader
        root = reader.root()
        if root is None:
            reader.add(None, "the file is empty; a swarm begins with `swarm:` and its `type`, `task` and `agents`")
            reader.finish()
        assert root is not None
        node = reader.fields(root, "the file", ("swarm",)).need("swarm", "swarm: {type: parallel_investigation, …}")
        if node is None:
            reader.finish()
        assert node is not None
        swarm = reader.fields(node, "`swarm`", _SWARM)
        kind = self._type(swarm)
        defaults = swarm.get("defaults")
        if defaults is not None:
            self.options.set_defaults(defaults)
        progressive = kind is SwarmType.PROGRESSIVE_REFINEMENT
        agents = self._agents(swarm, progressive=progressive)
        stages: tuple[StageSpec, ...] = ()
        task_node = swarm.get("task") if progressive else swarm.need("task", "Investigate incident INC-1234")
        task = "" if task_node is None else reader.text(task_node, "`task`")
        if progressive:
            stages, agents = self._stages(swarm, agents)
        elif kind is not None and "stages" in swarm:
            reader.add(swarm.key("stages"), "`stages` belong to `type: progressive_refinement`")
        synthesis = self._synthesis(swarm, agents)
        if synthesis is not None:
            agents = _with_synthesist(agents, synthesis.agent, self.options.defaults)
        context = swarm.get("context")
        spec = SwarmSpec(
            type=kind or SwarmType.PARALLEL_INVESTIGATION,
            session=self._session(swarm),
            task=task or (stages[-1].task if stages else ""),
            agents=tuple(agents),
            stages=stages,
            synthesis=synthesis,
            coordination=self._coordination(swarm),
            context=None if context is None else reader.value(context, "`context`"),
            path=reader.path,
        )
        reader.finish()
        return spec

    def _type(self, swarm: Fields) -> SwarmType | None:
        node = swarm.need("type", SwarmType.PARALLEL_INVESTIGATION)
        if node is None:
            return None
        try:
            return SwarmType(self.reader.text(node, "`type`"))
        except ValueError:
            known = " or ".join(f"`{one}`" for one in SwarmType)
            self.reader.add(node, f"`type` must be {known}")
            return None

    def _session(self, swarm: Fields) -> str:
        node = swarm.get("session")
        return self.reader.path.stem[:200] if node is None else self.reader.text(node, "`session`", 200)

    # ------------------------------------------------------------------------------------------------- agents

    def _agents(self, swarm: Fields, *, progressive: bool) -> list[AgentSpec]:
        if progressive:
            node = swarm.get("agents")
        else:
            node = swarm.need("agents", "[{ops/deploy-validator: {focus: Check recent deployments}}]")
        if node is None:
            return []
        entries = list(self._entries(node))
        if not entries and not progressive:
            self.reader.add(node, "`agents` must name at least one agent")
        agents: list[AgentSpec] = []
        first: dict[str, yaml.Node] = {}
        for entry in entries:
            self._check_agent_id(entry.key, entry.id)
            if entry.id in first:
                line = first[entry.id].start_mark.line + 1
                self.reader.add(entry.key, f"agent `{entry.id}` is there twice; first on line {line}")
                continue
            first[entry.id] = entry.key
            agent = self.options.options(entry.id, entry.fields)
            focus = None
            if entry.fields is not None:
                focus = entry.fields.get("focus") if progressive else entry.fields.need("focus", "Check deployments")
            elif not progressive:
                self.reader.add(entry.key, f"agent `{entry.id}` needs `focus`, such as `Check recent deployments`")
            if not progressive and agent.program is None:
                self.reader.add(entry.key, f"agent `{entry.id}` has no program: {HOW}")
            agents.append(
                replace(
                    agent,
                    focus="" if focus is None else self.reader.text(focus, f"`focus` of agent `{entry.id}`"),
                    capabilities=agent.capabilities
                    or self.options.defaults.capabilities
                    or (REFINE if progressive else INVESTIGATE,),
                )
            )
        return agents

    def _entries(self, node: yaml.Node) -> Iterator[_Entry]:
        """Both spellings: a list of names or one-key mappings, and one mapping."""
        reader = self.reader
        if isinstance(node, yaml.MappingNode):
            for name, key, value in reader.pairs(node, "`agents`"):
                yield self._entry(name, key, value)
            return
        for item in reader.items(node, "`agents`"):
            if isinstance(item, yaml.ScalarNode):
                yield _Entry(reader.text(item, "an agent's name"), item, None)
                continue
            pairs = list(reader.pairs(item, "an agent"))
            if len(pairs) != 1 and isinstance(item, yaml.MappingNode):
                reader.add(item, "each agent is one key, its name, with its options below, further indented")
            for name, key, value in pairs[:1]:
                yield self._entry(name, key, value)

    def _entry(self, name: str, key: yaml.Node, value: yaml.Node) -> _Entry:
        if value.tag == "tag:yaml.org,2002:null":
            return _Entry(name, key, None)
        return _Entry(name, key, self.reader.fields(value, f"agent `{name}`", AGENT))

    def _check_agent_id(self, node: yaml.Node, agent_id: str) -> None:
        if not _AGENT_ID.fullmatch(agent_id):
            self.reader.add(node, f"{agent_id!r:.120} is no agent's name: 1 to 100 characters without white space")

    # -------------------------------------------------------------------------------------------- the rest

    def _coordination(self, swarm: Fields) -> Coordination:
        node = swarm.get("coordination")
        if node is None:
            return Coordination()
        reader = self.reader
        fields = reader.fields(node, "`coordination`", _COORDINATION)
        changes: dict[str, Any] = {}
        for name in ("share_findings", "avoid_duplicate_queries"):
            if (value := fields.get(name)) is not None:
                changes[name] = reader.flag(value, f"`{name}`")
        if (value := fields.get("timeout")) is not None:
            changes["timeout"] = reader.duration(value, "`timeout`")
        if (value := fields.get("lease")) is not None:
            lease = reader.duration(value, "`lease`")
            if lease is not None and not timedelta(seconds=1) <= lease <= timedelta(days=1):
                reader.add(value, "`lease` must be between 1s and 1d")
            elif lease is not None:
                changes["lease"] = lease
        return Coordination(**changes)

    def _synthesis(self, swarm: Fields, agents: list[AgentSpec]) -> SynthesisSpec | None:
        node = swarm.get("synthesis")
        if node is None:
            return None
        reader = self.reader
        fields = reader.fields(node, "`synthesis`", _SYNTHESIS)
        agent = fields.need("agent", "ops/architect")
        action = fields.need("action", "Combine findings and recommend action")
        agent_id = "" if agent is None else reader.text(agent, "`agent`")
        if agent is not None and agent_id:
            self._check_agent_id(agent, agent_id)
        own = next((one.program for one in agents if one.id == agent_id), None)
        program = self.options.program(fields) or own or self.options.defaults.program
        if program is None and isinstance(node, yaml.MappingNode):
            reader.add(swarm.key("synthesis"), f"the synthesis has no program: {HOW}")
        timeout = fields.get("timeout")
        return SynthesisSpec(
            agent=agent_id,
            action="" if action is None else reader.text(action, "`action`"),
            program=program or Program(),
            timeout=None if timeout is None else reader.duration(timeout, "`timeout`"),
        )

    def _stages(self, swarm: Fields, agents: list[AgentSpec]) -> tuple[tuple[StageSpec, ...], list[AgentSpec]]:
        reader = self.reader
        node = swarm.need("stages", "[{stage: 1, agent: ops/deploy-validator, task: Identify recent changes}]")
        if node is None:
            return (), agents
        known = {agent.id: agent for agent in agents}
        nodes = reader.items(node, "`stages`")
        if not nodes and isinstance(node, yaml.SequenceNode):
            reader.add(node, "`stages` must have at least one stage")
        all_fields = [reader.fields(item, f"stage {number}", _STAGE) for number, item in enumerate(nodes, 1)]
        outputs_later = {
            str(value.value): number
            for number, fields in reversed(list(enumerate(all_fields, 1)))
            if isinstance(value := fields.get("output"), yaml.ScalarNode)
        }
        stages: list[StageSpec] = []
        outputs: dict[str, yaml.Node] = {}
        names: dict[str, yaml.Node] = {}
        for number, fields in enumerate(all_fields, 1):
            stage = self._stage(number, fields, known)
            key = fields.get("stage") or fields.node
            if stage.name in names:
                line = names[stage.name].start_mark.line + 1
                reader.add(key, f"stage `{stage.name}` is there twice; first on line {line}")
            names.setdefault(stage.name, key)
            self._check_inputs(stage, fields, outputs, outputs_later)
            if stage.output is not None:
                output = cast("yaml.Node", fields.get("output"))
                if stage.output in outputs:
                    line = outputs[stage.output].start_mark.line + 1
                    reader.add(output, f"output `{stage.output}` is produced twice; first on line {line}")
                outputs.setdefault(stage.output, output)
            stages.append(stage)
        used = {stage.agent for stage in stages}
        order = list(dict.fromkeys([*(stage.agent for stage in stages), *known]))
        capabilities = self.options.defaults.capabilities or (REFINE,)
        fresh = replace(self.options.defaults, capabilities=capabilities)
        return tuple(stages), [known.get(one) or replace(fresh, id=one) for one in order if one in used or one in known]

    def _stage(self, number: int, fields: Fields, known: dict[str, AgentSpec]) -> StageSpec:
        reader = self.reader
        name_node, output, timeout = fields.get("stage"), fields.get("output"), fields.get("timeout")
        name = str(number) if name_node is None else reader.text(name_node, "`stage`", 100)
        agent = fields.need("agent", "ops/deploy-validator")
        task = fields.need("task", "Identify recent changes")
        agent_id = "" if agent is None else reader.text(agent, "`agent`")
        if agent is not None and agent_id:
            self._check_agent_id(agent, agent_id)
        own = known.get(agent_id)
        program = self.options.program(fields) or (own.program if own else None) or self.options.defaults.program
        if program is None and isinstance(fields.node, yaml.MappingNode):
            reader.add(name_node or fields.node, f"stage `{name}` has no program: {HOW}")
        output_name = None if output is None else self._name(output, "`output`")
        return StageSpec(
            name=name,
            agent=agent_id,
            task="" if task is None else reader.text(task, "`task`"),
            program=program or Program(),
            inputs=tuple(self._name(one, "`input`") for one in self._input_nodes(fields)),
            output=output_name,
            timeout=None if timeout is None else reader.duration(timeout, "`timeout`"),
        )

    def _input_nodes(self, fields: Fields) -> list[yaml.Node]:
        node = fields.get("input")
        if node is None:
            return []
        return self.reader.items(node, "`input`") if isinstance(node, yaml.SequenceNode) else [node]

    def _check_inputs(
        self, stage: StageSpec, fields: Fields, outputs: dict[str, yaml.Node], later: dict[str, int]
    ) -> None:
        seen: set[str] = set()
        for node, name in zip(self._input_nodes(fields), stage.inputs, strict=True):
            if name in seen:
                self.reader.add(node, f"input `{name}` is there twice")
            elif name and name not in outputs:
                if name in later:
                    message = f"input `{name}` is used before stage {later[name]} produces it"
                else:
                    there = f"; there are {', '.join(outputs)}" if outputs else "; no earlier stage has an `output`"
                    message = f"no stage produces input `{name}`{there}"
                self.reader.add(node, message)
            seen.add(name)

    def _name(self, node: yaml.Node, what: str) -> str:
        name = self.reader.text(node, what)
        if name.strip() and not _NAME.fullmatch(name):
            self.reader.add(node, f"{what} must be a name of letters, digits, `_`, `-` and `.`, not {name!r:.80}")
        return name


def _with_synthesist(agents: list[AgentSpec], agent_id: str, defaults: AgentSpec) -> list[AgentSpec]:
    if not any(agent.id == agent_id for agent in agents):
        return [*agents, replace(defaults, id=agent_id, capabilities=(SYNTHESIZE,))]
    return [
        replace(agent, capabilities=tuple(dict.fromkeys((*agent.capabilities, SYNTHESIZE))))
        if agent.id == agent_id
        else agent
        for agent in agents
    ]

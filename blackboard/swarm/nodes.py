"""Reads YAML so that every complaint points at a line and a column, and all complaints come at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import yaml

from ..errors import BlackboardError, SwarmFileError
from ..jsonable import dump_json, load_json

__all__ = ["Fields", "Problem", "Reader", "parse_duration"]

_MAX_BYTES = 1024 * 1024
_MAX_NODES = 100_000
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|[smhd]))+")
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhd])")
_LONGEST = timedelta(days=30)


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong, and where (both 1-based)."""

    line: int
    column: int
    message: str


def parse_duration(text: str) -> timedelta:
    """``10m``, ``90s``, ``1h30m`` or ``500ms`` as a duration.

    Raises:
        ValueError: it is none, is zero, or is over 30 days.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is no duration; write it like 10m, 90s, 1h30m or 500ms")
    parts = [(float(number), unit) for number, unit in _PART.findall(text)]
    seconds = sum(number * _UNITS[unit] for number, unit in parts)
    if len({unit for _, unit in parts}) < len(parts) or seconds <= 0 or seconds > _LONGEST.total_seconds():
        raise ValueError(f"{text!r} is no usable duration: each unit once, more than nothing, at most 30d")
    return timedelta(seconds=seconds)


class Reader:
    """One file; ``problems`` grows while it is read, and ``finish`` raises them all."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet."""
        self.path = path
        self.problems: list[Problem] = []

    def root(self) -> yaml.Node | None:
        """The document's node; None for an empty file.

        Raises:
            SwarmFileError: the file cannot be read or is no YAML.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise SwarmFileError(
                f"{self.path} cannot be read: {error.strerror or error}.", path=str(self.path), problems=[]
            ) from error
        if len(data) > _MAX_BYTES:
            self.add(None, f"the file has {len(data)} bytes and the limit is {_MAX_BYTES}")
            self.finish()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
            self.problems.append(Problem(line, column, "the file is not UTF-8"))
            self.finish()
            raise
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            said = ", ".join(part for part in (error.context, error.problem) if part)
            line, column = (1, 1) if mark is None else (mark.line + 1, mark.column + 1)
            self.problems.append(Problem(line, column, f"this is no YAML: {said}"))
            self.finish()
            raise
        except yaml.YAMLError as error:
            position = getattr(error, "position", 0)
            line = text.count("\n", 0, position) + 1
            column = position - (text.rfind("\n", 0, position) + 1) + 1
            self.problems.append(Problem(line, column, f"this is no YAML: {getattr(error, 'reason', error)}"))
            self.finish()
            raise
        except RecursionError:
            self.add(None, "the file is nested too deeply")
            self.finish()
            raise
        if node is not None:
            self._check_size(node)
        return node

    def add(self, node: yaml.Node | None, message: str) -> None:
        """One more problem, at the beginning of ``node``."""
        mark = None if node is None else node.start_mark
        problem = Problem(1, 1, message) if mark is None else Problem(mark.line + 1, mark.column + 1, message)
        if problem not in self.problems:  # an anchor that is used twice is wrong once
            self.problems.append(problem)

    def finish(self) -> None:
        """Nothing is wrong.

        Raises:
            SwarmFileError: something is; lists all of it, by line.
        """
        if not self.problems:
            return
        problems = sorted(self.problems)
        text = "\n".join(f"{self.path}:{one.line}:{one.column}: {one.message}" for one in problems)
        raise SwarmFileError(
            text,
            path=str(self.path),
            line=problems[0].line,
            column=problems[0].column,
            problems=[{"line": one.line, "column": one.column, "message": one.message} for one in problems],
        )

    def fields(self, node: yaml.Node, what: str, known: Collection[str]) -> Fields:
        """The mapping at ``node``; empty, with a problem noted, when it is none. Keys that nobody knows are noted."""
        return Fields(self, node, what, known)

    def pairs(self, node: yaml.Node, what: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """Key, key's node and value's node of a mapping, merge keys resolved; a key that comes twice is noted."""
        if not isinstance(node, yaml.MappingNode):
            self.add(node, f"{what} must be a mapping of `key: value` lines, not {_kind(node)}")
            return
        seen: dict[str, yaml.Node] = {}
        merged: list[yaml.Node] = []
        for key, value in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            if key.tag == "tag:yaml.org,2002:merge":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            if not isinstance(key, yaml.ScalarNode):
                self.add(key, f"a key in {what} must be plain text")
                continue
            name = str(key.value)
            if name in seen:
                self.add(key, f"`{name}` is there twice in {what}; first on line {seen[name].start_mark.line + 1}")
                continue
            seen[name] = key
            yield name, key, value
        for other in merged:
            for name, key, value in self.pairs(other, what):
                if name not in seen:
                    seen[name] = key
                    yield name, key, value

    def items(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        """The elements of a list; none, with a problem noted, when it is none."""
        if not isinstance(node, yaml.SequenceNode):
            self.add(node, f"{what} must be a list, not {_kind(node)}")
            return []
        return cast("list[yaml.Node]", node.value)

    def text(self, node: yaml.Node, what: str, longest: int = 10_000) -> str:
        """The text at ``node``; numbers count as text. Empty, with a problem noted, when it is none."""
        if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:null":
            self.add(node, f"{what} must be text, not {_kind(node)}")
            return ""
        value = str(node.value)
        if not value.strip():
            self.add(node, f"{what} must not be empty")
        elif len(value) > longest:
            self.add(node, f"{what} has {len(value)} characters and the limit is {longest}")
        elif "\0" in value:
            self.add(node, f"{what} must not contain a zero byte")
        return value

    def texts(self, node: yaml.Node, what: str, longest: int = 100) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(self.text(item, f"each of {what}", longest) for item in self.items(node, what))

    def flag(self, node: yaml.Node, what: str) -> bool:
        """True or false."""
        value = self.value(node, what)
        if not isinstance(value, bool):
            self.add(node, f"{what} must be true or false")
            return False
        return value

    def duration(self, node: yaml.Node, what: str) -> timedelta | None:
        """A duration such as 10m."""
        try:
            return parse_duration(str(node.value) if isinstance(node, yaml.ScalarNode) else "")
        except ValueError as error:
            self.add(node, f"{what}: {error}" if isinstance(node, yaml.ScalarNode) else f"{what} must be like 10m")
            return None

    def number(self, node: yaml.Node, what: str, low: int, high: int) -> int:
        """A whole number within bounds."""
        value = self.value(node, what)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.add(node, f"{what} must be a whole number from {low} to {high}")
            return low
        return value

    def value(self, node: yaml.Node, what: str) -> Any:
        """Any JSON value."""
        constructor = yaml.SafeLoader("")
        try:
            found: Any = constructor.construct_document(node)  # pyright: ignore[reportUnknownMemberType]
            return load_json(dump_json(found, what))
        except yaml.MarkedYAMLError as error:
            self.add(node, f"{what}: {error.problem}")
        except (ValueError, RecursionError) as error:
            self.add(node, f"{what} cannot be read: {error}")
        except BlackboardError as error:
            self.add(node, error.message)
        finally:
            constructor.dispose()
        return None

    def _check_size(self, root: yaml.Node) -> None:
        # Anchors can make a small file huge, or endless: what it stands for is counted before anything is built.
        sizes: dict[int, int] = {}
        entered: set[int] = set()
        stack: list[tuple[yaml.Node, bool]] = [(root, False)]
        while stack:
            node, left = stack.pop()
            children: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                children = [child for pair in cast("list[tuple[yaml.Node, yaml.Node]]", node.value) for child in pair]
            elif isinstance(node, yaml.SequenceNode):
                children = cast("list[yaml.Node]", node.value)
            if left:
                sizes[id(node)] = 1 + sum(sizes[id(child)] for child in children)
                entered.discard(id(node))
                if sizes[id(node)] > _MAX_NODES:
                    self.add(node, f"this stands for more than {_MAX_NODES} values")
                    break
            elif id(node) in entered:
                self.add(node, "this contains itself")
                break
            elif id(node) not in sizes:
                entered.add(id(node))
                stack.append((node, True))
                stack.extend((child, False) for child in children)
        self.finish()


class Fields:
    """A mapping whose keys are known in advance."""

    def __init__(self, reader: Reader, node: yaml.Node, what: str, known: Collection[str]) -> None:
        """Use ``Reader.fields``."""
        self.node = node
        self._what = what
        self._reader = reader
        self._found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for name, key, value in reader.pairs(node, what):
            if name in known:
                self._found[name] = (key, value)
            else:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean `{close[0]}`?" if close else f"; there are {', '.join(sorted(known))}"
                reader.add(key, f"`{name}` is unknown in {what}{hint}")

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def get(self, name: str) -> yaml.Node | None:
        """The value's node, if the key is there and has a value."""
        pair = self._found.get(name)
        if pair is None or pair[1].tag == "tag:yaml.org,2002:null":
            return None
        return pair[1]

    def key(self, name: str) -> yaml.Node:
        """The key's node; the mapping's own where the key is not there."""
        pair = self._found.get(name)
        return self.node if pair is None else pair[0]

    def need(self, name: str, example: str) -> yaml.Node | None:
        """The value's node; a problem is noted when it is missing."""
        found = self.get(name)
        if found is None and isinstance(self.node, yaml.MappingNode):
            self._reader.add(self.key(name), f"{self._what} needs `{name}`, such as `{example}`")
        return found


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "nothing" if node.tag == "tag:yaml.org,2002:null" else f"{node.value!r:.60}"

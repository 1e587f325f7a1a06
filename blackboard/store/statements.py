"""Loads the SQL that the product runs: named statements in ``blackboard/sql/<noun>.sql``.

A file is a sequence of statements::

    -- name: report_finding
    -- Records a finding and returns it. Locks nothing.
    INSERT INTO blackboard.findings (id, content)
    VALUES (:id, CAST(CAST(:content AS text) AS jsonb))
    RETURNING id, CAST(content AS text) AS content

``:name`` is a parameter wherever SQL would read it as one: not in text, quoted names, comments, dollar quotes or
casts. Both drivers must agree on a parameter's type, so give it one with ``CAST(:x AS type)`` where the column does
not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from operator import itemgetter
from typing import Any

from ..errors import ConfigurationError

__all__ = ["Statement", "Statements", "parse", "statements"]


@dataclass(frozen=True, eq=False, slots=False)
class Statement:
    """One named statement, ready for either driver.

    Attributes:
        name: the verb, unique in its file.
        text: the SQL with ``:name`` parameters.
        parameters: their names, each once, in the order of first use.
        doc: the header comment.
        numbered: the SQL with ``$1`` parameters; a repeated name keeps its number.
        pyformat: the SQL with ``%(name)s`` parameters and every literal ``%`` doubled.
    """

    name: str
    text: str
    parameters: tuple[str, ...]
    doc: str
    numbered: str
    pyformat: str

    @classmethod
    def from_text(cls, name: str, text: str, doc: str = "") -> Statement:
        """The statement that ``text`` spells.

        Raises:
            ConfigurationError: a quote or comment is left open, or a parameter is written in a way that drivers or
                readers could take for something else.
        """
        numbers: dict[str, int] = {}
        numbered: list[str] = []
        pyformat: list[str] = []
        for piece, parameter in _pieces(name, text):
            if parameter is None:
                numbered.append(piece)
                pyformat.append(piece.replace("%", "%%"))
            else:
                number = numbers.setdefault(parameter, len(numbers) + 1)
                numbered.append(f"${number}")
                pyformat.append(f"%({parameter})s")
        return cls(name, text, tuple(numbers), doc, "".join(numbered), "".join(pyformat))

    @cached_property
    def _expected(self) -> Set[str]:
        return frozenset(self.parameters)

    def check(self, params: Mapping[str, Any]) -> None:
        """Nothing happens if ``params`` names exactly this statement's parameters.

        Raises:
            TypeError: one is missing or unknown; names it.
        """
        if params.keys() != self._expected:
            missing = ", ".join(sorted(self._expected - params.keys()))
            unknown = ", ".join(sorted(params.keys() - self._expected))
            said = [f"misses {missing}"] * bool(missing) + [f"does not know {unknown}"] * bool(unknown)
            raise TypeError(f"statement {self.name} {' and '.join(said)}")

    @cached_property
    def _picked(self) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
        if len(self.parameters) > 1:
            return itemgetter(*self.parameters)
        return lambda params: [params[name] for name in self.parameters]

    def arguments(self, params: Mapping[str, Any]) -> Sequence[Any]:
        """The values of ``params`` in the order of ``numbered``.

        Raises:
            TypeError: a parameter is missing or unknown.
        """
        if len(params) != len(self.parameters):
            self.check(params)
        try:
            return self._picked(params)
        except KeyError:
            self.check(params)
            raise


class Statements(Mapping[str, Statement]):
    """The statements of one file by name; the file is read at the first look."""

    def __init__(self, noun: str) -> None:
        self._noun = noun

    @cached_property
    def _by_name(self) -> dict[str, Statement]:
        source = resources.files("blackboard").joinpath("sql", f"{self._noun}.sql")
        try:
            text = source.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigurationError(
                f"There is no blackboard/sql/{self._noun}.sql: the installation is incomplete; install it again."
            ) from None
        return parse(text, f"{self._noun}.sql")

    def __getitem__(self, name: str) -> Statement:
        try:
            return self._by_name[name]
        except KeyError:
            known = ", ".join(sorted(self._by_name))
            raise KeyError(f"sql/{self._noun}.sql has no statement {name!r}; it has {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


@cache
def statements(noun: str) -> Statements:
    """The statements of ``sql/<noun>.sql``; nothing is read before the first one is asked for."""
    return Statements(noun)


_NAME_LINE = re.compile(r"^--[ \t]*name:[ \t]*(?P<name>.*?)[ \t]*$", re.MULTILINE)
_NAME = re.compile(r"[a-z_][a-z0-9_]*")


def parse(source: str, origin: str) -> dict[str, Statement]:
    """The statements in ``source`` by name, in its order.

    Raises:
        ConfigurationError: a name is missing, bad or given twice, a statement is empty, or SQL comes before the first
            name; names ``origin`` and the statement.
    """
    source = source.replace("\r\n", "\n")
    found: dict[str, Statement] = {}
    marks = list(_NAME_LINE.finditer(source))
    before = source[: marks[0].start()] if marks else source
    if any(line.strip() and not line.lstrip().startswith("--") for line in before.splitlines()):
        raise ConfigurationError(f"{origin}: SQL stands before the first `-- name:` line.")
    for mark, end in zip(marks, [*(m.start() for m in marks[1:]), len(source)], strict=True):
        name = mark["name"]
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{origin}: {name!r} is no statement name; use lower_case_words.")
        if name in found:
            raise ConfigurationError(f"{origin}: the statement {name} is there twice.")
        doc, text = _split_header(source[mark.end() : end])
        if not text:
            raise ConfigurationError(f"{origin}: the statement {name} is empty.")
        found[name] = Statement.from_text(name, text, doc)
    return found


def _split_header(block: str) -> tuple[str, str]:
    lines = block.strip("\n").splitlines()
    size = next((i for i, line in enumerate(lines) if not line.startswith("--")), len(lines))
    doc = "\n".join(line[2:].removeprefix(" ").rstrip() for line in lines[:size])
    return doc, "\n".join(lines[size:]).strip().rstrip(";").rstrip()


_LEXEME = re.compile(
    r"""
    (?P<escaped>  \b[eE]' (?: [^'\\] | \\. | '' )* ' )
  | (?P<text>     ' (?: [^'] | '' )* ' )
  | (?P<quoted>   " (?: [^"] | "" )* " )
  | (?P<line>     --[^\n]* )
  | (?P<block>    /\* )
  | (?P<dollar>   (?<![\w$]) \$ (?P<tag> [A-Za-z_\u0080-\uffff][\w]* )? \$ .*? \$ (?(tag)(?P=tag)) \$ )
  | (?P<number>   (?<![\w$]) \$ \d+ )
  | (?P<cast>     :: | := )
  | (?P<param>    : (?P<name> [A-Za-z_]\w* ) )
  | (?P<open>     ['"] | (?<![\w$])\$(?:[A-Za-z_]\w*)?\$ )
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)


def _pieces(statement: str, text: str) -> Iterator[tuple[str, str | None]]:
    """Cuts SQL into verbatim pieces ``(text, None)`` and parameters ``(text, name)``."""
    at = plain = 0
    while match := _LEXEME.search(text, at):
        at = match.end()
        if match["block"]:
            at = _end_of_block_comment(statement, text, match.start())
        elif match["open"]:
            raise ConfigurationError(f"Statement {statement}: {match['open']} is opened and never closed.")
        elif match["number"]:
            raise ConfigurationError(f"Statement {statement}: write :name instead of {match['number']}.")
        elif match["param"]:
            if match.start() and (text[match.start() - 1].isalnum() or text[match.start() - 1] in "_)]"):
                raise ConfigurationError(
                    f"Statement {statement}: {text[match.start() - 1]}{match['param']} may be a slice or a parameter; "
                    "put a blank before a parameter, or the bound of a slice into parentheses."
                )
            if plain < match.start():
                yield text[plain : match.start()], None
            yield match["param"], match["name"]
            plain = at
    if plain < len(text):
        yield text[plain:], None


def _end_of_block_comment(statement: str, text: str, start: int) -> int:
    depth = 0
    for mark in re.compile(r"/\*|\*/").finditer(text, start):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return mark.end()
    raise ConfigurationError(f"Statement {statement}: a /* comment is never closed.")

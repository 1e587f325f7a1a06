"""Many tasks from a file: read and checked as a whole, and then all of them on the board, or none."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from .described import task_of
from .desk import Desk

if TYPE_CHECKING:
    import psycopg

    from blackboard import NewTask
    from blackboard.errors import BlackboardError
    from blackboard.sync import Session
    from blackboard.sync.repository.tasks import Tasks

__all__ = ["Line", "add_all", "read"]

_TASKS, _CHARACTERS = 5000, 16_000_000
"""Of one call: what PostgreSQL and we can hold at once with ease."""


@dataclass(frozen=True, slots=True)
class Line:
    """One task of a file.

    Attributes:
        number: of the line on which it begins, from 1.
        size: how many characters it has.
    """

    number: int
    size: int
    task: NewTask


def read(file: str) -> list[Line]:
    """The tasks that a file describes, in its order: an object a line, or one array of objects.

    Args:
        file: its name, or ``-`` for stdin.

    Raises:
        InvalidInput: it cannot be read, or says something else; names line and field.
    """
    lines = [
        Line(number, size, task_of(value, f"line {number}", line=number))
        for number, size, value in _values(_text(file))
    ]
    seen: dict[UUID, int] = {}
    for line in lines:
        if line.task.id is not None and seen.setdefault(line.task.id, line.number) != line.number:
            raise _invalid(
                f"id of line {line.number} is that of line {seen[line.task.id]}: each task has its own.",
                field="id",
                line=line.number,
            )
    return lines


def add_all(desk: Desk, session: Session, lines: Sequence[Line]) -> list[UUID]:
    """All of the tasks are on the board, or none; their ids in the order of the lines.

    Raises:
        BlackboardError: as ``tasks.add_many`` does; where one line is at fault, the message and ``line`` say which.
    """
    import psycopg

    from blackboard.store.driver_errors import PSYCOPG_ERRORS, from_psycopg

    ids: list[UUID] = []
    try:
        # A transaction of our own around as many calls as it takes; PgBouncer may be there.
        with psycopg.connect(desk.url, prepare_threshold=None) as connection:
            tasks = desk.board.bind(connection).session(session.id).tasks
            for part in _parts(lines):
                ids += _added(connection, tasks, part)
    except PSYCOPG_ERRORS as error:
        raise from_psycopg(error) from error
    return ids


def _added(connection: psycopg.Connection[Any], tasks: Tasks, part: Sequence[Line]) -> list[UUID]:
    from blackboard.errors import BlackboardError

    try:
        with connection.transaction():
            return tasks.add_many(line.task for line in part)
    except BlackboardError as error:
        raise _located(connection, tasks, part, error) from error


def _located(
    connection: psycopg.Connection[Any], tasks: Tasks, part: Sequence[Line], error: BlackboardError
) -> BlackboardError:
    """``error`` with the first line that brings it about, if one does: the last one of the shortest such beginning."""
    from psycopg import Rollback

    from blackboard.errors import BlackboardError, IdempotencyConflict, InvalidInput, NotFound

    if not isinstance(error, (InvalidInput, NotFound, IdempotencyConflict)) or error.details.get("noun") == "session":
        return error  # no line brought it about

    def wrong(count: int) -> bool:
        try:
            with connection.transaction():
                tasks.add_many(line.task for line in part[:count])
                raise Rollback
        except BlackboardError as found:
            return found.message == error.message
        return False

    good, bad = 0, len(part)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if wrong(middle) else (middle, bad)
    number = part[bad - 1].number
    field = str(error.details.get("field", ""))
    own = error.message.startswith(f"{field} ")
    message = (
        f"{field} of line {number}{error.message.removeprefix(field)}" if own else f"Line {number}: {error.message}"
    )
    return type(error)(message, **error.details, line=number)


def _parts(lines: Sequence[Line]) -> Iterator[Sequence[Line]]:
    """The lines in portions; in one, where a task depends on one that comes later."""
    places = {line.task.id: place for place, line in enumerate(lines) if line.task.id is not None}
    for place, line in enumerate(lines):
        for edge in line.task.depends_on:
            if places.get(edge if isinstance(edge, UUID) else edge.id, -1) >= place:
                yield lines
                return
    begin = size = 0
    for place, line in enumerate(lines):
        if place > begin and (place - begin >= _TASKS or size + line.size > _CHARACTERS):
            yield lines[begin:place]
            begin, size = place, 0
        size += line.size
    if lines:
        yield lines[begin:]


def _values(text: str) -> Iterator[tuple[int, int, Any]]:
    """Line, length and value of each element of an array, or of each line that is not empty."""
    if text.lstrip().startswith("["):
        yield from _elements(text)
        return
    # Not splitlines: a text may hold other separators than this one.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _no_json(number, error, getattr(error, "colno", None)) from None
            yield number, len(line), value


def _elements(text: str) -> Iterator[tuple[int, int, Any]]:
    decode = json.JSONDecoder().raw_decode
    place, number, counted = text.index("[") + 1, 1, 0

    def skipped(at: int) -> int:
        """The place of the next character that is no space."""
        nonlocal number, counted
        while text[at : at + 1].isspace():
            at += 1
        number += text.count("\n", counted, at)
        counted = at
        return at

    def wrong(message: str) -> Exception:
        return _no_json(number, ValueError(message), None)

    place = skipped(place)
    while text[place : place + 1] != "]":
        try:
            value, end = decode(text, place)
        except (ValueError, RecursionError) as error:
            skipped(getattr(error, "pos", place))
            raise _no_json(number, error, getattr(error, "colno", None)) from None
        yield number, end - place, value
        place = skipped(end)
        if text[place : place + 1] == ",":
            place = skipped(place + 1)
            if text[place : place + 1] == "]":
                raise wrong("Nothing follows the comma")
        elif text[place : place + 1] != "]":
            raise wrong("Expecting ',' or ']'")
    place = skipped(place + 1)
    if place < len(text):
        raise wrong("More follows the array")


def _text(file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except (OSError, ValueError) as error:
        raise _invalid(f"batch cannot be read from {file}: {error}.", field="batch") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise _invalid(
            f"Line {number} is no UTF-8: save the file in that encoding.", field="batch", line=number
        ) from None


def _no_json(number: int, error: Exception, column: int | None) -> Exception:
    said = getattr(error, "msg", None) or str(error)
    where = "" if column is None else f" (column {column})"
    return _invalid(f"Line {number} is no JSON: {said}{where}.", field="batch", line=number)


def _invalid(message: str, **details: Any) -> Exception:
    from blackboard.errors import InvalidInput

    return InvalidInput(message, **details)

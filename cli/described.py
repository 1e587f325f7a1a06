"""Tasks and stages as files describe them: the library's own names, times and durations as people write them."""

from __future__ import annotations

from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

from .values import coming, duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import ValidationError

    from blackboard import NewTask
    from blackboard.errors import InvalidInput

__all__ = ["converted", "guessed", "task_of"]


def converted(described: dict[str, Any], what: str, **place: Any) -> dict[str, Any]:
    """``described`` with times and durations in place of what is written for them.

    Args:
        described: by the names of the fields.
        what: how errors call it, such as ``line 3``.
        place: details of errors.

    Raises:
        InvalidInput: one of them is none; names field and place.
    """
    from blackboard.errors import InvalidInput

    fields, now = dict(described), datetime.now(UTC)
    try:
        for name in ("timeout", "retry_delay", "fallback"):
            if fields.get(name) is not None:
                fields[name] = duration(str(fields[name]), name)
        for name in ("run_at", "expires_at"):
            if isinstance(fields.get(name), (str, int, float)):
                fields[name] = _coming(fields[name], name, now)
        unique: Any = fields.get("unique")
        if isinstance(unique, str):
            fields["unique"] = {"key": unique}
        elif isinstance(unique, dict):
            window: Any = cast("dict[str, Any]", unique).get("window")
            if window is not None:
                fields["unique"] = {**cast("dict[str, Any]", unique), "window": duration(str(window), "unique.window")}
    except InvalidInput as error:
        field = str(error.details["field"])
        said = error.message.removeprefix(f"{field} ")
        raise InvalidInput(f"{field} of {what} {said}", field=field.partition(".")[0], **place) from None
    return fields


def _coming(value: Any, name: str, now: datetime) -> Any:
    # A number could be seconds from now, or since 1970.
    return coming(value if isinstance(value, str) else f"the number {value}", name, now)


def guessed(name: str, known: Iterable[str]) -> str:
    """What was probably meant by ``name``, as a sentence that follows another; empty where nothing is close."""
    close = get_close_matches(name, known, 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def task_of(described: Any, what: str, **place: Any) -> NewTask:
    """The task that an object of a file describes.

    Args:
        described: with the names of ``NewTask``; ``unique`` may be its key alone.
        what: how errors call it, such as ``line 3``.
        place: details of errors.

    Raises:
        InvalidInput: it is no such object; names field and place.
    """
    from pydantic import ValidationError

    from blackboard import NewTask
    from blackboard.errors import InvalidInput

    if not isinstance(described, dict):
        raise InvalidInput(
            f'{what[:1].upper()}{what[1:]} must be an object such as {{"type": "investigate"}}.', field="batch", **place
        )
    given = cast("dict[str, Any]", described)
    for name in given:
        if name not in NewTask.model_fields:
            raise InvalidInput(
                f"{name!r} of {what} is no field of a task.{guessed(name, NewTask.model_fields)}", field=name, **place
            )
    if "type" not in given:
        raise InvalidInput(f"type of {what} is missing.", field="type", **place)
    fields = converted(given, what, **place)
    if isinstance(fields.get("depends_on"), str):
        fields["depends_on"] = [fields["depends_on"]]
    try:
        return NewTask(**fields)
    except ValidationError as error:
        raise _wrong(error, what, place) from None


def _wrong(error: ValidationError, what: str, place: dict[str, Any]) -> InvalidInput:
    from blackboard.errors import InvalidInput

    # A dependency may be an id or an object: what is wrong inside the object says more than that it is no id.
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    path = [str(part) for part in first["loc"] if part not in {"uuid", "Dependency"}]
    said = first["msg"].removeprefix("Input ").replace("Field required", "is required")
    return InvalidInput(f"{'.'.join(path)} of {what} {said[:1].lower()}{said[1:]}.", field=path[0], **place)

"""What every value has in common: frozen, strict about its fields, and readable from a row."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict

from ..jsonable import load_json

__all__ = ["Record", "UtcDatetime"]


def _in_utc(value: datetime) -> datetime:
    return value.astimezone(UTC)


UtcDatetime = Annotated[datetime, AfterValidator(_in_utc)]
"""An aware datetime in UTC, whatever time zone the database session has."""


class Record(BaseModel):
    """A row as a frozen value.

    Columns named in ``json_columns`` cross the wire as JSON text, so that no driver needs a codec.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    json_columns: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The value that ``row`` holds."""
        values = dict(row)
        for column in cls.json_columns:
            text = values.get(column)
            if text is not None:
                values[column] = load_json(text)
        return cls.model_validate(values)

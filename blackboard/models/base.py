"""What every value has in common: frozen, strict about its fields, and readable from a row."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict

from ..jsonable import load_json

__all__ = ["Record", "UtcDatetime", "in_utc"]

# Frozen models refuse the ordinary way.
_set = object.__setattr__


def in_utc(value: datetime) -> datetime:
    """The same moment in UTC; what is in UTC stays itself."""
    return value if value.tzinfo is UTC else value.astimezone(UTC)


UtcDatetime = Annotated[datetime, AfterValidator(in_utc)]
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

    @classmethod
    def trusting(cls, values: dict[str, Any]) -> Self:
        """The value whose fields are ``values``, all of them, each of its type; neither is checked, nor copied.

        What ``model_construct`` does, without its look at every field's aliases and default, which takes longer than
        validating.
        """
        self = cls.__new__(cls)
        _set(self, "__dict__", values)
        _set(self, "__pydantic_fields_set__", set(values))
        _set(self, "__pydantic_extra__", None)
        _set(self, "__pydantic_private__", None)
        return self

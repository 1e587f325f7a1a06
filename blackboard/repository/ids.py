"""Ids that people know a part of."""

from __future__ import annotations

from typing import ClassVar
from uuid import UUID

from ..jsonable import check_text
from ..store.statements import statements
from .scope import Repository

__all__ = ["PartialIds"]

_SQL = statements("ids")


class PartialIds(Repository):
    """The part of a noun's repository that finds ids by their beginning or end."""

    noun: ClassVar[str]

    async def ids_like(self, part: str) -> list[UUID]:
        """At most two of the ids in this session that begin or end with ``part``: two say that it does not suffice.

        Args:
            part: 6 to 32 hexadecimal digits, dashes or not.

        Raises:
            InvalidInput: it is something else.
        """
        return await self._ids_like(self.noun, part)

    async def _ids_like(self, noun: str, part: str) -> list[UUID]:
        rows = await self._executor.fetch_all(
            _SQL["find_ids"],
            session_id=self._scope.session_id,
            noun=noun,
            digits=check_text(part, "part", 100).replace("-", "").lower(),
        )
        return [row["id"] for row in rows]

"""The picture of a session."""

from __future__ import annotations

from ..errors import InvalidInput, NotFound
from ..models.picture import Picture
from ..store.statements import statements
from .scope import Repository

__all__ = ["Pictures"]

_SQL = statements("pictures")
_DUE = statements("proposals")


class Pictures(Repository):
    """One session at a glance."""

    async def get(self, *, limit: int = 100) -> Picture:
        """Everything that matters now, of one moment, at most ``limit`` (1 to 10 000) items a kind.

        Deadlines of proposals that have passed are applied first.

        Raises:
            InvalidInput: the limit is out of range.
            NotFound: no such session.
        """
        if not 1 <= limit <= 10_000:
            raise InvalidInput("limit must be between 1 and 10000.", field="limit")
        # First, in a statement of its own, whose effects the picture then sees.
        await self._executor.fetch_one(_DUE["close_due_proposals"], session_id=self._scope.session_id, limit=100)
        row = await self._executor.fetch_one(_SQL["get_picture"], session_id=self._scope.session_id, limit=limit)
        assert row is not None
        if row["session"] is None:
            raise NotFound("There is no such session.", noun="session", id=str(self._scope.session_id))
        return Picture.from_row(row)

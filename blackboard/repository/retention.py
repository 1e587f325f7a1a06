"""What a session does not keep for ever goes, by whoever looks after it."""

from __future__ import annotations

from ..errors import InvalidInput
from ..models.retention import Kept
from ..store.executor import Executor
from ..store.statements import statements

__all__ = ["Keeper"]

_SQL = statements("retention")


class Keeper:
    """Lets go what the sessions of the board do not keep; any number of processes may do so at once."""

    def __init__(self, executor: Executor) -> None:
        """Use ``board.keeper``."""
        self._executor = executor

    async def keep_due(self, scan: int = 1000) -> Kept:
        """One batch has gone in the session whose turn it is, in a transaction of its own; says when to call again.

        Workers call it by themselves. A session is looked after by one process at a time; the others' calls find
        other sessions, or nothing. A batch that cannot go (a table of your own refers to one of its tasks) is told in
        ``error`` and tried again in the session's next round.

        Args:
            scan: how many tasks are looked at, or events deleted, 1 to 10 000.

        Raises:
            InvalidInput: ``scan`` is out of its range.
            NotPermitted: this role may not work on the board.
        """
        if not 1 <= scan <= 10_000:
            raise InvalidInput("scan must be between 1 and 10000.", field="scan")
        row = await self._executor.fetch_one(_SQL["keep_due"], scan=scan)
        assert row is not None
        return Kept.from_row(row)

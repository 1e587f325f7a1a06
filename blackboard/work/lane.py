"""A session as a worker sees it that takes tasks from it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..board import Agent, Session

__all__ = ["Lane"]


@dataclass(eq=False)
class Lane:
    """One session that a worker takes tasks from.

    Attributes:
        place: its number among the worker's lanes.
        hot: a claim may find something.
        recheck: it was emptied, and is to be looked at once more before the worker goes idle.
        misses: how often in a row there was something that could not be claimed.
        not_before: when it is worth another claim after that.
        due_at: when its next scheduled task is due.
        floored: it may hold something that the connection for claims does not see before ``due_at``.
        look_by: when it is to be looked at, however busy the others are: something is due, or a hint was lost.
        unheard: its listeners were not yet told what was claimed of it.
        in_vain: how many hints in a row came to nothing: others were quicker.
        coming: the look that a hint has led to, where it is to come a little later.
        left_out: the last claim from several lanes got nothing of it.
        alone: and yet there is something, which such a claim leaves to one from this lane alone.
    """

    session: Session
    agent: Agent
    place: int = 0
    hot: bool = True
    recheck: bool = False
    misses: int = 0
    not_before: float = 0.0
    due_at: float | None = None
    floored: bool = False
    look_by: float = 0.0
    closed: bool = False
    unheard: bool = False
    in_vain: int = 0
    coming: asyncio.TimerHandle | None = None
    left_out: bool = False
    alone: bool = False

    def moved(self) -> None:
        """A task of it ended here: what was locked or held until then may be free."""
        self.recheck = True
        self.not_before = 0.0

    def notify(self) -> None:
        """Whoever waits for what becomes of tasks of this session looks again."""
        self.unheard = False
        self.session.scope.listener.notify(self.session.id, "tasks.changed")

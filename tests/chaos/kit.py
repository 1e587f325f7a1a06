"""What tests of workers behind the proxy share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest

from blackboard import Blackboard, Session
from blackboard.models.tasks import TaskRecord

from ..conftest import eventually
from .proxy import Door, Proxy, upstream_of

__all__ = ["door", "ended", "far_board"]


@pytest.fixture
def door(database_url: str) -> Iterator[Door]:
    """A door of the proxy before the test's database."""
    with Proxy() as proxy:
        yield proxy.door("worker", upstream_of(database_url))


@pytest.fixture
async def far_board(door: Door, database_url: str, far_term: timedelta) -> AsyncIterator[Blackboard]:
    """A board behind the door, under a lease of ``far_term``."""
    async with Blackboard.open(door.url(database_url), lease_term=far_term) as board:
        yield board


async def ended(session: Session, task: TaskRecord) -> TaskRecord:
    """The task, when it has ended; looked for, because nobody hints at that whose connections are dead."""

    async def check() -> TaskRecord | None:
        found = await session.tasks.get(task.id)
        return found if found.finished else None

    return await eventually(check, 30)

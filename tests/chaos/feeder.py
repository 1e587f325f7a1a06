"""Adds tasks all the time, through a door like everybody else; what it was told was added must be there.

Sessions are fed unevenly: the first gets most, and now and then all of them get something in one transaction.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from blackboard.errors import TransientError, Unavailable
from blackboard.ids import new_id
from blackboard.models.tasks import NewTask
from blackboard.sync import Blackboard, Session

__all__ = ["Added", "Feeder"]

_MIX = {
    "pay": 30,
    "plain": 20,
    "pay_slowly": 20,
    "pay_blocking": 8,
    "pay_third": 8,
    "pay_later": 6,
    "pay_overrun": 3,
    "pay_and_die": 2,
    "doom": 3,
}
_BATCH = 10
_TO_ALL = 0.3
"""How often all sessions get something at once, which is done at once: what is claimed and completed across them."""
_QUICK = ("plain", "plain", "plain", "pay")


class Added(NamedTuple):
    """A task whose adding was answered."""

    session_id: UUID
    type: str


@dataclass
class Feeder:
    """Keeps workers busy from ``start`` to ``stop``, and until at least ``tasks`` were added.

    Attributes:
        board: a handle of its own.
        sessions: where, by their ids.
        random: decides what.
        tasks: how many at least.
        seconds: over which they are spread.
        term: of the leases; slow tasks take up to that.
        types: only these; none means all.
        added: the session and the type of every task whose adding was answered.
    """

    board: Blackboard
    sessions: dict[UUID, Session]
    random: random.Random
    tasks: int
    seconds: float
    term: float
    types: tuple[str, ...] = ()
    added: dict[UUID, Added] = field(default_factory=dict[UUID, Added])
    failed: BaseException | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Tasks are being added."""
        self._thread = threading.Thread(target=self._run, name="chaos-feeder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """The rest of ``tasks`` is added now, without a pause."""
        self._stopping.set()

    def join(self, seconds: float) -> None:
        """Everything was added.

        Raises:
            TimeoutError: not within that time.
        """
        assert self._thread is not None
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise TimeoutError(f"the feeder did not end within {seconds:.0f} s")
        if self.failed is not None:
            raise self.failed

    def insist(self, tasks: dict[UUID, list[NewTask]]) -> None:
        """The tasks are added to the sessions of those ids; the same ids however often that takes."""
        while True:
            try:
                self._add(tasks)
            except (Unavailable, TransientError, psycopg.OperationalError):
                time.sleep(0.1)
            else:
                break
        for session_id, new in tasks.items():
            self.added.update((task.id, Added(session_id, task.type)) for task in new if task.id is not None)

    def _add(self, tasks: dict[UUID, list[NewTask]]) -> None:
        if len(tasks) == 1:
            [(session_id, new)] = tasks.items()
            self.sessions[session_id].tasks.add_many(new)
            return
        with psycopg.connect(self.board.url, connect_timeout=10) as connection:
            bound = self.board.bind(connection)
            for session_id, new in tasks.items():
                bound.session(session_id).tasks.add_many(new)

    @property
    def mix(self) -> Counter[str]:
        """How many of each type."""
        return Counter(added.type for added in self.added.values())

    def _run(self) -> None:
        try:
            while not self._stopping.is_set() or len(self.added) < self.tasks:
                before, ids = len(self.added), list(self.sessions)
                if self.random.random() < _TO_ALL:
                    self.insist({one: self._batch(self.types or _QUICK, _BATCH // 2) for one in ids})
                else:
                    # The first session gets as much as the last one times the square of their number.
                    [one] = self.random.choices(ids, [n * n for n in range(len(ids), 0, -1)])
                    self.insist({one: self._batch(self.types or tuple(_MIX), _BATCH)})
                self._stopping.wait(self.seconds * (len(self.added) - before) / self.tasks)
        except BaseException as error:
            self.failed = error

    def _batch(self, types: tuple[str, ...], count: int) -> list[NewTask]:
        tasks: list[NewTask] = []
        for type_ in self.random.choices(types, [_MIX[type_] for type_ in types], k=count):
            before = [task.id for task in tasks if task.id is not None and task.type != "doom"]
            tasks.append(
                NewTask(
                    id=new_id(),
                    type=type_,
                    capability="storm",
                    priority=self.random.choice([5, 5, 5, 8]),
                    parameters=self._parameters(type_),
                    depends_on=(self.random.choice(before),) if before and self.random.random() < 0.15 else (),
                    timeout=timedelta(seconds=0.5) if type_ == "pay_overrun" else None,
                    max_attempts=2 if type_ == "doom" else 1000,
                    retry_delay=timedelta(milliseconds=100),
                    limit_key=self.random.choice([None, None, "a", "b"]),
                )
            )
        return tasks

    def _parameters(self, type_: str) -> dict[str, Any]:
        if type_ == "pay_slowly":
            return {"before": self.random.uniform(0, self.term), "held": self.random.uniform(0, self.term / 2)}
        if type_ == "plain" and self.random.random() < 0.3:
            return {"before": self.random.uniform(0, self.term)}
        if type_ == "pay_blocking":
            return {"before": self.random.uniform(0, self.term / 2)}
        if type_ == "pay_and_die":
            return {"die": self.random.choice(["before", "after"])}
        return {}

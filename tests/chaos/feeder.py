"""Adds tasks all the time, through a door like everybody else; what it was told was added must be there."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from blackboard.errors import TransientError, Unavailable
from blackboard.ids import new_id
from blackboard.models.tasks import NewTask
from blackboard.sync import Session

__all__ = ["Feeder"]

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


@dataclass
class Feeder:
    """Keeps workers busy from ``start`` to ``stop``, and until at least ``tasks`` were added.

    Attributes:
        session: where; of a handle of its own.
        random: decides what.
        tasks: how many at least.
        seconds: over which they are spread.
        term: of the leases; slow tasks take up to that.
        added: the type of every task whose adding was answered.
    """

    session: Session
    random: random.Random
    tasks: int
    seconds: float
    term: float
    added: dict[UUID, str] = field(default_factory=dict[UUID, str])
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

    def insist(self, tasks: list[NewTask]) -> None:
        """The tasks are added; the same ids however often that takes."""
        while True:
            try:
                self.session.tasks.add_many(tasks)
            except (Unavailable, TransientError):
                time.sleep(0.1)
            else:
                self.added.update((task.id, task.type) for task in tasks if task.id is not None)
                return

    @property
    def mix(self) -> Counter[str]:
        """How many of each type."""
        return Counter(self.added.values())

    def _run(self) -> None:
        pause = self.seconds * _BATCH / self.tasks
        try:
            while not self._stopping.is_set() or len(self.added) < self.tasks:
                self.insist(self._batch())
                self._stopping.wait(pause)
        except BaseException as error:
            self.failed = error

    def _batch(self) -> list[NewTask]:
        tasks: list[NewTask] = []
        for type_ in self.random.choices(list(_MIX), list(_MIX.values()), k=_BATCH):
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
        if type_ == "pay_blocking":
            return {"before": self.random.uniform(0, self.term / 2)}
        if type_ == "pay_and_die":
            return {"die": self.random.choice(["before", "after"])}
        return {}

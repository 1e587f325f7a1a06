"""What can happen. A fault is a generator: it begins, waits by yielding, and has put things right when it ends.

One that finds nothing to happen to ends before its first ``yield``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Final

from .proxy import Ambush

if TYPE_CHECKING:
    from .storm import Storm, Target

__all__ = ["ANSWERS", "FAULTS", "answer_of"]

Fault = Callable[["Storm"], Generator[None]]

_SPRING_SECONDS = 5.0

ANSWERS: Final[dict[str, tuple[str, bool]]] = {
    "claim": ("blackboard.claim_task", True),
    "complete": ("blackboard.complete_task", False),
    "fail": ("blackboard.fail_task", True),
    "release": ("blackboard.release_task", True),
    "read": ("blackboard.read_events(", True),
    "add": ("blackboard.add_task", True),
    "lease": ("blackboard.start_lease(", True),
    "renew": ("blackboard.renew_lease(", True),
    "commit": ("COMMIT", False),
}
"""Whose answer can be lost: what is in the statement, and whether only an answer with rows is worth it."""


def answer_of(kind: str) -> Ambush:
    """Waits for that kind of request: one of ``ANSWERS``."""
    part, rows = ANSWERS[kind]
    return Ambush(lambda text: part in text, rows=rows)


def _pause(seconds: float) -> Generator[None]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield


def _until(holds: Callable[[], object], seconds: float) -> Generator[None]:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        yield


def _works(target: Target) -> bool:
    return target.works


def kill(storm: Storm) -> Generator[None]:
    """A process, the reader among them."""
    with storm.target() as target:
        if target is None:
            return
        target.process.kill()
        yield


def stop(storm: Storm) -> Generator[None]:
    """Past the lapse of its lease."""
    with storm.target(_works) as target:
        if target is None:
            return
        target.process.freeze()
        try:
            yield
            pid = target.process.pid
            yield from _until(lambda: storm.lapsed(pid), 5 * storm.options.term)
        finally:
            target.process.thaw()


def edge(storm: Storm) -> Generator[None]:
    """About one term: it renews while it is being swept."""
    seconds = storm.options.term * storm.random.uniform(0.8, 1.3)
    with storm.target(_works) as target:
        if target is None:
            return
        target.process.freeze()
        try:
            yield
            yield from _pause(seconds)
        finally:
            target.process.thaw()


@contextlib.contextmanager
def _server(storm: Storm) -> Generator[bool]:
    if storm.server_busy:
        yield False
        return
    storm.server_busy = True
    try:
        yield True
    finally:
        storm.server_busy = False


def _down(storm: Storm, seconds: float) -> Generator[None]:
    with _server(storm) as ours:
        if not ours:
            return
        storm.server.stop_at_once()
        try:
            yield
            yield from _pause(seconds)
        finally:
            storm.server.start()
            storm.note_start()


def restart(storm: Storm) -> Generator[None]:
    """In immediate mode."""
    yield from _down(storm, storm.random.choice([0.0, 0.0, 0.3]))


def outage(storm: Storm) -> Generator[None]:
    """Longer than a term."""
    yield from _down(storm, storm.options.term * storm.random.uniform(1.2, 2.0))


def crash(storm: Storm) -> Generator[None]:
    """A process of the server is killed: all the others end themselves, and it recovers."""
    with _server(storm) as ours:
        rows = storm.server.ask(
            "SELECT pid FROM pg_stat_activity WHERE application_name <> 'chaos driver' AND pid <> pg_backend_pid() "
            "ORDER BY backend_type = 'client backend' DESC, pid"
        )
        if not ours or not rows:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(storm.random.choice(rows)[0], signal.SIGKILL)
        yield
        yield from _until(lambda: storm.server.ask("SELECT 1"), 30)


def cut(storm: Storm) -> Generator[None]:
    """One process's connections, everybody's, or the next one in the middle of what it sends."""
    how = storm.random.choice(["one", "all", "middle", "feeder"])
    count = storm.random.randrange(1, 3000)
    if how == "all":
        for target in storm.targets:
            target.door.cut()
        storm.feeder_door.cut()
        yield
        return
    if how == "feeder":
        storm.feeder_door.cut_after(count)
        yield
        return
    with storm.target() as target:
        if target is None:
            return
        if how == "one":
            target.door.cut()
        else:
            target.door.cut_after(count)
        yield


def lose(storm: Storm) -> Generator[None]:
    """The server did it, and nobody is told."""
    kind = storm.random.choice([*ANSWERS, "claim", "claim", "commit"])
    doors = {"add": [storm.feeder_door], "read": [target.door for target in storm.targets if not target.works]}
    workers = [target.door for target in storm.targets if target.works and not target.busy]
    candidates = doors.get(kind, workers)
    if not candidates:
        return
    door = storm.random.choice(candidates)
    ambush = door.lay(answer_of(kind))
    try:
        yield
        yield from _until(ambush.sprung.is_set, _SPRING_SECONDS)
    finally:
        door.lift(ambush)
    storm.counts[f"lost answer: {kind}"] += ambush.sprung.is_set()


def hole(storm: Storm) -> Generator[None]:
    """For a while nothing arrives anywhere."""
    seconds = storm.options.term * storm.random.uniform(0.3, 2.5)
    cut_in_the_end = storm.random.random() < 0.5
    with storm.target() as target:
        if target is None:
            return
        target.door.hole()
        try:
            yield
            yield from _pause(seconds)
        finally:
            target.door.heal(cut=cut_in_the_end)


def deaf(storm: Storm) -> Generator[None]:
    """Dead connections that look alive."""
    with storm.target() as target:
        if target is None:
            return
        target.door.deafen()
        yield


def refuse(storm: Storm) -> Generator[None]:
    """No new connections, and the old ones cut."""
    seconds = storm.random.uniform(0.2, storm.options.term * 1.5)
    with storm.target() as target:
        if target is None:
            return
        target.door.refuse()
        target.door.cut()
        try:
            yield
            yield from _pause(seconds)
        finally:
            target.door.heal()


def bouncer(storm: Storm) -> Generator[None]:
    """Killed, and back after a while."""
    seconds = storm.random.uniform(0.0, storm.options.term)
    if storm.bouncer is None or storm.bouncer_busy:
        return
    storm.bouncer_busy = True
    storm.bouncer.kill()
    try:
        yield
        yield from _pause(seconds)
    finally:
        storm.bouncer.start()
        storm.bouncer_busy = False


FAULTS: Final[dict[str, Fault]] = {
    fault.__name__: fault
    for fault in (kill, stop, edge, restart, crash, outage, cut, lose, hole, deaf, refuse, bouncer)
}
"""By name."""

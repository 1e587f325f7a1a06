"""The storm: what it starts, how it goes on, and how it ends."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blackboard.errors import BlackboardError
from blackboard.ids import new_id
from blackboard.models.tasks import NewTask
from blackboard.store import migrations
from blackboard.sync import Blackboard

from .checks import Evidence, check
from .faults import FAULTS
from .feeder import Feeder
from .handlers import TABLES
from .machines import Bouncer, Process, Server, eventually
from .proxy import Door, Proxy
from .reader import notes, pages
from .report import Report, Violation

__all__ = ["Options", "Storm", "Target"]

_TESTS = Path(__file__).resolve().parent.parent
_UNAVAILABLE = 4
"""The exit status of a worker that found no database when it started."""


@dataclass(frozen=True)
class Options:
    """How large a storm.

    Attributes:
        seed: what happens is drawn from it; when it happens is not.
        faults: which kinds; each comes once before any comes again.
        seconds: how long faults are begun, at least.
        workers: processes; each serves all sessions.
        sessions: how many.
        tasks: added at least, to all sessions together.
        term: of a lease, seconds.
        pause: the longest time between the beginnings of two faults, seconds.
        concurrency: handlers at once in a worker.
        patience: seconds after which what must happen in the end counts as never happening.
        limited: there are limits on what runs at once, so that claims go the longer way; with several sessions in every
            third one, so that claims from several leave it out.
        durable: the server also syncs to disk.
        bin_dir: of PostgreSQL's programs.
        types: of tasks; none means all.
    """

    seed: int
    faults: tuple[str, ...]
    seconds: float = 150.0
    workers: int = 6
    sessions: int = 3
    tasks: int = 3000
    term: float = 2.0
    pause: float = 2.0
    concurrency: int = 6
    patience: float = 120.0
    limited: bool = False
    durable: bool = False
    bin_dir: Path | None = None
    types: tuple[str, ...] = ()


@dataclass
class Target:
    """A process, and the door it goes through.

    Attributes:
        works: it is a worker, and not the reader.
        pooled: its door leads to PgBouncer.
        busy: something happens to it just now.
        dismissed: it was asked to end.
        due_at: when it is to be started again.
    """

    process: Process
    door: Door
    works: bool
    pooled: bool = False
    busy: bool = False
    dismissed: bool = False
    due_at: float | None = None


@dataclass
class Storm:
    """One storm; ``with Storm(...) as storm: report = storm.run()``.

    Attributes:
        options: how large.
        home: a directory for logs and what the processes write down.
        random: draws what happens.
        tell: gets a line of progress from time to time.
        targets: the processes.
        counts: how often each kind of fault came.
        server_busy, bouncer_busy: it is being broken; one thing at a time.
        calm: no fault is begun any more.
        starts: when the server started, by its own clock.
    """

    options: Options
    home: Path
    tell: Callable[[str], None] = lambda line: None
    targets: list[Target] = field(default_factory=list[Target])
    counts: Counter[str] = field(default_factory=Counter[str])
    server_busy: bool = False
    bouncer_busy: bool = False
    calm: bool = False
    starts: list[Any] = field(default_factory=list[Any])
    violations: list[Violation] = field(default_factory=list[Violation])

    def __post_init__(self) -> None:
        self.random = random.Random(self.options.seed)
        self._stack = contextlib.ExitStack()

    # --------------------------------------------------------------------------------------------------- the beginning

    def __enter__(self) -> Storm:
        try:
            self._set_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _set_up(self) -> None:
        options, stack = self.options, self._stack
        self.server = stack.enter_context(Server.running(durable=options.durable, bin_dir=options.bin_dir))
        migrations.upgrade(self.server.url)
        self.server.ask(TABLES)
        self.note_start()
        self.bouncer = None
        if "bouncer" in options.faults:
            self.bouncer = Bouncer(self.server)
            stack.callback(self.bouncer.kill)
            self.bouncer.start()
        proxy = stack.enter_context(Proxy())
        feeding = proxy.door("feeder", str(self.server.socket))
        board = stack.enter_context(Blackboard.open(feeding.url(self.server.url), actor="chaos/feeder"))
        self.sessions = [board.start(f"storm-{number}") for number in range(options.sessions)]
        if options.limited:
            for session in self.sessions[1::3] or self.sessions:
                slots = options.workers * options.concurrency // len(self.sessions)
                session.limits.set("all", max_running=max(2, slots * 2 // 3))
                session.limits.set("slow", type="pay_slowly", max_running=1 + options.workers // len(self.sessions))
                session.limits.set("by key", per_key=True, max_running=2)
        self.feeder = Feeder(
            board, {session.id: session for session in self.sessions}, random.Random(options.seed + 1), options.tasks,
            options.seconds, options.term, options.types,
        )  # fmt: skip
        self.feeder_door = feeding
        self.targets.append(self._reader(proxy))
        self.targets += [self._worker(proxy, number) for number in range(options.workers)]
        for target in self.targets:
            stack.callback(target.process.kill)
            target.process.start()

    def _reader(self, proxy: Proxy) -> Target:
        door = proxy.door("reader", str(self.server.socket))
        process = Process("reader", ["-m", "chaos.reader"], self._environment(door), self.home / "reader.log", _TESTS)
        return Target(process, door, works=False)

    def _worker(self, proxy: Proxy, number: int) -> Target:
        pooled = self.bouncer is not None and number % 3 == 2
        upstream = self.bouncer.socket if self.bouncer is not None and pooled else self.server.socket
        name = f"chaos/{number}"
        door = proxy.door(name, str(upstream))
        environment = self._environment(door) | {
            "CHAOS_AGENT": name,
            "CHAOS_CONCURRENCY": str(self.options.concurrency),
        }
        command = ["-m", "blackboard_cli", "worker", "chaos.handlers:make"]
        process = Process(name, command, environment, self.home / f"worker-{number}.log", _TESTS)
        return Target(process, door, works=True, pooled=pooled)

    def _environment(self, door: Door) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("BLACKBOARD_", "PG"))}
        return inherited | {
            "BLACKBOARD_URL": door.url(self.server.url),
            "BLACKBOARD_LEASE_TERM": str(self.options.term),
            "BLACKBOARD_POLL_INTERVAL": "0.3",
            "CHAOS_SESSIONS": ",".join(str(session.id) for session in self.sessions),
            "CHAOS_HOME": str(self.home),
            "PYTHONUNBUFFERED": "1",
        }

    # ------------------------------------------------------------------------------------------------------ its course

    def run(self) -> Report:
        """Faults happen, then everything runs again, and what must hold is checked."""
        began = time.monotonic()
        try:
            eventually(self._all_at_work, self.options.patience, "the start of all processes")
            self.feeder.start()
            self._rage()
            self._come_to_rest()
        except (TimeoutError, BlackboardError) as error:
            shown = (*self._unfinished(), *self._absent())
            self.violations.append(Violation("everything comes to an end", str(error), shown))
        with self.server.connect() as connection:
            options = self.options
            ids = tuple(session.id for session in self.sessions)
            evidence = Evidence(connection, ids, self.home, self.feeder.added, self.starts, options.term)
            self.violations += check(evidence)
            facts = evidence.facts()
        facts["processes killed from outside"] = sum(target.process.killed for target in self.targets)
        return Report(
            {**asdict(options), "bin_dir": None if options.bin_dir is None else str(options.bin_dir)},
            time.monotonic() - began, dict(self.counts), facts, self.violations,
        )  # fmt: skip

    def _unfinished(self) -> tuple[str, ...]:
        """What is not done, and why."""
        rows = self.server.ask(
            "SELECT t.id, t.type, t.status, t.attempt, blackboard.why_task(t.session_id, t.id) "
            "FROM blackboard.tasks t WHERE completed_at IS NULL ORDER BY id LIMIT 10"
        )
        return tuple(str(row) for row in rows or [])

    def _absent(self) -> tuple[str, ...]:
        """Which processes are not at work, and what they said last."""
        absent = [target.process for target in self.targets if not target.process.said("is at work")]
        return tuple(f"{one.name} said: {line}" for one in absent for line in one.last_words())

    def _all_at_work(self) -> bool:
        self.look_after()
        return all(target.process.said("is at work") for target in self.targets)

    def _rage(self) -> None:
        due = list(self.options.faults)
        self.random.shuffle(due)
        active: list[Generator[None]] = []
        ends_at = time.monotonic() + self.options.seconds
        next_at = told_at = 0.0
        try:
            while time.monotonic() < ends_at or due:
                now = time.monotonic()
                if now > ends_at + self.options.patience:
                    raise TimeoutError(f"{', '.join(due)} found nothing to happen to for {self.options.patience:.0f} s")
                if now >= next_at:
                    name = due[0] if due else self.random.choice(self.options.faults)
                    fault = FAULTS[name](self)
                    if step(fault):
                        active.append(fault)
                        self.counts[name] += 1
                        due = due[1:]
                        next_at = now + self.random.uniform(0.1, self.options.pause)
                    else:
                        # There is nothing that it could happen to; it is tried again soon.
                        next_at = now + 0.1
                active = [fault for fault in active if step(fault)]
                self.look_after()
                if now - told_at > 1.0:
                    told_at = now
                    self.tell(self.progress(max(0.0, ends_at - now)))
                time.sleep(0.02)
            while active:
                active = [fault for fault in active if step(fault)]
                self.look_after()
                time.sleep(0.02)
        finally:
            for fault in active:
                fault.close()

    def look_after(self) -> None:
        """What was killed is started again; what ended by itself is told of."""
        for target in self.targets:
            status = target.process.ended
            if status is None or target.busy or target.dismissed:
                continue
            if target.due_at is None:
                at_work = target.process.said("is at work")
                if status != -9 and (at_work or status != _UNAVAILABLE):
                    text = f"{target.process.name} ended by itself, with status {status}; see {target.process.log}"
                    self.violations.append(Violation("processes live until they are killed", text))
                target.due_at = time.monotonic() + self.random.uniform(0.0, 0.5)
            elif time.monotonic() >= target.due_at:
                target.due_at = None
                target.process.start()

    def _come_to_rest(self) -> None:
        """Everything works again and has done its work."""
        patience = self.options.patience
        self.calm = True
        for door in (self.feeder_door, *(target.door for target in self.targets)):
            door.heal()
        self.feeder.stop()
        self.feeder.join(patience)
        eventually(self._all_at_work, patience, "the return of all processes")
        eventually(self._finished, patience, "the end of all tasks")
        self._call_the_roll(patience)
        for target in self.targets:
            if target.works:
                target.dismissed = True
                status = target.process.end(patience)
                if status != 0:
                    text = f"{target.process.name} was asked to end and did, with status {status}"
                    self.violations.append(Violation("processes live until they are killed", text))
        eventually(self._none_lives, patience, "the lapse of what the dead had held")
        eventually(self._all_read, patience, "the reader's catching up")
        for target in self.targets:
            target.dismissed = True
            target.process.end(patience)

    def _finished(self) -> bool:
        self.look_after()
        self.tell(self.progress(0.0))
        rows = self.server.ask("SELECT count(*) FROM blackboard.tasks WHERE completed_at IS NULL")
        return rows is not None and rows[0][0] == 0

    def _none_lives(self) -> bool:
        self.server.ask("SELECT blackboard.tend_leases()")
        rows = self.server.ask("SELECT count(*) FROM blackboard.leases WHERE lapsed_at IS NULL OR swept_at IS NULL")
        return rows is not None and rows[0][0] == 0

    def _all_read(self) -> bool:
        self.look_after()
        rows = self.server.ask("SELECT session_id, count(*) FROM blackboard.events GROUP BY 1")
        return rows is not None and all(
            sum(len(seqs) for _, seqs in pages(notes(self.home, session_id))) >= count
            for session_id, count in rows
            if session_id in self.feeder.sessions
        )

    def _call_the_roll(self, patience: float) -> None:
        """Each worker has done a task that only it could have, in each session."""
        workers = [target.process.name for target in self.targets if target.works]
        for session in self.sessions:
            calls = [NewTask(id=new_id(), type="here", assigned_to=name, max_attempts=1000) for name in workers]
            self.feeder.insist({session.id: calls})
        eventually(self._finished, patience, f"an answer of each of {', '.join(workers)}")

    def progress(self, left: float) -> str:
        """One line."""
        rows = self.server.ask("SELECT status, count(*) FROM blackboard.tasks GROUP BY status")
        counts = "the server is away" if rows is None else ", ".join(f"{n} {status}" for status, n in sorted(rows))
        busy = ", ".join(target.process.name for target in self.targets if target.busy)
        phase = f"{left:3.0f} s left" if not self.calm else "at rest"
        return f"{phase}; tasks: {counts}; faults: {sum(self.counts.values())}{f' (now at {busy})' if busy else ''}"

    # -------------------------------------------------------------------------------------------------- what faults use

    def note_start(self) -> None:
        """The server was started just now."""
        rows = self.server.ask("SELECT pg_postmaster_start_time()")
        self.starts.append(rows[0][0] if rows else None)

    @contextlib.contextmanager
    def target(self, wanted: Callable[[Target], bool] = lambda target: True) -> Generator[Target | None]:
        """One that nothing happens to just now, for itself; None if there is none."""
        free = [one for one in self.targets if not one.busy and one.process.ended is None and wanted(one)]
        chosen = self.random.choice(free) if free else None
        if chosen is not None:
            chosen.busy = True
        try:
            yield chosen
        finally:
            if chosen is not None:
                chosen.busy = False

    def lapsed(self, pid: int | None) -> bool:
        """Whether the process holds no lease that lives, as the server says."""
        rows = self.server.ask("SELECT FROM blackboard.leases WHERE pid = %s AND lapsed_at IS NULL", pid)
        return rows is not None and not rows


def step(fault: Generator[None]) -> bool:
    """The fault goes on; False when it is over."""
    try:
        next(fault)
    except StopIteration:
        return False
    return True

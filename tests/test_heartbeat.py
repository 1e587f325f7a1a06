"""The heartbeat: what keeps a lease alive, what does not end it, and the one thing that does."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from blackboard.errors import ConfigurationError, InvalidInput
from blackboard.ids import new_id
from blackboard.work import Heartbeat

from .serverfixture_listener import Pooler, WatchedServer, eventually

pytestmark = pytest.mark.lifecycle

APPLICATION = "blackboard heartbeat"

# Stands for the real function: what it lapses and when is the server's business, not the heartbeat's.
STAND_IN = """
CREATE SCHEMA blackboard;
CREATE TABLE blackboard.leases (id uuid PRIMARY KEY, held integer NOT NULL, renewed integer NOT NULL DEFAULT 0,
                                lapsed_at timestamptz);
CREATE FUNCTION blackboard.renew_lease(lease_id uuid, claims_since uuid) RETURNS integer LANGUAGE sql AS
'UPDATE blackboard.leases SET renewed = renewed + 1 WHERE id = lease_id AND lapsed_at IS NULL RETURNING held';
"""

Make = Callable[..., Heartbeat]


@pytest.fixture(scope="module")
def server() -> Iterator[WatchedServer]:
    server = WatchedServer()
    server.sql(STAND_IN)
    yield server
    server.destroy()


@pytest.fixture
def lease(server: WatchedServer) -> UUID:
    lease = uuid4()
    server.sql("INSERT INTO blackboard.leases VALUES (%s, 3)", lease)
    return lease


@pytest.fixture
def make(server: WatchedServer, lease: UUID) -> Iterator[Make]:
    made: list[Heartbeat] = []

    def make(
        seconds: float = 0.3, *, conninfo: str | None = None, of: UUID | None = None, **callbacks: Any
    ) -> Heartbeat:
        made.append(Heartbeat(conninfo or server.conninfo, of or lease, timedelta(seconds=seconds), **callbacks))
        made[-1].start()
        return made[-1]

    yield make
    for heartbeat in made:
        heartbeat.stop()


def renews(heartbeat: Heartbeat, times: int = 2) -> None:
    """Returns after so many renewals more."""
    wanted = heartbeat.renewals + times
    eventually(lambda: heartbeat.renewals >= wanted)


def test_renews_every_third_of_the_term_while_the_event_loop_is_blocked(
    server: WatchedServer, lease: UUID, make: Make
) -> None:
    heartbeat = make(0.3)

    async def block() -> None:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:  # holds the loop, and the interpreter lock in small pieces
            sum(range(1000))

    renews(heartbeat, 1)
    before = heartbeat.renewals
    asyncio.run(block())
    renewals = heartbeat.renewals - before
    assert 4 <= renewals <= 13
    heartbeat.stop()
    ((counted,),) = server.sql("SELECT renewed FROM blackboard.leases WHERE id = %s", lease)
    # The one that was under way when it was stopped may have reached the server without its answer reaching us.
    assert counted - heartbeat.renewals in {0, 1}


def test_tells_how_many_tasks_the_lease_holds(server: WatchedServer, lease: UUID, make: Make) -> None:
    counts: list[int] = []
    counted_since: list[UUID | None] = []

    def count(held: int, since: UUID | None) -> None:
        counts.append(held)
        counted_since.append(since)

    heartbeat = make(0.1, on_count=count)
    began = new_id()
    eventually(lambda: counts)
    assert counts[0] == 3
    server.sql("UPDATE blackboard.leases SET held = 0 WHERE id = %s", lease)
    eventually(lambda: counts[-1] == 0)
    eventually(lambda: len(counts) > 10)
    assert [since is None for since in counted_since[:11]] == [True, *[False] * 9, True], "all of it every tenth time"
    recent = [since for since in counted_since if since is not None]
    assert recent == sorted(recent)
    milliseconds = (began.int - recent[0].int) >> 80
    assert 0 < milliseconds < 60_000, "two terms back, by the clock that makes the ids of claims"
    assert not heartbeat.lost, "a lease without tasks is a lease"


def test_a_lapsed_lease_is_told_once_and_ends_it(server: WatchedServer, lease: UUID, make: Make) -> None:
    told: list[bool] = []
    heartbeat = make(0.1, on_lost=lambda: told.append(heartbeat.lost))
    renews(heartbeat)
    assert not heartbeat.is_stale()
    server.sql("UPDATE blackboard.leases SET lapsed_at = now() WHERE id = %s", lease)
    assert heartbeat._thread
    heartbeat._thread.join(20)
    assert told == [True], "lost is true before the callback runs"
    assert heartbeat.is_stale()
    assert not server.backends(APPLICATION)
    renewals = heartbeat.renewals
    heartbeat.beat_now()
    heartbeat.start()
    heartbeat.stop()
    assert (told, heartbeat.renewals, heartbeat.lost) == ([True], renewals, True)


def test_an_unknown_lease_is_lost(make: Make) -> None:
    lost = threading.Event()
    heartbeat = make(60, of=uuid4(), on_lost=lost.set)
    assert lost.wait(20)
    assert heartbeat.renewals == 0
    assert heartbeat.last_renewed_at is None


def test_stop_may_be_called_from_the_callback(make: Make) -> None:
    heartbeat: list[Heartbeat] = []
    ready, done = threading.Event(), threading.Event()

    def lost() -> None:
        ready.wait(20)
        heartbeat[0].stop()
        done.set()

    heartbeat.append(make(60, of=uuid4(), on_lost=lost))
    ready.set()
    assert done.wait(20)


def test_failing_callbacks_do_not_end_it(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    def fail(held: int, since: UUID | None) -> None:
        raise ValueError("from the callback")

    heartbeat = make(0.1, on_count=fail)
    renews(heartbeat, 3)
    assert "from the callback" in caplog.text


def test_a_cut_connection_is_replaced(server: WatchedServer, make: Make) -> None:
    heartbeat = make(60)  # its next turn is far away: the loss itself is what it acts on
    renews(heartbeat, 1)
    (before,) = server.backends(APPLICATION)
    server.sql("SELECT pg_terminate_backend(%s)", before)
    renews(heartbeat, 1)
    assert server.backends(APPLICATION) != [before]
    assert not heartbeat.lost


def test_an_outage_longer_than_the_term_does_not_end_it(server: WatchedServer, make: Make) -> None:
    heartbeat = make(0.2)
    renews(heartbeat, 1)
    server.stop()
    try:
        eventually(heartbeat.is_stale)
        assert not heartbeat.lost
        assert heartbeat._thread
        assert heartbeat._thread.is_alive()
    finally:
        server.start()
    renews(heartbeat)
    assert not heartbeat.is_stale()
    assert not heartbeat.lost


def test_starts_before_the_server_does(server: WatchedServer, make: Make) -> None:
    server.stop()
    try:
        heartbeat = make(0.2)
        eventually(heartbeat.is_stale)
        assert heartbeat.last_renewed_at is None
    finally:
        server.start()
    renews(heartbeat)
    assert not heartbeat.is_stale()


def test_a_server_process_that_hangs_is_left_behind(server: WatchedServer, make: Make) -> None:
    heartbeat = make(0.9)
    renews(heartbeat, 1)
    (hung,) = server.backends(APPLICATION)
    os.kill(hung, signal.SIGSTOP)
    try:
        renews(heartbeat)
        assert set(server.backends(APPLICATION)) - {hung}
    finally:
        os.kill(hung, signal.SIGCONT)
    eventually(lambda: hung not in server.backends(APPLICATION))
    assert not heartbeat.lost


def test_a_frozen_server_that_comes_back_is_used_again(server: WatchedServer, make: Make) -> None:
    heartbeat = make(0.3)
    renews(heartbeat, 1)
    with server.frozen():
        eventually(heartbeat.is_stale)
    renews(heartbeat)
    assert not heartbeat.lost


def test_a_renewal_that_waits_for_a_lock_leaves_no_queue_on_the_server(
    server: WatchedServer, lease: UUID, make: Make
) -> None:
    heartbeat = make(0.3)
    renews(heartbeat, 1)
    with server.connect() as connection, connection.transaction():
        connection.execute("SELECT FROM blackboard.leases WHERE id = %s FOR UPDATE", (lease,))
        seen: set[int] = set()
        while len(seen) < 6:  # so many tries
            now = server.backends(APPLICATION)
            assert len(now) <= 3
            seen.update(now)
        assert not heartbeat.lost
    renews(heartbeat)


def test_a_refused_renewal_is_tried_again(server: WatchedServer, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    heartbeat = make(0.2)
    renews(heartbeat, 1)
    server.sql("ALTER FUNCTION blackboard.renew_lease RENAME TO gone")
    try:
        eventually(heartbeat.is_stale)
        assert not heartbeat.lost
    finally:
        server.sql("ALTER FUNCTION blackboard.gone RENAME TO renew_lease")
    renews(heartbeat)
    assert caplog.text.count("was not renewed") == 1, "told once an outage, not once a try"


def test_beat_now_does_not_wait_for_its_turn(make: Make) -> None:
    heartbeat = make(3600)
    renews(heartbeat, 1)
    for _ in range(3):
        wanted = heartbeat.renewals + 1
        heartbeat.beat_now()
        eventually(lambda wanted=wanted: heartbeat.renewals == wanted)


@pytest.mark.parametrize("state", ["idle", "renewing", "connecting"])
def test_stop_is_prompt_though_the_server_hangs(server: WatchedServer, make: Make, state: str) -> None:
    heartbeat = make(3600) if state != "connecting" else None
    if heartbeat:
        renews(heartbeat, 1)
    with server.frozen():
        heartbeat = heartbeat or make(3600)
        if state == "renewing":
            heartbeat.beat_now()
            eventually(lambda: not heartbeat._asked)
        began = time.monotonic()
        heartbeat.stop()
        assert time.monotonic() - began < 1.0
        assert heartbeat._thread
        assert not heartbeat._thread.is_alive()


def test_stop_is_prompt_while_it_backs_off(make: Make, server: WatchedServer) -> None:
    heartbeat = make(3600, conninfo="host=/nowhere dbname=nothing")
    eventually(lambda: heartbeat._thread and heartbeat._thread.is_alive())
    began = time.monotonic()
    heartbeat.stop()
    heartbeat.stop()
    assert time.monotonic() - began < 1.0


def test_a_block_keeps_the_lease_and_one_connection(server: WatchedServer, lease: UUID) -> None:
    with Heartbeat(server.conninfo, lease, timedelta(seconds=0.3)) as heartbeat:
        assert heartbeat.lease_id == lease
        renews(heartbeat, 3)
        assert len(server.backends(APPLICATION)) == 1
    assert not heartbeat.lost
    eventually(lambda: not server.backends(APPLICATION))
    eventually(heartbeat.is_stale)


def test_stopped_before_started_never_starts(server: WatchedServer, lease: UUID) -> None:
    heartbeat = Heartbeat(server.conninfo, lease, timedelta(seconds=1))
    heartbeat.beat_now()
    heartbeat.stop()
    heartbeat.start()
    assert heartbeat._thread is None


@pytest.mark.skipif(not shutil.which("pgbouncer", path="/usr/sbin:/usr/bin"), reason="needs PgBouncer")
def test_works_through_a_transaction_pooler_and_leaves_nothing_there(server: WatchedServer, make: Make) -> None:
    pooler = Pooler(server)
    try:
        heartbeat = make(0.2, conninfo=pooler.conninfo)
        renews(heartbeat, 3)
        heartbeat.stop()
        assert pooler.sql("SHOW statement_timeout") == [("0",)]
    finally:
        pooler.destroy()


def test_a_bad_term_or_url_is_refused(lease: UUID) -> None:
    with pytest.raises(InvalidInput) as caught:
        Heartbeat("host=x", lease, timedelta(0))
    assert caught.value.details["field"] == "term"
    with pytest.raises(ConfigurationError):
        Heartbeat("host='x", lease, timedelta(seconds=1))

"""Wake-ups: who is woken, who is not, and what survives a lost, hung or pooled connection."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from blackboard.errors import BlackboardError, ConfigurationError
from blackboard.store import listener as module
from blackboard.store.listener import Listener
from blackboard.store.subscription import Subscription

from .serverfixture_listener import Pooler, WatchedServer, eventually

pytestmark = pytest.mark.lifecycle

LONG = timedelta(seconds=60)  # a wait that ends sooner than this was woken, not polling
APPLICATION = "blackboard listener"
NO_NOUN = "01980a4e-0000-7000-8000-000000000000"

Make = Callable[..., Listener]


@pytest.fixture(scope="module")
def server() -> Iterator[WatchedServer]:
    server = WatchedServer()
    yield server
    server.destroy()


@pytest.fixture
def make(server: WatchedServer) -> Iterator[Make]:
    made: list[Listener] = []

    def make(conninfo: str | None = None, **options: object) -> Listener:
        options.setdefault("poll_interval", LONG)
        made.append(Listener(conninfo or server.conninfo, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for listener in made:
        listener.close()


def hearing(listener: Listener, *subscriptions: Subscription) -> None:
    """Returns once LISTEN is in effect and the hint that says so was taken."""
    eventually(lambda: listener.listening)
    for subscription in subscriptions:
        subscription.wait(0)


def send(server: WatchedServer, *payloads: str) -> None:
    with server.connect() as connection:
        for payload in payloads:
            connection.execute("SELECT pg_notify('blackboard', %s)", (payload,))


def test_notify_of_another_connection_wakes_threads_and_tasks(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    in_thread, in_loop = listener.subscribe(session, {"tasks"}), listener.subscribe(session, {"tasks", "locks"})
    hearing(listener, in_thread, in_loop)

    async def wait() -> bool:
        waiting = asyncio.create_task(in_loop.wait_async(30))
        await asyncio.sleep(0)  # it waits now
        await asyncio.to_thread(send, server, f"{session} tasks")
        return await waiting

    with ThreadPoolExecutor() as pool:
        blocked = pool.submit(in_thread.wait, 30)
        assert asyncio.run(wait())
        assert blocked.result()


def test_all_waits_on_one_subscription_are_woken(server: WatchedServer, make: Make) -> None:
    listener = make()
    subscription = listener.subscribe()
    hearing(listener, subscription)
    with ThreadPoolExecutor(5) as pool:
        blocked = [pool.submit(subscription.wait, 30) for _ in range(5)]
        eventually(lambda: len(subscription._waiters) == 5)
        send(server, f"{uuid4()} tasks")
        assert all(wait.result() for wait in blocked)


def test_other_sessions_and_nouns_do_not_wake(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    subscription, witness = listener.subscribe(session, {"tasks"}), listener.subscribe(None, {"fence"})
    hearing(listener, subscription, witness)
    # Notifications of one sender arrive in order: when the last one is here, the others were.
    send(server, f"{uuid4()} tasks", f"{session} findings", f"{uuid4()} fence")
    assert witness.wait(30)
    assert not subscription.wait(0)
    send(server, f"{session} tasks")
    assert subscription.wait(30)


def test_a_closed_subscription_hears_nothing(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    witness = listener.subscribe(session)
    with listener.subscribe(session) as subscription:
        hearing(listener, subscription, witness)
    subscription.close()
    send(server, f"{session} tasks")
    assert witness.wait(30)
    assert not subscription.wait(0)


def test_a_hint_between_check_and_wait_is_not_lost(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    subscription, witness = listener.subscribe(session), listener.subscribe(session)
    hearing(listener, subscription, witness)
    send(server, f"{session} tasks")
    assert witness.wait(30)
    assert subscription.wait(0)
    assert not subscription.wait(0), "a hint is given once"
    listener.notify(session, "tasks")
    assert asyncio.run(subscription.wait_async(30))


def test_a_cancelled_wait_leaves_the_hint_to_the_next(make: Make) -> None:
    listener, session = make(), uuid4()
    subscription = listener.subscribe(session)
    hearing(listener, subscription)

    async def scenario() -> None:
        waiting = asyncio.create_task(subscription.wait_async(30))
        await asyncio.sleep(0)
        waiting.cancel()
        listener.notify(session, "tasks")
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await subscription.wait_async(0)
        assert not subscription._waiters

    asyncio.run(scenario())


def test_a_wait_ends_at_the_sooner_of_timeout_and_poll_interval(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HEARD_POLL_SECONDS", 0.03)
    listener = make(poll_interval=timedelta(milliseconds=20))
    subscription = listener.subscribe(uuid4())
    hearing(listener, subscription)
    for timeout in (None, 60.0, 0.01, 0.0, -1.0):
        assert not subscription.wait(timeout)
        assert not asyncio.run(subscription.wait_async(timeout))
    assert not subscription._waiters


def test_who_began_to_wait_together_looks_one_after_the_other(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HEARD_POLL_SECONDS", 0.05)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(module, "_FIRST_LOOK_SECONDS", 0.1)
    listener = make(poll_interval=timedelta(milliseconds=1))
    subscriptions = [listener.subscribe() for _ in range(5)]
    hearing(listener, *subscriptions)

    async def waits(timeout: float | None) -> list[float]:
        began = time.monotonic()

        async def wait(subscription: Subscription) -> float:
            assert not await subscription.wait_async(timeout)
            return time.monotonic() - began

        return sorted(await asyncio.gather(*(wait(subscription) for subscription in subscriptions)))

    # How late a look comes depends on the machine, how early does not.
    for taken, least in zip(asyncio.run(waits(None)), [0.05, 0.15, 0.17, 0.19, 0.21], strict=True):
        assert taken >= least - 0.005
    # When the time is up it is up, whoever else looks.
    monkeypatch.setattr(module, "_MOST_LATE_SECONDS", 1000)
    listener._next_look = time.monotonic() + 1000
    assert asyncio.run(waits(0.06))


def test_who_subscribes_before_listen_takes_effect_is_hinted_when_it_does(make: Make) -> None:
    assert make().subscribe(uuid4(), {"tasks"}).wait(30), "what was sent before LISTEN may have been missed"


@pytest.mark.parametrize("payload", ["", "garbage", "no-uuid tasks", "*", NO_NOUN, f"{NO_NOUN} ", "ä ö"])
def test_an_unparsable_payload_wakes_everybody(server: WatchedServer, make: Make, payload: str) -> None:
    listener = make()
    subscriptions = [listener.subscribe(uuid4(), {"tasks"}), listener.subscribe(None, {"locks"})]
    hearing(listener, *subscriptions)
    send(server, payload)
    assert all(subscription.wait(30) for subscription in subscriptions)


def test_many_notifications_go_out_in_few_statements_and_none_is_missing(server: WatchedServer, make: Make) -> None:
    listener = make(coalesce=timedelta(milliseconds=50))
    sessions = [uuid4() for _ in range(10)]
    wanted = {f"{session} {noun}" for session in sessions for noun in ("tasks", "locks")}
    with server.connect() as connection:
        connection.execute("LISTEN blackboard")
        for i in range(1000):
            listener.notify(sessions[i % 10], ("tasks", "locks")[i // 10 % 2])
        heard: list[str] = []
        for notice in connection.notifies(timeout=30):
            heard.append(notice.payload)
            if wanted <= set(heard):
                break
    assert set(heard) == wanted
    assert len(heard) < 200, "not coalesced"


def test_a_steady_stream_is_told_less_often_than_what_comes_after_a_silence(server: WatchedServer, make: Make) -> None:
    pause = 0.02
    listener, session = make(coalesce=timedelta(seconds=pause)), uuid4()
    with server.connect() as connection:
        connection.execute("LISTEN blackboard")
        began = time.monotonic()
        while time.monotonic() < began + 60 * pause:
            listener.notify(session, "tasks")
            time.sleep(0.001)
        eventually(lambda: not listener._pending)
        listener.notify(session, "last")
        told = [(notice.payload.split()[1]) for notice in connection.notifies(timeout=0.5)]
    # At the shortest pause it would be sixty times; 20, 40, 80 and then 160 ms make it ten.
    assert 2 <= told.count("tasks") <= 20
    assert told[-1] == "last"


def test_in_a_stream_the_sender_is_not_woken_and_leaves_nothing_behind(
    server: WatchedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, session = make(coalesce=timedelta(milliseconds=50)), uuid4()
    woken = list[int]()
    wake = module.Waker.wake
    monkeypatch.setattr(module.Waker, "wake", lambda waker: (woken.append(1), wake(waker))[1])
    with server.connect() as connection:
        connection.execute("LISTEN blackboard")
        # Each as soon as the one before has been sent: always within the pause after that.
        for number in range(6):
            listener.notify(session, f"noun{number}")
            [notice] = connection.notifies(timeout=30, stop_after=1)
            assert notice.payload == f"{session} noun{number}"
            eventually(lambda: not listener._sending)
        assert len(woken) < 6, "it looks by itself"
        eventually(lambda: not listener._pausing)
        listener.notify(session, "last")
        [notice] = connection.notifies(timeout=30, stop_after=1)
        assert notice.payload == f"{session} last", "and has to be woken after that"


def test_a_hint_from_the_loop_that_waits_needs_no_call_from_outside(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, session = make(), uuid4()
    subscription = listener.subscribe(session)
    hearing(listener, subscription)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        waiting = asyncio.create_task(subscription.wait_async(30))
        await asyncio.sleep(0)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", None)
            listener.notify(session, "tasks")
        assert await waiting

    asyncio.run(scenario())


def test_hints_with_any_noun_reach_the_server_as_they_are(server: WatchedServer, make: Make) -> None:
    noun = 'a "b" \\c, {d} ä'
    session = uuid4()
    with server.connect() as connection:
        connection.execute("LISTEN blackboard")
        make().notify(session, noun)
        assert next(connection.notifies(timeout=30)).payload == f"{session} {noun}"


def test_waiters_of_this_process_need_no_server(tmp_path: Path, make: Make) -> None:
    listener, session = make(f"host={tmp_path} dbname=nothing"), uuid4()
    with listener.subscribe(session, {"tasks"}) as subscription:
        assert not subscription.wait(0)
        listener.notify(session, "tasks")
        assert subscription.wait(0)
        assert not listener.listening


def test_the_echo_of_an_own_hint_does_not_wake_again(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    subscription, witness = listener.subscribe(session, {"tasks"}), listener.subscribe(session, {"fence"})
    hearing(listener, subscription, witness)
    with server.connect() as connection:
        connection.execute("LISTEN blackboard")
        listener.notify(session, "tasks")
        assert subscription.wait(0)
        assert next(connection.notifies(timeout=30)).payload == f"{session} tasks"
    send(server, f"{session} fence")
    assert witness.wait(30)
    assert not subscription.wait(0)


def test_nothing_connects_before_the_first_use_and_idle_connections_close(
    server: WatchedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_UNLISTEN_SECONDS", 0.02)
    monkeypatch.setattr(module, "_IDLE_SECONDS", 0.05)
    listener = make()
    assert listener._thread is None
    eventually(lambda: not server.backends(APPLICATION))  # those of the test before may still be leaving
    for _ in range(2):
        with listener.subscribe(uuid4()) as subscription:
            hearing(listener, subscription)
            assert len(server.backends(APPLICATION)) == 1
        eventually(lambda: not listener.listening)
        eventually(lambda: not server.backends(APPLICATION))


def test_listen_is_undone_when_the_last_subscriber_leaves(
    server: WatchedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_UNLISTEN_SECONDS", 0.0)
    listener = make()
    with listener.subscribe() as subscription:
        hearing(listener, subscription)
    eventually(lambda: [row[0] for row in server.sql(
        "SELECT query FROM pg_stat_activity WHERE application_name = %s", APPLICATION)] == ["UNLISTEN *"])  # fmt: skip
    # And done again at once for the next one, not after the pause that follows a refusal.
    with listener.subscribe() as subscription:
        hearing(listener, subscription)


def test_a_cut_connection_is_replaced_and_every_subscriber_hinted(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    subscriptions = [listener.subscribe(session, {"tasks"}), listener.subscribe(uuid4(), {"locks"})]
    hearing(listener, *subscriptions)
    (before,) = server.backends(APPLICATION)
    server.sql("SELECT pg_terminate_backend(%s)", before)
    assert all(subscription.wait(30) for subscription in subscriptions)
    hearing(listener, *subscriptions)
    assert server.backends(APPLICATION) != [before]
    send(server, f"{session} tasks")
    assert subscriptions[0].wait(30)


def test_a_restart_of_the_server_is_survived_and_queued_hints_go_out_after_it(
    server: WatchedServer, make: Make
) -> None:
    listener, hearer, session = make(), make(), uuid4()
    subscription, other = listener.subscribe(session), hearer.subscribe(session, {"tasks"})
    hearing(listener, subscription)
    hearing(hearer, other)
    server.stop()
    try:
        eventually(lambda: not listener.listening)
        listener.notify(session, "tasks")
        assert subscription.wait(0)
    finally:
        server.start()
    assert subscription.wait(30)
    assert other.wait(30)
    eventually(lambda: not listener._pending)


def test_an_outage_is_told_once_and_in_one_line(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[object] = []
    monkeypatch.setattr(module, "backoff", lambda *_: tries.append(None) or 0.0)
    listener = make(f"host={tmp_path} user=nobody")
    listener.subscribe(uuid4())
    eventually(lambda: len(tries) > 3)
    listener.close()
    [record] = [record for record in caplog.records if record.name == module.__name__]
    assert record.getMessage().startswith("wake-ups wait for a connection: PostgreSQL could not be reached")
    assert "\n" not in record.getMessage()


def test_a_server_process_that_hangs_counts_as_lost(
    server: WatchedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.3)
    listener, session = make(), uuid4()
    hearing(listener, listener.subscribe())
    (hung,) = server.backends(APPLICATION)
    with server.connect() as connection:
        connection.execute("LISTEN blackboard")
        os.kill(hung, signal.SIGSTOP)
        try:
            listener.notify(session, "tasks")
            assert next(connection.notifies(timeout=30)).payload == f"{session} tasks"
        finally:
            os.kill(hung, signal.SIGCONT)


@pytest.mark.parametrize("state", ["listening", "sending", "connecting"])
def test_close_returns_though_the_server_hangs(server: WatchedServer, make: Make, state: str) -> None:
    listener = make()
    if state != "connecting":
        hearing(listener, listener.subscribe())
    with server.frozen():
        if state != "listening":
            listener.notify(uuid4(), "tasks")
        began = time.monotonic()
        listener.close()
        assert time.monotonic() - began < 1.0
        assert listener._thread is None or not listener._thread.is_alive()


def test_close_sends_what_is_queued_and_ends_the_waits(server: WatchedServer, make: Make) -> None:
    listener, session = make(coalesce=LONG), uuid4()
    subscription = listener.subscribe(session)
    hearing(listener, subscription)
    with server.connect() as connection, ThreadPoolExecutor() as pool:
        connection.execute("LISTEN blackboard")
        blocked = pool.submit(subscription.wait, 30)
        eventually(lambda: subscription._waiters)
        listener.notify(uuid4(), "first")
        eventually(lambda: not listener._pending)
        listener.notify(session, "throttled")
        listener.close()
        assert [notice.payload.split()[1] for notice in connection.notifies(timeout=30, stop_after=2)] == [
            "first",
            "throttled",
        ]
        assert blocked.result()
    eventually(lambda: not server.backends(APPLICATION))
    listener.notify(session, "tasks")
    listener.close()
    with pytest.raises(BlackboardError, match="closed"):
        listener.subscribe(session)


def test_a_hint_given_just_before_close_arrives(server: WatchedServer, make: Make) -> None:
    wanted = [uuid4() for _ in range(150)]
    with server.connect() as connection:
        connection.execute("LISTEN blackboard")
        for i, session in enumerate(wanted):
            listener = make()
            if i % 2:
                hearing(listener, listener.subscribe())
            listener.notify(session, "tasks")
            listener.close()
        heard = [notice.payload for notice in connection.notifies(timeout=30, stop_after=len(wanted))]
    assert heard == [f"{session} tasks" for session in wanted]


def test_a_loop_closed_under_its_waiters_harms_nobody(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    orphan, subscription = listener.subscribe(session), listener.subscribe(session)
    hearing(listener, orphan, subscription)
    loop = asyncio.new_event_loop()
    task = loop.create_task(orphan.wait_async(30))
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()  # asyncio would complain about a pending task; its clean-up never runs in the stopped loop
    loop.close()
    assert orphan._waiters
    send(server, f"{session} tasks")
    assert subscription.wait(30)
    assert not orphan._waiters
    assert asyncio.run(orphan.wait_async(0)), "another loop takes over"


def test_many_subscriptions_share_one_thread_and_one_connection(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    threads = threading.active_count()
    subscriptions = [listener.subscribe(session if i % 2 else uuid4(), {"tasks"}) for i in range(500)]
    hearing(listener, *subscriptions)
    assert threading.active_count() == threads + 1
    assert len(server.backends(APPLICATION)) == 1

    async def wait() -> int:
        waits = [asyncio.create_task(subscription.wait_async(2)) for subscription in subscriptions]
        await asyncio.sleep(0)
        send(server, f"{session} tasks")
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 250:
            done, pending = await asyncio.wait(waits, timeout=0.01)
        for waiting in pending:
            waiting.cancel()
        return sum(waiting.result() for waiting in done)

    assert asyncio.run(wait()) == 250
    for subscription in subscriptions:
        subscription.close()
    assert not listener._subscribed


def test_a_refused_hint_is_dropped_and_the_connection_kept(
    server: WatchedServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    listener = make(channel="c" * 70)  # LISTEN truncates it, pg_notify refuses it
    hearing(listener, listener.subscribe())
    before = server.backends(APPLICATION)
    listener.notify(uuid4(), "tasks")
    eventually(lambda: "refused and dropped" in caplog.text)
    assert listener.listening
    assert server.backends(APPLICATION) == before


def test_a_channel_name_is_quoted(server: WatchedServer, make: Make) -> None:
    one, two = make(channel='a"; SELECT 1'), make(channel='a"; SELECT 1')
    subscription, session = two.subscribe(), uuid4()
    hearing(two, subscription)
    one.notify(session, "tasks")
    assert subscription.wait(30)


def test_a_broken_url_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Listener("host=x password='secret")
    assert "secret" not in str(caught.value)


def test_hosts_are_tried_in_turn(server: WatchedServer, make: Make, tmp_path: Path) -> None:
    listener = make(f"host={tmp_path},{server.root} user=postgres dbname=postgres")
    hearing(listener, listener.subscribe())


def test_names_are_resolved_outside_of_libpq() -> None:
    link = module.Link("host=localhost,/run port=5432,6543", module.Waker.__new__(module.Waker), name="",
                       answer_seconds=1)  # fmt: skip
    addresses = link._addresses()
    assert {"host": "localhost", "port": "5432", "hostaddr": "127.0.0.1"} in addresses
    assert addresses[-1] == {"host": "/run", "port": "6543"}


def test_a_pooled_connection_is_noticed(server: WatchedServer, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Link, "backend_pid", property(lambda _: 1))
    listener = make(poll_interval=timedelta(milliseconds=10))
    subscription = listener.subscribe()
    eventually(lambda: server.sql("SELECT 1 FROM pg_stat_activity WHERE query ~ 'pg_backend_pid' "
                                  "AND application_name = %s", APPLICATION))  # fmt: skip
    assert not subscription.wait()
    assert not listener.listening


@pytest.mark.skipif(not shutil.which("pgbouncer", path="/usr/sbin:/usr/bin"), reason="needs PgBouncer")
def test_behind_a_transaction_pooler_hints_are_sent_and_waiters_poll(server: WatchedServer, make: Make) -> None:
    bouncer = Pooler(server)
    try:
        pooled = make(bouncer.conninfo, poll_interval=timedelta(milliseconds=20))
        past = make(bouncer.conninfo, listen_url=server.conninfo)
        session = uuid4()
        polling, listening = pooled.subscribe(session), past.subscribe(session)
        hearing(past, listening)
        pooled.notify(session, "tasks")
        assert listening.wait(30)
        assert polling.wait(0)
        past.notify(session, "tasks")
        assert not polling.wait()
        assert not pooled.listening
        assert bouncer.sql("SELECT pg_listening_channels()") == [], "no LISTEN stays behind in the pool"
        assert bouncer.sql("SHOW synchronous_commit") == server.sql("SHOW synchronous_commit")
    finally:
        bouncer.destroy()


FORK = """
import os, sys
from uuid import UUID
from blackboard.store.listener import Listener
session = UUID(sys.argv[2])
listener = Listener(sys.argv[1])
subscription = listener.subscribe(session, {"tasks"})
while not listener.listening:
    subscription.wait(0.01)
subscription.wait(0)
if (child := os.fork()) == 0:
    assert not listener.listening
    assert subscription.wait(0)
    while not listener.listening:
        subscription.wait(0.01)
    listener.notify(session, "child")
    listener.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert listener.listening
own = listener._thread
listener.notify(session, "parent")
assert listener._thread is own
listener.close()
"""


def test_a_forked_child_gets_a_thread_and_connection_of_its_own(server: WatchedServer) -> None:
    session = uuid4()
    with server.connect() as connection:
        connection.execute("LISTEN blackboard")
        subprocess.run([sys.executable, "-c", FORK, server.conninfo, str(session)], check=True, timeout=60,
                       cwd=Path(module.__file__).parents[2])  # fmt: skip
        heard = [notice.payload for notice in connection.notifies(timeout=30, stop_after=2)]
    assert heard == [f"{session} child", f"{session} parent"]

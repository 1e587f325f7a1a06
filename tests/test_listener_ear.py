"""An event loop that takes in hints itself: when it does, when the thread does, and that nobody is left deaf."""

# ruff: noqa: F401, F811 - fixtures are imported, and asked for by name
from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import os
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from blackboard.store import ear as ear_module
from blackboard.store import listener as module
from blackboard.store.listener import Listener
from blackboard.store.subscription import Subscription

from .serverfixture_listener import WatchedServer, eventually
from .test_listener import APPLICATION, Make, hearing, make, send, server

pytestmark = pytest.mark.lifecycle


async def waiting_for(listener: Listener, subscription: Subscription) -> asyncio.Task[bool]:
    """Somebody waits in this loop, and the loop reads: what the server said until now was taken."""
    task = asyncio.create_task(subscription.wait_async(30))
    await asyncio.sleep(0)
    while not (listener.listening and reads(listener)):
        await asyncio.sleep(0.005)
    if task.done():  # the hint that LISTEN had begun
        assert await task
        return await waiting_for(listener, subscription)
    return task


def reads(listener: Listener) -> bool:
    """Whether a loop has the connection just now: the thread waits and has lent it."""
    return listener._ear is not None and not listener._ear._turn.locked()


def test_a_hint_wakes_a_loop_without_the_thread(
    server: WatchedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, session = make(), uuid4()
    subscription = listener.subscribe(session, {"tasks"})

    async def scenario() -> bool:
        waiting = await waiting_for(listener, subscription)
        with monkeypatch.context() as patch:
            # What the thread would need for it.
            patch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", None)
            send(server, f"{session} tasks")
            return await waiting

    assert asyncio.run(scenario())


def test_a_thread_that_waits_beside_is_not_held_up_by_the_loop(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    in_loop, in_thread = listener.subscribe(session, {"tasks"}), listener.subscribe(session, {"tasks"})

    async def scenario(pool: ThreadPoolExecutor) -> None:
        waiting = await waiting_for(listener, in_loop)
        in_thread.wait(0)
        blocking = pool.submit(in_thread.wait, 30)
        eventually(lambda: in_thread._waiters)
        send(server, f"{session} tasks")
        assert blocking.result(20), "while the loop does nothing"
        assert await waiting

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(scenario(pool))


def test_waiters_of_two_loops_all_hear(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    subscriptions = [listener.subscribe(session, {"tasks"}) for _ in range(2)]
    heard: list[bool] = []
    both = threading.Barrier(3)

    async def one(subscription: Subscription) -> None:
        task = asyncio.create_task(subscription.wait_async(30))
        await asyncio.sleep(0)
        both.wait()
        heard.append(await task)

    hearing(listener, *subscriptions)
    threads = [threading.Thread(target=asyncio.run, args=(one(subscription),)) for subscription in subscriptions]
    for thread in threads:
        thread.start()
    both.wait()
    send(server, f"{session} tasks")
    for thread in threads:
        thread.join(20)
    assert heard == [True, True]


def test_the_next_loop_takes_over_from_one_that_was_closed(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    subscription = listener.subscribe(session, {"tasks"})

    async def scenario() -> asyncio.AbstractEventLoop:
        waiting = await waiting_for(listener, subscription)
        send(server, f"{session} tasks")
        assert await waiting
        return asyncio.get_running_loop()

    first, second = asyncio.run(scenario()), asyncio.run(scenario())
    assert first is not second
    assert listener._ear is not None
    assert listener._ear.loop is second


def test_what_a_stopped_loop_leaves_unread_is_taken_by_the_thread(
    server: WatchedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LENT_SECONDS", 0.05)
    listener, session = make(), uuid4()
    subscription = listener.subscribe(session, {"tasks"})
    loop = asyncio.new_event_loop()
    try:
        waiting = loop.run_until_complete(waiting_for(listener, subscription))
        send(server, f"{session} tasks")
        eventually(lambda: subscription._hinted)
        assert not waiting.done()
        assert loop.run_until_complete(waiting)
    finally:
        loop.close()


def test_a_loop_that_reads_survives_a_cut_connection(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    subscription = listener.subscribe(session, {"tasks"})

    async def scenario() -> None:
        waiting = await waiting_for(listener, subscription)
        (before,) = server.backends(APPLICATION)
        server.sql("SELECT pg_terminate_backend(%s)", before)
        assert await waiting, "hinted, for something may have been missed"
        waiting = await waiting_for(listener, subscription)
        assert server.backends(APPLICATION) != [before]
        send(server, f"{session} tasks")
        assert await waiting

    asyncio.run(scenario())


def test_the_connection_goes_back_and_forth_while_hints_are_sent_and_heard(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    subscription = listener.subscribe(session, {"findings"})
    done = threading.Event()

    def say_much() -> None:
        while not done.wait(0.001):
            listener.notify(uuid4(), "tasks")

    async def scenario() -> None:
        waiting = await waiting_for(listener, subscription)
        # Its own hints make the thread take the connection back in the midst of those that are heard.
        thread = threading.Thread(target=say_much)
        thread.start()
        try:
            with server.connect() as connection:
                for _ in range(200):
                    connection.execute("SELECT pg_notify('blackboard', %s)", (f"{session} findings",))
                    assert await asyncio.wait_for(waiting, 20)
                    waiting = asyncio.create_task(subscription.wait_async(30))
                    await asyncio.sleep(0)
        finally:
            done.set()
            thread.join()
            waiting.cancel()

    asyncio.run(scenario())
    eventually(lambda: not listener._pending)


def test_closing_takes_the_connection_from_the_loop(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    subscription = listener.subscribe(session)

    async def scenario() -> None:
        waiting = await waiting_for(listener, subscription)
        ear = listener._ear
        assert ear is not None
        await asyncio.to_thread(listener.close)
        assert await waiting
        await asyncio.sleep(0)
        assert not asyncio.get_running_loop().remove_reader(ear._behind.fileno()), "it was taken away before"
        assert not await subscription.wait_async(0.01)
        assert listener._ear is None

    asyncio.run(scenario())
    eventually(lambda: not server.backends(APPLICATION))


def test_a_platform_without_it_is_heard_by_the_thread(
    server: WatchedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ear_module.select, "epoll")
    listener, session = make(), uuid4()
    subscription = listener.subscribe(session, {"tasks"})
    hearing(listener, subscription)

    async def scenario() -> bool:
        task = asyncio.create_task(subscription.wait_async(30))
        await asyncio.sleep(0)
        send(server, f"{session} tasks")
        return await task

    assert asyncio.run(scenario())
    assert listener._ear is None


def test_a_function_is_called_once_for_the_hints_that_come_at_once(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    subscription, calls = listener.subscribe(session, {"tasks"}), []

    async def scenario() -> None:
        subscription.call(lambda: calls.append(time.monotonic()))
        while not (listener.listening and reads(listener)):
            await asyncio.sleep(0.005)
        calls.clear()
        with server.connect() as connection:
            connection.execute(
                "SELECT pg_notify('blackboard', %s || noun) FROM unnest(ARRAY['tasks', 'locks', 'tasks.ready']) noun",
                (f"{session} ",),
            )
        while not calls:
            await asyncio.sleep(0.005)
        assert len(calls) == 2, "read together, but each is delivered by itself"
        # From a thread of this process, several before the loop comes to it.
        for _ in range(3):
            await asyncio.to_thread(listener.notify, session, "tasks")
        before = len(calls)
        thread = threading.Thread(target=lambda: [listener.notify(session, "tasks") for _ in range(50)])
        thread.start()
        thread.join()
        await asyncio.sleep(0.01)
        assert len(calls) == before + 1
        subscription.close()
        send(server, f"{session} tasks")
        await asyncio.sleep(0.05)
        assert len(calls) == before + 1

    asyncio.run(scenario())
    assert subscription.wait(0) is False


def test_a_hint_before_call_is_not_the_last_one(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    subscription, calls = listener.subscribe(session, {"tasks"}), []

    async def scenario() -> None:
        listener.notify(session, "tasks")
        subscription.call(lambda: calls.append(None))
        await asyncio.sleep(0)
        assert len(calls) == 1
        before = len(calls)
        listener.notify(session, "tasks")
        assert len(calls) == before + 1

    asyncio.run(scenario())


def test_a_function_that_fails_leaves_nobody_else_deaf(server: WatchedServer, make: Make) -> None:
    listener, session, calls = make(), uuid4(), []
    problems: list[dict[str, object]] = []

    def fail() -> None:
        raise ValueError("of its own")

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        failing, calling, waiting = (listener.subscribe(session, {"tasks"}) for _ in range(3))
        task = await waiting_for(listener, waiting)
        failing.call(fail)
        calling.call(lambda: calls.append(None))
        await asyncio.sleep(0)
        calls.clear()
        problems.clear()
        listener.notify(session, "tasks")
        assert len(calls) == 1
        assert await task
        listener.notify(session, "tasks")
        assert len(calls) == len(problems) == 2

    asyncio.run(scenario())
    assert all(isinstance(problem["exception"], ValueError) for problem in problems)


def test_a_closed_subscription_calls_nothing_that_was_on_its_way(server: WatchedServer, make: Make) -> None:
    listener, session, calls = make(), uuid4(), []
    subscription = listener.subscribe(session, {"tasks"})

    async def scenario() -> None:
        while not listener.listening:
            await asyncio.sleep(0.005)
        subscription._take()
        subscription.call(lambda: calls.append(None))
        thread = threading.Thread(target=listener.notify, args=(session, "tasks"))
        thread.start()
        thread.join()
        assert subscription._hinted
        subscription.close()
        await asyncio.sleep(0.01)

    asyncio.run(scenario())
    assert not calls


@contextlib.contextmanager
def forked(child: Callable[[], object]) -> Iterator[None]:
    """Beside a child process that does that and lives until the block ends."""
    stay, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            os.close(go)
            child()
            os.read(stay, 1)
            code = 0
        os._exit(code)
    os.close(stay)
    try:
        yield
    finally:
        os.close(go)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def count_reads(listener: Listener, ear: ear_module.Ear) -> list[None]:
    """Grows whenever the loop finds something behind the ear; call it in that loop."""
    found: list[None] = []

    def listen() -> None:
        found.append(None)
        ear._listen()

    asyncio.get_running_loop().add_reader(ear._behind.fileno(), listen)
    return found


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_connection_that_a_child_still_has_does_not_keep_the_loop_busy(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    subscription = listener.subscribe(session, {"tasks"})

    async def scenario() -> None:
        waiting = await waiting_for(listener, subscription)
        (before,) = server.backends(APPLICATION)
        with forked(lambda: None):
            server.sql("SELECT pg_terminate_backend(%s)", before)
            assert await waiting
            waiting = await waiting_for(listener, subscription)
            ear = listener._ear
            assert ear is not None
            found = count_reads(listener, ear)
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not found, "nothing was sent"
            send(server, f"{session} tasks")
            assert await waiting

    asyncio.run(scenario())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_that_goes_on_with_the_loop_takes_nothing_from_its_parent(server: WatchedServer, make: Make) -> None:
    listener, session = make(), uuid4()
    subscription = listener.subscribe(session, {"tasks"})
    loop = asyncio.new_event_loop()
    said, say = os.pipe()

    async def in_child() -> None:
        waiting = await waiting_for(listener, listener.subscribe(session, {"tasks"}))
        os.write(say, b"x")
        assert await waiting
        await asyncio.sleep(0.05)
        os.write(say, b"x")

    try:
        waiting = loop.run_until_complete(waiting_for(listener, subscription))
        with forked(lambda: loop.run_until_complete(in_child())):
            os.close(say)
            assert os.read(said, 1)
            send(server, f"{session} tasks")
            assert os.read(said, 1)
        assert listener._waker is not None
        listener._waker.wake()
        eventually(lambda: subscription._hinted)
        assert loop.run_until_complete(waiting)
    finally:
        loop.close()
        os.close(said)


def test_without_a_descriptor_the_thread_hears(
    server: WatchedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, session = make(), uuid4()
    subscription = listener.subscribe(session, {"tasks"})
    hearing(listener, subscription)

    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def scenario() -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(ear_module.select, "epoll", none_left)
            task = asyncio.create_task(subscription.wait_async(30))
            await asyncio.sleep(0)
        send(server, f"{session} tasks")
        return await task

    assert asyncio.run(scenario())


def test_a_connection_that_cannot_be_lent_is_read_by_the_thread(
    server: WatchedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LENT_SECONDS", 0.05)
    listener, session = make(), uuid4()
    subscription = listener.subscribe(session, {"tasks"})

    def none_left(_: int) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def scenario() -> None:
        waiting = await waiting_for(listener, subscription)
        (before,) = server.backends(APPLICATION)
        monkeypatch.setattr(ear_module.os, "dup", none_left)
        assert listener._waker is not None
        listener._waker.wake()
        send(server, f"{session} tasks")
        assert await waiting
        assert server.backends(APPLICATION) == [before]

    asyncio.run(scenario())


def test_nothing_is_left_open_behind_loops_and_listeners(server: WatchedServer, make: Make) -> None:
    async def scenario() -> None:
        listeners = [make() for _ in range(5)]
        for listener in listeners:
            subscription = listener.subscribe(uuid4(), {"tasks"})
            waiting = await waiting_for(listener, subscription)
            await asyncio.to_thread(listener.close)
            await waiting

    def opened() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    before = opened()
    asyncio.run(scenario())
    eventually(lambda: opened() <= before)


def test_all_that_a_stopped_loop_left_is_taken_at_once(
    server: WatchedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LENT_SECONDS", 60.0)
    listener, session = make(), uuid4()
    many, last = listener.subscribe(session, {"tasks"}), listener.subscribe(session, {"findings"})
    loop = asyncio.new_event_loop()

    def unread() -> int:
        assert listener._ear is not None
        (size,) = struct.unpack("i", fcntl.ioctl(listener._ear._lent, termios.FIONREAD, b"\0" * 4))
        return size

    try:
        waiting = loop.run_until_complete(waiting_for(listener, many))
        last._take()
        waker = listener._waker
        assert waker is not None
        eventually(lambda: reads(listener) and not waker._raised)
        payloads = [*(f"{session} tasks.{'x' * 7000}{n}" for n in range(15)), f"{session} findings"]
        send(server, *payloads)
        # A message is a type, a length, a process id, and channel and payload with a zero each.
        eventually(lambda: unread() >= sum(9 + len("blackboard") + len(payload) + 2 for payload in payloads))
        waker.wake()
        eventually(lambda: last._hinted)
        assert loop.run_until_complete(waiting)
    finally:
        loop.close()


def test_a_subscription_to_several_sessions_hears_them_and_no_other(server: WatchedServer, make: Make) -> None:
    listener = make()
    sessions, other = [uuid4(), uuid4()], uuid4()
    subscription = listener.subscribe(sessions, {"schedules"})
    hearing(listener, subscription)
    for session in sessions:
        send(server, f"{other} schedules", f"{session} schedules")
        assert subscription.wait(30)
    listener.notify(other, "schedules")
    assert not subscription.wait(0)
    subscription.close()
    assert not listener._subscribed

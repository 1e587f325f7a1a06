"""An event loop that takes in hints itself: when it does, when the thread does, and that nobody is left deaf."""

# ruff: noqa: F401, F811 - fixtures are imported, and asked for by name
from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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
        assert ear._behind.closed
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

"""Outcomes that the database refuses: whatever it is, the task does not stay with a worker that has ended it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TypeAlias

import asyncpg
import pytest

from blackboard import Blackboard, DeadLetter, NewTask, RetryLater, RetryPolicy, Session, TaskContext, Worker
from blackboard.work import outbox

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
def worker(board: Blackboard, session: Session) -> Worker:
    return Worker(board, session, agent_id="w/1")


async def refusing(db: Connection, condition: str) -> None:
    """The end of an attempt is refused where ``condition`` holds, as somebody's own trigger may do."""
    await db.execute(
        f"""CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF {condition} THEN
                    RAISE EXCEPTION 'not like this' USING ERRCODE = 'check_violation';
                END IF;
                RETURN new;
            END $$;
            CREATE SEQUENCE public.tries;
            CREATE TRIGGER refuse BEFORE UPDATE ON blackboard.tasks FOR EACH ROW
            WHEN (old.status = 'running') EXECUTE FUNCTION public.refuse()"""
    )


@pytest.mark.fresh_database
async def test_a_failure_that_is_refused_is_told_in_plain_words(
    session: Session, worker: Worker, db: Connection
) -> None:
    @worker.handler("t", retry=RetryPolicy(max_attempts=1))
    async def handle(ctx: TaskContext) -> None:
        raise (ValueError if ctx.parameters["n"] == 1 else KeyError)("wrong")

    await refusing(db, "new.error ->> 'code' = 'ValueError'")
    ids = await session.tasks.add_many([NewTask(type="t", parameters={"n": n}) for n in range(3)])
    assert (await worker.drain()).dead == 3
    codes = [(await session.tasks.get(task_id)).error["code"] for task_id in ids]
    assert codes == ["KeyError", "outcome_refused", "KeyError"]
    message = (await session.tasks.get(ids[1])).error["message"]
    assert "not like this" in message


@pytest.mark.fresh_database
@pytest.mark.parametrize("kind", ["fails", "later"])
async def test_what_may_not_end_with_an_error_goes_back_without_one(
    session: Session, worker: Worker, db: Connection, kind: str
) -> None:
    @worker.handler("t", retry=RetryPolicy(max_attempts=1))
    async def handle(ctx: TaskContext) -> None:
        raise RetryLater(3600, "not yet") if ctx.parameters == "later" else ValueError("wrong")

    await refusing(db, "new.error IS NOT NULL")
    task = await session.tasks.add("t", kind)
    assert (await worker.drain()).released == 1
    back = await session.tasks.get(task.id)
    assert (back.status, back.released, back.error) == ("scheduled", 1, None)
    assert back.run_at is not None
    least = timedelta(minutes=50 if kind == "later" else 0)
    assert least < back.run_at - await db.fetchval("SELECT blackboard.now()") <= timedelta(hours=1)


@pytest.mark.fresh_database
async def test_a_task_that_may_not_even_go_back_is_tried_again(
    session: Session, worker: Worker, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_REFUSED_DELAY", timedelta(milliseconds=10))

    @worker.handler("t", retry=RetryPolicy(max_attempts=1))
    async def handle(ctx: TaskContext) -> str:
        if ctx.task.attempt == 1:
            raise ValueError("wrong")
        return "second"

    await refusing(db, "nextval('public.tries') <= 5")
    task = await session.tasks.add("t")
    async with worker:
        done = await session.tasks.wait(task.id, timedelta(seconds=20))
    assert (done.status, done.result, done.released) == ("completed", "second", 1)
    assert await db.fetchval("SELECT last_value FROM public.tries") == 7


@pytest.mark.parametrize(
    ("signal", "code"),
    [(DeadLetter("x" * 2_000_000), "dead_letter"), (RetryLater(3600, "x" * 2_000_000), "retry_later")],
    ids=["dead", "later"],
)
async def test_a_reason_of_any_length_ends_the_attempt(
    session: Session, worker: Worker, signal: Exception, code: str
) -> None:
    @worker.handler("t")
    async def handle(ctx: TaskContext) -> None:
        raise signal

    task = await session.tasks.add("t")
    counts = await asyncio.wait_for(worker.drain(), 20)
    assert counts.dead + counts.released == 1
    error = (await session.tasks.get(task.id)).error
    assert error is not None and error["code"] == code
    assert set(error["message"]) == {"x"} and len(error["message"]) == 10_000

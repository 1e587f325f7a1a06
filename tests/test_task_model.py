"""The life cycle of tasks, driven at random through the blocking twin, against a model in plain Python."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from blackboard.errors import BlackboardError, InvalidTransition, LeaseLost, SessionClosed
from blackboard.ids import new_id
from blackboard.models.tasks import Dependency, TaskRecord
from blackboard.sync import Agent, Blackboard, Session

FINAL = {"completed", "failed", "cancelled", "dead"}


@dataclass
class Task:
    """What the model knows of one task."""

    capability: str
    assignee: str | None
    max_attempts: int
    status: str
    parents: dict[uuid.UUID, str] = field(default_factory=dict[uuid.UUID, str])
    edges: dict[uuid.UUID, str] = field(default_factory=dict[uuid.UUID, str])
    attempt: int = 0
    released: int = 0
    approved: bool = True
    cancel_requested: bool = False
    holder: TaskRecord | None = None
    handed_back: set[int] = field(default_factory=set[int])
    reserved: bool = False

    @property
    def waiting(self) -> int:
        return sum(1 for state in self.edges.values() if state == "waiting")


class TaskLife(RuleBasedStateMachine):
    raw: ClassVar[psycopg.Connection[Any]]
    board: ClassVar[Blackboard]

    held = Bundle("held")
    lost = Bundle("lost")
    known = Bundle("known")

    @initialize()
    def begin(self) -> None:
        self.session: Session = self.board.start(f"model-{uuid.uuid4().hex[:10]}")
        self.agents: dict[str, Agent] = {
            "a": self.session.join("a", capabilities=["x"]),
            "b": self.session.join("b", capabilities=["x", "y"]),
        }
        self.tasks: dict[uuid.UUID, Task] = {}
        self.paused = self.closed = False
        self.cursor: str | None = None
        self.folded: dict[uuid.UUID, dict[str, Any]] = {}

    # ------------------------------------------------------------------------------------------------ the model

    def settle(self, task_id: uuid.UUID) -> None:
        """What the end of a task does to those that depend on it."""
        for child_id, child in self.tasks.items():
            if child.edges.get(task_id) != "waiting":
                continue
            succeeded = self.tasks[task_id].status == "completed"
            child.edges[task_id] = "satisfied" if succeeded or child.parents[task_id] == "continue" else "failed"
            self.refresh(child_id)

    def refresh(self, task_id: uuid.UUID) -> None:
        task = self.tasks[task_id]
        if task.status not in ("blocked", "awaiting_approval", "scheduled"):
            return
        if "failed" in task.edges.values():
            self.end(task_id, "cancelled")
        elif task.status == "blocked" and not task.waiting:
            task.status = "assigned" if task.assignee else "pending"

    def end(self, task_id: uuid.UUID, status: str) -> None:
        task = self.tasks[task_id]
        task.status, task.holder = status, None
        self.settle(task_id)

    def claimable(self, agent: str, task: Task) -> bool:
        if task.status == "assigned":
            return task.assignee == agent
        return task.status == "pending" and task.capability in ("", *self.agents[agent].record.capabilities)

    @contextmanager
    def refused(self, *kinds: type[BlackboardError]) -> Iterator[None]:
        with pytest.raises(kinds):
            yield

    # ------------------------------------------------------------------------------------------------- the verbs

    @rule(
        target=known,
        capability=st.sampled_from(["", "x", "y", "z"]),
        assignee=st.sampled_from([None, None, "a", "b"]),
        max_attempts=st.integers(1, 3),
        gated=st.booleans(),
        priority=st.integers(0, 10),
        data=st.data(),
    )
    def add(
        self, capability: str, assignee: str | None, max_attempts: int, gated: bool, priority: int, data: st.DataObject
    ) -> uuid.UUID:
        parents = data.draw(
            st.dictionaries(st.sampled_from(sorted(self.tasks)), st.sampled_from(["fail", "continue"]), max_size=3)
            if self.tasks else st.just({})
        )  # fmt: skip
        task_id = new_id()
        arguments: dict[str, Any] = {
            "capability": capability, "assigned_to": assignee, "max_attempts": max_attempts, "requires_approval": gated,
            "priority": priority, "retry_delay": timedelta(0), "id": task_id,
            "depends_on": [Dependency(id=parent, on_failure=policy) for parent, policy in parents.items()],
        }  # fmt: skip
        if self.closed:
            with self.refused(SessionClosed):
                self.session.tasks.add("t", **arguments)
            return task_id
        self.session.tasks.add("t", **arguments)
        task = Task(capability, assignee, max_attempts, "pending", parents=parents, approved=not gated)
        for parent, policy in parents.items():
            status = self.tasks[parent].status
            task.edges[parent] = (
                "waiting"
                if status not in FINAL
                else "satisfied"
                if status == "completed" or policy == "continue"
                else "failed"
            )
        self.tasks[task_id] = task
        task.status = (
            "awaiting_approval" if gated else "blocked" if task.edges else "assigned" if assignee else "pending"
        )
        self.refresh(task_id)
        assert self.session.tasks.add("t", **arguments).status == task.status, "adding it again changes nothing"
        return task_id

    @rule(target=held, agent=st.sampled_from(["a", "b"]), limit=st.integers(1, 3), repeat=st.booleans())
    def claim(self, agent: str, limit: int, repeat: bool) -> Any:
        claim_id = new_id()
        if self.closed:
            with self.refused(SessionClosed):
                self.agents[agent].tasks.claim(limit, claim_id=claim_id)
            return None
        claimed = self.agents[agent].tasks.claim(limit, claim_id=claim_id)
        possible = {task_id for task_id, task in self.tasks.items() if self.claimable(agent, task)}
        if self.paused:
            assert claimed == []
            return None
        assert {task.id for task in claimed} <= possible
        assert len(claimed) == min(limit, len(possible))
        if repeat and claimed:
            again = self.agents[agent].tasks.claim(limit, claim_id=claim_id)
            assert {task.id for task in again} == {task.id for task in claimed}
        for record in claimed:
            task = self.tasks[record.id]
            assert record.attempt == task.attempt + 1, "the attempt grows by one with each claim"
            task.reserved = task.status == "assigned"
            task.status, task.attempt, task.holder, task.assignee = "running", record.attempt, record, agent
        return claimed or None

    def owner(self, record: TaskRecord) -> Agent:
        assert record.assigned_to is not None
        return self.agents[record.assigned_to]

    def current(self, record: TaskRecord) -> bool:
        holder = self.tasks[record.id].holder
        return holder is not None and holder.attempt == record.attempt

    @rule(target=lost, records=consumes(held))
    def complete(self, records: list[TaskRecord] | None) -> Any:
        for record in records or ():
            if self.current(record):
                self.owner(record).tasks.complete(record, {"attempt": record.attempt})
                self.end(record.id, "completed")
                self.owner(record).tasks.complete(record, {"attempt": record.attempt})
            else:
                self.refuse(record)
        return records

    def refuse(self, record: TaskRecord) -> None:
        """A late holder: nothing of what it does counts, and its result is kept."""
        task = self.tasks[record.id]
        if task.status == "completed" and task.attempt == record.attempt:
            return
        with self.refused(LeaseLost):
            self.owner(record).tasks.complete(record, "late")
        assert any(late.attempt == record.attempt for late in self.session.tasks.late_results(record.id))
        if record.attempt in task.handed_back:
            again = self.owner(record).tasks.release(record)
            assert (again.status, again.attempt) == (self.session.tasks.get(record.id).status, task.attempt)
        else:
            with self.refused(LeaseLost):
                self.owner(record).tasks.release(record)
        with self.refused(LeaseLost):
            self.owner(record).tasks.progress(record, 1)

    @rule(records=lost)
    def late(self, records: list[TaskRecord] | None) -> None:
        for record in records or ():
            if not self.current(record):
                self.refuse(record)

    @rule(target=lost, records=consumes(held), retry=st.booleans())
    def fail(self, records: list[TaskRecord] | None, retry: bool) -> Any:
        for record in records or ():
            if not self.current(record):
                self.refuse(record)
                continue
            task = self.tasks[record.id]
            back = self.owner(record).tasks.fail(record, "no", retry=retry, delay=timedelta(0))
            if not retry:
                self.end(record.id, "failed")
            elif task.cancel_requested:
                self.end(record.id, "cancelled")
            elif task.attempt - task.released >= task.max_attempts:
                self.end(record.id, "dead")
            else:
                task.status, task.holder = "pending", None
                assert back.status == "scheduled"
                continue
            assert back.status == task.status
        return records

    @rule(target=lost, records=consumes(held))
    def release(self, records: list[TaskRecord] | None) -> Any:
        for record in records or ():
            if not self.current(record):
                self.refuse(record)
                continue
            task = self.tasks[record.id]
            self.owner(record).tasks.release(record)
            task.released += 1
            task.handed_back.add(record.attempt)
            if task.cancel_requested:
                self.end(record.id, "cancelled")
            else:
                task.status, task.holder = "pending", None
        return records

    @rule(target=lost, records=consumes(held))
    def hand_back(self, records: list[TaskRecord] | None) -> Any:
        """What a worker does with what it has claimed and not begun."""
        for record in records or ():
            if not self.current(record):
                self.refuse(record)
                continue
            task = self.tasks[record.id]
            self.raw.execute(
                "SELECT blackboard.release_tasks(%s, %s, %s, %s, NULL, NULL, %s, '{true}')",
                [self.session.id, [record.id], [record.claim_id], [record.attempt], record.assigned_to],
            )
            task.released += 1
            task.handed_back.add(record.attempt)
            if task.cancel_requested:
                self.end(record.id, "cancelled")
            else:
                task.status, task.holder = "assigned" if task.reserved else "pending", None
        return records

    @rule(target=lost, records=consumes(held))
    def lapse(self, records: list[TaskRecord] | None) -> Any:
        """The process that holds these goes silent, as far as the server knows."""
        for record in records or ():
            if not self.current(record):
                continue
            lease = new_id()
            self.raw.execute(
                "INSERT INTO blackboard.leases (id, term, expires_at, lapsed_at) VALUES (%s, '1 second', now(), now())",
                [lease],
            )
            # The task alone moves to a lease that has lapsed: the others of this process stay.
            self.raw.execute("SET session_replication_role = replica")
            self.raw.execute("UPDATE blackboard.tasks SET lease_id = %s WHERE id = %s", [lease, record.id])
            self.raw.execute("SET session_replication_role = origin")
            self.raw.execute("SELECT blackboard.sweep_leases(100)")
            task = self.tasks[record.id]
            if task.cancel_requested:
                self.end(record.id, "cancelled")
            elif task.attempt - task.released >= task.max_attempts:
                self.end(record.id, "dead")
            else:
                task.status, task.holder = "pending", None
        return records

    @rule(task_id=known)
    def cancel(self, task_id: uuid.UUID) -> None:
        task = self.tasks.get(task_id)
        if task is None:
            return
        if task.status in ("completed", "failed", "dead") and not task.cancel_requested:
            with self.refused(InvalidTransition):
                self.session.tasks.cancel(task_id)
            return
        self.session.tasks.cancel(task_id)
        if task.status == "running":
            task.cancel_requested = True
        elif task.status not in FINAL:
            self.end(task_id, "cancelled")

    @rule(task_id=known, approved=st.booleans())
    def decide(self, task_id: uuid.UUID, approved: bool) -> None:
        task = self.tasks.get(task_id)
        if task is None:
            return
        decide = self.session.tasks.approve if approved else self.session.tasks.reject
        if task.status != "awaiting_approval":
            if not (approved and task.approved):
                with self.refused(InvalidTransition):
                    decide(task_id, by="human")
            return
        decide(task_id, by="human")
        if not approved:
            self.end(task_id, "cancelled")
            return
        task.approved = True
        task.status = "blocked" if task.waiting else "assigned" if task.assignee else "pending"

    @rule(task_id=known)
    def redrive(self, task_id: uuid.UUID) -> None:
        task = self.tasks.get(task_id)
        if task is None:
            return
        if self.closed:
            with self.refused(SessionClosed):
                self.session.tasks.redrive(task_id)
        elif task.status not in ("failed", "dead"):
            with self.refused(InvalidTransition):
                self.session.tasks.redrive(task_id)
        else:
            self.session.tasks.redrive(task_id)
            task.status, task.released, task.cancel_requested = "pending", task.attempt, False

    @precondition(lambda self: not self.closed)
    @rule()
    def pause_or_resume(self) -> None:
        self.paused = not self.paused
        if self.paused:
            self.session.pause()
        else:
            self.session.resume()

    @precondition(lambda self: len(self.tasks) > 4 and not self.closed)
    @rule(sure=st.integers(0, 4))
    def close(self, sure: int) -> None:
        if sure:
            return
        self.session.close()
        self.closed = True
        for task in self.tasks.values():
            if task.status == "running":
                task.cancel_requested = True
            elif task.status not in FINAL:
                task.status = "cancelled"

    # --------------------------------------------------------------------------------------------- what always holds

    @invariant()
    def the_board_is_as_the_model(self) -> None:
        if not hasattr(self, "tasks"):
            return
        rows = self.raw.execute(
            """SELECT id, status, attempt, assigned_to, position IS NOT NULL, lease_id IS NOT NULL, claim_id,
                          cancel_requested, blockers, released
                   FROM blackboard.tasks WHERE session_id = %s""",
            [self.session.id],
        ).fetchall()
        assert {row[0] for row in rows} == set(self.tasks), "no task is lost, none is made up"
        page = self.session.events.read(self.cursor, limit=10_000)
        self.cursor = page.cursor
        for event in page.events:
            if event.type.startswith("task."):
                state = self.folded.setdefault(event.subject_id, {})
                before = state.get("attempt", 0)
                state.update(event.data)
                assert state.get("attempt", 0) >= before
        for (
            task_id,
            status,
            attempt,
            assigned_to,
            has_position,
            has_lease,
            claim_id,
            cancel,
            blockers,
            released,
        ) in rows:
            task = self.tasks[task_id]
            # Between its retry and its next look a task is scheduled for now.
            assert status == task.status or (status, task.status) == ("scheduled", "pending"), (task_id, task)
            assert (attempt, released) == (task.attempt, task.released)
            assert has_position == (status in ("pending", "assigned"))
            assert has_lease == (status == "running") == (task.holder is not None)
            if task.holder is not None:
                assert claim_id == task.holder.claim_id
            if status not in FINAL:
                assert blockers == task.waiting
                assert cancel == task.cancel_requested
            folded = self.folded[task_id]
            assert folded["status"] == status, "the status is the fold of the events"
            assert folded.get("assigned_to") == assigned_to
            assert folded.get("attempt", 0) == attempt


def test_the_life_of_tasks(database_url: str) -> None:
    with (
        Blackboard.open(database_url, pool_size=2, lease_term=timedelta(hours=1)) as board,
        psycopg.connect(database_url, autocommit=True) as raw,
    ):
        TaskLife.board, TaskLife.raw = board, raw
        run_state_machine_as_test(
            TaskLife,
            settings=settings(
                max_examples=int(os.environ.get("BLACKBOARD_TEST_EXAMPLES", "60")), stateful_step_count=30,
                deadline=None,
                database=None, suppress_health_check=list(HealthCheck), phases=(Phase.generate,),
            ),
        )  # fmt: skip

"""The plans of what a repeated verb looks up, which are off the usual path: keys and the events of one task."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from .test_plans import LEASE, SESSION, Plans, plans

__all__ = ["plans"]

pytestmark = [pytest.mark.fresh_database, pytest.mark.timeout(180)]

ADD = (
    "SELECT blackboard.add_tasks($1, $2, array_fill('t'::text, ARRAY[$3::integer]), array_fill(''::text, ARRAY[$3]), "
    "array_fill(5::smallint, ARRAY[$3]), array_fill('{}'::jsonb, ARRAY[$3]), $4, 'x')"
)
CLAIM = "SELECT id, claim_id, attempt FROM blackboard.claim_tasks($1, 'ops/a', '{}', $2, gen_random_uuid(), 3)"
RELEASE = "SELECT * FROM blackboard.release_tasks($1, $2, $3, $4, NULL, NULL, 'ops/a', $5)"
FAIL = "SELECT * FROM blackboard.fail_tasks($1, $2, $3, $4, NULL, '{retry,retry,retry}', $5, NULL, 'ops/a')"


async def test_adding_again(plans: Plans) -> None:
    parent, *ids = [uuid.uuid4() for _ in range(4)]
    options = [f'{{"depends_on": ["{parent}"]}}'] * 3
    await plans.connection.execute(ADD, SESSION, [parent], 1, [None])
    await plans.connection.execute(ADD, SESSION, ids[:2], 2, options[:2])
    await plans.indexed({"events_subject", "tasks_pkey"}, ADD, SESSION, ids, 3, options)
    for _ in range(2):
        await plans.indexed({"events_subject", "tasks_pkey"}, ADD, SESSION, ids, 3, options)


@pytest.mark.parametrize("verb", [RELEASE, FAIL])
async def test_ending_again(plans: Plans, verb: str) -> None:
    await plans.connection.execute(ADD, SESSION, [uuid.uuid4() for _ in range(3)], 3, None)
    last = [True] * 3 if verb == RELEASE else [timedelta()] * 3
    rows = await plans.connection.fetch(CLAIM, SESSION, LEASE)
    held = ([row["id"] for row in rows], [row["claim_id"] for row in rows], [row["attempt"] for row in rows])
    expected = {"tasks_pkey", "events_subject"} if verb == RELEASE else {"tasks_pkey"}
    await plans.indexed(expected, verb, SESSION, *held, last)
    await plans.indexed({"tasks_pkey", "events_subject"}, verb, SESSION, held[0], held[1], [9] * 3, last)
    await plans.indexed({"tasks_pkey", "events_subject"}, verb, SESSION, *held, last)

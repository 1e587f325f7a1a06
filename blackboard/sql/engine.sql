-- name: claim_for_worker
-- As claim_tasks, with only the columns that a fresh claim does not already tell. Moments are seconds since 1970 and the
-- usual delay is NULL: a driver takes longer for those two types than for all other columns, and most handlers ask for
-- neither.
-- Locks: the rows it returns. Indexes: tasks_assigned, tasks_ready, tasks_leased.
SELECT id, type, capability, priority, CAST(parameters AS text) AS parameters, timeout, requires_approval, approved_by,
       run_at, attempt, released, max_attempts, NULLIF(retry_delay, interval '1 second') AS retry_delay,
       date_part('epoch', started_at) AS started_at, deadline_at, cancel_requested, blockers,
       CAST(error AS text) AS error, created_by, date_part('epoch', created_at) AS created_at, unique_key, limit_key,
       expires_at, fallback
FROM blackboard.claim_tasks(
    CAST(:session_id AS uuid), CAST(:agent_id AS text), CAST(:capabilities AS text[]), CAST(:lease_id AS uuid),
    CAST(:claim_id AS uuid), CAST(:limit AS integer));

-- name: claim_across
-- As claim_for_worker, from several sessions in one call; which leaves some to claim_for_worker.
-- Locks: the rows it returns. Indexes: tasks_ready, tasks_scheduled, tasks_assigned, tasks_leased.
SELECT session_id, id, type, capability, priority, CAST(parameters AS text) AS parameters, timeout, requires_approval,
       approved_by, run_at, attempt, released, max_attempts, NULLIF(retry_delay, interval '1 second') AS retry_delay,
       date_part('epoch', started_at) AS started_at, deadline_at, cancel_requested, blockers,
       CAST(error AS text) AS error, created_by, date_part('epoch', created_at) AS created_at, unique_key, limit_key,
       expires_at, fallback
FROM blackboard.claim_tasks_across(
    CAST(:session_ids AS uuid[]), CAST(:agent_id AS text), CAST(:capabilities AS text[]), CAST(:lease_id AS uuid),
    CAST(:claim_id AS uuid), CAST(:limit AS integer), CAST(:share AS integer));

-- name: complete_across
-- Completes held tasks of several sessions; the ids of those that complete_tasks is to do.
-- Locks: the rows by id. Index: tasks_pkey.
SELECT id
FROM blackboard.complete_tasks_across(
    CAST(:session_ids AS uuid[]), CAST(:ids AS uuid[]), CAST(:claim_ids AS uuid[]), CAST(:attempts AS integer[]),
    CAST(CAST(:results AS text[]) AS jsonb[]), CAST(:agent_id AS text)) AS left_over (id);

-- name: complete_and_claim
-- Completes one held task and claims the next ones, what it freed among them.
-- Locks: the row, its dependants by id, the rows it returns. Indexes: as complete_tasks and claim_tasks.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.complete_and_claim(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:claim_id AS uuid), CAST(:attempt AS integer),
    CAST(CAST(:result AS text) AS jsonb), CAST(:agent_id AS text), CAST(:capabilities AS text[]),
    CAST(:lease_id AS uuid), CAST(:next_claim_id AS uuid), CAST(:limit AS integer));

-- name: fail_tasks
-- Ends many failed attempts; where each task went, NULL for those that were refused.
-- Locks: the rows by id, then dependants by id. Index: tasks_pkey.
SELECT id, status
FROM blackboard.fail_tasks(
    CAST(:session_id AS uuid), CAST(:ids AS uuid[]), CAST(:claim_ids AS uuid[]), CAST(:attempts AS integer[]),
    CAST(CAST(:errors AS text[]) AS jsonb[]), CAST(:outcomes AS text[]), CAST(:delays AS interval[]),
    CAST(:max_attempts AS integer[]), CAST(:agent_id AS text));

-- name: release_tasks
-- Hands many held tasks back; where each went. Those that are unstarted were claimed and not begun, and are their agent's
-- again if they were assigned. Locks: the rows by id. Indexes: tasks_pkey, events_subject.
SELECT id, status
FROM blackboard.release_tasks(
    CAST(:session_id AS uuid), CAST(:ids AS uuid[]), CAST(:claim_ids AS uuid[]), CAST(:attempts AS integer[]),
    CAST(:delays AS interval[]), CAST(CAST(:errors AS text[]) AS jsonb[]), CAST(:agent_id AS text),
    CAST(:unstarted AS boolean[]));

-- name: look_for_tasks
-- Which sessions have something to claim, in how long the next scheduled task is due, and where there may be something
-- that this connection does not see yet, because it begins above a floor until then.
-- Indexes: tasks_ready, tasks_assigned, tasks_scheduled.
SELECT session_id, status, ready, due_in, floored
FROM blackboard.look_for_tasks(CAST(:session_ids AS uuid[]), CAST(:agent_id AS text), CAST(:capabilities AS text[]));

-- name: list_cancel_requests
-- Which of the tasks that a lease holds, by this claim or later ones, were asked to stop. Index: tasks_leased.
SELECT session_id, id, attempt
FROM blackboard.tasks
WHERE lease_id = CAST(:lease_id AS uuid) AND claim_id >= CAST(:oldest_claim_id AS uuid) AND cancel_requested;

-- name: list_dead_tasks
-- The dead ones, the latest death first; NULL means any. Index: tasks_dead.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.tasks
WHERE session_id = CAST(:session_id AS uuid) AND status = 'dead'
  AND (CAST(:type AS text) IS NULL OR type = CAST(:type AS text))
  AND (CAST(:error_code AS text) IS NULL OR error ->> 'code' = CAST(:error_code AS text))
ORDER BY completed_at DESC, id DESC
LIMIT CAST(:limit AS integer);

-- name: redrive_tasks
-- Dead tasks that match start over; their ids, the same ones for the same key.
-- Locks: the key, the rows, skipping locked ones. Index: tasks_dead.
SELECT id
FROM blackboard.redrive_tasks(
    CAST(:session_id AS uuid), CAST(:type AS text), CAST(:error_code AS text),
    blackboard.now() - CAST(:older_than AS interval), CAST(:limit AS integer), CAST(:dry_run AS boolean),
    CAST(:actor AS text), CAST(:key AS text)) AS redriven (id);

-- name: discard_task
-- Gives a dead task up for good. Locks: the row.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.discard_task(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:reason AS text), CAST(:actor AS text));

-- name: list_attempt_events
-- The events of one task that begin and end its attempts, in their order; one row of NULLs if it has none, none at all
-- if there is no such task. Index: tasks_pkey, events_subject.
SELECT e.type, e.at, e.actor, CAST(e.data AS text) AS data
FROM blackboard.tasks t
LEFT JOIN blackboard.events e
       ON e.session_id = t.session_id AND e.subject_id = t.id
      AND e.type IN ('task.assigned', 'task.completed', 'task.failed', 'task.dead', 'task.retried', 'task.released',
                     'task.lapsed', 'task.cancelled')
WHERE t.session_id = CAST(:session_id AS uuid) AND t.id = CAST(:id AS uuid)
ORDER BY e.seq;

-- name: add_tasks
-- Adds many tasks in the order given; repeated ids with the same content are left alone.
-- Locks: tasks depended on, by id.
SELECT blackboard.add_tasks(
    CAST(:session_id AS uuid), CAST(:ids AS uuid[]), CAST(:types AS text[]), CAST(:capabilities AS text[]),
    CAST(:priorities AS smallint[]), CAST(CAST(:parameters AS text[]) AS jsonb[]),
    CAST(CAST(:options AS text[]) AS jsonb[]), CAST(:actor AS text)) AS added;

-- name: add_like_tasks
-- As add_tasks, for tasks that differ in nothing but their parameters, one document a line: what they share is sent once.
SELECT blackboard.add_tasks(
    CAST(:session_id AS uuid), CAST(:ids AS uuid[]),
    array_fill(CAST(:type AS text), ARRAY[cardinality(CAST(:ids AS uuid[]))]),
    array_fill(CAST(:capability AS text), ARRAY[cardinality(CAST(:ids AS uuid[]))]),
    array_fill(CAST(:priority AS smallint), ARRAY[cardinality(CAST(:ids AS uuid[]))]),
    CAST(string_to_array(CAST(:parameters AS text), chr(10)) AS jsonb[]), '{}', CAST(:actor AS text)) AS added;

-- name: add_unique_tasks
-- Adds many tasks of which some are unique; the ids under which they are to be found, in the order given.
-- Locks: the keys in their order, tasks depended on by id.
SELECT blackboard.add_unique_tasks(
    CAST(:session_id AS uuid), CAST(:ids AS uuid[]), CAST(:types AS text[]), CAST(:capabilities AS text[]),
    CAST(:priorities AS smallint[]), CAST(CAST(:parameters AS text[]) AS jsonb[]),
    CAST(CAST(:options AS text[]) AS jsonb[]), CAST(:actor AS text)) AS ids;

-- name: add_task
-- Adds one task and returns it; the same id with the same content returns it again.
-- Locks: tasks depended on, by id.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.add_task(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:type AS text), CAST(:capability AS text),
    CAST(:priority AS smallint), CAST(CAST(:parameters AS text) AS jsonb), CAST(CAST(:options AS text) AS jsonb),
    CAST(:actor AS text));

-- name: add_plain_task
-- Adds one task with nothing special about it; when and by whom, and no moment if the id was used before.
SELECT blackboard.add_plain_task(
           CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:type AS text), CAST(:capability AS text),
           CAST(:priority AS smallint), CAST(CAST(:parameters AS text) AS jsonb), CAST(:actor AS text),
           CAST(:hint AS boolean)) AS created_at,
       coalesce(nullif(CAST(:actor AS text), ''), session_user) AS created_by;

-- name: get_task
-- One task. Index: tasks_pkey.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.tasks
WHERE session_id = CAST(:session_id AS uuid) AND id = CAST(:id AS uuid);

-- name: get_tasks
-- Several tasks by id, in no order. Index: tasks_pkey.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.tasks
WHERE session_id = CAST(:session_id AS uuid) AND id = ANY (CAST(:ids AS uuid[]));

-- name: list_tasks
-- In order of id, which is that of creation unless a caller made the id; NULL means any. A task that waits for anybody is
-- with nobody, whoever had it last. Index: tasks_pkey.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.tasks
WHERE session_id = CAST(:session_id AS uuid)
  AND (CAST(:statuses AS text[]) IS NULL OR status = ANY (CAST(:statuses AS text[])))
  AND (CAST(:type AS text) IS NULL OR type = CAST(:type AS text))
  AND (CAST(:capability AS text) IS NULL OR capability = CAST(:capability AS text))
  AND (CAST(:assigned_to AS text) IS NULL
       OR (assigned_to = CAST(:assigned_to AS text)
           AND (claim_id IS NULL OR status NOT IN ('scheduled', 'blocked', 'awaiting_approval', 'held', 'pending'))))
ORDER BY id
LIMIT CAST(:limit AS integer);

-- name: list_newest_tasks
-- As list_tasks, from the other end. Index: tasks_pkey, backward.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.tasks
WHERE session_id = CAST(:session_id AS uuid)
  AND (CAST(:statuses AS text[]) IS NULL OR status = ANY (CAST(:statuses AS text[])))
  AND (CAST(:type AS text) IS NULL OR type = CAST(:type AS text))
  AND (CAST(:capability AS text) IS NULL OR capability = CAST(:capability AS text))
  AND (CAST(:assigned_to AS text) IS NULL
       OR (assigned_to = CAST(:assigned_to AS text)
           AND (claim_id IS NULL OR status NOT IN ('scheduled', 'blocked', 'awaiting_approval', 'held', 'pending'))))
ORDER BY id DESC
LIMIT CAST(:limit AS integer);

-- name: count_tasks
-- How many there are in each status.
SELECT status, count(*) AS count
FROM blackboard.tasks
WHERE session_id = CAST(:session_id AS uuid)
GROUP BY status;

-- name: list_dependencies
-- What a task waits for. Index: task_dependencies_pkey.
SELECT depends_on_id AS id, on_failure
FROM blackboard.task_dependencies
WHERE session_id = CAST(:session_id AS uuid) AND task_id = CAST(:id AS uuid)
ORDER BY depends_on_id;

-- name: claim_tasks
-- Claims up to limit ready tasks; the same claim_id returns the same rows.
-- Locks: the rows it returns. Indexes: tasks_assigned, tasks_ready, tasks_leased.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.claim_tasks(
    CAST(:session_id AS uuid), CAST(:agent_id AS text), CAST(:capabilities AS text[]), CAST(:lease_id AS uuid),
    CAST(:claim_id AS uuid), CAST(:limit AS integer));

-- name: claim_task
-- Claims one task by id if it is ready for this agent.
-- Locks: the row. Index: tasks_pkey.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.claim_task(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:agent_id AS text), CAST(:lease_id AS uuid),
    CAST(:claim_id AS uuid));

-- name: complete_tasks
-- Completes many held tasks; returns the ids of those refused, whose results are kept aside.
-- Locks: the rows by id, then dependants by id. Index: tasks_pkey.
SELECT id
FROM blackboard.complete_tasks(
    CAST(:session_id AS uuid), CAST(:ids AS uuid[]), CAST(:claim_ids AS uuid[]), CAST(:attempts AS integer[]),
    CAST(CAST(:results AS text[]) AS jsonb[]), CAST(:agent_id AS text)) AS refused (id);

-- name: fail_task
-- Ends a failed attempt: back with backoff, dead, or failed. Locks: the row.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.fail_task(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:claim_id AS uuid), CAST(:attempt AS integer),
    CAST(CAST(:error AS text) AS jsonb), CAST(:retry AS boolean), CAST(:delay AS interval), CAST(:agent_id AS text));

-- name: release_task
-- Hands a held task back; the attempt does not count. Locks: the row.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.release_task(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:claim_id AS uuid), CAST(:attempt AS integer),
    CAST(:agent_id AS text));

-- name: progress_task
-- Reports progress of a held task. Locks: the row.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.progress_task(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:claim_id AS uuid), CAST(:attempt AS integer),
    CAST(CAST(:progress AS text) AS jsonb), CAST(:agent_id AS text));

-- name: cancel_task
-- Cancels an open task, or asks its holder to stop. Locks: the row.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.cancel_task(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:reason AS text), CAST(:actor AS text));

-- name: decide_task
-- Approves or rejects a task that requires approval; the same key returns it as it is. Locks: the key, the row.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.decide_task(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:approved AS boolean), CAST(:by AS text),
    CAST(:reason AS text), CAST(:key AS text));

-- name: redrive_task
-- Starts over a failed or dead task; the same key returns it as it is. Locks: the key, the row.
SELECT session_id, id, type, capability, priority, status, CAST(parameters AS text) AS parameters, assigned_to, timeout,
       requires_approval, approved_by, run_at, attempt, released, max_attempts, retry_delay, claim_id, lease_id,
       started_at, deadline_at, cancel_requested, blockers, CAST(progress AS text) AS progress,
       CAST(result AS text) AS result, CAST(error AS text) AS error, created_by, created_at, completed_at,
       unique_key, limit_key, expires_at, fallback, CAST(held AS text) AS held
FROM blackboard.redrive_task(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:actor AS text), CAST(:key AS text));

-- name: list_late_results
-- What late owners handed in for a task. Index: late_results_once.
SELECT id, task_id, claim_id, attempt, agent_id, CAST(result AS text) AS result, CAST(error AS text) AS error, at
FROM blackboard.late_results
WHERE session_id = CAST(:session_id AS uuid) AND task_id = CAST(:id AS uuid)
ORDER BY at;

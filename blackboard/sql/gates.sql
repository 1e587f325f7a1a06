-- name: set_limit
-- Sets a limit, or changes the figures of the one of that name; running tasks count already.
-- Locks: the session's row, running tasks by id, counters.
SELECT id, name, kind, type, capability, per_key, max_running, rate_count, rate_period, created_by, created_at, removed_at
FROM blackboard.set_limit(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:name AS text), CAST(:kind AS text), CAST(:type AS text),
    CAST(:capability AS text), CAST(:per_key AS boolean), CAST(:max_running AS integer), CAST(:rate_count AS integer),
    CAST(:rate_period AS interval), CAST(:actor AS text));

-- name: settle_limit
-- Counts what was claimed by transactions older than the limit; waits for their end, for patience at most.
SELECT blackboard.settle_limit(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:patience AS interval)) AS counted;

-- name: list_limits
-- By name. Index: limits_name_once.
SELECT id, name, kind, type, capability, per_key, max_running, rate_count, rate_period, created_by, created_at, removed_at
FROM blackboard.limits
WHERE session_id = CAST(:session_id AS uuid) AND removed_at IS NULL
ORDER BY name;

-- name: limit_usage
-- How far a limit is used, by key. Indexes: limits_name_once, limit_usage_pkey, tasks_held.
SELECT u.key, u.running,
       (SELECT count(*) FROM blackboard.tasks t
        WHERE t.session_id = u.session_id AND t.status = 'held' AND t.held ->> 'code' = 'limit'
          AND coalesce(t.held ->> 'limit', t.held ->> 'type', '') = CAST(u.limit_id AS text)
          AND coalesce(t.held ->> 'key', '') = u.key) AS held,
       u.window_started_at, u.used, u.deferred
FROM blackboard.limit_usage u
JOIN blackboard.limits l ON l.session_id = u.session_id AND l.id = u.limit_id
WHERE l.session_id = CAST(:session_id AS uuid) AND l.name = CAST(:name AS text)
ORDER BY u.key;

-- name: remove_limit
-- The limit limits nothing any more. Locks: its row, the session's row.
SELECT blackboard.remove_limit(CAST(:session_id AS uuid), CAST(:name AS text), CAST(:actor AS text)) AS id;

-- name: retire_limit
-- Brings back up to batch tasks that a removed limit held; NULL when that was all.
SELECT blackboard.retire_limit(CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:batch AS integer)) AS moved;

-- name: check_limits
-- Counters that differ from what runs; none when all is well. Reads all running tasks of the session.
SELECT limit_id, key, counted, slots, running FROM blackboard.check_limits(CAST(:session_id AS uuid));

-- name: pause_tasks
-- Tasks of a type, or that need a capability, are not handed out any more. Locks: the session's row.
SELECT id, kind, name, reason, paused_by, paused_at, resumed_at
FROM blackboard.pause_tasks(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:kind AS text), CAST(:name AS text), CAST(:reason AS text),
    CAST(:actor AS text));

-- name: hold_paused
-- Moves up to batch ready tasks of a paused type out of the way; how many. Locks: those rows.
SELECT blackboard.hold_paused(CAST(:session_id AS uuid), CAST(:type AS text), CAST(:batch AS integer)) AS moved;

-- name: resume_tasks
-- Ends a pause; NULL if there is none. Locks: its row, the session's row.
SELECT blackboard.resume_tasks(
    CAST(:session_id AS uuid), CAST(:kind AS text), CAST(:name AS text), CAST(:actor AS text)) AS id;

-- name: retire_pause
-- Brings back up to batch tasks that an ended pause held; NULL when that was all.
SELECT blackboard.retire_pause(CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:batch AS integer)) AS moved;

-- name: list_pauses
-- What is paused, by kind and name. Index: pauses_once.
SELECT id, kind, name, reason, paused_by, paused_at, resumed_at
FROM blackboard.pauses
WHERE session_id = CAST(:session_id AS uuid) AND resumed_at IS NULL
ORDER BY kind, name;

-- name: configure_session
-- Ageing and retention; NULL leaves one as it is, zero ends it. Locks: the session's row.
SELECT id, name, goal, CAST(context AS text) AS context, status, CAST(outcome AS text) AS outcome,
       allow_self_validation, ageing, retention, created_by, created_at, closed_at
FROM blackboard.configure_session(
    CAST(:session_id AS uuid), CAST(:ageing AS interval), CAST(:retention AS interval), CAST(:actor AS text));

-- name: retention
-- How long finished tasks are kept, and the board's time.
SELECT retention, blackboard.now() AS now FROM blackboard.sessions WHERE id = CAST(:session_id AS uuid);

-- name: prune_tasks
-- Prunes among the next scan tasks after the given one; where to go on, and how many went. Locks: those rows by id.
SELECT next, pruned
FROM blackboard.prune_tasks(
    CAST(:session_id AS uuid), CAST(:before AS timestamptz), CAST(:statuses AS text[]), CAST(:after AS uuid),
    CAST(:scan AS integer), CAST(:dry_run AS boolean), CAST(:actor AS text));

-- name: prune_flows
-- Prunes among the next scan flows after the given one; where to go on, and how many went. Locks: those rows by id.
SELECT next, pruned
FROM blackboard.prune_flows(
    CAST(:session_id AS uuid), CAST(:before AS timestamptz), CAST(:statuses AS text[]), CAST(:after AS uuid),
    CAST(:scan AS integer), CAST(:dry_run AS boolean), CAST(:actor AS text));

-- name: count_prunable_events
-- How many events a prune up to that moment would take.
SELECT count(*) AS events
FROM blackboard.events
WHERE session_id = CAST(:session_id AS uuid) AND at < CAST(:before AS timestamptz)
  AND tx < (SELECT coalesce(min(e.tx), 9223372036854775807) FROM blackboard.events e
            WHERE e.session_id = CAST(:session_id AS uuid) AND e.at >= CAST(:before AS timestamptz));

-- name: why_task
-- What a task waits for. Indexes: tasks_pkey, task_dependencies_pkey, limit_usage_pkey, tasks_ready.
SELECT w.why ->> 'status' AS status, CAST(w.why -> 'reasons' AS text) AS reasons
FROM (SELECT blackboard.why_task(CAST(:session_id AS uuid), CAST(:id AS uuid)) AS why) w;

-- name: server_time
-- The server's time, by which all planned times are computed.
SELECT blackboard.now() AS now;

-- name: add_schedule
-- Adds a schedule and returns it; the same id with the same content returns it again.
SELECT session_id, id, name, cron, timezone, type, capability, priority, CAST(parameters AS text) AS parameters,
       CAST(options AS text) AS options, missed, paused, error, next_at, last_at, last_task_id, fired, skipped, created_by,
       created_at, removed_at
FROM blackboard.add_schedule(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:name AS text), CAST(:cron AS text), CAST(:timezone AS text),
    CAST(:type AS text), CAST(:capability AS text), CAST(:priority AS smallint),
    CAST(CAST(:parameters AS text) AS jsonb), CAST(CAST(:options AS text) AS jsonb), CAST(:missed AS text),
    CAST(:next_at AS timestamptz), CAST(:actor AS text));

-- name: find_schedule
-- One schedule by id, removed or not, else by name. Indexes: schedules_pkey, schedules_name_once.
SELECT session_id, id, name, cron, timezone, type, capability, priority, CAST(parameters AS text) AS parameters,
       CAST(options AS text) AS options, missed, paused, error, next_at, last_at, last_task_id, fired, skipped, created_by,
       created_at, removed_at
FROM blackboard.schedules
WHERE session_id = CAST(:session_id AS uuid)
  AND (id = CAST(:id AS uuid) OR (CAST(:id AS uuid) IS NULL AND name = CAST(:name AS text) AND removed_at IS NULL));

-- name: list_schedules
-- The schedules of a session by name, without the removed ones.
SELECT session_id, id, name, cron, timezone, type, capability, priority, CAST(parameters AS text) AS parameters,
       CAST(options AS text) AS options, missed, paused, error, next_at, last_at, last_task_id, fired, skipped, created_by,
       created_at, removed_at
FROM blackboard.schedules
WHERE session_id = CAST(:session_id AS uuid) AND removed_at IS NULL
ORDER BY name
LIMIT CAST(:limit AS integer);

-- name: pause_schedule
-- Pauses a schedule, or goes on from next_at. Locks: the row.
SELECT session_id, id, name, cron, timezone, type, capability, priority, CAST(parameters AS text) AS parameters,
       CAST(options AS text) AS options, missed, paused, error, next_at, last_at, last_task_id, fired, skipped, created_by,
       created_at, removed_at
FROM blackboard.pause_schedule(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:paused AS boolean), CAST(:next_at AS timestamptz),
    CAST(:error AS text), CAST(:actor AS text));

-- name: remove_schedule
-- The schedule fires no more. Locks: the row.
SELECT session_id, id, name, cron, timezone, type, capability, priority, CAST(parameters AS text) AS parameters,
       CAST(options AS text) AS options, missed, paused, error, next_at, last_at, last_task_id, fired, skipped, created_by,
       created_at, removed_at
FROM blackboard.remove_schedule(CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:actor AS text));

-- name: lock_due_schedules
-- Up to limit schedules that are due and that nobody else is firing, longest due first.
-- Locks: the rows it returns. Index: schedules_due.
WITH clock AS MATERIALIZED (SELECT blackboard.now() AS now)
SELECT s.session_id, s.id, s.name, s.cron, s.timezone, s.next_at, s.missed, (SELECT now FROM clock) AS now
FROM blackboard.schedules s JOIN blackboard.sessions x ON x.id = s.session_id AND x.status = 'active'
WHERE NOT s.paused AND s.removed_at IS NULL AND s.next_at <= (SELECT now FROM clock)
  AND (CAST(:sessions AS uuid[]) IS NULL OR s.session_id = ANY (CAST(:sessions AS uuid[])))
ORDER BY s.next_at
LIMIT CAST(:limit AS integer)
FOR UPDATE OF s SKIP LOCKED;

-- name: fire_schedule
-- Adds the tasks of the planned times and moves on; returns the tasks that are new. Locks: the row.
SELECT task_id, planned_at
FROM blackboard.fire_schedule(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:expected AS timestamptz), CAST(:times AS timestamptz[]),
    CAST(:task_ids AS uuid[]), CAST(:skipped AS integer), CAST(:next_at AS timestamptz));

-- name: next_due
-- Seconds until something is due, negative if it is overdue; NULL if nothing ever is. Index: schedules_due.
SELECT CAST(date_part('epoch', min(s.next_at) - blackboard.now()) AS double precision) AS seconds
FROM blackboard.schedules s JOIN blackboard.sessions x ON x.id = s.session_id AND x.status = 'active'
WHERE NOT s.paused AND s.removed_at IS NULL AND s.next_at IS NOT NULL
  AND (CAST(:sessions AS uuid[]) IS NULL OR s.session_id = ANY (CAST(:sessions AS uuid[])));

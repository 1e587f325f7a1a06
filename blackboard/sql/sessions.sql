-- name: start_session
-- Starts a session; the same id with the same content returns it again.
-- Locks: nothing beyond its own row.
SELECT id, name, goal, CAST(context AS text) AS context, status, CAST(outcome AS text) AS outcome,
       allow_self_validation, ageing, retention, created_by, created_at, closed_at
FROM blackboard.start_session(
    CAST(:id AS uuid), CAST(:name AS text), CAST(:goal AS text), CAST(CAST(:context AS text) AS jsonb),
    CAST(:actor AS text), CAST(:allow_self_validation AS boolean));

-- name: get_session
-- One session by id. Index: sessions_pkey.
SELECT id, name, goal, CAST(context AS text) AS context, status, CAST(outcome AS text) AS outcome,
       allow_self_validation, ageing, retention, created_by, created_at, closed_at
FROM blackboard.sessions
WHERE id = CAST(:id AS uuid);

-- name: find_session
-- The open session of that name, else the newest closed one.
SELECT id, name, goal, CAST(context AS text) AS context, status, CAST(outcome AS text) AS outcome,
       allow_self_validation, ageing, retention, created_by, created_at, closed_at
FROM blackboard.sessions
WHERE name = CAST(:name AS text)
ORDER BY (status IN ('active', 'paused')) DESC, created_at DESC
LIMIT 1;

-- name: find_sessions
-- Those with one of these ids, and by each name the open one, else the newest closed one.
SELECT CAST(NULL AS text) AS by_name, id, name, goal, CAST(context AS text) AS context, status,
       CAST(outcome AS text) AS outcome, allow_self_validation, ageing, retention, created_by, created_at, closed_at
FROM blackboard.sessions
WHERE id = ANY (CAST(:ids AS uuid[]))
UNION ALL
SELECT n.name, s.id, s.name, s.goal, CAST(s.context AS text), s.status, CAST(s.outcome AS text),
       s.allow_self_validation, s.ageing, s.retention, s.created_by, s.created_at, s.closed_at
FROM unnest(CAST(:names AS text[])) n (name),
     LATERAL (SELECT * FROM blackboard.sessions s WHERE s.name = n.name
              ORDER BY (s.status IN ('active', 'paused')) DESC, s.created_at DESC LIMIT 1) s;

-- name: list_sessions
-- Newest first. Index: sessions_created.
SELECT id, name, goal, CAST(context AS text) AS context, status, CAST(outcome AS text) AS outcome,
       allow_self_validation, ageing, retention, created_by, created_at, closed_at
FROM blackboard.sessions
WHERE (CAST(:status AS text) IS NULL OR status = CAST(:status AS text))
ORDER BY created_at DESC, id
LIMIT CAST(:limit AS integer);

-- name: update_session
-- Changes goal, context or status (active, paused); NULL leaves a column as it is.
SELECT id, name, goal, CAST(context AS text) AS context, status, CAST(outcome AS text) AS outcome,
       allow_self_validation, ageing, retention, created_by, created_at, closed_at
FROM blackboard.update_session(
    CAST(:session_id AS uuid), CAST(:goal AS text), CAST(CAST(:context AS text) AS jsonb), CAST(:status AS text),
    CAST(:actor AS text), CAST(:key AS text));

-- name: close_session
-- Ends a session once: open tasks are cancelled, open proposals closed without a decision, locks released.
-- Locks: the session's row, then its open rows.
SELECT id, name, goal, CAST(context AS text) AS context, status, CAST(outcome AS text) AS outcome,
       allow_self_validation, ageing, retention, created_by, created_at, closed_at
FROM blackboard.close_session(
    CAST(:session_id AS uuid), CAST(:status AS text), CAST(CAST(:outcome AS text) AS jsonb), CAST(:actor AS text));

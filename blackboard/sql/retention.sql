-- name: keep_session
-- How long a session's finished tasks and its events are kept; NULL is for ever. Owner only. Locks: that row.
SELECT tasks, events
FROM blackboard.keep_session(
    CAST(:session_id AS uuid), CAST(:tasks AS interval), CAST(:events AS interval), CAST(:actor AS text));

-- name: get_retention
-- How long a session's finished tasks and its events are kept; no row: for ever. Index: retentions_pkey.
SELECT tasks, events, error FROM blackboard.retentions WHERE session_id = CAST(:session_id AS uuid);

-- name: keep_due
-- One batch of what has to go in the session whose turn it is. Locks: that session's retention, and what goes.
SELECT session_id, tasks, flows, events, error, seconds FROM blackboard.keep_due(CAST(:scan AS integer));

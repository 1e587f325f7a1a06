-- name: read_events
-- One row: the events after the cursor in order of seq, the next cursor, and whether there is more at once.
-- Locks nothing. Indexes: events_cursor; between pages events_pkey.
SELECT cursor, more, CAST(events AS text) AS events
FROM blackboard.read_events(
    CAST(:session_id AS uuid), CAST(:cursor AS text), CAST(:limit AS integer), CAST(:topics AS text[]),
    CAST(:subject_id AS uuid));

-- name: cursor_now
-- A cursor at the present end of a session's events.
SELECT blackboard.cursor_now(CAST(:session_id AS uuid)) AS cursor;

-- name: state_history
-- Who changed what, from which value to which, when; oldest first. Index: events_subject.
SELECT seq, at, actor, noun, subject_id, event, field, CAST(old AS text) AS old, CAST(new AS text) AS new
FROM blackboard.state_history
WHERE session_id = CAST(:session_id AS uuid)
  AND (CAST(:subject_id AS uuid) IS NULL OR subject_id = CAST(:subject_id AS uuid))
ORDER BY seq, field
LIMIT CAST(:limit AS integer);

-- name: prune_events
-- Forgets about so many events before a moment; how many went, 0 at the end. Cursors older than that expire. Owner only.
SELECT blackboard.prune_events(
    CAST(:session_id AS uuid), CAST(:before AS timestamptz), CAST(:limit AS integer)) AS pruned;

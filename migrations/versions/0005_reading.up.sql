-- Cursors, the state history, closing a session, the picture of a session, and the seed's three tables as views.

-- ----------------------------------------------------------------------------------------------------- cursors
--
-- A cursor names a set of transactions: everything below xmax that was not running (xip). Sequence order is not commit
-- order, so a position in seq would miss what commits late; waiting for the oldest running transaction would stall
-- every reader behind one long transaction anywhere in the cluster.
--   * xmax is 1 + the highest visible tx of the session, never the snapshot's own: ids that left no flushed WAL are
--     handed out again after a crash, and a cursor ahead of the log would skip what follows.
--   * A reader that writes has its own tx in xip (a snapshot never lists its own) and does not see its own events.
--   * More than a limit is paged in order of seq between the old cursor and one fixed upper bound.
-- Text form: bb1.<history>.<xmax>.<xip,…> and, between pages, .<upper xmax>.<upper xip,…>.<last seq>

CREATE FUNCTION blackboard.cursor_history() RETURNS text
LANGUAGE sql STABLE
AS $$ SELECT substr(replace(h.id::text, '-', ''), 1, 8) FROM blackboard.history h $$;

-- A topic of the seed as the event types it stands for; agent.task.assigned is task.assigned.
CREATE FUNCTION blackboard.event_types(p_topics text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT array_agg(DISTINCT y)
    FROM unnest(p_topics) t (topic),
         LATERAL unnest(CASE
             WHEN topic = 'agent.error.occurred'
                 THEN ARRAY['task.retried', 'task.failed', 'task.dead', 'task.lapsed', 'action.failed']
             WHEN topic ~ '^agent\.(task|finding|action|hypothesis|session|proposal|vote|lock|message)\.'
                 THEN ARRAY[substr(topic, 7)]
             ELSE ARRAY[topic] END) y
$$;

-- One row: the events after the cursor in order of seq, the next cursor, and whether there is more at once.
-- STABLE on purpose: every query inside sees one snapshot, the caller's. Types may end in ".*".
-- Index: events_cursor; between pages events_pkey.
CREATE FUNCTION blackboard.read_events(
    p_session_id uuid, p_cursor text, p_limit integer, p_topics text[] DEFAULT NULL, p_subject_id uuid DEFAULT NULL
) RETURNS TABLE (cursor text, more boolean, events jsonb)
LANGUAGE plpgsql STABLE
AS $$
#variable_conflict use_column
DECLARE
    v_parts text[] := string_to_array(p_cursor, '.');
    v_history text := blackboard.cursor_history();
    v_offset bigint := blackboard.tx_offset();
    v_own bigint := pg_current_xact_id_if_assigned()::text::bigint + blackboard.tx_offset();
    v_newest bigint;
    v_pruned bigint;
    v_xmax bigint := 0;
    v_xip bigint[] := '{}';
    v_upper bigint;
    v_upper_xip bigint[];
    v_last_seq bigint := 0;
    v_types text[] := blackboard.event_types(p_topics);
    v_like text;
    v_count integer;
BEGIN
    IF pg_is_in_recovery() THEN
        PERFORM blackboard.raise('BB012', 'Cursors are read on the primary: a standby does not know the running transactions.');
    END IF;
    SELECT '^(' || string_agg(CASE WHEN t LIKE '%.*' THEN regexp_replace(left(t, -2), '([.^$*+?()\[\]{}|\\])', '\\\1', 'g') || '\..*'
                                   WHEN t = '*' THEN '.*'
                                   ELSE regexp_replace(t, '([.^$*+?()\[\]{}|\\])', '\\\1', 'g') END, '|') || ')$'
    INTO v_like FROM unnest(v_types) t;

    SELECT max(tx) INTO v_newest FROM (
        SELECT e.tx FROM blackboard.events e
        WHERE e.session_id = p_session_id AND (v_own IS NULL OR e.tx <> v_own)
        ORDER BY e.tx DESC LIMIT 1) newest;
    SELECT p.tx INTO v_pruned FROM blackboard.pruned_events p WHERE p.session_id = p_session_id;

    IF p_cursor IS NOT NULL AND p_cursor <> '' THEN
        IF v_parts[1] IS DISTINCT FROM 'bb1' OR cardinality(v_parts) NOT IN (4, 7)
           OR NOT p_cursor ~ '^bb1\.[0-9a-f]{8}\.\d{1,19}\.(\d{1,19}(,\d{1,19})*)?(\.\d{1,19}\.(\d{1,19}(,\d{1,19})*)?\.\d{1,19})?$' THEN
            PERFORM blackboard.raise('BB002', 'This is no cursor; pass one that a read returned, or none.',
                                     '{"field": "cursor"}');
        END IF;
        IF v_parts[2] <> v_history THEN
            PERFORM blackboard.raise('BB010', 'This cursor was read from another database; start from a new one.');
        END IF;
        v_xmax := v_parts[3]::bigint;
        v_xip := coalesce(string_to_array(nullif(v_parts[4], ''), ',')::bigint[], '{}');
        IF v_pruned IS NOT NULL AND (v_xmax <= v_pruned OR EXISTS (SELECT FROM unnest(v_xip) x WHERE x <= v_pruned)) THEN
            PERFORM blackboard.raise('BB009', 'Events after this cursor were pruned; read the board afresh and start from a new cursor.');
        END IF;
        IF v_xmax > 1 + greatest(coalesce(v_newest, 0), coalesce(v_pruned, 0)) THEN
            PERFORM blackboard.raise('BB010', 'This cursor is ahead of the history: the database was restored to an earlier state. Start from a new cursor.');
        END IF;
    END IF;

    IF cardinality(v_parts) = 7 THEN
        v_upper := v_parts[5]::bigint;
        v_upper_xip := coalesce(string_to_array(nullif(v_parts[6], ''), ',')::bigint[], '{}');
        v_last_seq := v_parts[7]::bigint;
    ELSE
        v_upper := greatest(v_xmax, coalesce(v_newest + 1, 0), coalesce(v_pruned + 1, 0));
        SELECT coalesce(array_agg(r.x), '{}') INTO v_upper_xip
        FROM (SELECT x::text::bigint + v_offset FROM pg_snapshot_xip(pg_current_snapshot()) x
              UNION SELECT v_own WHERE v_own IS NOT NULL) r (x)
        WHERE r.x < v_upper;
    END IF;

    IF cardinality(v_parts) IS DISTINCT FROM 7 THEN
        -- Small sets are sorted, large ones are walked in order of seq from their first event on.
        SELECT count(*) INTO v_count FROM (
            SELECT FROM blackboard.events e
            WHERE e.session_id = p_session_id AND e.tx >= v_xmax AND e.tx < v_upper AND NOT e.tx = ANY (v_upper_xip)
            LIMIT p_limit + 1) counted;
        IF v_count > p_limit THEN
            SELECT least(
                (SELECT min(e.seq) FROM blackboard.events e
                 WHERE e.session_id = p_session_id AND e.tx >= v_xmax AND e.tx < v_upper
                   AND NOT e.tx = ANY (v_upper_xip)),
                (SELECT min(e.seq) FROM blackboard.events e
                 WHERE e.session_id = p_session_id AND e.tx = ANY (v_xip) AND NOT e.tx = ANY (v_upper_xip))) - 1
            INTO v_last_seq;
        ELSE
            v_last_seq := NULL;
        END IF;
    END IF;

    IF v_last_seq IS NULL THEN
        RETURN QUERY
        WITH found AS MATERIALIZED (
            SELECT e.seq, e.at, e.actor, e.type, e.subject_id, e.data
            FROM blackboard.events e
            WHERE e.session_id = p_session_id AND e.tx >= v_xmax AND e.tx < v_upper AND NOT e.tx = ANY (v_upper_xip)
              AND (v_like IS NULL OR e.type ~ v_like) AND (p_subject_id IS NULL OR e.subject_id = p_subject_id)
            UNION ALL
            SELECT e.seq, e.at, e.actor, e.type, e.subject_id, e.data
            FROM blackboard.events e
            WHERE e.session_id = p_session_id AND e.tx = ANY (v_xip) AND NOT e.tx = ANY (v_upper_xip)
              AND (v_like IS NULL OR e.type ~ v_like) AND (p_subject_id IS NULL OR e.subject_id = p_subject_id)
            ORDER BY seq LIMIT p_limit + 1
        ), page AS (SELECT * FROM found ORDER BY seq LIMIT p_limit)
        SELECT CASE WHEN (SELECT count(*) FROM found) > p_limit
                    THEN concat_ws('.', 'bb1', v_history, v_xmax, array_to_string(v_xip, ','), v_upper,
                                   array_to_string(v_upper_xip, ','), (SELECT max(p.seq) FROM page p))
                    ELSE concat_ws('.', 'bb1', v_history, v_upper, array_to_string(v_upper_xip, ',')) END,
               (SELECT count(*) FROM found) > p_limit,
               (SELECT coalesce(jsonb_agg(jsonb_build_object(
                    'session_id', p_session_id, 'seq', p.seq, 'at', p.at, 'actor', p.actor, 'type', p.type,
                    'subject_id', p.subject_id, 'data', p.data) ORDER BY p.seq), '[]') FROM page p);
    ELSE
        RETURN QUERY
        WITH found AS MATERIALIZED (
            SELECT e.seq, e.at, e.actor, e.type, e.subject_id, e.data
            FROM blackboard.events e
            WHERE e.session_id = p_session_id AND e.seq > v_last_seq
              AND (e.tx >= v_xmax OR e.tx = ANY (v_xip)) AND e.tx < v_upper AND NOT e.tx = ANY (v_upper_xip)
              AND (v_like IS NULL OR e.type ~ v_like) AND (p_subject_id IS NULL OR e.subject_id = p_subject_id)
            ORDER BY e.seq LIMIT p_limit + 1
        ), page AS (SELECT * FROM found ORDER BY seq LIMIT p_limit)
        SELECT CASE WHEN (SELECT count(*) FROM found) > p_limit
                    THEN concat_ws('.', 'bb1', v_history, v_xmax, array_to_string(v_xip, ','), v_upper,
                                   array_to_string(v_upper_xip, ','), (SELECT max(p.seq) FROM page p))
                    ELSE concat_ws('.', 'bb1', v_history, v_upper, array_to_string(v_upper_xip, ',')) END,
               (SELECT count(*) FROM found) > p_limit,
               (SELECT coalesce(jsonb_agg(jsonb_build_object(
                    'session_id', p_session_id, 'seq', p.seq, 'at', p.at, 'actor', p.actor, 'type', p.type,
                    'subject_id', p.subject_id, 'data', p.data) ORDER BY p.seq), '[]') FROM page p);
    END IF;
END
$$;

-- A cursor at the present end: what commits from now on comes after it.
CREATE FUNCTION blackboard.cursor_now(p_session_id uuid) RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_own bigint := pg_current_xact_id_if_assigned()::text::bigint + blackboard.tx_offset();
    v_newest bigint;
BEGIN
    SELECT max(tx) INTO v_newest FROM (
        SELECT e.tx FROM blackboard.events e
        WHERE e.session_id = p_session_id AND (v_own IS NULL OR e.tx <> v_own)
        ORDER BY e.tx DESC LIMIT 1) newest;
    SELECT greatest(v_newest, p.tx) INTO v_newest FROM (SELECT max(tx) AS tx FROM blackboard.pruned_events
                                                       WHERE session_id = p_session_id) p;
    RETURN concat_ws('.', 'bb1', blackboard.cursor_history(), coalesce(v_newest + 1, 0), (
        SELECT coalesce(string_agg(r.x::text, ','), '')
        FROM (SELECT x::text::bigint + blackboard.tx_offset() FROM pg_snapshot_xip(pg_current_snapshot()) x
              UNION SELECT v_own WHERE v_own IS NOT NULL) r (x)
        WHERE r.x < coalesce(v_newest + 1, 0)));
END
$$;

-- Who changed what, from which value to which, when: the fold of the events, one row a field.
CREATE VIEW blackboard.state_history AS
SELECT c.session_id, c.seq, c.at, c.actor, c.noun, c.subject_id, c.event, c.field, c.old, c.new
FROM (
    SELECT e.session_id, e.seq, e.at, e.actor, split_part(e.type, '.', 1) AS noun, e.subject_id, e.type AS event,
           d.key AS field,
           lag(d.value) OVER (PARTITION BY e.session_id, e.subject_id, d.key ORDER BY e.seq) AS old,
           d.value AS new
    FROM blackboard.events e
    CROSS JOIN LATERAL jsonb_each(e.data) d) c
WHERE c.new IS DISTINCT FROM c.old;

-- A dump that was restored into another cluster: its transaction ids may be below those in the events.
CREATE FUNCTION blackboard.needs_adoption() RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT h.system_identifier <> c.system_identifier::text
    FROM blackboard.history h CROSS JOIN pg_control_system() c
$$;

-- Owner only: raises the offset above every stored tx, and gives the history a new identity, so that cursors of the
-- old cluster are refused and not misread.
CREATE FUNCTION blackboard.adopt() RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    v_offset bigint;
BEGIN
    SELECT greatest(blackboard.tx_offset(), coalesce(max(tx), 0) + 1) INTO v_offset FROM (
        SELECT max(tx) AS tx FROM blackboard.events UNION ALL SELECT max(tx) FROM blackboard.pruned_events) t;
    EXECUTE format('CREATE OR REPLACE FUNCTION blackboard.tx_offset() RETURNS bigint LANGUAGE sql IMMUTABLE '
                   'PARALLEL SAFE AS $f$ SELECT %s::bigint $f$', v_offset);
    UPDATE blackboard.history
    SET system_identifier = (SELECT system_identifier::text FROM pg_control_system()), id = gen_random_uuid();
    RETURN v_offset;
END
$$;

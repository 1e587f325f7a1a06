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

-- --------------------------------------------------------------------------------------------- closing a session

-- What becomes of the open rows of a session that is closed, by whatever statement: open tasks are cancelled (running
-- ones are asked to stop, and their holders may still hand in), open proposals expire undecided, waiting actions are
-- rejected, locks are released. Lock order: session, proposals, actions, locks, tasks by id.
CREATE FUNCTION blackboard.end_session() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Whoever is adding rows just now commits first; whoever comes later finds the session closed.
    PERFORM pg_advisory_xact_lock(blackboard.session_lock(NEW.id));
    PERFORM blackboard.end_decisions(NEW.id);
    PERFORM 1 FROM blackboard.tasks
    WHERE session_id = NEW.id AND completed_at IS NULL ORDER BY id FOR UPDATE;
    UPDATE blackboard.tasks
    SET status = 'cancelled', position = NULL, completed_at = blackboard.now(),
        error = jsonb_build_object('code', 'session_closed', 'message', 'The session was closed.')
    WHERE session_id = NEW.id AND completed_at IS NULL AND status <> 'running';
    UPDATE blackboard.tasks SET cancel_requested = true
    WHERE session_id = NEW.id AND status = 'running' AND NOT cancel_requested;
    RETURN NULL;
END
$$;
CREATE TRIGGER end_session AFTER UPDATE OF status ON blackboard.sessions FOR EACH ROW
    WHEN (NEW.status IN ('completed', 'failed') AND OLD.status IN ('active', 'paused'))
    EXECUTE FUNCTION blackboard.end_session();

-- Ends a session once.
CREATE FUNCTION blackboard.close_session(p_session_id uuid, p_status text, p_outcome jsonb, p_actor text)
RETURNS blackboard.sessions
LANGUAGE plpgsql
AS $$
DECLARE
    v_session blackboard.sessions;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    IF p_status IS NULL OR p_status NOT IN ('completed', 'failed') THEN
        PERFORM blackboard.raise('BB002', 'A session is closed as completed or failed.', '{"field": "status"}');
    END IF;
    SELECT * INTO v_session FROM blackboard.sessions WHERE id = p_session_id FOR UPDATE;
    IF v_session.status = p_status AND v_session.outcome IS NOT DISTINCT FROM p_outcome THEN
        RETURN v_session;
    END IF;
    PERFORM blackboard.open_session(p_session_id);
    UPDATE blackboard.sessions SET status = p_status, outcome = p_outcome, closed_at = blackboard.now()
    WHERE id = p_session_id RETURNING * INTO v_session;
    RETURN v_session;
END
$$;

-- ------------------------------------------------------------------------------------------- the seed's tables
--
-- With search_path = blackboard whoever knows only the three tables of the source document can use them as they were
-- written there; what they do goes through the same verbs and leaves the same history.
--   * agent_id needs no registration: an unknown one has trust and expertise 0.5, is no member, and votes nowhere.
--   * A column that is given as NULL has its default; session_id must be given.
--   * completed_at, and the created_at of what exists, are the board's: what is written there is not kept.
--   * An update of a row that somebody else has changed since it was read updates nothing (UPDATE 0), as an update of a
--     table does whose WHERE is no longer true: of two that take one pending task, one does.
--   * status = 'running' claims the task for assigned_to (else for the database role) under a lease of 15 minutes
--     that nobody renews; then it goes back. 'completed' and 'failed' end a task that was claimed this way, or that
--     nobody runs; a task that an agent holds under a lease of its own is refused (LeaseLost).

CREATE VIEW blackboard.agent_sessions AS
SELECT s.id, s.created_at, s.context, s.status::character varying(50) AS status FROM blackboard.sessions s;
ALTER VIEW blackboard.agent_sessions ALTER COLUMN id SET DEFAULT pg_catalog.gen_random_uuid();
ALTER VIEW blackboard.agent_sessions ALTER COLUMN created_at SET DEFAULT blackboard.now();
ALTER VIEW blackboard.agent_sessions ALTER COLUMN status SET DEFAULT 'active';

CREATE FUNCTION blackboard.agent_sessions_write() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM blackboard.sessions WHERE id = OLD.id;
        RETURN OLD;
    END IF;
    IF TG_OP = 'INSERT' THEN
        NEW.id := coalesce(NEW.id, gen_random_uuid());
        NEW.status := coalesce(NEW.status, 'active');
        NEW.created_at := coalesce(NEW.created_at, blackboard.now());
        INSERT INTO blackboard.sessions (id, name, context, status, created_at)
        VALUES (NEW.id, 'session ' || NEW.id, NEW.context, NEW.status, NEW.created_at);
        RETURN NEW;
    END IF;
    IF NEW.id <> OLD.id OR NEW.created_at <> OLD.created_at THEN
        PERFORM blackboard.raise('BB002', 'id and created_at of a session do not change.', '{"field": "id"}');
    END IF;
    IF NEW.context IS DISTINCT FROM OLD.context THEN
        UPDATE blackboard.sessions SET context = NEW.context WHERE id = OLD.id;
    END IF;
    IF NEW.status IS DISTINCT FROM OLD.status THEN
        IF NEW.status IN ('completed', 'failed') AND OLD.status IN ('active', 'paused') THEN
            PERFORM blackboard.close_session(OLD.id, NEW.status, NULL, NULL);
        ELSIF OLD.status IN ('completed', 'failed') THEN
            PERFORM blackboard.raise('BB003', 'A closed session cannot be opened again; start a new one.',
                                     jsonb_build_object('noun', 'session', 'id', OLD.id, 'status', OLD.status));
        ELSE
            UPDATE blackboard.sessions SET status = NEW.status WHERE id = OLD.id;
        END IF;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER write INSTEAD OF INSERT OR UPDATE OR DELETE ON blackboard.agent_sessions
    FOR EACH ROW EXECUTE FUNCTION blackboard.agent_sessions_write();

CREATE VIEW blackboard.agent_tasks AS
SELECT t.id, t.session_id, t.assigned_to::character varying(100) AS assigned_to,
       t.type::character varying(50) AS task_type, t.parameters, t.status::character varying(50) AS status, t.result,
       t.created_at, t.completed_at
FROM blackboard.tasks t;
ALTER VIEW blackboard.agent_tasks ALTER COLUMN id SET DEFAULT pg_catalog.gen_random_uuid();
ALTER VIEW blackboard.agent_tasks ALTER COLUMN status SET DEFAULT 'pending';
ALTER VIEW blackboard.agent_tasks ALTER COLUMN created_at SET DEFAULT blackboard.now();

-- Claims for somebody who has no process of ours: under a fixed term, marked by its host.
CREATE FUNCTION blackboard.claim_by_hand(p_session_id uuid, p_id uuid, p_agent_id text) RETURNS SETOF blackboard.tasks
LANGUAGE plpgsql
AS $$
DECLARE
    v_lease uuid := gen_random_uuid();
BEGIN
    PERFORM blackboard.start_lease(v_lease, 'sql', pg_backend_pid(), interval '15 minutes');
    RETURN QUERY SELECT * FROM blackboard.claim_task(p_session_id, p_id, p_agent_id, v_lease, gen_random_uuid());
END
$$;

CREATE FUNCTION blackboard.agent_tasks_write() RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
    v_task blackboard.tasks;
    v_actor text;
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM blackboard.tasks WHERE session_id = OLD.session_id AND id = OLD.id;
        RETURN OLD;
    END IF;
    v_actor := coalesce(NEW.assigned_to, blackboard.current_actor());
    IF TG_OP = 'INSERT' THEN
        IF NEW.session_id IS NULL THEN
            PERFORM blackboard.raise('BB002', 'A task belongs to a session: give its session_id.',
                                     '{"field": "session_id"}');
        END IF;
        NEW.id := coalesce(NEW.id, gen_random_uuid());
        NEW.status := coalesce(NEW.status, 'pending');
        NEW.created_at := coalesce(NEW.created_at, blackboard.now());
        IF NEW.status NOT IN ('pending', 'assigned') THEN
            PERFORM blackboard.raise('BB003', 'A task is not born running or finished: insert it as pending, then '
                                              'update its status.', '{"noun": "task", "field": "status"}');
        END IF;
        INSERT INTO blackboard.tasks (session_id, id, type, parameters, assigned_to, status, created_at, position)
        VALUES (NEW.session_id, NEW.id, NEW.task_type, coalesce(NEW.parameters, '{}'), NEW.assigned_to,
                CASE WHEN NEW.assigned_to IS NOT NULL THEN 'assigned' ELSE NEW.status END,
                NEW.created_at, nextval('blackboard.task_positions'))
        RETURNING * INTO v_task;
    ELSE
        IF (NEW.id, NEW.session_id, NEW.task_type, NEW.created_at)
           IS DISTINCT FROM (OLD.id, OLD.session_id, OLD.task_type, OLD.created_at) THEN
            PERFORM blackboard.raise('BB002', 'id, session_id, task_type and created_at of a task do not change.',
                                     '{"field": "id"}');
        END IF;
        SELECT * INTO v_task FROM blackboard.tasks WHERE session_id = OLD.session_id AND id = OLD.id FOR UPDATE;
        IF (v_task.status, v_task.assigned_to) IS DISTINCT FROM (OLD.status::text, OLD.assigned_to::text) THEN
            RETURN NULL;
        END IF;
        NEW.status := coalesce(NEW.status, OLD.status);
        IF v_task.status = 'running' AND (NEW.status NOT IN ('running', 'cancelled')
                                          OR NEW.result IS DISTINCT FROM OLD.result
                                          OR NEW.assigned_to IS DISTINCT FROM OLD.assigned_to) THEN
            PERFORM 1 FROM blackboard.leases l WHERE l.id = v_task.lease_id AND l.host = 'sql';
            IF NOT FOUND THEN
                PERFORM blackboard.raise('BB006', format('%s holds this task under a lease; only it can end it.',
                                                         v_task.assigned_to),
                                         jsonb_build_object('noun', 'task', 'id', v_task.id));
            END IF;
        END IF;
        IF NEW.parameters IS DISTINCT FROM OLD.parameters THEN
            UPDATE blackboard.tasks SET parameters = coalesce(NEW.parameters, '{}')
            WHERE session_id = OLD.session_id AND id = OLD.id;
        END IF;
        IF NEW.status IN ('running', 'completed', 'failed') AND NEW.status <> OLD.status
           AND v_task.status IN ('pending', 'assigned') THEN
            IF NEW.assigned_to IS NOT NULL AND v_task.assigned_to IS DISTINCT FROM NEW.assigned_to THEN
                UPDATE blackboard.tasks SET assigned_to = NEW.assigned_to
                WHERE session_id = OLD.session_id AND id = OLD.id;
            END IF;
            SELECT * INTO v_task FROM blackboard.claim_by_hand(OLD.session_id, OLD.id, v_actor);
            IF v_task.id IS NULL THEN
                PERFORM blackboard.raise('BB012', 'The task cannot be claimed now: somebody else has just taken it, '
                                                  'or its session is paused.', '{"noun": "task"}');
            END IF;
        END IF;
        IF NEW.status IN ('completed', 'failed') AND NEW.status <> OLD.status AND v_task.status = 'running' THEN
            IF NEW.status = 'completed' THEN
                PERFORM blackboard.complete_tasks(OLD.session_id, ARRAY[OLD.id], ARRAY[v_task.claim_id],
                                                  ARRAY[v_task.attempt], ARRAY[NEW.result], v_actor);
            ELSE
                PERFORM blackboard.fail_task(OLD.session_id, OLD.id, v_task.claim_id, v_task.attempt,
                                             jsonb_build_object('code', 'failed', 'message', '', 'result', NEW.result),
                                             false, NULL, v_actor);
            END IF;
        ELSIF NEW.status = 'assigned' AND v_task.status = 'pending' THEN
            UPDATE blackboard.tasks SET status = 'assigned', assigned_to = NEW.assigned_to
            WHERE session_id = OLD.session_id AND id = OLD.id;
        ELSIF NEW.status = 'pending' AND v_task.status = 'running' THEN
            PERFORM blackboard.release_task(OLD.session_id, OLD.id, v_task.claim_id, v_task.attempt, v_actor);
        ELSIF NEW.status = 'cancelled' AND NEW.status <> OLD.status THEN
            PERFORM blackboard.cancel_task(OLD.session_id, OLD.id, '', NULL);
        ELSIF NEW.status <> v_task.status THEN
            PERFORM blackboard.raise('BB003', format('A task that is %s cannot be made %s.', v_task.status, NEW.status),
                                     jsonb_build_object('noun', 'task', 'id', v_task.id, 'status', v_task.status));
        ELSE
            IF NEW.assigned_to IS DISTINCT FROM OLD.assigned_to AND NEW.assigned_to IS DISTINCT FROM v_task.assigned_to THEN
                IF v_task.status NOT IN ('pending', 'assigned') THEN
                    PERFORM blackboard.raise('BB003', format('A task that is %s is not assigned anew.', v_task.status),
                                             jsonb_build_object('noun', 'task', 'id', v_task.id, 'field', 'assigned_to',
                                                                'status', v_task.status));
                END IF;
                UPDATE blackboard.tasks
                SET assigned_to = NEW.assigned_to,
                    status = CASE WHEN NEW.assigned_to IS NULL THEN 'pending' ELSE 'assigned' END
                WHERE session_id = OLD.session_id AND id = OLD.id;
            END IF;
            IF NEW.result IS DISTINCT FROM v_task.result THEN
                UPDATE blackboard.tasks SET result = NEW.result WHERE session_id = OLD.session_id AND id = OLD.id;
            END IF;
        END IF;
        SELECT * INTO v_task FROM blackboard.tasks WHERE session_id = OLD.session_id AND id = OLD.id;
    END IF;
    NEW.status := v_task.status;
    NEW.assigned_to := v_task.assigned_to;
    NEW.parameters := v_task.parameters;
    NEW.result := v_task.result;
    NEW.created_at := v_task.created_at;
    NEW.completed_at := v_task.completed_at;
    RETURN NEW;
END
$$;
CREATE TRIGGER write INSTEAD OF INSERT OR UPDATE OR DELETE ON blackboard.agent_tasks
    FOR EACH ROW EXECUTE FUNCTION blackboard.agent_tasks_write();

CREATE VIEW blackboard.agent_findings AS
SELECT f.id, f.session_id, f.agent_id::character varying(100) AS agent_id,
       f.type::character varying(50) AS finding_type, f.content, f.confidence, f.created_at
FROM blackboard.findings f;
ALTER VIEW blackboard.agent_findings ALTER COLUMN id SET DEFAULT pg_catalog.gen_random_uuid();
ALTER VIEW blackboard.agent_findings ALTER COLUMN created_at SET DEFAULT blackboard.now();

CREATE FUNCTION blackboard.agent_findings_write() RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
    v_finding blackboard.findings;
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM blackboard.findings WHERE session_id = OLD.session_id AND id = OLD.id;
        RETURN OLD;
    END IF;
    IF TG_OP = 'INSERT' THEN
        IF NEW.session_id IS NULL THEN
            PERFORM blackboard.raise('BB002', 'A finding belongs to a session: give its session_id.',
                                     '{"field": "session_id"}');
        END IF;
        NEW.id := coalesce(NEW.id, gen_random_uuid());
        -- A duplicate becomes a corroboration: RETURNING then gives the row that was there.
        v_finding := blackboard.report_finding(NEW.session_id, NEW.id, NEW.agent_id, NEW.finding_type, NEW.content,
                                               'observation', NEW.confidence);
        NEW.id := v_finding.id;
        NEW.agent_id := v_finding.agent_id;
        NEW.confidence := v_finding.confidence;
        NEW.created_at := v_finding.created_at;
        RETURN NEW;
    END IF;
    -- Which columns of a finding may change is the table's to say.
    UPDATE blackboard.findings
    SET id = NEW.id, session_id = NEW.session_id, agent_id = NEW.agent_id, type = NEW.finding_type,
        content = NEW.content, confidence = NEW.confidence, created_at = NEW.created_at
    WHERE session_id = OLD.session_id AND id = OLD.id;
    RETURN NEW;
END
$$;
CREATE TRIGGER write INSTEAD OF INSERT OR UPDATE OR DELETE ON blackboard.agent_findings
    FOR EACH ROW EXECUTE FUNCTION blackboard.agent_findings_write();

-- Time, errors, events, sessions, agents, memberships, leases, requests.
--
-- Conventions of every revision:
--   * names are qualified; parameters start with p_, variables with v_
--   * a verb is one function, session first; it raises through blackboard.raise() with a SQLSTATE of class BB,
--     whose DETAIL is a JSON object of facts (errors.py maps them)
--   * history is written by statement-level triggers named history_insert and history_update, never by the verbs

CREATE SCHEMA IF NOT EXISTS blackboard;

-- Only the owner can replace it, as tests and the simulator do: a setting would let any role lapse leases.
CREATE FUNCTION blackboard.now() RETURNS timestamptz
LANGUAGE sql VOLATILE PARALLEL SAFE
AS $$ SELECT pg_catalog.clock_timestamp() $$;

CREATE FUNCTION blackboard.raise(p_code text, p_message text, p_facts jsonb DEFAULT '{}'::jsonb) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = p_code, MESSAGE = p_message, DETAIL = p_facts::text;
END
$$;

-- Who acts: named by the verb that runs, otherwise the database role.
CREATE FUNCTION blackboard.current_actor() RETURNS text
LANGUAGE sql STABLE
AS $$ SELECT coalesce(nullif(pg_catalog.current_setting('blackboard.actor', true), ''), session_user::text) $$;

CREATE FUNCTION blackboard.act_as(p_actor text) RETURNS void
LANGUAGE sql VOLATILE
AS $$ SELECT pg_catalog.set_config('blackboard.actor', coalesce(p_actor, ''), true) $$;

-- Raised above max(events.tx) by `blackboard db adopt` after a dump was restored into another cluster, whose
-- transaction ids start anew.
CREATE FUNCTION blackboard.tx_offset() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT 0::bigint $$;

CREATE FUNCTION blackboard.current_tx() RETURNS bigint
LANGUAGE sql STABLE
AS $$ SELECT pg_catalog.pg_current_xact_id()::text::bigint + blackboard.tx_offset() $$;

-- A hint for listeners, ids only. The hot verbs switch it off in their SET clause; their client sends one coalesced
-- hint after commit instead. The sign is a setting of PostgreSQL's own that says nothing here (xmlbinary, by default
-- base64), because only a superuser may name a custom setting in a SET clause, and an owner need not be one. Whoever
-- wants no hints in a transaction of their own says SET LOCAL blackboard.notify = 'off'.
CREATE FUNCTION blackboard.hint(p_session_id uuid, p_noun text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF pg_catalog.current_setting('xmlbinary') <> 'hex'
       AND pg_catalog.current_setting('blackboard.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_catalog.pg_notify('blackboard', p_session_id::text || ' ' || p_noun);
    END IF;
END
$$;

-- ---------------------------------------------------------------------------------------------------- history

CREATE TABLE blackboard.history (
    only_row boolean PRIMARY KEY DEFAULT true CONSTRAINT history_only_row CHECK (only_row),
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    system_identifier text NOT NULL
);
INSERT INTO blackboard.history (system_identifier)
SELECT system_identifier::text FROM pg_catalog.pg_control_system();

CREATE SEQUENCE blackboard.event_seq AS bigint CACHE 1;

CREATE TABLE blackboard.events (
    session_id uuid NOT NULL,
    tx bigint NOT NULL DEFAULT blackboard.current_tx(),
    seq bigint NOT NULL DEFAULT pg_catalog.nextval('blackboard.event_seq'),
    at timestamptz NOT NULL DEFAULT blackboard.now(),
    actor text NOT NULL DEFAULT blackboard.current_actor(),
    type text NOT NULL,
    subject_id uuid NOT NULL,
    data jsonb NOT NULL,
    CONSTRAINT events_pkey PRIMARY KEY (session_id, seq)
);
CREATE INDEX events_cursor ON blackboard.events (session_id, tx, seq);
CREATE INDEX events_subject ON blackboard.events (session_id, subject_id, seq);
COMMENT ON TABLE blackboard.events IS
    'Append-only history: audit, outbox and topic source. seq orders it; tx serves cursors only.';

-- The highest tx that pruning has taken from a session; older cursors have expired.
CREATE TABLE blackboard.pruned_events (
    session_id uuid PRIMARY KEY,
    tx bigint NOT NULL,
    seq bigint NOT NULL,
    pruned_at timestamptz NOT NULL DEFAULT blackboard.now()
);

CREATE FUNCTION blackboard.refuse_change() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF TG_OP = 'DELETE' AND pg_catalog.current_setting('blackboard.pruning', true) = 'on' THEN
        RETURN NULL;
    END IF;
    PERFORM blackboard.raise('BB005',
        format('%s on blackboard.%s is refused: history is append-only; prune it with blackboard.prune_events().',
               TG_OP, TG_TABLE_NAME),
        jsonb_build_object('table', TG_TABLE_NAME, 'operation', TG_OP));
    RETURN NULL;
END
$$;
CREATE TRIGGER append_only AFTER UPDATE OR DELETE ON blackboard.events
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.events
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- Named by triggers "immutable", whose WHEN finds a changed column: history tells what changed, and reads these from
-- the row. AFTER and not BEFORE, which would lock every row of every update once more.
CREATE FUNCTION blackboard.refuse_immutable() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM blackboard.raise('BB012', format('%s of a row of blackboard.%s never change.', TG_ARGV[0], TG_TABLE_NAME),
                             jsonb_build_object('table', TG_TABLE_NAME, 'field', TG_ARGV[0]));
    RETURN NULL;
END
$$;

-- A row deleted by hand leaves its last state behind: TG_ARGV = (noun, column that holds the subject id).
CREATE FUNCTION blackboard.record_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT coalesce(o.doc ->> 'session_id', o.doc ->> 'id')::uuid, TG_ARGV[0] || '.deleted',
           (o.doc ->> TG_ARGV[1])::uuid, o.doc
    FROM (SELECT to_jsonb(r) AS doc FROM old_rows r) o;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.prune_events(p_session_id uuid, p_before timestamptz) RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    v_tx bigint;
    v_seq bigint;
    v_count bigint;
BEGIN
    -- Up to the last event before the moment in cursor order, so that what is left is one unbroken tail.
    SELECT max(tx), max(seq) INTO v_tx, v_seq FROM blackboard.events
    WHERE session_id = p_session_id AND at < p_before
      AND tx < (SELECT coalesce(min(e.tx), 9223372036854775807) FROM blackboard.events e
                WHERE e.session_id = p_session_id AND e.at >= p_before);
    IF v_tx IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM pg_catalog.set_config('blackboard.pruning', 'on', true);
    DELETE FROM blackboard.events WHERE session_id = p_session_id AND tx <= v_tx;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    PERFORM pg_catalog.set_config('blackboard.pruning', '', true);
    INSERT INTO blackboard.pruned_events (session_id, tx, seq) VALUES (p_session_id, v_tx, v_seq)
    ON CONFLICT (session_id) DO UPDATE
        SET tx = greatest(pruned_events.tx, excluded.tx), seq = greatest(pruned_events.seq, excluded.seq),
            pruned_at = blackboard.now();
    RETURN v_count;
END
$$;

-- ------------------------------------------------------------------------------------------------- idempotency

CREATE TABLE blackboard.requests (
    session_id uuid NOT NULL,
    key text NOT NULL CONSTRAINT requests_key_length CHECK (length(key) BETWEEN 1 AND 200),
    verb text NOT NULL,
    digest text NOT NULL,
    at timestamptz NOT NULL DEFAULT blackboard.now(),
    CONSTRAINT requests_pkey PRIMARY KEY (session_id, key)
);
CREATE INDEX requests_at ON blackboard.requests (at);

-- True for the first call with this key; false for a repetition, which then only returns the present state.
-- A second call that overlaps with the first waits for its end. Keys are kept for a day.
CREATE FUNCTION blackboard.first_time(p_session_id uuid, p_key text, p_verb text, p_content jsonb) RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    v_digest text := md5(p_content::text);
    v_found blackboard.requests;
BEGIN
    IF p_key IS NULL THEN
        RETURN true;
    END IF;
    DELETE FROM blackboard.requests r WHERE (r.session_id, r.key) IN (
        SELECT session_id, key FROM blackboard.requests WHERE at < blackboard.now() - interval '1 day'
        ORDER BY at LIMIT 20 FOR UPDATE SKIP LOCKED);
    INSERT INTO blackboard.requests (session_id, key, verb, digest) VALUES (p_session_id, p_key, p_verb, v_digest)
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
        RETURN true;
    END IF;
    SELECT * INTO v_found FROM blackboard.requests WHERE session_id = p_session_id AND key = p_key;
    IF v_found.verb IS DISTINCT FROM p_verb OR v_found.digest IS DISTINCT FROM v_digest THEN
        PERFORM blackboard.raise('BB004',
            format('The idempotency key %L was used before for another call; use a new key.', p_key),
            jsonb_build_object('field', 'key', 'key', p_key, 'verb', v_found.verb));
    END IF;
    RETURN false;
END
$$;

-- ---------------------------------------------------------------------------------------------------- sessions

CREATE TABLE blackboard.sessions (
    id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
    name text NOT NULL CONSTRAINT sessions_name_length CHECK (length(name) BETWEEN 1 AND 200),
    goal text NOT NULL DEFAULT '' CONSTRAINT sessions_goal_length CHECK (length(goal) <= 10000),
    context jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT sessions_context_size CHECK (pg_column_size(context) <= 1048576),
    status text NOT NULL DEFAULT 'active'
        CONSTRAINT sessions_status_known CHECK (status IN ('active', 'paused', 'completed', 'failed')),
    outcome jsonb CONSTRAINT sessions_outcome_size CHECK (pg_column_size(outcome) <= 1048576),
    allow_self_validation boolean NOT NULL DEFAULT false,
    -- Whether claims must look at limits, pauses or ageing; kept by the board, read by every claim.
    gated boolean NOT NULL DEFAULT false,
    ageing interval CONSTRAINT sessions_ageing_range
        CHECK (ageing BETWEEN interval '1 second' AND interval '3650 days'),
    retention interval CONSTRAINT sessions_retention_range
        CHECK (retention BETWEEN interval '0' AND interval '36500 days'),
    created_by text NOT NULL DEFAULT blackboard.current_actor(),
    created_at timestamptz NOT NULL DEFAULT blackboard.now(),
    closed_at timestamptz,
    CONSTRAINT sessions_ageing_is_gated CHECK (ageing IS NULL OR gated),
    CONSTRAINT sessions_closed_at_iff_closed CHECK ((status IN ('completed', 'failed')) = (closed_at IS NOT NULL)),
    CONSTRAINT sessions_not_the_board CHECK (id <> '00000000-0000-0000-0000-000000000000')
);
-- A name finds one open session; closed ones keep theirs, so a nightly run may use it again.
CREATE UNIQUE INDEX sessions_name_while_open ON blackboard.sessions (name) WHERE status IN ('active', 'paused');
CREATE INDEX sessions_created ON blackboard.sessions (created_at DESC, id);
CREATE INDEX sessions_name ON blackboard.sessions (name, created_at DESC);

CREATE FUNCTION blackboard.history_sessions_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.id, 'session.started', n.id,
           jsonb_build_object('initiator', n.created_by, 'name', n.name, 'goal', n.goal, 'context', n.context,
                              'status', n.status, 'allow_self_validation', n.allow_self_validation)
    FROM new_rows n;
    PERFORM blackboard.hint(n.id, 'sessions') FROM new_rows n;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.sessions REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_sessions_insert();

CREATE FUNCTION blackboard.history_sessions_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.id,
           CASE
               WHEN n.status = o.status THEN 'session.updated'
               -- A closed session stays closed: no branch, hence no type, hence refused.
               WHEN o.status IN ('completed', 'failed') THEN NULL
               WHEN n.status = 'active' THEN 'session.resumed'
               ELSE 'session.' || n.status
           END,
           n.id,
           jsonb_strip_nulls(jsonb_build_object(
               'name', CASE WHEN n.name <> o.name THEN n.name END,
               'goal', CASE WHEN n.goal <> o.goal THEN n.goal END,
               'status', CASE WHEN n.status <> o.status THEN n.status END,
               'allow_self_validation', CASE WHEN n.allow_self_validation <> o.allow_self_validation
                                             THEN n.allow_self_validation END))
           -- Outside the strip: JSON nulls inside these belong to their owner.
           || CASE WHEN n.context <> o.context THEN jsonb_build_object('context', n.context) ELSE '{}' END
           || CASE WHEN n.outcome IS DISTINCT FROM o.outcome THEN jsonb_build_object('outcome', n.outcome) ELSE '{}' END
           || CASE WHEN n.ageing IS DISTINCT FROM o.ageing THEN jsonb_build_object('ageing', n.ageing) ELSE '{}' END
           || CASE WHEN n.retention IS DISTINCT FROM o.retention
                   THEN jsonb_build_object('retention', n.retention) ELSE '{}' END
    FROM new_rows n JOIN old_rows o ON o.id = n.id
    WHERE (n.name, n.goal, n.status, n.context, n.outcome, n.allow_self_validation, n.ageing, n.retention)
          IS DISTINCT FROM
          (o.name, o.goal, o.status, o.context, o.outcome, o.allow_self_validation, o.ageing, o.retention);
    PERFORM blackboard.hint(n.id, 'sessions') FROM new_rows n;
    RETURN NULL;
EXCEPTION WHEN not_null_violation THEN
    PERFORM blackboard.raise('BB003', 'A closed session cannot be opened again; start a new one.',
                             jsonb_build_object('noun', 'session'));
    RETURN NULL;
END
$$;
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.sessions
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_sessions_update();
CREATE TRIGGER immutable AFTER UPDATE OF id, created_by, created_at ON blackboard.sessions FOR EACH ROW
    WHEN ((OLD.id, OLD.created_by, OLD.created_at) IS DISTINCT FROM (NEW.id, NEW.created_by, NEW.created_at))
    EXECUTE FUNCTION blackboard.refuse_immutable('id, created_by and created_at');
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.sessions REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('session', 'id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.sessions
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- Returns the session's row; refuses writes to one that is unknown or closed. Cold verbs call it first.
CREATE FUNCTION blackboard.open_session(p_session_id uuid) RETURNS blackboard.sessions
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_session blackboard.sessions;
BEGIN
    SELECT * INTO v_session FROM blackboard.sessions WHERE id = p_session_id;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no session %s; list them with `blackboard session list`.',
                                                 p_session_id),
                                 jsonb_build_object('noun', 'session', 'id', p_session_id));
    END IF;
    IF v_session.status IN ('completed', 'failed') THEN
        PERFORM blackboard.raise('BB007', format('The session %L is %s and takes no more writes; start a new one.',
                                                 v_session.name, v_session.status),
                                 jsonb_build_object('noun', 'session', 'id', p_session_id,
                                                    'status', v_session.status));
    END IF;
    RETURN v_session;
END
$$;

-- Who adds rows to a session shares this lock; who closes it takes it alone, and so sees every row that was added
-- before. A row lock would do the same, but make a crowd of writers queue for one page.
CREATE FUNCTION blackboard.session_lock(p_session_id uuid) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT pg_catalog.hashtextextended('blackboard session ' || p_session_id::text, 0) $$;

-- Called by history_insert triggers: rows may only be added to sessions that exist and are open. Volatile, so that the
-- status is read after the lock was got.
CREATE FUNCTION blackboard.check_sessions(p_session_ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_id uuid;
BEGIN
    FOREACH v_id IN ARRAY p_session_ids LOOP
        PERFORM pg_advisory_xact_lock_shared(blackboard.session_lock(v_id));
        IF current_setting('transaction_isolation') = 'read committed' THEN
            PERFORM 1 FROM blackboard.sessions WHERE id = v_id AND status IN ('active', 'paused');
        ELSE
            -- An older snapshot may still show a closed session as open: locking its row finds out.
            PERFORM 1 FROM blackboard.sessions WHERE id = v_id AND status IN ('active', 'paused') FOR KEY SHARE;
        END IF;
        IF NOT FOUND THEN
            PERFORM blackboard.open_session(v_id);
        END IF;
    END LOOP;
END
$$;

CREATE FUNCTION blackboard.start_session(
    p_id uuid, p_name text, p_goal text, p_context jsonb, p_actor text,
    p_allow_self_validation boolean DEFAULT false
) RETURNS blackboard.sessions
LANGUAGE plpgsql
AS $$
DECLARE
    v_session blackboard.sessions;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    INSERT INTO blackboard.sessions (id, name, goal, context, allow_self_validation, created_by)
    VALUES (p_id, p_name, p_goal, p_context, p_allow_self_validation, blackboard.current_actor())
    ON CONFLICT (id) DO NOTHING
    RETURNING * INTO v_session;
    IF NOT FOUND THEN
        SELECT * INTO v_session FROM blackboard.sessions WHERE id = p_id;
        -- Name, goal and context may have been changed since; what was started is in the first event.
        PERFORM 1 FROM blackboard.events e
        WHERE e.session_id = p_id AND e.subject_id = p_id AND e.type = 'session.started'
          AND (e.data ->> 'name', e.data ->> 'goal', e.data -> 'context', e.data -> 'allow_self_validation')
              IS DISTINCT FROM (p_name, p_goal, p_context, to_jsonb(p_allow_self_validation));
        IF FOUND THEN
            PERFORM blackboard.raise('BB004', 'A session with this id was started with other content; use a new id.',
                                     jsonb_build_object('noun', 'session', 'id', p_id));
        END IF;
    END IF;
    RETURN v_session;
END
$$;

CREATE FUNCTION blackboard.update_session(
    p_session_id uuid, p_goal text, p_context jsonb, p_status text, p_actor text, p_key text
) RETURNS blackboard.sessions
LANGUAGE plpgsql
AS $$
DECLARE
    v_session blackboard.sessions;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    -- The key comes before the state: a repeated call finds what the first did, also after the session was closed.
    IF blackboard.first_time(p_session_id, p_key, 'update_session',
                             jsonb_build_array(p_goal, p_context, p_status)) THEN
        PERFORM blackboard.open_session(p_session_id);
        UPDATE blackboard.sessions
        SET goal = coalesce(p_goal, goal), context = coalesce(p_context, context),
            status = coalesce(p_status, status)
        WHERE id = p_session_id;
    END IF;
    SELECT * INTO v_session FROM blackboard.sessions WHERE id = p_session_id;
    RETURN v_session;
END
$$;

-- ------------------------------------------------------------------------------------------------------ agents

CREATE TABLE blackboard.agents (
    id text PRIMARY KEY CONSTRAINT agents_id_form CHECK (id ~ '^[^[:space:][:cntrl:]]{1,100}$'),
    capabilities text[] NOT NULL DEFAULT '{}'
        CONSTRAINT agents_capabilities_few CHECK (cardinality(capabilities) <= 100
                                                  AND array_position(capabilities, NULL) IS NULL),
    expertise jsonb NOT NULL DEFAULT '{}'
        -- Strict: the lax path would look into arrays, and take [0.5] for a number.
        CONSTRAINT agents_expertise_weights CHECK (
            jsonb_typeof(expertise) = 'object'
            AND NOT expertise @? 'strict $.* ? (@.type() != "number" || @ < 0 || @ > 1)')
        CONSTRAINT agents_expertise_size CHECK (pg_column_size(expertise) <= 1048576),
    capacity integer NOT NULL DEFAULT 1 CONSTRAINT agents_capacity_range CHECK (capacity BETWEEN 1 AND 100000),
    role text NOT NULL DEFAULT 'member' CONSTRAINT agents_role_length CHECK (length(role) BETWEEN 1 AND 50),
    trust double precision NOT NULL DEFAULT 1 CONSTRAINT agents_trust_range CHECK (trust BETWEEN 0 AND 1),
    created_at timestamptz NOT NULL DEFAULT blackboard.now()
);
CREATE INDEX agents_capabilities ON blackboard.agents USING gin (capabilities);

-- Agents belong to the board, not to one session: their events stand under the nil session.
CREATE FUNCTION blackboard.agent_subject(p_agent_id text) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT pg_catalog.md5(p_agent_id)::uuid $$;

CREATE FUNCTION blackboard.history_agents() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT '00000000-0000-0000-0000-000000000000', TG_ARGV[0], blackboard.agent_subject(n.id),
           jsonb_build_object('agent_id', n.id, 'capabilities', n.capabilities, 'expertise', n.expertise,
                              'capacity', n.capacity, 'role', n.role, 'trust', n.trust)
    FROM changed_rows n;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.agents REFERENCING NEW TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_agents('agent.registered');
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.agents REFERENCING NEW TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_agents('agent.updated');
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.agents REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_agents('agent.deleted');
CREATE TRIGGER immutable AFTER UPDATE OF id, created_at ON blackboard.agents FOR EACH ROW
    WHEN ((OLD.id, OLD.created_at) IS DISTINCT FROM (NEW.id, NEW.created_at))
    EXECUTE FUNCTION blackboard.refuse_immutable('id and created_at');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.agents
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE FUNCTION blackboard.expertise(p_agent_id text, p_category text) RETURNS double precision
LANGUAGE sql STABLE
AS $$
    -- 0.5 for what nobody declared: neither trusted blindly nor ignored. What is too small for a double is nothing.
    SELECT coalesce((SELECT CASE WHEN w.weight < 1e-300 THEN 0 ELSE w.weight::double precision END
                     FROM blackboard.agents a
                     CROSS JOIN LATERAL (SELECT (a.expertise ->> p_category)::numeric AS weight) w
                     WHERE a.id = p_agent_id AND w.weight IS NOT NULL), 0.5)
$$;

CREATE FUNCTION blackboard.register_agent(
    p_id text, p_capabilities text[], p_expertise jsonb, p_capacity integer, p_role text
) RETURNS blackboard.agents
LANGUAGE plpgsql
AS $$
DECLARE
    v_agent blackboard.agents;
BEGIN
    -- NULL leaves what is declared already (or takes the column's default).
    PERFORM blackboard.act_as(p_id);
    INSERT INTO blackboard.agents AS a (id, capabilities, expertise, capacity, role)
    VALUES (p_id, coalesce(p_capabilities, '{}'), coalesce(p_expertise, '{}'), coalesce(p_capacity, 1),
            coalesce(p_role, 'member'))
    ON CONFLICT (id) DO UPDATE
        SET capabilities = coalesce(p_capabilities, a.capabilities), expertise = coalesce(p_expertise, a.expertise),
            capacity = coalesce(p_capacity, a.capacity), role = coalesce(p_role, a.role)
        WHERE (a.capabilities, a.expertise, a.capacity, a.role) IS DISTINCT FROM
              (coalesce(p_capabilities, a.capabilities), coalesce(p_expertise, a.expertise),
               coalesce(p_capacity, a.capacity), coalesce(p_role, a.role));
    SELECT * INTO v_agent FROM blackboard.agents WHERE id = p_id;
    RETURN v_agent;
END
$$;

-- ------------------------------------------------------------------------------------------------------ leases

CREATE TABLE blackboard.leases (
    id uuid PRIMARY KEY,
    host text NOT NULL DEFAULT '',
    pid integer,
    term interval NOT NULL CONSTRAINT leases_term_range CHECK (term BETWEEN interval '1 second' AND interval '30 days'),
    started_at timestamptz NOT NULL DEFAULT blackboard.now(),
    expires_at timestamptz NOT NULL,
    -- When somebody first saw it expired; a renewal clears it.
    suspected_at timestamptz,
    lapsed_at timestamptz,
    swept_at timestamptz
) WITH (fillfactor = 70);
-- Its columns never change with a renewal, which therefore touches no index.
CREATE INDEX leases_live ON blackboard.leases (id) WHERE lapsed_at IS NULL;
CREATE INDEX leases_unswept ON blackboard.leases (lapsed_at) WHERE lapsed_at IS NOT NULL AND swept_at IS NULL;

-- One row: when somebody last looked after the leases. A gap means that nobody could renew (an outage, a suspended
-- server), and gives every holder one more term.
CREATE TABLE blackboard.liveness (
    only_row boolean PRIMARY KEY DEFAULT true CONSTRAINT liveness_only_row CHECK (only_row),
    checked_at timestamptz NOT NULL,
    grace_from timestamptz NOT NULL,
    repaired_at timestamptz NOT NULL DEFAULT '-infinity',
    unswept boolean NOT NULL DEFAULT false
) WITH (fillfactor = 10);
INSERT INTO blackboard.liveness (checked_at, grace_from) VALUES (blackboard.now(), blackboard.now());

CREATE FUNCTION blackboard.start_lease(p_id uuid, p_host text, p_pid integer, p_term interval)
RETURNS blackboard.leases
LANGUAGE plpgsql
AS $$
DECLARE
    v_lease blackboard.leases;
BEGIN
    INSERT INTO blackboard.leases (id, host, pid, term, expires_at)
    VALUES (p_id, p_host, p_pid, p_term, blackboard.now() + p_term)
    ON CONFLICT (id) DO NOTHING;
    SELECT * INTO v_lease FROM blackboard.leases WHERE id = p_id;
    IF (v_lease.host, v_lease.pid, v_lease.term) IS DISTINCT FROM (p_host, p_pid, p_term) THEN
        PERFORM blackboard.raise('BB004', 'A lease with this id was started by another process; use a new id.',
                                 jsonb_build_object('noun', 'lease', 'id', p_id));
    END IF;
    RETURN v_lease;
END
$$;

-- The lease, if it is held; raises LeaseLost otherwise.
CREATE FUNCTION blackboard.live_lease(p_lease_id uuid) RETURNS blackboard.leases
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_lease blackboard.leases;
BEGIN
    SELECT * INTO v_lease FROM blackboard.leases WHERE id = p_lease_id;
    IF NOT FOUND OR v_lease.lapsed_at IS NOT NULL THEN
        PERFORM blackboard.raise('BB006', 'This lease has lapsed: what it held may be with somebody else. '
                                          'Join the session again to get a new one.',
                                 jsonb_build_object('noun', 'lease', 'id', p_lease_id,
                                                    'lapsed_at', v_lease.lapsed_at));
    END IF;
    RETURN v_lease;
END
$$;

-- ------------------------------------------------------------------------------------------------- memberships

CREATE TABLE blackboard.memberships (
    session_id uuid NOT NULL REFERENCES blackboard.sessions (id),
    agent_id text NOT NULL REFERENCES blackboard.agents (id),
    role text NOT NULL DEFAULT 'member' CONSTRAINT memberships_role_length CHECK (length(role) BETWEEN 1 AND 50),
    vote_weight double precision NOT NULL DEFAULT 1
        CONSTRAINT memberships_vote_weight_range CHECK (vote_weight BETWEEN 0 AND 1000000),
    lease_id uuid,
    joined_at timestamptz NOT NULL DEFAULT blackboard.now(),
    left_at timestamptz,
    CONSTRAINT memberships_pkey PRIMARY KEY (session_id, agent_id)
);
CREATE INDEX memberships_agent ON blackboard.memberships (agent_id);
COMMENT ON COLUMN blackboard.memberships.lease_id IS 'Presence, and no history: the agent is there while it is live.';

CREATE FUNCTION blackboard.history_memberships_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'agent.joined', blackboard.agent_subject(n.agent_id),
           jsonb_build_object('agent_id', n.agent_id, 'role', n.role, 'vote_weight', n.vote_weight)
    FROM new_rows n;
    PERFORM blackboard.hint(n.session_id, 'agents') FROM new_rows n;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.memberships REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_memberships_insert();

CREATE FUNCTION blackboard.history_memberships_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id,
           CASE WHEN o.left_at IS NULL AND n.left_at IS NOT NULL THEN 'agent.left'
                WHEN o.left_at IS NOT NULL AND n.left_at IS NULL THEN 'agent.joined'
                ELSE 'agent.updated' END,
           blackboard.agent_subject(n.agent_id),
           jsonb_build_object('agent_id', n.agent_id, 'role', n.role, 'vote_weight', n.vote_weight)
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.agent_id = n.agent_id
    WHERE (n.role, n.vote_weight, n.left_at IS NULL) IS DISTINCT FROM (o.role, o.vote_weight, o.left_at IS NULL);
    PERFORM blackboard.hint(n.session_id, 'agents') FROM new_rows n;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.memberships
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_memberships_update();
CREATE TRIGGER immutable AFTER UPDATE OF session_id, agent_id ON blackboard.memberships FOR EACH ROW
    WHEN ((OLD.session_id, OLD.agent_id) IS DISTINCT FROM (NEW.session_id, NEW.agent_id))
    EXECUTE FUNCTION blackboard.refuse_immutable('session_id and agent_id');

CREATE FUNCTION blackboard.history_memberships_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT o.session_id, 'agent.removed', blackboard.agent_subject(o.agent_id), to_jsonb(o) - 'session_id'
    FROM old_rows o;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.memberships REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_memberships_delete();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.memberships
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- The agents of a session, with what is known of them everywhere; present while their process holds a live lease.
CREATE VIEW blackboard.members AS
SELECT a.id, m.session_id, a.capabilities, a.expertise, a.capacity, m.role, a.trust, m.vote_weight, m.lease_id,
       coalesce(l.lapsed_at IS NULL AND l.expires_at > blackboard.now(), false) AS present, m.joined_at, m.left_at
FROM blackboard.memberships m
JOIN blackboard.agents a ON a.id = m.agent_id
LEFT JOIN blackboard.leases l ON l.id = m.lease_id;

-- Registers the agent and makes it a member. Joining again changes only what is given, and presence.
CREATE FUNCTION blackboard.join_session(
    p_session_id uuid, p_agent_id text, p_capabilities text[], p_expertise jsonb, p_capacity integer,
    p_role text, p_vote_weight double precision, p_lease_id uuid
) RETURNS SETOF blackboard.members
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM blackboard.open_session(p_session_id);
    PERFORM blackboard.register_agent(p_agent_id, p_capabilities, p_expertise, p_capacity, p_role);
    IF p_lease_id IS NOT NULL THEN
        PERFORM blackboard.live_lease(p_lease_id);
    END IF;
    INSERT INTO blackboard.memberships AS m (session_id, agent_id, role, vote_weight, lease_id)
    VALUES (p_session_id, p_agent_id, coalesce(p_role, 'member'), coalesce(p_vote_weight, 1), p_lease_id)
    ON CONFLICT (session_id, agent_id) DO UPDATE
        SET role = coalesce(p_role, m.role), vote_weight = coalesce(p_vote_weight, m.vote_weight),
            lease_id = coalesce(p_lease_id, m.lease_id), left_at = NULL;
    RETURN QUERY SELECT * FROM blackboard.members m WHERE m.session_id = p_session_id AND m.id = p_agent_id;
END
$$;

CREATE FUNCTION blackboard.leave_session(p_session_id uuid, p_agent_id text) RETURNS blackboard.memberships
LANGUAGE plpgsql
AS $$
DECLARE
    v_member blackboard.memberships;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    UPDATE blackboard.memberships SET left_at = coalesce(left_at, blackboard.now()), lease_id = NULL
    WHERE session_id = p_session_id AND agent_id = p_agent_id
    RETURNING * INTO v_member;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('%s is not a member of this session.', p_agent_id),
                                 jsonb_build_object('noun', 'agent', 'id', p_agent_id));
    END IF;
    RETURN v_member;
END
$$;

-- What holds tasks back: pauses, limits, uniqueness, ageing. What becomes of old ones. Why a task waits.
--
-- A session with none of these has sessions.gated = false, and its claims look no further. In the others claim_tasks
-- hands over to claim_gated, where every candidate passes gate_tasks: it is admitted, or leaves the ready index (held,
-- or scheduled until a token is there), so that the next claim does not meet it again.
--
-- Lock order: a session's row, its tasks, then limit_usage by (limit_id, key). A transaction that has usage rows
-- locked takes further ones only where it need not wait (setting blackboard.slots), and whoever has usage rows locked
-- does not wait for a task (pick_held says what that takes): two claims, or a claim and a completion, cannot wait for
-- each other.
--
-- No history: counters and slots (limit_usage, task_slots, task_keys, keyed_tasks, upkeep). They follow from the tasks.

-- ------------------------------------------------------------------------------------------------------ pauses

CREATE TABLE blackboard.pauses (
    session_id uuid NOT NULL,
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    kind text NOT NULL CONSTRAINT pauses_kind_known CHECK (kind IN ('type', 'capability')),
    name text NOT NULL CONSTRAINT pauses_name_length CHECK (length(name) BETWEEN 1 AND 100),
    reason text NOT NULL DEFAULT '' CONSTRAINT pauses_reason_length CHECK (length(reason) <= 4000),
    paused_by text NOT NULL DEFAULT blackboard.current_actor(),
    paused_at timestamptz NOT NULL DEFAULT blackboard.now(),
    -- Set: it holds nothing back any more; the row goes when the last task that it held is back.
    resumed_at timestamptz,
    CONSTRAINT pauses_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT pauses_once UNIQUE (session_id, kind, name)
);

CREATE FUNCTION blackboard.history_pauses() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    END IF;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, CASE WHEN n.resumed_at IS NULL THEN 'pause.started' ELSE 'pause.resumed' END, n.id,
           jsonb_build_object('kind', n.kind, 'name', n.name, 'reason', n.reason, 'paused_by', n.paused_by,
                              'resumed_at', n.resumed_at)
    FROM new_rows n;
    PERFORM blackboard.refresh_gated(s.session_id), blackboard.hint(s.session_id, 'tasks')
    FROM (SELECT DISTINCT session_id FROM new_rows ORDER BY 1) s;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.pauses REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_pauses();
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.pauses REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_pauses();
CREATE TRIGGER immutable AFTER UPDATE OF session_id, id, kind, name ON blackboard.pauses FOR EACH ROW
    WHEN ((OLD.session_id, OLD.id, OLD.kind, OLD.name) IS DISTINCT FROM (NEW.session_id, NEW.id, NEW.kind, NEW.name))
    EXECUTE FUNCTION blackboard.refuse_immutable('session_id, id, kind and name');
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.pauses REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('pause', 'id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.pauses
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- ------------------------------------------------------------------------------------------------------ limits

CREATE TABLE blackboard.limits (
    session_id uuid NOT NULL,
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    name text NOT NULL CONSTRAINT limits_name_length CHECK (length(name) BETWEEN 1 AND 100),
    kind text NOT NULL CONSTRAINT limits_kind_known CHECK (kind IN ('concurrency', 'rate')),
    -- Of which tasks: of a type, of a capability, or (both NULL) of all.
    type text CONSTRAINT limits_type_length CHECK (length(type) BETWEEN 1 AND 50),
    capability text CONSTRAINT limits_capability_length CHECK (length(capability) <= 100),
    -- For each limit_key by itself; tasks without a key are then not limited.
    per_key boolean NOT NULL DEFAULT false,
    max_running integer CONSTRAINT limits_max_running_range CHECK (max_running BETWEEN 1 AND 1000000),
    rate_count integer CONSTRAINT limits_rate_count_range CHECK (rate_count BETWEEN 1 AND 1000000),
    rate_period interval CONSTRAINT limits_rate_period_range
        CHECK (rate_period BETWEEN interval '10 milliseconds' AND interval '366 days'),
    created_by text NOT NULL DEFAULT blackboard.current_actor(),
    created_at timestamptz NOT NULL DEFAULT blackboard.now(),
    -- Set: it limits nothing any more; the row goes when the last task that it held is back.
    removed_at timestamptz,
    CONSTRAINT limits_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT limits_name_once UNIQUE (session_id, name),
    CONSTRAINT limits_one_scope CHECK (type IS NULL OR capability IS NULL),
    CONSTRAINT limits_figures_of_kind CHECK (
        (kind = 'concurrency') = (max_running IS NOT NULL)
        AND (kind = 'rate') = (rate_count IS NOT NULL) AND (kind = 'rate') = (rate_period IS NOT NULL))
);

-- running: tasks that hold a slot. waiting: some may be held for it. Rates count in windows of rate_period that follow
-- each other without a gap; used: starts in the present one, deferred: sent to later ones.
CREATE TABLE blackboard.limit_usage (
    session_id uuid NOT NULL,
    limit_id uuid NOT NULL,
    key text NOT NULL DEFAULT '',
    running integer NOT NULL DEFAULT 0 CONSTRAINT limit_usage_running_range CHECK (running >= 0),
    waiting boolean NOT NULL DEFAULT false,
    window_started_at timestamptz NOT NULL DEFAULT blackboard.now(),
    used integer NOT NULL DEFAULT 0 CONSTRAINT limit_usage_used_range CHECK (used >= 0),
    deferred integer NOT NULL DEFAULT 0 CONSTRAINT limit_usage_deferred_range CHECK (deferred >= 0),
    CONSTRAINT limit_usage_pkey PRIMARY KEY (session_id, limit_id, key),
    CONSTRAINT limit_usage_limit_fkey FOREIGN KEY (session_id, limit_id)
        REFERENCES blackboard.limits (session_id, id) ON DELETE CASCADE
) WITH (fillfactor = 50);
CREATE INDEX limit_usage_waiting ON blackboard.limit_usage (session_id) WHERE waiting;

-- One row for each limit that a running task counts in: the counter is right because the row is there, or gone.
CREATE TABLE blackboard.task_slots (
    session_id uuid NOT NULL,
    task_id uuid NOT NULL,
    limit_id uuid NOT NULL,
    key text NOT NULL,
    CONSTRAINT task_slots_pkey PRIMARY KEY (session_id, task_id, limit_id)
);

-- Which limits a task falls under, and with which key.
CREATE VIEW blackboard.task_limits AS
SELECT t.session_id, t.id AS task_id, t.status, l.id AS limit_id, l.name, l.kind,
       CASE WHEN l.per_key THEN t.limit_key ELSE '' END AS key, l.max_running, l.rate_count, l.rate_period
FROM blackboard.tasks t
JOIN blackboard.limits l
  ON l.session_id = t.session_id AND l.removed_at IS NULL AND coalesce(l.type, t.type) = t.type
     AND coalesce(l.capability, t.capability) = t.capability AND (NOT l.per_key OR t.limit_key IS NOT NULL);

CREATE FUNCTION blackboard.history_limits() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    END IF;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id,
           CASE WHEN n.removed_at IS NOT NULL THEN 'limit.removed' WHEN TG_OP = 'INSERT' THEN 'limit.set'
                ELSE 'limit.changed' END, n.id,
           jsonb_build_object('name', n.name, 'kind', n.kind, 'type', n.type, 'capability', n.capability,
                              'per_key', n.per_key, 'max_running', n.max_running, 'rate_count', n.rate_count,
                              'rate_period', n.rate_period, 'removed_at', n.removed_at)
    FROM new_rows n;
    IF TG_OP = 'INSERT' THEN
        INSERT INTO blackboard.limit_usage (session_id, limit_id)
        SELECT n.session_id, n.id FROM new_rows n WHERE NOT n.per_key ON CONFLICT DO NOTHING;
    END IF;
    PERFORM blackboard.refresh_gated(s.session_id), blackboard.hint(s.session_id, 'tasks')
    FROM (SELECT DISTINCT session_id FROM new_rows ORDER BY 1) s;
    PERFORM blackboard.count_running(n.session_id, n.id) FROM new_rows n
    WHERE n.kind = 'concurrency' AND n.removed_at IS NULL;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.limits REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_limits();
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.limits REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_limits();
CREATE TRIGGER immutable AFTER UPDATE OF session_id, id, name, kind, type, capability, per_key, created_by, created_at
    ON blackboard.limits FOR EACH ROW
    WHEN ((OLD.session_id, OLD.id, OLD.name, OLD.kind, OLD.type, OLD.capability, OLD.per_key, OLD.created_by,
           OLD.created_at) IS DISTINCT FROM
          (NEW.session_id, NEW.id, NEW.name, NEW.kind, NEW.type, NEW.capability, NEW.per_key, NEW.created_by,
           NEW.created_at))
    EXECUTE FUNCTION blackboard.refuse_immutable('what a limit applies to, and who made it when,');
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.limits REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('limit', 'id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.limits
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- Whether the session's claims must look further than the ready index. The row is locked first, so that of two
-- changes at once the later sees the earlier.
CREATE FUNCTION blackboard.refresh_gated(p_session_id uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM 1 FROM blackboard.sessions WHERE id = p_session_id FOR NO KEY UPDATE;
    UPDATE blackboard.sessions s SET gated = g.gated
    FROM (SELECT EXISTS (SELECT FROM blackboard.limits WHERE session_id = p_session_id)
                 OR EXISTS (SELECT FROM blackboard.pauses WHERE session_id = p_session_id) AS gated) g
    WHERE s.id = p_session_id AND s.gated <> (g.gated OR s.ageing IS NOT NULL);
END
$$;

CREATE FUNCTION blackboard.refresh_gated_after_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM blackboard.refresh_gated(s.session_id) FROM (SELECT DISTINCT session_id FROM old_rows ORDER BY 1) s;
    RETURN NULL;
END
$$;
CREATE TRIGGER refresh_gated AFTER DELETE ON blackboard.pauses REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refresh_gated_after_delete();
CREATE TRIGGER refresh_gated AFTER DELETE ON blackboard.limits REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refresh_gated_after_delete();

-- Running tasks that a limit covers and that hold no slot of it get one: those claimed before it was set.
CREATE FUNCTION blackboard.count_running(p_session_id uuid, p_limit_id uuid) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_tasks uuid[];
    v_count integer := 0;
    v_key record;
BEGIN
    SELECT array_agg(x.id) INTO v_tasks FROM (
        SELECT t.id FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.status = 'running'
          AND EXISTS (SELECT FROM blackboard.task_limits m
                      WHERE m.session_id = p_session_id AND m.task_id = t.id AND m.limit_id = p_limit_id)
          AND NOT EXISTS (SELECT FROM blackboard.task_slots s
                          WHERE s.session_id = p_session_id AND s.task_id = t.id AND s.limit_id = p_limit_id)
        ORDER BY t.id FOR UPDATE) x;
    IF v_tasks IS NULL THEN
        RETURN 0;
    END IF;
    UPDATE blackboard.tasks t SET limited = true
    WHERE t.session_id = p_session_id AND t.id = ANY (v_tasks) AND NOT t.limited;
    FOR v_key IN
        WITH taken AS (
            INSERT INTO blackboard.task_slots (session_id, task_id, limit_id, key)
            SELECT m.session_id, m.task_id, m.limit_id, m.key FROM blackboard.task_limits m
            WHERE m.session_id = p_session_id AND m.task_id = ANY (v_tasks) AND m.limit_id = p_limit_id
            ON CONFLICT DO NOTHING RETURNING key)
        SELECT key, count(*)::integer AS slots FROM taken GROUP BY key ORDER BY key
    LOOP
        INSERT INTO blackboard.limit_usage AS u (session_id, limit_id, key, running)
        VALUES (p_session_id, p_limit_id, v_key.key, v_key.slots)
        ON CONFLICT (session_id, limit_id, key) DO UPDATE SET running = u.running + excluded.running;
        v_count := v_count + v_key.slots;
    END LOOP;
    RETURN v_count;
END
$$;

-- Sets a limit, or changes the figures of the one of that name. Tasks that run already count.
CREATE FUNCTION blackboard.set_limit(
    p_session_id uuid, p_id uuid, p_name text, p_kind text, p_type text, p_capability text, p_per_key boolean,
    p_max_running integer, p_rate_count integer, p_rate_period interval, p_actor text
) RETURNS SETOF blackboard.limits
LANGUAGE plpgsql
AS $$
DECLARE
    v_limit blackboard.limits;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    INSERT INTO blackboard.limits (session_id, id, name, kind, type, capability, per_key, max_running, rate_count,
                                   rate_period, created_by)
    VALUES (p_session_id, p_id, p_name, p_kind, p_type, p_capability, p_per_key, p_max_running, p_rate_count,
            p_rate_period, blackboard.current_actor())
    ON CONFLICT (session_id, name) DO NOTHING;
    SELECT * INTO v_limit FROM blackboard.limits
    WHERE session_id = p_session_id AND name = p_name FOR NO KEY UPDATE;
    IF (v_limit.kind, v_limit.type, v_limit.capability, v_limit.per_key)
       IS DISTINCT FROM (p_kind, p_type, p_capability, p_per_key) THEN
        PERFORM blackboard.raise('BB004',
            format('There is a limit %L of another kind or for other tasks; remove it first, or use another name.',
                   p_name),
            jsonb_build_object('noun', 'limit', 'id', v_limit.id, 'field', 'name'));
    END IF;
    RETURN QUERY
    UPDATE blackboard.limits l
    SET max_running = p_max_running, rate_count = p_rate_count, rate_period = p_rate_period, removed_at = NULL
    WHERE l.session_id = p_session_id AND l.id = v_limit.id
      AND (l.max_running, l.rate_count, l.rate_period, l.removed_at)
          IS DISTINCT FROM (p_max_running, p_rate_count, p_rate_period, NULL)
    RETURNING l.*;
    IF NOT FOUND THEN
        RETURN NEXT v_limit;
    END IF;
END
$$;

-- Counts what was claimed by transactions that began before the limit was committed, and so did not know of it: waits
-- until those that had tasks in use then have ended, for p_patience at most. Returns how many it found, NULL if some
-- have not ended. To be called in a transaction of its own, after set_limit.
CREATE FUNCTION blackboard.settle_limit(p_session_id uuid, p_limit_id uuid, p_patience interval) RETURNS integer
LANGUAGE plpgsql
AS $$
DECLARE
    v_until timestamptz := clock_timestamp() + p_patience;
    v_others text[] := array(SELECT DISTINCT l.virtualtransaction FROM pg_locks l
                             WHERE l.relation = 'blackboard.tasks'::regclass AND l.pid <> pg_backend_pid());
BEGIN
    LOOP
        EXIT WHEN NOT EXISTS (SELECT FROM pg_locks l WHERE l.virtualtransaction = ANY (v_others)
                                AND l.relation = 'blackboard.tasks'::regclass);
        IF clock_timestamp() > v_until THEN
            PERFORM blackboard.count_running(p_session_id, p_limit_id);
            RETURN NULL;
        END IF;
        PERFORM pg_sleep(0.005);
    END LOOP;
    RETURN blackboard.count_running(p_session_id, p_limit_id);
END
$$;

-- The limit limits nothing from now on; retire_limit brings back what it held. Returns its id.
CREATE FUNCTION blackboard.remove_limit(p_session_id uuid, p_name text, p_actor text) RETURNS uuid
LANGUAGE plpgsql
AS $$
DECLARE
    v_id uuid;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    SELECT l.id INTO v_id FROM blackboard.limits l WHERE l.session_id = p_session_id AND l.name = p_name;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no limit %L in this session; list them with '
                                                 '`blackboard limit list`.', p_name),
                                 jsonb_build_object('noun', 'limit', 'id', p_name));
    END IF;
    UPDATE blackboard.limits SET removed_at = blackboard.now()
    WHERE session_id = p_session_id AND id = v_id AND removed_at IS NULL;
    RETURN v_id;
END
$$;

-- Up to p_limit held tasks in order of priority and age, locked; p_of: a limit's id, or a type; p_capability NULL: of
-- all of them. Skips those that somebody else is at. Must use tasks_held. SKIP LOCKED alone does not keep its word: on
-- a row that has just been changed twice PostgreSQL waits for the second, and whoever waits here has counters locked that
-- the other may need. Hence the lock_timeout; what is not found now is pulled by the next claim.
CREATE FUNCTION blackboard.pick_held(
    p_session_id uuid, p_code text, p_of text, p_key text, p_capability text, p_limit integer
) RETURNS uuid[]
LANGUAGE plpgsql
SET lock_timeout = '20ms'
SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_nestloop = on SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    v_ids uuid[];
BEGIN
    BEGIN
        -- The first of each capability, and of these the first.
        WITH RECURSIVE capabilities (name) AS (
            SELECT p_capability WHERE p_capability IS NOT NULL
            UNION ALL
            (SELECT t.capability FROM blackboard.tasks t
             WHERE t.session_id = p_session_id AND t.status = 'held' AND t.held ->> 'code' = p_code
               AND coalesce(t.held ->> 'limit', t.held ->> 'type', '') = p_of AND coalesce(t.held ->> 'key', '') = p_key
               AND p_capability IS NULL
             ORDER BY t.capability LIMIT 1)
            UNION ALL
            SELECT (SELECT t.capability FROM blackboard.tasks t
                    WHERE t.session_id = p_session_id AND t.status = 'held' AND t.held ->> 'code' = p_code
                      AND coalesce(t.held ->> 'limit', t.held ->> 'type', '') = p_of
                      AND coalesce(t.held ->> 'key', '') = p_key AND t.capability > c.name
                    ORDER BY t.capability LIMIT 1)
            FROM capabilities c WHERE c.name IS NOT NULL AND p_capability IS NULL)
        SELECT array_agg(x.id) INTO v_ids FROM (
            SELECT f.id
            FROM capabilities c,
                 LATERAL (SELECT t.id, t.priority, (t.held ->> 'position')::bigint AS position FROM blackboard.tasks t
                          WHERE t.session_id = p_session_id AND t.status = 'held' AND t.held ->> 'code' = p_code
                            AND coalesce(t.held ->> 'limit', t.held ->> 'type', '') = p_of
                            AND coalesce(t.held ->> 'key', '') = p_key AND t.capability = c.name
                          ORDER BY t.priority DESC, (t.held ->> 'position')::bigint
                          LIMIT p_limit FOR UPDATE SKIP LOCKED) f
            ORDER BY f.priority DESC, f.position LIMIT p_limit) x;
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
        RETURN NULL;
    END;
    RETURN v_ids;
END
$$;

-- Held tasks that pick_held picks become ready again; how many.
CREATE FUNCTION blackboard.return_held(
    p_session_id uuid, p_code text, p_of text, p_key text, p_capability text, p_limit integer
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_nestloop = on SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    v_ids uuid[];
    v_count integer;
BEGIN
    IF p_limit <= 0 THEN
        RETURN 0;
    END IF;
    v_ids := blackboard.pick_held(p_session_id, p_code, p_of, p_key, p_capability, p_limit);
    UPDATE blackboard.tasks t
    SET status = n.status, held = NULL,
        position = CASE WHEN n.status IN ('pending', 'assigned') THEN n.position END
    FROM (SELECT h.session_id, h.id, blackboard.next_status(h) AS status,
                 nextval('blackboard.task_positions') AS position
          FROM (SELECT w.* FROM unnest(v_ids) WITH ORDINALITY o (id, n)
                JOIN blackboard.tasks w ON w.session_id = p_session_id AND w.id = o.id ORDER BY o.n) h) n
    WHERE t.session_id = n.session_id AND t.id = n.id;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END
$$;

-- Brings back up to p_batch tasks that a removed limit held; how many, or NULL when that was all and the limit is gone.
CREATE FUNCTION blackboard.retire_limit(p_session_id uuid, p_limit_id uuid, p_batch integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_key text;
    v_count integer := 0;
BEGIN
    PERFORM 1 FROM blackboard.limits
    WHERE session_id = p_session_id AND id = p_limit_id AND removed_at IS NOT NULL FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    FOR v_key IN SELECT u.key FROM blackboard.limit_usage u
                 WHERE u.session_id = p_session_id AND u.limit_id = p_limit_id AND u.waiting ORDER BY u.key LOOP
        v_count := v_count + blackboard.return_held(p_session_id, 'limit', p_limit_id::text, v_key, NULL,
                                                    p_batch - v_count);
        EXIT WHEN v_count >= p_batch;
    END LOOP;
    IF v_count > 0 THEN
        RETURN v_count;
    END IF;
    -- A claim that did not know of the removal may be holding tasks just now: it has the usage row locked till it ends.
    PERFORM 1 FROM blackboard.limit_usage u
    WHERE u.session_id = p_session_id AND u.limit_id = p_limit_id ORDER BY u.key FOR UPDATE;
    PERFORM 1 FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.status = 'held' AND t.held ->> 'code' = 'limit'
      AND coalesce(t.held ->> 'limit', t.held ->> 'type', '') = p_limit_id::text LIMIT 1;
    IF FOUND THEN
        RETURN 0;
    END IF;
    DELETE FROM blackboard.task_slots WHERE session_id = p_session_id AND limit_id = p_limit_id;
    DELETE FROM blackboard.limits WHERE session_id = p_session_id AND id = p_limit_id;
    RETURN NULL;
END
$$;

-- Where the counters differ from what runs; nothing when all is well. counted: limit_usage; slots: rows of task_slots;
-- running: tasks that run and fall under the limit.
CREATE FUNCTION blackboard.check_limits(p_session_id uuid)
RETURNS TABLE (limit_id uuid, key text, counted integer, slots integer, running integer)
LANGUAGE sql STABLE
AS $$
    SELECT k.limit_id, k.key, coalesce(sum(k.counted), 0)::integer, coalesce(sum(k.slots), 0)::integer,
           coalesce(sum(k.running), 0)::integer
    FROM (SELECT u.limit_id, u.key, u.running AS counted, NULL::bigint AS slots, NULL::bigint AS running
          FROM blackboard.limit_usage u JOIN blackboard.limits l ON l.session_id = u.session_id AND l.id = u.limit_id
          WHERE u.session_id = p_session_id AND l.removed_at IS NULL
          UNION ALL
          SELECT s.limit_id, s.key, NULL, count(*), NULL
          FROM blackboard.task_slots s JOIN blackboard.limits l ON l.session_id = s.session_id AND l.id = s.limit_id
          WHERE s.session_id = p_session_id AND l.removed_at IS NULL GROUP BY 1, 2
          UNION ALL
          SELECT m.limit_id, m.key, NULL, NULL, count(*) FROM blackboard.task_limits m
          WHERE m.session_id = p_session_id AND m.kind = 'concurrency' AND m.status = 'running' GROUP BY 1, 2) k
    GROUP BY 1, 2
    HAVING coalesce(sum(k.counted), 0) <> coalesce(sum(k.slots), 0)
        OR coalesce(sum(k.slots), 0) <> coalesce(sum(k.running), 0)
$$;

-- ------------------------------------------------------------------------------------------------ slots are freed

-- Slots come back to a limit, and with them the next tasks that it held.
CREATE FUNCTION blackboard.give_slots_back(p_session_id uuid, p_limit_id uuid, p_key text, p_slots integer) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_free integer;
    v_waiting boolean;
BEGIN
    UPDATE blackboard.limit_usage u SET running = greatest(u.running - p_slots, 0)
    FROM blackboard.limits l
    WHERE u.session_id = p_session_id AND u.limit_id = p_limit_id AND u.key = p_key
      AND l.session_id = u.session_id AND l.id = u.limit_id
    RETURNING least(l.max_running - u.running, p_slots), u.waiting INTO v_free, v_waiting;
    PERFORM set_config('blackboard.slots', 'locked', true);
    IF v_waiting AND v_free > 0
       AND blackboard.return_held(p_session_id, 'limit', p_limit_id::text, p_key, NULL, v_free) < v_free THEN
        PERFORM blackboard.forget_waiting(p_session_id, p_limit_id, p_key);
    END IF;
END
$$;

-- The caller has the usage row locked: nobody can be holding a task for it just now.
CREATE FUNCTION blackboard.forget_waiting(p_session_id uuid, p_limit_id uuid, p_key text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_nestloop = on SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
BEGIN
    UPDATE blackboard.limit_usage u SET waiting = false
    WHERE u.session_id = p_session_id AND u.limit_id = p_limit_id AND u.key = p_key
      AND NOT EXISTS (SELECT FROM blackboard.tasks t
                      WHERE t.session_id = p_session_id AND t.status = 'held' AND t.held ->> 'code' = 'limit'
                        AND coalesce(t.held ->> 'limit', t.held ->> 'type', '') = p_limit_id::text
                        AND coalesce(t.held ->> 'key', '') = p_key);
END
$$;

-- Tasks stopped running: their slots come back, counter by counter in the order in which claims lock them. Called by
-- the history trigger, for tasks marked as limited only.
CREATE FUNCTION blackboard.free_slots(p_session_ids uuid[], p_ids uuid[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_nestloop = on SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    v_freed record;
BEGIN
    FOR v_freed IN
        WITH freed AS (
            DELETE FROM blackboard.task_slots s USING unnest(p_session_ids, p_ids) g (session_id, id)
            WHERE s.session_id = g.session_id AND s.task_id = g.id
            RETURNING s.session_id, s.limit_id, s.key)
        SELECT session_id, limit_id, key, count(*)::integer AS slots FROM freed GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    LOOP
        PERFORM blackboard.give_slots_back(v_freed.session_id, v_freed.limit_id, v_freed.key, v_freed.slots);
    END LOOP;
END
$$;

CREATE FUNCTION blackboard.free_slots_of_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM blackboard.free_slots(array_agg(o.session_id), array_agg(o.id)) FROM old_rows o
    WHERE o.limited AND o.status = 'running' HAVING count(*) > 0;
    RETURN NULL;
END
$$;
CREATE TRIGGER free_slots_of_deleted AFTER DELETE ON blackboard.tasks REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.free_slots_of_deleted();

-- -------------------------------------------------------------------------------------------- claims through gates

-- Which of these tasks, in their order and at most p_max, may run now: their slots and tokens are taken. Those of a
-- paused type or of a full limit are held, those without a token are scheduled for a later window (moved counts them);
-- busy ones fall under a counter that somebody else is just using, and stay as they are. at is when: after the counters
-- were locked, so that of two that waited for each other the later belongs to the later window. The caller has the rows
-- locked.
CREATE FUNCTION blackboard.gate_tasks(
    p_session_id uuid, p_ids uuid[], p_max integer, p_now timestamptz,
    OUT admitted uuid[], OUT busy uuid[], OUT moved integer, OUT at timestamptz
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_ids uuid[] := p_ids;
    v_paused text[];
    -- The counters that the tasks fall under, by number.
    v_limits uuid[];
    v_keys text[];
    v_missing uuid[];
    v_locked bigint[];
    v_is_rate boolean[];
    v_free integer[];
    v_taken integer[];
    v_waits boolean[];
    v_deferred integer[];
    v_windows timestamptz[];
    v_used integer[];
    v_counts integer[];
    v_periods interval[];
    v_counter record;
    v_task record;
    v_i integer;
    v_full integer;
    v_busy boolean;
    v_passed bigint;
    v_slot_tasks uuid[] := '{}';
    v_slot_counters integer[] := '{}';
    v_held uuid[] := '{}';
    v_held_by integer[] := '{}';
    v_later uuid[] := '{}';
    v_later_by integer[] := '{}';
    v_later_at timestamptz[] := '{}';
BEGIN
    admitted := '{}';
    busy := '{}';
    moved := 0;
    at := p_now;
    -- The lock lets a pause end only after what it held can be seen.
    SELECT array_agg(x.name) INTO v_paused FROM (
        SELECT p.name FROM blackboard.pauses p
        WHERE p.session_id = p_session_id AND p.kind = 'type' AND p.resumed_at IS NULL
          AND p.name IN (SELECT t.type FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = ANY (p_ids))
        FOR SHARE) x;
    IF v_paused IS NOT NULL THEN
        SELECT array_agg(o.id ORDER BY o.n) INTO v_ids
        FROM unnest(p_ids) WITH ORDINALITY o (id, n)
        JOIN blackboard.tasks t ON t.session_id = p_session_id AND t.id = o.id
        WHERE t.type <> ALL (v_paused);
        UPDATE blackboard.tasks t
        SET status = 'held', position = NULL,
            held = jsonb_build_object('code', 'paused', 'type', t.type, 'position', t.position)
        WHERE t.session_id = p_session_id AND t.id = ANY (p_ids) AND t.type = ANY (v_paused);
        GET DIAGNOSTICS moved = ROW_COUNT;
        IF v_ids IS NULL THEN
            RETURN;
        END IF;
    END IF;

    SELECT array_agg(n.limit_id ORDER BY n.limit_id, n.key), array_agg(n.key ORDER BY n.limit_id, n.key)
    INTO v_limits, v_keys
    FROM (SELECT DISTINCT m.limit_id, m.key FROM blackboard.task_limits m
          WHERE m.session_id = p_session_id AND m.task_id = ANY (v_ids)) n;
    IF v_limits IS NULL THEN
        admitted := v_ids[1 : p_max];
        RETURN;
    END IF;

    -- First use of a key. Nobody waits for somebody else's insertion: where two meet, one finds its tasks busy.
    SELECT array_agg(DISTINCT n.limit_id) INTO v_missing FROM unnest(v_limits, v_keys) n (limit_id, key)
    WHERE NOT EXISTS (SELECT FROM blackboard.limit_usage u
                      WHERE u.session_id = p_session_id AND u.limit_id = n.limit_id AND u.key = n.key);
    IF v_missing IS NOT NULL THEN
        SELECT array_agg(l.id) INTO v_missing FROM (
            SELECT l.id FROM blackboard.limits l
            WHERE l.session_id = p_session_id AND l.id = ANY (v_missing) AND l.removed_at IS NULL
            ORDER BY l.id FOR KEY SHARE) l;
        INSERT INTO blackboard.limit_usage (session_id, limit_id, key, window_started_at)
        SELECT p_session_id, n.limit_id, n.key, p_now FROM unnest(v_limits, v_keys) n (limit_id, key)
        WHERE n.limit_id = ANY (v_missing)
          AND CASE WHEN EXISTS (SELECT FROM blackboard.limit_usage u WHERE u.session_id = p_session_id
                                  AND u.limit_id = n.limit_id AND u.key = n.key) THEN false
                   ELSE pg_try_advisory_xact_lock(hashtextextended('blackboard limit ' || n.limit_id || n.key, 0)) END
        ON CONFLICT DO NOTHING;
    END IF;
    IF current_setting('blackboard.slots', true) = 'locked' THEN
        SELECT array_agg(x.i) INTO v_locked FROM (
            SELECT n.i FROM unnest(v_limits, v_keys) WITH ORDINALITY n (limit_id, key, i)
            JOIN blackboard.limit_usage u
              ON u.session_id = p_session_id AND u.limit_id = n.limit_id AND u.key = n.key
            ORDER BY n.i FOR UPDATE OF u SKIP LOCKED) x;
    ELSE
        SELECT array_agg(x.i) INTO v_locked FROM (
            SELECT n.i FROM unnest(v_limits, v_keys) WITH ORDINALITY n (limit_id, key, i)
            JOIN blackboard.limit_usage u
              ON u.session_id = p_session_id AND u.limit_id = n.limit_id AND u.key = n.key
            ORDER BY n.i FOR UPDATE OF u) x;
        PERFORM set_config('blackboard.slots', 'locked', true);
    END IF;

    -- Read after they were locked: in another statement, hence as they are now.
    at := greatest(p_now, blackboard.now());
    v_taken := array_fill(0, ARRAY[cardinality(v_limits)]);
    v_waits := array_fill(false, ARRAY[cardinality(v_limits)]);
    v_free := array_fill(NULL::integer, ARRAY[cardinality(v_limits)]);
    v_is_rate := v_waits;
    v_deferred := v_taken;
    v_used := v_taken;
    v_counts := v_taken;
    v_windows := array_fill(NULL::timestamptz, ARRAY[cardinality(v_limits)]);
    v_periods := array_fill(NULL::interval, ARRAY[cardinality(v_limits)]);
    FOR v_counter IN
        SELECT n.i, u.running, u.window_started_at, u.used, u.deferred, l.kind, l.max_running, l.rate_count,
               l.rate_period
        FROM unnest(v_limits, v_keys) WITH ORDINALITY n (limit_id, key, i)
        JOIN blackboard.limit_usage u ON u.session_id = p_session_id AND u.limit_id = n.limit_id AND u.key = n.key
        JOIN blackboard.limits l ON l.session_id = p_session_id AND l.id = n.limit_id
        WHERE n.i = ANY (v_locked)
    LOOP
        v_i := v_counter.i;
        IF v_counter.kind = 'concurrency' THEN
            v_free[v_i] := v_counter.max_running - v_counter.running;
        ELSE
            v_passed := greatest(floor(extract(epoch FROM at - v_counter.window_started_at)
                                       / extract(epoch FROM v_counter.rate_period))::bigint, 0);
            v_is_rate[v_i] := true;
            v_counts[v_i] := v_counter.rate_count;
            v_periods[v_i] := v_counter.rate_period;
            v_windows[v_i] := v_counter.window_started_at + v_passed * v_counter.rate_period;
            v_used[v_i] := CASE WHEN v_passed = 0 THEN v_counter.used ELSE 0 END;
            v_deferred[v_i] := greatest(v_counter.deferred - v_passed * v_counter.rate_count, 0);
            v_free[v_i] := v_counter.rate_count - v_used[v_i];
        END IF;
    END LOOP;

    FOR v_task IN
        SELECT o.id, array_agg(c.i ORDER BY c.i) FILTER (WHERE c.i IS NOT NULL) AS counters
        FROM unnest(v_ids) WITH ORDINALITY o (id, n)
        LEFT JOIN blackboard.task_limits m ON m.session_id = p_session_id AND m.task_id = o.id
        LEFT JOIN unnest(v_limits, v_keys) WITH ORDINALITY c (limit_id, key, i)
          ON c.limit_id = m.limit_id AND c.key = m.key
        GROUP BY o.id, o.n ORDER BY o.n
    LOOP
        EXIT WHEN cardinality(admitted) >= p_max;
        v_full := NULL;
        v_busy := false;
        FOREACH v_i IN ARRAY coalesce(v_task.counters, '{}') LOOP
            IF v_free[v_i] IS NULL THEN
                v_busy := true;
            ELSIF v_free[v_i] <= 0 AND (v_full IS NULL OR v_is_rate[v_full]) THEN
                v_full := v_i;
            END IF;
        END LOOP;
        IF v_full IS NULL AND v_busy THEN
            busy := busy || v_task.id;
        ELSIF v_full IS NULL THEN
            admitted := admitted || v_task.id;
            FOREACH v_i IN ARRAY coalesce(v_task.counters, '{}') LOOP
                v_free[v_i] := v_free[v_i] - 1;
                v_taken[v_i] := v_taken[v_i] + 1;
                IF NOT v_is_rate[v_i] THEN
                    v_slot_tasks := v_slot_tasks || v_task.id;
                    v_slot_counters := v_slot_counters || v_i;
                END IF;
            END LOOP;
        ELSIF v_is_rate[v_full] THEN
            v_later := v_later || v_task.id;
            v_later_by := v_later_by || v_full;
            v_later_at := v_later_at
                || (v_windows[v_full] + v_periods[v_full] * (1 + v_deferred[v_full] / v_counts[v_full]));
            v_deferred[v_full] := v_deferred[v_full] + 1;
        ELSE
            v_held := v_held || v_task.id;
            v_held_by := v_held_by || v_full;
            v_waits[v_full] := true;
        END IF;
    END LOOP;

    INSERT INTO blackboard.task_slots (session_id, task_id, limit_id, key)
    SELECT p_session_id, s.id, v_limits[s.i], v_keys[s.i] FROM unnest(v_slot_tasks, v_slot_counters) s (id, i);
    UPDATE blackboard.limit_usage u
    SET running = u.running + CASE WHEN c.is_rate THEN 0 ELSE c.taken END, waiting = u.waiting OR c.waits,
        window_started_at = coalesce(c.started_at, u.window_started_at),
        used = CASE WHEN c.is_rate THEN c.used + c.taken ELSE 0 END, deferred = c.deferred
    FROM unnest(v_limits, v_keys, v_is_rate, v_taken, v_waits, v_windows, v_used, v_deferred, v_free)
             c (limit_id, key, is_rate, taken, waits, started_at, used, deferred, free)
    WHERE u.session_id = p_session_id AND u.limit_id = c.limit_id AND u.key = c.key AND c.free IS NOT NULL
      AND (c.taken > 0 OR c.waits OR c.is_rate);
    IF v_held <> '{}' THEN
        UPDATE blackboard.tasks t
        SET status = 'held', position = NULL,
            held = jsonb_build_object('code', 'limit', 'limit', l.id, 'name', l.name, 'key', v_keys[h.i],
                                      'position', t.position)
        FROM unnest(v_held, v_held_by) h (id, i)
        JOIN blackboard.limits l ON l.session_id = p_session_id AND l.id = v_limits[h.i]
        WHERE t.session_id = p_session_id AND t.id = h.id;
    END IF;
    IF v_later <> '{}' THEN
        UPDATE blackboard.tasks t
        SET status = 'scheduled', position = NULL, run_at = h.at,
            held = jsonb_build_object('code', 'rate', 'limit', l.id, 'name', l.name, 'key', v_keys[h.i])
        FROM unnest(v_later, v_later_by, v_later_at) h (id, i, at)
        JOIN blackboard.limits l ON l.session_id = p_session_id AND l.id = v_limits[h.i]
        WHERE t.session_id = p_session_id AND t.id = h.id;
    END IF;
    moved := moved + cardinality(v_held) + cardinality(v_later);
END
$$;

-- Up to p_limit tasks that are ready for the agent, in the order in which they are claimed, locked; pick_held says what
-- the lock_timeout is for. Must use tasks_assigned and tasks_ready.
CREATE FUNCTION blackboard.pick_ready(
    p_session_id uuid, p_agent_id text, p_capabilities text[], p_paused text[], p_busy uuid[], p_limit integer,
    p_now timestamptz
) RETURNS uuid[]
LANGUAGE plpgsql
SET lock_timeout = '20ms'
AS $$
DECLARE
    v_ids uuid[];
    v_more uuid[];
    v_below smallint;
    v_priority smallint;
    v_capability text;
BEGIN
    BEGIN
        SELECT array_agg(x.id) INTO v_ids FROM (
            SELECT t.id FROM blackboard.tasks t
            WHERE t.session_id = p_session_id AND t.assigned_to = p_agent_id AND t.status = 'assigned'
              AND t.capability <> ALL (p_paused) AND t.id <> ALL (p_busy)
              AND (t.expires_at IS NULL OR t.expires_at > p_now)
            ORDER BY t.priority DESC, t.position LIMIT p_limit FOR UPDATE SKIP LOCKED) x;
        v_below := 11;
        WHILE coalesce(cardinality(v_ids), 0) < p_limit LOOP
            SELECT max(h.priority) INTO v_priority
            FROM unnest(p_capabilities) c (capability),
                 LATERAL (SELECT t.priority FROM blackboard.tasks t
                          WHERE t.session_id = p_session_id AND t.capability = c.capability AND t.status = 'pending'
                            AND t.priority < v_below
                          ORDER BY t.priority DESC LIMIT 1) h;
            EXIT WHEN v_priority IS NULL;
            FOREACH v_capability IN ARRAY p_capabilities LOOP
                SELECT array_agg(x.id) INTO v_more FROM (
                    SELECT t.id FROM blackboard.tasks t
                    WHERE t.session_id = p_session_id AND t.capability = v_capability AND t.priority = v_priority
                      AND t.status = 'pending' AND t.id <> ALL (p_busy)
                      AND (t.expires_at IS NULL OR t.expires_at > p_now)
                    ORDER BY t.position LIMIT p_limit - coalesce(cardinality(v_ids), 0) FOR UPDATE SKIP LOCKED) x;
                v_ids := v_ids || v_more;
                EXIT WHEN cardinality(v_ids) >= p_limit;
            END LOOP;
            v_below := v_priority;
        END LOOP;
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
        RETURN NULL;
    END;
    RETURN v_ids;
END
$$;

-- What claim_tasks does, where something may hold tasks back. Looks at a bounded number of candidates.
CREATE FUNCTION blackboard.claim_gated(
    p_session_id uuid, p_agent_id text, p_capabilities text[], p_lease_id uuid, p_claim_id uuid, p_limit integer,
    p_now timestamptz
) RETURNS SETOF blackboard.tasks
LANGUAGE plpgsql
AS $$
DECLARE
    v_left integer := p_limit;
    v_looked integer := 0;
    v_batch integer := least(p_limit, 500);
    v_capabilities text[];
    v_paused text[];
    v_busy uuid[] := '{}';
    v_ids uuid[];
    v_gate record;
    v_pulled boolean := false;
BEGIN
    PERFORM blackboard.tend_gates(p_session_id, p_now);
    SELECT coalesce(array_agg(p.name), '{}') INTO v_paused FROM blackboard.pauses p
    WHERE p.session_id = p_session_id AND p.kind = 'capability' AND p.resumed_at IS NULL;
    SELECT coalesce(array_agg(DISTINCT c.name), '{}') INTO v_capabilities
    FROM unnest(p_capabilities || ''::text) c (name)
    WHERE c.name <> ALL (v_paused);
    WHILE v_left > 0 AND v_looked < 2000 LOOP
        v_ids := blackboard.pick_ready(p_session_id, p_agent_id, v_capabilities, v_paused, v_busy, v_batch, p_now);
        IF v_ids IS NULL THEN
            -- Nothing is ready: is there something held whose slot was freed for a task that nobody came for?
            EXIT WHEN v_pulled OR NOT blackboard.pull_held(p_session_id, v_capabilities, v_left);
            v_pulled := true;
            CONTINUE;
        END IF;
        SELECT * INTO v_gate FROM blackboard.gate_tasks(p_session_id, v_ids, v_left, p_now);
        RETURN QUERY
        WITH claimed AS (
            UPDATE blackboard.tasks t
            SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
                lease_id = p_lease_id, claim_id = p_claim_id, started_at = v_gate.at,
                deadline_at = v_gate.at + t.timeout, progress = NULL, limited = true
            FROM unnest(v_gate.admitted) a (id) WHERE t.session_id = p_session_id AND t.id = a.id
            RETURNING t.*)
        SELECT c.* FROM claimed c ORDER BY array_position(v_gate.admitted, c.id);
        v_left := v_left - cardinality(v_gate.admitted);
        v_busy := v_busy || v_gate.busy;
        v_looked := v_looked + cardinality(v_ids);
        IF v_gate.admitted = '{}' THEN
            v_batch := least(v_batch * 4, 500);
        ELSE
            v_batch := least(v_left, 500);
        END IF;
    END LOOP;
END
$$;

-- Whether this one task may be claimed by the agent now; if so, its slots are taken and its row is locked.
CREATE FUNCTION blackboard.admit_task(p_session_id uuid, p_id uuid, p_agent_id text, p_now timestamptz) RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    v_capability text;
    v_gate record;
BEGIN
    PERFORM blackboard.tend_gates(p_session_id, p_now);
    SELECT t.capability INTO v_capability FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.id = p_id
      AND (t.status = 'pending' OR (t.status = 'assigned' AND t.assigned_to = p_agent_id))
      AND (t.expires_at IS NULL OR t.expires_at > p_now)
    FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM 1 FROM blackboard.pauses p WHERE p.session_id = p_session_id AND p.kind = 'capability'
      AND p.name = v_capability AND p.resumed_at IS NULL;
    IF FOUND THEN
        RETURN false;
    END IF;
    SELECT * INTO v_gate FROM blackboard.gate_tasks(p_session_id, ARRAY[p_id], 1, p_now);
    RETURN v_gate.admitted <> '{}';
END
$$;

-- Held tasks that these capabilities can do, of limits that have slots free, become ready; whether there were any.
CREATE FUNCTION blackboard.pull_held(p_session_id uuid, p_capabilities text[], p_limit integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_usage record;
    v_capability text;
    v_left integer;
    v_total integer := 0;
BEGIN
    FOR v_usage IN
        SELECT u.limit_id, u.key, l.max_running - u.running AS free
        FROM blackboard.limit_usage u JOIN blackboard.limits l ON l.session_id = u.session_id AND l.id = u.limit_id
        WHERE u.session_id = p_session_id AND u.waiting AND l.removed_at IS NULL AND u.running < l.max_running
        ORDER BY random() LIMIT 50
    LOOP
        v_left := least(v_usage.free, p_limit - v_total);
        FOREACH v_capability IN ARRAY p_capabilities LOOP
            v_left := v_left - blackboard.return_held(p_session_id, 'limit', v_usage.limit_id::text, v_usage.key,
                                                      v_capability, v_left);
            EXIT WHEN v_left <= 0;
        END LOOP;
        IF v_left = least(v_usage.free, p_limit - v_total) THEN
            PERFORM 1 FROM blackboard.limit_usage u
            WHERE u.session_id = p_session_id AND u.limit_id = v_usage.limit_id AND u.key = v_usage.key
            FOR UPDATE SKIP LOCKED;
            IF FOUND THEN
                PERFORM set_config('blackboard.slots', 'locked', true);
                PERFORM blackboard.forget_waiting(p_session_id, v_usage.limit_id, v_usage.key);
            END IF;
        END IF;
        v_total := v_total + least(v_usage.free, p_limit - v_total) - v_left;
        EXIT WHEN v_total >= p_limit;
    END LOOP;
    RETURN v_total > 0;
END
$$;

-- For look_for_tasks: whether claims leave this capability out, and whether they could pull something that is held.
CREATE FUNCTION blackboard.capability_paused(p_session_id uuid, p_capability text) RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM blackboard.pauses p WHERE p.session_id = p_session_id AND p.kind = 'capability'
                     AND p.name = p_capability AND p.resumed_at IS NULL);
END
$$;

CREATE FUNCTION blackboard.slots_left(p_session_id uuid) RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM blackboard.limit_usage u
                   JOIN blackboard.limits l ON l.session_id = u.session_id AND l.id = u.limit_id
                   WHERE u.session_id = p_session_id AND u.waiting AND l.removed_at IS NULL
                     AND u.running < l.max_running)
        OR EXISTS (SELECT FROM blackboard.limits l WHERE l.session_id = p_session_id AND l.removed_at IS NOT NULL)
        OR EXISTS (SELECT FROM blackboard.pauses p WHERE p.session_id = p_session_id AND p.resumed_at IS NOT NULL);
END
$$;

-- --------------------------------------------------------------------------------- what has to be done now and then

CREATE TABLE blackboard.upkeep (
    session_id uuid CONSTRAINT upkeep_pkey PRIMARY KEY,
    aged_at timestamptz NOT NULL DEFAULT blackboard.now()
) WITH (fillfactor = 50);

-- By every claim in a gated session: goes on with what a resume or a removal has not finished, and ages what waits.
CREATE FUNCTION blackboard.tend_gates(p_session_id uuid, p_now timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_id uuid;
    v_step interval;
    v_aged_at timestamptz;
BEGIN
    FOR v_id IN SELECT p.id FROM blackboard.pauses p WHERE p.session_id = p_session_id AND p.resumed_at IS NOT NULL LOOP
        PERFORM blackboard.retire_pause(p_session_id, v_id, 200);
    END LOOP;
    FOR v_id IN SELECT l.id FROM blackboard.limits l WHERE l.session_id = p_session_id AND l.removed_at IS NOT NULL LOOP
        PERFORM blackboard.retire_limit(p_session_id, v_id, 200);
    END LOOP;
    SELECT s.ageing INTO v_step FROM blackboard.sessions s WHERE s.id = p_session_id;
    IF v_step IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO blackboard.upkeep (session_id, aged_at) VALUES (p_session_id, '-infinity') ON CONFLICT DO NOTHING;
    SELECT u.aged_at INTO v_aged_at FROM blackboard.upkeep u WHERE u.session_id = p_session_id FOR UPDATE SKIP LOCKED;
    IF v_aged_at <= p_now - least(v_step / 4, interval '10 seconds') OR v_aged_at > p_now THEN
        PERFORM blackboard.age_tasks(p_session_id, v_step, p_now, 1000);
        UPDATE blackboard.upkeep SET aged_at = p_now WHERE session_id = p_session_id;
    END IF;
END
$$;

-- What has waited for p_step gains a step of priority for each such time, and a new place behind those that have it
-- already. Looks at the oldest p_limit of what is ready, and as many of what limits hold.
CREATE FUNCTION blackboard.age_tasks(p_session_id uuid, p_step interval, p_now timestamptz, p_limit integer)
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_nestloop = on SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    v_capability text;
    v_ids uuid[];
    v_aged integer := 0;
    v_got integer;
BEGIN
    SELECT t.capability INTO v_capability FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.status = 'pending' ORDER BY t.capability LIMIT 1;
    WHILE FOUND AND v_aged < p_limit LOOP
        FOR v_priority IN REVERSE 9 .. 0 LOOP
            SELECT array_agg(f.id) INTO v_ids FROM (
                SELECT t.id, greatest(t.created_at, t.run_at, t.aged_at) AS since FROM blackboard.tasks t
                WHERE t.session_id = p_session_id AND t.capability = v_capability AND t.priority = v_priority
                  AND t.status = 'pending'
                ORDER BY t.position LIMIT p_limit - v_aged) f
            WHERE f.since <= p_now - p_step;
            CONTINUE WHEN v_ids IS NULL;
            WITH old AS MATERIALIZED (
                SELECT t.id, greatest(t.created_at, t.run_at, t.aged_at) AS since FROM blackboard.tasks t
                WHERE t.session_id = p_session_id AND t.id = ANY (v_ids) AND t.status = 'pending'
                ORDER BY t.position FOR UPDATE SKIP LOCKED
            ), steps AS (
                SELECT o.id, o.since, floor(extract(epoch FROM p_now - o.since) / extract(epoch FROM p_step)) AS steps,
                       nextval('blackboard.task_positions') AS position
                FROM old o)
            UPDATE blackboard.tasks t
            SET priority = least(10, t.priority + s.steps)::smallint, aged_at = s.since + s.steps * p_step,
                position = s.position
            FROM steps s WHERE t.session_id = p_session_id AND t.id = s.id;
            GET DIAGNOSTICS v_got = ROW_COUNT;
            v_aged := v_aged + v_got;
            EXIT WHEN v_aged >= p_limit;
        END LOOP;
        SELECT t.capability INTO v_capability FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.status = 'pending' AND t.capability > v_capability
        ORDER BY t.capability LIMIT 1;
    END LOOP;
    UPDATE blackboard.tasks t
    SET priority = least(10, t.priority + s.steps)::smallint, aged_at = s.since + s.steps * p_step
    FROM (SELECT h.id, h.since, floor(extract(epoch FROM p_now - h.since) / extract(epoch FROM p_step)) AS steps
          FROM (SELECT w.id, coalesce(w.aged_at, w.created_at) AS since FROM blackboard.tasks w
                WHERE w.session_id = p_session_id AND w.status = 'held' AND w.priority < 10
                  AND w.held ->> 'code' = 'limit' AND coalesce(w.aged_at, w.created_at) <= p_now - p_step
                LIMIT p_limit FOR UPDATE SKIP LOCKED) h) s
    WHERE t.session_id = p_session_id AND t.id = s.id;
    GET DIAGNOSTICS v_got = ROW_COUNT;
    RETURN v_aged + v_got;
END
$$;

-- Ageing and retention of a session; NULL leaves one as it is, interval '0' ends it.
CREATE FUNCTION blackboard.configure_session(p_session_id uuid, p_ageing interval, p_retention interval, p_actor text)
RETURNS blackboard.sessions
LANGUAGE plpgsql
AS $$
DECLARE
    v_session blackboard.sessions;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    UPDATE blackboard.sessions
    SET ageing = CASE WHEN p_ageing IS NULL THEN ageing WHEN p_ageing = interval '0' THEN NULL ELSE p_ageing END,
        retention = CASE WHEN p_retention IS NULL THEN retention WHEN p_retention = interval '0' THEN NULL
                         ELSE p_retention END,
        gated = gated OR coalesce(p_ageing > interval '0', false)
    WHERE id = p_session_id;
    PERFORM blackboard.refresh_gated(p_session_id);
    SELECT * INTO v_session FROM blackboard.sessions WHERE id = p_session_id;
    RETURN v_session;
END
$$;

-- --------------------------------------------------------------------------------------------- pause and resume

-- Tasks of this type, or that need this capability, are not handed out any more; what runs goes on.
CREATE FUNCTION blackboard.pause_tasks(
    p_session_id uuid, p_id uuid, p_kind text, p_name text, p_reason text, p_actor text
) RETURNS SETOF blackboard.pauses
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    INSERT INTO blackboard.pauses AS p (session_id, id, kind, name, reason, paused_by)
    VALUES (p_session_id, p_id, p_kind, p_name, p_reason, blackboard.current_actor())
    ON CONFLICT (session_id, kind, name) DO UPDATE
        SET resumed_at = NULL, reason = excluded.reason, paused_by = excluded.paused_by, paused_at = blackboard.now()
        WHERE p.resumed_at IS NOT NULL;
    RETURN QUERY SELECT p.* FROM blackboard.pauses p
                 WHERE p.session_id = p_session_id AND p.kind = p_kind AND p.name = p_name;
END
$$;

-- Moves up to p_batch ready tasks of a paused type out of the ready index; how many. Claims do the same with those
-- that they meet.
CREATE FUNCTION blackboard.hold_paused(p_session_id uuid, p_type text, p_batch integer) RETURNS integer
LANGUAGE plpgsql
AS $$
DECLARE
    v_count integer;
BEGIN
    PERFORM 1 FROM blackboard.pauses p
    WHERE p.session_id = p_session_id AND p.kind = 'type' AND p.name = p_type AND p.resumed_at IS NULL FOR SHARE;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    UPDATE blackboard.tasks t
    SET status = 'held', position = NULL,
        held = jsonb_build_object('code', 'paused', 'type', t.type, 'position', t.position)
    WHERE t.session_id = p_session_id AND t.id IN (
        SELECT w.id FROM blackboard.tasks w
        WHERE w.session_id = p_session_id AND w.status IN ('pending', 'assigned') AND w.type = p_type
        LIMIT p_batch FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END
$$;

-- Ends a pause; retire_pause brings back what it held. Returns its id, NULL if there is none.
CREATE FUNCTION blackboard.resume_tasks(p_session_id uuid, p_kind text, p_name text, p_actor text) RETURNS uuid
LANGUAGE plpgsql
AS $$
DECLARE
    v_id uuid;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    UPDATE blackboard.pauses p SET resumed_at = blackboard.now()
    WHERE p.session_id = p_session_id AND p.kind = p_kind AND p.name = p_name AND p.resumed_at IS NULL;
    SELECT p.id INTO v_id FROM blackboard.pauses p
    WHERE p.session_id = p_session_id AND p.kind = p_kind AND p.name = p_name;
    RETURN v_id;
END
$$;

-- Brings back up to p_batch tasks that an ended pause held; how many, or NULL when that was all and its row is gone.
CREATE FUNCTION blackboard.retire_pause(p_session_id uuid, p_id uuid, p_batch integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_pause blackboard.pauses;
    v_count integer := 0;
BEGIN
    SELECT * INTO v_pause FROM blackboard.pauses
    WHERE session_id = p_session_id AND id = p_id AND resumed_at IS NOT NULL FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF v_pause.kind = 'type' THEN
        v_count := blackboard.return_held(p_session_id, 'paused', v_pause.name, '', NULL, p_batch);
        IF v_count > 0 THEN
            RETURN v_count;
        END IF;
        PERFORM 1 FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.status = 'held' AND t.held ->> 'code' = 'paused'
          AND coalesce(t.held ->> 'limit', t.held ->> 'type', '') = v_pause.name LIMIT 1;
        IF FOUND THEN
            RETURN 0;
        END IF;
    END IF;
    DELETE FROM blackboard.pauses WHERE session_id = p_session_id AND id = p_id;
    RETURN NULL;
END
$$;

-- ------------------------------------------------------------------------------------------------- unique tasks

-- One row a key: whoever adds under it has that locked until the end of the transaction, at every isolation level.
CREATE TABLE blackboard.task_keys (
    session_id uuid NOT NULL,
    key text NOT NULL,
    task_id uuid NOT NULL,
    CONSTRAINT task_keys_pkey PRIMARY KEY (session_id, key)
);
-- Which tasks were added under a key. Not an index on tasks.unique_key: that would cost every claim and completion.
CREATE TABLE blackboard.keyed_tasks (
    session_id uuid NOT NULL,
    key text NOT NULL,
    task_id uuid NOT NULL,
    CONSTRAINT keyed_tasks_pkey PRIMARY KEY (session_id, key, task_id)
);
CREATE INDEX keyed_tasks_task ON blackboard.keyed_tasks (session_id, task_id);

-- For each new task the id under which it is to be found: its own, or that of the task that its
-- options.unique {key, window, states} says is the same. Locks the keys, in their order.
CREATE FUNCTION blackboard.unique_tasks(p_session_id uuid, p_ids uuid[], p_options jsonb[]) RETURNS uuid[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_ids uuid[] := p_ids;
    v_new record;
    v_found uuid;
    v_last_key text;
    v_last_id uuid;
    v_states text[];
BEGIN
    FOR v_new IN
        SELECT u.id, u.n, u.options #>> '{unique,key}' AS key, (u.options #>> '{unique,window}')::interval AS "window",
               u.options #> '{unique,states}' AS states
        FROM unnest(p_ids, p_options) WITH ORDINALITY u (id, options, n)
        WHERE u.options ? 'unique' ORDER BY 3, 2
    LOOP
        -- The same call again.
        CONTINUE WHEN EXISTS (SELECT FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = v_new.id);
        v_states := CASE WHEN jsonb_typeof(v_new.states) = 'array'
                         THEN array(SELECT jsonb_array_elements_text(v_new.states))
                         ELSE ARRAY['scheduled', 'blocked', 'awaiting_approval', 'held', 'pending', 'assigned',
                                    'running'] END;
        IF v_new.key IS NOT DISTINCT FROM v_last_key AND 'pending' = ANY (v_states) THEN
            v_ids[v_new.n] := v_last_id;
            CONTINUE;
        END IF;
        INSERT INTO blackboard.task_keys (session_id, key, task_id) VALUES (p_session_id, v_new.key, v_new.id)
        ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            PERFORM 1 FROM blackboard.task_keys k WHERE k.session_id = p_session_id AND k.key = v_new.key FOR UPDATE;
        END IF;
        SELECT t.id INTO v_found FROM blackboard.keyed_tasks k
        JOIN blackboard.tasks t ON t.session_id = k.session_id AND t.id = k.task_id
        WHERE k.session_id = p_session_id AND k.key = v_new.key AND t.status = ANY (v_states)
          AND (v_new."window" IS NULL OR t.created_at > blackboard.now() - v_new."window")
        ORDER BY t.created_at DESC LIMIT 1;
        IF FOUND THEN
            v_ids[v_new.n] := v_found;
        ELSE
            -- A transaction with an older snapshot will collide with this change, and not miss the new task.
            UPDATE blackboard.task_keys k SET task_id = v_new.id
            WHERE k.session_id = p_session_id AND k.key = v_new.key;
            INSERT INTO blackboard.keyed_tasks (session_id, key, task_id) VALUES (p_session_id, v_new.key, v_new.id);
        END IF;
        v_last_key := v_new.key;
        v_last_id := v_ids[v_new.n];
    END LOOP;
    RETURN v_ids;
END
$$;

-- add_tasks for tasks of which some are unique: returns for each the id under which it is to be found.
CREATE FUNCTION blackboard.add_unique_tasks(
    p_session_id uuid, p_ids uuid[], p_types text[], p_capabilities text[], p_priorities smallint[],
    p_parameters jsonb[], p_options jsonb[], p_actor text
) RETURNS uuid[]
LANGUAGE plpgsql
AS $$
DECLARE
    v_ids uuid[];
BEGIN
    PERFORM blackboard.act_as(p_actor);
    v_ids := blackboard.unique_tasks(p_session_id, p_ids, p_options);
    PERFORM blackboard.add_tasks(p_session_id, n.ids, n.types, n.capabilities, n.priorities, n.parameters, n.options,
                                 p_actor)
    FROM (SELECT array_agg(x.id ORDER BY x.n) AS ids, array_agg(x.type ORDER BY x.n) AS types,
                 array_agg(x.capability ORDER BY x.n) AS capabilities, array_agg(x.priority ORDER BY x.n) AS priorities,
                 array_agg(x.parameters ORDER BY x.n) AS parameters, array_agg(x.options ORDER BY x.n) AS options
          FROM unnest(p_ids, p_types, p_capabilities, p_priorities, p_parameters, p_options, v_ids)
                   WITH ORDINALITY AS x (id, type, capability, priority, parameters, options, found, n)
          WHERE x.id = x.found) n
    WHERE n.ids IS NOT NULL;
    RETURN v_ids;
END
$$;

-- -------------------------------------------------------------------------------------------------------- prune

-- Of the p_scan tasks after p_after (NULL: from the first), in order of id: those that ended with one of the statuses
-- before p_before go, with their late results and their edges; only counted with p_dry_run. A task that an unfinished
-- one depends on stays. next is where to go on, NULL at the end. Owner only.
CREATE FUNCTION blackboard.prune_tasks(
    p_session_id uuid, p_before timestamptz, p_statuses text[], p_after uuid, p_scan integer, p_dry_run boolean,
    p_actor text, OUT next uuid, OUT pruned integer
)
LANGUAGE plpgsql
AS $$
DECLARE
    v_seen uuid[];
    v_ids uuid[];
BEGIN
    PERFORM blackboard.act_as(p_actor);
    SELECT array_agg(w.id ORDER BY w.id) INTO v_seen FROM (
        SELECT t.id FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND (p_after IS NULL OR t.id > p_after)
        ORDER BY t.id LIMIT p_scan) w;
    next := CASE WHEN cardinality(v_seen) = p_scan THEN v_seen[p_scan] END;
    SELECT array_agg(t.id ORDER BY t.id) INTO v_ids FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.id = ANY (v_seen) AND t.completed_at < p_before
      AND t.status = ANY (p_statuses)
      AND NOT (t.has_dependants AND EXISTS (
              SELECT FROM blackboard.task_dependencies d
              JOIN blackboard.tasks c ON c.session_id = d.session_id AND c.id = d.task_id
              WHERE d.session_id = p_session_id AND d.depends_on_id = t.id AND c.completed_at IS NULL));
    pruned := coalesce(cardinality(v_ids), 0);
    IF p_dry_run OR v_ids IS NULL THEN
        RETURN;
    END IF;
    -- In another statement than the look, so that what was redriven meanwhile is seen and stays.
    SELECT array_agg(w.id) INTO v_ids FROM (
        SELECT t.id FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.id = ANY (v_ids) AND t.completed_at < p_before
          AND t.status = ANY (p_statuses)
        ORDER BY t.id FOR UPDATE SKIP LOCKED) w;
    -- Not in a SET clause: only a superuser may name a setting of our own there.
    PERFORM pg_catalog.set_config('blackboard.pruning', 'on', true);
    DELETE FROM blackboard.task_dependencies d
    WHERE d.session_id = p_session_id AND (d.depends_on_id = ANY (v_ids) OR d.task_id = ANY (v_ids));
    DELETE FROM blackboard.late_results r WHERE r.session_id = p_session_id AND r.task_id = ANY (v_ids);
    WITH gone AS (
        DELETE FROM blackboard.keyed_tasks k WHERE k.session_id = p_session_id AND k.task_id = ANY (v_ids)
        RETURNING k.key, k.task_id)
    DELETE FROM blackboard.task_keys k USING gone g
    WHERE k.session_id = p_session_id AND k.key = g.key AND k.task_id = g.task_id;
    DELETE FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = ANY (v_ids);
    PERFORM pg_catalog.set_config('blackboard.pruning', '', true);
    pruned := coalesce(cardinality(v_ids), 0);
    DELETE FROM blackboard.limit_usage u
    WHERE u.session_id = p_session_id AND u.key <> '' AND u.running = 0 AND NOT u.waiting
      AND u.window_started_at < p_before AND u.deferred = 0;
END
$$;

-- ---------------------------------------------------------------------------------------------------------- why

CREATE FUNCTION blackboard.reason(p_code text, p_message text, p_details jsonb DEFAULT '{}') RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT pg_catalog.jsonb_build_object('code', p_code, 'message', p_message, 'details', p_details) $$;

-- Why a task that is ready, held or scheduled does not run: what would hold it if somebody came for it now.
-- What other rooms hold says so itself, in held {code, message, ...}.
CREATE FUNCTION blackboard.why_held_back(p_task blackboard.tasks) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_now timestamptz := blackboard.now();
    v_reasons jsonb := '[]';
    v_row record;
    v_code text := p_task.held ->> 'code';
BEGIN
    FOR v_row IN
        SELECT p.* FROM blackboard.pauses p
        WHERE p.session_id = p_task.session_id AND p.resumed_at IS NULL
          AND ((p.kind = 'type' AND p.name = p_task.type) OR (p.kind = 'capability' AND p.name = p_task.capability))
        ORDER BY p.kind
    LOOP
        v_reasons := v_reasons || blackboard.reason('paused',
            format('Tasks %s %L are paused by %s since %s%s; resume them with `blackboard task resume --%s %s`.',
                   CASE v_row.kind WHEN 'type' THEN 'of type' ELSE 'that need' END, v_row.name, v_row.paused_by,
                   to_char(v_row.paused_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"'),
                   CASE WHEN v_row.reason <> '' THEN format(' (%s)', v_row.reason) ELSE '' END, v_row.kind, v_row.name),
            jsonb_build_object(v_row.kind, v_row.name, 'paused_by', v_row.paused_by, 'paused_at', v_row.paused_at,
                               'reason', v_row.reason));
    END LOOP;
    FOR v_row IN
        SELECT m.*, u.running, u.used, u.waiting,
               u.window_started_at + m.rate_period AS window_ends_at,
               u.window_started_at + m.rate_period > v_now AS in_window
        FROM blackboard.task_limits m
        LEFT JOIN blackboard.limit_usage u
          ON u.session_id = m.session_id AND u.limit_id = m.limit_id AND u.key = m.key
        WHERE m.session_id = p_task.session_id AND m.task_id = p_task.id ORDER BY m.name
    LOOP
        IF v_row.kind = 'concurrency'
           AND (v_row.running >= v_row.max_running OR (v_code = 'limit' AND p_task.held ->> 'limit' = v_row.limit_id::text))
        THEN
            v_reasons := v_reasons || blackboard.reason('limit',
                format('Limit %L%s: %s of %s are running; it comes back when one of them ends, or when the limit is raised.',
                       v_row.name, CASE WHEN v_row.key <> '' THEN format(' (key %L)', v_row.key) ELSE '' END,
                       v_row.running, v_row.max_running),
                jsonb_build_object('limit', v_row.name, 'key', nullif(v_row.key, ''), 'running', v_row.running,
                                   'max_running', v_row.max_running));
        ELSIF v_row.kind = 'rate'
              AND ((p_task.status <> 'scheduled' AND v_row.in_window AND v_row.used >= v_row.rate_count)
                   OR (v_code = 'rate' AND p_task.held ->> 'limit' = v_row.limit_id::text AND p_task.run_at > v_now))
        THEN
            v_reasons := v_reasons || blackboard.reason('rate',
                format('Limit %L%s: %s starts in %s are used up; it is tried again at %s.', v_row.name,
                       CASE WHEN v_row.key <> '' THEN format(' (key %L)', v_row.key) ELSE '' END,
                       v_row.rate_count, v_row.rate_period,
                       to_char(CASE WHEN v_code = 'rate' THEN p_task.run_at ELSE v_row.window_ends_at END
                               AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')),
                jsonb_build_object('limit', v_row.name, 'key', nullif(v_row.key, ''), 'used', v_row.used,
                                   'rate_count', v_row.rate_count, 'rate_period', v_row.rate_period,
                                   'run_at', CASE WHEN v_code = 'rate' THEN p_task.run_at
                                                  ELSE v_row.window_ends_at END));
        END IF;
    END LOOP;
    IF p_task.status = 'held' AND v_reasons = '[]' THEN
        v_reasons := v_reasons || CASE
            WHEN v_code IN ('limit', 'paused') THEN
                blackboard.reason(v_code, 'What held it has ended; the next claim in this session brings it back.',
                                  p_task.held - 'code')
            ELSE blackboard.reason(v_code, coalesce(p_task.held ->> 'message', format('It is held: %s.', v_code)),
                                   p_task.held - 'code' - 'message') END;
    END IF;
    RETURN v_reasons;
END
$$;

-- Who could take a task that is ready.
CREATE FUNCTION blackboard.why_nobody_took(p_task blackboard.tasks) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_member blackboard.members;
    v_present integer;
    v_before integer;
BEGIN
    IF p_task.status = 'assigned' THEN
        SELECT * INTO v_member FROM blackboard.members m
        WHERE m.session_id = p_task.session_id AND m.id = p_task.assigned_to;
        RETURN blackboard.reason('assigned',
            format('Only %s may take it, and %s%s.', p_task.assigned_to,
                   CASE WHEN v_member.id IS NULL THEN 'it has not joined this session: start it, or cancel the task'
                        WHEN v_member.left_at IS NOT NULL THEN 'it has left this session: let it join again'
                        WHEN NOT v_member.present THEN 'its process is not there: start it again'
                        ELSE 'it is there: it has not asked for more work yet' END,
                   CASE WHEN p_task.fallback_at IS NOT NULL
                        THEN format('; from %s on anybody may', to_char(p_task.fallback_at AT TIME ZONE 'UTC',
                                                                        'YYYY-MM-DD HH24:MI:SS"Z"'))
                        ELSE '' END),
            jsonb_build_object('agent_id', p_task.assigned_to, 'present', coalesce(v_member.present, false),
                               'member', v_member.id IS NOT NULL AND v_member.left_at IS NULL,
                               'fallback_at', p_task.fallback_at));
    END IF;
    SELECT count(*)::integer INTO v_present FROM blackboard.members m
    WHERE m.session_id = p_task.session_id AND m.present AND m.left_at IS NULL
      AND (p_task.capability = '' OR p_task.capability = ANY (m.capabilities));
    IF v_present = 0 THEN
        RETURN blackboard.reason('capability',
            CASE WHEN p_task.capability = '' THEN 'No agent is present in this session: start one.'
                 ELSE format('No agent that is present offers %L: start one that does, or let a present one declare it.',
                             p_task.capability) END,
            jsonb_build_object('capability', p_task.capability));
    END IF;
    SELECT count(*)::integer INTO v_before FROM (
        SELECT FROM blackboard.tasks t
        WHERE t.session_id = p_task.session_id AND t.capability = p_task.capability AND t.status = 'pending'
          AND (t.priority > p_task.priority OR (t.priority = p_task.priority AND t.position < p_task.position))
        LIMIT 1000) b;
    RETURN blackboard.reason('ready',
        format('Nothing holds it: %s before it, and %s present to take it.',
               CASE v_before WHEN 0 THEN 'no task is' WHEN 1 THEN '1 task is' WHEN 1000 THEN '1000 or more tasks are'
                             ELSE v_before || ' tasks are' END,
               CASE v_present WHEN 1 THEN '1 agent is' ELSE v_present || ' agents are' END),
        jsonb_build_object('tasks_before', v_before, 'agents_present', v_present));
END
$$;

-- What a task waits for, and what would end that: {status, reasons: [{code, message, details}]}. Also who runs it, or
-- how it ended.
CREATE FUNCTION blackboard.why_task(p_session_id uuid, p_id uuid) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_now timestamptz := blackboard.now();
    v_task blackboard.tasks;
    v_session blackboard.sessions;
    v_lease blackboard.leases;
    v_reasons jsonb := '[]';
    v_more jsonb;
BEGIN
    SELECT * INTO v_task FROM blackboard.tasks WHERE session_id = p_session_id AND id = p_id;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no task %s in this session.', p_id),
                                 jsonb_build_object('noun', 'task', 'id', p_id));
    END IF;
    SELECT * INTO v_session FROM blackboard.sessions WHERE id = p_session_id;
    IF v_task.completed_at IS NOT NULL THEN
        v_reasons := v_reasons || blackboard.reason(v_task.status,
            format('It was %s at %s%s%s%s', v_task.status,
                   to_char(v_task.completed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"'),
                   CASE WHEN v_task.status = 'completed' THEN ' by ' || v_task.assigned_to ELSE '' END,
                   CASE WHEN v_task.attempt > 0 THEN format(', attempt %s', v_task.attempt - v_task.released) ELSE '' END,
                   CASE WHEN v_task.error IS NOT NULL
                        THEN format(': %s%s', coalesce(nullif(v_task.error ->> 'message', ''), v_task.error ->> 'code',
                                                       'no reason was given'),
                                    CASE WHEN v_task.status IN ('failed', 'dead')
                                         THEN format('; start it over with `blackboard task redrive %s`.', p_id)
                                         ELSE '' END)
                        ELSE '.' END),
            jsonb_build_object('at', v_task.completed_at, 'agent_id', v_task.assigned_to, 'attempt', v_task.attempt,
                               'error', v_task.error));
    ELSIF v_task.status = 'running' THEN
        SELECT * INTO v_lease FROM blackboard.leases WHERE id = v_task.lease_id;
        v_reasons := v_reasons || blackboard.reason('running',
            format('%s runs it since %s (attempt %s of %s)%s.', v_task.assigned_to,
                   to_char(v_task.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"'),
                   v_task.attempt - v_task.released, v_task.max_attempts,
                   CASE WHEN v_lease.id IS NULL OR v_lease.lapsed_at IS NOT NULL
                        THEN '; its process went silent, and the next claim takes the task back'
                        WHEN v_lease.expires_at < v_now
                        THEN '; its process is late with its heartbeat' ELSE '' END),
            jsonb_build_object(
                'agent_id', v_task.assigned_to, 'since', v_task.started_at, 'attempt', v_task.attempt - v_task.released,
                'max_attempts', v_task.max_attempts, 'deadline_at', v_task.deadline_at, 'progress', v_task.progress,
                'lease', CASE WHEN v_lease.id IS NULL OR v_lease.lapsed_at IS NOT NULL THEN 'lapsed'
                              WHEN v_lease.expires_at < v_now THEN 'late' ELSE 'live' END,
                'lease_expires_at', v_lease.expires_at, 'host', v_lease.host, 'pid', v_lease.pid));
        IF v_task.cancel_requested THEN
            v_reasons := v_reasons || blackboard.reason('cancelling',
                'It was asked to stop; its holder sees that with its next progress report or its end.');
        END IF;
    ELSE
        IF v_session.status = 'paused' THEN
            v_reasons := v_reasons || blackboard.reason('paused',
                format('The session is paused; resume it with `blackboard session resume %s`.', v_session.name),
                jsonb_build_object('session', v_session.name));
        END IF;
        IF v_task.requires_approval AND v_task.approved_by IS NULL THEN
            v_reasons := v_reasons || blackboard.reason('approval',
                format('It waits for approval: `blackboard task approve %s`, or `reject`.', p_id));
        END IF;
        SELECT jsonb_agg(blackboard.reason('dependency',
                   format('Task %s (%s) must %s first; it is %s.', d.id, d.type,
                          CASE d.on_failure WHEN 'fail' THEN 'complete' ELSE 'end' END, d.status),
                   jsonb_build_object('id', d.id, 'type', d.type, 'status', d.status, 'on_failure', d.on_failure))
               ORDER BY d.id)
        INTO v_more
        FROM (SELECT p.id, p.type, p.status, e.on_failure FROM blackboard.task_dependencies e
              JOIN blackboard.tasks p ON p.session_id = e.session_id AND p.id = e.depends_on_id
              WHERE e.session_id = p_session_id AND e.task_id = p_id AND e.state = 'waiting'
              ORDER BY p.id LIMIT 20) d;
        v_reasons := v_reasons || coalesce(v_more, '[]');
        IF v_task.run_at > v_now AND v_task.held ->> 'code' IS DISTINCT FROM 'rate' THEN
            v_reasons := v_reasons || blackboard.reason('time',
                CASE WHEN v_task.attempt > 0
                     THEN format('Its last attempt failed (%s); the next one starts at %s or later.',
                                 coalesce(nullif(v_task.error ->> 'message', ''), v_task.error ->> 'code', 'handed back'),
                                 to_char(v_task.run_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"'))
                     ELSE format('It is scheduled for %s.',
                                 to_char(v_task.run_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')) END,
                jsonb_build_object('run_at', v_task.run_at, 'attempt', v_task.attempt, 'error', v_task.error));
        ELSIF v_task.status = 'scheduled' AND v_task.run_at <= v_now AND v_reasons = '[]' THEN
            v_reasons := v_reasons || blackboard.reason('ready', 'Its time has come: the next claim makes it ready.',
                                                        jsonb_build_object('run_at', v_task.run_at));
        END IF;
        IF v_task.status IN ('pending', 'assigned', 'held', 'scheduled') THEN
            v_reasons := v_reasons || blackboard.why_held_back(v_task);
        END IF;
        IF v_task.status IN ('pending', 'assigned') THEN
            v_more := blackboard.why_nobody_took(v_task);
            IF v_reasons = '[]' OR v_more ->> 'code' <> 'ready' THEN
                v_reasons := v_reasons || v_more;
            END IF;
        END IF;
    END IF;
    RETURN jsonb_build_object('status', v_task.status, 'reasons', v_reasons);
END
$$;

-- What runs as the owner and changes rows is for those who may work on the board, not for all who can connect:
-- `blackboard db grants` grants it to agents.
REVOKE EXECUTE ON FUNCTION
    blackboard.refresh_gated(uuid), blackboard.count_running(uuid, uuid),
    blackboard.pick_held(uuid, text, text, text, text, integer),
    blackboard.return_held(uuid, text, text, text, text, integer), blackboard.retire_limit(uuid, uuid, integer),
    blackboard.forget_waiting(uuid, uuid, text), blackboard.free_slots(uuid[], uuid[]),
    blackboard.gate_tasks(uuid, uuid[], integer, timestamptz),
    blackboard.pull_held(uuid, text[], integer), blackboard.tend_gates(uuid, timestamptz),
    blackboard.age_tasks(uuid, interval, timestamptz, integer), blackboard.retire_pause(uuid, uuid, integer),
    blackboard.unique_tasks(uuid, uuid[], jsonb[])
    FROM PUBLIC;

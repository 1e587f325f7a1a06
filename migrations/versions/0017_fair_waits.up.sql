-- What was started in time does not expire when it comes back; held tasks age from when they were ready; limits are counted
-- until that succeeds; windows of days are days of 24 hours; who looks is told of floors; joins at any isolation level;
-- ids are in order of time.

-- Limits that transactions under way when they were set may not have counted for; others: whose end is awaited, NULL until
-- somebody has looked.
CREATE TABLE blackboard.unsettled_limits (
    session_id uuid NOT NULL,
    limit_id uuid NOT NULL,
    others text[],
    PRIMARY KEY (session_id, limit_id),
    FOREIGN KEY (session_id, limit_id) REFERENCES blackboard.limits ON DELETE CASCADE
);

-- The transactions, but for this one, that may be claiming: a claim keeps its lock on the table to its end.
CREATE FUNCTION blackboard.users_of_tasks() RETURNS text[]
LANGUAGE sql VOLATILE
AS $$
    SELECT array(SELECT DISTINCT l.virtualtransaction FROM pg_catalog.pg_locks l
                 WHERE l.relation = 'blackboard.tasks'::regclass AND l.pid IS DISTINCT FROM pg_backend_pid())
$$;

CREATE FUNCTION blackboard.settle_limits(p_session_id uuid) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_limit record;
    v_counted integer := 0;
BEGIN
    -- An older snapshot does not show what was claimed since; and whoever has counters locked waits for no task.
    IF current_setting('transaction_isolation') <> 'read committed'
       OR current_setting('blackboard.slots', true) = 'locked' THEN
        RETURN 0;
    END IF;
    FOR v_limit IN
        SELECT u.limit_id, u.others FROM blackboard.unsettled_limits u
        WHERE u.session_id = p_session_id ORDER BY u.limit_id FOR UPDATE SKIP LOCKED
    LOOP
        IF v_limit.others IS NULL THEN
            v_limit.others := blackboard.users_of_tasks();
            UPDATE blackboard.unsettled_limits u SET others = v_limit.others
            WHERE u.session_id = p_session_id AND u.limit_id = v_limit.limit_id;
        END IF;
        CONTINUE WHEN v_limit.others && blackboard.users_of_tasks();
        -- Nobody is waited for: what is locked just now is counted another time.
        CONTINUE WHEN (
            SELECT count(*) FROM (
                SELECT FROM blackboard.tasks t
                WHERE t.session_id = p_session_id AND t.status = 'running' FOR UPDATE SKIP LOCKED) x)
            < (SELECT count(*) FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.status = 'running');
        v_counted := blackboard.count_running(p_session_id, v_limit.limit_id);
        DELETE FROM blackboard.unsettled_limits u WHERE u.session_id = p_session_id AND u.limit_id = v_limit.limit_id;
        EXIT WHEN v_counted > 0;
    END LOOP;
    RETURN v_counted;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.settle_limit(p_session_id uuid, p_limit_id uuid, p_patience interval) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_until timestamptz := clock_timestamp() + p_patience;
    v_others text[] := blackboard.users_of_tasks();
    v_counted integer;
BEGIN
    WHILE v_others && blackboard.users_of_tasks() LOOP
        IF clock_timestamp() > v_until THEN
            -- Claims go on to look for their end.
            UPDATE blackboard.unsettled_limits u SET others = v_others
            WHERE u.session_id = p_session_id AND u.limit_id = p_limit_id;
            PERFORM blackboard.count_running(p_session_id, p_limit_id);
            RETURN NULL;
        END IF;
        PERFORM pg_sleep(0.005);
    END LOOP;
    v_counted := blackboard.count_running(p_session_id, p_limit_id);
    DELETE FROM blackboard.unsettled_limits u WHERE u.session_id = p_session_id AND u.limit_id = p_limit_id;
    RETURN v_counted;
END
$$;

-- Ids of tasks that the database makes are in the order of their time, as those that clients make (UUIDv7).
CREATE FUNCTION blackboard.new_id() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
AS $$
    -- 48 bits of milliseconds, and the version: what a random id has for it is 0100, which becomes 0111.
    SELECT encode(set_bit(set_bit(overlay(
        uuid_send(gen_random_uuid()) PLACING
        substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
        52, 1), 53, 1), 'hex')::uuid
$$;
ALTER TABLE blackboard.tasks ALTER COLUMN id SET DEFAULT blackboard.new_id();
ALTER VIEW blackboard.agent_tasks ALTER COLUMN id SET DEFAULT blackboard.new_id();

-- A day of a window has 24 hours, wherever the database's time zone is.
ALTER FUNCTION blackboard.budget_reason(uuid, uuid) SET timezone = 'UTC';
ALTER FUNCTION blackboard.gate_tasks(uuid, uuid[], integer, timestamptz) SET timezone = 'UTC';
ALTER FUNCTION blackboard.history_spend_insert() SET timezone = 'UTC';
ALTER FUNCTION blackboard.why_held_back(blackboard.tasks) SET timezone = 'UTC';

-- Nobody but the board itself has a use for these.
REVOKE EXECUTE ON FUNCTION blackboard.free_slots(uuid[], uuid[]), blackboard.age_tasks(uuid, interval, timestamptz, integer),
    blackboard.tend_gates_now(uuid, timestamptz), blackboard.tend_gates_briefly(uuid, timestamptz),
    blackboard.try_counters(uuid, uuid[], text[]) FROM PUBLIC;

COMMENT ON FUNCTION blackboard.hint(uuid, text) IS
    'Not within functions that have xmlbinary = hex: their clients send the hint after the commit. The setting stands for a flag because only a superuser may name one of his own in a function.';
COMMENT ON FUNCTION blackboard.refuse_flow_change() IS
    'But within functions that have xmloption = document, which are those that run flows. The setting stands for a flag because only a superuser may name one of his own in a function.';

CREATE OR REPLACE FUNCTION blackboard.claim_above_floors(p_session_id uuid, p_agent_id text, p_capabilities text[], p_lease_id uuid, p_claim_id uuid, p_limit integer, p_now timestamp with time zone, p_floors jsonb) RETURNS SETOF blackboard.tasks
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_sort TO 'off'
    AS $$
DECLARE
    v_left integer := p_limit;
    v_got integer;
    v_below integer := 11;
    v_priority smallint;
    v_capability text;
    v_head text;
    v_floor bigint;
    v_floors jsonb := p_floors;
BEGIN
    WHILE v_left > 0 LOOP
        SELECT max(h.priority) INTO v_priority
        FROM unnest(p_capabilities) c (capability), generate_series(0, v_below - 1) q (priority),
             LATERAL (SELECT t.priority FROM blackboard.tasks t
                      WHERE t.session_id = p_session_id AND t.capability = c.capability
                        AND t.priority = q.priority::smallint AND t.status = 'pending'
                        AND t.position > coalesce((v_floors ->> (q.priority || ' ' || c.capability))::bigint, 0)
                      ORDER BY t.position LIMIT 1) h;
        EXIT WHEN v_priority IS NULL;
        FOREACH v_capability IN ARRAY p_capabilities LOOP
            v_head := v_priority || ' ' || v_capability;
            v_floor := coalesce((v_floors ->> v_head)::bigint, 0);
            RETURN QUERY
            WITH picked AS MATERIALIZED (
                SELECT t.session_id, t.id, t.position FROM blackboard.tasks t
                WHERE t.session_id = p_session_id AND t.capability = v_capability AND t.priority = v_priority
                  AND t.status = 'pending' AND t.position > v_floor
                  AND (t.expires_at IS NULL OR t.expires_at > p_now OR t.claim_id IS NOT NULL)
                ORDER BY t.position LIMIT v_left FOR UPDATE SKIP LOCKED
            ), highest AS MATERIALIZED (
                SELECT set_config('blackboard.floor', max(p.position)::text, true) FROM picked p HAVING count(*) > 0)
            UPDATE blackboard.tasks t
            SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
                lease_id = p_lease_id, claim_id = p_claim_id, started_at = p_now,
                deadline_at = p_now + t.timeout, progress = NULL
            FROM highest, picked p WHERE t.session_id = p.session_id AND t.id = p.id
            RETURNING t.*;
            GET DIAGNOSTICS v_got = ROW_COUNT;
            IF v_got > 0 THEN
                v_floors := v_floors || jsonb_build_object(v_head, current_setting('blackboard.floor')::bigint);
                v_left := v_left - v_got;
            END IF;
            EXIT WHEN v_left <= 0;
        END LOOP;
        v_below := v_priority;
    END LOOP;
    PERFORM blackboard.note_floors(p_session_id, v_floors, NULL);
END
$$;

CREATE OR REPLACE FUNCTION blackboard.pick_ready(p_session_id uuid, p_agent_id text, p_capabilities text[], p_paused text[], p_busy uuid[], p_limit integer, p_now timestamp with time zone) RETURNS uuid[]
    LANGUAGE plpgsql
    SET lock_timeout TO '20ms'
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
              AND (t.expires_at IS NULL OR t.expires_at > p_now OR t.claim_id IS NOT NULL)
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
                      AND (t.expires_at IS NULL OR t.expires_at > p_now OR t.claim_id IS NOT NULL)
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

CREATE OR REPLACE FUNCTION blackboard.pick_task(p_session_id uuid, p_id uuid, p_agent_id text, p_now timestamp with time zone) RETURNS text
    LANGUAGE plpgsql
    SET lock_timeout TO '20ms'
    AS $$
DECLARE
    v_capability text;
BEGIN
    SELECT t.capability INTO v_capability FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.id = p_id
      AND (t.status = 'pending' OR (t.status = 'assigned' AND t.assigned_to = p_agent_id))
      AND (t.expires_at IS NULL OR t.expires_at > p_now OR t.claim_id IS NOT NULL)
    FOR UPDATE SKIP LOCKED;
    RETURN v_capability;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.claim_task(p_session_id uuid, p_id uuid, p_agent_id text, p_lease_id uuid, p_claim_id uuid) RETURNS SETOF blackboard.tasks
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_now timestamptz := blackboard.now();
    v_gated boolean;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    RETURN QUERY SELECT t.* FROM blackboard.tasks t
                 WHERE t.session_id = p_session_id AND t.id = p_id AND t.claim_id = p_claim_id AND t.status = 'running';
    IF FOUND THEN
        RETURN;
    END IF;
    -- First, so that nothing is claimed under a lease that lapses with this very look.
    PERFORM blackboard.tend_leases();
    PERFORM blackboard.live_lease(p_lease_id);
    SELECT s.gated INTO v_gated FROM blackboard.sessions s WHERE s.id = p_session_id AND s.status = 'active';
    IF NOT FOUND THEN
        PERFORM blackboard.open_session(p_session_id);
        RETURN;
    END IF;
    PERFORM blackboard.wake_scheduled(p_session_id, v_now, 100);
    IF v_gated THEN
        IF NOT blackboard.admit_task(p_session_id, p_id, p_agent_id, v_now) THEN
            RETURN;
        END IF;
        v_now := blackboard.now();
    END IF;
    RETURN QUERY
    WITH picked AS MATERIALIZED (
        SELECT t.session_id, t.id FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.id = p_id
          AND (t.status = 'pending' OR (t.status = 'assigned' AND t.assigned_to = p_agent_id))
          AND (t.expires_at IS NULL OR t.expires_at > v_now OR t.claim_id IS NOT NULL)
        FOR UPDATE SKIP LOCKED)
    UPDATE blackboard.tasks t
    SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
        lease_id = p_lease_id, claim_id = p_claim_id, started_at = v_now, deadline_at = v_now + t.timeout,
        progress = NULL, limited = v_gated
    FROM picked p WHERE t.session_id = p.session_id AND t.id = p.id
    RETURNING t.*;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.claim_tasks(p_session_id uuid, p_agent_id text, p_capabilities text[], p_lease_id uuid, p_claim_id uuid, p_limit integer) RETURNS SETOF blackboard.tasks
    LANGUAGE plpgsql
    SET xmlbinary TO 'hex'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_sort TO 'off'
    AS $$
DECLARE
    v_left integer := coalesce(p_limit, 1);
    v_got integer;
    v_below smallint := 11;
    v_priority smallint;
    v_capabilities text[] := p_capabilities || ''::text;
    v_capability text;
    v_now timestamptz := blackboard.now();
    v_gated boolean;
    v_floors jsonb;
    v_began timestamptz;
    v_took double precision;
BEGIN
    -- What is picked is updated where it lies, and not by its key: of a table that was empty when it was analysed, a plan may
    -- read all rows to find a few, whatever has become of it since.
    PERFORM blackboard.act_as(p_agent_id);
    RETURN QUERY SELECT t.* FROM blackboard.tasks t
                 WHERE t.lease_id = p_lease_id AND t.session_id = p_session_id AND t.claim_id = p_claim_id
                 ORDER BY t.priority DESC, t.id;
    IF FOUND THEN
        RETURN;
    END IF;
    -- First, so that nothing is claimed under a lease that lapses with this very look.
    PERFORM blackboard.tend_leases();
    PERFORM blackboard.live_lease(p_lease_id);
    SELECT s.gated INTO v_gated FROM blackboard.sessions s WHERE s.id = p_session_id AND s.status = 'active';
    IF NOT FOUND THEN
        PERFORM blackboard.open_session(p_session_id);
        RETURN;
    END IF;
    PERFORM blackboard.wake_scheduled(p_session_id, v_now, greatest(v_left, 100));
    IF v_gated THEN
        RETURN QUERY SELECT * FROM blackboard.claim_gated(p_session_id, p_agent_id, p_capabilities, p_lease_id,
                                                          p_claim_id, v_left, v_now);
        RETURN;
    END IF;

    -- An update of nothing would still start its triggers.
    PERFORM 1 FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.assigned_to = p_agent_id AND t.status = 'assigned' LIMIT 1;
    IF FOUND THEN
        RETURN QUERY
        WITH picked AS MATERIALIZED (
            SELECT t.ctid FROM blackboard.tasks t
            WHERE t.session_id = p_session_id AND t.assigned_to = p_agent_id AND t.status = 'assigned'
              AND (t.expires_at IS NULL OR t.expires_at > v_now OR t.claim_id IS NOT NULL)
            ORDER BY t.priority DESC, t.position LIMIT v_left FOR UPDATE SKIP LOCKED)
        UPDATE blackboard.tasks t
        SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
            lease_id = p_lease_id, claim_id = p_claim_id, started_at = v_now, deadline_at = v_now + t.timeout, progress = NULL
        FROM picked p WHERE t.ctid = p.ctid
        RETURNING t.*;
        GET DIAGNOSTICS v_got = ROW_COUNT;
        v_left := v_left - v_got;
    END IF;

    IF current_setting('blackboard.floors', true) <> '' THEN
        SELECT f.floors INTO v_floors FROM blackboard.floors(p_session_id) f;
        IF v_floors IS NOT NULL THEN
            RETURN QUERY SELECT * FROM blackboard.claim_above_floors(p_session_id, p_agent_id, v_capabilities, p_lease_id,
                                                                     p_claim_id, v_left, v_now, v_floors);
            RETURN;
        END IF;
    END IF;
    v_began := clock_timestamp();
    IF cardinality(v_capabilities) = 1 THEN
        -- One queue, in the index's own order: nothing is to be merged, and no head to be looked for.
        RETURN QUERY
        WITH picked AS MATERIALIZED (
            SELECT t.ctid FROM blackboard.tasks t
            WHERE t.session_id = p_session_id AND t.capability = '' AND t.status = 'pending'
              AND (t.expires_at IS NULL OR t.expires_at > v_now OR t.claim_id IS NOT NULL)
            ORDER BY t.priority DESC, t.position LIMIT v_left FOR UPDATE SKIP LOCKED)
        UPDATE blackboard.tasks t
        SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
            lease_id = p_lease_id, claim_id = p_claim_id, started_at = v_now,
            deadline_at = v_now + t.timeout, progress = NULL
        FROM picked p WHERE t.ctid = p.ctid
        RETURNING t.*;
        GET DIAGNOSTICS v_got = ROW_COUNT;
        v_left := v_left - v_got;
    END IF;
    WHILE v_left > 0 AND cardinality(v_capabilities) > 1 LOOP
        -- The highest priority below the last one at which any of the capabilities has something ready.
        SELECT max(h.priority) INTO v_priority
        FROM unnest(v_capabilities) c (capability),
             LATERAL (SELECT t.priority FROM blackboard.tasks t
                      WHERE t.session_id = p_session_id AND t.capability = c.capability AND t.status = 'pending'
                        AND t.priority < v_below
                      ORDER BY t.priority DESC LIMIT 1) h;
        EXIT WHEN v_priority IS NULL;
        FOREACH v_capability IN ARRAY v_capabilities LOOP
            RETURN QUERY
            WITH picked AS MATERIALIZED (
                SELECT t.ctid FROM blackboard.tasks t
                WHERE t.session_id = p_session_id AND t.capability = v_capability AND t.priority = v_priority
                  AND t.status = 'pending' AND (t.expires_at IS NULL OR t.expires_at > v_now OR t.claim_id IS NOT NULL)
                ORDER BY t.position LIMIT v_left FOR UPDATE SKIP LOCKED)
            UPDATE blackboard.tasks t
            SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
                lease_id = p_lease_id, claim_id = p_claim_id, started_at = v_now,
                deadline_at = v_now + t.timeout, progress = NULL
            FROM picked p WHERE t.ctid = p.ctid
            RETURNING t.*;
            GET DIAGNOSTICS v_got = ROW_COUNT;
            v_left := v_left - v_got;
            EXIT WHEN v_left <= 0;
        END LOOP;
        v_below := v_priority;
    END LOOP;
    v_took := extract(epoch FROM clock_timestamp() - v_began);
    IF v_took > 0.003 + 0.00003 * (p_limit - v_left) THEN
        -- Slow for so few tasks: from the next claim on, what lies below is left out for a while.
        PERFORM blackboard.note_floors(p_session_id, '{}', least(15, 40 * v_took));
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.claim_tasks_across(p_session_ids uuid[], p_agent_id text, p_capabilities text[], p_lease_id uuid, p_claim_id uuid, p_limit integer, p_share integer) RETURNS SETOF blackboard.tasks
    LANGUAGE plpgsql
    SET xmlbinary TO 'hex'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_sort TO 'off'
    AS $$
DECLARE
    v_left integer := coalesce(p_limit, 1);
    v_share integer;
    v_below smallint;
    v_priority smallint;
    v_capabilities text[] := p_capabilities || ''::text;
    v_capability text;
    v_now timestamptz := blackboard.now();
    v_session_id uuid;
    v_picked uuid[];
    v_session_ids uuid[] := '{}';
    v_ids uuid[] := '{}';
    v_began timestamptz;
    v_took double precision;
    -- Read once, and not for each session: of hundreds of them it is long.
    v_notes jsonb := nullif(current_setting('blackboard.floors', true), '')::jsonb;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    RETURN QUERY SELECT t.* FROM blackboard.tasks t
                 WHERE t.lease_id = p_lease_id AND t.claim_id = p_claim_id ORDER BY t.priority DESC, t.id;
    IF FOUND THEN
        RETURN;
    END IF;
    PERFORM blackboard.tend_leases();
    PERFORM blackboard.live_lease(p_lease_id);
    FOR v_session_id IN
        SELECT s.id
        FROM unnest(p_session_ids) w (id),
             -- Not to be joined in another order than the caller's.
             LATERAL (SELECT s.id, s.status, s.gated FROM blackboard.sessions s WHERE s.id = w.id OFFSET 0) s
        WHERE s.status = 'active' AND NOT s.gated
          AND NOT EXISTS (SELECT FROM blackboard.tasks t
                          WHERE t.session_id = s.id AND t.status = 'scheduled' AND t.run_at <= v_now)
          AND NOT EXISTS (SELECT FROM blackboard.tasks t
                          WHERE t.session_id = s.id AND t.assigned_to = p_agent_id AND t.status = 'assigned')
          AND (v_notes -> s.id::text ->> 'until')::timestamptz > v_now IS NOT TRUE
    LOOP
        EXIT WHEN v_left <= 0;
        v_share := least(p_share, v_left);
        v_left := v_left - v_share;
        v_below := 11;
        v_began := clock_timestamp();
        WHILE v_share > 0 LOOP
            v_priority := NULL;
            IF cardinality(v_capabilities) > 1 THEN
                SELECT max(h.priority) INTO v_priority
                FROM unnest(v_capabilities) c (capability),
                     LATERAL (SELECT t.priority FROM blackboard.tasks t
                              WHERE t.session_id = v_session_id AND t.capability = c.capability
                                AND t.status = 'pending' AND t.priority < v_below
                              ORDER BY t.priority DESC LIMIT 1) h;
                EXIT WHEN v_priority IS NULL;
                FOREACH v_capability IN ARRAY v_capabilities LOOP
                    SELECT array_agg(p.id) INTO v_picked FROM (
                        SELECT t.id FROM blackboard.tasks t
                        WHERE t.session_id = v_session_id AND t.capability = v_capability AND t.priority = v_priority
                          AND t.status = 'pending' AND (t.expires_at IS NULL OR t.expires_at > v_now OR t.claim_id IS NOT NULL)
                        ORDER BY t.position LIMIT v_share FOR UPDATE SKIP LOCKED) p;
                    IF v_picked IS NOT NULL THEN
                        v_ids := v_ids || v_picked;
                        v_session_ids := v_session_ids || array_fill(v_session_id, ARRAY[cardinality(v_picked)]);
                        v_share := v_share - cardinality(v_picked);
                        EXIT WHEN v_share <= 0;
                    END IF;
                END LOOP;
                v_below := v_priority;
            ELSE
                SELECT array_agg(p.id) INTO v_picked FROM (
                    SELECT t.id FROM blackboard.tasks t
                    WHERE t.session_id = v_session_id AND t.capability = '' AND t.status = 'pending'
                      AND (t.expires_at IS NULL OR t.expires_at > v_now OR t.claim_id IS NOT NULL)
                    ORDER BY t.priority DESC, t.position LIMIT v_share FOR UPDATE SKIP LOCKED) p;
                IF v_picked IS NOT NULL THEN
                    v_ids := v_ids || v_picked;
                    v_session_ids := v_session_ids || array_fill(v_session_id, ARRAY[cardinality(v_picked)]);
                    v_share := v_share - cardinality(v_picked);
                END IF;
                EXIT;
            END IF;
        END LOOP;
        v_left := v_left + v_share;
        v_took := extract(epoch FROM clock_timestamp() - v_began);
        IF v_took > 0.003 + 0.00003 * p_share THEN
            PERFORM blackboard.note_floors(v_session_id, '{}', least(15, 40 * v_took));
        END IF;
    END LOOP;
    IF v_ids = '{}' THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH picked AS MATERIALIZED (
        -- The limit limits nothing: by it the planner expects one row, and looks each up by its key.
        SELECT p.session_id, p.id FROM unnest(v_session_ids, v_ids) p (session_id, id) LIMIT cardinality(v_ids))
    UPDATE blackboard.tasks t
    SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
        lease_id = p_lease_id, claim_id = p_claim_id, started_at = v_now,
        deadline_at = v_now + t.timeout, progress = NULL
    FROM picked p WHERE t.session_id = p.session_id AND t.id = p.id
    RETURNING t.*;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.sweep_waiting(p_limit integer) RETURNS integer
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    AS $$
DECLARE
    v_now timestamptz := blackboard.now();
    v_expired integer := 0;
    v_freed integer := 0;
BEGIN
    PERFORM 1 FROM blackboard.tasks t
    WHERE (t.expires_at IS NOT NULL OR t.fallback IS NOT NULL) AND t.completed_at IS NULL AND t.lease_id IS NULL LIMIT 1;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    WITH due AS MATERIALIZED (
        SELECT t.session_id, t.id FROM blackboard.tasks t
        WHERE (t.expires_at IS NOT NULL OR t.fallback IS NOT NULL) AND t.completed_at IS NULL AND t.lease_id IS NULL
          AND least(t.expires_at, t.fallback_at) <= v_now AND t.expires_at <= v_now
          -- What was started in time, and came back, is late for nothing.
          AND t.claim_id IS NULL
        ORDER BY least(t.expires_at, t.fallback_at) NULLS FIRST LIMIT p_limit FOR UPDATE SKIP LOCKED)
    UPDATE blackboard.tasks t
    SET status = 'cancelled', position = NULL, completed_at = v_now,
        error = jsonb_build_object('code', 'deadline', 'message', format('It was not started by %s.', t.expires_at))
    FROM due d WHERE t.session_id = d.session_id AND t.id = d.id;
    GET DIAGNOSTICS v_expired = ROW_COUNT;
    PERFORM 1 FROM blackboard.tasks t WHERE t.status = 'assigned' AND t.fallback IS NOT NULL
      AND (t.expires_at IS NOT NULL OR t.fallback IS NOT NULL) AND t.completed_at IS NULL AND t.lease_id IS NULL LIMIT 1;
    IF NOT FOUND THEN
        RETURN v_expired;
    END IF;
    -- What became assigned after it had been blocked, held or unapproved: its agent's time starts now.
    UPDATE blackboard.tasks t SET fallback_at = v_now + t.fallback
    WHERE (t.session_id, t.id) IN (
        SELECT w.session_id, w.id FROM blackboard.tasks w
        WHERE (w.expires_at IS NOT NULL OR w.fallback IS NOT NULL) AND w.completed_at IS NULL AND w.lease_id IS NULL
          AND w.status = 'assigned' AND w.fallback IS NOT NULL AND w.fallback_at IS NULL
        LIMIT p_limit FOR UPDATE SKIP LOCKED);
    -- Whoever has left or gone silent, of those that something is assigned to.
    WITH RECURSIVE waited_for AS (
        (SELECT t.session_id, t.assigned_to FROM blackboard.tasks t
         WHERE t.status = 'assigned' ORDER BY t.session_id, t.assigned_to LIMIT 1)
        UNION ALL
        SELECT n.session_id, n.assigned_to
        FROM waited_for w,
             LATERAL (SELECT t.session_id, t.assigned_to FROM blackboard.tasks t
                      WHERE t.status = 'assigned' AND (t.session_id, t.assigned_to) > (w.session_id, w.assigned_to)
                      ORDER BY t.session_id, t.assigned_to LIMIT 1) n
    ), absent AS MATERIALIZED (
        SELECT w.session_id, w.assigned_to
        FROM waited_for w
        JOIN blackboard.memberships m ON m.session_id = w.session_id AND m.agent_id = w.assigned_to
        LEFT JOIN blackboard.leases l ON l.id = m.lease_id
        WHERE m.left_at IS NOT NULL OR (m.lease_id IS NOT NULL AND (l.id IS NULL OR l.lapsed_at IS NOT NULL))
    ), due AS MATERIALIZED (
        SELECT t.session_id, t.id FROM blackboard.tasks t
        WHERE (t.session_id, t.id) IN (
            (SELECT d.session_id, d.id FROM blackboard.tasks d
             WHERE (d.expires_at IS NOT NULL OR d.fallback IS NOT NULL) AND d.completed_at IS NULL AND d.lease_id IS NULL
               AND least(d.expires_at, d.fallback_at) <= v_now AND d.status = 'assigned' AND d.fallback_at <= v_now
             ORDER BY least(d.expires_at, d.fallback_at) NULLS FIRST LIMIT p_limit)
            UNION
            (SELECT d.session_id, d.id FROM absent a JOIN blackboard.tasks d
               ON d.session_id = a.session_id AND d.assigned_to = a.assigned_to
                  AND d.status = 'assigned' AND d.fallback IS NOT NULL
             LIMIT p_limit))
          AND t.status = 'assigned'
        FOR UPDATE SKIP LOCKED)
    UPDATE blackboard.tasks t
    SET status = 'pending', assigned_to = NULL, fallback_at = NULL, position = nextval('blackboard.task_positions')
    FROM due d WHERE t.session_id = d.session_id AND t.id = d.id;
    GET DIAGNOSTICS v_freed = ROW_COUNT;
    RETURN greatest(v_expired, v_freed);
END
$$;

CREATE OR REPLACE FUNCTION blackboard.age_tasks(p_session_id uuid, p_step interval, p_now timestamp with time zone, p_limit integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
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
          FROM (SELECT w.id, greatest(w.created_at, w.run_at, w.aged_at) AS since FROM blackboard.tasks w
                WHERE w.session_id = p_session_id AND w.status = 'held' AND w.priority < 10
                  AND w.held ->> 'code' = 'limit' AND greatest(w.created_at, w.run_at, w.aged_at) <= p_now - p_step
                LIMIT p_limit FOR UPDATE SKIP LOCKED) h) s
    WHERE t.session_id = p_session_id AND t.id = s.id;
    GET DIAGNOSTICS v_got = ROW_COUNT;
    RETURN v_aged + v_got;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.why_task_waits(p_session_id uuid, p_id uuid) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    AS $_$
DECLARE
    v_now timestamptz := blackboard.now();
    v_task blackboard.tasks;
    v_session blackboard.sessions;
    v_lease blackboard.leases;
    v_reasons jsonb := '[]';
    v_more jsonb;
    v_counted integer;
    v_released boolean;
    v_error text;
BEGIN
    SELECT * INTO v_task FROM blackboard.tasks WHERE session_id = p_session_id AND id = p_id;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no task %s in this session.', p_id),
                                 jsonb_build_object('noun', 'task', 'id', p_id));
    END IF;
    v_counted := v_task.attempt - v_task.released;
    SELECT * INTO v_session FROM blackboard.sessions WHERE id = p_session_id;
    IF v_task.completed_at IS NOT NULL THEN
        v_reasons := v_reasons || blackboard.reason(v_task.status,
            format('It was %s at %s%s%s%s', v_task.status,
                   to_char(v_task.completed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"'),
                   CASE WHEN v_task.status = 'completed' THEN ' by ' || v_task.assigned_to ELSE '' END,
                   CASE WHEN v_counted > 0 THEN format(', attempt %s', v_counted) ELSE '' END,
                   CASE WHEN v_task.error IS NOT NULL
                        THEN format(': %s%s', coalesce(nullif(v_task.error ->> 'message', ''), v_task.error ->> 'code',
                                                       'no reason was given'),
                                    CASE WHEN v_task.status IN ('failed', 'dead')
                                         THEN format('; start it over with `blackboard task redrive %s`.', p_id)
                                         ELSE '' END)
                        ELSE '.' END),
            jsonb_build_object('at', v_task.completed_at, 'agent_id', v_task.assigned_to, 'attempt', v_counted,
                               'error', v_task.error));
    ELSIF v_task.status = 'running' THEN
        SELECT * INTO v_lease FROM blackboard.leases WHERE id = v_task.lease_id;
        v_reasons := v_reasons || blackboard.reason('running',
            format('%s runs it since %s (attempt %s of %s)%s.', v_task.assigned_to,
                   to_char(v_task.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"'),
                   v_counted, v_task.max_attempts,
                   CASE WHEN v_lease.id IS NULL OR v_lease.lapsed_at IS NOT NULL
                        THEN '; its process went silent, and the next claim takes the task back'
                        WHEN v_lease.expires_at < v_now
                        THEN '; its process is late with its heartbeat'
                        WHEN v_lease.expires_at < v_now + v_lease.term / 2
                        THEN format('; its process was last heard of at %s, and loses the task at %s',
                                    to_char((v_lease.expires_at - v_lease.term) AT TIME ZONE 'UTC', 'HH24:MI:SS"Z"'),
                                    to_char(v_lease.expires_at AT TIME ZONE 'UTC', 'HH24:MI:SS"Z"'))
                        ELSE '' END),
            jsonb_build_object(
                'agent_id', v_task.assigned_to, 'since', v_task.started_at, 'attempt', v_counted,
                'max_attempts', v_task.max_attempts, 'deadline_at', v_task.deadline_at, 'progress', v_task.progress,
                'lease', CASE WHEN v_lease.id IS NULL OR v_lease.lapsed_at IS NOT NULL THEN 'lapsed'
                              WHEN v_lease.expires_at < v_now THEN 'late' ELSE 'live' END,
                'lease_expires_at', v_lease.expires_at, 'host', v_lease.host, 'pid', v_lease.pid));
        IF v_task.cancel_requested THEN
            v_reasons := v_reasons || blackboard.reason('cancelling',
                CASE WHEN v_lease.id IS NULL OR v_lease.lapsed_at IS NOT NULL
                     THEN 'It was asked to stop: it is cancelled when it is taken back.'
                     ELSE 'It was asked to stop; its holder sees that with its next progress report or its end.' END);
        END IF;
    ELSIF v_task.expires_at <= v_now AND v_task.claim_id IS NULL THEN
        -- Whatever else holds it, nobody gets it any more.
        v_reasons := v_reasons || blackboard.reason('deadline',
            format('It was not started by %s: the next claim cancels it.',
                   to_char(v_task.expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')),
            jsonb_build_object('expires_at', v_task.expires_at));
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
        v_more := CASE WHEN v_task.status IN ('pending', 'assigned', 'held', 'scheduled')
                       THEN blackboard.why_held_back(v_task) ELSE '[]' END;
        -- A rate says the time itself.
        IF v_task.run_at > v_now AND (v_task.held ->> 'code' IS DISTINCT FROM 'rate'
                                      OR NOT v_more @> '[{"code": "rate"}]') THEN
            -- Who hands a task back has not started it, and neither a lapse nor a timeout was its doing.
            v_released := v_task.attempt > 0 AND v_task.started_at IS NULL
                          AND coalesce(v_task.error ->> 'code', '') NOT IN ('lease_lapsed', 'timeout');
            v_error := coalesce(nullif(v_task.error ->> 'message', ''), v_task.error ->> 'code');
            v_reasons := v_reasons || blackboard.reason('time',
                format(CASE WHEN v_released AND v_error IS NULL THEN 'It was handed back; the next attempt starts at %2$s or later.'
                            WHEN v_released THEN 'It was handed back (%1$s); the next attempt starts at %2$s or later.'
                            WHEN v_task.attempt > 0 AND v_error IS NOT NULL
                            THEN 'Its last attempt failed (%1$s); the next one starts at %2$s or later.'
                            ELSE 'It is scheduled for %2$s.' END,
                       v_error, to_char(v_task.run_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')),
                jsonb_build_object('run_at', v_task.run_at, 'attempt', v_counted, 'error', v_task.error));
        ELSIF v_task.status = 'scheduled' AND v_task.run_at <= v_now AND v_reasons = '[]' AND v_more = '[]' THEN
            v_reasons := v_reasons || blackboard.reason('ready', 'Its time has come: the next claim makes it ready.',
                                                        jsonb_build_object('run_at', v_task.run_at));
        END IF;
        v_reasons := v_reasons || v_more;
        IF v_task.status IN ('pending', 'assigned') THEN
            v_more := blackboard.why_nobody_took(v_task, v_reasons = '[]');
            IF v_reasons = '[]' OR v_more ->> 'code' <> 'ready' THEN
                v_reasons := v_reasons || v_more;
            END IF;
        END IF;
    END IF;
    RETURN jsonb_build_object('status', v_task.status, 'reasons', v_reasons);
END
$_$;

CREATE OR REPLACE FUNCTION blackboard.budget_reason(p_session_id uuid, p_task_id uuid) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT jsonb_build_object(
        'code', 'budget', 'budget', b.id, 'scope', b.scope, 'agent_id', b.agent_id, 'unit', b.unit,
        'currency', b.currency, 'ceiling', trim_scale(b.ceiling), 'spent', trim_scale(b.spent),
        'reserved', trim_scale(b.reserved), 'resets_at', b.window_start + b.period,
        'message', format('The budget of %s for %s is used up: %s of %s%s are spent.', b.unit,
                          CASE b.scope WHEN 'session' THEN 'the session' WHEN 'agent' THEN b.agent_id
                                       ELSE 'this task' END,
                          trim_scale(b.spent), trim_scale(b.ceiling), coalesce(' ' || b.currency, '')))
    FROM blackboard.tasks t
    CROSS JOIN LATERAL blackboard.spent_budgets(
        t.session_id, CASE WHEN t.claim_id IS NULL OR t.status IN ('assigned', 'running') THEN t.assigned_to END, t.id) b
    WHERE t.session_id = p_session_id AND t.id = p_task_id
    LIMIT 1
$$;

CREATE OR REPLACE FUNCTION blackboard.why_held_back(p_task blackboard.tasks) RETURNS jsonb
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
           AND (v_row.running >= v_row.max_running
                OR (p_task.status = 'held' AND v_code = 'limit' AND p_task.held ->> 'limit' = v_row.limit_id::text))
        THEN
            v_reasons := v_reasons || blackboard.reason('limit',
                format('Limit %L%s: %s of %s are running; %s.',
                       v_row.name, CASE WHEN v_row.key <> '' THEN format(' (key %L)', v_row.key) ELSE '' END,
                       coalesce(v_row.running, 0), v_row.max_running,
                       CASE WHEN v_row.running >= v_row.max_running
                            THEN 'it comes back when one of them ends, or when the limit is raised'
                            ELSE 'there is room again, and the next claim in this session brings it back' END),
                jsonb_build_object('limit', v_row.name, 'key', nullif(v_row.key, ''), 'running', v_row.running,
                                   'max_running', v_row.max_running));
        ELSIF v_row.kind = 'rate' AND p_task.status = 'scheduled' AND v_code = 'rate'
              AND p_task.held ->> 'limit' = v_row.limit_id::text AND p_task.run_at > v_now
        THEN
            v_reasons := v_reasons || blackboard.reason('rate',
                format('Limit %L%s allows %s in %s, used up by now: it is tried again at %s.', v_row.name,
                       CASE WHEN v_row.key <> '' THEN format(' (key %L)', v_row.key) ELSE '' END,
                       CASE v_row.rate_count WHEN 1 THEN 'one start' ELSE v_row.rate_count || ' starts' END,
                       v_row.rate_period,
                       to_char(p_task.run_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')),
                jsonb_build_object('limit', v_row.name, 'key', nullif(v_row.key, ''), 'used', v_row.used,
                                   'rate_count', v_row.rate_count, 'rate_period', v_row.rate_period,
                                   'run_at', p_task.run_at));
        ELSIF v_row.kind = 'rate' AND p_task.status <> 'scheduled' AND v_row.in_window
              AND v_row.used >= v_row.rate_count
        THEN
            v_reasons := v_reasons || blackboard.reason('rate',
                format('Limit %L%s: %s in %s, used up by now; it is tried again at %s.', v_row.name,
                       CASE WHEN v_row.key <> '' THEN format(' (key %L)', v_row.key) ELSE '' END,
                       CASE v_row.rate_count WHEN 1 THEN 'one start' ELSE v_row.rate_count || ' starts' END,
                       v_row.rate_period,
                       to_char(v_row.window_ends_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')),
                jsonb_build_object('limit', v_row.name, 'key', nullif(v_row.key, ''), 'used', v_row.used,
                                   'rate_count', v_row.rate_count, 'rate_period', v_row.rate_period,
                                   'run_at', v_row.window_ends_at));
        END IF;
    END LOOP;
    IF p_task.status = 'held' AND v_code NOT IN ('limit', 'paused') THEN
        -- Besides what else would hold it.
        v_reasons := v_reasons || blackboard.reason(
            v_code, coalesce(p_task.held ->> 'message', format('It is held: %s.', v_code)),
            p_task.held - 'code' - 'message');
    ELSIF p_task.status = 'held' AND v_reasons = '[]' THEN
        v_reasons := v_reasons || blackboard.reason(
            v_code, 'What held it has ended; the next claim in this session brings it back.', p_task.held - 'code');
    END IF;
    RETURN v_reasons;
END
$$;

-- squawk-ignore ban-drop-function
DROP FUNCTION blackboard.slots_left(uuid);
-- Whether a claim of these capabilities may bring something back: what they can do nothing about is none of their business.
CREATE FUNCTION blackboard.slots_left(p_session_id uuid, p_capabilities text[]) RETURNS boolean
    LANGUAGE plpgsql STABLE
    AS $$
BEGIN
    RETURN EXISTS (SELECT FROM blackboard.limit_usage u
                   JOIN blackboard.limits l ON l.session_id = u.session_id AND l.id = u.limit_id
                   WHERE u.session_id = p_session_id AND u.waiting AND l.removed_at IS NULL
                     AND u.running < l.max_running
                     AND EXISTS (SELECT FROM blackboard.tasks t
                                 WHERE t.session_id = p_session_id AND t.status = 'held' AND t.held ->> 'code' = 'limit'
                                   AND coalesce(t.held ->> 'limit', t.held ->> 'type', '') = u.limit_id::text
                                   AND coalesce(t.held ->> 'key', '') = u.key AND t.capability = ANY (p_capabilities)))
        OR EXISTS (SELECT FROM blackboard.limits l WHERE l.session_id = p_session_id AND l.removed_at IS NOT NULL)
        OR EXISTS (SELECT FROM blackboard.pauses p WHERE p.session_id = p_session_id AND p.resumed_at IS NOT NULL);
END
$$;

-- squawk-ignore ban-drop-function
DROP FUNCTION blackboard.look_for_tasks(uuid[], text, text[]);
CREATE FUNCTION blackboard.look_for_tasks(p_session_ids uuid[], p_agent_id text, p_capabilities text[]) RETURNS TABLE(session_id uuid, status text, ready boolean, due_in interval, floored boolean)
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_sort TO 'off'
    AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := blackboard.now();
    v_capabilities text[] := p_capabilities || ''::text;
    -- Read once, and not for each session: of hundreds of them it is long.
    v_notes jsonb := nullif(current_setting('blackboard.floors', true), '')::jsonb;
BEGIN
    -- Who only looks is often the only one who is there.
    PERFORM 1 FROM blackboard.tasks t
    WHERE (t.expires_at IS NOT NULL OR t.fallback IS NOT NULL) AND t.completed_at IS NULL AND t.lease_id IS NULL
      AND least(t.expires_at, t.fallback_at) <= v_now AND (t.claim_id IS NULL OR t.fallback_at <= v_now)
    ORDER BY least(t.expires_at, t.fallback_at) NULLS FIRST LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.tend_leases();
    END IF;
    RETURN QUERY
    SELECT s.id, s.status,
           s.status = 'active' AND (
               CASE WHEN f.floors IS NULL OR s.gated THEN
                   EXISTS (SELECT FROM unnest(v_capabilities) c (capability),
                               LATERAL (SELECT FROM blackboard.tasks t
                                        WHERE t.session_id = s.id AND t.capability = c.capability
                                          AND t.status = 'pending' LIMIT 1) p
                           WHERE NOT s.gated OR NOT blackboard.capability_paused(s.id, c.capability))
               ELSE
                   EXISTS (SELECT FROM unnest(v_capabilities) c (capability), generate_series(0, 10) q (priority),
                               LATERAL (SELECT FROM blackboard.tasks t
                                        WHERE t.session_id = s.id AND t.capability = c.capability
                                          AND t.priority = q.priority::smallint AND t.status = 'pending'
                                          AND t.position > coalesce(
                                              (f.floors ->> (q.priority || ' ' || c.capability))::bigint, 0)
                                        ORDER BY t.position LIMIT 1) p)
               END
               OR EXISTS (SELECT FROM blackboard.tasks t
                          WHERE t.session_id = s.id AND t.assigned_to = p_agent_id AND t.status = 'assigned')
               -- A slot is free, and tasks are held that it was not given to.
               OR (s.gated AND blackboard.slots_left(s.id, v_capabilities))),
           CASE WHEN s.status = 'active' THEN least(
                    (SELECT greatest(t.run_at - v_now, interval '0') FROM blackboard.tasks t
                     WHERE t.session_id = s.id AND t.status = 'scheduled' ORDER BY t.run_at LIMIT 1),
                    -- What lies below a floor is looked at again when its time is over.
                    f.until - v_now) END,
           coalesce(f.floors <> '{}', false)
    FROM unnest(p_session_ids) w (id) JOIN blackboard.sessions s ON s.id = w.id
    LEFT JOIN LATERAL (
        SELECT n.note -> 'floors' AS floors, (n.note ->> 'until')::timestamptz AS until
        FROM (SELECT v_notes -> s.id::text OFFSET 0) n (note)
        WHERE (n.note ->> 'until')::timestamptz > v_now) f ON true;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.live_lease(p_lease_id uuid) RETURNS blackboard.leases
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    v_lease blackboard.leases;
BEGIN
    SELECT * INTO v_lease FROM blackboard.leases WHERE id = p_lease_id;
    IF NOT FOUND AND current_setting('transaction_isolation') <> 'read committed' THEN
        -- It may have been started after the caller's snapshot. One that there is not holds nothing for long: what names
        -- it is taken back.
        v_lease.id := p_lease_id;
        RETURN v_lease;
    END IF;
    IF v_lease.id IS NULL OR v_lease.lapsed_at IS NOT NULL THEN
        PERFORM blackboard.raise('BB006', 'This lease has lapsed: what it held may be with somebody else. '
                                          'Join the session again to get a new one.',
                                 jsonb_build_object('noun', 'lease', 'id', p_lease_id,
                                                    'lapsed_at', v_lease.lapsed_at));
    END IF;
    RETURN v_lease;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.history_limits() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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
    INSERT INTO blackboard.unsettled_limits AS u (session_id, limit_id)
    SELECT n.session_id, n.id FROM new_rows n WHERE n.kind = 'concurrency' AND n.removed_at IS NULL
    ON CONFLICT (session_id, limit_id) DO UPDATE SET others = NULL WHERE u.others IS NOT NULL;
    PERFORM blackboard.count_running(n.session_id, n.id) FROM new_rows n
    WHERE n.kind = 'concurrency' AND n.removed_at IS NULL;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.claim_gated(p_session_id uuid, p_agent_id text, p_capabilities text[], p_lease_id uuid, p_claim_id uuid, p_limit integer, p_now timestamp with time zone) RETURNS SETOF blackboard.tasks
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
    IF blackboard.settle_limits(p_session_id) > 0 THEN
        -- It has counters locked, and others may come before them: the next claim goes on.
        RETURN;
    END IF;
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

CREATE OR REPLACE FUNCTION blackboard.add_stages(p_session_id uuid, p_flow_id uuid, p_stages jsonb) RETURNS void
    LANGUAGE plpgsql
    SET xmloption TO 'document'
    SET enable_seqscan TO 'off'
    AS $$
DECLARE
    v_base integer;
    v_count integer;
    v_name text;
BEGIN
    SELECT coalesce(max(s.ordinal), 0), count(*) INTO v_base, v_count FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id;
    IF v_count + jsonb_array_length(p_stages) > 10000 THEN
        PERFORM blackboard.raise('BB002', 'A flow has at most 10000 stages; make several flows.', '{"field": "stages"}');
    END IF;
    SELECT n.name INTO v_name FROM (
        SELECT s.stage ->> 'name' AS name FROM jsonb_array_elements(p_stages) s (stage)
        UNION ALL
        SELECT s.name FROM blackboard.flow_stages s WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id) n
    GROUP BY n.name HAVING count(*) > 1 LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB002', format('Two stages are called %L; names are unique in a flow.', v_name),
                                 jsonb_build_object('field', 'name', 'stage', v_name));
    END IF;
    INSERT INTO blackboard.flow_stages (
        session_id, flow_id, name, ordinal, task_id, template, join_need, bindings, output, compensation, min_quality,
        max_iterations, loop_to)
    SELECT p_session_id, p_flow_id, d.stage ->> 'name', v_base + d.n::integer,
           coalesce((d.stage ->> 'id')::uuid, blackboard.new_id()),
           jsonb_build_object('type', d.stage -> 'type', 'capability', coalesce(d.stage -> 'capability', '""'),
                              'priority', coalesce(d.stage -> 'priority', '5'),
                              'parameters', coalesce(d.stage -> 'parameters', '{}'), 'options', d.stage -> 'options'),
           CASE d.stage ->> 'join' WHEN 'any' THEN 1 WHEN 'all' THEN NULL ELSE (d.stage ->> 'join')::integer END,
           coalesce(nullif(d.stage -> 'inputs', 'null'), '{}'), d.stage ->> 'output',
           nullif(d.stage -> 'compensate', 'null'), (d.stage ->> 'min_quality')::double precision,
           coalesce((d.stage ->> 'max_iterations')::integer, 1), d.stage ->> 'loop_to'
    FROM jsonb_array_elements(p_stages) WITH ORDINALITY d (stage, n);
    PERFORM blackboard.wire_stages(p_session_id, p_flow_id, p_stages);
    PERFORM blackboard.make_stage_tasks(
        p_session_id, p_flow_id, array(SELECT s.stage ->> 'name' FROM jsonb_array_elements(p_stages) s (stage)), NULL);
END
$$;

CREATE OR REPLACE FUNCTION blackboard.agent_tasks_write() RETURNS trigger
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
        NEW.id := coalesce(NEW.id, blackboard.new_id());
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

CREATE OR REPLACE FUNCTION blackboard.compensate_flow(p_session_id uuid, p_flow_id uuid) RETURNS void
    LANGUAGE plpgsql
    SET xmloption TO 'document'
    AS $$
DECLARE
    v_stage record;
    v_last uuid;
BEGIN
    FOR v_stage IN
        SELECT s.name, s.iteration, s.compensation AS spec, s.task_id, blackboard.new_id() AS id, t.result
        FROM unnest(blackboard.flow_order(
                 array(SELECT x.name FROM blackboard.flow_stages x
                       WHERE x.session_id = p_session_id AND x.flow_id = p_flow_id ORDER BY x.ordinal),
                 array(SELECT e.stage FROM blackboard.flow_edges e
                       WHERE e.session_id = p_session_id AND e.flow_id = p_flow_id ORDER BY e.stage, e.depends_on),
                 array(SELECT e.depends_on FROM blackboard.flow_edges e
                       WHERE e.session_id = p_session_id AND e.flow_id = p_flow_id ORDER BY e.stage, e.depends_on)))
             WITH ORDINALITY o (name, n)
        JOIN blackboard.flow_stages s ON s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = o.name
        LEFT JOIN blackboard.tasks t ON t.session_id = p_session_id AND t.id = s.task_id
        WHERE s.state = 'completed' AND s.compensation IS NOT NULL
        ORDER BY o.n DESC
    LOOP
        PERFORM blackboard.add_tasks(
            p_session_id, ARRAY[v_stage.id], ARRAY[v_stage.spec ->> 'type'],
            ARRAY[coalesce(v_stage.spec ->> 'capability', '')],
            ARRAY[coalesce((v_stage.spec ->> 'priority')::smallint, 5::smallint)],
            ARRAY[blackboard.with_note(coalesce(v_stage.spec -> 'parameters', '{}'), 'compensates',
                                       jsonb_build_object('flow', p_flow_id, 'stage', v_stage.name,
                                                          'task_id', v_stage.task_id, 'result', v_stage.result))],
            ARRAY[nullif(coalesce(nullif(v_stage.spec -> 'options', 'null'), '{}')
                         || CASE WHEN v_last IS NULL THEN '{}'
                                 ELSE jsonb_build_object('depends_on', jsonb_build_array(
                                     jsonb_build_object('id', v_last, 'on_failure', 'continue'))) END, '{}')],
            nullif(current_setting('blackboard.actor', true), ''));
        INSERT INTO blackboard.flow_tasks (session_id, task_id, flow_id, stage, iteration, kind)
        VALUES (p_session_id, v_stage.id, p_flow_id, v_stage.name, v_stage.iteration, 'compensation');
        UPDATE blackboard.flow_stages s SET compensation_task_id = v_stage.id
        WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = v_stage.name;
        v_last := v_stage.id;
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.loop_stage(p_session_id uuid, p_flow_id uuid, p_name text, p_quality double precision) RETURNS text[]
    LANGUAGE plpgsql
    SET xmloption TO 'document'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_stage blackboard.flow_stages;
    v_segment text[];
    v_stale uuid[];
    v_feedback jsonb;
BEGIN
    SELECT * INTO v_stage FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = p_name;
    WITH RECURSIVE above (name) AS (
        SELECT p_name
        UNION
        SELECT e.depends_on FROM above a
        JOIN blackboard.flow_edges e ON e.session_id = p_session_id AND e.flow_id = p_flow_id AND e.stage = a.name
        WHERE a.name <> coalesce(v_stage.loop_to, p_name)
    ), below (name) AS (
        SELECT coalesce(v_stage.loop_to, p_name)
        UNION
        SELECT e.stage FROM below b
        JOIN blackboard.flow_edges e ON e.session_id = p_session_id AND e.flow_id = p_flow_id AND e.depends_on = b.name
        WHERE b.name <> p_name)
    SELECT array_agg(a.name) INTO v_segment FROM above a JOIN below b USING (name);
    SELECT jsonb_build_object('stage', p_name, 'quality', p_quality, 'min_quality', v_stage.min_quality,
                              'iteration', v_stage.iteration, 'task_id', t.id, 'result', t.result)
    INTO v_feedback
    FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = v_stage.task_id;
    SELECT array_agg(s.task_id) INTO v_stale FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (v_segment)
      AND s.state IN ('waiting', 'ready') AND s.name <> p_name;
    UPDATE blackboard.flow_stages s
    SET state = 'waiting', task_id = blackboard.new_id(), iteration = s.iteration + 1,
        loops = CASE WHEN s.name = p_name THEN s.loops + 1 ELSE 0 END,
        quality = NULL, error = NULL, stopping = false
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (v_segment);
    PERFORM blackboard.make_stage_tasks(p_session_id, p_flow_id, v_segment, v_feedback);
    -- A branch that an early join left behind belongs to the old round.
    PERFORM blackboard.stop_tasks(p_session_id, v_stale, 'superseded', 'A later round of this stage has begun.');
    RETURN v_segment;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.settle_flow(p_session_id uuid, p_flow_id uuid, p_tasks uuid[], p_stages text[]) RETURNS void
    LANGUAGE plpgsql
    SET xmloption TO 'document'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_flow blackboard.flows;
    v_alive boolean;
    v_stage record;
    v_quality double precision;
    v_candidates text[] := p_stages;
    v_done text[] := '{}';
    v_decided text[];
    v_changed text[];
    v_errors jsonb;
    v_released text[] := '{}';
    v_stopped text[] := '{}';
BEGIN
    SELECT * INTO v_flow FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_flow_id FOR UPDATE;
    v_alive := v_flow.finished_at IS NULL AND NOT v_flow.compensating
               AND EXISTS (SELECT FROM blackboard.sessions s
                           WHERE s.id = p_session_id AND s.status IN ('active', 'paused'));
    -- 1. What ended. The two special endings one by one, all others in one statement.
    FOR v_stage IN
        SELECT s.name, s.task_id, s.min_quality, s.max_iterations, s.loops, s.iteration, s.quality, t.status, t.result
        FROM blackboard.flow_stages s
        JOIN blackboard.tasks t ON t.session_id = s.session_id AND t.id = s.task_id
        WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.task_id = ANY (p_tasks)
          AND s.state IN ('waiting', 'ready') AND v_alive
          AND (t.status = 'completed' AND s.min_quality IS NOT NULL OR t.status = 'cancelled' AND s.stopping)
        ORDER BY s.ordinal
    LOOP
        CONTINUE WHEN NOT EXISTS (SELECT FROM blackboard.flow_stages s
                                  WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id
                                    AND s.name = v_stage.name AND s.task_id = v_stage.task_id);
        IF v_stage.status = 'cancelled' THEN
            -- It was asked to stop by a pause: it starts over.
            UPDATE blackboard.flow_stages s
            SET state = 'waiting', task_id = blackboard.new_id(), stopping = false, quality = NULL
            WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = v_stage.name;
            PERFORM blackboard.make_stage_tasks(p_session_id, p_flow_id, ARRAY[v_stage.name], NULL);
            v_candidates := v_candidates || v_stage.name;
        ELSE
            v_quality := blackboard.stated_quality(v_stage.quality, v_stage.result);
            IF v_quality >= v_stage.min_quality THEN
                CONTINUE;
            ELSIF v_stage.loops + 1 < v_stage.max_iterations THEN
                v_candidates := v_candidates
                    || blackboard.loop_stage(p_session_id, p_flow_id, v_stage.name, v_quality);
            END IF;
        END IF;
    END LOOP;
    WITH e AS MATERIALIZED (
        SELECT s.name, s.task_id, t.status, q.quality, t.status = 'completed' AND s.min_quality IS NOT NULL
                   AND coalesce(q.quality < s.min_quality, true) AS below,
               CASE WHEN t.status <> 'completed' AND pg_column_size(t.error) <= 8192 THEN t.error - 'traceback' END AS error
        FROM unnest(p_tasks) x (id)
        JOIN blackboard.flow_tasks f ON f.session_id = p_session_id AND f.task_id = x.id AND f.flow_id = p_flow_id
        JOIN blackboard.flow_stages s
          ON s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = f.stage AND s.task_id = x.id
        JOIN blackboard.tasks t ON t.session_id = p_session_id AND t.id = x.id
        CROSS JOIN LATERAL (SELECT blackboard.stated_quality(s.quality, t.result) AS quality) q
        WHERE t.completed_at IS NOT NULL
          -- A dead task that was redriven and made it after all.
          AND (s.state IN ('waiting', 'ready')
               OR s.state = 'failed' AND t.status = 'completed' AND s.error ->> 'code' IS DISTINCT FROM 'quality')
    ), ended AS (
        UPDATE blackboard.flow_stages s
        SET state = CASE WHEN e.below OR e.status = 'dead' THEN 'failed' ELSE e.status END, quality = e.quality,
            error = CASE WHEN e.below THEN jsonb_build_object(
                              'code', 'quality',
                              'message', format('Its quality is %s and must be %s at least, after %s rounds.',
                                                coalesce(e.quality::text, 'not said'), s.min_quality, s.loops + 1))
                         ELSE e.error END
        FROM e
        WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = e.name AND s.task_id = e.task_id
        RETURNING s.name)
    SELECT array_agg(e.name) INTO v_done FROM ended e;
    IF v_flow.finished_at IS NOT NULL THEN
        RETURN;
    END IF;
    -- 2. A failure that asks for compensation: nothing new starts any more.
    IF NOT v_flow.compensating AND EXISTS (
        SELECT FROM blackboard.flow_stages s
        WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (v_done)
          AND s.state IN ('failed', 'cancelled')
          AND EXISTS (SELECT FROM blackboard.flow_edges e
                      WHERE e.session_id = p_session_id AND e.flow_id = p_flow_id AND e.on_failure = 'compensate'
                        AND (e.depends_on = s.name
                             OR e.stage = s.name AND NOT EXISTS (
                                 SELECT FROM blackboard.flow_edges o
                                 WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.depends_on = s.name))))
    THEN
        UPDATE blackboard.flows f SET compensating = true WHERE f.session_id = p_session_id AND f.id = p_flow_id;
        v_flow.compensating := true;
    END IF;
    IF v_flow.compensating THEN
        WITH stopped AS (
            UPDATE blackboard.flow_stages s
            SET state = 'cancelled',
                error = jsonb_build_object('code', 'flow_failed', 'message', 'The flow failed and is being compensated.')
            WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.state = 'waiting'
            RETURNING s.name)
        SELECT array_agg(p.name) INTO v_stopped FROM stopped p;
        PERFORM blackboard.stop_tasks(
            p_session_id,
            (SELECT array_agg(s.task_id) FROM blackboard.flow_stages s
             WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id
               AND (s.state = 'ready' OR s.name = ANY (v_stopped))),
            'flow_failed', 'The flow failed and is being compensated.');
    ELSE
        -- 3. What follows from that, wave by wave; tasks are touched once, in the end.
        v_candidates := v_candidates || array(
            SELECT e.stage FROM blackboard.flow_edges e
            WHERE e.session_id = p_session_id AND e.flow_id = p_flow_id AND e.depends_on = ANY (v_done));
        WHILE cardinality(v_candidates) > 0 LOOP
            -- By way of arrays and a map: joined, a thousand verdicts would meet a thousand stages.
            SELECT coalesce(array_agg(v.name), '{}'), coalesce(array_agg(v.name) FILTER (WHERE v.verdict <> 'ready'), '{}'),
                   jsonb_object_agg(v.name, CASE v.verdict
                       WHEN 'ready' THEN NULL
                       WHEN 'skipped' THEN jsonb_build_object(
                           'code', 'skipped', 'depends_on', v.failed,
                           'message', 'A stage that this one depends on did not complete, and its policy is to skip this one.')
                       ELSE jsonb_build_object(
                           'code', 'dependency_failed', 'depends_on', v.failed,
                           'message', 'A stage that this one depends on did not complete.') END)
            INTO v_decided, v_changed, v_errors
            FROM blackboard.stage_verdicts(p_session_id, p_flow_id, v_candidates) v WHERE v.verdict IS NOT NULL;
            UPDATE blackboard.flow_stages s
            SET state = CASE v_errors -> s.name ->> 'code' WHEN 'skipped' THEN 'skipped'
                             WHEN 'dependency_failed' THEN 'cancelled' ELSE 'ready' END,
                error = nullif(v_errors -> s.name, 'null')
            WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (v_decided);
            v_released := v_released || array(SELECT unnest(v_decided) EXCEPT SELECT unnest(v_changed));
            v_stopped := v_stopped || v_changed;
            v_candidates := array(SELECT DISTINCT e.stage FROM blackboard.flow_edges e
                                  WHERE e.session_id = p_session_id AND e.flow_id = p_flow_id
                                    AND e.depends_on = ANY (v_changed));
        END LOOP;
        PERFORM 1 FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.id IN (
            SELECT s.task_id FROM blackboard.flow_stages s
            WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (v_released || v_stopped))
        ORDER BY t.id FOR UPDATE;
        PERFORM blackboard.release_stages(p_session_id, p_flow_id, v_released);
        UPDATE blackboard.tasks t
        SET status = 'cancelled', position = NULL, completed_at = blackboard.now(), error = s.error
        FROM blackboard.flow_stages s
        WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = ANY (v_stopped)
          AND t.session_id = p_session_id AND t.id = s.task_id AND t.completed_at IS NULL AND t.status <> 'running';
    END IF;
    PERFORM blackboard.finish_flow(p_session_id, p_flow_id);
END
$$;

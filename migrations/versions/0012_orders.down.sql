-- The functions as they were.

ALTER TABLE blackboard.tasks RESET (autovacuum_analyze_threshold);

-- Which of these tasks, in their order and at most p_max, may run now: their slots and tokens are taken. Those of a
-- paused type or of a full limit are held, those without a token are scheduled for a later window (moved counts them);
-- busy ones fall under a counter that somebody else is just using, and stay as they are. at is when: after the counters
-- were locked, so that of two that waited for each other the later belongs to the later window. The caller has the rows
-- locked.
CREATE OR REPLACE FUNCTION blackboard.gate_tasks(
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

-- Held tasks that these capabilities can do, of limits that have slots free, become ready; whether there were any.
CREATE OR REPLACE FUNCTION blackboard.pull_held(p_session_id uuid, p_capabilities text[], p_limit integer) RETURNS boolean
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

-- Brings back up to p_batch tasks that a removed limit held; how many, or NULL when that was all and the limit is gone.
CREATE OR REPLACE FUNCTION blackboard.retire_limit(p_session_id uuid, p_limit_id uuid, p_batch integer) RETURNS integer
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

-- Tasks stopped running: their slots come back, counter by counter in the order in which claims lock them. Called by
-- the history trigger, for tasks marked as limited only.
CREATE OR REPLACE FUNCTION blackboard.free_slots(p_session_ids uuid[], p_ids uuid[]) RETURNS void
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

-- Held tasks that pick_held picks become ready again; how many.
CREATE OR REPLACE FUNCTION blackboard.return_held(
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

-- By every claim in a gated session: goes on with what a resume or a removal has not finished, and ages what waits.
CREATE OR REPLACE FUNCTION blackboard.tend_gates(p_session_id uuid, p_now timestamptz) RETURNS void
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

-- Scheduled tasks whose time has come get ready, a bounded number at a time.
CREATE OR REPLACE FUNCTION blackboard.wake_scheduled(p_session_id uuid, p_now timestamptz, p_limit integer) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM 1 FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.status = 'scheduled' AND t.run_at <= p_now LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    WITH due AS MATERIALIZED (
        SELECT t.session_id, t.id FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.status = 'scheduled' AND t.run_at <= p_now
        ORDER BY t.run_at LIMIT p_limit FOR UPDATE SKIP LOCKED)
    UPDATE blackboard.tasks t
    SET status = CASE WHEN t.blockers > 0 THEN 'blocked'
                      WHEN t.assigned_to IS NOT NULL AND t.attempt = 0 THEN 'assigned' ELSE 'pending' END,
        position = CASE WHEN t.blockers = 0 THEN nextval('blackboard.task_positions') END, held = NULL
    FROM due d WHERE t.session_id = d.session_id AND t.id = d.id;
END
$$;

-- Takes back what lapsed leases hold. An owner who renewed meanwhile is safe: only lapsed leases are looked at, and a
-- lapsed one cannot be renewed.
CREATE OR REPLACE FUNCTION blackboard.sweep_leases(p_limit integer) RETURNS integer
LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
DECLARE
    -- A variable: an index is not searched for what a volatile function returns.
    v_now timestamptz := blackboard.now();
    v_swept integer := 0;
    v_unswept boolean;
    v_late integer;
BEGIN
    PERFORM 1 FROM blackboard.leases l WHERE l.lapsed_at IS NOT NULL AND l.swept_at IS NULL LIMIT 1;
    v_unswept := FOUND;
    IF v_unswept THEN
        WITH lapsed AS (
            SELECT t.session_id, t.id
            FROM blackboard.leases l
            JOIN blackboard.tasks t ON t.lease_id = l.id
            WHERE l.lapsed_at IS NOT NULL AND l.swept_at IS NULL
            ORDER BY t.session_id, t.id
            LIMIT p_limit FOR UPDATE OF t SKIP LOCKED)
        UPDATE blackboard.tasks t
        SET status = CASE WHEN t.cancel_requested THEN 'cancelled'
                          WHEN t.attempt - t.released >= t.max_attempts THEN 'dead'
                          WHEN t.blockers > 0 THEN 'blocked' ELSE 'pending' END,
            position = CASE WHEN NOT t.cancel_requested AND t.attempt - t.released < t.max_attempts AND t.blockers = 0
                            THEN nextval('blackboard.task_positions') END,
            completed_at = CASE WHEN t.cancel_requested OR t.attempt - t.released >= t.max_attempts
                                THEN blackboard.now() END,
            lease_id = NULL, deadline_at = NULL, started_at = NULL,
            error = jsonb_build_object('code', 'lease_lapsed', 'agent_id', t.assigned_to, 'attempt', t.attempt,
                                       'message', 'The process that ran it went silent.')
        FROM lapsed WHERE t.session_id = lapsed.session_id AND t.id = lapsed.id;
        GET DIAGNOSTICS v_swept = ROW_COUNT;
    END IF;
    -- Over its maximum run time: the attempt failed, whoever runs it.
    WITH late AS (
        SELECT t.session_id, t.id FROM blackboard.tasks t
        WHERE t.deadline_at < v_now
        ORDER BY t.deadline_at LIMIT p_limit FOR UPDATE SKIP LOCKED)
    UPDATE blackboard.tasks t
    SET status = CASE WHEN t.cancel_requested THEN 'cancelled'
                      WHEN t.attempt - t.released >= t.max_attempts THEN 'dead' ELSE 'scheduled' END,
        position = NULL, lease_id = NULL, deadline_at = NULL, started_at = NULL,
        completed_at = CASE WHEN t.cancel_requested OR t.attempt - t.released >= t.max_attempts
                            THEN blackboard.now() END,
        run_at = blackboard.now() + blackboard.backoff(t.retry_delay, t.attempt),
        error = jsonb_build_object('code', 'timeout', 'agent_id', t.assigned_to, 'attempt', t.attempt,
                                   'message', format('It ran longer than its timeout of %s.', t.timeout))
    FROM late WHERE t.session_id = late.session_id AND t.id = late.id;
    GET DIAGNOSTICS v_late = ROW_COUNT;
    IF v_unswept THEN
        -- Without waiting: two sweepers at once, one of which has a claim before it, must not wait for each other.
        UPDATE blackboard.leases l SET swept_at = blackboard.now()
        WHERE l.id IN (SELECT u.id FROM blackboard.leases u
                       WHERE u.lapsed_at IS NOT NULL AND u.swept_at IS NULL
                         AND NOT EXISTS (SELECT FROM blackboard.tasks t WHERE t.lease_id = u.id)
                       FOR UPDATE SKIP LOCKED);
    END IF;
    RETURN v_swept + v_late;
END
$$;

-- At most once a second, by whoever comes by: lapses what expired and sweeps what lapsed, a bounded number at a time.
-- A lapse is one terminal step. Nothing lapses within one term of the server's start, or of the end of a gap in which
-- nobody looked (then perhaps nobody could renew either). Where looks are always that rare, a lease lapses one term
-- after it was first seen expired.
CREATE OR REPLACE FUNCTION blackboard.tend_leases(p_limit integer DEFAULT 200) RETURNS integer
LANGUAGE plpgsql
AS $$
DECLARE
    v_now timestamptz := blackboard.now();
    v_state blackboard.liveness;
    v_grace timestamptz;
    v_swept integer := 0;
BEGIN
    -- An older snapshot knows nothing of what was renewed since, and would only collide.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN 0;
    END IF;
    SELECT * INTO v_state FROM blackboard.liveness;
    IF v_state.checked_at > v_now - interval '1 second' AND v_state.checked_at <= v_now AND NOT v_state.unswept THEN
        RETURN 0;
    END IF;
    SELECT * INTO v_state FROM blackboard.liveness FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    v_grace := greatest(v_state.grace_from, pg_postmaster_start_time());
    IF v_now - v_state.checked_at > interval '10 seconds' THEN
        v_grace := v_now;
    END IF;
    IF v_state.checked_at > v_now THEN
        -- The clock went back: nobody is owed more than one term from now.
        v_grace := least(v_grace, v_now);
        UPDATE blackboard.leases SET expires_at = v_now + term, suspected_at = NULL
        WHERE lapsed_at IS NULL AND expires_at > v_now + term;
    END IF;
    UPDATE blackboard.liveness SET checked_at = v_now, grace_from = v_grace;
    BEGIN
        UPDATE blackboard.leases SET lapsed_at = v_now
        WHERE lapsed_at IS NULL AND expires_at < v_now AND pg_postmaster_start_time() + term < v_now
          AND (v_grace + term < v_now OR suspected_at + term < v_now);
        UPDATE blackboard.leases SET suspected_at = v_now
        WHERE lapsed_at IS NULL AND expires_at < v_now AND suspected_at IS NULL;
        IF v_state.repaired_at < v_now - interval '15 seconds' OR v_state.repaired_at > v_now THEN
            PERFORM blackboard.repair_leases();
            UPDATE blackboard.liveness SET repaired_at = v_now;
        END IF;
        v_swept := blackboard.sweep_leases(p_limit) + blackboard.sweep_waiting(p_limit);
    EXCEPTION WHEN OTHERS THEN
        -- Whoever came by wanted something else, and one row that cannot be swept must not stop the whole board.
        RAISE WARNING 'blackboard.tend_leases: % (%)', SQLERRM, SQLSTATE;
        v_swept := 0;
    END;
    UPDATE blackboard.liveness SET unswept = v_swept >= p_limit WHERE unswept <> (v_swept >= p_limit);
    RETURN v_swept;
END
$$;

-- Completes many; returns only those that were refused because claim or attempt is not theirs any more, after keeping
-- their results aside. Repeating a completion is no refusal. Dependants get ready in the same transaction.
CREATE OR REPLACE FUNCTION blackboard.complete_tasks(
    p_session_id uuid, p_ids uuid[], p_claim_ids uuid[], p_attempts integer[], p_results jsonb[], p_agent_id text
) RETURNS SETOF uuid
LANGUAGE plpgsql
SET xmlbinary = 'hex'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    v_done integer;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    -- The session comes from the list and not from the parameter, and the status is asked for and not the lease: then
    -- no scan of the session's tasks, and none of tasks_leased, can be mistaken for cheap while they look empty.
    WITH x AS MATERIALIZED (
        SELECT p_session_id AS session_id, u.id, u.claim_id, u.attempt, u.result
        FROM unnest(p_ids, p_claim_ids, p_attempts, p_results) u (id, claim_id, attempt, result))
    UPDATE blackboard.tasks t
    SET status = 'completed', result = x.result, lease_id = NULL, deadline_at = NULL, completed_at = blackboard.now(),
        error = NULL
    FROM x
    WHERE t.session_id = x.session_id AND t.id = x.id AND t.claim_id = x.claim_id AND t.attempt = x.attempt
      AND t.status = 'running';
    GET DIAGNOSTICS v_done = ROW_COUNT;
    IF v_done = cardinality(p_ids) THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH x AS MATERIALIZED (
        SELECT p_session_id AS session_id, u.id, u.claim_id, u.attempt, u.result
        FROM unnest(p_ids, p_claim_ids, p_attempts, p_results) u (id, claim_id, attempt, result)
    ), refused AS MATERIALIZED (
        SELECT x.id, x.claim_id, x.attempt, x.result, t.id IS NOT NULL AS known
        FROM x LEFT JOIN blackboard.tasks t ON t.session_id = x.session_id AND t.id = x.id
        WHERE (t.status, t.claim_id, t.attempt) IS DISTINCT FROM ('completed', x.claim_id, x.attempt)
    ), kept AS (
        INSERT INTO blackboard.late_results (session_id, task_id, claim_id, attempt, agent_id, result)
        SELECT p_session_id, r.id, r.claim_id, r.attempt, p_agent_id, r.result FROM refused r WHERE r.known
        ON CONFLICT DO NOTHING)
    SELECT r.id FROM refused r;
END
$$;

-- Whether this one task may be claimed by the agent now; if so, its slots are taken and its row is locked.
CREATE OR REPLACE FUNCTION blackboard.admit_task(p_session_id uuid, p_id uuid, p_agent_id text, p_now timestamptz) RETURNS boolean
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

CREATE OR REPLACE FUNCTION blackboard.prune_events(p_session_id uuid, p_before timestamptz) RETURNS bigint
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

-- One row: the events after the cursor in order of seq, the next cursor, and whether there is more at once.
-- STABLE on purpose: every query inside sees one snapshot, the caller's. Types may end in ".*".
-- Index: events_cursor; between pages events_pkey.
CREATE OR REPLACE FUNCTION blackboard.read_events(
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

DROP FUNCTION blackboard.try_counters(uuid, uuid[], text[]);
DROP FUNCTION blackboard.tend_gates_now(uuid, timestamptz);
DROP FUNCTION blackboard.tend_gates_briefly(uuid, timestamptz);
DROP FUNCTION blackboard.with_flows(uuid, uuid[]);
DROP FUNCTION blackboard.wake_due(uuid, timestamptz, integer);
DROP FUNCTION blackboard.wake_due_briefly(uuid, timestamptz, integer);
DROP FUNCTION blackboard.pick_task(uuid, uuid, text, timestamptz);
DROP FUNCTION blackboard.any_pruned(uuid, bigint[]);
ALTER TABLE blackboard.pruned_events DROP COLUMN kept;
ALTER TABLE blackboard.pruned_events DROP COLUMN taken;
ALTER TABLE blackboard.pruned_events DROP COLUMN taken_from;

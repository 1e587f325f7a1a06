-- The functions as they were.

DROP FUNCTION blackboard.join_sessions(uuid[], text, text[], uuid);
DROP FUNCTION blackboard.complete_tasks_across(uuid[], uuid[], uuid[], integer[], jsonb[], text);
DROP FUNCTION blackboard.claim_tasks_across(uuid[], text, text[], uuid, uuid, integer, integer);

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
    -- Whoever has counters locked (it has just ended a task) waits for no lease, no task and no further counter.
    IF current_setting('blackboard.slots', true) = 'locked' THEN
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
        v_swept := blackboard.sweep_leases(p_limit);
        IF current_setting('blackboard.slots', true) IS DISTINCT FROM 'locked' THEN
            v_swept := v_swept + blackboard.sweep_waiting(p_limit);
        END IF;
    EXCEPTION WHEN OTHERS THEN
        -- Whoever came by wanted something else, and one row that cannot be swept must not stop the whole board.
        RAISE WARNING 'blackboard.tend_leases: % (%)', SQLERRM, SQLSTATE;
        v_swept := 0;
    END;
    UPDATE blackboard.liveness SET unswept = v_swept >= p_limit WHERE unswept <> (v_swept >= p_limit);
    RETURN v_swept;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.claim_task(
    p_session_id uuid, p_id uuid, p_agent_id text, p_lease_id uuid, p_claim_id uuid
) RETURNS SETOF blackboard.tasks
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
    PERFORM blackboard.live_lease(p_lease_id);
    PERFORM blackboard.tend_leases();
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
          AND (t.expires_at IS NULL OR t.expires_at > v_now)
        FOR UPDATE SKIP LOCKED)
    UPDATE blackboard.tasks t
    SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
        lease_id = p_lease_id, claim_id = p_claim_id, started_at = v_now, deadline_at = v_now + t.timeout,
        progress = NULL, limited = v_gated
    FROM picked p WHERE t.session_id = p.session_id AND t.id = p.id
    RETURNING t.*;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.look_for_tasks(
    p_session_ids uuid[], p_agent_id text, p_capabilities text[]
) RETURNS TABLE(session_id uuid, status text, ready boolean, due_in interval)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_sort = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := blackboard.now();
    v_capabilities text[] := p_capabilities || ''::text;
BEGIN
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
               OR (s.gated AND blackboard.slots_left(s.id))),
           CASE WHEN s.status = 'active' THEN least(
                    (SELECT greatest(t.run_at - v_now, interval '0') FROM blackboard.tasks t
                     WHERE t.session_id = s.id AND t.status = 'scheduled' ORDER BY t.run_at LIMIT 1),
                    -- What lies below a floor is looked at again when its time is over.
                    f.until - v_now) END
    FROM unnest(p_session_ids) w (id) JOIN blackboard.sessions s ON s.id = w.id
    LEFT JOIN LATERAL blackboard.floors(s.id) f ON true;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.history_tasks_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_tx bigint;
    v_actor text;
    v_session_id uuid := (SELECT n.session_id FROM new_rows n LIMIT 1);
BEGIN
    IF v_session_id IS NULL THEN
        RETURN NULL;
    END IF;
    -- One look for what is rare: several sessions in one statement, or rows that no task begins as.
    PERFORM 1 FROM new_rows n
    WHERE n.session_id <> v_session_id OR n.status NOT IN ('pending', 'assigned', 'scheduled', 'awaiting_approval', 'held')
       OR n.attempt <> 0 OR n.released <> 0 OR n.blockers <> 0 LIMIT 1;
    IF NOT FOUND THEN
        PERFORM blackboard.check_sessions(ARRAY[v_session_id]);
    ELSE
        PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
        PERFORM 1 FROM new_rows n
        WHERE n.status NOT IN ('pending', 'assigned', 'scheduled', 'awaiting_approval', 'held')
           OR n.attempt <> 0 OR n.released <> 0 OR n.blockers <> 0 LIMIT 1;
        IF FOUND THEN
            PERFORM blackboard.raise('BB003', 'A task is not born running, blocked or finished: add it, then claim it.',
                                     '{"noun": "task", "field": "status"}');
        END IF;
    END IF;
    v_tx := blackboard.current_tx();
    v_actor := blackboard.current_actor();
    -- What is not named here has its column's default.
    INSERT INTO blackboard.events (session_id, tx, actor, type, subject_id, data)
    SELECT n.session_id, v_tx, v_actor, 'task.created', n.id,
           CASE WHEN n.timeout IS NULL AND n.max_attempts = 5 AND n.retry_delay = interval '1 second'
                     AND NOT n.requires_approval
                THEN jsonb_build_object(
                         'type', n.type, 'capability', n.capability, 'priority', n.priority, 'status', n.status,
                         'assigned_to', n.assigned_to, 'run_at', n.run_at,
                         'parameters', CASE WHEN pg_column_size(n.parameters) <= 8192 THEN n.parameters END)
                ELSE jsonb_build_object(
                         'type', n.type, 'capability', n.capability, 'priority', n.priority, 'status', n.status,
                         'assigned_to', n.assigned_to, 'run_at', n.run_at,
                         'parameters', CASE WHEN pg_column_size(n.parameters) <= 8192 THEN n.parameters END,
                         'timeout', n.timeout, 'max_attempts', n.max_attempts, 'retry_delay', n.retry_delay,
                         'requires_approval', n.requires_approval, 'approved_by', n.approved_by) END
    FROM new_rows n ORDER BY n.position;
    IF current_setting('xmlbinary') <> 'hex' THEN
        PERFORM blackboard.hint(s.session_id, 'tasks.ready') FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.claim_tasks(
    p_session_id uuid, p_agent_id text, p_capabilities text[], p_lease_id uuid, p_claim_id uuid, p_limit integer
) RETURNS SETOF blackboard.tasks
LANGUAGE plpgsql
SET xmlbinary = 'hex'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_sort = off
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
    PERFORM blackboard.act_as(p_agent_id);
    RETURN QUERY SELECT t.* FROM blackboard.tasks t
                 WHERE t.lease_id = p_lease_id AND t.session_id = p_session_id AND t.claim_id = p_claim_id
                 ORDER BY t.priority DESC, t.id;
    IF FOUND THEN
        RETURN;
    END IF;
    PERFORM blackboard.live_lease(p_lease_id);
    PERFORM blackboard.tend_leases();
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
            SELECT t.session_id, t.id FROM blackboard.tasks t
            WHERE t.session_id = p_session_id AND t.assigned_to = p_agent_id AND t.status = 'assigned'
              AND (t.expires_at IS NULL OR t.expires_at > v_now)
            ORDER BY t.priority DESC, t.position LIMIT v_left FOR UPDATE SKIP LOCKED)
        UPDATE blackboard.tasks t
        SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
            lease_id = p_lease_id, claim_id = p_claim_id, started_at = v_now, deadline_at = v_now + t.timeout, progress = NULL
        FROM picked p WHERE t.session_id = p.session_id AND t.id = p.id
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
    WHILE v_left > 0 LOOP
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
                SELECT t.session_id, t.id FROM blackboard.tasks t
                WHERE t.session_id = p_session_id AND t.capability = v_capability AND t.priority = v_priority
                  AND t.status = 'pending' AND (t.expires_at IS NULL OR t.expires_at > v_now)
                ORDER BY t.position LIMIT v_left FOR UPDATE SKIP LOCKED)
            UPDATE blackboard.tasks t
            SET status = 'running', position = NULL, attempt = t.attempt + 1, assigned_to = p_agent_id,
                lease_id = p_lease_id, claim_id = p_claim_id, started_at = v_now,
                deadline_at = v_now + t.timeout, progress = NULL
            FROM picked p WHERE t.session_id = p.session_id AND t.id = p.id
            RETURNING t.*;
            GET DIAGNOSTICS v_got = ROW_COUNT;
            v_left := v_left - v_got;
            EXIT WHEN v_left <= 0;
        END LOOP;
        v_below := v_priority;
    END LOOP;
    v_took := extract(epoch FROM clock_timestamp() - v_began);
    IF v_took > 0.003 + 0.00006 * (p_limit - v_left) THEN
        -- Slow for so few tasks: from the next claim on, what lies below is left out for a while.
        PERFORM blackboard.note_floors(p_session_id, '{}', least(15, 40 * v_took));
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.history_tasks_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_nestloop = off SET enable_hashjoin = on
AS $$
DECLARE
    v_tx bigint;
    v_actor text;
    v_one record;
    v_same boolean;
BEGIN
    SELECT n.status, n.assigned_to, n.attempt, n.lease_id INTO v_one FROM new_rows n LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    v_tx := blackboard.current_tx();
    v_actor := blackboard.current_actor();
    -- The two hot steps, whole statements of them, need no look at what each row was before, but for what they clear.
    IF v_one.status = 'running' THEN
        PERFORM 1 FROM old_rows o WHERE o.status NOT IN ('pending', 'assigned') OR o.progress IS NOT NULL LIMIT 1;
        IF NOT FOUND THEN
            PERFORM 1 FROM new_rows n
            WHERE n.status <> 'running' OR n.attempt <> v_one.attempt OR n.lease_id <> v_one.lease_id
               OR n.assigned_to <> v_one.assigned_to LIMIT 1;
            v_same := NOT FOUND;
            IF NOT v_same THEN
                PERFORM 1 FROM new_rows n WHERE n.status <> 'running' LIMIT 1;
            END IF;
            IF NOT FOUND THEN
                INSERT INTO blackboard.events (session_id, tx, seq, at, actor, type, subject_id, data)
                SELECT n.session_id, v_tx, nextval('blackboard.event_seq'), n.started_at, v_actor, 'task.assigned', n.id,
                       CASE WHEN v_same THEN one.data
                            ELSE jsonb_build_object('status', 'running', 'assigned_to', n.assigned_to,
                                                    'attempt', n.attempt, 'lease_id', n.lease_id) END
                FROM (SELECT jsonb_build_object('status', 'running', 'assigned_to', v_one.assigned_to,
                                                'attempt', v_one.attempt, 'lease_id', v_one.lease_id) AS data
                      OFFSET 0) one, new_rows n;
                IF current_setting('xmlbinary') <> 'hex' THEN
                    PERFORM blackboard.hint(s.session_id, 'tasks.changed')
                    FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
                END IF;
                RETURN NULL;
            END IF;
        END IF;
    ELSIF v_one.status = 'completed' THEN
        PERFORM 1 FROM new_rows n WHERE n.status <> 'completed' OR n.has_dependants OR n.limited LIMIT 1;
        IF NOT FOUND THEN
            PERFORM 1 FROM old_rows o WHERE o.status <> 'running' OR o.error IS NOT NULL LIMIT 1;
        END IF;
        IF NOT FOUND THEN
            INSERT INTO blackboard.events (session_id, tx, seq, at, actor, type, subject_id, data)
            SELECT n.session_id, v_tx, nextval('blackboard.event_seq'), n.completed_at, v_actor, 'task.completed', n.id,
                   CASE WHEN n.result IS NULL THEN '{"status": "completed", "lease_id": null}'::jsonb
                        ELSE jsonb_build_object('status', 'completed', 'lease_id', NULL, 'result',
                                                CASE WHEN pg_column_size(n.result) <= 8192 THEN n.result END) END
            FROM new_rows n;
            IF current_setting('xmlbinary') <> 'hex' THEN
                PERFORM blackboard.hint(s.session_id, 'tasks.changed')
                FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
            END IF;
            RETURN NULL;
        END IF;
    END IF;

    -- A block of its own: only this step has something to catch, and the others do without its subtransaction.
    BEGIN
        INSERT INTO blackboard.events (session_id, tx, actor, type, subject_id, data)
        SELECT n.session_id, v_tx, v_actor,
               -- The fence only grows, and nobody takes over a claim by rewriting it.
               CASE WHEN n.attempt < o.attempt OR (n.status = 'running' AND (n.status = o.status) <> (n.attempt = o.attempt))
                         OR (n.status = o.status AND (n.claim_id, n.lease_id) IS DISTINCT FROM (o.claim_id, o.lease_id))
                    THEN NULL
                    WHEN n.status <> o.status THEN blackboard.task_event(o.status, n.status, n.error)
                    WHEN n.cancel_requested AND NOT o.cancel_requested THEN 'task.cancel_requested'
                    WHEN n.progress IS DISTINCT FROM o.progress THEN 'task.progressed'
                    ELSE 'task.updated' END,
               n.id,
               CASE
                   WHEN n.status = 'running' AND o.status <> 'running' THEN
                       jsonb_build_object('status', n.status, 'assigned_to', n.assigned_to, 'attempt', n.attempt,
                                          'lease_id', n.lease_id)
                       || CASE WHEN o.progress IS DISTINCT FROM n.progress
                               THEN jsonb_build_object('progress', n.progress) ELSE '{}' END
                   WHEN n.status = 'completed' AND o.status <> 'completed' THEN
                       jsonb_build_object('status', n.status, 'lease_id', NULL,
                                          'result', CASE WHEN pg_column_size(n.result) <= 8192 THEN n.result END)
                       || CASE WHEN o.error IS DISTINCT FROM n.error
                               THEN jsonb_build_object('error', n.error) ELSE '{}' END
                   WHEN n.status <> o.status THEN
                       jsonb_build_object('status', n.status, 'lease_id', n.lease_id, 'assigned_to', n.assigned_to,
                                          'run_at', n.run_at, 'error', n.error, 'approved_by', n.approved_by,
                                          'blockers', n.blockers, 'released', n.released,
                                          'cancel_requested', n.cancel_requested, 'held', n.held)
                       || CASE WHEN n.max_attempts <> o.max_attempts
                               THEN jsonb_build_object('max_attempts', n.max_attempts) ELSE '{}' END
                   ELSE
                       CASE WHEN n.progress IS DISTINCT FROM o.progress
                            THEN jsonb_build_object('progress', n.progress) ELSE '{}' END
                       || CASE WHEN n.cancel_requested <> o.cancel_requested
                               THEN jsonb_build_object('cancel_requested', n.cancel_requested) ELSE '{}' END
                       || CASE WHEN n.blockers <> o.blockers
                               THEN jsonb_build_object('blockers', n.blockers) ELSE '{}' END
                       || CASE WHEN (n.priority, n.assigned_to, n.run_at, n.max_attempts, n.parameters, n.result,
                                     n.timeout, n.approved_by, n.capability, n.retry_delay, n.error, n.held)
                                    IS DISTINCT FROM
                                    (o.priority, o.assigned_to, o.run_at, o.max_attempts, o.parameters, o.result,
                                     o.timeout, o.approved_by, o.capability, o.retry_delay, o.error, o.held)
                               THEN jsonb_build_object('priority', n.priority, 'assigned_to', n.assigned_to,
                                                       'run_at', n.run_at, 'max_attempts', n.max_attempts,
                                                       'parameters', n.parameters, 'result', n.result,
                                                       'timeout', n.timeout, 'approved_by', n.approved_by,
                                                       'capability', n.capability, 'retry_delay', n.retry_delay,
                                                       'error', n.error, 'held', n.held)
                               ELSE '{}' END
               END
        FROM new_rows n JOIN old_rows o ON o.id = n.id AND o.session_id = n.session_id
        WHERE n.status <> o.status OR n.progress IS DISTINCT FROM o.progress
           OR n.cancel_requested <> o.cancel_requested OR n.blockers <> o.blockers
           OR (n.attempt, n.claim_id, n.lease_id) IS DISTINCT FROM (o.attempt, o.claim_id, o.lease_id)
           OR (n.priority, n.assigned_to, n.run_at, n.max_attempts, n.parameters, n.result, n.timeout, n.approved_by,
               n.capability, n.retry_delay, n.error, n.held)
              IS DISTINCT FROM
              (o.priority, o.assigned_to, o.run_at, o.max_attempts, o.parameters, o.result, o.timeout, o.approved_by,
               o.capability, o.retry_delay, o.error, o.held);
    EXCEPTION WHEN not_null_violation THEN
        PERFORM blackboard.raise('BB003', 'The life cycle of a task has no such step; see the diagram in the README.',
            (SELECT jsonb_build_object('noun', 'task', 'id', n.id, 'from', o.status, 'status', n.status)
             FROM new_rows n JOIN old_rows o ON o.id = n.id AND o.session_id = n.session_id
             WHERE n.attempt < o.attempt OR (n.status = 'running' AND (n.status = o.status) <> (n.attempt = o.attempt))
                OR (n.status = o.status AND (n.claim_id, n.lease_id) IS DISTINCT FROM (o.claim_id, o.lease_id))
                OR (n.status <> o.status AND blackboard.task_event(o.status, n.status, n.error) IS NULL) LIMIT 1));
    END;

    IF EXISTS (SELECT FROM new_rows n WHERE n.has_dependants AND n.completed_at IS NOT NULL) THEN
        PERFORM blackboard.settle_dependants(f.session_id, f.ids, f.succeeded)
        FROM (SELECT n.session_id, n.status = 'completed' AS succeeded, array_agg(n.id ORDER BY n.id) AS ids
              FROM new_rows n JOIN old_rows o ON o.id = n.id AND o.session_id = n.session_id
              WHERE n.has_dependants AND n.completed_at IS NOT NULL AND n.status <> o.status
              GROUP BY 1, 2) f;
    END IF;
    -- Last, because it locks the counters of limits: whoever has those never waits for a task.
    IF EXISTS (SELECT FROM old_rows o WHERE o.limited AND o.status = 'running') THEN
        PERFORM blackboard.free_slots(array_agg(o.session_id), array_agg(o.id))
        FROM old_rows o JOIN new_rows n ON n.id = o.id AND n.session_id = o.session_id
        WHERE o.limited AND o.status = 'running' AND n.status <> 'running' HAVING count(*) > 0;
    END IF;
    -- What this made ready is told with the commit, whoever did it: the client that completes a task, or sweeps a lease on
    -- its way to a claim, does not know of it.
    PERFORM pg_notify('blackboard', r.session_id::text || ' tasks.ready')
    FROM (SELECT DISTINCT n.session_id FROM new_rows n JOIN old_rows o ON o.id = n.id AND o.session_id = n.session_id
          WHERE n.status IN ('pending', 'assigned', 'scheduled') AND n.status <> o.status) r
    WHERE current_setting('blackboard.notify', true) IS DISTINCT FROM 'off';
    IF NOT FOUND AND current_setting('xmlbinary') <> 'hex' THEN
        PERFORM blackboard.hint(s.session_id, CASE WHEN s.ready THEN 'tasks.ready' ELSE 'tasks.changed' END)
        FROM (SELECT n.session_id, bool_or(n.status IN ('pending', 'assigned', 'scheduled')) AS ready
              FROM new_rows n GROUP BY n.session_id) s;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.check_reopened_task() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM blackboard.check_sessions(ARRAY[NEW.session_id]);
    RETURN NULL;
END
$$;
CREATE TRIGGER reopened AFTER UPDATE OF completed_at ON blackboard.tasks FOR EACH ROW
    WHEN (OLD.completed_at IS NOT NULL AND NEW.completed_at IS NULL)
    EXECUTE FUNCTION blackboard.check_reopened_task();

DROP TRIGGER hold_returned_stage ON blackboard.tasks;
CREATE OR REPLACE FUNCTION blackboard.hold_returned_stage() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET xmloption = 'document'
AS $$
DECLARE
    v_flow blackboard.flows;
    v_stage text;
BEGIN
    SELECT t.stage INTO v_stage FROM blackboard.flow_tasks t
    WHERE t.session_id = NEW.session_id AND t.task_id = NEW.id AND t.kind = 'stage';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT f.* INTO v_flow FROM blackboard.flow_tasks t
    JOIN blackboard.flows f ON f.session_id = t.session_id AND f.id = t.flow_id
    WHERE t.session_id = NEW.session_id AND t.task_id = NEW.id FOR UPDATE OF f;
    IF v_flow.status = 'cancelled' THEN
        UPDATE blackboard.tasks t
        SET status = 'cancelled', position = NULL, completed_at = blackboard.now(),
            error = jsonb_build_object('code', 'flow_cancelled', 'message', 'The flow was cancelled.')
        WHERE t.session_id = NEW.session_id AND t.id = NEW.id AND t.status IN ('pending', 'assigned', 'scheduled');
        RETURN NULL;
    ELSIF v_flow.finished_at IS NOT NULL THEN
        RETURN NULL;
    END IF;
    -- A redrive: what had failed is open again.
    UPDATE blackboard.flow_stages s SET state = 'ready', error = NULL
    FROM blackboard.tasks t
    WHERE s.session_id = NEW.session_id AND s.flow_id = v_flow.id AND s.name = v_stage AND s.task_id = NEW.id
      AND s.state = 'failed' AND t.session_id = s.session_id AND t.id = s.task_id AND t.completed_at IS NULL;
    IF v_flow.status = 'paused' THEN
        UPDATE blackboard.tasks t
        SET status = 'held', position = NULL, held = blackboard.held_by_flow(v_flow.id, v_flow.name, t.position)
        WHERE t.session_id = NEW.session_id AND t.id = NEW.id AND t.status IN ('pending', 'assigned', 'scheduled');
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER hold_returned_stage AFTER UPDATE OF status ON blackboard.tasks
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.has_dependants AND NEW.status IN ('pending', 'assigned', 'scheduled')
          -- What was blocked is released by the flow, which looks itself.
          AND OLD.status NOT IN ('pending', 'assigned', 'scheduled', 'blocked'))
    EXECUTE FUNCTION blackboard.hold_returned_stage();

ALTER TABLE blackboard.tasks
    ADD CONSTRAINT tasks_type_length CHECK (((length(type) >= 1) AND (length(type) <= 50))),
    ADD CONSTRAINT tasks_status_known CHECK ((status = ANY (ARRAY['scheduled'::text, 'blocked'::text, 'awaiting_approval'::text, 'held'::text, 'pending'::text, 'assigned'::text, 'running'::text, 'completed'::text, 'failed'::text, 'cancelled'::text, 'dead'::text]))),
    ADD CONSTRAINT tasks_priority_range CHECK (((priority >= 0) AND (priority <= 10))),
    ADD CONSTRAINT tasks_parameters_size CHECK ((pg_column_size(parameters) <= 1048576)),
    ADD CONSTRAINT tasks_progress_size CHECK ((pg_column_size(progress) <= 1048576)),
    ADD CONSTRAINT tasks_result_size CHECK ((pg_column_size(result) <= 1048576)),
    ADD CONSTRAINT tasks_error_size CHECK ((pg_column_size(error) <= 1048576)),
    ADD CONSTRAINT tasks_held_size CHECK ((pg_column_size(held) <= 8192)),
    ADD CONSTRAINT tasks_held_says_why CHECK (((status <> 'held'::text) OR (COALESCE((held ->> 'code'::text), ''::text) <> ''::text))),
    ADD CONSTRAINT tasks_timeout_range CHECK (((timeout > '00:00:00'::interval) AND (timeout <= '3650 days'::interval))),
    ADD CONSTRAINT tasks_fallback_range CHECK (((fallback >= '00:00:00'::interval) AND (fallback <= '3650 days'::interval))),
    ADD CONSTRAINT tasks_retry_delay_range CHECK (((retry_delay >= '00:00:00'::interval) AND (retry_delay <= '30 days'::interval))),
    ADD CONSTRAINT tasks_attempt_range CHECK ((attempt >= 0)),
    ADD CONSTRAINT tasks_max_attempts_range CHECK (((max_attempts >= 1) AND (max_attempts <= 1000))),
    ADD CONSTRAINT tasks_blockers_range CHECK ((blockers >= 0)),
    ADD CONSTRAINT tasks_unique_key_length CHECK (((length(unique_key) >= 1) AND (length(unique_key) <= 200))),
    ADD CONSTRAINT tasks_limit_key_length CHECK (((length(limit_key) >= 1) AND (length(limit_key) <= 200))),
    ADD CONSTRAINT tasks_lease_iff_running CHECK (((status = 'running'::text) = (lease_id IS NOT NULL))),
    ADD CONSTRAINT tasks_claimed_when_running CHECK (((status <> 'running'::text) OR ((claim_id IS NOT NULL) AND (attempt > 0) AND (assigned_to IS NOT NULL) AND (started_at IS NOT NULL)))),
    ADD CONSTRAINT tasks_deadline_only_running CHECK (((deadline_at IS NULL) OR (status = 'running'::text))),
    ADD CONSTRAINT tasks_position_iff_ready CHECK (((status = ANY (ARRAY['pending'::text, 'assigned'::text])) = ("position" IS NOT NULL))),
    ADD CONSTRAINT tasks_ready_is_unblocked CHECK (((blockers = 0) OR (status <> ALL (ARRAY['pending'::text, 'assigned'::text])))),
    ADD CONSTRAINT tasks_ready_is_approved CHECK (((NOT requires_approval) OR (approved_by IS NOT NULL) OR (status <> ALL (ARRAY['pending'::text, 'assigned'::text, 'running'::text])))),
    ADD CONSTRAINT tasks_assignee_when_assigned CHECK (((status <> 'assigned'::text) OR (assigned_to IS NOT NULL))),
    ADD CONSTRAINT tasks_run_at_when_scheduled CHECK (((status <> 'scheduled'::text) OR (run_at IS NOT NULL))),
    ADD CONSTRAINT tasks_blockers_iff_blocked CHECK (((status <> 'blocked'::text) OR (blockers > 0))),
    ADD CONSTRAINT tasks_completed_at_iff_final CHECK (((status = ANY (ARRAY['completed'::text, 'failed'::text, 'cancelled'::text, 'dead'::text])) = (completed_at IS NOT NULL)));
COMMENT ON TABLE blackboard.tasks IS NULL;
DROP FUNCTION blackboard.refuse_task(text);
DROP FUNCTION blackboard.broken_task_rule(
    text, text, bigint, jsonb, smallint, interval, boolean, text, timestamptz, integer, integer, interval, text, uuid,
    uuid, timestamptz, timestamptz, timestamptz, integer, text, text, interval, jsonb, jsonb, jsonb, jsonb
);

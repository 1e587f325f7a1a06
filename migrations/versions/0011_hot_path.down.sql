-- The functions as they were.

CREATE OR REPLACE FUNCTION blackboard.release_tasks(
    p_session_id uuid, p_ids uuid[], p_claim_ids uuid[], p_attempts integer[], p_delays interval[], p_errors jsonb[],
    p_agent_id text
) RETURNS TABLE (id uuid, status text)
LANGUAGE plpgsql
SET xmlbinary = 'hex'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := blackboard.now();
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    PERFORM 1 FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = ANY (p_ids)
    ORDER BY t.id FOR UPDATE;
    RETURN QUERY
    WITH x AS MATERIALIZED (
        SELECT p_session_id AS session_id, u.id, u.claim_id, u.attempt, u.delay, u.error
        FROM unnest(p_ids, p_claim_ids, p_attempts, p_delays, p_errors) u (id, claim_id, attempt, delay, error))
    UPDATE blackboard.tasks t
    SET status = CASE WHEN t.cancel_requested THEN 'cancelled' WHEN t.blockers > 0 THEN 'blocked'
                      WHEN x.delay IS NOT NULL THEN 'scheduled' ELSE 'pending' END,
        position = CASE WHEN NOT t.cancel_requested AND t.blockers = 0 AND x.delay IS NULL
                        THEN nextval('blackboard.task_positions') END,
        run_at = CASE WHEN NOT t.cancel_requested AND x.delay IS NOT NULL THEN v_now + x.delay ELSE t.run_at END,
        completed_at = CASE WHEN t.cancel_requested THEN v_now END,
        error = CASE WHEN t.cancel_requested
                     THEN jsonb_build_object('code', 'cancelled', 'message', 'It was asked to stop, and did.',
                                             'attempt', x.attempt, 'agent_id', p_agent_id)
                     WHEN x.error IS NOT NULL
                     THEN x.error || jsonb_build_object('attempt', x.attempt, 'agent_id', p_agent_id) END,
        lease_id = NULL, deadline_at = NULL, started_at = NULL, released = t.released + 1
    FROM x
    WHERE t.session_id = x.session_id AND t.id = x.id AND t.claim_id = x.claim_id AND t.attempt = x.attempt
      AND t.status = 'running'
    RETURNING t.id, t.status;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.fail_tasks(
    p_session_id uuid, p_ids uuid[], p_claim_ids uuid[], p_attempts integer[], p_errors jsonb[], p_outcomes text[],
    p_delays interval[], p_max_attempts integer[], p_agent_id text
) RETURNS TABLE (id uuid, status text)
LANGUAGE plpgsql
SET xmlbinary = 'hex'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := blackboard.now();
    v_done integer;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    -- A request to cancel that comes in meanwhile must be seen: the statement after the locks has a new snapshot.
    PERFORM 1 FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = ANY (p_ids)
    ORDER BY t.id FOR UPDATE;
    RETURN QUERY
    -- The session comes from the list and not from the parameter: then no scan of the session's tasks can be mistaken
    -- for cheap while they look empty.
    WITH x AS MATERIALIZED (
        SELECT u.session_id, u.id, u.claim_id, u.attempt, u.error, u.delay, u.max_attempts,
               CASE WHEN u.outcome <> 'retry' THEN u.outcome
                    WHEN o.cancel_requested THEN 'cancelled'
                    WHEN o.attempt - o.released >= coalesce(u.max_attempts, o.max_attempts) THEN 'dead'
                    ELSE 'scheduled' END AS status
        FROM (SELECT p_session_id AS session_id, w.*
              FROM unnest(p_ids, p_claim_ids, p_attempts, p_errors, p_outcomes, p_delays, p_max_attempts)
                       w (id, claim_id, attempt, error, outcome, delay, max_attempts) OFFSET 0) u
        JOIN blackboard.tasks o ON o.session_id = u.session_id AND o.id = u.id)
    UPDATE blackboard.tasks t
    SET status = x.status, lease_id = NULL, deadline_at = NULL,
        max_attempts = coalesce(x.max_attempts, t.max_attempts),
        error = coalesce(x.error, '{"code": "failed", "message": ""}')
                || jsonb_build_object('attempt', x.attempt, 'agent_id', p_agent_id),
        run_at = CASE WHEN x.status = 'scheduled'
                      THEN v_now + coalesce(x.delay, blackboard.backoff(t.retry_delay, t.attempt - t.released))
                      ELSE t.run_at END,
        completed_at = CASE WHEN x.status <> 'scheduled' THEN v_now END
    FROM x
    WHERE t.session_id = x.session_id AND t.id = x.id AND t.claim_id = x.claim_id AND t.attempt = x.attempt
      AND t.status = 'running'
    RETURNING t.id, t.status;
    GET DIAGNOSTICS v_done = ROW_COUNT;
    IF v_done = cardinality(p_ids) THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH answered AS (
        SELECT x.id, x.claim_id, x.attempt, x.error,
               CASE WHEN t.lease_id IS NULL AND t.claim_id = x.claim_id AND t.attempt = x.attempt
                         AND t.error -> 'attempt' = to_jsonb(x.attempt)
                         AND t.error -> 'code' IS NOT DISTINCT FROM coalesce(x.error -> 'code', '"failed"')
                    THEN t.status END AS status, t.id IS NOT NULL AS known
        FROM unnest(p_ids, p_claim_ids, p_attempts, p_errors) x (id, claim_id, attempt, error)
        LEFT JOIN blackboard.tasks t ON t.session_id = p_session_id AND t.id = x.id
    ), kept AS (
        INSERT INTO blackboard.late_results (session_id, task_id, claim_id, attempt, agent_id, error)
        SELECT p_session_id, a.id, a.claim_id, a.attempt, p_agent_id, a.error FROM answered a
        WHERE a.status IS NULL AND a.known
        ON CONFLICT DO NOTHING)
    SELECT a.id, a.status FROM answered a;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.look_for_tasks(p_session_ids uuid[], p_agent_id text, p_capabilities text[])
RETURNS TABLE (session_id uuid, status text, ready boolean, due_in interval)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := blackboard.now();
    v_capabilities text[] := p_capabilities || ''::text;
BEGIN
    RETURN QUERY
    SELECT s.id, s.status,
           s.status = 'active' AND (
               EXISTS (SELECT FROM unnest(v_capabilities) c (capability),
                           LATERAL (SELECT FROM blackboard.tasks t
                                    WHERE t.session_id = s.id AND t.capability = c.capability
                                      AND t.status = 'pending' LIMIT 1) p
                       WHERE NOT s.gated OR NOT blackboard.capability_paused(s.id, c.capability))
               OR EXISTS (SELECT FROM blackboard.tasks t
                          WHERE t.session_id = s.id AND t.assigned_to = p_agent_id AND t.status = 'assigned')
               -- A slot is free, and tasks are held that it was not given to.
               OR (s.gated AND blackboard.slots_left(s.id))),
           CASE WHEN s.status = 'active'
                THEN (SELECT greatest(t.run_at - v_now, interval '0') FROM blackboard.tasks t
                      WHERE t.session_id = s.id AND t.status = 'scheduled' ORDER BY t.run_at LIMIT 1) END
    FROM unnest(p_session_ids) w (id) JOIN blackboard.sessions s ON s.id = w.id;
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
END
$$;

CREATE OR REPLACE FUNCTION blackboard.renew_lease(p_lease_id uuid) RETURNS integer
LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE blackboard.leases SET expires_at = blackboard.now() + term, suspected_at = NULL
    WHERE id = p_lease_id AND lapsed_at IS NULL;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM blackboard.tend_leases();
    RETURN (SELECT count(*)::integer FROM blackboard.tasks t WHERE t.lease_id = p_lease_id);
END
$$;

CREATE OR REPLACE FUNCTION blackboard.sweep_leases(p_limit integer) RETURNS integer
LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
DECLARE
    -- A variable: an index is not searched for what a volatile function returns.
    v_now timestamptz := blackboard.now();
    v_swept integer;
    v_late integer;
BEGIN
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
    -- Without waiting: two sweepers at once, one of which has a claim before it, must not wait for each other.
    UPDATE blackboard.leases l SET swept_at = blackboard.now()
    WHERE l.id IN (SELECT u.id FROM blackboard.leases u
                   WHERE u.lapsed_at IS NOT NULL AND u.swept_at IS NULL
                     AND NOT EXISTS (SELECT FROM blackboard.tasks t WHERE t.lease_id = u.id)
                   FOR UPDATE SKIP LOCKED);
    RETURN v_swept + v_late;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.repair_leases() RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
BEGIN
    INSERT INTO blackboard.leases (id, host, term, expires_at, lapsed_at)
    SELECT DISTINCT t.lease_id, 'unknown', interval '1 second', blackboard.now(), blackboard.now()
    FROM blackboard.tasks t
    WHERE t.lease_id IS NOT NULL AND NOT EXISTS (SELECT FROM blackboard.leases l WHERE l.id = t.lease_id)
    ON CONFLICT DO NOTHING;
    UPDATE blackboard.leases l SET swept_at = NULL
    WHERE l.swept_at IS NOT NULL AND l.id IN (SELECT t.lease_id FROM blackboard.tasks t WHERE t.lease_id IS NOT NULL);
END
$$;

CREATE OR REPLACE FUNCTION blackboard.history_tasks_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_nestloop = off SET enable_hashjoin = on
AS $$
DECLARE
    v_tx bigint := blackboard.current_tx();
    v_actor text := blackboard.current_actor();
BEGIN
    -- The two hot steps, whole statements of them, need no look at what each row was before.
    IF NOT EXISTS (SELECT FROM new_rows n WHERE n.status <> 'running')
       AND NOT EXISTS (SELECT FROM old_rows o WHERE o.status NOT IN ('pending', 'assigned')) THEN
        INSERT INTO blackboard.events (session_id, tx, seq, at, actor, type, subject_id, data)
        SELECT n.session_id, v_tx, nextval('blackboard.event_seq'), n.started_at, v_actor, 'task.assigned', n.id,
               jsonb_build_object('status', 'running', 'assigned_to', n.assigned_to, 'attempt', n.attempt,
                                  'lease_id', n.lease_id)
        FROM new_rows n;
        PERFORM blackboard.hint(s.session_id, 'tasks') FROM (SELECT DISTINCT session_id FROM new_rows) s;
        RETURN NULL;
    ELSIF NOT EXISTS (SELECT FROM new_rows n WHERE n.status <> 'completed' OR n.has_dependants OR n.limited)
       AND NOT EXISTS (SELECT FROM old_rows o WHERE o.status <> 'running') THEN
        INSERT INTO blackboard.events (session_id, tx, seq, at, actor, type, subject_id, data)
        SELECT n.session_id, v_tx, nextval('blackboard.event_seq'), n.completed_at, v_actor, 'task.completed', n.id,
               CASE WHEN n.result IS NULL THEN '{"status": "completed", "lease_id": null}'::jsonb
                    ELSE jsonb_build_object('status', 'completed', 'lease_id', NULL, 'result',
                                            CASE WHEN pg_column_size(n.result) <= 8192 THEN n.result END) END
        FROM new_rows n;
        PERFORM blackboard.hint(s.session_id, 'tasks') FROM (SELECT DISTINCT session_id FROM new_rows) s;
        RETURN NULL;
    END IF;
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
               WHEN n.status = 'completed' AND o.status <> 'completed' THEN
                   jsonb_build_object('status', n.status, 'lease_id', NULL,
                                      'result', CASE WHEN pg_column_size(n.result) <= 8192 THEN n.result END)
               WHEN n.status <> o.status THEN
                   jsonb_build_object('status', n.status, 'lease_id', n.lease_id, 'assigned_to', n.assigned_to,
                                      'run_at', n.run_at, 'error', n.error, 'approved_by', n.approved_by,
                                      'blockers', n.blockers, 'released', n.released,
                                      'cancel_requested', n.cancel_requested, 'held', n.held)
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
    PERFORM blackboard.hint(s.session_id, 'tasks') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
EXCEPTION WHEN not_null_violation THEN
    PERFORM blackboard.raise('BB003', 'The life cycle of a task has no such step; see the diagram in the README.',
        (SELECT jsonb_build_object('noun', 'task', 'id', n.id, 'from', o.status, 'status', n.status)
         FROM new_rows n JOIN old_rows o ON o.id = n.id AND o.session_id = n.session_id
         WHERE n.attempt < o.attempt OR (n.status = 'running' AND (n.status = o.status) <> (n.attempt = o.attempt))
            OR (n.status = o.status AND (n.claim_id, n.lease_id) IS DISTINCT FROM (o.claim_id, o.lease_id))
            OR (n.status <> o.status AND blackboard.task_event(o.status, n.status, n.error) IS NULL) LIMIT 1));
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.history_tasks_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_tx bigint := blackboard.current_tx();
    v_actor text := blackboard.current_actor();
    v_sessions uuid[] := array(SELECT DISTINCT n.session_id FROM new_rows n);
BEGIN
    PERFORM blackboard.check_sessions(v_sessions);
    IF EXISTS (SELECT FROM new_rows n
               WHERE n.status NOT IN ('pending', 'assigned', 'scheduled', 'awaiting_approval', 'held')
                  OR n.attempt <> 0 OR n.released <> 0 OR n.blockers <> 0) THEN
        PERFORM blackboard.raise('BB003', 'A task is not born running, blocked or finished: add it, then claim it.',
                                 '{"noun": "task", "field": "status"}');
    END IF;
    -- What is not named here has its column's default.
    INSERT INTO blackboard.events (session_id, tx, actor, type, subject_id, data)
    SELECT n.session_id, v_tx, v_actor, 'task.created', n.id,
           jsonb_build_object('type', n.type, 'capability', n.capability, 'priority', n.priority,
                              'status', n.status, 'assigned_to', n.assigned_to, 'run_at', n.run_at,
                              'parameters', CASE WHEN pg_column_size(n.parameters) <= 8192 THEN n.parameters END)
           || CASE WHEN n.timeout IS NULL AND n.max_attempts = 5 AND n.retry_delay = interval '1 second'
                        AND NOT n.requires_approval THEN '{}'
                   ELSE jsonb_build_object('timeout', n.timeout, 'max_attempts', n.max_attempts,
                                           'retry_delay', n.retry_delay, 'requires_approval', n.requires_approval,
                                           'approved_by', n.approved_by) END
    FROM new_rows n ORDER BY n.position;
    PERFORM blackboard.hint(s, 'tasks') FROM unnest(v_sessions) s;
    RETURN NULL;
END
$$;

DROP FUNCTION blackboard.claim_above_floors(uuid, text, text[], uuid, uuid, integer, timestamptz, jsonb);
DROP FUNCTION blackboard.note_floors(uuid, jsonb, double precision);
DROP FUNCTION blackboard.floors(uuid);
DROP FUNCTION blackboard.renew_lease(uuid, uuid);
DROP FUNCTION blackboard.add_plain_task(uuid, uuid, text, text, smallint, jsonb, text, boolean);

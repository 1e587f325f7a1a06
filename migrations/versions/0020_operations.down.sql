-- Back to 0019: nothing goes by itself, and whoever can connect may call the triggers' functions.
DROP FUNCTION blackboard.keep_due(integer);
DROP FUNCTION blackboard.keep_session(uuid, interval, interval, text);
DROP TABLE blackboard.retentions;
DROP FUNCTION blackboard.history_retentions();

DROP FUNCTION blackboard.prune_events(uuid, timestamptz, integer);
CREATE FUNCTION blackboard.prune_events(p_session_id uuid, p_before timestamptz) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_tx bigint;
    v_seq bigint;
    v_count bigint;
    v_taken bigint[];
    v_kept bigint[];
    v_from bigint := 0;
    v_old blackboard.pruned_events;
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
    -- In one statement, hence of one moment: who runs has nothing that can be taken.
    WITH gone AS (
        DELETE FROM blackboard.events e WHERE e.session_id = p_session_id AND e.tx <= v_tx RETURNING e.tx)
    SELECT (SELECT count(*) FROM gone), array(SELECT DISTINCT g.tx FROM gone g ORDER BY g.tx DESC LIMIT 1001),
           array(SELECT x::text::bigint + blackboard.tx_offset() FROM pg_snapshot_xip(pg_current_snapshot()) x)
    INTO v_count, v_taken, v_kept;
    PERFORM pg_catalog.set_config('blackboard.pruning', '', true);
    INSERT INTO blackboard.pruned_events (session_id, tx, seq) VALUES (p_session_id, 0, 0) ON CONFLICT DO NOTHING;
    SELECT * INTO v_old FROM blackboard.pruned_events p WHERE p.session_id = p_session_id FOR UPDATE;
    -- Of two prunings, each kept what runs and what lies beyond it.
    v_kept := array(
        SELECT DISTINCT k.tx FROM unnest(v_kept || v_old.kept) k (tx)
        WHERE k.tx <= greatest(v_tx, v_old.tx) AND (k.tx > v_tx OR k.tx = ANY (v_kept))
          AND (k.tx > v_old.tx OR k.tx = ANY (v_old.kept)));
    v_taken := array(SELECT DISTINCT k.tx FROM unnest(v_taken || v_old.taken) k (tx) ORDER BY k.tx DESC);
    IF cardinality(v_taken) > 1000 THEN
        v_taken := v_taken[1 : 1000];
        v_from := v_taken[1000];
    END IF;
    UPDATE blackboard.pruned_events p
    SET tx = greatest(p.tx, v_tx), seq = greatest(p.seq, v_seq), pruned_at = blackboard.now(), kept = v_kept,
        taken = v_taken, taken_from = greatest(p.taken_from, v_from)
    WHERE p.session_id = p_session_id;
    RETURN v_count;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.prunable_tasks(p_session_id uuid, p_ids uuid[], p_before timestamptz, p_statuses text[]) RETURNS uuid[]
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET enable_nestloop TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
BEGIN
    RETURN (
        SELECT coalesce(array_agg(t.id ORDER BY t.id), '{}') FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.id = ANY (p_ids) AND t.completed_at < p_before
          AND t.status = ANY (p_statuses)
          AND NOT (t.has_dependants AND (
                  EXISTS (SELECT FROM (SELECT d.session_id, d.task_id FROM blackboard.task_dependencies d
                                       WHERE d.session_id = t.session_id AND d.depends_on_id = t.id OFFSET 0) d
                          JOIN blackboard.tasks c ON c.session_id = d.session_id AND c.id = d.task_id
                          WHERE c.completed_at IS NULL)
                  OR EXISTS (SELECT FROM (SELECT m.session_id, m.flow_id FROM blackboard.flow_tasks m
                                          WHERE m.session_id = t.session_id AND m.task_id = t.id OFFSET 0) m
                             JOIN blackboard.flows f ON f.session_id = m.session_id AND f.id = m.flow_id
                             WHERE f.finished_at IS NULL))));
END
$$;

CREATE OR REPLACE FUNCTION blackboard.prune_tasks(p_session_id uuid, p_before timestamptz, p_statuses text[], p_after uuid, p_scan integer, p_dry_run boolean, p_actor text, OUT next uuid, OUT pruned integer) RETURNS record
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET enable_nestloop TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
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
    v_ids := blackboard.prunable_tasks(p_session_id, v_seen, p_before, p_statuses);
    pruned := cardinality(v_ids);
    IF p_dry_run OR pruned = 0 THEN
        RETURN;
    END IF;
    -- In another statement than the look, so that what was redriven meanwhile is seen and stays.
    SELECT coalesce(array_agg(w.id), '{}') INTO v_ids FROM (
        SELECT t.id FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.id = ANY (v_ids) AND t.completed_at < p_before
          AND t.status = ANY (p_statuses)
        ORDER BY t.id FOR UPDATE SKIP LOCKED) w;
    -- Not in a SET clause: only a superuser may name a setting of our own there.
    PERFORM pg_catalog.set_config('blackboard.pruning', 'on', true);
    WITH gone AS MATERIALIZED (SELECT p_session_id AS session_id, g.id FROM unnest(v_ids) g (id) LIMIT cardinality(v_ids))
    DELETE FROM blackboard.task_dependencies d USING gone g
    WHERE d.session_id = g.session_id AND d.depends_on_id = g.id;
    WITH gone AS MATERIALIZED (SELECT p_session_id AS session_id, g.id FROM unnest(v_ids) g (id) LIMIT cardinality(v_ids))
    DELETE FROM blackboard.task_dependencies d USING gone g
    WHERE d.session_id = g.session_id AND d.task_id = g.id;
    DELETE FROM blackboard.late_results r WHERE r.session_id = p_session_id AND r.task_id = ANY (v_ids);
    WITH gone AS (
        DELETE FROM blackboard.keyed_tasks k WHERE k.session_id = p_session_id AND k.task_id = ANY (v_ids)
        RETURNING k.key, k.task_id)
    DELETE FROM blackboard.task_keys k USING gone g
    WHERE k.session_id = p_session_id AND k.key = g.key AND k.task_id = g.task_id;
    DELETE FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = ANY (v_ids);
    GET DIAGNOSTICS pruned = ROW_COUNT;
    PERFORM pg_catalog.set_config('blackboard.pruning', '', true);
    -- Nobody is waited for: a counter in use is not an old one.
    DELETE FROM blackboard.limit_usage u
    USING (SELECT l.limit_id, l.key FROM blackboard.limit_usage l
           WHERE l.session_id = p_session_id AND l.key <> '' AND l.running = 0 AND NOT l.waiting
             AND l.window_started_at < p_before AND l.deferred = 0
           ORDER BY l.limit_id, l.key FOR UPDATE SKIP LOCKED) w
    WHERE u.session_id = p_session_id AND u.limit_id = w.limit_id AND u.key = w.key;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.prune_flows(p_session_id uuid, p_before timestamptz, p_statuses text[], p_after uuid, p_scan integer, p_dry_run boolean, p_actor text, OUT next uuid, OUT pruned integer) RETURNS record
    LANGUAGE plpgsql
    SET xmloption TO 'document'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET enable_nestloop TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    v_last uuid := coalesce(p_after, '00000000-0000-0000-0000-000000000000');
    v_seen uuid[];
    v_flow uuid;
    v_tasks uuid[];
    v_rows integer := 0;
    v_count integer;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    pruned := 0;
    SELECT array_agg(w.id ORDER BY w.id) INTO v_seen FROM (
        SELECT f.id FROM blackboard.flows f
        WHERE f.session_id = p_session_id AND (p_after IS NULL OR f.id > p_after)
        ORDER BY f.id LIMIT p_scan) w;
    PERFORM pg_catalog.set_config('blackboard.pruning', 'on', true);
    FOREACH v_flow IN ARRAY coalesce(v_seen, '{}') LOOP
        IF v_rows >= p_scan THEN
            next := v_last;
            EXIT;
        END IF;
        PERFORM 1 FROM blackboard.flows f
        WHERE f.session_id = p_session_id AND f.id = v_flow AND f.finished_at < p_before AND f.status = ANY (p_statuses);
        IF FOUND THEN
            -- What is over makes no more tasks, hence none can come after this look.
            SELECT array_agg(t.id) INTO v_tasks
            FROM (SELECT o.session_id, o.task_id FROM blackboard.flow_tasks o
                  WHERE o.session_id = p_session_id AND o.flow_id = v_flow OFFSET 0) m
            JOIN blackboard.tasks t ON t.session_id = m.session_id AND t.id = m.task_id;
            IF p_dry_run THEN
                IF v_tasks IS NULL OR cardinality(v_tasks) = cardinality(
                       blackboard.prunable_tasks(p_session_id, v_tasks, p_before, p_statuses)) THEN
                    pruned := pruned + 1;
                END IF;
            ELSIF v_tasks IS NULL THEN
                PERFORM 1 FROM blackboard.flows f
                WHERE f.session_id = p_session_id AND f.id = v_flow FOR UPDATE SKIP LOCKED;
                IF FOUND THEN
                    -- A flow can have made a hundred tasks for each of ten thousand stages.
                    WITH w AS MATERIALIZED (
                        SELECT o.session_id, o.task_id FROM blackboard.flow_tasks o
                        WHERE o.session_id = p_session_id AND o.flow_id = v_flow LIMIT p_scan - v_rows)
                    DELETE FROM blackboard.flow_tasks m USING w
                    WHERE m.session_id = w.session_id AND m.task_id = w.task_id;
                    GET DIAGNOSTICS v_count = ROW_COUNT;
                    v_rows := v_rows + v_count;
                    IF v_rows >= p_scan THEN
                        next := v_last;
                        EXIT;
                    END IF;
                    DELETE FROM blackboard.flow_edges e WHERE e.session_id = p_session_id AND e.flow_id = v_flow;
                    GET DIAGNOSTICS v_count = ROW_COUNT;
                    v_rows := v_rows + v_count;
                    DELETE FROM blackboard.flow_stages s WHERE s.session_id = p_session_id AND s.flow_id = v_flow;
                    GET DIAGNOSTICS v_count = ROW_COUNT;
                    v_rows := v_rows + v_count + 1;
                    DELETE FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = v_flow;
                    pruned := pruned + 1;
                END IF;
            END IF;
        END IF;
        v_last := v_flow;
    END LOOP;
    PERFORM pg_catalog.set_config('blackboard.pruning', '', true);
    IF next IS NULL AND cardinality(v_seen) = p_scan THEN
        next := v_seen[p_scan];
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION blackboard.history_tasks_update() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_nestloop TO 'off'
    SET enable_hashjoin TO 'on'
    AS $$
DECLARE
    v_tx bigint;
    v_actor text;
    v_one record;
    v_look integer;
    v_rule text;
BEGIN
    SELECT n.status, n.assigned_to, n.attempt, n.lease_id INTO v_one FROM new_rows n LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    v_tx := blackboard.current_tx();
    v_actor := blackboard.current_actor();
    -- The two hot steps, whole statements of them, need no look at what each row was before, but for what they clear. Only
    -- the functions that make them say so: by hand, a step may change other columns too.
    IF current_setting('xmlbinary') = 'hex' AND v_one.status = 'running' THEN
        -- 2: one is of another kind, 1: they differ, 0: each event says the same.
        v_look := (SELECT max(CASE
            WHEN n.status <> 'running' OR n.attempt <= 0 OR n.lease_id IS NULL OR n.claim_id IS NULL
                 OR n.assigned_to IS NULL OR n.started_at IS NULL OR n.position IS NOT NULL
                 OR n.completed_at IS NOT NULL OR n.result IS NOT NULL
                 OR (n.requires_approval AND n.approved_by IS NULL) OR pg_column_size(n.error) > 1048576
                 OR blackboard.is_odd_task(n.priority, n.parameters, n.timeout, n.max_attempts, n.retry_delay, n.blockers,
                                           n.held, n.progress)
            THEN 2
            WHEN n.attempt <> v_one.attempt OR n.lease_id <> v_one.lease_id OR n.assigned_to <> v_one.assigned_to THEN 1
            ELSE 0 END) FROM new_rows n);
        IF v_look < 2 THEN
            PERFORM 1 FROM old_rows o WHERE o.status NOT IN ('pending', 'assigned') OR o.progress IS NOT NULL LIMIT 1;
            IF NOT FOUND THEN
                INSERT INTO blackboard.events (session_id, tx, seq, at, actor, type, subject_id, data)
                SELECT n.session_id, v_tx, nextval('blackboard.event_seq'), n.started_at, v_actor, 'task.assigned', n.id,
                       CASE WHEN v_look = 0 THEN one.data
                            ELSE jsonb_build_object('status', 'running', 'assigned_to', n.assigned_to,
                                                    'attempt', n.attempt, 'lease_id', n.lease_id) END
                FROM (SELECT jsonb_build_object('status', 'running', 'assigned_to', v_one.assigned_to,
                                                'attempt', v_one.attempt, 'lease_id', v_one.lease_id) AS data
                      OFFSET 0) one, new_rows n;
                RETURN NULL;
            END IF;
        END IF;
    ELSIF current_setting('xmlbinary') = 'hex' AND v_one.status = 'completed' THEN
        PERFORM 1 FROM new_rows n
        WHERE n.status <> 'completed' OR n.has_dependants OR n.limited OR n.attempt < 0 OR n.lease_id IS NOT NULL
           OR n.deadline_at IS NOT NULL OR n.position IS NOT NULL OR n.completed_at IS NULL OR n.error IS NOT NULL
           OR pg_column_size(n.result) > 1048576 OR pg_column_size(n.progress) > 1048576
           OR blackboard.is_odd_task(n.priority, n.parameters, n.timeout, n.max_attempts, n.retry_delay, n.blockers, n.held,
                                     NULL)
        LIMIT 1;
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
            RETURN NULL;
        END IF;
    END IF;

    v_rule := (SELECT min(blackboard.broken_task_rule(
                           n.type, n.status, n.position, n.parameters, n.priority, n.timeout, n.requires_approval,
                           n.approved_by, n.run_at, n.attempt, n.max_attempts, n.retry_delay, n.assigned_to,
                           n.claim_id, n.lease_id, n.started_at, n.deadline_at, n.completed_at, n.blockers,
                           n.unique_key, n.limit_key, n.fallback, n.held, n.progress, n.result, n.error)) FROM new_rows n);
    IF v_rule IS NOT NULL THEN
        PERFORM blackboard.refuse_task(v_rule);
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
               -- A step that changes nothing else says so in few words.
               CASE
                   WHEN n.status = 'running' AND o.status <> 'running'
                        AND (n.run_at, n.error, n.approved_by, n.blockers, n.released, n.cancel_requested, n.held,
                             n.max_attempts, n.result)
                            IS NOT DISTINCT FROM
                            (o.run_at, o.error, o.approved_by, o.blockers, o.released, o.cancel_requested, o.held,
                             o.max_attempts, o.result) THEN
                       jsonb_build_object('status', n.status, 'assigned_to', n.assigned_to, 'attempt', n.attempt,
                                          'lease_id', n.lease_id)
                   WHEN n.status = 'completed' AND o.status <> 'completed'
                        AND (n.run_at, n.assigned_to, n.attempt, n.approved_by, n.blockers, n.released, n.cancel_requested,
                             n.held, n.max_attempts)
                            IS NOT DISTINCT FROM
                            (o.run_at, o.assigned_to, o.attempt, o.approved_by, o.blockers, o.released, o.cancel_requested,
                             o.held, o.max_attempts) THEN
                       jsonb_build_object('status', n.status, 'lease_id', NULL,
                                          'result', CASE WHEN pg_column_size(n.result) <= 8192 THEN n.result END)
                       || CASE WHEN o.error IS DISTINCT FROM n.error
                               THEN jsonb_build_object('error', n.error) ELSE '{}' END
                   WHEN n.status <> o.status THEN
                       jsonb_build_object('status', n.status, 'lease_id', n.lease_id, 'assigned_to', n.assigned_to,
                                          'run_at', n.run_at, 'error', n.error, 'approved_by', n.approved_by,
                                          'blockers', n.blockers, 'released', n.released,
                                          'cancel_requested', n.cancel_requested, 'held', n.held)
                       || CASE WHEN (n.attempt, n.max_attempts) <> (o.attempt, o.max_attempts)
                               THEN jsonb_build_object('attempt', n.attempt, 'max_attempts', n.max_attempts)
                               ELSE '{}' END
                       || CASE WHEN n.result IS DISTINCT FROM o.result
                               THEN jsonb_build_object('result', CASE WHEN pg_column_size(n.result) <= 8192
                                                                      THEN n.result END)
                               ELSE '{}' END
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
               || CASE WHEN n.status <> o.status
                            AND (n.priority, n.capability, n.parameters, n.timeout, n.retry_delay, n.progress)
                                IS DISTINCT FROM
                                (o.priority, o.capability, o.parameters, o.timeout, o.retry_delay, o.progress)
                       THEN jsonb_build_object('priority', n.priority, 'capability', n.capability,
                                               'parameters', n.parameters, 'timeout', n.timeout,
                                               'retry_delay', n.retry_delay, 'progress', n.progress)
                       ELSE '{}' END
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

    -- A redrive by hand in a closed session, whose tasks nobody can claim any more.
    IF EXISTS (SELECT FROM old_rows o WHERE o.completed_at IS NOT NULL) THEN
        PERFORM blackboard.check_sessions(array_agg(DISTINCT n.session_id))
        FROM new_rows n JOIN old_rows o ON o.id = n.id AND o.session_id = n.session_id
        WHERE o.completed_at IS NOT NULL AND n.completed_at IS NULL HAVING count(*) > 0;
    END IF;
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

CREATE OR REPLACE FUNCTION blackboard.schedule_options_fit(p_options jsonb) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    SELECT jsonb_typeof(p_options) = 'object' AND NOT p_options ?| ARRAY['depends_on', 'run_at']
       AND coalesce(length(p_options ->> 'assigned_to') BETWEEN 1 AND 100, true)
       AND coalesce((p_options ->> 'timeout')::interval > interval '0', true)
       AND coalesce((p_options ->> 'requires_approval')::boolean, true) IS NOT NULL
       AND coalesce((p_options ->> 'max_attempts')::integer BETWEEN 1 AND 1000, true)
       AND coalesce((p_options ->> 'retry_delay')::interval BETWEEN interval '0' AND interval '30 days', true)
$$;

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

DROP TRIGGER keep_dependants ON blackboard.tasks;
DROP TRIGGER keep_budgets ON blackboard.spend;
DROP TRIGGER immutable ON blackboard.task_dependencies;
CREATE TRIGGER immutable AFTER UPDATE ON blackboard.task_dependencies
    FOR EACH ROW
    WHEN (pg_trigger_depth() < 1 AND (OLD.session_id, OLD.task_id, OLD.depends_on_id, OLD.state)
                                     IS DISTINCT FROM (NEW.session_id, NEW.task_id, NEW.depends_on_id, NEW.state))
    EXECUTE FUNCTION blackboard.refuse_immutable('Keys and state');
DROP TRIGGER history_update ON blackboard.task_dependencies;
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.task_dependencies
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT WHEN (pg_trigger_depth() < 1)
    EXECUTE FUNCTION blackboard.history_task_dependencies();
DROP FUNCTION blackboard.history_dependency_policy();

DO $$
DECLARE
    v_function regprocedure;
BEGIN
    FOR v_function IN
        SELECT p.oid FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'blackboard'::regnamespace AND p.prorettype = 'trigger'::regtype
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', v_function);
    END LOOP;
END
$$;
GRANT EXECUTE ON FUNCTION blackboard.keep_late_action(uuid, uuid, text, bigint, jsonb, text),
    blackboard.settle_limit(uuid, uuid, interval), blackboard.settle_limits(uuid) TO PUBLIC;

-- What a session does not keep for ever goes by itself; pruning is done in batches, and takes nothing that somebody may
-- still need; nobody can put the triggers' functions to a use of his own.

-- ------------------------------------------------------------------------------------------------------ privileges

-- They run as the owner. Whoever may execute one can hang it on a temporary table of his own, and write what he likes
-- into history with it. To fire the board's own triggers nobody needs the right.
-- What `blackboard db grants` granted before goes too.
DO $$
DECLARE
    v_revoke text;
BEGIN
    FOR v_revoke IN
        SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM %s', p.oid::regprocedure,
                      CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END)
        FROM pg_catalog.pg_proc p
        CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
        WHERE p.pronamespace = 'blackboard'::regnamespace AND p.prorettype = 'trigger'::regtype
          AND a.grantee <> p.proowner
    LOOP
        EXECUTE v_revoke;
    END LOOP;
END
$$;
-- These write as the owner: for those who work on the board, to whom `blackboard db grants` grants them.
REVOKE EXECUTE ON FUNCTION blackboard.keep_late_action(uuid, uuid, text, bigint, jsonb, text),
    blackboard.settle_limit(uuid, uuid, interval), blackboard.settle_limits(uuid) FROM PUBLIC;

-- ---------------------------------------------------------------------------------------------------------- by hand

-- What a trigger of the application's own changes is history like anything else: how deep it happens says nothing. The
-- board's own steps change the state alone, and as the owner.
CREATE FUNCTION blackboard.history_dependency_policy() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    VALUES (NEW.session_id, 'task.dependency_changed', NEW.task_id,
            jsonb_build_object('depends_on', NEW.depends_on_id, 'on_failure', NEW.on_failure));
    RETURN NULL;
END
$$;
REVOKE EXECUTE ON FUNCTION blackboard.history_dependency_policy() FROM PUBLIC;
DROP TRIGGER history_update ON blackboard.task_dependencies;
CREATE TRIGGER history_update AFTER UPDATE OF on_failure ON blackboard.task_dependencies
    FOR EACH ROW WHEN (OLD.on_failure <> NEW.on_failure) EXECUTE FUNCTION blackboard.history_dependency_policy();
DROP TRIGGER immutable ON blackboard.task_dependencies;
CREATE TRIGGER immutable AFTER UPDATE ON blackboard.task_dependencies
    FOR EACH ROW WHEN (
        (OLD.session_id, OLD.task_id, OLD.depends_on_id) IS DISTINCT FROM (NEW.session_id, NEW.task_id, NEW.depends_on_id)
        OR (OLD.state <> NEW.state
            AND (pg_trigger_depth() < 1 OR NOT has_table_privilege('blackboard.task_dependencies', 'DELETE'))))
    EXECUTE FUNCTION blackboard.refuse_immutable('Keys and state');

-- A new budget takes in what is reserved already; nobody else says what an entry counts in, in a trigger or without.
CREATE TRIGGER keep_budgets BEFORE UPDATE OF budget_ids ON blackboard.spend
    FOR EACH ROW WHEN (OLD.budget_ids IS DISTINCT FROM NEW.budget_ids
                       AND NOT has_table_privilege('blackboard.budgets', 'UPDATE'))
    EXECUTE FUNCTION blackboard.refuse_rewrite('an entry of the ledger is ended, and counts where it was reserved');

-- Without it those that depend on the task would never hear of its end.
CREATE TRIGGER keep_dependants AFTER UPDATE OF has_dependants ON blackboard.tasks
    FOR EACH ROW WHEN (OLD.has_dependants AND NOT NEW.has_dependants)
    EXECUTE FUNCTION blackboard.refuse_immutable('has_dependants');

-- An attempt comes with a step: a change of the number alone would be in no event.
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
               CASE WHEN n.attempt < o.attempt OR (n.status = o.status AND n.attempt <> o.attempt)
                         OR (n.status = 'running' AND n.status <> o.status AND n.attempt = o.attempt)
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
             WHERE n.attempt < o.attempt OR (n.status = o.status AND n.attempt <> o.attempt)
                OR (n.status = 'running' AND n.status <> o.status AND n.attempt = o.attempt)
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

-- What is picked is updated where it lies, as claim_tasks does it: in a table that was small when it was analysed each
-- claim read the whole session, and gave the tasks in another order than the queue's.
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
                SELECT t.ctid, t.position FROM blackboard.tasks t
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
            FROM highest, picked p WHERE t.ctid = p.ctid
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

-- ------------------------------------------------------------------------------------------------------- schedules

-- What no task may be is refused where the schedule is made, and not when it fires. A moment is none for every firing,
-- and a firing that found a task of its key would name one that is not there.
CREATE OR REPLACE FUNCTION blackboard.schedule_options_fit(p_options jsonb) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    SELECT jsonb_typeof(p_options) = 'object' AND NOT p_options ?| ARRAY['depends_on', 'run_at', 'unique', 'expires_at']
       AND coalesce(length(p_options ->> 'assigned_to') BETWEEN 1 AND 100, true)
       AND coalesce((p_options ->> 'timeout')::interval > interval '0'
                AND (p_options ->> 'timeout')::interval <= interval '3650 days', true)
       AND coalesce((p_options ->> 'requires_approval')::boolean, true) IS NOT NULL
       AND coalesce((p_options ->> 'max_attempts')::integer BETWEEN 1 AND 1000, true)
       AND coalesce((p_options ->> 'retry_delay')::interval BETWEEN interval '0' AND interval '30 days', true)
$$;

-- --------------------------------------------------------------------------------------------------------- pruning

-- Those of these tasks that a prune would take: they ended with one of the statuses before p_before, no unfinished task
-- depends on them, and their flow, if they have one, is over and needs no result of theirs any more: one of its tasks
-- that stays, and failed, can be redriven, and reads them. In order of id.
CREATE OR REPLACE FUNCTION blackboard.prunable_tasks(
    p_session_id uuid, p_ids uuid[], p_before timestamptz, p_statuses text[]
) RETURNS uuid[]
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
        WITH old AS MATERIALIZED (
            SELECT t.session_id, t.id, t.status, t.has_dependants FROM blackboard.tasks t
            WHERE t.session_id = p_session_id AND t.id = ANY (p_ids) AND t.completed_at < p_before
              AND t.status = ANY (p_statuses)
              AND NOT (t.has_dependants AND EXISTS (
                           SELECT FROM (SELECT d.session_id, d.task_id FROM blackboard.task_dependencies d
                                        WHERE d.session_id = t.session_id AND d.depends_on_id = t.id OFFSET 0) d
                           JOIN blackboard.tasks c ON c.session_id = d.session_id AND c.id = d.task_id
                           WHERE c.completed_at IS NULL))
        ), members AS MATERIALIZED (
            SELECT o.session_id, o.id, m.flow_id FROM old o
            JOIN blackboard.flow_tasks m ON m.session_id = o.session_id AND m.task_id = o.id
            WHERE o.has_dependants
        ), kept AS MATERIALIZED (
            SELECT f.id, f.finished_at IS NULL AS whole
            FROM (SELECT DISTINCT m.session_id, m.flow_id FROM members m) w
            JOIN blackboard.flows f ON f.session_id = w.session_id AND f.id = w.flow_id
            WHERE f.finished_at IS NULL
               OR EXISTS (SELECT FROM (SELECT o.session_id, o.task_id FROM blackboard.flow_tasks o
                                       WHERE o.session_id = f.session_id AND o.flow_id = f.id AND o.kind = 'stage'
                                       OFFSET 0) m
                          JOIN blackboard.tasks s ON s.session_id = m.session_id AND s.id = m.task_id
                          WHERE s.completed_at IS NULL
                             OR (s.status IN ('failed', 'dead')
                                 AND (s.status <> ALL (p_statuses) OR s.completed_at >= p_before)))
        ), needed AS MATERIALIZED (
            SELECT m.id, k.whole FROM members m JOIN kept k ON k.id = m.flow_id)
        SELECT coalesce(array_agg(o.id ORDER BY o.id), '{}') FROM old o
        WHERE NOT EXISTS (SELECT FROM needed n WHERE n.id = o.id AND (n.whole OR o.status = 'completed')));
END
$$;

-- Of the p_scan tasks after p_after (NULL: from the first), in order of id: those that ended with one of the statuses
-- before p_before go, with their late results and their edges; only counted with p_dry_run. A task that an unfinished
-- one depends on stays, and so does one that its flow may need. next is where to go on, NULL at the end. Owner only.
CREATE OR REPLACE FUNCTION blackboard.prune_tasks(
    p_session_id uuid, p_before timestamptz, p_statuses text[], p_after uuid, p_scan integer, p_dry_run boolean,
    p_actor text, OUT next uuid, OUT pruned integer
) RETURNS record
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
        WHERE t.session_id = p_session_id AND t.id > coalesce(p_after, '00000000-0000-0000-0000-000000000000')
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
    -- And in yet another: while they are locked nobody comes to depend on them, but somebody may have before.
    v_ids := blackboard.prunable_tasks(p_session_id, v_ids, p_before, p_statuses);
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
           ORDER BY l.limit_id, l.key LIMIT p_scan FOR UPDATE SKIP LOCKED) w
    WHERE u.session_id = p_session_id AND u.limit_id = w.limit_id AND u.key = w.key;
END
$$;

-- Where to go on is a place in the index, and not one to be come to by walking: with OR, every batch began at the first.
CREATE OR REPLACE FUNCTION blackboard.prune_flows(
    p_session_id uuid, p_before timestamptz, p_statuses text[], p_after uuid, p_scan integer, p_dry_run boolean,
    p_actor text, OUT next uuid, OUT pruned integer
) RETURNS record
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
        WHERE f.session_id = p_session_id AND f.id > v_last
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

-- The session's events before p_before are gone, as far as they form one unbroken beginning in the order of cursors: of
-- about the first p_limit of them (NULL: of all), but whole transactions. Returns how many went; 0 when none is left to
-- go. Cursors from before that expire. Owner only. Indexes: events_cursor.
-- squawk-ignore ban-drop-function
DROP FUNCTION blackboard.prune_events(uuid, timestamptz);
CREATE FUNCTION blackboard.prune_events(p_session_id uuid, p_before timestamptz, p_limit integer DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql
-- Statistics of a table that shrinks are old ones.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
DECLARE
    v_start bigint := 0;
    v_end bigint := 9223372036854775807;
    v_tx bigint;
    v_seq bigint;
    v_count bigint;
    v_taken bigint[];
    v_kept bigint[];
    v_from bigint := 0;
    v_old blackboard.pruned_events;
BEGIN
    SELECT least(p.tx + 1, (SELECT min(k.tx) FROM unnest(p.kept) k (tx))) INTO v_start
    FROM blackboard.pruned_events p WHERE p.session_id = p_session_id;
    -- Below that nothing is left but what an old snapshot still sees, which would be walked by every batch.
    v_start := coalesce(v_start, 0);
    IF p_limit IS NOT NULL THEN
        SELECT e.tx INTO v_end FROM blackboard.events e WHERE e.session_id = p_session_id AND e.tx >= v_start
        ORDER BY e.tx OFFSET p_limit - 1 LIMIT 1;
        v_end := coalesce(v_end, 9223372036854775807);
    END IF;
    PERFORM pg_catalog.set_config('blackboard.pruning', 'on', true);
    -- In one statement, hence of one moment: up to the first transaction that has an event of the time to keep, and who
    -- runs has nothing that can be taken.
    WITH gone AS (
        DELETE FROM blackboard.events e
        WHERE e.session_id = p_session_id AND e.tx BETWEEN v_start AND v_end
          AND e.tx < coalesce((SELECT min(b.tx) FROM blackboard.events b
                               WHERE b.session_id = p_session_id AND b.tx BETWEEN v_start AND v_end
                                 AND b.at >= p_before), 9223372036854775807)
        RETURNING e.tx, e.seq)
    SELECT (SELECT count(*) FROM gone), (SELECT max(g.tx) FROM gone g), (SELECT max(g.seq) FROM gone g),
           array(SELECT DISTINCT g.tx FROM gone g ORDER BY g.tx DESC LIMIT 1001),
           array(SELECT x::text::bigint + blackboard.tx_offset() FROM pg_snapshot_xip(pg_current_snapshot()) x)
    INTO v_count, v_tx, v_seq, v_taken, v_kept;
    PERFORM pg_catalog.set_config('blackboard.pruning', '', true);
    IF v_count = 0 THEN
        RETURN 0;
    END IF;
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
REVOKE EXECUTE ON FUNCTION blackboard.prune_events(uuid, timestamptz, integer) FROM PUBLIC;

-- ------------------------------------------------------------------------------------------------------- retention

-- What goes by itself: tasks (but dead letters) that ended longer ago than tasks, with their flows, and events older
-- than events; NULL keeps for ever. Only the owner writes here, hence only he decides what is deleted; whoever works on
-- the board carries it out. The other columns say how far that is.
CREATE TABLE blackboard.retentions (
    session_id uuid CONSTRAINT retentions_pkey PRIMARY KEY
        CONSTRAINT retentions_session_known REFERENCES blackboard.sessions (id) ON DELETE CASCADE,
    tasks interval CONSTRAINT retentions_tasks_range CHECK (tasks BETWEEN interval '0' AND interval '36500 days'),
    -- Repeated calls are recognised by the events of a moment ago.
    events interval CONSTRAINT retentions_events_range
        CHECK (events BETWEEN interval '1 hour' AND interval '36500 days'),
    due_at timestamptz NOT NULL DEFAULT blackboard.now(),
    phase text NOT NULL DEFAULT 'tasks' CONSTRAINT retentions_phase_known CHECK (phase IN ('tasks', 'flows', 'events')),
    after_id uuid,
    error text
) WITH (fillfactor = 50);

CREATE FUNCTION blackboard.history_retentions() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_session_id uuid := CASE WHEN TG_OP = 'DELETE' THEN OLD.session_id ELSE NEW.session_id END;
BEGIN
    -- Of a session that is deleted nothing is left to tell of.
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT s.id, 'session.retention_changed', s.id,
           jsonb_build_object('keep_tasks', CASE WHEN TG_OP <> 'DELETE' THEN NEW.tasks END,
                              'keep_events', CASE WHEN TG_OP <> 'DELETE' THEN NEW.events END)
    FROM blackboard.sessions s WHERE s.id = v_session_id;
    PERFORM blackboard.hint(v_session_id, 'sessions');
    RETURN NULL;
END
$$;
REVOKE EXECUTE ON FUNCTION blackboard.history_retentions() FROM PUBLIC;
CREATE TRIGGER history_change AFTER UPDATE ON blackboard.retentions
    FOR EACH ROW WHEN ((OLD.tasks, OLD.events) IS DISTINCT FROM (NEW.tasks, NEW.events))
    EXECUTE FUNCTION blackboard.history_retentions();
CREATE TRIGGER history_write AFTER INSERT OR DELETE ON blackboard.retentions
    FOR EACH ROW EXECUTE FUNCTION blackboard.history_retentions();
CREATE TRIGGER immutable AFTER UPDATE OF session_id ON blackboard.retentions
    FOR EACH ROW WHEN (OLD.session_id IS DISTINCT FROM NEW.session_id)
    EXECUTE FUNCTION blackboard.refuse_immutable('session_id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.retentions
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- What the session keeps is as given; NULL keeps for ever. Also of a session that is over. Returns what it was given.
-- Locks: the session's retention.
CREATE FUNCTION blackboard.keep_session(
    p_session_id uuid, p_tasks interval, p_events interval, p_actor text, OUT tasks interval, OUT events interval
)
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM FROM blackboard.sessions s WHERE s.id = p_session_id;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no session %s; list them with `blackboard session list`.',
                                                 p_session_id),
                                 jsonb_build_object('noun', 'session', 'id', p_session_id));
    END IF;
    IF p_tasks IS NULL AND p_events IS NULL THEN
        DELETE FROM blackboard.retentions r WHERE r.session_id = p_session_id;
    ELSE
        INSERT INTO blackboard.retentions AS r (session_id, tasks, events) VALUES (p_session_id, p_tasks, p_events)
        ON CONFLICT (session_id) DO UPDATE
        SET tasks = excluded.tasks, events = excluded.events, due_at = excluded.due_at, error = NULL
        WHERE (r.tasks, r.events) IS DISTINCT FROM (excluded.tasks, excluded.events) OR r.error IS NOT NULL;
    END IF;
    tasks := p_tasks;
    events := p_events;
END
$$;
REVOKE EXECUTE ON FUNCTION blackboard.keep_session(uuid, interval, interval, text) FROM PUBLIC;

-- One batch of what has to go: of the session whose turn it is, among p_scan tasks or flows, or so many events. Whoever
-- works on the board may call it as often as he likes; one at a time does the work of a session. It begins anew a
-- twentieth of the time to keep after it was through, but after a minute at the earliest and an hour at the latest.
-- One row: which session (NULL: nothing was due), what went, what went wrong, and in how many seconds to call again
-- (0: there is more; NULL: nothing ever goes).
-- Locks: the session's retention, then those tasks by id, or flows; waits for nobody longer than a second.
CREATE FUNCTION blackboard.keep_due(
    p_scan integer, OUT session_id uuid, OUT tasks integer, OUT flows integer, OUT events bigint, OUT error text,
    OUT seconds double precision
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s'
AS $$
DECLARE
    v_now timestamptz := blackboard.now();
    v_scan integer := least(greatest(p_scan, 1), 10000);
    v_statuses text[] := '{completed,failed,cancelled}';
    v_row blackboard.retentions;
    v_more boolean := false;
    v_pause interval := '0';
BEGIN
    tasks := 0;
    flows := 0;
    events := 0;
    SELECT * INTO v_row FROM blackboard.retentions r WHERE r.due_at <= v_now
    ORDER BY r.due_at, r.session_id LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        -- What is due and locked is in good hands.
        SELECT CASE WHEN count(*) > 0 THEN greatest(extract(epoch FROM min(r.due_at) - v_now), 1) END
        INTO seconds FROM blackboard.retentions r;
        RETURN;
    END IF;
    session_id := v_row.session_id;
    IF v_row.phase = 'tasks' AND v_row.after_id IS NULL THEN
        v_row.error := NULL;
    END IF;
    BEGIN
        IF v_row.phase = 'tasks' AND v_row.tasks IS NULL THEN
            v_row.phase := 'events';
        END IF;
        IF v_row.phase = 'tasks' THEN
            SELECT p.next, p.pruned INTO v_row.after_id, tasks FROM blackboard.prune_tasks(
                session_id, v_now - v_row.tasks, v_statuses, v_row.after_id, v_scan, false, 'retention') p;
            v_more := true;
            IF v_row.after_id IS NULL THEN
                v_row.phase := 'flows';
            END IF;
        ELSIF v_row.phase = 'flows' THEN
            IF v_row.tasks IS NULL THEN
                v_row.after_id := NULL;
            ELSE
                SELECT p.next, p.pruned INTO v_row.after_id, flows FROM blackboard.prune_flows(
                    session_id, v_now - v_row.tasks, v_statuses, v_row.after_id, v_scan, false, 'retention') p;
            END IF;
            v_more := v_row.after_id IS NOT NULL OR v_row.events IS NOT NULL;
            IF v_row.after_id IS NULL THEN
                v_row.phase := 'events';
            END IF;
        ELSIF v_row.events IS NOT NULL THEN
            events := blackboard.prune_events(session_id, v_now - v_row.events, v_scan);
            v_more := events > 0;
        END IF;
    EXCEPTION
        WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
            v_more := true;
            v_pause := interval '1 second';
        WHEN OTHERS THEN
            -- A table of the application's own may refer to what has to go: what comes after it goes all the same.
            v_row.error := format('%s (%s)', SQLERRM, SQLSTATE);
            error := v_row.error;
            v_more := v_row.phase = 'tasks';
            IF v_more THEN
                SELECT CASE WHEN count(*) = v_scan THEN (array_agg(w.id ORDER BY w.id DESC))[1] END
                INTO v_row.after_id FROM (
                    SELECT t.id FROM blackboard.tasks t
                    WHERE t.session_id = v_row.session_id
                      AND t.id > coalesce(v_row.after_id, '00000000-0000-0000-0000-000000000000')
                    ORDER BY t.id LIMIT v_scan) w;
                IF v_row.after_id IS NULL THEN
                    v_row.phase := 'flows';
                END IF;
            END IF;
    END;
    IF v_more THEN
        v_row.due_at := v_now + v_pause;
    ELSE
        v_row.phase := 'tasks';
        v_row.after_id := NULL;
        v_row.due_at := v_now + least(greatest(least(v_row.tasks, v_row.events) / 20, interval '1 minute'),
                                      interval '1 hour');
    END IF;
    UPDATE blackboard.retentions r
    SET phase = v_row.phase, after_id = v_row.after_id, error = v_row.error, due_at = v_row.due_at
    WHERE r.session_id = v_row.session_id;
    SELECT greatest(extract(epoch FROM min(r.due_at) - v_now), 0) INTO seconds FROM blackboard.retentions r;
END
$$;
REVOKE EXECUTE ON FUNCTION blackboard.keep_due(integer) FROM PUBLIC;

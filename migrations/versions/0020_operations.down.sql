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

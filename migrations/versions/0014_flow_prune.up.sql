-- Finished flows go with the tasks that are pruned; `why` does not contradict itself; ids are found by a part of them;
-- one refusal of a budget is told once, however many come at the same time.

-- --------------------------------------------------------------------------------------------------------- prune

-- Pruning leaves one short event a flow, and none for its stages and edges.
CREATE FUNCTION blackboard.record_pruned_flows() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT o.session_id, 'flow.pruned', o.id, jsonb_build_object('name', o.name, 'status', o.status) FROM old_rows o;
    RETURN NULL;
END
$$;
CREATE TRIGGER history_prune AFTER DELETE ON blackboard.flows REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT WHEN (pg_catalog.current_setting('blackboard.pruning', true) IS NOT DISTINCT FROM 'on')
    EXECUTE FUNCTION blackboard.record_pruned_flows();
DROP TRIGGER history_delete ON blackboard.flows;
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.flows REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT WHEN (pg_catalog.current_setting('blackboard.pruning', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION blackboard.record_delete('flow', 'id');
DROP TRIGGER history_delete ON blackboard.flow_stages;
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.flow_stages REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT WHEN (pg_catalog.current_setting('blackboard.pruning', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION blackboard.history_flow_stages_delete();
DROP TRIGGER history_delete ON blackboard.flow_edges;
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.flow_edges REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT WHEN (pg_catalog.current_setting('blackboard.pruning', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION blackboard.history_flow_edges();

-- Those of these tasks that a prune would take: they ended with one of the statuses before p_before, no unfinished task
-- depends on them, and their flow, if they have one, is over. In order of id.
CREATE FUNCTION blackboard.prunable_tasks(p_session_id uuid, p_ids uuid[], p_before timestamptz, p_statuses text[])
RETURNS uuid[]
LANGUAGE sql STABLE
AS $$
    SELECT coalesce(array_agg(t.id ORDER BY t.id), '{}') FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.id = ANY (p_ids) AND t.completed_at < p_before
      AND t.status = ANY (p_statuses)
      AND NOT (t.has_dependants AND (
              EXISTS (SELECT FROM blackboard.task_dependencies d
                      JOIN blackboard.tasks c ON c.session_id = d.session_id AND c.id = d.task_id
                      WHERE d.session_id = p_session_id AND d.depends_on_id = t.id AND c.completed_at IS NULL)
              OR EXISTS (SELECT FROM blackboard.flow_tasks m
                         JOIN blackboard.flows f ON f.session_id = m.session_id AND f.id = m.flow_id
                         WHERE m.session_id = p_session_id AND m.task_id = t.id AND f.finished_at IS NULL)))
$$;

-- Of the p_scan tasks after p_after (NULL: from the first), in order of id: those that ended with one of the statuses
-- before p_before go, with their late results and their edges; only counted with p_dry_run. A task that an unfinished
-- one depends on stays, and so does one of an unfinished flow. next is where to go on, NULL at the end. Owner only.
CREATE OR REPLACE FUNCTION blackboard.prune_tasks(
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
    DELETE FROM blackboard.task_dependencies d
    WHERE d.session_id = p_session_id AND (d.depends_on_id = ANY (v_ids) OR d.task_id = ANY (v_ids));
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

-- Of the flows after p_after (NULL: from the first), in order of id: those that ended with one of the statuses before
-- p_before, and of which no task is left, go with all that is theirs. p_scan bounds the flows that are looked at, and
-- what one call deletes: it stops after the flow with which it has taken so many rows, or within a larger one, of which
-- the next call takes the rest. With p_dry_run only counted; a task that prune_tasks would take counts as gone.
-- next is where to go on, NULL at the end. Owner only: nobody else may delete rows of flows.
-- Locks: the flows, one by one; those that somebody works on stay for another time.
CREATE FUNCTION blackboard.prune_flows(
    p_session_id uuid, p_before timestamptz, p_statuses text[], p_after uuid, p_scan integer, p_dry_run boolean,
    p_actor text, OUT next uuid, OUT pruned integer
)
LANGUAGE plpgsql SET xmloption = 'document'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
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
            SELECT array_agg(t.id) INTO v_tasks FROM blackboard.flow_tasks m
            JOIN blackboard.tasks t ON t.session_id = m.session_id AND t.id = m.task_id
            WHERE m.session_id = p_session_id AND m.flow_id = v_flow;
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
                        SELECT o.task_id FROM blackboard.flow_tasks o
                        WHERE o.session_id = p_session_id AND o.flow_id = v_flow LIMIT p_scan - v_rows)
                    DELETE FROM blackboard.flow_tasks m USING w
                    WHERE m.session_id = p_session_id AND m.task_id = w.task_id;
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
REVOKE EXECUTE ON FUNCTION
    blackboard.prune_flows(uuid, timestamptz, text[], uuid, integer, boolean, text) FROM PUBLIC;

-- ------------------------------------------------------------------------------------------------------------- ids

-- At most two of the ids that begin or end with these digits (6 to 32, lower case, no dashes): with two it is known that
-- they do not suffice. p_noun says of what, in the session; sessions themselves are looked for everywhere.
-- The beginning is a range of the primary key; for the end the session is read.
CREATE FUNCTION blackboard.find_ids(p_session_id uuid, p_noun text, p_digits text) RETURNS SETOF uuid
LANGUAGE plpgsql STABLE
-- Two rows of a range look as if they were soon met by reading the table.
SET enable_seqscan = off
AS $$
DECLARE
    v_from uuid;
    v_to uuid;
    v_found uuid[];
BEGIN
    IF p_digits !~ '^[0-9a-f]{6,32}$' THEN
        PERFORM blackboard.raise('BB002', 'A part of an id is 6 to 32 hexadecimal digits.', '{"field": "part"}');
    END IF;
    v_from := rpad(p_digits, 32, '0')::uuid;
    v_to := rpad(p_digits, 32, 'f')::uuid;
    v_found := array(
        SELECT t.id FROM blackboard.tasks t
        WHERE p_noun = 'task' AND t.session_id = p_session_id AND t.id BETWEEN v_from AND v_to
        UNION ALL
        SELECT t.id FROM blackboard.tasks t
        WHERE p_noun = 'dead_letter' AND t.session_id = p_session_id AND t.id BETWEEN v_from AND v_to
          AND t.status = 'dead'
        UNION ALL
        SELECT f.id FROM blackboard.flows f
        WHERE p_noun = 'flow' AND f.session_id = p_session_id AND f.id BETWEEN v_from AND v_to
        UNION ALL
        SELECT f.id FROM blackboard.findings f
        WHERE p_noun = 'finding' AND f.session_id = p_session_id AND f.id BETWEEN v_from AND v_to
        UNION ALL
        SELECT h.id FROM blackboard.hypotheses h
        WHERE p_noun = 'hypothesis' AND h.session_id = p_session_id AND h.id BETWEEN v_from AND v_to
        UNION ALL
        SELECT p.id FROM blackboard.proposals p
        WHERE p_noun = 'proposal' AND p.session_id = p_session_id AND p.id BETWEEN v_from AND v_to
        UNION ALL
        SELECT a.id FROM blackboard.actions a
        WHERE p_noun = 'action' AND a.session_id = p_session_id AND a.id BETWEEN v_from AND v_to
        UNION ALL
        SELECT s.id FROM blackboard.sessions s WHERE p_noun = 'session' AND s.id BETWEEN v_from AND v_to
        LIMIT 2);
    RETURN QUERY SELECT u.id FROM unnest(v_found) u (id);
    IF cardinality(v_found) = 2 THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT x.id FROM (
        SELECT t.id FROM blackboard.tasks t WHERE p_noun = 'task' AND t.session_id = p_session_id
        UNION ALL
        SELECT t.id FROM blackboard.tasks t
        WHERE p_noun = 'dead_letter' AND t.session_id = p_session_id AND t.status = 'dead'
        UNION ALL
        SELECT f.id FROM blackboard.flows f WHERE p_noun = 'flow' AND f.session_id = p_session_id
        UNION ALL
        SELECT f.id FROM blackboard.findings f WHERE p_noun = 'finding' AND f.session_id = p_session_id
        UNION ALL
        SELECT h.id FROM blackboard.hypotheses h WHERE p_noun = 'hypothesis' AND h.session_id = p_session_id
        UNION ALL
        SELECT p.id FROM blackboard.proposals p WHERE p_noun = 'proposal' AND p.session_id = p_session_id
        UNION ALL
        SELECT a.id FROM blackboard.actions a WHERE p_noun = 'action' AND a.session_id = p_session_id
        UNION ALL
        SELECT s.id FROM blackboard.sessions s WHERE p_noun = 'session') x
    WHERE right(replace(x.id::text, '-', ''), length(p_digits)) = p_digits AND x.id <> ALL (v_found)
    LIMIT 2 - cardinality(v_found);
END
$$;

-- ------------------------------------------------------------------------------------------------------------- why

-- Why a task that is ready, held or scheduled does not run: what would hold it if somebody came for it now.
-- What other rooms hold says so itself, in held {code, message, ...}.
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
                format('Limit %L%s allows %s starts in %s, and they were used up: it is tried again at %s.', v_row.name,
                       CASE WHEN v_row.key <> '' THEN format(' (key %L)', v_row.key) ELSE '' END,
                       v_row.rate_count, v_row.rate_period,
                       to_char(p_task.run_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')),
                jsonb_build_object('limit', v_row.name, 'key', nullif(v_row.key, ''), 'used', v_row.used,
                                   'rate_count', v_row.rate_count, 'rate_period', v_row.rate_period,
                                   'run_at', p_task.run_at));
        ELSIF v_row.kind = 'rate' AND p_task.status <> 'scheduled' AND v_row.in_window
              AND v_row.used >= v_row.rate_count
        THEN
            v_reasons := v_reasons || blackboard.reason('rate',
                format('Limit %L%s: %s starts in %s are used up; it is tried again at %s.', v_row.name,
                       CASE WHEN v_row.key <> '' THEN format(' (key %L)', v_row.key) ELSE '' END,
                       v_row.rate_count, v_row.rate_period,
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

-- Who could take a task that is ready; p_alone says that nothing else was found to hold it.
-- squawk-ignore ban-drop-function
DROP FUNCTION blackboard.why_nobody_took(blackboard.tasks);
CREATE FUNCTION blackboard.why_nobody_took(p_task blackboard.tasks, p_alone boolean) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_now timestamptz := blackboard.now();
    v_member blackboard.members;
    v_present integer;
    v_before integer;
    v_fallback text := to_char(p_task.fallback_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"');
BEGIN
    IF p_task.status = 'assigned' THEN
        SELECT * INTO v_member FROM blackboard.members m
        WHERE m.session_id = p_task.session_id AND m.id = p_task.assigned_to;
        RETURN blackboard.reason('assigned',
            CASE WHEN p_task.fallback_at <= v_now
                 THEN format('It waited for %s until %s: the next claim lets anybody have it.', p_task.assigned_to,
                             v_fallback)
                 WHEN p_task.fallback IS NOT NULL AND v_member.left_at IS NOT NULL
                 THEN format('It waited for %s, who has left this session: the next claim lets anybody have it.',
                             p_task.assigned_to)
                 ELSE format('Only %s may take it, and %s%s.', p_task.assigned_to,
                   CASE WHEN v_member.id IS NULL THEN 'it has not joined this session: start it, or cancel the task'
                        WHEN v_member.left_at IS NOT NULL THEN 'it has left this session: let it join again'
                        WHEN NOT v_member.present THEN 'its process is not there: start it again'
                        WHEN NOT p_alone THEN 'it is there'
                        ELSE 'it is there: it has not asked for more work yet' END,
                   CASE WHEN v_fallback IS NOT NULL THEN format('; from %s on anybody may', v_fallback) ELSE '' END) END,
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
-- how it ended. 'ready' is there only alone: nothing holds it.
CREATE OR REPLACE FUNCTION blackboard.why_task_waits(p_session_id uuid, p_id uuid) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
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
                        THEN '; its process is late with its heartbeat' ELSE '' END),
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
    ELSIF v_task.expires_at <= v_now THEN
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
$$;

-- What flows and budgets know of a task's waiting is told with the rest; what they hold is not said to be ready.
CREATE OR REPLACE FUNCTION blackboard.why_task(p_session_id uuid, p_id uuid) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
    SELECT jsonb_set(w.why, '{reasons}', CASE WHEN x.more IS NULL THEN w.why -> 'reasons' ELSE (
               SELECT coalesce(jsonb_agg(r.reason ORDER BY r.n) FILTER (WHERE r.reason ->> 'code' <> 'ready'), '[]')
               FROM jsonb_array_elements(w.why -> 'reasons') WITH ORDINALITY r (reason, n)) || x.more END)
    FROM (SELECT blackboard.why_task_waits(p_session_id, p_id) AS why) w
    CROSS JOIN LATERAL (
        SELECT jsonb_agg(blackboard.reason(m.more ->> 'code', (m.more ->> 'message') || m.ends,
                                           m.more - 'code' - 'message')) AS more
        FROM (SELECT blackboard.flow_reason(p_session_id, p_id) AS more, '' AS ends
              UNION ALL
              SELECT b.more, format(' Nothing more can be spent on this task until it is raised with '
                                    '`blackboard budget set`%s.',
                                    coalesce(' or begins anew at ' || to_char(
                                        (b.more ->> 'resets_at')::timestamptz AT TIME ZONE 'UTC',
                                        'YYYY-MM-DD HH24:MI:SS"Z"'), ''))
              FROM (SELECT blackboard.budget_reason(p_session_id, p_id) AS more) b) m
        -- A held task says by itself what holds it, and one that is to be cancelled waits for nothing else.
        WHERE m.more IS NOT NULL AND NOT (w.why -> 'reasons') @> jsonb_build_array(
                  jsonb_build_object('code', m.more -> 'code'))
          AND NOT (w.why -> 'reasons') @> '[{"code": "deadline"}]'
          AND w.why ->> 'status' NOT IN ('completed', 'failed', 'cancelled', 'dead')) x
$$;

-- Why a task cannot spend: the first budget that is used up, of its session, its own or its agent's; NULL for none.
-- Whoever held it last is its agent no more.
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
        t.session_id, CASE WHEN t.attempt = 0 OR t.status IN ('assigned', 'running') THEN t.assigned_to END, t.id) b
    WHERE t.session_id = p_session_id AND t.id = p_task_id
    LIMIT 1
$$;

-- --------------------------------------------------------------------------------------------------------- budgets

-- Puts on record that BB014 was the answer: that took back its whole transaction. Said once for each agent and task
-- while nothing of the budget changes, whatever was asked and however many are refused at the same time.
-- Locks: the right to say it of this budget, which nobody holds while waiting for anything else.
CREATE OR REPLACE FUNCTION blackboard.refuse_budget(p_session_id uuid, p_agent_id text, p_facts jsonb) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_budget blackboard.budgets;
    v_data jsonb;
BEGIN
    IF pg_column_size(p_facts) > 8192 THEN
        RETURN false;
    END IF;
    FOR v_look IN 1 .. 2 LOOP
        SELECT * INTO v_budget FROM blackboard.budgets b
        WHERE b.session_id = p_session_id AND b.id = (p_facts ->> 'budget')::uuid;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        v_data := jsonb_build_object(
            'agent_id', p_agent_id, 'task_id', p_facts -> 'task_id', 'scope', v_budget.scope, 'unit', v_budget.unit,
            'currency', v_budget.currency, 'asked', p_facts -> 'asked', 'ceiling', trim_scale(v_budget.ceiling),
            'spent', trim_scale(v_budget.spent), 'reserved', trim_scale(v_budget.reserved));
        -- Among what was said since the last event of another kind.
        PERFORM 1 FROM (
            SELECT e.type, e.data, e.seq, max(e.seq) FILTER (WHERE e.type <> 'budget.refused') OVER () AS changed
            FROM (SELECT * FROM blackboard.events l
                  WHERE l.session_id = p_session_id AND l.subject_id = v_budget.id ORDER BY l.seq DESC LIMIT 1000) e) s
        WHERE s.type = 'budget.refused' AND s.seq > coalesce(s.changed, 0) AND s.data - 'asked' = v_data - 'asked'
        LIMIT 1;
        IF FOUND THEN
            RETURN false;
        END IF;
        -- Looked at again when nobody else can be about to say the same.
        IF v_look = 1 THEN
            PERFORM pg_advisory_xact_lock(hashtextextended('blackboard refusal ' || v_budget.id, 0));
        END IF;
    END LOOP;
    INSERT INTO blackboard.events (session_id, actor, type, subject_id, data)
    VALUES (p_session_id, p_agent_id, 'budget.refused', v_budget.id, v_data);
    PERFORM blackboard.hint(p_session_id, 'budgets');
    RETURN true;
END
$$;

-- The functions as they were.

DROP TRIGGER history_prune ON blackboard.flows;
DROP TRIGGER history_delete ON blackboard.flows;
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.flows REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('flow', 'id');
DROP TRIGGER history_delete ON blackboard.flow_stages;
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.flow_stages REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_flow_stages_delete();
DROP TRIGGER history_delete ON blackboard.flow_edges;
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.flow_edges REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_flow_edges();
DROP FUNCTION blackboard.prune_flows(uuid, timestamptz, text[], uuid, integer, boolean, text);
DROP FUNCTION blackboard.record_pruned_flows();
DROP FUNCTION blackboard.find_ids(uuid, text, text);

-- Of the p_scan tasks after p_after (NULL: from the first), in order of id: those that ended with one of the statuses
-- before p_before go, with their late results and their edges; only counted with p_dry_run. A task that an unfinished
-- one depends on stays. next is where to go on, NULL at the end. Owner only.
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

DROP FUNCTION blackboard.prunable_tasks(uuid, uuid[], timestamptz, text[]);

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

DROP FUNCTION blackboard.why_nobody_took(blackboard.tasks, boolean);
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

CREATE OR REPLACE FUNCTION blackboard.why_task(p_session_id uuid, p_id uuid) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
    SELECT jsonb_set(w.why, '{reasons}', (w.why -> 'reasons') || coalesce((
        SELECT jsonb_agg(blackboard.reason(m.more ->> 'code', m.more ->> 'message', m.more - 'code' - 'message'))
        FROM (SELECT blackboard.flow_reason(p_session_id, p_id) AS more
              UNION ALL
              SELECT blackboard.budget_reason(p_session_id, p_id)) m
        -- A held task says by itself what holds it.
        WHERE m.more IS NOT NULL AND NOT (w.why -> 'reasons') @> jsonb_build_array(
                  jsonb_build_object('code', m.more -> 'code'))
          AND w.why ->> 'status' NOT IN ('completed', 'failed', 'cancelled', 'dead')), '[]'))
    FROM (SELECT blackboard.why_task_waits(p_session_id, p_id) AS why) w
$$;

-- Why a task cannot spend: the first budget that is used up, of its session, its own or its agent's; NULL for none.
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
    CROSS JOIN LATERAL blackboard.spent_budgets(t.session_id, t.assigned_to, t.id) b
    WHERE t.session_id = p_session_id AND t.id = p_task_id
    LIMIT 1
$$;

-- Puts on record that BB014 was the answer: that took back its whole transaction. Said once while nothing changes.
CREATE OR REPLACE FUNCTION blackboard.refuse_budget(p_session_id uuid, p_agent_id text, p_facts jsonb) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_budget blackboard.budgets;
    v_last jsonb;
    v_data jsonb;
BEGIN
    SELECT * INTO v_budget FROM blackboard.budgets b
    WHERE b.session_id = p_session_id AND b.id = (p_facts ->> 'budget')::uuid;
    IF NOT FOUND OR pg_column_size(p_facts) > 8192 THEN
        RETURN false;
    END IF;
    v_data := jsonb_build_object(
        'agent_id', p_agent_id, 'task_id', p_facts -> 'task_id', 'scope', v_budget.scope, 'unit', v_budget.unit,
        'currency', v_budget.currency, 'asked', p_facts -> 'asked', 'ceiling', trim_scale(v_budget.ceiling),
        'spent', trim_scale(v_budget.spent), 'reserved', trim_scale(v_budget.reserved));
    SELECT e.data INTO v_last FROM blackboard.events e
    WHERE e.session_id = p_session_id AND e.subject_id = v_budget.id ORDER BY e.seq DESC LIMIT 1;
    IF v_last = v_data THEN
        RETURN false;
    END IF;
    INSERT INTO blackboard.events (session_id, actor, type, subject_id, data)
    VALUES (p_session_id, p_agent_id, 'budget.refused', v_budget.id, v_data);
    PERFORM blackboard.hint(p_session_id, 'budgets');
    RETURN true;
END
$$;

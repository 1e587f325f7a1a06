CREATE SCHEMA blackboard;

CREATE TYPE blackboard.tallied AS (
	votes_for integer,
	votes_against integer,
	abstentions integer,
	outstanding integer,
	weight_for numeric,
	weight_against numeric,
	weight_abstained numeric,
	weight_total numeric,
	turnout double precision,
	outcome text,
	certain boolean
);

CREATE TABLE blackboard.locks (
    session_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    name text NOT NULL,
    holder text,
    lease_id uuid,
    request_id uuid,
    token bigint DEFAULT 0 NOT NULL,
    acquired_at timestamp with time zone,
    expires_at timestamp with time zone,
    released_token bigint DEFAULT 0 NOT NULL,
    last_position bigint DEFAULT 0 NOT NULL,
    CONSTRAINT locks_held_whole CHECK ((((holder IS NULL) = (acquired_at IS NULL)) AND ((holder IS NULL) = (request_id IS NULL)) AND ((holder IS NOT NULL) OR ((lease_id IS NULL) AND (expires_at IS NULL))) AND ((holder IS NULL) OR (token > 0)))),
    CONSTRAINT locks_holder_has_an_end CHECK (((holder IS NULL) OR (lease_id IS NOT NULL) OR (expires_at IS NOT NULL))),
    CONSTRAINT locks_name_length CHECK (((length(name) >= 1) AND (length(name) <= 300))),
    CONSTRAINT locks_token_range CHECK ((token >= 0))
)
WITH (fillfactor='70');

COMMENT ON COLUMN blackboard.locks.token IS 'Grows with every grant of this name: the fencing token of its holder.';

COMMENT ON COLUMN blackboard.locks.expires_at IS 'NULL: held until released or until the lease lapses. No history.';

CREATE FUNCTION blackboard.acquire_lock(p_session_id uuid, p_name text, p_agent_id text, p_lease_id uuid, p_request_id uuid, p_ttl interval DEFAULT NULL::interval, p_wait interval DEFAULT NULL::interval) RETURNS blackboard.locks
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_lock blackboard.locks;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    PERFORM blackboard.commit_synchronously();
    PERFORM blackboard.open_session(p_session_id);
    PERFORM blackboard.current_member(p_session_id, p_agent_id);
    PERFORM blackboard.live_lease(p_lease_id);
    IF p_ttl <= interval '0' OR p_wait < interval '0' THEN
        PERFORM blackboard.raise('BB002', 'A lock''s ttl must be positive, and its wait not negative.',
                                 jsonb_build_object('field',
                                                    CASE WHEN p_ttl <= interval '0' THEN 'ttl' ELSE 'wait' END));
    END IF;
    LOOP
        SELECT * INTO v_lock FROM blackboard.locks WHERE session_id = p_session_id AND name = p_name FOR NO KEY UPDATE;
        EXIT WHEN FOUND;
        INSERT INTO blackboard.locks (session_id, name) VALUES (p_session_id, p_name)
        ON CONFLICT ON CONSTRAINT locks_name_once DO NOTHING;
    END LOOP;
    PERFORM FROM blackboard.lock_waiters
    WHERE session_id = p_session_id AND id = p_request_id AND (lock_id <> v_lock.id OR agent_id <> p_agent_id);
    IF FOUND OR (v_lock.request_id = p_request_id AND v_lock.holder <> p_agent_id) THEN
        PERFORM blackboard.raise('BB004', 'This request is for another lock or of another agent; use a new request_id.',
                                 jsonb_build_object('noun', 'lock', 'field', 'request_id', 'id', p_request_id));
    END IF;
    -- Who asks again is alive: a waiting request keeps its place and gets its new end.
    UPDATE blackboard.lock_waiters
    SET lease_id = p_lease_id, ttl = p_ttl, deadline_at = greatest(deadline_at, blackboard.now() + p_wait)
    WHERE session_id = p_session_id AND id = p_request_id;
    v_lock := blackboard.advance_lock(p_session_id, v_lock.id);
    IF v_lock.request_id IS DISTINCT FROM p_request_id THEN
        -- At the tail; whoever is first gets the lock if it is free, which is this request if it is alone.
        INSERT INTO blackboard.lock_waiters (session_id, id, lock_id, agent_id, lease_id, position, ttl, deadline_at)
        VALUES (p_session_id, p_request_id, v_lock.id, p_agent_id, p_lease_id, v_lock.last_position + 1, p_ttl,
                blackboard.now() + coalesce(nullif(p_wait, interval '0'), interval '1 minute'))
        ON CONFLICT ON CONSTRAINT lock_waiters_pkey DO NOTHING;
        IF FOUND THEN
            UPDATE blackboard.locks SET last_position = last_position + 1
            WHERE session_id = p_session_id AND id = v_lock.id;
            v_lock := blackboard.advance_lock(p_session_id, v_lock.id);
        END IF;
    END IF;
    IF v_lock.request_id IS DISTINCT FROM p_request_id AND coalesce(p_wait, interval '0') = interval '0' THEN
        DELETE FROM blackboard.lock_waiters WHERE session_id = p_session_id AND id = p_request_id;
    END IF;
    RETURN v_lock;
END
$$;

CREATE FUNCTION blackboard.act_as(p_actor text) RETURNS void
    LANGUAGE sql
    AS $$ SELECT pg_catalog.set_config('blackboard.actor', coalesce(p_actor, ''), true) $$;

CREATE FUNCTION blackboard.actions_admit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM blackboard.open_session(NEW.session_id);
    IF NEW.status <> 'proposed' OR NEW.vote_accepted OR NEW.approved_by IS NOT NULL OR NEW.token <> 0 THEN
        PERFORM blackboard.raise('BB003', 'An action starts as proposed; approve and start it afterwards.',
                                 jsonb_build_object('noun', 'action', 'status', NEW.status));
    END IF;
    IF NEW.requires_approval THEN
        NEW.approval := coalesce(NEW.approval, CASE WHEN NEW.proposal_id IS NULL OR NEW.type = 'escalate'
                                                    THEN 'human' ELSE 'vote' END);
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION blackboard.actions_guard() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_proposal blackboard.proposals;
BEGIN
    IF (NEW.session_id, NEW.id, NEW.agent_id, NEW.type, NEW.target, NEW.parameters, NEW.requires_approval,
        NEW.proposal_id, NEW.created_at)
       IS DISTINCT FROM
       (OLD.session_id, OLD.id, OLD.agent_id, OLD.type, OLD.target, OLD.parameters, OLD.requires_approval,
        OLD.proposal_id, OLD.created_at) THEN
        PERFORM blackboard.raise('BB005', 'What was proposed cannot be changed, or another thing than the approved one '
                                          'would run; propose another action.',
                                 jsonb_build_object('noun', 'action', 'id', OLD.id));
    END IF;
    IF NEW.vote_accepted <> OLD.vote_accepted OR NEW.approval IS DISTINCT FROM OLD.approval THEN
        SELECT * INTO v_proposal FROM blackboard.proposals
        WHERE session_id = OLD.session_id AND id = OLD.proposal_id;
        IF (NEW.vote_accepted <> OLD.vote_accepted
            AND (OLD.vote_accepted OR v_proposal.status IS DISTINCT FROM 'accepted'))
           OR (NEW.approval IS DISTINCT FROM OLD.approval
               AND (NEW.approval IS DISTINCT FROM 'human'
                    OR v_proposal.result ->> 'reason' IS DISTINCT FROM 'escalated'))
        THEN
            PERFORM blackboard.raise('BB003', 'The vote on this action has not decided that.',
                                     jsonb_build_object('noun', 'action', 'id', OLD.id, 'status', OLD.status));
        END IF;
    END IF;
    IF NEW.status <> OLD.status OR NEW.token <> OLD.token THEN
        NEW.decided_at := CASE WHEN NEW.status IN ('proposed', 'awaiting_approval') THEN NULL
                               ELSE coalesce(OLD.decided_at, blackboard.now()) END;
        NEW.started_at := CASE WHEN NEW.status = 'executing' THEN blackboard.now() ELSE OLD.started_at END;
        NEW.finished_at := CASE WHEN NEW.status IN ('completed', 'failed') THEN blackboard.now()
                                WHEN NEW.status = 'rolled_back' THEN OLD.finished_at END;
    ELSE
        NEW.decided_at := OLD.decided_at;
        NEW.started_at := OLD.started_at;
        NEW.finished_at := OLD.finished_at;
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION blackboard.active_finding(p_session_id uuid, p_id uuid) RETURNS void
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    v_status text;
BEGIN
    SELECT f.status INTO v_status FROM blackboard.findings f WHERE f.session_id = p_session_id AND f.id = p_id;
    IF NOT FOUND THEN
        PERFORM blackboard.no_finding(p_id);
    ELSIF v_status <> 'active' THEN
        PERFORM blackboard.raise('BB012', format('The finding %s is %s and proves nothing; use an active one.', p_id,
                                                 v_status),
                                 jsonb_build_object('noun', 'finding', 'id', p_id, 'status', v_status));
    END IF;
END
$$;

CREATE FUNCTION blackboard.add_dependencies(p_session_id uuid, p_ids uuid[], p_options jsonb[], p_new uuid[]) RETURNS void
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
    v_tasks uuid[];
    v_parents uuid[];
    v_policies text[];
    v_id uuid;
BEGIN
    SELECT array_agg(x.id), array_agg(d.id), array_agg(d.on_failure) INTO v_tasks, v_parents, v_policies
    FROM unnest(p_ids, p_options) x (id, options),
         LATERAL blackboard.dependency_options(x.options) d (id, on_failure)
    WHERE p_new IS NULL OR x.id IN (SELECT unnest(p_new));
    SELECT u.id INTO v_id
    FROM (SELECT DISTINCT x.id FROM unnest(v_parents) x (id)) u
    LEFT JOIN LATERAL (SELECT true AS there FROM blackboard.tasks t
                       WHERE t.session_id = p_session_id AND t.id = u.id OFFSET 0) t ON true
    WHERE t.there IS NULL
    LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no task %s in this session to depend on.', v_id),
                                 jsonb_build_object('noun', 'task', 'id', v_id, 'field', 'depends_on'));
    END IF;
    INSERT INTO blackboard.task_dependencies (session_id, task_id, depends_on_id, on_failure)
    SELECT p_session_id, e.task_id, e.depends_on_id, e.on_failure
    FROM unnest(v_tasks, v_parents, v_policies) e (task_id, depends_on_id, on_failure)
    ON CONFLICT DO NOTHING;
END
$$;

CREATE FUNCTION blackboard.now() RETURNS timestamp with time zone
    LANGUAGE sql PARALLEL SAFE
    AS $$ SELECT pg_catalog.clock_timestamp() $$;

CREATE TABLE blackboard.hypotheses (
    session_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    agent_id text NOT NULL,
    statement text NOT NULL,
    status text DEFAULT 'proposed'::text NOT NULL,
    prior double precision DEFAULT 0.5 NOT NULL,
    confidence double precision DEFAULT 0.5 NOT NULL,
    revision integer DEFAULT 0 NOT NULL,
    validated_by text,
    validated_at timestamp with time zone,
    verdict_evidence uuid[] DEFAULT '{}'::uuid[] NOT NULL,
    reason text DEFAULT ''::text NOT NULL,
    created_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    updated_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    CONSTRAINT hypotheses_agent_id_length CHECK (((length(agent_id) >= 1) AND (length(agent_id) <= 100))),
    CONSTRAINT hypotheses_confidence_range CHECK (((confidence >= (0.01)::double precision) AND (confidence <= (0.99)::double precision))),
    CONSTRAINT hypotheses_prior_range CHECK (((prior >= (0)::double precision) AND (prior <= (1)::double precision))),
    CONSTRAINT hypotheses_reason_length CHECK ((length(reason) <= 4000)),
    CONSTRAINT hypotheses_revision_range CHECK ((revision >= 0)),
    CONSTRAINT hypotheses_statement_length CHECK (((length(statement) >= 1) AND (length(statement) <= 2000))),
    CONSTRAINT hypotheses_status_known CHECK ((status = ANY (ARRAY['proposed'::text, 'validated'::text, 'refuted'::text, 'withdrawn'::text]))),
    CONSTRAINT hypotheses_validated_by_length CHECK (((length(validated_by) >= 1) AND (length(validated_by) <= 100))),
    CONSTRAINT hypotheses_verdict_evidence_few CHECK (((cardinality(verdict_evidence) <= 1000) AND (array_position(verdict_evidence, NULL::uuid) IS NULL))),
    CONSTRAINT hypotheses_verdict_iff_decided CHECK ((((status = ANY (ARRAY['validated'::text, 'refuted'::text])) = (validated_by IS NOT NULL)) AND ((status = ANY (ARRAY['validated'::text, 'refuted'::text])) = (validated_at IS NOT NULL)))),
    CONSTRAINT hypotheses_verdict_needs_evidence CHECK (((status = ANY (ARRAY['validated'::text, 'refuted'::text])) = (cardinality(verdict_evidence) > 0)))
);

COMMENT ON COLUMN blackboard.hypotheses.confidence IS 'Computed: blackboard.hypothesis_confidence() says how. Status stands apart from it.';

CREATE FUNCTION blackboard.add_evidence(p_session_id uuid, p_id uuid, p_finding_id uuid, p_supports boolean, p_weight double precision, p_actor text) RETURNS blackboard.hypotheses
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_hypothesis blackboard.hypotheses;
    v_link blackboard.hypothesis_evidence;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    PERFORM 1 FROM blackboard.findings f
    WHERE f.session_id = p_session_id AND f.id = p_finding_id FOR NO KEY UPDATE;
    PERFORM 1 FROM blackboard.hypotheses h
    WHERE h.session_id = p_session_id AND h.id = p_id FOR NO KEY UPDATE;
    SELECT * INTO v_link FROM blackboard.hypothesis_evidence e
    WHERE e.session_id = p_session_id AND e.hypothesis_id = p_id AND e.finding_id = p_finding_id
      AND e.retracted_at IS NULL;
    IF NOT FOUND THEN
        PERFORM blackboard.active_finding(p_session_id, p_finding_id);
        PERFORM blackboard.proposed_hypothesis(p_session_id, p_id);
        INSERT INTO blackboard.hypothesis_evidence (session_id, hypothesis_id, finding_id, agent_id, supports, weight)
        VALUES (p_session_id, p_id, p_finding_id, blackboard.current_actor(), p_supports, p_weight);
    ELSIF (v_link.supports, v_link.weight) IS DISTINCT FROM (p_supports, p_weight) THEN
        PERFORM blackboard.raise('BB012',
            'This finding is evidence for that hypothesis already, with another direction or weight; retract it first.',
            jsonb_build_object('noun', 'evidence', 'id', v_link.id, 'supports', v_link.supports,
                               'weight', v_link.weight));
    END IF;
    SELECT * INTO v_hypothesis FROM blackboard.hypotheses h WHERE h.session_id = p_session_id AND h.id = p_id;
    RETURN v_hypothesis;
END
$$;

CREATE FUNCTION blackboard.add_plain_task(p_session_id uuid, p_id uuid, p_type text, p_capability text, p_priority smallint, p_parameters jsonb, p_actor text, p_hint boolean) RETURNS timestamp with time zone
    LANGUAGE plpgsql
    SET xmlbinary TO 'hex'
    AS $$
DECLARE
    v_at timestamptz;
    v_actor text := pg_catalog.set_config('blackboard.actor', coalesce(p_actor, ''), true);
BEGIN
    INSERT INTO blackboard.tasks AS t (session_id, id, type, capability, priority, parameters)
    VALUES (p_session_id, p_id, p_type, p_capability, p_priority, p_parameters)
    ON CONFLICT (session_id, id) DO NOTHING
    RETURNING t.created_at INTO v_at;
    IF p_hint AND v_at IS NOT NULL AND current_setting('blackboard.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_notify('blackboard', p_session_id::text || ' tasks.ready');
    END IF;
    RETURN v_at;
END
$$;

CREATE FUNCTION blackboard.current_actor() RETURNS text
    LANGUAGE sql STABLE
    AS $$ SELECT coalesce(nullif(pg_catalog.current_setting('blackboard.actor', true), ''), session_user::text) $$;

CREATE FUNCTION blackboard.schedule_options_fit(p_options jsonb) RETURNS boolean
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

CREATE TABLE blackboard.schedules (
    session_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    name text NOT NULL,
    cron text NOT NULL,
    timezone text DEFAULT 'UTC'::text NOT NULL,
    type text NOT NULL,
    capability text DEFAULT ''::text NOT NULL,
    priority smallint DEFAULT 5 NOT NULL,
    parameters jsonb DEFAULT '{}'::jsonb NOT NULL,
    options jsonb DEFAULT '{}'::jsonb NOT NULL,
    missed text DEFAULT 'once'::text NOT NULL,
    paused boolean DEFAULT false NOT NULL,
    error text,
    next_at timestamp with time zone,
    last_at timestamp with time zone,
    last_task_id uuid,
    fired bigint DEFAULT 0 NOT NULL,
    skipped bigint DEFAULT 0 NOT NULL,
    created_by text DEFAULT blackboard.current_actor() NOT NULL,
    created_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    removed_at timestamp with time zone,
    CONSTRAINT schedules_capability_length CHECK ((length(capability) <= 100)),
    CONSTRAINT schedules_cron_length CHECK (((length(cron) >= 1) AND (length(cron) <= 200))),
    CONSTRAINT schedules_error_length CHECK ((length(error) <= 10000)),
    CONSTRAINT schedules_error_when_paused CHECK (((error IS NULL) OR paused)),
    CONSTRAINT schedules_fired_range CHECK ((fired >= 0)),
    CONSTRAINT schedules_last_task_iff_fired CHECK ((((fired > 0) = (last_at IS NOT NULL)) AND ((fired > 0) = (last_task_id IS NOT NULL)))),
    CONSTRAINT schedules_missed_known CHECK ((missed = ANY (ARRAY['skip'::text, 'once'::text, 'all'::text]))),
    CONSTRAINT schedules_name_length CHECK (((length(name) >= 1) AND (length(name) <= 200))),
    CONSTRAINT schedules_options_fit CHECK (blackboard.schedule_options_fit(options)),
    CONSTRAINT schedules_parameters_size CHECK ((pg_column_size(parameters) <= 1048576)),
    CONSTRAINT schedules_priority_range CHECK (((priority >= 0) AND (priority <= 10))),
    CONSTRAINT schedules_skipped_range CHECK ((skipped >= 0)),
    CONSTRAINT schedules_timezone_length CHECK (((length(timezone) >= 1) AND (length(timezone) <= 100))),
    CONSTRAINT schedules_type_length CHECK (((length(type) >= 1) AND (length(type) <= 50)))
);

CREATE FUNCTION blackboard.add_schedule(p_session_id uuid, p_id uuid, p_name text, p_cron text, p_timezone text, p_type text, p_capability text, p_priority smallint, p_parameters jsonb, p_options jsonb, p_missed text, p_next_at timestamp with time zone, p_actor text) RETURNS SETOF blackboard.schedules
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    INSERT INTO blackboard.schedules (session_id, id, name, cron, timezone, type, capability, priority, parameters,
                                      options, missed, next_at, created_by)
    VALUES (p_session_id, p_id, p_name, p_cron, p_timezone, p_type, p_capability, p_priority, p_parameters, p_options,
            p_missed, p_next_at, blackboard.current_actor())
    ON CONFLICT (session_id, id) DO NOTHING;
    IF NOT FOUND THEN
        PERFORM FROM blackboard.schedules s
        WHERE s.session_id = p_session_id AND s.id = p_id
          AND (s.name, s.cron, s.timezone, s.type, s.capability, s.priority, s.parameters, s.options, s.missed)
              IS DISTINCT FROM
              (p_name, p_cron, p_timezone, p_type, p_capability, p_priority, p_parameters, p_options, p_missed);
        IF FOUND THEN
            PERFORM blackboard.raise('BB004', 'A schedule with this id has other content; use a new id.',
                                     jsonb_build_object('noun', 'schedule', 'id', p_id, 'field', 'id'));
        END IF;
    END IF;
    RETURN QUERY SELECT * FROM blackboard.schedules s WHERE s.session_id = p_session_id AND s.id = p_id;
END
$$;

CREATE FUNCTION blackboard.add_stages(p_session_id uuid, p_flow_id uuid, p_stages jsonb) RETURNS void
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

CREATE FUNCTION blackboard.new_id() RETURNS uuid
    LANGUAGE sql PARALLEL SAFE
    AS $$
    -- 48 bits of milliseconds, and the version: what a random id has for it is 0100, which becomes 0111.
    SELECT encode(set_bit(set_bit(overlay(
        uuid_send(gen_random_uuid()) PLACING
        substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
        52, 1), 53, 1), 'hex')::uuid
$$;

CREATE SEQUENCE blackboard.task_positions
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

CREATE TABLE blackboard.tasks (
    session_id uuid NOT NULL,
    id uuid DEFAULT blackboard.new_id() NOT NULL,
    type text NOT NULL,
    capability text DEFAULT ''::text NOT NULL,
    priority smallint DEFAULT 5 NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    "position" bigint DEFAULT nextval('blackboard.task_positions'::regclass),
    parameters jsonb DEFAULT '{}'::jsonb NOT NULL,
    assigned_to text,
    timeout interval,
    requires_approval boolean DEFAULT false NOT NULL,
    approved_by text,
    run_at timestamp with time zone,
    attempt integer DEFAULT 0 NOT NULL,
    released integer DEFAULT 0 NOT NULL,
    max_attempts integer DEFAULT 5 NOT NULL,
    retry_delay interval DEFAULT '00:00:01'::interval NOT NULL,
    claim_id uuid,
    lease_id uuid,
    started_at timestamp with time zone,
    deadline_at timestamp with time zone,
    cancel_requested boolean DEFAULT false NOT NULL,
    blockers integer DEFAULT 0 NOT NULL,
    has_dependants boolean DEFAULT false NOT NULL,
    unique_key text,
    limit_key text,
    expires_at timestamp with time zone,
    fallback interval,
    fallback_at timestamp with time zone,
    aged_at timestamp with time zone,
    limited boolean DEFAULT false NOT NULL,
    held jsonb,
    progress jsonb,
    result jsonb,
    error jsonb,
    created_by text DEFAULT blackboard.current_actor() NOT NULL,
    created_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    completed_at timestamp with time zone,
    CONSTRAINT tasks_assigned_to_length CHECK (((length(assigned_to) >= 1) AND (length(assigned_to) <= 100))),
    CONSTRAINT tasks_capability_length CHECK ((length(capability) <= 100))
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_analyze_scale_factor='0.05', autovacuum_analyze_threshold='1000', fillfactor='50');

COMMENT ON TABLE blackboard.tasks IS 'What is to be done, and by whom; its rules are those of blackboard.broken_task_rule().';

CREATE FUNCTION blackboard.add_task(p_session_id uuid, p_id uuid, p_type text, p_capability text, p_priority smallint, p_parameters jsonb, p_options jsonb, p_actor text) RETURNS SETOF blackboard.tasks
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_id uuid := p_id;
BEGIN
    IF p_options ? 'unique' THEN
        PERFORM blackboard.act_as(p_actor);
        v_id := (blackboard.unique_tasks(p_session_id, ARRAY[p_id], ARRAY[p_options]))[1];
        IF v_id <> p_id THEN
            RETURN QUERY SELECT t.* FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = v_id;
            RETURN;
        END IF;
    END IF;
    PERFORM blackboard.add_tasks(p_session_id, ARRAY[p_id], ARRAY[p_type], ARRAY[p_capability], ARRAY[p_priority],
                                 ARRAY[p_parameters], ARRAY[p_options], p_actor);
    RETURN QUERY SELECT t.* FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = p_id;
END
$$;

CREATE FUNCTION blackboard.add_tasks(p_session_id uuid, p_ids uuid[], p_types text[], p_capabilities text[], p_priorities smallint[], p_parameters jsonb[], p_options jsonb[], p_actor text) RETURNS integer
    LANGUAGE plpgsql
    SET xmlbinary TO 'hex'
    AS $$
DECLARE
    v_added integer;
    -- Those that were not there before; NULL: all of them.
    v_new uuid[];
BEGIN
    PERFORM blackboard.act_as(p_actor);
    INSERT INTO blackboard.tasks (
        session_id, id, type, capability, priority, parameters, assigned_to, run_at, timeout, requires_approval,
        max_attempts, retry_delay, unique_key, limit_key, expires_at, fallback, fallback_at, status, position,
        created_by)
    SELECT p_session_id, u.id, u.type, u.capability, u.priority, u.parameters, u.options ->> 'assigned_to',
           (u.options ->> 'run_at')::timestamptz, (u.options ->> 'timeout')::interval,
           coalesce((u.options ->> 'requires_approval')::boolean, false),
           coalesce((u.options ->> 'max_attempts')::integer, 5),
           coalesce((u.options ->> 'retry_delay')::interval, interval '1 second'),
           u.options #>> '{unique,key}', u.options ->> 'limit_key', (u.options ->> 'expires_at')::timestamptz,
           (u.options ->> 'fallback')::interval,
           CASE WHEN u.options ? 'fallback' AND NOT u.options ? 'depends_on' AND u.status IN ('assigned', 'scheduled')
                THEN greatest(blackboard.now(), (u.options ->> 'run_at')::timestamptz)
                     + (u.options ->> 'fallback')::interval END,
           u.status,
           CASE WHEN u.status IN ('pending', 'assigned') THEN nextval('blackboard.task_positions') END,
           blackboard.current_actor()
    FROM (SELECT x.id, x.type, x.capability, x.priority, x.parameters, x.options,
                 CASE WHEN x.options IS NULL THEN 'pending'
                      WHEN (x.options ->> 'requires_approval')::boolean THEN 'awaiting_approval'
                      WHEN (x.options ->> 'run_at')::timestamptz > blackboard.now() THEN 'scheduled'
                      WHEN x.options ->> 'assigned_to' IS NOT NULL THEN 'assigned'
                      ELSE 'pending' END AS status
          FROM unnest(p_ids, p_types, p_capabilities, p_priorities, p_parameters, p_options)
               WITH ORDINALITY AS x (id, type, capability, priority, parameters, options, n)
          ORDER BY x.n) u
    ON CONFLICT (session_id, id) DO NOTHING;
    GET DIAGNOSTICS v_added = ROW_COUNT;
    IF v_added < cardinality(p_ids) THEN
        v_new := blackboard.refuse_other_content(p_session_id, p_ids, p_types, p_capabilities, p_priorities,
                                                 p_parameters, p_options, v_added);
    END IF;
    IF v_added > 0 AND EXISTS (SELECT FROM unnest(p_options) o WHERE o ? 'depends_on') THEN
        PERFORM blackboard.add_dependencies(p_session_id, p_ids, p_options, v_new);
    END IF;
    RETURN v_added;
END
$$;

CREATE FUNCTION blackboard.add_unique_tasks(p_session_id uuid, p_ids uuid[], p_types text[], p_capabilities text[], p_priorities smallint[], p_parameters jsonb[], p_options jsonb[], p_actor text) RETURNS uuid[]
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

CREATE FUNCTION blackboard.added_content(p_task blackboard.tasks, p_said jsonb) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET enable_seqscan TO 'off'
    AS $$
DECLARE
    v_event blackboard.events;
    v_found jsonb := jsonb_build_object(
        'type', p_task.type, 'capability', p_task.capability, 'parameters', p_task.parameters,
        'timeout', extract(epoch FROM p_task.timeout), 'requires_approval', p_task.requires_approval,
        'retry_delay', extract(epoch FROM p_task.retry_delay), 'unique', p_task.unique_key,
        'limit_key', p_task.limit_key, 'expires_at', extract(epoch FROM p_task.expires_at),
        'fallback', extract(epoch FROM p_task.fallback));
BEGIN
    SELECT * INTO v_event FROM blackboard.events e
    WHERE e.session_id = p_task.session_id AND e.subject_id = p_task.id AND e.type = 'task.created'
    ORDER BY e.seq LIMIT 1;
    IF NOT FOUND OR NOT v_event.data ? 'priority' THEN
        RETURN p_said || v_found;
    END IF;
    v_found := v_found || jsonb_build_object(
        'capability', v_event.data -> 'capability', 'priority', v_event.data -> 'priority',
        'assigned_to', v_event.data -> 'assigned_to',
        'run_at', extract(epoch FROM (v_event.data ->> 'run_at')::timestamptz),
        -- A plain task's event does not name what is by default.
        'timeout', extract(epoch FROM (v_event.data ->> 'timeout')::interval),
        'max_attempts', coalesce((v_event.data ->> 'max_attempts')::integer, 5),
        'retry_delay', coalesce(extract(epoch FROM (v_event.data ->> 'retry_delay')::interval), 1),
        'depends_on', (SELECT coalesce(jsonb_object_agg(d.data ->> 'depends_on', d.data ->> 'on_failure'), '{}')
                       FROM blackboard.events d
                       WHERE d.session_id = p_task.session_id AND d.subject_id = p_task.id
                         AND d.type = 'task.dependency_added' AND d.tx = v_event.tx));
    IF v_event.data -> 'parameters' <> 'null' THEN
        v_found := v_found || jsonb_build_object('parameters', v_event.data -> 'parameters');
    ELSIF EXISTS (SELECT FROM blackboard.events c
                  WHERE c.session_id = p_task.session_id AND c.subject_id = p_task.id AND c.seq > v_event.seq
                    AND c.data ? 'parameters') THEN
        -- Too big for an event, and rewritten since.
        v_found := v_found || jsonb_build_object('parameters', p_said -> 'parameters');
    END IF;
    RETURN v_found;
END
$$;

CREATE FUNCTION blackboard.admit_task(p_session_id uuid, p_id uuid, p_agent_id text, p_now timestamp with time zone) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_capability text;
    v_gate record;
BEGIN
    PERFORM blackboard.tend_gates(p_session_id, p_now);
    v_capability := blackboard.pick_task(p_session_id, p_id, p_agent_id, p_now);
    IF v_capability IS NULL THEN
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

CREATE FUNCTION blackboard.adopt() RETURNS bigint
    LANGUAGE plpgsql
    AS $_$
DECLARE
    v_offset bigint;
BEGIN
    SELECT greatest(blackboard.tx_offset(), coalesce(max(tx), 0) + 1) INTO v_offset FROM (
        SELECT max(tx) AS tx FROM blackboard.events UNION ALL SELECT max(tx) FROM blackboard.pruned_events) t;
    EXECUTE format('CREATE OR REPLACE FUNCTION blackboard.tx_offset() RETURNS bigint LANGUAGE sql IMMUTABLE '
                   'PARALLEL SAFE AS $f$ SELECT %s::bigint $f$', v_offset);
    UPDATE blackboard.history
    SET system_identifier = (SELECT system_identifier::text FROM pg_control_system()), id = gen_random_uuid();
    RETURN v_offset;
END
$_$;

CREATE FUNCTION blackboard.advance_lock(p_session_id uuid, p_lock_id uuid) RETURNS blackboard.locks
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_lock blackboard.locks;
    v_next blackboard.lock_waiters;
    v_actor text := pg_catalog.current_setting('blackboard.actor', true);
BEGIN
    SELECT * INTO v_lock FROM blackboard.locks WHERE session_id = p_session_id AND id = p_lock_id FOR NO KEY UPDATE;
    IF v_lock.holder IS NOT NULL
       AND (v_lock.expires_at <= blackboard.now()
            OR (v_lock.lease_id IS NOT NULL AND blackboard.lease_lapsed(v_lock.lease_id))) THEN
        PERFORM blackboard.act_as('blackboard');
        UPDATE blackboard.locks
        SET holder = NULL, lease_id = NULL, request_id = NULL, acquired_at = NULL, expires_at = NULL
        WHERE session_id = p_session_id AND id = p_lock_id
        RETURNING * INTO v_lock;
        PERFORM blackboard.act_as(v_actor);
    END IF;
    IF v_lock.holder IS NULL THEN
        DELETE FROM blackboard.lock_waiters w
        WHERE w.session_id = p_session_id AND w.lock_id = p_lock_id
          AND (w.deadline_at <= blackboard.now() OR blackboard.lease_lapsed(w.lease_id));
        DELETE FROM blackboard.lock_waiters w
        WHERE w.session_id = p_session_id AND w.lock_id = p_lock_id
          AND w.position = (SELECT min(f.position) FROM blackboard.lock_waiters f
                            WHERE f.session_id = p_session_id AND f.lock_id = p_lock_id)
        RETURNING * INTO v_next;
        IF FOUND THEN
            PERFORM blackboard.act_as(v_next.agent_id);
            UPDATE blackboard.locks
            SET holder = v_next.agent_id, lease_id = v_next.lease_id, request_id = v_next.id, token = token + 1,
                acquired_at = blackboard.now(), expires_at = blackboard.now() + v_next.ttl
            WHERE session_id = p_session_id AND id = p_lock_id
            RETURNING * INTO v_lock;
            PERFORM blackboard.act_as(v_actor);
        END IF;
    END IF;
    RETURN v_lock;
END
$$;

CREATE FUNCTION blackboard.age_tasks(p_session_id uuid, p_step interval, p_now timestamp with time zone, p_limit integer) RETURNS integer
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

CREATE FUNCTION blackboard.agent_findings_write() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_finding blackboard.findings;
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM blackboard.findings WHERE session_id = OLD.session_id AND id = OLD.id;
        RETURN OLD;
    END IF;
    IF TG_OP = 'INSERT' THEN
        IF NEW.session_id IS NULL THEN
            PERFORM blackboard.raise('BB002', 'A finding belongs to a session: give its session_id.',
                                     '{"field": "session_id"}');
        END IF;
        NEW.id := coalesce(NEW.id, gen_random_uuid());
        -- A duplicate becomes a corroboration: RETURNING then gives the row that was there.
        v_finding := blackboard.report_finding(NEW.session_id, NEW.id, NEW.agent_id, NEW.finding_type, NEW.content,
                                               'observation', NEW.confidence);
        NEW.id := v_finding.id;
        NEW.agent_id := v_finding.agent_id;
        NEW.confidence := v_finding.confidence;
        NEW.created_at := v_finding.created_at;
        RETURN NEW;
    END IF;
    -- Which columns of a finding may change is the table's to say.
    UPDATE blackboard.findings
    SET id = NEW.id, session_id = NEW.session_id, agent_id = NEW.agent_id, type = NEW.finding_type,
        content = NEW.content, confidence = NEW.confidence, created_at = NEW.created_at
    WHERE session_id = OLD.session_id AND id = OLD.id;
    RETURN NEW;
END
$$;

CREATE FUNCTION blackboard.agent_sessions_write() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM blackboard.sessions WHERE id = OLD.id;
        RETURN OLD;
    END IF;
    IF TG_OP = 'INSERT' THEN
        NEW.id := coalesce(NEW.id, gen_random_uuid());
        NEW.status := coalesce(NEW.status, 'active');
        NEW.created_at := coalesce(NEW.created_at, blackboard.now());
        INSERT INTO blackboard.sessions (id, name, context, status, created_at)
        VALUES (NEW.id, 'session ' || NEW.id, NEW.context, NEW.status, NEW.created_at);
        RETURN NEW;
    END IF;
    IF NEW.id <> OLD.id OR NEW.created_at <> OLD.created_at THEN
        PERFORM blackboard.raise('BB002', 'id and created_at of a session do not change.', '{"field": "id"}');
    END IF;
    IF NEW.context IS DISTINCT FROM OLD.context THEN
        UPDATE blackboard.sessions SET context = NEW.context WHERE id = OLD.id;
    END IF;
    IF NEW.status IS DISTINCT FROM OLD.status THEN
        IF NEW.status IN ('completed', 'failed') AND OLD.status IN ('active', 'paused') THEN
            PERFORM blackboard.close_session(OLD.id, NEW.status, NULL, NULL);
        ELSIF OLD.status IN ('completed', 'failed') THEN
            PERFORM blackboard.raise('BB003', 'A closed session cannot be opened again; start a new one.',
                                     jsonb_build_object('noun', 'session', 'id', OLD.id, 'status', OLD.status));
        ELSE
            UPDATE blackboard.sessions SET status = NEW.status WHERE id = OLD.id;
        END IF;
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION blackboard.agent_subject(p_agent_id text) RETURNS uuid
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT pg_catalog.md5(p_agent_id)::uuid $$;

CREATE FUNCTION blackboard.agent_tasks_write() RETURNS trigger
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

CREATE FUNCTION blackboard.aggregate_confidence(p_session_id uuid, p_finding_ids uuid[], p_method text DEFAULT 'weighted'::text, p_max_findings integer DEFAULT NULL::integer) RETURNS double precision
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    v_missing uuid;
    v_confidences double precision[];
    v_weights double precision[];
    v_result double precision;
BEGIN
    IF p_method IS NULL OR p_method NOT IN ('weighted', 'log_odds') THEN
        PERFORM blackboard.raise('BB002', format('There is no method %L; use weighted or log_odds.', p_method),
                                 jsonb_build_object('field', 'method'));
    END IF;
    IF p_max_findings < 1 THEN
        PERFORM blackboard.raise('BB002', 'max_findings must be at least 1.', '{"field": "max_findings"}');
    END IF;
    SELECT w.id INTO v_missing FROM unnest(p_finding_ids) w (id)
    WHERE NOT EXISTS (SELECT FROM blackboard.findings f WHERE f.session_id = p_session_id AND f.id = w.id) LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.no_finding(v_missing);
    END IF;
    -- In the order given: a sum of doubles depends on it, and the result is the seed's to the last bit.
    SELECT array_agg(s.confidence ORDER BY s.position), array_agg(s.weight ORDER BY s.position)
    INTO v_confidences, v_weights
    FROM (SELECT f.confidence, x.weight, w.position,
                 row_number() OVER (ORDER BY x.weight DESC, w.position) AS place
          FROM unnest(p_finding_ids) WITH ORDINALITY w (id, position)
          JOIN blackboard.findings f ON f.session_id = p_session_id AND f.id = w.id,
               LATERAL (SELECT blackboard.product(
                            blackboard.expertise(f.agent_id, f.category),
                            jsonb_array_length(f.evidence)::double precision * 0.1::double precision
                            + 0.5::double precision) AS weight) x
          WHERE f.confidence IS NOT NULL) s
    WHERE p_max_findings IS NULL OR s.place <= p_max_findings;
    IF p_method = 'log_odds' THEN
        RETURN blackboard.pool_log_odds(v_confidences, v_weights);
    END IF;
    SELECT CASE WHEN sum(blackboard.product(u.c, u.w) ORDER BY u.position) > 1e-300
                THEN sum(blackboard.product(u.c, u.w) ORDER BY u.position) / sum(u.w ORDER BY u.position)
                ELSE 0 END INTO v_result
    FROM unnest(v_confidences, v_weights) WITH ORDINALITY u (c, w, position);
    RETURN v_result;
END
$$;

CREATE FUNCTION blackboard.any_pruned(p_session_id uuid, p_txs bigint[]) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    SELECT EXISTS (SELECT FROM blackboard.pruned_events p, unnest(p_txs) x (tx)
                   WHERE p.session_id = p_session_id AND x.tx <= p.tx AND x.tx <> ALL (p.kept)
                     AND (x.tx < p.taken_from OR x.tx = ANY (p.taken)))
$$;

CREATE TABLE blackboard.actions (
    session_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    agent_id text NOT NULL,
    type text NOT NULL,
    target text DEFAULT ''::text NOT NULL,
    parameters jsonb DEFAULT '{}'::jsonb NOT NULL,
    requires_approval boolean DEFAULT true NOT NULL,
    approval text,
    proposal_id uuid,
    status text DEFAULT 'proposed'::text NOT NULL,
    vote_accepted boolean DEFAULT false NOT NULL,
    approved_by text,
    rejected_by text,
    approval_reason text DEFAULT ''::text NOT NULL,
    executor text,
    lease_id uuid,
    token bigint DEFAULT 0 NOT NULL,
    result jsonb,
    error text,
    rolled_back_by text,
    rollback_reason text,
    created_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    decided_at timestamp with time zone,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    CONSTRAINT actions_approval_iff_required CHECK ((requires_approval = (approval IS NOT NULL))),
    CONSTRAINT actions_approval_known CHECK ((approval = ANY (ARRAY['vote'::text, 'human'::text, 'both'::text]))),
    CONSTRAINT actions_approval_reason_length CHECK ((length(approval_reason) <= 4000)),
    CONSTRAINT actions_approved_before_start CHECK (((status = ANY (ARRAY['proposed'::text, 'awaiting_approval'::text, 'rejected'::text])) OR (approval IS NULL) OR ((approval = 'vote'::text) AND (vote_accepted OR (approved_by IS NOT NULL))) OR ((approval = 'human'::text) AND (approved_by IS NOT NULL)) OR ((approval = 'both'::text) AND vote_accepted AND (approved_by IS NOT NULL)))),
    CONSTRAINT actions_approved_by_length CHECK (((length(approved_by) >= 1) AND (length(approved_by) <= 200))),
    CONSTRAINT actions_approver_is_another CHECK ((approved_by <> agent_id)),
    CONSTRAINT actions_decided_at_iff_decided CHECK (((status = ANY (ARRAY['proposed'::text, 'awaiting_approval'::text])) = (decided_at IS NULL))),
    CONSTRAINT actions_error_length CHECK ((length(error) <= 10000)),
    CONSTRAINT actions_escalation_needs_human CHECK (((type <> 'escalate'::text) OR (COALESCE(approval, ''::text) = ANY (ARRAY['human'::text, 'both'::text])))),
    CONSTRAINT actions_executor_iff_started CHECK (((status = ANY (ARRAY['executing'::text, 'completed'::text, 'failed'::text, 'rolled_back'::text])) = ((executor IS NOT NULL) AND (lease_id IS NOT NULL) AND (started_at IS NOT NULL) AND (token > 0)))),
    CONSTRAINT actions_finished_at_iff_finished CHECK (((status = ANY (ARRAY['completed'::text, 'failed'::text, 'rolled_back'::text])) = (finished_at IS NOT NULL))),
    CONSTRAINT actions_parameters_size CHECK ((pg_column_size(parameters) <= 1048576)),
    CONSTRAINT actions_rejected_by_length CHECK (((length(rejected_by) >= 1) AND (length(rejected_by) <= 200))),
    CONSTRAINT actions_result_size CHECK ((pg_column_size(result) <= 1048576)),
    CONSTRAINT actions_rollback_reason_length CHECK ((length(rollback_reason) <= 4000)),
    CONSTRAINT actions_rolled_back_by_length CHECK (((length(rolled_back_by) >= 1) AND (length(rolled_back_by) <= 200))),
    CONSTRAINT actions_rolled_back_by_whom CHECK (((status = 'rolled_back'::text) = (rolled_back_by IS NOT NULL))),
    CONSTRAINT actions_status_known CHECK ((status = ANY (ARRAY['proposed'::text, 'awaiting_approval'::text, 'approved'::text, 'rejected'::text, 'executing'::text, 'completed'::text, 'failed'::text, 'rolled_back'::text]))),
    CONSTRAINT actions_target_length CHECK ((length(target) <= 500)),
    CONSTRAINT actions_token_range CHECK ((token >= 0)),
    CONSTRAINT actions_type_known CHECK ((type = ANY (ARRAY['query'::text, 'modify'::text, 'notify'::text, 'escalate'::text]))),
    CONSTRAINT actions_vote_needs_proposal CHECK (((approval <> ALL (ARRAY['vote'::text, 'both'::text])) OR (proposal_id IS NOT NULL)))
);

COMMENT ON COLUMN blackboard.actions.approval IS 'Who must say yes: vote, human or both; NULL when nobody must. A human may also decide in place of a vote.';

COMMENT ON COLUMN blackboard.actions.lease_id IS 'The lease under which it executes; no history.';

CREATE FUNCTION blackboard.approve_action(p_session_id uuid, p_id uuid, p_by text, p_reason text, p_actor text) RETURNS blackboard.actions
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_action blackboard.actions;
BEGIN
    PERFORM blackboard.close_due_proposals(p_session_id);
    PERFORM blackboard.act_as(p_by);
    v_action := blackboard.lock_action(p_session_id, p_id);
    IF v_action.agent_id IN (p_by, p_actor) THEN
        PERFORM blackboard.raise('BB005', format('%s proposed this action; somebody else must approve it.',
                                                 v_action.agent_id),
                                 jsonb_build_object('noun', 'action', 'id', p_id, 'agent_id', v_action.agent_id));
    END IF;
    IF v_action.approved_by = p_by THEN
        RETURN v_action;
    END IF;
    PERFORM blackboard.open_session(p_session_id);
    IF v_action.status <> 'awaiting_approval' OR v_action.approved_by IS NOT NULL THEN
        PERFORM blackboard.raise('BB003',
            CASE WHEN v_action.status = 'awaiting_approval'
                 THEN format('%s has approved this action already; it waits for its vote.', v_action.approved_by)
                 ELSE format('The action is %s and awaits no approval.', v_action.status) END,
            jsonb_build_object('noun', 'action', 'id', p_id, 'status', v_action.status,
                               'approved_by', v_action.approved_by));
    END IF;
    UPDATE blackboard.actions
    SET approved_by = p_by, approval_reason = p_reason,
        status = CASE WHEN approval = 'both' AND NOT vote_accepted THEN status ELSE 'approved' END
    WHERE session_id = p_session_id AND id = p_id
    RETURNING * INTO v_action;
    RETURN v_action;
END
$$;

CREATE FUNCTION blackboard.ask_to_stop(p_session_id uuid, p_id uuid) RETURNS void
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
    v_tasks uuid[];
BEGIN
    v_tasks := array(SELECT s.task_id FROM blackboard.flow_stages s
                     WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.state = 'ready');
    PERFORM 1
    FROM (SELECT u.id FROM unnest(v_tasks) u (id) ORDER BY u.id OFFSET 0) x
    CROSS JOIN LATERAL (SELECT FROM blackboard.tasks t
                        WHERE t.session_id = p_session_id AND t.id = x.id AND t.status = 'running'
                          AND NOT t.cancel_requested FOR UPDATE OFFSET 0) t;
    WITH x AS MATERIALIZED (
        SELECT t.place
        FROM unnest(v_tasks) u (id)
        CROSS JOIN LATERAL (SELECT o.ctid AS place FROM blackboard.tasks o
                            WHERE o.session_id = p_session_id AND o.id = u.id AND o.status = 'running'
                              AND NOT o.cancel_requested OFFSET 0) t)
    UPDATE blackboard.tasks t SET cancel_requested = true
    FROM x WHERE t.ctid = x.place AND t.status = 'running' AND NOT t.cancel_requested;
END
$$;

CREATE FUNCTION blackboard.assess_hypothesis(p_session_id uuid, p_id uuid, p_agent_id text, p_confidence double precision, p_reason text, p_key text) RETURNS blackboard.hypotheses
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_hypothesis blackboard.hypotheses;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    PERFORM blackboard.open_session(p_session_id);
    IF blackboard.first_time(p_session_id, p_key, 'assess_hypothesis',
                             jsonb_build_array(p_id, p_agent_id, p_confidence, p_reason)) THEN
        PERFORM 1 FROM blackboard.hypotheses h
        WHERE h.session_id = p_session_id AND h.id = p_id FOR NO KEY UPDATE;
        PERFORM blackboard.proposed_hypothesis(p_session_id, p_id);
        INSERT INTO blackboard.hypothesis_assessments AS a (session_id, hypothesis_id, agent_id, confidence, reason)
        VALUES (p_session_id, p_id, p_agent_id, p_confidence, coalesce(p_reason, ''))
        ON CONFLICT (session_id, hypothesis_id, agent_id) DO UPDATE
            SET confidence = excluded.confidence, reason = excluded.reason, at = blackboard.now()
            WHERE (a.confidence, a.reason) IS DISTINCT FROM (excluded.confidence, excluded.reason);
    END IF;
    SELECT * INTO v_hypothesis FROM blackboard.hypotheses h WHERE h.session_id = p_session_id AND h.id = p_id;
    RETURN v_hypothesis;
END
$$;

CREATE FUNCTION blackboard.backoff(p_delay interval, p_attempt integer) RETURNS interval
    LANGUAGE sql
    AS $$
    SELECT least(extract(epoch FROM p_delay)::double precision * power(2::double precision, least(greatest(p_attempt, 1) - 1, 30)),
                 greatest(extract(epoch FROM p_delay)::double precision, 3600)) * (0.5 + random()) * interval '1 second'
$$;

CREATE FUNCTION blackboard.ballots_pass(p_rule text, p_threshold double precision, p_min_turnout double precision, p_yes numeric, p_no numeric, p_abstained numeric, p_total numeric) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT p_total > 0
       AND (round(p_yes + p_no + p_abstained, 40) / nullif(p_total, 0))::double precision >= p_min_turnout
       AND CASE p_rule
               WHEN 'majority' THEN p_yes > p_no
               WHEN 'threshold' THEN
                   p_yes > 0 AND (round(p_yes, 40) / nullif(p_yes + p_no, 0))::double precision >= p_threshold
               WHEN 'unanimous' THEN p_yes > 0 AND p_no = 0
               ELSE false
           END
$$;

CREATE FUNCTION blackboard.broken_task_rule(p_type text, p_status text, p_position bigint, p_parameters jsonb, p_priority smallint, p_timeout interval, p_requires_approval boolean, p_approved_by text, p_run_at timestamp with time zone, p_attempt integer, p_max_attempts integer, p_retry_delay interval, p_assigned_to text, p_claim_id uuid, p_lease_id uuid, p_started_at timestamp with time zone, p_deadline_at timestamp with time zone, p_completed_at timestamp with time zone, p_blockers integer, p_unique_key text, p_limit_key text, p_fallback interval, p_held jsonb, p_progress jsonb, p_result jsonb, p_error jsonb) RETURNS text
    LANGUAGE sql STABLE
    AS $$
    SELECT CASE
        WHEN NOT (length(p_type) BETWEEN 1 AND 50) THEN 'tasks_type_length'
        WHEN NOT (p_status IN ('pending', 'running', 'completed', 'assigned', 'scheduled', 'blocked', 'awaiting_approval',
                              'held', 'failed', 'cancelled', 'dead'))
            THEN 'tasks_status_known'
        WHEN NOT (p_priority BETWEEN 0 AND 10) THEN 'tasks_priority_range'
        WHEN NOT (pg_column_size(p_parameters) <= 1048576) THEN 'tasks_parameters_size'
        WHEN NOT (pg_column_size(p_progress) <= 1048576) THEN 'tasks_progress_size'
        WHEN NOT (pg_column_size(p_result) <= 1048576) THEN 'tasks_result_size'
        WHEN NOT (pg_column_size(p_error) <= 1048576) THEN 'tasks_error_size'
        WHEN NOT (pg_column_size(p_held) <= 8192) THEN 'tasks_held_size'
        WHEN NOT (p_status <> 'held' OR coalesce(p_held ->> 'code', '') <> '') THEN 'tasks_held_says_why'
        WHEN NOT (p_timeout > interval '0' AND p_timeout <= interval '3650 days') THEN 'tasks_timeout_range'
        WHEN NOT (p_fallback BETWEEN interval '0' AND interval '3650 days') THEN 'tasks_fallback_range'
        WHEN NOT (p_retry_delay BETWEEN interval '0' AND interval '30 days') THEN 'tasks_retry_delay_range'
        WHEN NOT (p_attempt >= 0) THEN 'tasks_attempt_range'
        WHEN NOT (p_max_attempts BETWEEN 1 AND 1000) THEN 'tasks_max_attempts_range'
        WHEN NOT (p_blockers >= 0) THEN 'tasks_blockers_range'
        WHEN NOT (length(p_unique_key) BETWEEN 1 AND 200) THEN 'tasks_unique_key_length'
        WHEN NOT (length(p_limit_key) BETWEEN 1 AND 200) THEN 'tasks_limit_key_length'
        WHEN NOT ((p_status = 'running') = (p_lease_id IS NOT NULL)) THEN 'tasks_lease_iff_running'
        WHEN NOT (p_status <> 'running'
                  OR (p_claim_id IS NOT NULL AND p_attempt > 0 AND p_assigned_to IS NOT NULL AND p_started_at IS NOT NULL))
            THEN 'tasks_claimed_when_running'
        WHEN NOT (p_deadline_at IS NULL OR p_status = 'running') THEN 'tasks_deadline_only_running'
        WHEN NOT ((p_status IN ('pending', 'assigned')) = (p_position IS NOT NULL)) THEN 'tasks_position_iff_ready'
        WHEN NOT (p_blockers = 0 OR p_status NOT IN ('pending', 'assigned')) THEN 'tasks_ready_is_unblocked'
        WHEN NOT (NOT p_requires_approval OR p_approved_by IS NOT NULL
                  OR p_status NOT IN ('pending', 'assigned', 'running'))
            THEN 'tasks_ready_is_approved'
        WHEN NOT (p_status <> 'assigned' OR p_assigned_to IS NOT NULL) THEN 'tasks_assignee_when_assigned'
        WHEN NOT (p_status <> 'scheduled' OR p_run_at IS NOT NULL) THEN 'tasks_run_at_when_scheduled'
        WHEN NOT (p_status <> 'blocked' OR p_blockers > 0) THEN 'tasks_blockers_iff_blocked'
        WHEN NOT ((p_status IN ('completed', 'failed', 'cancelled', 'dead')) = (p_completed_at IS NOT NULL))
            THEN 'tasks_completed_at_iff_final'
    END
$$;

CREATE FUNCTION blackboard.budget_reason(p_session_id uuid, p_task_id uuid) RETURNS jsonb
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

CREATE TABLE blackboard.budgets (
    session_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    scope text NOT NULL,
    agent_id text,
    task_id uuid,
    unit text NOT NULL,
    currency text,
    ceiling numeric NOT NULL,
    soft numeric,
    period interval,
    window_start timestamp with time zone,
    reserved numeric DEFAULT 0 NOT NULL,
    spent numeric DEFAULT 0 NOT NULL,
    opening numeric DEFAULT 0 NOT NULL,
    created_by text DEFAULT blackboard.current_actor() NOT NULL,
    created_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    CONSTRAINT budgets_agent_id_length CHECK (((length(agent_id) >= 1) AND (length(agent_id) <= 100))),
    CONSTRAINT budgets_ceiling_range CHECK (((ceiling >= (0)::numeric) AND (ceiling <= '1000000000000000'::numeric))),
    CONSTRAINT budgets_counters_range CHECK (((reserved >= (0)::numeric) AND (spent >= (0)::numeric) AND (opening >= (0)::numeric))),
    CONSTRAINT budgets_currency_form CHECK ((currency ~ '^[A-Z]{3,8}$'::text)),
    CONSTRAINT budgets_currency_iff_cost CHECK (((unit = 'cost'::text) = (currency IS NOT NULL))),
    CONSTRAINT budgets_period_range CHECK ((((period >= '00:00:01'::interval) AND (period <= '366 days'::interval)) AND (EXTRACT(year FROM period) = (0)::numeric) AND (EXTRACT(month FROM period) = (0)::numeric))),
    CONSTRAINT budgets_scope_known CHECK ((scope = ANY (ARRAY['session'::text, 'agent'::text, 'task'::text]))),
    CONSTRAINT budgets_soft_range CHECK (((soft >= (0)::numeric) AND (soft <= ceiling))),
    CONSTRAINT budgets_subject_fits_scope CHECK ((((scope = 'agent'::text) = (agent_id IS NOT NULL)) AND ((scope = 'task'::text) = (task_id IS NOT NULL)))),
    CONSTRAINT budgets_unit_known CHECK ((unit = ANY (ARRAY['tokens'::text, 'cost'::text, 'calls'::text, 'seconds'::text]))),
    CONSTRAINT budgets_window_iff_period CHECK (((period IS NULL) = (window_start IS NULL)))
)
WITH (fillfactor='25', autovacuum_vacuum_scale_factor='0.02');

CREATE FUNCTION blackboard.budget_spent(p_budget blackboard.budgets) RETURNS numeric
    LANGUAGE sql STABLE
    AS $$
    SELECT CASE WHEN p_budget.period IS NOT NULL
                     AND blackboard.budget_window(p_budget.period, blackboard.now()) > p_budget.window_start
                THEN 0 ELSE p_budget.spent END
$$;

CREATE FUNCTION blackboard.budget_window(p_period interval, p_at timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT pg_catalog.date_bin(p_period, p_at, timestamptz '2000-01-03 00:00:00+00') $$;

CREATE FUNCTION blackboard.budgets_lock(p_session_id uuid) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT pg_catalog.hashtextextended('blackboard budgets ' || p_session_id::text, 0) $$;

CREATE TABLE blackboard.flows (
    session_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    name text NOT NULL,
    status text DEFAULT 'running'::text NOT NULL,
    version integer DEFAULT 1 NOT NULL,
    inputs jsonb DEFAULT '{}'::jsonb NOT NULL,
    compensating boolean DEFAULT false NOT NULL,
    error jsonb,
    digest text NOT NULL,
    created_by text DEFAULT blackboard.current_actor() NOT NULL,
    created_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    finished_at timestamp with time zone,
    CONSTRAINT flows_finished_at_iff_final CHECK (((status = ANY (ARRAY['completed'::text, 'failed'::text, 'cancelled'::text])) = (finished_at IS NOT NULL))),
    CONSTRAINT flows_inputs_object CHECK ((jsonb_typeof(inputs) = 'object'::text)),
    CONSTRAINT flows_inputs_size CHECK ((pg_column_size(inputs) <= 1048576)),
    CONSTRAINT flows_name_length CHECK (((length(name) >= 1) AND (length(name) <= 200))),
    CONSTRAINT flows_status_known CHECK ((status = ANY (ARRAY['running'::text, 'paused'::text, 'completed'::text, 'failed'::text, 'cancelled'::text]))),
    CONSTRAINT flows_version_range CHECK ((version >= 1))
);

CREATE FUNCTION blackboard.cancel_flow(p_session_id uuid, p_id uuid, p_reason text, p_actor text) RETURNS SETOF blackboard.flows
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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
    v_flow blackboard.flows;
    v_error jsonb := jsonb_build_object('code', 'flow_cancelled', 'message', coalesce(nullif(p_reason, ''),
                                                                                    'The flow was cancelled.'));
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.ask_to_stop(p_session_id, p_id);
    v_flow := blackboard.lock_flow(p_session_id, p_id);
    IF v_flow.status <> 'cancelled' THEN
        PERFORM blackboard.refuse_finished_flow(v_flow);
        UPDATE blackboard.flows f
        SET status = 'cancelled', version = f.version + 1, error = v_error, finished_at = blackboard.now()
        WHERE f.session_id = p_session_id AND f.id = p_id;
        UPDATE blackboard.flow_stages s SET state = 'cancelled', error = v_error
        WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.state = 'waiting';
        PERFORM blackboard.stop_tasks(
            p_session_id,
            (SELECT array_agg(s.task_id) FROM blackboard.flow_stages s
             WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.state IN ('ready', 'cancelled')),
            'flow_cancelled', v_error ->> 'message');
    END IF;
    RETURN QUERY SELECT f.* FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_id;
END
$$;

CREATE FUNCTION blackboard.cancel_lock_wait(p_session_id uuid, p_agent_id text, p_request_id uuid) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_lock blackboard.locks;
    v_ended boolean;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    SELECT l.* INTO v_lock FROM blackboard.locks l
    WHERE l.session_id = p_session_id
      AND l.id = coalesce(
          (SELECT w.lock_id FROM blackboard.lock_waiters w WHERE w.session_id = p_session_id AND w.id = p_request_id
             AND w.agent_id = p_agent_id),
          (SELECT h.id FROM blackboard.locks h WHERE h.session_id = p_session_id AND h.request_id = p_request_id
             AND h.holder = p_agent_id))
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    -- Between the look and the lock the request may have been granted.
    DELETE FROM blackboard.lock_waiters WHERE session_id = p_session_id AND id = p_request_id;
    v_ended := FOUND;
    UPDATE blackboard.locks
    SET holder = NULL, lease_id = NULL, request_id = NULL, acquired_at = NULL, expires_at = NULL,
        released_token = token
    WHERE session_id = p_session_id AND id = v_lock.id AND request_id = p_request_id;
    v_ended := v_ended OR FOUND;
    PERFORM blackboard.advance_lock(p_session_id, v_lock.id);
    RETURN v_ended;
END
$$;

CREATE FUNCTION blackboard.cancel_task(p_session_id uuid, p_id uuid, p_reason text, p_actor text) RETURNS SETOF blackboard.tasks
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_task blackboard.tasks;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    SELECT * INTO v_task FROM blackboard.tasks WHERE session_id = p_session_id AND id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no task %s in this session.', p_id),
                                 jsonb_build_object('noun', 'task', 'id', p_id));
    END IF;
    IF v_task.status = 'cancelled' OR v_task.cancel_requested THEN
        RETURN NEXT v_task;
    ELSIF v_task.completed_at IS NOT NULL THEN
        PERFORM blackboard.raise('BB003', format('Task %s is %s; it can no longer be cancelled%s.', p_id, v_task.status,
                                                 CASE WHEN v_task.status = 'dead'
                                                      THEN format(': give it up with `blackboard deadletter discard %s`', p_id)
                                                      ELSE '' END),
                                 jsonb_build_object('noun', 'task', 'id', p_id, 'status', v_task.status));
    ELSIF v_task.status = 'running' THEN
        RETURN QUERY UPDATE blackboard.tasks t SET cancel_requested = true
                     WHERE t.session_id = p_session_id AND t.id = p_id RETURNING t.*;
    ELSE
        RETURN QUERY
        UPDATE blackboard.tasks t
        SET status = 'cancelled', position = NULL, completed_at = blackboard.now(),
            error = jsonb_build_object('code', 'cancelled', 'message', p_reason)
        WHERE t.session_id = p_session_id AND t.id = p_id RETURNING t.*;
    END IF;
END
$$;

CREATE FUNCTION blackboard.capability_paused(p_session_id uuid, p_capability text) RETURNS boolean
    LANGUAGE plpgsql STABLE
    AS $$
BEGIN
    RETURN EXISTS (SELECT FROM blackboard.pauses p WHERE p.session_id = p_session_id AND p.kind = 'capability'
                     AND p.name = p_capability AND p.resumed_at IS NULL);
END
$$;

CREATE FUNCTION blackboard.changed(p_old jsonb, p_new jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT coalesce(jsonb_object_agg(n.key, n.value), '{}')
    FROM jsonb_each(p_new) n WHERE n.value IS DISTINCT FROM p_old -> n.key
$$;

CREATE FUNCTION blackboard.charge_budget(p_session_id uuid, p_id uuid, p_at timestamp with time zone, p_reserved numeric, p_settled numeric[], p_times timestamp with time zone[]) RETURNS void
    LANGUAGE sql
    AS $$
    UPDATE blackboard.budgets b
    SET reserved = b.reserved + p_reserved,
        window_start = greatest(b.window_start, blackboard.budget_window(b.period, p_at)),
        opening = CASE WHEN blackboard.budget_window(b.period, p_at) > b.window_start THEN 0 ELSE b.opening END,
        spent = CASE WHEN blackboard.budget_window(b.period, p_at) > b.window_start THEN 0 ELSE b.spent END
                + (SELECT coalesce(sum(x.settled), 0) FROM unnest(p_settled, p_times) x (settled, at)
                   WHERE b.period IS NULL
                      OR x.at >= greatest(b.window_start, blackboard.budget_window(b.period, p_at)))
    WHERE b.session_id = p_session_id AND b.id = p_id
$$;

CREATE FUNCTION blackboard.check_dependencies() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_custom_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET enable_nestloop TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    v_session uuid;
    v_tasks uuid[];
    v_parents uuid[];
    v_path uuid[];
BEGIN
    FOR v_session IN SELECT DISTINCT n.session_id FROM new_rows n ORDER BY 1 LOOP
        PERFORM blackboard.check_sessions(ARRAY[v_session]);
        IF EXISTS (SELECT FROM new_rows n WHERE n.session_id = v_session AND n.state <> 'waiting') THEN
            PERFORM blackboard.raise('BB003', 'A new dependency waits; whether it is satisfied the board finds out.',
                                     '{"noun": "task", "field": "state"}');
        END IF;
        -- Edges of one session are added one transaction at a time: two halves of a cycle must see each other.
        PERFORM pg_advisory_xact_lock(hashtextextended('blackboard dependencies ' || v_session, 0));
        SELECT array_agg(DISTINCT n.task_id), array_agg(DISTINCT n.depends_on_id) INTO v_tasks, v_parents
        FROM new_rows n WHERE n.session_id = v_session;
        v_path := blackboard.dependency_cycle(v_session, v_tasks);
        IF v_path IS NOT NULL THEN
            PERFORM blackboard.raise('BB008', 'The dependencies form a cycle: ' || array_to_string(v_path, ' -> ')
                                              || '. Leave one of these edges out.',
                                     jsonb_build_object('field', 'depends_on', 'path', to_jsonb(v_path)));
        END IF;
        -- Each row is looked up on its own (OFFSET 0 keeps the look a look), and changed where it lies once nobody else can
        -- change it: then no scan of all that a session has can be mistaken for cheap while it looks empty.
        PERFORM 1
        FROM (SELECT u.id FROM unnest(v_parents) u (id) ORDER BY u.id OFFSET 0) x
        CROSS JOIN LATERAL (SELECT FROM blackboard.tasks t
                            WHERE t.session_id = v_session AND t.id = x.id FOR UPDATE OFFSET 0) t;
        WITH x AS MATERIALIZED (
            SELECT t.place
            FROM unnest(v_parents) u (id)
            CROSS JOIN LATERAL (SELECT o.ctid AS place FROM blackboard.tasks o
                                WHERE o.session_id = v_session AND o.id = u.id AND NOT o.has_dependants OFFSET 0) t)
        UPDATE blackboard.tasks t SET has_dependants = true FROM x WHERE t.ctid = x.place;
        WITH p AS MATERIALIZED (
            SELECT n.task_id, n.depends_on_id, t.status
            FROM new_rows n
            CROSS JOIN LATERAL (SELECT o.status FROM blackboard.tasks o
                                WHERE o.session_id = v_session AND o.id = n.depends_on_id
                                  AND o.completed_at IS NOT NULL OFFSET 0) t
            WHERE n.session_id = v_session
        ), e AS MATERIALIZED (
            SELECT d.place, p.status
            FROM p
            CROSS JOIN LATERAL (SELECT o.ctid AS place FROM blackboard.task_dependencies o
                                WHERE o.session_id = v_session AND o.task_id = p.task_id AND o.depends_on_id = p.depends_on_id
                                OFFSET 0) d)
        UPDATE blackboard.task_dependencies d
        SET state = CASE WHEN e.status = 'completed' OR d.on_failure = 'continue' THEN 'satisfied' ELSE 'failed' END
        FROM e WHERE d.ctid = e.place;
        -- A task that was ready goes back to blocked, unless it runs already.
        PERFORM 1
        FROM (SELECT u.id FROM unnest(v_tasks) u (id) ORDER BY u.id OFFSET 0) x
        CROSS JOIN LATERAL (SELECT FROM blackboard.tasks t
                            WHERE t.session_id = v_session AND t.id = x.id FOR UPDATE OFFSET 0) t;
        WITH w AS MATERIALIZED (
            SELECT t.place, c.waiting
            FROM unnest(v_tasks) n (id)
            CROSS JOIN LATERAL (
                SELECT count(*)::integer AS waiting FROM blackboard.task_dependencies d
                WHERE d.session_id = v_session AND d.task_id = n.id
                  AND d.state = 'waiting') c
            CROSS JOIN LATERAL (SELECT o.ctid AS place FROM blackboard.tasks o
                                WHERE o.session_id = v_session AND o.id = n.id
                                  AND o.status IN ('pending', 'assigned', 'scheduled') OFFSET 0) t
            WHERE c.waiting > 0)
        UPDATE blackboard.tasks t SET status = 'blocked', blockers = w.waiting, position = NULL
        FROM w WHERE t.ctid = w.place;
        PERFORM blackboard.refresh_blockers(v_session, v_tasks);
        INSERT INTO blackboard.events (session_id, type, subject_id, data)
        SELECT n.session_id, 'task.dependency_added', n.task_id,
               jsonb_build_object('depends_on', n.depends_on_id, 'on_failure', n.on_failure)
        FROM new_rows n WHERE n.session_id = v_session;
    END LOOP;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.check_flow(p_session_id uuid, p_flow_id uuid) RETURNS void
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_hashjoin TO 'on'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_row record;
    v_names text[];
    v_stages text[];
    v_depends_on text[];
    v_order text[];
    v_precedes boolean[];
BEGIN
    SELECT array_agg(s.name ORDER BY s.ordinal) INTO v_names FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id;
    SELECT coalesce(array_agg(e.stage), '{}'), coalesce(array_agg(e.depends_on), '{}') INTO v_stages, v_depends_on
    FROM blackboard.flow_edges e WHERE e.session_id = p_session_id AND e.flow_id = p_flow_id;
    v_order := blackboard.flow_order(v_names, v_stages, v_depends_on);
    SELECT s.name, s.join_need, coalesce(e.edges, 0) AS edges INTO v_row
    FROM blackboard.flow_stages s
    LEFT JOIN (SELECT u.stage, count(*) AS edges FROM unnest(v_stages) u (stage) GROUP BY u.stage) e ON e.stage = s.name
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.join_need > coalesce(e.edges, 0)
    ORDER BY s.ordinal LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB002', format('Stage %L joins on %s successes and has %s dependencies.',
                                                 v_row.name, v_row.join_need, v_row.edges),
                                 jsonb_build_object('field', 'join', 'stage', v_row.name));
    END IF;
    SELECT array_agg(s.loop_to ORDER BY s.ordinal) AS firsts, array_agg(s.name ORDER BY s.ordinal) AS seconds INTO v_row
    FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.loop_to <> s.name;
    IF v_row.firsts IS NOT NULL THEN
        v_precedes := blackboard.flow_precedes(v_order, v_stages, v_depends_on, v_row.firsts, v_row.seconds);
        SELECT l.name, l.loop_to INTO v_row
        FROM unnest(v_row.seconds, v_row.firsts, v_precedes) WITH ORDINALITY l (name, loop_to, precedes, n)
        WHERE NOT l.precedes ORDER BY l.n LIMIT 1;
        IF FOUND THEN
            PERFORM blackboard.raise('BB002', format('Stage %L cannot loop back to %L, which does not come before it.',
                                                     v_row.name, v_row.loop_to),
                                     jsonb_build_object('field', 'loop_to', 'stage', v_row.name));
        END IF;
    END IF;
    SELECT s.name INTO v_row FROM blackboard.flow_stages s
    JOIN unnest(v_names) o (name) ON o.name = s.output AND o.name <> s.name
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.output IS NOT NULL ORDER BY s.ordinal LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB002', format('The output of stage %L has the name of another stage.', v_row.name),
                                 jsonb_build_object('field', 'output', 'stage', v_row.name));
    END IF;
    WITH producers AS MATERIALIZED (
        SELECT s.name AS source, s.name FROM blackboard.flow_stages s
        WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id
        UNION
        SELECT s.output, s.name FROM blackboard.flow_stages s
        WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.output IS NOT NULL
    ), bound AS MATERIALIZED (
        SELECT s.name, s.ordinal, b.key, x.source
        FROM blackboard.flow_stages s
        CROSS JOIN LATERAL jsonb_each(s.bindings) b
        CROSS JOIN LATERAL blackboard.flow_binding(b.value #>> '{}') x
        WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.bindings <> '{}'
          AND x.source IS DISTINCT FROM 'inputs')
    SELECT array_agg(b.name ORDER BY b.ordinal, b.key) AS names, array_agg(b.key ORDER BY b.ordinal, b.key) AS keys,
           array_agg(b.source ORDER BY b.ordinal, b.key) AS sources,
           array_agg(p.name ORDER BY b.ordinal, b.key) AS producers
    INTO v_row
    FROM bound b LEFT JOIN producers p ON p.source = b.source;
    IF v_row.names IS NULL THEN
        RETURN;
    END IF;
    v_precedes := blackboard.flow_precedes(v_order, v_stages, v_depends_on, v_row.producers, v_row.names);
    SELECT b.name, b.key, b.source, b.producer INTO v_row
    FROM unnest(v_row.names, v_row.keys, v_row.sources, v_row.producers, v_precedes)
             WITH ORDINALITY b (name, key, source, producer, precedes, n)
    WHERE NOT b.precedes ORDER BY b.n LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise(
            'BB002',
            CASE WHEN v_row.producer IS NULL
                 THEN format('Input %L of stage %L is bound to %L, which is no stage or output of this flow.',
                             v_row.key, v_row.name, v_row.source)
                 ELSE format('Input %L of stage %L is bound to stage %L, which does not come before it; let it depend on it.',
                             v_row.key, v_row.name, v_row.producer) END,
            jsonb_build_object('field', 'inputs', 'stage', v_row.name, 'input', v_row.key));
    END IF;
END
$$;

CREATE FUNCTION blackboard.check_limits(p_session_id uuid) RETURNS TABLE(limit_id uuid, key text, counted integer, slots integer, running integer)
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

CREATE FUNCTION blackboard.check_sessions(p_session_ids uuid[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_id uuid;
BEGIN
    FOREACH v_id IN ARRAY p_session_ids LOOP
        PERFORM pg_advisory_xact_lock_shared(blackboard.session_lock(v_id));
        IF current_setting('transaction_isolation') = 'read committed' THEN
            PERFORM 1 FROM blackboard.sessions WHERE id = v_id AND status IN ('active', 'paused');
        ELSE
            -- An older snapshot may still show a closed session as open: locking its row finds out.
            PERFORM 1 FROM blackboard.sessions WHERE id = v_id AND status IN ('active', 'paused') FOR KEY SHARE;
        END IF;
        IF NOT FOUND THEN
            PERFORM blackboard.open_session(v_id);
        END IF;
    END LOOP;
END
$$;

CREATE FUNCTION blackboard.claim_above_floors(p_session_id uuid, p_agent_id text, p_capabilities text[], p_lease_id uuid, p_claim_id uuid, p_limit integer, p_now timestamp with time zone, p_floors jsonb) RETURNS SETOF blackboard.tasks
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

CREATE FUNCTION blackboard.claim_by_hand(p_session_id uuid, p_id uuid, p_agent_id text) RETURNS SETOF blackboard.tasks
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_lease uuid := gen_random_uuid();
BEGIN
    PERFORM blackboard.start_lease(v_lease, 'sql', pg_backend_pid(), interval '15 minutes');
    RETURN QUERY SELECT * FROM blackboard.claim_task(p_session_id, p_id, p_agent_id, v_lease, gen_random_uuid());
END
$$;

CREATE FUNCTION blackboard.claim_gated(p_session_id uuid, p_agent_id text, p_capabilities text[], p_lease_id uuid, p_claim_id uuid, p_limit integer, p_now timestamp with time zone) RETURNS SETOF blackboard.tasks
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

CREATE FUNCTION blackboard.claim_task(p_session_id uuid, p_id uuid, p_agent_id text, p_lease_id uuid, p_claim_id uuid) RETURNS SETOF blackboard.tasks
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

CREATE FUNCTION blackboard.claim_tasks(p_session_id uuid, p_agent_id text, p_capabilities text[], p_lease_id uuid, p_claim_id uuid, p_limit integer) RETURNS SETOF blackboard.tasks
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

CREATE FUNCTION blackboard.claim_tasks_across(p_session_ids uuid[], p_agent_id text, p_capabilities text[], p_lease_id uuid, p_claim_id uuid, p_limit integer, p_share integer) RETURNS SETOF blackboard.tasks
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

CREATE FUNCTION blackboard.close_due_proposals(p_session_id uuid, p_limit integer DEFAULT 100) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_due record;
    v_count integer := 0;
    v_actor text := pg_catalog.current_setting('blackboard.actor', true);
BEGIN
    PERFORM FROM blackboard.proposals
    WHERE session_id = p_session_id AND status = 'open' AND deadline_at <= blackboard.now() LIMIT 1;
    IF NOT FOUND OR pg_catalog.current_setting('transaction_read_only') = 'on' THEN
        RETURN 0;
    END IF;
    -- Nobody who happens to look decided this.
    PERFORM blackboard.act_as('blackboard');
    FOR v_due IN
        SELECT id, at_deadline FROM blackboard.proposals
        WHERE session_id = p_session_id AND status = 'open' AND deadline_at <= blackboard.now()
        ORDER BY deadline_at, id LIMIT p_limit FOR UPDATE SKIP LOCKED
    LOOP
        UPDATE blackboard.proposals p
        SET status = CASE v_due.at_deadline
                         WHEN 'reject' THEN 'rejected'
                         WHEN 'escalate' THEN 'expired'
                         ELSE (blackboard.tally(p_session_id, v_due.id)).outcome
                     END
        WHERE p.session_id = p_session_id AND p.id = v_due.id;
        v_count := v_count + 1;
    END LOOP;
    PERFORM blackboard.act_as(v_actor);
    RETURN v_count;
END
$$;

CREATE TABLE blackboard.sessions (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    name text NOT NULL,
    goal text DEFAULT ''::text NOT NULL,
    context jsonb DEFAULT '{}'::jsonb NOT NULL,
    status text DEFAULT 'active'::text NOT NULL,
    outcome jsonb,
    allow_self_validation boolean DEFAULT false NOT NULL,
    gated boolean DEFAULT false NOT NULL,
    ageing interval,
    retention interval,
    created_by text DEFAULT blackboard.current_actor() NOT NULL,
    created_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    closed_at timestamp with time zone,
    CONSTRAINT sessions_ageing_is_gated CHECK (((ageing IS NULL) OR gated)),
    CONSTRAINT sessions_ageing_range CHECK (((ageing >= '00:00:01'::interval) AND (ageing <= '3650 days'::interval))),
    CONSTRAINT sessions_closed_at_iff_closed CHECK (((status = ANY (ARRAY['completed'::text, 'failed'::text])) = (closed_at IS NOT NULL))),
    CONSTRAINT sessions_context_size CHECK ((pg_column_size(context) <= 1048576)),
    CONSTRAINT sessions_goal_length CHECK ((length(goal) <= 10000)),
    CONSTRAINT sessions_name_length CHECK (((length(name) >= 1) AND (length(name) <= 200))),
    CONSTRAINT sessions_not_the_board CHECK ((id <> '00000000-0000-0000-0000-000000000000'::uuid)),
    CONSTRAINT sessions_outcome_size CHECK ((pg_column_size(outcome) <= 1048576)),
    CONSTRAINT sessions_retention_range CHECK (((retention >= '00:00:00'::interval) AND (retention <= '36500 days'::interval))),
    CONSTRAINT sessions_status_known CHECK ((status = ANY (ARRAY['active'::text, 'paused'::text, 'completed'::text, 'failed'::text])))
);

CREATE FUNCTION blackboard.close_session(p_session_id uuid, p_status text, p_outcome jsonb, p_actor text) RETURNS blackboard.sessions
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_session blackboard.sessions;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    IF p_status IS NULL OR p_status NOT IN ('completed', 'failed') THEN
        PERFORM blackboard.raise('BB002', 'A session is closed as completed or failed.', '{"field": "status"}');
    END IF;
    SELECT * INTO v_session FROM blackboard.sessions WHERE id = p_session_id FOR UPDATE;
    IF v_session.status = p_status AND v_session.outcome IS NOT DISTINCT FROM p_outcome THEN
        RETURN v_session;
    END IF;
    PERFORM blackboard.open_session(p_session_id);
    UPDATE blackboard.sessions SET status = p_status, outcome = p_outcome, closed_at = blackboard.now()
    WHERE id = p_session_id RETURNING * INTO v_session;
    RETURN v_session;
END
$$;

CREATE FUNCTION blackboard.commit_synchronously() RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF pg_catalog.current_setting('synchronous_commit') = 'off' THEN
        PERFORM pg_catalog.set_config('synchronous_commit', 'on', true);
    END IF;
END
$$;

CREATE FUNCTION blackboard.compensate_flow(p_session_id uuid, p_flow_id uuid) RETURNS void
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

CREATE FUNCTION blackboard.complete_action(p_session_id uuid, p_id uuid, p_agent_id text, p_token bigint, p_result jsonb) RETURNS blackboard.actions
    LANGUAGE sql
    AS $$ SELECT * FROM blackboard.finish_action(p_session_id, p_id, p_agent_id, p_token, 'completed', p_result, NULL) $$;

CREATE FUNCTION blackboard.complete_and_claim(p_session_id uuid, p_id uuid, p_claim_id uuid, p_attempt integer, p_result jsonb, p_agent_id text, p_capabilities text[], p_lease_id uuid, p_next_claim_id uuid, p_limit integer) RETURNS SETOF blackboard.tasks
    LANGUAGE plpgsql
    SET xmlbinary TO 'hex'
    AS $$
BEGIN
    PERFORM blackboard.complete_tasks(p_session_id, ARRAY[p_id], ARRAY[p_claim_id], ARRAY[p_attempt],
                                      ARRAY[p_result], p_agent_id);
    IF FOUND THEN
        PERFORM blackboard.raise('BB006', format('Task %s is not yours any more: drop this work.', p_id),
                                 jsonb_build_object('noun', 'task', 'id', p_id));
    END IF;
    PERFORM 1 FROM blackboard.sessions s WHERE s.id = p_session_id AND s.status = 'active';
    IF FOUND THEN
        RETURN QUERY SELECT * FROM blackboard.claim_tasks(p_session_id, p_agent_id, p_capabilities, p_lease_id,
                                                          p_next_claim_id, p_limit);
    END IF;
END
$$;

CREATE FUNCTION blackboard.complete_stage(p_session_id uuid, p_task_id uuid, p_claim_id uuid, p_attempt integer, p_result jsonb, p_quality double precision, p_agent_id text) RETURNS SETOF uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET xmloption TO 'document'
    AS $$
DECLARE
    v_flow uuid;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    SELECT t.flow_id INTO v_flow FROM blackboard.flow_tasks t
    WHERE t.session_id = p_session_id AND t.task_id = p_task_id AND t.kind = 'stage';
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB002', format('Task %s is no stage of a flow: complete it with tasks.complete.', p_task_id),
                                 jsonb_build_object('field', 'task', 'id', p_task_id));
    END IF;
    IF NOT p_quality BETWEEN 0 AND 1 THEN
        PERFORM blackboard.raise('BB002', 'quality must be between 0 and 1.', '{"field": "quality"}');
    END IF;
    PERFORM 1 FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.id = p_task_id AND t.claim_id = p_claim_id AND t.attempt = p_attempt
      AND t.lease_id IS NOT NULL FOR UPDATE;
    IF FOUND THEN
        PERFORM blackboard.lock_flow(p_session_id, v_flow);
        UPDATE blackboard.flow_stages s SET quality = p_quality
        WHERE s.session_id = p_session_id AND s.flow_id = v_flow AND s.task_id = p_task_id;
    END IF;
    RETURN QUERY SELECT * FROM blackboard.complete_tasks(p_session_id, ARRAY[p_task_id], ARRAY[p_claim_id],
                                                         ARRAY[p_attempt], ARRAY[p_result], p_agent_id);
END
$$;

CREATE FUNCTION blackboard.complete_tasks(p_session_id uuid, p_ids uuid[], p_claim_ids uuid[], p_attempts integer[], p_results jsonb[], p_agent_id text) RETURNS SETOF uuid
    LANGUAGE plpgsql
    SET xmlbinary TO 'hex'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_done integer;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    -- The session comes from the list and not from the parameter, and the status is asked for and not the lease: then
    -- no scan of the session's tasks, and none of tasks_leased, can be mistaken for cheap while they look empty.
    WITH x AS MATERIALIZED (
        SELECT p_session_id AS session_id, u.id, u.claim_id, u.attempt, u.result
        FROM unnest(p_ids, p_claim_ids, p_attempts, p_results) u (id, claim_id, attempt, result)
        -- Locked in the order in which everybody locks many tasks. The limit limits nothing: by it the planner expects
        -- one row, and looks each up by its key, however small the table was when it was last analysed.
        ORDER BY u.id LIMIT cardinality(p_ids))
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

CREATE FUNCTION blackboard.complete_tasks_across(p_session_ids uuid[], p_ids uuid[], p_claim_ids uuid[], p_attempts integer[], p_results jsonb[], p_agent_id text) RETURNS SETOF uuid
    LANGUAGE plpgsql
    SET xmlbinary TO 'hex'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_done integer;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    WITH x AS MATERIALIZED (
        SELECT u.* FROM unnest(p_session_ids, p_ids, p_claim_ids, p_attempts, p_results)
                            u (session_id, id, claim_id, attempt, result)
        ORDER BY u.id LIMIT cardinality(p_ids))
    UPDATE blackboard.tasks t
    SET status = 'completed', result = x.result, lease_id = NULL, deadline_at = NULL, completed_at = blackboard.now(),
        error = NULL
    FROM x
    WHERE t.session_id = x.session_id AND t.id = x.id AND t.claim_id = x.claim_id AND t.attempt = x.attempt
      AND t.status = 'running' AND NOT t.has_dependants AND NOT t.limited;
    GET DIAGNOSTICS v_done = ROW_COUNT;
    IF v_done = cardinality(p_ids) THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH x AS MATERIALIZED (
        SELECT u.* FROM unnest(p_session_ids, p_ids, p_claim_ids, p_attempts) u (session_id, id, claim_id, attempt)
        LIMIT cardinality(p_ids))
    SELECT x.id FROM x LEFT JOIN blackboard.tasks t ON t.session_id = x.session_id AND t.id = x.id
    WHERE (t.status, t.claim_id, t.attempt) IS DISTINCT FROM ('completed', x.claim_id, x.attempt);
END
$$;

CREATE FUNCTION blackboard.configure_session(p_session_id uuid, p_ageing interval, p_retention interval, p_actor text) RETURNS blackboard.sessions
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

CREATE TABLE blackboard.finding_links (
    session_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    finding_id uuid NOT NULL,
    other_id uuid NOT NULL,
    kind text DEFAULT 'contradicts'::text NOT NULL,
    agent_id text DEFAULT blackboard.current_actor() NOT NULL,
    reason text DEFAULT ''::text NOT NULL,
    created_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    CONSTRAINT finding_links_agent_id_length CHECK (((length(agent_id) >= 1) AND (length(agent_id) <= 100))),
    CONSTRAINT finding_links_kind_known CHECK ((kind = 'contradicts'::text)),
    CONSTRAINT finding_links_not_itself CHECK ((finding_id <> other_id)),
    CONSTRAINT finding_links_reason_length CHECK ((length(reason) <= 4000))
);

CREATE FUNCTION blackboard.contradict_finding(p_session_id uuid, p_id uuid, p_by_id uuid, p_reason text, p_actor text) RETURNS blackboard.finding_links
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_link blackboard.finding_links;
    v_id uuid;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    -- The check on a CHECK's behalf: the locks and the look below need two different findings.
    IF p_id = p_by_id THEN
        PERFORM blackboard.raise('BB002', 'A finding cannot contradict itself; name another one.', '{"field": "by"}');
    END IF;
    SELECT * INTO v_link FROM blackboard.finding_links l
    WHERE l.session_id = p_session_id AND l.finding_id = p_id AND l.other_id = p_by_id AND l.kind = 'contradicts';
    IF FOUND THEN
        RETURN v_link;
    END IF;
    PERFORM 1 FROM blackboard.findings f
    WHERE f.session_id = p_session_id AND f.id IN (p_id, p_by_id) ORDER BY f.id FOR NO KEY UPDATE;
    FOREACH v_id IN ARRAY ARRAY[p_id, p_by_id] LOOP
        PERFORM blackboard.active_finding(p_session_id, v_id);
    END LOOP;
    INSERT INTO blackboard.finding_links (session_id, finding_id, other_id, kind, agent_id, reason)
    VALUES (p_session_id, p_id, p_by_id, 'contradicts', blackboard.current_actor(), coalesce(p_reason, ''))
    ON CONFLICT ON CONSTRAINT finding_links_once DO NOTHING
    RETURNING * INTO v_link;
    IF NOT FOUND THEN
        SELECT * INTO v_link FROM blackboard.finding_links l
        WHERE l.session_id = p_session_id AND l.finding_id = p_id AND l.other_id = p_by_id AND l.kind = 'contradicts';
    END IF;
    RETURN v_link;
END
$$;

CREATE FUNCTION blackboard.count_running(p_session_id uuid, p_limit_id uuid) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE FUNCTION blackboard.create_flow(p_session_id uuid, p_id uuid, p_name text, p_stages jsonb, p_inputs jsonb, p_actor text) RETURNS SETOF blackboard.flows
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET xmloption TO 'document'
    AS $$
DECLARE
    v_digest text := md5(jsonb_build_array(p_name, p_stages, coalesce(p_inputs, '{}'))::text);
    v_flow blackboard.flows;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    IF jsonb_typeof(p_stages) IS DISTINCT FROM 'array' OR jsonb_array_length(p_stages) = 0 THEN
        PERFORM blackboard.raise('BB002', 'A flow has at least one stage.', '{"field": "stages"}');
    END IF;
    INSERT INTO blackboard.flows (session_id, id, name, inputs, digest, created_by)
    VALUES (p_session_id, p_id, p_name, coalesce(p_inputs, '{}'), v_digest, blackboard.current_actor())
    ON CONFLICT (session_id, id) DO NOTHING;
    IF FOUND THEN
        PERFORM blackboard.add_stages(p_session_id, p_id, p_stages);
        PERFORM blackboard.check_flow(p_session_id, p_id);
        PERFORM blackboard.settle_flow(
            p_session_id, p_id, '{}', array(SELECT s.name FROM blackboard.flow_stages s
                                            WHERE s.session_id = p_session_id AND s.flow_id = p_id
                                            EXCEPT
                                            SELECT e.stage FROM blackboard.flow_edges e
                                            WHERE e.session_id = p_session_id AND e.flow_id = p_id));
    END IF;
    SELECT * INTO v_flow FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_id;
    IF v_flow.digest <> v_digest THEN
        PERFORM blackboard.raise('BB004', 'A flow with this id was created with other content; use a new id.',
                                 jsonb_build_object('noun', 'flow', 'id', p_id));
    END IF;
    RETURN NEXT v_flow;
END
$$;

CREATE TABLE blackboard.memberships (
    session_id uuid NOT NULL,
    agent_id text NOT NULL,
    role text DEFAULT 'member'::text NOT NULL,
    vote_weight double precision DEFAULT 1 NOT NULL,
    lease_id uuid,
    joined_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    left_at timestamp with time zone,
    CONSTRAINT memberships_role_length CHECK (((length(role) >= 1) AND (length(role) <= 50))),
    CONSTRAINT memberships_vote_weight_range CHECK (((vote_weight >= (0)::double precision) AND (vote_weight <= (1000000)::double precision)))
);

COMMENT ON COLUMN blackboard.memberships.lease_id IS 'Presence, and no history: the agent is there while it is live.';

CREATE FUNCTION blackboard.current_member(p_session_id uuid, p_agent_id text) RETURNS blackboard.memberships
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    v_member blackboard.memberships;
BEGIN
    SELECT * INTO v_member FROM blackboard.memberships
    WHERE session_id = p_session_id AND agent_id = p_agent_id AND left_at IS NULL;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB005',
            format('%s is not a member of this session; join it first.', coalesce(p_agent_id, 'NULL')),
            jsonb_build_object('noun', 'agent', 'id', p_agent_id));
    END IF;
    RETURN v_member;
END
$$;

CREATE FUNCTION blackboard.current_tx() RETURNS bigint
    LANGUAGE sql STABLE
    AS $$ SELECT pg_catalog.pg_current_xact_id()::text::bigint + blackboard.tx_offset() $$;

CREATE FUNCTION blackboard.cursor_history() RETURNS text
    LANGUAGE sql STABLE
    AS $$ SELECT substr(replace(h.id::text, '-', ''), 1, 8) FROM blackboard.history h $$;

CREATE FUNCTION blackboard.cursor_now(p_session_id uuid) RETURNS text
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    v_own bigint := pg_current_xact_id_if_assigned()::text::bigint + blackboard.tx_offset();
    v_newest bigint;
BEGIN
    SELECT max(tx) INTO v_newest FROM (
        SELECT e.tx FROM blackboard.events e
        WHERE e.session_id = p_session_id AND (v_own IS NULL OR e.tx <> v_own)
        ORDER BY e.tx DESC LIMIT 1) newest;
    SELECT greatest(v_newest, p.tx) INTO v_newest FROM (SELECT max(tx) AS tx FROM blackboard.pruned_events
                                                       WHERE session_id = p_session_id) p;
    RETURN concat_ws('.', 'bb1', blackboard.cursor_history(), coalesce(v_newest + 1, 0), (
        SELECT coalesce(string_agg(r.x::text, ','), '')
        FROM (SELECT x::text::bigint + blackboard.tx_offset() FROM pg_snapshot_xip(pg_current_snapshot()) x
              UNION SELECT v_own WHERE v_own IS NOT NULL) r (x)
        WHERE r.x < coalesce(v_newest + 1, 0)));
END
$$;

CREATE FUNCTION blackboard.decide_task(p_session_id uuid, p_id uuid, p_approved boolean, p_by text, p_reason text, p_key text DEFAULT NULL::text) RETURNS SETOF blackboard.tasks
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_task blackboard.tasks;
BEGIN
    PERFORM blackboard.act_as(p_by);
    IF NOT blackboard.first_time(p_session_id, p_key, 'decide_task',
                                 jsonb_build_array(p_id, p_approved, p_by, p_reason)) THEN
        RETURN QUERY SELECT t.* FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = p_id;
        RETURN;
    END IF;
    SELECT * INTO v_task FROM blackboard.tasks WHERE session_id = p_session_id AND id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no task %s in this session.', p_id),
                                 jsonb_build_object('noun', 'task', 'id', p_id));
    END IF;
    IF p_approved AND v_task.approved_by = blackboard.current_actor() THEN
        RETURN NEXT v_task;
        RETURN;
    END IF;
    IF v_task.status <> 'awaiting_approval' THEN
        PERFORM blackboard.raise('BB003', format('Task %s is %s and waits for no approval.', p_id, v_task.status),
                                 jsonb_build_object('noun', 'task', 'id', p_id, 'status', v_task.status));
    END IF;
    v_task.approved_by := CASE WHEN p_approved THEN blackboard.current_actor() END;
    v_task.status := CASE WHEN p_approved THEN blackboard.next_status(v_task) ELSE 'cancelled' END;
    RETURN QUERY
    UPDATE blackboard.tasks t
    SET approved_by = v_task.approved_by, status = v_task.status,
        position = CASE WHEN v_task.status IN ('pending', 'assigned') THEN nextval('blackboard.task_positions') END,
        completed_at = CASE WHEN NOT p_approved THEN blackboard.now() END,
        error = CASE WHEN NOT p_approved THEN jsonb_build_object('code', 'rejected', 'message', p_reason) END
    WHERE t.session_id = p_session_id AND t.id = p_id
    RETURNING t.*;
END
$$;

CREATE FUNCTION blackboard.dependency_cycle(p_session_id uuid, p_tasks uuid[]) RETURNS uuid[]
    LANGUAGE plpgsql
    SET enable_nestloop TO 'off'
    SET enable_hashjoin TO 'on'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_nodes uuid[];
    v_tasks uuid[];
    v_parents uuid[];
    v_dependants integer[];
    v_heads integer[];
    v_waiting integer[];
    v_queue integer[];
    v_size integer;
    v_done integer := 0;
    v_queued integer := 0;
    v_left uuid[] := '{}';
    v_path uuid[];
    v_next uuid;
    v_from integer;
BEGIN
    SELECT e.tasks, e.depends_on INTO v_tasks, v_parents FROM blackboard.edges_above(p_session_id, p_tasks) e;
    IF v_tasks IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(u.id ORDER BY u.id) INTO v_nodes
    FROM (SELECT unnest(v_tasks) AS id UNION SELECT unnest(v_parents)) u;
    v_size := cardinality(v_nodes);
    WITH nodes AS MATERIALIZED (
        SELECT u.id, u.n::integer AS n FROM unnest(v_nodes) WITH ORDINALITY u (id, n)
    ), edges AS MATERIALIZED (
        SELECT a.n AS task, b.n AS depends_on
        FROM unnest(v_tasks, v_parents) d (task_id, depends_on_id)
        JOIN nodes a ON a.id = d.task_id JOIN nodes b ON b.id = d.depends_on_id)
    SELECT (SELECT array_agg(e.task ORDER BY e.depends_on) FROM edges e),
           (SELECT array_agg(h.count ORDER BY h.n) FROM (
                SELECT n.n, count(e.task)::integer AS count FROM nodes n LEFT JOIN edges e ON e.depends_on = n.n
                GROUP BY n.n) h),
           (SELECT array_agg(w.count ORDER BY w.n) FROM (
                SELECT n.n, count(e.depends_on)::integer AS count FROM nodes n LEFT JOIN edges e ON e.task = n.n
                GROUP BY n.n) w)
    INTO v_dependants, v_heads, v_waiting;
    v_queue := array_fill(0, ARRAY[v_size]);
    -- v_heads: from how many dependants of each to where its own begin.
    v_from := 1;
    FOR i IN 1 .. v_size LOOP
        v_from := v_from + v_heads[i];
        v_heads[i] := v_from - v_heads[i];
        IF v_waiting[i] = 0 THEN
            v_queued := v_queued + 1;
            v_queue[v_queued] := i;
        END IF;
    END LOOP;
    WHILE v_done < v_queued LOOP
        v_done := v_done + 1;
        v_from := v_queue[v_done];
        FOR i IN v_heads[v_from] .. coalesce(v_heads[v_from + 1] - 1, cardinality(v_dependants), 0) LOOP
            v_waiting[v_dependants[i]] := v_waiting[v_dependants[i]] - 1;
            IF v_waiting[v_dependants[i]] = 0 THEN
                v_queued := v_queued + 1;
                v_queue[v_queued] := v_dependants[i];
            END IF;
        END LOOP;
    END LOOP;
    IF v_done = v_size THEN
        RETURN NULL;
    END IF;
    FOR i IN 1 .. v_size LOOP
        IF v_waiting[i] > 0 THEN
            v_left := v_left || v_nodes[i];
        END IF;
    END LOOP;
    -- Everything that is left depends on something that is left: walk until the walk meets itself.
    v_next := v_left[1];
    WHILE v_path IS NULL OR NOT v_next = ANY (v_path) LOOP
        v_path := v_path || v_next;
        SELECT d.depends_on_id INTO STRICT v_next FROM unnest(v_tasks, v_parents) d (task_id, depends_on_id)
        WHERE d.task_id = v_next AND d.depends_on_id = ANY (v_left) LIMIT 1;
    END LOOP;
    RETURN v_path[array_position(v_path, v_next) :] || v_next;
END
$$;

CREATE FUNCTION blackboard.dependency_options(p_options jsonb) RETURNS TABLE(id uuid, on_failure text)
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT coalesce(e.edge ->> 'id', e.edge #>> '{}')::uuid, coalesce(e.edge ->> 'on_failure', 'fail')
    FROM jsonb_array_elements(p_options -> 'depends_on') e (edge)
$$;

CREATE FUNCTION blackboard.described_edges(p_stages jsonb) RETURNS TABLE(stage text, depends_on text, on_failure text)
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT s.stage ->> 'name', coalesce(a.edge ->> 'stage', a.edge #>> '{}'), coalesce(a.edge ->> 'on_failure', 'fail')
    FROM jsonb_array_elements(p_stages) s (stage),
         LATERAL jsonb_array_elements(CASE WHEN jsonb_typeof(s.stage -> 'after') = 'array'
                                           THEN s.stage -> 'after' ELSE '[]' END) a (edge)
$$;

CREATE FUNCTION blackboard.discard_task(p_session_id uuid, p_id uuid, p_reason text, p_actor text) RETURNS SETOF blackboard.tasks
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_task blackboard.tasks;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    SELECT * INTO v_task FROM blackboard.tasks WHERE session_id = p_session_id AND id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no task %s in this session.', p_id),
                                 jsonb_build_object('noun', 'task', 'id', p_id));
    END IF;
    IF v_task.status = 'cancelled' AND v_task.error ->> 'code' = 'discarded' THEN
        RETURN NEXT v_task;
        RETURN;
    END IF;
    IF v_task.status <> 'dead' THEN
        PERFORM blackboard.raise('BB003', format('Task %s is %s; only dead tasks can be discarded.',
                                                 p_id, v_task.status),
                                 jsonb_build_object('noun', 'task', 'id', p_id, 'status', v_task.status));
    END IF;
    RETURN QUERY
    UPDATE blackboard.tasks t
    SET status = 'cancelled', completed_at = blackboard.now(),
        error = jsonb_build_object('code', 'discarded', 'message', p_reason, 'last', t.error)
    WHERE t.session_id = p_session_id AND t.id = p_id
    RETURNING t.*;
END
$$;

CREATE FUNCTION blackboard.edges_above(p_session_id uuid, p_tasks uuid[], OUT tasks uuid[], OUT depends_on uuid[]) RETURNS record
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_custom_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET enable_nestloop TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
BEGIN
    -- Each looked up on its own, however small the table seems.
    WITH RECURSIVE reached (id) AS (
        SELECT p.id FROM unnest(p_tasks) p (id)
        WHERE EXISTS (SELECT FROM blackboard.task_dependencies d
                      WHERE d.session_id = p_session_id AND d.depends_on_id = p.id OFFSET 0)
        UNION
        SELECT d.depends_on_id FROM reached r
        CROSS JOIN LATERAL (
            SELECT o.depends_on_id FROM blackboard.task_dependencies o
            WHERE o.session_id = p_session_id AND o.task_id = r.id
            OFFSET 0) d)
    SELECT array_agg(d.task_id), array_agg(d.depends_on_id) INTO tasks, depends_on
    FROM reached r
    CROSS JOIN LATERAL (
        SELECT o.task_id, o.depends_on_id FROM blackboard.task_dependencies o
        WHERE o.session_id = p_session_id AND o.task_id = r.id
        OFFSET 0) d;
END
$$;

CREATE FUNCTION blackboard.electors_guard() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    -- Depth 1 is a statement of somebody's own; deeper is the trigger of the proposal that is being opened or deleted.
    IF pg_trigger_depth() = 1 THEN
        PERFORM blackboard.raise('BB005',
                                 'The electorate is fixed when a proposal is opened; withdraw it and open another.',
                                 jsonb_build_object('noun', 'proposal'));
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.end_decisions(p_session_id uuid) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM blackboard.close_due_proposals(p_session_id, 2147483647);
    PERFORM FROM blackboard.proposals WHERE session_id = p_session_id AND status = 'open' ORDER BY id FOR NO KEY UPDATE;
    UPDATE blackboard.proposals SET status = 'expired' WHERE session_id = p_session_id AND status = 'open';
    UPDATE blackboard.actions SET status = 'rejected', approval_reason = 'The session was closed.'
    WHERE session_id = p_session_id AND status = 'awaiting_approval';
    UPDATE blackboard.actions
    SET status = 'failed', error = 'The session was closed while this was executing; its outcome is unknown.'
    WHERE session_id = p_session_id AND status = 'executing';
    PERFORM FROM blackboard.locks WHERE session_id = p_session_id ORDER BY id FOR NO KEY UPDATE;
    DELETE FROM blackboard.lock_waiters WHERE session_id = p_session_id;
    UPDATE blackboard.locks
    SET holder = NULL, lease_id = NULL, request_id = NULL, acquired_at = NULL, expires_at = NULL,
        released_token = token
    WHERE session_id = p_session_id AND holder IS NOT NULL;
END
$$;

CREATE FUNCTION blackboard.end_lease(p_lease_id uuid) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
BEGIN
    UPDATE blackboard.leases SET lapsed_at = blackboard.now() WHERE id = p_lease_id AND lapsed_at IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM blackboard.sweep_leases(1000);
    RETURN true;
END
$$;

CREATE FUNCTION blackboard.end_session() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    -- Whoever is adding rows just now commits first; whoever comes later finds the session closed.
    PERFORM pg_advisory_xact_lock(blackboard.session_lock(NEW.id));
    PERFORM blackboard.end_decisions(NEW.id);
    PERFORM 1 FROM blackboard.tasks
    WHERE session_id = NEW.id AND completed_at IS NULL ORDER BY id FOR UPDATE;
    UPDATE blackboard.tasks
    SET status = 'cancelled', position = NULL, completed_at = blackboard.now(),
        error = jsonb_build_object('code', 'session_closed', 'message', 'The session was closed.')
    WHERE session_id = NEW.id AND completed_at IS NULL AND status <> 'running';
    UPDATE blackboard.tasks SET cancel_requested = true
    WHERE session_id = NEW.id AND status = 'running' AND NOT cancel_requested;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.event_types(p_topics text[]) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT array_agg(DISTINCT y)
    FROM unnest(p_topics) t (topic),
         LATERAL unnest(CASE
             WHEN topic = 'agent.error.occurred'
                 THEN ARRAY['task.retried', 'task.failed', 'task.dead', 'task.lapsed', 'action.failed']
             WHEN topic ~ '^agent\.(task|finding|action|hypothesis|session|proposal|vote|lock|message)\.'
                 THEN ARRAY[substr(topic, 7)]
             ELSE ARRAY[topic] END) y
$$;

CREATE FUNCTION blackboard.evidence_log_odds(p_confidence double precision, p_weight double precision, p_trust double precision, p_contradicted boolean) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT blackboard.product(blackboard.product(p_weight, p_trust),
                              CASE WHEN p_contradicted THEN 0.5 ELSE 1 END * ln((0.5 + s.c / 2) / (0.5 - s.c / 2)))
    FROM (SELECT CASE WHEN p_confidence < 1e-300 THEN 0 ELSE least(coalesce(p_confidence, 0.5), 0.98) END AS c) s
$$;

CREATE FUNCTION blackboard.expertise(p_agent_id text, p_category text) RETURNS double precision
    LANGUAGE sql STABLE
    AS $$
    -- 0.5 for what nobody declared: neither trusted blindly nor ignored. What is too small for a double is nothing.
    SELECT coalesce((SELECT CASE WHEN w.weight < 1e-300 THEN 0 ELSE w.weight::double precision END
                     FROM blackboard.agents a
                     CROSS JOIN LATERAL (SELECT (a.expertise ->> p_category)::numeric AS weight) w
                     WHERE a.id = p_agent_id AND w.weight IS NOT NULL), 0.5)
$$;

CREATE FUNCTION blackboard.expire_reservations(p_session_id uuid, p_limit integer DEFAULT 200) RETURNS integer
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_count integer;
BEGIN
    PERFORM blackboard.tend_leases();
    WITH gone AS MATERIALIZED (
        SELECT s.session_id, s.id
        FROM blackboard.spend s LEFT JOIN blackboard.leases l ON l.id = s.lease_id
        WHERE s.session_id = p_session_id AND s.status = 'reserved'
          AND (l.lapsed_at IS NOT NULL OR (s.lease_id IS NOT NULL AND l.id IS NULL) OR s.expires_at < blackboard.now())
        ORDER BY s.id LIMIT p_limit FOR UPDATE OF s SKIP LOCKED)
    UPDATE blackboard.spend s SET status = 'expired'
    FROM gone g WHERE s.session_id = g.session_id AND s.id = g.id;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END
$$;

CREATE FUNCTION blackboard.fail_action(p_session_id uuid, p_id uuid, p_agent_id text, p_token bigint, p_error text) RETURNS blackboard.actions
    LANGUAGE sql
    AS $$ SELECT * FROM blackboard.finish_action(p_session_id, p_id, p_agent_id, p_token, 'failed', NULL, p_error) $$;

CREATE FUNCTION blackboard.fail_task(p_session_id uuid, p_id uuid, p_claim_id uuid, p_attempt integer, p_error jsonb, p_retry boolean, p_delay interval, p_agent_id text) RETURNS SETOF blackboard.tasks
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_status text;
    v_task blackboard.tasks;
BEGIN
    SELECT f.status INTO v_status
    FROM blackboard.fail_tasks(
        p_session_id, ARRAY[p_id], ARRAY[p_claim_id], ARRAY[p_attempt],
        ARRAY[CASE WHEN jsonb_typeof(p_error) = 'object' THEN p_error
                   ELSE jsonb_build_object('code', 'failed', 'message', coalesce(p_error #>> '{}', '')) END],
        ARRAY[CASE WHEN NOT p_retry THEN 'failed' ELSE 'retry' END], ARRAY[p_delay], NULL, p_agent_id) f;
    IF v_status IS NULL THEN
        -- Says why not.
        PERFORM blackboard.held_task(p_session_id, p_id, p_claim_id, p_attempt);
    END IF;
    SELECT * INTO v_task FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = p_id;
    IF v_task.completed_at IS NOT NULL THEN
        -- The step of many leaves that to its client.
        PERFORM blackboard.hint(p_session_id, 'tasks.changed');
    END IF;
    RETURN NEXT v_task;
END
$$;

CREATE FUNCTION blackboard.fail_tasks(p_session_id uuid, p_ids uuid[], p_claim_ids uuid[], p_attempts integer[], p_errors jsonb[], p_outcomes text[], p_delays interval[], p_max_attempts integer[], p_agent_id text) RETURNS TABLE(id uuid, status text)
    LANGUAGE plpgsql
    SET xmlbinary TO 'hex'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
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
    -- for cheap while they look empty. The limit limits nothing: by it the planner expects one row, and looks up keys.
    WITH x AS MATERIALIZED (
        SELECT u.session_id, u.id, u.claim_id, u.attempt, u.error, u.delay, u.max_attempts,
               CASE WHEN u.outcome <> 'retry' THEN u.outcome
                    WHEN o.cancel_requested THEN 'cancelled'
                    WHEN o.attempt - o.released >= coalesce(u.max_attempts, o.max_attempts) THEN 'dead'
                    ELSE 'scheduled' END AS status
        FROM (SELECT p_session_id AS session_id, w.*
              FROM unnest(p_ids, p_claim_ids, p_attempts, p_errors, p_outcomes, p_delays, p_max_attempts)
                       w (id, claim_id, attempt, error, outcome, delay, max_attempts) LIMIT cardinality(p_ids)) u
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
                         AND t.error -> 'code' IS NOT DISTINCT FROM x.code
                    THEN t.status
                    -- It has gone on since: history knows of this failure.
                    ELSE (SELECT e.data ->> 'status' FROM blackboard.events e
                          WHERE e.session_id = p_session_id AND e.subject_id = x.id
                            AND e.type IN ('task.retried', 'task.failed', 'task.dead', 'task.cancelled')
                            AND e.data #> '{error,attempt}' = to_jsonb(x.attempt)
                            AND e.data #> '{error,code}' IS NOT DISTINCT FROM x.code
                          ORDER BY e.seq LIMIT 1) END AS status, t.id IS NOT NULL AS known
        FROM (SELECT u.*, coalesce(u.error, '{"code": "failed"}') -> 'code' AS code
              FROM unnest(p_ids, p_claim_ids, p_attempts, p_errors) u (id, claim_id, attempt, error)) x
        LEFT JOIN blackboard.tasks t ON t.session_id = p_session_id AND t.id = x.id
    ), kept AS (
        INSERT INTO blackboard.late_results (session_id, task_id, claim_id, attempt, agent_id, error)
        SELECT p_session_id, a.id, a.claim_id, a.attempt, p_agent_id, a.error FROM answered a
        WHERE a.status IS NULL AND a.known
        ON CONFLICT DO NOTHING)
    SELECT a.id, a.status FROM answered a;
END
$$;

CREATE FUNCTION blackboard.find_ids(p_session_id uuid, p_noun text, p_digits text) RETURNS SETOF uuid
    LANGUAGE plpgsql STABLE
    SET enable_seqscan TO 'off'
    AS $_$
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
$_$;

CREATE FUNCTION blackboard.normal_text(p_content jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    -- An escaped backslash is set aside first, so that "C:\\new" does not look like an escaped line feed.
    SELECT pg_catalog.regexp_replace(pg_catalog.regexp_replace(
        pg_catalog.replace(pg_catalog.lower(p_content::text), '\\', pg_catalog.chr(1)),
        '(\s|\\[ntrf])+', ' ', 'g'), ' ?" ?', '"', 'g')
$$;

CREATE FUNCTION blackboard.finding_fingerprint(p_category text, p_type text, p_content jsonb) RETURNS bytea
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN sha256(convert_to(((((p_category || '
'::text) || p_type) || '
'::text) || blackboard.normal_text(p_content)), 'UTF8'::name));

CREATE FUNCTION blackboard.finding_trust(p_session_id uuid, p_agent_id text, p_derived_from uuid[]) RETURNS double precision
    LANGUAGE sql STABLE
    AS $$
    SELECT least(coalesce((SELECT a.trust FROM blackboard.agents a WHERE a.id = p_agent_id), 0.5),
                 (SELECT min(f.trust) FROM blackboard.findings f
                  WHERE f.session_id = p_session_id AND f.id = ANY (p_derived_from)))
$$;

CREATE FUNCTION blackboard.finish_action(p_session_id uuid, p_id uuid, p_agent_id text, p_token bigint, p_status text, p_result jsonb, p_error text) RETURNS blackboard.actions
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_action blackboard.actions;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    v_action := blackboard.lock_action(p_session_id, p_id);
    IF v_action.token IS DISTINCT FROM p_token OR v_action.executor IS DISTINCT FROM p_agent_id
       OR (v_action.status = 'executing' AND blackboard.lease_lapsed(v_action.lease_id)) THEN
        PERFORM blackboard.raise('BB006',
            'This execution is no longer yours: your lease lapsed or another agent has started the action. '
            'Do not go on; look at the action to see who has it.',
            jsonb_build_object('noun', 'action', 'id', p_id, 'token', p_token, 'status', v_action.status,
                               'executor', v_action.executor));
    END IF;
    IF v_action.status = p_status THEN
        IF (v_action.result, v_action.error) IS DISTINCT FROM (p_result, p_error) THEN
            PERFORM blackboard.raise('BB004', format('This execution was %s before with another result.', p_status),
                                     jsonb_build_object('noun', 'action', 'id', p_id, 'token', p_token));
        END IF;
        RETURN v_action;
    END IF;
    PERFORM blackboard.open_session(p_session_id);
    IF v_action.status <> 'executing' THEN
        PERFORM blackboard.raise('BB003', format('The action is %s already.', v_action.status),
                                 jsonb_build_object('noun', 'action', 'id', p_id, 'status', v_action.status));
    END IF;
    UPDATE blackboard.actions SET status = p_status, result = p_result, error = p_error
    WHERE session_id = p_session_id AND id = p_id
    RETURNING * INTO v_action;
    RETURN v_action;
END
$$;

CREATE FUNCTION blackboard.finish_flow(p_session_id uuid, p_flow_id uuid) RETURNS void
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
    v_flow blackboard.flows;
    v_failed jsonb;
    v_closed boolean;
BEGIN
    PERFORM 1 FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.state IN ('waiting', 'ready') LIMIT 1;
    IF FOUND THEN
        RETURN;
    END IF;
    SELECT * INTO v_flow FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_flow_id;
    IF v_flow.finished_at IS NOT NULL THEN
        RETURN;
    END IF;
    SELECT jsonb_agg(s.name ORDER BY s.ordinal), coalesce(bool_or(s.error ->> 'code' = 'session_closed'), false)
    INTO v_failed, v_closed
    FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.state IN ('failed', 'cancelled');
    UPDATE blackboard.flows f
    SET finished_at = blackboard.now(),
        status = CASE WHEN v_failed IS NULL THEN 'completed' WHEN v_closed THEN 'cancelled' ELSE 'failed' END,
        error = CASE WHEN v_closed THEN jsonb_build_object('code', 'session_closed', 'message', 'The session was closed.')
                     WHEN v_failed IS NOT NULL THEN jsonb_build_object(
                         'code', 'stages_failed', 'message', 'Not every stage of the flow completed.',
                         'stages', CASE WHEN jsonb_array_length(v_failed) <= 100 THEN v_failed END) END
    WHERE f.session_id = p_session_id AND f.id = p_flow_id;
    IF v_flow.compensating AND NOT v_closed AND EXISTS (
        SELECT FROM blackboard.sessions s WHERE s.id = p_session_id AND s.status IN ('active', 'paused'))
    THEN
        PERFORM blackboard.compensate_flow(p_session_id, p_flow_id);
    END IF;
END
$$;

CREATE FUNCTION blackboard.fire_schedule(p_session_id uuid, p_id uuid, p_expected timestamp with time zone, p_times timestamp with time zone[], p_task_ids uuid[], p_skipped integer, p_next_at timestamp with time zone) RETURNS TABLE(task_id uuid, planned_at timestamp with time zone)
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_schedule blackboard.schedules;
    v_added boolean;
BEGIN
    SELECT * INTO v_schedule FROM blackboard.schedules s
    WHERE s.session_id = p_session_id AND s.id = p_id AND s.removed_at IS NULL AND NOT s.paused
      AND s.next_at = p_expected
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM blackboard.act_as('schedule:' || v_schedule.name);
    IF p_skipped > 0 OR cardinality(p_times) = 0 THEN
        UPDATE blackboard.schedules s
        SET skipped = s.skipped + p_skipped, next_at = coalesce(p_times[1], p_next_at)
        WHERE s.session_id = p_session_id AND s.id = p_id;
    END IF;
    FOR v_index IN 1 .. cardinality(p_times) LOOP
        BEGIN
            PERFORM FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = p_task_ids[v_index];
            v_added := NOT FOUND;
            IF v_added THEN
                PERFORM blackboard.add_task(
                    p_session_id, p_task_ids[v_index], v_schedule.type, v_schedule.capability, v_schedule.priority,
                    v_schedule.parameters, nullif(v_schedule.options, '{}'), 'schedule:' || v_schedule.name);
            END IF;
            UPDATE blackboard.schedules s
            SET last_at = p_times[v_index], last_task_id = p_task_ids[v_index], fired = s.fired + 1,
                next_at = coalesce(p_times[v_index + 1], p_next_at)
            WHERE s.session_id = p_session_id AND s.id = p_id;
            IF v_added THEN
                task_id := p_task_ids[v_index];
                planned_at := p_times[v_index];
                RETURN NEXT;
            END IF;
        EXCEPTION WHEN data_exception OR integrity_constraint_violation OR SQLSTATE 'BB000' THEN
            UPDATE blackboard.schedules s SET paused = true, error = left(SQLERRM, 10000)
            WHERE s.session_id = p_session_id AND s.id = p_id;
            RETURN;
        END;
    END LOOP;
END
$$;

CREATE FUNCTION blackboard.first_time(p_session_id uuid, p_key text, p_verb text, p_content jsonb) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_digest text := md5(p_content::text);
    v_found blackboard.requests;
BEGIN
    IF p_key IS NULL THEN
        RETURN true;
    END IF;
    DELETE FROM blackboard.requests r WHERE (r.session_id, r.key) IN (
        SELECT session_id, key FROM blackboard.requests WHERE at < blackboard.now() - interval '1 day'
        ORDER BY at LIMIT 20 FOR UPDATE SKIP LOCKED);
    INSERT INTO blackboard.requests (session_id, key, verb, digest) VALUES (p_session_id, p_key, p_verb, v_digest)
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
        RETURN true;
    END IF;
    SELECT * INTO v_found FROM blackboard.requests WHERE session_id = p_session_id AND key = p_key;
    IF v_found.verb IS DISTINCT FROM p_verb OR v_found.digest IS DISTINCT FROM v_digest THEN
        PERFORM blackboard.raise('BB004',
            format('The idempotency key %L was used before for another call; use a new key.', p_key),
            jsonb_build_object('field', 'key', 'key', p_key, 'verb', v_found.verb));
    END IF;
    RETURN false;
END
$$;

CREATE FUNCTION blackboard.floors(p_session_id uuid) RETURNS TABLE(floors jsonb, until timestamp with time zone)
    LANGUAGE sql STABLE
    AS $$
    SELECT n.note -> 'floors', (n.note ->> 'until')::timestamptz
    FROM (SELECT nullif(current_setting('blackboard.floors', true), '')::jsonb -> p_session_id::text OFFSET 0) n (note)
    WHERE (n.note ->> 'until')::timestamptz > blackboard.now()
$$;

CREATE FUNCTION blackboard.flow_binding(p_source text) RETURNS TABLE(source text, path text[])
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT split_part(p_source, '.', 1),
           CASE WHEN strpos(p_source, '.') > 0
                THEN string_to_array(substr(p_source, strpos(p_source, '.') + 1), '.') ELSE '{}' END
$$;

CREATE FUNCTION blackboard.flow_order(p_names text[], p_stages text[], p_depends_on text[]) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE
    SET enable_nestloop TO 'off'
    SET enable_hashjoin TO 'on'
    AS $$
DECLARE
    v_size integer := cardinality(p_names);
    v_dependants integer[];
    v_heads integer[];
    v_waiting integer[];
    v_depends_on integer[];
    v_queue integer[] := array_fill(0, ARRAY[greatest(v_size, 1)]);
    v_queued integer := 0;
    v_done integer := 0;
    v_from integer := 1;
    v_node integer;
    v_path integer[] := '{}';
BEGIN
    WITH nodes AS MATERIALIZED (
        SELECT u.name, u.n::integer AS n FROM unnest(p_names) WITH ORDINALITY u (name, n)
    ), edges AS MATERIALIZED (
        SELECT a.n AS stage, b.n AS depends_on
        FROM unnest(p_stages, p_depends_on) e (stage, depends_on)
        JOIN nodes a ON a.name = e.stage JOIN nodes b ON b.name = e.depends_on)
    SELECT (SELECT array_agg(e.stage ORDER BY e.depends_on, e.stage) FROM edges e),
           (SELECT array_agg(h.count ORDER BY h.n) FROM (
                SELECT n.n, count(e.stage)::integer AS count FROM nodes n LEFT JOIN edges e ON e.depends_on = n.n
                GROUP BY n.n) h),
           (SELECT array_agg(w.count ORDER BY w.n) FROM (
                SELECT n.n, count(e.depends_on)::integer AS count FROM nodes n LEFT JOIN edges e ON e.stage = n.n
                GROUP BY n.n) w)
    INTO v_dependants, v_heads, v_waiting;
    -- v_heads: from how many dependants of each to where its own begin.
    FOR i IN 1 .. v_size LOOP
        v_from := v_from + v_heads[i];
        v_heads[i] := v_from - v_heads[i];
        IF v_waiting[i] = 0 THEN
            v_queued := v_queued + 1;
            v_queue[v_queued] := i;
        END IF;
    END LOOP;
    WHILE v_done < v_queued LOOP
        v_done := v_done + 1;
        v_from := v_queue[v_done];
        FOR i IN v_heads[v_from] .. coalesce(v_heads[v_from + 1] - 1, cardinality(v_dependants), 0) LOOP
            v_waiting[v_dependants[i]] := v_waiting[v_dependants[i]] - 1;
            IF v_waiting[v_dependants[i]] = 0 THEN
                v_queued := v_queued + 1;
                v_queue[v_queued] := v_dependants[i];
            END IF;
        END LOOP;
    END LOOP;
    IF v_done = v_size THEN
        RETURN array(SELECT p_names[q.node] FROM unnest(v_queue) WITH ORDINALITY q (node, n)
                     WHERE q.node > 0 ORDER BY q.n);
    END IF;
    -- Everything that is left depends on something that is left: walk until the walk meets itself.
    SELECT min(w.n) INTO v_node FROM unnest(v_waiting) WITH ORDINALITY w (left_over, n) WHERE w.left_over > 0;
    WHILE NOT v_node = ANY (v_path) LOOP
        v_path := v_path || v_node;
        SELECT array_agg(array_position(p_names, e.depends_on)) INTO v_depends_on
        FROM unnest(p_stages, p_depends_on) e (stage, depends_on) WHERE e.stage = p_names[v_node];
        SELECT min(d.n) INTO v_node FROM unnest(v_depends_on) d (n) WHERE v_waiting[d.n] > 0;
    END LOOP;
    v_path := v_path[array_position(v_path, v_node) :] || v_node;
    PERFORM blackboard.raise(
        'BB008',
        (SELECT format('The stages form a cycle: %s. Leave one of these edges out.',
                       string_agg(p_names[p.node], ' -> ' ORDER BY p.n))
         FROM unnest(v_path) WITH ORDINALITY p (node, n)),
        jsonb_build_object('field', 'after', 'path', (SELECT jsonb_agg(p_names[p.node] ORDER BY p.n)
                                                      FROM unnest(v_path) WITH ORDINALITY p (node, n))));
END
$$;

CREATE FUNCTION blackboard.flow_outputs(p_session_id uuid, p_flow_id uuid) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT coalesce(jsonb_object_agg(s.output, coalesce(blackboard.stage_result(s.session_id, s.flow_id, s.name), 'null')),
                    '{}')
    FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.output IS NOT NULL AND s.state = 'completed'
$$;

CREATE FUNCTION blackboard.flow_precedes(p_order text[], p_stages text[], p_depends_on text[], p_firsts text[], p_seconds text[]) RETURNS boolean[]
    LANGUAGE plpgsql IMMUTABLE
    SET enable_nestloop TO 'off'
    SET enable_hashjoin TO 'on'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_before integer[];
    v_counts integer[];
    v_from integer[] := array_fill(1, ARRAY[cardinality(p_order) + 1]);
    v_marks integer[] := array_fill(0, ARRAY[cardinality(p_order)]);
    v_precedes boolean[] := array_fill(false, ARRAY[cardinality(p_firsts)]);
    v_pairs record;
BEGIN
    WITH nodes AS MATERIALIZED (
        SELECT u.name, u.n::integer AS n FROM unnest(p_order) WITH ORDINALITY u (name, n)
    ), edges AS MATERIALIZED (
        SELECT a.n AS stage, b.n AS depends_on
        FROM unnest(p_stages, p_depends_on) e (stage, depends_on)
        JOIN nodes a ON a.name = e.stage JOIN nodes b ON b.name = e.depends_on)
    SELECT (SELECT array_agg(e.depends_on ORDER BY e.stage) FROM edges e),
           (SELECT array_agg(h.count ORDER BY h.n) FROM (
                SELECT n.n, count(e.stage)::integer AS count FROM nodes n LEFT JOIN edges e ON e.stage = n.n
                GROUP BY n.n) h)
    INTO v_before, v_counts;
    FOR i IN 1 .. cardinality(p_order) LOOP
        v_from[i + 1] := v_from[i] + v_counts[i];
    END LOOP;
    -- One walk for each first stage, no further than to the last one that is asked for.
    FOR v_pairs IN
        WITH nodes AS MATERIALIZED (
            SELECT u.name, u.n::integer AS n FROM unnest(p_order) WITH ORDINALITY u (name, n))
        SELECT a.n AS first, max(b.n) AS last, array_agg(b.n) AS seconds, array_agg(x.i) AS places
        FROM unnest(p_firsts, p_seconds) WITH ORDINALITY x (first, second, i)
        JOIN nodes a ON a.name = x.first JOIN nodes b ON b.name = x.second
        GROUP BY a.n
    LOOP
        v_marks[v_pairs.first] := v_pairs.first;
        FOR i IN v_pairs.first + 1 .. v_pairs.last LOOP
            FOR k IN v_from[i] .. v_from[i + 1] - 1 LOOP
                IF v_marks[v_before[k]] = v_pairs.first THEN
                    v_marks[i] := v_pairs.first;
                    EXIT;
                END IF;
            END LOOP;
        END LOOP;
        FOR i IN 1 .. cardinality(v_pairs.seconds) LOOP
            v_precedes[v_pairs.places[i]] :=
                v_pairs.seconds[i] > v_pairs.first AND v_marks[v_pairs.seconds[i]] = v_pairs.first;
        END LOOP;
    END LOOP;
    RETURN v_precedes;
END
$$;

CREATE FUNCTION blackboard.flow_reason(p_session_id uuid, p_task_id uuid) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT jsonb_build_object(
        'code', CASE WHEN s.state = 'waiting' THEN 'flow_waiting' ELSE 'flow_paused' END,
        'flow_id', f.id, 'flow', f.name, 'stage', s.name, 'need', coalesce(s.join_need, w.edges), 'waits_for', w.stages,
        'message', CASE WHEN s.state = 'waiting'
                        THEN format('Stage %s of flow %s waits for %s of: %s.', s.name, f.name,
                                    coalesce(s.join_need::text, 'all'), w.names)
                        ELSE format('Flow %s is paused; resume it with flows.resume.', f.name) END)
    FROM blackboard.flow_tasks t
    JOIN blackboard.flows f ON f.session_id = t.session_id AND f.id = t.flow_id
    JOIN blackboard.flow_stages s ON s.session_id = t.session_id AND s.flow_id = t.flow_id AND s.task_id = t.task_id
    CROSS JOIN LATERAL (
        SELECT count(*) AS edges, string_agg(p.name || ' (' || p.state || ')', ', ' ORDER BY p.ordinal) AS names,
               coalesce(jsonb_agg(jsonb_build_object('stage', p.name, 'state', p.state, 'task_id', p.task_id,
                                                     'on_failure', e.on_failure) ORDER BY p.ordinal), '[]') AS stages
        FROM blackboard.flow_edges e
        JOIN blackboard.flow_stages p ON p.session_id = e.session_id AND p.flow_id = e.flow_id AND p.name = e.depends_on
        WHERE e.session_id = s.session_id AND e.flow_id = s.flow_id AND e.stage = s.name) w
    JOIN blackboard.tasks k ON k.session_id = t.session_id AND k.id = t.task_id
    WHERE t.session_id = p_session_id AND t.task_id = p_task_id AND f.finished_at IS NULL
      AND (s.state = 'waiting' OR k.status = 'held' AND k.held ->> 'code' = 'flow_paused')
$$;

CREATE FUNCTION blackboard.forget_waiting(p_session_id uuid, p_limit_id uuid, p_key text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
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

CREATE FUNCTION blackboard.free_slots(p_session_ids uuid[], p_ids uuid[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_nestloop TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_freed record;
BEGIN
    -- The flow of a stage that goes back is locked at the end of the transaction (hold_returned_stage), and whoever ends
    -- another stage has it locked when it comes here: flows come before counters.
    PERFORM 1 FROM blackboard.flows f
    WHERE (f.session_id, f.id) IN (
        SELECT w.session_id, w.flow_id
        FROM unnest(p_session_ids, p_ids) g (session_id, id)
        JOIN blackboard.tasks t ON t.session_id = g.session_id AND t.id = g.id
        JOIN blackboard.flow_tasks w ON w.session_id = t.session_id AND w.task_id = t.id
        WHERE t.has_dependants AND t.status IN ('pending', 'assigned', 'scheduled'))
    ORDER BY f.session_id, f.id FOR UPDATE;
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
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM blackboard.free_slots(array_agg(o.session_id), array_agg(o.id)) FROM old_rows o
    WHERE o.limited AND o.status = 'running' HAVING count(*) > 0;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.gate_tasks(p_session_id uuid, p_ids uuid[], p_max integer, p_now timestamp with time zone, OUT admitted uuid[], OUT busy uuid[], OUT moved integer, OUT at timestamp with time zone) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
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
        v_locked := blackboard.try_counters(p_session_id, v_limits, v_keys);
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

CREATE FUNCTION blackboard.get_action(p_session_id uuid, p_id uuid) RETURNS SETOF blackboard.actions
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM blackboard.close_due_proposals(p_session_id);
    RETURN QUERY SELECT * FROM blackboard.actions WHERE session_id = p_session_id AND id = p_id;
END
$$;

CREATE TABLE blackboard.proposals (
    session_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    agent_id text NOT NULL,
    title text NOT NULL,
    body jsonb DEFAULT '{}'::jsonb NOT NULL,
    rule text DEFAULT 'majority'::text NOT NULL,
    threshold double precision,
    weighted boolean DEFAULT false NOT NULL,
    min_turnout double precision NOT NULL,
    electorate text[],
    deadline_at timestamp with time zone DEFAULT (blackboard.now() + '00:05:00'::interval),
    at_deadline text DEFAULT 'tally'::text NOT NULL,
    status text DEFAULT 'open'::text NOT NULL,
    decided_at timestamp with time zone,
    result jsonb,
    ballots bigint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    CONSTRAINT proposals_at_deadline_known CHECK ((at_deadline = ANY (ARRAY['reject'::text, 'tally'::text, 'escalate'::text]))),
    CONSTRAINT proposals_body_size CHECK ((pg_column_size(body) <= 1048576)),
    CONSTRAINT proposals_deadline_after_opening CHECK ((deadline_at > created_at)),
    CONSTRAINT proposals_decided_iff_closed CHECK ((((status = 'open'::text) = (decided_at IS NULL)) AND ((status = 'open'::text) = (result IS NULL)))),
    CONSTRAINT proposals_min_turnout_range CHECK (((min_turnout >= (0)::double precision) AND (min_turnout <= (1)::double precision))),
    CONSTRAINT proposals_rule_known CHECK ((rule = ANY (ARRAY['majority'::text, 'unanimous'::text, 'threshold'::text]))),
    CONSTRAINT proposals_status_known CHECK ((status = ANY (ARRAY['open'::text, 'accepted'::text, 'rejected'::text, 'expired'::text, 'withdrawn'::text]))),
    CONSTRAINT proposals_threshold_iff_rule CHECK (((rule = 'threshold'::text) = (threshold IS NOT NULL))),
    CONSTRAINT proposals_threshold_range CHECK (((threshold > (0)::double precision) AND (threshold <= (1)::double precision))),
    CONSTRAINT proposals_title_length CHECK (((length(title) >= 1) AND (length(title) <= 500)))
)
WITH (fillfactor='70');

COMMENT ON COLUMN blackboard.proposals.electorate IS 'The electors that were named at opening; NULL: every member then.';

COMMENT ON COLUMN blackboard.proposals.ballots IS 'Grows with every ballot, so that two last ballots collide under REPEATABLE READ instead of leaving it open.';

CREATE FUNCTION blackboard.get_proposal(p_session_id uuid, p_proposal_id uuid) RETURNS SETOF blackboard.proposals
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM blackboard.close_due_proposals(p_session_id);
    RETURN QUERY SELECT * FROM blackboard.proposals WHERE session_id = p_session_id AND id = p_proposal_id;
END
$$;

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

CREATE FUNCTION blackboard.held_by_flow(p_flow_id uuid, p_name text, p_position bigint) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT jsonb_build_object('code', 'flow_paused', 'flow', p_flow_id, 'position', p_position,
                              'message', format('Its flow %s is paused; resume it with `blackboard flow resume %s`.',
                                                p_name, p_flow_id))
$$;

CREATE FUNCTION blackboard.held_lock(p_session_id uuid, p_name text, p_agent_id text, p_token bigint) RETURNS blackboard.locks
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_lock blackboard.locks;
BEGIN
    SELECT * INTO v_lock FROM blackboard.locks WHERE session_id = p_session_id AND name = p_name FOR NO KEY UPDATE;
    IF NOT FOUND OR v_lock.holder IS NULL OR v_lock.token IS DISTINCT FROM p_token
       OR v_lock.holder IS DISTINCT FROM p_agent_id OR v_lock.expires_at <= blackboard.now()
       OR (v_lock.lease_id IS NOT NULL AND blackboard.lease_lapsed(v_lock.lease_id)) THEN
        PERFORM blackboard.raise('BB006', format('The lock %L is not yours under this token: it ran out or was '
                                                 'released, and may be with somebody else. Stop what it protects; '
                                                 'acquire it again.', p_name),
                                 jsonb_build_object('noun', 'lock', 'name', p_name, 'token', p_token,
                                                    'holder', v_lock.holder));
    END IF;
    RETURN v_lock;
END
$$;

CREATE FUNCTION blackboard.held_task(p_session_id uuid, p_id uuid, p_claim_id uuid, p_attempt integer) RETURNS blackboard.tasks
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_task blackboard.tasks;
BEGIN
    SELECT * INTO v_task FROM blackboard.tasks WHERE session_id = p_session_id AND id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no task %s in this session.', p_id),
                                 jsonb_build_object('noun', 'task', 'id', p_id));
    END IF;
    IF v_task.status <> 'running' OR v_task.claim_id IS DISTINCT FROM p_claim_id OR v_task.attempt <> p_attempt THEN
        PERFORM blackboard.raise('BB006', format('Task %s is not yours any more (it is %s, attempt %s): drop this work.',
                                                 p_id, v_task.status, v_task.attempt),
                                 jsonb_build_object('noun', 'task', 'id', p_id, 'status', v_task.status,
                                                    'attempt', v_task.attempt));
    END IF;
    RETURN v_task;
END
$$;

CREATE FUNCTION blackboard.hint(p_session_id uuid, p_noun text) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF pg_catalog.current_setting('xmlbinary') <> 'hex'
       AND pg_catalog.current_setting('blackboard.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_catalog.pg_notify('blackboard', p_session_id::text || ' ' || p_noun);
    END IF;
END
$$;

COMMENT ON FUNCTION blackboard.hint(p_session_id uuid, p_noun text) IS 'Not within functions that have xmlbinary = hex: their clients send the hint after the commit. The setting stands for a flag because only a superuser may name one of his own in a function.';

CREATE FUNCTION blackboard.history_actions_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_new record;
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'action.proposed', n.id, to_jsonb(n) - '{session_id,id,lease_id,created_at}'::text[]
    FROM new_rows n;
    -- Each goes on at once: approved where nobody must be asked, else to whoever decides.
    FOR v_new IN SELECT n.session_id, n.id, n.approval, n.proposal_id FROM new_rows n LOOP
        UPDATE blackboard.actions
        SET status = CASE WHEN v_new.approval IS NULL THEN 'approved' ELSE 'awaiting_approval' END
        WHERE session_id = v_new.session_id AND id = v_new.id;
        IF v_new.approval IN ('vote', 'both') THEN
            -- Waits for a ballot that is just deciding the proposal, and keeps the next one waiting for us.
            PERFORM FROM blackboard.proposals
            WHERE session_id = v_new.session_id AND id = v_new.proposal_id FOR SHARE;
            PERFORM blackboard.settle_actions(v_new.session_id, v_new.proposal_id);
        END IF;
    END LOOP;
    PERFORM blackboard.hint(s.session_id, 'actions') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_actions_update() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id,
           CASE
               WHEN n.token < o.token OR (n.token > o.token AND n.status <> 'executing') THEN NULL
               WHEN n.status = 'executing' AND (n.executor, n.lease_id) IS DISTINCT FROM (o.executor, o.lease_id)
                    AND n.token = o.token THEN NULL
               WHEN n.status = o.status THEN
                   CASE WHEN n.token > o.token THEN 'action.started'
                        WHEN n.approval IS DISTINCT FROM o.approval THEN 'action.awaiting_approval'
                        ELSE 'action.updated' END
               WHEN o.status = 'proposed' AND n.status = 'awaiting_approval' THEN 'action.awaiting_approval'
               WHEN o.status = 'proposed' AND n.status = 'approved' AND n.approval IS NULL THEN 'action.approved'
               WHEN o.status = 'awaiting_approval' AND n.status IN ('approved', 'rejected') THEN 'action.' || n.status
               WHEN o.status = 'approved' AND n.status = 'executing' AND n.token > o.token THEN 'action.started'
               WHEN o.status = 'executing' AND n.status IN ('completed', 'failed') THEN 'action.' || n.status
               WHEN o.status IN ('completed', 'failed') AND n.status = 'rolled_back' THEN 'action.rolled_back'
           END,
           n.id,
           blackboard.changed(to_jsonb(o), to_jsonb(n)) - 'lease_id'
           || jsonb_build_object('agent_id', n.agent_id, 'type', n.type, 'target', n.target, 'status', n.status)
           || CASE WHEN n.status = 'approved' AND o.status <> 'approved' THEN jsonb_build_object('approved_through',
                       CASE WHEN n.approval IS NULL THEN 'policy'
                            WHEN n.vote_accepted AND n.approved_by IS NOT NULL THEN 'both'
                            WHEN n.vote_accepted THEN 'vote'
                            ELSE 'human' END)
                   ELSE '{}' END
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    WHERE to_jsonb(n) - 'lease_id' IS DISTINCT FROM to_jsonb(o) - 'lease_id'
       OR n.lease_id IS DISTINCT FROM o.lease_id;
    PERFORM blackboard.hint(s.session_id, 'actions') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
EXCEPTION WHEN not_null_violation THEN
    PERFORM blackboard.raise('BB003', 'The life cycle of an action has no such step: only an approved one starts, only '
                                      'an executing one ends, and its token only grows.',
                             jsonb_build_object('noun', 'action'));
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_agents() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT '00000000-0000-0000-0000-000000000000', TG_ARGV[0], blackboard.agent_subject(n.id),
           jsonb_build_object('agent_id', n.id, 'capabilities', n.capabilities, 'expertise', n.expertise,
                              'capacity', n.capacity, 'role', n.role, 'trust', n.trust)
    FROM changed_rows n;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_assessments() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_row record;
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    FOR v_row IN
        SELECT n.session_id, n.hypothesis_id, n.agent_id, n.confidence, n.reason FROM new_rows n
        JOIN blackboard.hypotheses h ON h.session_id = n.session_id AND h.id = n.hypothesis_id
        -- The author's first one came with the proposal, whose event has it.
        WHERE NOT (TG_OP = 'INSERT' AND h.revision = 0 AND n.agent_id = h.agent_id AND n.confidence = h.prior)
        ORDER BY n.session_id, n.hypothesis_id, n.agent_id
    LOOP
        PERFORM 1 FROM blackboard.hypotheses h
        WHERE h.session_id = v_row.session_id AND h.id = v_row.hypothesis_id FOR NO KEY UPDATE;
        PERFORM blackboard.proposed_hypothesis(v_row.session_id, v_row.hypothesis_id);
        INSERT INTO blackboard.events (session_id, type, subject_id, data)
        VALUES (v_row.session_id, 'hypothesis.assessed', v_row.hypothesis_id,
                jsonb_build_object('assessment', jsonb_build_object('agent_id', v_row.agent_id,
                                                                    'confidence', v_row.confidence,
                                                                    'reason', v_row.reason)));
        PERFORM blackboard.revise_hypotheses(v_row.session_id, ARRAY[v_row.hypothesis_id],
            jsonb_build_object('event', 'hypothesis.assessed', 'agent_id', v_row.agent_id));
    END LOOP;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_budgets_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_budget blackboard.budgets;
    v_opening numeric;
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'budget.set', n.id,
           jsonb_build_object('scope', n.scope, 'agent_id', n.agent_id, 'task_id', n.task_id, 'unit', n.unit,
                              'currency', n.currency, 'ceiling', trim_scale(n.ceiling), 'soft', trim_scale(n.soft),
                              'period', n.period)
    FROM new_rows n ORDER BY n.id;
    FOR v_budget IN SELECT * FROM new_rows n ORDER BY n.session_id, n.id LOOP
        -- What is held, or may still be settled late, counts from now on; what was settled before is the opening.
        UPDATE blackboard.spend s SET budget_ids = s.budget_ids || v_budget.id
        WHERE s.session_id = v_budget.session_id AND s.status IN ('reserved', 'expired') AND s.unit = v_budget.unit
          AND s.currency IS NOT DISTINCT FROM v_budget.currency
          AND (v_budget.agent_id IS NULL OR s.agent_id = v_budget.agent_id)
          AND (v_budget.task_id IS NULL OR s.task_id = v_budget.task_id);
        SELECT sum(s.settled) INTO v_opening FROM blackboard.spend s
        WHERE s.session_id = v_budget.session_id AND s.status = 'settled' AND s.unit = v_budget.unit
          AND s.currency IS NOT DISTINCT FROM v_budget.currency
          AND (v_budget.agent_id IS NULL OR s.agent_id = v_budget.agent_id)
          AND (v_budget.task_id IS NULL OR s.task_id = v_budget.task_id)
          AND (v_budget.period IS NULL OR s.settled_at >= v_budget.window_start)
          AND NOT v_budget.id = ANY (s.budget_ids);
        IF v_opening > 0 THEN
            UPDATE blackboard.budgets SET opening = v_opening, spent = spent + v_opening
            WHERE session_id = v_budget.session_id AND id = v_budget.id;
        END IF;
    END LOOP;
    PERFORM blackboard.hint(s.session_id, 'budgets') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_budgets_update() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'budget.updated', n.id,
           CASE WHEN n.ceiling <> o.ceiling THEN jsonb_build_object('ceiling', trim_scale(n.ceiling)) ELSE '{}' END
           || CASE WHEN n.soft IS DISTINCT FROM o.soft THEN jsonb_build_object('soft', trim_scale(n.soft)) ELSE '{}' END
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    WHERE (n.ceiling, n.soft) IS DISTINCT FROM (o.ceiling, o.soft);
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, x.type, n.id,
           jsonb_build_object('scope', n.scope, 'agent_id', n.agent_id, 'task_id', n.task_id, 'unit', n.unit,
                              'currency', n.currency, 'ceiling', trim_scale(n.ceiling), 'soft', trim_scale(n.soft),
                              'spent', trim_scale(n.spent), 'reserved', trim_scale(n.reserved))
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    CROSS JOIN LATERAL (VALUES
        ('budget.warned', coalesce(n.spent >= n.soft, false)
            AND NOT coalesce(o.spent >= o.soft AND o.window_start IS NOT DISTINCT FROM n.window_start, false)),
        ('budget.exceeded', n.spent > n.ceiling
            AND NOT (o.spent > o.ceiling AND o.window_start IS NOT DISTINCT FROM n.window_start))) x (type, crossed)
    WHERE x.crossed;
    PERFORM blackboard.hint(s.session_id, 'budgets') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_corroborations_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    IF EXISTS (SELECT FROM new_rows n JOIN blackboard.findings f ON f.session_id = n.session_id AND f.id = n.finding_id
               WHERE f.agent_id = n.agent_id) THEN
        PERFORM blackboard.raise('BB002', 'An agent cannot corroborate its own finding.', '{"field": "agent_id"}');
    END IF;
    PERFORM 1 FROM blackboard.findings f
    WHERE (f.session_id, f.id) IN (SELECT n.session_id, n.finding_id FROM new_rows n)
    ORDER BY f.session_id, f.id FOR NO KEY UPDATE;
    WITH counted AS (
        UPDATE blackboard.findings f SET corroborations = f.corroborations + c.more
        FROM (SELECT n.session_id, n.finding_id, count(*)::integer AS more FROM new_rows n GROUP BY 1, 2) c
        WHERE f.session_id = c.session_id AND f.id = c.finding_id
        RETURNING f.session_id, f.id, f.corroborations
    )
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'finding.corroborated', n.finding_id,
           jsonb_build_object('corroborations', f.corroborations,
                              'corroboration', jsonb_build_object('agent_id', n.agent_id, 'confidence', n.confidence)
                                               || blackboard.in_event('evidence', n.evidence))
    FROM new_rows n JOIN counted f ON f.session_id = n.session_id AND f.id = n.finding_id;
    PERFORM blackboard.hint(s.session_id, 'findings') FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_dependency_policy() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    VALUES (NEW.session_id, 'task.dependency_changed', NEW.task_id,
            jsonb_build_object('depends_on', NEW.depends_on_id, 'on_failure', NEW.on_failure));
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_evidence_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_row record;
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    PERFORM 1 FROM blackboard.findings f
    WHERE (f.session_id, f.id) IN (SELECT n.session_id, n.finding_id FROM new_rows n)
    ORDER BY f.session_id, f.id FOR NO KEY UPDATE;
    UPDATE blackboard.findings f SET updated_at = blackboard.now()
    WHERE (f.session_id, f.id) IN (SELECT n.session_id, n.finding_id FROM new_rows n);
    FOR v_row IN SELECT DISTINCT n.session_id, n.finding_id FROM new_rows n LOOP
        PERFORM blackboard.active_finding(v_row.session_id, v_row.finding_id);
    END LOOP;
    PERFORM 1 FROM blackboard.hypotheses h
    WHERE (h.session_id, h.id) IN (SELECT n.session_id, n.hypothesis_id FROM new_rows n)
    ORDER BY h.session_id, h.id FOR NO KEY UPDATE;
    FOR v_row IN SELECT DISTINCT n.session_id, n.hypothesis_id FROM new_rows n LOOP
        PERFORM blackboard.proposed_hypothesis(v_row.session_id, v_row.hypothesis_id);
    END LOOP;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'evidence.added', n.id,
           jsonb_build_object('agent_id', n.agent_id, 'hypothesis_id', n.hypothesis_id, 'finding_id', n.finding_id,
                              'supports', n.supports, 'weight', n.weight)
    FROM new_rows n;
    FOR v_row IN SELECT n.session_id, array_agg(DISTINCT n.hypothesis_id) AS hypothesis_ids,
                        jsonb_build_object('event', 'evidence.added', 'finding_ids', jsonb_agg(DISTINCT n.finding_id))
                            AS because
                 FROM new_rows n GROUP BY n.session_id LOOP
        PERFORM blackboard.revise_hypotheses(v_row.session_id, v_row.hypothesis_ids, v_row.because);
    END LOOP;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_evidence_update() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_row record;
BEGIN
    IF EXISTS (SELECT FROM old_rows o LEFT JOIN new_rows n ON n.session_id = o.session_id AND n.id = o.id
               WHERE n.id IS NULL OR (n.hypothesis_id, n.finding_id, n.created_at)
                                     <> (o.hypothesis_id, o.finding_id, o.created_at)) THEN
        PERFORM blackboard.raise('BB012', 'What a link of evidence connects never changes; retract it and add another.',
                                 '{"noun": "evidence"}');
    END IF;
    SELECT o.id INTO v_row FROM old_rows o JOIN new_rows n ON n.session_id = o.session_id AND n.id = o.id
    WHERE o.retracted_at IS NOT NULL AND n.retracted_at IS NULL LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB003', 'Evidence that was retracted stays so; add it again.',
                                 jsonb_build_object('noun', 'evidence', 'id', v_row.id, 'status', 'retracted'));
    END IF;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id,
           CASE WHEN n.retracted_at IS NOT NULL AND o.retracted_at IS NULL THEN 'evidence.retracted'
                ELSE 'evidence.updated' END,
           n.id,
           jsonb_strip_nulls(jsonb_build_object(
               'hypothesis_id', n.hypothesis_id, 'finding_id', n.finding_id,
               'agent_id', CASE WHEN n.agent_id <> o.agent_id THEN n.agent_id END,
               'supports', CASE WHEN n.supports <> o.supports THEN n.supports END,
               'weight', CASE WHEN n.weight <> o.weight THEN n.weight END,
               'reason', CASE WHEN n.reason <> o.reason THEN n.reason END,
               'retracted_at', CASE WHEN n.retracted_at IS DISTINCT FROM o.retracted_at THEN n.retracted_at END))
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    WHERE (n.agent_id, n.supports, n.weight, n.reason, n.retracted_at)
          IS DISTINCT FROM (o.agent_id, o.supports, o.weight, o.reason, o.retracted_at);
    FOR v_row IN SELECT n.session_id, array_agg(DISTINCT n.hypothesis_id) AS hypothesis_ids,
                        jsonb_build_object('event', CASE WHEN bool_or(n.retracted_at IS NULL) THEN 'evidence.updated'
                                                         ELSE 'evidence.retracted' END,
                                           'finding_ids', jsonb_agg(DISTINCT n.finding_id)) AS because
                 FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
                 WHERE (n.supports, n.weight, n.retracted_at IS NULL)
                       IS DISTINCT FROM (o.supports, o.weight, o.retracted_at IS NULL)
                 GROUP BY n.session_id LOOP
        PERFORM blackboard.revise_hypotheses(v_row.session_id, v_row.hypothesis_ids, v_row.because);
    END LOOP;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_finding_links() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_change record;
BEGIN
    -- Both ends: whoever retracts either must see this link, or collide with it.
    PERFORM 1 FROM blackboard.findings f
    WHERE (f.session_id, f.id) IN (SELECT r.session_id, r.finding_id FROM changed_rows r
                                   UNION SELECT r.session_id, r.other_id FROM changed_rows r)
    ORDER BY f.session_id, f.id FOR NO KEY UPDATE;
    UPDATE blackboard.findings f SET updated_at = blackboard.now()
    WHERE (f.session_id, f.id) IN (SELECT r.session_id, r.finding_id FROM changed_rows r
                                   UNION SELECT r.session_id, r.other_id FROM changed_rows r);
    IF TG_OP = 'INSERT' THEN
        PERFORM blackboard.check_sessions(array(SELECT DISTINCT r.session_id FROM changed_rows r));
        INSERT INTO blackboard.events (session_id, type, subject_id, data)
        SELECT r.session_id, 'finding.contradicted', r.finding_id,
               jsonb_build_object('contradiction', jsonb_build_object('id', r.id, 'by', r.other_id,
                                                                      'agent_id', r.agent_id, 'reason', r.reason))
        FROM changed_rows r;
    END IF;
    FOR v_change IN
        SELECT r.session_id, array_agg(DISTINCT e.hypothesis_id) AS hypothesis_ids,
               jsonb_build_object('event', 'finding.contradicted', 'finding_ids', jsonb_agg(DISTINCT r.finding_id))
                   AS because
        FROM changed_rows r
        JOIN blackboard.hypothesis_evidence e
          ON e.session_id = r.session_id AND e.finding_id = r.finding_id AND e.retracted_at IS NULL
        GROUP BY r.session_id
    LOOP
        PERFORM blackboard.revise_hypotheses(v_change.session_id, v_change.hypothesis_ids, v_change.because);
    END LOOP;
    PERFORM blackboard.hint(s.session_id, 'findings') FROM (SELECT DISTINCT r.session_id FROM changed_rows r) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_findings_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_row blackboard.findings;
    v_missing uuid;
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    FOR v_row IN SELECT (n).* FROM new_rows n
                 WHERE n.status <> 'active' OR n.corroborations <> 0 OR n.derived_from <> '{}' LOOP
        IF v_row.status <> 'active' THEN
            PERFORM blackboard.raise('BB003', 'A new finding is active; retract or supersede it afterwards.',
                                     jsonb_build_object('noun', 'finding', 'id', v_row.id, 'status', v_row.status));
        END IF;
        IF v_row.corroborations <> 0 THEN
            PERFORM blackboard.raise('BB005', 'A finding''s corroborations are counted, not set.',
                                     jsonb_build_object('field', 'corroborations', 'id', v_row.id));
        END IF;
        SELECT d.id INTO v_missing FROM unnest(v_row.derived_from) d (id)
        WHERE d.id = v_row.id
           OR NOT EXISTS (SELECT FROM blackboard.findings f WHERE f.session_id = v_row.session_id AND f.id = d.id)
        LIMIT 1;
        IF FOUND THEN
            PERFORM blackboard.no_finding(v_missing);
        END IF;
        IF v_row.trust > blackboard.finding_trust(v_row.session_id, v_row.agent_id, v_row.derived_from) THEN
            PERFORM blackboard.raise('BB005', 'A finding is not trusted more than what it was derived from.',
                                     jsonb_build_object('field', 'trust', 'id', v_row.id));
        END IF;
    END LOOP;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'finding.reported', n.id,
           jsonb_build_object('agent_id', n.agent_id, 'category', n.category, 'type', n.type,
                              'confidence', n.confidence, 'tags', n.tags, 'derived_from', n.derived_from,
                              'trust', n.trust, 'status', n.status, 'corroborations', n.corroborations)
           || blackboard.in_event('content', n.content) || blackboard.in_event('evidence', n.evidence)
           || blackboard.in_event('provenance', n.provenance)
    FROM new_rows n;
    PERFORM blackboard.hint(s.session_id, 'findings') FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_findings_update() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_change record;
BEGIN
    FOR v_change IN
        SELECT o.session_id, o.id, n.id IS NULL OR n.derived_from <> o.derived_from
                   OR n.created_at <> o.created_at AS rewritten,
               CASE WHEN n.status = 'superseded' AND o.status = 'active' THEN n.superseded_by END AS successor,
               n.corroborations <> o.corroborations
                   AND n.corroborations <> (SELECT count(*) FROM blackboard.corroborations c
                                            WHERE c.session_id = n.session_id AND c.finding_id = n.id) AS miscounted,
               n.trust > o.trust
                   AND n.trust > blackboard.finding_trust(n.session_id, n.agent_id, n.derived_from) AS overtrusted
        FROM old_rows o LEFT JOIN new_rows n ON n.session_id = o.session_id AND n.id = o.id
    LOOP
        IF v_change.rewritten THEN
            PERFORM blackboard.raise('BB012',
                                     'A finding''s id, lineage and time of creation never change; supersede it.',
                                     jsonb_build_object('noun', 'finding', 'id', v_change.id));
        ELSIF v_change.miscounted THEN
            PERFORM blackboard.raise('BB005', 'A finding''s corroborations are counted, not set.',
                                     jsonb_build_object('field', 'corroborations', 'id', v_change.id));
        ELSIF v_change.overtrusted THEN
            PERFORM blackboard.raise('BB005',
                                     'A finding is not trusted more than its agent and what it was derived from.',
                                     jsonb_build_object('field', 'trust', 'id', v_change.id));
        ELSIF v_change.successor IS NOT NULL THEN
            -- Active ones only, so that no finding supersedes itself by way of others.
            PERFORM blackboard.active_finding(v_change.session_id, v_change.successor);
        END IF;
    END LOOP;
    -- Corroborations have their own event, finding.corroborated.
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, CASE WHEN n.status = o.status THEN 'finding.updated' ELSE 'finding.' || n.status END, n.id,
           -- The stripped ones are never null themselves; confidence may become so.
           jsonb_strip_nulls(jsonb_build_object(
               'agent_id', CASE WHEN n.agent_id <> o.agent_id THEN n.agent_id END,
               'category', CASE WHEN n.category <> o.category THEN n.category END,
               'type', CASE WHEN n.type <> o.type THEN n.type END,
               'tags', CASE WHEN n.tags <> o.tags THEN n.tags END,
               'trust', CASE WHEN n.trust <> o.trust THEN n.trust END,
               'status', CASE WHEN n.status <> o.status THEN n.status END,
               'superseded_by', CASE WHEN n.superseded_by IS DISTINCT FROM o.superseded_by THEN n.superseded_by END,
               'reason', CASE WHEN n.reason <> o.reason OR n.status = 'retracted' THEN n.reason END))
           || CASE WHEN n.confidence IS DISTINCT FROM o.confidence
                   THEN jsonb_build_object('confidence', n.confidence) ELSE '{}' END
           -- What the event of the report did not carry is lost from the row now: it is kept here.
           || CASE WHEN n.content <> o.content
                   THEN jsonb_build_object('content', n.content, 'content_was', o.content) ELSE '{}' END
           || CASE WHEN n.evidence <> o.evidence
                   THEN jsonb_build_object('evidence', n.evidence, 'evidence_was', o.evidence) ELSE '{}' END
           || CASE WHEN n.provenance <> o.provenance
                   THEN jsonb_build_object('provenance', n.provenance, 'provenance_was', o.provenance) ELSE '{}' END
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    WHERE (n.agent_id, n.category, n.type, n.content, n.confidence, n.evidence, n.tags, n.provenance, n.trust,
           n.status, n.superseded_by, n.reason)
          IS DISTINCT FROM (o.agent_id, o.category, o.type, o.content, o.confidence, o.evidence, o.tags, o.provenance,
                            o.trust, o.status, o.superseded_by, o.reason);
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    -- A finding that one of these contradicts counts otherwise now: whoever links it at this moment must see that, or
    -- be seen here.
    UPDATE blackboard.findings f SET updated_at = blackboard.now()
    WHERE (f.session_id, f.id) IN (SELECT l.session_id, l.finding_id FROM blackboard.finding_links l
                                   JOIN new_rows n ON n.session_id = l.session_id AND n.id = l.other_id
                                   JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
                                   WHERE n.status <> o.status);
    -- Hypotheses that rest on them, or on a finding that they contradict.
    FOR v_change IN
        SELECT c.session_id, array_agg(DISTINCT e.hypothesis_id) AS hypothesis_ids,
               jsonb_build_object('event', min(c.event), 'finding_ids', jsonb_agg(DISTINCT c.id)) AS because
        FROM (SELECT n.session_id, n.id,
                     CASE WHEN n.status = o.status THEN 'finding.updated' ELSE 'finding.' || n.status END AS event,
                     n.status <> o.status AS moved
              FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
              WHERE (n.status, n.confidence, n.trust) IS DISTINCT FROM (o.status, o.confidence, o.trust)) c,
             LATERAL (SELECT e.hypothesis_id FROM blackboard.hypothesis_evidence e
                      WHERE e.session_id = c.session_id AND e.finding_id = c.id AND e.retracted_at IS NULL
                      UNION
                      SELECT e.hypothesis_id FROM blackboard.finding_links l
                      JOIN blackboard.hypothesis_evidence e
                        ON e.session_id = l.session_id AND e.finding_id = l.finding_id AND e.retracted_at IS NULL
                      WHERE c.moved AND l.session_id = c.session_id AND l.other_id = c.id) e
        GROUP BY c.session_id
    LOOP
        PERFORM blackboard.revise_hypotheses(v_change.session_id, v_change.hypothesis_ids, v_change.because);
    END LOOP;
    PERFORM blackboard.hint(s.session_id, 'findings') FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_flow_edges() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_hashjoin TO 'on'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_flow record;
BEGIN
    FOR v_flow IN SELECT DISTINCT c.session_id, c.flow_id FROM changed_rows c ORDER BY 1, 2 LOOP
        -- One read of the flow's edges, and never of those of others.
        INSERT INTO blackboard.events (session_id, type, subject_id, data)
        SELECT v_flow.session_id, 'flow.stage_wired', v_flow.flow_id,
               jsonb_build_object('stage', c.stage, 'after', coalesce(
                   jsonb_agg(jsonb_build_object('stage', e.depends_on, 'on_failure', e.on_failure) ORDER BY e.depends_on)
                       FILTER (WHERE e.depends_on IS NOT NULL), '[]'))
        FROM (SELECT DISTINCT n.stage FROM changed_rows n
              WHERE n.session_id = v_flow.session_id AND n.flow_id = v_flow.flow_id) c
        LEFT JOIN blackboard.flow_edges e
               ON e.session_id = v_flow.session_id AND e.flow_id = v_flow.flow_id AND e.stage = c.stage
        GROUP BY c.stage
        ORDER BY c.stage;
    END LOOP;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_flow_stages() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_nestloop TO 'off'
    SET enable_hashjoin TO 'on'
    AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO blackboard.events (session_id, type, subject_id, data)
        SELECT n.session_id, 'flow.stage_added', n.flow_id,
               jsonb_build_object('stage', n.name, 'state', n.state, 'task_id', n.task_id, 'iteration', n.iteration,
                                  'quality', n.quality, 'error', n.error,
                                  'compensation_task_id', n.compensation_task_id)
        FROM new_rows n ORDER BY n.ordinal;
    ELSE
        INSERT INTO blackboard.events (session_id, type, subject_id, data)
        SELECT n.session_id,
               CASE WHEN n.iteration > o.iteration THEN 'flow.stage_looped'
                    WHEN n.state <> o.state THEN 'flow.stage_' || n.state
                    ELSE 'flow.stage_updated' END,
               n.flow_id,
               jsonb_build_object('stage', n.name) || blackboard.changed(
                   jsonb_build_object('state', o.state, 'task_id', o.task_id, 'iteration', o.iteration,
                                      'quality', o.quality, 'error', o.error,
                                      'compensation_task_id', o.compensation_task_id),
                   jsonb_build_object('state', n.state, 'task_id', n.task_id, 'iteration', n.iteration,
                                      'quality', n.quality, 'error', n.error,
                                      'compensation_task_id', n.compensation_task_id))
        FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.flow_id = n.flow_id AND o.name = n.name
        WHERE (n.state, n.task_id, n.iteration, n.quality, n.error, n.compensation_task_id)
              IS DISTINCT FROM (o.state, o.task_id, o.iteration, o.quality, o.error, o.compensation_task_id)
        ORDER BY n.ordinal;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_flow_stages_delete() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT o.session_id, 'flow.stage_removed', o.flow_id, jsonb_build_object('stage', o.name, 'task_id', o.task_id)
    FROM old_rows o;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_flows_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'flow.created', n.id,
           jsonb_build_object('name', n.name, 'status', n.status, 'version', n.version, 'compensating', n.compensating,
                              'inputs', CASE WHEN pg_column_size(n.inputs) <= 8192 THEN n.inputs END,
                              'error', n.error)
    FROM new_rows n;
    PERFORM blackboard.hint(s.session_id, 'flows') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_flows_update() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_nestloop TO 'off'
    SET enable_hashjoin TO 'on'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id,
           CASE
               -- What is over stays over: no branch, hence no type, hence refused.
               WHEN o.finished_at IS NOT NULL THEN NULL
               WHEN n.status = o.status THEN CASE WHEN n.version > o.version THEN 'flow.modified' ELSE 'flow.updated' END
               WHEN n.status = 'running' THEN 'flow.resumed'
               ELSE 'flow.' || n.status END,
           n.id,
           blackboard.changed(
               jsonb_build_object('status', o.status, 'version', o.version, 'compensating', o.compensating,
                                  'error', o.error),
               jsonb_build_object('status', n.status, 'version', n.version, 'compensating', n.compensating,
                                  'error', n.error))
           -- What a modification changed travels beside it.
           || CASE WHEN n.status = o.status AND n.version > o.version
                   THEN jsonb_build_object('change', nullif(current_setting('blackboard.flow_change', true), '')::jsonb)
                   ELSE '{}' END
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    WHERE (n.status, n.version, n.compensating, n.error)
          IS DISTINCT FROM (o.status, o.version, o.compensating, o.error);
    PERFORM blackboard.hint(s.session_id, 'flows') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
EXCEPTION WHEN not_null_violation THEN
    PERFORM blackboard.raise('BB003', 'A flow that is over does not change any more; create a new one.',
                             '{"noun": "flow"}');
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_hypotheses_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    IF EXISTS (SELECT FROM new_rows n WHERE n.status <> 'proposed') THEN
        PERFORM blackboard.raise('BB003', 'A new hypothesis is proposed; give the verdict afterwards.',
                                 '{"noun": "hypothesis"}');
    END IF;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'hypothesis.proposed', n.id,
           jsonb_build_object('agent_id', n.agent_id, 'description', n.statement, 'status', n.status,
                              'prior', n.prior, 'confidence', n.confidence, 'revision', n.revision)
    FROM new_rows n;
    INSERT INTO blackboard.hypothesis_assessments (session_id, hypothesis_id, agent_id, confidence)
    SELECT n.session_id, n.id, n.agent_id, n.prior FROM new_rows n;
    PERFORM blackboard.hint(s.session_id, 'hypotheses') FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_hypotheses_update() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_change record;
    v_finding uuid;
BEGIN
    FOR v_change IN
        SELECT o.session_id, o.id, o.status AS was, n.status, n.verdict_evidence, n.validated_by,
               n.id IS NULL OR (n.statement, n.agent_id, n.prior, n.created_at)
                               <> (o.statement, o.agent_id, o.prior, o.created_at) AS rewritten,
               n.status = o.status AND (n.verdict_evidence, n.validated_by, n.validated_at)
                   IS DISTINCT FROM (o.verdict_evidence, o.validated_by, o.validated_at) AS reworded,
               n.validated_by = n.agent_id AND NOT s.allow_self_validation AS own
        FROM old_rows o LEFT JOIN new_rows n ON n.session_id = o.session_id AND n.id = o.id
        LEFT JOIN blackboard.sessions s ON s.id = o.session_id
    LOOP
        IF v_change.rewritten THEN
            PERFORM blackboard.raise('BB012',
                'A hypothesis''s id, statement, author and prior never change; propose another one.',
                jsonb_build_object('noun', 'hypothesis', 'id', v_change.id));
        ELSIF v_change.reworded THEN
            PERFORM blackboard.raise('BB003',
                'A verdict, who gave it and what it rests on stay as they are; propose the hypothesis anew.',
                jsonb_build_object('noun', 'hypothesis', 'id', v_change.id, 'status', v_change.was));
        ELSIF v_change.status IN ('validated', 'refuted') AND v_change.was = 'proposed' THEN
            IF v_change.own THEN
                PERFORM blackboard.raise('BB005',
                    'Its author may not judge a hypothesis; another agent or a human must, unless the session was '
                    'started with allow_self_validation.',
                    jsonb_build_object('noun', 'hypothesis', 'id', v_change.id, 'agent_id', v_change.validated_by));
            END IF;
            SELECT v.id INTO v_finding FROM unnest(v_change.verdict_evidence) v (id)
            WHERE NOT EXISTS (SELECT FROM blackboard.findings f WHERE f.session_id = v_change.session_id
                              AND f.id = v.id AND f.status = 'active') LIMIT 1;
            IF FOUND THEN
                PERFORM blackboard.active_finding(v_change.session_id, v_finding);
            END IF;
        END IF;
    END LOOP;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id,
           CASE WHEN n.status <> o.status THEN CASE n.status WHEN 'withdrawn' THEN 'hypothesis.withdrawn'
                                                             ELSE 'hypothesis.validated' END
                WHEN n.revision <> o.revision THEN 'hypothesis.revised'
                ELSE 'hypothesis.updated' END,
           n.id,
           jsonb_strip_nulls(jsonb_build_object(
               'status', CASE WHEN n.status <> o.status THEN n.status END,
               'validated_by', CASE WHEN n.status <> o.status THEN n.validated_by END,
               'validated_at', CASE WHEN n.status <> o.status THEN n.validated_at END,
               'verdict_evidence', CASE WHEN n.validated_by IS NOT NULL AND n.status <> o.status
                                        THEN n.verdict_evidence END,
               -- The seed's names for the verdict.
               'result', CASE WHEN n.status <> o.status AND n.status <> 'withdrawn' THEN n.status = 'validated' END,
               'evidence', CASE WHEN n.validated_by IS NOT NULL AND n.status <> o.status
                                THEN n.verdict_evidence END,
               'reason', CASE WHEN n.reason <> o.reason OR n.status <> o.status THEN n.reason END,
               'confidence', CASE WHEN n.revision <> o.revision THEN n.confidence END,
               'revision', CASE WHEN n.revision <> o.revision THEN n.revision END,
               'because', CASE WHEN n.revision <> o.revision
                               THEN nullif(pg_catalog.current_setting('blackboard.because', true), '')::jsonb END))
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    WHERE (n.status, n.revision, n.reason) IS DISTINCT FROM (o.status, o.revision, o.reason);
    PERFORM blackboard.hint(s.session_id, 'hypotheses') FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_late_results() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'task.result_refused', n.task_id,
           jsonb_build_object('agent_id', n.agent_id, 'late_attempt', n.attempt, 'late_result_id', n.id)
    FROM new_rows n;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_limits() RETURNS trigger
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

CREATE FUNCTION blackboard.history_locks_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, CASE WHEN n.holder IS NULL THEN 'lock.created' ELSE 'lock.acquired' END, n.id,
           jsonb_build_object('name', n.name, 'holder', n.holder, 'token', n.token)
    FROM new_rows n;
    PERFORM blackboard.hint(s.session_id, 'locks') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_locks_update() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id,
           CASE
               WHEN n.name <> o.name OR n.token < o.token THEN NULL
               WHEN o.holder IS NULL AND n.holder IS NOT NULL AND n.token > o.token THEN 'lock.acquired'
               WHEN n.holder IS NULL AND n.token = o.token THEN
                   CASE WHEN o.expires_at <= blackboard.now()
                             OR (o.lease_id IS NOT NULL AND blackboard.lease_lapsed(o.lease_id))
                        THEN 'lock.expired' ELSE 'lock.released' END
           END,
           n.id,
           jsonb_build_object('name', n.name, 'holder', n.holder, 'token', n.token)
           || CASE WHEN n.holder IS NULL THEN jsonb_build_object('released_by', o.holder) ELSE '{}' END
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    WHERE (n.name, n.holder, n.token, n.request_id, n.lease_id)
          IS DISTINCT FROM (o.name, o.holder, o.token, o.request_id, o.lease_id);
    IF FOUND THEN
        PERFORM blackboard.hint(s.session_id, 'locks') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    END IF;
    RETURN NULL;
EXCEPTION WHEN not_null_violation THEN
    PERFORM blackboard.raise('BB003', 'A held lock is released before another can have it, every grant raises its '
                                      'token, and its name stays.', jsonb_build_object('noun', 'lock'));
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_memberships_delete() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT o.session_id, 'agent.removed', blackboard.agent_subject(o.agent_id), to_jsonb(o) - 'session_id'
    FROM old_rows o;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_memberships_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'agent.joined', blackboard.agent_subject(n.agent_id),
           jsonb_build_object('agent_id', n.agent_id, 'role', n.role, 'vote_weight', n.vote_weight)
    FROM new_rows n;
    PERFORM blackboard.hint(n.session_id, 'agents') FROM new_rows n;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_memberships_update() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id,
           CASE WHEN o.left_at IS NULL AND n.left_at IS NOT NULL THEN 'agent.left'
                WHEN o.left_at IS NOT NULL AND n.left_at IS NULL THEN 'agent.joined'
                ELSE 'agent.updated' END,
           blackboard.agent_subject(n.agent_id),
           jsonb_build_object('agent_id', n.agent_id, 'role', n.role, 'vote_weight', n.vote_weight)
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.agent_id = n.agent_id
    WHERE (n.role, n.vote_weight, n.left_at IS NULL) IS DISTINCT FROM (o.role, o.vote_weight, o.left_at IS NULL);
    PERFORM blackboard.hint(n.session_id, 'agents') FROM new_rows n;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_pauses() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE FUNCTION blackboard.history_proposals_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_bad record;
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    SELECT n.id, w.name INTO v_bad
    FROM new_rows n CROSS JOIN LATERAL unnest(n.electorate) AS w (name)
    WHERE NOT EXISTS (SELECT FROM blackboard.memberships m
                      WHERE m.session_id = n.session_id AND m.agent_id = w.name
                        AND m.left_at IS NULL AND m.role <> 'observer')
    LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB002',
            format('%s cannot vote: it is no member of this session, or an observer. '
                   'Name agents that have joined, or leave electorate out.', coalesce(v_bad.name, 'NULL')),
            jsonb_build_object('field', 'electorate', 'agent_id', v_bad.name));
    END IF;
    INSERT INTO blackboard.proposal_electors (session_id, proposal_id, agent_id, weight)
    SELECT n.session_id, n.id, m.agent_id, CASE WHEN n.weighted THEN m.vote_weight::numeric ELSE 1 END
    FROM new_rows n
    JOIN blackboard.memberships m ON m.session_id = n.session_id
    WHERE m.left_at IS NULL AND m.role <> 'observer' AND (n.electorate IS NULL OR m.agent_id = ANY (n.electorate));
    SELECT n.id INTO v_bad FROM new_rows n
    WHERE NOT EXISTS (SELECT FROM blackboard.proposal_electors e
                      WHERE e.session_id = n.session_id AND e.proposal_id = n.id AND e.weight > 0)
    LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB002', 'Nobody could decide this: the electorate is empty or has no weight. '
                                          'Let agents join first, or name others.',
                                 jsonb_build_object('field', 'electorate'));
    END IF;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'proposal.opened', n.id,
           jsonb_build_object(
               'agent_id', n.agent_id, 'title', n.title, 'body', n.body, 'rule', n.rule, 'threshold', n.threshold,
               'weighted', n.weighted, 'min_turnout', n.min_turnout, 'deadline_at', n.deadline_at,
               'at_deadline', n.at_deadline, 'status', n.status, 'decided_at', n.decided_at, 'result', n.result,
               'electors', (SELECT jsonb_object_agg(e.agent_id, e.weight) FROM blackboard.proposal_electors e
                            WHERE e.session_id = n.session_id AND e.proposal_id = n.id))
    FROM new_rows n;
    PERFORM blackboard.hint(s.session_id, 'proposals') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_proposals_update() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_closed record;
BEGIN
    -- A ballot only counts up the row; it has its own event.
    FOR v_closed IN
        SELECT n.session_id, n.id, n.status, n.decided_at, n.result
        FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
        WHERE n.status <> o.status ORDER BY n.decided_at, n.id
    LOOP
        INSERT INTO blackboard.events (session_id, type, subject_id, data)
        VALUES (v_closed.session_id,
                'proposal.' || CASE WHEN v_closed.result ->> 'reason' = 'escalated' THEN 'escalated'
                                    ELSE v_closed.status END,
                v_closed.id,
                v_closed.result || jsonb_build_object('status', v_closed.status, 'decided_at', v_closed.decided_at,
                                                      'result', v_closed.result));
        PERFORM blackboard.settle_actions(v_closed.session_id, v_closed.id);
        PERFORM blackboard.hint(v_closed.session_id, 'proposals');
    END LOOP;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_retentions() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE FUNCTION blackboard.history_schedules_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    IF EXISTS (SELECT FROM new_rows n WHERE n.fired > 0 OR n.skipped > 0 OR n.removed_at IS NOT NULL) THEN
        PERFORM blackboard.raise('BB003', 'A schedule is born without a past.', '{"noun": "schedule", "field": "fired"}');
    END IF;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'schedule.added', n.id,
           jsonb_build_object('name', n.name, 'cron', n.cron, 'timezone', n.timezone, 'type', n.type,
                              'capability', n.capability, 'priority', n.priority, 'options', n.options,
                              'parameters', CASE WHEN pg_column_size(n.parameters) <= 8192 THEN n.parameters END,
                              'missed', n.missed, 'paused', n.paused, 'next_at', n.next_at)
    FROM new_rows n ORDER BY n.id;
    PERFORM blackboard.hint(s.session_id, 'schedules') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_schedules_update() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF (SELECT count(*) FROM new_rows) > (SELECT count(*) FROM new_rows n
                                          JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id) THEN
        PERFORM blackboard.raise('BB003', 'The id and the session of a schedule do not change.',
                                 '{"noun": "schedule", "field": "id"}');
    END IF;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id,
           CASE
               -- What was removed stays removed, and counters only grow: no branch, hence no type, hence refused.
               WHEN o.removed_at IS NOT NULL OR n.fired < o.fired OR n.skipped < o.skipped THEN NULL
               WHEN n.removed_at IS NOT NULL THEN 'schedule.removed'
               WHEN n.paused AND NOT o.paused THEN 'schedule.paused'
               WHEN o.paused AND NOT n.paused THEN 'schedule.resumed'
               WHEN n.fired > o.fired THEN 'schedule.fired'
               WHEN n.skipped > o.skipped THEN 'schedule.skipped'
               ELSE 'schedule.updated'
           END,
           n.id,
           CASE WHEN n.fired > o.fired
                THEN jsonb_build_object('fired', n.fired, 'last_at', n.last_at, 'last_task_id', n.last_task_id)
                ELSE '{}' END
           || CASE WHEN n.skipped > o.skipped
                   THEN jsonb_build_object('skipped', n.skipped, 'count', n.skipped - o.skipped, 'from', o.next_at)
                   ELSE '{}' END
           || CASE WHEN n.next_at IS DISTINCT FROM o.next_at
                   THEN jsonb_build_object('next_at', n.next_at) ELSE '{}' END
           || CASE WHEN n.paused <> o.paused
                   THEN jsonb_build_object('paused', n.paused, 'error', n.error) ELSE '{}' END
           || CASE WHEN n.removed_at IS DISTINCT FROM o.removed_at
                   THEN jsonb_build_object('removed_at', n.removed_at) ELSE '{}' END
           || CASE WHEN (n.name, n.cron, n.timezone, n.type, n.capability, n.priority, n.options, n.missed, n.parameters)
                        IS DISTINCT FROM
                        (o.name, o.cron, o.timezone, o.type, o.capability, o.priority, o.options, o.missed, o.parameters)
                   THEN jsonb_build_object(
                       'name', n.name, 'cron', n.cron, 'timezone', n.timezone, 'type', n.type,
                       'capability', n.capability, 'priority', n.priority, 'options', n.options, 'missed', n.missed,
                       'parameters', CASE WHEN pg_column_size(n.parameters) <= 8192 THEN n.parameters END)
                   ELSE '{}' END
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    WHERE n IS DISTINCT FROM o
    ORDER BY n.id;
    PERFORM blackboard.hint(s.session_id, 'schedules') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
EXCEPTION WHEN not_null_violation THEN
    PERFORM blackboard.raise('BB003', 'A removed schedule stays removed, and its counters only grow; add a new one.',
                             '{"noun": "schedule"}');
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_sessions_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.id, 'session.started', n.id,
           jsonb_build_object('initiator', n.created_by, 'name', n.name, 'goal', n.goal, 'context', n.context,
                              'status', n.status, 'allow_self_validation', n.allow_self_validation)
    FROM new_rows n;
    PERFORM blackboard.hint(n.id, 'sessions') FROM new_rows n;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_sessions_update() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.id,
           CASE
               WHEN n.status = o.status THEN 'session.updated'
               -- A closed session stays closed: no branch, hence no type, hence refused.
               WHEN o.status IN ('completed', 'failed') THEN NULL
               WHEN n.status = 'active' THEN 'session.resumed'
               ELSE 'session.' || n.status
           END,
           n.id,
           jsonb_strip_nulls(jsonb_build_object(
               'name', CASE WHEN n.name <> o.name THEN n.name END,
               'goal', CASE WHEN n.goal <> o.goal THEN n.goal END,
               'status', CASE WHEN n.status <> o.status THEN n.status END,
               'allow_self_validation', CASE WHEN n.allow_self_validation <> o.allow_self_validation
                                             THEN n.allow_self_validation END))
           -- Outside the strip: JSON nulls inside these belong to their owner.
           || CASE WHEN n.context <> o.context THEN jsonb_build_object('context', n.context) ELSE '{}' END
           || CASE WHEN n.outcome IS DISTINCT FROM o.outcome THEN jsonb_build_object('outcome', n.outcome) ELSE '{}' END
           || CASE WHEN n.ageing IS DISTINCT FROM o.ageing THEN jsonb_build_object('ageing', n.ageing) ELSE '{}' END
           || CASE WHEN n.retention IS DISTINCT FROM o.retention
                   THEN jsonb_build_object('retention', n.retention) ELSE '{}' END
    FROM new_rows n JOIN old_rows o ON o.id = n.id
    WHERE (n.name, n.goal, n.status, n.context, n.outcome, n.allow_self_validation, n.ageing, n.retention)
          IS DISTINCT FROM
          (o.name, o.goal, o.status, o.context, o.outcome, o.allow_self_validation, o.ageing, o.retention);
    PERFORM blackboard.hint(n.id, 'sessions') FROM new_rows n;
    RETURN NULL;
EXCEPTION WHEN not_null_violation THEN
    PERFORM blackboard.raise('BB003', 'A closed session cannot be opened again; start a new one.',
                             jsonb_build_object('noun', 'session'));
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_spend_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$
DECLARE
    v_budget blackboard.budgets;
    v_entry blackboard.spend;
    v_charge record;
    v_asked numeric;
BEGIN
    -- What was reserved before the session closed may be settled after, also in units that nobody had thought of.
    PERFORM blackboard.check_sessions(array(
        SELECT DISTINCT n.session_id FROM new_rows n
        WHERE n.status = 'reserved'
           OR NOT EXISTS (SELECT FROM blackboard.spend s WHERE s.session_id = n.session_id
                          AND s.reservation_id = n.reservation_id AND s.id <> n.id)));
    IF EXISTS (SELECT FROM new_rows n WHERE n.budget_ids <> '{}') THEN
        FOR v_charge IN
            SELECT n.session_id, x.id, max(n.at) AS at,
                   coalesce(sum(n.reserved) FILTER (WHERE n.status = 'reserved'), 0) AS reserved,
                   array_agg(n.settled) FILTER (WHERE n.status = 'settled') AS settled,
                   array_agg(n.settled_at) FILTER (WHERE n.status = 'settled') AS times
            FROM new_rows n CROSS JOIN LATERAL unnest(n.budget_ids) x (id)
            GROUP BY 1, 2 ORDER BY 1, 2
        LOOP
            PERFORM blackboard.charge_budget(v_charge.session_id, v_charge.id, v_charge.at, v_charge.reserved,
                                             v_charge.settled, v_charge.times);
        END LOOP;
        SELECT b.* INTO v_budget FROM blackboard.budgets b
        WHERE (b.session_id, b.id) IN (SELECT n.session_id, unnest(n.budget_ids) FROM new_rows n
                                       WHERE n.status = 'reserved')
          AND b.spent + b.reserved > b.ceiling
        ORDER BY b.ceiling - b.spent - b.reserved, b.id LIMIT 1;
        IF FOUND THEN
            SELECT n.* INTO v_entry FROM new_rows n
            WHERE n.session_id = v_budget.session_id AND v_budget.id = ANY (n.budget_ids) LIMIT 1;
            SELECT sum(n.reserved) INTO v_asked FROM new_rows n
            WHERE n.session_id = v_budget.session_id AND v_budget.id = ANY (n.budget_ids) AND n.status = 'reserved';
            PERFORM blackboard.raise('BB014',
                format('The budget of %s for %s allows %s%s; %s are spent and %s reserved, so %s more would exceed it. '
                       'Ask for less, wait until others have settled%s, or raise it with `blackboard budget set`.',
                       v_budget.unit,
                       CASE v_budget.scope WHEN 'session' THEN 'this session' WHEN 'agent' THEN v_budget.agent_id
                                           ELSE 'task ' || v_budget.task_id END,
                       trim_scale(v_budget.ceiling), coalesce(' ' || v_budget.currency, ''),
                       trim_scale(v_budget.spent), trim_scale(v_budget.reserved - v_asked), trim_scale(v_asked),
                       CASE WHEN v_budget.period IS NOT NULL
                            THEN ' or the next window begins at ' || (v_budget.window_start + v_budget.period)
                            ELSE '' END),
                jsonb_build_object(
                    'budget', v_budget.id, 'scope', v_budget.scope, 'unit', v_budget.unit,
                    'currency', v_budget.currency, 'ceiling', trim_scale(v_budget.ceiling),
                    'spent', trim_scale(v_budget.spent), 'reserved', trim_scale(v_budget.reserved - v_asked),
                    'asked', trim_scale(v_asked), 'agent_id', v_entry.agent_id, 'task_id', v_entry.task_id,
                    'resets_at', v_budget.window_start + v_budget.period));
        END IF;
    END IF;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'budget.' || n.status, n.reservation_id,
           jsonb_build_object(
               'status', n.status, 'agent_id', n.agent_id, 'task_id', n.task_id, 'model', max(n.model),
               'currency', max(n.currency), 'lease_id', n.lease_id,
               'reserved', jsonb_object_agg(n.unit, trim_scale(n.reserved)),
               'settled', jsonb_object_agg(n.unit, trim_scale(n.settled)),
               'budget_ids', (SELECT coalesce(jsonb_agg(DISTINCT b.id), '[]') FROM new_rows o, unnest(o.budget_ids) b (id)
                              WHERE o.session_id = n.session_id AND o.reservation_id = n.reservation_id))
    FROM new_rows n
    GROUP BY n.session_id, n.reservation_id, n.status, n.agent_id, n.task_id, n.lease_id
    ORDER BY n.reservation_id;
    PERFORM blackboard.hint(s.session_id, 'budgets') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_spend_update() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_charge record;
BEGIN
    FOR v_charge IN
        SELECT m.session_id, x.id, max(coalesce(m.settled_at, m.at)) AS at,
               sum(CASE WHEN m.is_held AND x.id = ANY (m.new_ids) THEN m.reserved ELSE 0 END
                   - CASE WHEN m.was_held AND x.id = ANY (m.old_ids) THEN m.reserved ELSE 0 END) AS reserved,
               array_agg(m.settled) FILTER (WHERE m.ended) AS settled,
               array_agg(m.settled_at) FILTER (WHERE m.ended) AS times
        FROM (SELECT n.session_id, n.reserved, n.settled, n.at, n.settled_at, n.budget_ids AS new_ids,
                     o.budget_ids AS old_ids, n.status = 'reserved' AS is_held, o.status = 'reserved' AS was_held,
                     n.status = 'settled' AND o.status <> 'settled' AS ended
              FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id) m
        CROSS JOIN LATERAL unnest(m.new_ids) x (id)
        GROUP BY 1, 2
        HAVING bool_or(m.ended OR m.is_held <> m.was_held OR (m.is_held AND NOT x.id = ANY (m.old_ids)))
        ORDER BY 1, 2
    LOOP
        PERFORM blackboard.charge_budget(v_charge.session_id, v_charge.id, v_charge.at, v_charge.reserved,
                                         v_charge.settled, v_charge.times);
    END LOOP;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'budget.' || n.status, n.reservation_id,
           jsonb_build_object('status', n.status, 'agent_id', n.agent_id, 'task_id', n.task_id, 'model', max(n.model),
                              'currency', max(n.currency))
           || CASE WHEN n.status = 'settled'
                   THEN jsonb_build_object('settled', jsonb_object_agg(n.unit, trim_scale(n.settled)))
                   ELSE jsonb_build_object('reserved', jsonb_object_agg(n.unit, trim_scale(n.reserved))) END
    FROM new_rows n JOIN old_rows o ON o.session_id = n.session_id AND o.id = n.id
    WHERE n.status <> o.status
    GROUP BY n.session_id, n.reservation_id, n.status, n.agent_id, n.task_id
    ORDER BY n.reservation_id;
    PERFORM blackboard.hint(s.session_id, 'budgets') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_task_dependencies() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_session uuid;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO blackboard.events (session_id, type, subject_id, data)
        SELECT n.session_id, 'task.dependency_changed', n.task_id,
               jsonb_build_object('depends_on', n.depends_on_id, 'on_failure', n.on_failure)
        FROM new_rows n JOIN old_rows o USING (session_id, task_id, depends_on_id)
        WHERE n.on_failure <> o.on_failure;
        RETURN NULL;
    END IF;
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT o.session_id, 'task.dependency_removed', o.task_id, jsonb_build_object('depends_on', o.depends_on_id)
    FROM old_rows o;
    FOR v_session IN SELECT DISTINCT o.session_id FROM old_rows o LOOP
        PERFORM blackboard.refresh_blockers(
            v_session, array(SELECT DISTINCT o.task_id FROM old_rows o WHERE o.session_id = v_session));
    END LOOP;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_tasks_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_tx bigint;
    v_actor text;
    v_rule text;
    v_session_id uuid := (SELECT n.session_id FROM new_rows n LIMIT 1);
BEGIN
    IF v_session_id IS NULL THEN
        RETURN NULL;
    END IF;
    -- One look for what is rare: tasks of several sessions, or one that is more than a plain one.
    PERFORM 1 FROM new_rows n
    WHERE n.session_id <> v_session_id OR n.status <> 'pending' OR n.position IS NULL
       OR n.attempt <> 0 OR n.released <> 0 OR n.requires_approval OR n.lease_id IS NOT NULL OR n.deadline_at IS NOT NULL
       OR n.completed_at IS NOT NULL OR n.fallback IS NOT NULL OR n.unique_key IS NOT NULL OR n.limit_key IS NOT NULL
       OR n.result IS NOT NULL OR n.error IS NOT NULL OR n.type = '' OR length(n.type) > 50
       OR blackboard.is_odd_task(n.priority, n.parameters, n.timeout, n.max_attempts, n.retry_delay, n.blockers, n.held,
                                 n.progress)
    LIMIT 1;
    IF NOT FOUND THEN
        -- As check_sessions does it, without a call: the lock first, and then a look that is younger than the lock.
        IF NOT pg_try_advisory_xact_lock_shared(blackboard.session_lock(v_session_id)) THEN
            PERFORM pg_advisory_xact_lock_shared(blackboard.session_lock(v_session_id));
        END IF;
        PERFORM 1 FROM blackboard.sessions s WHERE s.id = v_session_id AND s.status IN ('active', 'paused');
        IF NOT FOUND OR current_setting('transaction_isolation') <> 'read committed' THEN
            PERFORM blackboard.check_sessions(ARRAY[v_session_id]);
        END IF;
    ELSE
        v_rule := (SELECT min(blackboard.broken_task_rule(
                               n.type, n.status, n.position, n.parameters, n.priority, n.timeout, n.requires_approval,
                               n.approved_by, n.run_at, n.attempt, n.max_attempts, n.retry_delay, n.assigned_to,
                               n.claim_id, n.lease_id, n.started_at, n.deadline_at, n.completed_at, n.blockers,
                               n.unique_key, n.limit_key, n.fallback, n.held, n.progress, n.result, n.error))
                   FROM new_rows n);
        IF v_rule IS NOT NULL THEN
            PERFORM blackboard.refuse_task(v_rule);
        END IF;
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
    FROM new_rows n;
    IF current_setting('xmlbinary') <> 'hex' THEN
        PERFORM blackboard.hint(s.session_id, 'tasks.ready') FROM (SELECT DISTINCT n.session_id FROM new_rows n) s;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_tasks_update() RETURNS trigger
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

CREATE FUNCTION blackboard.history_votes_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM blackboard.check_sessions(array(SELECT DISTINCT n.session_id FROM new_rows n));
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'vote.cast', n.proposal_id,
           jsonb_build_object('agent_id', n.agent_id, 'choice', n.choice, 'confidence', n.confidence,
                              'reason', n.reason, 'revision', n.revision)
    FROM new_rows n;
    PERFORM blackboard.hint(s.session_id, 'votes') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    PERFORM blackboard.settle_proposal(p.session_id, p.proposal_id)
    FROM (SELECT DISTINCT session_id, proposal_id FROM new_rows) p;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.history_votes_update() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT n.session_id, 'vote.changed', n.proposal_id,
           jsonb_build_object('agent_id', n.agent_id, 'choice', n.choice, 'confidence', n.confidence,
                              'reason', n.reason, 'revision', n.revision)
    FROM new_rows n;
    PERFORM blackboard.hint(s.session_id, 'votes') FROM (SELECT DISTINCT session_id FROM new_rows) s;
    PERFORM blackboard.settle_proposal(p.session_id, p.proposal_id)
    FROM (SELECT DISTINCT session_id, proposal_id FROM new_rows) p;
    RETURN NULL;
END
$$;

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

CREATE FUNCTION blackboard.hold_returned_stage() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET xmloption TO 'document'
    AS $$
DECLARE
    v_flow blackboard.flows;
    v_stage text;
BEGIN
    -- What was blocked is released by the flow, which looks itself.
    IF NEW.status NOT IN ('pending', 'assigned', 'scheduled')
       OR OLD.status IN ('pending', 'assigned', 'scheduled', 'blocked') THEN
        RETURN NULL;
    END IF;
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

CREATE FUNCTION blackboard.hypothesis_confidence(p_session_id uuid, p_hypothesis_id uuid, p_prior double precision) RETURNS double precision
    LANGUAGE sql STABLE
    AS $$
    SELECT least(greatest(1 / (1 + exp(-(stated.l + weighed.l))), 0.01), 0.99)
    FROM (SELECT blackboard.log_odds(CASE WHEN count(*) > 0
                     THEN blackboard.pool_log_odds(array_agg(a.confidence),
                                                   array_agg(blackboard.expertise(a.agent_id, 'hypothesis')))
                     ELSE least(greatest(p_prior, 0.01), 0.99) END) AS l
          FROM blackboard.hypothesis_assessments a
          WHERE a.session_id = p_session_id AND a.hypothesis_id = p_hypothesis_id) stated,
         (SELECT coalesce(sum(CASE WHEN r.supports THEN r.l ELSE -r.l END), 0) AS l
          FROM (SELECT s.supports, s.l, row_number() OVER (PARTITION BY s.supports ORDER BY s.l DESC) AS place
                FROM (SELECT e.supports,
                             blackboard.evidence_log_odds(f.confidence, e.weight, f.trust,
                                                          blackboard.is_contradicted(f.session_id, f.id)) AS l
                      FROM blackboard.hypothesis_evidence e
                      JOIN blackboard.findings f ON f.session_id = e.session_id AND f.id = e.finding_id
                      WHERE e.session_id = p_session_id AND e.hypothesis_id = p_hypothesis_id
                        AND e.retracted_at IS NULL AND f.status = 'active') s) r
          WHERE r.place <= 10) weighed
$$;

CREATE FUNCTION blackboard.in_event(p_name text, p_document jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT CASE WHEN octet_length(p_document::text) <= 8192 THEN jsonb_build_object(p_name, p_document)
                ELSE jsonb_build_object(p_name || '_ref', true) END
$$;

CREATE FUNCTION blackboard.is_contradicted(p_session_id uuid, p_finding_id uuid) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    SELECT EXISTS (SELECT FROM blackboard.finding_links l
                   JOIN blackboard.findings o ON o.session_id = l.session_id AND o.id = l.other_id
                   WHERE l.session_id = p_session_id AND l.finding_id = p_finding_id
                     AND l.kind = 'contradicts' AND o.status = 'active')
$$;

CREATE FUNCTION blackboard.is_odd_task(p_priority smallint, p_parameters jsonb, p_timeout interval, p_max_attempts integer, p_retry_delay interval, p_blockers integer, p_held jsonb, p_progress jsonb) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    SELECT p_held IS NOT NULL OR p_progress IS NOT NULL OR p_blockers <> 0
        OR p_priority < 0 OR p_priority > 10 OR p_max_attempts < 1 OR p_max_attempts > 1000
        OR pg_column_size(p_parameters) > 1048576
        OR p_timeout <= interval '0' OR p_timeout > interval '3650 days'
        OR p_retry_delay < interval '0' OR p_retry_delay > interval '30 days'
$$;

CREATE TABLE blackboard.agents (
    id text NOT NULL,
    capabilities text[] DEFAULT '{}'::text[] NOT NULL,
    expertise jsonb DEFAULT '{}'::jsonb NOT NULL,
    capacity integer DEFAULT 1 NOT NULL,
    role text DEFAULT 'member'::text NOT NULL,
    trust double precision DEFAULT 1 NOT NULL,
    created_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    CONSTRAINT agents_capabilities_few CHECK (((cardinality(capabilities) <= 100) AND (array_position(capabilities, NULL::text) IS NULL))),
    CONSTRAINT agents_capacity_range CHECK (((capacity >= 1) AND (capacity <= 100000))),
    CONSTRAINT agents_expertise_size CHECK ((pg_column_size(expertise) <= 1048576)),
    CONSTRAINT agents_expertise_weights CHECK (((jsonb_typeof(expertise) = 'object'::text) AND (NOT (expertise @? 'strict $.*?((@.type() != "number" || @ < 0) || @ > 1)'::jsonpath)))),
    CONSTRAINT agents_id_form CHECK ((id ~ '^[^[:space:][:cntrl:]]{1,100}$'::text)),
    CONSTRAINT agents_role_length CHECK (((length(role) >= 1) AND (length(role) <= 50))),
    CONSTRAINT agents_trust_range CHECK (((trust >= (0)::double precision) AND (trust <= (1)::double precision)))
);

CREATE TABLE blackboard.leases (
    id uuid NOT NULL,
    host text DEFAULT ''::text NOT NULL,
    pid integer,
    term interval NOT NULL,
    started_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    suspected_at timestamp with time zone,
    lapsed_at timestamp with time zone,
    swept_at timestamp with time zone,
    CONSTRAINT leases_term_range CHECK (((term >= '00:00:01'::interval) AND (term <= '30 days'::interval)))
)
WITH (fillfactor='70');

CREATE VIEW blackboard.members AS
 SELECT a.id,
    m.session_id,
    a.capabilities,
    a.expertise,
    a.capacity,
    m.role,
    a.trust,
    m.vote_weight,
    m.lease_id,
    COALESCE(((l.lapsed_at IS NULL) AND (l.expires_at > blackboard.now())), false) AS present,
    m.joined_at,
    m.left_at
   FROM ((blackboard.memberships m
     JOIN blackboard.agents a ON ((a.id = m.agent_id)))
     LEFT JOIN blackboard.leases l ON ((l.id = m.lease_id)));

CREATE FUNCTION blackboard.join_session(p_session_id uuid, p_agent_id text, p_capabilities text[], p_expertise jsonb, p_capacity integer, p_role text, p_vote_weight double precision, p_lease_id uuid) RETURNS SETOF blackboard.members
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM blackboard.open_session(p_session_id);
    PERFORM blackboard.register_agent(p_agent_id, p_capabilities, p_expertise, p_capacity, p_role);
    IF p_lease_id IS NOT NULL THEN
        PERFORM blackboard.live_lease(p_lease_id);
    END IF;
    INSERT INTO blackboard.memberships AS m (session_id, agent_id, role, vote_weight, lease_id)
    VALUES (p_session_id, p_agent_id, coalesce(p_role, 'member'), coalesce(p_vote_weight, 1), p_lease_id)
    ON CONFLICT (session_id, agent_id) DO UPDATE
        SET role = coalesce(p_role, m.role), vote_weight = coalesce(p_vote_weight, m.vote_weight),
            lease_id = coalesce(p_lease_id, m.lease_id), left_at = NULL;
    RETURN QUERY SELECT * FROM blackboard.members m WHERE m.session_id = p_session_id AND m.id = p_agent_id;
END
$$;

CREATE FUNCTION blackboard.join_sessions(p_session_ids uuid[], p_agent_id text, p_capabilities text[], p_lease_id uuid) RETURNS SETOF blackboard.members
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM blackboard.open_session(w.id) FROM unnest(p_session_ids) w (id)
    WHERE NOT EXISTS (SELECT FROM blackboard.sessions s WHERE s.id = w.id AND s.status IN ('active', 'paused'));
    PERFORM blackboard.register_agent(p_agent_id, p_capabilities, NULL, NULL, NULL);
    IF p_lease_id IS NOT NULL THEN
        PERFORM blackboard.live_lease(p_lease_id);
    END IF;
    INSERT INTO blackboard.memberships AS m (session_id, agent_id, role, vote_weight, lease_id)
    SELECT DISTINCT w.id, p_agent_id, 'member', 1, p_lease_id FROM unnest(p_session_ids) w (id) ORDER BY w.id
    ON CONFLICT (session_id, agent_id) DO UPDATE SET lease_id = coalesce(p_lease_id, m.lease_id), left_at = NULL;
    RETURN QUERY SELECT m.* FROM blackboard.members m WHERE m.session_id = ANY (p_session_ids) AND m.id = p_agent_id;
END
$$;

CREATE FUNCTION blackboard.keep_due(p_scan integer, OUT session_id uuid, OUT tasks integer, OUT flows integer, OUT events bigint, OUT error text, OUT seconds double precision) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '1s'
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

CREATE FUNCTION blackboard.keep_late_action(p_session_id uuid, p_id uuid, p_agent_id text, p_token bigint, p_result jsonb, p_error text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_data jsonb := jsonb_build_object('agent_id', p_agent_id, 'token', p_token, 'result', p_result, 'error', p_error);
BEGIN
    PERFORM FROM blackboard.actions WHERE session_id = p_session_id AND id = p_id AND token >= p_token AND p_token > 0;
    IF NOT FOUND OR pg_column_size(v_data) > 1048576 THEN
        RETURN false;
    END IF;
    PERFORM FROM blackboard.events
    WHERE session_id = p_session_id AND subject_id = p_id AND type = 'action.late' AND data = v_data;
    IF FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO blackboard.events (session_id, actor, type, subject_id, data)
    VALUES (p_session_id, p_agent_id, 'action.late', p_id, v_data);
    PERFORM blackboard.hint(p_session_id, 'actions');
    RETURN true;
END
$$;

CREATE FUNCTION blackboard.keep_ledger() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM blackboard.raise('BB005', format('%s on blackboard.spend is refused: the ledger is append-only.', TG_OP),
                             jsonb_build_object('table', TG_TABLE_NAME, 'operation', TG_OP));
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.keep_session(p_session_id uuid, p_tasks interval, p_events interval, p_actor text, OUT tasks interval, OUT events interval) RETURNS record
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

CREATE FUNCTION blackboard.keep_session_of_tasks() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(blackboard.session_lock(OLD.id));
    PERFORM 1 FROM blackboard.tasks t WHERE t.session_id = OLD.id LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB012', 'A session that has tasks cannot be deleted; close it.',
                                 jsonb_build_object('noun', 'session', 'id', OLD.id));
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.keep_stage_task() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM 1 FROM blackboard.flow_tasks t
    JOIN blackboard.flows f ON f.session_id = t.session_id AND f.id = t.flow_id
    WHERE t.session_id = OLD.session_id AND t.task_id = OLD.id AND f.finished_at IS NULL;
    IF NOT FOUND THEN
        RETURN OLD;
    ELSIF pg_catalog.current_setting('blackboard.pruning', true) = 'on' THEN
        RETURN NULL;
    END IF;
    PERFORM blackboard.raise('BB012', format('Task %s belongs to a flow that is not over; cancel the flow.', OLD.id),
                             jsonb_build_object('noun', 'task', 'id', OLD.id));
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.lease_lapsed(p_lease_id uuid) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    -- A lease that is gone has lapsed long ago.
    SELECT NOT EXISTS (SELECT FROM blackboard.leases l WHERE l.id = p_lease_id AND l.lapsed_at IS NULL)
$$;

CREATE FUNCTION blackboard.leave_session(p_session_id uuid, p_agent_id text) RETURNS blackboard.memberships
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_member blackboard.memberships;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    UPDATE blackboard.memberships SET left_at = coalesce(left_at, blackboard.now()), lease_id = NULL
    WHERE session_id = p_session_id AND agent_id = p_agent_id
    RETURNING * INTO v_member;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('%s is not a member of this session.', p_agent_id),
                                 jsonb_build_object('noun', 'agent', 'id', p_agent_id));
    END IF;
    RETURN v_member;
END
$$;

CREATE FUNCTION blackboard.list_actions(p_session_id uuid, p_status text, p_limit integer) RETURNS SETOF blackboard.actions
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM blackboard.close_due_proposals(p_session_id);
    RETURN QUERY SELECT * FROM blackboard.actions
    WHERE session_id = p_session_id AND (p_status IS NULL OR status = p_status)
    ORDER BY created_at DESC, id DESC LIMIT p_limit;
END
$$;

CREATE TABLE blackboard.findings (
    session_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    agent_id text NOT NULL,
    category text DEFAULT 'observation'::text NOT NULL,
    type text NOT NULL,
    content jsonb NOT NULL,
    confidence double precision,
    evidence jsonb DEFAULT '[]'::jsonb NOT NULL,
    tags text[] DEFAULT '{}'::text[] NOT NULL,
    provenance jsonb DEFAULT '{}'::jsonb NOT NULL,
    derived_from uuid[] DEFAULT '{}'::uuid[] NOT NULL,
    trust double precision DEFAULT 1 NOT NULL,
    status text DEFAULT 'active'::text NOT NULL,
    superseded_by uuid,
    reason text DEFAULT ''::text NOT NULL,
    corroborations integer DEFAULT 0 NOT NULL,
    fingerprint bytea GENERATED ALWAYS AS (blackboard.finding_fingerprint(category, type, content)) STORED NOT NULL,
    created_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    updated_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    CONSTRAINT findings_agent_id_length CHECK (((length(agent_id) >= 1) AND (length(agent_id) <= 100))),
    CONSTRAINT findings_category_known CHECK ((category = ANY (ARRAY['observation'::text, 'hypothesis'::text, 'conclusion'::text]))),
    CONSTRAINT findings_confidence_range CHECK (((confidence >= (0)::double precision) AND (confidence <= (1)::double precision))),
    CONSTRAINT findings_content_size CHECK ((pg_column_size(content) <= 1048576)),
    CONSTRAINT findings_corroborations_range CHECK ((corroborations >= 0)),
    CONSTRAINT findings_derived_from_few CHECK (((cardinality(derived_from) <= 1000) AND (array_position(derived_from, NULL::uuid) IS NULL))),
    CONSTRAINT findings_evidence_items CHECK (((jsonb_typeof(evidence) = 'array'::text) AND (NOT (evidence @? '$[*]?(!(@.type() == "object" && @."source".type() == "string"))'::jsonpath)) AND (NOT (evidence @? '$[*].keyvalue()?((@."key" != "source" && @."key" != "query") && @."key" != "result")'::jsonpath)))),
    CONSTRAINT findings_evidence_size CHECK ((pg_column_size(evidence) <= 1048576)),
    CONSTRAINT findings_provenance_object CHECK ((jsonb_typeof(provenance) = 'object'::text)),
    CONSTRAINT findings_provenance_size CHECK ((pg_column_size(provenance) <= 1048576)),
    CONSTRAINT findings_reason_length CHECK ((length(reason) <= 4000)),
    CONSTRAINT findings_status_known CHECK ((status = ANY (ARRAY['active'::text, 'superseded'::text, 'retracted'::text]))),
    CONSTRAINT findings_superseded_by_another CHECK ((superseded_by <> id)),
    CONSTRAINT findings_superseded_by_iff_superseded CHECK (((status = 'superseded'::text) = (superseded_by IS NOT NULL))),
    CONSTRAINT findings_tags_few CHECK (((cardinality(tags) <= 100) AND (array_position(tags, NULL::text) IS NULL) AND (length(array_to_string(tags, ''::text)) <= 10000))),
    CONSTRAINT findings_trust_range CHECK (((trust >= (0)::double precision) AND (trust <= (1)::double precision))),
    CONSTRAINT findings_type_length CHECK (((length(type) >= 1) AND (length(type) <= 50)))
);

COMMENT ON COLUMN blackboard.findings.trust IS 'At most the trust of its agent (0.5 where nobody registered it) and of every finding it was derived from.';

CREATE FUNCTION blackboard.list_all_findings(p_session_id uuid, p_category text, p_type text, p_agent_id text, p_tag text, p_min_confidence double precision, p_min_trust double precision, p_since timestamp with time zone, p_before_at timestamp with time zone, p_before_id uuid, p_limit integer) RETURNS SETOF blackboard.findings
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
BEGIN
    RETURN QUERY
    SELECT u.* FROM (
        SELECT a.* FROM blackboard.list_findings(p_session_id, p_category, p_type, p_agent_id, p_tag, p_min_confidence,
                                                 p_min_trust, p_since, p_before_at, p_before_id, p_limit) a
        UNION ALL
        (SELECT f.* FROM blackboard.findings f
         WHERE f.session_id = p_session_id AND f.status <> 'active'
           AND (p_category IS NULL OR f.category = p_category)
           AND (p_type IS NULL OR f.type = p_type)
           AND (p_agent_id IS NULL OR f.agent_id = p_agent_id)
           AND (p_tag IS NULL OR f.tags @> ARRAY[p_tag])
           AND (p_min_confidence IS NULL OR f.confidence >= p_min_confidence)
           AND (p_min_trust IS NULL OR f.trust >= p_min_trust)
           AND (p_since IS NULL OR f.created_at >= p_since)
           AND (p_before_at IS NULL OR (f.created_at <= p_before_at
                                        AND (f.created_at < p_before_at OR f.id > p_before_id)))
         ORDER BY f.created_at DESC, f.id
         LIMIT p_limit)) u
    ORDER BY u.created_at DESC, u.id
    LIMIT p_limit;
END
$$;

CREATE FUNCTION blackboard.list_findings(p_session_id uuid, p_category text, p_type text, p_agent_id text, p_tag text, p_min_confidence double precision, p_min_trust double precision, p_since timestamp with time zone, p_before_at timestamp with time zone, p_before_id uuid, p_limit integer) RETURNS SETOF blackboard.findings
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
BEGIN
    RETURN QUERY
    SELECT f.* FROM blackboard.findings f
    WHERE f.session_id = p_session_id AND f.status = 'active'
      AND (p_category IS NULL OR f.category = p_category)
      AND (p_category IS NULL OR p_category = 'observation' OR f.category <> 'observation')
      AND (p_type IS NULL OR f.type = p_type)
      AND (p_agent_id IS NULL OR f.agent_id = p_agent_id)
      AND (p_tag IS NULL OR (f.tags @> ARRAY[p_tag] AND f.tags <> '{}'))
      AND (p_min_confidence IS NULL OR f.confidence >= p_min_confidence)
      AND (p_min_trust IS NULL OR f.trust >= p_min_trust)
      AND (p_since IS NULL OR f.created_at >= p_since)
      AND (p_before_at IS NULL OR (f.created_at <= p_before_at
                                   AND (f.created_at < p_before_at OR f.id > p_before_id)))
    ORDER BY f.created_at DESC, f.id
    LIMIT p_limit;
END
$$;

CREATE FUNCTION blackboard.list_proposals(p_session_id uuid, p_status text, p_limit integer) RETURNS SETOF blackboard.proposals
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM blackboard.close_due_proposals(p_session_id);
    RETURN QUERY SELECT * FROM blackboard.proposals
    WHERE session_id = p_session_id AND (p_status IS NULL OR status = p_status)
    ORDER BY created_at DESC, id DESC LIMIT p_limit;
END
$$;

CREATE FUNCTION blackboard.live_lease(p_lease_id uuid) RETURNS blackboard.leases
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

CREATE FUNCTION blackboard.lock_action(p_session_id uuid, p_id uuid) RETURNS blackboard.actions
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_action blackboard.actions;
BEGIN
    SELECT * INTO v_action FROM blackboard.actions WHERE session_id = p_session_id AND id = p_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no action %s in this session.', p_id),
                                 jsonb_build_object('noun', 'action', 'id', p_id));
    END IF;
    RETURN v_action;
END
$$;

CREATE FUNCTION blackboard.lock_flow(p_session_id uuid, p_id uuid) RETURNS blackboard.flows
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_flow blackboard.flows;
BEGIN
    SELECT * INTO v_flow FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no flow %s in this session.', p_id),
                                 jsonb_build_object('noun', 'flow', 'id', p_id));
    END IF;
    RETURN v_flow;
END
$$;

CREATE TABLE blackboard.spend (
    session_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    reservation_id uuid NOT NULL,
    agent_id text NOT NULL,
    task_id uuid,
    unit text NOT NULL,
    currency text,
    reserved numeric NOT NULL,
    settled numeric,
    status text DEFAULT 'reserved'::text NOT NULL,
    budget_ids uuid[] DEFAULT '{}'::uuid[] NOT NULL,
    model text,
    note text DEFAULT ''::text NOT NULL,
    at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    settled_at timestamp with time zone,
    lease_id uuid,
    expires_at timestamp with time zone,
    CONSTRAINT spend_agent_id_length CHECK (((length(agent_id) >= 1) AND (length(agent_id) <= 100))),
    CONSTRAINT spend_currency_form CHECK ((currency ~ '^[A-Z]{3,8}$'::text)),
    CONSTRAINT spend_currency_iff_cost CHECK (((unit = 'cost'::text) = (currency IS NOT NULL))),
    CONSTRAINT spend_holder_has_an_end CHECK (((status <> 'reserved'::text) OR (lease_id IS NOT NULL) OR (expires_at IS NOT NULL))),
    CONSTRAINT spend_model_length CHECK (((length(model) >= 1) AND (length(model) <= 200))),
    CONSTRAINT spend_note_length CHECK ((length(note) <= 1000)),
    CONSTRAINT spend_reserved_range CHECK (((reserved >= (0)::numeric) AND (reserved <= '1000000000000000'::numeric) AND (scale(trim_scale(reserved)) <= 12))),
    CONSTRAINT spend_settled_at_iff_ended CHECK (((status = 'reserved'::text) = (settled_at IS NULL))),
    CONSTRAINT spend_settled_iff_settled CHECK (((status = 'settled'::text) = (settled IS NOT NULL))),
    CONSTRAINT spend_settled_range CHECK (((settled >= (0)::numeric) AND (settled <= '1000000000000000'::numeric) AND (scale(trim_scale(settled)) <= 12))),
    CONSTRAINT spend_status_known CHECK ((status = ANY (ARRAY['reserved'::text, 'settled'::text, 'released'::text, 'expired'::text]))),
    CONSTRAINT spend_unit_known CHECK ((unit = ANY (ARRAY['tokens'::text, 'cost'::text, 'calls'::text, 'seconds'::text]))),
    CONSTRAINT spend_whole_units CHECK (((unit <> ALL (ARRAY['tokens'::text, 'calls'::text])) OR ((reserved = trunc(reserved)) AND ((settled IS NULL) OR (settled = trunc(settled))))))
);

COMMENT ON TABLE blackboard.spend IS 'The ledger: rows are added, and ended once. Counters in blackboard.budgets are kept from it by triggers.';

CREATE FUNCTION blackboard.lock_reservation(p_session_id uuid, p_id uuid) RETURNS SETOF blackboard.spend
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(blackboard.budgets_lock(p_session_id));
    RETURN QUERY SELECT * FROM blackboard.spend s
                 WHERE s.session_id = p_session_id AND s.reservation_id = p_id ORDER BY s.id FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no reservation %s in this session.', p_id),
                                 jsonb_build_object('noun', 'reservation', 'id', p_id));
    END IF;
END
$$;

CREATE FUNCTION blackboard.log_odds(p_confidence double precision) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT pg_catalog.ln(p_confidence / (1 - p_confidence)) $$;

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

CREATE FUNCTION blackboard.loop_stage(p_session_id uuid, p_flow_id uuid, p_name text, p_quality double precision) RETURNS text[]
    LANGUAGE plpgsql
    SET xmloption TO 'document'
    SET plan_cache_mode TO 'force_custom_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET enable_nestloop TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
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
        CROSS JOIN LATERAL (SELECT o.depends_on FROM blackboard.flow_edges o
                            WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.stage = a.name OFFSET 0) e
        WHERE a.name <> coalesce(v_stage.loop_to, p_name)
    ), below (name) AS (
        SELECT coalesce(v_stage.loop_to, p_name)
        UNION
        SELECT e.stage FROM below b
        CROSS JOIN LATERAL (SELECT o.stage FROM blackboard.flow_edges o
                            WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id
                              AND o.depends_on = b.name OFFSET 0) e
        WHERE b.name <> p_name)
    SELECT array_agg(i.name) INTO v_segment
    FROM (SELECT a.name FROM above a INTERSECT SELECT b.name FROM below b) i;
    SELECT jsonb_build_object('stage', p_name, 'quality', p_quality, 'min_quality', v_stage.min_quality,
                              'iteration', v_stage.iteration, 'task_id', t.id, 'result', t.result)
    INTO v_feedback
    FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = v_stage.task_id;
    SELECT array_agg(s.task_id) INTO v_stale
    FROM unnest(v_segment) x (name)
    CROSS JOIN LATERAL (SELECT o.name, o.task_id, o.state FROM blackboard.flow_stages o
                        WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.name = x.name OFFSET 0) s
    WHERE s.state IN ('waiting', 'ready') AND s.name <> p_name;
    WITH x AS MATERIALIZED (
        SELECT s.place
        FROM unnest(v_segment) u (name)
        CROSS JOIN LATERAL (SELECT o.ctid AS place FROM blackboard.flow_stages o
                            WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.name = u.name OFFSET 0) s)
    UPDATE blackboard.flow_stages s
    SET state = 'waiting', task_id = blackboard.new_id(), iteration = s.iteration + 1,
        loops = CASE WHEN s.name = p_name THEN s.loops + 1 ELSE 0 END,
        quality = NULL, error = NULL, stopping = false
    FROM x WHERE s.ctid = x.place;
    PERFORM blackboard.make_stage_tasks(p_session_id, p_flow_id, v_segment, v_feedback);
    -- A branch that an early join left behind belongs to the old round.
    PERFORM blackboard.stop_tasks(p_session_id, v_stale, 'superseded', 'A later round of this stage has begun.');
    RETURN v_segment;
END
$$;

CREATE FUNCTION blackboard.make_stage_tasks(p_session_id uuid, p_flow_id uuid, p_stages text[], p_feedback jsonb) RETURNS void
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
    v_ids uuid[];
    v_made integer;
BEGIN
    SELECT array_agg(s.task_id), blackboard.add_tasks(
               p_session_id, array_agg(s.task_id ORDER BY s.ordinal),
               array_agg(s.template ->> 'type' ORDER BY s.ordinal),
               array_agg(coalesce(s.template ->> 'capability', '') ORDER BY s.ordinal),
               array_agg(coalesce((s.template ->> 'priority')::smallint, 5::smallint) ORDER BY s.ordinal),
               array_agg(blackboard.with_note(coalesce(s.template -> 'parameters', '{}'), 'feedback', p_feedback)
                         ORDER BY s.ordinal),
               array_agg(nullif(s.template -> 'options', 'null') ORDER BY s.ordinal),
               nullif(current_setting('blackboard.actor', true), ''))
    INTO v_ids, v_made
    FROM unnest(p_stages) x (name)
    CROSS JOIN LATERAL (SELECT o.* FROM blackboard.flow_stages o
                        WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.name = x.name OFFSET 0) s;
    IF v_made < cardinality(v_ids) THEN
        PERFORM blackboard.raise('BB004', 'The id of a stage''s task was used before; leave it out or use a new one.',
                                 '{"noun": "task", "field": "id"}');
    END IF;
    INSERT INTO blackboard.flow_tasks (session_id, task_id, flow_id, stage, iteration)
    SELECT s.session_id, s.task_id, s.flow_id, s.name, s.iteration
    FROM unnest(p_stages) x (name)
    CROSS JOIN LATERAL (SELECT o.* FROM blackboard.flow_stages o
                        WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.name = x.name OFFSET 0) s;
    -- has_dependants: somebody waits for their end, namely the flow.
    WITH x AS MATERIALIZED (
        SELECT t.place
        FROM unnest(v_ids) u (id)
        CROSS JOIN LATERAL (SELECT o.ctid AS place FROM blackboard.tasks o
                            WHERE o.session_id = p_session_id AND o.id = u.id OFFSET 0) t)
    UPDATE blackboard.tasks t
    SET has_dependants = true, blockers = 1,
        status = CASE WHEN t.status IN ('pending', 'assigned', 'scheduled') THEN 'blocked' ELSE t.status END,
        position = NULL
    FROM x WHERE t.ctid = x.place;
END
$$;

CREATE FUNCTION blackboard.may_overrule(p_session_id uuid, p_actor text) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    SELECT coalesce((SELECT m.role = 'controller' AND m.left_at IS NULL FROM blackboard.memberships m
                     WHERE m.session_id = p_session_id AND m.agent_id = p_actor), true)
$$;

CREATE FUNCTION blackboard.modify_flow(p_session_id uuid, p_id uuid, p_expected integer, p_change jsonb, p_actor text, p_key text) RETURNS SETOF blackboard.flows
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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
    v_flow blackboard.flows;
    v_stage blackboard.flow_stages;
    v_name text;
    v_value jsonb;
    v_left text;
    v_removed uuid[] := '{}';
    v_rewired text[] := '{}';
BEGIN
    PERFORM blackboard.act_as(p_actor);
    IF NOT blackboard.first_time(p_session_id, p_key, 'modify_flow', jsonb_build_array(p_id, p_expected, p_change)) THEN
        RETURN QUERY SELECT f.* FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_id;
        RETURN;
    END IF;
    PERFORM blackboard.open_session(p_session_id);
    v_flow := blackboard.lock_flow(p_session_id, p_id);
    IF v_flow.version <> p_expected THEN
        PERFORM blackboard.raise('BB012', format('Flow %s is at version %s, not %s: look at it again, then repeat the change.',
                                                 p_id, v_flow.version, p_expected),
                                 jsonb_build_object('noun', 'flow', 'id', p_id, 'version', v_flow.version,
                                                    'expected_version', p_expected));
    END IF;
    PERFORM blackboard.refuse_finished_flow(v_flow);
    IF v_flow.compensating THEN
        PERFORM blackboard.raise('BB003', 'The flow has failed and is being compensated: it takes no more changes.',
                                 jsonb_build_object('noun', 'flow', 'id', p_id, 'status', v_flow.status));
    END IF;
    FOR v_name IN SELECT r.name FROM jsonb_array_elements_text(coalesce(p_change -> 'remove', '[]')) r (name) ORDER BY 1 LOOP
        v_stage := blackboard.unstarted_stage(p_session_id, v_flow, v_name);
        v_removed := v_removed || v_stage.task_id;
        DELETE FROM blackboard.flow_edges e WHERE e.session_id = p_session_id AND e.flow_id = p_id AND e.stage = v_name;
    END LOOP;
    FOR v_name IN SELECT k FROM jsonb_object_keys(coalesce(p_change -> 'rewire', '{}')) k ORDER BY 1 LOOP
        v_stage := blackboard.unstarted_stage(p_session_id, v_flow, v_name);
        v_rewired := v_rewired || v_name;
        DELETE FROM blackboard.flow_edges e WHERE e.session_id = p_session_id AND e.flow_id = p_id AND e.stage = v_name;
    END LOOP;
    SELECT e.stage INTO v_left FROM blackboard.flow_edges e
    WHERE e.session_id = p_session_id AND e.flow_id = p_id
      AND e.depends_on = ANY (array(SELECT jsonb_array_elements_text(coalesce(p_change -> 'remove', '[]')))) LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB002', format('Stage %L depends on a stage that is to be removed: rewire or remove it too.',
                                                 v_left),
                                 jsonb_build_object('field', 'remove', 'stage', v_left));
    END IF;
    DELETE FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_id
      AND s.name = ANY (array(SELECT jsonb_array_elements_text(coalesce(p_change -> 'remove', '[]'))));
    IF p_change -> 'add' IS NOT NULL THEN
        PERFORM blackboard.add_stages(p_session_id, p_id, p_change -> 'add');
    END IF;
    IF cardinality(v_rewired) > 0 THEN
        PERFORM blackboard.wire_stages(
            p_session_id, p_id, (SELECT jsonb_agg(jsonb_build_object('name', r.key, 'after', r.value))
                                 FROM jsonb_each(p_change -> 'rewire') r));
        -- What was ready waits again until its new dependencies are looked at.
        UPDATE blackboard.flow_stages s SET state = 'waiting'
        WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.name = ANY (v_rewired) AND s.state = 'ready';
        UPDATE blackboard.tasks t
        SET blockers = 1, position = NULL, held = NULL,
            status = CASE WHEN t.status IN ('pending', 'assigned', 'scheduled', 'held') THEN 'blocked' ELSE t.status END
        WHERE t.session_id = p_session_id AND t.blockers = 0
          AND t.id = ANY (array(SELECT s.task_id FROM blackboard.flow_stages s
                                WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.name = ANY (v_rewired)));
    END IF;
    FOR v_name, v_value IN SELECT r.key, r.value FROM jsonb_each(coalesce(p_change -> 'reprioritise', '{}')) r ORDER BY 1 LOOP
        v_stage := blackboard.unstarted_stage(p_session_id, v_flow, v_name);
        UPDATE blackboard.flow_stages s SET template = s.template || jsonb_build_object('priority', v_value)
        WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.name = v_name;
        UPDATE blackboard.tasks t SET priority = (v_value #>> '{}')::smallint
        WHERE t.session_id = p_session_id AND t.id = v_stage.task_id;
    END LOOP;
    IF NOT EXISTS (SELECT FROM blackboard.flow_stages s WHERE s.session_id = p_session_id AND s.flow_id = p_id) THEN
        PERFORM blackboard.raise('BB002', 'A flow has at least one stage; cancel it instead.', '{"field": "remove"}');
    END IF;
    PERFORM blackboard.check_flow(p_session_id, p_id);
    PERFORM set_config('blackboard.flow_change',
                       CASE WHEN pg_column_size(p_change) <= 65536 THEN p_change::text ELSE '' END, true);
    UPDATE blackboard.flows f SET version = f.version + 1 WHERE f.session_id = p_session_id AND f.id = p_id;
    PERFORM set_config('blackboard.flow_change', '', true);
    UPDATE blackboard.tasks t
    SET status = 'cancelled', position = NULL, completed_at = blackboard.now(),
        error = jsonb_build_object('code', 'removed', 'message', 'Its stage was taken out of the flow.')
    WHERE t.session_id = p_session_id AND t.id = ANY (v_removed) AND t.completed_at IS NULL;
    PERFORM blackboard.settle_flow(
        p_session_id, p_id, '{}', v_rewired || array(
            SELECT a.stage ->> 'name' FROM jsonb_array_elements(coalesce(p_change -> 'add', '[]')) a (stage)));
    RETURN QUERY SELECT f.* FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_id;
END
$$;

CREATE FUNCTION blackboard.needs_adoption() RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    SELECT h.system_identifier <> c.system_identifier::text
    FROM blackboard.history h CROSS JOIN pg_control_system() c
$$;

CREATE FUNCTION blackboard.next_status(p_task blackboard.tasks) RETURNS text
    LANGUAGE sql STABLE
    AS $$
    SELECT CASE
        WHEN p_task.requires_approval AND p_task.approved_by IS NULL THEN 'awaiting_approval'
        WHEN p_task.blockers > 0 THEN 'blocked'
        WHEN p_task.run_at > blackboard.now() THEN 'scheduled'
        WHEN p_task.assigned_to IS NOT NULL AND p_task.claim_id IS NULL THEN 'assigned'
        ELSE 'pending'
    END
$$;

CREATE FUNCTION blackboard.no_finding(p_id uuid) RETURNS void
    LANGUAGE sql
    AS $$
    SELECT blackboard.raise('BB001', format('There is no finding %s in this session; list them first.', p_id),
                            jsonb_build_object('noun', 'finding', 'id', p_id))
$$;

CREATE FUNCTION blackboard.no_hypothesis(p_id uuid) RETURNS void
    LANGUAGE sql
    AS $$
    SELECT blackboard.raise('BB001', format('There is no hypothesis %s in this session; list them first.', p_id),
                            jsonb_build_object('noun', 'hypothesis', 'id', p_id))
$$;

CREATE FUNCTION blackboard.note_floors(p_session_id uuid, p_floors jsonb, p_seconds double precision) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_now timestamptz := blackboard.now();
    v_notes jsonb := coalesce(nullif(current_setting('blackboard.floors', true), '')::jsonb, '{}');
BEGIN
    IF p_seconds IS NULL THEN
        v_notes := jsonb_set(v_notes, ARRAY[p_session_id::text, 'floors'], p_floors);
    ELSE
        -- Of other sessions only what is still good.
        SELECT coalesce(jsonb_object_agg(n.key, n.value), '{}') INTO v_notes
        FROM jsonb_each(v_notes) n WHERE (n.value ->> 'until')::timestamptz > v_now;
        v_notes := v_notes || jsonb_build_object(p_session_id, jsonb_build_object(
            'until', v_now + p_seconds * interval '1 second', 'floors', p_floors));
    END IF;
    PERFORM set_config('blackboard.floors', v_notes::text, false);
END
$$;

CREATE FUNCTION blackboard.open_proposal(p_session_id uuid, p_id uuid, p_agent_id text, p_title text, p_body jsonb DEFAULT '{}'::jsonb, p_rule text DEFAULT 'majority'::text, p_threshold double precision DEFAULT NULL::double precision, p_weighted boolean DEFAULT false, p_min_turnout double precision DEFAULT NULL::double precision, p_deadline interval DEFAULT '00:05:00'::interval, p_at_deadline text DEFAULT 'tally'::text, p_electorate text[] DEFAULT NULL::text[]) RETURNS blackboard.proposals
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_proposal blackboard.proposals;
    v_now timestamptz := blackboard.now();
    v_electorate text[];
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    IF p_electorate IS NOT NULL THEN
        v_electorate := array(SELECT DISTINCT e FROM unnest(p_electorate) e ORDER BY e);
    END IF;
    SELECT * INTO v_proposal FROM blackboard.proposals WHERE session_id = p_session_id AND id = p_id;
    IF NOT FOUND THEN
        PERFORM blackboard.open_session(p_session_id);
        PERFORM blackboard.current_member(p_session_id, p_agent_id);
        INSERT INTO blackboard.proposals (session_id, id, agent_id, title, body, rule, threshold, weighted, min_turnout,
                                          electorate, deadline_at, at_deadline, created_at)
        VALUES (p_session_id, p_id, p_agent_id, p_title, p_body, p_rule, p_threshold, p_weighted, p_min_turnout,
                v_electorate, v_now + p_deadline, p_at_deadline, v_now)
        ON CONFLICT (session_id, id) DO NOTHING
        RETURNING * INTO v_proposal;
        IF FOUND THEN
            RETURN v_proposal;
        END IF;
        SELECT * INTO v_proposal FROM blackboard.proposals WHERE session_id = p_session_id AND id = p_id;
    END IF;
    IF (v_proposal.agent_id, v_proposal.title, v_proposal.body, v_proposal.rule, v_proposal.weighted,
        v_proposal.at_deadline, v_proposal.electorate, v_proposal.deadline_at)
       IS DISTINCT FROM
       (p_agent_id, p_title, p_body, p_rule, p_weighted, p_at_deadline, v_electorate,
        v_proposal.created_at + p_deadline)
       OR v_proposal.threshold IS DISTINCT FROM coalesce(p_threshold, CASE p_rule WHEN 'threshold' THEN 0.7 END)
       OR v_proposal.min_turnout <> coalesce(p_min_turnout, CASE p_rule WHEN 'unanimous' THEN 1 ELSE 0.5 END) THEN
        PERFORM blackboard.raise('BB004', 'A proposal with this id was opened with other content; use a new id.',
                                 jsonb_build_object('noun', 'proposal', 'id', p_id));
    END IF;
    RETURN v_proposal;
END
$$;

CREATE FUNCTION blackboard.open_session(p_session_id uuid) RETURNS blackboard.sessions
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    v_session blackboard.sessions;
BEGIN
    SELECT * INTO v_session FROM blackboard.sessions WHERE id = p_session_id;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no session %s; list them with `blackboard session list`.',
                                                 p_session_id),
                                 jsonb_build_object('noun', 'session', 'id', p_session_id));
    END IF;
    IF v_session.status IN ('completed', 'failed') THEN
        PERFORM blackboard.raise('BB007', format('The session %L is %s and takes no more writes; start a new one.',
                                                 v_session.name, v_session.status),
                                 jsonb_build_object('noun', 'session', 'id', p_session_id,
                                                    'status', v_session.status));
    END IF;
    RETURN v_session;
END
$$;

CREATE FUNCTION blackboard.over_budget(p_session_id uuid, p_agent_id text, p_task_id uuid) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$ SELECT EXISTS (SELECT FROM blackboard.spent_budgets(p_session_id, p_agent_id, p_task_id)) $$;

CREATE FUNCTION blackboard.pause_flow(p_session_id uuid, p_id uuid, p_stop boolean, p_actor text) RETURNS SETOF blackboard.flows
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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
    v_flow blackboard.flows;
    v_tasks uuid[];
BEGIN
    PERFORM blackboard.act_as(p_actor);
    IF p_stop THEN
        PERFORM blackboard.ask_to_stop(p_session_id, p_id);
    END IF;
    v_flow := blackboard.lock_flow(p_session_id, p_id);
    PERFORM blackboard.refuse_finished_flow(v_flow);
    v_tasks := array(SELECT s.task_id FROM blackboard.flow_stages s
                     WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.state = 'ready');
    IF v_flow.status = 'running' THEN
        UPDATE blackboard.flows f SET status = 'paused', version = f.version + 1
        WHERE f.session_id = p_session_id AND f.id = p_id;
        PERFORM 1
        FROM (SELECT u.id FROM unnest(v_tasks) u (id) ORDER BY u.id OFFSET 0) x
        CROSS JOIN LATERAL (SELECT FROM blackboard.tasks t
                            WHERE t.session_id = p_session_id AND t.id = x.id
                              AND t.status IN ('pending', 'assigned', 'scheduled') FOR UPDATE OFFSET 0) t;
        WITH x AS MATERIALIZED (
            SELECT t.place
            FROM unnest(v_tasks) u (id)
            CROSS JOIN LATERAL (SELECT o.ctid AS place FROM blackboard.tasks o
                                WHERE o.session_id = p_session_id AND o.id = u.id
                                  AND o.status IN ('pending', 'assigned', 'scheduled') OFFSET 0) t)
        UPDATE blackboard.tasks t
        SET status = 'held', position = NULL, held = blackboard.held_by_flow(p_id, v_flow.name, t.position)
        FROM x WHERE t.ctid = x.place AND t.status IN ('pending', 'assigned', 'scheduled');
    END IF;
    IF p_stop THEN
        WITH x AS MATERIALIZED (
            SELECT s.ctid AS place
            FROM blackboard.flow_stages s
            CROSS JOIN LATERAL (SELECT FROM blackboard.tasks o
                                WHERE o.session_id = p_session_id AND o.id = s.task_id AND o.status = 'running'
                                  AND o.cancel_requested OFFSET 0) t
            WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.state = 'ready' AND NOT s.stopping)
        UPDATE blackboard.flow_stages s SET stopping = true FROM x WHERE s.ctid = x.place;
    END IF;
    RETURN QUERY SELECT f.* FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_id;
END
$$;

CREATE FUNCTION blackboard.pause_schedule(p_session_id uuid, p_id uuid, p_paused boolean, p_next_at timestamp with time zone, p_error text, p_actor text) RETURNS SETOF blackboard.schedules
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    UPDATE blackboard.schedules s
    SET paused = p_paused, next_at = CASE WHEN p_paused THEN s.next_at ELSE p_next_at END,
        error = CASE WHEN p_paused THEN left(p_error, 10000) END
    WHERE s.session_id = p_session_id AND s.id = p_id AND s.removed_at IS NULL AND s.paused <> p_paused;
    RETURN QUERY SELECT * FROM blackboard.schedules s
                 WHERE s.session_id = p_session_id AND s.id = p_id AND s.removed_at IS NULL;
END
$$;

CREATE TABLE blackboard.pauses (
    session_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    reason text DEFAULT ''::text NOT NULL,
    paused_by text DEFAULT blackboard.current_actor() NOT NULL,
    paused_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    resumed_at timestamp with time zone,
    CONSTRAINT pauses_kind_known CHECK ((kind = ANY (ARRAY['type'::text, 'capability'::text]))),
    CONSTRAINT pauses_name_length CHECK (((length(name) >= 1) AND (length(name) <= 100))),
    CONSTRAINT pauses_reason_length CHECK ((length(reason) <= 4000))
);

CREATE FUNCTION blackboard.pause_tasks(p_session_id uuid, p_id uuid, p_kind text, p_name text, p_reason text, p_actor text) RETURNS SETOF blackboard.pauses
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

CREATE FUNCTION blackboard.pick_held(p_session_id uuid, p_code text, p_of text, p_key text, p_capability text, p_limit integer) RETURNS uuid[]
    LANGUAGE plpgsql
    SET lock_timeout TO '20ms'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
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

CREATE FUNCTION blackboard.pick_ready(p_session_id uuid, p_agent_id text, p_capabilities text[], p_paused text[], p_busy uuid[], p_limit integer, p_now timestamp with time zone) RETURNS uuid[]
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

CREATE FUNCTION blackboard.pick_task(p_session_id uuid, p_id uuid, p_agent_id text, p_now timestamp with time zone) RETURNS text
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

CREATE FUNCTION blackboard.pool_log_odds(p_confidences double precision[], p_weights double precision[]) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT coalesce(1 / (1 + exp(-coalesce(sum(s.w * s.l) / nullif(sum(s.w), 0), avg(s.l)))), 0.5)
    FROM (SELECT CASE WHEN u.w < 1e-200 THEN 0 ELSE least(coalesce(u.w, 1), 1e90) END AS w,
                 blackboard.log_odds(least(greatest(u.c, 0.01), 0.99)) AS l
          FROM unnest(p_confidences, p_weights) u (c, w)
          WHERE u.c IS NOT NULL
          -- A sum of doubles depends on its order, and the pool must not.
          ORDER BY 1, 2) s
$$;

CREATE FUNCTION blackboard.prepare_budget() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        -- Nobody spends while a budget is born: what was spent before is its opening, what comes after is charged.
        PERFORM pg_advisory_xact_lock(blackboard.budgets_lock(NEW.session_id));
        NEW.reserved := 0;
        NEW.spent := 0;
        NEW.opening := 0;
        -- A period that has no windows is for budgets_period_range to refuse.
        NEW.window_start := CASE
            WHEN NEW.period IS NULL THEN NULL
            WHEN NEW.period > interval '0' AND extract(year FROM NEW.period) = 0 AND extract(month FROM NEW.period) = 0
                THEN blackboard.budget_window(NEW.period, blackboard.now())
            ELSE blackboard.now() END;
        RETURN NEW;
    END IF;
    IF (NEW.session_id, NEW.id, NEW.scope, NEW.agent_id, NEW.task_id, NEW.unit, NEW.currency, NEW.period)
       IS DISTINCT FROM
       (OLD.session_id, OLD.id, OLD.scope, OLD.agent_id, OLD.task_id, OLD.unit, OLD.currency, OLD.period) THEN
        PERFORM blackboard.raise('BB003', 'What a budget is about does not change; use blackboard.set_budget().',
                                 jsonb_build_object('noun', 'budget', 'id', OLD.id));
    END IF;
    IF pg_trigger_depth() = 1
       AND (NEW.reserved, NEW.spent, NEW.opening, NEW.window_start)
           IS DISTINCT FROM (OLD.reserved, OLD.spent, OLD.opening, OLD.window_start) THEN
        PERFORM blackboard.raise('BB005', 'The counters of a budget are kept by the ledger; write to blackboard.spend.',
                                 jsonb_build_object('noun', 'budget', 'id', OLD.id));
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION blackboard.prepare_finding() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.trust := least(coalesce(NEW.trust, 1),
                           blackboard.finding_trust(NEW.session_id, NEW.agent_id, NEW.derived_from));
    ELSE
        -- Here and not in history_update, where a CHECK would have spoken first.
        IF OLD.status <> 'active' AND (NEW.status, NEW.superseded_by) IS DISTINCT FROM (OLD.status, OLD.superseded_by)
        THEN
            PERFORM blackboard.raise('BB003', format('This finding is %s, and stays so; report it again.', OLD.status),
                                     jsonb_build_object('noun', 'finding', 'id', OLD.id, 'status', OLD.status));
        END IF;
        NEW.updated_at := blackboard.now();
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION blackboard.prepare_hypothesis() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.confidence := least(greatest(NEW.prior, 0.01), 0.99);
        NEW.revision := 0;
    ELSE
        IF OLD.status <> 'proposed' AND NEW.status <> OLD.status THEN
            PERFORM blackboard.raise('BB003',
                                     format('This hypothesis is %s, and stays so; propose it anew.', OLD.status),
                                     jsonb_build_object('noun', 'hypothesis', 'id', OLD.id, 'status', OLD.status));
        END IF;
        NEW.updated_at := blackboard.now();
        IF NEW.revision <> OLD.revision THEN
            NEW.revision := OLD.revision + 1;
            NEW.confidence := blackboard.hypothesis_confidence(NEW.session_id, NEW.id, NEW.prior);
        ELSIF NEW.confidence IS DISTINCT FROM OLD.confidence THEN
            PERFORM blackboard.raise('BB005', 'A hypothesis''s confidence is computed; assess it or add evidence.',
                                     jsonb_build_object('field', 'confidence', 'id', OLD.id));
        END IF;
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION blackboard.prepare_spend() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_left timestamptz;
    v_other text;
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.status NOT IN ('reserved', 'settled') THEN
            PERFORM blackboard.raise('BB003', 'An entry of the ledger begins as reserved, or as settled.',
                                     '{"noun": "reservation", "field": "status"}');
        END IF;
        PERFORM pg_advisory_xact_lock_shared(blackboard.budgets_lock(NEW.session_id));
        SELECT m.left_at INTO v_left FROM blackboard.memberships m
        WHERE m.session_id = NEW.session_id AND m.agent_id = NEW.agent_id;
        IF NOT FOUND THEN
            PERFORM blackboard.open_session(NEW.session_id);
            PERFORM blackboard.raise('BB001', format('%s is not a member of this session; join it first.', NEW.agent_id),
                                     jsonb_build_object('noun', 'agent', 'id', NEW.agent_id, 'field', 'agent_id'));
        ELSIF v_left IS NOT NULL AND NEW.status = 'reserved' THEN
            PERFORM blackboard.raise('BB005', format('%s has left this session; join it again to spend.', NEW.agent_id),
                                     jsonb_build_object('noun', 'agent', 'id', NEW.agent_id));
        END IF;
        IF NEW.task_id IS NOT NULL THEN
            PERFORM FROM blackboard.tasks t WHERE t.session_id = NEW.session_id AND t.id = NEW.task_id;
            IF NOT FOUND THEN
                PERFORM blackboard.raise('BB001', format('There is no task %s in this session.', NEW.task_id),
                                         jsonb_build_object('noun', 'task', 'id', NEW.task_id, 'field', 'task'));
            END IF;
        END IF;
        SELECT coalesce(array_agg(b.id ORDER BY b.id), '{}'),
               min(b.currency) FILTER (WHERE b.currency IS DISTINCT FROM NEW.currency)
        INTO NEW.budget_ids, v_other
        FROM blackboard.budgets b
        WHERE b.session_id = NEW.session_id AND b.unit = NEW.unit
          AND (b.agent_id IS NULL OR b.agent_id = NEW.agent_id) AND (b.task_id IS NULL OR b.task_id = NEW.task_id);
        IF v_other IS NOT NULL THEN
            PERFORM blackboard.raise('BB002', format('The budget of cost is in %s; say what this costs in %s.',
                                                     v_other, v_other),
                                     jsonb_build_object('field', 'currency', 'currency', v_other));
        END IF;
        NEW.at := blackboard.now();
        NEW.settled_at := CASE WHEN NEW.status = 'settled' THEN NEW.at END;
        NEW.expires_at := CASE WHEN NEW.lease_id IS NULL AND NEW.status = 'reserved'
                               THEN coalesce(NEW.expires_at, NEW.at + interval '1 hour') END;
        RETURN NEW;
    END IF;
    IF (NEW.session_id, NEW.id, NEW.reservation_id, NEW.agent_id, NEW.task_id, NEW.unit, NEW.currency, NEW.reserved,
        NEW.at, NEW.lease_id, NEW.expires_at)
       IS DISTINCT FROM
       (OLD.session_id, OLD.id, OLD.reservation_id, OLD.agent_id, OLD.task_id, OLD.unit, OLD.currency, OLD.reserved,
        OLD.at, OLD.lease_id, OLD.expires_at)
       OR (NEW.budget_ids IS DISTINCT FROM OLD.budget_ids AND pg_trigger_depth() = 1) THEN
        PERFORM blackboard.raise('BB005', 'The ledger is append-only: an entry is ended, never rewritten.',
                                 jsonb_build_object('noun', 'reservation', 'id', OLD.reservation_id));
    END IF;
    IF NEW.status = OLD.status THEN
        IF (NEW.settled, NEW.settled_at) IS DISTINCT FROM (OLD.settled, OLD.settled_at) THEN
            PERFORM blackboard.raise('BB003', 'What was settled stays; reserve and settle the difference.',
                                     jsonb_build_object('noun', 'reservation', 'id', OLD.reservation_id,
                                                        'status', OLD.status));
        END IF;
    ELSIF OLD.status = 'reserved' OR (OLD.status = 'expired' AND NEW.status = 'settled') THEN
        NEW.settled_at := blackboard.now();
    ELSE
        PERFORM blackboard.raise('BB003', format('This reservation was %s already.', OLD.status),
                                 jsonb_build_object('noun', 'reservation', 'id', OLD.reservation_id,
                                                    'status', OLD.status));
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION blackboard.product(p_a double precision, p_b double precision) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT CASE WHEN p_a > 1e-150 AND p_b > 1e-150 THEN p_a * p_b
                WHEN p_a = 0 OR p_b = 0 THEN 0
                WHEN log(p_a) + log(p_b) < -305 THEN 0
                ELSE p_a * p_b END
$$;

CREATE FUNCTION blackboard.progress_task(p_session_id uuid, p_id uuid, p_claim_id uuid, p_attempt integer, p_progress jsonb, p_agent_id text) RETURNS SETOF blackboard.tasks
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    PERFORM blackboard.held_task(p_session_id, p_id, p_claim_id, p_attempt);
    RETURN QUERY UPDATE blackboard.tasks t SET progress = p_progress
                 WHERE t.session_id = p_session_id AND t.id = p_id RETURNING t.*;
END
$$;

CREATE FUNCTION blackboard.proposals_admit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM blackboard.open_session(NEW.session_id);
    IF NEW.status <> 'open' THEN
        PERFORM blackboard.raise('BB003', 'A proposal starts open; ballots decide it.',
                                 jsonb_build_object('noun', 'proposal', 'status', NEW.status));
    END IF;
    NEW.ballots := 0;
    IF NEW.rule = 'threshold' THEN
        NEW.threshold := coalesce(NEW.threshold, 0.7);
    END IF;
    NEW.min_turnout := coalesce(NEW.min_turnout, CASE NEW.rule WHEN 'unanimous' THEN 1 ELSE 0.5 END);
    RETURN NEW;
END
$$;

CREATE FUNCTION blackboard.proposals_guard() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_tally blackboard.tallied;
    v_due boolean := OLD.deadline_at <= blackboard.now();
    v_reason text;
BEGIN
    IF (NEW.session_id, NEW.id, NEW.agent_id, NEW.title, NEW.body, NEW.rule, NEW.threshold, NEW.weighted,
        NEW.min_turnout, NEW.electorate, NEW.deadline_at, NEW.at_deadline, NEW.created_at)
       IS DISTINCT FROM
       (OLD.session_id, OLD.id, OLD.agent_id, OLD.title, OLD.body, OLD.rule, OLD.threshold, OLD.weighted,
        OLD.min_turnout, OLD.electorate, OLD.deadline_at, OLD.at_deadline, OLD.created_at) THEN
        PERFORM blackboard.raise('BB005', 'What is put to the vote cannot be changed; withdraw it and open another.',
                                 jsonb_build_object('noun', 'proposal', 'id', OLD.id));
    END IF;
    IF OLD.status <> 'open' THEN
        IF NEW IS DISTINCT FROM OLD THEN
            PERFORM blackboard.raise('BB003', format('The proposal is %s already; open another.', OLD.status),
                                     jsonb_build_object('noun', 'proposal', 'id', OLD.id, 'status', OLD.status));
        END IF;
        RETURN NEW;
    END IF;
    IF NEW.status = 'open' THEN
        NEW.ballots := greatest(NEW.ballots, OLD.ballots);
        RETURN NEW;
    END IF;
    v_tally := blackboard.tally(OLD.session_id, OLD.id);
    v_reason := CASE
        WHEN NEW.status = 'withdrawn' THEN 'withdrawn'
        WHEN NEW.status = 'expired' THEN
            CASE WHEN v_due AND OLD.at_deadline = 'escalate' THEN 'escalated' ELSE 'closed' END
        WHEN NEW.status = v_tally.outcome AND v_tally.certain THEN 'ballots'
        WHEN NEW.status = v_tally.outcome AND v_due AND OLD.at_deadline = 'tally' THEN
            CASE WHEN v_tally.turnout < OLD.min_turnout THEN 'turnout' ELSE 'deadline' END
        WHEN NEW.status = 'rejected' AND v_due AND OLD.at_deadline = 'reject' THEN 'deadline'
    END;
    IF v_reason IS NULL THEN
        PERFORM blackboard.raise('BB003',
            format('The ballots do not make this proposal %s; vote, withdraw it, or wait for its deadline.',
                   NEW.status),
            jsonb_build_object('noun', 'proposal', 'id', OLD.id, 'status', OLD.status));
    END IF;
    NEW.decided_at := blackboard.now();
    NEW.result := jsonb_build_object(
        'outcome', NEW.status, 'reason', v_reason,
        -- As the source has it: the decision is the thing proposed, once it is accepted.
        'decision', CASE WHEN NEW.status = 'accepted' AND jsonb_typeof(OLD.body -> 'action') = 'string'
                         THEN OLD.body ->> 'action' ELSE NEW.status END,
        'votes_for', v_tally.votes_for, 'votes_against', v_tally.votes_against,
        'abstentions', v_tally.abstentions, 'outstanding', v_tally.outstanding,
        'weight_for', v_tally.weight_for, 'weight_against', v_tally.weight_against,
        'weight_abstained', v_tally.weight_abstained, 'weight_total', v_tally.weight_total,
        'turnout', v_tally.turnout);
    RETURN NEW;
END
$$;

CREATE FUNCTION blackboard.propose_action(p_session_id uuid, p_id uuid, p_agent_id text, p_type text, p_target text, p_parameters jsonb DEFAULT '{}'::jsonb, p_requires_approval boolean DEFAULT true, p_approval text DEFAULT NULL::text, p_proposal_id uuid DEFAULT NULL::uuid, p_vote boolean DEFAULT false, p_vote_title text DEFAULT NULL::text, p_vote_body jsonb DEFAULT NULL::jsonb, p_vote_rule text DEFAULT 'majority'::text, p_vote_threshold double precision DEFAULT NULL::double precision, p_vote_weighted boolean DEFAULT false, p_vote_min_turnout double precision DEFAULT NULL::double precision, p_vote_deadline interval DEFAULT '00:05:00'::interval, p_vote_at_deadline text DEFAULT 'tally'::text, p_vote_electorate text[] DEFAULT NULL::text[]) RETURNS blackboard.actions
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_action blackboard.actions;
    v_proposal_id uuid := p_proposal_id;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    IF p_vote THEN
        v_proposal_id := md5(p_id::text || ' vote')::uuid;
        IF p_proposal_id IS NOT NULL OR NOT p_requires_approval THEN
            PERFORM blackboard.raise('BB002', 'A vote is opened for an action that requires approval and names no '
                                              'other proposal.', jsonb_build_object('field', 'vote'));
        END IF;
    ELSIF p_approval IN ('vote', 'both') AND p_proposal_id IS NULL THEN
        PERFORM blackboard.raise('BB002', 'This approval needs a vote: pass vote, or the id of a proposal.',
                                 jsonb_build_object('field', 'approval'));
    END IF;
    SELECT * INTO v_action FROM blackboard.actions WHERE session_id = p_session_id AND id = p_id;
    IF FOUND AND p_vote AND v_action.proposal_id IS DISTINCT FROM v_proposal_id THEN
        PERFORM blackboard.raise('BB004', 'An action with this id was proposed with other content; use a new id.',
                                 jsonb_build_object('noun', 'action', 'id', p_id));
    END IF;
    IF p_vote THEN
        PERFORM blackboard.open_proposal(
            p_session_id, v_proposal_id, p_agent_id,
            coalesce(p_vote_title, left(concat_ws(' ', p_type, nullif(p_target, '')), 500)),
            coalesce(p_vote_body, jsonb_build_object('action', p_type, 'target', p_target, 'parameters', p_parameters)),
            p_vote_rule, p_vote_threshold, p_vote_weighted, p_vote_min_turnout, p_vote_deadline, p_vote_at_deadline,
            p_vote_electorate);
    END IF;
    IF v_action.id IS NULL THEN
        PERFORM blackboard.open_session(p_session_id);
        PERFORM blackboard.current_member(p_session_id, p_agent_id);
        INSERT INTO blackboard.actions (session_id, id, agent_id, type, target, parameters, requires_approval, approval,
                                        proposal_id)
        VALUES (p_session_id, p_id, p_agent_id, p_type, p_target, p_parameters, p_requires_approval, p_approval,
                v_proposal_id)
        ON CONFLICT (session_id, id) DO NOTHING;
        SELECT * INTO v_action FROM blackboard.actions WHERE session_id = p_session_id AND id = p_id;
    END IF;
    IF (v_action.agent_id, v_action.type, v_action.target, v_action.parameters, v_action.requires_approval,
        v_action.proposal_id)
       IS DISTINCT FROM (p_agent_id, p_type, p_target, p_parameters, p_requires_approval, v_proposal_id)
       -- An escalated vote may have changed approval since.
       OR (p_approval IS NOT NULL AND v_action.approval NOT IN (p_approval, 'human')) THEN
        PERFORM blackboard.raise('BB004', 'An action with this id was proposed with other content; use a new id.',
                                 jsonb_build_object('noun', 'action', 'id', p_id));
    END IF;
    RETURN v_action;
END
$$;

CREATE FUNCTION blackboard.propose_hypothesis(p_session_id uuid, p_id uuid, p_agent_id text, p_statement text, p_confidence double precision DEFAULT 0.5) RETURNS blackboard.hypotheses
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_hypothesis blackboard.hypotheses;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    p_id := coalesce(p_id, gen_random_uuid());
    SELECT * INTO v_hypothesis FROM blackboard.hypotheses h WHERE h.session_id = p_session_id AND h.id = p_id;
    IF NOT FOUND THEN
        PERFORM blackboard.open_session(p_session_id);
        INSERT INTO blackboard.hypotheses (session_id, id, agent_id, statement, prior)
        VALUES (p_session_id, p_id, p_agent_id, p_statement, p_confidence)
        ON CONFLICT (session_id, id) DO NOTHING
        RETURNING * INTO v_hypothesis;
        IF FOUND THEN
            RETURN v_hypothesis;
        END IF;
        SELECT * INTO v_hypothesis FROM blackboard.hypotheses h WHERE h.session_id = p_session_id AND h.id = p_id;
    END IF;
    IF (v_hypothesis.agent_id, v_hypothesis.statement, v_hypothesis.prior)
       IS DISTINCT FROM (p_agent_id, p_statement, p_confidence) THEN
        PERFORM blackboard.raise('BB004',
            'A hypothesis with this id was proposed with other content; use a new id.',
            jsonb_build_object('noun', 'hypothesis', 'id', p_id));
    END IF;
    RETURN v_hypothesis;
END
$$;

CREATE FUNCTION blackboard.proposed_hypothesis(p_session_id uuid, p_id uuid) RETURNS blackboard.hypotheses
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    v_hypothesis blackboard.hypotheses;
BEGIN
    SELECT * INTO v_hypothesis FROM blackboard.hypotheses h WHERE h.session_id = p_session_id AND h.id = p_id;
    IF NOT FOUND THEN
        PERFORM blackboard.no_hypothesis(p_id);
    ELSIF v_hypothesis.status <> 'proposed' THEN
        PERFORM blackboard.raise('BB003', format('This hypothesis is %s and no longer argued over; propose it anew.',
                                                 v_hypothesis.status),
                                 jsonb_build_object('noun', 'hypothesis', 'id', p_id, 'status', v_hypothesis.status));
    END IF;
    RETURN v_hypothesis;
END
$$;

CREATE FUNCTION blackboard.prunable_tasks(p_session_id uuid, p_ids uuid[], p_before timestamp with time zone, p_statuses text[]) RETURNS uuid[]
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

CREATE FUNCTION blackboard.prune_events(p_session_id uuid, p_before timestamp with time zone, p_limit integer DEFAULT NULL::integer) RETURNS bigint
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
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

CREATE FUNCTION blackboard.prune_flows(p_session_id uuid, p_before timestamp with time zone, p_statuses text[], p_after uuid, p_scan integer, p_dry_run boolean, p_actor text, OUT next uuid, OUT pruned integer) RETURNS record
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

CREATE FUNCTION blackboard.prune_tasks(p_session_id uuid, p_before timestamp with time zone, p_statuses text[], p_after uuid, p_scan integer, p_dry_run boolean, p_actor text, OUT next uuid, OUT pruned integer) RETURNS record
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

CREATE FUNCTION blackboard.pull_held(p_session_id uuid, p_capabilities text[], p_limit integer) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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
            IF blackboard.try_counters(p_session_id, ARRAY[v_usage.limit_id], ARRAY[v_usage.key]) IS NOT NULL THEN
                PERFORM blackboard.forget_waiting(p_session_id, v_usage.limit_id, v_usage.key);
            END IF;
        END IF;
        v_total := v_total + least(v_usage.free, p_limit - v_total) - v_left;
        EXIT WHEN v_total >= p_limit;
    END LOOP;
    RETURN v_total > 0;
END
$$;

CREATE FUNCTION blackboard.raise(p_code text, p_message text, p_facts jsonb DEFAULT '{}'::jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = p_code, MESSAGE = p_message, DETAIL = p_facts::text;
END
$$;

CREATE FUNCTION blackboard.read_events(p_session_id uuid, p_cursor text, p_limit integer, p_topics text[] DEFAULT NULL::text[], p_subject_id uuid DEFAULT NULL::uuid) RETURNS TABLE(cursor text, more boolean, events jsonb)
    LANGUAGE plpgsql STABLE
    AS $_$
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
        IF v_pruned IS NOT NULL AND (v_xmax <= v_pruned
                                     OR blackboard.any_pruned(p_session_id, v_xip)) THEN
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
$_$;

CREATE FUNCTION blackboard.reason(p_code text, p_message text, p_details jsonb DEFAULT '{}'::jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT pg_catalog.jsonb_build_object('code', p_code, 'message', p_message, 'details', p_details) $$;

CREATE FUNCTION blackboard.record_delete() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT coalesce(o.doc ->> 'session_id', o.doc ->> 'id')::uuid, TG_ARGV[0] || '.deleted',
           (o.doc ->> TG_ARGV[1])::uuid, o.doc
    FROM (SELECT to_jsonb(r) AS doc FROM old_rows r) o;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.record_pruned_flows() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT o.session_id, 'flow.pruned', o.id, jsonb_build_object('name', o.name, 'status', o.status) FROM old_rows o;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.record_pruned_tasks() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT o.session_id, 'task.pruned', o.id, jsonb_build_object('type', o.type, 'status', o.status) FROM old_rows o;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.recount_corroborations() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    WITH counted AS (
        UPDATE blackboard.findings f SET corroborations = f.corroborations - c.less
        FROM (SELECT o.session_id, o.finding_id, count(*)::integer AS less FROM old_rows o GROUP BY 1, 2) c
        WHERE f.session_id = c.session_id AND f.id = c.finding_id
        RETURNING f.session_id, f.id, f.corroborations
    )
    INSERT INTO blackboard.events (session_id, type, subject_id, data)
    SELECT f.session_id, 'finding.updated', f.id, jsonb_build_object('corroborations', f.corroborations)
    FROM counted f;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.redrive_task(p_session_id uuid, p_id uuid, p_actor text, p_key text DEFAULT NULL::text) RETURNS SETOF blackboard.tasks
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_task blackboard.tasks;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    IF NOT blackboard.first_time(p_session_id, p_key, 'redrive_task', jsonb_build_array(p_id)) THEN
        RETURN QUERY SELECT t.* FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = p_id;
        RETURN;
    END IF;
    PERFORM blackboard.open_session(p_session_id);
    SELECT * INTO v_task FROM blackboard.tasks WHERE session_id = p_session_id AND id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no task %s in this session.', p_id),
                                 jsonb_build_object('noun', 'task', 'id', p_id));
    END IF;
    IF v_task.status NOT IN ('failed', 'dead') THEN
        PERFORM blackboard.raise('BB003', format('Task %s is %s; only failed and dead tasks can be redriven.',
                                                 p_id, v_task.status),
                                 jsonb_build_object('noun', 'task', 'id', p_id, 'status', v_task.status));
    END IF;
    RETURN QUERY
    UPDATE blackboard.tasks t
    SET status = CASE WHEN t.blockers > 0 THEN 'blocked' ELSE 'pending' END,
        position = CASE WHEN t.blockers = 0 THEN nextval('blackboard.task_positions') END,
        completed_at = NULL, error = NULL, cancel_requested = false, released = t.attempt
    WHERE t.session_id = p_session_id AND t.id = p_id
    RETURNING t.*;
END
$$;

CREATE FUNCTION blackboard.redrive_tasks(p_session_id uuid, p_type text, p_error_code text, p_before timestamp with time zone, p_limit integer, p_dry_run boolean, p_actor text, p_key text DEFAULT NULL::text) RETURNS SETOF uuid
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_ids uuid[];
BEGIN
    PERFORM blackboard.act_as(p_actor);
    -- Not by p_before, which is counted back from the moment of the call.
    IF NOT p_dry_run AND NOT blackboard.first_time(p_session_id, p_key, 'redrive_tasks',
                                                   jsonb_build_array(p_type, p_error_code, p_limit)) THEN
        RETURN QUERY
        SELECT i.id::uuid FROM blackboard.requests r,
             LATERAL jsonb_array_elements_text(r.result) WITH ORDINALITY i (id, n)
        WHERE r.session_id = p_session_id AND r.key = p_key ORDER BY i.n;
        RETURN;
    END IF;
    PERFORM blackboard.open_session(p_session_id);
    IF p_dry_run THEN
        RETURN QUERY
        SELECT t.id FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.status = 'dead' AND (p_type IS NULL OR t.type = p_type)
          AND (p_error_code IS NULL OR t.error ->> 'code' = p_error_code)
          AND (p_before IS NULL OR t.completed_at < p_before)
        ORDER BY t.completed_at, t.id LIMIT p_limit;
        RETURN;
    END IF;
    WITH found AS MATERIALIZED (
        SELECT t.id, t.completed_at FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.status = 'dead' AND (p_type IS NULL OR t.type = p_type)
          AND (p_error_code IS NULL OR t.error ->> 'code' = p_error_code)
          AND (p_before IS NULL OR t.completed_at < p_before)
        ORDER BY t.completed_at, t.id LIMIT p_limit FOR UPDATE SKIP LOCKED
    ), redriven AS (
        UPDATE blackboard.tasks t
        SET status = CASE WHEN t.blockers > 0 THEN 'blocked' ELSE 'pending' END,
            position = CASE WHEN t.blockers = 0 THEN nextval('blackboard.task_positions') END,
            completed_at = NULL, error = NULL, cancel_requested = false, released = t.attempt
        FROM found f WHERE t.session_id = p_session_id AND t.id = f.id
        RETURNING t.id, f.completed_at AS died_at)
    SELECT array_agg(r.id ORDER BY r.died_at, r.id) INTO v_ids FROM redriven r;
    UPDATE blackboard.requests r SET result = coalesce(to_jsonb(v_ids), '[]')
    WHERE r.session_id = p_session_id AND r.key = p_key;
    RETURN QUERY SELECT i.id FROM unnest(v_ids) WITH ORDINALITY i (id, n) ORDER BY i.n;
END
$$;

CREATE FUNCTION blackboard.refresh_blockers(p_session_id uuid, p_children uuid[]) RETURNS void
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_custom_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET enable_nestloop TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
BEGIN
    PERFORM 1
    FROM (SELECT u.id FROM unnest(p_children) u (id) ORDER BY u.id OFFSET 0) x
    CROSS JOIN LATERAL (SELECT FROM blackboard.tasks t
                        WHERE t.session_id = p_session_id AND t.id = x.id FOR UPDATE OFFSET 0) t;
    WITH moved AS MATERIALIZED (
        SELECT o.place, e.waiting, e.failed,
               -- Ready ones too: a task that is added after its parent failed must not run.
               CASE WHEN o.status NOT IN ('blocked', 'awaiting_approval', 'scheduled', 'held', 'pending', 'assigned')
                    THEN o.status
                    WHEN e.failed IS NOT NULL THEN 'cancelled'
                    WHEN o.status = 'blocked' AND e.waiting = 0 THEN
                        CASE WHEN o.run_at > blackboard.now() THEN 'scheduled'
                             WHEN o.assigned_to IS NOT NULL AND o.claim_id IS NULL THEN 'assigned' ELSE 'pending' END
                    ELSE o.status END AS status
        FROM unnest(p_children) c (id)
        CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE d.state = 'waiting')::integer AS waiting,
                   array_agg(d.depends_on_id) FILTER (WHERE d.state = 'failed') AS failed
            FROM blackboard.task_dependencies d
            WHERE d.session_id = p_session_id AND d.task_id = c.id) e
        CROSS JOIN LATERAL (
            SELECT t.ctid AS place, t.status, t.run_at, t.assigned_to, t.claim_id FROM blackboard.tasks t
            WHERE t.session_id = p_session_id AND t.id = c.id OFFSET 0) o
    )
    UPDATE blackboard.tasks t
    SET blockers = m.waiting, status = m.status,
        position = CASE WHEN m.status IN ('pending', 'assigned')
                        THEN coalesce(t.position, nextval('blackboard.task_positions')) END,
        completed_at = CASE WHEN m.status = 'cancelled' THEN blackboard.now() ELSE t.completed_at END,
        error = CASE WHEN m.status = 'cancelled' AND t.status <> 'cancelled'
                     THEN jsonb_build_object('code', 'dependency_failed',
                                             'message', 'A task that this one depends on did not complete.',
                                             'depends_on', to_jsonb(m.failed))
                     ELSE t.error END
    FROM moved m
    WHERE t.ctid = m.place AND (t.blockers, t.status) IS DISTINCT FROM (m.waiting, m.status);
END
$$;

CREATE FUNCTION blackboard.refresh_gated(p_session_id uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM blackboard.refresh_gated(s.session_id) FROM (SELECT DISTINCT session_id FROM old_rows ORDER BY 1) s;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.refuse_budget(p_session_id uuid, p_agent_id text, p_facts jsonb) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE FUNCTION blackboard.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF TG_OP = 'DELETE' AND pg_catalog.current_setting('blackboard.pruning', true) = 'on' THEN
        RETURN NULL;
    END IF;
    PERFORM blackboard.raise('BB005',
        format('%s on blackboard.%s is refused: history is append-only; prune it with blackboard.prune_events().',
               TG_OP, TG_TABLE_NAME),
        jsonb_build_object('table', TG_TABLE_NAME, 'operation', TG_OP));
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.refuse_edge_of_stage() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_task uuid;
BEGIN
    SELECT n.task_id INTO v_task FROM new_rows n
    JOIN blackboard.flow_tasks f ON f.session_id = n.session_id AND f.task_id = n.task_id AND f.kind = 'stage' LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB002', format('Task %s is a stage of a flow: change what it depends on with '
                                                 'flows.modify(rewire=…).', v_task),
                                 jsonb_build_object('field', 'depends_on', 'id', v_task));
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.refuse_finished_flow(p_flow blackboard.flows) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF p_flow.finished_at IS NOT NULL THEN
        PERFORM blackboard.raise('BB003', format('Flow %s is %s and does not change any more.', p_flow.id, p_flow.status),
                                 jsonb_build_object('noun', 'flow', 'id', p_flow.id, 'status', p_flow.status,
                                                    'version', p_flow.version));
    END IF;
END
$$;

CREATE FUNCTION blackboard.refuse_flow_change() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM blackboard.raise('BB005', format('%s on blackboard.%s is refused: flows are changed by their verbs, such as '
                                             'blackboard.create_flow() and blackboard.modify_flow().',
                                             TG_OP, TG_TABLE_NAME),
                             jsonb_build_object('table', TG_TABLE_NAME, 'operation', TG_OP));
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION blackboard.refuse_flow_change() IS 'But within functions that have xmloption = document, which are those that run flows. The setting stands for a flag because only a superuser may name one of his own in a function.';

CREATE FUNCTION blackboard.refuse_immutable() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM blackboard.raise('BB012', format('%s of a row of blackboard.%s never change.', TG_ARGV[0], TG_TABLE_NAME),
                             jsonb_build_object('table', TG_TABLE_NAME, 'field', TG_ARGV[0]));
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.refuse_other_content(p_session_id uuid, p_ids uuid[], p_types text[], p_capabilities text[], p_priorities smallint[], p_parameters jsonb[], p_options jsonb[], p_added integer) RETURNS uuid[]
    LANGUAGE plpgsql STABLE
    SET enable_seqscan TO 'off'
    AS $$
DECLARE
    v_new uuid[];
    v_id uuid;
    v_fields text[];
BEGIN
    v_new := array(SELECT e.subject_id FROM blackboard.events e
                   WHERE e.session_id = p_session_id AND e.tx = blackboard.current_tx() AND e.type = 'task.created'
                   ORDER BY e.seq DESC LIMIT p_added);
    WITH said AS MATERIALIZED (
        SELECT x.id, x.n, blackboard.task_content(x.type, x.capability, x.priority, x.parameters, x.options) AS content
        FROM unnest(p_ids, p_types, p_capabilities, p_priorities, p_parameters, p_options)
                 WITH ORDINALITY x (id, type, capability, priority, parameters, options, n)
    ), compared AS (
        SELECT s.id, s.n, s.content,
               CASE WHEN s.id = ANY (v_new) THEN first_value(s.content) OVER (PARTITION BY s.id ORDER BY s.n)
                    ELSE (SELECT blackboard.added_content(t, s.content) FROM blackboard.tasks t
                          WHERE t.session_id = p_session_id AND t.id = s.id) END AS found
        FROM said s)
    SELECT c.id, array(SELECT w.key FROM jsonb_each(c.content) w
                       WHERE w.value IS DISTINCT FROM c.found -> w.key ORDER BY w.key)
    INTO v_id, v_fields
    FROM compared c WHERE c.content <> c.found ORDER BY c.n LIMIT 1;
    IF FOUND THEN
        PERFORM blackboard.raise('BB004', format('The task id %s was used before with other content (%s); use a new id.',
                                                 v_id, array_to_string(v_fields, ', ')),
                                 jsonb_build_object('noun', 'task', 'id', v_id, 'fields', to_jsonb(v_fields)));
    END IF;
    RETURN v_new;
END
$$;

CREATE FUNCTION blackboard.refuse_rewrite() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM blackboard.raise('BB005', format('Rows of blackboard.%s are never changed: %s.', TG_TABLE_NAME, TG_ARGV[0]),
                             jsonb_build_object('table', TG_TABLE_NAME, 'operation', TG_OP));
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.refuse_task(p_rule text) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE check_violation USING
        MESSAGE = format('new row for relation "tasks" violates check constraint "%s"', p_rule),
        SCHEMA = 'blackboard', TABLE = 'tasks', CONSTRAINT = p_rule;
END
$$;

CREATE FUNCTION blackboard.register_agent(p_id text, p_capabilities text[], p_expertise jsonb, p_capacity integer, p_role text) RETURNS blackboard.agents
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_agent blackboard.agents;
BEGIN
    -- NULL leaves what is declared already (or takes the column's default).
    PERFORM blackboard.act_as(p_id);
    INSERT INTO blackboard.agents AS a (id, capabilities, expertise, capacity, role)
    VALUES (p_id, coalesce(p_capabilities, '{}'), coalesce(p_expertise, '{}'), coalesce(p_capacity, 1),
            coalesce(p_role, 'member'))
    ON CONFLICT (id) DO UPDATE
        SET capabilities = coalesce(p_capabilities, a.capabilities), expertise = coalesce(p_expertise, a.expertise),
            capacity = coalesce(p_capacity, a.capacity), role = coalesce(p_role, a.role)
        WHERE (a.capabilities, a.expertise, a.capacity, a.role) IS DISTINCT FROM
              (coalesce(p_capabilities, a.capabilities), coalesce(p_expertise, a.expertise),
               coalesce(p_capacity, a.capacity), coalesce(p_role, a.role));
    SELECT * INTO v_agent FROM blackboard.agents WHERE id = p_id;
    RETURN v_agent;
END
$$;

CREATE FUNCTION blackboard.reject_action(p_session_id uuid, p_id uuid, p_by text, p_reason text) RETURNS blackboard.actions
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_action blackboard.actions;
BEGIN
    PERFORM blackboard.close_due_proposals(p_session_id);
    PERFORM blackboard.act_as(p_by);
    v_action := blackboard.lock_action(p_session_id, p_id);
    IF v_action.rejected_by = p_by THEN
        RETURN v_action;
    END IF;
    PERFORM blackboard.open_session(p_session_id);
    IF v_action.status <> 'awaiting_approval' THEN
        PERFORM blackboard.raise('BB003', format('The action is %s and awaits no approval.', v_action.status),
                                 jsonb_build_object('noun', 'action', 'id', p_id, 'status', v_action.status));
    END IF;
    UPDATE blackboard.actions SET rejected_by = p_by, approval_reason = p_reason, status = 'rejected'
    WHERE session_id = p_session_id AND id = p_id
    RETURNING * INTO v_action;
    RETURN v_action;
END
$$;

CREATE FUNCTION blackboard.release_budget(p_session_id uuid, p_id uuid, p_actor text) RETURNS SETOF blackboard.spend
    LANGUAGE plpgsql
    SET xmlbinary TO 'hex'
    AS $$
DECLARE
    v_statuses text[];
BEGIN
    PERFORM blackboard.act_as(p_actor);
    SELECT array_agg(DISTINCT l.status) INTO v_statuses FROM blackboard.lock_reservation(p_session_id, p_id) l;
    IF 'settled' = ANY (v_statuses) THEN
        PERFORM blackboard.raise('BB003', 'This reservation was settled; what was spent cannot be taken back.',
                                 jsonb_build_object('noun', 'reservation', 'id', p_id, 'status', 'settled'));
    END IF;
    UPDATE blackboard.spend s SET status = 'released'
    WHERE s.session_id = p_session_id AND s.reservation_id = p_id AND s.status = 'reserved';
    RETURN QUERY SELECT * FROM blackboard.spend s
                 WHERE s.session_id = p_session_id AND s.reservation_id = p_id ORDER BY s.unit;
END
$$;

CREATE FUNCTION blackboard.release_lock(p_session_id uuid, p_name text, p_agent_id text, p_token bigint) RETURNS blackboard.locks
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_lock blackboard.locks;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    PERFORM blackboard.commit_synchronously();
    SELECT * INTO v_lock FROM blackboard.locks WHERE session_id = p_session_id AND name = p_name FOR NO KEY UPDATE;
    IF v_lock.released_token = p_token AND p_token > 0 THEN
        RETURN v_lock;
    END IF;
    v_lock := blackboard.held_lock(p_session_id, p_name, p_agent_id, p_token);
    UPDATE blackboard.locks
    SET holder = NULL, lease_id = NULL, request_id = NULL, acquired_at = NULL, expires_at = NULL,
        released_token = p_token
    WHERE session_id = p_session_id AND id = v_lock.id;
    RETURN blackboard.advance_lock(p_session_id, v_lock.id);
END
$$;

CREATE FUNCTION blackboard.release_stages(p_session_id uuid, p_flow_id uuid, p_stages text[]) RETURNS void
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
BEGIN
    WITH n AS MATERIALIZED (
        SELECT w.*, nextval('blackboard.task_positions') AS position
        FROM (SELECT o.place, f.id AS flow_id, f.name AS flow_name,
                     (o.task).status = 'blocked' AND f.status = 'paused' AS paused,
                     CASE WHEN (o.task).status <> 'blocked' THEN (o.task).status
                          WHEN f.status = 'paused' THEN 'held'
                          ELSE blackboard.next_status(jsonb_populate_record(o.task, '{"blockers": 0}')) END AS status
              FROM (SELECT DISTINCT u.name FROM unnest(p_stages) u (name)) x
              CROSS JOIN LATERAL (
                  SELECT s.flow_id, s.task_id, s.ordinal FROM blackboard.flow_stages s
                  WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = x.name OFFSET 0) s
              CROSS JOIN LATERAL (
                  SELECT t.ctid AS place, t AS task FROM blackboard.tasks t
                  WHERE t.session_id = p_session_id AND t.id = s.task_id AND t.completed_at IS NULL OFFSET 0) o
              CROSS JOIN LATERAL (
                  SELECT l.id, l.name, l.status FROM blackboard.flows l
                  WHERE l.session_id = p_session_id AND l.id = s.flow_id OFFSET 0) f
              ORDER BY s.ordinal) w)
    UPDATE blackboard.tasks t
    SET blockers = 0, status = n.status, position = CASE WHEN n.status IN ('pending', 'assigned') THEN n.position END,
        held = CASE WHEN n.paused THEN blackboard.held_by_flow(n.flow_id, n.flow_name, NULL) ELSE t.held END
    FROM n WHERE t.ctid = n.place;
END
$$;

CREATE FUNCTION blackboard.release_task(p_session_id uuid, p_id uuid, p_claim_id uuid, p_attempt integer, p_agent_id text) RETURNS SETOF blackboard.tasks
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_task blackboard.tasks;
BEGIN
    PERFORM blackboard.release_tasks(p_session_id, ARRAY[p_id], ARRAY[p_claim_id], ARRAY[p_attempt], NULL, NULL, p_agent_id);
    IF NOT FOUND THEN
        -- Says why not.
        PERFORM blackboard.held_task(p_session_id, p_id, p_claim_id, p_attempt);
    END IF;
    SELECT * INTO v_task FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = p_id;
    IF v_task.completed_at IS NOT NULL THEN
        -- The step of many leaves that to its client.
        PERFORM blackboard.hint(p_session_id, 'tasks.changed');
    END IF;
    RETURN NEXT v_task;
END
$$;

CREATE FUNCTION blackboard.release_tasks(p_session_id uuid, p_ids uuid[], p_claim_ids uuid[], p_attempts integer[], p_delays interval[], p_errors jsonb[], p_agent_id text, p_unstarted boolean[] DEFAULT NULL::boolean[]) RETURNS TABLE(id uuid, status text)
    LANGUAGE plpgsql
    SET xmlbinary TO 'hex'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := blackboard.now();
    v_done integer;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    PERFORM 1 FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = ANY (p_ids)
    ORDER BY t.id FOR UPDATE;
    RETURN QUERY
    WITH x AS MATERIALIZED (
        SELECT p_session_id AS session_id, u.id, u.claim_id, u.attempt, u.delay, u.error,
               coalesce(u.unstarted, false) AS unstarted,
               -- What it was before this claim; no row says that.
               CASE WHEN u.unstarted THEN (
                   SELECT e.data ->> 'status' FROM blackboard.events e
                   WHERE e.session_id = p_session_id AND e.subject_id = u.id AND e.data ->> 'status' <> 'running'
                   ORDER BY e.seq DESC LIMIT 1) END IS NOT DISTINCT FROM 'assigned' AS assigned
        FROM unnest(p_ids, p_claim_ids, p_attempts, p_delays, p_errors, p_unstarted)
                 u (id, claim_id, attempt, delay, error, unstarted)
        LIMIT cardinality(p_ids))
    UPDATE blackboard.tasks t
    SET status = CASE WHEN t.cancel_requested THEN 'cancelled' WHEN t.blockers > 0 THEN 'blocked'
                      WHEN x.delay IS NOT NULL THEN 'scheduled' WHEN x.assigned THEN 'assigned' ELSE 'pending' END,
        position = CASE WHEN NOT t.cancel_requested AND t.blockers = 0 AND x.delay IS NULL
                        THEN nextval('blackboard.task_positions') END,
        run_at = CASE WHEN NOT t.cancel_requested AND x.delay IS NOT NULL THEN v_now + x.delay ELSE t.run_at END,
        completed_at = CASE WHEN t.cancel_requested THEN v_now END,
        error = CASE WHEN t.cancel_requested
                     THEN jsonb_build_object('code', 'cancelled', 'message', 'It was asked to stop, and did.',
                                             'attempt', x.attempt, 'agent_id', p_agent_id)
                     WHEN x.error IS NOT NULL
                     THEN x.error || jsonb_build_object('attempt', x.attempt, 'agent_id', p_agent_id) END,
        -- A task without a claim was never begun, and is for whom it names.
        claim_id = CASE WHEN t.cancel_requested OR NOT x.unstarted THEN t.claim_id END,
        assigned_to = CASE WHEN t.cancel_requested OR NOT x.unstarted OR x.assigned THEN t.assigned_to END,
        lease_id = NULL, deadline_at = NULL, started_at = NULL, released = t.released + 1
    FROM x
    WHERE t.session_id = x.session_id AND t.id = x.id AND t.claim_id = x.claim_id AND t.attempt = x.attempt
      AND t.status = 'running'
    RETURNING t.id, t.status;
    GET DIAGNOSTICS v_done = ROW_COUNT;
    IF v_done = cardinality(p_ids) THEN
        RETURN;
    END IF;
    -- The same call again: history knows how that attempt ended.
    RETURN QUERY
    SELECT x.id, e.data ->> 'status'
    FROM unnest(p_ids, p_claim_ids, p_attempts, p_errors) x (id, claim_id, attempt, error)
    JOIN blackboard.tasks t ON t.session_id = p_session_id AND t.id = x.id
    JOIN LATERAL (
        SELECT w.type, w.data FROM blackboard.events w
        WHERE w.session_id = p_session_id AND w.subject_id = x.id
          AND w.type IN ('task.released', 'task.retried', 'task.lapsed', 'task.cancelled', 'task.completed', 'task.failed',
                         'task.dead')
          AND w.seq > (SELECT max(a.seq) FROM blackboard.events a
                       WHERE a.session_id = p_session_id AND a.subject_id = x.id AND a.type = 'task.assigned'
                         AND a.data -> 'attempt' = to_jsonb(x.attempt))
        ORDER BY w.seq LIMIT 1) e
      ON (e.type = 'task.released' AND x.error IS NULL)
      OR (e.type = 'task.retried' AND x.error IS NOT NULL
          AND e.data #> '{error,code}' IS NOT DISTINCT FROM x.error -> 'code')
      OR (e.type = 'task.cancelled' AND e.data #>> '{error,code}' = 'cancelled')
    -- Of this claim, where the row still tells.
    WHERE t.attempt <> x.attempt OR t.claim_id IS NULL OR t.claim_id = x.claim_id;
END
$$;

CREATE FUNCTION blackboard.remove_budget(p_session_id uuid, p_unit text, p_agent_id text, p_task_id uuid, p_actor text) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    DELETE FROM blackboard.budgets b
    WHERE b.session_id = p_session_id AND b.agent_id IS NOT DISTINCT FROM p_agent_id
      AND b.task_id IS NOT DISTINCT FROM p_task_id AND b.unit = p_unit;
    RETURN FOUND;
END
$$;

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

CREATE FUNCTION blackboard.remove_schedule(p_session_id uuid, p_id uuid, p_actor text) RETURNS SETOF blackboard.schedules
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM blackboard.act_as(p_actor);
    UPDATE blackboard.schedules s SET removed_at = blackboard.now()
    WHERE s.session_id = p_session_id AND s.id = p_id AND s.removed_at IS NULL;
    RETURN QUERY SELECT * FROM blackboard.schedules s WHERE s.session_id = p_session_id AND s.id = p_id;
END
$$;

CREATE FUNCTION blackboard.renew_lease(p_lease_id uuid) RETURNS integer
    LANGUAGE sql
    AS $$ SELECT blackboard.renew_lease(p_lease_id, NULL) $$;

CREATE FUNCTION blackboard.renew_lease(p_lease_id uuid, p_claims_since uuid) RETURNS integer
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    AS $$
BEGIN
    UPDATE blackboard.leases SET expires_at = blackboard.now() + term, suspected_at = NULL
    WHERE id = p_lease_id AND lapsed_at IS NULL;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM blackboard.tend_leases();
    IF p_claims_since IS NULL THEN
        RETURN (SELECT count(*)::integer FROM blackboard.tasks t WHERE t.lease_id = p_lease_id);
    END IF;
    RETURN (SELECT count(*)::integer FROM blackboard.tasks t
            WHERE t.lease_id = p_lease_id AND t.claim_id >= p_claims_since);
END
$$;

CREATE FUNCTION blackboard.renew_lock(p_session_id uuid, p_name text, p_agent_id text, p_token bigint, p_ttl interval) RETURNS blackboard.locks
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_lock blackboard.locks;
BEGIN
    IF p_ttl <= interval '0' THEN
        PERFORM blackboard.raise('BB002', 'A lock''s ttl must be positive.', jsonb_build_object('field', 'ttl'));
    END IF;
    PERFORM blackboard.act_as(p_agent_id);
    v_lock := blackboard.held_lock(p_session_id, p_name, p_agent_id, p_token);
    UPDATE blackboard.locks SET expires_at = blackboard.now() + p_ttl
    WHERE session_id = p_session_id AND id = v_lock.id
    RETURNING * INTO v_lock;
    RETURN v_lock;
END
$$;

CREATE FUNCTION blackboard.repair_leases() RETURNS void
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    AS $$
DECLARE
    v_leases uuid[];
BEGIN
    -- One walk over what is leased, which is long while an old snapshot is held.
    v_leases := array(SELECT DISTINCT t.lease_id FROM blackboard.tasks t WHERE t.lease_id IS NOT NULL);
    INSERT INTO blackboard.leases (id, host, term, expires_at, lapsed_at)
    SELECT u.id, 'unknown', interval '1 second', blackboard.now(), blackboard.now()
    FROM unnest(v_leases) u (id) WHERE NOT EXISTS (SELECT FROM blackboard.leases l WHERE l.id = u.id)
    ON CONFLICT DO NOTHING;
    UPDATE blackboard.leases l SET swept_at = NULL WHERE l.swept_at IS NOT NULL AND l.id = ANY (v_leases);
END
$$;

CREATE FUNCTION blackboard.report_finding(p_session_id uuid, p_id uuid, p_agent_id text, p_type text, p_content jsonb, p_category text DEFAULT 'observation'::text, p_confidence double precision DEFAULT NULL::double precision, p_evidence jsonb DEFAULT '[]'::jsonb, p_tags text[] DEFAULT '{}'::text[], p_provenance jsonb DEFAULT '{}'::jsonb, p_derived_from uuid[] DEFAULT '{}'::uuid[]) RETURNS blackboard.findings
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_finding blackboard.findings;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    p_id := coalesce(p_id, gen_random_uuid());
    LOOP
        v_finding := blackboard.reported_finding(p_session_id, p_id, p_agent_id, p_type, p_content, p_category,
                                                 p_confidence, p_evidence, p_tags, p_provenance, p_derived_from);
        IF v_finding.id IS NOT NULL THEN
            RETURN v_finding;
        END IF;
        PERFORM blackboard.open_session(p_session_id);
        -- Waits for whoever reports the same at this moment.
        INSERT INTO blackboard.findings (session_id, id, agent_id, category, type, content, confidence, evidence, tags,
                                         provenance, derived_from)
        VALUES (p_session_id, p_id, p_agent_id, p_category, p_type, p_content, p_confidence, p_evidence, p_tags,
                p_provenance, p_derived_from)
        ON CONFLICT DO NOTHING
        RETURNING * INTO v_finding;
        IF FOUND THEN
            RETURN v_finding;
        END IF;
        -- Held until the corroboration stands, lest the finding be retracted in between.
        SELECT * INTO v_finding FROM blackboard.findings f
        WHERE f.session_id = p_session_id AND f.status = 'active'
          AND f.fingerprint = blackboard.finding_fingerprint(p_category, p_type, p_content)
        FOR NO KEY UPDATE;
        IF FOUND THEN
            IF v_finding.agent_id <> p_agent_id THEN
                INSERT INTO blackboard.corroborations (session_id, finding_id, agent_id, report_id, confidence,
                                                       evidence)
                VALUES (p_session_id, v_finding.id, p_agent_id, p_id, p_confidence, p_evidence)
                ON CONFLICT DO NOTHING;
                SELECT * INTO v_finding FROM blackboard.findings f
                WHERE f.session_id = p_session_id AND f.id = v_finding.id;
            END IF;
            RETURN v_finding;
        END IF;
        -- Hidden since, or the conflict was about the id: look again.
    END LOOP;
END
$$;

CREATE FUNCTION blackboard.reported_finding(p_session_id uuid, p_id uuid, p_agent_id text, p_type text, p_content jsonb, p_category text, p_confidence double precision, p_evidence jsonb, p_tags text[], p_provenance jsonb, p_derived_from uuid[]) RETURNS blackboard.findings
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    v_finding blackboard.findings;
    v_corroboration blackboard.corroborations;
    v_same boolean;
BEGIN
    SELECT * INTO v_finding FROM blackboard.findings f WHERE f.session_id = p_session_id AND f.id = p_id;
    IF FOUND THEN
        v_same := (v_finding.agent_id, v_finding.category, v_finding.type, v_finding.content, v_finding.confidence,
                   v_finding.evidence, v_finding.tags, v_finding.provenance, v_finding.derived_from)
                  IS NOT DISTINCT FROM
                  (p_agent_id, p_category, p_type, p_content, p_confidence, p_evidence, p_tags, p_provenance,
                   p_derived_from);
    ELSE
        SELECT * INTO v_corroboration FROM blackboard.corroborations c
        WHERE c.session_id = p_session_id AND c.report_id = p_id;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        SELECT * INTO v_finding FROM blackboard.findings f
        WHERE f.session_id = p_session_id AND f.id = v_corroboration.finding_id;
        v_same := (v_corroboration.agent_id, v_corroboration.confidence, v_corroboration.evidence,
                   v_finding.fingerprint)
                  IS NOT DISTINCT FROM
                  (p_agent_id, p_confidence, p_evidence,
                   blackboard.finding_fingerprint(p_category, p_type, p_content));
    END IF;
    IF NOT v_same THEN
        PERFORM blackboard.raise('BB004', 'A finding with this id was reported with other content; use a new id.',
                                 jsonb_build_object('noun', 'finding', 'id', p_id));
    END IF;
    RETURN v_finding;
END
$$;

CREATE FUNCTION blackboard.require_lock(p_session_id uuid, p_name text, p_token bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_lock blackboard.locks;
BEGIN
    SELECT * INTO v_lock FROM blackboard.locks WHERE session_id = p_session_id AND name = p_name FOR SHARE;
    IF NOT FOUND OR v_lock.holder IS NULL OR v_lock.token IS DISTINCT FROM p_token
       OR v_lock.expires_at <= blackboard.now()
       OR (v_lock.lease_id IS NOT NULL AND blackboard.lease_lapsed(v_lock.lease_id)) THEN
        PERFORM blackboard.raise('BB006', format('The lock %L is not held under this token any more; nothing may be '
                                                 'written under it. Acquire it again.', p_name),
                                 jsonb_build_object('noun', 'lock', 'name', p_name, 'token', p_token,
                                                    'holder', v_lock.holder));
    END IF;
END
$$;

CREATE FUNCTION blackboard.reserve_budget(p_session_id uuid, p_id uuid, p_agent_id text, p_task_id uuid, p_units text[], p_amounts numeric[], p_currency text, p_model text, p_note text, p_lease_id uuid) RETURNS SETOF blackboard.spend
    LANGUAGE plpgsql
    SET xmlbinary TO 'hex'
    AS $$
DECLARE
    v_added integer := 0;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    PERFORM FROM blackboard.spend s WHERE s.session_id = p_session_id AND s.reservation_id = p_id;
    IF NOT FOUND THEN
        IF p_lease_id IS NOT NULL THEN
            PERFORM blackboard.live_lease(p_lease_id);
        END IF;
        INSERT INTO blackboard.spend (session_id, reservation_id, agent_id, task_id, unit, currency, reserved, model,
                                      note, lease_id)
        SELECT p_session_id, p_id, p_agent_id, p_task_id, x.unit, CASE WHEN x.unit = 'cost' THEN p_currency END,
               x.amount, p_model, coalesce(p_note, ''), p_lease_id
        FROM unnest(p_units, p_amounts) x (unit, amount) ORDER BY x.unit
        ON CONFLICT (session_id, reservation_id, unit) DO NOTHING;
        GET DIAGNOSTICS v_added = ROW_COUNT;
    END IF;
    IF v_added < cardinality(p_units) THEN
        -- Units that were first named when it was settled have nothing reserved.
        IF EXISTS (
            SELECT FROM (SELECT * FROM blackboard.spend s
                         WHERE s.session_id = p_session_id AND s.reservation_id = p_id) s
            FULL JOIN unnest(p_units, p_amounts) x (unit, amount) ON x.unit = s.unit
            WHERE coalesce(s.reserved, -1) IS DISTINCT FROM coalesce(x.amount, 0)
               OR (s.agent_id, s.task_id) IS DISTINCT FROM (p_agent_id, p_task_id)
               OR (s.unit = 'cost' AND x.unit IS NOT NULL AND s.currency IS DISTINCT FROM p_currency)) THEN
            PERFORM blackboard.raise('BB004', 'A reservation with this id has other content; use a new id.',
                                     jsonb_build_object('noun', 'reservation', 'id', p_id, 'field', 'id'));
        END IF;
    END IF;
    RETURN QUERY SELECT * FROM blackboard.spend s
                 WHERE s.session_id = p_session_id AND s.reservation_id = p_id ORDER BY s.unit;
END
$$;

CREATE FUNCTION blackboard.resume_flow(p_session_id uuid, p_id uuid, p_actor text) RETURNS SETOF blackboard.flows
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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
    v_flow blackboard.flows;
    v_tasks uuid[];
BEGIN
    PERFORM blackboard.act_as(p_actor);
    v_flow := blackboard.lock_flow(p_session_id, p_id);
    PERFORM blackboard.refuse_finished_flow(v_flow);
    IF v_flow.status = 'paused' THEN
        PERFORM blackboard.open_session(p_session_id);
        UPDATE blackboard.flows f SET status = 'running', version = f.version + 1
        WHERE f.session_id = p_session_id AND f.id = p_id;
        SELECT array_agg(s.task_id ORDER BY s.ordinal) INTO v_tasks FROM blackboard.flow_stages s
        WHERE s.session_id = p_session_id AND s.flow_id = p_id AND s.state = 'ready';
        PERFORM 1
        FROM (SELECT u.id FROM unnest(v_tasks) u (id) ORDER BY u.id OFFSET 0) x
        CROSS JOIN LATERAL (SELECT FROM blackboard.tasks t
                            WHERE t.session_id = p_session_id AND t.id = x.id AND t.status = 'held'
                              AND t.held ->> 'code' = 'flow_paused' FOR UPDATE OFFSET 0) t;
        WITH n AS MATERIALIZED (
            SELECT o.place, o.status, nextval('blackboard.task_positions') AS position
            FROM (SELECT h.place, blackboard.next_status(h.task) AS status
                  FROM unnest(v_tasks) WITH ORDINALITY u (id, n)
                  CROSS JOIN LATERAL (
                      SELECT t.ctid AS place, t AS task FROM blackboard.tasks t
                      WHERE t.session_id = p_session_id AND t.id = u.id AND t.status = 'held'
                        AND t.held ->> 'code' = 'flow_paused' OFFSET 0) h
                  ORDER BY ((h.task).held ->> 'position')::bigint, u.n) o)
        UPDATE blackboard.tasks t
        SET status = n.status, held = NULL, position = CASE WHEN n.status IN ('pending', 'assigned') THEN n.position END
        FROM n WHERE t.ctid = n.place;
    END IF;
    RETURN QUERY SELECT f.* FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = p_id;
END
$$;

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

CREATE FUNCTION blackboard.retire_limit(p_session_id uuid, p_limit_id uuid, p_batch integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_key text;
    v_keys text[];
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
    -- Not waited for: the caller may go on to lock other counters, which come before these.
    SELECT array_agg(u.key ORDER BY u.key) INTO v_keys FROM blackboard.limit_usage u
    WHERE u.session_id = p_session_id AND u.limit_id = p_limit_id;
    IF v_keys IS NOT NULL AND cardinality(v_keys) IS DISTINCT FROM cardinality(blackboard.try_counters(
           p_session_id, array_fill(p_limit_id, ARRAY[cardinality(v_keys)]), v_keys)) THEN
        RETURN 0;
    END IF;
    PERFORM 1 FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.status = 'held' AND t.held ->> 'code' = 'limit'
      AND coalesce(t.held ->> 'limit', t.held ->> 'type', '') = p_limit_id::text LIMIT 1;
    IF FOUND THEN
        RETURN 0;
    END IF;
    -- Nor for a task that is just ending: it has its slot, which it takes away itself, and waits for the counter.
    DELETE FROM blackboard.task_slots s WHERE s.session_id = p_session_id AND s.limit_id = p_limit_id AND s.task_id IN (
        SELECT o.task_id FROM blackboard.task_slots o
        WHERE o.session_id = p_session_id AND o.limit_id = p_limit_id FOR UPDATE SKIP LOCKED);
    DELETE FROM blackboard.limits WHERE session_id = p_session_id AND id = p_limit_id;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.retire_pause(p_session_id uuid, p_id uuid, p_batch integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE FUNCTION blackboard.retract_evidence(p_session_id uuid, p_id uuid, p_finding_id uuid, p_reason text, p_actor text) RETURNS blackboard.hypotheses
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_hypothesis blackboard.hypotheses;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    PERFORM 1 FROM blackboard.hypotheses h
    WHERE h.session_id = p_session_id AND h.id = p_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.no_hypothesis(p_id);
    END IF;
    UPDATE blackboard.hypothesis_evidence
    SET retracted_at = blackboard.now(), reason = coalesce(p_reason, '')
    WHERE session_id = p_session_id AND hypothesis_id = p_id AND finding_id = p_finding_id AND retracted_at IS NULL;
    IF NOT FOUND THEN
        PERFORM 1 FROM blackboard.hypothesis_evidence e
        WHERE e.session_id = p_session_id AND e.hypothesis_id = p_id AND e.finding_id = p_finding_id;
        IF NOT FOUND THEN
            PERFORM blackboard.raise('BB001',
                                     format('The finding %s is no evidence for this hypothesis.', p_finding_id),
                                     jsonb_build_object('noun', 'evidence', 'id', p_finding_id));
        END IF;
    END IF;
    SELECT * INTO v_hypothesis FROM blackboard.hypotheses h WHERE h.session_id = p_session_id AND h.id = p_id;
    RETURN v_hypothesis;
END
$$;

CREATE FUNCTION blackboard.retract_finding(p_session_id uuid, p_id uuid, p_reason text, p_actor text) RETURNS blackboard.findings
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_finding blackboard.findings;
    v_actor text;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    v_actor := blackboard.current_actor();
    PERFORM blackboard.open_session(p_session_id);
    -- With those that it contradicts, which its trigger is going to touch: all by id.
    PERFORM 1 FROM blackboard.findings f
    WHERE f.session_id = p_session_id
      AND f.id = ANY (array(SELECT l.finding_id FROM blackboard.finding_links l
                            WHERE l.session_id = p_session_id AND l.other_id = p_id) || p_id)
    ORDER BY f.id FOR NO KEY UPDATE;
    SELECT * INTO v_finding FROM blackboard.findings f WHERE f.session_id = p_session_id AND f.id = p_id;
    IF NOT FOUND THEN
        PERFORM blackboard.no_finding(p_id);
    END IF;
    IF v_actor <> v_finding.agent_id AND NOT blackboard.may_overrule(p_session_id, v_actor) THEN
        PERFORM blackboard.raise('BB005',
            format('Only %s, a controller or a human may retract this finding; contradict it instead.',
                   v_finding.agent_id),
            jsonb_build_object('noun', 'finding', 'id', p_id, 'agent_id', v_finding.agent_id));
    END IF;
    IF v_finding.status <> 'retracted' THEN
        UPDATE blackboard.findings SET status = 'retracted', reason = coalesce(p_reason, '')
        WHERE session_id = p_session_id AND id = p_id
        RETURNING * INTO v_finding;
    END IF;
    RETURN v_finding;
END
$$;

CREATE FUNCTION blackboard.return_held(p_session_id uuid, p_code text, p_of text, p_key text, p_capability text, p_limit integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_ids uuid[];
    v_count integer;
BEGIN
    IF p_limit <= 0 THEN
        RETURN 0;
    END IF;
    v_ids := blackboard.with_flows(
        p_session_id, blackboard.pick_held(p_session_id, p_code, p_of, p_key, p_capability, p_limit));
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

CREATE FUNCTION blackboard.revise_after_delete() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_row record;
BEGIN
    FOR v_row IN SELECT o.session_id, array_agg(DISTINCT o.hypothesis_id) AS hypothesis_ids
                 FROM old_rows o GROUP BY o.session_id LOOP
        PERFORM blackboard.revise_hypotheses(v_row.session_id, v_row.hypothesis_ids,
                                             jsonb_build_object('event', TG_ARGV[0]));
    END LOOP;
    RETURN NULL;
END
$$;

CREATE FUNCTION blackboard.revise_hypotheses(p_session_id uuid, p_hypothesis_ids uuid[], p_because jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM 1 FROM blackboard.hypotheses h
    WHERE h.session_id = p_session_id AND h.id = ANY (p_hypothesis_ids)
    ORDER BY h.id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM pg_catalog.set_config('blackboard.because', p_because::text, true);
    UPDATE blackboard.hypotheses SET revision = revision + 1
    WHERE session_id = p_session_id AND id = ANY (p_hypothesis_ids);
    PERFORM pg_catalog.set_config('blackboard.because', '', true);
END
$$;

CREATE FUNCTION blackboard.roll_back_action(p_session_id uuid, p_id uuid, p_by text, p_reason text) RETURNS blackboard.actions
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_action blackboard.actions;
BEGIN
    PERFORM blackboard.act_as(p_by);
    v_action := blackboard.lock_action(p_session_id, p_id);
    IF v_action.rolled_back_by = p_by THEN
        RETURN v_action;
    END IF;
    PERFORM blackboard.open_session(p_session_id);
    IF v_action.status NOT IN ('completed', 'failed') THEN
        PERFORM blackboard.raise('BB003', format('The action is %s; only what was executed can be rolled back.',
                                                 v_action.status),
                                 jsonb_build_object('noun', 'action', 'id', p_id, 'status', v_action.status));
    END IF;
    UPDATE blackboard.actions SET status = 'rolled_back', rolled_back_by = p_by, rollback_reason = p_reason
    WHERE session_id = p_session_id AND id = p_id
    RETURNING * INTO v_action;
    RETURN v_action;
END
$$;

CREATE FUNCTION blackboard.session_lock(p_session_id uuid) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT pg_catalog.hashtextextended('blackboard session ' || p_session_id::text, 0) $$;

CREATE FUNCTION blackboard.set_budget(p_session_id uuid, p_unit text, p_ceiling numeric, p_soft numeric, p_period interval, p_currency text, p_agent_id text, p_task_id uuid, p_actor text) RETURNS blackboard.budgets
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_budget blackboard.budgets;
    v_scope text := CASE WHEN p_agent_id IS NOT NULL THEN 'agent' WHEN p_task_id IS NOT NULL THEN 'task'
                         ELSE 'session' END;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    PERFORM pg_advisory_xact_lock(blackboard.budgets_lock(p_session_id));
    SELECT * INTO v_budget FROM blackboard.budgets b
    WHERE b.session_id = p_session_id AND b.scope = v_scope AND b.agent_id IS NOT DISTINCT FROM p_agent_id
      AND b.task_id IS NOT DISTINCT FROM p_task_id AND b.unit = p_unit
    FOR UPDATE;
    IF FOUND AND (v_budget.period, v_budget.currency) IS NOT DISTINCT FROM (p_period, p_currency) THEN
        UPDATE blackboard.budgets SET ceiling = p_ceiling, soft = p_soft
        WHERE session_id = p_session_id AND id = v_budget.id AND (ceiling, soft) IS DISTINCT FROM (p_ceiling, p_soft);
    ELSE
        DELETE FROM blackboard.budgets WHERE session_id = p_session_id AND id = v_budget.id;
        INSERT INTO blackboard.budgets (session_id, scope, agent_id, task_id, unit, currency, ceiling, soft, period,
                                        created_by)
        VALUES (p_session_id, v_scope, p_agent_id, p_task_id, p_unit, p_currency, p_ceiling, p_soft, p_period,
                blackboard.current_actor())
        RETURNING * INTO v_budget;
    END IF;
    SELECT * INTO v_budget FROM blackboard.budgets WHERE session_id = p_session_id AND id = v_budget.id;
    RETURN v_budget;
END
$$;

CREATE TABLE blackboard.limits (
    session_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    name text NOT NULL,
    kind text NOT NULL,
    type text,
    capability text,
    per_key boolean DEFAULT false NOT NULL,
    max_running integer,
    rate_count integer,
    rate_period interval,
    created_by text DEFAULT blackboard.current_actor() NOT NULL,
    created_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    removed_at timestamp with time zone,
    CONSTRAINT limits_capability_length CHECK ((length(capability) <= 100)),
    CONSTRAINT limits_figures_of_kind CHECK ((((kind = 'concurrency'::text) = (max_running IS NOT NULL)) AND ((kind = 'rate'::text) = (rate_count IS NOT NULL)) AND ((kind = 'rate'::text) = (rate_period IS NOT NULL)))),
    CONSTRAINT limits_kind_known CHECK ((kind = ANY (ARRAY['concurrency'::text, 'rate'::text]))),
    CONSTRAINT limits_max_running_range CHECK (((max_running >= 1) AND (max_running <= 1000000))),
    CONSTRAINT limits_name_length CHECK (((length(name) >= 1) AND (length(name) <= 100))),
    CONSTRAINT limits_one_scope CHECK (((type IS NULL) OR (capability IS NULL))),
    CONSTRAINT limits_rate_count_range CHECK (((rate_count >= 1) AND (rate_count <= 1000000))),
    CONSTRAINT limits_rate_period_range CHECK (((rate_period >= '00:00:00.01'::interval) AND (rate_period <= '366 days'::interval))),
    CONSTRAINT limits_type_length CHECK (((length(type) >= 1) AND (length(type) <= 50)))
);

CREATE FUNCTION blackboard.set_limit(p_session_id uuid, p_id uuid, p_name text, p_kind text, p_type text, p_capability text, p_per_key boolean, p_max_running integer, p_rate_count integer, p_rate_period interval, p_actor text) RETURNS SETOF blackboard.limits
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

CREATE FUNCTION blackboard.settle_actions(p_session_id uuid, p_proposal_id uuid) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_status text;
    v_reason text;
BEGIN
    SELECT status, result ->> 'reason' INTO v_status, v_reason
    FROM blackboard.proposals WHERE session_id = p_session_id AND id = p_proposal_id;
    IF v_status = 'accepted' THEN
        UPDATE blackboard.actions
        SET vote_accepted = true,
            status = CASE WHEN approval = 'vote' OR approved_by IS NOT NULL THEN 'approved' ELSE status END
        WHERE session_id = p_session_id AND proposal_id = p_proposal_id
          AND status = 'awaiting_approval' AND approval IN ('vote', 'both');
    ELSIF v_reason = 'escalated' THEN
        UPDATE blackboard.actions
        SET approval = 'human', status = CASE WHEN approved_by IS NOT NULL THEN 'approved' ELSE status END
        WHERE session_id = p_session_id AND proposal_id = p_proposal_id
          AND status = 'awaiting_approval' AND approval IN ('vote', 'both');
    ELSIF v_status <> 'open' THEN
        UPDATE blackboard.actions
        SET status = 'rejected', approval_reason = format('The proposal was %s.', v_status)
        WHERE session_id = p_session_id AND proposal_id = p_proposal_id
          AND status = 'awaiting_approval' AND approval IN ('vote', 'both');
    END IF;
END
$$;

CREATE FUNCTION blackboard.settle_budget(p_session_id uuid, p_id uuid, p_units text[], p_amounts numeric[], p_currency text, p_model text, p_note text, p_actor text) RETURNS SETOF blackboard.spend
    LANGUAGE plpgsql
    SET xmlbinary TO 'hex'
    AS $$
DECLARE
    v_statuses text[];
    v_first blackboard.spend;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    SELECT array_agg(DISTINCT l.status) INTO v_statuses FROM blackboard.lock_reservation(p_session_id, p_id) l;
    IF 'released' = ANY (v_statuses) THEN
        PERFORM blackboard.raise('BB003', 'This reservation was released; reserve again for what is still to be spent.',
                                 jsonb_build_object('noun', 'reservation', 'id', p_id, 'status', 'released'));
    ELSIF v_statuses = ARRAY['settled'] THEN
        IF EXISTS (
            SELECT FROM (SELECT * FROM blackboard.spend s
                         WHERE s.session_id = p_session_id AND s.reservation_id = p_id) s
            FULL JOIN unnest(p_units, p_amounts) x (unit, amount) ON x.unit = s.unit
            WHERE s.settled IS DISTINCT FROM coalesce(x.amount, s.reserved)
               OR (x.unit = 'cost' AND s.currency IS DISTINCT FROM p_currency)) THEN
            PERFORM blackboard.raise('BB004', 'This reservation was settled before with other amounts; they stay.',
                                     jsonb_build_object('noun', 'reservation', 'id', p_id));
        END IF;
    ELSE
        SELECT * INTO v_first FROM blackboard.spend s
        WHERE s.session_id = p_session_id AND s.reservation_id = p_id ORDER BY s.unit LIMIT 1;
        IF EXISTS (SELECT FROM blackboard.spend s
                   WHERE s.session_id = p_session_id AND s.reservation_id = p_id AND s.unit = 'cost'
                     AND 'cost' = ANY (p_units) AND s.currency IS DISTINCT FROM p_currency) THEN
            PERFORM blackboard.raise('BB002', 'Settle the cost in the currency that it was reserved in.',
                                     '{"field": "currency"}');
        END IF;
        UPDATE blackboard.spend s
        SET status = 'settled',
            settled = coalesce((SELECT x.amount FROM unnest(p_units, p_amounts) x (unit, amount) WHERE x.unit = s.unit),
                               s.reserved),
            model = coalesce(p_model, s.model), note = coalesce(p_note, s.note)
        WHERE s.session_id = p_session_id AND s.reservation_id = p_id AND s.status <> 'settled';
        INSERT INTO blackboard.spend (session_id, reservation_id, agent_id, task_id, unit, currency, reserved, settled,
                                      status, model, note)
        SELECT p_session_id, p_id, v_first.agent_id, v_first.task_id, x.unit,
               CASE WHEN x.unit = 'cost' THEN p_currency END, 0, x.amount, 'settled', coalesce(p_model, v_first.model),
               coalesce(p_note, v_first.note)
        FROM unnest(p_units, p_amounts) x (unit, amount)
        WHERE NOT EXISTS (SELECT FROM blackboard.spend s WHERE s.session_id = p_session_id
                          AND s.reservation_id = p_id AND s.unit = x.unit)
        ORDER BY x.unit;
    END IF;
    RETURN QUERY SELECT * FROM blackboard.spend s
                 WHERE s.session_id = p_session_id AND s.reservation_id = p_id ORDER BY s.unit;
END
$$;

CREATE FUNCTION blackboard.settle_dependants(p_session_id uuid, p_parents uuid[], p_succeeded boolean) RETURNS void
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
BEGIN
    PERFORM blackboard.settle_dependencies(p_session_id, p_parents, p_succeeded);
    PERFORM blackboard.settle_flow(p_session_id, f.flow_id, f.tasks, '{}')
    FROM (SELECT t.flow_id, array_agg(t.task_id) AS tasks
          FROM unnest(p_parents) p (id)
          CROSS JOIN LATERAL (SELECT o.flow_id, o.task_id FROM blackboard.flow_tasks o
                              WHERE o.session_id = p_session_id AND o.task_id = p.id AND o.kind = 'stage' OFFSET 0) t
          GROUP BY t.flow_id ORDER BY t.flow_id) f;
END
$$;

CREATE FUNCTION blackboard.settle_dependencies(p_session_id uuid, p_parents uuid[], p_succeeded boolean) RETURNS void
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
    v_finished uuid[] := p_parents;
    v_children uuid[];
BEGIN
    IF NOT p_succeeded THEN
        WITH RECURSIVE doomed (id) AS (
            SELECT x.id FROM unnest(p_parents) x (id)
            UNION
            SELECT t.id FROM doomed x
            CROSS JOIN LATERAL (
                SELECT o.task_id FROM blackboard.task_dependencies o
                WHERE o.session_id = p_session_id AND o.depends_on_id = x.id AND o.state = 'waiting'
                  AND o.on_failure = 'fail' OFFSET 0) d
            CROSS JOIN LATERAL (
                SELECT o.id FROM blackboard.tasks o
                WHERE o.session_id = p_session_id AND o.id = d.task_id
                  AND o.status IN ('blocked', 'awaiting_approval', 'scheduled', 'held') OFFSET 0) t
        ) SELECT array_agg(x.id) INTO v_finished FROM doomed x;
    END IF;
    SELECT array_agg(DISTINCT d.task_id) INTO v_children
    FROM unnest(v_finished) f (id)
    CROSS JOIN LATERAL (SELECT o.task_id FROM blackboard.task_dependencies o
                        WHERE o.session_id = p_session_id AND o.depends_on_id = f.id AND o.state = 'waiting' OFFSET 0) d;
    IF v_children IS NULL THEN
        RETURN;
    END IF;
    PERFORM 1
    FROM (SELECT u.id FROM unnest(v_children) u (id) ORDER BY u.id OFFSET 0) x
    CROSS JOIN LATERAL (SELECT FROM blackboard.tasks t
                        WHERE t.session_id = p_session_id AND t.id = x.id FOR UPDATE OFFSET 0) t;
    -- Against somebody who changes a policy by hand: what is locked here is changed in the next statement where it lies.
    PERFORM 1
    FROM unnest(v_finished) f (id)
    CROSS JOIN LATERAL (SELECT FROM blackboard.task_dependencies o
                        WHERE o.session_id = p_session_id AND o.depends_on_id = f.id AND o.state = 'waiting'
                        FOR UPDATE OFFSET 0) d;
    WITH w AS MATERIALIZED (
        SELECT d.place
        FROM unnest(v_finished) f (id)
        CROSS JOIN LATERAL (SELECT o.ctid AS place FROM blackboard.task_dependencies o
                            WHERE o.session_id = p_session_id AND o.depends_on_id = f.id AND o.state = 'waiting' OFFSET 0) d
    ), settled AS (
        UPDATE blackboard.task_dependencies d
        SET state = CASE WHEN p_succeeded OR d.on_failure = 'continue' THEN 'satisfied' ELSE 'failed' END
        FROM w WHERE d.ctid = w.place
        RETURNING d.task_id)
    SELECT array_agg(DISTINCT task_id ORDER BY task_id) INTO v_children FROM settled;
    IF v_children IS NOT NULL THEN
        PERFORM blackboard.refresh_blockers(p_session_id, v_children);
    END IF;
END
$$;

CREATE FUNCTION blackboard.settle_flow(p_session_id uuid, p_flow_id uuid, p_tasks uuid[], p_stages text[]) RETURNS void
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
        WITH s AS MATERIALIZED (
            SELECT s.*
            FROM unnest(p_tasks) x (id)
            CROSS JOIN LATERAL (SELECT o.stage, o.task_id, o.flow_id FROM blackboard.flow_tasks o
                                WHERE o.session_id = p_session_id AND o.task_id = x.id OFFSET 0) f
            -- In a form that does not invite a walk along flow_stages_open.
            CROSS JOIN LATERAL (SELECT o.* FROM blackboard.flow_stages o
                                WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.name = f.stage
                                  AND (o.state IN ('waiting', 'ready')) IS TRUE OFFSET 0) s
            WHERE f.flow_id = p_flow_id AND s.task_id = f.task_id AND v_alive)
        SELECT s.name, s.task_id, s.min_quality, s.max_iterations, s.loops, s.iteration, s.quality, t.status, t.result
        FROM s
        CROSS JOIN LATERAL (SELECT o.status, o.result FROM blackboard.tasks o
                            WHERE o.session_id = p_session_id AND o.id = s.task_id OFFSET 0) t
        WHERE (t.status = 'completed' AND s.min_quality IS NOT NULL OR t.status = 'cancelled' AND s.stopping)
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
    WITH s AS MATERIALIZED (
        SELECT s.*
        FROM unnest(p_tasks) x (id)
        CROSS JOIN LATERAL (SELECT o.stage, o.task_id, o.flow_id FROM blackboard.flow_tasks o
                            WHERE o.session_id = p_session_id AND o.task_id = x.id OFFSET 0) f
        CROSS JOIN LATERAL (SELECT o.ctid AS place, o.* FROM blackboard.flow_stages o
                            WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.name = f.stage OFFSET 0) s
        WHERE f.flow_id = p_flow_id AND s.task_id = f.task_id
    ), e AS MATERIALIZED (
        SELECT s.place, t.status, q.quality, t.status = 'completed' AND s.min_quality IS NOT NULL
                   AND coalesce(q.quality < s.min_quality, true) AS below,
               CASE WHEN t.status <> 'completed' AND pg_column_size(t.error) <= 8192 THEN t.error - 'traceback' END AS error
        FROM s
        CROSS JOIN LATERAL (SELECT o.status, o.result, o.error, o.completed_at FROM blackboard.tasks o
                            WHERE o.session_id = p_session_id AND o.id = s.task_id OFFSET 0) t
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
        FROM e WHERE s.ctid = e.place
        RETURNING s.name)
    SELECT array_agg(e.name) INTO v_done FROM ended e;
    IF v_flow.finished_at IS NOT NULL THEN
        RETURN;
    END IF;
    -- 2. A failure that asks for compensation: nothing new starts any more.
    IF NOT v_flow.compensating AND EXISTS (
        SELECT FROM unnest(v_done) x (name)
        CROSS JOIN LATERAL (SELECT o.session_id, o.flow_id, o.name, o.state FROM blackboard.flow_stages o
                            WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.name = x.name OFFSET 0) s
        WHERE s.state IN ('failed', 'cancelled')
          AND EXISTS (SELECT FROM blackboard.flow_edges e
                      WHERE e.session_id = s.session_id AND e.flow_id = s.flow_id AND e.depends_on = s.name
                        AND e.on_failure = 'compensate'
                      UNION ALL
                      SELECT FROM blackboard.flow_edges e
                      WHERE e.session_id = s.session_id AND e.flow_id = s.flow_id AND e.stage = s.name
                        AND e.on_failure = 'compensate' AND NOT EXISTS (
                            SELECT FROM blackboard.flow_edges o
                            WHERE o.session_id = e.session_id AND o.flow_id = e.flow_id
                              AND o.depends_on = e.stage)))
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
        v_candidates := v_candidates || blackboard.stages_after(p_session_id, p_flow_id, v_done);
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
            WITH x AS MATERIALIZED (
                SELECT s.place
                FROM unnest(v_decided) u (name)
                CROSS JOIN LATERAL (SELECT o.ctid AS place FROM blackboard.flow_stages o
                                    WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.name = u.name
                                    OFFSET 0) s)
            UPDATE blackboard.flow_stages s
            SET state = CASE v_errors -> s.name ->> 'code' WHEN 'skipped' THEN 'skipped'
                             WHEN 'dependency_failed' THEN 'cancelled' ELSE 'ready' END,
                error = nullif(v_errors -> s.name, 'null')
            FROM x WHERE s.ctid = x.place;
            v_released := v_released || array(SELECT unnest(v_decided) EXCEPT SELECT unnest(v_changed));
            v_stopped := v_stopped || v_changed;
            v_candidates := blackboard.stages_after(p_session_id, p_flow_id, v_changed);
        END LOOP;
        PERFORM 1
        FROM (SELECT u.id
              FROM unnest(blackboard.tasks_of_stages(p_session_id, p_flow_id, v_released || v_stopped)) u (id)
              ORDER BY u.id OFFSET 0) x
        CROSS JOIN LATERAL (SELECT FROM blackboard.tasks t
                            WHERE t.session_id = p_session_id AND t.id = x.id FOR UPDATE OFFSET 0) t;
        PERFORM blackboard.release_stages(p_session_id, p_flow_id, v_released);
        WITH s AS MATERIALIZED (
            SELECT t.place, s.error
            FROM unnest(v_stopped) x (name)
            CROSS JOIN LATERAL (SELECT o.task_id, o.error FROM blackboard.flow_stages o
                                WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.name = x.name OFFSET 0) s
            CROSS JOIN LATERAL (SELECT o.ctid AS place FROM blackboard.tasks o
                                WHERE o.session_id = p_session_id AND o.id = s.task_id AND o.completed_at IS NULL
                                  AND o.status <> 'running' OFFSET 0) t)
        UPDATE blackboard.tasks t
        SET status = 'cancelled', position = NULL, completed_at = blackboard.now(), error = s.error
        FROM s WHERE t.ctid = s.place;
    END IF;
    PERFORM blackboard.finish_flow(p_session_id, p_flow_id);
END
$$;

CREATE FUNCTION blackboard.settle_limit(p_session_id uuid, p_limit_id uuid, p_patience interval) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE FUNCTION blackboard.settle_limits(p_session_id uuid) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE FUNCTION blackboard.settle_proposal(p_session_id uuid, p_proposal_id uuid) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_tally blackboard.tallied := blackboard.tally(p_session_id, p_proposal_id);
BEGIN
    IF v_tally.certain THEN
        UPDATE blackboard.proposals SET status = v_tally.outcome
        WHERE session_id = p_session_id AND id = p_proposal_id AND status = 'open';
    END IF;
END
$$;

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

CREATE FUNCTION blackboard.spent_budgets(p_session_id uuid, p_agent_id text, p_task_id uuid) RETURNS SETOF blackboard.budgets
    LANGUAGE sql STABLE
    AS $$
    SELECT b.* FROM blackboard.budgets b
    WHERE b.session_id = p_session_id
      AND (b.agent_id IS NULL OR b.agent_id = p_agent_id) AND (b.task_id IS NULL OR b.task_id = p_task_id)
      AND blackboard.budget_spent(b) >= b.ceiling
    ORDER BY b.id
$$;

CREATE FUNCTION blackboard.stage_result(p_session_id uuid, p_flow_id uuid, p_stage text) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT t.result FROM blackboard.flow_tasks f
    JOIN blackboard.tasks t ON t.session_id = f.session_id AND t.id = f.task_id
    WHERE f.session_id = p_session_id AND f.flow_id = p_flow_id AND f.stage = p_stage AND f.kind = 'stage'
      AND t.status = 'completed'
    ORDER BY f.iteration DESC LIMIT 1
$$;

CREATE FUNCTION blackboard.stage_verdicts(p_session_id uuid, p_flow_id uuid, p_stages text[]) RETURNS TABLE(name text, verdict text, failed jsonb)
    LANGUAGE plpgsql STABLE ROWS 10
    SET plan_cache_mode TO 'force_custom_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET enable_nestloop TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
BEGIN
    RETURN QUERY
    SELECT s.name,
           CASE WHEN v.met >= coalesce(s.join_need, v.edges) THEN 'ready'
                WHEN v.met + v.undecided >= coalesce(s.join_need, v.edges) THEN NULL
                WHEN v.fatal > 0 THEN 'cancelled' ELSE 'skipped' END,
           v.failed
    FROM (SELECT DISTINCT u.name FROM unnest(p_stages) u (name)) x
    CROSS JOIN LATERAL (
        -- In a form that does not invite a walk along flow_stages_open.
        SELECT o.name, o.join_need FROM blackboard.flow_stages o
        WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.name = x.name
          AND (o.state = 'waiting') IS TRUE OFFSET 0) s
    CROSS JOIN LATERAL (
        SELECT count(*) AS edges,
               count(*) FILTER (WHERE p.state = 'completed' OR (p.state = 'skipped' AND e.on_failure <> 'skip')
                                   OR (p.state IN ('failed', 'cancelled') AND e.on_failure = 'continue')) AS met,
               count(*) FILTER (WHERE p.state IN ('waiting', 'ready')) AS undecided,
               count(*) FILTER (WHERE p.state IN ('failed', 'cancelled')
                                  AND e.on_failure IN ('fail', 'compensate')) AS fatal,
               jsonb_agg(p.name ORDER BY p.ordinal)
                   FILTER (WHERE p.state IN ('failed', 'cancelled', 'skipped')) AS failed
        FROM (SELECT o.depends_on, o.on_failure FROM blackboard.flow_edges o
              WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.stage = s.name OFFSET 0) e
        CROSS JOIN LATERAL (
            SELECT o.name, o.state, o.ordinal FROM blackboard.flow_stages o
            WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.name = e.depends_on OFFSET 0) p) v;
END
$$;

CREATE FUNCTION blackboard.stages_after(p_session_id uuid, p_flow_id uuid, p_stages text[]) RETURNS text[]
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
    RETURN array(
        SELECT DISTINCT e.stage
        FROM unnest(p_stages) x (name)
        CROSS JOIN LATERAL (
            SELECT o.stage FROM blackboard.flow_edges o
            WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.depends_on = x.name OFFSET 0) e);
END
$$;

CREATE FUNCTION blackboard.start_action(p_session_id uuid, p_id uuid, p_agent_id text, p_lease_id uuid) RETURNS blackboard.actions
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_action blackboard.actions;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    PERFORM blackboard.commit_synchronously();
    PERFORM blackboard.open_session(p_session_id);
    PERFORM blackboard.current_member(p_session_id, p_agent_id);
    PERFORM blackboard.close_due_proposals(p_session_id);
    v_action := blackboard.lock_action(p_session_id, p_id);
    PERFORM blackboard.live_lease(p_lease_id);
    IF v_action.status = 'executing' AND v_action.executor = p_agent_id AND v_action.lease_id = p_lease_id THEN
        RETURN v_action;
    END IF;
    IF v_action.status <> 'approved'
       AND NOT (v_action.status = 'executing' AND blackboard.lease_lapsed(v_action.lease_id)) THEN
        PERFORM blackboard.raise('BB003',
            CASE v_action.status
                WHEN 'executing' THEN format('%s executes this action already.', v_action.executor)
                WHEN 'awaiting_approval' THEN 'The action awaits approval; only an approved one starts.'
                ELSE format('The action is %s; only an approved one starts.', v_action.status) END,
            jsonb_build_object('noun', 'action', 'id', p_id, 'status', v_action.status,
                               'executor', v_action.executor));
    END IF;
    UPDATE blackboard.actions
    SET status = 'executing', executor = p_agent_id, lease_id = p_lease_id, token = token + 1
    WHERE session_id = p_session_id AND id = p_id
    RETURNING * INTO v_action;
    RETURN v_action;
END
$$;

CREATE FUNCTION blackboard.start_lease(p_id uuid, p_host text, p_pid integer, p_term interval) RETURNS blackboard.leases
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_lease blackboard.leases;
BEGIN
    INSERT INTO blackboard.leases (id, host, pid, term, expires_at)
    VALUES (p_id, p_host, p_pid, p_term, blackboard.now() + p_term)
    ON CONFLICT (id) DO NOTHING;
    SELECT * INTO v_lease FROM blackboard.leases WHERE id = p_id;
    IF (v_lease.host, v_lease.pid, v_lease.term) IS DISTINCT FROM (p_host, p_pid, p_term) THEN
        PERFORM blackboard.raise('BB004', 'A lease with this id was started by another process; use a new id.',
                                 jsonb_build_object('noun', 'lease', 'id', p_id));
    END IF;
    RETURN v_lease;
END
$$;

CREATE FUNCTION blackboard.start_session(p_id uuid, p_name text, p_goal text, p_context jsonb, p_actor text, p_allow_self_validation boolean DEFAULT false) RETURNS blackboard.sessions
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_session blackboard.sessions;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    INSERT INTO blackboard.sessions (id, name, goal, context, allow_self_validation, created_by)
    VALUES (p_id, p_name, p_goal, p_context, p_allow_self_validation, blackboard.current_actor())
    ON CONFLICT (id) DO NOTHING
    RETURNING * INTO v_session;
    IF NOT FOUND THEN
        SELECT * INTO v_session FROM blackboard.sessions WHERE id = p_id;
        -- Name, goal and context may have been changed since; what was started is in the first event.
        PERFORM 1 FROM blackboard.events e
        WHERE e.session_id = p_id AND e.subject_id = p_id AND e.type = 'session.started'
          AND (e.data ->> 'name', e.data ->> 'goal', e.data -> 'context', e.data -> 'allow_self_validation')
              IS DISTINCT FROM (p_name, p_goal, p_context, to_jsonb(p_allow_self_validation));
        IF FOUND THEN
            PERFORM blackboard.raise('BB004', 'A session with this id was started with other content; use a new id.',
                                     jsonb_build_object('noun', 'session', 'id', p_id));
        END IF;
    END IF;
    RETURN v_session;
END
$$;

CREATE FUNCTION blackboard.stated_quality(p_said double precision, p_result jsonb) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT coalesce(p_said, CASE WHEN jsonb_typeof(p_result) = 'object' AND jsonb_typeof(p_result -> 'quality') = 'number'
                                      AND (p_result ->> 'quality')::numeric BETWEEN 0 AND 1
                                 THEN round((p_result ->> 'quality')::numeric, 15)::double precision END)
$$;

CREATE FUNCTION blackboard.stop_tasks(p_session_id uuid, p_tasks uuid[], p_code text, p_message text) RETURNS void
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
    v_running uuid[];
BEGIN
    IF p_tasks IS NULL THEN
        RETURN;
    END IF;
    PERFORM 1
    FROM (SELECT u.id FROM unnest(p_tasks) u (id) ORDER BY u.id OFFSET 0) x
    CROSS JOIN LATERAL (SELECT FROM blackboard.tasks t
                        WHERE t.session_id = p_session_id AND t.id = x.id AND t.completed_at IS NULL
                          AND t.status <> 'running' FOR UPDATE OFFSET 0) t;
    WITH x AS MATERIALIZED (
        SELECT t.place
        FROM unnest(p_tasks) u (id)
        CROSS JOIN LATERAL (SELECT o.ctid AS place FROM blackboard.tasks o
                            WHERE o.session_id = p_session_id AND o.id = u.id AND o.completed_at IS NULL
                              AND o.status <> 'running' OFFSET 0) t)
    UPDATE blackboard.tasks t
    SET status = 'cancelled', position = NULL, completed_at = blackboard.now(),
        error = jsonb_build_object('code', p_code, 'message', p_message)
    FROM x WHERE t.ctid = x.place;
    SELECT array_agg(t.id) INTO v_running
    FROM (SELECT u.id FROM unnest(p_tasks) u (id) ORDER BY u.id OFFSET 0) x
    CROSS JOIN LATERAL (SELECT o.id FROM blackboard.tasks o
                        WHERE o.session_id = p_session_id AND o.id = x.id AND o.status = 'running'
                          AND NOT o.cancel_requested FOR UPDATE SKIP LOCKED OFFSET 0) t;
    WITH x AS MATERIALIZED (
        SELECT t.place
        FROM unnest(v_running) u (id)
        CROSS JOIN LATERAL (SELECT o.ctid AS place FROM blackboard.tasks o
                            WHERE o.session_id = p_session_id AND o.id = u.id OFFSET 0) t)
    UPDATE blackboard.tasks t SET cancel_requested = true FROM x WHERE t.ctid = x.place;
END
$$;

CREATE FUNCTION blackboard.supersede_finding(p_session_id uuid, p_old_id uuid, p_id uuid, p_actor text, p_content jsonb, p_type text DEFAULT NULL::text, p_category text DEFAULT NULL::text, p_confidence double precision DEFAULT NULL::double precision, p_evidence jsonb DEFAULT '[]'::jsonb, p_tags text[] DEFAULT '{}'::text[], p_provenance jsonb DEFAULT '{}'::jsonb, p_derived_from uuid[] DEFAULT '{}'::uuid[], p_reason text DEFAULT ''::text) RETURNS blackboard.findings
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_old blackboard.findings;
    v_new blackboard.findings;
    v_actor text;
    v_fingerprint bytea;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    v_actor := blackboard.current_actor();
    PERFORM blackboard.open_session(p_session_id);
    p_id := coalesce(p_id, gen_random_uuid());
    SELECT * INTO v_old FROM blackboard.findings f WHERE f.session_id = p_session_id AND f.id = p_old_id;
    IF NOT FOUND THEN
        PERFORM blackboard.no_finding(p_old_id);
    END IF;
    p_type := coalesce(p_type, v_old.type);
    p_category := coalesce(p_category, v_old.category);
    v_fingerprint := blackboard.finding_fingerprint(p_category, p_type, p_content);
    -- With the one that says the new content already, and those that the old one contradicts: all by id.
    PERFORM 1 FROM blackboard.findings f
    WHERE f.session_id = p_session_id
      AND f.id = ANY (array(SELECT o.id FROM blackboard.findings o
                            WHERE o.session_id = p_session_id AND o.status = 'active'
                              AND o.fingerprint = v_fingerprint
                            UNION ALL
                            SELECT l.finding_id FROM blackboard.finding_links l
                            WHERE l.session_id = p_session_id AND l.other_id = p_old_id) || p_old_id)
    ORDER BY f.id FOR NO KEY UPDATE;
    SELECT * INTO v_old FROM blackboard.findings f WHERE f.session_id = p_session_id AND f.id = p_old_id;
    v_new := blackboard.reported_finding(p_session_id, p_id, v_actor, p_type, p_content, p_category, p_confidence,
                                         p_evidence, p_tags, p_provenance, p_derived_from);
    IF v_old.status <> 'active' THEN
        SELECT * INTO v_new FROM blackboard.findings f
        WHERE f.session_id = p_session_id AND f.id = v_old.superseded_by AND f.fingerprint = v_fingerprint;
        IF FOUND THEN
            RETURN v_new;
        END IF;
        PERFORM blackboard.raise('BB003', format('This finding is %s already; supersede the one that replaced it.',
                                                 v_old.status),
                                 jsonb_build_object('noun', 'finding', 'id', p_old_id, 'status', v_old.status,
                                                    'superseded_by', v_old.superseded_by));
    END IF;
    IF v_new.id IS NOT NULL THEN
        PERFORM blackboard.raise('BB004', 'This id was used for another report; use a new id.',
                                 jsonb_build_object('noun', 'finding', 'id', p_id));
    END IF;
    IF v_actor <> v_old.agent_id AND NOT blackboard.may_overrule(p_session_id, v_actor) THEN
        PERFORM blackboard.raise('BB005',
            format('Only %s, a controller or a human may supersede this finding; report another one and contradict it.',
                   v_old.agent_id),
            jsonb_build_object('noun', 'finding', 'id', p_old_id, 'agent_id', v_old.agent_id));
    END IF;
    IF v_fingerprint = v_old.fingerprint THEN
        -- One statement, so that the old one makes room for the new one and both ends of the reference exist.
        WITH old AS (
            UPDATE blackboard.findings SET status = 'superseded', superseded_by = p_id, reason = coalesce(p_reason, '')
            WHERE session_id = p_session_id AND id = p_old_id
            RETURNING session_id
        )
        INSERT INTO blackboard.findings (session_id, id, agent_id, category, type, content, confidence, evidence, tags,
                                         provenance, derived_from)
        SELECT old.session_id, p_id, v_actor, p_category, p_type, p_content, p_confidence, p_evidence, p_tags,
               p_provenance, p_derived_from
        FROM old
        RETURNING * INTO v_new;
    ELSE
        v_new := blackboard.report_finding(p_session_id, p_id, v_actor, p_type, p_content, p_category, p_confidence,
                                           p_evidence, p_tags, p_provenance, p_derived_from);
        UPDATE blackboard.findings
        SET status = 'superseded', superseded_by = v_new.id, reason = coalesce(p_reason, '')
        WHERE session_id = p_session_id AND id = p_old_id;
    END IF;
    RETURN v_new;
END
$$;

CREATE FUNCTION blackboard.sweep_leases(p_limit integer) RETURNS integer
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
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
    -- What follows locks further tasks, and their counters: the next look does it, if counters are locked by now.
    IF current_setting('blackboard.slots', true) = 'locked' THEN
        RETURN v_swept;
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
        run_at = blackboard.now() + blackboard.backoff(t.retry_delay, t.attempt - t.released),
        error = jsonb_build_object('code', 'timeout', 'agent_id', t.assigned_to, 'attempt', t.attempt,
                                   'message', format('It ran longer than its timeout of %s.', t.timeout))
    FROM late WHERE t.session_id = late.session_id AND t.id = late.id;
    GET DIAGNOSTICS v_late = ROW_COUNT;
    IF v_unswept AND current_setting('blackboard.slots', true) IS DISTINCT FROM 'locked' THEN
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

CREATE FUNCTION blackboard.sweep_waiting(p_limit integer) RETURNS integer
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

CREATE FUNCTION blackboard.tally(p_session_id uuid, p_proposal_id uuid) RETURNS blackboard.tallied
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_tally blackboard.tallied;
BEGIN
    SELECT t.* INTO v_tally
    FROM blackboard.proposals p
    CROSS JOIN LATERAL (
        SELECT array_agg(e.weight) AS weights, array_agg(v.choice) AS choices
        FROM blackboard.proposal_electors e
        LEFT JOIN blackboard.votes v USING (session_id, proposal_id, agent_id)
        WHERE e.session_id = p.session_id AND e.proposal_id = p.id
    ) b
    CROSS JOIN LATERAL blackboard.tally_of(p.rule, p.threshold, p.min_turnout, b.weights, b.choices) t
    WHERE p.session_id = p_session_id AND p.id = p_proposal_id;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no proposal %s in this session.', p_proposal_id),
                                 jsonb_build_object('noun', 'proposal', 'id', p_proposal_id));
    END IF;
    RETURN v_tally;
END
$$;

CREATE FUNCTION blackboard.tally_of(p_rule text, p_threshold double precision, p_min_turnout double precision, p_weights numeric[], p_choices text[]) RETURNS blackboard.tallied
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT ROW(
        s.n_yes, s.n_no, s.n_abstained, s.n_outstanding, s.yes, s.no, s.abstained, s.total,
        (round(s.yes + s.no + s.abstained, 40) / nullif(s.total, 0))::double precision,
        CASE WHEN passes.now THEN 'accepted' ELSE 'rejected' END,
        (passes.now AND passes.at_worst) OR NOT passes.at_best
    )::blackboard.tallied
    FROM (
        SELECT count(*) FILTER (WHERE e.choice = 'yes')::integer AS n_yes,
               count(*) FILTER (WHERE e.choice = 'no')::integer AS n_no,
               count(*) FILTER (WHERE e.choice = 'abstain')::integer AS n_abstained,
               count(*) FILTER (WHERE e.choice IS NULL)::integer AS n_outstanding,
               coalesce(sum(e.weight) FILTER (WHERE e.choice = 'yes'), 0) AS yes,
               coalesce(sum(e.weight) FILTER (WHERE e.choice = 'no'), 0) AS no,
               coalesce(sum(e.weight) FILTER (WHERE e.choice = 'abstain'), 0) AS abstained,
               coalesce(sum(e.weight) FILTER (WHERE e.choice IS NULL), 0) AS outstanding,
               coalesce(sum(e.weight), 0) AS total
        FROM unnest(p_weights, p_choices) AS e (weight, choice)
    ) s
    CROSS JOIN LATERAL (
        SELECT blackboard.ballots_pass(p_rule, p_threshold, p_min_turnout, s.yes, s.no, s.abstained, s.total) AS now,
               blackboard.ballots_pass(p_rule, p_threshold, p_min_turnout, s.yes + s.outstanding, s.no,
                                       s.abstained, s.total) AS at_best,
               blackboard.ballots_pass(p_rule, p_threshold, p_min_turnout, s.yes, s.no + s.outstanding,
                                       s.abstained, s.total) AS at_worst
    ) passes
$$;

CREATE FUNCTION blackboard.task_content(p_type text, p_capability text, p_priority smallint, p_parameters jsonb, p_options jsonb) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT jsonb_build_object(
        'type', p_type, 'capability', p_capability, 'priority', p_priority, 'parameters', p_parameters,
        'assigned_to', p_options ->> 'assigned_to',
        'run_at', extract(epoch FROM (p_options ->> 'run_at')::timestamptz),
        'timeout', extract(epoch FROM (p_options ->> 'timeout')::interval),
        'requires_approval', coalesce((p_options ->> 'requires_approval')::boolean, false),
        'max_attempts', coalesce((p_options ->> 'max_attempts')::integer, 5),
        'retry_delay', coalesce(extract(epoch FROM (p_options ->> 'retry_delay')::interval), 1),
        'unique', p_options #>> '{unique,key}', 'limit_key', p_options ->> 'limit_key',
        'expires_at', extract(epoch FROM (p_options ->> 'expires_at')::timestamptz),
        'fallback', extract(epoch FROM (p_options ->> 'fallback')::interval),
        -- Named twice, the first counts.
        'depends_on', coalesce((SELECT jsonb_object_agg(d.id, d.on_failure ORDER BY d.n DESC)
                                FROM blackboard.dependency_options(p_options)
                                         WITH ORDINALITY d (id, on_failure, n)), '{}'))
$$;

CREATE FUNCTION blackboard.task_event(p_old text, p_new text, p_error jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT CASE p_new
        WHEN 'running' THEN CASE WHEN p_old IN ('pending', 'assigned') THEN 'task.assigned' END
        WHEN 'completed' THEN CASE WHEN p_old = 'running' THEN 'task.completed' END
        WHEN 'failed' THEN CASE WHEN p_old = 'running' THEN 'task.failed' END
        WHEN 'dead' THEN CASE WHEN p_old = 'running' THEN 'task.dead' END
        WHEN 'cancelled' THEN CASE WHEN p_old NOT IN ('completed', 'failed', 'cancelled') THEN 'task.cancelled' END
        WHEN 'held' THEN CASE WHEN p_old IN ('scheduled', 'blocked', 'awaiting_approval', 'pending', 'assigned')
                              THEN 'task.held' END
        ELSE CASE
            WHEN p_old = 'running' THEN
                CASE WHEN p_new NOT IN ('pending', 'assigned', 'scheduled', 'blocked') THEN NULL
                     WHEN p_error ->> 'code' = 'lease_lapsed' THEN 'task.lapsed'
                     WHEN p_error IS NOT NULL THEN 'task.retried'
                     ELSE 'task.released' END
            WHEN p_old IN ('failed', 'dead') THEN
                CASE WHEN p_new IN ('pending', 'assigned', 'scheduled', 'blocked') THEN 'task.redriven' END
            WHEN p_old IN ('completed', 'cancelled') THEN NULL
            WHEN p_new = 'pending' THEN 'task.ready'
            WHEN p_new = 'assigned' THEN 'task.reserved'
            ELSE 'task.' || p_new
        END
    END
$$;

CREATE FUNCTION blackboard.task_inputs(p_session_id uuid, p_task_id uuid) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT coalesce(jsonb_object_agg(b.key, coalesce(
               CASE WHEN x.source = 'inputs' THEN f.inputs
                    ELSE blackboard.stage_result(p_session_id, f.id, p.name) END #> x.path, 'null')), '{}')
    FROM blackboard.flow_tasks t
    JOIN blackboard.flows f ON f.session_id = t.session_id AND f.id = t.flow_id
    JOIN blackboard.flow_stages s ON s.session_id = t.session_id AND s.flow_id = t.flow_id AND s.name = t.stage
    CROSS JOIN LATERAL jsonb_each(s.bindings) b
    CROSS JOIN LATERAL blackboard.flow_binding(b.value #>> '{}') x
    LEFT JOIN blackboard.flow_stages p ON p.session_id = s.session_id AND p.flow_id = s.flow_id
                                      AND x.source IN (p.name, p.output)
    WHERE t.session_id = p_session_id AND t.task_id = p_task_id AND t.kind = 'stage'
$$;

CREATE FUNCTION blackboard.tasks_of_stages(p_session_id uuid, p_flow_id uuid, p_stages text[]) RETURNS uuid[]
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
    RETURN array(
        SELECT s.task_id
        FROM unnest(p_stages) x (name)
        CROSS JOIN LATERAL (
            SELECT o.task_id FROM blackboard.flow_stages o
            WHERE o.session_id = p_session_id AND o.flow_id = p_flow_id AND o.name = x.name OFFSET 0) s);
END
$$;

CREATE FUNCTION blackboard.tend_gates(p_session_id uuid, p_now timestamp with time zone) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF current_setting('blackboard.slots', true) = 'locked' THEN
        PERFORM blackboard.tend_gates_briefly(p_session_id, p_now);
    ELSE
        PERFORM blackboard.tend_gates_now(p_session_id, p_now);
    END IF;
END
$$;

CREATE FUNCTION blackboard.tend_gates_briefly(p_session_id uuid, p_now timestamp with time zone) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '20ms'
    AS $$
BEGIN
    PERFORM blackboard.tend_gates_now(p_session_id, p_now);
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    NULL;
END
$$;

CREATE FUNCTION blackboard.tend_gates_now(p_session_id uuid, p_now timestamp with time zone) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_id uuid;
    v_step interval;
    v_aged_at timestamptz;
BEGIN
    SELECT s.ageing INTO v_step FROM blackboard.sessions s WHERE s.id = p_session_id;
    IF v_step IS NOT NULL THEN
        INSERT INTO blackboard.upkeep (session_id, aged_at) VALUES (p_session_id, '-infinity') ON CONFLICT DO NOTHING;
        SELECT u.aged_at INTO v_aged_at FROM blackboard.upkeep u
        WHERE u.session_id = p_session_id FOR UPDATE SKIP LOCKED;
        IF v_aged_at <= p_now - least(v_step / 4, interval '10 seconds') OR v_aged_at > p_now THEN
            PERFORM blackboard.age_tasks(p_session_id, v_step, p_now, 1000);
            UPDATE blackboard.upkeep SET aged_at = p_now WHERE session_id = p_session_id;
        END IF;
    END IF;
    -- Last, because it locks counters.
    FOR v_id IN SELECT p.id FROM blackboard.pauses p WHERE p.session_id = p_session_id AND p.resumed_at IS NOT NULL LOOP
        PERFORM blackboard.retire_pause(p_session_id, v_id, 200);
    END LOOP;
    FOR v_id IN SELECT l.id FROM blackboard.limits l WHERE l.session_id = p_session_id AND l.removed_at IS NOT NULL LOOP
        PERFORM blackboard.retire_limit(p_session_id, v_id, 200);
    END LOOP;
END
$$;

CREATE FUNCTION blackboard.tend_leases(p_limit integer DEFAULT 200) RETURNS integer
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
    -- Somebody may have looked since; that is no clock that went back.
    v_now := blackboard.now();
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

CREATE FUNCTION blackboard.try_counters(p_session_id uuid, p_limits uuid[], p_keys text[]) RETURNS bigint[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '20ms'
    AS $$
DECLARE
    v_locked bigint[];
BEGIN
    BEGIN
        SELECT array_agg(x.i) INTO v_locked FROM (
            SELECT n.i FROM unnest(p_limits, p_keys) WITH ORDINALITY n (limit_id, key, i)
            JOIN blackboard.limit_usage u
              ON u.session_id = p_session_id AND u.limit_id = n.limit_id AND u.key = n.key
            ORDER BY n.i FOR UPDATE OF u SKIP LOCKED) x;
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
        RETURN NULL;
    END;
    IF v_locked IS NOT NULL THEN
        PERFORM set_config('blackboard.slots', 'locked', true);
    END IF;
    RETURN v_locked;
END
$$;

CREATE FUNCTION blackboard.tx_offset() RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT 0::bigint $$;

CREATE FUNCTION blackboard.unique_tasks(p_session_id uuid, p_ids uuid[], p_options jsonb[]) RETURNS uuid[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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
            -- The same call again, while the first was under way.
            CONTINUE WHEN EXISTS (SELECT FROM blackboard.tasks t WHERE t.session_id = p_session_id AND t.id = v_new.id);
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

CREATE TABLE blackboard.flow_stages (
    session_id uuid NOT NULL,
    flow_id uuid NOT NULL,
    name text NOT NULL,
    ordinal integer NOT NULL,
    state text DEFAULT 'waiting'::text NOT NULL,
    task_id uuid NOT NULL,
    template jsonb NOT NULL,
    join_need integer,
    bindings jsonb DEFAULT '{}'::jsonb NOT NULL,
    output text,
    compensation jsonb,
    compensation_task_id uuid,
    min_quality double precision,
    max_iterations integer DEFAULT 1 NOT NULL,
    loop_to text,
    iteration integer DEFAULT 1 NOT NULL,
    loops integer DEFAULT 0 NOT NULL,
    quality double precision,
    stopping boolean DEFAULT false NOT NULL,
    error jsonb,
    CONSTRAINT flow_stages_bindings_object CHECK ((jsonb_typeof(bindings) = 'object'::text)),
    CONSTRAINT flow_stages_join_range CHECK ((join_need >= 1)),
    CONSTRAINT flow_stages_loop_has_quality CHECK (((loop_to IS NULL) OR (min_quality IS NOT NULL))),
    CONSTRAINT flow_stages_max_iterations_range CHECK (((max_iterations >= 1) AND (max_iterations <= 100))),
    CONSTRAINT flow_stages_min_quality_range CHECK (((min_quality >= (0)::double precision) AND (min_quality <= (1)::double precision))),
    CONSTRAINT flow_stages_name_form CHECK (((name ~ '^[^[:space:][:cntrl:].]{1,100}$'::text) AND (name <> 'inputs'::text))),
    CONSTRAINT flow_stages_output_form CHECK (((output ~ '^[^[:space:][:cntrl:].]{1,100}$'::text) AND (output <> 'inputs'::text))),
    CONSTRAINT flow_stages_quality_range CHECK (((quality >= (0)::double precision) AND (quality <= (1)::double precision))),
    CONSTRAINT flow_stages_state_known CHECK ((state = ANY (ARRAY['waiting'::text, 'ready'::text, 'completed'::text, 'failed'::text, 'skipped'::text, 'cancelled'::text])))
)
WITH (autovacuum_analyze_scale_factor='0.05');

CREATE FUNCTION blackboard.unstarted_stage(p_session_id uuid, p_flow blackboard.flows, p_name text) RETURNS blackboard.flow_stages
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_stage blackboard.flow_stages;
    v_task record;
BEGIN
    SELECT * INTO v_stage FROM blackboard.flow_stages s
    WHERE s.session_id = p_session_id AND s.flow_id = p_flow.id AND s.name = p_name;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('This flow has no stage %L.', p_name),
                                 jsonb_build_object('noun', 'stage', 'id', p_name));
    END IF;
    SELECT t.status, t.attempt INTO v_task FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.id = v_stage.task_id AND t.status <> 'running' FOR UPDATE;
    IF NOT FOUND OR v_stage.state NOT IN ('waiting', 'ready') OR v_task.status = 'running' OR v_task.attempt > 0 THEN
        PERFORM blackboard.raise('BB012', format('Stage %L has started: what is done or being done stays as it is.', p_name),
                                 jsonb_build_object('noun', 'flow', 'id', p_flow.id, 'stage', p_name,
                                                    'state', v_stage.state, 'version', p_flow.version));
    END IF;
    RETURN v_stage;
END
$$;

CREATE FUNCTION blackboard.update_session(p_session_id uuid, p_goal text, p_context jsonb, p_status text, p_actor text, p_key text) RETURNS blackboard.sessions
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_session blackboard.sessions;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    -- The key comes before the state: a repeated call finds what the first did, also after the session was closed.
    IF blackboard.first_time(p_session_id, p_key, 'update_session',
                             jsonb_build_array(p_goal, p_context, p_status)) THEN
        PERFORM blackboard.open_session(p_session_id);
        UPDATE blackboard.sessions
        SET goal = coalesce(p_goal, goal), context = coalesce(p_context, context),
            status = coalesce(p_status, status)
        WHERE id = p_session_id;
    END IF;
    SELECT * INTO v_session FROM blackboard.sessions WHERE id = p_session_id;
    RETURN v_session;
END
$$;

CREATE FUNCTION blackboard.users_of_tasks() RETURNS text[]
    LANGUAGE sql
    AS $$
    SELECT array(SELECT DISTINCT l.virtualtransaction FROM pg_catalog.pg_locks l
                 WHERE l.relation = 'blackboard.tasks'::regclass AND l.pid IS DISTINCT FROM pg_backend_pid())
$$;

CREATE FUNCTION blackboard.validate_hypothesis(p_session_id uuid, p_id uuid, p_result boolean, p_evidence uuid[], p_reason text, p_actor text) RETURNS blackboard.hypotheses
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_hypothesis blackboard.hypotheses;
    v_evidence uuid[];
    v_status text := CASE WHEN p_result THEN 'validated' ELSE 'refuted' END;
    v_id uuid;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    SELECT coalesce(array_agg(DISTINCT v.id), '{}') INTO v_evidence FROM unnest(p_evidence) v (id);
    IF p_result IS NULL THEN
        PERFORM blackboard.raise('BB002', 'A verdict is true or false.', '{"field": "result"}');
    END IF;
    IF v_evidence = '{}' THEN
        PERFORM blackboard.raise('BB002', 'A verdict needs evidence: name at least one active finding.',
                                 '{"field": "evidence"}');
    END IF;
    PERFORM 1 FROM blackboard.findings f
    WHERE f.session_id = p_session_id AND f.id = ANY (v_evidence) ORDER BY f.id FOR SHARE;
    SELECT * INTO v_hypothesis FROM blackboard.hypotheses h
    WHERE h.session_id = p_session_id AND h.id = p_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.no_hypothesis(p_id);
    END IF;
    IF v_hypothesis.status = v_status THEN
        RETURN v_hypothesis;
    END IF;
    PERFORM blackboard.proposed_hypothesis(p_session_id, p_id);
    FOREACH v_id IN ARRAY v_evidence LOOP
        PERFORM blackboard.active_finding(p_session_id, v_id);
    END LOOP;
    UPDATE blackboard.hypotheses
    SET status = v_status, validated_by = blackboard.current_actor(), validated_at = blackboard.now(),
        verdict_evidence = v_evidence, reason = coalesce(p_reason, '')
    WHERE session_id = p_session_id AND id = p_id
    RETURNING * INTO v_hypothesis;
    RETURN v_hypothesis;
END
$$;

CREATE FUNCTION blackboard.vote(p_session_id uuid, p_proposal_id uuid, p_agent_id text, p_choice text, p_confidence double precision DEFAULT NULL::double precision, p_reason text DEFAULT ''::text, p_key text DEFAULT NULL::text) RETURNS blackboard.proposals
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_proposal blackboard.proposals;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    IF blackboard.first_time(p_session_id, p_key, 'vote',
                             jsonb_build_array(p_proposal_id, p_agent_id, p_choice, p_confidence, p_reason)) THEN
        -- Waits for whoever is voting, so that the ballot found below is the last one.
        PERFORM FROM blackboard.proposals
        WHERE session_id = p_session_id AND id = p_proposal_id FOR NO KEY UPDATE;
        PERFORM FROM blackboard.votes v
        WHERE v.session_id = p_session_id AND v.proposal_id = p_proposal_id AND v.agent_id = p_agent_id
          AND (v.choice, v.confidence, v.reason) IS NOT DISTINCT FROM (p_choice, p_confidence, p_reason);
        IF NOT FOUND THEN
            UPDATE blackboard.votes SET choice = p_choice, confidence = p_confidence, reason = p_reason
            WHERE session_id = p_session_id AND proposal_id = p_proposal_id AND agent_id = p_agent_id;
            IF NOT FOUND THEN
                INSERT INTO blackboard.votes (session_id, proposal_id, agent_id, choice, confidence, reason)
                VALUES (p_session_id, p_proposal_id, p_agent_id, p_choice, p_confidence, p_reason);
            END IF;
        END IF;
    END IF;
    SELECT * INTO v_proposal FROM blackboard.proposals WHERE session_id = p_session_id AND id = p_proposal_id;
    RETURN v_proposal;
END
$$;

CREATE FUNCTION blackboard.votes_admit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    v_proposal blackboard.proposals;
BEGIN
    PERFORM blackboard.open_session(NEW.session_id);
    IF TG_OP = 'UPDATE' AND (NEW.session_id, NEW.proposal_id, NEW.agent_id)
                            IS DISTINCT FROM (OLD.session_id, OLD.proposal_id, OLD.agent_id) THEN
        PERFORM blackboard.raise('BB005', 'A ballot stays its elector''s and its proposal''s; cast another one.',
                                 jsonb_build_object('noun', 'vote'));
    END IF;
    UPDATE blackboard.proposals SET ballots = ballots + 1
    WHERE session_id = NEW.session_id AND id = NEW.proposal_id AND status = 'open'
    RETURNING * INTO v_proposal;
    IF NOT FOUND THEN
        SELECT * INTO v_proposal FROM blackboard.proposals WHERE session_id = NEW.session_id AND id = NEW.proposal_id;
        IF NOT FOUND THEN
            PERFORM blackboard.raise('BB001', format('There is no proposal %s in this session.', NEW.proposal_id),
                                     jsonb_build_object('noun', 'proposal', 'id', NEW.proposal_id));
        END IF;
        PERFORM blackboard.raise('BB003', format('The proposal is %s already and takes no more ballots.',
                                                 v_proposal.status),
                                 jsonb_build_object('noun', 'proposal', 'id', NEW.proposal_id,
                                                    'status', v_proposal.status));
    END IF;
    IF v_proposal.deadline_at <= blackboard.now() THEN
        PERFORM blackboard.raise('BB003', 'The deadline of this proposal has passed; it takes no more ballots.',
                                 jsonb_build_object('noun', 'proposal', 'id', NEW.proposal_id, 'status', 'open',
                                                    'deadline_at', v_proposal.deadline_at));
    END IF;
    PERFORM FROM blackboard.proposal_electors e
    WHERE e.session_id = NEW.session_id AND e.proposal_id = NEW.proposal_id AND e.agent_id = NEW.agent_id;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB005',
            format('%s may not vote on this proposal: its electorate was fixed when it was opened.', NEW.agent_id),
            jsonb_build_object('noun', 'proposal', 'id', NEW.proposal_id, 'agent_id', NEW.agent_id));
    END IF;
    PERFORM blackboard.current_member(NEW.session_id, NEW.agent_id);
    NEW.cast_at := blackboard.now();
    NEW.revision := CASE WHEN TG_OP = 'UPDATE' THEN OLD.revision + 1 ELSE 1 END;
    RETURN NEW;
END
$$;

CREATE FUNCTION blackboard.votes_keep() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM FROM blackboard.proposals WHERE session_id = OLD.session_id AND id = OLD.proposal_id;
    IF FOUND THEN
        PERFORM blackboard.raise('BB005', 'A ballot cannot be taken away; change it to abstain while the vote is open.',
                                 jsonb_build_object('noun', 'vote', 'id', OLD.proposal_id));
    END IF;
    RETURN OLD;
END
$$;

CREATE FUNCTION blackboard.wake_due(p_session_id uuid, p_now timestamp with time zone, p_limit integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    WITH due AS MATERIALIZED (
        SELECT t.session_id, t.id FROM blackboard.tasks t
        WHERE t.session_id = p_session_id AND t.status = 'scheduled' AND t.run_at <= p_now
        ORDER BY t.run_at LIMIT p_limit FOR UPDATE SKIP LOCKED)
    UPDATE blackboard.tasks t
    SET status = CASE WHEN t.blockers > 0 THEN 'blocked'
                      WHEN t.assigned_to IS NOT NULL AND t.claim_id IS NULL THEN 'assigned' ELSE 'pending' END,
        position = CASE WHEN t.blockers = 0 THEN nextval('blackboard.task_positions') END, held = NULL
    FROM due d WHERE t.session_id = d.session_id AND t.id = d.id;
END
$$;

CREATE FUNCTION blackboard.wake_due_briefly(p_session_id uuid, p_now timestamp with time zone, p_limit integer) RETURNS void
    LANGUAGE plpgsql
    SET lock_timeout TO '20ms'
    AS $$
BEGIN
    PERFORM blackboard.wake_due(p_session_id, p_now, p_limit);
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    NULL;
END
$$;

CREATE FUNCTION blackboard.wake_scheduled(p_session_id uuid, p_now timestamp with time zone, p_limit integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM 1 FROM blackboard.tasks t
    WHERE t.session_id = p_session_id AND t.status = 'scheduled' AND t.run_at <= p_now LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF current_setting('blackboard.slots', true) = 'locked' THEN
        PERFORM blackboard.wake_due_briefly(p_session_id, p_now, p_limit);
    ELSE
        PERFORM blackboard.wake_due(p_session_id, p_now, p_limit);
    END IF;
END
$$;

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

CREATE FUNCTION blackboard.why_task(p_session_id uuid, p_id uuid) RETURNS jsonb
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

CREATE FUNCTION blackboard.why_task_waits(p_session_id uuid, p_id uuid) RETURNS jsonb
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

CREATE FUNCTION blackboard.wire_stages(p_session_id uuid, p_flow_id uuid, p_stages jsonb) RETURNS void
    LANGUAGE plpgsql
    SET xmloption TO 'document'
    SET enable_nestloop TO 'off'
    SET enable_hashjoin TO 'on'
    AS $_$
DECLARE
    v_edge record;
BEGIN
    SELECT e.stage, e.depends_on, e.count INTO v_edge FROM (
        SELECT d.stage, d.depends_on, count(*) AS count FROM blackboard.described_edges(p_stages) d
        GROUP BY d.stage, d.depends_on) e
    WHERE e.count > 1 OR e.depends_on = e.stage
       OR NOT EXISTS (SELECT FROM blackboard.flow_stages s
                      WHERE s.session_id = p_session_id AND s.flow_id = p_flow_id AND s.name = e.depends_on)
    LIMIT 1;
    IF FOUND THEN
        IF v_edge.depends_on = v_edge.stage THEN
            PERFORM blackboard.raise('BB008', format('The stages form a cycle: %1$s -> %1$s. Leave this edge out.',
                                                     v_edge.stage),
                                     jsonb_build_object('field', 'after',
                                                        'path', jsonb_build_array(v_edge.stage, v_edge.stage)));
        END IF;
        PERFORM blackboard.raise('BB002', format(CASE WHEN v_edge.count > 1 THEN 'Stage %L names %L twice in after.'
                                                      ELSE 'Stage %L comes after %L, which is no stage of this flow.' END,
                                                 v_edge.stage, v_edge.depends_on),
                                 jsonb_build_object('field', 'after', 'stage', v_edge.stage,
                                                    'depends_on', v_edge.depends_on));
    END IF;
    INSERT INTO blackboard.flow_edges (session_id, flow_id, stage, depends_on, on_failure)
    SELECT p_session_id, p_flow_id, d.stage, d.depends_on, d.on_failure FROM blackboard.described_edges(p_stages) d;
END
$_$;

CREATE FUNCTION blackboard.with_flows(p_session_id uuid, p_ids uuid[]) RETURNS uuid[]
    LANGUAGE plpgsql
    SET lock_timeout TO '20ms'
    AS $$
DECLARE
    v_flows uuid[];
    v_locked uuid[];
BEGIN
    SELECT array_agg(DISTINCT w.flow_id) INTO v_flows FROM blackboard.flow_tasks w
    WHERE w.session_id = p_session_id AND w.task_id = ANY (p_ids);
    IF v_flows IS NULL THEN
        RETURN p_ids;
    END IF;
    BEGIN
        SELECT array_agg(x.id) INTO v_locked FROM (
            SELECT f.id FROM blackboard.flows f WHERE f.session_id = p_session_id AND f.id = ANY (v_flows)
            ORDER BY f.id FOR UPDATE SKIP LOCKED) x;
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
        v_locked := NULL;
    END;
    RETURN array(
        SELECT o.id FROM unnest(p_ids) WITH ORDINALITY o (id, n)
        WHERE NOT EXISTS (SELECT FROM blackboard.flow_tasks w
                          WHERE w.session_id = p_session_id AND w.task_id = o.id
                            AND w.flow_id <> ALL (coalesce(v_locked, '{}')))
        ORDER BY o.n);
END
$$;

CREATE FUNCTION blackboard.with_note(p_parameters jsonb, p_name text, p_note jsonb) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    AS $$
DECLARE
    v_base jsonb := CASE WHEN p_note IS NULL OR jsonb_typeof(p_parameters) = 'object' THEN p_parameters
                         ELSE jsonb_build_object('parameters', p_parameters) END;
    v_whole jsonb;
BEGIN
    IF p_note IS NULL THEN
        RETURN v_base;
    END IF;
    v_whole := v_base || jsonb_build_object(p_name, p_note);
    IF pg_column_size(v_whole) > 1000000 THEN
        v_whole := v_base || jsonb_build_object(p_name, p_note - 'result');
    END IF;
    RETURN CASE WHEN pg_column_size(v_whole) > 1000000 THEN v_base ELSE v_whole END;
END
$$;

CREATE FUNCTION blackboard.withdraw_hypothesis(p_session_id uuid, p_id uuid, p_reason text, p_actor text) RETURNS blackboard.hypotheses
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_hypothesis blackboard.hypotheses;
BEGIN
    PERFORM blackboard.act_as(p_actor);
    PERFORM blackboard.open_session(p_session_id);
    SELECT * INTO v_hypothesis FROM blackboard.hypotheses h
    WHERE h.session_id = p_session_id AND h.id = p_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.no_hypothesis(p_id);
    END IF;
    IF v_hypothesis.agent_id <> blackboard.current_actor() THEN
        PERFORM blackboard.raise('BB005',
            format('Only its author, %s, may withdraw this hypothesis; refute it instead.', v_hypothesis.agent_id),
            jsonb_build_object('noun', 'hypothesis', 'id', p_id, 'agent_id', v_hypothesis.agent_id));
    END IF;
    IF v_hypothesis.status = 'withdrawn' THEN
        RETURN v_hypothesis;
    END IF;
    PERFORM blackboard.proposed_hypothesis(p_session_id, p_id);
    UPDATE blackboard.hypotheses SET status = 'withdrawn', reason = coalesce(p_reason, '')
    WHERE session_id = p_session_id AND id = p_id
    RETURNING * INTO v_hypothesis;
    RETURN v_hypothesis;
END
$$;

CREATE FUNCTION blackboard.withdraw_proposal(p_session_id uuid, p_proposal_id uuid, p_agent_id text) RETURNS blackboard.proposals
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_proposal blackboard.proposals;
BEGIN
    PERFORM blackboard.act_as(p_agent_id);
    SELECT * INTO v_proposal FROM blackboard.proposals
    WHERE session_id = p_session_id AND id = p_proposal_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM blackboard.raise('BB001', format('There is no proposal %s in this session.', p_proposal_id),
                                 jsonb_build_object('noun', 'proposal', 'id', p_proposal_id));
    END IF;
    IF v_proposal.agent_id <> p_agent_id THEN
        PERFORM blackboard.raise('BB005', format('Only %s, who opened this proposal, may withdraw it.',
                                                 v_proposal.agent_id),
                                 jsonb_build_object('noun', 'proposal', 'id', p_proposal_id,
                                                    'agent_id', v_proposal.agent_id));
    END IF;
    IF v_proposal.status = 'withdrawn' THEN
        RETURN v_proposal;
    END IF;
    PERFORM blackboard.open_session(p_session_id);
    IF v_proposal.deadline_at <= blackboard.now() AND v_proposal.status = 'open' THEN
        PERFORM blackboard.raise('BB003', 'The deadline of this proposal has passed; it can no longer be withdrawn.',
                                 jsonb_build_object('noun', 'proposal', 'id', p_proposal_id, 'status', 'open',
                                                    'deadline_at', v_proposal.deadline_at));
    END IF;
    -- The guard refuses it for a closed one.
    UPDATE blackboard.proposals SET status = 'withdrawn' WHERE session_id = p_session_id AND id = p_proposal_id
    RETURNING * INTO v_proposal;
    RETURN v_proposal;
END
$$;

CREATE VIEW blackboard.agent_findings AS
 SELECT id,
    session_id,
    (agent_id)::character varying(100) AS agent_id,
    (type)::character varying(50) AS finding_type,
    content,
    confidence,
    created_at
   FROM blackboard.findings f;

CREATE VIEW blackboard.agent_sessions AS
 SELECT id,
    created_at,
    context,
    (status)::character varying(50) AS status
   FROM blackboard.sessions s;

CREATE VIEW blackboard.agent_tasks AS
 SELECT id,
    session_id,
    (assigned_to)::character varying(100) AS assigned_to,
    (type)::character varying(50) AS task_type,
    parameters,
    (status)::character varying(50) AS status,
    result,
    created_at,
    completed_at
   FROM blackboard.tasks t;

CREATE TABLE blackboard.corroborations (
    session_id uuid NOT NULL,
    finding_id uuid NOT NULL,
    agent_id text NOT NULL,
    report_id uuid DEFAULT gen_random_uuid() NOT NULL,
    confidence double precision,
    evidence jsonb DEFAULT '[]'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    CONSTRAINT corroborations_agent_id_length CHECK (((length(agent_id) >= 1) AND (length(agent_id) <= 100))),
    CONSTRAINT corroborations_confidence_range CHECK (((confidence >= (0)::double precision) AND (confidence <= (1)::double precision))),
    CONSTRAINT corroborations_evidence_items CHECK (((jsonb_typeof(evidence) = 'array'::text) AND (NOT (evidence @? '$[*]?(!(@.type() == "object" && @."source".type() == "string"))'::jsonpath)) AND (NOT (evidence @? '$[*].keyvalue()?((@."key" != "source" && @."key" != "query") && @."key" != "result")'::jsonpath)))),
    CONSTRAINT corroborations_evidence_size CHECK ((pg_column_size(evidence) <= 1048576))
);

CREATE SEQUENCE blackboard.event_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

CREATE TABLE blackboard.events (
    session_id uuid NOT NULL,
    tx bigint DEFAULT blackboard.current_tx() NOT NULL,
    seq bigint DEFAULT nextval('blackboard.event_seq'::regclass) NOT NULL,
    at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    actor text DEFAULT blackboard.current_actor() NOT NULL,
    type text NOT NULL,
    subject_id uuid NOT NULL,
    data jsonb NOT NULL
);

COMMENT ON TABLE blackboard.events IS 'Append-only history: audit, outbox and topic source. seq orders it; tx serves cursors only.';

CREATE TABLE blackboard.flow_edges (
    session_id uuid NOT NULL,
    flow_id uuid NOT NULL,
    stage text NOT NULL,
    depends_on text NOT NULL,
    on_failure text DEFAULT 'fail'::text NOT NULL,
    CONSTRAINT flow_edges_on_failure_known CHECK ((on_failure = ANY (ARRAY['fail'::text, 'skip'::text, 'continue'::text, 'compensate'::text])))
)
WITH (autovacuum_analyze_scale_factor='0.05');

CREATE TABLE blackboard.flow_tasks (
    session_id uuid NOT NULL,
    task_id uuid NOT NULL,
    flow_id uuid NOT NULL,
    stage text NOT NULL,
    iteration integer NOT NULL,
    kind text DEFAULT 'stage'::text NOT NULL,
    CONSTRAINT flow_tasks_kind_known CHECK ((kind = ANY (ARRAY['stage'::text, 'compensation'::text])))
);

CREATE TABLE blackboard.history (
    only_row boolean DEFAULT true NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    system_identifier text NOT NULL,
    CONSTRAINT history_only_row CHECK (only_row)
);

CREATE TABLE blackboard.hypothesis_assessments (
    session_id uuid NOT NULL,
    hypothesis_id uuid NOT NULL,
    agent_id text DEFAULT blackboard.current_actor() NOT NULL,
    confidence double precision NOT NULL,
    reason text DEFAULT ''::text NOT NULL,
    at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    CONSTRAINT hypothesis_assessments_agent_id_length CHECK (((length(agent_id) >= 1) AND (length(agent_id) <= 100))),
    CONSTRAINT hypothesis_assessments_confidence_range CHECK (((confidence >= (0)::double precision) AND (confidence <= (1)::double precision))),
    CONSTRAINT hypothesis_assessments_reason_length CHECK ((length(reason) <= 4000))
);

CREATE TABLE blackboard.hypothesis_evidence (
    session_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    hypothesis_id uuid NOT NULL,
    finding_id uuid NOT NULL,
    agent_id text DEFAULT blackboard.current_actor() NOT NULL,
    supports boolean DEFAULT true NOT NULL,
    weight double precision DEFAULT 1 NOT NULL,
    reason text DEFAULT ''::text NOT NULL,
    created_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    retracted_at timestamp with time zone,
    CONSTRAINT hypothesis_evidence_agent_id_length CHECK (((length(agent_id) >= 1) AND (length(agent_id) <= 100))),
    CONSTRAINT hypothesis_evidence_reason_length CHECK ((length(reason) <= 4000)),
    CONSTRAINT hypothesis_evidence_weight_range CHECK (((weight > (0)::double precision) AND (weight <= (1)::double precision)))
);

CREATE TABLE blackboard.keyed_tasks (
    session_id uuid NOT NULL,
    key text NOT NULL,
    task_id uuid NOT NULL
);

CREATE TABLE blackboard.late_results (
    session_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    task_id uuid NOT NULL,
    claim_id uuid NOT NULL,
    attempt integer NOT NULL,
    agent_id text NOT NULL,
    result jsonb,
    error jsonb,
    at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    CONSTRAINT late_results_agent_id_length CHECK (((length(agent_id) >= 1) AND (length(agent_id) <= 100))),
    CONSTRAINT late_results_error_size CHECK ((pg_column_size(error) <= 1048576)),
    CONSTRAINT late_results_result_size CHECK ((pg_column_size(result) <= 1048576))
);

CREATE TABLE blackboard.limit_usage (
    session_id uuid NOT NULL,
    limit_id uuid NOT NULL,
    key text DEFAULT ''::text NOT NULL,
    running integer DEFAULT 0 NOT NULL,
    waiting boolean DEFAULT false NOT NULL,
    window_started_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    used integer DEFAULT 0 NOT NULL,
    deferred integer DEFAULT 0 NOT NULL,
    CONSTRAINT limit_usage_deferred_range CHECK ((deferred >= 0)),
    CONSTRAINT limit_usage_running_range CHECK ((running >= 0)),
    CONSTRAINT limit_usage_used_range CHECK ((used >= 0))
)
WITH (fillfactor='50');

CREATE TABLE blackboard.liveness (
    only_row boolean DEFAULT true NOT NULL,
    checked_at timestamp with time zone NOT NULL,
    grace_from timestamp with time zone NOT NULL,
    repaired_at timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    unswept boolean DEFAULT false NOT NULL,
    CONSTRAINT liveness_only_row CHECK (only_row)
)
WITH (fillfactor='10');

CREATE TABLE blackboard.lock_waiters (
    session_id uuid NOT NULL,
    id uuid NOT NULL,
    lock_id uuid NOT NULL,
    agent_id text NOT NULL,
    lease_id uuid NOT NULL,
    "position" bigint NOT NULL,
    ttl interval,
    enqueued_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    deadline_at timestamp with time zone NOT NULL
);

CREATE TABLE blackboard.proposal_electors (
    session_id uuid NOT NULL,
    proposal_id uuid NOT NULL,
    agent_id text NOT NULL,
    weight numeric NOT NULL,
    CONSTRAINT proposal_electors_weight_range CHECK (((weight >= (0)::numeric) AND (weight <= (1000000)::numeric)))
);

COMMENT ON TABLE blackboard.proposal_electors IS 'Who may vote, fixed at opening; written by the proposal''s own trigger.';

CREATE TABLE blackboard.pruned_events (
    session_id uuid NOT NULL,
    tx bigint NOT NULL,
    seq bigint NOT NULL,
    pruned_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    kept bigint[] DEFAULT '{}'::bigint[] NOT NULL,
    taken bigint[] DEFAULT '{}'::bigint[] NOT NULL,
    taken_from bigint DEFAULT 0 NOT NULL
);

CREATE TABLE blackboard.requests (
    session_id uuid NOT NULL,
    key text NOT NULL,
    verb text NOT NULL,
    digest text NOT NULL,
    at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    result jsonb,
    CONSTRAINT requests_key_length CHECK (((length(key) >= 1) AND (length(key) <= 200)))
);

CREATE TABLE blackboard.retentions (
    session_id uuid NOT NULL,
    tasks interval,
    events interval,
    due_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    phase text DEFAULT 'tasks'::text NOT NULL,
    after_id uuid,
    error text,
    CONSTRAINT retentions_events_range CHECK (((events >= '01:00:00'::interval) AND (events <= '36500 days'::interval))),
    CONSTRAINT retentions_phase_known CHECK ((phase = ANY (ARRAY['tasks'::text, 'flows'::text, 'events'::text]))),
    CONSTRAINT retentions_tasks_range CHECK (((tasks >= '00:00:00'::interval) AND (tasks <= '36500 days'::interval)))
)
WITH (fillfactor='50');

CREATE TABLE blackboard.schema_version (
    version_num character varying(32) NOT NULL
);

CREATE VIEW blackboard.state_history AS
 SELECT session_id,
    seq,
    at,
    actor,
    noun,
    subject_id,
    event,
    field,
    old,
    new
   FROM ( SELECT e.session_id,
            e.seq,
            e.at,
            e.actor,
            split_part(e.type, '.'::text, 1) AS noun,
            e.subject_id,
            e.type AS event,
            d.key AS field,
            lag(d.value) OVER (PARTITION BY e.session_id, e.subject_id, d.key ORDER BY e.seq) AS old,
            d.value AS new
           FROM (blackboard.events e
             CROSS JOIN LATERAL jsonb_each(e.data) d(key, value))) c
  WHERE (new IS DISTINCT FROM old);

CREATE TABLE blackboard.task_dependencies (
    session_id uuid NOT NULL,
    task_id uuid NOT NULL,
    depends_on_id uuid NOT NULL,
    on_failure text DEFAULT 'fail'::text NOT NULL,
    state text DEFAULT 'waiting'::text NOT NULL,
    CONSTRAINT task_dependencies_not_itself CHECK ((task_id <> depends_on_id)),
    CONSTRAINT task_dependencies_on_failure_known CHECK ((on_failure = ANY (ARRAY['fail'::text, 'continue'::text]))),
    CONSTRAINT task_dependencies_state_known CHECK ((state = ANY (ARRAY['waiting'::text, 'satisfied'::text, 'failed'::text])))
);

CREATE TABLE blackboard.task_keys (
    session_id uuid NOT NULL,
    key text NOT NULL,
    task_id uuid NOT NULL
);

CREATE VIEW blackboard.task_limits AS
 SELECT t.session_id,
    t.id AS task_id,
    t.status,
    l.id AS limit_id,
    l.name,
    l.kind,
        CASE
            WHEN l.per_key THEN t.limit_key
            ELSE ''::text
        END AS key,
    l.max_running,
    l.rate_count,
    l.rate_period
   FROM (blackboard.tasks t
     JOIN blackboard.limits l ON (((l.session_id = t.session_id) AND (l.removed_at IS NULL) AND (COALESCE(l.type, t.type) = t.type) AND (COALESCE(l.capability, t.capability) = t.capability) AND ((NOT l.per_key) OR (t.limit_key IS NOT NULL)))));

CREATE TABLE blackboard.task_slots (
    session_id uuid NOT NULL,
    task_id uuid NOT NULL,
    limit_id uuid NOT NULL,
    key text NOT NULL
);

CREATE TABLE blackboard.unsettled_limits (
    session_id uuid NOT NULL,
    limit_id uuid NOT NULL,
    others text[]
);

CREATE TABLE blackboard.upkeep (
    session_id uuid NOT NULL,
    aged_at timestamp with time zone DEFAULT blackboard.now() NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE blackboard.votes (
    session_id uuid NOT NULL,
    proposal_id uuid NOT NULL,
    agent_id text NOT NULL,
    choice text NOT NULL,
    confidence double precision,
    reason text DEFAULT ''::text NOT NULL,
    cast_at timestamp with time zone DEFAULT blackboard.now() NOT NULL,
    revision integer DEFAULT 1 NOT NULL,
    CONSTRAINT votes_choice_known CHECK ((choice = ANY (ARRAY['yes'::text, 'no'::text, 'abstain'::text]))),
    CONSTRAINT votes_confidence_range CHECK (((confidence >= (0)::double precision) AND (confidence <= (1)::double precision))),
    CONSTRAINT votes_reason_length CHECK ((length(reason) <= 4000)),
    CONSTRAINT votes_revision_range CHECK ((revision >= 1))
);

ALTER TABLE ONLY blackboard.agent_findings ALTER COLUMN id SET DEFAULT gen_random_uuid();

ALTER TABLE ONLY blackboard.agent_findings ALTER COLUMN created_at SET DEFAULT blackboard.now();

ALTER TABLE ONLY blackboard.agent_sessions ALTER COLUMN id SET DEFAULT gen_random_uuid();

ALTER TABLE ONLY blackboard.agent_sessions ALTER COLUMN created_at SET DEFAULT blackboard.now();

ALTER TABLE ONLY blackboard.agent_sessions ALTER COLUMN status SET DEFAULT 'active'::character varying;

ALTER TABLE ONLY blackboard.agent_tasks ALTER COLUMN id SET DEFAULT blackboard.new_id();

ALTER TABLE ONLY blackboard.agent_tasks ALTER COLUMN status SET DEFAULT 'pending'::character varying;

ALTER TABLE ONLY blackboard.agent_tasks ALTER COLUMN created_at SET DEFAULT blackboard.now();

ALTER TABLE ONLY blackboard.actions
    ADD CONSTRAINT actions_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.agents
    ADD CONSTRAINT agents_pkey PRIMARY KEY (id);

ALTER TABLE ONLY blackboard.budgets
    ADD CONSTRAINT budgets_one_each UNIQUE NULLS NOT DISTINCT (session_id, scope, agent_id, task_id, unit);

ALTER TABLE ONLY blackboard.budgets
    ADD CONSTRAINT budgets_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.corroborations
    ADD CONSTRAINT corroborations_pkey PRIMARY KEY (session_id, finding_id, agent_id);

ALTER TABLE ONLY blackboard.corroborations
    ADD CONSTRAINT corroborations_report_once UNIQUE (session_id, report_id);

ALTER TABLE ONLY blackboard.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (session_id, seq);

ALTER TABLE ONLY blackboard.finding_links
    ADD CONSTRAINT finding_links_once UNIQUE (session_id, finding_id, other_id, kind);

ALTER TABLE ONLY blackboard.finding_links
    ADD CONSTRAINT finding_links_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.findings
    ADD CONSTRAINT findings_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.flow_edges
    ADD CONSTRAINT flow_edges_pkey PRIMARY KEY (session_id, flow_id, stage, depends_on);

ALTER TABLE ONLY blackboard.flow_stages
    ADD CONSTRAINT flow_stages_pkey PRIMARY KEY (session_id, flow_id, name);

ALTER TABLE ONLY blackboard.flow_tasks
    ADD CONSTRAINT flow_tasks_pkey PRIMARY KEY (session_id, task_id);

ALTER TABLE ONLY blackboard.flows
    ADD CONSTRAINT flows_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.history
    ADD CONSTRAINT history_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY blackboard.hypotheses
    ADD CONSTRAINT hypotheses_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.hypothesis_assessments
    ADD CONSTRAINT hypothesis_assessments_pkey PRIMARY KEY (session_id, hypothesis_id, agent_id);

ALTER TABLE ONLY blackboard.hypothesis_evidence
    ADD CONSTRAINT hypothesis_evidence_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.keyed_tasks
    ADD CONSTRAINT keyed_tasks_pkey PRIMARY KEY (session_id, key, task_id);

ALTER TABLE ONLY blackboard.late_results
    ADD CONSTRAINT late_results_once UNIQUE (session_id, task_id, claim_id, attempt);

ALTER TABLE ONLY blackboard.late_results
    ADD CONSTRAINT late_results_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (id);

ALTER TABLE ONLY blackboard.limit_usage
    ADD CONSTRAINT limit_usage_pkey PRIMARY KEY (session_id, limit_id, key);

ALTER TABLE ONLY blackboard.limits
    ADD CONSTRAINT limits_name_once UNIQUE (session_id, name);

ALTER TABLE ONLY blackboard.limits
    ADD CONSTRAINT limits_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.liveness
    ADD CONSTRAINT liveness_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY blackboard.lock_waiters
    ADD CONSTRAINT lock_waiters_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.lock_waiters
    ADD CONSTRAINT lock_waiters_position_once UNIQUE (session_id, lock_id, "position");

ALTER TABLE ONLY blackboard.locks
    ADD CONSTRAINT locks_name_once UNIQUE (session_id, name);

ALTER TABLE ONLY blackboard.locks
    ADD CONSTRAINT locks_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.memberships
    ADD CONSTRAINT memberships_pkey PRIMARY KEY (session_id, agent_id);

ALTER TABLE ONLY blackboard.pauses
    ADD CONSTRAINT pauses_once UNIQUE (session_id, kind, name);

ALTER TABLE ONLY blackboard.pauses
    ADD CONSTRAINT pauses_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.proposal_electors
    ADD CONSTRAINT proposal_electors_pkey PRIMARY KEY (session_id, proposal_id, agent_id);

ALTER TABLE ONLY blackboard.proposals
    ADD CONSTRAINT proposals_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.pruned_events
    ADD CONSTRAINT pruned_events_pkey PRIMARY KEY (session_id);

ALTER TABLE ONLY blackboard.requests
    ADD CONSTRAINT requests_pkey PRIMARY KEY (session_id, key);

ALTER TABLE ONLY blackboard.retentions
    ADD CONSTRAINT retentions_pkey PRIMARY KEY (session_id);

ALTER TABLE ONLY blackboard.schedules
    ADD CONSTRAINT schedules_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.schema_version
    ADD CONSTRAINT schema_version_pkc PRIMARY KEY (version_num);

ALTER TABLE ONLY blackboard.sessions
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY blackboard.spend
    ADD CONSTRAINT spend_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.spend
    ADD CONSTRAINT spend_unit_once UNIQUE (session_id, reservation_id, unit);

ALTER TABLE ONLY blackboard.task_dependencies
    ADD CONSTRAINT task_dependencies_pkey PRIMARY KEY (session_id, task_id, depends_on_id);

ALTER TABLE ONLY blackboard.task_keys
    ADD CONSTRAINT task_keys_pkey PRIMARY KEY (session_id, key);

ALTER TABLE ONLY blackboard.task_slots
    ADD CONSTRAINT task_slots_pkey PRIMARY KEY (session_id, task_id, limit_id);

ALTER TABLE ONLY blackboard.tasks
    ADD CONSTRAINT tasks_pkey PRIMARY KEY (session_id, id);

ALTER TABLE ONLY blackboard.unsettled_limits
    ADD CONSTRAINT unsettled_limits_pkey PRIMARY KEY (session_id, limit_id);

ALTER TABLE ONLY blackboard.upkeep
    ADD CONSTRAINT upkeep_pkey PRIMARY KEY (session_id);

ALTER TABLE ONLY blackboard.votes
    ADD CONSTRAINT votes_pkey PRIMARY KEY (session_id, proposal_id, agent_id);

CREATE INDEX actions_newest ON blackboard.actions USING btree (session_id, created_at DESC, id);

CREATE INDEX actions_proposal ON blackboard.actions USING btree (session_id, proposal_id) WHERE (proposal_id IS NOT NULL);

CREATE INDEX actions_status ON blackboard.actions USING btree (session_id, status, created_at DESC, id);

CREATE INDEX agents_capabilities ON blackboard.agents USING gin (capabilities);

CREATE INDEX budgets_task ON blackboard.budgets USING btree (session_id, task_id) WHERE (task_id IS NOT NULL);

CREATE INDEX events_cursor ON blackboard.events USING btree (session_id, tx, seq);

CREATE INDEX events_subject ON blackboard.events USING btree (session_id, subject_id, seq);

CREATE INDEX finding_links_other ON blackboard.finding_links USING btree (session_id, other_id);

CREATE UNIQUE INDEX findings_active_once ON blackboard.findings USING btree (session_id, fingerprint) WHERE (status = 'active'::text);

CREATE INDEX findings_agent ON blackboard.findings USING btree (session_id, agent_id, created_at DESC, id) WHERE (status = 'active'::text);

CREATE INDEX findings_category ON blackboard.findings USING btree (session_id, category, created_at DESC, id) WHERE ((status = 'active'::text) AND (category <> 'observation'::text));

CREATE INDEX findings_hidden ON blackboard.findings USING btree (session_id, created_at DESC, id) WHERE (status <> 'active'::text);

CREATE INDEX findings_newest ON blackboard.findings USING btree (session_id, created_at DESC, id) WHERE (status = 'active'::text);

CREATE INDEX findings_superseded_by ON blackboard.findings USING btree (session_id, superseded_by) WHERE (superseded_by IS NOT NULL);

CREATE INDEX findings_tags ON blackboard.findings USING gin (tags) WHERE ((status = 'active'::text) AND (tags <> '{}'::text[]));

CREATE INDEX findings_type ON blackboard.findings USING btree (session_id, type, created_at DESC, id) WHERE (status = 'active'::text);

CREATE INDEX flow_edges_depends_on ON blackboard.flow_edges USING btree (depends_on, flow_id, session_id);

CREATE INDEX flow_stages_open ON blackboard.flow_stages USING btree (session_id, flow_id) WHERE (state = ANY (ARRAY['waiting'::text, 'ready'::text]));

CREATE UNIQUE INDEX flow_stages_output_once ON blackboard.flow_stages USING btree (session_id, flow_id, output) WHERE (output IS NOT NULL);

CREATE INDEX flow_tasks_stage ON blackboard.flow_tasks USING btree (flow_id, stage, iteration);

CREATE INDEX flows_newest ON blackboard.flows USING btree (session_id, created_at DESC, id);

CREATE INDEX hypotheses_strongest ON blackboard.hypotheses USING btree (session_id, confidence DESC, id);

CREATE INDEX hypothesis_evidence_finding ON blackboard.hypothesis_evidence USING btree (session_id, finding_id);

CREATE INDEX hypothesis_evidence_hypothesis ON blackboard.hypothesis_evidence USING btree (session_id, hypothesis_id);

CREATE UNIQUE INDEX hypothesis_evidence_live_once ON blackboard.hypothesis_evidence USING btree (session_id, hypothesis_id, finding_id) WHERE (retracted_at IS NULL);

CREATE INDEX keyed_tasks_task ON blackboard.keyed_tasks USING btree (session_id, task_id);

CREATE INDEX leases_live ON blackboard.leases USING btree (id) WHERE (lapsed_at IS NULL);

CREATE INDEX leases_unswept ON blackboard.leases USING btree (lapsed_at) WHERE ((lapsed_at IS NOT NULL) AND (swept_at IS NULL));

CREATE INDEX limit_usage_waiting ON blackboard.limit_usage USING btree (session_id) WHERE waiting;

CREATE INDEX memberships_agent ON blackboard.memberships USING btree (agent_id);

CREATE INDEX proposals_due ON blackboard.proposals USING btree (session_id, deadline_at) WHERE (status = 'open'::text);

CREATE INDEX proposals_newest ON blackboard.proposals USING btree (session_id, created_at DESC, id);

CREATE INDEX proposals_open ON blackboard.proposals USING btree (session_id, created_at DESC, id) WHERE (status = 'open'::text);

CREATE INDEX requests_at ON blackboard.requests USING btree (at);

CREATE INDEX schedules_due ON blackboard.schedules USING btree (next_at) WHERE ((NOT paused) AND (removed_at IS NULL));

CREATE UNIQUE INDEX schedules_name_once ON blackboard.schedules USING btree (session_id, name) WHERE (removed_at IS NULL);

CREATE INDEX sessions_created ON blackboard.sessions USING btree (created_at DESC, id);

CREATE INDEX sessions_name ON blackboard.sessions USING btree (name, created_at DESC);

CREATE UNIQUE INDEX sessions_name_while_open ON blackboard.sessions USING btree (name) WHERE (status = ANY (ARRAY['active'::text, 'paused'::text]));

CREATE INDEX spend_at ON blackboard.spend USING btree (session_id, at);

CREATE INDEX spend_open ON blackboard.spend USING btree (session_id, lease_id) WHERE (status = 'reserved'::text);

CREATE INDEX spend_task ON blackboard.spend USING btree (session_id, task_id) WHERE (task_id IS NOT NULL);

CREATE INDEX task_dependencies_depends_on ON blackboard.task_dependencies USING btree (depends_on_id, session_id);

CREATE INDEX tasks_assigned ON blackboard.tasks USING btree (session_id, assigned_to, priority DESC, "position") WHERE (status = 'assigned'::text);

CREATE INDEX tasks_dead ON blackboard.tasks USING btree (session_id, completed_at, id) WHERE (status = 'dead'::text);

CREATE INDEX tasks_deadline ON blackboard.tasks USING btree (deadline_at) WHERE (deadline_at IS NOT NULL);

CREATE INDEX tasks_held ON blackboard.tasks USING btree (session_id, ((held ->> 'code'::text)), COALESCE((held ->> 'limit'::text), (held ->> 'type'::text), ''::text), COALESCE((held ->> 'key'::text), ''::text), capability, priority DESC, (((held ->> 'position'::text))::bigint)) WHERE (status = 'held'::text);

CREATE INDEX tasks_leased ON blackboard.tasks USING btree (lease_id, claim_id) WHERE (lease_id IS NOT NULL);

CREATE INDEX tasks_ready ON blackboard.tasks USING btree (session_id, capability, priority DESC, "position") WHERE (status = 'pending'::text);

CREATE INDEX tasks_scheduled ON blackboard.tasks USING btree (session_id, run_at) WHERE (status = 'scheduled'::text);

CREATE INDEX tasks_timers ON blackboard.tasks USING btree (LEAST(expires_at, fallback_at) NULLS FIRST) WHERE (((expires_at IS NOT NULL) OR (fallback IS NOT NULL)) AND (completed_at IS NULL) AND (lease_id IS NULL));

CREATE TRIGGER admit BEFORE INSERT ON blackboard.actions FOR EACH ROW EXECUTE FUNCTION blackboard.actions_admit();

CREATE TRIGGER admit BEFORE INSERT ON blackboard.proposals FOR EACH ROW EXECUTE FUNCTION blackboard.proposals_admit();

CREATE TRIGGER admit BEFORE INSERT OR UPDATE ON blackboard.votes FOR EACH ROW EXECUTE FUNCTION blackboard.votes_admit();

CREATE TRIGGER append_only AFTER DELETE OR UPDATE ON blackboard.events FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER append_only AFTER DELETE ON blackboard.spend FOR EACH STATEMENT EXECUTE FUNCTION blackboard.keep_ledger();

CREATE TRIGGER check_stages AFTER INSERT ON blackboard.task_dependencies REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_edge_of_stage();

CREATE TRIGGER end_session AFTER UPDATE OF status ON blackboard.sessions FOR EACH ROW WHEN (((new.status = ANY (ARRAY['completed'::text, 'failed'::text])) AND (old.status = ANY (ARRAY['active'::text, 'paused'::text])))) EXECUTE FUNCTION blackboard.end_session();

CREATE TRIGGER free_slots_of_deleted AFTER DELETE ON blackboard.tasks REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.free_slots_of_deleted();

CREATE TRIGGER guard BEFORE UPDATE ON blackboard.actions FOR EACH ROW EXECUTE FUNCTION blackboard.actions_guard();

CREATE TRIGGER guard BEFORE INSERT OR DELETE OR UPDATE ON blackboard.flow_edges FOR EACH STATEMENT WHEN ((current_setting('xmloption'::text) <> 'document'::text)) EXECUTE FUNCTION blackboard.refuse_flow_change();

CREATE TRIGGER guard BEFORE INSERT OR DELETE OR UPDATE ON blackboard.flow_stages FOR EACH STATEMENT WHEN ((current_setting('xmloption'::text) <> 'document'::text)) EXECUTE FUNCTION blackboard.refuse_flow_change();

CREATE TRIGGER guard BEFORE INSERT OR DELETE OR UPDATE ON blackboard.flow_tasks FOR EACH STATEMENT WHEN ((current_setting('xmloption'::text) <> 'document'::text)) EXECUTE FUNCTION blackboard.refuse_flow_change();

CREATE TRIGGER guard BEFORE INSERT OR DELETE OR UPDATE ON blackboard.flows FOR EACH STATEMENT WHEN ((current_setting('xmloption'::text) <> 'document'::text)) EXECUTE FUNCTION blackboard.refuse_flow_change();

CREATE TRIGGER guard BEFORE INSERT OR DELETE OR UPDATE ON blackboard.proposal_electors FOR EACH STATEMENT EXECUTE FUNCTION blackboard.electors_guard();

CREATE TRIGGER guard BEFORE UPDATE ON blackboard.proposals FOR EACH ROW EXECUTE FUNCTION blackboard.proposals_guard();

CREATE TRIGGER history_change AFTER UPDATE ON blackboard.retentions FOR EACH ROW WHEN (((old.tasks IS DISTINCT FROM new.tasks) OR (old.events IS DISTINCT FROM new.events))) EXECUTE FUNCTION blackboard.history_retentions();

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.actions REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('action', 'id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.agents REFERENCING OLD TABLE AS changed_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_agents('agent.deleted');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.budgets REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('budget', 'id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.corroborations REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('corroboration', 'finding_id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.finding_links REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('contradiction', 'finding_id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.findings REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('finding', 'id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.flow_edges REFERENCING OLD TABLE AS changed_rows FOR EACH STATEMENT WHEN ((current_setting('blackboard.pruning'::text, true) IS DISTINCT FROM 'on'::text)) EXECUTE FUNCTION blackboard.history_flow_edges();

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.flow_stages REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT WHEN ((current_setting('blackboard.pruning'::text, true) IS DISTINCT FROM 'on'::text)) EXECUTE FUNCTION blackboard.history_flow_stages_delete();

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.flows REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT WHEN ((current_setting('blackboard.pruning'::text, true) IS DISTINCT FROM 'on'::text)) EXECUTE FUNCTION blackboard.record_delete('flow', 'id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.hypotheses REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('hypothesis', 'id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.hypothesis_assessments REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('assessment', 'hypothesis_id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.hypothesis_evidence REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('evidence', 'id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.late_results REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT WHEN ((current_setting('blackboard.pruning'::text, true) IS DISTINCT FROM 'on'::text)) EXECUTE FUNCTION blackboard.record_delete('late_result', 'task_id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.limits REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('limit', 'id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.locks REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('lock', 'id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.memberships REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_memberships_delete();

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.pauses REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('pause', 'id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.proposals REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('proposal', 'id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.schedules REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('schedule', 'id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.sessions REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('session', 'id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.task_dependencies REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT WHEN ((current_setting('blackboard.pruning'::text, true) IS DISTINCT FROM 'on'::text)) EXECUTE FUNCTION blackboard.history_task_dependencies();

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.tasks REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT WHEN ((current_setting('blackboard.pruning'::text, true) IS DISTINCT FROM 'on'::text)) EXECUTE FUNCTION blackboard.record_delete('task', 'id');

CREATE TRIGGER history_delete AFTER DELETE ON blackboard.votes REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('vote', 'proposal_id');

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.actions REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_actions_insert();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.agents REFERENCING NEW TABLE AS changed_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_agents('agent.registered');

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.budgets REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_budgets_insert();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.corroborations REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_corroborations_insert();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.finding_links REFERENCING NEW TABLE AS changed_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_finding_links();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.findings REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_findings_insert();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.flow_edges REFERENCING NEW TABLE AS changed_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_flow_edges();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.flow_stages REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_flow_stages();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.flows REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_flows_insert();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.hypotheses REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_hypotheses_insert();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.hypothesis_assessments REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_assessments();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.hypothesis_evidence REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_evidence_insert();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.late_results REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_late_results();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.limits REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_limits();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.locks REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_locks_insert();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.memberships REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_memberships_insert();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.pauses REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_pauses();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.proposals REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_proposals_insert();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.schedules REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_schedules_insert();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.sessions REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_sessions_insert();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.spend REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_spend_insert();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.task_dependencies REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.check_dependencies();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.tasks REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_tasks_insert();

CREATE TRIGGER history_insert AFTER INSERT ON blackboard.votes REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_votes_insert();

CREATE TRIGGER history_prune AFTER DELETE ON blackboard.flows REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT WHEN ((NOT (current_setting('blackboard.pruning'::text, true) IS DISTINCT FROM 'on'::text))) EXECUTE FUNCTION blackboard.record_pruned_flows();

CREATE TRIGGER history_prune AFTER DELETE ON blackboard.tasks REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT WHEN ((NOT (current_setting('blackboard.pruning'::text, true) IS DISTINCT FROM 'on'::text))) EXECUTE FUNCTION blackboard.record_pruned_tasks();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.actions REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_actions_update();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.agents REFERENCING NEW TABLE AS changed_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_agents('agent.updated');

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.budgets REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_budgets_update();

CREATE TRIGGER history_update BEFORE UPDATE ON blackboard.corroborations FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_rewrite('the agent said so at that time');

CREATE TRIGGER history_update BEFORE UPDATE ON blackboard.finding_links FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_rewrite('retract the finding that contradicts');

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.findings REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_findings_update();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.flow_stages REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_flow_stages();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.flows REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_flows_update();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.hypotheses REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_hypotheses_update();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.hypothesis_assessments REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_assessments();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.hypothesis_evidence REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_evidence_update();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.limits REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_limits();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.locks REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_locks_update();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.memberships REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_memberships_update();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.pauses REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_pauses();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.proposals REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_proposals_update();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.schedules REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_schedules_update();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.sessions REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_sessions_update();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.spend REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_spend_update();

CREATE TRIGGER history_update AFTER UPDATE OF on_failure ON blackboard.task_dependencies FOR EACH ROW WHEN ((old.on_failure <> new.on_failure)) EXECUTE FUNCTION blackboard.history_dependency_policy();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.tasks REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_tasks_update();

CREATE TRIGGER history_update AFTER UPDATE ON blackboard.votes REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_votes_update();

CREATE TRIGGER history_write AFTER INSERT OR DELETE ON blackboard.retentions FOR EACH ROW EXECUTE FUNCTION blackboard.history_retentions();

CREATE CONSTRAINT TRIGGER hold_returned_stage AFTER UPDATE OF status ON blackboard.tasks DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (new.has_dependants) EXECUTE FUNCTION blackboard.hold_returned_stage();

CREATE TRIGGER immutable AFTER UPDATE OF id, created_at ON blackboard.agents FOR EACH ROW WHEN (((old.id IS DISTINCT FROM new.id) OR (old.created_at IS DISTINCT FROM new.created_at))) EXECUTE FUNCTION blackboard.refuse_immutable('id and created_at');

CREATE TRIGGER immutable AFTER UPDATE OF session_id, id, name, inputs, digest, created_by, created_at ON blackboard.flows FOR EACH ROW WHEN ((((((((old.session_id IS DISTINCT FROM new.session_id) OR (old.id IS DISTINCT FROM new.id)) OR (old.name IS DISTINCT FROM new.name)) OR (old.inputs IS DISTINCT FROM new.inputs)) OR (old.digest IS DISTINCT FROM new.digest)) OR (old.created_by IS DISTINCT FROM new.created_by)) OR (old.created_at IS DISTINCT FROM new.created_at))) EXECUTE FUNCTION blackboard.refuse_immutable('session_id, id, name, inputs, digest, created_by and created_at');

CREATE TRIGGER immutable AFTER UPDATE OF session_id, id, name, kind, type, capability, per_key, created_by, created_at ON blackboard.limits FOR EACH ROW WHEN ((((((((((old.session_id IS DISTINCT FROM new.session_id) OR (old.id IS DISTINCT FROM new.id)) OR (old.name IS DISTINCT FROM new.name)) OR (old.kind IS DISTINCT FROM new.kind)) OR (old.type IS DISTINCT FROM new.type)) OR (old.capability IS DISTINCT FROM new.capability)) OR (old.per_key IS DISTINCT FROM new.per_key)) OR (old.created_by IS DISTINCT FROM new.created_by)) OR (old.created_at IS DISTINCT FROM new.created_at))) EXECUTE FUNCTION blackboard.refuse_immutable('what a limit applies to, and who made it when,');

CREATE TRIGGER immutable AFTER UPDATE OF session_id, agent_id ON blackboard.memberships FOR EACH ROW WHEN (((old.session_id IS DISTINCT FROM new.session_id) OR (old.agent_id IS DISTINCT FROM new.agent_id))) EXECUTE FUNCTION blackboard.refuse_immutable('session_id and agent_id');

CREATE TRIGGER immutable AFTER UPDATE OF session_id, id, kind, name ON blackboard.pauses FOR EACH ROW WHEN (((((old.session_id IS DISTINCT FROM new.session_id) OR (old.id IS DISTINCT FROM new.id)) OR (old.kind IS DISTINCT FROM new.kind)) OR (old.name IS DISTINCT FROM new.name))) EXECUTE FUNCTION blackboard.refuse_immutable('session_id, id, kind and name');

CREATE TRIGGER immutable AFTER UPDATE OF session_id ON blackboard.retentions FOR EACH ROW WHEN ((old.session_id IS DISTINCT FROM new.session_id)) EXECUTE FUNCTION blackboard.refuse_immutable('session_id');

CREATE TRIGGER immutable AFTER UPDATE OF id, created_by, created_at ON blackboard.sessions FOR EACH ROW WHEN ((((old.id IS DISTINCT FROM new.id) OR (old.created_by IS DISTINCT FROM new.created_by)) OR (old.created_at IS DISTINCT FROM new.created_at))) EXECUTE FUNCTION blackboard.refuse_immutable('id, created_by and created_at');

CREATE TRIGGER immutable AFTER UPDATE ON blackboard.task_dependencies FOR EACH ROW WHEN (((((old.session_id IS DISTINCT FROM new.session_id) OR (old.task_id IS DISTINCT FROM new.task_id)) OR (old.depends_on_id IS DISTINCT FROM new.depends_on_id)) OR ((old.state <> new.state) AND ((pg_trigger_depth() < 1) OR (NOT has_table_privilege('blackboard.task_dependencies'::text, 'DELETE'::text)))))) EXECUTE FUNCTION blackboard.refuse_immutable('Keys and state');

CREATE TRIGGER immutable AFTER UPDATE OF session_id, id, type, requires_approval, created_by, created_at, unique_key, limit_key, expires_at, fallback ON blackboard.tasks FOR EACH ROW WHEN (((((((((((old.session_id IS DISTINCT FROM new.session_id) OR (old.id IS DISTINCT FROM new.id)) OR (old.type IS DISTINCT FROM new.type)) OR (old.requires_approval IS DISTINCT FROM new.requires_approval)) OR (old.created_by IS DISTINCT FROM new.created_by)) OR (old.created_at IS DISTINCT FROM new.created_at)) OR (old.unique_key IS DISTINCT FROM new.unique_key)) OR (old.limit_key IS DISTINCT FROM new.limit_key)) OR (old.expires_at IS DISTINCT FROM new.expires_at)) OR (old.fallback IS DISTINCT FROM new.fallback))) EXECUTE FUNCTION blackboard.refuse_immutable('session_id, id, type, requires_approval, created_by, created_at, unique_key, limit_key, expires_at and fallback');

CREATE TRIGGER keep BEFORE DELETE ON blackboard.votes FOR EACH ROW EXECUTE FUNCTION blackboard.votes_keep();

CREATE TRIGGER keep_budgets BEFORE UPDATE OF budget_ids ON blackboard.spend FOR EACH ROW WHEN (((old.budget_ids IS DISTINCT FROM new.budget_ids) AND (NOT has_table_privilege('blackboard.budgets'::text, 'UPDATE'::text)))) EXECUTE FUNCTION blackboard.refuse_rewrite('an entry of the ledger is ended, and counts where it was reserved');

CREATE TRIGGER keep_dependants AFTER UPDATE OF has_dependants ON blackboard.tasks FOR EACH ROW WHEN ((old.has_dependants AND (NOT new.has_dependants))) EXECUTE FUNCTION blackboard.refuse_immutable('has_dependants');

CREATE TRIGGER keep_session_of_tasks AFTER DELETE ON blackboard.sessions FOR EACH ROW EXECUTE FUNCTION blackboard.keep_session_of_tasks();

CREATE TRIGGER keep_stage_task BEFORE DELETE ON blackboard.tasks FOR EACH ROW WHEN (old.has_dependants) EXECUTE FUNCTION blackboard.keep_stage_task();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.actions FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.agents FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.budgets FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.corroborations FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.events FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.finding_links FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.findings FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.flow_edges FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.flow_stages FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.flow_tasks FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.flows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.hypotheses FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.hypothesis_assessments FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.hypothesis_evidence FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.late_results FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.limits FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.lock_waiters FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.locks FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.memberships FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.pauses FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.proposal_electors FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.proposals FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.retentions FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.schedules FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.sessions FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.spend FOR EACH STATEMENT EXECUTE FUNCTION blackboard.keep_ledger();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.task_dependencies FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.tasks FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.votes FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE TRIGGER prepare BEFORE INSERT OR UPDATE ON blackboard.budgets FOR EACH ROW EXECUTE FUNCTION blackboard.prepare_budget();

CREATE TRIGGER prepare BEFORE INSERT OR UPDATE ON blackboard.findings FOR EACH ROW EXECUTE FUNCTION blackboard.prepare_finding();

CREATE TRIGGER prepare BEFORE INSERT OR UPDATE ON blackboard.hypotheses FOR EACH ROW EXECUTE FUNCTION blackboard.prepare_hypothesis();

CREATE TRIGGER prepare BEFORE INSERT OR UPDATE ON blackboard.spend FOR EACH ROW EXECUTE FUNCTION blackboard.prepare_spend();

CREATE TRIGGER recount AFTER DELETE ON blackboard.corroborations REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.recount_corroborations();

CREATE TRIGGER refresh_gated AFTER DELETE ON blackboard.limits REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refresh_gated_after_delete();

CREATE TRIGGER refresh_gated AFTER DELETE ON blackboard.pauses REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refresh_gated_after_delete();

CREATE TRIGGER revise AFTER DELETE ON blackboard.finding_links REFERENCING OLD TABLE AS changed_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_finding_links();

CREATE TRIGGER revise AFTER DELETE ON blackboard.hypothesis_assessments REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.revise_after_delete('assessment.deleted');

CREATE TRIGGER revise AFTER DELETE ON blackboard.hypothesis_evidence REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION blackboard.revise_after_delete('evidence.deleted');

CREATE TRIGGER write INSTEAD OF INSERT OR DELETE OR UPDATE ON blackboard.agent_findings FOR EACH ROW EXECUTE FUNCTION blackboard.agent_findings_write();

CREATE TRIGGER write INSTEAD OF INSERT OR DELETE OR UPDATE ON blackboard.agent_sessions FOR EACH ROW EXECUTE FUNCTION blackboard.agent_sessions_write();

CREATE TRIGGER write INSTEAD OF INSERT OR DELETE OR UPDATE ON blackboard.agent_tasks FOR EACH ROW EXECUTE FUNCTION blackboard.agent_tasks_write();

ALTER TABLE ONLY blackboard.actions
    ADD CONSTRAINT actions_executor_member FOREIGN KEY (session_id, executor) REFERENCES blackboard.memberships(session_id, agent_id);

ALTER TABLE ONLY blackboard.actions
    ADD CONSTRAINT actions_proposal_known FOREIGN KEY (session_id, proposal_id) REFERENCES blackboard.proposals(session_id, id);

ALTER TABLE ONLY blackboard.actions
    ADD CONSTRAINT actions_proposer_member FOREIGN KEY (session_id, agent_id) REFERENCES blackboard.memberships(session_id, agent_id);

ALTER TABLE ONLY blackboard.actions
    ADD CONSTRAINT actions_session_known FOREIGN KEY (session_id) REFERENCES blackboard.sessions(id);

ALTER TABLE ONLY blackboard.budgets
    ADD CONSTRAINT budgets_session_known FOREIGN KEY (session_id) REFERENCES blackboard.sessions(id);

ALTER TABLE ONLY blackboard.budgets
    ADD CONSTRAINT budgets_task_known FOREIGN KEY (session_id, task_id) REFERENCES blackboard.tasks(session_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY blackboard.corroborations
    ADD CONSTRAINT corroborations_finding_known FOREIGN KEY (session_id, finding_id) REFERENCES blackboard.findings(session_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY blackboard.finding_links
    ADD CONSTRAINT finding_links_finding_known FOREIGN KEY (session_id, finding_id) REFERENCES blackboard.findings(session_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY blackboard.finding_links
    ADD CONSTRAINT finding_links_other_known FOREIGN KEY (session_id, other_id) REFERENCES blackboard.findings(session_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY blackboard.findings
    ADD CONSTRAINT findings_session_known FOREIGN KEY (session_id) REFERENCES blackboard.sessions(id);

ALTER TABLE ONLY blackboard.findings
    ADD CONSTRAINT findings_superseded_by_known FOREIGN KEY (session_id, superseded_by) REFERENCES blackboard.findings(session_id, id);

ALTER TABLE ONLY blackboard.flow_edges
    ADD CONSTRAINT flow_edges_depends_on_fkey FOREIGN KEY (session_id, flow_id, depends_on) REFERENCES blackboard.flow_stages(session_id, flow_id, name);

ALTER TABLE ONLY blackboard.flow_edges
    ADD CONSTRAINT flow_edges_stage_fkey FOREIGN KEY (session_id, flow_id, stage) REFERENCES blackboard.flow_stages(session_id, flow_id, name);

ALTER TABLE ONLY blackboard.flow_stages
    ADD CONSTRAINT flow_stages_flow_fkey FOREIGN KEY (session_id, flow_id) REFERENCES blackboard.flows(session_id, id);

ALTER TABLE ONLY blackboard.flow_tasks
    ADD CONSTRAINT flow_tasks_flow_fkey FOREIGN KEY (session_id, flow_id) REFERENCES blackboard.flows(session_id, id);

ALTER TABLE ONLY blackboard.flows
    ADD CONSTRAINT flows_session_known FOREIGN KEY (session_id) REFERENCES blackboard.sessions(id);

ALTER TABLE ONLY blackboard.hypotheses
    ADD CONSTRAINT hypotheses_session_known FOREIGN KEY (session_id) REFERENCES blackboard.sessions(id);

ALTER TABLE ONLY blackboard.hypothesis_assessments
    ADD CONSTRAINT hypothesis_assessments_hypothesis_known FOREIGN KEY (session_id, hypothesis_id) REFERENCES blackboard.hypotheses(session_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY blackboard.hypothesis_evidence
    ADD CONSTRAINT hypothesis_evidence_finding_known FOREIGN KEY (session_id, finding_id) REFERENCES blackboard.findings(session_id, id);

ALTER TABLE ONLY blackboard.hypothesis_evidence
    ADD CONSTRAINT hypothesis_evidence_hypothesis_known FOREIGN KEY (session_id, hypothesis_id) REFERENCES blackboard.hypotheses(session_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY blackboard.limit_usage
    ADD CONSTRAINT limit_usage_limit_fkey FOREIGN KEY (session_id, limit_id) REFERENCES blackboard.limits(session_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY blackboard.lock_waiters
    ADD CONSTRAINT lock_waiters_agent_member FOREIGN KEY (session_id, agent_id) REFERENCES blackboard.memberships(session_id, agent_id);

ALTER TABLE ONLY blackboard.lock_waiters
    ADD CONSTRAINT lock_waiters_lock_known FOREIGN KEY (session_id, lock_id) REFERENCES blackboard.locks(session_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY blackboard.locks
    ADD CONSTRAINT locks_holder_member FOREIGN KEY (session_id, holder) REFERENCES blackboard.memberships(session_id, agent_id);

ALTER TABLE ONLY blackboard.locks
    ADD CONSTRAINT locks_session_known FOREIGN KEY (session_id) REFERENCES blackboard.sessions(id);

ALTER TABLE ONLY blackboard.memberships
    ADD CONSTRAINT memberships_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES blackboard.agents(id);

ALTER TABLE ONLY blackboard.memberships
    ADD CONSTRAINT memberships_session_id_fkey FOREIGN KEY (session_id) REFERENCES blackboard.sessions(id);

ALTER TABLE ONLY blackboard.proposal_electors
    ADD CONSTRAINT proposal_electors_proposal_known FOREIGN KEY (session_id, proposal_id) REFERENCES blackboard.proposals(session_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY blackboard.proposals
    ADD CONSTRAINT proposals_proposer_member FOREIGN KEY (session_id, agent_id) REFERENCES blackboard.memberships(session_id, agent_id);

ALTER TABLE ONLY blackboard.proposals
    ADD CONSTRAINT proposals_session_known FOREIGN KEY (session_id) REFERENCES blackboard.sessions(id);

ALTER TABLE ONLY blackboard.retentions
    ADD CONSTRAINT retentions_session_known FOREIGN KEY (session_id) REFERENCES blackboard.sessions(id) ON DELETE CASCADE;

ALTER TABLE ONLY blackboard.schedules
    ADD CONSTRAINT schedules_session_known FOREIGN KEY (session_id) REFERENCES blackboard.sessions(id);

ALTER TABLE ONLY blackboard.task_dependencies
    ADD CONSTRAINT task_dependencies_depends_on_fkey FOREIGN KEY (session_id, depends_on_id) REFERENCES blackboard.tasks(session_id, id);

ALTER TABLE ONLY blackboard.task_dependencies
    ADD CONSTRAINT task_dependencies_task_fkey FOREIGN KEY (session_id, task_id) REFERENCES blackboard.tasks(session_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY blackboard.unsettled_limits
    ADD CONSTRAINT unsettled_limits_session_id_limit_id_fkey FOREIGN KEY (session_id, limit_id) REFERENCES blackboard.limits(session_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY blackboard.votes
    ADD CONSTRAINT votes_elector_known FOREIGN KEY (session_id, proposal_id, agent_id) REFERENCES blackboard.proposal_electors(session_id, proposal_id, agent_id) ON DELETE CASCADE;

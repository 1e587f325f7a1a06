-- Schedules: a task is added at each time of a cron expression, once, however many processes look after it.
--
-- Times are computed by the client, which knows cron expressions and time zones, from this server's clock. A firing
-- is one transaction: the row is locked, the task added under an id made of the schedule and the planned time, and
-- next_at moved on; whoever comes later finds next_at moved, or the task there already.

CREATE FUNCTION blackboard.schedule_options_fit(p_options jsonb) RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT jsonb_typeof(p_options) = 'object' AND NOT p_options ?| ARRAY['depends_on', 'run_at']
       AND coalesce(length(p_options ->> 'assigned_to') BETWEEN 1 AND 100, true)
       AND coalesce((p_options ->> 'timeout')::interval > interval '0', true)
       AND coalesce((p_options ->> 'requires_approval')::boolean, true) IS NOT NULL
       AND coalesce((p_options ->> 'max_attempts')::integer BETWEEN 1 AND 1000, true)
       AND coalesce((p_options ->> 'retry_delay')::interval BETWEEN interval '0' AND interval '30 days', true)
$$;

CREATE TABLE blackboard.schedules (
    session_id uuid NOT NULL CONSTRAINT schedules_session_known REFERENCES blackboard.sessions (id),
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    name text NOT NULL CONSTRAINT schedules_name_length CHECK (length(name) BETWEEN 1 AND 200),
    cron text NOT NULL CONSTRAINT schedules_cron_length CHECK (length(cron) BETWEEN 1 AND 200),
    timezone text NOT NULL DEFAULT 'UTC'
        CONSTRAINT schedules_timezone_length CHECK (length(timezone) BETWEEN 1 AND 100),
    -- The task that it adds, as blackboard.add_task takes it.
    type text NOT NULL CONSTRAINT schedules_type_length CHECK (length(type) BETWEEN 1 AND 50),
    capability text NOT NULL DEFAULT '' CONSTRAINT schedules_capability_length CHECK (length(capability) <= 100),
    priority smallint NOT NULL DEFAULT 5 CONSTRAINT schedules_priority_range CHECK (priority BETWEEN 0 AND 10),
    parameters jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT schedules_parameters_size CHECK (pg_column_size(parameters) <= 1048576),
    options jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT schedules_options_fit CHECK (blackboard.schedule_options_fit(options)),
    missed text NOT NULL DEFAULT 'once' CONSTRAINT schedules_missed_known CHECK (missed IN ('skip', 'once', 'all')),
    paused boolean NOT NULL DEFAULT false,
    -- Why the board itself paused it.
    error text CONSTRAINT schedules_error_length CHECK (length(error) <= 10000),
    -- NULL: it never fires again.
    next_at timestamptz,
    last_at timestamptz,
    last_task_id uuid,
    fired bigint NOT NULL DEFAULT 0 CONSTRAINT schedules_fired_range CHECK (fired >= 0),
    skipped bigint NOT NULL DEFAULT 0 CONSTRAINT schedules_skipped_range CHECK (skipped >= 0),
    created_by text NOT NULL DEFAULT blackboard.current_actor(),
    created_at timestamptz NOT NULL DEFAULT blackboard.now(),
    removed_at timestamptz,
    CONSTRAINT schedules_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT schedules_last_task_iff_fired CHECK (
        (fired > 0) = (last_at IS NOT NULL) AND (fired > 0) = (last_task_id IS NOT NULL)),
    CONSTRAINT schedules_error_when_paused CHECK (error IS NULL OR paused)
);
CREATE UNIQUE INDEX schedules_name_once ON blackboard.schedules (session_id, name) WHERE removed_at IS NULL;
CREATE INDEX schedules_due ON blackboard.schedules (next_at) WHERE NOT paused AND removed_at IS NULL;

-- ----------------------------------------------------------------------------------------------------- history

CREATE FUNCTION blackboard.history_schedules_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.schedules REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_schedules_insert();

CREATE FUNCTION blackboard.history_schedules_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.schedules
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_schedules_update();
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.schedules REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('schedule', 'id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.schedules
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- ------------------------------------------------------------------------------------------------------- verbs

CREATE FUNCTION blackboard.add_schedule(
    p_session_id uuid, p_id uuid, p_name text, p_cron text, p_timezone text, p_type text, p_capability text,
    p_priority smallint, p_parameters jsonb, p_options jsonb, p_missed text, p_next_at timestamptz, p_actor text
) RETURNS SETOF blackboard.schedules
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

-- Pauses, or goes on from p_next_at; a schedule that is there already is left as it is. No row: there is none.
CREATE FUNCTION blackboard.pause_schedule(
    p_session_id uuid, p_id uuid, p_paused boolean, p_next_at timestamptz, p_error text, p_actor text
) RETURNS SETOF blackboard.schedules
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

-- It fires no more, and its name is free; what it added stays.
CREATE FUNCTION blackboard.remove_schedule(p_session_id uuid, p_id uuid, p_actor text)
RETURNS SETOF blackboard.schedules
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM blackboard.act_as(p_actor);
    UPDATE blackboard.schedules s SET removed_at = blackboard.now()
    WHERE s.session_id = p_session_id AND s.id = p_id AND s.removed_at IS NULL;
    RETURN QUERY SELECT * FROM blackboard.schedules s WHERE s.session_id = p_session_id AND s.id = p_id;
END
$$;

-- Adds the tasks of the planned times, oldest first, and moves on to p_next_at; returns the tasks that are new. A
-- schedule whose next_at is not p_expected any more was fired by somebody else. One whose task is refused is paused
-- with the reason, so that it does not stand in the way of others.
CREATE FUNCTION blackboard.fire_schedule(
    p_session_id uuid, p_id uuid, p_expected timestamptz, p_times timestamptz[], p_task_ids uuid[],
    p_skipped integer, p_next_at timestamptz
) RETURNS TABLE (task_id uuid, planned_at timestamptz)
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

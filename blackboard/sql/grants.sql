-- name: agent_grants
-- The text that lets a role work as an agent, and no more: it cannot rewrite history, delete work or replace functions.
-- What the board writes by itself (events, electors) is written by triggers that run as the owner.
SELECT format($grants$-- Run this as the owner of the schema, and again after an upgrade of it.
-- The role can read the whole board and work on it; it cannot change history, delete work or replace functions.
GRANT USAGE ON SCHEMA blackboard TO %1$I;
GRANT SELECT ON ALL TABLES IN SCHEMA blackboard TO %1$I;
GRANT INSERT ON
    blackboard.corroborations, blackboard.finding_links, blackboard.late_results
    TO %1$I;
GRANT INSERT, UPDATE ON
    blackboard.actions, blackboard.agents, blackboard.findings, blackboard.hypotheses,
    blackboard.hypothesis_assessments, blackboard.hypothesis_evidence, blackboard.leases, blackboard.limits,
    blackboard.locks, blackboard.memberships, blackboard.pauses, blackboard.proposals, blackboard.schedules,
    blackboard.sessions, blackboard.spend, blackboard.task_dependencies, blackboard.tasks, blackboard.votes,
    blackboard.agent_sessions, blackboard.agent_findings, blackboard.agent_tasks
    TO %1$I;
GRANT UPDATE ON blackboard.liveness TO %1$I;
GRANT INSERT, UPDATE, DELETE ON blackboard.lock_waiters, blackboard.requests TO %1$I;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA blackboard TO %1$I;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA blackboard TO %1$I;
-- But those of triggers: hung on a table of its own they would write for the role into history whatever it likes.
DO $do$
DECLARE
    v_revoke text;
BEGIN
    FOR v_revoke IN
        SELECT pg_catalog.format('REVOKE EXECUTE ON FUNCTION %%s FROM %%s', CAST(p.oid AS regprocedure),
                                 CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE CAST(CAST(a.grantee AS regrole) AS text) END)
        FROM pg_catalog.pg_proc p
        CROSS JOIN LATERAL pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a
        WHERE p.pronamespace = CAST('blackboard' AS regnamespace) AND p.prorettype = CAST('pg_catalog.trigger' AS regtype)
          AND a.grantee <> p.proowner
    LOOP
        EXECUTE v_revoke;
    END LOOP;
END
$do$;
REVOKE EXECUTE ON FUNCTION blackboard.adopt(), blackboard.prune_events(uuid, timestamptz, integer),
    blackboard.keep_session(uuid, interval, interval, text),
    blackboard.prune_tasks(uuid, timestamptz, text[], uuid, integer, boolean, text),
    blackboard.prune_flows(uuid, timestamptz, text[], uuid, integer, boolean, text),
    blackboard.free_slots(uuid[], uuid[]), blackboard.try_counters(uuid, uuid[], text[]),
    blackboard.age_tasks(uuid, interval, timestamptz, integer), blackboard.tend_gates_now(uuid, timestamptz),
    blackboard.tend_gates_briefly(uuid, timestamptz) FROM PUBLIC, %1$I;
$grants$, CAST(:name AS text)) AS grants;

-- name: reader_grants
-- The text that lets a role read the whole board and nothing else.
SELECT format($grants$-- Run this as the owner of the schema, and again after an upgrade of it.
-- The role can read the whole board and change nothing.
GRANT USAGE ON SCHEMA blackboard TO %1$I;
GRANT SELECT ON ALL TABLES IN SCHEMA blackboard TO %1$I;
REVOKE EXECUTE ON FUNCTION blackboard.adopt(), blackboard.prune_events(uuid, timestamptz, integer),
    blackboard.keep_session(uuid, interval, interval, text),
    blackboard.prune_tasks(uuid, timestamptz, text[], uuid, integer, boolean, text),
    blackboard.prune_flows(uuid, timestamptz, text[], uuid, integer, boolean, text) FROM PUBLIC, %1$I;
$grants$, CAST(:name AS text)) AS grants;

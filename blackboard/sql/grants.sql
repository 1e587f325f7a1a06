-- name: agent_grants
-- The text that lets a role work as an agent, and no more: it cannot rewrite history, delete work or replace functions.
-- Rows that the board writes about a change (events, electors) come from triggers that run as the owner.
SELECT format($grants$-- Run this as the owner of the schema. The role can read the whole board and work on it; it cannot change history.
GRANT USAGE ON SCHEMA blackboard TO %1$I;
GRANT SELECT ON ALL TABLES IN SCHEMA blackboard TO %1$I;
GRANT INSERT, UPDATE ON
    blackboard.actions, blackboard.agents, blackboard.findings, blackboard.hypotheses, blackboard.leases,
    blackboard.locks, blackboard.memberships, blackboard.proposals, blackboard.sessions, blackboard.tasks,
    blackboard.votes
    TO %1$I;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA blackboard TO %1$I;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA blackboard TO %1$I;
REVOKE EXECUTE ON FUNCTION blackboard.adopt(), blackboard.prune_events(uuid, timestamptz) FROM PUBLIC, %1$I;
$grants$, CAST(:name AS text)) AS grants;

-- name: reader_grants
-- The text that lets a role read the whole board and nothing else.
SELECT format($grants$-- Run this as the owner of the schema. The role can read the whole board and change nothing.
GRANT USAGE ON SCHEMA blackboard TO %1$I;
GRANT SELECT ON ALL TABLES IN SCHEMA blackboard TO %1$I;
$grants$, CAST(:name AS text)) AS grants;

-- name: open_proposal
-- Opens a proposal and fixes its electorate; the same id with the same content returns it again.
-- Locks: its own row. Index: proposals_pkey.
SELECT p.session_id, p.id, p.agent_id, p.title, CAST(p.body AS text) AS body, p.rule, p.threshold, p.weighted,
       p.min_turnout, p.electorate, p.deadline_at, p.at_deadline, p.status, p.decided_at,
       CAST(p.result AS text) AS result, p.created_at,
       CAST(to_jsonb(blackboard.tally(p.session_id, p.id)) AS text) AS tally
FROM blackboard.open_proposal(
    CAST(:session_id AS uuid), CAST(:id AS uuid), CAST(:agent_id AS text), CAST(:title AS text),
    CAST(CAST(:body AS text) AS jsonb), CAST(:rule AS text), CAST(:threshold AS double precision),
    CAST(:weighted AS boolean), CAST(:min_turnout AS double precision), CAST(:deadline AS interval),
    CAST(:at_deadline AS text), CAST(:electorate AS text[])) AS p;

-- name: vote
-- Casts or changes a ballot and closes the proposal when its outcome is certain; returns it with the running tally.
-- Locks: the proposal's row, then the actions that wait for it. Index: proposals_pkey, votes_pkey.
SELECT p.session_id, p.id, p.agent_id, p.title, CAST(p.body AS text) AS body, p.rule, p.threshold, p.weighted,
       p.min_turnout, p.electorate, p.deadline_at, p.at_deadline, p.status, p.decided_at,
       CAST(p.result AS text) AS result, p.created_at,
       CAST(to_jsonb(blackboard.tally(p.session_id, p.id)) AS text) AS tally
FROM blackboard.vote(
    CAST(:session_id AS uuid), CAST(:proposal_id AS uuid), CAST(:agent_id AS text), CAST(:choice AS text),
    CAST(:confidence AS double precision), CAST(:reason AS text), CAST(:key AS text)) AS p;

-- name: withdraw_proposal
-- Takes an open proposal back; only its proposer may.
-- Locks: the proposal's row, then the actions that wait for it. Index: proposals_pkey.
SELECT p.session_id, p.id, p.agent_id, p.title, CAST(p.body AS text) AS body, p.rule, p.threshold, p.weighted,
       p.min_turnout, p.electorate, p.deadline_at, p.at_deadline, p.status, p.decided_at,
       CAST(p.result AS text) AS result, p.created_at,
       CAST(to_jsonb(blackboard.tally(p.session_id, p.id)) AS text) AS tally
FROM blackboard.withdraw_proposal(
    CAST(:session_id AS uuid), CAST(:proposal_id AS uuid), CAST(:agent_id AS text)) AS p;

-- name: get_proposal
-- One proposal with its tally, electors and ballots; due deadlines are applied first.
-- Locks: proposals whose deadline has passed. Index: proposals_pkey, votes_pkey.
SELECT p.session_id, p.id, p.agent_id, p.title, CAST(p.body AS text) AS body, p.rule, p.threshold, p.weighted,
       p.min_turnout, p.electorate, p.deadline_at, p.at_deadline, p.status, p.decided_at,
       CAST(p.result AS text) AS result, p.created_at,
       CAST(to_jsonb(blackboard.tally(p.session_id, p.id)) AS text) AS tally,
       CAST((SELECT jsonb_object_agg(e.agent_id, e.weight) FROM blackboard.proposal_electors e
             WHERE e.session_id = p.session_id AND e.proposal_id = p.id) AS text) AS electors,
       CAST((SELECT coalesce(jsonb_agg(to_jsonb(v) ORDER BY v.cast_at, v.agent_id), '[]') FROM blackboard.votes v
             WHERE v.session_id = p.session_id AND v.proposal_id = p.id) AS text) AS ballots
FROM blackboard.get_proposal(CAST(:session_id AS uuid), CAST(:proposal_id AS uuid)) AS p;

-- name: list_proposals
-- Newest first, each with its tally; due deadlines are applied first.
-- Locks: proposals whose deadline has passed. Index: proposals_newest, proposals_open.
SELECT p.session_id, p.id, p.agent_id, p.title, CAST(p.body AS text) AS body, p.rule, p.threshold, p.weighted,
       p.min_turnout, p.electorate, p.deadline_at, p.at_deadline, p.status, p.decided_at,
       CAST(p.result AS text) AS result, p.created_at,
       CAST(to_jsonb(blackboard.tally(p.session_id, p.id)) AS text) AS tally
FROM blackboard.list_proposals(CAST(:session_id AS uuid), CAST(:status AS text), CAST(:limit AS integer)) AS p
ORDER BY p.created_at DESC, p.id DESC;

-- name: tally
-- The running tally of an open proposal, the final one of a closed one. Index: proposals_pkey, votes_pkey.
SELECT t.votes_for, t.votes_against, t.abstentions, t.outstanding,
       CAST(t.weight_for AS double precision) AS weight_for,
       CAST(t.weight_against AS double precision) AS weight_against,
       CAST(t.weight_abstained AS double precision) AS weight_abstained,
       CAST(t.weight_total AS double precision) AS weight_total, t.turnout, t.outcome, t.certain
FROM blackboard.tally(CAST(:session_id AS uuid), CAST(:proposal_id AS uuid)) AS t;

-- name: list_votes
-- The ballots of a proposal as they stand, in order of their last change. Index: votes_pkey.
SELECT session_id, proposal_id, agent_id, choice, confidence, reason, cast_at, revision
FROM blackboard.votes
WHERE session_id = CAST(:session_id AS uuid) AND proposal_id = CAST(:proposal_id AS uuid)
ORDER BY cast_at, agent_id;

-- name: close_due_proposals
-- Applies the deadlines that have passed; returns how many proposals that closed.
-- Locks: those proposals, skipping locked ones, then their actions. Index: proposals_due.
SELECT blackboard.close_due_proposals(CAST(:session_id AS uuid), CAST(:limit AS integer)) AS closed;

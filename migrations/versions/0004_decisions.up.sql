-- Proposals and votes, actions and their approval, locks.
--
-- Lock order of every verb here: proposal, then its actions; a lock's row stands alone. Leases are only read.

-- A member that acts must be there now: who left has no say and takes nothing.
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

-- Ownership must not be handed out by a commit that a crash can lose, whatever the caller's setting is.
CREATE FUNCTION blackboard.commit_synchronously() RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF pg_catalog.current_setting('synchronous_commit') = 'off' THEN
        PERFORM pg_catalog.set_config('synchronous_commit', 'on', true);
    END IF;
END
$$;

-- What changed between two states of a row, as history keeps it.
CREATE FUNCTION blackboard.changed(p_old jsonb, p_new jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT coalesce(jsonb_object_agg(n.key, n.value), '{}')
    FROM jsonb_each(p_new) n WHERE n.value IS DISTINCT FROM p_old -> n.key
$$;

-- ---------------------------------------------------------------------------------------- proposals and votes

CREATE TABLE blackboard.proposals (
    session_id uuid NOT NULL CONSTRAINT proposals_session_known REFERENCES blackboard.sessions (id),
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    agent_id text NOT NULL,
    title text NOT NULL CONSTRAINT proposals_title_length CHECK (length(title) BETWEEN 1 AND 500),
    body jsonb NOT NULL DEFAULT '{}' CONSTRAINT proposals_body_size CHECK (pg_column_size(body) <= 1048576),
    rule text NOT NULL DEFAULT 'majority'
        CONSTRAINT proposals_rule_known CHECK (rule IN ('majority', 'unanimous', 'threshold')),
    threshold double precision,
    weighted boolean NOT NULL DEFAULT false,
    min_turnout double precision NOT NULL CONSTRAINT proposals_min_turnout_range CHECK (min_turnout BETWEEN 0 AND 1),
    electorate text[],
    deadline_at timestamptz DEFAULT blackboard.now() + interval '5 minutes',
    at_deadline text NOT NULL DEFAULT 'tally'
        CONSTRAINT proposals_at_deadline_known CHECK (at_deadline IN ('reject', 'tally', 'escalate')),
    status text NOT NULL DEFAULT 'open'
        CONSTRAINT proposals_status_known CHECK (status IN ('open', 'accepted', 'rejected', 'expired', 'withdrawn')),
    decided_at timestamptz,
    result jsonb,
    ballots bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT blackboard.now(),
    CONSTRAINT proposals_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT proposals_proposer_member FOREIGN KEY (session_id, agent_id)
        REFERENCES blackboard.memberships (session_id, agent_id),
    CONSTRAINT proposals_threshold_iff_rule CHECK ((rule = 'threshold') = (threshold IS NOT NULL)),
    CONSTRAINT proposals_threshold_range CHECK (threshold > 0 AND threshold <= 1),
    CONSTRAINT proposals_deadline_after_opening CHECK (deadline_at > created_at),
    CONSTRAINT proposals_decided_iff_closed CHECK (
        (status = 'open') = (decided_at IS NULL) AND (status = 'open') = (result IS NULL))
) WITH (fillfactor = 70);
CREATE INDEX proposals_newest ON blackboard.proposals (session_id, created_at DESC, id);
CREATE INDEX proposals_open ON blackboard.proposals (session_id, created_at DESC, id) WHERE status = 'open';
CREATE INDEX proposals_due ON blackboard.proposals (session_id, deadline_at) WHERE status = 'open';
COMMENT ON COLUMN blackboard.proposals.electorate IS
    'The electors that were named at opening; NULL: every member then.';
COMMENT ON COLUMN blackboard.proposals.ballots IS
    'Grows with every ballot, so that two last ballots collide under REPEATABLE READ instead of leaving it open.';

CREATE TABLE blackboard.proposal_electors (
    session_id uuid NOT NULL,
    proposal_id uuid NOT NULL,
    agent_id text NOT NULL,
    weight numeric NOT NULL CONSTRAINT proposal_electors_weight_range CHECK (weight BETWEEN 0 AND 1000000),
    CONSTRAINT proposal_electors_pkey PRIMARY KEY (session_id, proposal_id, agent_id),
    CONSTRAINT proposal_electors_proposal_known FOREIGN KEY (session_id, proposal_id)
        REFERENCES blackboard.proposals (session_id, id) ON DELETE CASCADE
);
COMMENT ON TABLE blackboard.proposal_electors IS
    'Who may vote, fixed at opening; written by the proposal''s own trigger.';

CREATE TABLE blackboard.votes (
    session_id uuid NOT NULL,
    proposal_id uuid NOT NULL,
    agent_id text NOT NULL,
    choice text NOT NULL CONSTRAINT votes_choice_known CHECK (choice IN ('yes', 'no', 'abstain')),
    confidence double precision CONSTRAINT votes_confidence_range CHECK (confidence BETWEEN 0 AND 1),
    reason text NOT NULL DEFAULT '' CONSTRAINT votes_reason_length CHECK (length(reason) <= 4000),
    cast_at timestamptz NOT NULL DEFAULT blackboard.now(),
    revision integer NOT NULL DEFAULT 1 CONSTRAINT votes_revision_range CHECK (revision >= 1),
    CONSTRAINT votes_pkey PRIMARY KEY (session_id, proposal_id, agent_id),
    CONSTRAINT votes_elector_known FOREIGN KEY (session_id, proposal_id, agent_id)
        REFERENCES blackboard.proposal_electors (session_id, proposal_id, agent_id) ON DELETE CASCADE
);

-- The rules. With the electorate's weights summed by ballot into yes, no and abstained, and total over everybody:
--   majority    yes > no, that is, more than half of yes + no
--   threshold   yes > 0 and yes / (yes + no) >= threshold
--   unanimous   yes > 0 and no = 0
-- and under every rule (yes + no + abstained) / total >= min_turnout. Whatever does not pass is rejected; abstentions
-- count for the turnout and for nothing else; without weights every elector counts 1.
-- Sums are exact (numeric). Quotients are rounded to the nearest double before they are compared, so that 2 of 3
-- pass a threshold of 2/3 and 7 of 10 one of 0.7, although neither is a double.
CREATE FUNCTION blackboard.ballots_pass(
    p_rule text, p_threshold double precision, p_min_turnout double precision,
    p_yes numeric, p_no numeric, p_abstained numeric, p_total numeric
) RETURNS boolean
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

-- The tally of an electorate: one weight and one choice (yes, no, abstain; NULL: not cast) for each elector, in any
-- order. outcome is what closing now would give, accepted or rejected. certain says that no completion can give the
-- other one: each outstanding elector may still vote yes, no, abstain or not at all, while ballots that were cast
-- are taken as final although they may be changed until the close (else nothing would ever close early).
-- Every rule rises with yes and falls with no, and turnout only grows. So acceptance is possible iff it comes when all
-- outstanding vote yes, and is sure iff it comes both now (turnout is lowest) and when all outstanding vote no.
CREATE FUNCTION blackboard.tally_of(
    p_rule text, p_threshold double precision, p_min_turnout double precision,
    p_weights numeric[], p_choices text[]
) RETURNS blackboard.tallied
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

-- The running tally, or the final one. VOLATILE, so that it sees what a verb in the same statement has just written.
CREATE FUNCTION blackboard.tally(p_session_id uuid, p_proposal_id uuid) RETURNS blackboard.tallied
LANGUAGE plpgsql VOLATILE
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

CREATE FUNCTION blackboard.proposals_admit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER admit BEFORE INSERT ON blackboard.proposals
    FOR EACH ROW EXECUTE FUNCTION blackboard.proposals_admit();

-- Fixes the electorate, in the transaction that opens the proposal.
CREATE FUNCTION blackboard.history_proposals_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.proposals REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_proposals_insert();

-- A proposal closes only as its ballots, its deadline or its proposer say, and its result is computed here, so that
-- an UPDATE typed into psql cannot decide a vote.
CREATE FUNCTION blackboard.proposals_guard() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER guard BEFORE UPDATE ON blackboard.proposals
    FOR EACH ROW EXECUTE FUNCTION blackboard.proposals_guard();

CREATE FUNCTION blackboard.history_proposals_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.proposals
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_proposals_update();
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.proposals REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('proposal', 'id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.proposals
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE FUNCTION blackboard.electors_guard() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON blackboard.proposal_electors
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.electors_guard();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.proposal_electors
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- Locks the proposal's row by counting it up, so that ballots come one after the other at every isolation level.
CREATE FUNCTION blackboard.votes_admit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER admit BEFORE INSERT OR UPDATE ON blackboard.votes
    FOR EACH ROW EXECUTE FUNCTION blackboard.votes_admit();

-- Ballots that count cannot be taken out of the box; those of a deleted proposal go with it.
CREATE FUNCTION blackboard.votes_keep() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER keep BEFORE DELETE ON blackboard.votes FOR EACH ROW EXECUTE FUNCTION blackboard.votes_keep();

-- Closes the proposal if no outstanding ballot can change its outcome.
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

CREATE FUNCTION blackboard.history_votes_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.votes REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_votes_insert();

CREATE FUNCTION blackboard.history_votes_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.votes
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_votes_update();
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.votes REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('vote', 'proposal_id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.votes
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- Applies the deadlines that have passed, at most p_limit of them; returns how many. Locks the due proposals, passing
-- over those that somebody else is just deciding. Nothing happens on a standby or in a read-only transaction.
-- SECURITY DEFINER, because those who may only read apply deadlines too, and can change nothing else by it.
CREATE FUNCTION blackboard.close_due_proposals(p_session_id uuid, p_limit integer DEFAULT 100) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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

-- Opens a proposal; the same id with the same content returns it again.
CREATE FUNCTION blackboard.open_proposal(
    p_session_id uuid, p_id uuid, p_agent_id text, p_title text, p_body jsonb DEFAULT '{}',
    p_rule text DEFAULT 'majority', p_threshold double precision DEFAULT NULL, p_weighted boolean DEFAULT false,
    p_min_turnout double precision DEFAULT NULL, p_deadline interval DEFAULT interval '5 minutes',
    p_at_deadline text DEFAULT 'tally', p_electorate text[] DEFAULT NULL
) RETURNS blackboard.proposals
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

-- Casts or changes the agent's ballot and closes the proposal when that makes its outcome certain. The same ballot
-- again changes nothing, even after the close.
CREATE FUNCTION blackboard.vote(
    p_session_id uuid, p_proposal_id uuid, p_agent_id text, p_choice text,
    p_confidence double precision DEFAULT NULL, p_reason text DEFAULT '', p_key text DEFAULT NULL
) RETURNS blackboard.proposals
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

-- Only its proposer takes a proposal back, and only while it is open.
CREATE FUNCTION blackboard.withdraw_proposal(p_session_id uuid, p_proposal_id uuid, p_agent_id text)
RETURNS blackboard.proposals
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

-- Reads apply the deadlines that have passed first: what they return is true now.
CREATE FUNCTION blackboard.get_proposal(p_session_id uuid, p_proposal_id uuid) RETURNS SETOF blackboard.proposals
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM blackboard.close_due_proposals(p_session_id);
    RETURN QUERY SELECT * FROM blackboard.proposals WHERE session_id = p_session_id AND id = p_proposal_id;
END
$$;

CREATE FUNCTION blackboard.list_proposals(p_session_id uuid, p_status text, p_limit integer)
RETURNS SETOF blackboard.proposals
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM blackboard.close_due_proposals(p_session_id);
    RETURN QUERY SELECT * FROM blackboard.proposals
    WHERE session_id = p_session_id AND (p_status IS NULL OR status = p_status)
    ORDER BY created_at DESC, id DESC LIMIT p_limit;
END
$$;

-- ----------------------------------------------------------------------------------------------------- actions

CREATE TABLE blackboard.actions (
    session_id uuid NOT NULL CONSTRAINT actions_session_known REFERENCES blackboard.sessions (id),
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    agent_id text NOT NULL,
    type text NOT NULL CONSTRAINT actions_type_known CHECK (type IN ('query', 'modify', 'notify', 'escalate')),
    target text NOT NULL DEFAULT '' CONSTRAINT actions_target_length CHECK (length(target) <= 500),
    parameters jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT actions_parameters_size CHECK (pg_column_size(parameters) <= 1048576),
    requires_approval boolean NOT NULL DEFAULT true,
    approval text CONSTRAINT actions_approval_known CHECK (approval IN ('vote', 'human', 'both')),
    proposal_id uuid,
    status text NOT NULL DEFAULT 'proposed' CONSTRAINT actions_status_known CHECK (
        status IN ('proposed', 'awaiting_approval', 'approved', 'rejected', 'executing', 'completed', 'failed',
                   'rolled_back')),
    vote_accepted boolean NOT NULL DEFAULT false,
    approved_by text CONSTRAINT actions_approved_by_length CHECK (length(approved_by) BETWEEN 1 AND 200),
    rejected_by text CONSTRAINT actions_rejected_by_length CHECK (length(rejected_by) BETWEEN 1 AND 200),
    approval_reason text NOT NULL DEFAULT ''
        CONSTRAINT actions_approval_reason_length CHECK (length(approval_reason) <= 4000),
    executor text,
    lease_id uuid,
    token bigint NOT NULL DEFAULT 0 CONSTRAINT actions_token_range CHECK (token >= 0),
    result jsonb CONSTRAINT actions_result_size CHECK (pg_column_size(result) <= 1048576),
    error text CONSTRAINT actions_error_length CHECK (length(error) <= 10000),
    rolled_back_by text CONSTRAINT actions_rolled_back_by_length CHECK (length(rolled_back_by) BETWEEN 1 AND 200),
    rollback_reason text CONSTRAINT actions_rollback_reason_length CHECK (length(rollback_reason) <= 4000),
    created_at timestamptz NOT NULL DEFAULT blackboard.now(),
    decided_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    CONSTRAINT actions_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT actions_proposer_member FOREIGN KEY (session_id, agent_id)
        REFERENCES blackboard.memberships (session_id, agent_id),
    CONSTRAINT actions_executor_member FOREIGN KEY (session_id, executor)
        REFERENCES blackboard.memberships (session_id, agent_id),
    CONSTRAINT actions_proposal_known FOREIGN KEY (session_id, proposal_id)
        REFERENCES blackboard.proposals (session_id, id),
    CONSTRAINT actions_approval_iff_required CHECK (requires_approval = (approval IS NOT NULL)),
    CONSTRAINT actions_vote_needs_proposal CHECK (approval NOT IN ('vote', 'both') OR proposal_id IS NOT NULL),
    CONSTRAINT actions_escalation_needs_human CHECK (
        type <> 'escalate' OR coalesce(approval, '') IN ('human', 'both')),
    CONSTRAINT actions_approver_is_another CHECK (approved_by <> agent_id),
    CONSTRAINT actions_approved_before_start CHECK (
        status IN ('proposed', 'awaiting_approval', 'rejected')
        OR approval IS NULL
        OR (approval = 'vote' AND (vote_accepted OR approved_by IS NOT NULL))
        OR (approval = 'human' AND approved_by IS NOT NULL)
        OR (approval = 'both' AND vote_accepted AND approved_by IS NOT NULL)),
    CONSTRAINT actions_decided_at_iff_decided CHECK (
        (status IN ('proposed', 'awaiting_approval')) = (decided_at IS NULL)),
    CONSTRAINT actions_executor_iff_started CHECK (
        (status IN ('executing', 'completed', 'failed', 'rolled_back'))
        = (executor IS NOT NULL AND lease_id IS NOT NULL AND started_at IS NOT NULL AND token > 0)),
    CONSTRAINT actions_finished_at_iff_finished CHECK (
        (status IN ('completed', 'failed', 'rolled_back')) = (finished_at IS NOT NULL)),
    CONSTRAINT actions_rolled_back_by_whom CHECK ((status = 'rolled_back') = (rolled_back_by IS NOT NULL))
);
CREATE INDEX actions_newest ON blackboard.actions (session_id, created_at DESC, id);
CREATE INDEX actions_status ON blackboard.actions (session_id, status, created_at DESC, id);
CREATE INDEX actions_proposal ON blackboard.actions (session_id, proposal_id) WHERE proposal_id IS NOT NULL;
COMMENT ON COLUMN blackboard.actions.approval IS
    'Who must say yes: vote, human or both; NULL when nobody must. A human may also decide in place of a vote.';
COMMENT ON COLUMN blackboard.actions.lease_id IS 'The lease under which it executes; no history.';

CREATE FUNCTION blackboard.actions_admit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER admit BEFORE INSERT ON blackboard.actions FOR EACH ROW EXECUTE FUNCTION blackboard.actions_admit();

CREATE FUNCTION blackboard.history_actions_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.actions REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_actions_insert();

-- What was approved is what runs, a vote counts only as it was cast, and times are the board's.
CREATE FUNCTION blackboard.actions_guard() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER guard BEFORE UPDATE ON blackboard.actions FOR EACH ROW EXECUTE FUNCTION blackboard.actions_guard();

CREATE FUNCTION blackboard.history_actions_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.actions
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_actions_update();
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.actions REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('action', 'id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.actions
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- Hands a closed proposal's outcome to the actions that wait for it; called in the transaction that closes it.
-- It always writes the row it passes on, so that a human deciding at the same instant collides or comes after.
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

-- Proposes an action, and with p_vote opens the proposal that decides on it, in the same transaction. The same id
-- with the same content returns it again; the proposal's id is made from the action's, so that this holds for both.
CREATE FUNCTION blackboard.propose_action(
    p_session_id uuid, p_id uuid, p_agent_id text, p_type text, p_target text, p_parameters jsonb DEFAULT '{}',
    p_requires_approval boolean DEFAULT true, p_approval text DEFAULT NULL, p_proposal_id uuid DEFAULT NULL,
    p_vote boolean DEFAULT false, p_vote_title text DEFAULT NULL, p_vote_body jsonb DEFAULT NULL,
    p_vote_rule text DEFAULT 'majority', p_vote_threshold double precision DEFAULT NULL,
    p_vote_weighted boolean DEFAULT false, p_vote_min_turnout double precision DEFAULT NULL,
    p_vote_deadline interval DEFAULT interval '5 minutes', p_vote_at_deadline text DEFAULT 'tally',
    p_vote_electorate text[] DEFAULT NULL
) RETURNS blackboard.actions
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

-- The action, locked; raises NotFound.
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

-- A named human says yes. Alone that is enough for approval human, and in place of a vote; with both, the vote must
-- have accepted too. A proposal that is still open stays open and is then only on record. p_actor is who calls.
CREATE FUNCTION blackboard.approve_action(p_session_id uuid, p_id uuid, p_by text, p_reason text, p_actor text)
RETURNS blackboard.actions
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

-- A named human says no, whatever a vote may say; so may the agent that proposed it, to take it back.
CREATE FUNCTION blackboard.reject_action(p_session_id uuid, p_id uuid, p_by text, p_reason text)
RETURNS blackboard.actions
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

-- The agent executes an approved action, or one whose executor's lease has lapsed; each start raises the token. Its
-- present executor, calling again under the same lease, gets the same token.
CREATE FUNCTION blackboard.start_action(p_session_id uuid, p_id uuid, p_agent_id text, p_lease_id uuid)
RETURNS blackboard.actions
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

CREATE FUNCTION blackboard.lease_lapsed(p_lease_id uuid) RETURNS boolean
LANGUAGE sql STABLE
AS $$
    -- A lease that is gone has lapsed long ago.
    SELECT NOT EXISTS (SELECT FROM blackboard.leases l WHERE l.id = p_lease_id AND l.lapsed_at IS NULL)
$$;

-- Ends an execution under its token: p_status is completed or failed.
CREATE FUNCTION blackboard.finish_action(
    p_session_id uuid, p_id uuid, p_agent_id text, p_token bigint, p_status text, p_result jsonb, p_error text
) RETURNS blackboard.actions
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

CREATE FUNCTION blackboard.complete_action(
    p_session_id uuid, p_id uuid, p_agent_id text, p_token bigint, p_result jsonb
) RETURNS blackboard.actions
LANGUAGE sql
AS $$ SELECT * FROM blackboard.finish_action(p_session_id, p_id, p_agent_id, p_token, 'completed', p_result, NULL) $$;

CREATE FUNCTION blackboard.fail_action(
    p_session_id uuid, p_id uuid, p_agent_id text, p_token bigint, p_error text
) RETURNS blackboard.actions
LANGUAGE sql
AS $$ SELECT * FROM blackboard.finish_action(p_session_id, p_id, p_agent_id, p_token, 'failed', NULL, p_error) $$;

-- What an executor that lost its lease had to say is kept as an event, action.late, and applied to nothing: the
-- thing may have been done all the same, and whoever executes it again should know.
CREATE FUNCTION blackboard.keep_late_action(
    p_session_id uuid, p_id uuid, p_agent_id text, p_token bigint, p_result jsonb, p_error text
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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

-- Records that what the action did was undone.
CREATE FUNCTION blackboard.roll_back_action(p_session_id uuid, p_id uuid, p_by text, p_reason text)
RETURNS blackboard.actions
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

-- Reads apply due deadlines first: an action may be decided by one.
CREATE FUNCTION blackboard.get_action(p_session_id uuid, p_id uuid) RETURNS SETOF blackboard.actions
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM blackboard.close_due_proposals(p_session_id);
    RETURN QUERY SELECT * FROM blackboard.actions WHERE session_id = p_session_id AND id = p_id;
END
$$;

CREATE FUNCTION blackboard.list_actions(p_session_id uuid, p_status text, p_limit integer)
RETURNS SETOF blackboard.actions
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM blackboard.close_due_proposals(p_session_id);
    RETURN QUERY SELECT * FROM blackboard.actions
    WHERE session_id = p_session_id AND (p_status IS NULL OR status = p_status)
    ORDER BY created_at DESC, id DESC LIMIT p_limit;
END
$$;

-- ------------------------------------------------------------------------------------------------------- locks

CREATE TABLE blackboard.locks (
    session_id uuid NOT NULL CONSTRAINT locks_session_known REFERENCES blackboard.sessions (id),
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    name text NOT NULL CONSTRAINT locks_name_length CHECK (length(name) BETWEEN 1 AND 300),
    holder text,
    lease_id uuid,
    request_id uuid,
    token bigint NOT NULL DEFAULT 0 CONSTRAINT locks_token_range CHECK (token >= 0),
    acquired_at timestamptz,
    expires_at timestamptz,
    released_token bigint NOT NULL DEFAULT 0,
    last_position bigint NOT NULL DEFAULT 0,
    CONSTRAINT locks_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT locks_name_once UNIQUE (session_id, name),
    CONSTRAINT locks_holder_member FOREIGN KEY (session_id, holder)
        REFERENCES blackboard.memberships (session_id, agent_id),
    CONSTRAINT locks_held_whole CHECK (
        (holder IS NULL) = (acquired_at IS NULL) AND (holder IS NULL) = (request_id IS NULL)
        AND (holder IS NOT NULL OR (lease_id IS NULL AND expires_at IS NULL)) AND (holder IS NULL OR token > 0)),
    CONSTRAINT locks_holder_has_an_end CHECK (
        holder IS NULL OR lease_id IS NOT NULL OR expires_at IS NOT NULL)
) WITH (fillfactor = 70);
COMMENT ON COLUMN blackboard.locks.token IS 'Grows with every grant of this name: the fencing token of its holder.';
COMMENT ON COLUMN blackboard.locks.expires_at IS 'NULL: held until released or until the lease lapses. No history.';

-- The queue of each lock; a lock's row is locked before its queue is changed. Presence, and no history: what comes of
-- waiting is the grant.
CREATE TABLE blackboard.lock_waiters (
    session_id uuid NOT NULL,
    id uuid NOT NULL,
    lock_id uuid NOT NULL,
    agent_id text NOT NULL,
    lease_id uuid NOT NULL,
    position bigint NOT NULL,
    ttl interval,
    enqueued_at timestamptz NOT NULL DEFAULT blackboard.now(),
    deadline_at timestamptz NOT NULL,
    CONSTRAINT lock_waiters_pkey PRIMARY KEY (session_id, id),
    CONSTRAINT lock_waiters_position_once UNIQUE (session_id, lock_id, position),
    CONSTRAINT lock_waiters_lock_known FOREIGN KEY (session_id, lock_id)
        REFERENCES blackboard.locks (session_id, id) ON DELETE CASCADE,
    CONSTRAINT lock_waiters_agent_member FOREIGN KEY (session_id, agent_id)
        REFERENCES blackboard.memberships (session_id, agent_id)
);
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.lock_waiters
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

CREATE FUNCTION blackboard.history_locks_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER history_insert AFTER INSERT ON blackboard.locks REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_locks_insert();

CREATE FUNCTION blackboard.history_locks_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
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
CREATE TRIGGER history_update AFTER UPDATE ON blackboard.locks
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.history_locks_update();
CREATE TRIGGER history_delete AFTER DELETE ON blackboard.locks REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.record_delete('lock', 'id');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON blackboard.locks
    FOR EACH STATEMENT EXECUTE FUNCTION blackboard.refuse_change();

-- Brings a lock up to date, with its row locked by the caller: takes it from a holder whose time is over, drops
-- waiters that are dead or late, and grants it to the first one left. Returns the row as it is then.
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

-- Asks for a lock. One call is one place in the queue, known by p_request_id: calling again with it tells what became
-- of it, and returns the same token while the grant lasts. Another request of the same agent queues like anybody's.
-- With p_wait NULL nothing is left in the queue when the answer is no. The row says who holds it: the request was
-- granted iff request_id = p_request_id.
CREATE FUNCTION blackboard.acquire_lock(
    p_session_id uuid, p_name text, p_agent_id text, p_lease_id uuid, p_request_id uuid,
    p_ttl interval DEFAULT NULL, p_wait interval DEFAULT NULL
) RETURNS blackboard.locks
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

-- The lock's row, locked, if that agent holds it under that token now; raises LeaseLost otherwise.
CREATE FUNCTION blackboard.held_lock(p_session_id uuid, p_name text, p_agent_id text, p_token bigint)
RETURNS blackboard.locks
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

-- Moves the end of a held lock to p_ttl from now, or with NULL to the end of its lease.
CREATE FUNCTION blackboard.renew_lock(
    p_session_id uuid, p_name text, p_agent_id text, p_token bigint, p_ttl interval
) RETURNS blackboard.locks
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

-- Gives a held lock to the first waiter, in the same transaction. Releasing it again under the same token is no error.
CREATE FUNCTION blackboard.release_lock(p_session_id uuid, p_name text, p_agent_id text, p_token bigint)
RETURNS blackboard.locks
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

-- Ends a request, whether it still waits or was granted meanwhile. True if there was something to end.
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

-- For a caller's own transaction: passes only while that token holds the lock, and keeps anybody else from getting it
-- before the transaction ends, so that a late owner's write is refused and a timely one is safe.
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

-- ---------------------------------------------------------------------------------------------- end of a session

-- Called when a session closes: open proposals expire without a decision (and with them the actions that wait for
-- them), actions that await a human are rejected, executing ones fail with their outcome unknown, locks are released.
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

"""Tools on decisions: propose an action, vote, carry the action out."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from ..board import Agent
from ..models.actions import ActionRecord, ActionStatus, ActionType, Approval
from ..models.proposals import AtDeadline, Choice, Rule, VoteOptions
from .board_shapes import ProposalItem, clipped, proposal_item, proposal_line, tally_text
from .fence import NOTICE, Fence, quoted
from .tool import Answer, Arguments, Call, IdempotencyKey, JsonArray, JsonObject, Result, Tool

__all__ = ["DECISION_TOOLS"]

Confidence = Annotated[float | None, Field(ge=0, le=1, description="How sure you are, from 0 to 1.", examples=[0.85])]
ActionId = Annotated[UUID, Field(description="The action's id.")]


class ProposeArguments(Arguments):
    """What propose_action takes."""

    type: Annotated[ActionType, Field(description="What kind of thing is to be done; escalate always asks a human.")]
    target: Annotated[str, Field(max_length=500, description="What it is done to.", examples=["checkout"])]
    parameters: Annotated[
        JsonObject, Field(description="How.", examples=[{"action": "rollback", "version": "v1.2.2"}])
    ] = Field(default_factory=dict[str, Any])
    reason: Annotated[
        str, Field(max_length=4000, description="Why; voters read it. Name the findings it rests on.")
    ] = ""
    requires_approval: Annotated[bool, Field(description="False only for what needs nobody's consent.")] = True
    approval: Annotated[
        Approval | None,
        Field(description="Who must say yes: vote (the default), human, or both. A human may always decide instead."),
    ] = None
    title: Annotated[str | None, Field(min_length=1, max_length=500, description="The question that is voted on.")] = (
        None
    )
    rule: Annotated[
        Rule,
        Field(description="majority: more yes than no. unanimous: no no. threshold: yes / (yes + no) reaches it."),
    ] = Rule.MAJORITY
    threshold: Annotated[float | None, Field(gt=0, le=1, description="Only for rule threshold; 0.7 by default.")] = None
    min_turnout: Annotated[
        float | None,
        Field(ge=0, le=1, description="Least share of the electorate that must vote; 0.5, or 1 for unanimous."),
    ] = None
    deadline_seconds: Annotated[float, Field(gt=0, le=604_800, description="How long the vote stays open at most.")] = (
        300
    )
    at_deadline: Annotated[
        AtDeadline, Field(description="What an open vote comes to then: tally counts the ballots that were cast.")
    ] = AtDeadline.TALLY
    electorate: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=100)]] | None,
        JsonArray,
        Field(max_length=1000, description="Which members may vote; all by default."),
    ] = None
    idempotency_key: IdempotencyKey = None


class ProposeResult(Result):
    """What propose_action answers."""

    action_id: str
    status: str
    approval: str | None
    proposal_id: str | None
    must_vote: tuple[str, ...]
    human_must_approve: bool
    rule: str | None
    deadline_at: str | None


class VoteArguments(Arguments):
    """What vote takes."""

    proposal_id: Annotated[UUID, Field(description="The proposal's id; {view} lists the open ones.")]
    choice: Annotated[
        Literal["yes", "no", "abstain"] | bool,
        Field(description="Your ballot; abstaining counts for the turnout only. It may be changed until the close."),
    ]
    confidence: Confidence = None
    reason: Annotated[str, Field(max_length=4000, description="Why; others read it.")] = ""
    idempotency_key: IdempotencyKey = None


class VoteResult(Result):
    """What vote answers."""

    notice: str = NOTICE
    proposal: ProposalItem
    your_vote: str
    closed: bool
    decision: str | None
    actions: dict[str, str]


class StartArguments(Arguments):
    """What start_action takes."""

    action_id: ActionId
    idempotency_key: IdempotencyKey = None


class FinishArguments(Arguments):
    """What finish_action takes."""

    action_id: ActionId
    token: Annotated[int, Field(ge=1, description="The token that {start_action} returned.")]
    succeeded: Annotated[bool, Field(description="Whether it was done.")]
    result: Annotated[Any, Field(description="What came of it, as any JSON value.")] = None
    error: Annotated[str, Field(max_length=10_000, description="What went wrong; needed when it did not succeed.")] = ""
    idempotency_key: IdempotencyKey = None


class ActionResult(Result):
    """What the tools that carry out an action answer."""

    action_id: str
    status: str
    token: int | None


async def propose(call: Call, arguments: ProposeArguments) -> Answer:
    """The action is on the board; whoever must approve it can."""
    agent = await call.connection.agent()
    wanted = arguments.approval
    human_only = wanted == Approval.HUMAN or (arguments.type == ActionType.ESCALATE and wanted is None)
    body = {
        "action": _named(arguments),
        "type": arguments.type.value,
        "target": arguments.target,
        "parameters": arguments.parameters,
        "reason": arguments.reason,
    }
    vote = VoteOptions(
        title=arguments.title,
        body=body,
        rule=arguments.rule,
        threshold=arguments.threshold,
        min_turnout=arguments.min_turnout,
        deadline=timedelta(seconds=arguments.deadline_seconds),
        at_deadline=arguments.at_deadline,
        electorate=arguments.electorate,
    )
    action = await agent.actions.propose(
        arguments.type,
        arguments.target,
        arguments.parameters,
        requires_approval=arguments.requires_approval,
        approval=None if not arguments.requires_approval else wanted,
        vote=None if human_only or not arguments.requires_approval else vote,
        id=call.connection.id_for(agent, "propose_action", arguments.idempotency_key),
    )
    return await _proposed(call, agent, action)


def _named(arguments: ProposeArguments) -> str:
    name = arguments.parameters.get("action")
    return name if isinstance(name, str) else arguments.type.value


async def _proposed(call: Call, agent: Agent, action: ActionRecord) -> Answer:
    names = call.names
    proposal = None if action.proposal_id is None else await agent.proposals.get(action.proposal_id)
    item = None if proposal is None else proposal_item(proposal, agent.id)
    human = action.status == ActionStatus.AWAITING_APPROVAL and action.approval in {Approval.HUMAN, Approval.BOTH}
    lines = [f"Action {action.id} is {action.status.value}."]
    if item is not None:
        waiting = ", ".join(quoted(name, 100) for name in item.waiting_for) or "nobody any more"
        lines.append(
            f"Proposal {item.id} decides on it ({item.status}, rule {item.rule}"
            + (f" {item.threshold:g}" if item.threshold is not None else "")
            + (f", until {item.deadline_at}" if item.deadline_at else "")
            + f"). Still to vote: {waiting}."
        )
    if human:
        lines.append(f"A human must approve it: `blackboard action approve {action.id} --session {agent.session.id}`.")
    if action.status == ActionStatus.APPROVED:
        advice = f"{names['start_action']}, do it, then {names['finish_action']}."
    elif action.status != ActionStatus.AWAITING_APPROVAL:
        advice = f"{names['view']} shows what became of it."
    elif item is not None and item.you_may_vote and item.your_vote is None:
        advice = (
            f"{names['vote']} yourself, then go on with other work; {names['wait']} with topics "
            '["action.*"] tells you the outcome. Do not act before it is approved.'
        )
    else:
        advice = (
            f'go on with other work; {names["wait"]} with topics ["action.*"] tells you the outcome. '
            "Do not act before it is approved."
        )
    return Answer(
        "\n".join(lines),
        ProposeResult(
            action_id=str(action.id),
            status=action.status.value,
            approval=None if action.approval is None else action.approval.value,
            proposal_id=None if item is None else item.id,
            must_vote=() if item is None else item.waiting_for,
            human_must_approve=human,
            rule=None if item is None else item.rule,
            deadline_at=None if item is None else item.deadline_at,
        ),
        advice,
    )


async def vote(call: Call, arguments: VoteArguments) -> Answer:
    """The ballot is cast; the proposal is closed if that made its outcome certain."""
    agent = await call.connection.agent()
    choice = arguments.choice if isinstance(arguments.choice, str) else ("yes" if arguments.choice else "no")
    await agent.proposals.vote(
        arguments.proposal_id,
        Choice(choice),
        confidence=arguments.confidence,
        reason=arguments.reason,
        key=call.connection.key_for(agent, "vote", arguments.idempotency_key),
    )
    proposal = await agent.proposals.get(arguments.proposal_id)
    item = proposal_item(proposal, agent.id)
    closed = item.status != "open"
    decision = None if proposal.result is None else clipped(proposal.result.get("decision"))
    decided = [one for one in await agent.actions.list(limit=100) if one.proposal_id == proposal.id] if closed else []
    advice = ""
    lines = [f"Your ballot on proposal {item.id} says {item.your_vote}. Tally: {tally_text(item.tally)}."]
    if not closed:
        lines.append(f"It stays open{f' until {item.deadline_at}' if item.deadline_at else ''}.")
        advice = f"go on with other work; {call.names['wait']} tells you when it closes."
    else:
        lines.append(f"It is closed: {item.status}.")
        lines += [f"Action {one.id} is {one.status.value}." for one in decided]
        if any(one.status == ActionStatus.APPROVED for one in decided):
            advice = (
                f"whoever carries it out calls {call.names['start_action']}; its proposer, unless agreed otherwise."
            )

    fence = Fence()
    lines += [fence.explanation(), fence.around("proposal", [proposal_line(item)])]
    return Answer(
        "\n".join(lines),
        VoteResult(
            proposal=item,
            your_vote=item.your_vote or choice,
            closed=closed,
            decision=decision,
            actions={str(one.id): one.status.value for one in decided},
        ),
        advice,
    )


async def start(call: Call, arguments: StartArguments) -> Answer:
    """This agent carries the action out, and nobody else does."""
    agent = await call.connection.agent()
    action = await agent.actions.start(arguments.action_id)
    return Answer(
        f"You carry out action {action.id}; its token is {action.token}.",
        ActionResult(action_id=str(action.id), status=action.status.value, token=action.token),
        f"do it now, once, then {call.names['finish_action']} with the token.",
    )


async def finish(call: Call, arguments: FinishArguments) -> Answer:
    """The action is completed, or has failed."""
    agent = await call.connection.agent()
    if arguments.succeeded:
        action = await agent.actions.complete(arguments.action_id, arguments.token, arguments.result)
    else:
        action = await agent.actions.fail(arguments.action_id, arguments.token, arguments.error or "no reason given")
    text = f"Action {action.id} is {action.status.value}, and everybody can see it."
    return Answer(text, ActionResult(action_id=str(action.id), status=action.status.value, token=action.token))


DECISION_TOOLS: tuple[Tool[Any], ...] = (
    Tool(
        "propose_action",
        "Propose an action",
        "Propose something that changes the world outside the board. It waits until those who must approve it have; "
        "by default the members vote for at most five minutes. The answer says who must vote or approve. Never act "
        "before the approval.",
        ProposeArguments,
        ProposeResult,
        propose,
    ),
    Tool(
        "vote",
        "Vote on a proposal",
        "Cast or change your ballot on an open proposal: yes, no or abstain, with your confidence and your reason. "
        "Look at the findings first. The answer shows the running tally, and the decision if your ballot closed it.",
        VoteArguments,
        VoteResult,
        vote,
        idempotent=True,
    ),
    Tool(
        "start_action",
        "Start an approved action",
        "Say that you now carry out an approved action; nobody else can then. Returns the token for {finish_action}.",
        StartArguments,
        ActionResult,
        start,
        idempotent=True,
    ),
    Tool(
        "finish_action",
        "Finish an action",
        "Say that the action you started was done, with its result, or failed, with the error.",
        FinishArguments,
        ActionResult,
        finish,
        idempotent=True,
    ),
)

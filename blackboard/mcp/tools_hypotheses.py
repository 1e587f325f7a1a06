"""Tools on hypotheses: propose, assess, add evidence, give the verdict."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from ..models.hypotheses import Hypothesis
from .board_shapes import clipped
from .fence import NOTICE, Fence, quoted
from .tool import Answer, Arguments, Call, IdempotencyKey, JsonArray, Result, Tool

__all__ = ["HYPOTHESIS_TOOLS"]

HypothesisId = Annotated[UUID, Field(description="The hypothesis's id; {view} lists them.")]
Confidence = Annotated[float, Field(ge=0, le=1, description="How likely you think it is, from 0 to 1.")]


class ProposeArguments(Arguments):
    """What propose_hypothesis takes."""

    statement: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2000,
            description="What might be the explanation, so that evidence can speak for or against it.",
            examples=["database connection pool exhaustion"],
        ),
    ]
    confidence: Confidence = 0.5
    idempotency_key: IdempotencyKey = None


class AssessArguments(Arguments):
    """What assess_hypothesis takes."""

    hypothesis_id: HypothesisId
    confidence: Confidence
    reason: Annotated[str, Field(max_length=4000, description="Why; others read it.")] = ""
    idempotency_key: IdempotencyKey = None


class EvidenceArguments(Arguments):
    """What add_evidence takes."""

    hypothesis_id: HypothesisId
    finding_id: Annotated[UUID, Field(description="The finding that speaks for it or against it.")]
    supports: Annotated[bool, Field(description="True: it speaks for the hypothesis. False: against it.")] = True
    weight: Annotated[float, Field(gt=0, le=1, description="How much it says about this hypothesis.")] = 1.0
    idempotency_key: IdempotencyKey = None


class VerdictArguments(Arguments):
    """What validate_hypothesis takes."""

    hypothesis_id: HypothesisId
    result: Annotated[bool, Field(description="True: it holds. False: it is refuted. Either is for good.")]
    evidence: Annotated[
        list[UUID],
        JsonArray,
        Field(min_length=1, max_length=100, description="Ids of the findings that the verdict rests on."),
    ]
    reason: Annotated[str, Field(max_length=4000, description="Why; others read it.")] = ""
    idempotency_key: IdempotencyKey = None


class HypothesisResult(Result):
    """What the tools on hypotheses answer: ``confidence`` is that of all agents and evidence together."""

    notice: str = NOTICE
    hypothesis_id: str
    statement: str
    status: str
    confidence: float
    revision: int


async def propose(call: Call, arguments: ProposeArguments) -> Answer:
    """The hypothesis is on the board."""
    agent = await call.connection.agent()
    made = await agent.hypotheses.propose(
        arguments.statement,
        arguments.confidence,
        id=call.connection.id_for(agent, "propose_hypothesis", arguments.idempotency_key),
    )
    return _answer(
        call,
        f"Hypothesis {made.id} is on the board.",
        made,
        "link findings for and against it with {add_evidence}; another agent gives the verdict.",
    )


async def assess(call: Call, arguments: AssessArguments) -> Answer:
    """This agent's own confidence counts as given."""
    agent = await call.connection.agent()
    made = await agent.hypotheses.assess(
        arguments.hypothesis_id,
        arguments.confidence,
        arguments.reason,
        key=call.connection.key_for(agent, "assess_hypothesis", arguments.idempotency_key),
    )
    return _answer(call, f"Your assessment of hypothesis {made.id} counts.", made, "")


async def add_evidence(call: Call, arguments: EvidenceArguments) -> Answer:
    """The finding counts for the hypothesis, or against it."""
    agent = await call.connection.agent()
    made = await agent.hypotheses.add_evidence(
        arguments.hypothesis_id, arguments.finding_id, supports=arguments.supports, weight=arguments.weight
    )
    side = "for" if arguments.supports else "against"
    return _answer(call, f"Finding {arguments.finding_id} counts {side} hypothesis {made.id}.", made, "")


async def validate(call: Call, arguments: VerdictArguments) -> Answer:
    """The verdict is given."""
    agent = await call.connection.agent()
    made = await agent.hypotheses.validate(
        arguments.hypothesis_id, arguments.result, arguments.evidence, arguments.reason
    )
    return _answer(call, f"Hypothesis {made.id} is {made.status.value}, for good.", made, "")


def _answer(call: Call, head: str, hypothesis: Hypothesis, advice: str) -> Answer:
    fence = Fence()
    lines = [
        f"{head} It stands at {hypothesis.confidence:.2f} now, all agents and evidence together.",
        fence.explanation(),
        fence.around("hypothesis", [quoted(hypothesis.statement)]),
    ]
    return Answer(
        "\n".join(lines),
        HypothesisResult(
            hypothesis_id=str(hypothesis.id),
            statement=clipped(hypothesis.statement),
            status=hypothesis.status.value,
            confidence=hypothesis.confidence,
            revision=hypothesis.revision,
        ),
        call.names.fill(advice),
    )


HYPOTHESIS_TOOLS: tuple[Tool[Any], ...] = (
    Tool(
        "propose_hypothesis",
        "Propose a hypothesis",
        "Put a possible explanation on the board, to be argued over with findings. Look at {view} first: it may be "
        "there already.",
        ProposeArguments,
        HypothesisResult,
        propose,
    ),
    Tool(
        "assess_hypothesis",
        "Assess a hypothesis",
        "Say how likely you yourself hold a hypothesis to be; it replaces what you said before.",
        AssessArguments,
        HypothesisResult,
        assess,
        idempotent=True,
    ),
    Tool(
        "add_evidence",
        "Add evidence",
        "Link a finding to a hypothesis that it supports or contradicts; the hypothesis's confidence is computed anew.",
        EvidenceArguments,
        HypothesisResult,
        add_evidence,
        idempotent=True,
    ),
    Tool(
        "validate_hypothesis",
        "Give the verdict on a hypothesis",
        "Declare a hypothesis of another agent validated or refuted, with the findings that show it. For good.",
        VerdictArguments,
        HypothesisResult,
        validate,
        idempotent=True,
    ),
)

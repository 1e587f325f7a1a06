"""Tools on the session as a whole: join and view."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from .board_answer import Reader, board_answer
from .board_shapes import BoardResult
from .fence import quoted
from .tool import Answer, Arguments, Call, IdempotencyKey, JsonArray, JsonObject, MaxTokens, Tool
from .tools_tasks import held_tasks

__all__ = ["SESSION_TOOLS"]

Name = Annotated[str, Field(min_length=1, max_length=100)]


class JoinArguments(Arguments):
    """What join_session takes."""

    session: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=200,
            description="The session's name or id; by default the one this server was configured with.",
            examples=["INC-1234"],
        ),
    ] = None
    capabilities: Annotated[
        list[Name] | None,
        JsonArray,
        Field(
            max_length=100,
            description="Which kinds of task you can do; you are only given tasks that need one of these, or none.",
            examples=[["analyze_logs", "query_metrics"]],
        ),
    ] = None
    expertise: Annotated[
        JsonObject | None,
        Field(
            description="How much your word counts by category of finding, each from 0 to 1; 0.5 where not named.",
            examples=[{"observation": 0.8}],
        ),
    ] = None
    role: Annotated[
        str | None, Field(min_length=1, max_length=50, description="member (the default) votes, observer does not.")
    ] = None
    create_if_missing: Annotated[
        bool, Field(description="Start the session if no open one has that name. Otherwise that is an error.")
    ] = False
    goal: Annotated[
        str, Field(max_length=10_000, description="What the session is for; only used when it is started by this call.")
    ] = ""
    context: Annotated[
        JsonObject | None,
        Field(description="Facts to start from; only used when the session is started by this call."),
    ] = None
    max_tokens: MaxTokens = 3000
    idempotency_key: IdempotencyKey = None


class ViewArguments(Arguments):
    """What view takes."""

    limit: Annotated[int, Field(ge=1, le=200, description="At most so many items of each kind.")] = 15
    max_tokens: MaxTokens = 4000


async def join(call: Call, arguments: JoinArguments) -> Answer:
    """This agent is a member, and knows what there is."""
    before = call.connection.joined
    agent, started = await call.connection.join(
        arguments.session,
        capabilities=arguments.capabilities,
        expertise=arguments.expertise,
        role=arguments.role,
        create=arguments.create_if_missing,
        goal=arguments.goal,
        context=arguments.context,
        key=arguments.idempotency_key,
    )
    how = "You started and joined" if started else "You are in"
    head = f"{how} session {quoted(agent.session.name, 200)} as {quoted(agent.id, 100)}."
    if before is not None and before.session.id != agent.session.id and await held_tasks(before, before.id):
        head += (
            f" You still hold tasks in {quoted(before.session.name, 200)}: join that one again to complete them, or "
            "they stay yours while this server runs."
        )
    answer = await board_answer(
        Reader.of(agent, share_findings=call.connection.share_findings),
        call.names,
        head,
        limit=15,
        max_tokens=arguments.max_tokens,
        best_findings=True,
        started=started,
    )
    call.connection.cursor = answer.data.cursor
    return answer


async def view(call: Call, arguments: ViewArguments) -> Answer:
    """The session as it is now."""
    agent = await call.connection.agent()
    head = f"Session {quoted(agent.session.name, 200)} as it is now; you are {quoted(agent.id, 100)}."
    answer = await board_answer(
        Reader.of(agent, share_findings=call.connection.share_findings),
        call.names,
        head,
        limit=arguments.limit,
        max_tokens=arguments.max_tokens,
    )
    call.connection.cursor = answer.data.cursor
    return answer


SESSION_TOOLS: tuple[Tool[Any], ...] = (
    Tool(
        "join_session",
        "Join a session",
        "Become a member of a session and get your briefing: goal, context, strongest findings, hypotheses, proposals "
        "that want your vote, tasks that you could claim, and a cursor for {wait}. Join before anything else; joining "
        "again does no harm and briefs you afresh.",
        JoinArguments,
        BoardResult,
        join,
        idempotent=True,
    ),
    Tool(
        "view",
        "View the board",
        "The whole session at a glance: tasks that you hold with their tokens, proposals with tallies, open tasks, "
        "hypotheses by likelihood, newest findings, actions, agents, and a cursor for {wait}.",
        ViewArguments,
        BoardResult,
        view,
        writes=False,
    ),
)

"""``blackboard flow``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from . import completion
from .commands import command, noun
from .described import converted, guessed
from .desk import Desk
from .given import Limit
from .ids import resolve
from .output import Column
from .values import document

if TYPE_CHECKING:
    from uuid import UUID

    from pydantic import ValidationError

    from blackboard import After, Stage
    from blackboard.errors import InvalidInput
    from blackboard.sync import Session

__all__ = ["app", "stages_of"]

app = noun("Flows: graphs of tasks that are created, watched and changed as one thing.")

_COLUMNS = [
    Column("id", lambda f: f.id),
    Column("name", lambda f: f.name, grow=True),
    Column("status", lambda f: f.status, "status"),
    Column("version", lambda f: f.version, "number", wide=90),
    Column("created", lambda f: f.created_at),
    Column("finished", lambda f: f.finished_at, wide=90),
]
_STAGES = [
    Column("stage", lambda s: s.name, grow=True),
    Column("state", lambda s: s.state, "status"),
    Column("task", lambda s: s.task_status, "status"),
    Column("id", lambda s: s.task_id),
    Column("after", lambda s: [edge.stage for edge in s.after], most=0.25),
    Column("round", lambda s: f"{s.iteration}", "number", wide=90),
    Column("quality", lambda s: s.quality, "number", wide=100),
    Column("why", lambda s: s.error["message"] if s.error else None, wide=110),
]

FlowId = Annotated[
    str,
    typer.Argument(
        metavar="ID", autocompletion=completion.flows, help="Whole, or 6 or more characters of its beginning or end."
    ),
]


@command(app, "list", example="blackboard flow list --status running")
def list_(
    desk: Desk,
    *,
    status: Annotated[
        Literal["running", "paused", "completed", "failed", "cancelled"] | None, typer.Option(help="Only those.")
    ] = None,
    limit: Limit = 100,
) -> None:
    """List the flows of a session, newest first."""
    desk.out.records(
        desk.session().flows.list(status=status, limit=limit), _COLUMNS, empty="No such flows.", limit=limit
    )


@command(
    app,
    "create",
    example="""
    blackboard flow create release.yaml
    blackboard flow create release.yaml --inputs '{"region": "eu"}' --name "release 42"
    """,
)
def create(
    desk: Desk,
    *,
    file: Annotated[str, typer.Argument(metavar="FILE", help="YAML: name, inputs and stages; - for stdin.")],
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="Instead of the file's.")] = None,
    inputs: Annotated[str | None, typer.Option(metavar="JSON", help="Instead of the file's; @FILE or -.")] = None,
    id_: Annotated[str | None, typer.Option("--id", metavar="UUID", help="The idempotency key.")] = None,
) -> None:
    """Create the flow that a file describes, with all its tasks, or nothing."""
    from blackboard.errors import InvalidInput

    found = _read(file)
    called = name or found.get("name")
    if not isinstance(called, str):
        raise InvalidInput("The flow needs a name: in the file, or with --name.", field="name")
    stages = stages_of(found.get("stages"))
    given = document(inputs, "inputs") if inputs is not None else found.get("inputs")
    flow = desk.session().flows.create(called, stages, inputs=given, id=id_)
    desk.out.record(flow) if desk.out.json else _show(desk, flow)


@command(app, "show", example="blackboard flow show 5e1c9a07")
def show(desk: Desk, *, flow_id: FlowId) -> None:
    """Show a flow, its stages, and how far it is."""
    session = desk.session()
    flow = session.flows.get(_flow(desk, session, flow_id))
    if desk.out.json:
        desk.out.record(flow, more={"progress": flow.progress})
    else:
        _show(desk, flow)


@command(app, "graph", example="blackboard flow graph 5e1c9a07 --mermaid")
def graph(
    desk: Desk,
    *,
    flow_id: FlowId,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="In Mermaid's language, for documents.")] = False,
) -> None:
    """Print the graph of a flow with the states of its stages."""
    session = desk.session()
    text = session.flows.graph(_flow(desk, session, flow_id), format="mermaid" if mermaid else "text")
    if desk.out.json:
        desk.out.facts({"graph": text})
    else:
        print(text)


@command(app, "pause", example="blackboard flow pause 5e1c9a07 --stop")
def pause(
    desk: Desk,
    *,
    flow_id: FlowId,
    stop: Annotated[bool, typer.Option("--stop", help="Also ask those who run its stages to stop.")] = False,
) -> None:
    """Hand out no stage of a flow any more until it is resumed."""
    session = desk.session()
    _say(desk, session.flows.pause(_flow(desk, session, flow_id), stop=stop))


@command(app, "resume", example="blackboard flow resume 5e1c9a07")
def resume(desk: Desk, *, flow_id: FlowId) -> None:
    """Hand out the stages of a paused flow again."""
    session = desk.session()
    _say(desk, session.flows.resume(_flow(desk, session, flow_id)))


@command(app, "cancel", example='blackboard flow cancel 5e1c9a07 --reason "no longer needed"')
def cancel(
    desk: Desk, *, flow_id: FlowId, reason: Annotated[str, typer.Option(metavar="TEXT", help="Why.")] = ""
) -> None:
    """Cancel a flow; those who run its stages are asked to stop."""
    session = desk.session()
    _say(desk, session.flows.cancel(_flow(desk, session, flow_id), reason))


@command(
    app,
    "modify",
    example="""
    blackboard flow modify 5e1c9a07 --expected-version 1 --add stages.yaml --remove draft
    blackboard flow modify 5e1c9a07 --expected-version 2 --rewire '{"report": ["look", "fix"]}'
    blackboard flow modify 5e1c9a07 --expected-version 3 --reprioritise '{"report": 9}'
    """,
)
def modify(
    desk: Desk,
    *,
    flow_id: FlowId,
    expected_version: Annotated[
        int, typer.Option(metavar="N", min=1, help="The version of the flow that the change is made for.")
    ],
    add: Annotated[
        str | None, typer.Option(metavar="FILE", help="YAML: new stages, a list or under stages; - for stdin.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="This stage goes; repeat it for more.")
    ] = None,
    rewire: Annotated[
        str | None, typer.Option(metavar="JSON", help="What stages come after, by their names; @FILE or -.")
    ] = None,
    reprioritise: Annotated[
        str | None, typer.Option(metavar="JSON", help="Priorities of stages, by their names; @FILE or -.")
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="TEXT", help="The idempotency key.")] = None,
) -> None:
    """Change stages of a flow that have not started, all together."""
    session = desk.session()
    changed = session.flows.modify(
        _flow(desk, session, flow_id),
        expected_version,
        add=[] if add is None else stages_of(_added(add)),
        remove=remove or (),
        rewire=_rewired(document(rewire, "rewire")),
        reprioritise=_reprioritised(document(reprioritise, "reprioritise")),
        key=key,
    )
    _say(desk, changed)


def _added(file: str) -> Any:
    found = _yaml(file)
    return cast("dict[str, Any]", found).get("stages") if isinstance(found, dict) else found


def _rewired(given: Any) -> dict[str, list[str | After]] | None:
    from pydantic import ValidationError

    from blackboard import After
    from blackboard.errors import InvalidInput

    if given is None:
        return None
    wrong = InvalidInput(
        'rewire must be JSON such as {"report": ["look", {"stage": "fix", "on_failure": "continue"}]}.', field="rewire"
    )
    if not isinstance(given, dict):
        raise wrong
    found: dict[str, list[str | After]] = {}
    for name, after in cast("dict[str, Any]", given).items():
        edges: Any = [after] if isinstance(after, str) else after
        if not isinstance(edges, list):
            raise wrong
        try:
            found[name] = [edge if isinstance(edge, str) else After(**edge) for edge in cast("list[Any]", edges)]
        except (TypeError, ValidationError):
            raise wrong from None
    return found


def _reprioritised(given: Any) -> dict[str, int] | None:
    from blackboard.errors import InvalidInput

    if given is None:
        return None
    priorities = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    if not priorities or any(type(priority) is not int for priority in priorities.values()):
        raise InvalidInput('reprioritise must be JSON such as {"report": 9}.', field="reprioritise")
    return priorities


def _flow(desk: Desk, session: Session, given: str) -> UUID:
    return resolve(desk, given, "flow_id", session.flows.ids_like)


def _say(desk: Desk, flow: Any) -> None:
    if desk.out.json:
        desk.out.record(flow)
    else:
        desk.out.note(f"Flow {flow.name} is {flow.status} (version {flow.version}).")


def _show(desk: Desk, flow: Any) -> None:
    progress = flow.progress
    desk.out.facts(
        {
            "id": flow.id,
            "name": flow.name,
            "status": flow.status,
            "version": flow.version,
            "error": flow.error,
            "inputs": flow.inputs or None,
            "outputs": flow.outputs or None,
            "stages": ", ".join(f"{count} {state}" for state, count in progress.states.items()),
            "critical path": " > ".join(progress.critical_path),
            "stragglers": ", ".join(progress.stragglers) or None,
            "created": flow.created_at,
            "finished": flow.finished_at,
        }
    )
    desk.out.records(flow.stages, _STAGES, empty="No stages.")


def _yaml(file: str) -> Any:
    import yaml

    from blackboard.errors import InvalidInput

    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InvalidInput(f"The flow cannot be read from {file}: {error}.", field="file") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(f"{_named(file)} is no YAML: {_where(error)}.", field="file") from None


def _named(file: str) -> str:
    return "What stdin gave" if file == "-" else file


def _where(error: Any) -> str:
    """What is wrong and where, without the library's drawing of it."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"


def _read(file: str) -> dict[str, Any]:
    from blackboard.errors import InvalidInput

    found = _yaml(file)
    if not isinstance(found, dict):
        raise InvalidInput(f"{_named(file)} must hold name, inputs and stages.", field="file")
    known = {"name", "inputs", "stages"}
    described = cast("dict[str, Any]", found)
    if unknown := sorted(str(key) for key in set(described) - known):
        raise InvalidInput(
            f"{_named(file)} says {', '.join(unknown)}; a flow has name, inputs and stages.", field=unknown[0]
        )
    return described


def stages_of(described: Any) -> list[Stage]:
    """The stages that a file lists, with durations and times as people write them.

    Raises:
        InvalidInput: they are not described as ``Stage`` takes them; names stage and field.
    """
    from blackboard.errors import InvalidInput

    if not isinstance(described, list) or not described:
        raise InvalidInput("stages must list at least one stage.", field="stages")
    return [_stage(one, place) for place, one in enumerate(cast("list[Any]", described), start=1)]


def _stage(described: Any, place: int) -> Stage:
    from pydantic import ValidationError

    from blackboard import Stage
    from blackboard.errors import InvalidInput

    if not isinstance(described, dict):
        raise InvalidInput(f"Stage {place} must be a mapping with name and type.", field="stages")
    given = cast("dict[str, Any]", described)
    what = f"stage {given['name']}" if "name" in given else f"stage {place}"
    fields = converted(given, what, stage=what)
    for needed in ("name", "type"):
        if not isinstance(fields.get(needed), str):
            raise InvalidInput(f"{needed} of {what} is missing.", field=needed, stage=what)
    if isinstance(fields.get("compensate"), dict):
        fields["compensate"] = converted(
            cast("dict[str, Any]", fields["compensate"]), f"compensate of {what}", stage=what
        )
    if isinstance(fields.get("after"), str):
        fields["after"] = [fields["after"]]
    try:
        return Stage(**fields)
    except ValidationError as error:
        raise _wrong_stage(error, what) from None


def _wrong_stage(error: ValidationError, what: str) -> InvalidInput:
    from blackboard import After, NewTask, Stage
    from blackboard.errors import InvalidInput

    # An edge may be a name or a mapping: what is wrong inside the mapping says more than that it is no name.
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    place = [str(part) for part in first["loc"] if part not in {"After", "str"}] or ["stages"]
    if place[0] not in {"after", "compensate"}:
        place = place[:1]
    if first["type"] != "extra_forbidden":
        return InvalidInput(f"{'.'.join(place)} of {what}: {first['msg']}.", field=place[0], stage=what)
    *above, name = place
    model = {"after": After, "compensate": NewTask}.get(place[0] if above else "", Stage)
    owner = ".".join(above) or "a stage"
    hint = guessed(name, model.model_fields)
    return InvalidInput(f"{name!r} of {what} is no field of {owner}.{hint}", field=place[0], stage=what)

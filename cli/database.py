"""``blackboard db``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from . import exits
from .commands import command, noun
from .desk import Desk

__all__ = ["app"]

app = noun("The database's schema: migrate it, check it, grant access to it.")


@command(app, "upgrade", example="blackboard db upgrade --url postgresql://owner@host/app")
def upgrade(
    desk: Desk, *, revision: Annotated[str, typer.Argument(help="head, or a revision such as 0003.")] = "head"
) -> None:
    """Bring the schema up to a revision, each step in a transaction of its own."""
    from blackboard.store import migrations

    url = desk.url
    before = migrations.current(url)
    migrations.upgrade(url, revision)
    _moved(desk, before, migrations.current(url))


@command(app, "downgrade", example="blackboard db downgrade 0004 --yes")
def downgrade(
    desk: Desk,
    *,
    revision: Annotated[str, typer.Argument(help="A revision such as 0003; base removes the whole board.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; what newer tables hold is lost.")] = False,
) -> None:
    """Take the schema back to a revision; what the newer tables hold is lost."""
    import sys

    from blackboard.errors import InvalidInput
    from blackboard.store import migrations
    from blackboard.store.urls import redact

    url = desk.url
    if not yes:
        if not sys.stdin.isatty() or desk.out.json:
            raise InvalidInput("A downgrade loses what the newer tables hold: say --yes if that is meant.", field="yes")
        typer.confirm(f"Take {redact(url)} back to {revision} and lose what the newer tables hold?", abort=True)
    before = migrations.current(url)
    migrations.downgrade(url, revision)
    _moved(desk, before, migrations.current(url))


@command(app, "current", example="blackboard db current")
def current(desk: Desk) -> None:
    """Show the revision that the database is at, and the one that this package needs."""
    from blackboard.store import migrations

    revision = migrations.current(desk.url)
    desk.out.facts({"revision": revision, "needed": migrations.HEAD})


@command(app, "check", example="blackboard db check && start-the-agents")
def check(desk: Desk) -> int:
    """Check that the database can be used as it is: exit code 0, or 4 and what to do."""
    from blackboard.errors import HistoryNotAdopted, SchemaError
    from blackboard.store import migrations
    from blackboard.sync import Blackboard

    url = desk.url
    revision = migrations.current(url)
    problem = None
    try:
        migrations.check_revision(revision)
        Blackboard.open(url, migrate=False).close()
    except (SchemaError, HistoryNotAdopted) as error:
        problem = error
    desk.out.facts(
        {
            "ok": problem is None,
            "revision": revision,
            "needed": migrations.HEAD,
            "needs_adoption": isinstance(problem, HistoryNotAdopted),
            "problem": None if problem is None else problem.message,
        }
    )
    return exits.OK if problem is None else exits.UNAVAILABLE


@command(app, "sql", example="blackboard db sql 0003:head > upgrade.sql")
def sql(
    desk: Desk,
    *,
    revisions: Annotated[str, typer.Argument(metavar="FROM:TO", help="Such as 0003:head.")] = "base:head",
) -> None:
    """Print the SQL that an upgrade would run, for those who run it by other means."""
    from blackboard.store import migrations

    text = migrations.offline_sql(revisions)
    if desk.out.json:
        desk.out.document({"sql": text})
    else:
        print(text)


@command(app, "adopt", example="blackboard db adopt --url postgresql://owner@host/restored")
def adopt(desk: Desk) -> None:
    """Make a database that was restored from another cluster's dump usable; old cursors are refused from then on."""
    from blackboard.errors import HistoryNotAdopted
    from blackboard.sync import Blackboard

    url = desk.url
    adopted = False
    try:
        Blackboard.open(url, migrate=False).close()
    except HistoryNotAdopted:
        Blackboard.open(url, migrate=False, adopt=True).close()
        adopted = True
    desk.out.facts({"adopted": adopted})


@command(app, "grants", example='blackboard db grants app_agent --role agent | psql "$OWNER_URL"')
def grants(
    desk: Desk,
    *,
    name: Annotated[str, typer.Argument(metavar="ROLE", help="A database role that exists.")],
    role: Annotated[Literal["agent", "reader"], typer.Option(help="What it may do.")] = "agent",
) -> None:
    """Print the GRANT statements that give a role the least it needs: to work as an agent, or only to read."""
    from blackboard.store.grants import grants as statements_for

    text = statements_for(desk.url, name, role).rstrip()
    if desk.out.json:
        desk.out.document({"role": name, "kind": role, "sql": text})
    else:
        print(text)


def _moved(desk: Desk, before: str | None, after: str | None) -> None:
    desk.out.facts({"before": before, "revision": after})

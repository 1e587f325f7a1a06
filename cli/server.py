"""``blackboard server``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .commands import command, noun
from .desk import Desk

if TYPE_CHECKING:
    from blackboard.store.embedded import EmbeddedServer

__all__ = ["app"]

app = noun("The embedded PostgreSQL server.")


@command(app, "start", example="blackboard server start --data-dir ~/boards/incident")
def start(
    desk: Desk,
    *,
    idle_timeout: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="End when nobody used it for so long, or none; 30m by default."),
    ] = None,
) -> None:
    """Start the server, or find it running, and bring its schema up to date."""
    from blackboard.store import migrations

    info = _server(desk, idle_timeout).start()
    migrations.upgrade(info.url)
    _show(desk, _server(desk))


@command(app, "stop", example="blackboard server stop")
def stop(desk: Desk) -> None:
    """Stop the server; its clients are cut off, and committed work is kept."""
    server = _server(desk)
    stopped = server.stop()
    if desk.out.json:
        _show(desk, server)
    else:
        print("stopped" if stopped else "it was not running")


@command(app, "status", example="blackboard server status --json")
def status(desk: Desk) -> int:
    """Show whether it runs and where; exit code 4 if it does not run."""
    from . import exits

    server = _server(desk)
    _show(desk, server)
    return exits.OK if server.status().running else exits.UNAVAILABLE


@command(app, "url", example='psql "$(blackboard server url)"')
def url(desk: Desk) -> None:
    """Print the server's URL, as psql and every driver take it; it may not run yet."""
    found = _server(desk).url()
    if desk.out.json:
        desk.out.document({"url": found})
    else:
        print(found)


@command(app, "logs", example="blackboard server logs --lines 200")
def logs(
    desk: Desk, *, lines: Annotated[int, typer.Option(metavar="N", min=1, help="So many of the last ones.")] = 50
) -> None:
    """Print what the server wrote last."""
    text = _server(desk).logs(lines)
    if desk.out.json:
        desk.out.document({"lines": text.splitlines()})
    elif text:
        print(text)


def _server(desk: Desk, idle_timeout: str | None = None) -> EmbeddedServer:
    from datetime import timedelta

    from blackboard.settings import load_settings
    from blackboard.store.embedded import EmbeddedServer

    from .values import duration

    settings = load_settings(data_dir=desk.options.data_dir)
    idle = timedelta(seconds=settings.idle_timeout)
    wish = None if idle_timeout == "none" else duration(idle_timeout, "idle_timeout") or idle
    return EmbeddedServer(settings.data_dir, idle_timeout=wish)


def _show(desk: Desk, server: EmbeddedServer) -> None:
    info = server.status()
    desk.out.facts(
        {
            "running": info.running,
            "version": info.version,
            "pid": info.pid,
            "url": info.url,
            "data_dir": str(info.data_dir),
            "log_path": str(info.log_path),
        }
    )

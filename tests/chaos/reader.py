"""A reader of events by cursor, of all sessions, for the whole storm: ``python -m chaos.reader``, set up by its environment.

It writes one line for a page, in a file for each session, with the cursor after it, so that a reader that was killed goes on where it was.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from datetime import timedelta
from pathlib import Path

from blackboard import Blackboard, Session
from blackboard.errors import TransientError, Unavailable

__all__ = ["notes", "pages"]


def notes(home: Path, session_id: object) -> Path:
    """Where the reader writes what it has read of that session."""
    return home / f"read-{session_id}.jsonl"


def pages(file: Path) -> list[tuple[str, list[int]]]:
    """The cursor and the events of every page, as far as they were written whole."""
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [(line["cursor"], line["seqs"]) for line in map(json.loads, lines)]


async def _follow(session: Session, file: Path, stopping: asyncio.Event) -> None:
    read = pages(file)
    cursor = read[-1][0] if read else None
    whole = file.read_bytes().rpartition(b"\n")[0] if file.exists() else b""
    with file.open("r+b" if file.exists() else "wb", buffering=0) as out:
        out.truncate(len(whole) + bool(whole))
        out.seek(0, os.SEEK_END)
        while not stopping.is_set():
            try:
                # A connection may be dead and nobody say so: who calls decides how long is too long.
                async with asyncio.timeout(5):
                    if cursor is None:
                        page = await session.events.read(limit=50)
                    else:
                        page = await session.events.wait(cursor, limit=50, timeout=timedelta(seconds=0.5))
            except (Unavailable, TransientError, TimeoutError):
                await asyncio.sleep(0.05)
                continue
            cursor = page.cursor
            if page.events:
                line = {"cursor": cursor, "seqs": [event.seq for event in page.events]}
                out.write(json.dumps(line).encode() + b"\n")


async def main() -> None:
    """Reads until asked to stop."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    while not stopping.is_set():
        try:
            async with Blackboard.open(os.environ["BLACKBOARD_URL"]) as board:
                home = Path(os.environ["CHAOS_HOME"])
                sessions = [await board.session(one) for one in os.environ["CHAOS_SESSIONS"].split(",")]
                print("is at work", flush=True)
                async with asyncio.TaskGroup() as followers:
                    for session in sessions:
                        followers.create_task(_follow(session, notes(home, session.id), stopping))
        except (Unavailable, TransientError) as error:
            # Only at the start: one handle must last.
            print(f"not yet: {error}", flush=True)
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main())

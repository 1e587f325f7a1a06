"""Runs a swarm in a process of its own, ``swarm_main.py URL FILE [OPTIONS]``; prints updates and outcome as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from blackboard.swarm import Update, load_swarm, run_swarm_sync


def tell(update: Update) -> None:
    """One line, at once."""
    line = {"kind": update.kind, "pid": update.pid, "agent": update.agent_id, "message": update.message}
    if update.event is not None:
        line |= {"type": update.event.type, "data": update.event.data}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    options = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    outcome = run_swarm_sync(load_swarm(Path(sys.argv[2])), url=sys.argv[1], on_update=tell, **options)
    print(json.dumps({"kind": "outcome", **outcome.to_dict()}), flush=True)

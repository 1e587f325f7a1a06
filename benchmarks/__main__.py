"""``python -m benchmarks``: measures, prints one table, writes JSON. ``make bench`` calls it.

python -m benchmarks --peers             install the peers first (pip and npm, into a cache of their own)
python -m benchmarks drain --quick       one part, small
python -m benchmarks                     all of it: about an hour
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import traceback
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import asyncpg

from blackboard.store.temporary import temporary_server

from . import machine, peers
from .report import Report
from .run import Run
from .stage import Stage

PARTS = ("ceiling", "drain", "adding", "wakeup", "bloat", "backlog", "idle", "history", "profile")
RESULTS = Path(__file__).parent / "results"
# Those of an ordinary small installation; everything that makes commits durable is on.
SERVER = {
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "min_wal_size": "2GB",
    "fsync": "on",
    "synchronous_commit": "on",
}


async def measure(stage: Stage, options: argparse.Namespace, report: Report) -> dict[str, str]:
    """All parts, one after the other."""
    found = [one for one in peers.PEERS if one.installed and (not options.who or one.name in options.who)]
    for missing in [one for one in peers.PEERS if not one.installed]:
        report.fail(f"{missing.name} is not installed; --peers does that")
    own = [peers.OURS, peers.patched(options.patch)] if options.patch else [peers.OURS]
    run = Run(stage, report, [*own, peers.BARE, *found], options.rounds, options.scale)
    await stage.wear_in()
    for name in options.parts:
        if name == "quick":
            continue
        print(f"== {name}", flush=True)
        try:
            await import_module(f".{name}", __package__).run(run)
        except Exception as error:
            traceback.print_exc()
            report.fail(f"{name}: {error}")
    connection = await asyncpg.connect(stage.server.url())
    settings = {
        name: await connection.fetchval(f"SHOW {name}")
        for name in (
            "server_version",
            "fsync",
            "synchronous_commit",
            "full_page_writes",
            "shared_buffers",
            "max_wal_size",
            "min_wal_size",
        )
    }
    await connection.close()
    return settings


def main() -> None:
    """Parses, measures, prints, writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}, quick; all by default")
    parser.add_argument("--quick", action="store_true", help="small and once: whether it works, not how fast it is")
    parser.add_argument("--rounds", type=int, default=3, help="how often each figure is taken, in turn")
    parser.add_argument("--scale", type=float, default=1.0, help="of the sizes")
    parser.add_argument("--who", action="append", help="only this peer; may be given again")
    parser.add_argument("--peers", action="store_true", help="install the peers first")
    parser.add_argument("--patch", type=Path, help="SQL on top of our schema, measured beside it as 'patched'")
    parser.add_argument("--json", type=Path, default=None, help="where to write; benchmarks/results/<time>.json")
    options = parser.parse_args()
    unknown = set(options.parts) - {*PARTS, "quick"}
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    options.parts = options.parts or [*PARTS, "quick"]
    if options.quick:
        options.rounds, options.scale = 1, min(options.scale, 0.05)
    if options.peers:
        peers.install()
    report = Report()
    facts = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine.describe()}
    with temporary_server(durable=True, settings=SERVER) as server:
        settings = asyncio.run(measure(Stage(server), options, report))
    facts["machine"]["load_after"] = machine.describe()["load_before"]
    print()
    print(report.table())
    document = report.document(
        **facts, server=settings, peers=peers.versions(), rounds=options.rounds, scale=options.scale
    )
    target = options.json or RESULTS / f"{facts['at'].replace(':', '')}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    print(f"\nwritten to {target}")
    if "quick" in options.parts:
        findings = str(max(10_000, int(1_000_000 * options.scale)))
        subprocess.run([sys.executable, "-m", "benchmarks.quick", "--findings", findings], check=True)


if __name__ == "__main__":
    main()

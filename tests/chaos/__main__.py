"""``python -m tests.chaos``: the crash storm, for as long as you like. ``make chaos`` calls it.

python -m tests.chaos                                    every fault, for two and a half minutes
python -m tests.chaos --faults kill,lose --minutes 1     only these
python -m tests.chaos --seed 7 --workers 12 --json       another one, larger; the report as JSON

Ends with 0 if everything held, 1 if not, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from blackboard.errors import BlackboardError

from .faults import FAULTS
from .storm import Options, Storm


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be positive")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _faults(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in FAULTS]:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    return names


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _tell(line: str) -> None:
    sys.stderr.write(f"\r\x1b[2K{line[:158]}")
    sys.stderr.flush()


def main() -> int:
    """Parses, storms, tells; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    kinds = "\n".join(f"  {name:<9}{fault.__doc__}" for name, fault in FAULTS.items())
    parser.epilog = f"faults:\n{kinds}"
    parser.add_argument("--faults", type=_faults, default=tuple(FAULTS), metavar="NAME,…", help="all by default")
    parser.add_argument("--minutes", type=_positive, default=2.5, help="how long faults are begun")
    parser.add_argument("--workers", type=int, default=6, help="processes; every third goes through PgBouncer")
    parser.add_argument("--sessions", type=_count, default=3, help="that every worker serves, fed unevenly")
    parser.add_argument("--tasks", type=int, default=3000, help="at least; spread over the time and the sessions")
    parser.add_argument("--term", type=_positive, default=2.0, help="of a lease, seconds")
    parser.add_argument("--seed", type=int, default=None, help="of what happens; a new one by default")
    parser.add_argument(
        "--limits", choices=["yes", "no"], help="on what runs at once, in some sessions; with odd seeds by default"
    )
    parser.add_argument("--durable", action="store_true", help="the server also syncs to disk")
    parser.add_argument("--json", action="store_true", help="the report on standard output as JSON")
    parser.add_argument("--keep", action="store_true", help="keep the logs also when all is well")
    options = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    bin_dir = os.environ.get("BLACKBOARD_TEST_PG_BIN")
    storm = Options(
        seed=seed,
        faults=options.faults,
        seconds=60 * options.minutes,
        workers=options.workers,
        sessions=options.sessions,
        tasks=options.tasks,
        term=options.term,
        limited=options.limits == "yes" or (options.limits is None and seed % 2 == 1),
        durable=options.durable,
        bin_dir=Path(bin_dir) if bin_dir else None,
    )
    signal.signal(signal.SIGTERM, _terminated)
    home = Path(tempfile.mkdtemp(prefix="blackboard-chaos-"))
    logging.basicConfig(filename=home / "driver.log", level=logging.INFO)
    shown = sys.stderr.isatty()
    print(f"seed {seed}, logs in {home}", file=sys.stderr)
    good = False
    try:
        with Storm(storm, home, _tell if shown else lambda _: None) as running:
            report = running.run()
        good = report.good
    except KeyboardInterrupt:
        print("\ninterrupted; everything that was started is stopped", file=sys.stderr)
        return 130
    except BlackboardError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    finally:
        if good and not options.keep:
            shutil.rmtree(home, ignore_errors=True)
    if shown:
        _tell("")
    print(json.dumps(report.json(), indent=2) if options.json else "\n".join(report.lines()))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

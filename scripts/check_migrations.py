"""The gates of the migrations: lint of the offline SQL, up and down for every revision, and the golden dump.

    python scripts/check_migrations.py           exits 1 and says what is wrong
    python scripts/check_migrations.py --write   rewrites migrations/schema.sql

Autogenerate sees no CHECK, predicate, function or trigger, so the schema is compared as a normalised dump.
"""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from blackboard.store import migrations
from blackboard.store.binaries import find_binaries
from blackboard.store.temporary import temporary_server

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "migrations" / "schema.sql"


def revisions() -> list[str]:
    """Every revision, oldest first."""
    return sorted(path.name[:4] for path in (ROOT / "migrations" / "versions").glob("[0-9]*.py"))


def dump(url: str, pg_dump: Path) -> str:
    """The schema as text that does not depend on who dumped it when, or with which minor version."""
    text = subprocess.run(
        [str(pg_dump), "--schema-only", "--no-owner", "--no-privileges", "--schema=blackboard", f"--dbname={url}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    kept = [
        line
        for line in text.splitlines()
        if not re.match(r"(--|SET |SELECT pg_catalog\.set_config|\\(un)?restrict )", line)
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip() + "\n"


def lint() -> list[str]:
    """What squawk says about the offline SQL."""
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "upgrade.sql"
        script.write_text(migrations.offline_sql(), encoding="utf-8")
        squawk = Path(sys.executable).with_name("squawk")
        ran = subprocess.run(
            [str(squawk), "--config", str(ROOT / ".squawk.toml"), "--reporter", "gcc", str(script)],
            check=False,
            capture_output=True,
            text=True,
        )
    return [] if ran.returncode == 0 else [ran.stdout, ran.stderr]


def main() -> int:
    """Runs the gates; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="rewrite the golden dump")
    write = parser.parse_args().write
    faults: list[str] = []
    known = revisions()
    if known[-1] != migrations.HEAD:
        faults.append(f"blackboard/store/migrations.py says HEAD = {migrations.HEAD}, the newest file is {known[-1]}.")
    faults += lint()
    with temporary_server() as server:
        pg_dump = Path(find_binaries(None, Path(tempfile.gettempdir())).program("pg_dump"))
        url = server.url()
        migrations.upgrade(url)
        golden = dump(url, pg_dump)
        for revision in reversed(["base", *known[:-1]]):
            migrations.downgrade(url, revision)
        left = dump(url, pg_dump)
        if re.search(r"^CREATE (?!SCHEMA|TABLE blackboard\.schema_version)", left, re.MULTILINE):
            faults.append(f"A downgrade to base leaves this behind:\n{left}")
        for revision in known:
            migrations.upgrade(url, revision)
            migrations.downgrade(url, f"{revision}@-1" if revision == known[0] else known[known.index(revision) - 1])
            migrations.upgrade(url, revision)
        if dump(url, pg_dump) != golden:
            faults.append("Up, down and up again gives another schema than up.")
    if write:
        GOLDEN.write_text(golden, encoding="utf-8")
    elif not GOLDEN.exists() or GOLDEN.read_text(encoding="utf-8") != golden:
        have = GOLDEN.read_text(encoding="utf-8") if GOLDEN.exists() else ""
        difference = difflib.unified_diff(have.splitlines(), golden.splitlines(), "schema.sql", "database", lineterm="")
        faults.append("migrations/schema.sql is stale; run `make generate`.\n" + "\n".join(list(difference)[:80]))
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

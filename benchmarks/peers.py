"""The peers: installed on demand into an environment of their own, never dependencies of the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blackboard-benchmarks"
PYTHON = CACHE / "python" / "bin" / "python"
NODE_MODULES = CACHE / "node" / "node_modules"
_PYPI = ["pgqueuer", "procrastinate", "pgmq", "asyncpg", "psycopg[binary,pool]", "uvloop"]
# Newest first: a registry may lack what the newest depends on.
_NPM = {"graphile-worker": ["latest", "0.18.0", "0.17.3"], "pg-boss": ["latest", "12.33.7", "12", "11"]}
_NODE = (22, 18)


@dataclass(frozen=True)
class Contestant:
    """One queue.

    Attributes:
        name: in the tables.
        program: its player, relative to this directory.
        unfinished: says whether any task is not done and committed.
        language: ``python``, ``node`` or ``own``.
        small: fewer tasks where a full count would take minutes, by case.
        history: keeps a row of what happened.
        patch: SQL that is run on top of the schema.
    """

    name: str
    program: str
    unfinished: str
    language: str = "python"
    small: dict[str, int] = field(default_factory=dict)
    history: bool = False
    patch: str = ""

    def command(self, url: str) -> list[str]:
        """The program to run."""
        if self.language == "own":
            return [sys.executable, "-m", self.program, url]
        if self.language == "node":
            return [node(), str(HERE / self.program), url]
        return [str(PYTHON), str(HERE / self.program), url]

    @property
    def installed(self) -> bool:
        """Whether it can be run."""
        if self.language == "own":
            return True
        if self.language == "node":
            package = {"graphile": "graphile-worker", "pgboss": "pg-boss"}[Path(self.program).stem]
            return (NODE_MODULES / package / "package.json").exists()
        return PYTHON.exists()


OURS = Contestant(
    "blackboard",
    "benchmarks.players.ours",
    "SELECT EXISTS (SELECT FROM blackboard.tasks WHERE status = 'pending')"
    " OR EXISTS (SELECT FROM blackboard.tasks WHERE lease_id IS NOT NULL)",
    language="own",
    history=True,
)
BARE = Contestant(
    "bare table",
    "benchmarks.players.bare",
    "SELECT EXISTS (SELECT FROM bare.jobs WHERE status < 2)",
    language="own",
)


def patched(path: Path) -> Contestant:
    """Ours with other SQL: what a change of a hot function would give, beside what there is."""
    return replace(OURS, name="patched", patch=path.read_text())


PEERS = (
    Contestant(
        "graphile-worker",
        "players/graphile.mjs",
        "SELECT EXISTS (SELECT FROM graphile_worker._private_jobs)",
        language="node",
        small={"default": 6},
    ),
    Contestant(
        "pg-boss",
        "players/pgboss.mjs",
        "SELECT EXISTS (SELECT FROM pgboss.job WHERE name = 'bench' AND state < 'completed')",
        language="node",
        # One task every two seconds, as installed.
        small={"default": 12_000},
        history=True,
    ),
    Contestant("pgmq", "players/pgmq_player.py", "SELECT EXISTS (SELECT FROM pgmq.q_bench)", small={"default": 12}),
    Contestant(
        "pgqueuer",
        "players/pgqueuer_player.py",
        "SELECT EXISTS (SELECT FROM pgqueuer)",
        small={"default": 3},
        history=True,
    ),
    Contestant(
        "procrastinate",
        "players/procrastinate_player.py",
        "SELECT EXISTS (SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing'))",
        small={"default": 30, "tuned": 20, "batch": 2},
        history=True,
    ),
)


def node() -> str:
    """A Node new enough: the system's, or the one that was installed beside the peers."""
    own = NODE_MODULES / "node" / "bin" / "node"
    return str(own) if own.exists() else (shutil.which("node") or "node")


def install() -> None:
    """The peers can be run: packages by name, from whatever registries pip and npm are configured for."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if not PYTHON.exists():
        venv.create(CACHE / "python", with_pip=True)
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *_PYPI], check=True)
    npm = shutil.which("npm")
    if npm is None:
        print("npm is not here: graphile-worker and pg-boss are left out", file=sys.stderr)
        return
    where = CACHE / "node"
    where.mkdir(exist_ok=True)
    if not (where / "package.json").exists():
        (where / "package.json").write_text('{"private": true}\n')
    if _node_version() < _NODE:
        _npm(npm, where, "node@24")
    for package, versions in _NPM.items():
        if not any(_npm(npm, where, f"{package}@{version}") for version in versions):
            print(f"{package} could not be installed and is left out", file=sys.stderr)


def _npm(npm: str, where: Path, what: str) -> bool:
    ran = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--silent", what], check=False, cwd=where, capture_output=True
    )
    return ran.returncode == 0


def _node_version() -> tuple[int, ...]:
    try:
        ran = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return (0,)
    return tuple(int(part) for part in ran.stdout.strip().lstrip("v").split(".")[:2])


def versions() -> dict[str, str]:
    """What is installed, by name."""
    found: dict[str, str] = {}
    if PYTHON.exists():
        code = "import importlib.metadata as m; [print(n, m.version(n)) for n in ('pgqueuer', 'procrastinate', 'pgmq')]"
        ran = subprocess.run([PYTHON, "-c", code], check=False, capture_output=True, text=True)
        found.update(line.split() for line in ran.stdout.splitlines())
    if NODE_MODULES.exists():
        code = (
            "for (const n of ['graphile-worker', 'pg-boss'])"
            " try { console.log(n, require(n + '/package.json').version) } catch {}"
        )
        ran = subprocess.run([node(), "-e", code], check=False, capture_output=True, text=True, cwd=NODE_MODULES.parent)
        found.update(line.split() for line in ran.stdout.splitlines())
        found["node"] = subprocess.run(
            [node(), "--version"], check=False, capture_output=True, text=True
        ).stdout.strip()
    return found

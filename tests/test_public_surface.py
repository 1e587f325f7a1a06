"""What the package promises to the outside: names, packages, data files, and the rules that its own text keeps."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import blackboard
import blackboard.sync
from blackboard import errors

ROOT = Path(__file__).resolve().parent.parent
SOURCE = pytest.mark.source


def packages() -> dict[str, Path]:
    """The packages that pyproject.toml lists, and where they lie."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places: dict[str, Path] = {}
    for name in setup["packages"]:
        head, _, rest = name.partition(".")
        places[name] = ROOT / setup["package-dir"].get(head, head) / rest.replace(".", "/")
    return places


def modules() -> list[Path]:
    return [
        file
        for folder in ("blackboard", "cli", "examples", "migrations")
        for file in sorted((ROOT / folder).rglob("*.py"))
    ]


@pytest.mark.parametrize("package", [blackboard, blackboard.sync, errors])
def test_public_names_are_sorted_importable_and_documented(package: object) -> None:
    names = list(package.__all__)  # type: ignore[attr-defined]
    assert names == sorted(names)
    assert len(names) == len(set(names))
    for name in names:
        value = getattr(package, name)
        assert inspect.getdoc(value), f"{name} has no docstring"
        assert name in dir(package)


def test_the_twin_has_the_same_names() -> None:
    # Workers run on an event loop; what blocks in them is a handler's thread.
    of_workers = {"BlockingTaskContext", "DeadLetter", "Handlers", "Release", "RetryLater", "RetryPolicy",
                  "TaskCancelled", "TaskContext", "Worker"}  # fmt: skip
    assert set(blackboard.sync.__all__) == set(blackboard.__all__) - of_workers
    for name in ("Blackboard", "Session", "Agent", "BoundBlackboard"):
        ours = {n for n in vars(getattr(blackboard, name)) if not n.startswith("_")}
        twins = {n for n in vars(getattr(blackboard.sync, name)) if not n.startswith("_")}
        assert ours == twins, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = blackboard.nothing_of_that_name


def test_every_public_method_says_what_holds_afterwards() -> None:
    missing: list[str] = []
    for info in pkgutil.walk_packages(blackboard.__path__, "blackboard."):
        if info.name.startswith(("blackboard.sync", "blackboard.mcp", "blackboard.swarm", "blackboard.store.link")):
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if not inspect.isclass(value) or value.__module__ != module.__name__:
                continue
            for attribute, member in vars(value).items():
                public = not attribute.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
                if public and not inspect.getdoc(getattr(value, attribute)):
                    missing.append(f"{info.name}.{name}.{attribute}")
    assert missing == []


@SOURCE
def test_listed_packages_are_the_tree() -> None:
    listed = packages()
    found = {place for folder in ("blackboard", "cli", "examples", "migrations") for place in
             (file.parent for file in (ROOT / folder).rglob("__init__.py"))}  # fmt: skip
    assert set(listed.values()) == found
    assert list(listed) == sorted(listed)


@SOURCE
def test_a_wheel_holds_everything(tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools", reason="building needs setuptools in the environment")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("building needs setuptools 77; the CI script tests the built wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)],
        check=True, capture_output=True, timeout=110,
    )  # fmt: skip
    [wheel] = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted: set[str] = set()
    for name, place in packages().items():
        prefix = name.replace(".", "/")
        for file in place.iterdir():
            if file.suffix in (".py", ".sql", ".yaml", ".mako") or file.name == "py.typed":
                wanted.add(f"{prefix}/{file.name}")
    recording = ROOT / "examples" / "incident" / "recording"
    wanted |= {f"blackboard_examples/incident/recording/{file.name}" for file in recording.iterdir() if file.is_file()}
    assert sorted(wanted - inside) == []


@SOURCE
def test_no_sql_is_built_in_python() -> None:
    # What must be text in code, and why.
    allowed = {
        "blackboard/work/heartbeat.py": "a connection of its own, below the executors",
        "blackboard/store": "the store speaks to servers: transactions, listening, versions, migrations",
        "blackboard/sync": "generated",
        "migrations": "the migrations' own environment",
        "examples/incident/service": "the program that is recorded",
        "cli/demo": "none",
    }
    statement = re.compile(
        r"^\s*(SELECT\s.+\sFROM\s|SELECT\s+\w+\.?\w*\(|INSERT\s+INTO\s|UPDATE\s+\w[\w.]*\s+SET\s|DELETE\s+FROM\s|WITH\s+\w+\s+AS\s*\()",
        re.DOTALL,
    )
    found: list[str] = []
    for file in modules():
        name = str(file.relative_to(ROOT))
        if any(name.startswith(prefix) for prefix in allowed):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and statement.match(node.value):
                found.append(f"{name}:{node.lineno}")
    assert found == [], "statements live in blackboard/sql"


@SOURCE
def test_the_arrows_go_down_only() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run(
        [str(linter), "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]


@SOURCE
def test_files_stay_small() -> None:
    # The mapping of every constraint is one table.
    known = {"blackboard/sqlstates.py"}
    long = {
        str(file.relative_to(ROOT)): lines for file in modules() if (lines := len(file.read_text().splitlines())) > 700
    }
    assert set(long) - known == set(), long


@SOURCE
def test_everything_begins_with_what_it_is_for() -> None:
    silent = [str(file.relative_to(ROOT)) for file in modules() if not ast.get_docstring(ast.parse(file.read_text()))]
    assert silent == []


def test_importing_the_package_loads_no_driver() -> None:
    code = (
        "import sys, blackboard; "
        "print(sorted(m for m in ('asyncpg', 'psycopg', 'sqlalchemy', 'alembic', 'pydantic', 'rich') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""The embedded server, on real servers: started together, killed anywhere, found in any disorder, and whole again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import LiteralString

import asyncpg
import psycopg
import pytest

from blackboard.errors import ConfigurationError, EmbeddedServerError, EmbeddedServerUnavailable
from blackboard.store import binaries, postmaster, temporary
from blackboard.store.embedded import EmbeddedServer, default_data_dir
from blackboard.store.postmaster import Place, wait_until
from blackboard.store.temporary import temporary_server

pytestmark = pytest.mark.lifecycle

PACKAGE = Path(postmaster.__file__).resolve().parents[1]
ROOT = os.geteuid() == 0
LINUX = sys.platform == "linux"
DEADLINE = 20.0

STARTER = """
import sys
from pathlib import Path
from blackboard.store.embedded import EmbeddedServer
info = EmbeddedServer(Path(sys.argv[1])).start()
print(info.pid, flush=True)
sys.stdin.read()
"""


def scratch() -> Path:
    """A new directory that the account of root's server can enter."""
    made = Path(tempfile.mkdtemp(prefix="blackboard-test-", dir="/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"))
    made.chmod(0o711 if ROOT else 0o700)
    return made


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for data directories, whose servers are stopped afterwards."""
    monkeypatch.delenv("BLACKBOARD_PG_BIN", raising=False)
    made = scratch()
    yield made
    for lock in made.glob("**/running.lock"):
        EmbeddedServer(lock.parent).stop(timeout=1.0)
    shutil.rmtree(made)


@pytest.fixture
def server(room: Path) -> EmbeddedServer:
    """A server that was not started yet, and does not end by itself."""
    return EmbeddedServer(room / "data", idle_timeout=None)


def execute(server: EmbeddedServer, sql: LiteralString) -> list[tuple[object, ...]]:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else []


@contextlib.contextmanager
def python(*arguments: str) -> Generator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *filter(None, sys.path)])},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def place_of(server: EmbeddedServer) -> Place:
    return Place(str(server.status().data_dir))


def postmasters(data_dir: Path) -> set[int]:
    cluster = str(data_dir / "pg")
    shown = subprocess.run(
        ["ps", "-ww", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    found = {
        int(row.split()[0]): int(row.split()[1])
        for row in shown.splitlines()
        if f"-D {cluster} " in row and "sh -c" not in row
    }
    # A backend just forked still shows its parent's arguments.
    return {pid for pid, parent in found.items() if parent not in found}


def watchers(data_dir: Path) -> set[int]:
    shown = subprocess.run(["ps", "-ww", "-A", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return {int(row.split()[0]) for row in shown.splitlines() if f"watch {data_dir} " in row and "sh -c" not in row}


# Starting and stopping


def test_first_start_makes_everything_and_both_drivers_connect(server: EmbeddedServer) -> None:
    info = server.start()
    assert info.running
    assert info.pid in postmasters(info.data_dir)
    assert info.version is not None
    assert int(info.version.split(".")[0]) >= 15
    assert execute(server, "SELECT current_database(), upper('ä')") == [("blackboard", "Ä")]
    wanted = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "listen_addresses": ""}
    settings = {row[0]: row[1] for row in execute(server, "SELECT name, setting FROM pg_settings")}
    assert {name: settings[name] for name in wanted} == wanted
    assert settings["TimeZone"] == "UTC"

    async def version() -> int:
        connection = await asyncpg.connect(server.url())
        try:
            return connection.get_server_version().major
        finally:
            await connection.close()

    assert asyncio.run(version()) == int(info.version.split(".")[0])
    assert server.start() == info


def test_status_logs_and_stop_twice(server: EmbeddedServer) -> None:
    before = server.status()
    assert (before.running, before.pid, before.version) == (False, None, None)
    assert server.logs() == ""
    assert not server.stop()
    assert not before.data_dir.exists()
    started = server.start()
    assert server.status() == started
    assert "ready to accept connections" in server.logs()
    assert len(server.logs(2).splitlines()) == 2
    assert server.stop()
    assert not server.stop()
    after = server.status()
    assert (after.running, after.pid, after.version) == (False, None, started.version)
    assert not postmasters(started.data_dir)


def test_committed_rows_outlive_a_stop(server: EmbeddedServer) -> None:
    server.start()
    execute(server, "CREATE TABLE kept AS SELECT 1 AS n")
    server.stop()
    server.start()
    assert execute(server, "SELECT n FROM kept") == [(1,)]


def test_eight_processes_start_one_server(room: Path) -> None:
    data = room / "data"
    with contextlib.ExitStack() as stack:
        starters = [stack.enter_context(python(STARTER, str(data))) for _ in range(8)]
        pids = {line(starter) for starter in starters}
    assert len(pids) == 1
    assert postmasters(data) == {int(pid) for pid in pids}
    assert wait_until(lambda: len(watchers(data)) == 1, DEADLINE)


def test_eight_threads_start_one_server(room: Path) -> None:
    pids: list[int | None] = []
    threads = [threading.Thread(target=lambda: pids.append(EmbeddedServer(room / "d").start().pid)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 8
    assert len(set(pids)) == 1


def test_postgresqls_own_variables_are_dropped(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGDATA": "/nowhere", "PGPORT": "1", "PGOPTIONS": "-c nonsense=1", "PGHOST": "nowhere"}.items():
        monkeypatch.setenv(name, value)
    assert server.start().running


def test_a_dropped_database_comes_back(server: EmbeddedServer) -> None:
    server.start()
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE blackboard")
    server.start()
    assert execute(server, "SELECT current_database()") == [("blackboard",)]


def test_settings_reach_the_server_and_some_are_refused(room: Path) -> None:
    server = EmbeddedServer(room / "data", idle_timeout=None, settings={"work_mem": "7MB"})
    server.start()
    assert execute(server, "SHOW work_mem") == [("7MB",)]
    with pytest.raises(ConfigurationError, match="port"):
        EmbeddedServer(room / "data", settings={"port": "1"})


def test_a_wrong_setting_fails_with_the_log(room: Path) -> None:
    server = EmbeddedServer(room / "data", settings={"work_mem": "plenty"})
    with pytest.raises(EmbeddedServerError, match="ended while starting") as caught:
        server.start()
    assert "work_mem" in caught.value.message
    assert EmbeddedServer(room / "data").start().running


# Kills


def test_the_server_survives_its_starter(server: EmbeddedServer) -> None:
    data = server.status().data_dir
    with python(STARTER, str(data)) as starter:
        pid = int(line(starter))
        os.kill(starter.pid, signal.SIGKILL)
        starter.wait()
    assert server.start().pid == pid


def test_a_starter_killed_while_the_cluster_is_made(server: EmbeddedServer) -> None:
    data = server.status().data_dir
    with python(STARTER, str(data)) as starter:
        assert wait_until(lambda: any(data.glob("making-*/PG_VERSION")), DEADLINE)
        os.kill(starter.pid, signal.SIGKILL)
        starter.wait()
    assert not (data / "pg").exists()
    assert server.start().running
    assert execute(server, "SELECT current_database()") == [("blackboard",)]
    server.stop()
    # What the orphaned initdb still wrote is removed as soon as a cluster is made again; it never becomes one.
    assert (data / "pg" / "PG_VERSION").exists()


def test_a_postmaster_killed_in_mid_write(server: EmbeddedServer) -> None:
    first = server.start()
    execute(server, "CREATE TABLE written (n int PRIMARY KEY)")
    committed: list[int] = []

    def write() -> None:
        with contextlib.suppress(psycopg.Error), psycopg.connect(server.url(), autocommit=True) as connection:
            while True:
                connection.execute("INSERT INTO written VALUES (%s)", (len(committed),))
                committed.append(len(committed))

    writer = threading.Thread(target=write)
    writer.start()
    assert wait_until(lambda: len(committed) > 100, DEADLINE)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    again = server.start()
    writer.join()
    assert again.pid != first.pid
    found = {row[0] for row in execute(server, "SELECT n FROM written")}
    assert found >= set(committed)


def test_many_heal_a_killed_server_together(server: EmbeddedServer) -> None:
    first = server.start()
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    with contextlib.ExitStack() as stack:
        starters = [stack.enter_context(python(STARTER, str(first.data_dir))) for _ in range(4)]
        pids = {int(line(starter)) for starter in starters}
    assert len(pids) == 1
    assert pids == postmasters(first.data_dir)
    assert pids != {first.pid}


def test_a_backend_busy_after_its_postmaster_was_killed(server: EmbeddedServer) -> None:
    first = server.start()
    loop = "DO $$ BEGIN FOR i IN 1..2000000000 LOOP NULL; END LOOP; END $$"
    with psycopg.connect(server.url(), autocommit=True) as connection:

        def spin() -> None:
            with contextlib.suppress(psycopg.Error):
                connection.execute(loop)

        spinner = threading.Thread(target=spin)
        spinner.start()
        assert wait_until(
            lambda: execute(server, "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'DO%' AND state = 'active'") != [],
            DEADLINE,
        )
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        assert server.start().pid != first.pid
        spinner.join()


def test_a_killed_client_leaves_nothing(room: Path) -> None:
    server = EmbeddedServer(room / "data", idle_timeout=timedelta(seconds=0.3))
    client = "import psycopg, sys; c = psycopg.connect(sys.argv[1]); print('in', flush=True); sys.stdin.read()"
    server.start()
    with python(client, server.url()) as process:
        assert line(process) == "in"
        assert not wait_until(lambda: not server.status().running, 1.0), "ended under a client"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert wait_until(lambda: not postmasters(room / "data"), DEADLINE), "a killed client keeps the server running"


def test_a_removed_socket_comes_back(server: EmbeddedServer) -> None:
    first = server.start()
    (first.socket_dir / ".s.PGSQL.5432").unlink()
    assert not server.status().running
    assert server.start().pid != first.pid
    assert execute(server, "SELECT 1") == [(1,)]


# Disorder found at the start


@contextlib.contextmanager
def dead_process() -> Generator[int]:
    process = subprocess.Popen(["true"])
    process.wait()
    yield process.pid


@contextlib.contextmanager
def stranger() -> Generator[int]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


@contextlib.contextmanager
def zombie() -> Generator[int]:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield process.pid


@pytest.mark.parametrize("whose", [dead_process, stranger, zombie])
def test_leftovers_of_a_crash_are_cleaned(
    server: EmbeddedServer, whose: type[contextlib.AbstractContextManager[int]]
) -> None:
    info = server.start()
    pid_file = info.data_dir / "pg" / "postmaster.pid"
    socket_lock = info.socket_dir / ".s.PGSQL.5432.lock"
    old_pid_file, old_lock = pid_file.read_text(), socket_lock.read_text()
    server.stop()
    with whose() as pid:
        for path, text in ((pid_file, old_pid_file), (socket_lock, old_lock)):
            path.write_text(text.replace(str(info.pid), str(pid), 1))
        (info.socket_dir / ".s.PGSQL.5432").touch()
        status = server.status()
        assert (status.running, status.pid) == (False, None)
        assert not server.stop()
        again = server.start()
        assert again.running
        assert again.pid != pid
    assert execute(server, "SELECT 1") == [(1,)]


def test_a_forked_stranger_holding_the_running_lock_does_not_bar_a_start(server: EmbeddedServer) -> None:
    if not LINUX:
        pytest.skip("only /proc tells the strangers from the server")
    server.start()
    server.stop()
    held = postmaster.try_lock(place_of(server).running_lock)
    assert held is not None
    try:
        assert server.start().running
    finally:
        os.close(held)


def test_a_path_too_long_for_a_socket(room: Path) -> None:
    data = room / ("long-" * 12) / ("longer-" * 9)
    data.parent.mkdir()
    data.parent.chmod(0o711)
    assert len(str(data)) > 107
    server = EmbeddedServer(data, idle_timeout=None)
    info = server.start()
    try:
        assert len(str(info.socket_dir)) < 90
        assert EmbeddedServer(data, idle_timeout=None).start() == info
        assert execute(server, "SELECT 1") == [(1,)]
        server.stop()
        assert server.start().socket_dir == info.socket_dir
    finally:
        server.stop()
        info.socket_dir.rmdir()


def test_a_path_with_odd_characters(room: Path) -> None:
    server = EmbeddedServer(room / "a b&c=ä%20?#d", idle_timeout=None)
    server.start()
    assert execute(server, "SELECT 1") == [(1,)]


# Data directories that do not do


def test_a_file_is_no_data_directory(room: Path) -> None:
    (room / "file").touch()
    for path in (room / "file", room / "file" / "below"):
        with pytest.raises(EmbeddedServerError, match=r"is a file.*BLACKBOARD_DATA_DIR"):
            EmbeddedServer(path).start()


def test_a_place_where_nothing_can_be_made() -> None:
    with pytest.raises(EmbeddedServerError, match="cannot be used"):
        EmbeddedServer(Path("/proc/no/such/place")).start()


def test_other_files_are_left_alone(room: Path) -> None:
    (room / "thesis.tex").touch()
    with pytest.raises(EmbeddedServerError, match="other files"):
        EmbeddedServer(room).start()
    assert [path.name for path in room.iterdir()] == ["thesis.tex"]
    (room / "PG_VERSION").touch()
    with pytest.raises(EmbeddedServerError, match="itself a PostgreSQL cluster"):
        EmbeddedServer(room).start()


def test_a_cluster_of_a_version_that_is_not_here(server: EmbeddedServer) -> None:
    info = server.start()
    server.stop()
    (info.data_dir / "pg" / "PG_VERSION").write_text("11\n")
    with pytest.raises(EmbeddedServerError, match=r"written by PostgreSQL 11.*BLACKBOARD_PG_BIN"):
        server.start()
    (info.data_dir / "pg" / "PG_VERSION").unlink()
    with pytest.raises(EmbeddedServerError, match="PG_VERSION is missing"):
        server.start()


@pytest.mark.skipif(not ROOT, reason="only root's server runs as another account")
def test_a_directory_out_of_reach_for_the_servers_account(room: Path) -> None:
    closed = room / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedServerError, match=f"{closed} does not let others pass"):
        EmbeddedServer(closed / "data").start()
    assert closed.stat().st_mode & 0o777 == 0o700


# Binaries and accounts


def test_nothing_to_start_with(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_chain", lambda: iter([("system", room / "nowhere")]))
    with pytest.raises(EmbeddedServerUnavailable, match=r'pip install "agent-blackboard\[embedded\]"'):
        EmbeddedServer(room / "data").start()


def test_a_wrong_setting_for_the_binaries(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLACKBOARD_PG_BIN", str(room))
    with pytest.raises(ConfigurationError, match="has no `postgres`"):
        EmbeddedServer(room / "data").start()


def test_a_cluster_finds_the_binaries_of_its_version(room: Path) -> None:
    account = binaries.server_account()
    found = {b.major: b for b in binaries.usable_binaries(account, room / "cache") if isinstance(b, binaries.Binaries)}
    newest, oldest = found[max(found)], found[min(found)]
    if newest == oldest:
        pytest.skip("only one PostgreSQL is here")
    old = EmbeddedServer(room / "data", idle_timeout=None, bin_dir=oldest.directory)
    assert old.start().version == oldest.version
    assert execute(old, "SELECT upper('ä')") == [("Ä",)]
    old.stop()
    assert EmbeddedServer(room / "data", idle_timeout=None).start().version == oldest.version


@pytest.mark.skipif(not ROOT, reason="only root's server runs as another account")
def test_binaries_out_of_reach_are_laid_elsewhere(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = binaries.find_binaries(None, room)
    package = bundled.directory.parents[1]
    if bundled.source == "system":
        pytest.skip("no package with PostgreSQL is here")
    closed = room / "closed"
    closed.mkdir(mode=0o700)
    binaries.lay(package / "pginstall", closed / package.name / "pginstall")
    binaries.lay(package.with_name(package.name + ".libs"), closed / (package.name + ".libs"))
    closed.chmod(0o700)
    monkeypatch.setattr(binaries, "_SHARED_CACHE", room / "cache")
    monkeypatch.setenv("BLACKBOARD_PG_BIN", str(closed / package.name / "pginstall" / "bin"))
    server = EmbeddedServer(room / "data", idle_timeout=None)
    assert server.start().running
    assert len(list((room / "cache").iterdir())) == 1
    server.stop()
    assert server.start().running
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not ROOT, reason="the whole file runs as a normal user then")
def test_a_normal_user(room: Path) -> None:
    interpreter = "/usr/bin/python3"
    new_enough = "import sys; sys.exit(sys.version_info < (3, 11))"
    if subprocess.run([interpreter, "-c", new_enough], check=False).returncode != 0:
        pytest.skip("no interpreter that a normal user could run")
    nobody = pwd.getpwnam("nobody")
    account = binaries.Account("nobody", nobody.pw_uid, nobody.pw_gid)
    # The lifecycle needs the standard library alone, so a bare interpreter and these files will do.
    copy = room / "code"
    (copy / "blackboard" / "store").mkdir(parents=True)
    modules = ("embedded", "binaries", "cluster", "launching", "postmaster")
    for name in ("errors.py", *(f"store/{module}.py" for module in modules)):
        shutil.copy(PACKAGE / name, copy / "blackboard" / name)
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o755)
    home = room / "home"
    home.mkdir()
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    program = """
import os
from blackboard.store.embedded import EmbeddedServer, default_data_dir
server = EmbeddedServer()
info = server.start()
assert info == server.start() and info.running
assert info.data_dir == default_data_dir() and info.data_dir.stat().st_mode & 0o777 == 0o700
assert os.stat(f"/proc/{info.pid}").st_uid == os.getuid()
assert server.stop() and not server.stop()
assert server.start().running and server.stop()
print(info.data_dir)
"""
    found = binaries.find_binaries(account, room / "cache")
    ran = subprocess.run(
        [interpreter, "-B", "-W", "error", "-c", program],
        env={"HOME": str(home), "PYTHONPATH": str(copy), "BLACKBOARD_PG_BIN": str(found.directory)},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        **binaries.as_account(account),
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.strip() == str(home / ".local/share/blackboard")


def test_the_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLACKBOARD_DATA_DIR", "/some/where")
    assert default_data_dir() == Path("/some/where")
    monkeypatch.delenv("BLACKBOARD_DATA_DIR")
    assert default_data_dir().is_absolute()
    assert default_data_dir().name.lower() == "blackboard"


# The idle end


def test_it_ends_when_idle_and_starts_again(room: Path) -> None:
    server = EmbeddedServer(room / "data", idle_timeout=timedelta(seconds=0.3))
    info = server.start()
    assert wait_until(lambda: not postmasters(info.data_dir) and not watchers(info.data_dir), DEADLINE)
    assert "fast shutdown" in server.logs()
    assert not server.stop()
    assert server.start().running


def test_it_does_not_end_under_a_client(room: Path) -> None:
    server = EmbeddedServer(room / "data", idle_timeout=timedelta(seconds=0.2))
    info = server.start()
    with psycopg.connect(server.url()):
        assert not wait_until(lambda: server.status().pid != info.pid, 1.0)
    assert wait_until(lambda: not server.status().running, DEADLINE)


def test_the_longest_wish_holds(room: Path) -> None:
    EmbeddedServer(room / "data", idle_timeout=timedelta(seconds=0.2)).start()
    patient = EmbeddedServer(room / "data", idle_timeout=timedelta(hours=1))
    info = patient.start()
    EmbeddedServer(room / "data", idle_timeout=timedelta(seconds=0.2)).start()
    assert not wait_until(lambda: patient.status().pid != info.pid, 1.0)
    assert place_of(patient).state()["idle_seconds"] == 3600.0
    EmbeddedServer(room / "data", idle_timeout=None).start()
    patient.start()
    assert place_of(patient).state()["idle_seconds"] is None


@pytest.mark.parametrize("by", ["watcher", "start"])
def test_the_log_is_bounded(room: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    server = EmbeddedServer(room / "data", idle_timeout=timedelta(seconds=2) if by == "watcher" else None)
    info = server.start()
    assert info.log_path.stat().st_size < 10_000
    with info.log_path.open("a") as file:
        file.write("noise\n" * (postmaster.LOG_BOUND // 6) + "the last\n")
    if by == "start":
        server.stop()
        server.start()
    assert wait_until(lambda: info.log_path.stat().st_size < 10_000, DEADLINE)
    assert "the last" in (info.data_dir / "server.log.1").read_text()
    assert (info.data_dir / "server.log.1").stat().st_size < postmaster.LOG_BOUND
    server.stop()
    assert "shut down" in server.logs()


def test_a_killed_watcher_is_replaced_and_one_ends_with_its_server(room: Path) -> None:
    server = EmbeddedServer(room / "data")
    info = server.start()
    assert wait_until(lambda: len(watchers(info.data_dir)) == 1, DEADLINE)
    (watcher,) = watchers(info.data_dir)
    os.kill(watcher, signal.SIGKILL)
    assert wait_until(lambda: not watchers(info.data_dir), DEADLINE)
    assert server.start() == info
    assert wait_until(lambda: len(watchers(info.data_dir)) == 1, DEADLINE)
    assert server.start() == info
    assert wait_until(lambda: len(watchers(info.data_dir)) == 1, DEADLINE)
    server.stop()
    assert wait_until(lambda: not watchers(info.data_dir), DEADLINE)


def test_starting_while_it_ends_from_idleness(room: Path) -> None:
    server = EmbeddedServer(room / "data", idle_timeout=timedelta(0))
    connected = 0
    for _ in range(15):
        server.start()
        # It may have ended between the two; then starting again is all that it takes.
        with contextlib.suppress(psycopg.OperationalError):
            execute(server, "SELECT 1")
            connected += 1
    assert connected > 0
    assert server.logs().count("PANIC") == 0


# The throw-away server


def test_a_temporary_server_leaves_nothing() -> None:
    with temporary_server(settings={"work_mem": "5MB"}) as server:
        info = server.status()
        assert execute(server, "SHOW fsync") == [("off",)]
        assert execute(server, "SHOW work_mem") == [("5MB",)]
    assert not info.data_dir.parent.exists()
    assert not postmasters(info.data_dir)


def test_a_durable_temporary_server(room: Path) -> None:
    with temporary_server(durable=True, directory=room) as server:
        assert execute(server, "SHOW fsync") == [("on",)]
    assert not list(room.iterdir())


@pytest.mark.skipif(not LINUX, reason="a parent's death is signalled by Linux only")
def test_a_temporary_server_ends_with_its_process(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import sys
from pathlib import Path
from blackboard.store.temporary import temporary_server
with temporary_server(directory=Path(sys.argv[1])) as server:
    print(server.status().data_dir, flush=True)
    sys.stdin.read()
"""
    with python(program, str(room)) as process:
        data = Path(line(process))
        assert postmasters(data)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert wait_until(lambda: not postmasters(data), DEADLINE)
    assert data.exists()
    monkeypatch.setattr(temporary, "_GRACE", 0.0)
    with temporary_server(directory=room):
        assert not data.exists()

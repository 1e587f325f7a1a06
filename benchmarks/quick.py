"""The small figures: start-up, help, memory of idle agents, and the reads that must not grow with the board.

``python -m benchmarks.quick [--findings N]`` prints one line a figure, with its target.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg

from blackboard import Blackboard, EmbeddedServer, NewTask
from blackboard.store import migrations
from blackboard.store.temporary import temporary_server


def report(what: str, value: float, unit: str, target: str) -> None:
    print(f"{what:<66}{value:>10.1f} {unit:<4} target {target}")


async def median(call: Callable[[], Awaitable[object]], times: int = 15) -> float:
    """Median of ``times`` calls in milliseconds, after two warm ones."""
    for _ in range(2):
        await call()
    taken: list[float] = []
    for _ in range(times):
        start = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - start) * 1000)
    return statistics.median(taken)


def start_up() -> None:
    """``blackboard --help`` and ``Blackboard.open()``, each in a fresh process."""
    program = str(Path(sys.executable).with_name("blackboard"))
    helps: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([program, "--help"], check=True, stdout=subprocess.DEVNULL)
        helps.append(time.perf_counter() - start)
    report("blackboard --help", statistics.median(helps) * 1000, "ms", "< 400")
    code = (
        "import asyncio, sys, time\nfrom blackboard import Blackboard\nfrom pathlib import Path\n"
        "import blackboard.board\n"
        "async def main():\n start = time.perf_counter()\n"
        " async with Blackboard.open(data_dir=Path(sys.argv[1])):\n  print(time.perf_counter() - start)\n"
        "asyncio.run(main())"
    )
    with tempfile.TemporaryDirectory(prefix="bbq-", dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        data = Path(directory) / "data"

        def opened() -> float:
            ran = subprocess.run([sys.executable, "-c", code, str(data)], check=True, capture_output=True, text=True)
            return float(ran.stdout) * 1000

        try:
            report("Blackboard.open(), first time: initdb and migrations", opened(), "ms", "-")
            report(
                "Blackboard.open(), server running: join", statistics.median(opened() for _ in range(5)), "ms", "< 200"
            )
            EmbeddedServer(data).stop()
            report("Blackboard.open(), data there: start", opened(), "ms", "< 1000")
        finally:
            EmbeddedServer(data).stop()


async def agents(url: str) -> None:
    """Memory of a process with one idle agent, and with 500."""
    for count, target in ((1, "< 80"), (500, "< 300")):
        code = (
            "import asyncio, re, sys\nfrom pathlib import Path\nfrom datetime import timedelta\n"
            "from blackboard import Blackboard\n"
            "async def main():\n async with Blackboard.open(sys.argv[1]) as board:\n"
            "  session = await board.start(f'agents-{sys.argv[2]}')\n"
            "  agents = [await session.join(f'a/{n}') for n in range(int(sys.argv[2]))]\n"
            "  waits = [asyncio.ensure_future(a.tasks.claim(wait=timedelta(seconds=3))) for a in agents]\n"
            "  await asyncio.gather(*waits)\n"
            # Not getrusage: its peak is inherited from the process that forked this one.
            "  print(int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024)\n"
            "asyncio.run(main())"
        )
        ran = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", code, url, str(count)], check=True, capture_output=True, text=True
        )
        report(f"peak memory of a process with {count} idle agents", float(ran.stdout), "MB", target)


async def reads(url: str, findings: int) -> None:
    """The picture of a middling session, and the newest findings of a huge one."""
    connection = await asyncpg.connect(url)
    async with Blackboard.open(url) as board:
        for name, count in (("middling", 10_000), ("huge", findings)):
            session = await board.start(name)
            await session.join("a/1")
            if name == "middling":
                await session.tasks.add_many([NewTask(type="t") for _ in range(1000)])
            async with connection.transaction():
                # The rows matter here, not their events.
                await connection.execute("SET LOCAL session_replication_role = replica")
                await connection.execute(
                    "INSERT INTO blackboard.findings (session_id, id, agent_id, type, content, confidence, created_at) "
                    "SELECT $1, gen_random_uuid(), 'a/1', 'metric', jsonb_build_object('n', n), 0.5, "
                    "now() - make_interval(secs => $2 - n) FROM generate_series(1, $2::int) n",
                    session.id, count,
                )  # fmt: skip
        await connection.execute("ANALYZE")
        middling = await board.session("middling")
        huge = await board.session("huge")
        report("session.board(), 10 000 findings and 1 000 tasks", await median(middling.board), "ms", "< 50")
        newest = await median(lambda: huge.findings.list(limit=100))
        report(f"the 100 newest findings of a session of {findings:,}", newest, "ms", "< 5")
        agent = await middling.join("a/1")
        report("one task added", await median(lambda: agent.tasks.add("t"), 200), "ms", "-")

        async def claim_complete() -> None:
            [task] = await agent.tasks.claim()
            await agent.tasks.complete(task)

        report("one task claimed and completed", await median(claim_complete, 200), "ms", "-")
    await connection.close()


def main() -> None:
    """Runs all of them."""
    parser = argparse.ArgumentParser(description="The small figures.")
    parser.add_argument("--findings", type=int, default=1_000_000)
    options = parser.parse_args()
    start_up()
    with temporary_server(durable=True) as server:
        migrations.upgrade(server.url())
        asyncio.run(agents(server.url()))
        asyncio.run(reads(server.url(), options.findings))


if __name__ == "__main__":
    main()

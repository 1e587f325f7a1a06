"""What the server is told by its environment and command line, checked before anything starts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

__all__ = ["EPILOG", "Environment", "WrongEnvironment", "parser", "read_environment"]

EPILOG = """\
environment:
  AGENT_ID             who the agent on this connection is, such as ops/deploy-validator; required unless --agent-id
  BLACKBOARD_URL       postgresql://… of the board; DATABASE_URL is read where it is not set; with neither, the
                       embedded server is started or joined
  SWARM_BACKEND        postgres, the only one there is, and the default
  SWARM_SESSION        the session to join by itself with the first tool that needs one
  SWARM_CAPABILITIES   which tasks the agent can do, separated by commas
  SWARM_TOOL_NAMES     underscore (swarm_claim_task, the default) or dotted (swarm.claim_task); a call under either
                       name works in both modes
  SWARM_SHARE_FINDINGS 0: tools that read findings show the agent's own only, for agents that should not lean on each
                       other; 1 is the default
  BLACKBOARD_…         the other settings of the board, such as BLACKBOARD_LEASE_TERM and BLACKBOARD_DATA_DIR

exit codes:
  0  the client closed the connection, or SIGTERM or SIGINT came; what the agent held went back
  2  the command line or the environment is wrong
  4  the board cannot be used: not reachable, not migrated, too old

a client's configuration:
  {"mcpServers": {"agent-swarm": {"command": "mcp-agent-swarm",
    "env": {"SWARM_BACKEND": "postgres", "BLACKBOARD_URL": "postgresql://…", "AGENT_ID": "ops/deploy-validator"}}}}
"""


class WrongEnvironment(Exception):
    """The command line or the environment is wrong; the message says what to set."""


@dataclass(frozen=True)
class Environment:
    """What the server was told.

    Attributes:
        url: None is left to the settings: the settings file, else the embedded server.
        session: the session to join by default.
        capabilities: None keeps those that the agent is registered with.
        dotted: whether tools are listed as ``swarm.claim_task``.
        share_findings: whether tools that read findings show those of others.
    """

    agent_id: str
    url: str | None = None
    session: str | None = None
    capabilities: tuple[str, ...] | None = None
    dotted: bool = False
    share_findings: bool = True


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="mcp-agent-swarm",
        description="Gives one agent a place on the board, over MCP on standard input and output.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--agent-id", metavar="ID", help="who the agent is; stronger than AGENT_ID")
    made.add_argument("--session", metavar="NAME", help="the session to join by default; stronger than SWARM_SESSION")
    made.add_argument(
        "--capabilities", metavar="A,B", help="which tasks the agent can do; stronger than SWARM_CAPABILITIES"
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {version('agent-blackboard')}")
    return made


def read_environment(variables: Mapping[str, str], arguments: Sequence[str] | None = None) -> Environment:
    """What the server was told; an empty variable counts as not set.

    Raises:
        WrongEnvironment: a value is missing or not allowed.
    """
    options = parser().parse_args(arguments)

    def variable(name: str) -> str | None:
        value = variables.get(name, "").strip()
        if value.startswith("${") and value.endswith("}"):
            raise WrongEnvironment(
                f"{name} is the text {value}: the client that started this server does not expand variables. "
                "Write the value itself into its configuration."
            )
        return value or None

    backend = variable("SWARM_BACKEND") or "postgres"
    if backend.lower() not in {"postgres", "postgresql"}:
        raise WrongEnvironment(
            f"SWARM_BACKEND={backend} is not supported: set SWARM_BACKEND=postgres, or leave it out, and give the "
            "database's URL in BLACKBOARD_URL, or leave that out too for the embedded server."
        )
    names = (variable("SWARM_TOOL_NAMES") or "underscore").lower()
    if names not in {"underscore", "dotted"}:
        raise WrongEnvironment(f"SWARM_TOOL_NAMES={names} is not known: use underscore (the default) or dotted.")
    share = (variable("SWARM_SHARE_FINDINGS") or "1").lower()
    if share not in {"0", "1", "true", "false", "yes", "no"}:
        raise WrongEnvironment(f"SWARM_SHARE_FINDINGS={share} is not known: use 1 (the default) or 0.")
    agent_id = options.agent_id or variable("AGENT_ID")
    if agent_id is None:
        raise WrongEnvironment(
            "AGENT_ID is not set: set it, or pass --agent-id, to who the agent on this connection is, such as "
            "ops/deploy-validator."
        )
    if not 1 <= len(agent_id) <= 100 or any(c.isspace() or not c.isprintable() for c in agent_id):
        raise WrongEnvironment(f"AGENT_ID={agent_id!r:.120} is not allowed: it has 1 to 100 characters, none blank.")
    offered = options.capabilities if options.capabilities is not None else variable("SWARM_CAPABILITIES")
    capabilities = None if offered is None else tuple(part.strip() for part in offered.split(",") if part.strip())
    return Environment(
        agent_id=agent_id,
        url=variable("BLACKBOARD_URL") or variable("DATABASE_URL"),
        session=options.session or variable("SWARM_SESSION"),
        capabilities=capabilities,
        dotted=names == "dotted",
        share_findings=share in {"1", "true", "yes"},
    )

"""Time, errors, events, sessions, agents, memberships, leases, requests."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")

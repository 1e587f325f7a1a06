"""Cursors, the state history, the picture of a session, and the seed's three tables as views."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")

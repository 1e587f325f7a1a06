"""Tasks, dependencies, claims, late results."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")

"""The orders in which rows are locked and history is pruned, made whole."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")

"""Failing, releasing, adding again and redriving say the same however often they are asked."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")

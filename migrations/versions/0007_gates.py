"""What holds tasks back: limits, pauses, uniqueness, ageing; what becomes of old ones; and why a task waits."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")

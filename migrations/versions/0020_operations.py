"""Old tasks and events go by themselves where a session says so; what is pruned goes in batches and as a whole."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")

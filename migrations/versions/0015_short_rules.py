"""One look tells that the rules of a task are kept; steps taken by hand record all that they change."""

from __future__ import annotations

from blackboard_migrations.sqlfile import run

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run(__file__, "up")


def downgrade() -> None:
    run(__file__, "down")

"""Runs the SQL that stands beside a revision, online or into an offline script."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alembic import context, op

__all__ = ["run"]


def run(revision_file: str, direction: Literal["up", "down"]) -> None:
    """The statements of ``NNNN_name.<direction>.sql`` have run, in the migration's transaction.

    Raises:
        FileNotFoundError: the revision has no such file.
    """
    sql = Path(revision_file).with_suffix(f".{direction}.sql").read_text(encoding="utf-8")
    if context.is_offline_mode():
        op.get_context().impl.static_output(sql)
        return
    # Without parameters psycopg sends the text as it is: many statements, and % and : mean nothing.
    driver = op.get_bind().connection.driver_connection
    assert driver is not None
    driver.execute(sql)

"""Least privileges: the statements that let a database role work on the board, or only read it."""

from __future__ import annotations

from typing import Literal

import psycopg

from ..jsonable import check_text
from .driver_errors import PSYCOPG_ERRORS, from_psycopg
from .statements import statements
from .urls import normalise_url

__all__ = ["grants"]

_SQL = statements("grants")


def grants(url: str, name: str, role: Literal["agent", "reader"] = "agent") -> str:
    """The GRANT statements for the database role ``name``, to be run by the schema's owner. Nothing is changed.

    Args:
        url: any PostgreSQL; it quotes the name.
        name: of the role, 1 to 63 characters.
        role: ``agent`` reads everything and works; ``reader`` only reads.

    Raises:
        BlackboardError: the server cannot be reached.
        InvalidInput: the name is refused.
    """
    check_text(name, "name", 63, 1)
    statement = _SQL[f"{role}_grants"]
    try:
        with psycopg.connect(normalise_url(url), autocommit=True, connect_timeout=10) as connection:
            row = connection.execute(statement.pyformat.encode(), {"name": name}).fetchone()
    except PSYCOPG_ERRORS as error:
        raise from_psycopg(error) from error
    assert row is not None
    return str(row[0])

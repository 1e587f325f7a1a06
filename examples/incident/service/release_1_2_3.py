"""``GET /orders/N``."""

from __future__ import annotations

from .http import Response
from .pool import Pool
from .queries import fetch_history, fetch_order

__all__ = ["get_order"]


async def get_order(pool: Pool, order_id: int) -> Response:
    """The order with this number and its history, or 404."""
    connection = await pool.acquire()
    order = await fetch_order(connection, order_id)
    if order is None:
        return Response(404, {"error": "no such order", "id": order_id})
    history = await fetch_history(connection, order_id)
    pool.release(connection)
    return Response(200, {**order, "history": history})

"""``GET /orders/N``."""

from __future__ import annotations

from .http import Response
from .pool import Pool
from .queries import fetch_order

__all__ = ["get_order"]


async def get_order(pool: Pool, order_id: int) -> Response:
    """The order with this number, or 404."""
    connection = await pool.acquire()
    try:
        order = await fetch_order(connection, order_id)
    finally:
        pool.release(connection)
    if order is None:
        return Response(404, {"error": "no such order", "id": order_id})
    return Response(200, order)

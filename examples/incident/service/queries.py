"""The statements of the orders service, and the tables they run on."""

from __future__ import annotations

import datetime as dt
from typing import Any

from .pool import Connection

__all__ = ["SCHEMA", "fetch_history", "fetch_order", "fetch_report", "insert_order"]

SCHEMA = """
CREATE TABLE products (
    id integer PRIMARY KEY,
    name text NOT NULL,
    price_cents integer NOT NULL CHECK (price_cents > 0)
);
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    product_id integer NOT NULL REFERENCES products,
    quantity integer NOT NULL CONSTRAINT orders_quantity_positive CHECK (quantity > 0),
    status text NOT NULL DEFAULT 'placed',
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE order_history (
    order_id bigint NOT NULL REFERENCES orders,
    status text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON order_history (order_id);
INSERT INTO products
SELECT n, 'product ' || n, 100 + (n * 37) % 9000 FROM generate_series(1, 1600) n;
INSERT INTO orders (product_id, quantity, status, created_at)
SELECT 1 + n % 1600, 1 + n % 5, 'shipped', date_trunc('day', now()) - make_interval(mins => n * 2)
FROM generate_series(1, 43200) n;
INSERT INTO order_history (order_id, status, at)
SELECT id, s.status, created_at + s.after
FROM orders, (VALUES ('placed', interval '0'), ('shipped', interval '1 day')) AS s (status, after);
ANALYZE;
"""
"""1600 products, and 60 days of orders so that a report has something to count."""


async def fetch_order(connection: Connection, order_id: int) -> dict[str, Any] | None:
    """The order, or None."""
    row = await connection.fetchrow(
        "SELECT id, product_id, quantity, status, created_at::text AS created_at FROM orders WHERE id = $1", order_id
    )
    return None if row is None else dict(row)


async def fetch_history(connection: Connection, order_id: int) -> list[dict[str, Any]]:
    """What happened to the order, oldest first."""
    rows = await connection.fetch(
        "SELECT status, at::text AS at FROM order_history WHERE order_id = $1 ORDER BY at", order_id
    )
    return [dict(row) for row in rows]


async def insert_order(connection: Connection, product_id: int, quantity: int) -> int:
    """The new order's number."""
    order_id: int = await connection.fetchval(
        "INSERT INTO orders (product_id, quantity) VALUES ($1, $2) RETURNING id", product_id, quantity
    )
    await connection.execute("INSERT INTO order_history (order_id, status) VALUES ($1, 'placed')", order_id)
    return order_id


async def fetch_report(connection: Connection, day: int) -> list[dict[str, Any]]:
    """Sales per product on the day ``day`` days ago, best first."""
    rows = await connection.fetch(
        """
        SELECT p.id, p.name, count(o.id) AS orders, coalesce(sum(o.quantity), 0) AS pieces,
               coalesce(sum(o.quantity * p.price_cents), 0) AS cents
        FROM products p
        LEFT JOIN orders o ON o.product_id = p.id
             AND date_trunc('day', o.created_at) = date_trunc('day', now()) - $1::interval
        GROUP BY p.id ORDER BY cents DESC, p.id
        """,
        dt.timedelta(days=day),
    )
    return [dict(row) for row in rows]

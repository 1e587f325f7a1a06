"""Amounts, units and currencies as callers give them, and reservations as the ledger holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from uuid import UUID

from ..errors import InvalidInput
from ..ids import as_uuid
from ..models.budgets import LedgerEntry, Reservation, SpendStatus, Unit
from ..store.executor import Row

__all__ = [
    "Amount",
    "as_amount",
    "as_amounts",
    "as_currency",
    "as_spend_status",
    "as_unit",
    "reservation_id_of",
    "reservation_of",
]

_PLACES = 12

Amount = float | Decimal
"""Tokens, calls, seconds or money. Money is better given as a Decimal or a whole number."""


def reservation_of(rows: Sequence[Row]) -> Reservation:
    """The reservation that these entries are."""
    entries = [LedgerEntry.from_row(row) for row in rows]
    first = entries[0]
    return Reservation(
        id=first.reservation_id,
        agent_id=first.agent_id,
        task_id=first.task_id,
        model=first.model,
        note=first.note,
        currency=next((entry.currency for entry in entries if entry.currency), None),
        # Its entries move together; where plain SQL parted them, one that is held holds the whole.
        status=min((entry.status for entry in entries), key=list(SpendStatus).index),
        reserved={entry.unit: entry.reserved for entry in entries},
        settled={entry.unit: entry.settled for entry in entries if entry.settled is not None},
        at=min(entry.at for entry in entries),
        settled_at=max((entry.settled_at for entry in entries if entry.settled_at), default=None),
    )


def reservation_id_of(reservation: Reservation | UUID | str) -> UUID:
    """Its id, of what ``reserve`` returned or of an id.

    Raises:
        InvalidInput: it is no id.
    """
    return reservation.id if isinstance(reservation, Reservation) else as_uuid(reservation, "reservation")


def as_unit(value: Unit | str) -> Unit:
    """The unit of that name.

    Raises:
        InvalidInput: there is none.
    """
    try:
        return Unit(value)
    except ValueError:
        raise InvalidInput(f"There is no unit {value!r}; use one of {', '.join(Unit)}.", field="unit") from None


def as_spend_status(value: SpendStatus | str) -> str:
    """The status of that name.

    Raises:
        InvalidInput: there is none.
    """
    try:
        return SpendStatus(value).value
    except ValueError:
        known = ", ".join(SpendStatus)
        raise InvalidInput(f"There is no status {value!r}; use one of {known}.", field="status") from None


def as_currency(value: str | None) -> str:
    """The code, or ``USD`` for None.

    Raises:
        InvalidInput: it is no code.
    """
    currency = "USD" if value is None else value
    if not (3 <= len(currency) <= 8 and currency.isascii() and currency.isalpha() and currency.isupper()):
        raise InvalidInput(
            f"A currency is 3 to 8 capital letters, such as USD, got {currency!r:.40}.", field="currency"
        )
    return currency


def as_amounts(given: Mapping[str, Amount | None]) -> dict[str, Decimal]:
    """Those that are not None, by unit.

    Raises:
        InvalidInput: one is refused; names its unit.
    """
    amounts = {unit: as_amount(value, unit) for unit, value in given.items() if value is not None}
    for unit in ("tokens", "calls"):
        if unit in amounts and amounts[unit] != amounts[unit].to_integral_value():
            raise InvalidInput(f"{unit} must be a whole number, got {amounts[unit]}.", field=unit)
    return amounts


def as_amount(value: Amount, field: str) -> Decimal:
    """``value`` as an exact number; a float is what it prints as, to 12 decimal places, so that 0.1 is a tenth.

    Raises:
        InvalidInput: it is none from 0 to 1e15, or a Decimal of more than 12 decimal places; names ``field``.
    """
    try:
        if isinstance(value, bool):
            raise TypeError("a flag is no amount, though it counts as 0 or 1")
        number = Decimal(str(value)) if isinstance(value, float) else Decimal(value)
    except (InvalidOperation, TypeError, ValueError):
        raise InvalidInput(f"{field} must be a number, got {value!r:.40}.", field=field) from None
    if not number.is_finite() or not 0 <= number <= 10**15:
        raise InvalidInput(f"{field} must be between 0 and 1e15, got {number}.", field=field)
    if isinstance(value, float):
        # What was computed, tokens times a price, has more places than anybody meant.
        number = round(number, _PLACES)
    exponent = number.normalize().as_tuple().exponent
    if isinstance(exponent, int) and exponent < -_PLACES:
        raise InvalidInput(f"{field} has more than {_PLACES} decimal places; round it.", field=field)
    return number

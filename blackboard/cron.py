"""Cron expressions in a time zone: which moments they name, and which of those that were missed are still to be run.

Five fields (minute, hour, day of month, month, day of week) as Debian's cron reads them, with ``L``, ``LW``, ``#``
and names, or ``@yearly``, ``@monthly``, ``@weekly``, ``@daily``, ``@hourly``. When clocks are changed:

- A fixed time (neither minute nor hour begin with ``*``) that does not exist on that day is the next moment that
  does: 02:30 is 03:00. One that occurs twice is the first of the two.
- Expressions whose minute or hour begins with ``*`` follow the passing hours: what does not exist is left out, what
  occurs twice fires twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim

from .errors import InvalidInput

__all__ = ["GRACE", "MOST_AT_ONCE", "Cron", "Plan"]

GRACE: Final = timedelta(minutes=1)
"""A planned time counts as missed when it is older than this: those who look after schedules may be a little late."""

MOST_AT_ONCE: Final = 100
"""Missed times that one look makes up for, newest first; older ones are skipped."""

_MOST_COUNTED = 1000
_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


@dataclass(frozen=True)
class Plan:
    """What to do about a schedule that is due.

    Attributes:
        times: planned times to fire now, oldest first.
        skipped: how many are not made up for; counted up to 1000.
        next_at: the next planned time; None if there is none.
    """

    times: tuple[datetime, ...]
    skipped: int
    next_at: datetime | None


class Cron:
    """A cron expression in a time zone."""

    def __init__(self, expression: str, timezone: str = "UTC") -> None:
        """The expression is known to name moments.

        Args:
            expression: five fields or ``@daily`` and the like, up to 200 characters.
            timezone: of the IANA database, such as ``Europe/Berlin``.

        Raises:
            InvalidInput: either is refused; names ``cron`` or ``timezone``.
        """
        self._zone = _zone(timezone)
        text = expression.strip().lower() if len(expression) <= 200 else ""
        if text.startswith("@") and text not in _ALIASES:
            known = ", ".join(_ALIASES)
            raise InvalidInput(f"There is no {expression!r:.40}; use five fields or one of {known}.", field="cron")
        self._fields = _ALIASES.get(text, text)
        count = len(self._fields.split())
        if count != 5:
            hint = " Seconds are not supported." if count == 6 else ""
            raise InvalidInput(
                "A cron expression has five fields: minute, hour, day of month, month, day of week, such as "
                f"'30 2 * * mon-fri'; got {expression!r:.60}.{hint}",
                field="cron",
            )
        try:
            found = self.next(datetime.now(UTC))
        except Exception as error:
            # The library asserts and compares its way through some texts that no field allows.
            reason = str(error) if type(error).__name__ == "CronSimError" else "it cannot be read"
            raise InvalidInput(f"The cron expression {expression!r:.60} is wrong: {reason}.", field="cron") from None
        if found is None:
            raise InvalidInput(f"The cron expression {expression!r:.60} names no day that ever comes.", field="cron")

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The moments after ``moment``, in UTC, each later than the one before."""
        last = moment
        for local in CronSim(self._fields, moment.astimezone(self._zone)):
            found = local.astimezone(UTC)
            # Of a doubled hour the library starts from the wall clock, which may lie before.
            if found > last:
                last = found
                yield found

    def next(self, moment: datetime) -> datetime | None:
        """The first moment after ``moment``; None if there is none in 50 years."""
        return next(self.after(moment), None)

    def plan(self, due_at: datetime, now: datetime, missed: str) -> Plan:
        """What to do at ``now`` about a schedule whose next time was ``due_at``.

        Times within ``GRACE`` are fired. Of those missed, ``skip`` fires none, ``once`` the newest unless one is fired
        anyway, ``all`` each, up to ``MOST_AT_ONCE`` times in all.
        """
        due, count = self._due(due_at, now)
        on_time = [moment for moment in due if moment >= now - GRACE]
        if missed == "all":
            times = due
        elif missed == "once":
            times = on_time or due[-1:]
        else:
            times = on_time
        return Plan(tuple(times), count - len(times), self.next(max(now, due_at)))

    def _due(self, due_at: datetime, now: datetime) -> tuple[list[datetime], int]:
        """The newest planned times up to ``now``, and how many there were, counted up to 1000."""
        newest: deque[datetime] = deque([due_at], maxlen=MOST_AT_ONCE)
        count = 1
        for moment in self.after(due_at):
            if moment > now:
                return list(newest), count
            newest.append(moment)
            count += 1
            if count >= _MOST_COUNTED:
                break
        # A long sleep of a busy schedule: look at ever longer ends of it until there are enough.
        for days in (1 / 24, 1, 30, 400, 7300, 36500):
            start = max(due_at, now - timedelta(days=days))
            newest.clear()
            for moment in self.after(start):
                if moment > now:
                    break
                newest.append(moment)
            if len(newest) == MOST_AT_ONCE or start == due_at:
                break
        return list(newest), count


def _zone(name: str) -> tzinfo:
    if name.upper() in {"UTC", "Z", "ETC/UTC"}:
        return UTC
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise InvalidInput(
            f"There is no time zone {name!r:.60}; use a name such as Europe/Berlin or UTC.", field="timezone"
        ) from None

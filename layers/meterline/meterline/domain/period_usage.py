"""What a customer used: days and shares of a billing period, made from counters.

Counters are kept by UTC day and hour. A period may begin in the middle of an hour, so what lies
before its start on its first day is known from the ledger and taken off: an `Edge`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from meterline.domain.meters import Meter
from meterline.domain.periods import Period
from meterline.domain.usage import MAX_AHEAD, LedgerEntry


class Count(NamedTuple):
    """Sub-units, and the events that they come from."""

    sub_units: int = 0
    events: int = 0

    def plus(self, other: Count) -> Count:
        """Both together."""
        return Count(self.sub_units + other.sub_units, self.events + other.events)

    def minus(self, other: Count) -> Count:
        """What is left without `other`."""
        return Count(self.sub_units - other.sub_units, self.events - other.events)


Shares = Mapping[str, Count]
"""What each action or each user counts for, by its name."""


@dataclass(frozen=True, slots=True)
class DayCount:
    """The counters of one UTC day; `hours` has the hours that saw usage (0 to 23)."""

    total: Count = field(default_factory=Count)
    hours: Mapping[int, Count] = field(default_factory=dict)
    counted_at: datetime | None = None
    """When the day was last added to, so far as that is known."""

    def until_hour(self, hour: int) -> Count:
        """All of the day up to the end of that hour."""
        return _add_up(count for each, count in self.hours.items() if each <= hour)


@dataclass(frozen=True, slots=True)
class Edge:
    """What of the UTC day of `at` lies outside of a period that begins (or ends) at `at`, from the
    ledger's own entries."""

    at: datetime
    total: Count
    actions: Shares
    users: Shares
    hours_events: int
    """Events that the counters had up to the end of the hour of `at`: as long as they say the
    same, no event of that time has come since."""
    made_at: datetime


@dataclass(frozen=True, slots=True)
class UsageCounts:
    """One meter's counters over some days, with the edges that were kept among them."""

    days: Mapping[date, DayCount]
    actions: Mapping[date, Shares]
    users: Mapping[date, Shares]
    edges: Mapping[datetime, Edge] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PeriodUsage:
    """What a period holds so far: in all, by UTC day, by action and by user."""

    total: Count
    days: Mapping[date, Count]
    actions: Shares
    users: Shares
    counted_at: datetime | None
    """When anything of it was last added to."""


def make_edge(
    at: datetime, entries: Iterable[LedgerEntry], meter: Meter, day: DayCount, now: datetime
) -> Edge:
    """The edge at `at`, from the ledger's entries of that day outside of the period."""
    total = Count()
    actions: defaultdict[str, Count] = defaultdict(Count)
    users: defaultdict[str, Count] = defaultdict(Count)
    for entry in entries:
        if entry.meter != meter.id:
            continue
        one = Count(meter.to_sub_units(entry.quantity), 1)
        total = total.plus(one)
        if entry.action is not None:
            actions[entry.action] = actions[entry.action].plus(one)
        if entry.user is not None:
            users[entry.user] = users[entry.user].plus(one)
    return Edge(at, total, actions, users, day.until_hour(at.hour).events, now)


def needs_edge(at: datetime) -> bool:
    """Whether a period that begins or ends there cuts a UTC day in two."""
    return bool(at.hour or at.minute or at.second)


def holds(edge: Edge | None, day: DayCount, now: datetime, *, patience: timedelta) -> bool:
    """Whether a kept edge still tells the truth.

    In the hour of the cut, events after it change the counters as well. Then an edge counts for
    `patience`: what it can miss is an event that came late, and it misses it that long at most.
    """
    if edge is None:
        return False
    if edge.hours_events == day.until_hour(edge.at.hour).events:
        return True
    in_the_hour = now < edge.at.replace(minute=0, second=0) + timedelta(hours=1) + MAX_AHEAD
    return in_the_hour and now - edge.made_at < patience


def read_period(
    counts: UsageCounts, period: Period, head: Edge | None, behind: Edge | None
) -> PeriodUsage:
    """What lies in the period: its UTC days without the `head` of its first and what is `behind`.

    Either may be None: where the period begins or ends with a day, and as long as no event can be
    dated behind its end.
    """
    first = period.start.date()
    last = (period.end - timedelta(seconds=1)).date()
    days = {day: count.total for day, count in sorted(counts.days.items()) if first <= day <= last}
    actions = _merge(counts.actions, first, last)
    users = _merge(counts.users, first, last)
    for edge in (head, behind):
        if edge is None or edge.at.date() not in days:
            continue
        day = edge.at.date()
        days[day] = days[day].minus(edge.total)
        actions, users = _take_off(actions, edge.actions), _take_off(users, edge.users)
    counted = [
        day.counted_at
        for at, day in counts.days.items()
        if first <= at <= last and day.counted_at is not None
    ]
    return PeriodUsage(
        _add_up(days.values()), days, actions, users, max(counted) if counted else None
    )


def list_days(last: date, count: int) -> list[date]:
    """The `count` days up to and with `last`, oldest first."""
    return [last - timedelta(days=back) for back in range(count - 1, -1, -1)]


def start_of_day(day: date) -> datetime:
    """Midnight, UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _add_up(counts: Iterable[Count]) -> Count:
    total = Count()
    for count in counts:
        total = total.plus(count)
    return total


def _merge(by_day: Mapping[date, Shares], first: date, last: date) -> dict[str, Count]:
    merged: dict[str, Count] = {}
    for day, shares in by_day.items():
        if first <= day <= last:
            for name, count in shares.items():
                before = merged.get(name)
                merged[name] = count if before is None else before.plus(count)
    return merged


def _take_off(shares: Mapping[str, Count], less: Shares) -> dict[str, Count]:
    left = {
        name: count.minus(less[name]) if name in less else count for name, count in shares.items()
    }
    return {name: count for name, count in left.items() if count.events}

"""Billing periods: half-open spans of UTC seconds that follow each other without gap or overlap.

What the billing layer says of a period wins; the billing anchor only fills in what it has not said.
An anchor on the 29th to 31st bills on the last day of a shorter month, and on its own day again
afterwards (Stripe's documentation, billing cycle anchor).
"""

from __future__ import annotations

import calendar
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum


class PeriodError(ValueError):
    """A period or a cycle that cannot be, such as one that ends before it starts."""


class Interval(StrEnum):
    """The unit in which a plan renews."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


_FIXED = {Interval.DAY: timedelta(days=1), Interval.WEEK: timedelta(weeks=1)}


@dataclass(frozen=True, slots=True, order=True)
class Period:
    """From `start` up to and not including `end`, both in UTC and whole seconds."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        for moment in (self.start, self.end):
            if moment.utcoffset() != timedelta(0) or moment.microsecond:
                raise PeriodError(f"{moment!r} is not a whole second in UTC")
        if self.end <= self.start:
            raise PeriodError(f"the period from {self.start} ends at {self.end}")

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end

    @property
    def seconds(self) -> int:
        """How long it is."""
        return int((self.end - self.start).total_seconds())

    def clip(self, low: datetime | None, high: datetime | None) -> Period | None:
        """The part between `low` and `high` (None: no bound), or None if there is none."""
        start = self.start if low is None else max(self.start, low)
        end = self.end if high is None else min(self.end, high)
        return Period(start, end) if start < end else None


@dataclass(frozen=True, slots=True)
class Cycle:
    """Renewals every `count` intervals, counted from the anchor in both directions."""

    anchor: datetime
    interval: Interval
    count: int = 1

    def __post_init__(self) -> None:
        if self.anchor.utcoffset() != timedelta(0) or self.anchor.microsecond:
            raise PeriodError(f"{self.anchor!r} is not a whole second in UTC")
        if self.count < 1:
            raise PeriodError(f"a cycle of {self.count} intervals")

    def boundary(self, index: int) -> datetime:
        """The anchor moved by `index` cycles; index 0 is the anchor itself."""
        fixed = _FIXED.get(self.interval)
        if fixed is not None:
            return self.anchor + fixed * (self.count * index)
        months = self.count * index * (12 if self.interval is Interval.YEAR else 1)
        # Always from the anchor, so that a 31st comes back after a shorter month.
        year, month = divmod(self.anchor.year * 12 + self.anchor.month - 1 + months, 12)
        day = min(self.anchor.day, calendar.monthrange(year, month + 1)[1])
        return self.anchor.replace(year=year, month=month + 1, day=day)

    def period_at(self, at: datetime) -> Period:
        """The cycle's period that contains `at`."""
        index = self._guess(at)
        while self.boundary(index) > at:
            index -= 1
        while self.boundary(index + 1) <= at:
            index += 1
        return Period(self.boundary(index), self.boundary(index + 1))

    def _guess(self, at: datetime) -> int:
        fixed = _FIXED.get(self.interval)
        if fixed is not None:
            return (at - self.anchor) // (fixed * self.count)
        months = (at.year - self.anchor.year) * 12 + at.month - self.anchor.month
        return months // (self.count * (12 if self.interval is Interval.YEAR else 1))


@dataclass(frozen=True, slots=True)
class Timeline:
    """All periods of a subscription's life, from `start` to `end` (None: it goes on).

    `told` are periods that the billing layer named, the most trusted first: where two of them
    overlap, the earlier in the list keeps its whole span. Between them the cycle's own boundaries
    count. So every moment of the life is in exactly one period, and no other moment in any.
    """

    cycle: Cycle
    start: datetime
    end: datetime | None
    told: tuple[Period, ...] = ()

    def period_at(self, at: datetime) -> Period | None:
        """The period that contains `at`; None before the life's start and from its end on."""
        if at < self.start or (self.end is not None and at >= self.end):
            return None
        low: datetime = self.start
        high = self.end
        for period in self._settled():
            if at in period:
                return period
            if period.end <= at:
                low = max(low, period.end)
            elif high is None or period.start < high:
                high = period.start
        natural = self.cycle.period_at(at).clip(low, high)
        assert natural is not None  # It contains `at`, which lies between low and high.
        return natural

    def periods_between(self, start: datetime, end: datetime) -> Iterator[Period]:
        """Every period that has a moment in [start, end), oldest first."""
        at = max(start, self.start)
        while at < end:
            period = self.period_at(at)
            if period is None:
                return
            yield period
            at = period.end

    def _settled(self) -> list[Period]:
        """The told periods inside the life, without their overlaps."""
        settled: list[Period] = []
        for told in self.told:
            settled += _subtract(told.clip(self.start, self.end), settled)
        return settled


def calendar_month(at: datetime) -> Period:
    """The UTC month that contains `at`: the period of a customer whom nobody bills yet."""
    anchor = datetime(2000, 1, 1, tzinfo=UTC)
    return Cycle(anchor, Interval.MONTH).period_at(at)


def _subtract(period: Period | None, taken: Iterable[Period]) -> list[Period]:
    """What is left of `period` outside of all `taken`, oldest first."""
    left = [period] if period is not None else []
    for other in taken:
        left = [
            rest
            for part in left
            for rest in (part.clip(None, other.start), part.clip(other.end, None))
            if rest is not None
        ]
    return left

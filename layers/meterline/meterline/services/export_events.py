"""Export a customer's events: cut into files that one answer can hold, each in time order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from meterline.domain.period_usage import DayCount, start_of_day
from meterline.domain.periods import Period
from meterline.domain.usage import LedgerEntry
from meterline.ports import EventsInTime

MAX_ROWS = 20_000
"""Rows of a file: about 3 MB, and an answer of a function holds 6 MB (Lambda quotas)."""
MAX_READ = 5 * MAX_ROWS
"""Events that are read for a file: of a member's own there may be few among very many."""


@dataclass(frozen=True, slots=True)
class ExportWindow:
    """A span of time whose events fit into one file; `events` is how many are counted."""

    start: datetime
    end: datetime
    events: int


@dataclass(frozen=True, slots=True)
class ExportPart:
    """The events of a span from its start on, and where the next part begins, if there is one."""

    entries: tuple[LedgerEntry, ...]
    next_start: datetime | None


def plan_windows(
    days: Mapping[date, DayCount], period: Period, max_rows: int = MAX_ROWS
) -> tuple[ExportWindow, ...]:
    """Cut a period at whole hours, so that each window counts at most `max_rows` events.

    An hour with more than that is a window of its own; its file then has a next part.
    """
    windows: list[ExportWindow] = []
    start, events, last = period.start, 0, period.start
    first, latest = period.start.date(), period.end.date()
    for day in sorted(each for each in days if first <= each <= latest):
        midnight = start_of_day(day)
        for hour, count in sorted(days[day].hours.items()):
            at = midnight + timedelta(hours=hour)
            end = min(at + timedelta(hours=1), period.end)
            if end <= period.start or at >= period.end or not count.events:
                continue
            if events and events + count.events > max_rows:
                windows.append(ExportWindow(start, last, events))
                start, events = last, 0
            events += count.events
            last = end
    if events:
        windows.append(ExportWindow(start, last, events))
    return tuple(windows)


class ExportEvents:
    """Reads from the ledger itself, so that every row is an event as it was accepted."""

    def __init__(
        self, ledger: EventsInTime, max_rows: int = MAX_ROWS, max_read: int = MAX_READ
    ) -> None:
        self._ledger = ledger
        self._max_rows = max_rows
        self._max_read = max_read

    def __call__(
        self, customer: str, start: datetime, end: datetime, *, user: str | None = None
    ) -> ExportPart:
        """The events of [start, end), or only one `user`'s; as many as a file holds.

        A part ends between two milliseconds, so that no event is in two parts or in none.
        """
        taken: list[LedgerEntry] = []
        last = start
        for read, entry in enumerate(self._ledger.events_between(customer, start, end)):
            is_full = len(taken) >= self._max_rows or read >= self._max_read
            if is_full and entry.at > last:
                return ExportPart(tuple(taken), entry.at)
            last = entry.at
            if user is None or entry.user == user:
                taken.append(entry)
        return ExportPart(tuple(taken), None)

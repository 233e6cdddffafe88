"""Export a customer's events: cut into files that one answer can hold, each in time order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from meterline.domain.period_usage import DayCount, start_of_day
from meterline.domain.periods import Period
from meterline.domain.usage import LedgerEntry
from meterline.ports import EventsInTime

MAX_ROWS = 10_000
"""Rows of a file: about 3 MB."""
MAX_BYTES = 3_500_000
"""What the names of a file's events may weigh together. An answer of a function has at most
6,291,556 bytes (Lambda quotas), and 200 bytes of a row are not names, 500 of an event as JSON."""
MAX_READ = 100_000
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
        self,
        ledger: EventsInTime,
        max_rows: int = MAX_ROWS,
        max_read: int = MAX_READ,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._ledger = ledger
        self._max_rows = max_rows
        self._max_read = max_read
        self._max_bytes = max_bytes

    def __call__(
        self, customer: str, start: datetime, end: datetime, *, user: str | None = None
    ) -> ExportPart:
        """The events of [start, end), or only one `user`'s; as many as a file holds.

        A part ends between two milliseconds, so that no event is in two parts or in none.
        """
        taken: list[LedgerEntry] = []
        weight, last = 0, start
        for read, entry in enumerate(self._ledger.events_between(customer, start, end)):
            is_full = (
                len(taken) >= self._max_rows or read >= self._max_read or weight >= self._max_bytes
            )
            if is_full and entry.at > last:
                return ExportPart(tuple(taken), entry.at)
            last = entry.at
            if user is None or entry.user == user:
                taken.append(entry)
                weight += weigh_names(entry)
        return ExportPart(tuple(taken), None)


def weigh_names(entry: LedgerEntry) -> int:
    """How many bytes of an answer an event's names take.

    The answer is text within JSON, where a quotation mark of a file or of JSON takes four bytes.
    """
    names = (
        *(entry.key.source, entry.key.id, entry.user, entry.action, entry.provider, entry.model),
        *(entry.rate_card, entry.tier, entry.status, entry.response_id),
        *(entry.usage or ()),
    )
    return sum(
        len(name.encode()) + 3 * name.count('"') + 3 * name.count("\\") for name in names if name
    )

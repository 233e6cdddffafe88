"""Days of the ledger read side by side: the same events in the same order, so many at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from meterline.adapters.threaded_ledger import ThreadedLedger
from meterline.domain.usage import EventKey, LedgerEntry
from meterline.errors import StorageUnavailableError

START = datetime(2026, 10, 31, 22, 30, tzinfo=UTC)
AT_ONCE = 4


def make_entry(at: datetime) -> LedgerEntry:
    return LedgerEntry(EventKey("acme", "s", f"{at:%d-%H}"), at, "credits", Decimal(1), b"", at)


class Days:
    """A ledger of an event at each half past, that notes how many days are being read."""

    def __init__(self) -> None:
        self.asked: list[tuple[datetime, datetime]] = []
        self.most = 0
        self.broken: datetime | None = None
        # So many readers must be there at once before the first of them goes on.
        self.together = threading.Barrier(AT_ONCE, timeout=60)
        self._present = 0
        self._lock = threading.Lock()

    def events_between(
        self, customer: str, start: datetime, end: datetime
    ) -> Iterator[LedgerEntry]:
        assert customer == "acme"
        with self._lock:
            self.asked.append((start, end))
            self._present += 1
            self.most = max(self.most, self._present)
            is_first = len(self.asked) <= AT_ONCE
        if is_first:
            self.together.wait()
        if self.broken is not None and start <= self.broken < end:
            raise StorageUnavailableError("Query: 503")
        at = start.replace(minute=30)
        while at < end:
            yield make_entry(at)
            at += timedelta(hours=1)
        with self._lock:
            self._present -= 1


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=-7))])
def test_a_month_is_read_by_days_side_by_side_and_comes_in_order(zone: timezone) -> None:
    days = Days()
    end = START + timedelta(days=30)
    found = list(
        ThreadedLedger(days, AT_ONCE).events_between(
            "acme", START.astimezone(zone), end.astimezone(zone)
        )
    )
    assert days.most == AT_ONCE
    asked = sorted(days.asked)
    assert (asked[0][0], asked[-1][1], len(asked)) == (START, end, 31)
    assert [stop for _, stop in asked[:-1]] == [start for start, _ in asked[1:]]
    assert all(stop.astimezone(UTC).hour == 0 for _, stop in asked[:-1])
    assert [entry.at for entry in found] == [
        START + timedelta(hours=hour) for hour in range(30 * 24)
    ]


def test_a_day_that_cannot_be_read_is_an_error_and_not_a_gap() -> None:
    days = Days()
    days.broken = START + timedelta(days=9)
    reading = ThreadedLedger(days, AT_ONCE).events_between(
        "acme", START, START + timedelta(days=30)
    )
    with pytest.raises(StorageUnavailableError):
        list(reading)


def test_an_empty_span_asks_for_nothing() -> None:
    days = Days()
    assert list(ThreadedLedger(days).events_between("acme", START, START)) == []
    assert days.asked == []

"""Exports: files that one answer can hold, and rows that a spreadsheet may open."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.adapters.dynamodb_ledger import DynamoLedger
from meterline.domain.period_usage import Count, DayCount
from meterline.domain.periods import Period
from meterline.domain.usage import EventKey, LedgerEntry
from meterline.schemas.export import COLUMNS, read_span, write_csv
from meterline.schemas.traces import MAX_EVENTS_PER_PAGE, write_events
from meterline.services.export_events import ExportEvents, ExportPart, plan_windows
from meterline.services.trace_usage import EventPage, InvoiceEvents
from tests.dashboard_fakes import FakeUsage, make_entry

START = datetime(2026, 11, 3, 9, 23, 41, tzinfo=UTC)
PERIOD = Period(START, START + timedelta(days=30))


@given(
    events=st.lists(st.integers(0, 30 * 24 * 3600 - 1), max_size=60),
    max_rows=st.integers(1, 10),
)
def test_windows_hold_every_event_once_and_no_more_than_fit(
    events: list[int], max_rows: int
) -> None:
    moments = sorted(START + timedelta(seconds=each) for each in events)
    hours: dict[date, dict[int, Count]] = {}
    for at in moments:
        of_day = hours.setdefault(at.date(), {})
        of_day[at.hour] = of_day.get(at.hour, Count()).plus(Count(1, 1))
    days = {day: DayCount(Count(), of_day) for day, of_day in hours.items()}
    windows = plan_windows(days, PERIOD, max_rows)
    for at in moments:
        assert sum(window.start <= at < window.end for window in windows) == 1
    for window in windows:
        inside = [at for at in moments if window.start <= at < window.end]
        assert len(inside) == window.events
        whole_hour = len({(at.date(), at.hour) for at in inside}) == 1
        assert len(inside) <= max_rows or whole_hour


def test_a_file_ends_between_two_milliseconds_and_the_next_begins_there() -> None:
    moments = [START + timedelta(milliseconds=each) for each in (0, 1, 1, 1, 2, 3)]
    usage = FakeUsage(make_entry(at, id=str(place)) for place, at in enumerate(moments))
    export = ExportEvents(usage, max_rows=2)
    seen: list[str] = []
    start, end = START, PERIOD.end
    while True:
        part = export("acme", start, end)
        seen += [entry.key.id for entry in part.entries]
        if part.next_start is None:
            break
        start = part.next_start
    assert sorted(seen) == [str(place) for place in range(6)]
    assert len(seen) == len(set(seen))


def test_a_members_file_has_their_own_events_alone() -> None:
    usage = FakeUsage(
        [make_entry(START, user="u_1"), make_entry(START, user="u_2"), make_entry(START, user=None)]
    )
    part = ExportEvents(usage)("acme", START, PERIOD.end, user="u_2")
    assert [entry.user for entry in part.entries] == ["u_2"]


def test_a_members_file_ends_after_so_many_events_of_others_and_the_next_one_goes_on() -> None:
    others = [make_entry(START + timedelta(seconds=each), id=f"o_{each}") for each in range(1_000)]
    own = [
        make_entry(START + timedelta(seconds=each), user="u_2", id=f"u_{each}")
        for each in (3, 500, 999)
    ]
    usage = FakeUsage([*others, *own])
    export = ExportEvents(usage, max_rows=100, max_read=100)
    seen: list[str] = []
    start: datetime | None = START
    while start is not None:
        usage.read_from_ledger = 0
        part = export("acme", start, PERIOD.end, user="u_2")
        assert usage.read_from_ledger <= 102
        seen += [entry.key.id for entry in part.entries]
        start = part.next_start
    assert seen == ["u_3", "u_500", "u_999"]


MAX_ANSWER_BYTES = 6_291_556
"""Of a function's answer, all of it as JSON (Lambda quotas)."""
LONG = [
    replace(
        make_entry(START + timedelta(seconds=place), user=letter * 128, action=letter * 128),
        key=EventKey("acme", letter * 200, f"{place:06}" + letter * 194),
        usage={f"{kind}_tokens": 123_456_789 for kind in ("input", "output", "cache_read")},
    )
    for letter in ("x", "\N{CJK UNIFIED IDEOGRAPH-8ACB}", '"')
    for place in range(5_000)
]


def weigh_answer(body: str) -> int:
    return len(json.dumps({"body": body}, ensure_ascii=False).encode())


@pytest.mark.parametrize("first", [0, 5_000, 10_000])
def test_an_answer_holds_its_file_however_long_the_names_are(first: int) -> None:
    entries = LONG[first : first + 5_000]
    start: datetime | None = START
    export = ExportEvents(FakeUsage(entries))
    seen: list[LedgerEntry] = []
    while start is not None:
        part = export("acme", start, PERIOD.end)
        assert weigh_answer(write_csv(part.entries)) < MAX_ANSWER_BYTES
        seen += part.entries
        start = part.next_start
    assert seen == entries


@pytest.mark.parametrize("first", [0, 5_000, 10_000])
def test_an_answer_holds_a_page_of_an_invoices_events_however_long_their_names_are(
    first: int,
) -> None:
    entries = LONG[first : first + 5_000]
    check = SimpleNamespace(
        customer="acme", spans=[SimpleNamespace(period=PERIOD, meter=entries[0].meter)]
    )
    events = InvoiceEvents(cast(Any, None), FakeUsage(entries))
    seen: list[LedgerEntry] = []
    page = EventPage((), None)
    while not seen or page.next_after is not None:
        page = events.read_page(cast(Any, check), MAX_EVENTS_PER_PAGE, page.next_after)
        assert weigh_answer(json.dumps(write_events(page), ensure_ascii=False)) < MAX_ANSWER_BYTES
        assert weigh_answer(write_csv(page.entries)) < MAX_ANSWER_BYTES
        seen += page.entries
    assert seen == entries


class EmptyTable:
    """A table with nothing in it."""

    def call(self, *_request: Any, **_settings: Any) -> dict[str, Any]:
        return {"Items": []}


def test_an_export_may_end_with_the_last_day_that_a_calendar_has() -> None:
    start, end = read_span("9999-12-30T00:00:00Z", "9999-12-31T23:59:59.999Z")
    export = ExportEvents(DynamoLedger(cast(Any, EmptyTable()), "events"))
    assert export("acme", start, end) == ExportPart((), None)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_nothing_that_a_sender_wrote_is_a_formula(start: str) -> None:
    entry = make_entry(START, action=f"{start}HYPERLINK(1)", user=f"{start}u", id=f"{start}1")
    [row] = csv.DictReader(io.StringIO(write_csv([entry])))
    for column in ("action", "user", "id"):
        assert row[column].startswith("'" + start)


def test_rows_are_exact_and_quoted() -> None:
    entry = make_entry(START, "1200.500", action='say "hi", twice\nthen go', user=None)
    text = write_csv([entry])
    [row] = csv.DictReader(io.StringIO(text))
    assert tuple(row) == COLUMNS
    assert (row["quantity"], row["user"]) == ("1200.5", "")
    assert row["action"] == 'say "hi", twice\nthen go'
    assert row["time"] == "2026-11-03T09:23:41.000Z"


def test_the_events_of_two_lines_are_one_file_with_one_header() -> None:
    first, second = (make_entry(START + timedelta(hours=each)) for each in (0, 1))
    text = write_csv([first]) + write_csv([second], header=False)
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["id"] for row in rows] == [first.key.id, second.key.id]

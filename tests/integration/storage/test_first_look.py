"""The first look at a period that began within a day: exact, and without the ledger's events."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from meterline.adapters.dynamodb_budgets import DynamoBudgets
from meterline.adapters.dynamodb_emissions import MAX_ENTRIES
from meterline.adapters.dynamodb_ledger import DynamoLedger, write_item
from meterline.adapters.dynamodb_stream import StreamReader
from meterline.adapters.dynamodb_totals import MAX_STEP_ITEMS
from meterline.adapters.dynamodb_usage import DynamoUsage
from meterline.catalog import load_meters
from meterline.domain.emission import EmissionDue
from meterline.domain.periods import Period
from meterline.domain.usage import LedgerEntry
from meterline.services.measure_period import MeasurePeriod
from meterline.services.project_usage import ProjectUsage
from meterline.services.show_usage import ShowUsage, UsageReport
from tests.dashboard_fakes import FakeComparisons, FakeOverviews, FakePlans, make_subscription
from tests.integration.storage.entries import make_entry
from tests.integration.storage.stores import Store

METERS = load_meters()
START = datetime(2026, 11, 3, 9, 23, 41, tzinfo=UTC)
LAST, PERIOD, NEXT = (
    Period(START - timedelta(days=31), START),
    Period(START, START + timedelta(days=30)),
    Period(START + timedelta(days=30), START + timedelta(days=61)),
)
NOW = START + timedelta(hours=5)


class NoQueue:
    def send(self, dues: Sequence[EmissionDue], *, renewal: str) -> None:
        """Nothing is emitted here."""


class NoDeadLetters:
    def put(self, body: Any, reason: str) -> None:
        raise AssertionError(reason)


class CountingLedger:
    """The ledger, and how many events were read of it."""

    def __init__(self, ledger: DynamoLedger) -> None:
        self.ledger = ledger
        self.read = 0

    def events_between(
        self, customer: str, start: datetime, end: datetime
    ) -> Iterable[LedgerEntry]:
        for entry in self.ledger.events_between(customer, start, end):
            self.read += 1
            yield entry


class Desk:
    """One customer whose period began in the morning, and the function of the ledger's stream."""

    def __init__(self, store: Store, customer: str, shard: str) -> None:
        self.store, self.customer, self.shard = store, customer, shard
        self.budgets = DynamoBudgets(store.wire(), store.tables.totals)
        self.ledger = CountingLedger(store.ledger())
        self.read = StreamReader(METERS, NoDeadLetters())
        self.entries: list[LedgerEntry] = []
        overviews = FakeOverviews()
        overviews.add(customer, subscription=make_subscription(PERIOD.start, PERIOD.end))
        self.show = ShowUsage(
            overviews,
            DynamoUsage(store.wire(), store.tables.totals),
            self.ledger,
            FakePlans(),
            METERS,
            FakeComparisons(),
        )

    def begin(self, period: Period) -> None:
        before = self.budgets.get(self.customer, "credits")
        assert self.budgets.begin(self.customer, "credits", before, period, 0)

    def project(self, *, knows_periods: bool = True) -> ProjectUsage:
        """The function as a process of its own has it."""
        totals = self.store.totals()
        return ProjectUsage(
            totals,
            NoQueue(),
            METERS,
            max_items=MAX_STEP_ITEMS,
            max_entries=MAX_ENTRIES,
            find_periods=totals.find_periods if knows_periods else None,
            now=lambda: datetime.now(UTC),
        )

    def bring(self, project: ProjectUsage, entries: Sequence[LedgerEntry]) -> None:
        """Record the entries, and deliver the stream's records of them."""
        self.store.ledger().record(entries)
        first = len(self.entries) + 1
        self.entries += entries
        records = [
            {"dynamodb": {"SequenceNumber": str(place), "NewImage": write_item(entry, "AA==")}}
            for place, entry in enumerate(entries, first)
        ]
        project(self.shard, self.read({"shardId": self.shard, "Records": records}).events)

    def make_entries(self, dice: random.Random, count: int) -> list[LedgerEntry]:
        """Around the period's start, and upon it."""
        first = len(self.entries)
        near = [timedelta(milliseconds=ms) for ms in (-1, 0, 1)]
        return [
            make_entry(
                self.customer,
                f"e{place}",
                at=START + dice.choice([*near, timedelta(seconds=dice.randint(-33_000, 17_000))]),
                quantity=Decimal(dice.randint(1, 5000)) / 1000,
                action=dice.choice(["report", "chat", None]),
                user=dice.choice([*(f"u{number}" for number in range(30)), None]),
            )
            for place in range(first, first + count)
        ]

    def look(self) -> UsageReport:
        return self.show(self.customer, NOW)

    def assert_true(self, report: UsageReport) -> None:
        inside = [entry for entry in self.entries if entry.at >= START]
        actions: Counter[str | None] = Counter()
        users: Counter[str | None] = Counter()
        for entry in inside:
            actions[entry.action] += int(entry.quantity * 1000)
            users[entry.user] += int(entry.quantity * 1000)
        assert report.events == len(inside)
        assert report.used == sum(entry.quantity for entry in inside)
        for shares, told in ((report.actions, actions), (report.users, users)):
            assert {each.name: int(each.quantity * 1000) for each in shares} == told
        days = {each.day: each.events for each in report.days}
        assert days[START.date()] == len(self.entries)


def test_a_period_that_was_known_is_looked_at_without_the_ledger(
    store: Store, customer: str, shard: str
) -> None:
    desk, dice = Desk(store, customer, shard), random.Random(41)
    desk.begin(LAST)
    early = desk.project()
    desk.bring(early, desk.make_entries(dice, 60))
    desk.assert_true(desk.look())
    desk.begin(PERIOD)
    for project in (early, desk.project(), early):
        # A process that saw the last period, one that starts anew, and events that come late.
        desk.bring(project, desk.make_entries(dice, 60))
        desk.assert_true(desk.look())
    measure = MeasurePeriod(store.totals(), desk.ledger)
    for period in (LAST, PERIOD):
        told = [int(entry.quantity * 1000) for entry in desk.entries if entry.at in period]
        assert measure(customer, METERS["credits"], period, NOW) == sum(told)
    desk.begin(NEXT)
    desk.bring(early, [make_entry(customer, "next", at=NEXT.start, user="u0", action="chat")])
    desk.entries.pop()
    desk.assert_true(desk.look())
    assert desk.ledger.read == 0


def test_what_was_counted_before_the_period_was_known_is_read_from_the_ledger_once(
    store: Store, customer: str, shard: str
) -> None:
    desk, dice = Desk(store, customer, shard), random.Random(42)
    desk.bring(desk.project(), desk.make_entries(dice, 40))
    desk.begin(PERIOD)
    desk.bring(desk.project(knows_periods=False), desk.make_entries(dice, 40))
    desk.bring(desk.project(), desk.make_entries(dice, 40))
    desk.assert_true(desk.look())
    read = desk.ledger.read
    assert read == sum(entry.at < START for entry in desk.entries)
    desk.assert_true(desk.look())
    assert desk.ledger.read == read


def test_two_edges_in_one_day_are_not_counted_apart(
    store: Store, customer: str, shard: str
) -> None:
    desk, dice = Desk(store, customer, shard), random.Random(43)
    desk.begin(Period(START - timedelta(hours=3), START))
    desk.bring(desk.project(), desk.make_entries(dice, 40))
    desk.assert_true(desk.look())
    assert desk.ledger.read == sum(entry.at < START for entry in desk.entries)

"""Periods measured from the totals and the ledger of every store, to the millisecond."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from meterline.adapters.dynamodb_emissions import MAX_ENTRIES
from meterline.adapters.dynamodb_totals import MAX_STEP_ITEMS
from meterline.catalog import load_meters
from meterline.domain.measuring import HourSplit, floor_hour
from meterline.domain.periods import Period
from meterline.domain.projection import ProjectedEvent, plan_steps
from meterline.domain.usage import LedgerEntry
from meterline.ports import Recorded
from meterline.services.measure_period import MeasurePeriod
from tests.integration.storage.entries import make_entry
from tests.integration.storage.stores import Store

METERS = load_meters()
CREDITS = METERS["credits"]
BEGIN = datetime(2026, 10, 30, 21, 17, 5, tzinfo=UTC)


def count(store: Store, shard: str, entries: list[LedgerEntry]) -> None:
    """Record the entries and count them, as the stream would bring them."""
    assert set(store.ledger().record(entries)) == {Recorded.ACCEPTED}
    totals = store.totals()
    first = (totals.checkpoint(shard).through or 0) + 1
    events = [
        ProjectedEvent(
            sequence=first + place,
            customer=entry.key.customer,
            meter=entry.meter,
            hour=f"{entry.at:%Y-%m-%dT%H}",
            at_s=int(entry.at.timestamp()),
            received_at_s=int(entry.received_at.timestamp()),
            sub_units=METERS[entry.meter].to_sub_units(entry.quantity),
            identifier=entry.key.identifier,
            action=None,
            user=None,
        )
        for place, entry in enumerate(entries)
    ]
    for step in plan_steps(
        events,
        METERS,
        lambda sequence: f"{shard}-{sequence}",
        max_items=MAX_STEP_ITEMS,
        max_entries=MAX_ENTRIES,
    ):
        totals.apply(shard, totals.checkpoint(shard), step)


def test_any_period_is_measured_as_the_ledger_adds_it_up(
    store: Store, customer: str, shard: str
) -> None:
    dice = random.Random(4)
    edges = [BEGIN + timedelta(seconds=dice.randint(0, 4 * 86_400)) for _ in range(6)]
    edges += [floor_hour(edge) for edge in edges[:3]]
    times = [edge + timedelta(milliseconds=ms) for edge in edges for ms in (-1, 0, 1, 900_000)]
    times += [BEGIN + timedelta(milliseconds=dice.randint(0, 4 * 86_400_000)) for _ in range(120)]
    entries = [
        make_entry(
            customer,
            f"e{place}",
            at=at,
            meter=dice.choice(["credits", "credits", "tokens"]),
            quantity=CREDITS.from_sub_units(dice.randint(0, 9) * 1_000),
        )
        for place, at in enumerate(times)
    ]
    count(store, shard, entries)
    totals, ledger = store.totals(), store.ledger()
    measure = MeasurePeriod(totals, ledger)
    now = BEGIN + timedelta(days=30)
    ordered = sorted(set(edges))
    periods = [Period(low, high) for low in ordered for high in ordered if low < high]
    for meter in (CREDITS, METERS["tokens"]):
        for period in periods:
            expected = sum(
                meter.to_sub_units(entry.quantity)
                for entry in entries
                if entry.meter == meter.id and entry.at in period
            )
            assert measure(customer, meter, period, now) == expected, period
    known = totals.read_split(customer, "credits", edges[0])
    assert known is not None
    # A late event in that hour makes what is known stale, and only that.
    late = make_entry(customer, "late", at=edges[0], quantity=CREDITS.from_sub_units(7))
    whole = Period(edges[0], edges[0] + timedelta(hours=2))
    before = measure(customer, CREDITS, whole, now)
    count(store, shard, [late])
    assert measure(customer, CREDITS, whole, now) == before + 7
    assert totals.read_split(customer, "credits", edges[0]) == HourSplit(
        known.before_sub_units, known.after_sub_units + 7, known.events + 1
    )


def test_a_customer_without_usage_has_none(store: Store, customer: str) -> None:
    measure = MeasurePeriod(store.totals(), store.ledger())
    period = Period(BEGIN, BEGIN + timedelta(days=30))
    assert measure(customer, CREDITS, period, BEGIN + timedelta(days=31)) == 0

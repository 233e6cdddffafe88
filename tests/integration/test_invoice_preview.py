"""The preview of the coming invoice equals the invoice that the local Stripe makes, line by line.

The local Stripe's own code runs in process. Each history is a customer with a plan, a cycle and
events around and upon the edges of its period; both sides are given the same events, and neither
shares code with the other: theirs sums raw meter events and prices in fractions, ours counts by
the hour, cuts hours at edges and prices in decimals.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from infra.cli.billing_setup import base_price_params, usage_price_params
from infra.local.stripe_server.account import Account as StripeAccount
from infra.local.stripe_server.clock import ServerClock
from infra.local.stripe_server.invoicing import show_invoice
from infra.local.stripe_server.resources.customers import create_customer
from infra.local.stripe_server.resources.meters import create_meter
from infra.local.stripe_server.resources.products import create_price, create_product
from infra.local.stripe_server.resources.subscriptions import create_subscription, preview_renewal
from infra.local.stripe_server.usage import MeterEvent
from meterline.catalog import load_meters, load_plans
from meterline.catalog.versions import Effective
from meterline.domain.currencies import smallest_step_minor
from meterline.domain.customers import Account, Customer
from meterline.domain.invoices import InvoicePreview
from meterline.domain.measuring import HOUR, HourSplit, HourTotal, floor_hour
from meterline.domain.meters import Meter
from meterline.domain.periods import Interval, Period
from meterline.domain.pricing import CurrencyOption, LineKind, Plan, Tier
from meterline.domain.subscriptions import Subscription
from meterline.domain.usage import EventKey, LedgerEntry
from meterline.services.measure_period import MeasurePeriod
from meterline.services.preview_invoice import NothingToBillError, PreviewInvoice

HISTORIES = 10_000
_SEEN_OFTEN = ("trial", "ends", "several tiers", "rounded", "metered later")
CREDITS = load_meters()["credits"]
CURRENCIES = ("usd", "eur", "jpy", "krw", "clp", "ugx", "isk", "kwd", "bhd", "tnd")
Event = tuple[datetime, int]


class Books:
    """Counters and ledger of one customer, made from a list of events."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.entries = sorted(
            (_entry(place, at, sub_units) for place, (at, sub_units) in enumerate(events)),
            key=lambda entry: entry.at,
        )
        self.hours: dict[datetime, HourTotal] = {}
        for entry in self.entries:
            hour = floor_hour(entry.at)
            before = self.hours.get(hour, HourTotal(0, 0))
            more = CREDITS.to_sub_units(entry.quantity)
            self.hours[hour] = HourTotal(before.sub_units + more, before.events + 1)
        self.splits: dict[datetime, HourSplit] = {}
        self.ledger_reads = 0

    def hour_total(self, customer: str, meter: str, hour: datetime) -> HourTotal:
        return self.hours.get(hour, HourTotal(0, 0))

    def sum_hours(self, customer: str, meter: str, start: datetime, end: datetime) -> HourTotal:
        assert floor_hour(start) == start
        assert floor_hour(end) == end
        found = [total for hour, total in self.hours.items() if start <= hour < end]
        return HourTotal(sum(each.sub_units for each in found), sum(each.events for each in found))

    def read_split(self, customer: str, meter: str, edge: datetime) -> HourSplit | None:
        return self.splits.get(edge)

    def write_split(self, customer: str, meter: str, edge: datetime, split: HourSplit) -> None:
        self.splits[edge] = split

    def events_between(
        self, customer: str, start: datetime, end: datetime
    ) -> Iterable[LedgerEntry]:
        self.ledger_reads += 1
        return [entry for entry in self.entries if start <= entry.at < end]


def _entry(place: int, at: datetime, sub_units: int) -> LedgerEntry:
    key = EventKey("acme", "test", str(place))
    quantity = CREDITS.from_sub_units(sub_units)
    return LedgerEntry(key, at, CREDITS.id, quantity, b"", at)


def _rate(dice: random.Random) -> Decimal:
    places = dice.randint(0, 9)
    return Decimal(dice.randint(0, 10**places * 3)).scaleb(-places)


def _plan(dice: random.Random) -> Plan:
    own, *others = dice.sample(CURRENCIES, dice.randint(1, 3))
    ends = sorted({dice.randint(1, 10 ** dice.randint(1, 5)) for _ in range(dice.randint(0, 3))})

    def amount(currency: str, highest: int) -> int:
        step = smallest_step_minor(currency)
        return dice.choice([0, dice.randint(0, highest) * step])

    def tiers(currency: str) -> tuple[Tier, ...]:
        return tuple(
            Tier(None if end is None else Decimal(end), _rate(dice), amount(currency, 9_999))
            for end in [*ends, None]
        )

    return Plan(
        "p",
        "P",
        own,
        amount(own, 99_999),
        "credits",
        tiers(own),
        dice.choice(["day", "week", "month", "month", "month", "year"]),
        {other: CurrencyOption(amount(other, 99_999), tiers(other)) for other in others},
    )


def _prices(account: StripeAccount, plan: Plan) -> tuple[str, str]:
    """The plan's prices as the server keeps them, made from what setup sends."""
    meter = create_meter(
        account,
        {
            "display_name": "m",
            "event_name": CREDITS.event_name,
            "default_aggregation": {"formula": "sum"},
        },
    )
    product = create_product(account, {"name": "p"})
    base, usage = base_price_params(plan), usage_price_params(plan, CREDITS)
    usage["recurring"] = {**usage["recurring"], "meter": meter["id"]}
    made = [create_price(account, {**each, "product": product["id"]}) for each in (base, usage)]
    return made[0]["id"], made[1]["id"]


class History:
    """One random customer on both sides."""

    def __init__(self, seed: int) -> None:
        self.dice = dice = random.Random(seed)
        self.plan = _plan(dice)
        self.currency = dice.choice([self.plan.currency, *self.plan.currency_options])
        self.start = datetime.fromtimestamp(dice.randint(1_700_000_000, 1_800_000_000), UTC)
        if dice.random() < 0.3:
            self.start = floor_hour(self.start)
        clock = ServerClock()
        clock.set_to(self.start.timestamp())
        self.account = StripeAccount(clock=clock, seed=seed)
        base, usage = _prices(self.account, self.plan)
        self.customer = create_customer(self.account, {"name": "Acme"})["id"]
        params: dict[str, Any] = {
            "customer": self.customer,
            "currency": self.currency,
            "items": [{"price": base}, {"price": usage}],
            "collection_method": "send_invoice",
            "days_until_due": 30,
        }
        self.is_trial = dice.random() < 0.1
        if self.is_trial:
            params["trial_period_days"] = dice.randint(1, 40)
        made = create_subscription(self.account, params)
        self.stored = self.account.get("sub", made["id"])
        if dice.random() < 0.1:
            self.stored["cancel_at_period_end"] = True
            self.stored["cancel_at"] = self.stored["_period_end"]
        self.period = Period(
            datetime.fromtimestamp(self.stored["_period_start"], UTC),
            datetime.fromtimestamp(self.stored["_period_end"], UTC),
        )
        self.metered_since: datetime | None = None
        if dice.random() < 0.15:
            # The metered item came later: what was used before it is on no invoice.
            self.metered_since = self.period.start + timedelta(
                seconds=dice.randint(1, self.period.seconds - 1)
            )
            for item_id in self.stored["_items"]:
                item = self.account.get("si", item_id)
                item["_usage_from"] = int(self.metered_since.timestamp())
        self.events = self._events()
        self.now = max(self.period.start, max((at for at, _ in self.events), default=self.start))
        clock.set_to(self.now.timestamp())
        for sequence, (at, sub_units) in enumerate(self.events):
            event = MeterEvent(
                sequence,
                str(sequence),
                CREDITS.event_name,
                self.customer,
                sub_units,
                int(at.timestamp()),
                self.now.timestamp(),
                "accepted",
            )
            self.account.usage.record(event)

    def _events(self) -> list[Event]:
        dice, period = self.dice, self.period
        edges = [period.start, period.end, floor_hour(period.start), floor_hour(period.end)]
        edges += [self.metered_since] if self.metered_since is not None else []
        ends = [int(t.up_to * CREDITS.sub_units) for t in self.plan.tiers if t.up_to is not None]
        events = []
        for _ in range(dice.choice([0, 1, 2, 5, 20])):
            near = dice.choice(edges) + timedelta(milliseconds=dice.randint(-5_000_000, 5_000_000))
            within = period.start + timedelta(seconds=dice.randint(0, period.seconds - 1))
            upon = dice.choice(edges) + timedelta(milliseconds=dice.choice([-1, 0, 1]))
            sub_units = dice.choice(
                [1, dice.randint(0, 10 ** dice.randint(1, 9)), *ends, *(end + 1 for end in ends)]
            )
            events.append((dice.choice([near, within, within, upon]), sub_units))
        return events

    def subscription(self) -> Subscription:
        trial = self.period.end if self.is_trial else None
        return Subscription(
            id=self.stored["id"],
            status=self.stored["status"],
            plan="p",
            currency=self.currency,
            prices=(),
            metered_item="si",
            meter="credits",
            current=self.period,
            anchor=datetime.fromtimestamp(self.stored["billing_cycle_anchor"], UTC),
            interval=Interval(self.plan.interval),
            interval_count=1,
            started_at=self.start,
            cancel_at=self.period.end if self.stored["cancel_at"] else None,
            ended_at=None,
            trial_start=self.start if self.is_trial else None,
            trial_end=trial,
            synced_at=self.now,
            metered_since=self.metered_since,
        )

    def ours(self, books: Books) -> InvoicePreview:
        customer = Customer("acme", "Acme", None, "p", self.customer, self.start, self.start)
        plans: Effective[Mapping[str, Plan]] = Effective([(self.start, {"p": self.plan})])
        service = PreviewInvoice(MeasurePeriod(books, books), plans, load_meters())
        at = min(self.now, self.period.end - timedelta(milliseconds=1))
        return service(Account(customer, (), self.subscription()), at)

    def theirs(self) -> Any:
        self.account.usage.apply_all()
        return show_invoice(self.account, preview_renewal(self.account, self.stored))


def test_ten_thousand_random_histories_are_previewed_as_the_local_stripe_bills_them() -> None:
    seen: Counter[str] = Counter()
    for seed in range(HISTORIES):
        history = History(seed)
        books = Books(history.events)
        ours, theirs = history.ours(books), history.theirs()
        context = f"seed {seed}: {history.currency} {history.plan}"
        assert [line.amount_minor for line in ours.lines] == [
            line["amount"] for line in theirs["lines"]["data"]
        ], context
        assert ours.total_minor == theirs["total"], context
        step = smallest_step_minor(history.currency)
        assert all(line.amount_minor % step == 0 for line in ours.lines), context
        # Asked again, the answer is the same and the ledger is left alone.
        reads = books.ledger_reads
        assert history.ours(books) == ours, context
        seen["kept"] += books.ledger_reads == reads
        seen["total above zero"] += ours.total_minor > 0
        seen[history.currency] += 1
        seen["trial"] += history.is_trial
        seen["metered later"] += history.metered_since is not None
        seen["ends"] += ours.fee_period is None
        seen["mid-hour"] += floor_hour(history.start) != history.start
        seen["several tiers"] += sum(line.kind is LineKind.TIER for line in ours.lines) > 1
        seen["rounded"] += any(line.exact_minor != line.amount_minor for line in ours.lines)
    print(dict(seen))
    assert all(seen[currency] > HISTORIES / 50 for currency in CURRENCIES)
    assert min(seen[what] for what in _SEEN_OFTEN) > 500
    assert seen["mid-hour"] > HISTORIES / 2
    assert seen["total above zero"] > HISTORIES / 2


def test_a_late_event_in_a_split_hour_is_seen() -> None:
    start = datetime(2026, 11, 3, 9, 41, 7, tzinfo=UTC)
    period = Period(start, datetime(2026, 12, 3, 9, 41, 7, tzinfo=UTC))
    now = start + timedelta(days=10)
    events = [(start - timedelta(milliseconds=1), 5), (start, 70)]
    books = Books(events)
    measure = MeasurePeriod(books, books)
    assert measure("acme", CREDITS, period, now) == 70
    assert measure("acme", CREDITS, period, now) == 70
    assert books.ledger_reads == 1
    later = Books([*events, (start + timedelta(seconds=3), 800)])
    later.splits = books.splits
    assert MeasurePeriod(later, later)("acme", CREDITS, period, now) == 870
    assert later.ledger_reads == 1


def test_counters_that_lag_behind_the_ledger_leave_nothing_wrong_for_good() -> None:
    start = datetime(2026, 11, 3, 9, 41, 7, tzinfo=UTC)
    period = Period(start, datetime(2026, 12, 3, 9, 41, 7, tzinfo=UTC))
    books = Books([(start - timedelta(seconds=1), 5), (start, 70)])
    counted = books.hours.pop(floor_hour(start))
    books.hours[floor_hour(start)] = HourTotal(5, 1)
    measure = MeasurePeriod(books, books)
    now = start + timedelta(days=10)
    assert measure("acme", CREDITS, period, now) == 70
    books.hours[floor_hour(start)] = counted
    assert measure("acme", CREDITS, period, now) == 70
    assert books.ledger_reads == 1


def test_the_hour_in_which_a_period_ends_is_not_read_from_the_ledger_before_its_end() -> None:
    start = datetime(2026, 11, 3, 10, 0, tzinfo=UTC)
    period = Period(start, datetime(2026, 12, 3, 10, 30, tzinfo=UTC))
    books = Books([(start, 1), (datetime(2026, 12, 3, 10, 1, tzinfo=UTC), 2)])
    measure = MeasurePeriod(books, books)
    assert measure("acme", CREDITS, period, datetime(2026, 12, 3, 10, 20, tzinfo=UTC)) == 3
    assert books.ledger_reads == 0
    books = Books([*((each.at, 1) for each in books.entries), (period.end, 9)])
    after = period.end + timedelta(minutes=1)
    assert MeasurePeriod(books, books)("acme", CREDITS, period, after) == 2
    assert books.ledger_reads == 1


@pytest.mark.parametrize("minutes", [(1, 2), (0, 59), (5, 60)])
def test_a_period_within_one_hour_is_measured_too(minutes: tuple[int, int]) -> None:
    hour = datetime(2026, 11, 3, 10, 0, tzinfo=UTC)
    period = Period(*(hour + timedelta(minutes=minute) for minute in minutes))
    events = [(hour + timedelta(minutes=minute), 10**place) for place, minute in enumerate(minutes)]
    books = Books([*events, (period.end - timedelta(milliseconds=1), 100)])
    assert MeasurePeriod(books, books)("acme", CREDITS, period, period.end + HOUR) == 101


def test_a_plan_changes_its_meter_between_two_periods_and_never_within_one() -> None:
    start = datetime(2026, 11, 3, 9, 41, 7, tzinfo=UTC)
    end = datetime(2026, 12, 3, 9, 41, 7, tzinfo=UTC)
    switch = datetime(2026, 11, 20, tzinfo=UTC)
    old = load_plans()["pro"]
    new = replace(old, meter="tokens", base_fee_minor=4900)
    plans: Effective[Mapping[str, Plan]] = Effective(
        [(start, {"pro": old}), (switch, {"pro": new})]
    )
    measured: list[str] = []

    def measure(_customer: str, meter: Meter, _period: Period, _now: datetime) -> int:
        measured.append(meter.id)
        return 1_500 * meter.sub_units

    known = replace(
        History(1).subscription(),
        status="active",
        plan="pro",
        currency="usd",
        current=Period(start, end),
        anchor=start,
        interval=Interval.MONTH,
        started_at=start,
        cancel_at=None,
        trial_start=None,
        trial_end=None,
    )
    customer = Customer("acme", "Acme", None, "pro", "cus_1", start, start)
    service = PreviewInvoice(measure, plans, load_meters())
    during = service(Account(customer, (), known), switch + timedelta(days=1))
    assert during.plan.meter == "credits"
    assert [line.amount_minor for line in during.lines] == [0, 250, 4900]
    after = service(Account(customer, (), known), end + timedelta(days=1))
    assert after.usage_period.start == end
    assert after.plan.meter == "tokens"
    assert measured == ["credits", "tokens"]


def test_what_has_nothing_to_bill_says_why() -> None:
    history = History(1)
    customer = Customer("acme", "Acme", None, "p", None, history.start, history.start)
    plans: Effective[Mapping[str, Plan]] = Effective([(history.start, {"other": history.plan})])
    books = Books([])

    def measure(_customer: str, _meter: Meter, _period: Period, _now: datetime) -> int:
        raise AssertionError("nothing is measured")

    service = PreviewInvoice(measure, plans, load_meters())
    with pytest.raises(NothingToBillError) as refused:
        service(Account(customer, (), None), history.now)
    assert refused.value.code == "no_subscription"
    with pytest.raises(NothingToBillError) as refused:
        service(Account(customer, (), history.subscription()), history.now)
    assert refused.value.code == "unknown_plan"
    theirs: Effective[Mapping[str, Plan]] = Effective([(history.start, {"p": history.plan})])
    foreign = replace(history.subscription(), currency="sek")
    with pytest.raises(NothingToBillError) as refused:
        PreviewInvoice(measure, theirs, load_meters())(Account(customer, (), foreign), history.now)
    assert refused.value.code == "unknown_currency"
    assert books.ledger_reads == 0

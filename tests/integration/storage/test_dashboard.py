"""What the dashboard reads and keeps, on every store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from meterline.adapters.dynamodb_emissions import MAX_ENTRIES
from meterline.adapters.dynamodb_links import DynamoLinks
from meterline.adapters.dynamodb_overviews import DynamoOverviews
from meterline.adapters.dynamodb_totals import MAX_STEP_ITEMS
from meterline.adapters.dynamodb_usage import DynamoUsage
from meterline.catalog import load_meters
from meterline.domain.customers import Role, User
from meterline.domain.limits import Limits, MoneyLimit, QuantityLimit
from meterline.domain.overviews import BillingFacts, Comparison, PastInvoice
from meterline.domain.period_usage import Count, Edge
from meterline.domain.projection import Checkpoint, ProjectedEvent, plan_steps
from meterline.domain.usage import EventKey
from meterline.errors import SupersededError
from tests.integration.storage.stores import Store

NOW = datetime(2026, 11, 22, 14, 3, 10, 120_000, tzinfo=UTC)
START = datetime(2026, 11, 3, 9, 23, 41, tzinfo=UTC)


def count(store: Store, shard: str, customer: str, *hours: str, names: int = 1) -> None:
    """Count an event of 1.5 credits in each hour, by users and actions in turn."""
    events = [
        ProjectedEvent(
            sequence=place + 1,
            customer=customer,
            meter="credits",
            hour=hour,
            at_s=0,
            received_at_s=0,
            sub_units=1500,
            identifier=EventKey(customer, "tests", str(place)).identifier,
            action=f"action {place % names}",
            user=f"user:{place % names}#~",
        )
        for place, hour in enumerate(hours)
    ]
    totals = store.totals()
    checkpoint = Checkpoint()
    for step in plan_steps(
        events,
        load_meters(),
        lambda first: f"{shard}-{first:x}",
        max_items=MAX_STEP_ITEMS,
        max_entries=MAX_ENTRIES,
    ):
        checkpoint = totals.apply(shard, checkpoint, step)


def test_days_and_shares_are_what_was_counted(store: Store, customer: str, shard: str) -> None:
    hours = [f"2026-11-{day:02d}T{hour:02d}" for day in (19, 20, 21) for hour in range(24)]
    count(store, shard, customer, *hours, names=40)
    before = datetime.now(UTC) - timedelta(minutes=5)
    counts = DynamoUsage(store.wire(), store.tables.totals).read(
        customer,
        "credits",
        days_from=date(2026, 11, 20),
        shares_from=date(2026, 11, 21),
        until=date(2026, 11, 21),
        edge=None,
    )
    assert set(counts.days) == {date(2026, 11, 20), date(2026, 11, 21)}
    day = counts.days[date(2026, 11, 20)]
    assert day.total == Count(24 * 1500, 24)
    assert day.until_hour(9) == Count(10 * 1500, 10)
    assert day.counted_at is not None
    assert before < day.counted_at
    for shares in (counts.actions, counts.users):
        assert set(shares) == {date(2026, 11, 21)}
        of_day = shares[date(2026, 11, 21)]
        assert sum(each.events for each in of_day.values()) == 24
    assert "user:31#~" in counts.users[date(2026, 11, 21)]


def test_of_many_that_follow_a_link_at_once_one_is_the_first(store: Store, customer: str) -> None:
    links = DynamoLinks(store.wire(pool_size=16), store.tables.accounts)
    with ThreadPoolExecutor(16) as threads:
        followed = list(threads.map(lambda _: links.follow(f"of-{customer}", NOW), range(32)))
    assert followed.count(True) == 1
    assert links.follow(f"another-of-{customer}", NOW)
    assert not links.follow(f"of-{customer}", NOW)


def test_nothing_counted_is_nothing_read(store: Store, customer: str) -> None:
    counts = DynamoUsage(store.wire(), store.tables.totals).read(
        customer,
        "credits",
        days_from=date(2026, 11, 1),
        shares_from=date(2026, 11, 1),
        until=date(2026, 11, 22),
        edge=START,
    )
    assert (counts.days, counts.actions, counts.users, counts.edges) == ({}, {}, {}, {})


def test_an_edge_comes_back_as_it_was_kept(store: Store, customer: str) -> None:
    usage = DynamoUsage(store.wire(), store.tables.totals)
    edge = Edge(START, Count(10**15, 7), {"a#b": Count(1, 1)}, {"ü": Count(2, 6)}, 9, NOW)
    usage.keep_edge(customer, "credits", edge)
    day = START.date()
    for asked, found in ((START, {START: edge}), (START + timedelta(seconds=1), {}), (None, {})):
        counts = usage.read(
            customer, "credits", days_from=day, shares_from=day, until=day, edge=asked
        )
        assert counts.edges == found


def test_an_edge_of_more_names_than_an_item_holds_is_not_kept(store: Store, customer: str) -> None:
    usage = DynamoUsage(store.wire(), store.tables.totals)
    users = {f"{number:04d}-{'u' * 123}": Count(1, 1) for number in range(4_000)}
    usage.keep_edge(customer, "credits", Edge(START, Count(4_000, 4_000), {}, users, 4_000, NOW))
    day = START.date()
    counts = usage.read(customer, "credits", days_from=day, shares_from=day, until=day, edge=START)
    assert counts.edges == {}


def open_overviews(store: Store, customer: str) -> DynamoOverviews:
    accounts = store.accounts()
    accounts.put_customer(
        customer,
        {"name": "Acme", "plan": "pro", "email": None, "billing_customer": f"cus_{customer}"},
        NOW,
    )
    accounts.put_users(customer, [User("u_1", "Kim", None, Role.ADMIN)])
    return DynamoOverviews(store.wire(), store.tables.accounts)


def test_a_customer_is_read_with_all_that_is_kept_of_it(store: Store, customer: str) -> None:
    overviews = open_overviews(store, customer)
    found = overviews.load(customer)
    assert found is not None
    assert found.account.customer == store.accounts().get_customer(customer)
    assert found.account.users == (User("u_1", "Kim", None, Role.ADMIN),)
    assert (found.limits, found.facts) == (Limits(), None)
    assert overviews.load(f"{customer}-nobody") is None


@pytest.mark.parametrize(
    "limits",
    [
        Limits(),
        Limits(MoneyLimit(4000, "usd"), QuantityLimit(Decimal("5000.001")), False, NOW, "user ü"),
        Limits(None, MoneyLimit(10**12, "jpy"), True, NOW, None),
    ],
)
def test_limits_come_back_as_they_were_set(store: Store, customer: str, limits: Limits) -> None:
    overviews = open_overviews(store, customer)
    overviews.put_limits(customer, Limits(block_overage=True))
    overviews.put_limits(customer, limits)
    found = overviews.load(customer)
    assert found is not None
    assert found.limits == limits


def test_what_the_billing_layer_said_stays_until_it_is_asked_again(
    store: Store, customer: str
) -> None:
    overviews = open_overviews(store, customer)
    told = Comparison("credits", START, NOW, 10**15, -5, NOW)
    invoice = PastInvoice("in_1", None, "paid", "usd", -100, START, "https://invoice.example/ü")
    facts = BillingFacts(NOW, told, (invoice, invoice))
    overviews.put_facts(customer, facts)
    with pytest.raises(SupersededError):
        overviews.put_facts(customer, BillingFacts(NOW - timedelta(seconds=1), None, ()))
    found = overviews.load(customer)
    assert found is not None
    assert found.facts == facts
    newer = BillingFacts(NOW + timedelta(seconds=1), None, ())
    overviews.put_facts(customer, newer)
    found = overviews.load(customer)
    assert found is not None
    assert found.facts == newer

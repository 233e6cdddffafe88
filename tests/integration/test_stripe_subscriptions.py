"""Subscriptions as Stripe tells of them, read from the local Stripe by the official SDK."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import stripe

from infra.cli.billing_setup import Targets, apply, plan_changes, read_account
from infra.local.stripe_server.serving import LocalStripe
from meterline.adapters.stripe_access import StripeAccess
from meterline.adapters.stripe_subscriptions import StripeSubscriptions
from meterline.catalog import load_meters, load_plans
from meterline.domain.periods import Interval, Period
from meterline.domain.subscriptions import Life, follow
from meterline.errors import BillingUnavailableError

BEGIN = datetime(2026, 1, 31, 9, 41, 7, tzinfo=UTC)
NOW = datetime(2026, 11, 22, 10, 0, 0, 123456, tzinfo=UTC)


class Billed:
    """An account at the local Stripe with the catalog set up, and customers on clocks."""

    def __init__(self, local: LocalStripe) -> None:
        self.local = local
        self.client = local.client()
        plans, meters = load_plans(), load_meters()
        found = read_account(self.client, plans, Targets())
        applied = apply(self.client, plan_changes(found, meters, plans, Targets()))
        self.base = applied.ids["price", "pro.base"]
        self.usage = applied.ids["price", "pro.usage"]
        self.reader = StripeSubscriptions(
            StripeAccess(lambda: local.key, api_base=local.url, retries=0)
        )

    def subscribe(self, **params: Any) -> Any:
        v1 = self.client.v1
        clock = v1.test_helpers.test_clocks.create({"frozen_time": int(BEGIN.timestamp())})
        customer = v1.customers.create({"name": "Acme", "test_clock": clock.id})
        told: Any = {
            "customer": customer.id,
            "items": [{"price": self.base}, {"price": self.usage}],
            "collection_method": "send_invoice",
            "days_until_due": 30,
            **params,
        }
        made = v1.subscriptions.create(told)
        return SimpleNamespace(clock=clock.id, customer=customer.id, id=made.id)

    def advance(self, clock: str, to: datetime) -> None:
        self.client.v1.test_helpers.test_clocks.advance(clock, {"frozen_time": int(to.timestamp())})


@pytest.fixture(scope="module")
def billed() -> Iterator[Billed]:
    with LocalStripe() as local:
        yield Billed(local)
        assert local.violations() == []


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_a_subscription_is_read_with_its_plan_and_period(billed: Billed) -> None:
    made = billed.subscribe()
    found = billed.reader.of(made.customer, NOW)
    assert found is not None
    assert (found.id, found.status, found.plan, found.currency) == (made.id, "active", "pro", "usd")
    assert found.prices == (billed.base, billed.usage)
    assert found.meter == "credits"
    assert found.metered_item is not None
    assert found.current == Period(BEGIN, at("2026-02-28T09:41:07"))
    assert (found.anchor, found.interval, found.interval_count) == (BEGIN, Interval.MONTH, 1)
    assert found.synced_at == NOW.replace(microsecond=123000)
    assert found.metered_since is None


def test_the_cycle_that_we_reckon_is_the_one_that_is_billed(billed: Billed) -> None:
    made = billed.subscribe()
    first = billed.reader.of(made.customer, NOW)
    assert first is not None
    expected = list(first.timeline.periods_between(BEGIN, BEGIN + timedelta(days=400)))
    for period in expected[1:13]:
        billed.advance(made.clock, period.start)
        found = billed.reader.of(made.customer, NOW)
        assert found is not None
        assert found.current == period


def test_a_trial_is_told_apart_from_what_follows(billed: Billed) -> None:
    made = billed.subscribe(trial_period_days=45)
    found = billed.reader.of(made.customer, NOW)
    assert found is not None
    trial_end = BEGIN + timedelta(days=45)
    assert (found.status, found.trial_end) == ("trialing", trial_end)
    assert found.current == Period(BEGIN, trial_end)
    assert found.is_trial(found.current)
    after = found.period_at(trial_end)
    billed.advance(made.clock, trial_end + timedelta(minutes=1))
    later = billed.reader.of(made.customer, NOW)
    assert later is not None
    assert later.current == after
    assert later.period_at(BEGIN) == found.current


def test_a_trial_cut_short_restarts_the_cycle_at_that_second(billed: Billed) -> None:
    made = billed.subscribe(trial_period_days=45)
    before = billed.reader.of(made.customer, NOW)
    billed.advance(made.clock, at("2026-02-10T12:00:01"))
    billed.client.v1.subscriptions.update(made.id, {"trial_end": "now"})
    heard = billed.reader.of(made.customer, NOW)
    assert heard is not None
    assert heard.anchor == at("2026-02-10T12:00:01")
    assert heard.current == Period(at("2026-02-10T12:00:01"), at("2026-03-10T12:00:01"))
    known = follow(before, heard)
    assert known.period_at(at("2026-02-10T12:00:00")) == Period(BEGIN, at("2026-02-10T12:00:01"))


def test_an_upgrade_that_restarts_the_cycle_ends_the_old_period_at_that_second(
    billed: Billed,
) -> None:
    made = billed.subscribe()
    before = billed.reader.of(made.customer, NOW)
    billed.advance(made.clock, at("2026-02-10T12:00:01"))
    billed.client.v1.subscriptions.update(
        made.id, {"billing_cycle_anchor": {"type": "now"}, "proration_behavior": "none"}
    )
    heard = billed.reader.of(made.customer, NOW)
    assert heard is not None
    known = follow(before, heard)
    assert known.current == Period(at("2026-02-10T12:00:01"), at("2026-03-10T12:00:01"))
    assert known.past == (Period(BEGIN, at("2026-02-10T12:00:01")),)


def test_a_cancellation_is_seen_before_and_after_it_happens(billed: Billed) -> None:
    made = billed.subscribe()
    billed.client.v1.subscriptions.update(made.id, {"cancel_at_period_end": True})
    found = billed.reader.of(made.customer, NOW)
    assert found is not None
    assert found.ends_at == found.current.end
    assert found.period_at(found.current.end) is None
    assert found.is_billed
    billed.client.v1.subscriptions.cancel(made.id)
    ended = billed.reader.of(made.customer, NOW)
    assert ended is not None
    assert (ended.status, ended.is_billed) == ("canceled", False)
    assert ended.ended_at is not None
    assert ended.period_at(ended.ended_at) is None


def test_a_live_subscription_is_preferred_to_one_that_ended(billed: Billed) -> None:
    made = billed.subscribe()
    billed.client.v1.subscriptions.cancel(made.id)
    again = billed.client.v1.subscriptions.create(
        {
            "customer": made.customer,
            "items": [{"price": billed.base}, {"price": billed.usage}],
            "collection_method": "send_invoice",
            "days_until_due": 30,
        }
    )
    found = billed.reader.of(made.customer, NOW)
    assert found is not None
    assert found.id == again.id


def test_a_metered_item_that_came_later_says_since_when(billed: Billed) -> None:
    made = billed.subscribe(items=[{"price": billed.base}])
    before = billed.reader.of(made.customer, NOW)
    assert before is not None
    assert (before.metered_item, before.meter) == (None, None)
    assert before.plan == "pro"
    billed.advance(made.clock, at("2026-02-10T12:00:01"))
    billed.client.v1.subscription_items.create(
        {"subscription": made.id, "price": billed.usage, "proration_behavior": "none"}
    )
    found = billed.reader.of(made.customer, NOW)
    assert found is not None
    assert found.metered_since == at("2026-02-10T12:00:01")


def test_no_customer_and_no_subscription_are_no_subscription(billed: Billed) -> None:
    customer = billed.client.v1.customers.create({"name": "Nobody"})
    assert billed.reader.of(customer.id, NOW) is None


@pytest.mark.parametrize("status", [429, 500])
def test_a_failing_stripe_is_unavailable(billed: Billed, status: int) -> None:
    billed.local.add_fault("error", status=status, method="GET", path="/v1/subscriptions")
    try:
        with pytest.raises(BillingUnavailableError):
            billed.reader.of("cus_any", NOW)
    finally:
        billed.local.clear_faults()


def test_a_wrong_key_and_no_connection_are_unavailable(billed: Billed) -> None:
    wrong = StripeSubscriptions(
        StripeAccess(lambda: "sk_test_wrong", api_base=billed.local.url, retries=0)
    )
    with pytest.raises(BillingUnavailableError):
        wrong.of("cus_any", NOW)
    nowhere = StripeSubscriptions(
        StripeAccess(lambda: "sk_test_x", api_base="http://127.0.0.1:9", retries=0)
    )
    with pytest.raises(BillingUnavailableError):
        nowhere.of("cus_any", NOW)
    assert stripe.api_key is None


def test_lives_end_where_billing_ends_and_what_never_billed_has_none(billed: Billed) -> None:
    v1 = billed.client.v1
    made = billed.subscribe(cancel_at_period_end=True)
    told = {
        "customer": made.customer,
        "collection_method": "send_invoice",
        "days_until_due": 30,
    }
    assert billed.reader.lives_of(made.customer) == [Life(BEGIN, None)]
    # The renewal does not take place.
    billed.advance(made.clock, at("2026-03-05T00:00:00"))
    first = Life(BEGIN, at("2026-02-28T09:41:07"))
    assert billed.reader.lives_of(made.customer) == [first]
    without_usage: Any = {**told, "items": [{"price": billed.base}]}
    v1.subscriptions.create(without_usage)
    assert billed.reader.lives_of(made.customer) == [first], "it bills no usage"
    back = at("2026-03-01T00:00:00")
    dated_back: Any = {
        **told,
        "items": [{"price": billed.usage}],
        "backdate_start_date": int(back.timestamp()),
    }
    again = v1.subscriptions.create(dated_back)
    assert sorted(billed.reader.lives_of(made.customer), key=lambda each: each.start) == [
        first,
        Life(back, None),
    ]
    billed.advance(made.clock, at("2026-03-07T12:00:00"))
    v1.subscriptions.cancel(again.id, {"invoice_now": True})
    assert Life(back, at("2026-03-07T12:00:00")) in billed.reader.lives_of(made.customer)
    assert billed.reader.lives_of("cus_nobody") == []


def test_of_a_period_that_is_broken_off_what_no_invoice_asks_for_is_told(billed: Billed) -> None:
    v1 = billed.client.v1
    made = billed.subscribe()
    ended = at("2026-02-10T12:00:00")
    billed.advance(made.clock, ended)

    def read(until: datetime = ended) -> list[Period]:
        return list(billed.reader.list_uninvoiced(made.customer, BEGIN, until))

    assert read() == [], "it lives"
    [subscription] = v1.subscriptions.list({"customer": made.customer}).data
    v1.subscriptions.cancel(subscription.id)
    assert read(ended - timedelta(seconds=1)) == [], "an invoice may be under way"
    assert read() == [Period(BEGIN, ended)]
    half = at("2026-02-05T12:00:00")
    item: Any = {
        "customer": made.customer,
        "amount": 100,
        "currency": "usd",
        "period": {"start": int(BEGIN.timestamp()), "end": int(half.timestamp())},
    }
    waiting = v1.invoice_items.create(item)
    assert read() == [Period(half, ended)], "an item waits for an invoice"
    v1.invoice_items.delete(waiting.id)
    dated_back: Any = {
        "customer": made.customer,
        "collection_method": "send_invoice",
        "days_until_due": 30,
        "items": [{"price": billed.usage}],
        "backdate_start_date": int(half.timestamp()),
    }
    again = v1.subscriptions.create(dated_back)
    assert read() == [], "another one bills it"
    billed.advance(made.clock, at("2026-02-11T12:00:00"))
    v1.subscriptions.cancel(again.id, {"invoice_now": True})
    assert read(at("2026-02-11T12:00:00")) == []

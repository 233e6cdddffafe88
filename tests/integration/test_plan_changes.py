"""A subscription that goes from one plan to another, as the local Stripe bills it and as we do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import stripe

from infra.cli.billing_setup import Targets, apply, plan_changes, read_account
from infra.local.stripe_server.serving import LocalStripe
from meterline.adapters.stripe_subscriptions import read_subscription
from meterline.catalog import load_meters, load_plans
from meterline.domain.customers import Account, Customer
from meterline.domain.periods import Period
from meterline.domain.pricing import Plan, price, total_minor
from meterline.domain.subscriptions import Subscription, follow
from meterline.services.show_usage import find_terms

BEGIN = datetime(2026, 1, 31, 9, 41, 7, tzinfo=UTC)
METERS, PLANS = load_meters(), load_plans()


class BundledPlans:
    """The bundled plans, at any time."""

    def at(self, moment: datetime) -> Mapping[str, Plan]:
        return PLANS


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A customer at the local Stripe whose clock is moved by hand."""

    client: stripe.StripeClient
    prices: Mapping[str, list[str]]
    """Plan -> its base and its metered price."""
    clock: str
    customer: str
    subscription: str

    def hear(self) -> Subscription:
        return read_subscription(self.client.v1.subscriptions.retrieve(self.subscription), BEGIN)

    def advance(self, to: datetime) -> None:
        clocks = self.client.v1.test_helpers.test_clocks
        clocks.advance(self.clock, {"frozen_time": int(to.timestamp())})

    def report(self, at: datetime, quantity: int) -> None:
        meter = METERS["credits"]
        value = str(quantity * meter.sub_units)
        self.client.v1.billing.meter_events.create(
            {
                "event_name": meter.event_name,
                "payload": {"stripe_customer_id": self.customer, "value": value},
                "timestamp": int(at.timestamp()),
            }
        )

    def change_plan(self, plan: str) -> None:
        v1 = self.client.v1
        items = v1.subscription_items.list({"subscription": self.subscription}).data
        told: Any = {
            "items": [
                *({"price": price_id} for price_id in self.prices[plan]),
                *({"id": item.id, "deleted": True} for item in items),
            ],
            "proration_behavior": "none",
        }
        v1.subscriptions.update(self.subscription, told)

    def account(self, subscription: Subscription) -> Account:
        return Account(
            Customer("acme", "Acme", None, "pro", self.customer, BEGIN, BEGIN), (), subscription
        )


@pytest.fixture(scope="module")
def local() -> Iterator[LocalStripe]:
    with LocalStripe() as local:
        yield local
        assert local.violations() == []


@pytest.fixture
def subscriber(local: LocalStripe, request: pytest.FixtureRequest) -> Subscriber:
    client = local.client()
    found = read_account(client, PLANS, Targets())
    ids = apply(client, plan_changes(found, METERS, PLANS, Targets())).ids
    prices = {
        plan: [ids["price", f"{plan}.{part}"] for part in ("base", "usage")] for plan in PLANS
    }
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": int(BEGIN.timestamp())})
    customer = client.v1.customers.create({"test_clock": clock.id})
    made = client.v1.subscriptions.create(
        {
            "customer": customer.id,
            "items": [{"price": price_id} for price_id in prices[request.param]],
            "collection_method": "send_invoice",
            "days_until_due": 30,
        }
    )
    return Subscriber(client, prices, clock.id, customer.id, made.id)


@pytest.mark.parametrize(
    ("subscriber", "old", "new"),
    [("free", "free", "pro"), ("pro", "pro", "team"), ("pro", "pro", "free")],
    indirect=["subscriber"],
)
def test_a_plan_changed_in_mid_period_counts_from_that_second_on(
    subscriber: Subscriber, old: str, new: str
) -> None:
    began = subscriber.hear()
    assert began.plan == old
    change = datetime(2026, 2, 10, 12, 0, 1, tzinfo=UTC)
    subscriber.advance(change)
    subscriber.report(change - timedelta(days=1), 70_000)
    subscriber.change_plan(new)
    subscriber.report(change, 50_000)
    heard = follow(began, subscriber.hear())
    assert (heard.plan, heard.metered_since) == (new, change)
    assert heard.current == began.current
    account = subscriber.account(heard)
    during, plan, _, is_free = find_terms(account, BundledPlans(), METERS, change)
    assert (during, plan.id, is_free) == (Period(change, began.current.end), new, False)
    # The whole of the new quota is there, and what came before the change is not taken from it.
    preview = subscriber.client.v1.invoices.create_preview(
        {"subscription": subscriber.subscription}
    )
    assert preview.total == total_minor(price(Decimal(50_000), PLANS[new]))
    after, _, _, _ = find_terms(account, BundledPlans(), METERS, began.current.end)
    assert after.start == began.current.end

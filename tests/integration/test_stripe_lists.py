"""Lists at Stripe that are longer than its first answer are read to their end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe

from infra.local.stripe_account import StripeAccount as Account
from infra.local.stripe_account import Subscriber
from infra.local.stripe_server import LocalStripe
from meterline.adapters.stripe_access import StripeAccess
from meterline.adapters.stripe_billing import StripeBilling
from meterline.adapters.stripe_invoice_lines import StripeInvoiceLines
from meterline.adapters.stripe_statements import StripeStatements
from meterline.adapters.stripe_subscriptions import StripeSubscriptions
from meterline.adapters.stripe_usage import StripeUsage
from meterline.catalog import load_meters
from meterline.domain.emission import BillableFrom
from meterline.services.compare_usage import CompareUsage
from tests.dashboard_fakes import FakeOverviews, FakePlans, make_subscription

NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
MANY = 30
"""More than any of these lists has on its first page."""


class Billed:
    """An account at the local Stripe that is set up."""

    def __init__(self, local: LocalStripe) -> None:
        self.account = Account(local.url, local.key)
        self.account.set_up()
        self.v1 = self.account.client.v1
        self.access = StripeAccess(lambda: local.key, api_base=local.url, retries=0)

    def advance(self, subscriber: Subscriber, to_s: int) -> None:
        self.account.advance(subscriber, datetime.fromtimestamp(to_s, UTC))

    def renew(self, subscriber: Subscriber) -> stripe.Invoice:
        """Go on to the draft of the period that ends."""
        subscription = self.v1.subscriptions.retrieve(subscriber.subscription)
        self.advance(subscriber, subscription.items.data[0].current_period_end + 300)
        [draft] = self.v1.invoices.list({"customer": subscriber.billing_customer, "limit": 1}).data
        assert (draft.status, draft.billing_reason) == ("draft", "subscription_cycle")
        return draft


@pytest.fixture(scope="module")
def billed() -> Iterator[Billed]:
    with LocalStripe() as local:
        yield Billed(local)
        assert local.violations() == []


def test_an_invoice_is_found_behind_any_number_of_drafts(billed: Billed) -> None:
    v1 = billed.v1
    customer = v1.customers.create({"name": "Acme"}).id
    sent = v1.invoices.create(
        {"customer": customer, "collection_method": "send_invoice", "days_until_due": 30}
    )
    v1.invoices.finalize_invoice(sent.id)
    for _ in range(MANY):
        v1.invoices.create({"customer": customer})
    found = StripeStatements(billed.access).list_invoices(customer, 2)
    assert [invoice.id for invoice in found] == [sent.id]


def test_the_cycle_before_is_found_behind_any_number_of_changes(billed: Billed) -> None:
    subscriber = billed.account.subscribe("acme", "Acme", NOW - timedelta(days=100))
    first = billed.renew(subscriber)
    billed.advance(subscriber, first.created + 2 * 86_400)
    [base, _] = billed.v1.subscriptions.retrieve(subscriber.subscription).items.data
    for number in range(MANY):
        billed.v1.subscription_items.update(
            base.id, {"quantity": number % 2 + 2, "proration_behavior": "always_invoice"}
        )
    changes = billed.v1.invoices.list({"subscription": subscriber.subscription, "limit": 100})
    assert len(changes.data) > MANY
    previous = StripeInvoiceLines(billed.access).find_previous(billed.renew(subscriber).id)
    assert previous is not None
    assert previous.id == first.id


def test_a_metered_item_is_found_behind_any_number_of_others(billed: Billed) -> None:
    v1 = billed.v1
    customer = v1.customers.create({"name": "Acme"}).id
    flat: Any = {"currency": "usd", "unit_amount": 100, "recurring": {"interval": "month"}}
    flat["product"] = v1.products.create({"name": "Seats"}).id
    prices = [v1.prices.create(flat).id for _ in range(MANY)]
    made = v1.subscriptions.create(
        {
            "customer": customer,
            "items": [{"price": price} for price in [*prices, billed.account.prices["metered"]]],
            "collection_method": "send_invoice",
            "days_until_due": 30,
        }
    )
    assert made.items.has_more
    billable = StripeBilling(lambda: billed.account.key, api_base=billed.account.url)
    start_s = made.items.data[0].current_period_start
    assert billable.billable_from(customer) == BillableFrom(start_s)
    found = StripeSubscriptions(billed.access).of(customer, NOW)
    assert found is not None
    assert len(found.prices) == MANY + 1
    assert found.metered_price == billed.account.prices["metered"]


def test_the_count_that_ours_is_held_against_is_of_the_meter_that_is_active(
    billed: Billed,
) -> None:
    v1 = billed.v1
    customer = v1.customers.create({"name": "Acme"}).id
    meter = load_meters()["credits"]
    old = billed.account.objects["meters"][meter.id]
    shape: Any = v1.billing.meters.retrieve(old).to_dict()
    v1.billing.meters.deactivate(old)
    told = {name: shape[name] for name in ("display_name", "event_name", "default_aggregation")}
    v1.billing.meters.create(told)  # type: ignore[arg-type]
    at = NOW - timedelta(hours=3)
    v1.billing.meter_events.create(
        {
            "event_name": meter.event_name,
            "payload": {"stripe_customer_id": customer, "value": "1250"},
            "timestamp": int(at.timestamp()),
        }
    )
    overviews = FakeOverviews()
    start = NOW - timedelta(days=2)
    overviews.add(
        "acme",
        subscription=make_subscription(start, start + timedelta(days=30)),
        billing_customer=customer,
    )
    compare = CompareUsage(
        overviews,
        lambda *_: 1250,
        StripeUsage(billed.access),
        StripeStatements(billed.access),
        FakePlans(),
        load_meters(),
    )
    facts = compare("acme", NOW)
    assert facts is not None
    assert facts.comparison is not None
    assert facts.comparison.theirs == 1250

"""Drafts at the local Stripe, through the official SDK: a spike is told once, and held if asked."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.local.stripe_account import StripeAccount, Subscriber
from infra.local.stripe_server import LocalStripe
from meterline.adapters.stripe_access import StripeAccess
from meterline.adapters.stripe_invoice_lines import SPIKE_KEY, StripeInvoiceLines
from meterline.domain.invoice_checks import BillingInvoice
from meterline.domain.notifications import Notification
from meterline.services.check_invoice import CheckInvoice

NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


class Told:
    """Notifications that are kept, and a bus."""

    def __init__(self) -> None:
        self.kept: dict[str, Notification] = {}
        self.published: list[Notification] = []

    def is_known(self, notification: Notification) -> bool:
        return notification.id in self.kept

    def record(self, notification: Notification) -> bool:
        return self.kept.setdefault(notification.id, notification) is notification

    def mark_published(self, notification: Notification) -> None:
        assert notification in self.published

    def publish(self, notification: Notification) -> None:
        self.published.append(notification)

    def list_open(self) -> list[Notification]:
        return []

    def freeze(self, *_: object) -> bool:
        raise AssertionError("an invoice freezes nobody")

    unfreeze = freeze


class Billed:
    """A customer of the local Stripe whose usage of each month is given."""

    def __init__(self, local: LocalStripe) -> None:
        self.account = StripeAccount(local.url, local.key)
        self.account.set_up()
        self.client = self.account.client
        self.at = NOW - timedelta(days=100)
        self.subscriber: Subscriber = self.account.subscribe("acme", "Acme", self.at)
        self.told = Told()

    def use(self, credits_used: int) -> None:
        """Use so much an hour from now."""
        at = self.at + timedelta(hours=1)
        self.account.advance(self.subscriber, at + timedelta(hours=1))
        self.client.v1.billing.meter_events.create(
            {
                "event_name": "meterline_credits",
                "payload": {
                    "stripe_customer_id": self.subscriber.billing_customer,
                    "value": str(credits_used * 1000),
                },
                "timestamp": int(at.timestamp()),
            }
        )

    def renew(self) -> Any:
        """Go on to the draft of the period that ends."""
        subscription = self.client.v1.subscriptions.retrieve(self.subscriber.subscription)
        end_s = subscription.to_dict()["items"]["data"][0]["current_period_end"]
        self.at = datetime.fromtimestamp(end_s, UTC)
        self.account.advance(self.subscriber, self.at + timedelta(minutes=5))
        listing = {"customer": self.subscriber.billing_customer, "limit": 1}
        [draft] = self.client.v1.invoices.list(listing).data  # type: ignore[arg-type]
        assert (draft.status, draft.billing_reason) == ("draft", "subscription_cycle")
        return draft

    def check(self, draft: Any, *, holds: bool = False) -> Any:
        invoices = StripeInvoiceLines(
            StripeAccess(lambda: self.account.key, api_base=self.account.url)
        )
        check = CheckInvoice(invoices, self.told, self.told, holds=holds)
        found = BillingInvoice(
            id=draft.id,
            billing_customer=draft.customer,
            status=draft.status,
            auto_advance=bool(draft.auto_advance),
            currency=draft.currency,
            total_minor=draft.total,
            usage=(),
            held_for=None,
        )
        return check(found, "acme", NOW)


@pytest.fixture
def billed() -> Iterator[Billed]:
    with LocalStripe() as local:
        yield Billed(local)


def test_the_first_cycle_and_an_ordinary_one_are_let_go_and_a_spike_is_told_once(
    billed: Billed,
) -> None:
    billed.use(5_000)
    first = billed.renew()
    assert billed.check(first) is None, "there is no cycle before it"
    billed.use(6_000)
    assert billed.check(billed.renew()) is None
    billed.use(200_000)
    runaway = billed.renew()
    spike = billed.check(runaway)
    assert spike is not None
    # 29.00 and 5,000 credits of overage; 29.00 and 199,000.
    assert (spike.before, spike.now) == (2900 + 2500, 2900 + 99_500)
    billed.check(runaway)
    [told] = billed.told.published
    assert told.facts["total"] == "1,024.00 USD"
    assert told.facts["previous"] == "54.00 USD"
    assert "25.00 USD → 995.00 USD" in told.facts["lines"]
    assert billed.client.v1.invoices.retrieve(runaway.id).auto_advance, "it was only told"


def test_set_to_hold_a_spike_waits_for_a_person_and_is_not_held_twice(billed: Billed) -> None:
    billed.use(5_000)
    billed.renew()
    billed.use(200_000)
    runaway = billed.renew()
    assert billed.check(runaway, holds=True) is not None
    held = billed.client.v1.invoices.retrieve(runaway.id)
    assert held.auto_advance is False
    assert held.metadata is not None
    assert SPIKE_KEY in held.metadata
    billed.account.advance(billed.subscriber, billed.at + timedelta(hours=3))
    assert billed.client.v1.invoices.retrieve(runaway.id).status == "draft"
    billed.client.v1.invoices.update(runaway.id, {"auto_advance": True})
    billed.check(billed.client.v1.invoices.retrieve(runaway.id), holds=True)
    assert billed.client.v1.invoices.retrieve(runaway.id).auto_advance is True

"""Drafts at the local Stripe, through the official SDK: a spike is told once, and held if asked."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import pytest
import stripe

from infra.local.stripe_account import StripeAccount, Subscriber
from infra.local.stripe_server import LocalStripe
from meterline.adapters.stripe_access import StripeAccess
from meterline.adapters.stripe_invoice_lines import StripeInvoiceLines
from meterline.adapters.stripe_invoices import StripeInvoices
from meterline.domain.invoice_checks import BillingInvoice, HoldReason
from meterline.domain.notifications import Notification
from meterline.errors import InvoiceFinalError
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
        self.access = StripeAccess(lambda: self.account.key, api_base=self.account.url)
        self.invoices = StripeInvoices(self.access)

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
        check = CheckInvoice(
            StripeInvoiceLines(self.access),
            self.told,
            self.told,
            hold=self.invoices.hold if holds else None,
        )
        found = BillingInvoice(
            id=draft.id,
            billing_customer=draft.customer,
            status=draft.status,
            auto_advance=bool(draft.auto_advance),
            currency=draft.currency,
            total_minor=draft.total,
            usage=(),
            holds={},
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
    assert HoldReason.SPIKE in held.metadata
    billed.account.advance(billed.subscriber, billed.at + timedelta(hours=3))
    assert billed.client.v1.invoices.retrieve(runaway.id).status == "draft"
    assert billed.invoices.release(runaway.id, HoldReason.SPIKE) == set()
    billed.check(billed.client.v1.invoices.retrieve(runaway.id), holds=True)
    assert billed.client.v1.invoices.retrieve(runaway.id).auto_advance is True


@pytest.fixture
def draft(billed: Billed) -> str:
    """A draft that nobody holds."""
    billed.use(5_000)
    return str(billed.renew().id)


def is_going(billed: Billed, draft: str) -> bool:
    """Whether Stripe will finalise it, with no mark of ours left on it."""
    found = billed.client.v1.invoices.retrieve(draft)
    marks = found.metadata.to_dict() if found.metadata is not None else {}
    assert not (found.auto_advance and marks.keys() & set(HoldReason))
    return bool(found.auto_advance)


@pytest.mark.parametrize("first", [HoldReason.DIFFERENCE, HoldReason.SPIKE])
def test_of_two_holds_each_ends_by_itself_and_the_draft_goes_with_the_last(
    billed: Billed, draft: str, first: HoldReason
) -> None:
    [second] = {HoldReason.DIFFERENCE, HoldReason.SPIKE} - {first}
    billed.invoices.hold(draft, HoldReason.SPIKE, "185% of the last one")
    billed.invoices.hold(draft, HoldReason.DIFFERENCE, "credits: 7 billed, 8 in the ledger")
    assert billed.invoices.get(draft).holds.keys() == {first, second}
    assert billed.invoices.release(draft, first) == {second}
    assert not is_going(billed, draft)
    assert billed.invoices.get(draft).holds.keys() == {second}
    assert billed.invoices.release(draft, second) == set()
    assert is_going(billed, draft)


def test_two_holds_that_end_at_once_let_the_draft_go(billed: Billed, draft: str) -> None:
    for _ in range(10):
        for reason in (HoldReason.DIFFERENCE, HoldReason.SPIKE):
            billed.invoices.hold(draft, reason, "why")
        start = Barrier(2)

        def end(reason: HoldReason, start: Barrier = start) -> None:
            start.wait(timeout=60)
            StripeInvoices(billed.access).release(draft, reason)

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(end, (HoldReason.DIFFERENCE, HoldReason.SPIKE)))
        assert is_going(billed, draft)


def test_a_draft_that_somebody_held_before_us_stays_held_when_we_are_through(
    billed: Billed, draft: str
) -> None:
    billed.client.v1.invoices.update(draft, {"auto_advance": False})
    billed.invoices.hold(draft, HoldReason.DIFFERENCE, "why")
    assert billed.invoices.release(draft, HoldReason.DIFFERENCE) == {HoldReason.OTHERS}
    assert not is_going(billed, draft)
    assert billed.invoices.get(draft).holds == {}


def test_what_a_person_let_go_at_stripe_is_no_hold_any_more(billed: Billed, draft: str) -> None:
    billed.invoices.hold(draft, HoldReason.SPIKE, "185% of the last one")
    billed.client.v1.invoices.update(draft, {"auto_advance": True})
    assert billed.invoices.get(draft).holds == {}
    billed.invoices.hold(draft, HoldReason.DIFFERENCE, "why")
    assert billed.invoices.release(draft, HoldReason.DIFFERENCE) == set()
    assert is_going(billed, draft)


def open_invoice(billed: Billed, draft: str) -> None:
    """Make a draft final, to be paid by its customer in a month."""
    invoices = billed.client.v1.invoices
    invoices.update(draft, {"collection_method": "send_invoice", "days_until_due": 30})
    assert invoices.finalize_invoice(draft).status == "open"


def test_a_final_invoice_is_not_held_and_goes_on_being_collected(
    billed: Billed, draft: str
) -> None:
    open_invoice(billed, draft)
    with pytest.raises(InvoiceFinalError):
        billed.invoices.hold(draft, HoldReason.SPIKE, "185% of the last one")
    assert is_going(billed, draft)
    billed.client.v1.invoices.update(draft, {"auto_advance": False})
    with pytest.raises(InvoiceFinalError):
        billed.invoices.release(draft, HoldReason.SPIKE)
    assert not is_going(billed, draft), "whoever ended its collection may have had a reason"


class FinalisingHttp(stripe.RequestsClient):
    """Makes the invoice final between the first look at it and the change."""

    def __init__(self, billed: Billed, draft: str) -> None:
        super().__init__()
        self._billed, self._draft = billed, draft

    def request(self, method: str, *args: Any, **more: Any) -> Any:
        answer = super().request(method, *args, **more)
        if method == "get":
            open_invoice(self._billed, self._draft)
        return answer


def test_an_invoice_that_becomes_final_while_it_is_held_goes_on_being_collected(
    billed: Billed, draft: str
) -> None:
    http = FinalisingHttp(billed, draft)
    access = StripeAccess(lambda: billed.account.key, api_base=billed.account.url, http_client=http)
    with pytest.raises(InvoiceFinalError):
        StripeInvoices(access).hold(draft, HoldReason.DIFFERENCE, "why")
    assert is_going(billed, draft)

"""One Stripe for the whole suite: the local one, or Stripe's test mode with STRIPE_API_KEY set.

The tests are the same for both. What they make is named uniquely, lives on test clocks where time
matters, and is removed at the end where Stripe allows it.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

import pytest
import stripe

from infra.local.stripe_server import LocalStripe

T = TypeVar("T")
HOUR_S = 3600
DAY_S = 86_400
CARD = "pm_card_visa"


def is_remote() -> bool:
    """Whether the suite talks to Stripe itself."""
    return bool(os.environ.get("STRIPE_API_KEY"))


@dataclass
class Subscribed:
    """A customer on a clock of its own, subscribed to a flat and a graduated price."""

    clock: str
    customer: str
    subscription: str
    flat_item: str
    usage_item: str
    flat_price: str
    usage_price: str
    meter: str
    event_name: str
    start: int
    """The first second of the period; a whole hour."""
    end: int


@dataclass
class StripeUnderTest:
    """A client, and the few things that nearly every test does with it."""

    client: stripe.StripeClient
    patience_s: float
    poll_s: float
    clocks: list[str] = field(default_factory=list)
    meters: list[str] = field(default_factory=list)

    @staticmethod
    def unique(word: str) -> str:
        """A name that no other test and no other run has."""
        return f"{word}_{uuid.uuid4().hex[:20]}"

    def eventually(self, read: Callable[[], T], accept: Callable[[T], bool]) -> T:
        """Ask again until the answer is accepted; the last answer if time is up."""
        deadline_s = time.monotonic() + self.patience_s
        pause = threading.Event()
        while not accept(answer := read()) and time.monotonic() < deadline_s:
            pause.wait(self.poll_s)
        return answer

    def make_meter(self, window: str | None = None) -> Any:
        """An active meter that sums."""
        params: Any = {
            "display_name": "Contract suite",
            "event_name": self.unique("contract"),
            "default_aggregation": {"formula": "sum"},
        }
        if window:
            params["event_time_window"] = window
        meter = self.client.v1.billing.meters.create(params)
        self.meters.append(meter.id)
        return meter

    def make_clock(self, at: int) -> str:
        """A test clock frozen at a time."""
        clock = self.client.v1.test_helpers.test_clocks.create({"frozen_time": at})
        self.clocks.append(clock.id)
        return clock.id

    def advance(self, clock: str, to: int) -> None:
        """Move a clock and wait until everything that this brings is done."""
        clocks = self.client.v1.test_helpers.test_clocks
        clocks.advance(clock, {"frozen_time": to})
        ended = self.eventually(
            lambda: clocks.retrieve(clock).status, lambda status: status != "advancing"
        )
        assert ended == "ready"

    def make_customer(self, clock: str | None = None, *, card: bool = True) -> str:
        """A customer, with a card that can be charged."""
        params: Any = {"name": "Contract suite"}
        if clock:
            params["test_clock"] = clock
        if card:
            params["payment_method"] = CARD
            params["invoice_settings"] = {"default_payment_method": CARD}
        return self.client.v1.customers.create(params).id

    def make_prices(self, meter: str, tiers: Any, flat: int = 2900) -> tuple[str, str]:
        """A flat and a graduated price of one new product, per month."""
        prices = self.client.v1.prices
        product = self.client.v1.products.create({"name": self.unique("Contract suite")})
        flat_price = prices.create(
            {
                "product": product.id,
                "currency": "usd",
                "unit_amount": flat,
                "recurring": {"interval": "month"},
            }
        )
        usage_price = prices.create(
            {
                "product": product.id,
                "currency": "usd",
                "billing_scheme": "tiered",
                "tiers_mode": "graduated",
                "recurring": {"interval": "month", "usage_type": "metered", "meter": meter},
                "tiers": tiers,
            }
        )
        return flat_price.id, usage_price.id

    def subscribe(self, tiers: Any = None) -> Subscribed:
        """A subscription that began on a whole hour 33 days ago, by its own clock.

        So its first period is over, and usage in it is neither too old nor ahead of its time,
        whether by the customer's clock or by the real one.
        """
        start = int(time.time()) // HOUR_S * HOUR_S - 33 * DAY_S
        clock = self.make_clock(start)
        customer = self.make_customer(clock)
        meter = self.make_meter()
        flat_price, usage_price = self.make_prices(
            meter.id,
            tiers
            or [
                {"up_to": 1000, "unit_amount_decimal": Decimal(0)},
                {"up_to": "inf", "unit_amount_decimal": Decimal("0.5")},
            ],
        )
        subscription = self.client.v1.subscriptions.create(
            {
                "customer": customer,
                "items": [{"price": flat_price}, {"price": usage_price}],
                "billing_mode": {"type": "flexible"},
            }
        ).to_dict()
        items = {item["price"]["id"]: item for item in subscription["items"]["data"]}
        return Subscribed(
            clock,
            customer,
            subscription["id"],
            items[flat_price]["id"],
            items[usage_price]["id"],
            flat_price,
            usage_price,
            meter.id,
            meter.event_name,
            items[usage_price]["current_period_start"],
            items[usage_price]["current_period_end"],
        )

    def send(self, event_name: str, customer: str, value: object, **more: Any) -> Any:
        """One meter event."""
        params: Any = {
            "event_name": event_name,
            "payload": {"stripe_customer_id": customer, "value": str(value)},
            **more,
        }
        return self.client.v1.billing.meter_events.create(params)

    def counted(self, meter: str, customer: str, start: int, end: int, **more: Any) -> int:
        """What the meter's summaries add up to, from a whole minute to another."""
        params: Any = {"customer": customer, "start_time": start, "end_time": end, **more}
        listed = self.client.v1.billing.meters.event_summaries.list(meter, params)
        return sum(int(row.aggregated_value) for row in listed.auto_paging_iter())

    def wait_counted(self, wanted: int, meter: str, customer: str, start: int, end: int) -> None:
        """Wait until the summaries hold exactly this much."""
        seen = self.eventually(
            lambda: self.counted(meter, customer, start, end), lambda value: value == wanted
        )
        assert seen == wanted

    def invoices(self, subscription: str, reason: str) -> list[dict[str, Any]]:
        """The subscription's invoices of a billing reason, newest first."""
        listed = self.client.v1.invoices.list({"subscription": subscription, "limit": 100})
        rows = [row.to_dict() for row in listed.auto_paging_iter()]
        return [row for row in rows if row["billing_reason"] == reason]


def _open_remote() -> StripeUnderTest:
    key = os.environ["STRIPE_API_KEY"]
    if not key.startswith(("sk_test_", "rk_test_")):
        raise pytest.UsageError("the contract suite runs in test mode only: STRIPE_API_KEY")
    client = stripe.StripeClient(key, max_network_retries=2)
    return StripeUnderTest(client, patience_s=180.0, poll_s=2.0)


def _tidy(under_test: StripeUnderTest) -> None:
    for clock in under_test.clocks:
        under_test.client.v1.test_helpers.test_clocks.delete(clock)
    for meter in under_test.meters:
        if under_test.client.v1.billing.meters.retrieve(meter).status == "active":
            under_test.client.v1.billing.meters.deactivate(meter)


@pytest.fixture(scope="session")
def account() -> Iterator[StripeUnderTest]:
    """Stripe's test mode, or the local server with its request check on."""
    if is_remote():
        under_test = _open_remote()
        yield under_test
        _tidy(under_test)
        return
    with LocalStripe() as local:
        under_test = StripeUnderTest(local.client(), patience_s=60.0, poll_s=0.02)
        yield under_test
        _tidy(under_test)


@pytest.fixture
def refused(account: StripeUnderTest) -> Callable[[Callable[[], object]], stripe.StripeError]:
    """The error of a call that Stripe must refuse."""

    def catch(work: Callable[[], object]) -> stripe.StripeError:
        with pytest.raises(stripe.StripeError) as caught:
            work()
        return caught.value

    return catch

"""Customers that the local Stripe bills, and what it was told of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TypeVar

from infra.local.stripe_account import StripeAccount
from infra.local.stripe_server import StripeControl
from tests.e2e.conftest import STRIPE_KEY, Api

T = TypeVar("T")


@cache
def _open_account(stripe_url: str) -> StripeAccount:
    account = StripeAccount(stripe_url, STRIPE_KEY)
    account.set_up()
    return account


def make_customer(api: Api, stripe_url: str, customer: str) -> str:
    """A customer with a subscription that began three hours ago; its id at Stripe."""
    account = _open_account(stripe_url)
    now = datetime.now(UTC)
    start = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    subscriber = account.subscribe(customer, customer, start)
    account.advance(subscriber, now)
    put = api.put_customer(customer, billing_customer=subscriber.billing_customer)
    assert put.status == 200, put.body
    return subscriber.billing_customer


def await_value(read: Callable[[], T], expected: T, timeout_s: float = 240.0) -> None:
    """Read until it is `expected`; AssertionError with what it was last when time is up."""
    deadline_s = time.monotonic() + timeout_s
    while (value := read()) != expected:
        assert time.monotonic() < deadline_s, f"{value!r} is not {expected!r}"
        time.sleep(0.1)


class BilledUsage:
    """What the local Stripe was told of one customer and event name."""

    def __init__(self, stripe_url: str, billing_customer: str, event_name: str) -> None:
        self._control = StripeControl(stripe_url, STRIPE_KEY)
        self._billing_customer = billing_customer
        self._event_name = event_name

    def calls(self) -> list[dict[str, object]]:
        """Every call that told of usage, refused and repeated ones too."""
        return self._control.meter_events(
            customer=self._billing_customer, event_name=self._event_name
        )

    def total(self) -> int:
        """What Stripe counts, in sub-units."""
        return self._control.totals().get((self._event_name, self._billing_customer), 0)

"""A run over all customers: what one of them costs the others."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from meterline.catalog import load_meters
from meterline.domain.subscriptions import Subscription
from meterline.errors import BillingUnavailableError
from meterline.services.reconcile_customers import ReconcileCustomers
from meterline.services.reconcile_usage import MeterBooks
from tests.dashboard_fakes import make_subscription

NOW = datetime(2026, 11, 22, 10, 30, tzinfo=UTC)
START = datetime(2026, 11, 1, tzinfo=UTC)


class Customers:
    """Customers of one subscription each."""

    def get_customer(self, customer: str) -> object:
        return SimpleNamespace(id=customer, billing_customer=f"cus_{customer}")

    def get_subscription(self, customer: str) -> Subscription:
        return make_subscription(START, START + timedelta(days=30))

    def has_usage(self, customer: str, meter: str, start: datetime, end: datetime) -> bool:
        return False


class Comparison:
    """A comparison that two customers cannot be given."""

    def __init__(self) -> None:
        self.unknown: dict[str, object] = {}

    def list_unknown(self) -> Mapping[tuple[str, str], set[datetime]]:
        return {("beta", "credits"): {START}}

    def __call__(
        self, customer: str, billing_customer: str, meter: Any, *rest: object, **how: object
    ) -> MeterBooks:
        self.unknown[customer] = how["unknown"]
        if customer == "alpha":
            raise BillingUnavailableError("Stripe: 503")
        if customer == "gamma":
            # As of a record that nobody can read.
            raise ValueError("not an event's identifier")
        return MeterBooks(customer, meter.id, START, NOW, 1, 1)


def test_a_customer_that_cannot_be_compared_costs_no_other_one_its_turn() -> None:
    customers = cast(Any, Customers())
    comparison = Comparison()
    looked: list[tuple[str, datetime]] = []
    told: list[None] = []
    run = ReconcileCustomers(
        customers,
        customers,
        customers,
        cast(Any, comparison),
        load_meters(),
        list_after_end=lambda customer, now: looked.append((customer, now)),
        threads=2,
    )(NOW, customers=["alpha", "beta", "gamma", "delta"], progress=lambda: told.append(None))
    assert [books.customer for books in run.books] == ["beta", "delta"]
    assert run.failed == {
        "alpha": "BillingUnavailableError: Stripe: 503",
        "gamma": "ValueError: not an event's identifier",
    }
    assert (run.customers, run.left, len(told)) == (4, None, 4)
    assert comparison.unknown == {"alpha": (), "beta": {START}, "gamma": (), "delta": ()}
    assert sorted(looked) == [(name, NOW) for name in ("alpha", "beta", "delta", "gamma")]


def test_nothing_is_listed_by_a_look_that_changes_nothing() -> None:
    customers = cast(Any, Customers())
    looked: list[str] = []
    ReconcileCustomers(
        customers,
        customers,
        customers,
        cast(Any, Comparison()),
        load_meters(),
        list_after_end=lambda customer, _now: looked.append(customer),
    )(NOW, customers=["beta"], repair=False)
    assert not looked

"""Customers, their users and subscriptions, on every store."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from meterline.adapters.dynamodb_controls import DynamoControls
from meterline.adapters.dynamodb_overviews import DynamoOverviews
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.domain.customers import MAX_USERS, Role, User
from meterline.domain.limits import Limits, QuantityLimit
from meterline.domain.periods import Period
from meterline.domain.subscriptions import Subscription, follow
from meterline.errors import (
    BillingCustomerTakenError,
    StorageUnavailableError,
    SupersededError,
)
from tests.dashboard_fakes import make_subscription
from tests.integration.storage.stores import Store

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
# moto copies its tables for a transaction while other threads change them, and fails.
concurrent = pytest.mark.parametrize(
    "store", ["emulator_store", "dynamodb_local_store"], indirect=True
)


def profile(customer: str, billing_customer: str | None = "cus_1") -> dict[str, str | None]:
    """What a PUT says; ids at the billing layer are made unlike any other test's."""
    told = billing_customer and f"{billing_customer}_{customer}"
    return {"name": "Acme", "plan": "pro", "email": None, "billing_customer": told}


def subscription(**changes: object) -> Subscription:
    start = datetime(2026, 11, 3, 9, 41, 7, tzinfo=UTC)
    known: dict[str, object] = {
        "prices": ("price_1", "price_2"),
        "metered_item": "si_2",
        "metered_price": "price_2",
        "synced_at": NOW,
    }
    return make_subscription(start, start + timedelta(days=30), **{**known, **changes})


def test_a_subscription_comes_back_as_it_was_written(store: Store, customer: str) -> None:
    accounts = store.accounts()
    accounts.put_customer(customer, profile(customer), NOW)
    assert accounts.get_subscription(customer) is None
    first = subscription()
    accounts.replace_subscription(customer, f"cus_1_{customer}", None, first)
    assert accounts.get_subscription(customer) == first
    end = first.current.end
    full = subscription(
        plan=None,
        status="canceled",
        current=Period(end, end + timedelta(days=30)),
        cancel_at=end,
        ended_at=end,
        trial_start=first.anchor,
        trial_end=end,
        metered_since=first.anchor,
        synced_at=NOW + timedelta(seconds=1),
    )
    followed = follow(first, full)
    assert followed.past == (first.current,)
    accounts.replace_subscription(customer, f"cus_1_{customer}", first, followed)
    assert accounts.get_subscription(customer) == followed
    accounts.replace_subscription(customer, f"cus_1_{customer}", followed, None)
    assert accounts.get_subscription(customer) is None


def test_of_two_that_replace_one_record_the_second_learns_that_it_was_late(
    store: Store, customer: str
) -> None:
    accounts = store.accounts()
    accounts.put_customer(customer, profile(customer), NOW)
    accounts.replace_subscription(customer, f"cus_1_{customer}", None, subscription())
    with pytest.raises(SupersededError):
        accounts.replace_subscription(
            customer, f"cus_1_{customer}", None, subscription(status="past_due")
        )
    moved = subscription(synced_at=NOW + timedelta(seconds=5))
    accounts.replace_subscription(customer, f"cus_1_{customer}", subscription(), moved)
    with pytest.raises(SupersededError):
        accounts.replace_subscription(
            customer, f"cus_1_{customer}", subscription(), subscription(status="past_due")
        )
    assert accounts.get_subscription(customer) == moved


def test_another_billing_customer_takes_the_old_subscription_away_and_keeps_it_away(
    store: Store, customer: str
) -> None:
    accounts = store.accounts()
    accounts.put_customer(customer, profile(customer), NOW)
    accounts.replace_subscription(customer, f"cus_1_{customer}", None, subscription())
    changed = accounts.put_customer(customer, profile(customer, "cus_2"), NOW)
    assert changed.billing_customer == f"cus_2_{customer}"
    assert accounts.get_subscription(customer) is None
    # A question about the old one that is answered only now must not bring it back.
    with pytest.raises(SupersededError):
        accounts.replace_subscription(customer, f"cus_1_{customer}", None, subscription())
    assert accounts.get_subscription(customer) is None


def test_the_same_billing_customer_again_keeps_the_subscription(
    store: Store, customer: str
) -> None:
    accounts = store.accounts()
    accounts.put_customer(customer, profile(customer), NOW)
    accounts.replace_subscription(customer, f"cus_1_{customer}", None, subscription())
    accounts.put_customer(customer, {**profile(customer), "name": "Acme Inc."}, NOW)
    assert accounts.get_subscription(customer) == subscription()


def test_users_become_what_the_last_call_says(store: Store, customer: str) -> None:
    accounts = store.accounts()
    accounts.put_customer(customer, profile(customer), NOW)
    ada = User("u_1", "Ada", "ada@example.com", Role.ADMIN)
    bob = User("u#2/ü", None, None, Role.MEMBER)
    accounts.put_users(customer, [ada, bob])
    assert accounts.list_users(customer) == [bob, ada]
    accounts.put_users(customer, [replace(ada, role=Role.MEMBER)])
    assert accounts.list_users(customer) == [replace(ada, role=Role.MEMBER)]
    accounts.put_users(customer, [])
    assert accounts.list_users(customer) == []
    assert accounts.get_customer(customer) is not None


@dataclass
class ShortWrites(DynamoWire):
    """A wire on which a batch write leaves all but three of its items unprocessed."""

    inner: DynamoWire

    def call(
        self, operation: str, request: Mapping[str, Any], *, deadline_s: float = 60.0
    ) -> dict[str, Any]:
        if operation != "BatchWriteItem":
            return self.inner.call(operation, request, deadline_s=deadline_s)
        [(table, asked)] = request["RequestItems"].items()
        first = {"RequestItems": {table: asked[:3]}}
        answer = self.inner.call(operation, first, deadline_s=deadline_s)
        return {**answer, "UnprocessedItems": {table: asked[3:]} if asked[3:] else {}}


def test_users_that_a_write_left_out_are_written_by_the_next(
    dynamodb_local_store: Store, customer: str
) -> None:
    accounts = dynamodb_local_store.accounts(ShortWrites(dynamodb_local_store.wire()))
    users = [User(f"u_{place}", None, None, Role.MEMBER) for place in range(8)]
    accounts.put_users(customer, users)
    assert accounts.list_users(customer) == users


def test_a_thousand_users_of_the_longest_names_are_kept(store: Store, customer: str) -> None:
    accounts = store.accounts()
    accounts.put_customer(customer, profile(customer), NOW)
    users = [
        User(f"{place:04d}" + "ü" * 124, "n" * 200, "e" * 200 + "@example.com", Role.MEMBER)
        for place in range(MAX_USERS)
    ]
    accounts.put_users(customer, users)
    assert accounts.list_users(customer) == users


def test_customers_are_listed_by_id_in_pages_that_neither_repeat_nor_lose_one(store: Store) -> None:
    accounts = store.accounts()
    ids = [f"page-{place:02d}" for place in range(25)]
    for each in reversed(ids):
        accounts.put_customer(each, profile(each), NOW)
    accounts.replace_subscription(ids[0], f"cus_1_{ids[0]}", None, subscription())
    accounts.put_users(ids[1], [User("u_1", None, None, Role.MEMBER)])
    seen: list[str] = []
    after: str | None = "page-"
    while page := accounts.list_customers(7, after):
        seen += [found.id for found in page]
        after = page[-1].id
        # One that comes to be in a place already passed does not disturb what follows.
        accounts.put_customer("page-00a", profile("page-00a"), NOW)
    assert [each for each in seen if each.startswith("page-")] == ids


def test_an_id_at_the_billing_layer_is_one_customers_until_it_lets_go(
    store: Store, customer: str
) -> None:
    accounts = store.accounts()
    other, shared = f"{customer}-other", f"cus_1_{customer}"
    accounts.put_customer(customer, profile(customer), NOW)
    accounts.put_customer(customer, profile(customer), NOW)
    assert accounts.find_by_billing_customer(shared) == customer
    assert accounts.of_billing_customer(shared) == [customer]
    with pytest.raises(BillingCustomerTakenError):
        accounts.put_customer(other, profile(customer), NOW)
    assert accounts.get_customer(other) is None
    accounts.put_customer(other, profile(other, None), NOW)
    with pytest.raises(BillingCustomerTakenError):
        accounts.put_customer(other, profile(customer), NOW)
    accounts.put_customer(customer, profile(customer, "cus_2"), NOW)
    assert accounts.find_by_billing_customer(shared) is None
    assert accounts.of_billing_customer(shared) == []
    assert accounts.find_by_billing_customer(f"cus_2_{customer}") == customer
    accounts.put_customer(other, profile(customer), NOW)
    assert accounts.find_by_billing_customer(shared) == other
    accounts.put_customer(other, profile(customer, None), NOW)
    assert accounts.find_by_billing_customer(shared) is None


@concurrent
def test_of_many_who_claim_one_id_at_once_one_gets_it(store: Store, customer: str) -> None:
    accounts = store.accounts()
    claimants = [f"{customer}-{place}" for place in range(8)]

    def claim(claimant: str) -> str | None:
        try:
            accounts.put_customer(claimant, profile(customer), NOW)
        except BillingCustomerTakenError:
            return None
        return claimant

    with ThreadPoolExecutor(8) as threads:
        winners = [winner for winner in threads.map(claim, claimants) if winner is not None]
    assert winners == [accounts.find_by_billing_customer(f"cus_1_{customer}")]
    assert [each for each in claimants if accounts.get_customer(each)] == winners


@concurrent
def test_a_customer_changed_by_many_at_once_keeps_claim_and_profile_in_step(
    store: Store, customer: str
) -> None:
    accounts = store.accounts()
    told = [None if place % 4 == 0 else f"cus_{place % 3}" for place in range(12)]

    def put(billing_customer: str | None) -> None:
        with contextlib.suppress(StorageUnavailableError):
            accounts.put_customer(customer, profile(customer, billing_customer), NOW)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(put, told))
    found = accounts.get_customer(customer)
    assert found is not None
    claims = {
        name: accounts.find_by_billing_customer(name)
        for name in {f"cus_{place}_{customer}" for place in range(3)}
    }
    held = {name for name, owner in claims.items() if owner is not None}
    assert held == ({found.billing_customer} if found.billing_customer else set())


@dataclass
class ShortPages(DynamoWire):
    """A wire on which each page of a query has one item."""

    inner: DynamoWire

    def call(
        self, operation: str, request: Mapping[str, Any], *, deadline_s: float = 60.0
    ) -> dict[str, Any]:
        if operation == "Query":
            request = {**request, "Limit": 1}
        return self.inner.call(operation, request, deadline_s=deadline_s)


def test_a_customers_standing_is_read_to_its_last_page(
    dynamodb_local_store: Store, customer: str
) -> None:
    wire, table = dynamodb_local_store.wire(), dynamodb_local_store.tables.accounts
    accounts = dynamodb_local_store.accounts(wire)
    accounts.put_customer(customer, profile(customer), NOW)
    accounts.replace_subscription(customer, f"cus_1_{customer}", None, subscription())
    limits = Limits(stop_at=QuantityLimit(Decimal(5)))
    DynamoOverviews(wire, table).put_limits(customer, limits)
    standing = DynamoControls(ShortPages(wire), table).get_standing(customer)
    assert standing is not None
    assert standing.subscription == subscription()
    assert standing.limits == limits

"""Customers, their users and subscriptions, on every store."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from meterline.domain.customers import MAX_USERS, Role, User
from meterline.domain.periods import Interval, Period
from meterline.domain.subscriptions import Subscription, follow
from meterline.errors import SupersededError
from tests.integration.storage.stores import Store

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
PROFILE = {"name": "Acme", "plan": "pro", "email": None, "billing_customer": "cus_1"}


def subscription(**changes: object) -> Subscription:
    start = datetime(2026, 11, 3, 9, 41, 7, tzinfo=UTC)
    known = Subscription(
        id="sub_1",
        status="active",
        plan="pro",
        currency="usd",
        prices=("price_1", "price_2"),
        metered_item="si_2",
        meter="credits",
        current=Period(start, start + timedelta(days=30)),
        anchor=start,
        interval=Interval.MONTH,
        interval_count=1,
        started_at=start,
        cancel_at=None,
        ended_at=None,
        trial_start=None,
        trial_end=None,
        synced_at=NOW,
    )
    return replace(known, **changes)  # type: ignore[arg-type]


def test_a_subscription_comes_back_as_it_was_written(store: Store, customer: str) -> None:
    accounts = store.accounts()
    accounts.put_customer(customer, PROFILE, NOW)
    assert accounts.get_subscription(customer) is None
    first = subscription()
    accounts.replace_subscription(customer, "cus_1", None, first)
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
    accounts.replace_subscription(customer, "cus_1", first, followed)
    assert accounts.get_subscription(customer) == followed
    accounts.replace_subscription(customer, "cus_1", followed, None)
    assert accounts.get_subscription(customer) is None


def test_of_two_that_replace_one_record_the_second_learns_that_it_was_late(
    store: Store, customer: str
) -> None:
    accounts = store.accounts()
    accounts.put_customer(customer, PROFILE, NOW)
    accounts.replace_subscription(customer, "cus_1", None, subscription())
    with pytest.raises(SupersededError):
        accounts.replace_subscription(customer, "cus_1", None, subscription(status="past_due"))
    moved = subscription(synced_at=NOW + timedelta(seconds=5))
    accounts.replace_subscription(customer, "cus_1", subscription(), moved)
    with pytest.raises(SupersededError):
        accounts.replace_subscription(
            customer, "cus_1", subscription(), subscription(status="past_due")
        )
    assert accounts.get_subscription(customer) == moved


def test_another_billing_customer_takes_the_old_subscription_away_and_keeps_it_away(
    store: Store, customer: str
) -> None:
    accounts = store.accounts()
    accounts.put_customer(customer, PROFILE, NOW)
    accounts.replace_subscription(customer, "cus_1", None, subscription())
    changed = accounts.put_customer(customer, {**PROFILE, "billing_customer": "cus_2"}, NOW)
    assert changed.billing_customer == "cus_2"
    assert accounts.get_subscription(customer) is None
    # A question about the old one that is answered only now must not bring it back.
    with pytest.raises(SupersededError):
        accounts.replace_subscription(customer, "cus_1", None, subscription())
    assert accounts.get_subscription(customer) is None


def test_the_same_billing_customer_again_keeps_the_subscription(
    store: Store, customer: str
) -> None:
    accounts = store.accounts()
    accounts.put_customer(customer, PROFILE, NOW)
    accounts.replace_subscription(customer, "cus_1", None, subscription())
    accounts.put_customer(customer, {**PROFILE, "name": "Acme Inc."}, NOW)
    assert accounts.get_subscription(customer) == subscription()


def test_users_become_what_the_last_call_says(store: Store, customer: str) -> None:
    accounts = store.accounts()
    accounts.put_customer(customer, PROFILE, NOW)
    ada = User("u_1", "Ada", "ada@example.com", Role.ADMIN)
    bob = User("u#2/ü", None, None, Role.MEMBER)
    accounts.put_users(customer, [ada, bob])
    assert accounts.list_users(customer) == [bob, ada]
    accounts.put_users(customer, [replace(ada, role=Role.MEMBER)])
    assert accounts.list_users(customer) == [replace(ada, role=Role.MEMBER)]
    accounts.put_users(customer, [])
    assert accounts.list_users(customer) == []
    assert accounts.get_customer(customer) is not None


def test_a_thousand_users_of_the_longest_names_are_kept(store: Store, customer: str) -> None:
    accounts = store.accounts()
    accounts.put_customer(customer, PROFILE, NOW)
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
        accounts.put_customer(each, PROFILE, NOW)
    accounts.replace_subscription(ids[0], "cus_1", None, subscription())
    accounts.put_users(ids[1], [User("u_1", None, None, Role.MEMBER)])
    seen: list[str] = []
    after: str | None = "page-"
    while page := accounts.list_customers(7, after):
        seen += [found.id for found in page]
        after = page[-1].id
        # One that comes to be in a place already passed does not disturb what follows.
        accounts.put_customer("page-00a", PROFILE, NOW)
    assert [each for each in seen if each.startswith("page-")] == ids

"""Accounts and a billing layer in memory, with the rules of the real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from meterline.domain.customers import Customer, User
from meterline.domain.subscriptions import Subscription
from meterline.errors import (
    BillingCustomerTakenError,
    BillingUnavailableError,
    SupersededError,
)


class FakeAccounts:
    """Keeps `CustomerAccounts` and `SubscriptionRecords`. `before_replace` runs once, in between
    a question and the write of its answer."""

    def __init__(self) -> None:
        self.customers: dict[str, Customer] = {}
        self.users: dict[str, Sequence[User]] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.before_replace: Callable[[], None] | None = None

    def get_customer(self, customer: str) -> Customer | None:
        return self.customers.get(customer)

    def put_customer(
        self, customer: str, changes: Mapping[str, str | None], now: datetime
    ) -> Customer:
        told: Any = dict(changes)
        claimed = told["billing_customer"]
        for other in self.customers.values():
            if claimed is not None and other.billing_customer == claimed and other.id != customer:
                raise BillingCustomerTakenError(f"{claimed} is another customer's")
        found = self.customers.get(customer)
        if found is not None and found.billing_customer != told["billing_customer"]:
            self.subscriptions.pop(customer, None)
        made = found or Customer(customer, "", None, "", None, now, now)
        self.customers[customer] = replace(made, updated_at=now, **told)
        return self.customers[customer]

    def list_customers(self, limit: int, after: str | None) -> Sequence[Customer]:
        known = sorted(self.customers)
        return [self.customers[each] for each in known if after is None or each > after][:limit]

    def list_users(self, customer: str) -> Sequence[User]:
        return self.users.get(customer, ())

    def put_users(self, customer: str, users: Sequence[User]) -> None:
        self.users[customer] = sorted(users, key=lambda user: user.id)

    def get_subscription(self, customer: str) -> Subscription | None:
        return self.subscriptions.get(customer)

    def replace_subscription(
        self,
        customer: str,
        billing_customer: str,
        before: Subscription | None,
        after: Subscription | None,
    ) -> None:
        if self.before_replace is not None:
            interrupt, self.before_replace = self.before_replace, None
            interrupt()
        is_same = self.customers[customer].billing_customer == billing_customer
        if not is_same or self.subscriptions.get(customer) != before:
            raise SupersededError(customer)
        if after is None:
            self.subscriptions.pop(customer, None)
        else:
            self.subscriptions[customer] = after


class FakeSubscriptions:
    """What a billing layer would say; `is_down` and it says nothing."""

    def __init__(self) -> None:
        self.by_customer: dict[str, Subscription] = {}
        self.is_down = False
        self.asked: list[str] = []

    def of(self, billing_customer: str, now: datetime) -> Subscription | None:
        self.asked.append(billing_customer)
        if self.is_down:
            raise BillingUnavailableError("HTTP 500")
        found = self.by_customer.get(billing_customer)
        return None if found is None else replace(found, synced_at=now)

"""Customers: the accounts that are billed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from meterline.domain.subscriptions import Subscription

MAX_USERS = 1_000
"""Users of one customer."""


@dataclass(frozen=True, slots=True)
class Customer:
    """One account that is billed: one customer and one subscription at the billing layer."""

    id: str
    name: str
    email: str | None
    plan: str
    billing_customer: str | None
    """The customer's id at the billing layer; without one its usage is kept, and not yet sent."""
    created_at: datetime
    updated_at: datetime


class Role(StrEnum):
    """What a user may see: an admin everything of the customer, a member what is their own."""

    ADMIN = "admin"
    MEMBER = "member"


@dataclass(frozen=True, slots=True)
class User:
    """A person (seat) of a customer; `id` is what usage events name."""

    id: str
    name: str | None
    email: str | None
    role: Role


@dataclass(frozen=True, slots=True)
class Account:
    """All that is known of a customer: itself, its users by id, its subscription as last heard."""

    customer: Customer
    users: tuple[User, ...]
    subscription: Subscription | None

    @property
    def billed_plan(self) -> str:
        """The plan that the billing layer bills; while it has named none, the one we were told."""
        told = self.subscription.plan if self.subscription is not None else None
        return told or self.customer.plan

    def find_user(self, user: str) -> User | None:
        """The user's record, if the customer has one."""
        return next((each for each in self.users if each.id == user), None)

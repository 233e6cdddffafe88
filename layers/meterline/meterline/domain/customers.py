"""Customers: the accounts that are billed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


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

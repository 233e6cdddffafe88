"""What says whether a customer may spend: its standing, its limits, and the platform's freeze."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from meterline.domain.customers import Customer
from meterline.domain.limits import Limits
from meterline.domain.subscriptions import Subscription


@dataclass(frozen=True, slots=True)
class Freeze:
    """Why no more of a customer's usage is authorized, until somebody lifts it."""

    frozen_at: datetime
    reason: str
    """A word for programs: `breaker`, or `operator`."""
    by: str
    """`breaker`, or `key <name>` for an API key."""
    detail: str
    """A sentence for people."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One customer, as leave to spend depends on it."""

    customer: Customer
    subscription: Subscription | None
    limits: Limits
    freeze: Freeze | None = None

    @property
    def billed_plan(self) -> str:
        """The plan that the billing layer bills; while it has named none, the one we were told."""
        told = self.subscription.plan if self.subscription is not None else None
        return told or self.customer.plan

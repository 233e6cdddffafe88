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
    """`breaker`, or `operator <login>`."""
    detail: str
    """A sentence for people."""
    lifted_at: datetime | None = None
    """When it was lifted: the usage before that does not freeze the customer again."""


@dataclass(frozen=True, slots=True)
class Lifting:
    """Who lifted a freeze, when, and why."""

    at: datetime
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class Standing:
    """One customer, as leave to spend depends on it."""

    customer: Customer
    subscription: Subscription | None
    limits: Limits
    freeze: Freeze | None = None
    """The last one, lifted or not."""

    @property
    def is_frozen(self) -> bool:
        """Whether leave to spend is refused until somebody lifts the freeze."""
        return self.freeze is not None and self.freeze.lifted_at is None

    @property
    def billed_plan(self) -> str:
        """The plan that the billing layer bills; while it has named none, the one we were told."""
        told = self.subscription.plan if self.subscription is not None else None
        return told or self.customer.plan

"""All that a dashboard shows of a customer beside its usage, as it is kept in one place."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from meterline.domain.customers import Account
from meterline.domain.limits import Limits
from meterline.domain.periods import Period
from meterline.domain.quantities import diverges

COMPARE_EVERY = timedelta(minutes=5)
"""How old a comparison may be when somebody looks."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Our count of a period next to the billing layer's, both from its start until `until`."""

    meter: str
    period_start: datetime
    until: datetime
    ours: int
    """Sub-units, as all counts here."""
    theirs: int
    compared_at: datetime

    @property
    def diverges(self) -> bool:
        """Whether a person should look."""
        return diverges(self.ours, self.theirs)


@dataclass(frozen=True, slots=True)
class PastInvoice:
    """An invoice as the billing layer has it; amounts in minor units."""

    id: str
    number: str | None
    status: str
    currency: str
    total_minor: int
    created_at: datetime
    page_url: str | None
    """Where the customer can see and pay it."""


@dataclass(frozen=True, slots=True)
class BillingFacts:
    """What the billing layer last said when it was asked for the dashboard."""

    asked_at: datetime
    comparison: Comparison | None
    invoices: tuple[PastInvoice, ...]

    def is_due(self, now: datetime, period: Period) -> bool:
        """Whether to ask again: it is a while ago, or of another period."""
        if now - self.asked_at >= COMPARE_EVERY:
            return True
        return self.asked_at < period.start


@dataclass(frozen=True, slots=True)
class Overview:
    """A customer with its users and subscription, its limits, and what the billing layer said."""

    account: Account
    limits: Limits
    facts: BillingFacts | None

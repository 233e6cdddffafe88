"""What services need from outside, as small Protocols. Adapters keep them without inheriting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import Enum, auto
from typing import Protocol

from meterline.domain.emission import (
    Billability,
    BillableUsage,
    BillingLimits,
    HourTotal,
    SendOutcome,
)
from meterline.domain.usage import LedgerEntry


class Recorded(Enum):
    """What became of an entry that was to be recorded."""

    ACCEPTED = auto()
    DUPLICATE = auto()
    CONFLICT = auto()
    """The key is known with another digest; the first entry stays."""
    UNDECIDED = auto()
    """No answer in time: it may have been written. Recording it again is safe."""


class Ledger(Protocol):
    """The events table: append-only, and the only place that an answer depends on."""

    def record(self, entries: Sequence[LedgerEntry]) -> Sequence[Recorded]:
        """Write entries whose keys are distinct, each if its key is new; one outcome each."""
        ...


class Customers(Protocol):
    """Who is a customer."""

    def known(self, customers: Iterable[str]) -> set[str]:
        """Those of `customers` that exist."""
        ...


class BillingLayer(Protocol):
    """Where the bill is made. What goes wrong there is an answer, never an exception."""

    @property
    def limits(self) -> BillingLimits:
        """What it takes, whatever the event says."""
        ...

    def send(self, usage: BillableUsage) -> SendOutcome:
        """Tell it of one use; calls for one customer and meter must not overlap."""
        ...

    def billable_from(self, billing_customer: str) -> Billability:
        """From when on usage of this customer still comes onto an invoice."""
        ...


class BillingCustomers(Protocol):
    """Which customer of the billing layer a customer is."""

    def billing_customer(self, customer: str) -> str | None:
        """Its id there, or None when it has none (or we do not know the customer)."""
        ...


class HourTotals(Protocol):
    """The totals, as far as the hourly mode reads them."""

    def hour_total(self, customer: str, meter: str, hour: datetime) -> HourTotal:
        """What the hour that starts at `hour` (UTC) holds, read strongly consistently."""
        ...

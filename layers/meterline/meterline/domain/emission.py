"""Emission: how what the ledger holds becomes what the billing layer is told.

Two modes, one per meter. `event`: each event is sent once under its own identifier. `hourly`:
the hour's total so far is sent, and overwrites what was sent for that hour before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class EmissionEntry(NamedTuple):
    """One event to send: its deterministic identifier, its time, its value in sub-units."""

    identifier: str
    at_s: int
    """Seconds since the epoch, UTC."""
    sub_units: int


@dataclass(frozen=True, slots=True)
class EmissionBatch:
    """Events of one customer and meter that one totals transaction counted, in order.

    An event is in exactly one batch, because the batch is written in that transaction.
    """

    customer: str
    meter: str
    id: str
    entries: Sequence[EmissionEntry]


@dataclass(frozen=True, slots=True)
class BatchDue:
    """A message to the emitter: this batch is to be sent."""

    customer: str
    meter: str
    batch: str


@dataclass(frozen=True, slots=True)
class HourDue:
    """A message to the emitter: this hour's total has changed."""

    customer: str
    meter: str
    hour: datetime


EmissionDue = BatchDue | HourDue


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """What one look into the dead-letter queue saw.

    It need not be all: while messages of a customer and meter are looked at, FIFO keeps back what
    follows them.
    """

    seen: frozenset[EmissionDue] = frozenset()
    defective: frozenset[EmissionDue] = frozenset()
    """Of those, what a defect of ours put there."""

    def keep_back(self, due: EmissionDue) -> bool:
        """Whether it waits there for a defect to be mended, and would only come back again.

        What is not seen may lie behind a defect of the same customer and meter.
        """
        if due in self.seen:
            return due in self.defective
        return (due.customer, due.meter) in {(each.customer, each.meter) for each in self.defective}


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as the queue delivered it. `due` is None where the body could not be read."""

    id: str
    receipt: str
    group: str
    body: str
    due: EmissionDue | None
    parked: bool
    """It came back from the dead-letter queue: what was refused is to be tried again."""
    receive_count: int


class Lapse(StrEnum):
    """Why an event was not billed: the kinds of problem, open until someone settles them."""

    LATE = "late"
    """Too old for the billing layer, of a period whose invoice is final, or taken and on no invoice
    (`TAKEN_FOR_NOTHING`)."""
    REFUSED = "refused"
    """Refused for good, and certainly not billed. A redrive tries it again."""
    UNKNOWN = "unknown"
    """Sent without an answer, for longer than a repeated identifier settles it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One event (or one hour's rest) that could not be billed, and why.

    `code` is stable; `message` is for people, the billing layer's own words where it had any.
    """

    kind: Lapse
    code: str
    message: str
    identifier: str
    at_s: int
    sub_units: int


@dataclass(frozen=True, slots=True)
class BillableUsage:
    """What the billing layer is told: so many `sub_units` of `event_name`, used at `at_s`."""

    billing_customer: str
    event_name: str
    identifier: str
    at_s: int
    """Seconds since the epoch, UTC."""
    sub_units: int


@dataclass(frozen=True, slots=True)
class Sent:
    """The billing layer has it; `repeated` when it says that it already had it."""

    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Refused for good and certainly not applied. `code` is ours (see `RefusalCode`)."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class NotApplied:
    """Not taken this time and certainly not applied; worth another try."""

    reason: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer, or none that tells whether it was applied."""

    reason: str


SendOutcome = Sent | Refused | NotApplied | Unknown


class RefusalCode(StrEnum):
    """Stable codes of what can never succeed as it stands."""

    BAD_REQUEST = "bad_request"
    BAD_VALUE = "bad_value"
    BATCH_MISSING = "batch_missing"
    DEFECT = "defect"
    """Of ours: the message could not be worked off, and nothing was said to be refused."""
    IN_FUTURE = "timestamp_in_future"
    METER_ARCHIVED = "meter_archived"
    NO_BILLING_CUSTOMER = "no_billing_customer"
    NO_SUBSCRIPTION = "no_subscription"
    TOO_MANY_DIGITS = "too_many_digits"
    TOO_OLD = "timestamp_too_old"
    UNKNOWN_CUSTOMER = "unknown_customer"
    UNKNOWN_METER = "unknown_meter"


AFTER_END = "after_end"
"""The code of usage that the billing layer took from after a subscription's end: it is on no
invoice, and because it was taken it is never sent again."""

PERIOD_NOT_INVOICED = "period_not_invoiced"
"""The code of usage that the billing layer took in a period which the subscription's end broke off,
and for which it made no invoice: all of that in one."""

TAKEN_FOR_NOTHING = frozenset({AFTER_END, PERIOD_NOT_INVOICED})
"""It was taken, so it is never sent again; what is settled of it is not listed anew."""

WAITING = frozenset({RefusalCode.NO_BILLING_CUSTOMER, RefusalCode.NO_SUBSCRIPTION})
"""Nothing is wrong with the usage, nobody bills the customer yet: it stays listed, and is sent by
reconciliation once somebody does. There is nothing in it for the dead-letter queue."""


@dataclass(frozen=True, slots=True)
class BillingLimits:
    """What a billing layer takes, whatever the event says."""

    max_age_s: int
    """Older usage is refused."""
    max_ahead_s: int
    """Usage further in the future is refused."""
    max_digits: int
    """Of a value."""
    dedupe_s: int
    """For how long a repeated identifier is recognised; 0 when it is not."""


@dataclass(frozen=True, slots=True)
class BillableFrom:
    """Usage at or after `at_s`, and before `until_s`, still comes onto an invoice."""

    at_s: int
    until_s: int | None = None
    """When the subscription ended or is known to end: what is used after that is on no invoice."""


@dataclass(frozen=True, slots=True)
class NotBilled:
    """The billing layer bills this customer nothing at present: no customer, or no subscription."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The billing layer could not be asked just now."""

    reason: str
    retry_after_s: float | None = None


Billability = BillableFrom | NotBilled | Unavailable

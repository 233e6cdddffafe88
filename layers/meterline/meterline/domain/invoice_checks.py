"""Invoice day: an invoice's metered quantity next to the ledger's, and what follows from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from itertools import pairwise

from meterline.domain.meters import EmissionMode, Meter
from meterline.domain.periods import Period
from meterline.domain.pricing import Plan, price_usage, total_minor
from meterline.domain.usage import LedgerEntry

WATCHED_FOR = timedelta(hours=1)
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What an invoice bills of one meter in one period, all its tiers together."""

    event_name: str
    """The meter's name at the billing layer."""
    period: Period
    quantity_sub_units: int
    amount_minor: int
    plan: str | None
    """The plan that the price belongs to, where it is one of our catalog."""
    is_closed: bool = False
    """Billed at the moment when its price was taken off the subscription: usage that came later
    is not on it, even while the invoice is a draft."""


class HoldReason(StrEnum):
    """Why a draft is kept from being finalised. Each ends by itself; it goes when none is left.

    The value is the mark in the invoice's metadata, which tells our hold from anybody else's.
    """

    DIFFERENCE = "meterline_hold"
    """It is not the ledger's: ends when the two agree, or by a person's decision."""
    SPIKE = "meterline_spike"
    """It is far above the last one: a person's to end."""
    OTHERS = "meterline_hold_of_others"
    """It was held when we came, by whom we do not know: never ours to end."""


@dataclass(frozen=True, slots=True)
class BillingInvoice:
    """An invoice as the billing layer has it now."""

    id: str
    billing_customer: str
    status: str
    """Stripe's word: draft, open, paid, void, uncollectible."""
    auto_advance: bool
    currency: str
    total_minor: int
    usage: Sequence[UsageLine]
    holds: Mapping[HoldReason, str]
    """Why we keep it from being finalised; nothing where it goes its way."""

    @property
    def is_draft(self) -> bool:
        """Whether it can still be changed."""
        return self.status == "draft"


class CheckState(StrEnum):
    """How an invoice stands."""

    AGREED = "agreed"
    """A draft that equals the ledger: it goes its way."""
    HELD = "held"
    """A draft that does not: it waits for the two to agree, or for a person."""
    RELEASED = "released"
    """A person let it go although the two differ."""
    FINAL = "final"
    """Final, and equal to the ledger, or what came late is settled."""
    FINAL_DIFFERS = "final_differs"
    """Final, and the ledger says something else: to be settled as late usage."""


OPEN_STATES = frozenset({CheckState.HELD, CheckState.FINAL_DIFFERS})
"""What is looked at again, and shown to operators."""


@dataclass(frozen=True, slots=True)
class CheckedSpan:
    """One meter's period of an invoice, counted on both sides."""

    meter: str
    period: Period
    ledger_sub_units: int
    billed_sub_units: int
    events: int
    digest: str
    """Of the period's events (`digest_events`)."""
    plan: str | None
    settled_sub_units: int = 0
    """Of what the invoice has too little, what was billed or waived later."""
    settling_sub_units: int = 0
    """What is being settled at this moment: written first, so that after a crash the same part is
    settled, whatever else has come by then."""
    is_closed: bool = False
    """No usage is added to it any more (`UsageLine.is_closed`)."""

    @property
    def owed_sub_units(self) -> int:
        """What the ledger has and no bill: negative where too much was billed. A period below
        zero is billed as zero (Stripe's documentation, meter events)."""
        return max(0, self.ledger_sub_units) - self.billed_sub_units - self.settled_sub_units


@dataclass(frozen=True, slots=True)
class InvoiceCheck:
    """The last comparison of one invoice."""

    invoice: str
    customer: str
    currency: str
    state: CheckState
    spans: Sequence[CheckedSpan]
    checked_at: datetime
    held_since: datetime | None = None
    final_since: datetime | None = None
    """When it was first seen to be final."""
    note: str = ""
    """Who released it and why."""
    version: int = 0

    @property
    def agrees(self) -> bool:
        """Whether every span is billed as the ledger has it."""
        return all(span.owed_sub_units == 0 for span in self.spans)

    @property
    def is_open(self) -> bool:
        """Whether it is to be looked at again. A final invoice is for an hour: usage that was sent
        at the moment of its finalisation was taken, and is on no invoice."""
        if self.state in OPEN_STATES:
            return True
        return (
            self.state is CheckState.FINAL
            and self.final_since is not None
            and self.checked_at - self.final_since < WATCHED_FOR
        )

    def begin_settling(self, index: int) -> InvoiceCheck:
        """What a span owes now is about to be billed elsewhere, or waived."""
        span = self.spans[index]
        owed = span.settling_sub_units or span.owed_sub_units
        return self._with_span(index, replace(span, settling_sub_units=owed))

    def end_settling(self, index: int) -> InvoiceCheck:
        """What was about to be settled is."""
        span = self.spans[index]
        settled = span.settled_sub_units + span.settling_sub_units
        return self._with_span(
            index, replace(span, settled_sub_units=settled, settling_sub_units=0)
        )

    def waive(self, index: int) -> InvoiceCheck:
        """Nothing is asked any more for what a span owes now; what comes later is owed anew."""
        span = self.spans[index]
        settled = span.settled_sub_units + span.owed_sub_units
        return self._with_span(
            index, replace(span, settled_sub_units=settled, settling_sub_units=0)
        )

    def _with_span(self, index: int, span: CheckedSpan) -> InvoiceCheck:
        spans = list(self.spans)
        spans[index] = span
        return replace(self, spans=tuple(spans))


def digest_events(entries: Iterable[LedgerEntry]) -> tuple[str, int]:
    """SHA-256 over a period's events in the order of their keys, as hex, and how many they are.

    Each event is one line: its key, its time, its meter and its quantity, parted by tabs. Whoever
    has the list can compute it again: `printf`, `LC_ALL=C sort` and `sha256sum` suffice.
    """
    lines = sorted(write_event_line(entry).encode() for entry in entries)
    whole = hashlib.sha256(b"".join(line + b"\n" for line in lines))
    return whole.hexdigest(), len(lines)


def write_event_line(entry: LedgerEntry) -> str:
    """One event of the list that a digest is made from."""
    key = entry.key
    at = entry.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{key.source}\t{key.id}\t{at}\t{entry.meter}\t{write_quantity(entry.quantity)}"


def write_quantity(quantity: Decimal) -> str:
    """A quantity in plain decimal digits, without trailing zeros."""
    text = f"{quantity:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def check_span(
    line: UsageLine,
    meter: Meter,
    entries: Sequence[LedgerEntry],
    before: CheckedSpan | None = None,
) -> CheckedSpan:
    """A line next to the ledger's entries of its period; those of other meters are left out.

    `before` is what the last check found of it.
    """
    of_meter = [entry for entry in entries if entry.meter == meter.id]
    digest, events = digest_events(of_meter)
    return CheckedSpan(
        meter.id,
        line.period,
        sum(meter.to_sub_units(entry.quantity) for entry in of_meter),
        line.quantity_sub_units,
        events,
        digest,
        line.plan,
        before.settled_sub_units if before is not None else 0,
        before.settling_sub_units if before is not None else 0,
        line.is_closed,
    )


def cut_countable(period: Period, mode: EmissionMode) -> Sequence[Period]:
    """The whole minutes around a period, for which the billing layer can be asked what it has
    counted; the whole hours where a newer total takes the place of the hour's older one. Those
    that an end of the period cuts are apart from the rest."""
    grain = timedelta(hours=1) if mode is EmissionMode.HOURLY else timedelta(minutes=1)
    starts = [moment - (moment - _EPOCH) % grain for moment in (period.start, period.end)]
    ends = [moment + (_EPOCH - moment) % grain for moment in (period.start, period.end)]
    return [Period(start, end) for start, end in pairwise(sorted({*starts, *ends}))]


def bound_counted(entries: Iterable[LedgerEntry], period: Period, meter: Meter) -> tuple[int, int]:
    """The least and the most that the billing layer has counted of these entries, if it has all
    that are of the period: of the others some may have come too late for theirs."""
    least = most = 0
    for entry in entries:
        if entry.meter != meter.id:
            continue
        sub_units = meter.to_sub_units(entry.quantity)
        is_own = period.start <= entry.at < period.end
        least += sub_units if is_own or sub_units < 0 else 0
        most += sub_units if is_own or sub_units > 0 else 0
    return least, most


def foresee_final(span: CheckedSpan) -> CheckedSpan:
    """The span of a draft as it will be once the draft is final, where the billing layer has
    counted all that the ledger has."""
    return replace(span, billed_sub_units=span.billed_sub_units + span.owed_sub_units)


def price_late(span: CheckedSpan, meter: Meter, plan: Plan) -> int:
    """What the part that is being settled costs, in minor units: the period's price with it, less
    the price without. So a late event lands in the tier in which it would have landed in time."""
    first = span.billed_sub_units + span.settled_sub_units
    billed = meter.from_sub_units(first)
    whole = meter.from_sub_units(first + span.settling_sub_units)
    return total_minor(price_usage(whole, plan)) - total_minor(price_usage(billed, plan))

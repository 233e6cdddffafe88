"""From an invoice to the events that it bills, and from an event to the invoice that bills it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import groupby

from meterline.domain.emission import PERIOD_NOT_INVOICED, HourDue
from meterline.domain.invoice_checks import CheckedSpan, InvoiceCheck
from meterline.domain.measuring import HOUR, floor_hour
from meterline.domain.meters import EmissionMode, Meter
from meterline.domain.sending import Progress, after_end_identifier, hour_identifier
from meterline.domain.usage import EventKey, LedgerEntry
from meterline.errors import NotFoundError, SearchedTooLongError
from meterline.ports import (
    CheckedInvoices,
    CountedHours,
    CustomerAccounts,
    EmissionStore,
    EventsInTime,
    LedgerEntries,
    SendingRecords,
)
from meterline.services.export_events import MAX_BYTES, weigh_names

MAX_INVOICE_CHARS = 255
"""Of an invoice's id: as many as the billing layer's ids have at most."""
CLOCK_SKEW = timedelta(minutes=10)
"""A batch may seem to be older than the events in it: their times are of other machines."""


class SendingState(StrEnum):
    """How far an event is on its way to the billing layer."""

    NOTHING_TO_SEND = "nothing_to_send"
    """Its quantity is zero."""
    UNCOUNTED = "uncounted"
    """It is in the ledger and in no batch so far."""
    PENDING = "pending"
    SENT = "sent"
    LATE = "late"
    """Too late for its period's invoice: it is billed on the next one, or waived."""
    REFUSED = "refused"
    UNKNOWN = "unknown"
    """Sent without an answer."""
    NOT_SEARCHED = "not_searched"
    """There are too many batches to look through in one call."""


_STATES: Mapping[Progress, SendingState] = {
    Progress.PENDING: SendingState.PENDING,
    Progress.SENT: SendingState.SENT,
    Progress.LATE: SendingState.LATE,
    Progress.REFUSED: SendingState.REFUSED,
    Progress.UNKNOWN: SendingState.UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class SentUsage:
    """Under which identifier an event is told to the billing layer, and how far that is.

    Of an hourly meter it is the hour's total that is told.
    """

    mode: EmissionMode
    identifier: str
    state: SendingState
    batch: str | None = None
    problem: str | None = None
    """The code of why it was not billed."""


@dataclass(frozen=True, slots=True)
class TracedEvent:
    """An event, how it was told to the billing layer, and the line that bills its period."""

    entry: LedgerEntry
    sent: SentUsage
    invoice: InvoiceCheck | None
    line: CheckedSpan | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page of an invoice's events ends: in which line, and behind which event."""

    line: int
    at: datetime
    key: str


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events of an invoice: line by line, each in the order of time and key."""

    entries: Sequence[LedgerEntry]
    next_after: Place | None


class InvoiceEvents:
    """The events behind an invoice, as they were accepted. Raises `StorageUnavailableError`."""

    def __init__(self, invoices: CheckedInvoices, ledger: EventsInTime) -> None:
        self._invoices = invoices
        self._ledger = ledger

    def get_invoice(self, customer: str, invoice: str) -> InvoiceCheck:
        """One of the customer's invoices, as it was last compared with the ledger."""
        if len(invoice) > MAX_INVOICE_CHARS:
            # Whoever calls wrote it, and no table holds a key of any length.
            raise NotFoundError("There is no invoice with an id of that length.")
        check = self._invoices.get(invoice)
        if check is None or check.customer != customer:
            raise NotFoundError(f"There is no invoice {invoice} of {customer} with usage on it.")
        return check

    def read_page(self, check: InvoiceCheck, limit: int, after: Place | None = None) -> EventPage:
        """Up to `limit` of the events behind an invoice, from behind that place on; as many as
        one answer holds."""
        taken: list[tuple[int, LedgerEntry]] = []
        weight = 0
        for index, entry in self._each_event(check, after):
            if len(taken) == limit or weight >= MAX_BYTES:
                line, last = taken[-1]
                return EventPage(_entries(taken), Place(line, last.at, last.key.text))
            taken.append((index, entry))
            weight += weigh_names(entry)
        return EventPage(_entries(taken), None)

    def _each_event(
        self, check: InvoiceCheck, after: Place | None
    ) -> Iterator[tuple[int, LedgerEntry]]:
        first = after.line if after is not None else 0
        for index, span in enumerate(check.spans[first:], first):
            start = span.period.start
            if after is not None and index == first:
                start = max(start, after.at)
            found = self._ledger.events_between(check.customer, start, span.period.end)
            for entry in _in_order(entry for entry in found if entry.meter == span.meter):
                if (
                    after is None
                    or index > first
                    or (entry.at, entry.key.text)
                    > (
                        after.at,
                        after.key,
                    )
                ):
                    yield index, entry


class TraceUsage:
    """Reads what was kept; raises `NotFoundError` and `StorageUnavailableError`."""

    def __init__(
        self,
        customers: CustomerAccounts,
        invoices: CheckedInvoices,
        ledger: LedgerEntries,
        records: SendingRecords,
        emissions: EmissionStore,
        counted: CountedHours,
        meters: Mapping[str, Meter],
    ) -> None:
        self._customers = customers
        self._invoices = invoices
        self._ledger = ledger
        self.events = InvoiceEvents(invoices, ledger)
        self._records = records
        self._emissions = emissions
        self._counted = counted
        self.meters = meters

    def list_invoices(self, customer: str) -> Sequence[InvoiceCheck]:
        """The customer's invoices with usage on them, the newest period first."""
        if self._customers.get_customer(customer) is None:
            raise NotFoundError(f"There is no customer {customer}.")
        names = {name for meter in self.meters for name in self._invoices.list_of(customer, meter)}
        checks = [check for name in names if (check := self._invoices.get(name)) is not None]
        return sorted(checks, key=_latest_start, reverse=True)

    def find_event(self, key: EventKey) -> TracedEvent:
        """One event by its key."""
        entry = self._ledger.find(key)
        if entry is None:
            raise NotFoundError(f"There is no event {key.id} of {key.customer} and {key.source}.")
        name = self._invoices.invoice_of(key.customer, entry.meter, entry.at)
        check = self._invoices.get(name) if name is not None else None
        lines = [
            span
            for span in (check.spans if check is not None else ())
            if span.meter == entry.meter and span.period.start <= entry.at < span.period.end
        ]
        sent = self._find_sent(entry, is_invoiced=bool(lines))
        if (
            sent.state is SendingState.SENT
            and sent.problem is None
            and not lines
            and self._records.is_in_broken_off(key.customer, entry.meter, entry.at)
        ):
            sent = replace(sent, problem=PERIOD_NOT_INVOICED)
        return TracedEvent(entry, sent, check, lines[0] if lines else None)

    def _find_sent(self, entry: LedgerEntry, *, is_invoiced: bool) -> SentUsage:
        meter = self.meters[entry.meter]
        if meter.emission is EmissionMode.HOURLY:
            return self._find_hour(entry, is_invoiced=is_invoiced)
        identifier = entry.key.identifier
        if not entry.quantity:
            return SentUsage(meter.emission, identifier, SendingState.NOTHING_TO_SEND)
        where = (entry.key.customer, entry.meter)
        try:
            sent = self._records.find_entry(*where, identifier, entry.received_at - CLOCK_SKEW)
        except SearchedTooLongError:
            return SentUsage(meter.emission, identifier, SendingState.NOT_SEARCHED)
        problem = self._records.reasons_of(*where, [identifier]).get(identifier)
        if sent is None:
            state, batch = SendingState.UNCOUNTED, None
        else:
            state, batch = _STATES[sent.progress], sent.due.batch
        return SentUsage(meter.emission, identifier, state, batch, problem)

    def _find_hour(self, entry: LedgerEntry, *, is_invoiced: bool) -> SentUsage:
        customer, hour = entry.key.customer, floor_hour(entry.at)
        sending = self._emissions.load_hour(HourDue(customer, entry.meter, hour))
        counted = self._counted.hours_between(customer, entry.meter, hour, hour + HOUR).get(hour)
        # A crash between a problem and its dead letter leaves it as one that is being parked.
        kind, _, code = (sending.lapse or "").removeprefix("parking:").partition(":")
        if counted is None:
            state = SendingState.UNCOUNTED
        elif kind:
            state = SendingState(kind)
        elif counted == sending.sent_sub_units:
            state = SendingState.SENT
        else:
            state = SendingState.PENDING
        identifier = hour_identifier(customer, entry.meter, hour, sending.sequence)
        problem = code.partition(":")[0] or None
        if state is SendingState.SENT and not is_invoiced:
            name = after_end_identifier(customer, entry.meter, hour)
            problem = self._records.reasons_of(customer, entry.meter, [name]).get(name)
        return SentUsage(EmissionMode.HOURLY, identifier, state, problem=problem)


def _entries(taken: Sequence[tuple[int, LedgerEntry]]) -> list[LedgerEntry]:
    return [entry for _, entry in taken]


def _in_order(entries: Iterable[LedgerEntry]) -> Iterator[LedgerEntry]:
    """Entries of one millisecond come in any order: then by their keys, so that a page can end
    between them."""
    for _, same in groupby(entries, key=lambda entry: entry.at):
        yield from sorted(same, key=lambda entry: entry.key.text)


def _latest_start(check: InvoiceCheck) -> tuple[datetime, str]:
    return max(span.period.start for span in check.spans), check.invoice

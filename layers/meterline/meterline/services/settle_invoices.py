"""No invoice leaves while it says something else than the ledger.

A draft that differs is held at once and released by itself as soon as the two agree. What can no
longer change, a final invoice or the part of a period before its plan changed, is settled as late
usage where it differs: billed on the next invoice, or waived, by policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from meterline.domain.invoice_checks import (
    BillingInvoice,
    CheckedSpan,
    CheckState,
    HoldReason,
    InvoiceCheck,
    bound_counted,
    check_span,
    cut_countable,
    foresee_final,
    price_late,
)
from meterline.domain.meters import Meter
from meterline.domain.pricing import Plan
from meterline.domain.usage import LedgerEntry
from meterline.errors import InvoiceFinalError, NotFoundError, SupersededError
from meterline.ports import (
    BilledUsage,
    BillingInvoices,
    CustomersByBilling,
    EventsInTime,
    InvoiceChecks,
    LateProblems,
    Plans,
)

Observer = Callable[[BillingInvoice, str, datetime], object]
"""Looks at a draft as well, for the customer and as of now: such as a check for spikes."""
_MAX_TRIES = 5


class LatePolicy(StrEnum):
    """What becomes of usage that came after its invoice was final."""

    BILL = "bill"
    """An item on the next invoice."""
    WAIVE = "waive"
    """Nothing is asked for it; what was billed too much is given back all the same."""


@dataclass(frozen=True, slots=True)
class LateSettled:
    """Late usage of one period that was settled now. `amount_minor` 0: it cost nothing."""

    meter: str
    sub_units: int
    amount_minor: int
    waived: bool
    item: str | None


@dataclass(frozen=True, slots=True)
class InvoiceSettled:
    """What a look at an invoice came to; `check` is None where nothing on it is metered by us."""

    invoice: BillingInvoice
    check: InvoiceCheck | None
    before: CheckState | None
    late: Sequence[LateSettled] = ()


class SettleInvoices:
    """Checks one invoice, by what it is now; doing it again changes nothing more."""

    def __init__(
        self,
        invoices: BillingInvoices,
        checks: InvoiceChecks,
        customers: CustomersByBilling,
        ledger: EventsInTime,
        plans: Plans,
        late: LateProblems,
        counted: BilledUsage,
        meters: Mapping[str, Meter],
        *,
        policy: LatePolicy,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._invoices = invoices
        self._checks = checks
        self._customers = customers
        self._ledger = ledger
        self._plans = plans
        self._late = late
        self._counted = counted
        self._meters = meters
        self._by_event_name = {meter.event_name: meter for meter in meters.values()}
        self._policy = policy
        self._observers = observers

    def __call__(self, invoice_id: str, now: datetime) -> InvoiceSettled | None:
        """Compare, hold or let go, settle what is late; None if it is nobody's of ours.

        Raises `BillingUnavailableError`, `StorageUnavailableError`, `NotFoundError`.
        """
        for _ in range(_MAX_TRIES):
            invoice = self._invoices.get(invoice_id)
            owners = self._customers.of_billing_customer(invoice.billing_customer)
            if not owners:
                return None
            customer = owners[0]
            if invoice.is_draft:
                for observe in self._observers:
                    observe(invoice, customer, now)
            try:
                return self._check(invoice, customer, now)
            except SupersededError:
                continue
        raise SupersededError(f"the check of {invoice_id} does not stand still")

    def release(
        self, invoice_id: str, hold: HoldReason, *, actor: str, reason: str, now: datetime
    ) -> Set[HoldReason]:
        """End one hold of a draft by a person's decision; the holds that are left.

        With that of a difference the decision is kept with its reason, so that it is not held
        for it again. Raises `NotFoundError` where it is not held for that.
        """
        invoice = self._invoices.get(invoice_id)
        if not invoice.is_draft:
            raise InvoiceFinalError(f"{invoice_id} is final")
        if hold not in invoice.holds:
            raise NotFoundError(f"{invoice_id} is not held for a {hold.name.lower()}")
        if hold is HoldReason.DIFFERENCE:
            check = self._checks.get(invoice_id)
            if check is None:
                raise NotFoundError(f"{invoice_id} was never checked")
            note = f"{actor}: {reason}"
            self._checks.save(replace(check, state=CheckState.RELEASED, note=note, checked_at=now))
        return self._invoices.release(invoice_id, hold)

    def waive(self, invoice_id: str, *, actor: str, reason: str, now: datetime) -> InvoiceCheck:
        """Ask nothing for what a final invoice lacks and no look at it can bill, as it is void or
        its price is of no plan of ours; by a person's decision, which is kept with its reason.

        Raises `NotFoundError` where nothing waits for that.
        """
        looked = self(invoice_id, now)
        if looked is None or looked.check is None:
            raise NotFoundError(f"nothing on {invoice_id} is metered by us")
        invoice, check = looked.invoice, looked.check
        if invoice.is_draft:
            raise NotFoundError(f"{invoice_id} is a draft: `release` lets it go as it is")
        waiting = [
            index
            for index, span in enumerate(check.spans)
            if span.owed_sub_units and self._find_late_plan(invoice, span) is None
        ]
        if not waiting:
            raise NotFoundError(f"nothing of {invoice_id} waits for a decision")
        for index in waiting:
            check = check.waive(index)
        return self._close_late(replace(check, note=f"{actor}: {reason}"), True, now)

    def _check(self, invoice: BillingInvoice, customer: str, now: datetime) -> InvoiceSettled:
        before = self._checks.get(invoice.id)
        spans = self._compare(invoice, customer, before, now)
        if not spans:
            return InvoiceSettled(invoice, None, None)
        check = InvoiceCheck(
            invoice.id,
            customer,
            invoice.currency,
            CheckState.AGREED,
            spans,
            now,
            held_since=before.held_since if before is not None else None,
            note=before.note if before is not None else "",
            version=before.version if before is not None else 0,
        )
        state = before.state if before is not None else None
        if not invoice.is_draft:
            check = replace(
                check,
                state=CheckState.FINAL if check.agrees else CheckState.FINAL_DIFFERS,
                final_since=(before.final_since if before is not None else None) or now,
            )
            check = self._checks.save(check)
        late: list[LateSettled] = []
        for index, span in enumerate(check.spans):
            if span.is_closed or not invoice.is_draft:
                check, settled = self._settle_late(invoice, check, index)
                late += settled
        if invoice.is_draft:
            check = self._steer(invoice, check, state, now)
        else:
            check = self._close_late(check, bool(late), now)
        return InvoiceSettled(invoice, check, state, late)

    def _compare(
        self,
        invoice: BillingInvoice,
        customer: str,
        before: InvoiceCheck | None,
        now: datetime,
    ) -> tuple[CheckedSpan, ...]:
        known = {(span.meter, span.period): span for span in before.spans} if before else {}
        spans = []
        for line in invoice.usage:
            meter = self._by_event_name.get(line.event_name)
            if meter is None:
                continue
            entries = list(
                self._ledger.events_between(customer, line.period.start, line.period.end)
            )
            span = check_span(line, meter, entries, known.get((meter.id, line.period)))
            if span.owed_sub_units and invoice.is_draft and not span.is_closed:
                span = self._foresee(invoice, customer, meter, span, entries, now)
            spans.append(span)
        return tuple(spans)

    def _foresee(
        self,
        invoice: BillingInvoice,
        customer: str,
        meter: Meter,
        span: CheckedSpan,
        entries: Sequence[LedgerEntry],
        now: datetime,
    ) -> CheckedSpan:
        """A draft may say what was counted when it was made: it is brought up to date when it
        becomes final (Stripe's documentation, finalisation grace period). So what was sent since
        holds nothing, once the billing layer has counted it."""
        countable = cut_countable(span.period, meter.emission)
        start, end = countable[0].start, countable[-1].end
        if end > now:
            return span
        around = [
            *self._ledger.events_between(customer, start, span.period.start),
            *entries,
            *self._ledger.events_between(customer, span.period.end, end),
        ]
        for part in countable:
            counted = self._counted.total(invoice.billing_customer, meter, part.start, part.end)
            in_part = (entry for entry in around if part.start <= entry.at < part.end)
            least, most = bound_counted(in_part, span.period, meter)
            if not least <= counted <= most:
                return span
        return foresee_final(span)

    def _steer(
        self,
        invoice: BillingInvoice,
        check: InvoiceCheck,
        before: CheckState | None,
        now: datetime,
    ) -> InvoiceCheck:
        """Hold a draft, or let it go. What is written comes first, so that a hold which nobody
        remembers cannot be."""
        if before is CheckState.RELEASED:
            return self._checks.save(replace(check, state=CheckState.RELEASED))
        if not check.agrees:
            held = replace(check, state=CheckState.HELD, held_since=check.held_since or now)
            saved = self._checks.save(held)
            if HoldReason.DIFFERENCE not in invoice.holds:
                try:
                    self._invoices.hold(invoice.id, HoldReason.DIFFERENCE, _explain(check))
                except InvoiceFinalError:
                    # It was finalised this very moment: the event of that brings it here again.
                    return saved
            return saved
        # Only our own hold is ours to end: a person may hold it for another reason.
        if HoldReason.DIFFERENCE in invoice.holds:
            self._invoices.release(invoice.id, HoldReason.DIFFERENCE)
        return self._checks.save(replace(check, held_since=None))

    def _settle_late(
        self, invoice: BillingInvoice, check: InvoiceCheck, index: int
    ) -> tuple[InvoiceCheck, list[LateSettled]]:
        check = check.begin_settling(index)
        span = check.spans[index]
        owed = span.settling_sub_units
        plan = self._find_late_plan(invoice, span) if owed else None
        if plan is None:
            return check, []
        # Written before the item: after a crash, this very part is settled, not a larger one.
        check = self._checks.save(check)
        meter = self._meters[span.meter]
        amount = price_late(span, meter, plan)
        waived = self._policy is LatePolicy.WAIVE and amount > 0
        item = None
        if amount and not waived:
            first = span.billed_sub_units + span.settled_sub_units
            # A plan that changed in mid-period makes two spans of one meter: the start tells them.
            start_s = int(span.period.start.timestamp())
            item = self._invoices.bill_late(
                invoice.billing_customer,
                name=f"{invoice.id}:{span.meter}:{start_s}:{first}:{first + owed}",
                amount_minor=amount,
                currency=check.currency,
                description=_describe(span, meter, owed),
                period=span.period,
            )
        check = self._checks.save(check.end_settling(index))
        return check, [LateSettled(span.meter, owed, amount, waived, item)]

    def _close_late(self, check: InvoiceCheck, is_settled: bool, now: datetime) -> InvoiceCheck:
        """Take late events out of the list where nothing is owed for them any more.

        What came since the comparison goes with them, unseen: so first the invoice is put down as
        one that is final since now, and a look after its hour will find that too.
        """
        listed = [
            (span.meter, name)
            for span in check.spans
            if span.owed_sub_units == 0
            for name, last in self._late.late_between(check.customer, span.meter, span.period)
            if last < span.period.end or self._is_last(check, span.meter, last)
        ]
        if listed or is_settled:
            state = CheckState.FINAL if check.agrees else check.state
            check = self._checks.save(replace(check, state=state, final_since=now))
        for meter, name in listed:
            self._late.resolve_late(check.customer, meter, name, now)
        return check

    def _is_last(self, check: InvoiceCheck, meter: str, at: datetime) -> bool:
        """Whether no invoice of a later period is to settle an hour that ends at `at`."""
        return self._checks.invoice_of(check.customer, meter, at) in (None, check.invoice)

    def _find_late_plan(self, invoice: BillingInvoice, span: CheckedSpan) -> Plan | None:
        """What prices the late usage of a span; None where it is a person's to decide: the invoice
        is void, or its price is of no plan of ours."""
        if invoice.status == "void":
            return None
        plan = self._plans.at(span.period.start).get(span.plan or "")
        return plan.in_currency(invoice.currency) if plan is not None else None


def _explain(check: InvoiceCheck) -> str:
    return "; ".join(
        f"{span.meter}: {span.billed_sub_units} billed, {span.ledger_sub_units} in the ledger"
        for span in check.spans
        if span.owed_sub_units
    )


def _describe(span: CheckedSpan, meter: Meter, owed: int) -> str:
    quantity = meter.from_sub_units(owed)
    start, end = f"{span.period.start:%Y-%m-%d}", f"{span.period.end:%Y-%m-%d}"
    return f"{quantity.normalize():f} {meter.unit}s used {start} to {end}, reported later"

"""Flag a draft invoice that is far larger than the last comparable one, before it is sent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from meterline.domain.currencies import count_decimals, to_main_unit
from meterline.domain.invoice_checks import BillingInvoice, HoldReason
from meterline.domain.invoice_spikes import GrownLine, Spike, find_spike
from meterline.domain.notifications import Happening, Notification
from meterline.errors import InvoiceFinalError
from meterline.ports import (
    ComparableInvoices,
    EventBus,
    Guardrails,
    NotPublishedError,
)

_MOST_LINES = 5
Hold = Callable[[str, HoldReason, str], object]
"""Keeps a draft from being finalised, and says why; raises `InvoiceFinalError`."""


class CheckInvoice:
    """An observer of `SettleInvoices`: it sees every draft as the billing layer has it now."""

    def __init__(
        self,
        invoices: ComparableInvoices,
        guardrails: Guardrails,
        bus: EventBus,
        *,
        hold: Hold | None,
    ) -> None:
        """With `hold` a spike is held until a person ends that; without, it is only told."""
        self._invoices = invoices
        self._guardrails = guardrails
        self._bus = bus
        self._hold = hold

    def __call__(self, invoice: BillingInvoice, customer: str, now: datetime) -> Spike | None:
        """The spike, told once for each invoice; None when there is none.

        Raises `BillingUnavailableError`, `StorageUnavailableError`: then the event comes again.
        """
        draft = self._invoices.read(invoice.id)
        spike = find_spike(draft, self._invoices.find_previous(invoice.id))
        if spike is None:
            return None
        told = Notification(
            f"{Happening.INVOICE_SPIKED}:{invoice.id}",
            customer,
            Happening.INVOICE_SPIKED,
            now,
            _describe(spike, invoice, holds=self._hold is not None),
        )
        if self._guardrails.is_known(told):
            # Once released by a person, it is not held again.
            return spike
        if self._hold is not None:
            # Where it is too late to hold it, it is to be told all the more.
            with suppress(InvoiceFinalError):
                why = f"{spike.percent}% of the last one"
                self._hold(invoice.id, HoldReason.SPIKE, why)
        if self._guardrails.record(told):
            try:
                self._bus.publish(told)
            except NotPublishedError:
                return spike  # It is kept as open: the scheduled scan publishes it.
            self._guardrails.mark_published(told)
        return spike


def _describe(spike: Spike, invoice: BillingInvoice, *, holds: bool) -> dict[str, str]:
    def write(size: int) -> str:
        if not spike.is_in_money:
            return f"{size:,} sub-units"
        amount = to_main_unit(size, invoice.currency)
        return f"{amount:,.{count_decimals(invoice.currency)}f} {invoice.currency.upper()}"

    def write_line(line: GrownLine) -> str:
        return f"• {line.description}: {write(line.before)} → {write(line.now)}"

    return {
        "invoice": invoice.id,
        "total": write(spike.now),
        "previous": write(spike.before),
        "percent": str(spike.percent),
        "lines": "\n".join(write_line(line) for line in spike.grown[:_MOST_LINES]),
        "next_step": (
            f"It is held until `books release {invoice.id} --hold spike`: apply a credit first, "
            "if one is due."
            if holds
            else "It is sent in about an hour: apply a credit, or hold it, before that."
        ),
    }

"""Look again at every invoice that is held, has just become final, or for which usage came late."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from meterline.ports import InvoiceChecks, LateProblems
from meterline.services.settle_invoices import InvoiceSettled, SettleInvoices


@dataclass(slots=True)
class Recheck:
    """What a run came to."""

    settled: list[InvoiceSettled] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Invoices that could not be looked at, and why."""
    homeless: int = 0
    """Late events of periods whose invoice we never saw: they stay on the list."""


class RecheckInvoices:
    """One run; one invoice that cannot be looked at costs no other one its turn."""

    def __init__(self, checks: InvoiceChecks, late: LateProblems, settle: SettleInvoices) -> None:
        self._checks = checks
        self._late = late
        self._settle = settle

    def __call__(self, now: datetime) -> Recheck:
        """Look at each of them once."""
        run = Recheck()
        wanted = {check.invoice: None for check in self._checks.list_open()}
        for customer, meter, at in self._late.list_late():
            invoice = self._checks.invoice_of(customer, meter, at)
            if invoice is None:
                run.homeless += 1
            else:
                wanted[invoice] = None
        for invoice in wanted:
            try:
                settled = self._settle(invoice, now)
            except Exception as error:  # noqa: BLE001 - told of, and one invoice's alone
                run.failed[invoice] = f"{type(error).__name__}: {error}"
                continue
            if settled is not None:
                run.settled.append(settled)
        return run

"""Act on an event of the billing layer: ask what is true now, and bring our side in step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from meterline.domain.dropped import DropReport
from meterline.domain.webhooks import Notice
from meterline.ports import BillingReports, CustomersByBilling, DroppedUsages, Inbox

Sync = Callable[[str, datetime, datetime | None], object]
"""Bring the subscription of a customer in step (`SyncSubscriptions`)."""
CheckInvoice = Callable[[str, datetime], object]
"""Compare an invoice, by the billing layer's id, with the ledger (`SettleInvoices`)."""
ListAfterEnd = Callable[[str, datetime], object]
"""List what was taken of a customer's usage after its subscription's end (`ListAfterEnd`)."""
TellAlert = Callable[[str, Sequence[str], datetime], object]
"""Tell the customers whom an alert is about, by the id of its event (`TellAlert`)."""


class Applied(StrEnum):
    """What was done about an event."""

    REPEATED = "repeated"
    """Nothing: it was handled before."""
    NOT_OURS = "not_ours"
    """Nothing: it is about a customer that is not one of ours."""
    SUBSCRIPTION_SYNCED = "subscription_synced"
    INVOICE_CHECKED = "invoice_checked"
    DROPS_RECORDED = "drops_recorded"
    ALERT_TOLD = "alert_told"


@dataclass(frozen=True, slots=True)
class Application:
    """What was done, for whom, and what a report of dropped usage said."""

    applied: Applied
    customers: Sequence[str] = field(default_factory=tuple)
    report: DropReport | None = None


class ApplyStripeEvent:
    """Every step can be done again: events come at least once, and in any order."""

    def __init__(
        self,
        inbox: Inbox,
        customers: CustomersByBilling,
        reports: BillingReports,
        dropped: DroppedUsages,
        *,
        sync: Sync,
        check_invoice: CheckInvoice,
        list_after_end: ListAfterEnd,
        tell_alert: TellAlert,
    ) -> None:
        self._inbox = inbox
        self._customers = customers
        self._reports = reports
        self._dropped = dropped
        self._sync = sync
        self._check_invoice = check_invoice
        self._list_after_end = list_after_end
        self._tell_alert = tell_alert

    def __call__(self, notice: Notice, now: datetime) -> Application:
        """Act on the event; it counts as handled only when all of that succeeded.

        Raises `BillingUnavailableError` and `StorageUnavailableError`: then it is to come again.
        """
        if self._inbox.is_done(notice.id):
            return Application(Applied.REPEATED)
        application = self._apply(notice, now)
        self._inbox.mark_done(notice.id, now)
        return application

    def _apply(self, notice: Notice, now: datetime) -> Application:
        if notice.type.startswith("v1.billing.meter."):
            report = self._reports.fetch_report(notice.id)
            self._dropped.record(report.samples, now)
            return Application(Applied.DROPS_RECORDED, report=report)
        customers = self._customers.of_billing_customer(notice.customer) if notice.customer else ()
        if not customers:
            return Application(Applied.NOT_OURS)
        if notice.type == "billing.alert.triggered":
            self._tell_alert(notice.id, customers, now)
            return Application(Applied.ALERT_TOLD, customers)
        # An invoice comes with a new period: the record must know it before usage is compared.
        changed_at = None
        if notice.type == "customer.subscription.updated":
            changed_at = datetime.fromtimestamp(notice.created_s, UTC)
        for customer in customers:
            self._sync(customer, now, changed_at)
        applied = Applied.SUBSCRIPTION_SYNCED
        if notice.type.startswith("invoice.") and notice.type != "invoice.upcoming":
            if notice.object_id is not None:
                self._check_invoice(notice.object_id, now)
            applied = Applied.INVOICE_CHECKED
        for customer in customers:
            self._list_after_end(customer, now)
        return Application(applied, customers)

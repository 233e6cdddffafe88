"""What Stripe counts and has invoiced, for the dashboard. Functions that a person waits for never
have this adapter."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from meterline.adapters.stripe_access import StripeAccess, translate_errors
from meterline.domain.overviews import PastInvoice
from meterline.errors import BillingUnavailableError

if TYPE_CHECKING:
    import stripe
    from stripe.params import InvoiceListParams

_DRAFT = "draft"


class StripeStatements:
    """Keeps `meterline.ports.BillingStatements`."""

    def __init__(self, stripe_access: StripeAccess) -> None:
        self._stripe = stripe_access
        self._meters: dict[str, str] = {}

    def count_usage(
        self, billing_customer: str, event_name: str, start: datetime, end: datetime
    ) -> int:
        """Sub-units between two whole minutes (API reference, meter event summaries)."""
        with translate_errors():
            client = self._stripe.open()
            summaries = client.v1.billing.meters.event_summaries.list(
                self._find_meter(client, event_name),
                {
                    "customer": billing_customer,
                    "start_time": int(start.timestamp()),
                    "end_time": int(end.timestamp()),
                    "limit": 100,
                },
            )
            # Stripe's JSON has a float here, exact for whole numbers up to 2^53.
            return sum(int(summary.aggregated_value) for summary in summaries.auto_paging_iter())

    def list_invoices(self, billing_customer: str, limit: int) -> Sequence[PastInvoice]:
        """The newest invoices that are not drafts, newest first."""
        asked: InvoiceListParams = {"customer": billing_customer, "limit": min(limit + 5, 100)}
        with translate_errors():
            listed = self._stripe.open().v1.invoices.list(asked).data
        return [
            PastInvoice(
                id=str(invoice.id),
                number=invoice.number,
                status=invoice.status or "open",
                currency=invoice.currency,
                total_minor=invoice.total,
                created_at=datetime.fromtimestamp(invoice.created, UTC),
                page_url=invoice.hosted_invoice_url,
            )
            for invoice in listed
            if invoice.status != _DRAFT
        ][:limit]

    def _find_meter(self, client: stripe.StripeClient, event_name: str) -> str:
        if event_name not in self._meters:
            meters = client.v1.billing.meters.list({"limit": 100})
            self._meters = {meter.event_name: meter.id for meter in meters.auto_paging_iter()}
        if event_name not in self._meters:
            raise BillingUnavailableError(f"Stripe has no meter {event_name}")
        return self._meters[event_name]

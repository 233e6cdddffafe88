"""What Stripe has invoiced, for the dashboard. Functions that a person waits for never have this
adapter."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from meterline.adapters.stripe_access import StripeAccess, translate_errors
from meterline.domain.overviews import PastInvoice

if TYPE_CHECKING:
    from stripe.params import InvoiceListParams


class StripeStatements:
    """Keeps `meterline.ports.BillingStatements`."""

    def __init__(self, stripe_access: StripeAccess) -> None:
        self._stripe = stripe_access

    def list_invoices(self, billing_customer: str, limit: int) -> Sequence[PastInvoice]:
        """The newest invoices that are not drafts, newest first."""
        asked: InvoiceListParams = {"customer": billing_customer, "limit": min(limit + 5, 100)}
        with translate_errors():
            listed = self._stripe.open().v1.invoices.list(asked).auto_paging_iter()
            newest = list(islice((each for each in listed if each.status != "draft"), limit))
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
            for invoice in newest
        ]

"""What Stripe counts and has invoiced, for the dashboard. Functions that a person waits for never
have this adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import stripe

from meterline.domain.overviews import PastInvoice
from meterline.errors import BillingUnavailableError

if TYPE_CHECKING:
    from stripe.params import InvoiceListParams

_DRAFT = "draft"


class StripeStatements:
    """Keeps `meterline.ports.BillingStatements`. `api_key` is asked before each question."""

    def __init__(
        self,
        api_key: Callable[[], str],
        *,
        api_base: str | None = None,
        timeout_s: float = 5.0,
        retries: int = 2,
    ) -> None:
        self._api_key = api_key
        self._api_base = api_base
        self._timeout_s = timeout_s
        self._retries = retries
        self._meters: dict[str, str] = {}

    def count_usage(
        self, billing_customer: str, event_name: str, start: datetime, end: datetime
    ) -> int:
        """Sub-units between two whole minutes (API reference, meter event summaries)."""
        client = self._open()
        try:
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
        except stripe.StripeError as error:
            raise BillingUnavailableError(_explain(error)) from error

    def list_invoices(self, billing_customer: str, limit: int) -> Sequence[PastInvoice]:
        """The newest invoices that are not drafts, newest first."""
        client = self._open()
        asked: InvoiceListParams = {"customer": billing_customer, "limit": min(limit + 5, 100)}
        try:
            listed = client.v1.invoices.list(asked).data
        except stripe.StripeError as error:
            raise BillingUnavailableError(_explain(error)) from error
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

    def _open(self) -> stripe.StripeClient:
        return stripe.StripeClient(
            self._api_key(),
            base_addresses={"api": self._api_base} if self._api_base else {},
            http_client=stripe.RequestsClient(timeout=self._timeout_s),
            max_network_retries=self._retries,
        )


def _explain(error: stripe.StripeError) -> str:
    return f"{type(error).__name__} {error.http_status or ''} {error.code or ''}".strip()

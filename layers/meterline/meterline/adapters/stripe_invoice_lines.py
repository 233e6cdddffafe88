"""Stripe's invoices line by line, for holding a draft against the one before it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from meterline.adapters.stripe_access import StripeAccess, translate_errors
from meterline.domain.invoice_spikes import ComparedInvoice, InvoiceLine
from meterline.domain.periods import Period

if TYPE_CHECKING:
    import stripe
    from stripe.params import InvoiceListParams

_CYCLE = "subscription_cycle"
_SENT = frozenset({"open", "paid", "uncollectible"})


class StripeInvoiceLines:
    """Keeps `meterline.ports.ComparableInvoices`. Raises `BillingUnavailableError`."""

    def __init__(self, stripe_access: StripeAccess) -> None:
        self._stripe = stripe_access
        # A price's recurrence never changes (API reference).
        self._metered: dict[str, bool] = {}

    def read(self, invoice: str) -> ComparedInvoice:
        """The invoice with its lines as they are now."""
        with translate_errors():
            client = self._stripe.open()
            return self._read(client, client.v1.invoices.retrieve(invoice))

    def find_previous(self, invoice: str) -> ComparedInvoice | None:
        """The newest sent invoice of the same subscription before it, both of a whole cycle."""
        with translate_errors():
            client = self._stripe.open()
            draft = client.v1.invoices.retrieve(invoice)
            subscription = _subscription_of(draft)
            if draft.billing_reason != _CYCLE or subscription is None:
                return None
            listing: InvoiceListParams = {
                "subscription": subscription,
                "created": {"lt": draft.created},
                "limit": 100,
            }
            for found in client.v1.invoices.list(listing).auto_paging_iter():
                if found.billing_reason == _CYCLE and found.status in _SENT:
                    return self._read(client, found)
        return None

    def _read(self, client: stripe.StripeClient, invoice: stripe.Invoice) -> ComparedInvoice:
        lines = client.v1.invoices.line_items.list(invoice.id, {"limit": 100})
        return ComparedInvoice(
            invoice.id,
            invoice.currency,
            [self._read_line(client, line) for line in lines.auto_paging_iter()],
        )

    def _read_line(self, client: stripe.StripeClient, line: stripe.InvoiceLineItem) -> InvoiceLine:
        details = line.pricing.price_details if line.pricing is not None else None
        price = "" if details is None else details.price
        price_id = price if isinstance(price, str) else price.id
        parent = line.parent
        item = parent.subscription_item_details if parent is not None else None
        start, end = line.period.start, line.period.end
        return InvoiceLine(
            price_id,
            line.description or price_id,
            line.amount,
            # A one-off item has no span: its period is a moment.
            Period(_moment(start), _moment(max(end, start + 1))),
            bool(price_id) and self._is_metered(client, price_id),
            line.quantity or 0,
            is_recurring=item is not None,
            is_proration=bool(item is not None and item.proration),
        )

    def _is_metered(self, client: stripe.StripeClient, price: str) -> bool:
        if price not in self._metered:
            recurring = client.v1.prices.retrieve(price).recurring
            self._metered[price] = recurring is not None and recurring.usage_type == "metered"
        return self._metered[price]


def _subscription_of(invoice: stripe.Invoice) -> str | None:
    details = invoice.parent.subscription_details if invoice.parent is not None else None
    if details is None:
        return None
    subscription: Any = details.subscription
    return subscription if isinstance(subscription, str) else str(subscription.id)


def _moment(at_s: int) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)

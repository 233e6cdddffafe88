"""Stripe's invoices: their metered lines, holding and releasing a draft, items for late usage."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from meterline.adapters.stripe_access import StripeAccess, read_refusal, translate_errors
from meterline.adapters.stripe_subscriptions import PLAN_KEY
from meterline.domain.invoice_checks import HOLD_KEY, BillingInvoice, UsageLine
from meterline.domain.periods import Period
from meterline.errors import BillingUnavailableError, InvoiceFinalError, NotFoundError

if TYPE_CHECKING:
    import stripe
    from stripe.params import (
        InvoiceItemCreateParams,
        InvoiceItemListParams,
        InvoiceUpdateParams,
    )

LATE_KEY = "meterline_late"
"""Metadata of an invoice item: which late usage it bills. It is what keeps it single."""


class StripeInvoices:
    """Keeps `meterline.ports.BillingInvoices`. Raises `BillingUnavailableError`."""

    def __init__(self, stripe_access: StripeAccess) -> None:
        self._stripe = stripe_access
        # A price's recurrence and a meter's event name never change (API reference).
        self._prices: dict[str, tuple[str | None, str | None]] = {}

    def get(self, invoice: str) -> BillingInvoice:
        """The invoice as it is now; `NotFoundError`."""
        try:
            with translate_errors():
                client = self._stripe.open()
                found = client.v1.invoices.retrieve(invoice)
                lines = client.v1.invoices.line_items.list(invoice, {"limit": 100})
                usage = self._read_usage(client, lines.auto_paging_iter())
        except BillingUnavailableError as error:
            if read_refusal(error) == "resource_missing":
                raise NotFoundError(f"no such invoice: {invoice}") from error
            raise
        metadata = found.metadata.to_dict() if found.metadata is not None else {}
        customer = found.customer
        return BillingInvoice(
            id=found.id,
            billing_customer=customer
            if isinstance(customer, str)
            else str(getattr(customer, "id", "")),
            status=str(found.status),
            auto_advance=bool(found.auto_advance),
            currency=found.currency,
            total_minor=found.total,
            usage=usage,
            held_for=metadata.get(HOLD_KEY) or None,
        )

    def hold(self, invoice: str, why: str) -> None:
        """Keep a draft from being finalised; `InvoiceFinalError` if it is final already."""
        params: InvoiceUpdateParams = {"auto_advance": False, "metadata": {HOLD_KEY: why[:500]}}
        self._update(invoice, params)

    def release(self, invoice: str) -> None:
        """Let a draft go: Stripe finalises it after an hour; `InvoiceFinalError`."""
        params: InvoiceUpdateParams = {"auto_advance": True, "metadata": {HOLD_KEY: ""}}
        self._update(invoice, params)

    def bill_late(
        self,
        billing_customer: str,
        *,
        name: str,
        amount_minor: int,
        currency: str,
        description: str,
        period: Period,
    ) -> str:
        """An item on the customer's next invoice, once for each `name`; the item's id.

        An Idempotency-Key is forgotten after a day or so, the item's metadata is not: an item of
        that name which is there already is the answer.
        """
        listing: InvoiceItemListParams = {"customer": billing_customer, "limit": 100}
        params: InvoiceItemCreateParams = {
            "customer": billing_customer,
            "amount": amount_minor,
            "currency": currency,
            "description": description,
            "metadata": {LATE_KEY: name},
            "period": {
                "start": int(period.start.timestamp()),
                "end": int(period.end.timestamp()),
            },
        }
        with translate_errors():
            items = self._stripe.open().v1.invoice_items
            for item in items.list(listing).auto_paging_iter():
                if item.metadata is not None and item.metadata.to_dict().get(LATE_KEY) == name:
                    return item.id
            key = hashlib.sha256(f"{billing_customer}\x1f{name}".encode()).hexdigest()
            return items.create(params, {"idempotency_key": f"ml-late-{key}"}).id

    def _update(self, invoice: str, params: InvoiceUpdateParams) -> None:
        try:
            with translate_errors():
                self._stripe.open().v1.invoices.update(invoice, params)
        except BillingUnavailableError as error:
            if read_refusal(error) is not None:
                raise InvoiceFinalError(invoice) from error
            raise

    def _read_usage(
        self, client: stripe.StripeClient, lines: Iterator[stripe.InvoiceLineItem]
    ) -> list[UsageLine]:
        quantities: defaultdict[tuple[str, Period, str | None], list[int]] = defaultdict(
            lambda: [0, 0]
        )
        for line in lines:
            details = getattr(line.pricing, "price_details", None)
            if details is None or line.parent is None:
                continue
            if line.parent.type != "subscription_item_details":
                continue
            price = details.price if isinstance(details.price, str) else details.price.id
            event_name, plan = self._read_price(client, price)
            if event_name is None:
                continue
            period = Period(_moment(line.period.start), _moment(line.period.end))
            # Flat amounts of a tier are lines of their own, of quantity zero.
            found = quantities[event_name, period, plan]
            found[0] += line.quantity or 0
            found[1] += line.amount
        return [
            UsageLine(event_name, period, quantity, amount, plan)
            for (event_name, period, plan), (quantity, amount) in quantities.items()
        ]

    def _read_price(self, client: stripe.StripeClient, price: str) -> tuple[str | None, str | None]:
        """The event name of the meter that a price bills, if it bills one, and its plan."""
        if price not in self._prices:
            found = client.v1.prices.retrieve(price)
            meter = found.recurring.meter if found.recurring is not None else None
            event_name = client.v1.billing.meters.retrieve(meter).event_name if meter else None
            tags = found.metadata.to_dict() if found.metadata is not None else {}
            self._prices[price] = (event_name, tags.get(PLAN_KEY))
        return self._prices[price]


def _moment(at_s: int) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)

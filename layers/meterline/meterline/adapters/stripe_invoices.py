"""Stripe's invoices: their metered lines, holding and releasing a draft, items for late usage."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING

from meterline.adapters.stripe_access import StripeAccess, read_refusal, translate_errors
from meterline.adapters.stripe_subscriptions import PLAN_KEY
from meterline.domain.invoice_checks import BillingInvoice, HoldReason, UsageLine
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
                usage = self._read_usage(client, found, list(lines.auto_paging_iter()))
        except BillingUnavailableError as error:
            if read_refusal(error) == "resource_missing":
                raise NotFoundError(f"no such invoice: {invoice}") from error
            raise
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
            holds=_read_holds(found),
        )

    def hold(self, invoice: str, reason: HoldReason, why: str) -> None:
        """Keep a draft from being finalised; `InvoiceFinalError` if it is final already.

        Stripe takes `auto_advance` of an open invoice as well, and ends its collection with it
        (Stripe's documentation, automatic advancement): one that became final is left as it was.
        """
        found = self._read_draft(invoice)
        marks: dict[str, str] = {reason: why[:500]}
        if found.auto_advance:
            # Somebody let it go at Stripe, and left our marks there.
            marks = {**dict.fromkeys(HoldReason, ""), **marks}
        elif not _read_holds(found):
            marks[HoldReason.OTHERS] = "before us"
        updated = self._update(invoice, {"auto_advance": False, "metadata": marks})
        if updated.status != "draft":
            before: InvoiceUpdateParams = {"metadata": dict.fromkeys(marks, "")}
            self._update(invoice, {"auto_advance": bool(found.auto_advance), **before})
            raise InvoiceFinalError(f"{invoice} is final")

    def release(self, invoice: str, reason: HoldReason) -> Set[HoldReason]:
        """End one reason to hold a draft; those that are left. `InvoiceFinalError`.

        With the last of ours, Stripe finalises it after an hour, unless others hold it too.
        """
        left = _read_holds(self._read_draft(invoice)).keys() - {reason}
        params: InvoiceUpdateParams = {"metadata": {reason: ""}}
        if left == {HoldReason.OTHERS}:
            params["metadata"] = {reason: "", HoldReason.OTHERS: ""}
        elif not left:
            params["auto_advance"] = True
        updated = self._update(invoice, params)
        still = _read_holds(updated).keys()
        if left - {HoldReason.OTHERS} and not still - {HoldReason.OTHERS}:
            # Another release came in between: each took the other's reason for one that stays.
            return self.release(invoice, reason)
        return left

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

    def _read_draft(self, invoice: str) -> stripe.Invoice:
        with translate_errors():
            found = self._stripe.open().v1.invoices.retrieve(invoice)
        if found.status != "draft":
            raise InvoiceFinalError(f"{invoice} is final")
        return found

    def _update(self, invoice: str, params: InvoiceUpdateParams) -> stripe.Invoice:
        try:
            with translate_errors():
                return self._stripe.open().v1.invoices.update(invoice, params)
        except BillingUnavailableError as error:
            if read_refusal(error) is not None:
                raise InvoiceFinalError(f"{invoice} is final") from error
            raise

    def _read_usage(
        self,
        client: stripe.StripeClient,
        invoice: stripe.Invoice,
        lines: Sequence[stripe.InvoiceLineItem],
    ) -> list[UsageLine]:
        quantities: defaultdict[tuple[str, Period, str | None, bool], list[int]] = defaultdict(
            lambda: [0, 0]
        )
        plans_until: dict[datetime, str] = {}
        for line in lines:
            details = getattr(line.pricing, "price_details", None)
            if details is None or line.parent is None:
                continue
            price = details.price if isinstance(details.price, str) else details.price.id
            event_name, plan = self._read_price(client, price)
            if event_name is None:
                if plan is not None and _is_given_back(line):
                    plans_until[_moment(line.period.start)] = plan
                continue
            if line.period.start >= line.period.end:
                continue  # It ended in the second in which it began: nothing can be in it.
            # A metered price that is taken off in mid-period is billed by invoice items.
            is_closed = line.parent.type != "subscription_item_details"
            period = Period(_moment(line.period.start), _moment(line.period.end))
            # Flat amounts of a tier are lines of their own, of quantity zero.
            found = quantities[event_name, period, plan, is_closed]
            found[0] += line.quantity or 0
            found[1] += line.amount
        usage = [
            UsageLine(event_name, period, quantity, amount, plan, is_closed)
            for (event_name, period, plan, is_closed), (quantity, amount) in quantities.items()
        ]
        if invoice.billing_reason == "subscription_cycle":
            usage += _find_empty_parts(usage, _moment(invoice.period_start), plans_until)
        return usage

    def _read_price(self, client: stripe.StripeClient, price: str) -> tuple[str | None, str | None]:
        """The event name of the meter that a price bills, if it bills one, and its plan."""
        if price not in self._prices:
            found = client.v1.prices.retrieve(price)
            meter = found.recurring.meter if found.recurring is not None else None
            event_name = client.v1.billing.meters.retrieve(meter).event_name if meter else None
            tags = found.metadata.to_dict() if found.metadata is not None else {}
            self._prices[price] = (event_name, tags.get(PLAN_KEY))
        return self._prices[price]


def _is_given_back(line: stripe.InvoiceLineItem) -> bool:
    """Whether it gives back what was paid ahead for a price that was taken off."""
    item = line.parent.invoice_item_details if line.parent is not None else None
    return item is not None and item.proration and line.amount <= 0


def _find_empty_parts(
    usage: Sequence[UsageLine], start: datetime, plans_until: Mapping[datetime, str]
) -> Iterator[UsageLine]:
    """The parts of a period whose plan was changed before anything of them was counted.

    No line bills them, but usage may still come. What tells of them is what was given back of the
    plan's flat fee: `plans_until` has each plan by the moment at which it was left.
    """
    by_meter: defaultdict[str, list[Period]] = defaultdict(list)
    for line in usage:
        by_meter[line.event_name].append(line.period)
    for event_name, periods in by_meter.items():
        at = start
        for period in sorted(periods, key=attrgetter("start")):
            for moment in sorted(plans_until):
                if at < moment <= period.start:
                    plan = plans_until[moment]
                    yield UsageLine(event_name, Period(at, moment), 0, 0, plan, is_closed=True)
                    at = moment
            at = max(at, period.end)


def _moment(at_s: int) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)


def _read_holds(invoice: stripe.Invoice) -> dict[HoldReason, str]:
    if invoice.auto_advance or invoice.metadata is None:
        return {}
    marks = invoice.metadata.to_dict()
    return {reason: marks[reason] for reason in HoldReason if marks.get(reason)}

"""Invoices as they live: lines while a draft, finalisation, payment, and the usage they take.

A draft counts metered usage anew each time it is looked at; finalisation freezes it, and usage
of that period that comes later is on no invoice at all (Stripe's documentation, usage-based
billing).
"""

from __future__ import annotations

from typing import Any

from infra.local.stripe_server.account import Account, Json, register_action, show_plain
from infra.local.stripe_server.billing import PricedLine, price_quantity
from infra.local.stripe_server.errors import card_declined, invalid_request
from infra.local.stripe_server.resources.customers import add_balance, can_be_charged
from infra.local.stripe_server.resources.meters import total_usage
from infra.local.stripe_server.resources.products import billing_view


def build_line(
    *,
    line_id: str,
    invoice: str,
    amount: int,
    currency: str,
    description: str | None,
    period: Json,
    quantity: int,
    parent: Json,
    price: Json | None,
    unit_amount_decimal: str | None,
    subscription: str | None,
    metadata: Json | None = None,
) -> Json:
    """One invoice line in Stripe's shape."""
    pricing: Json | None = None
    if unit_amount_decimal is not None or price is not None:
        pricing = {"type": "price_details", "unit_amount_decimal": unit_amount_decimal}
        if price is not None:
            pricing["price_details"] = {"price": price["id"], "product": price["product"]}
    return {
        "id": line_id,
        "object": "line_item",
        "amount": amount,
        "currency": currency,
        "description": description,
        "discount_amounts": [],
        "discountable": parent["type"] == "subscription_item_details",
        "discounts": [],
        "invoice": invoice,
        "livemode": False,
        "metadata": metadata or {},
        "parent": parent,
        "period": period,
        "pretax_credit_amounts": [],
        "pricing": pricing,
        "quantity": quantity,
        "quantity_decimal": str(quantity),
        "subscription": subscription,
        "subtotal": amount,
        "taxes": [],
    }


def subscription_parent(subscription: str, item: str) -> Json:
    """The `parent` of a line that a subscription item brought."""
    return {
        "invoice_item_details": None,
        "subscription_item_details": {
            "invoice_item": None,
            "proration": False,
            "proration_details": {"credited_items": None},
            "subscription": subscription,
            "subscription_item": item,
        },
        "type": "subscription_item_details",
    }


def _item_parent(item: Json) -> Json:
    details = item["parent"]
    return {
        "invoice_item_details": {
            "invoice_item": item["id"],
            "proration": item["proration"],
            "proration_details": {"credited_items": None},
            "subscription": details["subscription_details"]["subscription"] if details else None,
        },
        "subscription_item_details": None,
        "type": "invoice_item_details",
    }


def describe(priced: PricedLine, product_name: str) -> str:
    """A line's text, after the manner of Stripe's own."""
    if priced.unit_amount_decimal is None:
        return f"{product_name} ({priced.label})"
    suffix = f" ({priced.label} at {priced.unit_amount_decimal})" if priced.label else ""
    return f"{priced.quantity} × {product_name}{suffix}"  # noqa: RUF001 - as Stripe writes it


def price_usage_lines(
    account: Account, price: Json, customer: str, currency: str, start: int, end: int
) -> tuple[int, list[PricedLine]]:
    """A metered price's quantity over a span, and its lines."""
    meter = account.get("mtr", price["recurring"]["meter"])
    # A draft sees what summaries see, as late as they do.
    account.usage.apply(account.clock.now_exact_s() - account.settings.summary_lag_s)
    quantity = total_usage(account, meter, customer, start, end)
    return quantity, price_quantity(billing_view(price), currency, quantity)


def _usage_lines(account: Account, invoice: Json) -> list[Json]:
    lines: list[Json] = []
    for span in invoice["_usage"]:
        price = account.get("price", span["price"])
        _, priced_lines = price_usage_lines(
            account, price, invoice["customer"], invoice["currency"], span["start"], span["end"]
        )
        name = account.get("prod", price["product"])["name"]
        for priced in priced_lines:
            line_id = span["ids"].setdefault(priced.label, account.new_id("il", 24))
            lines.append(
                build_line(
                    line_id=line_id,
                    invoice=invoice["id"],
                    amount=priced.amount,
                    currency=invoice["currency"],
                    description=describe(priced, name),
                    period={"end": span["end"], "start": span["start"]},
                    quantity=priced.quantity,
                    parent=subscription_parent(span["subscription"], span["item"]),
                    price=price,
                    unit_amount_decimal=priced.unit_amount_decimal,
                    subscription=span["subscription"],
                    metadata=span["metadata"],
                )
            )
    return lines


def _item_lines(account: Account, invoice: Json) -> list[Json]:
    lines = []
    for item in account.store("ii").values():
        if item["invoice"] != invoice["id"] or item.get("_gone"):
            continue
        price_id = (item["pricing"] or {}).get("price_details", {}).get("price")
        lines.append(
            build_line(
                line_id=item["_line"],
                invoice=invoice["id"],
                amount=item["amount"],
                currency=item["currency"],
                description=item["description"],
                period=item["period"],
                quantity=item["quantity"],
                parent=_item_parent(item),
                price=account.store("price").get(price_id) if price_id else None,
                unit_amount_decimal=(item["pricing"] or {}).get("unit_amount_decimal"),
                subscription=_item_parent(item)["invoice_item_details"]["subscription"],
                metadata=item["metadata"],
            )
        )
    return lines


def lines_of(account: Account, invoice: Json) -> list[Json]:
    """The invoice's lines: frozen once final, counted anew while a draft (`drafts_follow`)."""
    frozen: list[Json] | None = invoice["_lines"]
    if frozen is not None:
        return frozen
    shown: list[Json] | None = invoice["_usage_shown"]
    return [
        *_item_lines(account, invoice),
        *invoice["_preview_items"],
        *(_usage_lines(account, invoice) if shown is None else shown),
        *invoice["_fixed"],
    ]


def _set_totals(account: Account, invoice: Json, lines: list[Json]) -> None:
    total = sum(line["amount"] for line in lines)
    invoice["subtotal"] = invoice["subtotal_excluding_tax"] = total
    invoice["total"] = invoice["total_excluding_tax"] = total
    if invoice["status"] == "draft":
        balance = account.store("cus")[invoice["customer"]]["balance"]
        invoice["starting_balance"] = balance
        due = max(0, total + balance) if total > 0 else 0
        invoice["amount_due"] = invoice["amount_remaining"] = due


def show_invoice(account: Account, invoice: Json) -> Json:
    """The invoice with up to ten lines, as Stripe embeds them."""
    lines = lines_of(account, invoice)
    if invoice["_lines"] is None:
        _set_totals(account, invoice, lines)
    shown = show_plain(account, invoice)
    shown["lines"] = {
        "object": "list",
        "data": lines[:10],
        "has_more": len(lines) > 10,
        "total_count": len(lines),
        "url": f"/v1/invoices/{invoice['id']}/lines",
    }
    return shown


def build_invoice(
    account: Account,
    customer: Json,
    *,
    currency: str,
    billing_reason: str,
    period: tuple[int, int],
    subscription: Json | None = None,
    **fields: Any,
) -> Json:
    """A draft, not yet kept."""
    now = account.now(customer["test_clock"])
    invoice: Json = {
        "id": account.new_id("in", 24),
        "object": "invoice",
        "account_country": "US",
        "account_name": "Local",
        "account_tax_ids": None,
        "amount_due": 0,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_remaining": 0,
        "amount_shipping": 0,
        "application": None,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": True,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": False,
            "liability": None,
            "provider": None,
            "status": None,
        },
        "automatically_finalizes_at": None,
        "billing_reason": billing_reason,
        "collection_method": "charge_automatically",
        "created": now,
        "currency": currency,
        "custom_fields": None,
        "customer": customer["id"],
        "customer_account": None,
        "customer_address": customer["address"],
        "customer_email": customer["email"],
        "customer_name": customer["name"],
        "customer_phone": customer["phone"],
        "customer_shipping": customer["shipping"],
        "customer_tax_exempt": customer["tax_exempt"],
        "customer_tax_ids": [],
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "due_date": None,
        "effective_at": None,
        "ending_balance": None,
        "footer": None,
        "from_invoice": None,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "issuer": {"type": "self"},
        "last_finalization_error": None,
        "latest_revision": None,
        "lines": None,
        "livemode": False,
        "metadata": {},
        "next_payment_attempt": None,
        "number": None,
        "on_behalf_of": None,
        "parent": None,
        "payment_settings": {
            "default_mandate": None,
            "payment_method_options": None,
            "payment_method_types": None,
        },
        "period_end": period[1],
        "period_start": period[0],
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "receipt_number": None,
        "rendering": None,
        "shipping_cost": None,
        "shipping_details": None,
        "starting_balance": customer["balance"],
        "statement_descriptor": None,
        "status": "draft",
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "subtotal": 0,
        "subtotal_excluding_tax": 0,
        "test_clock": customer["test_clock"],
        "total": 0,
        "total_discount_amounts": [],
        "total_excluding_tax": 0,
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
        "webhooks_delivered_at": None,
        "_fixed": [],
        "_usage": [],
        "_usage_shown": None,
        "_preview_items": [],
        "_lines": None,
        "_days_until_due": None,
        **fields,
    }
    if subscription is not None:
        invoice["collection_method"] = subscription["collection_method"]
        invoice["default_payment_method"] = subscription["default_payment_method"]
        invoice["_days_until_due"] = subscription["days_until_due"]
        invoice["parent"] = {
            "quote_details": None,
            "subscription_details": {
                "metadata": dict(subscription["metadata"]),
                "subscription": subscription["id"],
            },
            "type": "subscription_details",
        }
    return invoice


def keep_draft(account: Account, invoice: Json) -> None:
    """Keep a draft, plan its finalisation and tell the world."""
    account.add("in", invoice)
    if not account.settings.drafts_follow:
        invoice["_usage_shown"] = _usage_lines(account, invoice)
    if invoice["auto_advance"]:
        plan_finalisation(account, invoice)
    account.emit("invoice.created", "in", invoice)


def plan_finalisation(account: Account, invoice: Json) -> None:
    """A draft is finalised by itself an hour after it was made."""
    at = max(invoice["created"], account.now(invoice["test_clock"])) + account.settings.draft_s
    invoice["automatically_finalizes_at"] = at
    account.schedule(at, invoice["test_clock"], "finalize", invoice["id"])


def _finalize_when_due(account: Account, invoice_id: str, at_s: int) -> None:
    invoice = account.store("in").get(invoice_id)
    if (
        invoice is not None
        and not invoice.get("_gone")
        and invoice["status"] == "draft"
        and invoice["auto_advance"]
        and invoice["automatically_finalizes_at"] == at_s
    ):
        finalize(account, invoice)


register_action("finalize", _finalize_when_due)


def finalize(account: Account, invoice: Json, *, collect: bool = True) -> None:
    """Freeze a draft: number, lines, balance; then ask for the money."""
    if invoice["status"] != "draft":
        raise invalid_request(
            "This invoice is already finalized, you can't re-finalize a non-draft invoice.",
            code="invoice_not_editable",
        )
    account.usage.apply_all()
    customer = account.store("cus")[invoice["customer"]]
    now = account.now(invoice["test_clock"])
    invoice["_usage_shown"] = None
    lines = lines_of(account, invoice)
    _set_totals(account, invoice, lines)
    invoice["_lines"] = lines
    invoice["status"] = "open"
    invoice["number"] = f"{customer['invoice_prefix']}-{customer['next_invoice_sequence']:04d}"
    customer["next_invoice_sequence"] += 1
    customer["currency"] = customer["currency"] or invoice["currency"]
    invoice["effective_at"] = now
    invoice["status_transitions"]["finalized_at"] = now
    invoice["automatically_finalizes_at"] = None
    base = f"https://invoice.stripe.com/i/local/{invoice['id']}"
    invoice["hosted_invoice_url"], invoice["invoice_pdf"] = base, f"{base}/pdf"
    if invoice["collection_method"] == "send_invoice":
        invoice["due_date"] = now + 86_400 * (invoice["_days_until_due"] or 30)
    _apply_balance(account, invoice, customer)
    account.emit("invoice.finalized", "in", invoice)
    if invoice["amount_due"] == 0:
        settle(account, invoice)
    elif collect and invoice["collection_method"] == "charge_automatically":
        attempt_payment(account, invoice)
    elif invoice["collection_method"] == "send_invoice" and invoice["auto_advance"]:
        account.emit("invoice.sent", "in", invoice)


def _apply_balance(account: Account, invoice: Json, customer: Json) -> None:
    total, balance = invoice["total"], customer["balance"]
    invoice["starting_balance"] = balance
    if total < 0:
        # A negative invoice asks for nothing: what it owes the customer becomes credit.
        moved = total
    elif balance < 0:
        moved = min(total, -balance)
    else:
        moved = -balance
    if moved:
        kind = "applied_to_invoice" if total >= 0 else "invoice_too_small"
        add_balance(account, customer, moved, invoice["currency"], kind, invoice=invoice["id"])
    invoice["ending_balance"] = customer["balance"]
    due = 0 if total < 0 else total - moved
    invoice["amount_due"] = invoice["amount_remaining"] = due


def payment_method_of(account: Account, invoice: Json) -> str | None:
    """What an automatic charge would use."""
    customer = account.store("cus")[invoice["customer"]]
    method: str | None = (
        invoice["default_payment_method"] or customer["invoice_settings"]["default_payment_method"]
    )
    return method


def attempt_payment(account: Account, invoice: Json, payment_method: str | None = None) -> bool:
    """Charge an open invoice; on failure the subscription is past due."""
    method = payment_method or payment_method_of(account, invoice)
    invoice["attempted"] = True
    invoice["attempt_count"] += 1
    if method is not None and can_be_charged(account, method):
        settle(account, invoice)
        return True
    account.emit("invoice.payment_failed", "in", invoice)
    _follow_payment(account, invoice, paid=False)
    return False


def settle(account: Account, invoice: Json) -> None:
    """Mark an open invoice as paid."""
    invoice["status"] = "paid"
    invoice["amount_paid"] = invoice["amount_remaining"]
    invoice["amount_remaining"] = 0
    invoice["attempted"] = True
    invoice["auto_advance"] = False
    invoice["status_transitions"]["paid_at"] = account.now(invoice["test_clock"])
    account.emit("invoice.paid", "in", invoice)
    account.emit("invoice.payment_succeeded", "in", invoice)
    _follow_payment(account, invoice, paid=True)


def _follow_payment(account: Account, invoice: Json, *, paid: bool) -> None:
    details = (invoice["parent"] or {}).get("subscription_details")
    subscription = account.store("sub").get(details["subscription"]) if details else None
    if subscription is None or subscription["ended_at"] is not None:
        return
    first = invoice["billing_reason"] == "subscription_create"
    before = account.render("sub", subscription)
    if paid and subscription["status"] in ("incomplete", "past_due"):
        subscription["status"] = "active"
    elif not paid and subscription["status"] == "active":
        subscription["status"] = "incomplete" if first else "past_due"
    account.emit_update("customer.subscription.updated", "sub", subscription, before)


def require_collectable(account: Account, invoice: Json) -> None:
    """Refuse what `charge_automatically` could never charge."""
    show_invoice(account, invoice)
    if invoice["collection_method"] != "charge_automatically" or invoice["amount_due"] == 0:
        return
    if payment_method_of(account, invoice) is None:
        raise invalid_request(
            "This customer has no attached payment source or default payment method. Please "
            "consider adding a default payment method. For more information, visit "
            "https://stripe.com/docs/billing/subscriptions/payment-methods-setting.",
            code="resource_missing",
        )


def declined() -> Exception:
    """The error of a charge that failed."""
    return card_declined()


def sweep_pending(account: Account, invoice: Json, subscription: str | None) -> None:
    """Take the customer's pending invoice items onto a draft."""
    for item in account.store("ii").values():
        if (
            item["invoice"] is None
            and not item.get("_gone")
            and item["customer"] == invoice["customer"]
            and item["currency"] == invoice["currency"]
            and (item["parent"] is None or item["_subscription"] in (None, subscription))
        ):
            item["invoice"] = invoice["id"]

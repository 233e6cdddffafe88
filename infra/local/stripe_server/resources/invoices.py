"""Invoices over HTTP: drafts, finalisation, payment, voiding, lines and the preview."""

from __future__ import annotations

from infra.local.stripe_server.account import (
    Account,
    Json,
    created_within,
    merge_metadata,
    page,
    page_rendered,
    register_kind,
)
from infra.local.stripe_server.errors import invalid_request
from infra.local.stripe_server.invoicing import (
    attempt_payment,
    build_invoice,
    build_line,
    declined,
    finalize,
    keep_draft,
    lines_of,
    plan_finalisation,
    settle,
    show_invoice,
    sweep_pending,
)
from infra.local.stripe_server.resources.customers import find_attached
from infra.local.stripe_server.resources.subscriptions import preview_renewal
from infra.local.stripe_server.routes import Params, route

register_kind("in", "invoice", show_invoice)


def _require_status(invoice: Json, *allowed: str) -> None:
    if invoice["status"] not in allowed:
        raise invalid_request(
            f"You can only do this to an invoice that is {' or '.join(allowed)}; this one is "
            f"{invoice['status']}.",
            code="invoice_not_editable" if allowed == ("draft",) else None,
        )


@route("POST", "/v1/invoices", "InvoiceCreateParams")
def create_invoice(account: Account, params: Params) -> Json:
    """POST /v1/invoices: an empty draft, or one with the pending items."""
    if not params.get("customer"):
        raise invalid_request(
            "Missing required param: customer.", code="parameter_missing", param="customer"
        )
    customer = account.get("cus", params["customer"], param="customer")
    now = account.now(customer["test_clock"])
    invoice = build_invoice(
        account,
        customer,
        currency=(params.get("currency") or customer["currency"] or "usd").lower(),
        billing_reason="manual",
        period=(now, now),
        auto_advance=params.get("auto_advance", False),
        collection_method=params.get("collection_method") or "charge_automatically",
        description=params.get("description"),
        metadata=merge_metadata({}, params.get("metadata")),
        _days_until_due=params.get("days_until_due"),
    )
    if params.get("pending_invoice_items_behavior") == "include":
        sweep_pending(account, invoice, None)
    keep_draft(account, invoice)
    return account.render("in", invoice)


@route("GET", "/v1/invoices", "InvoiceListParams")
def list_invoices(account: Account, params: Params) -> Json:
    """GET /v1/invoices."""
    found = [
        invoice
        for invoice in account.store("in").values()
        if all(
            params.get(key) in (None, invoice[key])
            for key in ("customer", "status", "collection_method")
        )
        and (
            params.get("subscription") is None
            or ((invoice["parent"] or {}).get("subscription_details") or {}).get("subscription")
            == params["subscription"]
        )
        and (params.get("customer") or params.get("subscription") or invoice["test_clock"] is None)
        and created_within(invoice, params.get("created"))
    ]
    return page(account, "in", found, params, "/v1/invoices")


@route("POST", "/v1/invoices/create_preview", "InvoiceCreatePreviewParams")
def create_preview(account: Account, params: Params) -> Json:
    """POST /v1/invoices/create_preview: the next renewal of a subscription as it stands."""
    spoken = {"customer", "subscription", "expand", "invoice_items", "currency", "preview_mode"}
    unspoken = sorted(set(params) - spoken)
    if unspoken:
        raise invalid_request(
            f"The local server previews a subscription as it stands; it does not speak "
            f"{unspoken[0]}.",
            param=unspoken[0],
        )
    subscription_id = params.get("subscription")
    if subscription_id is None:
        live = [
            subscription["id"]
            for subscription in account.store("sub").values()
            if subscription["customer"] == params.get("customer")
            and subscription["status"] != "canceled"
        ]
        if not live:
            raise invalid_request(
                f"No upcoming invoices for customer: '{params.get('customer')}'",
                code="invoice_upcoming_none",
                status=404,
            )
        subscription_id = live[-1]
    subscription = account.get("sub", subscription_id, param="subscription")
    if params.get("customer") not in (None, subscription["customer"]):
        raise invalid_request("The subscription is of another customer.", param="customer")
    if subscription["status"] == "canceled":
        raise invalid_request(
            "No upcoming invoices: the subscription is canceled.",
            code="invoice_upcoming_none",
            status=404,
        )
    invoice = preview_renewal(account, subscription)
    for row in params.get("invoice_items") or []:
        invoice["_preview_items"].append(_preview_line(account, invoice, row))
    shown = show_invoice(account, invoice)
    shown["lines"]["data"] = lines_of(account, invoice)
    shown["lines"]["has_more"] = False
    return shown


def _preview_line(account: Account, invoice: Json, row: Params) -> Json:
    amount = row.get("amount", 0)
    return build_line(
        line_id=account.new_id("il_tmp", 24),
        invoice=invoice["id"],
        amount=amount,
        currency=invoice["currency"],
        description=row.get("description"),
        period={"end": invoice["period_end"], "start": invoice["period_end"]},
        quantity=row.get("quantity", 1),
        parent={
            "invoice_item_details": None,
            "subscription_item_details": None,
            "type": "invoice_item_details",
        },
        price=None,
        unit_amount_decimal=str(amount),
        subscription=None,
    )


@route("GET", "/v1/invoices/{}", "InvoiceRetrieveParams")
def retrieve_invoice(account: Account, _params: Params, invoice_id: str) -> Json:
    """GET /v1/invoices/:id."""
    return account.render("in", account.get("in", invoice_id))


@route("GET", "/v1/invoices/{}/lines", "InvoiceLineItemListParams")
def list_lines(account: Account, params: Params, invoice_id: str) -> Json:
    """GET /v1/invoices/:id/lines, in the invoice's own order."""
    lines = lines_of(account, account.get("in", invoice_id))
    return page_rendered(lines, params, f"/v1/invoices/{invoice_id}/lines")


@route("POST", "/v1/invoices/{}", "InvoiceUpdateParams")
def update_invoice(account: Account, params: Params, invoice_id: str) -> Json:
    """POST /v1/invoices/:id; `auto_advance=false` holds a draft, `true` lets it go again."""
    invoice = account.get("in", invoice_id)
    if set(params) - {"metadata", "auto_advance", "expand", "default_payment_method"}:
        _require_status(invoice, "draft")
    if "auto_advance" in params:
        # Of all others it is always off (Stripe's documentation, automatic advancement).
        _require_status(invoice, "draft", "open")
    before = account.render("in", invoice)
    if "metadata" in params:
        invoice["metadata"] = merge_metadata(invoice["metadata"], params["metadata"])
    for key in ("description", "collection_method", "footer", "statement_descriptor"):
        if key in params:
            invoice[key] = params[key] or None
    if params.get("default_payment_method"):
        invoice["default_payment_method"] = find_attached(
            account, params["default_payment_method"], invoice["customer"]
        )
    if "days_until_due" in params:
        invoice["_days_until_due"] = params["days_until_due"]
    if "auto_advance" in params:
        invoice["auto_advance"] = params["auto_advance"]
        if invoice["status"] == "draft":
            invoice["automatically_finalizes_at"] = None
            if params["auto_advance"]:
                plan_finalisation(account, invoice)
    if params.get("automatically_finalizes_at"):
        at = params["automatically_finalizes_at"]
        invoice["automatically_finalizes_at"] = at
        account.schedule(at, invoice["test_clock"], "finalize", invoice_id)
    account.emit_update("invoice.updated", "in", invoice, before)
    return account.render("in", invoice)


@route("DELETE", "/v1/invoices/{}", "InvoiceDeleteParams")
def delete_invoice(account: Account, _params: Params, invoice_id: str) -> Json:
    """DELETE /v1/invoices/:id: a draft that no subscription made."""
    invoice = account.get("in", invoice_id)
    _require_status(invoice, "draft")
    if invoice["billing_reason"] != "manual":
        raise invalid_request("You can't delete invoices created by subscriptions.")
    account.emit("invoice.deleted", "in", invoice)
    for item in account.store("ii").values():
        if item["invoice"] == invoice_id:
            item["_gone"] = True
    invoice["_gone"] = True
    return {"id": invoice_id, "object": "invoice", "deleted": True}


@route("POST", "/v1/invoices/{}/finalize", "InvoiceFinalizeInvoiceParams")
def finalize_invoice(account: Account, params: Params, invoice_id: str) -> Json:
    """POST /v1/invoices/:id/finalize."""
    invoice = account.get("in", invoice_id)
    if "auto_advance" in params:
        invoice["auto_advance"] = params["auto_advance"]
    finalize(account, invoice, collect=invoice["auto_advance"])
    return account.render("in", invoice)


@route("POST", "/v1/invoices/{}/pay", "InvoicePayParams")
def pay_invoice(account: Account, params: Params, invoice_id: str) -> Json:
    """POST /v1/invoices/:id/pay: finalises a draft first; a failed charge is a 402."""
    invoice = account.get("in", invoice_id)
    if invoice["status"] == "draft":
        finalize(account, invoice, collect=False)
    if invoice["status"] == "paid":
        if invoice["amount_paid"] == 0:
            return account.render("in", invoice)
        raise invalid_request("Invoice is already paid")
    _require_status(invoice, "open", "uncollectible")
    if params.get("paid_out_of_band"):
        settle(account, invoice)
        return account.render("in", invoice)
    method = params.get("payment_method")
    if method is not None:
        method = find_attached(account, method, invoice["customer"])
    if not attempt_payment(account, invoice, method):
        raise declined()
    return account.render("in", invoice)


@route("POST", "/v1/invoices/{}/void", "InvoiceVoidInvoiceParams")
def void_invoice(account: Account, _params: Params, invoice_id: str) -> Json:
    """POST /v1/invoices/:id/void."""
    invoice = account.get("in", invoice_id)
    _require_status(invoice, "open", "uncollectible")
    invoice["status"] = "void"
    invoice["amount_remaining"] = 0
    invoice["auto_advance"] = False
    invoice["status_transitions"]["voided_at"] = account.now(invoice["test_clock"])
    account.emit("invoice.voided", "in", invoice)
    return account.render("in", invoice)


@route("POST", "/v1/invoices/{}/send", "InvoiceSendInvoiceParams")
def send_invoice(account: Account, _params: Params, invoice_id: str) -> Json:
    """POST /v1/invoices/:id/send."""
    invoice = account.get("in", invoice_id)
    if invoice["status"] == "draft":
        finalize(account, invoice, collect=False)
    account.emit("invoice.sent", "in", invoice)
    return account.render("in", invoice)


@route("POST", "/v1/invoices/{}/mark_uncollectible", "InvoiceMarkUncollectibleParams")
def mark_uncollectible(account: Account, _params: Params, invoice_id: str) -> Json:
    """POST /v1/invoices/:id/mark_uncollectible."""
    invoice = account.get("in", invoice_id)
    _require_status(invoice, "open")
    invoice["status"] = "uncollectible"
    invoice["auto_advance"] = False
    invoice["status_transitions"]["marked_uncollectible_at"] = account.now(invoice["test_clock"])
    account.emit("invoice.marked_uncollectible", "in", invoice)
    return account.render("in", invoice)

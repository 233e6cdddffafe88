"""Credit notes: what corrects a finalised invoice, whose own lines never change."""

from __future__ import annotations

from infra.local.stripe_server.account import (
    Account,
    Json,
    merge_metadata,
    page,
    page_rendered,
    register_kind,
    show_plain,
)
from infra.local.stripe_server.errors import invalid_request, missing_resource
from infra.local.stripe_server.invoicing import lines_of, settle
from infra.local.stripe_server.resources.customers import add_balance
from infra.local.stripe_server.routes import Params, route


def _show_credit_note(_account: Account, note: Json) -> Json:
    shown = show_plain(_account, note)
    shown["lines"] = {
        "object": "list",
        "data": note["_lines"][:10],
        "has_more": len(note["_lines"]) > 10,
        "url": f"/v1/credit_notes/{note['id']}/lines",
    }
    return shown


register_kind("cn", "credit note", _show_credit_note)


def _read_lines(account: Account, invoice: Json, params: Params) -> list[Json]:
    rows = params.get("lines")
    if not rows:
        if params.get("amount") is None:
            raise invalid_request("You must pass one of amount or lines.", param="amount")
        rows = [{"type": "custom_line_item", "amount": params["amount"], "description": "Credit"}]
    known = {line["id"]: line for line in lines_of(account, invoice)}
    lines = []
    for row in rows:
        amount = row.get("amount")
        if row.get("type") == "invoice_line_item":
            line = known.get(row.get("invoice_line_item") or "")
            if line is None:
                raise missing_resource(
                    "line item", str(row.get("invoice_line_item")), param="lines"
                )
            amount = line["amount"] if amount is None else amount
        elif amount is None:
            amount = row.get("unit_amount", 0) * row.get("quantity", 1)
        lines.append(
            {
                "id": account.new_id("cnli", 24),
                "object": "credit_note_line_item",
                "amount": amount,
                "description": row.get("description"),
                "discount_amount": 0,
                "discount_amounts": [],
                "invoice_line_item": row.get("invoice_line_item"),
                "livemode": False,
                "metadata": {},
                "pretax_credit_amounts": [],
                "quantity": row.get("quantity", 1),
                "tax_rates": [],
                "taxes": [],
                "type": row.get("type"),
                "unit_amount": row.get("unit_amount"),
                "unit_amount_decimal": None,
            }
        )
    return lines


@route("POST", "/v1/credit_notes", "CreditNoteCreateParams")
def create_credit_note(account: Account, params: Params) -> Json:
    """POST /v1/credit_notes: less to pay on an open invoice, credit or refund on a paid one."""
    invoice = account.get("in", params["invoice"], param="invoice")
    if invoice["status"] not in ("open", "paid"):
        raise invalid_request(
            f"Credit notes can only be made for open or paid invoices; this one is "
            f"{invoice['status']}.",
            param="invoice",
        )
    customer = account.store("cus")[invoice["customer"]]
    lines = _read_lines(account, invoice, params)
    amount = sum(line["amount"] for line in lines)
    earlier = [note for note in account.store("cn").values() if note["invoice"] == invoice["id"]]
    credited = sum(note["total"] for note in earlier if note["status"] == "issued")
    if amount <= 0 or credited + amount > invoice["total"]:
        raise invalid_request(
            "The sum of credit notes must be positive and at most the total of the invoice.",
            param="amount",
        )
    now = account.now(invoice["test_clock"])
    pre_payment = min(amount, invoice["amount_remaining"])
    post_payment = amount - pre_payment
    given = sum(params.get(key) or 0 for key in ("credit_amount", "refund_amount"))
    given += params.get("out_of_band_amount") or 0
    if given != post_payment:
        raise invalid_request(
            "The sum of credit_amount, refund_amount and out_of_band_amount must equal the "
            f"post-payment amount ({post_payment}).",
        )
    note: Json = {
        "id": account.new_id("cn", 24),
        "object": "credit_note",
        "amount": amount,
        "amount_shipping": 0,
        "created": now,
        "currency": invoice["currency"],
        "customer": customer["id"],
        "customer_account": None,
        "customer_balance_transaction": None,
        "discount_amount": 0,
        "discount_amounts": [],
        "effective_at": params.get("effective_at", now),
        "invoice": invoice["id"],
        "livemode": False,
        "memo": params.get("memo"),
        "metadata": merge_metadata({}, params.get("metadata")),
        "number": f"{invoice['number']}-CN-{(credited and 2) or 1:02d}",
        "out_of_band_amount": params.get("out_of_band_amount"),
        "pdf": f"{invoice['invoice_pdf']}/credit_note",
        "post_payment_amount": post_payment,
        "pre_payment_amount": pre_payment,
        "pretax_credit_amounts": [],
        "reason": params.get("reason"),
        "refunds": [],
        "shipping_cost": None,
        "status": "issued",
        "subtotal": amount,
        "subtotal_excluding_tax": amount,
        "total": amount,
        "total_excluding_tax": amount,
        "total_taxes": [],
        "type": "pre_payment" if post_payment == 0 else "post_payment",
        "voided_at": None,
        "_lines": lines,
    }
    account.add("cn", note)
    if params.get("credit_amount"):
        note["customer_balance_transaction"] = add_balance(
            account,
            customer,
            -params["credit_amount"],
            invoice["currency"],
            "credit_note",
            credit_note=note["id"],
            invoice=invoice["id"],
        )["id"]
    invoice["pre_payment_credit_notes_amount"] += pre_payment
    invoice["post_payment_credit_notes_amount"] += post_payment
    invoice["amount_remaining"] -= pre_payment
    invoice["amount_due"] -= pre_payment
    account.emit("credit_note.created", "cn", note)
    if invoice["status"] == "open" and invoice["amount_remaining"] == 0:
        settle(account, invoice)
    return account.render("cn", note)


@route("GET", "/v1/credit_notes", "CreditNoteListParams")
def list_credit_notes(account: Account, params: Params) -> Json:
    """GET /v1/credit_notes."""
    found = [
        note
        for note in account.store("cn").values()
        if params.get("invoice") in (None, note["invoice"])
        and params.get("customer") in (None, note["customer"])
    ]
    return page(account, "cn", found, params, "/v1/credit_notes")


@route("GET", "/v1/credit_notes/{}", "CreditNoteRetrieveParams")
def retrieve_credit_note(account: Account, _params: Params, note_id: str) -> Json:
    """GET /v1/credit_notes/:id."""
    return account.render("cn", account.get("cn", note_id))


@route("GET", "/v1/credit_notes/{}/lines", "CreditNoteLineItemListParams")
def list_credit_note_lines(account: Account, params: Params, note_id: str) -> Json:
    """GET /v1/credit_notes/:id/lines."""
    lines = account.get("cn", note_id)["_lines"]
    return page_rendered(lines, params, f"/v1/credit_notes/{note_id}/lines")


@route("POST", "/v1/credit_notes/{}/void", "CreditNoteVoidCreditNoteParams")
def void_credit_note(account: Account, _params: Params, note_id: str) -> Json:
    """POST /v1/credit_notes/:id/void: only one of an open invoice."""
    note = account.get("cn", note_id)
    invoice = account.get("in", note["invoice"])
    if note["status"] == "void" or invoice["status"] != "open":
        raise invalid_request("This credit note cannot be voided.")
    note["status"] = "void"
    note["voided_at"] = account.now(invoice["test_clock"])
    invoice["pre_payment_credit_notes_amount"] -= note["pre_payment_amount"]
    invoice["amount_remaining"] += note["pre_payment_amount"]
    invoice["amount_due"] += note["pre_payment_amount"]
    account.emit("credit_note.voided", "cn", note)
    return account.render("cn", note)

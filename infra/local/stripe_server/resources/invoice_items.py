"""Invoice items: pending until an invoice takes them, or put on a draft; negative is allowed."""

from __future__ import annotations

from fractions import Fraction

from infra.local.stripe_server.account import (
    Account,
    Json,
    created_within,
    merge_metadata,
    page,
    register_kind,
)
from infra.local.stripe_server.billing import price_quantity, round_half_up
from infra.local.stripe_server.errors import invalid_request
from infra.local.stripe_server.resources.products import billing_view
from infra.local.stripe_server.routes import Params, route

register_kind("ii", "invoiceitem")


def build_item(
    account: Account,
    customer: Json,
    amount: int,
    currency: str,
    *,
    description: str | None,
    period: Json,
    quantity: int = 1,
    unit_amount_decimal: str | None = None,
    price: Json | None = None,
    subscription: str | None = None,
    proration: bool = False,
) -> Json:
    """Keep a new invoice item, pending."""
    pricing: Json = {
        "type": "price_details",
        "unit_amount_decimal": unit_amount_decimal or str(amount),
    }
    if price is not None:
        pricing["price_details"] = {"price": price["id"], "product": price["product"]}
    parent = None
    if subscription is not None:
        parent = {
            "subscription_details": {"subscription": subscription},
            "type": "subscription_details",
        }
    return account.add(
        "ii",
        {
            "id": account.new_id("ii", 24),
            "object": "invoiceitem",
            "amount": amount,
            "currency": currency,
            "customer": customer["id"],
            "customer_account": None,
            "date": account.now(customer["test_clock"]),
            "description": description,
            "discountable": amount >= 0,
            "discounts": [],
            "invoice": None,
            "livemode": False,
            "metadata": {},
            "net_amount": amount,
            "parent": parent,
            "period": period,
            "pricing": pricing,
            "proration": proration,
            "quantity": quantity,
            "quantity_decimal": str(quantity),
            "tax_rates": [],
            "test_clock": customer["test_clock"],
            "_line": account.new_id("il", 24),
            "_subscription": subscription,
        },
    )


def _editable(account: Account, invoice_id: str) -> Json:
    invoice = account.get("in", invoice_id, param="invoice")
    if invoice["status"] != "draft":
        raise invalid_request(
            "This invoice is no longer editable.", code="invoice_not_editable", param="invoice"
        )
    return invoice


@route("POST", "/v1/invoiceitems", "InvoiceItemCreateParams")
def create_invoice_item(account: Account, params: Params) -> Json:
    """POST /v1/invoiceitems."""
    if not params.get("customer"):
        raise invalid_request(
            "Missing required param: customer.", code="parameter_missing", param="customer"
        )
    customer = account.get("cus", params["customer"], param="customer")
    invoice = _editable(account, params["invoice"]) if params.get("invoice") else None
    subscription = params.get("subscription")
    if subscription is not None:
        account.get("sub", subscription, param="subscription")
    quantity = params.get("quantity", 1)
    price: Json | None = None
    price_id = (params.get("pricing") or {}).get("price")
    currency = (params.get("currency") or (invoice or {}).get("currency") or "").lower()
    unit: str | None = None
    if price_id is not None:
        price = account.get("price", price_id, param="pricing[price]")
        if price["type"] != "one_time":
            raise invalid_request(
                "The price specified is recurring; only one-time prices can be used here.",
                param="pricing[price]",
            )
        currency = currency or price["currency"]
        amount = sum(
            line.amount for line in price_quantity(billing_view(price), currency, quantity)
        )
        unit = price["unit_amount_decimal"]
    elif params.get("unit_amount_decimal") is not None:
        unit = format(params["unit_amount_decimal"], "f")
        amount = round_half_up(Fraction(unit) * quantity)
    elif params.get("amount") is not None:
        amount = params["amount"]
    else:
        raise invalid_request("One of amount, unit_amount_decimal or pricing is required.")
    if not currency:
        raise invalid_request(
            "Missing required param: currency.", code="parameter_missing", param="currency"
        )
    if invoice is not None and (
        invoice["customer"] != customer["id"] or invoice["currency"] != currency
    ):
        raise invalid_request("The invoice is of another customer or currency.", param="invoice")
    now = account.now(customer["test_clock"])
    item = build_item(
        account,
        customer,
        amount,
        currency,
        description=params.get("description"),
        period=params.get("period") or {"end": now, "start": now},
        quantity=quantity,
        unit_amount_decimal=unit,
        price=price,
        subscription=subscription,
    )
    item["metadata"] = merge_metadata({}, params.get("metadata"))
    item["invoice"] = invoice["id"] if invoice else None
    customer["currency"] = customer["currency"] or currency
    account.emit("invoiceitem.created", "ii", item)
    return account.render("ii", item)


@route("GET", "/v1/invoiceitems", "InvoiceItemListParams")
def list_invoice_items(account: Account, params: Params) -> Json:
    """GET /v1/invoiceitems."""
    pending = params.get("pending")
    found = [
        item
        for item in account.store("ii").values()
        if params.get("customer") in (None, item["customer"])
        and params.get("invoice") in (None, item["invoice"])
        and (pending is None or pending == (item["invoice"] is None))
        and created_within({"created": item["date"]}, params.get("created"))
    ]
    return page(account, "ii", found, params, "/v1/invoiceitems")


@route("GET", "/v1/invoiceitems/{}", "InvoiceItemRetrieveParams")
def retrieve_invoice_item(account: Account, _params: Params, item_id: str) -> Json:
    """GET /v1/invoiceitems/:id."""
    return account.render("ii", account.get("ii", item_id))


@route("POST", "/v1/invoiceitems/{}", "InvoiceItemUpdateParams")
def update_invoice_item(account: Account, params: Params, item_id: str) -> Json:
    """POST /v1/invoiceitems/:id."""
    item = account.get("ii", item_id)
    if item["invoice"] is not None:
        _editable(account, item["invoice"])
    if params.get("amount") is not None:
        item["amount"] = item["net_amount"] = params["amount"]
        item["pricing"]["unit_amount_decimal"] = str(params["amount"])
    if "description" in params:
        item["description"] = params["description"] or None
    if "metadata" in params:
        item["metadata"] = merge_metadata(item["metadata"], params["metadata"])
    return account.render("ii", item)


@route("DELETE", "/v1/invoiceitems/{}", "InvoiceItemDeleteParams")
def delete_invoice_item(account: Account, _params: Params, item_id: str) -> Json:
    """DELETE /v1/invoiceitems/:id: pending or on a draft."""
    item = account.get("ii", item_id)
    if item["invoice"] is not None:
        _editable(account, item["invoice"])
    account.emit("invoiceitem.deleted", "ii", item)
    item["_gone"] = True
    return {"id": item_id, "object": "invoiceitem", "deleted": True}

"""Customers, their payment methods (Stripe's test cards only) and their credit balance."""

from __future__ import annotations

from infra.local.stripe_server.account import (
    Account,
    Json,
    created_within,
    merge_metadata,
    page,
    register_kind,
)
from infra.local.stripe_server.errors import invalid_request, missing_resource
from infra.local.stripe_server.routes import Params, route

register_kind("cus", "customer")
register_kind("cbtxn", "customer balance transaction")
register_kind("pm", "PaymentMethod")

TEST_CARDS = {"pm_card_visa": True, "pm_card_mastercard": True, "pm_card_chargeCustomerFail": False}
"""Stripe's test payment methods that are known here, and whether a charge succeeds."""

_SIMPLE_FIELDS = ("address", "description", "email", "name", "phone", "shipping")


@route("POST", "/v1/customers", "CustomerCreateParams")
def create_customer(account: Account, params: Params) -> Json:
    """POST /v1/customers."""
    test_clock = params.get("test_clock")
    if test_clock is not None:
        account.get("clock", test_clock, param="test_clock")
    customer: Json = {
        "id": account.new_id("cus"),
        "object": "customer",
        "address": None,
        "balance": params.get("balance", 0),
        "created": account.now(test_clock),
        "currency": None,
        "customer_account": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "discount": None,
        "email": None,
        "invoice_prefix": params.get("invoice_prefix") or account.new_id("x", 8)[2:].upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": {},
        "name": None,
        "next_invoice_sequence": params.get("next_invoice_sequence", 1),
        "phone": None,
        "preferred_locales": params.get("preferred_locales") or [],
        "shipping": None,
        "tax_exempt": params.get("tax_exempt") or "none",
        "test_clock": test_clock,
    }
    account.add("cus", customer)
    try:
        if params.get("payment_method"):
            attach(account, params["payment_method"], customer["id"])
        _apply(account, customer, params)
    except Exception:
        del account.store("cus")[customer["id"]]
        raise
    account.emit("customer.created", "cus", customer)
    return account.render("cus", customer)


def _apply(account: Account, customer: Json, params: Params) -> None:
    for key in _SIMPLE_FIELDS:
        if key in params:
            customer[key] = params[key] or None
    if "balance" in params and params["balance"] != customer["balance"]:
        customer["balance"] = params["balance"]
    if "metadata" in params:
        customer["metadata"] = merge_metadata(customer["metadata"], params["metadata"])
    chosen = (params.get("invoice_settings") or {}).get("default_payment_method")
    if chosen:
        customer["invoice_settings"] = {
            **customer["invoice_settings"],
            "default_payment_method": find_attached(account, chosen, customer["id"]),
        }


def attach(account: Account, payment_method: str, customer: str) -> Json:
    """A test card attached to a customer, under an id of its own, as Stripe does it."""
    if payment_method not in TEST_CARDS:
        raise missing_resource("PaymentMethod", payment_method, param="payment_method")
    return account.add(
        "pm",
        {
            "id": account.new_id("pm", 24),
            "object": "payment_method",
            "created": account.customer_now(customer),
            "customer": customer,
            "livemode": False,
            "metadata": {},
            "type": "card",
            "_test_card": payment_method,
        },
    )


def find_attached(account: Account, payment_method: str, customer: str) -> str:
    """The id of an attached payment method, named by its id or by its test card."""
    for stored in account.store("pm").values():
        if stored["customer"] == customer and payment_method in (
            stored["id"],
            stored["_test_card"],
        ):
            found: str = stored["id"]
            return found
    raise missing_resource("PaymentMethod", payment_method, param="default_payment_method")


def can_be_charged(account: Account, payment_method: str) -> bool:
    """Whether a charge of this payment method succeeds."""
    return TEST_CARDS[account.get("pm", payment_method)["_test_card"]]


@route("POST", "/v1/payment_methods/{}/attach", "PaymentMethodAttachParams")
def attach_payment_method(account: Account, params: Params, payment_method: str) -> Json:
    """POST /v1/payment_methods/:id/attach."""
    customer = account.get("cus", params.get("customer", ""), param="customer")
    return account.render("pm", attach(account, payment_method, customer["id"]))


@route("GET", "/v1/customers", "CustomerListParams")
def list_customers(account: Account, params: Params) -> Json:
    """GET /v1/customers."""
    email, test_clock = params.get("email"), params.get("test_clock")
    found = [
        customer
        for customer in account.store("cus").values()
        if (email is None or customer["email"] == email)
        and customer["test_clock"] == test_clock
        and created_within(customer, params.get("created"))
    ]
    return page(account, "cus", found, params, "/v1/customers")


@route("GET", "/v1/customers/{}", "CustomerRetrieveParams")
def retrieve_customer(account: Account, _params: Params, customer_id: str) -> Json:
    """GET /v1/customers/:id; a deleted customer answers `deleted`."""
    customer = account.store("cus").get(customer_id)
    if customer is not None and customer.get("_gone"):
        return {"id": customer_id, "object": "customer", "deleted": True}
    return account.render("cus", account.get("cus", customer_id))


@route("POST", "/v1/customers/{}", "CustomerUpdateParams")
def update_customer(account: Account, params: Params, customer_id: str) -> Json:
    """POST /v1/customers/:id."""
    customer = account.get("cus", customer_id)
    before = account.render("cus", customer)
    _apply(account, customer, params)
    account.emit_update("customer.updated", "cus", customer, before)
    return account.render("cus", customer)


@route("DELETE", "/v1/customers/{}", "CustomerDeleteParams")
def delete_customer(account: Account, _params: Params, customer_id: str) -> Json:
    """DELETE /v1/customers/:id: its subscriptions end at once."""
    from infra.local.stripe_server.resources.subscriptions import end_subscription

    customer = account.get("cus", customer_id)
    for subscription in list(account.store("sub").values()):
        if subscription["customer"] == customer_id and subscription["ended_at"] is None:
            end_subscription(account, subscription, account.customer_now(customer_id))
    account.emit("customer.deleted", "cus", customer)
    customer["_gone"] = True
    return {"id": customer_id, "object": "customer", "deleted": True}


def add_balance(
    account: Account,
    customer: Json,
    amount: int,
    currency: str,
    kind: str,
    **fields: object,
) -> Json:
    """Move a customer's balance; negative is credit that later invoices take up."""
    customer["balance"] += amount
    transaction: Json = {
        "id": account.new_id("cbtxn", 24),
        "object": "customer_balance_transaction",
        "amount": amount,
        "checkout_session": None,
        "created": account.customer_now(customer["id"]),
        "credit_note": None,
        "currency": currency,
        "customer": customer["id"],
        "customer_account": None,
        "description": None,
        "ending_balance": customer["balance"],
        "invoice": None,
        "livemode": False,
        "metadata": {},
        "type": kind,
        **fields,
    }
    return account.add("cbtxn", transaction)


@route("POST", "/v1/customers/{}/balance_transactions", "CustomerBalanceTransactionCreateParams")
def create_balance_transaction(account: Account, params: Params, customer_id: str) -> Json:
    """POST /v1/customers/:id/balance_transactions."""
    customer = account.get("cus", customer_id)
    currency = params["currency"].lower()
    if customer["currency"] not in (None, currency):
        raise invalid_request(
            "You cannot combine currencies on a single customer. "
            f"This customer has had {customer['currency']}.",
            param="currency",
        )
    before = account.render("cus", customer)
    customer["currency"] = currency
    transaction = add_balance(
        account,
        customer,
        params["amount"],
        currency,
        "adjustment",
        description=params.get("description"),
        metadata=merge_metadata({}, params.get("metadata")),
    )
    account.emit("customer_balance_transaction.created", "cbtxn", transaction)
    account.emit_update("customer.updated", "cus", customer, before)
    return account.render("cbtxn", transaction)


@route("GET", "/v1/customers/{}/balance_transactions", "CustomerBalanceTransactionListParams")
def list_balance_transactions(account: Account, params: Params, customer_id: str) -> Json:
    """GET /v1/customers/:id/balance_transactions."""
    account.get("cus", customer_id)
    found = [row for row in account.store("cbtxn").values() if row["customer"] == customer_id]
    url = f"/v1/customers/{customer_id}/balance_transactions"
    return page(account, "cbtxn", found, params, url)


@route(
    "GET", "/v1/customers/{}/balance_transactions/{}", "CustomerBalanceTransactionRetrieveParams"
)
def retrieve_balance_transaction(
    account: Account, _params: Params, customer_id: str, transaction_id: str
) -> Json:
    """GET /v1/customers/:id/balance_transactions/:id."""
    account.get("cus", customer_id)
    return account.render("cbtxn", account.get("cbtxn", transaction_id))

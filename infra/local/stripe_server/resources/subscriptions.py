"""Subscriptions and their items: cycles, trials, changes with proration, and the end.

Relied on, where Stripe's documentation leaves room (flexible billing mode, the default since
2025-09-30): no line for metered items on the first invoice; an item added mid-period bills usage
from then on; one that is removed bills its usage so far as an invoice item unless
`proration_behavior=none`; a backdated subscription's metered items count from the backdate;
usage of a trial is not billed. All items of a subscription share one interval.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infra.local.stripe_server.account import (
    Account,
    Json,
    created_within,
    merge_metadata,
    page,
    register_action,
    register_kind,
    show_plain,
)
from infra.local.stripe_server.billing import price_quantity, prorate
from infra.local.stripe_server.errors import invalid_request
from infra.local.stripe_server.invoicing import (
    attempt_payment,
    build_invoice,
    build_line,
    declined,
    describe,
    finalize,
    keep_draft,
    price_usage_lines,
    require_collectable,
    show_invoice,
    subscription_parent,
    sweep_pending,
)
from infra.local.stripe_server.periods import next_boundary, shift
from infra.local.stripe_server.resources.customers import find_attached
from infra.local.stripe_server.resources.invoice_items import build_item
from infra.local.stripe_server.resources.products import billing_view
from infra.local.stripe_server.routes import Params, route

_LIVE = ("trialing", "active", "past_due", "incomplete", "unpaid", "paused")


def items_of(account: Account, subscription: Json) -> list[Json]:
    """The subscription's current items, oldest first."""
    return [account.store("si")[item_id] for item_id in subscription["_items"]]


def _show_item(account: Account, item: Json) -> Json:
    shown = show_plain(account, item)
    price = account.render("price", account.get("price", item["price"]))
    shown["price"] = price
    shown["plan"] = {
        "active": price["active"],
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": price["billing_scheme"],
        "created": price["created"],
        "currency": price["currency"],
        "id": price["id"],
        "interval": price["recurring"]["interval"],
        "interval_count": price["recurring"]["interval_count"],
        "livemode": False,
        "metadata": price["metadata"],
        "meter": price["recurring"]["meter"],
        "nickname": price["nickname"],
        "object": "plan",
        "product": price["product"],
        "tiers_mode": price["tiers_mode"],
        "transform_usage": price["transform_quantity"],
        "trial_period_days": price["recurring"]["trial_period_days"],
        "usage_type": price["recurring"]["usage_type"],
    }
    if is_metered(price):
        shown.pop("quantity", None)
    subscription = account.store("sub")[item["subscription"]]
    shown["current_period_start"] = subscription["_period_start"]
    shown["current_period_end"] = subscription["_period_end"]
    return shown


def _show_subscription(account: Account, subscription: Json) -> Json:
    shown = show_plain(account, subscription)
    items = items_of(account, subscription)
    shown["items"] = {
        "object": "list",
        "data": [account.render("si", item) for item in items[:20]],
        "has_more": len(items) > 20,
        "total_count": len(items),
        "url": f"/v1/subscription_items?subscription={subscription['id']}",
    }
    return shown


register_kind("sub", "subscription", _show_subscription)
register_kind("si", "subscription_item", _show_item)


def is_metered(price: Json) -> bool:
    """Whether a recurring price is billed from a meter."""
    return bool(price["recurring"]["usage_type"] == "metered")


def _read_price(account: Account, row: Params, where: str) -> Json:
    price_id = row.get("price") or row.get("plan")
    if not price_id:
        raise invalid_request(
            f"Missing required param: {where}[price].",
            code="parameter_missing",
            param=f"{where}[price]",
        )
    price = account.get("price", price_id, param=f"{where}[price]")
    if price["recurring"] is None:
        raise invalid_request(
            f"The price specified is set to `type=one_time` but this field only accepts prices "
            f"with `type=recurring`: {price_id}",
            param=f"{where}[price]",
        )
    if not price["active"]:
        raise invalid_request("The price specified is inactive.", param=f"{where}[price]")
    if is_metered(price) and row.get("quantity") is not None:
        raise invalid_request(
            "You cannot set the quantity for metered plans.", param=f"{where}[quantity]"
        )
    return price


def _add_item(
    account: Account, subscription: Json, price: Json, row: Params, usage_from: int
) -> Json:
    for other in items_of(account, subscription):
        if other["price"] == price["id"]:
            raise invalid_request(
                f"Cannot add multiple subscription items with the same plan: {price['id']}",
                param="items",
            )
        known = account.get("price", other["price"])["recurring"]
        for key in ("interval", "interval_count"):
            if known[key] != price["recurring"][key]:
                raise invalid_request(
                    "Currency and interval fields must match across all plans on this "
                    "subscription.",
                    param="items",
                )
    if subscription["currency"] not in price["_currency_options"]:
        raise invalid_request(
            f"The price {price['id']} has no amount in {subscription['currency']}.",
            param="items",
        )
    item: Json = {
        "id": account.new_id("si"),
        "object": "subscription_item",
        "billing_thresholds": None,
        "created": account.customer_now(subscription["customer"]),
        "discounts": [],
        "metadata": merge_metadata({}, row.get("metadata")),
        "price": price["id"],
        "quantity": None if is_metered(price) else row.get("quantity", 1),
        "subscription": subscription["id"],
        "tax_rates": [],
        "_usage_from": usage_from,
    }
    account.add("si", item)
    subscription["_items"].append(item["id"])
    return item


def _interval(account: Account, subscription: Json) -> tuple[str, int]:
    items = items_of(account, subscription)
    recurring = account.get("price", items[0]["price"])["recurring"] if items else {}
    return recurring.get("interval", "month"), recurring.get("interval_count", 1)


# Creation


@route("POST", "/v1/subscriptions", "SubscriptionCreateParams")
def create_subscription(account: Account, params: Params) -> Json:
    """POST /v1/subscriptions."""
    if not params.get("customer"):
        raise invalid_request(
            "Missing required param: customer.", code="parameter_missing", param="customer"
        )
    if not params.get("items"):
        raise invalid_request(
            "Missing required param: items.", code="parameter_missing", param="items"
        )
    customer = account.get("cus", params["customer"], param="customer")
    now = account.now(customer["test_clock"])
    prices = [
        _read_price(account, row, f"items[{index}]") for index, row in enumerate(params["items"])
    ]
    currency = (params.get("currency") or customer["currency"] or prices[0]["currency"]).lower()
    if customer["currency"] not in (None, currency):
        raise invalid_request(
            f"You cannot combine currencies on a single customer. This customer has had "
            f"{customer['currency']}.",
            param="currency",
        )
    collection_method = params.get("collection_method") or "charge_automatically"
    if collection_method == "send_invoice" and params.get("days_until_due") is None:
        raise invalid_request(
            "`days_until_due` is required when `collection_method` is `send_invoice`.",
            code="parameter_missing",
            param="days_until_due",
        )
    start = params.get("backdate_start_date", now)
    if start > now:
        raise invalid_request(
            "backdate_start_date must be in the past.", param="backdate_start_date"
        )
    subscription = _new_subscription(
        account, params, customer, now, start, currency, collection_method
    )
    account.add("sub", subscription)
    try:
        for row, price in zip(params["items"], prices, strict=True):
            _add_item(account, subscription, price, row, start)
        _start_cycle(account, subscription, params, now)
        chosen = params.get("default_payment_method")
        if chosen:
            subscription["default_payment_method"] = find_attached(account, chosen, customer["id"])
        _bill_creation(account, subscription, params, customer, now)
    except Exception:
        _undo_creation(account, subscription)
        raise
    customer["currency"] = currency
    _plan_cycle(account, subscription)
    if subscription["cancel_at"] is not None:
        account.schedule(
            subscription["cancel_at"], customer["test_clock"], "cancel_at", subscription["id"]
        )
    return account.render("sub", subscription)


def _undo_creation(account: Account, subscription: Json) -> None:
    """Leave nothing of a subscription that was refused; its pending items wait again."""
    del account.store("sub")[subscription["id"]]
    for item_id in subscription["_items"]:
        del account.store("si")[item_id]
    account.store("in").pop(subscription["latest_invoice"] or "", None)
    for item in account.store("ii").values():
        if item["invoice"] is not None and item["invoice"] not in account.store("in"):
            item["invoice"] = None


def _new_subscription(
    account: Account,
    params: Params,
    customer: Json,
    now: int,
    start: int,
    currency: str,
    collection_method: str,
) -> Json:
    mode = (params.get("billing_mode") or {}).get("type") or "flexible"
    flexible = {"proration_discounts": "included"} if mode == "flexible" else None
    return {
        "id": account.new_id("sub", 24),
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": now,
        "billing_cycle_anchor_config": None,
        "billing_mode": {"flexible": flexible, "type": mode},
        "billing_schedules": [],
        "billing_thresholds": None,
        "cancel_at": params.get("cancel_at"),
        "cancel_at_period_end": params.get("cancel_at_period_end", False),
        "canceled_at": now if params.get("cancel_at_period_end") else None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": collection_method,
        "created": now,
        "currency": currency,
        "customer": customer["id"],
        "customer_account": None,
        "days_until_due": params.get("days_until_due"),
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": params.get("description"),
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {
            "account_tax_ids": None,
            "custom_fields": None,
            "description": None,
            "footer": None,
            "issuer": {"type": "self"},
        },
        "latest_invoice": None,
        "livemode": False,
        "managed_payments": None,
        "metadata": merge_metadata({}, params.get("metadata")),
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": start,
        "status": "active",
        "test_clock": customer["test_clock"],
        "transfer_data": None,
        "trial_end": None,
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        "trial_start": None,
        "_items": [],
        "_period_start": now,
        "_period_end": now,
    }


def _read_anchor(params: Params, now: int) -> int | None:
    anchor: int | None = params.get("billing_cycle_anchor")
    config = params.get("billing_cycle_anchor_config")
    if anchor is not None and config is not None:
        raise invalid_request(
            "You may only specify one of these parameters: billing_cycle_anchor, "
            "billing_cycle_anchor_config."
        )
    if config is not None:
        raise invalid_request(
            "billing_cycle_anchor_config is not spoken by the local server; give "
            "billing_cycle_anchor.",
            param="billing_cycle_anchor_config",
        )
    if anchor is not None and anchor < now:
        raise invalid_request(
            "billing_cycle_anchor must be in the future.", param="billing_cycle_anchor"
        )
    return anchor


def _start_cycle(account: Account, subscription: Json, params: Params, now: int) -> None:
    interval, count = _interval(account, subscription)
    anchor = _read_anchor(params, now)
    trial_end = params.get("trial_end")
    if trial_end is None and params.get("trial_period_days"):
        trial_end = now + params["trial_period_days"] * 86_400
    if trial_end not in (None, "now"):
        if trial_end <= now:
            raise invalid_request("trial_end must be in the future.", param="trial_end")
        subscription["status"] = "trialing"
        subscription["trial_start"], subscription["trial_end"] = now, trial_end
        subscription["billing_cycle_anchor"] = anchor or trial_end
        subscription["_period_start"], subscription["_period_end"] = now, trial_end
        return
    if anchor is None:
        subscription["_period_end"] = shift(now, interval, count)
        return
    if anchor > shift(now, interval, count):
        raise invalid_request(
            "billing_cycle_anchor cannot be later than next natural billing date "
            f"({shift(now, interval, count)}) for plan.",
            param="billing_cycle_anchor",
        )
    subscription["billing_cycle_anchor"] = anchor
    subscription["_period_end"] = anchor if anchor > now else shift(now, interval, count)


def _fee(account: Account, subscription: Json, item: Json) -> int:
    price = account.get("price", item["price"])
    lines = price_quantity(billing_view(price), subscription["currency"], item["quantity"])
    return sum(line.amount for line in lines)


def _fixed_lines(
    account: Account, invoice: Json, subscription: Json, start: int, end: int
) -> list[Json]:
    """The licensed items, in advance; a stub period takes its share by seconds."""
    lines = []
    interval, count = _interval(account, subscription)
    whole_s = end - shift(end, interval, -count)
    for item in items_of(account, subscription):
        price = account.get("price", item["price"])
        if is_metered(price):
            continue
        name = account.get("prod", price["product"])["name"]
        for priced in price_quantity(
            billing_view(price), subscription["currency"], item["quantity"]
        ):
            stub = 0 < end - start < whole_s and invoice["billing_reason"] == "subscription_create"
            amount = prorate(priced.amount, end - start, whole_s) if stub else priced.amount
            lines.append(
                build_line(
                    line_id=account.new_id("il", 24),
                    invoice=invoice["id"],
                    amount=amount,
                    currency=subscription["currency"],
                    description=describe(priced, name),
                    period={"end": end, "start": start},
                    quantity=priced.quantity,
                    parent=subscription_parent(subscription["id"], item["id"]),
                    price=price,
                    unit_amount_decimal=priced.unit_amount_decimal,
                    subscription=subscription["id"],
                    metadata=item["metadata"],
                )
            )
    return lines


def _usage_spans(account: Account, subscription: Json, start: int, end: int) -> list[Json]:
    spans = []
    for item in items_of(account, subscription):
        if is_metered(account.get("price", item["price"])):
            first_period = start == subscription["created"]
            low = item["_usage_from"] if first_period else max(start, item["_usage_from"])
            if low >= end:
                continue
            spans.append(
                {
                    "subscription": subscription["id"],
                    "item": item["id"],
                    "price": item["price"],
                    "start": low,
                    "end": end,
                    "ids": {},
                    "metadata": dict(subscription["metadata"]),
                }
            )
    return spans


def _bill_creation(
    account: Account, subscription: Json, params: Params, customer: Json, now: int
) -> None:
    proration = params.get("proration_behavior") or "create_prorations"
    invoice = build_invoice(
        account,
        customer,
        currency=subscription["currency"],
        billing_reason="subscription_create",
        period=(now, now),
        subscription=subscription,
    )
    end = subscription["_period_end"]
    interval, count = _interval(account, subscription)
    stub = end < shift(now, interval, count)
    if subscription["status"] != "trialing" and not (stub and proration == "none"):
        invoice["_fixed"] = _fixed_lines(account, invoice, subscription, now, end)
        if subscription["start_date"] < now and proration != "none":
            invoice["_fixed"] += _backdated_lines(account, invoice, subscription, now)
    sweep_pending(account, invoice, subscription["id"])
    if not show_invoice(account, invoice)["lines"]["data"]:
        account.emit("customer.subscription.created", "sub", subscription)
        return
    behavior = params.get("payment_behavior") or "allow_incomplete"
    if behavior != "default_incomplete":
        require_collectable(account, invoice)
    account.emit("customer.subscription.created", "sub", subscription)
    subscription["latest_invoice"] = invoice["id"]
    account.add("in", invoice)
    account.emit("invoice.created", "in", invoice)
    finalize(account, invoice, collect=False)
    if invoice["status"] == "open" and invoice["collection_method"] == "charge_automatically":
        subscription["status"] = "incomplete"
        if behavior == "default_incomplete":
            return
        if not attempt_payment(account, invoice) and behavior == "error_if_incomplete":
            raise declined()


def _backdated_lines(account: Account, invoice: Json, subscription: Json, now: int) -> list[Json]:
    lines = []
    interval, count = _interval(account, subscription)
    low = subscription["start_date"]
    while low < now:
        high = min(now, shift(low, interval, count))
        whole_s = shift(low, interval, count) - low
        for line in _fixed_lines(account, invoice, subscription, now, subscription["_period_end"]):
            item = line["parent"]["subscription_item_details"]["subscription_item"]
            fee = _fee(account, subscription, account.store("si")[item])
            amount = prorate(fee, high - low, whole_s)
            lines.append(
                {
                    **line,
                    "amount": amount,
                    "subtotal": amount,
                    "period": {"end": high, "start": low},
                }
            )
        low = high
    return lines


def _plan_cycle(account: Account, subscription: Json) -> None:
    end, clock = subscription["_period_end"], subscription["test_clock"]
    account.schedule(end, clock, "cycle", subscription["id"])
    notice = end - account.settings.upcoming_s
    if notice > account.now(clock):
        account.schedule(notice, clock, "upcoming", subscription["id"])


# Time


def _live(account: Account, subscription_id: str) -> Json | None:
    subscription = account.store("sub").get(subscription_id)
    if subscription is None or subscription["status"] not in _LIVE:
        return None
    return subscription


def _cycle_when_due(account: Account, subscription_id: str, at_s: int) -> None:
    subscription = _live(account, subscription_id)
    if subscription is not None and subscription["_period_end"] == at_s:
        renew(account, subscription)


def _notice_when_due(account: Account, subscription_id: str, at_s: int) -> None:
    subscription = _live(account, subscription_id)
    if subscription is None or subscription["_period_end"] != at_s + account.settings.upcoming_s:
        return
    if subscription["cancel_at_period_end"]:
        return
    preview = preview_renewal(account, subscription)
    account.add("in", preview)
    account.emit("invoice.upcoming", "in", preview)
    del account.store("in")[preview["id"]]


def _cancel_when_due(account: Account, subscription_id: str, at_s: int) -> None:
    subscription = _live(account, subscription_id)
    if subscription is not None and subscription["cancel_at"] == at_s:
        _bill_final_usage(account, subscription, at_s)
        end_subscription(account, subscription, at_s)


register_action("cycle", _cycle_when_due)
register_action("upcoming", _notice_when_due)
register_action("cancel_at", _cancel_when_due)


def renewal_invoice(account: Account, subscription: Json, *, ends: bool) -> Json:
    """The invoice that the end of the current period brings, not yet kept."""
    start, end = subscription["_period_start"], subscription["_period_end"]
    invoice = build_invoice(
        account,
        account.store("cus")[subscription["customer"]],
        currency=subscription["currency"],
        billing_reason="subscription_cycle",
        period=(start, end),
        subscription=subscription,
    )
    if subscription["status"] != "trialing":
        invoice["_usage"] = _usage_spans(account, subscription, start, end)
    if not ends:
        interval, count = _interval(account, subscription)
        following = next_boundary(subscription["billing_cycle_anchor"], interval, count, end)
        invoice["_fixed"] = _fixed_lines(account, invoice, subscription, end, following)
    return invoice


def renew(account: Account, subscription: Json) -> None:
    """Close the current period: bill its usage, open the next one or end the subscription."""
    from infra.local.stripe_server.resources.schedules import enter_phase

    end = subscription["_period_end"]
    enter_phase(account, subscription, end)
    ends = subscription["cancel_at_period_end"] or (
        subscription["cancel_at"] is not None and subscription["cancel_at"] <= end
    )
    invoice = renewal_invoice(account, subscription, ends=ends)
    before = account.render("sub", subscription)
    sweep_pending(account, invoice, subscription["id"])
    billed = bool(show_invoice(account, invoice)["lines"]["data"])
    if billed:
        subscription["latest_invoice"] = invoice["id"]
        keep_draft(account, invoice)
    if ends:
        end_subscription(account, subscription, end)
        return
    interval, count = _interval(account, subscription)
    subscription["_period_start"] = end
    subscription["_period_end"] = next_boundary(
        subscription["billing_cycle_anchor"], interval, count, end
    )
    if subscription["status"] == "trialing":
        subscription["status"] = "active"
    account.emit_update("customer.subscription.updated", "sub", subscription, before)
    _plan_cycle(account, subscription)


def preview_renewal(account: Account, subscription: Json) -> Json:
    """What the next renewal would bill as things stand; kept nowhere."""
    account.usage.apply(account.clock.now_exact_s() - account.settings.summary_lag_s)
    ends = bool(subscription["cancel_at_period_end"])
    invoice = renewal_invoice(account, subscription, ends=ends)
    invoice["id"] = account.new_id("upcoming_in", 24)
    invoice["billing_reason"] = "upcoming"
    invoice["auto_advance"] = False
    for span in invoice["_usage"]:
        span["ids"] = {}
    for line in invoice["_fixed"]:
        line["invoice"] = invoice["id"]
    pending = [
        item
        for item in account.store("ii").values()
        if item["invoice"] is None
        and not item.get("_gone")
        and item["customer"] == subscription["customer"]
        and item["_subscription"] in (None, subscription["id"])
    ]
    for item in pending:
        item["invoice"] = invoice["id"]
    try:
        shown = show_invoice(account, invoice)
        invoice["_preview_items"] = [
            line for line in shown["lines"]["data"] if line["parent"]["invoice_item_details"]
        ]
    finally:
        for item in pending:
            item["invoice"] = None
    return invoice


def _bill_final_usage(account: Account, subscription: Json, at_s: int) -> None:
    invoice = renewal_invoice(account, subscription, ends=True)
    for span in invoice["_usage"]:
        span["end"] = at_s
    invoice["period_end"] = at_s
    sweep_pending(account, invoice, subscription["id"])
    if show_invoice(account, invoice)["lines"]["data"]:
        subscription["latest_invoice"] = invoice["id"]
        keep_draft(account, invoice)


def end_subscription(account: Account, subscription: Json, at_s: int) -> None:
    """The end: nothing is billed after it."""
    subscription["status"] = "canceled"
    subscription["ended_at"] = at_s
    subscription["canceled_at"] = subscription["canceled_at"] or at_s
    subscription["cancellation_details"]["reason"] = "cancellation_requested"
    account.emit("customer.subscription.deleted", "sub", subscription)


# Reading, changing, cancelling


@route("GET", "/v1/subscriptions", "SubscriptionListParams")
def list_subscriptions(account: Account, params: Params) -> Json:
    """GET /v1/subscriptions: all but canceled ones unless `status` says otherwise."""
    status = params.get("status")
    clock = params.get("test_clock")
    found = [
        subscription
        for subscription in account.store("sub").values()
        if (
            status == "all"
            or (status is None and subscription["status"] != "canceled")
            or subscription["status"] == status
            or (status == "ended" and subscription["ended_at"] is not None)
        )
        and params.get("customer") in (None, subscription["customer"])
        and clock in (None, subscription["test_clock"])
        and (clock or params.get("customer") or subscription["test_clock"] is None)
        and (
            params.get("price") is None
            or any(item["price"] == params["price"] for item in items_of(account, subscription))
        )
        and created_within(subscription, params.get("created"))
    ]
    return page(account, "sub", found, params, "/v1/subscriptions")


@route("GET", "/v1/subscriptions/{}", "SubscriptionRetrieveParams")
def retrieve_subscription(account: Account, _params: Params, subscription_id: str) -> Json:
    """GET /v1/subscriptions/:id."""
    return account.render("sub", account.get("sub", subscription_id))


def _require_open(subscription: Json) -> None:
    if subscription["status"] == "canceled":
        raise invalid_request(
            "A canceled subscription can only update its cancellation_details and metadata."
        )


@route("POST", "/v1/subscriptions/{}", "SubscriptionUpdateParams")
def update_subscription(account: Account, params: Params, subscription_id: str) -> Json:
    """POST /v1/subscriptions/:id."""
    subscription = account.get("sub", subscription_id)
    if set(params) - {"metadata", "cancellation_details", "expand"}:
        _require_open(subscription)
    before = account.render("sub", subscription)
    now = account.customer_now(subscription["customer"])
    if "metadata" in params:
        subscription["metadata"] = merge_metadata(subscription["metadata"], params["metadata"])
    for key in ("description", "days_until_due", "collection_method"):
        if key in params:
            subscription[key] = params[key] or None
    if "pause_collection" in params:
        subscription["pause_collection"] = params["pause_collection"] or None
    if "default_payment_method" in params:
        subscription["default_payment_method"] = find_attached(
            account, params["default_payment_method"], subscription["customer"]
        )
    if "cancel_at_period_end" in params:
        subscription["cancel_at_period_end"] = params["cancel_at_period_end"]
        subscription["canceled_at"] = now if params["cancel_at_period_end"] else None
        subscription["cancel_at"] = (
            subscription["_period_end"] if params["cancel_at_period_end"] else None
        )
    if "cancel_at" in params:
        subscription["cancel_at"] = params["cancel_at"] or None
        if subscription["cancel_at"]:
            account.schedule(
                subscription["cancel_at"], subscription["test_clock"], "cancel_at", subscription_id
            )
    behavior = params.get("proration_behavior") or "create_prorations"
    if params.get("items"):
        change_items(account, subscription, params["items"], behavior, now)
    anchor = params.get("billing_cycle_anchor") or {}
    if "trial_end" in params or anchor.get("type") == "now":
        _restart_cycle(account, subscription, params, now)
    account.emit_update("customer.subscription.updated", "sub", subscription, before)
    if behavior == "always_invoice":
        _invoice_changes(account, subscription)
    return account.render("sub", subscription)


def _restart_cycle(account: Account, subscription: Json, params: Params, now: int) -> None:
    trial_end = params.get("trial_end")
    if isinstance(trial_end, int):
        subscription["status"] = "trialing"
        subscription["trial_start"] = subscription["trial_start"] or now
        subscription["trial_end"] = subscription["billing_cycle_anchor"] = trial_end
        subscription["_period_start"], subscription["_period_end"] = now, trial_end
        _plan_cycle(account, subscription)
        return
    subscription["_period_end"] = now
    subscription["billing_cycle_anchor"] = now
    if subscription["status"] == "trialing":
        subscription["trial_end"] = now
    renew(account, subscription)
    latest = account.store("in").get(subscription["latest_invoice"] or "")
    if latest is not None and latest["status"] == "draft":
        finalize(account, latest)


def _invoice_changes(account: Account, subscription: Json) -> None:
    now = account.customer_now(subscription["customer"])
    invoice = build_invoice(
        account,
        account.store("cus")[subscription["customer"]],
        currency=subscription["currency"],
        billing_reason="subscription_update",
        period=(now, now),
        subscription=subscription,
    )
    sweep_pending(account, invoice, subscription["id"])
    if not show_invoice(account, invoice)["lines"]["data"]:
        return
    account.add("in", invoice)
    account.emit("invoice.created", "in", invoice)
    subscription["latest_invoice"] = invoice["id"]
    finalize(account, invoice)


def change_items(
    account: Account, subscription: Json, rows: list[Params], behavior: str, now: int
) -> list[Json]:
    """Apply item rows (add, change price or quantity, delete) with the proration asked for."""
    changed = []
    for index, row in enumerate(rows):
        where = f"items[{index}]"
        if row.get("id") is None:
            price = _read_price(account, row, where)
            item = _add_item(account, subscription, price, row, now)
            _prorate_item(account, subscription, item, +1, behavior, now)
            changed.append(item)
            continue
        item = account.get("si", row["id"], param=f"{where}[id]")
        if item["subscription"] != subscription["id"]:
            raise invalid_request("The item is of another subscription.", param=f"{where}[id]")
        if row.get("deleted"):
            remove_item(account, subscription, item, behavior, now)
            continue
        if "metadata" in row:
            item["metadata"] = merge_metadata(item["metadata"], row["metadata"])
        new_price = (
            _read_price(account, row, where) if row.get("price") or row.get("plan") else None
        )
        if row.get("quantity") is not None and is_metered(
            new_price or account.get("price", item["price"])
        ):
            raise invalid_request(
                "You cannot set the quantity for metered plans.", param=f"{where}[quantity]"
            )
        price_changes = new_price is not None and new_price["id"] != item["price"]
        if price_changes or row.get("quantity", item["quantity"]) != item["quantity"]:
            _close_item(account, subscription, item, behavior, now)
            if new_price is not None:
                item["price"] = new_price["id"]
                item["quantity"] = None if is_metered(new_price) else item["quantity"] or 1
            if row.get("quantity") is not None:
                item["quantity"] = row["quantity"]
            item["_usage_from"] = now if price_changes else item["_usage_from"]
            _prorate_item(account, subscription, item, +1, behavior, now)
        changed.append(item)
    return changed


def remove_item(account: Account, subscription: Json, item: Json, behavior: str, now: int) -> None:
    """Take an item off: what it still owes or is owed becomes pending invoice items."""
    if len(subscription["_items"]) == 1:
        raise invalid_request(
            "A subscription must have at least one active plan. To cancel it, use "
            "DELETE /v1/subscriptions/:id."
        )
    _close_item(account, subscription, item, behavior, now)
    subscription["_items"].remove(item["id"])
    item["_gone"] = True


def _close_item(account: Account, subscription: Json, item: Json, behavior: str, now: int) -> None:
    price = account.get("price", item["price"])
    if not is_metered(price):
        _prorate_item(account, subscription, item, -1, behavior, now)
        return
    if behavior == "none" or subscription["billing_mode"]["type"] != "flexible":
        return
    if subscription["status"] == "trialing":
        return
    account.usage.apply_all()
    start = max(subscription["_period_start"], item["_usage_from"])
    quantity, priced_lines = price_usage_lines(
        account, price, subscription["customer"], subscription["currency"], start, now
    )
    if quantity == 0:
        return
    name = account.get("prod", price["product"])["name"]
    for priced in priced_lines:
        build_item(
            account,
            account.store("cus")[subscription["customer"]],
            priced.amount,
            subscription["currency"],
            description=describe(priced, name),
            period={"end": now, "start": start},
            quantity=priced.quantity,
            unit_amount_decimal=priced.unit_amount_decimal,
            price=price,
            subscription=subscription["id"],
        )


def _prorate_item(
    account: Account, subscription: Json, item: Json, sign: int, behavior: str, now: int
) -> None:
    price = account.get("price", item["price"])
    if is_metered(price) or behavior == "none" or subscription["status"] == "trialing":
        return
    start, end = subscription["_period_start"], subscription["_period_end"]
    if now >= end:
        return
    fee = _fee(account, subscription, item)
    amount = sign * prorate(fee, end - now, end - start)
    name = account.get("prod", price["product"])["name"]
    words = "Remaining time on" if sign > 0 else "Unused time on"
    item_made = build_item(
        account,
        account.store("cus")[subscription["customer"]],
        amount,
        subscription["currency"],
        description=f"{words} {name}",
        period={"end": end, "start": now},
        quantity=item["quantity"],
        price=price,
        subscription=subscription["id"],
        proration=True,
    )
    account.emit("invoiceitem.created", "ii", item_made)


@route("DELETE", "/v1/subscriptions/{}", "SubscriptionCancelParams")
def cancel_subscription(account: Account, params: Params, subscription_id: str) -> Json:
    """DELETE /v1/subscriptions/:id: at once; `invoice_now` bills the usage so far."""
    subscription = account.get("sub", subscription_id)
    if subscription["status"] == "canceled":
        raise invalid_request(
            f"No such subscription: '{subscription_id}'", code="resource_missing", status=404
        )
    now = account.customer_now(subscription["customer"])
    if params.get("prorate"):
        for item in items_of(account, subscription):
            if not is_metered(account.get("price", item["price"])):
                _prorate_item(account, subscription, item, -1, "create_prorations", now)
    if params.get("invoice_now"):
        _bill_final_usage(account, subscription, now)
    details: Any = params.get("cancellation_details") or {}
    for key in ("comment", "feedback"):
        subscription["cancellation_details"][key] = details.get(key)
    end_subscription(account, subscription, now)
    return account.render("sub", subscription)


# Items by themselves


@contextmanager
def _changing(account: Account, subscription: Json, params: Params) -> Iterator[tuple[str, int]]:
    """How a change of its items is prorated, and its time; afterwards it is told, and invoiced."""
    _require_open(subscription)
    before = account.render("sub", subscription)
    behavior = params.get("proration_behavior") or "create_prorations"
    yield behavior, account.customer_now(subscription["customer"])
    account.emit_update("customer.subscription.updated", "sub", subscription, before)
    if behavior == "always_invoice":
        _invoice_changes(account, subscription)


def _item_row(params: Params) -> Params:
    return {key: params[key] for key in ("price", "plan", "quantity", "metadata") if key in params}


@route("POST", "/v1/subscription_items", "SubscriptionItemCreateParams")
def create_subscription_item(account: Account, params: Params) -> Json:
    """POST /v1/subscription_items."""
    subscription = account.get("sub", params["subscription"], param="subscription")
    with _changing(account, subscription, params) as (behavior, now):
        item = change_items(account, subscription, [_item_row(params)], behavior, now)[0]
    return account.render("si", item)


@route("GET", "/v1/subscription_items", "SubscriptionItemListParams")
def list_subscription_items(account: Account, params: Params) -> Json:
    """GET /v1/subscription_items."""
    subscription = account.get("sub", params["subscription"], param="subscription")
    return page(account, "si", items_of(account, subscription), params, "/v1/subscription_items")


@route("GET", "/v1/subscription_items/{}", "SubscriptionItemRetrieveParams")
def retrieve_subscription_item(account: Account, _params: Params, item_id: str) -> Json:
    """GET /v1/subscription_items/:id."""
    return account.render("si", account.get("si", item_id))


@route("POST", "/v1/subscription_items/{}", "SubscriptionItemUpdateParams")
def update_subscription_item(account: Account, params: Params, item_id: str) -> Json:
    """POST /v1/subscription_items/:id."""
    item = account.get("si", item_id)
    subscription = account.get("sub", item["subscription"])
    row = {"id": item_id, **_item_row(params)}
    with _changing(account, subscription, params) as (behavior, now):
        change_items(account, subscription, [row], behavior, now)
    return account.render("si", item)


@route("DELETE", "/v1/subscription_items/{}", "SubscriptionItemDeleteParams")
def delete_subscription_item(account: Account, params: Params, item_id: str) -> Json:
    """DELETE /v1/subscription_items/:id."""
    item = account.get("si", item_id)
    subscription = account.get("sub", item["subscription"])
    with _changing(account, subscription, params) as (behavior, now):
        remove_item(account, subscription, item, behavior, now)
    return {"id": item_id, "object": "subscription_item", "deleted": True}

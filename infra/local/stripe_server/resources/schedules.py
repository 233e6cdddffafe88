"""Subscription schedules: the next phase's items, taken on at a renewal.

Spoken as far as a switch of plan at renewal needs: made `from_subscription`, phases that meet at
the end of the subscription's period, `end_behavior` release or cancel.
"""

from __future__ import annotations

from typing import Any

from infra.local.stripe_server.account import (
    Account,
    Json,
    merge_metadata,
    page,
    register_kind,
)
from infra.local.stripe_server.errors import invalid_request
from infra.local.stripe_server.routes import Params, route

register_kind("sub_sched", "subscription schedule")


def _phase(
    items: list[Json],
    start: int,
    end: int,
    currency: str,
    behavior: str,
    trial_end: int | None = None,
) -> Json:
    return {
        "add_invoice_items": [],
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": None,
        "billing_thresholds": None,
        "collection_method": None,
        "currency": currency,
        "default_payment_method": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "end_date": end,
        "invoice_settings": None,
        "items": items,
        "metadata": {},
        "on_behalf_of": None,
        "proration_behavior": behavior,
        "start_date": start,
        "transfer_data": None,
        "trial": False,
        "trial_end": trial_end,
    }


def _phase_item(price: str, quantity: int | None) -> Json:
    item: Json = {
        "billing_thresholds": None,
        "discounts": [],
        "metadata": {},
        "plan": price,
        "price": price,
        "tax_rates": [],
    }
    if quantity is not None:
        item["quantity"] = quantity
    return item


@route("POST", "/v1/subscription_schedules", "SubscriptionScheduleCreateParams")
def create_schedule(account: Account, params: Params) -> Json:
    """POST /v1/subscription_schedules, `from_subscription` only."""
    if not params.get("from_subscription"):
        raise invalid_request(
            "The local server makes schedules from_subscription only.", param="from_subscription"
        )
    if params.get("phases"):
        raise invalid_request("You cannot set `phases` with `from_subscription`.", param="phases")
    subscription = account.get("sub", params["from_subscription"], param="from_subscription")
    if subscription["schedule"] is not None:
        raise invalid_request(
            "You cannot migrate a subscription that is already attached to a schedule.",
            param="from_subscription",
        )
    from infra.local.stripe_server.resources.subscriptions import items_of

    start, end = subscription["_period_start"], subscription["_period_end"]
    items = [
        _phase_item(item["price"], item["quantity"]) for item in items_of(account, subscription)
    ]
    trial_end = subscription["trial_end"] if subscription["status"] == "trialing" else None
    phase = _phase(items, start, end, subscription["currency"], "create_prorations", trial_end)
    schedule: Json = {
        "id": account.new_id("sub_sched", 24),
        "object": "subscription_schedule",
        "application": None,
        "billing_mode": subscription["billing_mode"],
        "canceled_at": None,
        "completed_at": None,
        "created": account.customer_now(subscription["customer"]),
        "current_phase": {"end_date": end, "start_date": start},
        "customer": subscription["customer"],
        "customer_account": None,
        "default_settings": {
            "application_fee_percent": None,
            "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
            "billing_cycle_anchor": "automatic",
            "billing_thresholds": None,
            "collection_method": subscription["collection_method"],
            "default_payment_method": None,
            "description": None,
            "invoice_settings": subscription["invoice_settings"],
            "on_behalf_of": None,
            "transfer_data": None,
        },
        "end_behavior": "release",
        "livemode": False,
        "metadata": merge_metadata({}, params.get("metadata")),
        "phases": [phase],
        "released_at": None,
        "released_subscription": None,
        "status": "active",
        "subscription": subscription["id"],
        "test_clock": subscription["test_clock"],
    }
    account.add("sub_sched", schedule)
    subscription["schedule"] = schedule["id"]
    account.emit("subscription_schedule.created", "sub_sched", schedule)
    return account.render("sub_sched", schedule)


@route("GET", "/v1/subscription_schedules", "SubscriptionScheduleListParams")
def list_schedules(account: Account, params: Params) -> Json:
    """GET /v1/subscription_schedules."""
    found = [
        schedule
        for schedule in account.store("sub_sched").values()
        if params.get("customer") in (None, schedule["customer"])
    ]
    return page(account, "sub_sched", found, params, "/v1/subscription_schedules")


@route("GET", "/v1/subscription_schedules/{}", "SubscriptionScheduleRetrieveParams")
def retrieve_schedule(account: Account, _params: Params, schedule_id: str) -> Json:
    """GET /v1/subscription_schedules/:id."""
    return account.render("sub_sched", account.get("sub_sched", schedule_id))


def _read_phase(account: Account, row: Params, previous_end: int | None, currency: str) -> Json:
    from infra.local.stripe_server.periods import shift

    items = []
    for item in row["items"]:
        price = account.get("price", item.get("price") or "", param="phases[items][price]")
        metered = price["recurring"]["usage_type"] == "metered"
        items.append(_phase_item(price["id"], None if metered else item.get("quantity", 1)))
    start: Any = row.get("start_date", previous_end)
    if not isinstance(start, int):
        raise invalid_request("The first phase needs a start_date.", param="phases")
    if previous_end is not None and start != previous_end:
        raise invalid_request("Phases must follow each other without a gap.", param="phases")
    end: Any = row.get("end_date")
    if end is None:
        duration = row.get("duration") or {"interval": "month", "interval_count": 1}
        end = shift(start, duration["interval"], duration.get("interval_count", 1))
    behavior = row.get("proration_behavior") or "create_prorations"
    return _phase(items, start, end, currency, behavior, row.get("trial_end"))


@route("POST", "/v1/subscription_schedules/{}", "SubscriptionScheduleUpdateParams")
def update_schedule(account: Account, params: Params, schedule_id: str) -> Json:
    """POST /v1/subscription_schedules/:id."""
    schedule = account.get("sub_sched", schedule_id)
    if schedule["status"] not in ("active", "not_started"):
        raise invalid_request("You cannot update a schedule that has ended.")
    if params.get("end_behavior"):
        schedule["end_behavior"] = params["end_behavior"]
    if "metadata" in params:
        schedule["metadata"] = merge_metadata(schedule["metadata"], params["metadata"])
    if params.get("phases"):
        currency = schedule["phases"][0]["currency"]
        phases: list[Json] = []
        for row in params["phases"]:
            previous = phases[-1]["end_date"] if phases else None
            phases.append(_read_phase(account, row, previous, currency))
        subscription = account.get("sub", schedule["subscription"])
        if phases[0]["start_date"] != schedule["current_phase"]["start_date"]:
            raise invalid_request(
                "The first phase must be the running one: its start_date cannot change.",
                param="phases[0][start_date]",
            )
        if subscription["status"] == "trialing" and phases[0]["trial_end"] is None:
            # Stripe would end the trial: a phase has what it is told, and nothing else.
            raise invalid_request(
                "The local server ends no trial by a schedule.", param="phases[0][trial_end]"
            )
        if phases[0]["end_date"] != subscription["_period_end"]:
            raise invalid_request(
                "The local server changes phases at the end of the current period only.",
                param="phases",
            )
        schedule["phases"] = phases
    account.emit("subscription_schedule.updated", "sub_sched", schedule)
    return account.render("sub_sched", schedule)


def _release(account: Account, schedule: Json, status: str) -> None:
    now = account.customer_now(schedule["customer"])
    subscription = account.get("sub", schedule["subscription"])
    subscription["schedule"] = None
    schedule["status"] = status
    schedule["current_phase"] = None
    if status == "released":
        schedule["released_at"] = now
        schedule["released_subscription"], schedule["subscription"] = subscription["id"], None
    account.emit(f"subscription_schedule.{status}", "sub_sched", schedule)


@route("POST", "/v1/subscription_schedules/{}/release", "SubscriptionScheduleReleaseParams")
def release_schedule(account: Account, _params: Params, schedule_id: str) -> Json:
    """POST /v1/subscription_schedules/:id/release: the subscription goes on as it is."""
    schedule = account.get("sub_sched", schedule_id)
    if schedule["status"] != "active":
        raise invalid_request("You cannot release a schedule that is not active.")
    _release(account, schedule, "released")
    return account.render("sub_sched", schedule)


@route("POST", "/v1/subscription_schedules/{}/cancel", "SubscriptionScheduleCancelParams")
def cancel_schedule(account: Account, _params: Params, schedule_id: str) -> Json:
    """POST /v1/subscription_schedules/:id/cancel: and its subscription with it."""
    from infra.local.stripe_server.resources.subscriptions import end_subscription

    schedule = account.get("sub_sched", schedule_id)
    now = account.customer_now(schedule["customer"])
    subscription = account.get("sub", schedule["subscription"])
    _release(account, schedule, "canceled")
    schedule["canceled_at"] = now
    end_subscription(account, subscription, now)
    return account.render("sub_sched", schedule)


def enter_phase(account: Account, subscription: Json, at_s: int) -> None:
    """At a renewal: the usage so far is billed on the old items, then the next phase's hold."""
    from infra.local.stripe_server.resources.subscriptions import change_items, items_of

    if subscription["schedule"] is None:
        return
    schedule = account.get("sub_sched", subscription["schedule"])
    following = [phase for phase in schedule["phases"] if phase["start_date"] == at_s]
    if not following:
        if schedule["phases"][-1]["end_date"] <= at_s:
            subscription["cancel_at_period_end"] = schedule["end_behavior"] == "cancel"
            _release(account, schedule, "released")
        return
    phase = following[0]
    schedule["current_phase"] = {"end_date": phase["end_date"], "start_date": at_s}
    wanted = {item["price"]: item for item in phase["items"]}
    current = {item["price"]: item for item in items_of(account, subscription)}
    added = [
        {"price": price, **({"quantity": item["quantity"]} if "quantity" in item else {})}
        for price, item in wanted.items()
        if price not in current
    ]
    removed = [
        {"id": item["id"], "deleted": True}
        for price, item in current.items()
        if price not in wanted
    ]
    change_items(account, subscription, added, "none", at_s)
    # A licensed item that goes at the period's end is owed nothing; a metered one still bills.
    change_items(account, subscription, removed, "create_prorations", at_s)

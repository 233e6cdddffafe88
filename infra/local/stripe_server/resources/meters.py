"""Billing meters, their events, adjustments and summaries, with the rules that hurt.

Refused at once (400): a repeated identifier, a bad timestamp, a bad or missing value, no
customer key, no such meter, an archived meter. Answered 200 and reported later by a thin event:
an unknown customer. `Settings.async_errors` moves codes from one side to the other, since
Stripe's documentation says that each can come either way. A timestamp is judged by the customer's
own clock, which for customers of a test clock is that clock (assumed; nothing was found on it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from infra.local.stripe_server.account import (
    Account,
    Json,
    page,
    page_rendered,
    register_kind,
)
from infra.local.stripe_server.errors import StripeError, invalid_request, missing_resource
from infra.local.stripe_server.resources.alerts import trigger_alerts
from infra.local.stripe_server.routes import Params, route
from infra.local.stripe_server.usage import WINDOW_S, MeterEvent

register_kind("mtr", "meter")

MAX_PAST_S = 35 * 86_400
MAX_FUTURE_S = 5 * 60
_MAX_DIGITS = 15
_INTEGER = re.compile(r"-?\d+")
_MAX_IDENTIFIER = 100


@route("POST", "/v1/billing/meters", "billing.MeterCreateParams")
def create_meter(account: Account, params: Params) -> Json:
    """POST /v1/billing/meters."""
    for key, longest in (("display_name", 250), ("event_name", 100)):
        if not 0 < len(params[key]) <= longest:
            raise invalid_request(
                f"Invalid string: {key}; must be at most {longest} characters", param=key
            )
    for other in account.store("mtr").values():
        if other["event_name"] == params["event_name"] and other["status"] == "active":
            raise invalid_request(
                f"There's already an active meter with the event name '{params['event_name']}'.",
                param="event_name",
            )
    now = account.now()
    meter: Json = {
        "id": account.new_id("mtr", 24),
        "object": "billing.meter",
        "created": now,
        "customer_mapping": params.get("customer_mapping")
        or {"event_payload_key": "stripe_customer_id", "type": "by_id"},
        "default_aggregation": {"formula": params["default_aggregation"]["formula"]},
        "display_name": params["display_name"],
        "event_name": params["event_name"],
        "event_time_window": params.get("event_time_window"),
        "livemode": False,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": now,
        "value_settings": params.get("value_settings") or {"event_payload_key": "value"},
    }
    account.add("mtr", meter)
    account.emit("billing.meter.created", "mtr", meter)
    return account.render("mtr", meter)


@route("GET", "/v1/billing/meters", "billing.MeterListParams")
def list_meters(account: Account, params: Params) -> Json:
    """GET /v1/billing/meters."""
    found = [
        meter
        for meter in account.store("mtr").values()
        if params.get("status") in (None, meter["status"])
    ]
    return page(account, "mtr", found, params, "/v1/billing/meters")


@route("GET", "/v1/billing/meters/{}", "billing.MeterRetrieveParams")
def retrieve_meter(account: Account, _params: Params, meter_id: str) -> Json:
    """GET /v1/billing/meters/:id."""
    return account.render("mtr", account.get("mtr", meter_id))


@route("POST", "/v1/billing/meters/{}", "billing.MeterUpdateParams")
def update_meter(account: Account, params: Params, meter_id: str) -> Json:
    """POST /v1/billing/meters/:id: only the display name can change."""
    meter = account.get("mtr", meter_id)
    before = account.render("mtr", meter)
    if params.get("display_name"):
        meter["display_name"] = params["display_name"]
        meter["updated"] = account.now()
    account.emit_update("billing.meter.updated", "mtr", meter, before)
    return account.render("mtr", meter)


@route("POST", "/v1/billing/meters/{}/deactivate", "billing.MeterDeactivateParams")
def deactivate_meter(account: Account, _params: Params, meter_id: str) -> Json:
    """POST /v1/billing/meters/:id/deactivate: events to it are refused from now on."""
    meter = account.get("mtr", meter_id)
    if meter["status"] == "inactive":
        raise invalid_request("This meter is already inactive.")
    meter["status"] = "inactive"
    meter["updated"] = account.now()
    meter["status_transitions"] = {"deactivated_at": account.now()}
    account.emit("billing.meter.deactivated", "mtr", meter)
    return account.render("mtr", meter)


@route("POST", "/v1/billing/meters/{}/reactivate", "billing.MeterReactivateParams")
def reactivate_meter(account: Account, _params: Params, meter_id: str) -> Json:
    """POST /v1/billing/meters/:id/reactivate."""
    meter = account.get("mtr", meter_id)
    if meter["status"] == "active":
        raise invalid_request("This meter is already active.")
    meter["status"] = "active"
    meter["updated"] = account.now()
    meter["status_transitions"] = {"deactivated_at": None}
    account.emit("billing.meter.reactivated", "mtr", meter)
    return account.render("mtr", meter)


# Meter events


def find_meter(account: Account, event_name: str) -> Json | None:
    """The meter of an event name; an active one before an archived one."""
    found = None
    for meter in account.store("mtr").values():
        if meter["event_name"] == event_name:
            if meter["status"] == "active":
                return meter
            found = meter
    return found


def lock_of(account: Account, params: Mapping[str, object]) -> tuple[str, str] | None:
    """What a meter event call holds while it is served: its meter and customer."""
    event_name, payload = params.get("event_name"), params.get("payload")
    if not isinstance(event_name, str) or not isinstance(payload, dict):
        return None
    meter = find_meter(account, event_name)
    key = meter["customer_mapping"]["event_payload_key"] if meter else "stripe_customer_id"
    return event_name, str(payload.get(key))


def _check_value(meter: Json, payload: Mapping[str, str]) -> int:
    key = meter["value_settings"]["event_payload_key"]
    if meter["default_aggregation"]["formula"] == "count":
        return 1
    raw = payload.get(key)
    if raw is None:
        raise invalid_request(
            f"The event payload is missing the key '{key}', which holds the meter's value.",
            code="meter_event_value_not_found",
            param=f"payload[{key}]",
        )
    if not _INTEGER.fullmatch(raw):
        raise invalid_request(
            f"The event payload's value '{raw}' is not a whole number.",
            code="meter_event_invalid_value",
            param=f"payload[{key}]",
        )
    if len(raw.lstrip("-")) > _MAX_DIGITS:
        raise invalid_request(
            f"The event payload's value has more than {_MAX_DIGITS} digits.",
            code="meter_event_value_too_many_digits",
            param=f"payload[{key}]",
        )
    return int(raw)


def _check_timestamp(timestamp: int, now: int) -> None:
    if timestamp < now - MAX_PAST_S:
        raise invalid_request(
            "The event timestamp cannot be more than 35 days in past. Expected a timestamp "
            f"greater than or equal to {now - MAX_PAST_S}.",
            code="timestamp_too_far_in_past",
            param="timestamp",
        )
    if timestamp > now + MAX_FUTURE_S:
        raise invalid_request(
            "The event timestamp cannot be more than 5 minutes in future. Expected a timestamp "
            f"less than or equal to {now + MAX_FUTURE_S}.",
            code="timestamp_in_future",
            param="timestamp",
        )


def _check_meter(account: Account, event_name: str) -> Json:
    meter = find_meter(account, event_name)
    if meter is None:
        raise invalid_request(
            f"No meter found for the event name '{event_name}'.",
            code="no_meter",
            param="event_name",
        )
    if meter["status"] != "active":
        raise invalid_request(
            f"The meter of the event name '{event_name}' is archived.",
            code="archived_meter",
            param="event_name",
        )
    return meter


def _check_customer(account: Account, meter: Json, payload: Mapping[str, str]) -> str:
    key = meter["customer_mapping"]["event_payload_key"]
    customer_id = payload.get(key)
    if not customer_id:
        raise invalid_request(
            f"The event payload is missing the key '{key}', which names the customer.",
            code="meter_event_no_customer_defined",
            param=f"payload[{key}]",
        )
    customer = account.store("cus").get(customer_id)
    if customer is None or customer.get("_gone"):
        raise invalid_request(
            f"No such customer: '{customer_id}'",
            code="meter_event_customer_not_found",
            param=f"payload[{key}]",
        )
    return customer_id


@route("POST", "/v1/billing/meter_events", "billing.MeterEventCreateParams")
def create_meter_event(account: Account, params: Params) -> Json:
    """POST /v1/billing/meter_events."""
    event_name, payload = params["event_name"], params["payload"]
    received_at = account.clock.now_exact_s()
    identifier = params.get("identifier") or account.new_id("mevt", 24)
    meter = find_meter(account, event_name)
    mapping = meter["customer_mapping"]["event_payload_key"] if meter else "stripe_customer_id"
    customer_id = str(payload.get(mapping, ""))
    customer = account.store("cus").get(customer_id)
    now = int(received_at) if customer is None else account.now(customer["test_clock"])
    value_key = meter["value_settings"]["event_payload_key"] if meter else "value"
    event = MeterEvent(
        sequence=len(account.usage.log),
        identifier=identifier,
        event_name=event_name,
        customer=customer_id,
        value=None,
        timestamp=params.get("timestamp", now),
        received_at=received_at,
        outcome="accepted",
        idempotency_key=account.request.idempotency_key,
        raw_value=str(payload.get(value_key, "")),
    )
    try:
        if len(identifier) > _MAX_IDENTIFIER:
            raise invalid_request(
                "Invalid string: identifier; must be at most 100 characters", param="identifier"
            )
        if account.usage.find_identifier(identifier, received_at) is not None:
            event.outcome = "duplicate"
            raise invalid_request(
                f"An event already exists with identifier {identifier}.", param="identifier"
            )
        meter = _check_meter(account, event_name)
        _check_timestamp(event.timestamp, now)
        event.value = _check_value(meter, payload)
        _check_customer(account, meter, payload)
    except StripeError as error:
        event.code = error.code
        if event.outcome == "accepted":
            event.outcome = "reported" if error.code in account.settings.async_errors else "refused"
        account.usage.record(event)
        if event.outcome != "reported":
            raise
        account.collect_error(event, meter, error.message)
    else:
        account.usage.record(event)
        trigger_alerts(account, meter, customer_id)
    return {
        "object": "billing.meter_event",
        "created": int(received_at),
        "event_name": event_name,
        "identifier": identifier,
        "livemode": False,
        "payload": payload,
        "timestamp": event.timestamp,
    }


@route("POST", "/v1/billing/meter_event_adjustments", "billing.MeterEventAdjustmentCreateParams")
def create_meter_event_adjustment(account: Account, params: Params) -> Json:
    """POST /v1/billing/meter_event_adjustments: cancel one event within 24 hours of receipt."""
    identifier = (params.get("cancel") or {}).get("identifier")
    if not identifier:
        raise invalid_request(
            "Missing required param: cancel[identifier].",
            code="parameter_missing",
            param="cancel[identifier]",
        )
    _check_meter(account, params["event_name"])
    event = account.usage.find_identifier(identifier, account.clock.now_exact_s())
    if event is None or event.event_name != params["event_name"] or event.outcome == "reported":
        raise missing_resource(
            "meter event of the last 24 hours", identifier, param="cancel[identifier]"
        )
    if event.outcome == "cancelled":
        raise invalid_request(
            f"The event with identifier {identifier} has already been cancelled.",
            param="cancel[identifier]",
        )
    account.usage.cancel(event)
    return {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": params["event_name"],
        "livemode": False,
        "status": "complete",
        "type": "cancel",
    }


# Summaries


@route("GET", "/v1/billing/meters/{}/event_summaries", "billing.MeterEventSummaryListParams")
def list_event_summaries(account: Account, params: Params, meter_id: str) -> Json:
    """GET /v1/billing/meters/:id/event_summaries: newest first, seen with the lag set."""
    meter = account.get("mtr", meter_id)
    customer = account.get("cus", params["customer"], param="customer")["id"]
    start, end = params["start_time"], params["end_time"]
    window = params.get("value_grouping_window")
    grain, grain_name = (WINDOW_S[window], window) if window else (60, "minute")
    for name, at in (("start_time", start), ("end_time", end)):
        if at % grain:
            raise invalid_request(
                f"{name} must be aligned with {grain_name} boundaries in UTC.", param=name
            )
    if end <= start:
        raise invalid_request("end_time must be later than start_time.", param="end_time")
    account.usage.apply(account.clock.now_exact_s() - account.settings.summary_lag_s)
    if window is None:
        spans = [(start, end)]
    else:
        hours = account.usage.spans(meter["event_name"], customer, start, end)
        starts = sorted({hour * 3600 // grain * grain for hour in hours}, reverse=True)
        spans = [(at, at + grain) for at in starts]
    rows = [
        {
            "id": f"mtrusg_{meter_id[4:12]}_{customer[4:]}_{low}_{high}",
            "object": "billing.meter_event_summary",
            "aggregated_value": float(total_usage(account, meter, customer, low, high)),
            "end_time": high,
            "livemode": False,
            "meter": meter_id,
            "start_time": low,
        }
        for low, high in spans
    ]
    return page_rendered(rows, params, f"/v1/billing/meters/{meter_id}/event_summaries")


def total_usage(account: Account, meter: Json, customer: str, start: int, end: int) -> int:
    """A meter's total for a customer and a span, of what has been applied so far."""
    return account.usage.total(
        meter["event_name"],
        customer,
        meter["default_aggregation"]["formula"],
        meter["event_time_window"],
        start,
        end,
    )

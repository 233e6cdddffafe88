"""Events: the list of snapshots, and v2's thin events with the reports of dropped usage."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from infra.local.stripe_server.account import (
    Account,
    FailedUsage,
    Json,
    created_within,
    page_rendered,
)
from infra.local.stripe_server.errors import invalid_request, missing_resource
from infra.local.stripe_server.routes import Params, route

ERROR_REPORT = "v1.billing.meter.error_report_triggered"
NO_METER = "v1.billing.meter.no_meter_found"
_MAX_SAMPLES = 5


@route("GET", "/v1/events", "EventListParams")
def list_events(account: Account, params: Params) -> Json:
    """GET /v1/events: newest first."""
    kind, kinds = params.get("type"), params.get("types")
    found = [
        event
        for event in reversed(account.events)
        if (kind is None or event["type"] == kind or _matches(kind, event["type"]))
        and (kinds is None or event["type"] in kinds)
        and created_within(event, params.get("created"))
    ]
    return page_rendered(found, params, "/v1/events")


def _matches(pattern: str, event_type: str) -> bool:
    return pattern.endswith("*") and event_type.startswith(pattern[:-1])


@route("GET", "/v1/events/{}", "EventRetrieveParams")
def retrieve_event(account: Account, _params: Params, event_id: str) -> Json:
    """GET /v1/events/:id."""
    for event in reversed(account.events):
        if event["id"] == event_id:
            return event
    raise missing_resource("event", event_id)


@route("GET", "/v2/core/events", "v2.core.EventListParams")
def list_thin_events(account: Account, params: Params) -> Json:
    """GET /v2/core/events: newest first, one page."""
    object_id, types = params.get("object_id"), params.get("types")
    created = {name: _moment(name, at) for name, at in (params.get("created") or {}).items()}
    found = [
        event
        for event in reversed(account.thin_events.values())
        if object_id in (None, (event["related_object"] or {}).get("id"))
        and (types is None or event["type"] in types)
        and created_within({"created": datetime.fromisoformat(event["created"])}, created or None)
    ]
    return {"data": found, "next_page_url": None, "previous_page_url": None}


def _moment(name: str, at: str) -> datetime:
    refusal = invalid_request(f"Invalid timestamp: {at}", param=f"created[{name}]")
    try:
        moment = datetime.fromisoformat(at)
    except ValueError as error:
        raise refusal from error
    if moment.tzinfo is None:
        raise refusal
    return moment


@route("GET", "/v2/core/events/{}", "v2.core.EventRetrieveParams")
def retrieve_thin_event(account: Account, _params: Params, event_id: str) -> Json:
    """GET /v2/core/events/:id: with `data`, which the delivered notification has not."""
    event = account.thin_events.get(event_id)
    if event is None:
        raise missing_resource("event", event_id)
    return event


def rfc3339(at_s: float) -> str:
    """A time as v2 writes it."""
    text = datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def report_failed_usage(account: Account) -> None:
    """Turn what was dropped since the last report into thin events, one per meter."""
    failed, account.failed_usage = account.failed_usage, []
    by_meter: dict[str | None, list[FailedUsage]] = {}
    for failure in failed:
        by_meter.setdefault(failure.meter, []).append(failure)
    for meter, failures in by_meter.items():
        _emit_report(account, meter, failures)


def _emit_report(account: Account, meter: str | None, failures: list[FailedUsage]) -> None:
    times = [failure.event.received_at for failure in failures]
    counts = Counter(failure.event.code for failure in failures)
    error_types = []
    for code, count in counts.most_common():
        samples = [failure for failure in failures if failure.event.code == code][:_MAX_SAMPLES]
        error_types.append(
            {
                "code": code,
                "error_count": count,
                "sample_errors": [
                    {
                        "error_message": failure.message,
                        "request": _request_of(failure),
                    }
                    for failure in samples
                ],
            }
        )
    summary = ", ".join(f"{code}: {count}" for code, count in counts.most_common())
    event: Json = {
        "id": account.new_id("evt_local", 24),
        "object": "v2.core.event",
        "type": NO_METER if meter is None else ERROR_REPORT,
        "livemode": False,
        "created": rfc3339(account.clock.now_exact_s()),
        "context": None,
        "reason": None,
        "related_object": None
        if meter is None
        else {
            "id": meter,
            "type": "billing.meter",
            "url": f"/v1/billing/meters/{meter}",
        },
        "data": {
            "developer_message_summary": f"There were {len(failures)} invalid events ({summary})",
            "reason": {"error_count": len(failures), "error_types": error_types},
            "validation_end": rfc3339(max(times)),
            "validation_start": rfc3339(min(times)),
        },
    }
    account.thin_events[event["id"]] = event
    account.outbox.append(event)


def _request_of(failure: FailedUsage) -> Json:
    # Stripe names the idempotency key, the meter event's identifier, or both.
    request: Json = {"identifier": failure.event.identifier}
    if failure.event.idempotency_key is not None:
        request["idempotency_key"] = failure.event.idempotency_key
    return request

"""Where events go: v1 webhook endpoints (snapshots) and v2 event destinations (thin or not)."""

from __future__ import annotations

from collections.abc import Mapping

from infra.local.stripe_server.account import (
    API_VERSION,
    Account,
    Json,
    merge_metadata,
    page,
    register_kind,
    show_plain,
)
from infra.local.stripe_server.errors import invalid_request
from infra.local.stripe_server.resources.events import rfc3339
from infra.local.stripe_server.routes import Params, route

register_kind("we", "webhook endpoint")


def _check_url(url: str, param: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise invalid_request(f"Invalid URL: {url}", code="url_invalid", param=param)
    return url


@route("POST", "/v1/webhook_endpoints", "WebhookEndpointCreateParams")
def create_endpoint(account: Account, params: Params) -> Json:
    """POST /v1/webhook_endpoints: the only answer that holds the secret."""
    endpoint: Json = {
        "id": account.new_id("we", 24),
        "object": "webhook_endpoint",
        "api_version": params.get("api_version"),
        "application": None,
        "created": account.now(),
        "description": params.get("description") or None,
        "enabled_events": params["enabled_events"],
        "livemode": False,
        "metadata": merge_metadata({}, params.get("metadata")),
        "status": "enabled",
        "url": _check_url(params["url"], "url"),
        "_secrets": [account.new_id("whsec", 32)],
    }
    account.add("we", endpoint)
    return {**account.render("we", endpoint), "secret": endpoint["_secrets"][0]}


@route("GET", "/v1/webhook_endpoints", "WebhookEndpointListParams")
def list_endpoints(account: Account, params: Params) -> Json:
    """GET /v1/webhook_endpoints."""
    return page(account, "we", account.store("we").values(), params, "/v1/webhook_endpoints")


@route("GET", "/v1/webhook_endpoints/{}", "WebhookEndpointRetrieveParams")
def retrieve_endpoint(account: Account, _params: Params, endpoint_id: str) -> Json:
    """GET /v1/webhook_endpoints/:id."""
    return account.render("we", account.get("we", endpoint_id))


@route("POST", "/v1/webhook_endpoints/{}", "WebhookEndpointUpdateParams")
def update_endpoint(account: Account, params: Params, endpoint_id: str) -> Json:
    """POST /v1/webhook_endpoints/:id."""
    endpoint = account.get("we", endpoint_id)
    if "url" in params:
        endpoint["url"] = _check_url(params["url"], "url")
    if "enabled_events" in params:
        endpoint["enabled_events"] = params["enabled_events"]
    if "description" in params:
        endpoint["description"] = params["description"] or None
    if "disabled" in params:
        endpoint["status"] = "disabled" if params["disabled"] else "enabled"
    if "metadata" in params:
        endpoint["metadata"] = merge_metadata(endpoint["metadata"], params["metadata"])
    return account.render("we", endpoint)


@route("DELETE", "/v1/webhook_endpoints/{}", "WebhookEndpointDeleteParams")
def delete_endpoint(account: Account, _params: Params, endpoint_id: str) -> Json:
    """DELETE /v1/webhook_endpoints/:id."""
    account.get("we", endpoint_id)["_gone"] = True
    return {"id": endpoint_id, "object": "webhook_endpoint", "deleted": True}


def _show_destination(account: Account, destination: Json) -> Json:
    shown = show_plain(account, destination)
    endpoint = destination["webhook_endpoint"]
    if endpoint is not None:
        shown["webhook_endpoint"] = {
            key: value if f"webhook_endpoint.{key}" in destination["_include"] else None
            for key, value in endpoint.items()
        }
    return shown


register_kind("ed", "event destination", _show_destination)


def _shown_once(account: Account, destination: Json, include: list[str] | None) -> Json:
    destination["_include"] = include or []
    shown = account.render("ed", destination)
    destination["_include"] = []
    return shown


@route("POST", "/v2/core/event_destinations", "v2.core.EventDestinationCreateParams")
def create_destination(account: Account, params: Params) -> Json:
    """POST /v2/core/event_destinations, of type webhook_endpoint."""
    if params["type"] != "webhook_endpoint":
        raise invalid_request("The local server delivers to webhook endpoints only.", param="type")
    if params.get("webhook_endpoint") is None:
        raise invalid_request(
            "Missing required param: webhook_endpoint.",
            code="parameter_missing",
            param="webhook_endpoint",
        )
    if params["event_payload"] == "thin" and params.get("snapshot_api_version"):
        raise invalid_request(
            "snapshot_api_version is for snapshot events only.", param="snapshot_api_version"
        )
    now = rfc3339(account.clock.now_exact_s())
    snapshot = params["event_payload"] == "snapshot"
    secret = account.new_id("whsec", 32)
    destination: Json = {
        "id": account.new_id("ed", 24),
        "object": "v2.core.event_destination",
        "amazon_eventbridge": None,
        "azure_event_grid": None,
        "created": now,
        "description": params.get("description") or "",
        "enabled_events": params["enabled_events"],
        "event_payload": params["event_payload"],
        "events_from": params.get("events_from") or ["@self"],
        "livemode": False,
        "metadata": merge_metadata({}, params.get("metadata")),
        "name": params["name"],
        "snapshot_api_version": params.get("snapshot_api_version") or API_VERSION
        if snapshot
        else None,
        "status": "enabled",
        "status_details": None,
        "type": "webhook_endpoint",
        "updated": now,
        "webhook_endpoint": {
            "signing_secret": secret,
            "url": _check_url(params["webhook_endpoint"]["url"], "webhook_endpoint[url]"),
        },
        "_include": [],
        "_secrets": [secret],
    }
    account.add("ed", destination)
    return _shown_once(account, destination, params.get("include"))


@route("GET", "/v2/core/event_destinations", "v2.core.EventDestinationListParams")
def list_destinations(account: Account, params: Params) -> Json:
    """GET /v2/core/event_destinations: one page, with the v1 endpoints (changelog, 2024-10-28)."""
    include = params.get("include")
    shown = [
        _shown_once(account, row, include)
        for row in reversed(account.store("ed").values())
        if not row.get("_gone")
    ]
    endpoints = [
        _as_destination(row, include)
        for row in reversed(account.store("we").values())
        if not row.get("_gone")
    ]
    return {"data": [*endpoints, *shown], "next_page_url": None, "previous_page_url": None}


def _as_destination(endpoint: Json, include: list[str] | None) -> Json:
    created = rfc3339(endpoint["created"])
    is_url_shown = "webhook_endpoint.url" in (include or [])
    return {
        "id": endpoint["id"],
        "object": "v2.core.event_destination",
        "amazon_eventbridge": None,
        "azure_event_grid": None,
        "created": created,
        "description": endpoint["description"] or "",
        "enabled_events": endpoint["enabled_events"],
        "event_payload": "snapshot",
        "events_from": ["@self"],
        "livemode": False,
        "metadata": endpoint["metadata"],
        "name": endpoint["url"],
        "snapshot_api_version": endpoint["api_version"] or API_VERSION,
        "status": endpoint["status"],
        "status_details": None,
        "type": "webhook_endpoint",
        "updated": created,
        "webhook_endpoint": {
            "signing_secret": None,
            "url": endpoint["url"] if is_url_shown else None,
        },
    }


@route("GET", "/v2/core/event_destinations/{}", "v2.core.EventDestinationRetrieveParams")
def retrieve_destination(account: Account, params: Params, destination_id: str) -> Json:
    """GET /v2/core/event_destinations/:id."""
    return _shown_once(account, account.get("ed", destination_id), params.get("include"))


@route("POST", "/v2/core/event_destinations/{}", "v2.core.EventDestinationUpdateParams")
def update_destination(account: Account, params: Params, destination_id: str) -> Json:
    """POST /v2/core/event_destinations/:id."""
    destination = account.get("ed", destination_id)
    for key in ("description", "enabled_events", "name"):
        if key in params:
            destination[key] = params[key]
    if params.get("metadata") is not None:
        destination["metadata"] = merge_metadata(
            destination["metadata"],
            {key: value or "" for key, value in params["metadata"].items()},
        )
    if params.get("webhook_endpoint"):
        destination["webhook_endpoint"]["url"] = _check_url(
            params["webhook_endpoint"]["url"], "webhook_endpoint[url]"
        )
    destination["updated"] = rfc3339(account.clock.now_exact_s())
    return _shown_once(account, destination, params.get("include"))


def _switch(account: Account, destination_id: str, status: str) -> Json:
    destination = account.get("ed", destination_id)
    destination["status"] = status
    off: Mapping[str, object] = {"disabled": {"reason": "user"}}
    destination["status_details"] = dict(off) if status == "disabled" else None
    return account.render("ed", destination)


@route("POST", "/v2/core/event_destinations/{}/disable", "v2.core.EventDestinationDisableParams")
def disable_destination(account: Account, _params: Params, destination_id: str) -> Json:
    """POST /v2/core/event_destinations/:id/disable."""
    return _switch(account, destination_id, "disabled")


@route("POST", "/v2/core/event_destinations/{}/enable", "v2.core.EventDestinationEnableParams")
def enable_destination(account: Account, _params: Params, destination_id: str) -> Json:
    """POST /v2/core/event_destinations/:id/enable."""
    return _switch(account, destination_id, "enabled")


@route("DELETE", "/v2/core/event_destinations/{}", "v2.core.EventDestinationDeleteParams")
def delete_destination(account: Account, _params: Params, destination_id: str) -> Json:
    """DELETE /v2/core/event_destinations/:id."""
    account.get("ed", destination_id)["_gone"] = True
    return {"id": destination_id, "object": "v2.core.event_destination", "deleted": True}


def destinations_for(account: Account, event: Json) -> list[Json]:
    """The enabled endpoints and destinations that take this event."""
    thin = event["object"] == "v2.core.event"
    found = []
    for prefix in ("we", "ed"):
        for target in account.store(prefix).values():
            takes = "snapshot" if prefix == "we" else target["event_payload"]
            if (
                not target.get("_gone")
                and target["status"] == "enabled"
                and takes == ("thin" if thin else "snapshot")
                and (event["type"] in target["enabled_events"] or "*" in target["enabled_events"])
            ):
                found.append(target)
    return found


def url_of(target: Json) -> str:
    """Where a target wants its events."""
    url: str = target["url"] if "url" in target else target["webhook_endpoint"]["url"]
    return url

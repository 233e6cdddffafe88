"""What the catalog wants at Stripe, what is there, and the changes between the two.

`read_account` looks, `plan_changes` decides (pure), `apply` does. Everything is found again by a
name of its own: meters by event name, products by id, prices by lookup key, endpoints and
destinations by metadata; so a second run changes nothing.

A price never changes at Stripe. One whose amounts differ is replaced: the new price takes over
the lookup key, the old one is archived, and subscriptions that have it keep it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

import stripe

from meterline.catalog import Meter, Plan, Tier
from meterline.domain.meters import EmissionMode

WEBHOOK_EVENTS = (
    "billing.alert.triggered",
    "customer.subscription.created",
    "customer.subscription.deleted",
    "customer.subscription.updated",
    "invoice.created",
    "invoice.finalization_failed",
    "invoice.finalized",
    "invoice.paid",
    "invoice.upcoming",
)
"""The snapshot events that Meterline acts on."""

THIN_EVENTS = (
    "v1.billing.meter.error_report_triggered",
    "v1.billing.meter.no_meter_found",
)
"""Reports of usage that Stripe dropped; they come as thin events only."""

_TAG = "meterline"
_DIGEST = "meterline_digest"
_ENDPOINT = "webhook"
_DESTINATION = "meter-errors"
_WINDOWS = {EmissionMode.EVENT: None, EmissionMode.HOURLY: "hour"}


class SetupRefusedError(Exception):
    """Going on would lose or double money: what stands in the way, and what to do."""


class UnsafeMeterError(SetupRefusedError):
    """The meter at Stripe counts in another way than the catalog sends."""


class Action(StrEnum):
    """What is to be done with one object."""

    KEEP = "keep"
    CREATE = "create"
    UPDATE = "update"
    REACTIVATE = "reactivate"
    ARCHIVE = "archive"


@dataclass(frozen=True, slots=True)
class Ref:
    """An object whose id is only known once it is there."""

    resource: str
    key: str


@dataclass(frozen=True, slots=True)
class Change:
    """One object at Stripe: what it is called here, and what is to be done with it."""

    action: Action
    resource: str
    """meter, product, price, webhook_endpoint or event_destination."""
    key: str
    params: Mapping[str, Any] = field(default_factory=dict)
    object_id: str | None = None
    why: str = ""

    def describe(self) -> str:
        """One line for a person."""
        known = f" {self.object_id}" if self.object_id else ""
        because = f" ({self.why})" if self.why else ""
        return f"{self.action:<10} {self.resource} {self.key}{known}{because}"


@dataclass(frozen=True, slots=True)
class Targets:
    """What besides the catalog is wished for: existing objects to use, and where events go."""

    products: Mapping[str, str] = field(default_factory=dict)
    """Plan id -> an existing product to hang the prices on."""
    base_prices: Mapping[str, str] = field(default_factory=dict)
    """Plan id -> an existing flat price to use as it is."""
    webhook_url: str | None = None
    events_url: str | None = None
    """Where thin events go; the webhook's address if nothing else is said."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is at Stripe now, as plain JSON."""

    meters: Mapping[str, Mapping[str, Any]]
    """By event name; active before inactive."""
    products: Mapping[str, Mapping[str, Any]]
    """By id."""
    prices: Mapping[str, Mapping[str, Any]]
    """By lookup key, and existing base prices by id."""
    endpoints: Sequence[Mapping[str, Any]]
    destinations: Sequence[Mapping[str, Any]]


def product_id(plan: str) -> str:
    """Our own product id, so that it is found again without a search."""
    return f"{_TAG}_{plan}"


def base_lookup_key(plan: str) -> str:
    """Of the flat price."""
    return f"{_TAG}_{plan}_base"


def usage_lookup_key(plan: str) -> str:
    """Of the metered price."""
    return f"{_TAG}_{plan}_usage"


def _is_missing(error: stripe.InvalidRequestError) -> bool:
    return error.code == "resource_missing"


def read_account(client: stripe.StripeClient, plans: Mapping[str, Plan], targets: Targets) -> Found:
    """Look at what is there. Nothing is written."""
    meters: dict[str, Mapping[str, Any]] = {}
    for status in ("inactive", "active"):
        listed = client.v1.billing.meters.list({"status": status, "limit": 100})
        for meter in listed.auto_paging_iter():
            meters[meter.event_name] = meter.to_dict()
    products = {}
    for plan in plans:
        wanted = targets.products.get(plan, product_id(plan))
        try:
            products[wanted] = client.v1.products.retrieve(wanted).to_dict()
        except stripe.InvalidRequestError as error:
            if not _is_missing(error):
                raise
            if plan in targets.products:
                raise SetupRefusedError(f"there is no product {wanted}") from error
    prices = {}
    for plan in plans:
        keys = [base_lookup_key(plan), usage_lookup_key(plan)]
        for price in client.v1.prices.list({"lookup_keys": keys, "limit": 10}).data:
            prices[str(price.lookup_key)] = price.to_dict()
    for price_id in targets.base_prices.values():
        try:
            prices[price_id] = client.v1.prices.retrieve(price_id).to_dict()
        except stripe.InvalidRequestError as error:
            if not _is_missing(error):
                raise
            raise SetupRefusedError(f"there is no price {price_id}") from error
    endpoints: list[Mapping[str, Any]] = []
    destinations: list[Mapping[str, Any]] = []
    if targets.webhook_url:
        listed_endpoints = client.v1.webhook_endpoints.list({"limit": 100})
        endpoints = [row.to_dict() for row in listed_endpoints.auto_paging_iter()]
    if targets.webhook_url or targets.events_url:
        found = client.v2.core.event_destinations.list({"include": ["webhook_endpoint.url"]})
        destinations = [row.to_dict() for row in found.auto_paging_iter()]
    return Found(meters, products, prices, endpoints, destinations)


# Deciding


def plan_changes(
    found: Found,
    meters: Mapping[str, Meter],
    plans: Mapping[str, Plan],
    targets: Targets,
) -> tuple[Change, ...]:
    """Every change, in the order in which they can be made. Raises SetupRefusedError."""
    return tuple(
        change
        for changes in (
            (_meter_change(found, meter) for meter in meters.values()),
            *(_plan_changes_of(found, plan, meters, targets) for plan in plans.values()),
            _endpoint_changes(found, targets),
            _destination_changes(found, targets),
        )
        for change in changes
    )


def _meter_change(found: Found, meter: Meter) -> Change:
    there = found.meters.get(meter.event_name)
    window = _WINDOWS[meter.emission]
    if there is None:
        params: dict[str, Any] = {
            "display_name": meter.display_name,
            "event_name": meter.event_name,
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        }
        if window is not None:
            params["event_time_window"] = window
        return Change(Action.CREATE, "meter", meter.id, params)
    _check_meter(there, meter)
    meter_id = str(there["id"])
    if there["status"] != "active":
        return Change(Action.REACTIVATE, "meter", meter.id, {}, meter_id, "it was deactivated")
    if there["display_name"] != meter.display_name:
        why = f"display name was {there['display_name']!r}"
        params = {"display_name": meter.display_name}
        return Change(Action.UPDATE, "meter", meter.id, params, meter_id, why)
    return Change(Action.KEEP, "meter", meter.id, {}, meter_id)


def _check_meter(there: Mapping[str, Any], meter: Meter) -> None:
    window, wanted = there.get("event_time_window"), _WINDOWS[meter.emission]
    name = f"meter {meter.id} ({meter.event_name}, {there['id']})"
    advice = "Deactivate it at Stripe and give the catalog's meter another event_name."
    if window and meter.emission is EmissionMode.EVENT:
        raise UnsafeMeterError(
            f"{name} has event_time_window={window}, but the catalog sends single events: of "
            f"each {window} Stripe would count only the last one, and the rest would be lost. "
            f"{advice}"
        )
    if window is None and meter.emission is EmissionMode.HOURLY:
        raise UnsafeMeterError(
            f"{name} is a raw meter, but the catalog sends each hour's total so far: Stripe "
            f"would add up the totals and bill the same usage many times. {advice}"
        )
    if window != wanted:
        raise UnsafeMeterError(
            f"{name} has event_time_window={window}, but the catalog sends totals per "
            f"{wanted}. {advice}"
        )
    for what, is_there, is_wanted in (
        ("formula", there["default_aggregation"]["formula"], "sum"),
        ("customer key", there["customer_mapping"]["event_payload_key"], "stripe_customer_id"),
        ("value key", there["value_settings"]["event_payload_key"], "value"),
    ):
        if is_there != is_wanted:
            raise UnsafeMeterError(
                f"{name} has the {what} {is_there!r} where Meterline needs {is_wanted!r}, and "
                f"Stripe lets nobody change it. {advice}"
            )


def _plan_changes_of(
    found: Found, plan: Plan, meters: Mapping[str, Meter], targets: Targets
) -> Iterator[Change]:
    wanted_id = targets.products.get(plan.id, product_id(plan.id))
    there = found.products.get(wanted_id)
    if there is None:
        created = {"id": wanted_id, "name": plan.name, "metadata": {"meterline_plan": plan.id}}
        yield Change(Action.CREATE, "product", plan.id, created)
    elif plan.id not in targets.products and (there["name"] != plan.name or not there["active"]):
        params: dict[str, Any] = {"name": plan.name, "active": True}
        why = f"was {there['name']!r}, {'active' if there['active'] else 'archived'}"
        yield Change(Action.UPDATE, "product", plan.id, params, wanted_id, why)
    else:
        yield Change(Action.KEEP, "product", plan.id, {}, wanted_id)
    if plan.id in targets.base_prices:
        yield _existing_base(found, plan, targets.base_prices[plan.id])
    else:
        yield from _price_changes(found, plan, "base", base_price_params(plan))
    usage = usage_price_params(plan, meters[plan.meter])
    yield from _price_changes(found, plan, "usage", usage)


def _existing_base(found: Found, plan: Plan, price_id: str) -> Change:
    there = found.prices[price_id]
    recurring = there.get("recurring") or {}
    if recurring.get("usage_type") != "licensed" or recurring.get("interval") != plan.interval:
        raise SetupRefusedError(
            f"price {price_id} cannot be the base of plan {plan.id}: it is not a flat price "
            f"per {plan.interval}"
        )
    return Change(Action.KEEP, "price", f"{plan.id}.base", {}, price_id, "given")


def _price_changes(
    found: Found, plan: Plan, part: str, params: Mapping[str, Any]
) -> Iterator[Change]:
    key = f"{plan.id}.{part}"
    there = found.prices.get(str(params["lookup_key"]))
    if there is None:
        yield Change(Action.CREATE, "price", key, params)
        return
    if there["active"] and there["metadata"].get(_DIGEST) == params["metadata"][_DIGEST]:
        yield Change(Action.KEEP, "price", key, {}, str(there["id"]))
        return
    if there["active"]:
        # First, so that a run broken off here is mended by the next one.
        archive = {"active": False}
        yield Change(Action.ARCHIVE, "price", f"{key}.old", archive, str(there["id"]))
    why = f"replaces {there['id']}; subscriptions that have the old price keep it"
    yield Change(Action.CREATE, "price", key, {**params, "transfer_lookup_key": True}, None, why)


def _digest(params: Mapping[str, Any]) -> str:
    text = json.dumps(params, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _tagged(plan: Plan, part: str, lookup_key: str, params: dict[str, Any]) -> dict[str, Any]:
    metadata = {
        "meterline_plan": plan.id,
        "meterline_part": part,
        "meterline_meter": plan.meter,
        _DIGEST: _digest(params),
    }
    return {**params, "lookup_key": lookup_key, "metadata": metadata}


def base_price_params(plan: Plan) -> dict[str, Any]:
    """The flat price, in all the plan's currencies."""
    params: dict[str, Any] = {
        "product": Ref("product", plan.id),
        "currency": plan.currency,
        "unit_amount": plan.base_fee_minor,
        "recurring": {"interval": plan.interval},
        "nickname": f"{plan.name} base fee",
    }
    if plan.currency_options:
        params["currency_options"] = {
            currency: {"unit_amount": option.base_fee_minor}
            for currency, option in plan.currency_options.items()
        }
    return _tagged(plan, "base", base_lookup_key(plan.id), params)


def usage_price_params(plan: Plan, meter: Meter) -> dict[str, Any]:
    """The graduated price per sub-unit, in all the plan's currencies."""
    params: dict[str, Any] = {
        "product": Ref("product", plan.id),
        "currency": plan.currency,
        "billing_scheme": "tiered",
        "tiers_mode": "graduated",
        "recurring": {
            "interval": plan.interval,
            "usage_type": "metered",
            "meter": Ref("meter", meter.id),
        },
        "tiers": _tier_params(plan.tiers, meter),
        "nickname": f"{plan.name} {meter.display_name.lower()}",
    }
    if plan.currency_options:
        params["currency_options"] = {
            currency: {"tiers": _tier_params(option.tiers, meter)}
            for currency, option in plan.currency_options.items()
        }
    return _tagged(plan, "usage", usage_lookup_key(plan.id), params)


def _tier_params(tiers: Sequence[Tier], meter: Meter) -> list[dict[str, Any]]:
    rows = []
    for tier in tiers:
        up_to = "inf" if tier.up_to is None else meter.to_sub_units(tier.up_to)
        # sub_units is a power of ten, so the quotient is exact.
        rate = (tier.unit_amount_minor / meter.sub_units).normalize()
        row: dict[str, Any] = {"up_to": up_to, "unit_amount_decimal": Decimal(f"{rate:f}")}
        if tier.flat_amount_minor:
            row["flat_amount"] = tier.flat_amount_minor
        rows.append(row)
    return rows


def _endpoint_changes(found: Found, targets: Targets) -> Iterator[Change]:
    if not targets.webhook_url:
        return
    wanted: dict[str, Any] = {
        "url": targets.webhook_url,
        "enabled_events": list(WEBHOOK_EVENTS),
    }
    there = _tagged_object(found.endpoints, _ENDPOINT)
    if there is None:
        params = {**wanted, "metadata": {_TAG: _ENDPOINT}, "description": "Meterline"}
        yield Change(Action.CREATE, "webhook_endpoint", "webhook", params)
        return
    differs = [
        name
        for name in ("url", "enabled_events")
        if _comparable(there[name]) != _comparable(wanted[name])
    ]
    if there["status"] != "enabled":
        differs.append("status")
        wanted["disabled"] = False
    yield _settled("webhook_endpoint", "webhook", there, wanted, differs)


def _destination_changes(found: Found, targets: Targets) -> Iterator[Change]:
    url = targets.events_url or targets.webhook_url
    if not url:
        return
    # Endpoints are listed among the destinations too (changelog, 2024-10-28).
    there = _tagged_object(found.destinations, _DESTINATION)
    if there is None:
        params = {
            "name": "Meterline meter errors",
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "enabled_events": list(THIN_EVENTS),
            "webhook_endpoint": {"url": url},
            "include": ["webhook_endpoint.signing_secret", "webhook_endpoint.url"],
            "metadata": {_TAG: _DESTINATION},
        }
        yield Change(Action.CREATE, "event_destination", "meter_errors", params)
        return
    wanted: dict[str, Any] = {}
    if _comparable(there["enabled_events"]) != _comparable(list(THIN_EVENTS)):
        wanted["enabled_events"] = list(THIN_EVENTS)
    if (there.get("webhook_endpoint") or {}).get("url") != url:
        wanted["webhook_endpoint"] = {"url": url}
    if there["status"] != "enabled":
        why = "it was disabled"
        known = str(there["id"])
        yield Change(Action.REACTIVATE, "event_destination", "meter_errors", {}, known, why)
        if not wanted:
            return
    yield _settled("event_destination", "meter_errors", there, wanted, list(wanted))


def _tagged_object(rows: Sequence[Mapping[str, Any]], tag: str) -> Mapping[str, Any] | None:
    return next((row for row in rows if (row.get("metadata") or {}).get(_TAG) == tag), None)


def _comparable(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value


def _settled(
    resource: str,
    key: str,
    there: Mapping[str, Any],
    wanted: Mapping[str, Any],
    differs: Sequence[str],
) -> Change:
    if not differs:
        return Change(Action.KEEP, resource, key, {}, str(there["id"]))
    why = f"{', '.join(differs)} differ{'s' if len(differs) == 1 else ''}"
    return Change(Action.UPDATE, resource, key, wanted, str(there["id"]), why)


# Doing


@dataclass(frozen=True, slots=True)
class Applied:
    """What is at Stripe afterwards."""

    ids: Mapping[tuple[str, str], str]
    """(resource, key) -> id."""


def _resolve(value: Any, ids: Mapping[tuple[str, str], str]) -> Any:
    if isinstance(value, Ref):
        return ids[value.resource, value.key]
    if isinstance(value, Mapping):
        return {key: _resolve(item, ids) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, ids) for item in value]
    return value


def apply(
    client: stripe.StripeClient,
    changes: Sequence[Change],
    keep_secret: Callable[[str, str], None] = lambda _key, _secret: None,
) -> Applied:
    """Make the changes, in order; what was made stays if a later one fails.

    `keep_secret` gets each new signing secret with its key at once: Stripe shows it only now.
    """
    ids: dict[tuple[str, str], str] = {}
    for change in changes:
        if change.action is Action.KEEP:
            ids[change.resource, change.key] = str(change.object_id)
            continue
        made = _make(client, change, _resolve(change.params, ids))
        ids[change.resource, change.key] = made["id"]
        secret = made.get("secret") or (made.get("webhook_endpoint") or {}).get("signing_secret")
        if secret:
            keep_secret(change.key, secret)
    return Applied(ids)


def _make(client: stripe.StripeClient, change: Change, params: Any) -> dict[str, Any]:
    v1, destinations = client.v1, client.v2.core.event_destinations
    target = change.object_id or ""
    made: stripe.StripeObject
    match change.resource, change.action:
        case "meter", Action.CREATE:
            made = v1.billing.meters.create(params)
        case "meter", Action.REACTIVATE:
            made = v1.billing.meters.reactivate(target)
        case "meter", Action.UPDATE:
            made = v1.billing.meters.update(target, params)
        case "product", Action.CREATE:
            made = v1.products.create(params)
        case "product", Action.UPDATE:
            made = v1.products.update(target, params)
        case "price", Action.CREATE:
            made = v1.prices.create(params)
        case "price", Action.ARCHIVE:
            made = v1.prices.update(target, params)
        case "webhook_endpoint", Action.CREATE:
            made = v1.webhook_endpoints.create(params)
        case "webhook_endpoint", Action.UPDATE:
            made = v1.webhook_endpoints.update(target, params)
        case "event_destination", Action.CREATE:
            made = destinations.create(params)
        case "event_destination", Action.REACTIVATE:
            made = destinations.enable(target)
        case "event_destination", Action.UPDATE:
            made = destinations.update(target, params)
        case _:
            raise AssertionError(f"no way to {change.action} a {change.resource}")
    answer: dict[str, Any] = made.to_dict()
    return answer

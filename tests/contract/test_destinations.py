"""Webhook endpoints and event destinations: made, found, changed, removed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import stripe

from tests.contract.conftest import StripeUnderTest

Refused = Callable[[Callable[[], object]], stripe.StripeError]
_URL = "https://example.com/meterline"


def test_a_webhook_endpoint_shows_its_secret_only_once(account: StripeUnderTest) -> None:
    endpoints = account.client.v1.webhook_endpoints
    made = endpoints.create(
        {"url": _URL, "enabled_events": ["invoice.created", "customer.subscription.deleted"]}
    )
    assert made.secret is not None
    assert made.secret.startswith("whsec_")
    assert "secret" not in endpoints.retrieve(made.id).to_dict()
    changed = endpoints.update(made.id, {"enabled_events": ["*"], "disabled": True})
    assert (changed.enabled_events, changed.status) == (["*"], "disabled")
    assert made.id in [row.id for row in endpoints.list({"limit": 100}).data]
    endpoints.delete(made.id)
    assert made.id not in [row.id for row in endpoints.list({"limit": 100}).data]


def test_a_webhook_endpoint_is_listed_among_the_event_destinations(
    account: StripeUnderTest,
) -> None:
    endpoints, name = account.client.v1.webhook_endpoints, account.unique("contract")
    made = endpoints.create(
        {"url": _URL, "enabled_events": ["invoice.created"], "metadata": {"contract": name}}
    )
    listed = account.client.v2.core.event_destinations.list({"include": ["webhook_endpoint.url"]})
    rows = [row.to_dict() for row in listed.auto_paging_iter()]
    endpoints.delete(made.id)
    [found] = [row for row in rows if (row["metadata"] or {}).get("contract") == name]
    assert (found["type"], found["event_payload"]) == ("webhook_endpoint", "snapshot")
    assert found["enabled_events"] == ["invoice.created"]
    assert found["webhook_endpoint"]["url"] == _URL


def test_an_event_name_that_stripe_does_not_know_is_refused(
    account: StripeUnderTest, refused: Refused
) -> None:
    params: Any = {"url": _URL, "enabled_events": ["invoice.imagined"]}
    error = refused(lambda: account.client.v1.webhook_endpoints.create(params))
    assert error.http_status == 400


def test_an_event_destination_takes_thin_events(account: StripeUnderTest) -> None:
    destinations = account.client.v2.core.event_destinations
    made = destinations.create(
        {
            "name": account.unique("contract"),
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "enabled_events": ["v1.billing.meter.error_report_triggered"],
            "webhook_endpoint": {"url": _URL},
            "include": ["webhook_endpoint.signing_secret", "webhook_endpoint.url"],
        }
    )
    assert made.webhook_endpoint is not None
    assert made.webhook_endpoint.url == _URL
    assert made.webhook_endpoint.signing_secret is not None
    plain = destinations.retrieve(made.id).to_dict()
    assert (plain["webhook_endpoint"] or {}).get("signing_secret") is None
    changed = destinations.update(
        made.id,
        {
            "enabled_events": [
                "v1.billing.meter.error_report_triggered",
                "v1.billing.meter.no_meter_found",
            ]
        },
    )
    assert len(changed.enabled_events) == 2
    assert destinations.disable(made.id).status == "disabled"
    listed = destinations.list({"include": ["webhook_endpoint.url"]})
    assert made.id in [row.id for row in listed.auto_paging_iter()]
    destinations.delete(made.id)


def test_thin_events_are_listed_by_type_and_time(account: StripeUnderTest) -> None:
    events = account.client.v2.core.events
    sent_at, meter = datetime.now(UTC), account.make_meter()
    account.send(meter.event_name, "cus_nobody", 1)
    wanted: Any = {
        "types": ["v1.billing.meter.error_report_triggered"],
        "created": {"gte": (sent_at - timedelta(minutes=5)).isoformat()},
        "object_id": meter.id,
        "limit": 100,
    }
    [told] = account.eventually(lambda: events.list(wanted).data, bool)
    assert told.type == "v1.billing.meter.error_report_triggered"
    codes = [kind["code"] for kind in told.to_dict()["data"]["reason"]["error_types"]]
    assert codes == ["meter_event_customer_not_found"]
    others: tuple[Any, ...] = (
        {"types": ["v1.billing.meter.no_meter_found"]},
        {"created": {"gte": (sent_at + timedelta(hours=1)).isoformat()}},
    )
    for other in others:
        asked: Any = {**wanted, **other}
        assert events.list(asked).data == []

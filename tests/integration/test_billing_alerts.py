"""Stripe's billing alerts: when they go off at the local Stripe, and what is told of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from infra.local.stripe_server import LocalStripe
from meterline.adapters.stripe_access import StripeAccess
from meterline.adapters.stripe_events import StripeEvents
from meterline.catalog import load_meters
from meterline.domain.alerts import TriggeredAlert
from meterline.domain.notifications import Happening, Notification
from meterline.ports import NotPublishedError
from meterline.services.tell_alert import TellAlert

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@dataclass
class Telling:
    """The store of notifications and the bus."""

    kept: dict[tuple[str, str], Notification] = field(default_factory=dict)
    published: list[Notification] = field(default_factory=list)
    marked: list[Notification] = field(default_factory=list)
    bus_is_down: bool = False

    def record(self, notification: Notification) -> bool:
        key = (notification.customer, notification.id)
        is_new = key not in self.kept
        self.kept.setdefault(key, notification)
        return is_new

    def publish(self, notification: Notification) -> None:
        if self.bus_is_down:
            raise NotPublishedError("down")
        self.published.append(notification)

    def mark_published(self, notification: Notification) -> None:
        self.marked.append(notification)


def test_an_alert_goes_off_once_for_its_customer_and_says_by_how_much() -> None:
    with LocalStripe() as local:
        v1 = local.client().v1
        meter = v1.billing.meters.create(
            {
                "display_name": "Credits",
                "event_name": "meterline_credits",
                "default_aggregation": {"formula": "sum"},
            }
        )
        one, other = (v1.customers.create({"name": name}).id for name in ("one", "other"))
        v1.billing.alerts.create(
            {
                "alert_type": "usage_threshold",
                "title": "Two credits",
                "usage_threshold": {
                    "gte": 2000,
                    "meter": meter.id,
                    "recurrence": "one_time",
                    "filters": [{"type": "customer", "customer": one}],
                },
            }
        )
        for customer, value in ((one, 1999), (other, 9000), (one, 6), (one, 5000)):
            v1.billing.meter_events.create(
                {
                    "event_name": "meterline_credits",
                    "payload": {"stripe_customer_id": customer, "value": str(value)},
                }
            )
        [event] = v1.events.list({"type": "billing.alert.triggered"}).data
        events = StripeEvents(StripeAccess(lambda: local.key, api_base=local.url))
        alert = events.fetch_alert(event.id)
        assert alert == TriggeredAlert("Two credits", "meterline_credits", 2000, 2005)
        [notice] = events.since(0)
        assert (notice.type, notice.customer) == ("billing.alert.triggered", one)
        assert local.violations() == []


class Alerts:
    """One alert, whatever event it is asked by."""

    def __init__(self, event_name: str) -> None:
        self._event_name = event_name

    def fetch_alert(self, event_id: str) -> TriggeredAlert:
        return TriggeredAlert("Two credits", self._event_name, 2000, 2005)


@pytest.mark.parametrize("bus_is_down", [False, True])
def test_an_alert_is_told_once_or_left_to_the_scan(bus_is_down: bool) -> None:
    telling = Telling(bus_is_down=bus_is_down)
    tell = TellAlert(Alerts("meterline_credits"), telling, telling, load_meters())  # type: ignore[arg-type]  # of Guardrails only what is used
    for _ in range(2):
        tell("evt_1", ["acme"], NOW)
    [kept] = telling.kept.values()
    assert (kept.happening, kept.customer) == (Happening.BILLING_ALERT_TRIGGERED, "acme")
    assert (kept.facts["used"], kept.facts["level"], kept.facts["unit"]) == ("2.005", "2", "credit")
    assert telling.published == telling.marked == ([] if bus_is_down else [kept])
    tell("evt_2", ["acme"], NOW)
    assert len(telling.kept) == 2, "another event is another alert"


def test_an_alert_of_somebody_elses_meter_is_told_to_nobody() -> None:
    telling = Telling()
    TellAlert(Alerts("their_meter"), telling, telling, load_meters())("evt_1", ["acme"], NOW)  # type: ignore[arg-type]  # of Guardrails only what is used
    assert not telling.kept

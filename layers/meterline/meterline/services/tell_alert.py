"""Tell a customer and the operator that an alert of the billing layer went off, once each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from meterline.domain.meters import Meter
from meterline.domain.notifications import Happening, Notification
from meterline.ports import BillingAlerts, EventBus, Guardrails, NotPublishedError


class TellAlert:
    """What becomes of `billing.alert.triggered`. Doing it again tells nobody twice."""

    def __init__(
        self,
        alerts: BillingAlerts,
        guardrails: Guardrails,
        bus: EventBus,
        meters: Mapping[str, Meter],
    ) -> None:
        self._alerts = alerts
        self._guardrails = guardrails
        self._bus = bus
        self._by_event_name = {meter.event_name: meter for meter in meters.values()}

    def __call__(self, event_id: str, customers: Sequence[str], now: datetime) -> None:
        """Ask what the event says and hand it on, for each of the customers that it is about.

        Raises `BillingUnavailableError` and `StorageUnavailableError`.
        """
        alert = self._alerts.fetch_alert(event_id)
        meter = self._by_event_name.get(alert.event_name)
        if meter is None:
            return  # Of a meter that is not ours: nobody here bills by it.
        facts = {
            "title": alert.title,
            "meter": meter.id,
            "unit": meter.unit,
            "used": f"{meter.from_sub_units(alert.value_sub_units):f}",
            "level": f"{meter.from_sub_units(alert.threshold_sub_units):f}",
        }
        for customer in customers:
            happening = Happening.BILLING_ALERT_TRIGGERED
            told = Notification(f"{happening}:{event_id}", customer, happening, now, facts)
            if not self._guardrails.record(told):
                continue  # Known: told, or the scheduled scan tells it.
            try:
                self._bus.publish(told)
            except NotPublishedError:
                continue  # It is kept as open: the scheduled scan publishes it.
            self._guardrails.mark_published(told)

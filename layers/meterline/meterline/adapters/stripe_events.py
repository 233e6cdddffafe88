"""Stripe's events: the list that tells what a webhook never brought, and reports in full."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from meterline.adapters.stripe_access import StripeAccess, translate_errors
from meterline.domain.alerts import TriggeredAlert
from meterline.domain.dropped import DroppedUsage, DropReport, read_identifier
from meterline.domain.webhooks import HANDLED, Notice
from meterline.schemas.webhooks import parse_notice

if TYPE_CHECKING:
    from stripe.params import EventListParams
    from stripe.params.v2.core import EventListParams as ThinEventListParams

_SNAPSHOTS = sorted(name for name in HANDLED if not name.startswith("v1."))
_THIN = sorted(name for name in HANDLED if name.startswith("v1."))


class StripeEvents:
    """Asks Stripe for events. Raises `BillingUnavailableError`."""

    def __init__(self, stripe_access: StripeAccess) -> None:
        self._stripe = stripe_access

    def since(self, created_s: int) -> Iterator[Notice]:
        """Every event that we act on, created at or after `created_s`; Stripe keeps 30 days."""
        snapshots: EventListParams = {
            "created": {"gte": created_s},
            "types": _SNAPSHOTS,
            "limit": 100,
        }
        thin: ThinEventListParams = {
            "created": {"gte": datetime.fromtimestamp(created_s, UTC).isoformat()},
            "types": _THIN,
            "limit": 100,
        }
        with translate_errors():
            client = self._stripe.open()
            for event in client.v1.events.list(snapshots).auto_paging_iter():
                yield parse_notice(event.to_dict())
            for told in client.v2.core.events.list(thin).auto_paging_iter():
                yield parse_notice({"object": "v2.core.event", **told.to_dict()})

    def fetch_alert(self, event_id: str) -> TriggeredAlert:
        """What an alert was set to, and the usage that set it off, by the id of its event."""
        with translate_errors():
            client = self._stripe.open()
            told: dict[str, Any] = client.v1.events.retrieve(event_id).to_dict()["data"]["object"]
            threshold = told["alert"]["usage_threshold"]
            meter = threshold["meter"]
            if isinstance(meter, str):
                meter = client.v1.billing.meters.retrieve(meter).to_dict()
        return TriggeredAlert(
            str(told["alert"]["title"]),
            str(meter["event_name"]),
            int(threshold["gte"]),
            int(told["value"]),
        )

    def fetch_report(self, event_id: str) -> DropReport:
        """A report of dropped usage in full, by the id of its thin event."""
        with translate_errors():
            told: dict[str, Any] = self._stripe.open().v2.core.events.retrieve(event_id).to_dict()
        reason = (told.get("data") or {}).get("reason") or {}
        kinds = reason.get("error_types") or []
        samples = []
        for kind in kinds:
            for sample in kind.get("sample_errors") or []:
                request = sample.get("request") or {}
                identifier = read_identifier(
                    request.get("identifier"), request.get("idempotency_key")
                )
                if identifier is not None:
                    message = str(sample.get("error_message") or "")[:500]
                    samples.append(DroppedUsage(identifier, str(kind["code"]), message))
        return DropReport(
            event_id,
            (told.get("related_object") or {}).get("id"),
            int(reason.get("error_count") or 0),
            [str(kind["code"]) for kind in kinds],
            samples,
        )

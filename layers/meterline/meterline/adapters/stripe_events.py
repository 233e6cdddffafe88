"""Stripe's events: the list that tells what a webhook never brought, and reports in full.

`stripe` is imported with the first question: it takes 130 to 290 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from meterline.domain.dropped import DroppedUsage, DropReport, read_identifier
from meterline.domain.webhooks import HANDLED, Notice
from meterline.errors import BillingUnavailableError
from meterline.schemas.webhooks import parse_notice

if TYPE_CHECKING:
    import stripe
    from stripe.params import EventListParams
    from stripe.params.v2.core import EventListParams as ThinEventListParams

_SNAPSHOTS = sorted(name for name in HANDLED if not name.startswith("v1."))
_THIN = sorted(name for name in HANDLED if name.startswith("v1."))


class StripeEvents:
    """Asks Stripe for events. Raises `BillingUnavailableError`."""

    def __init__(
        self,
        api_key: Callable[[], str],
        *,
        api_base: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 2,
    ) -> None:
        self._api_key = api_key
        self._api_base = api_base
        self._timeout_s = timeout_s
        self._retries = retries

    def since(self, created_s: int) -> Iterator[Notice]:
        """Every event that we act on, created at or after `created_s`; Stripe keeps 30 days."""
        import stripe

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
        client = self._open()
        try:
            for event in client.v1.events.list(snapshots).auto_paging_iter():
                yield parse_notice(event.to_dict())
            for told in client.v2.core.events.list(thin).auto_paging_iter():
                yield parse_notice({"object": "v2.core.event", **told.to_dict()})
        except stripe.StripeError as error:
            raise BillingUnavailableError(_explain(error)) from error

    def fetch_report(self, event_id: str) -> DropReport:
        """A report of dropped usage in full, by the id of its thin event."""
        import stripe

        try:
            told: dict[str, Any] = self._open().v2.core.events.retrieve(event_id).to_dict()
        except stripe.StripeError as error:
            raise BillingUnavailableError(_explain(error)) from error
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

    def _open(self) -> stripe.StripeClient:
        import stripe

        return stripe.StripeClient(
            self._api_key(),
            base_addresses={"api": self._api_base} if self._api_base else {},
            http_client=stripe.RequestsClient(timeout=self._timeout_s),
            max_network_retries=self._retries,
        )


def _explain(error: stripe.StripeError) -> str:
    return f"{type(error).__name__} {error.http_status or ''}".strip()

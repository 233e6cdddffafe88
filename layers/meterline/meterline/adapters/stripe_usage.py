"""What Stripe counts: its meter event summaries, as whole sub-units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from meterline.domain.meters import Meter
from meterline.errors import BillingUnavailableError

if TYPE_CHECKING:
    import stripe
    from stripe.params.billing import MeterEventSummaryListParams

_PAGE = 100
"""What a page of summaries has at most (Stripe's OpenAPI document)."""
_EXACT = 2**53
"""Summaries are floats, which hold every whole number up to here."""


class StripeUsage:
    """Keeps `meterline.ports.BilledUsage`. Safe to share between threads."""

    def __init__(
        self,
        api_key: Callable[[], str],
        *,
        api_base: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 3,
    ) -> None:
        self._api_key = api_key
        self._api_base = api_base
        self._timeout_s = timeout_s
        self._retries = retries
        self._meters: dict[str, str] = {}
        self._client: tuple[str, stripe.StripeClient] | None = None

    def total(self, billing_customer: str, meter: Meter, start: datetime, end: datetime) -> int:
        """Sub-units in a span of whole minutes; one call."""
        rows = self._list(billing_customer, meter, start, end, by_hour=False)
        return sum(_whole(row.aggregated_value) for row in rows)

    def hours(
        self, billing_customer: str, meter: Meter, start: datetime, end: datetime
    ) -> Mapping[datetime, int]:
        """Sub-units of each hour that has any; one call for every hundred hours."""
        found: dict[datetime, int] = {}
        for row in self._list(billing_customer, meter, start, end, by_hour=True):
            hour = datetime.fromtimestamp(row.start_time, UTC)
            found[hour] = _whole(row.aggregated_value)
        return {hour: value for hour, value in found.items() if value}

    def _list(
        self, billing_customer: str, meter: Meter, start: datetime, end: datetime, *, by_hour: bool
    ) -> Iterator[stripe.billing.MeterEventSummary]:
        import stripe

        params: MeterEventSummaryListParams = {
            "customer": billing_customer,
            "start_time": int(start.timestamp()),
            "end_time": int(end.timestamp()),
            "limit": _PAGE,
        }
        if by_hour:
            params["value_grouping_window"] = "hour"
        try:
            meter_id = self._find_meter(meter)
            listed = self._open().v1.billing.meters.event_summaries.list(meter_id, params)
            yield from listed.auto_paging_iter()
        except stripe.StripeError as error:
            name = type(error).__name__
            raise BillingUnavailableError(f"{name} {error.http_status or ''}".strip()) from error

    def _find_meter(self, meter: Meter) -> str:
        if meter.event_name not in self._meters:
            listed = self._open().v1.billing.meters.list({"limit": _PAGE})
            for each in listed.auto_paging_iter():
                # An archived meter of the same name has counted what came before.
                if each.status == "active" or each.event_name not in self._meters:
                    self._meters[each.event_name] = each.id
        if meter.event_name not in self._meters:
            raise BillingUnavailableError(f"there is no meter for {meter.event_name}")
        return self._meters[meter.event_name]

    def _open(self) -> stripe.StripeClient:
        import stripe

        key = self._api_key()
        if self._client is None or self._client[0] != key:
            client = stripe.StripeClient(
                key,
                base_addresses={"api": self._api_base} if self._api_base else {},
                http_client=stripe.RequestsClient(timeout=self._timeout_s),
                max_network_retries=self._retries,
            )
            self._client = (key, client)
        return self._client[1]


def _whole(value: float) -> int:
    """A summary's value; BillingUnavailableError for one that no whole number can be told from."""
    exact = Decimal(value)
    if exact != exact.to_integral_value() or abs(exact) > _EXACT:
        raise BillingUnavailableError(f"a summary says {value!r}")
    return int(exact)

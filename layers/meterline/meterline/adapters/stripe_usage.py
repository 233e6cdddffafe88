"""What Stripe counts: its meter event summaries, as whole sub-units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from meterline.adapters.stripe_access import StripeAccess, translate_errors
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

    def __init__(self, stripe_access: StripeAccess) -> None:
        self._stripe = stripe_access
        self._meters: dict[str, str] = {}

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
        params: MeterEventSummaryListParams = {
            "customer": billing_customer,
            "start_time": int(start.timestamp()),
            "end_time": int(end.timestamp()),
            "limit": _PAGE,
        }
        if by_hour:
            params["value_grouping_window"] = "hour"
        with translate_errors():
            meter_id = self._find_meter(meter)
            listed = self._stripe.open().v1.billing.meters.event_summaries.list(meter_id, params)
            yield from listed.auto_paging_iter()

    def _find_meter(self, meter: Meter) -> str:
        if meter.event_name not in self._meters:
            listed = self._stripe.open().v1.billing.meters.list({"limit": _PAGE})
            for each in listed.auto_paging_iter():
                # An archived meter of the same name has counted what came before.
                if each.status == "active" or each.event_name not in self._meters:
                    self._meters[each.event_name] = each.id
        if meter.event_name not in self._meters:
            raise BillingUnavailableError(f"there is no meter for {meter.event_name}")
        return self._meters[meter.event_name]


def _whole(value: float) -> int:
    """A summary's value; BillingUnavailableError for one that no whole number can be told from."""
    exact = Decimal(value)
    if exact != exact.to_integral_value() or abs(exact) > _EXACT:
        raise BillingUnavailableError(f"a summary says {value!r}")
    return int(exact)

"""Stripe's subscriptions, read into ours."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from meterline.adapters.stripe_access import (
    StripeAccess,
    list_items,
    read_refusal,
    translate_errors,
)
from meterline.domain.periods import Interval, Period
from meterline.domain.subscriptions import Life, Subscription
from meterline.errors import BillingUnavailableError

if TYPE_CHECKING:
    import stripe
    from stripe.params import InvoiceItemListParams, InvoiceListParams

PLAN_KEY = "meterline_plan"
"""Metadata of a price: the plan that it belongs to. The setup command writes it."""
METER_KEY = "meterline_meter"

_RANKS = {
    status: rank
    for rank, status in enumerate(
        ("active", "trialing", "past_due", "unpaid", "paused", "incomplete", "canceled")
    )
}


class StripeSubscriptions:
    """The Subscriptions port on Stripe's API."""

    def __init__(self, stripe_access: StripeAccess) -> None:
        self._stripe = stripe_access

    def of(self, billing_customer: str, now: datetime) -> Subscription | None:
        """The customer's subscription: of several a live one, one of our catalog, the newest."""
        candidates = self._list(billing_customer)
        if not candidates:
            return None
        return read_subscription(min(candidates, key=_rank), now)

    def lives_of(self, billing_customer: str) -> Sequence[Life]:
        """The lives of the customer's subscriptions that bill usage, or did."""
        return [_read_life(each) for each in self._list(billing_customer) if _bills_usage(each)]

    def list_uninvoiced(
        self, billing_customer: str, ended_from: datetime, ended_by: datetime
    ) -> Sequence[Period]:
        """What no invoice asks for of periods that a subscription's end broke off in that time.

        Where two subscriptions bill at a time, nothing is certain, and nothing is told.
        """
        told = [each for each in self._list(billing_customer) if _bills_usage(each)]
        parts = []
        for each in told:
            part = _read_broken_off(each)
            if part is None or not ended_from <= part.end <= ended_by:
                continue
            if any(_overlaps(_read_life(other), part) for other in told if other is not each):
                continue
            left = part.clip(self._billed_until(billing_customer, each.id, part), None)
            if left is not None:
                parts.append(left)
        return parts

    def _billed_until(self, billing_customer: str, subscription: str, part: Period) -> datetime:
        """Until when invoices, or items that wait for one, ask for what was used in `part`.

        What is paid ahead is no usage: such a line ends after the moment in which it was made. What
        lies before a line and is on none, as of a price that was taken off, is not told.
        """
        start_s, end_s = int(part.start.timestamp()), int(part.end.timestamp())
        by_subscription: InvoiceListParams = {
            "subscription": subscription,
            "created": {"gte": start_s},
            "limit": 100,
        }
        waiting: InvoiceItemListParams = {
            "customer": billing_customer,
            "pending": True,
            "limit": 100,
        }
        with translate_errors():
            v1 = self._stripe.open().v1
            spans = [
                (line.period.start, line.period.end)
                for invoice in v1.invoices.list(by_subscription).auto_paging_iter()
                for line in invoice.lines.auto_paging_iter()
                if line.period.end <= invoice.created or end_s <= invoice.created
            ]
            spans += [
                (item.period.start, item.period.end)
                for item in v1.invoice_items.list(waiting).auto_paging_iter()
                if item.period.end <= item.date
            ]
        return _moment(max([start_s, *(last_s for first_s, last_s in spans if first_s < last_s)]))

    def _list(self, billing_customer: str) -> list[stripe.Subscription]:
        try:
            with translate_errors():
                client = self._stripe.open()
                listed = client.v1.subscriptions.list(
                    {"customer": billing_customer, "status": "all", "limit": 100}
                )
                found = [each for each in listed.auto_paging_iter() if each.items.data]
                for each in found:
                    each.items.data = list_items(client, each)
                return found
        except BillingUnavailableError as error:
            if read_refusal(error) == "resource_missing":
                return []
            raise


def read_subscription(found: stripe.Subscription, now: datetime) -> Subscription:
    """Stripe's object as ours. Its periods stand on the items (since API version 2025-03-31)."""
    items = found.items.data
    metered = next((item for item in items if _is_metered(item)), None)
    first = metered or items[0]
    tags = [_read_tags(item) for item in ([metered] if metered is not None else []) + items]
    recurring = first.price.recurring
    added = _moment(metered.created) if metered and metered.created > found.created else None
    return Subscription(
        id=found.id,
        status=found.status,
        plan=next((tag[PLAN_KEY] for tag in tags if PLAN_KEY in tag), None),
        currency=found.currency,
        prices=tuple(item.price.id for item in items),
        metered_item=metered.id if metered else None,
        meter=tags[0].get(METER_KEY) if metered else None,
        current=Period(_moment(first.current_period_start), _moment(first.current_period_end)),
        anchor=_moment(found.billing_cycle_anchor),
        interval=Interval(recurring.interval if recurring is not None else "month"),
        interval_count=recurring.interval_count if recurring is not None else 1,
        started_at=_moment(found.start_date),
        cancel_at=_optional(found.cancel_at),
        ended_at=_optional(found.ended_at),
        trial_start=_optional(found.trial_start),
        trial_end=_optional(found.trial_end),
        synced_at=now.replace(microsecond=now.microsecond // 1000 * 1000),
        metered_since=added,
        metered_price=metered.price.id if metered else None,
    )


def _read_life(found: stripe.Subscription) -> Life:
    """It bills from its start, or the date that it was dated back to, until it ends."""
    [first, *_] = filter(_is_metered, found.items.data)
    end = None
    if found.ended_at is not None:
        # One that is not renewed may be ended a moment after its last period.
        end = _moment(min(found.ended_at, first.current_period_end))
    return Life(_moment(min(found.start_date, first.current_period_start)), end)


def _read_broken_off(found: stripe.Subscription) -> Period | None:
    """What was used of its last period, where it ended before that did; not of a trial."""
    [first, *_] = filter(_is_metered, found.items.data)
    start_s = first.current_period_start
    if first.created > found.created:
        start_s = max(start_s, first.created)
    if found.ended_at is None or not start_s < found.ended_at < first.current_period_end:
        return None
    if found.trial_end is not None and start_s < found.trial_end:
        return None
    return Period(_moment(start_s), _moment(found.ended_at))


def _overlaps(life: Life, part: Period) -> bool:
    return life.start < part.end and (life.end is None or part.start < life.end)


def _bills_usage(found: stripe.Subscription) -> bool:
    return found.status != "incomplete_expired" and any(map(_is_metered, found.items.data))


def _rank(found: stripe.Subscription) -> tuple[int, bool, int]:
    ours = any(PLAN_KEY in _read_tags(item) for item in found.items.data)
    return _RANKS.get(found.status, len(_RANKS)), not ours, -found.created


def _read_tags(item: stripe.SubscriptionItem) -> dict[str, str]:
    metadata = item.price.metadata
    return {} if metadata is None else {key: str(metadata[key]) for key in metadata.to_dict()}


def _is_metered(item: stripe.SubscriptionItem) -> bool:
    recurring = item.price.recurring
    return recurring is not None and recurring.usage_type == "metered"


def _moment(at_s: int) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)


def _optional(at_s: int | None) -> datetime | None:
    return None if at_s is None else _moment(at_s)

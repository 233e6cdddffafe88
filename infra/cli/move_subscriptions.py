"""Moving subscriptions to the prices of a new plan version, each at its own renewal.

A price never changes at Stripe, and a subscription keeps the one that it has. So that no period is
priced anew, a subscription schedule takes the new prices on with the first period that begins when
the version counts (Stripe's documentation, subscription schedules): nothing is prorated, the old
price bills what was used until then, and the subscription goes on without the schedule afterwards.

Each subscription is looked at before it is touched, so the work can be broken off and begun again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import stripe

from infra.cli.attach_usage import LIVE, list_items
from meterline.catalog import Plan

PARTS = ("base", "usage")
"""Of a plan: each has a price of its own."""
_TAG = "meterline_plan_version"
_ENDED = ("released", "canceled", "completed")


@dataclass(slots=True)
class Moved:
    """What became of each subscription that has an older price, by id."""

    scheduled: dict[str, str] = field(default_factory=dict)
    """Subscription -> when it takes the new prices on."""
    already: list[str] = field(default_factory=list)
    later: dict[str, str] = field(default_factory=dict)
    """Subscription -> its next renewal, before the version counts: move it after that."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Subscription -> why it was left alone."""
    failed: dict[str, str] = field(default_factory=dict)
    """Subscription -> what Stripe said."""


@dataclass(frozen=True, slots=True)
class PlanPrices:
    """A plan's prices at Stripe: the one of each part (`base`, `usage`), and the older ones."""

    current: Mapping[str, str]
    older: Mapping[str, str]
    """Price -> its part."""

    def replace(self, price: str) -> str:
        """The price that takes this one's place; itself where it is none of the older ones."""
        return self.current.get(self.older.get(price, ""), price)


def find_prices(
    client: stripe.StripeClient, plan: Plan, product: str, current: Mapping[str, str]
) -> PlanPrices:
    """The prices that setup made for the plan, by what it wrote on them."""
    listed = client.v1.prices.list({"product": product, "limit": 100})
    older = {}
    for price in listed.auto_paging_iter():
        told = price.to_dict()["metadata"]
        part = told.get("meterline_part")
        if told.get("meterline_plan") == plan.id and part and price.id not in current.values():
            older[price.id] = str(part)
    return PlanPrices(current, older)


def find_movable(
    client: stripe.StripeClient, prices: PlanPrices, test_clock: str | None
) -> list[dict[str, Any]]:
    """Every live subscription with an older price, with its schedule."""
    found: dict[str, dict[str, Any]] = {}
    for price in prices.older:
        params: Any = {"price": price, "status": "all", "limit": 100, "expand": ["data.schedule"]}
        if test_clock:
            params["test_clock"] = test_clock
        for row in client.v1.subscriptions.list(params).auto_paging_iter():
            if row.status in LIVE:
                found[row.id] = row.to_dict()
    return list(found.values())


def move_subscriptions(
    client: stripe.StripeClient,
    plan: Plan,
    version: tuple[str, datetime],
    prices: PlanPrices,
    subscriptions: Sequence[dict[str, Any]],
    *,
    dry_run: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> Moved:
    """Schedule the new prices of the plan's version (its name, and from when it counts)."""
    result = Moved()
    for subscription in subscriptions:
        move = _Move(client, plan, version, prices, subscription)
        try:
            move.run(result, dry_run=dry_run)
        except stripe.InvalidRequestError as error:
            result.failed[subscription["id"]] = error.user_message or str(error)
        progress()
    return result


@dataclass(frozen=True, slots=True)
class _Move:
    client: stripe.StripeClient
    plan: Plan
    version: tuple[str, datetime]
    prices: PlanPrices
    subscription: dict[str, Any]

    def run(self, result: Moved, *, dry_run: bool) -> None:
        name = self.subscription["id"]
        items = list(list_items(self.client, self.subscription))
        renewal_s = max(item["current_period_end"] for item in items)
        renews_at = datetime.fromtimestamp(renewal_s, UTC)
        schedule = self.subscription["schedule"]
        why_not = self._find_hindrance(items, schedule)
        if why_not is not None:
            result.skipped[name] = why_not
        elif renews_at < self.version[1]:
            result.later[name] = f"{renews_at:%Y-%m-%dT%H:%M:%SZ}"
        elif schedule is not None and self._is_planned(schedule):
            result.already.append(name)
        else:
            if not dry_run:
                self._schedule(items, schedule)
            result.scheduled[name] = f"{renews_at:%Y-%m-%dT%H:%M:%SZ}"

    def _find_hindrance(
        self, items: Sequence[Mapping[str, Any]], schedule: Mapping[str, Any] | None
    ) -> str | None:
        currency = self.subscription["currency"]
        if currency not in {self.plan.currency, *self.plan.currency_options}:
            return f"the plan has no price in {currency}"
        if self.subscription["cancel_at_period_end"] or self.subscription["cancel_at"]:
            return "it ends"
        if len({item["current_period_end"] for item in items}) > 1:
            return "its items renew at different times"
        if schedule is not None and _TAG not in schedule["metadata"] and not _is_bare(schedule):
            return f"it has a schedule of another's: {schedule['id']}"
        return None

    def _is_planned(self, schedule: Mapping[str, Any]) -> bool:
        """Whether its next phase is this one already."""
        if schedule["status"] in _ENDED or len(schedule["phases"]) < 2:
            return False
        planned = {item["price"] for item in schedule["phases"][-1]["items"]}
        return planned.isdisjoint(self.prices.older) and bool(
            planned & set(self.prices.current.values())
        )

    def _schedule(
        self, items: Sequence[Mapping[str, Any]], schedule: Mapping[str, Any] | None
    ) -> None:
        schedules = self.client.v1.subscription_schedules
        metadata = {_TAG: self.version[0]}
        if schedule is None:
            made = schedules.create({"from_subscription": self.subscription["id"]})
            schedule = made.to_dict()
        told: Any = {
            "end_behavior": "release",
            "metadata": metadata,
            "proration_behavior": "none",
            "phases": write_phases(
                self.subscription,
                items,
                schedule["current_phase"]["start_date"],
                self.plan.interval,
                self.prices.replace,
            ),
        }
        schedules.update(schedule["id"], told)


def write_phases(
    subscription: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    start_s: int,
    interval: str,
    replace: Callable[[str], str],
) -> list[dict[str, Any]]:
    """The running phase as it is, and one with the prices that `replace` tells.

    A phase has what it is told and nothing else (API reference, subscription schedules): a trial,
    a discount or a tax rate that is left out of it ends. What all phases share is kept by the
    schedule's default settings.
    """
    shared: dict[str, Any] = {}
    if subscription["discounts"]:
        shared["discounts"] = _write_discounts(subscription["discounts"])
    if subscription["default_tax_rates"]:
        shared["default_tax_rates"] = [rate["id"] for rate in subscription["default_tax_rates"]]
    running = {
        **shared,
        "start_date": start_s,
        "end_date": items[0]["current_period_end"],
        "items": [*_write_items(items, str)],
    }
    if subscription["status"] == "trialing":
        running["trial_end"] = subscription["trial_end"]
    following = {
        **shared,
        "duration": {"interval": interval, "interval_count": 1},
        "proration_behavior": "none",
        "items": [*_write_items(items, replace)],
    }
    return [running, following]


def _is_bare(schedule: Mapping[str, Any]) -> bool:
    """Whether it changes nothing, as one of ours that was made and not told yet what to do: with
    `from_subscription` Stripe takes no other parameter (API reference, subscription schedules)."""
    is_going_on = schedule["end_behavior"] == "release"
    return not schedule["metadata"] and len(schedule["phases"]) == 1 and is_going_on


def _write_items(
    items: Sequence[Mapping[str, Any]], replace: Callable[[str], str]
) -> Iterator[dict[str, Any]]:
    for item in items:
        written: dict[str, Any] = {"price": replace(item["price"]["id"])}
        if item.get("quantity") is not None:
            written["quantity"] = item["quantity"]
        if item["discounts"]:
            written["discounts"] = _write_discounts(item["discounts"])
        if item["tax_rates"]:
            written["tax_rates"] = [rate["id"] for rate in item["tax_rates"]]
        if item["metadata"]:
            written["metadata"] = item["metadata"]
        yield written


def _write_discounts(discounts: Sequence[str]) -> list[dict[str, str]]:
    """The same discounts, not new ones of their coupons: so they end when they were to end."""
    return [{"discount": discount} for discount in discounts]

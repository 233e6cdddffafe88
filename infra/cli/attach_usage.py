"""Adding the metered item to subscriptions that have the plan's base price but no usage yet.

Each subscription is looked at before it is touched, so the work can be broken off and begun
again at any time. A metered item bills usage from the moment it is added (flexible billing
mode); it carries no quantity. Stripe does not prorate metered prices: the proration behaviour
that the operator has to choose is what applies to the subscription's change as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import stripe

from meterline.catalog import Plan

ProrationBehavior = Literal["create_prorations", "none", "always_invoice"]
LIVE = ("active", "trialing", "past_due", "unpaid")
"""Statuses of subscriptions that go on."""


@dataclass(slots=True)
class Attached:
    """What became of each subscription, by id."""

    added: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Subscription -> why it was left alone."""
    failed: dict[str, str] = field(default_factory=dict)
    """Subscription -> what Stripe said."""


def find_subscriptions(
    client: stripe.StripeClient, base_price: str, test_clock: str | None
) -> list[dict[str, Any]]:
    """Every subscription that has the base price and is still alive."""
    params: Any = {"price": base_price, "status": "all", "limit": 100}
    if test_clock:
        params["test_clock"] = test_clock
    listed = client.v1.subscriptions.list(params)
    rows = (row.to_dict() for row in listed.auto_paging_iter())
    return [row for row in rows if row["status"] in LIVE]


def list_items(
    client: stripe.StripeClient, subscription: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """All items of a subscription, however many it has."""
    embedded = subscription["items"]
    if not embedded["has_more"]:
        yield from embedded["data"]
        return
    listed = client.v1.subscription_items.list({"subscription": subscription["id"], "limit": 100})
    for item in listed.auto_paging_iter():
        yield item.to_dict()


def attach_usage(
    client: stripe.StripeClient,
    plan: Plan,
    subscriptions: list[dict[str, Any]],
    usage_price: str,
    meter: str,
    proration_behavior: ProrationBehavior,
    *,
    dry_run: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> Attached:
    """Add the metered price where no price of its meter is; `progress` after each one."""
    result = Attached()
    currencies = {plan.currency, *plan.currency_options}
    for subscription in subscriptions:
        name = subscription["id"]
        prices = [item["price"] for item in list_items(client, subscription)]
        same_meter = [
            price["id"] for price in prices if (price.get("recurring") or {}).get("meter") == meter
        ]
        if usage_price in same_meter:
            result.already.append(name)
        elif same_meter:
            result.skipped[name] = f"has another price of the same meter: {same_meter[0]}"
        elif subscription["currency"] not in currencies:
            result.skipped[name] = f"the plan has no price in {subscription['currency']}"
        elif dry_run:
            result.added.append(name)
        else:
            _add(client, name, usage_price, proration_behavior, result)
        progress()
    return result


def _add(
    client: stripe.StripeClient,
    subscription: str,
    usage_price: str,
    proration_behavior: ProrationBehavior,
    result: Attached,
) -> None:
    try:
        client.v1.subscription_items.create(
            {
                "subscription": subscription,
                "price": usage_price,
                "proration_behavior": proration_behavior,
            }
        )
    except stripe.InvalidRequestError as error:
        result.failed[subscription] = error.user_message or str(error)
    else:
        result.added.append(subscription)

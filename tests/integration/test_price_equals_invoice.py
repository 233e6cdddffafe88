"""The service's price and the local Stripe's invoice, computed apart, agree to the cent."""

from __future__ import annotations

import random
import time
from decimal import Decimal
from typing import Any

import pytest

from infra.cli.billing_setup import base_price_params, usage_price_params
from infra.local.stripe_server import LocalStripe
from infra.local.stripe_server.account import Account
from infra.local.stripe_server.billing import price_quantity
from infra.local.stripe_server.request_check import Problem, shape_of
from infra.local.stripe_server.resources.meters import create_meter
from infra.local.stripe_server.resources.products import billing_view, create_price, create_product
from meterline.catalog import load_meters, load_plans
from meterline.domain.pricing import Plan, Tier, price, price_usage, total_minor

PLANS, QUANTITIES_PER_PLAN = 200, 100


def _random_plan(dice: random.Random) -> Plan:
    ends = sorted({dice.randint(1, 10 ** dice.randint(1, 7)) for _ in range(dice.randint(0, 4))})
    tiers = [
        Tier(Decimal(end), _random_rate(dice), dice.choice([0, 0, dice.randint(1, 9999)]))
        for end in ends
    ]
    last = Tier(None, _random_rate(dice), dice.choice([0, 0, dice.randint(1, 9999)]))
    return Plan("p", "P", "usd", dice.randint(0, 100_000), "credits", (*tiers, last))


def _random_rate(dice: random.Random) -> Decimal:
    places = dice.randint(0, 9)
    return Decimal(dice.randint(0, 10**places * 3)).scaleb(-places)


def _random_sub_units(dice: random.Random, plan: Plan) -> int:
    ends = [int(tier.up_to * 1000) for tier in plan.tiers if tier.up_to is not None]
    near = dice.choice([0, *ends]) + dice.randint(-2000, 2000)
    return max(0, dice.choice([near, dice.randint(0, 10 ** dice.randint(1, 12))]))


def _stored_price(plan: Plan) -> Any:
    """The plan's price as the server keeps it, by way of the parameters that setup sends."""
    account = Account()
    meter = create_meter(
        account,
        {"display_name": "m", "event_name": "m", "default_aggregation": {"formula": "sum"}},
    )
    product = create_product(account, {"name": "p"})
    params = usage_price_params(plan, load_meters()["credits"])
    params = {**params, "product": product["id"]}
    params["recurring"] = {**params["recurring"], "meter": meter["id"]}
    made = create_price(account, params)
    return billing_view(account.get("price", made["id"]))


def test_the_usage_of_random_plans_is_priced_the_same_line_by_line() -> None:
    dice = random.Random(20_261_122)
    for _ in range(PLANS):
        plan = _random_plan(dice)
        stored = _stored_price(plan)
        for _ in range(QUANTITIES_PER_PLAN):
            sub_units = _random_sub_units(dice, plan)
            ours = [line.amount_minor for line in price_usage(Decimal(sub_units) / 1000, plan)]
            theirs = [line.amount for line in price_quantity(stored, "usd", sub_units)]
            assert ours == theirs, (plan, sub_units)


@pytest.mark.parametrize("plan", load_plans().values(), ids=lambda plan: plan.id)
def test_the_usage_of_a_bundled_plan_is_priced_the_same_line_by_line(plan: Plan) -> None:
    dice = random.Random(plan.id)
    stored = _stored_price(plan)
    for _ in range(2_000):
        sub_units = _random_sub_units(dice, plan)
        ours = [line.amount_minor for line in price_usage(Decimal(sub_units) / 1000, plan)]
        theirs = [line.amount for line in price_quantity(stored, "usd", sub_units)]
        assert ours == theirs, sub_units


@pytest.mark.parametrize("plan_id", load_plans())
def test_the_invoices_of_random_quantities_equal_the_price_of_the_plan(plan_id: str) -> None:
    dice = random.Random(7)
    meter, plan = load_meters()["credits"], load_plans()[plan_id]
    start = int(time.time()) // 3600 * 3600
    with LocalStripe() as local:
        v1 = local.client().v1
        made = v1.billing.meters.create(
            {
                "display_name": "Credits",
                "event_name": meter.event_name,
                "default_aggregation": {"formula": "sum"},
            }
        )
        product = v1.products.create({"name": "Pro"})
        base: Any = {**base_price_params(plan), "product": product.id}
        usage: Any = {**usage_price_params(plan, meter), "product": product.id}
        usage["recurring"] = {**usage["recurring"], "meter": made.id}
        prices = [v1.prices.create(base).id, v1.prices.create(usage).id]
        clock = v1.test_helpers.test_clocks.create({"frozen_time": start})
        expected = {}
        for _ in range(20):
            customer = v1.customers.create({"test_clock": clock.id}).id
            subscription = v1.subscriptions.create(
                {
                    "customer": customer,
                    "items": [{"price": price_id} for price_id in prices],
                    "collection_method": "send_invoice",
                    "days_until_due": 30,
                }
            )
            total = 0
            for _ in range(dice.randint(0, 6)):
                value = dice.choice([dice.randint(1, 3000), dice.randint(1, 100_000_000)])
                total += value
                v1.billing.meter_events.create(
                    {
                        "event_name": meter.event_name,
                        "payload": {"stripe_customer_id": customer, "value": str(value)},
                        "timestamp": start + dice.randint(0, 299),
                    }
                )
            expected[subscription.id] = total_minor(price(Decimal(total) / meter.sub_units, plan))
        for subscription_id, total in expected.items():
            preview = v1.invoices.create_preview({"subscription": subscription_id})
            assert preview.total == total
        v1.test_helpers.test_clocks.advance(clock.id, {"frozen_time": start + 32 * 86_400})
        for subscription_id, total in expected.items():
            invoice = v1.invoices.list({"subscription": subscription_id}).data[0]
            assert (invoice.status, invoice.total) == ("open" if total else "paid", total)
        assert local.violations() == []


@pytest.mark.parametrize("part", ["base", "usage"])
def test_what_setup_sends_is_what_stripe_params_describes(part: str) -> None:
    plan, meter = load_plans()["pro"], load_meters()["credits"]
    params: Any = base_price_params(plan) if part == "base" else usage_price_params(plan, meter)
    params = {**params, "product": "prod_1"}
    if part == "usage":
        params["recurring"] = {**params["recurring"], "meter": "mtr_1"}
        params["tiers"] = [
            {**tier, "unit_amount_decimal": str(tier["unit_amount_decimal"])}
            for tier in params["tiers"]
        ]
    problems: list[Problem] = []
    shape_of("PriceCreateParams").read(params, "", problems)
    assert problems == []

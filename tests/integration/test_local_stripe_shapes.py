"""The local Stripe's objects have the keys of Stripe's own samples, or a reason why not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from infra.local.stripe_server import LocalStripe

SAMPLES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stripe_fixtures.json"
DAY_S = 86_400

REASONS: dict[str, dict[str, str]] = {
    "customer": {"+customer_account": "the SDK's Customer has it, the sample is older"},
    "invoice": {"-subscription": "left the API in 2025; `parent` names the subscription"},
    "webhook_endpoint": {"+secret": "only in the answer to create (API reference)"},
    "subscription_item": {"-quantity": "a metered item has none (API reference)"},
}
"""Per object, what ours lacks (-) or adds (+), and why. Everything else must be the same."""


@pytest.fixture(scope="module")
def samples() -> dict[str, dict[str, Any]]:
    """Stripe's sample objects."""
    if not SAMPLES.exists():
        pytest.skip("no sample traces lie beside the checkout")
    resources: dict[str, dict[str, Any]] = json.loads(SAMPLES.read_text())["resources"]
    return resources


@pytest.fixture(scope="module")
def objects() -> Iterator[dict[str, dict[str, Any]]]:
    """One object of each kind from the local server, by Stripe's own name for it."""
    with LocalStripe() as local:
        yield _make_objects(local)


def _make_objects(local: LocalStripe) -> dict[str, dict[str, Any]]:
    v1 = local.client().v1
    now = int(time.time())
    made: dict[str, Any] = {}
    clock = v1.test_helpers.test_clocks.create({"frozen_time": now - 40 * DAY_S})
    customer = v1.customers.create(
        {
            "test_clock": clock.id,
            "payment_method": "pm_card_visa",
            "invoice_settings": {"default_payment_method": "pm_card_visa"},
        }
    )
    meter = v1.billing.meters.create(
        {
            "display_name": "Credits",
            "event_name": "credits",
            "default_aggregation": {"formula": "sum"},
        }
    )
    made["product"] = product = v1.products.create({"name": "Pro"})
    made["price"] = price = v1.prices.create(
        {
            "product": product.id,
            "currency": "usd",
            "unit_amount": 2900,
            "recurring": {"interval": "month"},
        }
    )
    usage = v1.prices.create(
        {
            "product": product.id,
            "currency": "usd",
            "unit_amount_decimal": Decimal("0.5"),
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter.id},
        }
    )
    subscription = v1.subscriptions.create(
        {"customer": customer.id, "items": [{"price": price.id}, {"price": usage.id}]}
    )
    made["subscription_schedule"] = v1.subscription_schedules.create(
        {"from_subscription": subscription.id}
    )
    clocks = v1.test_helpers.test_clocks
    clocks.advance(clock.id, {"frozen_time": now})
    made["test_helpers.test_clock"] = clocks.retrieve(clock.id)
    made["subscription"] = shown = v1.subscriptions.retrieve(subscription.id)
    made["subscription_item"] = shown.to_dict()["items"]["data"][1]
    made["billing.meter_event"] = v1.billing.meter_events.create(
        {
            "event_name": "credits",
            "identifier": "one",
            "payload": {"stripe_customer_id": customer.id, "value": "25"},
        }
    )
    summaries = v1.billing.meters.event_summaries.list(
        meter.id,
        {"customer": customer.id, "start_time": now // 60 * 60 - 60, "end_time": now // 60 * 60},
    )
    made["billing.meter_event_summary"] = summaries.data[0]
    made["billing.meter_event_adjustment"] = v1.billing.meter_event_adjustments.create(
        {"event_name": "credits", "type": "cancel", "cancel": {"identifier": "one"}}
    )
    made["invoiceitem"] = v1.invoice_items.create(
        {"customer": customer.id, "amount": 100, "currency": "usd"}
    )
    made["invoice"] = invoice = v1.invoices.list({"customer": customer.id}).data[0]
    made["line_item"] = invoice.to_dict()["lines"]["data"][0]
    made["credit_note"] = note = v1.credit_notes.create(
        {"invoice": invoice.id, "amount": 100, "credit_amount": 100}
    )
    made["credit_note_line_item"] = note.to_dict()["lines"]["data"][0]
    made["customer_balance_transaction"] = v1.customers.balance_transactions.list(customer.id).data[
        0
    ]
    made["webhook_endpoint"] = v1.webhook_endpoints.create(
        {"url": "https://example.com", "enabled_events": ["*"]}
    )
    made["event"] = v1.events.list({}).data[0]
    made["customer"] = v1.customers.retrieve(customer.id)
    made["billing.meter"] = v1.billing.meters.retrieve(meter.id)
    return {
        name: value if isinstance(value, dict) else value.to_dict() for name, value in made.items()
    }


NAMES = (
    "billing.meter",
    "billing.meter_event",
    "billing.meter_event_adjustment",
    "billing.meter_event_summary",
    "credit_note",
    "credit_note_line_item",
    "customer",
    "customer_balance_transaction",
    "event",
    "invoice",
    "invoiceitem",
    "line_item",
    "price",
    "product",
    "subscription",
    "subscription_item",
    "subscription_schedule",
    "test_helpers.test_clock",
    "webhook_endpoint",
)


@pytest.mark.parametrize("name", NAMES)
def test_an_object_has_the_keys_of_stripes_sample(
    name: str, samples: dict[str, dict[str, Any]], objects: dict[str, dict[str, Any]]
) -> None:
    ours, theirs = set(objects[name]), set(_sample_of(samples, name))
    differences = {f"-{key}" for key in theirs - ours} | {f"+{key}" for key in ours - theirs}
    assert differences == set(REASONS.get(name, {}))
    assert objects[name]["object"] == samples[name]["object"]


def _sample_of(samples: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    if name == "credit_note_line_item":
        lines: list[dict[str, Any]] = samples["credit_note"]["lines"]["data"]
        return {key: None for line in lines for key in line}
    return samples[name]


def _nested_differences(ours: Any, theirs: Any, path: str) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours and theirs:
        for key in set(theirs) - set(ours):
            yield f"-{path}.{key}"
        for key in set(ours) & set(theirs):
            yield from _nested_differences(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and ours and theirs:
        yield from _nested_differences(ours[0], theirs[0], f"{path}[]")


@pytest.mark.parametrize("name", ["billing.meter", "subscription", "invoice", "customer"])
def test_what_is_nested_has_the_keys_of_stripes_sample_too(
    name: str, samples: dict[str, dict[str, Any]], objects: dict[str, dict[str, Any]]
) -> None:
    expected = {f"-{name}.{key[1:]}" for key in REASONS.get(name, {}) if key[0] == "-"}
    assert set(_nested_differences(objects[name], samples[name], name)) == expected


def test_the_samples_are_of_every_kind_that_is_compared(
    samples: dict[str, dict[str, Any]],
) -> None:
    assert set(NAMES) <= set(samples) | {"credit_note_line_item"}

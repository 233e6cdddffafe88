"""The setup command against the local Stripe, by its command line."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import pytest
import stripe
from click.testing import CliRunner, Result

from infra.cli.__main__ import main
from infra.cli.billing_setup import THIN_EVENTS, WEBHOOK_EVENTS, Action, Change, Targets
from infra.cli.setup import apply, plan_changes, read_account
from infra.local.stripe_server import DEFAULT_KEY, LocalStripe
from meterline.catalog import CATALOG_DIR, load_meters, load_plans

Run = Callable[..., Result]
HOOK = "http://127.0.0.1:9/hook"
OBJECTS = len(load_meters()) + 3 * len(load_plans())
"""A product and two prices for each plan."""


@pytest.fixture(scope="module")
def server() -> Iterator[LocalStripe]:
    with LocalStripe() as local:
        yield local


@pytest.fixture
def local(server: LocalStripe) -> LocalStripe:
    server.reset()
    return server


@pytest.fixture
def client(local: LocalStripe) -> stripe.StripeClient:
    return local.client()


@pytest.fixture
def run(local: LocalStripe) -> Run:
    """Run `setup` with options; the key comes from the environment."""

    def invoke(*options: str, key: str = DEFAULT_KEY) -> Result:
        return CliRunner(mix_stderr=False).invoke(
            main, ["setup", "--stripe-url", local.url, *options], env={"STRIPE_API_KEY": key}
        )

    return invoke


def _said(result: Result) -> str:
    return result.stdout + result.stderr


def _summary(result: Result) -> Any:
    assert result.exit_code == 0, _said(result)
    return json.loads(result.stdout)


def _writes(local: LocalStripe) -> int:
    return sum(row["method"] != "GET" for row in local.journal())


def _subscribe(client: stripe.StripeClient, prices: list[str], **more: Any) -> str:
    customer = client.v1.customers.create({}).id
    params: Any = {
        "customer": customer,
        "items": [{"price": price} for price in prices],
        "collection_method": "send_invoice",
        "days_until_due": 30,
        **more,
    }
    return client.v1.subscriptions.create(params).id


def _prices_of(client: stripe.StripeClient, subscription: str) -> list[str]:
    items = client.v1.subscription_items.list({"subscription": subscription})
    return sorted(item.price.id for item in items.data)


def test_setup_creates_what_the_catalog_describes(run: Run, client: stripe.StripeClient) -> None:
    summary = _summary(run("--json"))
    meter = client.v1.billing.meters.retrieve(summary["meters"]["credits"])
    assert (meter.event_name, meter.event_time_window) == ("meterline_credits", None)
    hourly = client.v1.billing.meters.retrieve(summary["meters"]["tokens"])
    assert hourly.event_time_window == "hour"
    pro = summary["plans"]["pro"]
    base = client.v1.prices.retrieve(pro["prices"]["base"])
    assert (base.unit_amount, base.currency, base.product) == (2900, "usd", pro["product"])
    usage = client.v1.prices.retrieve(pro["prices"]["metered"], {"expand": ["tiers"]}).to_dict()
    assert usage["recurring"]["meter"] == meter.id
    assert [(tier["up_to"], tier["unit_amount_decimal"]) for tier in usage["tiers"]] == [
        (1_000_000, Decimal(0)),
        (None, Decimal("0.0005")),
    ]


def test_a_second_run_changes_nothing(run: Run, local: LocalStripe) -> None:
    first = _summary(run("--json"))
    before = _writes(local)
    second = _summary(run("--json"))
    assert _writes(local) == before
    assert {change["action"] for change in second["changes"]} == {"keep"}
    assert (second["meters"], second["plans"]) == (first["meters"], first["plans"])
    assert "0 changes made" in _said(run())


def test_a_dry_run_writes_nothing_and_says_what_it_would_do(run: Run, local: LocalStripe) -> None:
    result = run("--dry-run")
    assert result.exit_code == 0
    assert "create     meter credits" in _said(result)
    assert f"{OBJECTS} changes to make" in _said(result)
    assert _writes(local) == 0


def test_every_request_of_setup_is_one_that_stripe_params_describes(
    run: Run, local: LocalStripe, tmp_path: Path
) -> None:
    secrets = str(tmp_path / "secrets.json")
    for _ in range(2):
        assert run("--webhook-url", HOOK, "--secrets-file", secrets).exit_code == 0
    assert run("--attach", "--proration-behavior", "none").exit_code == 0
    assert local.violations() == []


def _plan(client: stripe.StripeClient) -> tuple[Change, ...]:
    meters, plans, targets = load_meters(), load_plans(), Targets()
    return plan_changes(read_account(client, plans, targets), meters, plans, targets)


@pytest.mark.parametrize("done", range(OBJECTS + 1))
def test_setup_takes_up_where_it_was_broken_off(client: stripe.StripeClient, done: int) -> None:
    first = _plan(client)
    assert len(first) == OBJECTS
    apply(client, first[:done])
    second = _plan(client)
    assert [change.action for change in second] == [Action.KEEP] * done + [Action.CREATE] * (
        OBJECTS - done
    )
    apply(client, second)
    assert {change.action for change in _plan(client)} == {Action.KEEP}


@pytest.mark.parametrize("path", ["/v1/billing/meters", "/v1/products", "/v1/prices"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_answer_at_any_step_leaves_no_second_object(
    local: LocalStripe, client: stripe.StripeClient, path: str, when: str
) -> None:
    local.add_fault("drop", when=when, path=path, count=1)
    with pytest.raises(stripe.APIConnectionError):
        apply(client, _plan(client))
    apply(client, _plan(client))
    assert {change.action for change in _plan(client)} == {Action.KEEP}
    assert len(client.v1.billing.meters.list({}).data) == 3
    assert len(client.v1.products.list({}).data) == len(load_plans())
    assert len(client.v1.prices.list({}).data) == 2 * len(load_plans())


def test_single_events_on_a_windowed_meter_are_refused(
    run: Run, local: LocalStripe, client: stripe.StripeClient
) -> None:
    client.v1.billing.meters.create(
        {
            "display_name": "Credits",
            "event_name": "meterline_credits",
            "default_aggregation": {"formula": "sum"},
            "event_time_window": "hour",
        }
    )
    before = _writes(local)
    result = run()
    assert result.exit_code == 1
    assert "event_time_window=hour" in _said(result)
    assert "count only the last one" in _said(result)
    assert _writes(local) == before


def test_hourly_totals_on_a_raw_meter_are_refused(
    run: Run, local: LocalStripe, client: stripe.StripeClient
) -> None:
    client.v1.billing.meters.create(
        {
            "display_name": "Tokens",
            "event_name": "meterline_tokens",
            "default_aggregation": {"formula": "sum"},
        }
    )
    before = _writes(local)
    result = run()
    assert result.exit_code == 1
    assert "is a raw meter" in _said(result)
    assert "many times" in _said(result)
    assert _writes(local) == before


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"default_aggregation": {"formula": "count"}}, "formula"),
        ({"value_settings": {"event_payload_key": "tokens"}}, "value key"),
        (
            {"customer_mapping": {"type": "by_id", "event_payload_key": "customer"}},
            "customer key",
        ),
    ],
)
def test_a_meter_that_counts_otherwise_is_refused(
    run: Run, client: stripe.StripeClient, change: dict[str, Any], word: str
) -> None:
    params: Any = {
        "display_name": "Credits",
        "event_name": "meterline_credits",
        "default_aggregation": {"formula": "sum"},
        **change,
    }
    client.v1.billing.meters.create(params)
    result = run()
    assert result.exit_code == 1
    assert word in _said(result)


def test_a_deactivated_meter_is_reactivated_and_a_renamed_one_named_back(
    run: Run, client: stripe.StripeClient
) -> None:
    meters = _summary(run("--json"))["meters"]
    client.v1.billing.meters.deactivate(meters["credits"])
    client.v1.billing.meters.update(meters["tokens"], {"display_name": "Other"})
    actions = {
        change["key"]: change["action"]
        for change in _summary(run("--json"))["changes"]
        if change["resource"] == "meter"
    }
    assert actions == {"credits": "reactivate", "tokens": "update", "outcomes": "keep"}
    assert client.v1.billing.meters.retrieve(meters["credits"]).status == "active"
    assert client.v1.billing.meters.retrieve(meters["tokens"]).display_name == "Tokens"


@pytest.fixture
def plans(tmp_path: Path) -> Callable[[str, str], str]:
    """A copy of the plans file with one text replaced."""

    def write(old: str, new: str) -> str:
        text = (CATALOG_DIR / "plans.toml").read_text()
        assert old in text
        path = tmp_path / "plans.toml"
        path.write_text(text.replace(old, new))
        return str(path)

    return write


def test_a_price_that_changes_is_replaced_and_old_subscriptions_keep_theirs(
    run: Run, client: stripe.StripeClient, plans: Callable[[str, str], str]
) -> None:
    old = _summary(run("--json"))["plans"]["pro"]["prices"]
    subscription = _subscribe(client, [old["base"], old["metered"]])
    dearer = plans("unit_amount_minor = 0.5", "unit_amount_minor = 0.6")
    new = _summary(run("--json", "--plans", dearer))["plans"]["pro"]["prices"]
    assert new["base"] == old["base"]
    assert new["metered"] != old["metered"]
    assert client.v1.prices.retrieve(old["metered"]).active is False
    assert client.v1.prices.retrieve(new["metered"]).lookup_key == "meterline_pro_usage"
    assert _prices_of(client, subscription) == sorted(old.values())
    again = _summary(run("--json", "--plans", dearer))
    assert {change["action"] for change in again["changes"]} == {"keep"}


def test_a_plan_in_two_currencies_makes_prices_in_both(
    run: Run, client: stripe.StripeClient, plans: Callable[[str, str], str]
) -> None:
    euro = (
        "[pro.currency_options.eur]\nbase_fee_minor = 2700\n"
        "[[pro.currency_options.eur.tiers]]\nup_to = 1000\nunit_amount_minor = 0\n"
        "[[pro.currency_options.eur.tiers]]\nunit_amount_minor = 0.45\n"
    )
    both = plans("unit_amount_minor = 0.5\n", f"unit_amount_minor = 0.5\n\n{euro}")
    prices = _summary(run("--json", "--plans", both))["plans"]["pro"]["prices"]
    base = client.v1.prices.retrieve(prices["base"], {"expand": ["currency_options"]}).to_dict()
    assert base["currency_options"]["eur"]["unit_amount"] == 2700
    subscription = _subscribe(client, list(prices.values()), currency="eur")
    preview = client.v1.invoices.create_preview({"subscription": subscription})
    assert (preview.currency, preview.total) == ("eur", 2700)


def test_an_existing_product_and_base_price_can_be_used(
    run: Run, client: stripe.StripeClient
) -> None:
    product = client.v1.products.create({"name": "My Pro"})
    base = client.v1.prices.create(
        {
            "product": product.id,
            "currency": "usd",
            "unit_amount": 4900,
            "recurring": {"interval": "month"},
        }
    )
    given = ("--product", f"pro={product.id}", "--base-price", f"pro={base.id}")
    summary = _summary(run("--json", *given))
    assert summary["plans"]["pro"]["product"] == product.id
    assert summary["plans"]["pro"]["prices"]["base"] == base.id
    usage = client.v1.prices.retrieve(summary["plans"]["pro"]["prices"]["metered"])
    assert usage.product == product.id
    assert client.v1.products.retrieve(product.id).name == "My Pro"
    again = _summary(run("--json", *given))
    assert {change["action"] for change in again["changes"]} == {"keep"}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--product", "pro=prod_none"), "there is no product prod_none"),
        (("--product", "gold=prod_none"), "there is no plan 'gold'"),
        (("--base-price", "pro=price_none"), "there is no price price_none"),
        (("--product", "pro"), "is not PLAN=ID"),
        (("--attach",), "--attach needs --proration-behavior"),
        (("--webhook-url", HOOK), "give --secrets-file"),
    ],
)
def test_what_makes_no_sense_is_refused_in_clear_words_before_anything_is_written(
    run: Run, local: LocalStripe, options: tuple[str, ...], word: str
) -> None:
    result = run(*options)
    assert result.exit_code != 0
    assert word in _said(result)
    assert _writes(local) == 0


def test_a_key_is_needed_and_a_live_one_must_be_meant(run: Run, tmp_path: Path) -> None:
    assert "no Stripe key" in _said(run(key=""))
    result = run(key="sk_live_secret")
    assert "add --live" in _said(result)
    assert "sk_live_secret" not in _said(result)
    path = tmp_path / "key"
    path.write_text(f"{DEFAULT_KEY}\n")
    assert run("--key-file", str(path), key="").exit_code == 0


def test_a_wrong_key_ends_with_stripes_words(run: Run) -> None:
    result = run(key="sk_test_other_key")
    assert result.exit_code == 1
    assert "Invalid API Key" in _said(result)


def test_webhook_and_event_destination_are_made_once_and_kept_in_step(
    run: Run, client: stripe.StripeClient, tmp_path: Path
) -> None:
    path = tmp_path / "secrets.json"
    summary = _summary(run("--json", "--webhook-url", HOOK, "--secrets-file", str(path)))
    secrets = json.loads(path.read_text())
    assert set(secrets) == {"webhook", "meter_errors"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(secret in json.dumps(summary) for secret in secrets.values())
    endpoint = client.v1.webhook_endpoints.retrieve(summary["webhook_endpoint"])
    assert (endpoint.url, sorted(endpoint.enabled_events)) == (HOOK, sorted(WEBHOOK_EVENTS))
    destination = client.v2.core.event_destinations.retrieve(
        summary["event_destination"], {"include": ["webhook_endpoint.url"]}
    )
    assert destination.event_payload == "thin"
    assert sorted(destination.enabled_events) == sorted(THIN_EVENTS)
    client.v1.webhook_endpoints.update(endpoint.id, {"enabled_events": ["*"], "disabled": True})
    moved = "http://127.0.0.1:9/moved"
    changes = {
        change["resource"]: change["action"]
        for change in _summary(run("--json", "--webhook-url", moved))["changes"]
    }
    assert changes["webhook_endpoint"] == changes["event_destination"] == "update"
    again = client.v1.webhook_endpoints.retrieve(endpoint.id)
    assert (again.url, again.status) == (moved, "enabled")
    assert json.loads(path.read_text()) == secrets


def test_an_event_destination_that_was_disabled_is_enabled_again(
    run: Run, client: stripe.StripeClient, tmp_path: Path
) -> None:
    options = ("--json", "--webhook-url", HOOK, "--secrets-file", str(tmp_path / "secrets.json"))
    made = _summary(run(*options))["event_destination"]
    client.v2.core.event_destinations.disable(made)
    changes = _summary(run(*options))["changes"]
    assert [(row["action"], row["id"]) for row in changes if row["action"] != "keep"] == [
        ("reactivate", made)
    ]
    assert client.v2.core.event_destinations.retrieve(made).status == "enabled"


def test_a_webhook_endpoint_is_not_taken_for_the_event_destination(
    run: Run, client: stripe.StripeClient, tmp_path: Path
) -> None:
    options = ("--json", "--webhook-url", HOOK, "--secrets-file", str(tmp_path / "secrets.json"))
    first = _summary(run(*options))
    client.v2.core.event_destinations.delete(first["event_destination"])
    second = _summary(run(*options))
    assert second["webhook_endpoint"] == first["webhook_endpoint"] != second["event_destination"]
    endpoint = client.v1.webhook_endpoints.retrieve(second["webhook_endpoint"])
    assert sorted(endpoint.enabled_events) == sorted(WEBHOOK_EVENTS)
    again = _summary(run(*options))["changes"]
    assert {change["action"] for change in again} == {"keep"}


def test_a_signing_secret_is_kept_even_if_what_comes_after_it_fails(
    run: Run, local: LocalStripe, tmp_path: Path
) -> None:
    path = tmp_path / "secrets.json"
    options = ("--webhook-url", HOOK, "--secrets-file", str(path))
    local.add_fault("error", status=500, path="/v2/core/event_destinations", method="POST")
    assert run(*options).exit_code == 1
    assert set(json.loads(path.read_text())) == {"webhook"}
    local.clear_faults()
    assert run(*options).exit_code == 0
    assert set(json.loads(path.read_text())) == {"webhook", "meter_errors"}


@pytest.mark.parametrize("before", ["no folder", "no JSON", "no object"])
def test_nothing_is_made_while_the_file_cannot_hold_its_secret(
    run: Run, local: LocalStripe, tmp_path: Path, before: str
) -> None:
    path = tmp_path / "secrets.json"
    if before == "no folder":
        path = tmp_path / "none" / "secrets.json"
    else:
        path.write_text({"no JSON": "{", "no object": "[]"}[before])
    result = run("--webhook-url", HOOK, "--secrets-file", str(path))
    assert result.exit_code == 2
    assert "cannot hold signing secrets" in _said(result)
    assert _writes(local) == 0


def test_a_secrets_file_that_others_could_read_is_closed_to_them(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    path.write_text('{"webhook_old": "whsec_old"}')
    path.chmod(0o644)
    assert run("--webhook-url", HOOK, "--secrets-file", str(path)).exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert set(json.loads(path.read_text())) == {"webhook_old", "webhook", "meter_errors"}


# Existing subscriptions


def test_attach_adds_the_metered_item_once_to_every_subscription_of_the_base_price(
    run: Run, client: stripe.StripeClient
) -> None:
    prices = _summary(run("--json"))["plans"]["pro"]["prices"]
    old = [_subscribe(client, [prices["base"]]) for _ in range(12)]
    has_it = _subscribe(client, list(prices.values()))
    gone = _subscribe(client, [prices["base"]])
    client.v1.subscriptions.cancel(gone)
    options = ("--json", "--attach", "--proration-behavior", "none")
    dry = _summary(run(*options, "--dry-run"))["attached"]["pro"]
    assert sorted(dry["added"]) == sorted(old)
    assert _prices_of(client, old[0]) == [prices["base"]]
    attached = _summary(run(*options))["attached"]["pro"]
    assert sorted(attached["added"]) == sorted(old)
    assert attached["already"] == [has_it]
    for subscription in old:
        assert _prices_of(client, subscription) == sorted(prices.values())
    again = _summary(run(*options))["attached"]["pro"]
    assert again["added"] == []
    assert len(again["already"]) == 13


def test_attach_bills_nothing_for_the_change_itself(run: Run, client: stripe.StripeClient) -> None:
    prices = _summary(run("--json"))["plans"]["pro"]["prices"]
    subscription = _subscribe(client, [prices["base"]])
    before = client.v1.invoices.create_preview({"subscription": subscription}).total
    assert run("--attach", "--proration-behavior", "create_prorations").exit_code == 0
    assert client.v1.invoices.create_preview({"subscription": subscription}).total == before


def test_attach_leaves_alone_what_has_another_price_of_the_meter(
    run: Run, client: stripe.StripeClient
) -> None:
    summary = _summary(run("--json"))
    prices = summary["plans"]["pro"]["prices"]
    other = client.v1.prices.create(
        {
            "product": summary["plans"]["pro"]["product"],
            "currency": "usd",
            "unit_amount": 1,
            "recurring": {
                "interval": "month",
                "usage_type": "metered",
                "meter": summary["meters"]["credits"],
            },
        }
    )
    subscription = _subscribe(client, [prices["base"], other.id])
    result = _summary(run("--json", "--attach", "--proration-behavior", "none"))
    assert "another price of the same meter" in result["attached"]["pro"]["skipped"][subscription]
    assert other.id in _prices_of(client, subscription)
    assert prices["metered"] not in _prices_of(client, subscription)


def test_attach_goes_on_after_a_failure_and_the_next_run_finishes(
    run: Run, local: LocalStripe, client: stripe.StripeClient
) -> None:
    prices = _summary(run("--json"))["plans"]["pro"]["prices"]
    old = [_subscribe(client, [prices["base"]]) for _ in range(5)]
    local.add_fault("error", status=429, path="/v1/subscription_items", count=1)
    options = ("--json", "--attach", "--proration-behavior", "none")
    broken = run(*options)
    assert broken.exit_code == 1
    result = run(*options)
    assert result.exit_code == 0
    for subscription in old:
        assert _prices_of(client, subscription) == sorted(prices.values())


def test_attach_can_be_tried_on_the_customers_of_a_test_clock(
    run: Run, client: stripe.StripeClient
) -> None:
    prices = _summary(run("--json"))["plans"]["pro"]["prices"]
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": 1_800_000_000})
    customer = client.v1.customers.create({"test_clock": clock.id}).id
    inside = _subscribe(client, [prices["base"]], customer=customer)
    outside = _subscribe(client, [prices["base"]])
    options = ("--attach", "--proration-behavior", "none", "--test-clock", clock.id)
    assert run(*options).exit_code == 0
    assert len(_prices_of(client, inside)) == 2
    assert len(_prices_of(client, outside)) == 1


def test_every_command_has_help() -> None:
    assert isinstance(main, click.Group)
    context = click.Context(main)
    assert "setup" in main.list_commands(context)
    for name in main.list_commands(context):
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0
        assert result.output.startswith("Usage:")
    unknown = CliRunner().invoke(main, ["nothing"])
    assert unknown.exit_code == 2

"""Subscriptions whose plan changes, or its prices, as the local Stripe bills them and as we do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import stripe
from click.testing import CliRunner

from infra.cli.__main__ import main
from infra.cli.billing_setup import Targets, apply, plan_changes, read_account
from infra.cli.move_subscriptions import write_phases
from infra.local.stripe_server.serving import LocalStripe
from meterline.adapters.stripe_subscriptions import read_subscription
from meterline.catalog import CATALOG_DIR, load_meters, load_plans, read_plans
from meterline.domain.customers import Account, Customer
from meterline.domain.periods import Period
from meterline.domain.pricing import Plan, price, price_usage, total_minor
from meterline.domain.subscriptions import Subscription, follow
from meterline.services.find_terms import find_terms

BEGIN = datetime(2026, 1, 31, 9, 41, 7, tzinfo=UTC)
METERS, PLANS = load_meters(), load_plans()


class BundledPlans:
    """The bundled plans, at any time."""

    def at(self, moment: datetime) -> Mapping[str, Plan]:
        return PLANS


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A customer at the local Stripe whose clock is moved by hand."""

    client: stripe.StripeClient
    prices: Mapping[str, list[str]]
    """Plan -> its base and its metered price."""
    clock: str
    customer: str
    subscription: str

    def hear(self, now: datetime = BEGIN) -> Subscription:
        return read_subscription(self.client.v1.subscriptions.retrieve(self.subscription), now)

    def advance(self, to: datetime) -> None:
        clocks = self.client.v1.test_helpers.test_clocks
        clocks.advance(self.clock, {"frozen_time": int(to.timestamp())})

    def report(self, at: datetime, quantity: int) -> None:
        meter = METERS["credits"]
        value = str(quantity * meter.sub_units)
        self.client.v1.billing.meter_events.create(
            {
                "event_name": meter.event_name,
                "payload": {"stripe_customer_id": self.customer, "value": value},
                "timestamp": int(at.timestamp()),
            }
        )

    def change_plan(self, plan: str) -> None:
        v1 = self.client.v1
        items = v1.subscription_items.list({"subscription": self.subscription}).data
        told: Any = {
            "items": [
                *({"price": price_id} for price_id in self.prices[plan]),
                *({"id": item.id, "deleted": True} for item in items),
            ],
            "proration_behavior": "none",
        }
        v1.subscriptions.update(self.subscription, told)

    def swap_prices(self, plan: str) -> None:
        """Change the plan as Stripe's customer portal does: other prices on the same items."""
        v1 = self.client.v1
        items = v1.subscription_items.list({"subscription": self.subscription}).data
        base, usage = self.prices[plan]
        told: Any = {
            "items": [
                {
                    "id": item.id,
                    "price": usage if item.price.recurring.usage_type == "metered" else base,
                }
                for item in items
                if item.price.recurring is not None
            ],
            "proration_behavior": "none",
        }
        v1.subscriptions.update(self.subscription, told)

    def account(self, subscription: Subscription) -> Account:
        return Account(
            Customer("acme", "Acme", None, "pro", self.customer, BEGIN, BEGIN), (), subscription
        )


@pytest.fixture(scope="module")
def local() -> Iterator[LocalStripe]:
    with LocalStripe() as local:
        yield local
        assert local.violations() == []


@pytest.fixture
def subscriber(local: LocalStripe, request: pytest.FixtureRequest) -> Subscriber:
    client = local.client()
    found = read_account(client, PLANS, Targets())
    ids = apply(client, plan_changes(found, METERS, PLANS, Targets())).ids
    prices = {
        plan: [ids["price", f"{plan}.{part}"] for part in ("base", "usage")] for plan in PLANS
    }
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": int(BEGIN.timestamp())})
    customer = client.v1.customers.create({"test_clock": clock.id})
    made = client.v1.subscriptions.create(
        {
            "customer": customer.id,
            "items": [{"price": price_id} for price_id in prices[request.param]],
            "collection_method": "send_invoice",
            "days_until_due": 30,
        }
    )
    return Subscriber(client, prices, clock.id, customer.id, made.id)


@pytest.mark.parametrize(
    ("subscriber", "old", "new"),
    [("free", "free", "pro"), ("pro", "pro", "team"), ("pro", "pro", "free")],
    indirect=["subscriber"],
)
def test_a_plan_changed_in_mid_period_counts_from_that_second_on(
    subscriber: Subscriber, old: str, new: str
) -> None:
    began = subscriber.hear()
    assert began.plan == old
    change = datetime(2026, 2, 10, 12, 0, 1, tzinfo=UTC)
    subscriber.advance(change)
    subscriber.report(change - timedelta(days=1), 70_000)
    subscriber.change_plan(new)
    subscriber.report(change, 50_000)
    heard = follow(began, subscriber.hear())
    assert (heard.plan, heard.metered_since) == (new, change)
    assert heard.current == began.current
    account = subscriber.account(heard)
    during, plan, _, is_free = find_terms(account, BundledPlans(), METERS, change)
    assert (during, plan.id, is_free) == (Period(change, began.current.end), new, False)
    # The whole of the new quota is there, and what came before the change is not taken from it.
    preview = subscriber.client.v1.invoices.create_preview(
        {"subscription": subscriber.subscription}
    )
    assert preview.total == total_minor(price(Decimal(50_000), PLANS[new]))
    after, _, _, _ = find_terms(account, BundledPlans(), METERS, began.current.end)
    assert after.start == began.current.end


@pytest.mark.parametrize("subscriber", ["pro"], indirect=True)
def test_other_prices_on_the_same_items_count_from_the_second_that_stripe_says(
    subscriber: Subscriber,
) -> None:
    began = subscriber.hear()
    change = datetime(2026, 2, 10, 12, 0, 1, tzinfo=UTC)
    subscriber.advance(change)
    subscriber.report(change - timedelta(days=1), 70_000)
    subscriber.swap_prices("team")
    subscriber.advance(change + timedelta(minutes=10))
    subscriber.report(change + timedelta(minutes=5), 50_000)
    heard = subscriber.hear(change + timedelta(minutes=10))
    assert (heard.metered_item, heard.metered_since) == (began.metered_item, None)
    known = follow(began, heard, change)
    assert (known.plan, known.metered_since) == ("team", change)
    preview = subscriber.client.v1.invoices.create_preview(
        {"subscription": subscriber.subscription}
    )
    assert preview.total == total_minor(price(Decimal(50_000), PLANS["team"]))
    # It is remembered, whatever is heard afterwards, and in the next period it does not matter.
    again = follow(known, subscriber.hear(change + timedelta(days=1)), change + timedelta(days=1))
    assert again.metered_since == change
    assert follow(began, heard).metered_since == change + timedelta(minutes=10)
    subscriber.advance(RENEWAL + timedelta(hours=1))
    renewed = follow(again, subscriber.hear(RENEWAL + timedelta(hours=1)))
    account = subscriber.account(renewed)
    period, _, _, _ = find_terms(account, BundledPlans(), METERS, RENEWAL + timedelta(hours=1))
    assert period.start == RENEWAL


# The prices of a plan change


RENEWAL = datetime(2026, 2, 28, 9, 41, 7, tzinfo=UTC)


@pytest.fixture
def write_plans(tmp_path: Path) -> Callable[[datetime], Path]:
    """A plans file that makes Pro dearer from a moment on."""

    def write(since: datetime) -> Path:
        text = (CATALOG_DIR / "plans.toml").read_text("utf-8")
        for old, new in (
            ('version = "2026-11-01"', f'version = "since-{since:%Y%m%d}"'),
            ("2026-11-01T00:00:00Z", f"{since:%Y-%m-%dT%H:%M:%SZ}"),
            ("base_fee_minor = 2900", "base_fee_minor = 3900"),
            ("unit_amount_minor = 0.5\n", "unit_amount_minor = 0.6\n"),
        ):
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "plans.toml"
        path.write_text(text)
        return path

    return write


def set_up(local: LocalStripe, plans: Path, *options: str) -> dict[str, Any]:
    """What `setup` says that it did."""
    arguments = ["setup", "--stripe-url", local.url, "--json", "--plans", str(plans), *options]
    answered = CliRunner(mix_stderr=False).invoke(
        main, arguments, env={"STRIPE_API_KEY": local.key}, catch_exceptions=False
    )
    assert answered.exit_code == 0, answered.stderr
    told: dict[str, Any] = json.loads(answered.stdout)
    return told


def move(local: LocalStripe, plans: Path, subscriber: Subscriber, *options: str) -> dict[str, Any]:
    """What became of Pro's subscriptions on the subscriber's clock."""
    options = ("--move-at-renewal", "--test-clock", subscriber.clock, *options)
    told: dict[str, Any] = set_up(local, plans, *options)["moved"]["pro"]
    return told


def count_writes(local: LocalStripe) -> int:
    return sum(row["method"] != "GET" for row in local.journal())


NOTHING: dict[str, Any] = {
    "scheduled": {},
    "already": [],
    "later": {},
    "skipped": {},
    "failed": {},
}


@pytest.mark.parametrize("subscriber", ["pro"], indirect=True)
def test_new_prices_count_from_the_renewal_on_and_never_before(
    local: LocalStripe, subscriber: Subscriber, write_plans: Callable[[datetime], Path]
) -> None:
    plans = write_plans(datetime(2026, 2, 15, tzinfo=UTC))
    name, v1 = subscriber.subscription, subscriber.client.v1
    assert move(local, plans, subscriber, "--dry-run") == NOTHING, "there are no new prices yet"
    set_up(local, plans)
    writes = count_writes(local)
    expected = {**NOTHING, "scheduled": {name: "2026-02-28T09:41:07Z"}}
    assert move(local, plans, subscriber, "--dry-run") == expected
    assert count_writes(local) == writes
    assert move(local, plans, subscriber) == expected
    for _ in range(2):
        writes = count_writes(local)
        assert move(local, plans, subscriber) == {**NOTHING, "already": [name]}
        assert count_writes(local) == writes
    old, new = PLANS["pro"], read_plans(plans, METERS)["pro"]
    for renews_at, quantity, used_on in (
        (RENEWAL, 3_000, old),
        (datetime(2026, 3, 31, 9, 41, 7, tzinfo=UTC), 4_000, new),
        (datetime(2026, 4, 30, 9, 41, 7, tzinfo=UTC), 1_234, new),
    ):
        subscriber.advance(renews_at - timedelta(hours=1))
        subscriber.report(renews_at - timedelta(days=20), quantity)
        coming = v1.invoices.create_preview({"subscription": name}).total
        subscriber.advance(renews_at + timedelta(hours=2))
        billed = v1.invoices.list({"subscription": name, "limit": 1}).data[0]
        usage = total_minor(price_usage(Decimal(quantity), used_on))
        assert billed.total == usage + new.base_fee_minor
        assert used_on is old or coming == billed.total
    heard = subscriber.hear()
    assert (heard.plan, heard.current.start) == ("pro", datetime(2026, 4, 30, 9, 41, 7, tzinfo=UTC))
    assert v1.subscriptions.retrieve(name).schedule is None, "it goes on without the schedule"
    assert move(local, plans, subscriber) == NOTHING


@pytest.mark.parametrize("subscriber", ["pro"], indirect=True)
def test_a_renewal_before_the_version_counts_keeps_the_old_prices(
    local: LocalStripe, subscriber: Subscriber, write_plans: Callable[[datetime], Path]
) -> None:
    plans = write_plans(RENEWAL + timedelta(seconds=1))
    set_up(local, plans)
    later = {**NOTHING, "later": {subscriber.subscription: "2026-02-28T09:41:07Z"}}
    assert move(local, plans, subscriber) == later
    subscriber.advance(RENEWAL + timedelta(hours=2))
    moved = move(local, plans, subscriber)
    assert moved["scheduled"] == {subscriber.subscription: "2026-03-31T09:41:07Z"}


@pytest.mark.parametrize("subscriber", ["pro"], indirect=True)
def test_a_move_that_was_broken_off_is_taken_up(
    local: LocalStripe, subscriber: Subscriber, write_plans: Callable[[datetime], Path]
) -> None:
    plans = write_plans(datetime(2026, 2, 15, tzinfo=UTC))
    set_up(local, plans)
    schedules = subscriber.client.v1.subscription_schedules
    made = schedules.create({"from_subscription": subscriber.subscription})
    assert subscriber.subscription in move(local, plans, subscriber)["scheduled"]
    assert len(schedules.retrieve(made.id).phases) == 2
    # A still newer version takes the place of the one that was to come.
    newer = plans.with_name("newer.toml")
    newer.write_text(plans.read_text().replace("= 3900", "= 4900"))
    assert subscriber.subscription in move(local, newer, subscriber)["scheduled"]
    subscriber.advance(RENEWAL + timedelta(hours=2))
    [billed] = subscriber.client.v1.invoices.list(
        {"subscription": subscriber.subscription, "limit": 1}
    ).data
    assert billed.total == 4900


@pytest.mark.parametrize("subscriber", ["pro"], indirect=True)
@pytest.mark.parametrize("what", ["it ends", "it has a schedule of another's"])
def test_what_is_arranged_otherwise_is_left_alone(
    local: LocalStripe,
    subscriber: Subscriber,
    write_plans: Callable[[datetime], Path],
    what: str,
) -> None:
    plans = write_plans(datetime(2026, 2, 15, tzinfo=UTC))
    set_up(local, plans)
    v1, name = subscriber.client.v1, subscriber.subscription
    if what == "it ends":
        v1.subscriptions.update(name, {"cancel_at_period_end": True})
    else:
        made = v1.subscription_schedules.create({"from_subscription": name})
        v1.subscription_schedules.update(made.id, {"metadata": {"made_by": "sales"}})
    told = move(local, plans, subscriber)
    assert what in told["skipped"][name]
    assert {**told, "skipped": {}} == NOTHING


@pytest.mark.parametrize("subscriber", ["pro"], indirect=True)
def test_a_trial_goes_on_when_its_end_takes_the_new_prices(
    local: LocalStripe, subscriber: Subscriber, write_plans: Callable[[datetime], Path]
) -> None:
    plans = write_plans(datetime(2026, 2, 5, tzinfo=UTC))
    set_up(local, plans)
    v1, name = subscriber.client.v1, subscriber.subscription
    ends_at = datetime(2026, 2, 14, 9, 41, 7, tzinfo=UTC)
    v1.subscriptions.update(name, {"trial_end": int(ends_at.timestamp())})
    assert name in move(local, plans, subscriber)["scheduled"]
    on_trial = v1.subscriptions.retrieve(name)
    assert (on_trial.status, on_trial.trial_end) == ("trialing", int(ends_at.timestamp()))
    subscriber.advance(BEGIN + timedelta(days=2))
    subscriber.report(BEGIN + timedelta(days=1), 5_000)
    subscriber.advance(ends_at + timedelta(hours=2))
    billed = v1.invoices.list({"subscription": name, "limit": 1}).data[0]
    assert billed.total == read_plans(plans, METERS)["pro"].base_fee_minor


@pytest.mark.parametrize("subscriber", ["pro"], indirect=True)
def test_a_version_that_comes_in_the_first_period_of_another_takes_its_place_at_the_next_renewal(
    local: LocalStripe, subscriber: Subscriber, write_plans: Callable[[datetime], Path]
) -> None:
    plans = write_plans(datetime(2026, 2, 15, tzinfo=UTC))
    set_up(local, plans)
    assert subscriber.subscription in move(local, plans, subscriber)["scheduled"]
    subscriber.advance(RENEWAL + timedelta(hours=2))
    newer = plans.with_name("newer.toml")
    newer.write_text(plans.read_text().replace("= 3900", "= 4900"))
    moved = move(local, newer, subscriber)
    assert moved["scheduled"] == {subscriber.subscription: "2026-03-31T09:41:07Z"}
    subscriber.advance(datetime(2026, 3, 31, 11, 41, 7, tzinfo=UTC))
    listed = subscriber.client.v1.invoices.list({"subscription": subscriber.subscription})
    assert [billed.total for billed in listed.data[:2]] == [4900, 3900]


def test_discounts_and_tax_rates_are_in_both_phases_and_the_trial_in_the_first() -> None:
    item = {
        "price": {"id": "price_old"},
        "quantity": 2,
        "current_period_end": 2_000,
        "discounts": ["di_item"],
        "tax_rates": [{"id": "txr_item"}],
        "metadata": {"seat": "a"},
    }
    subscription = {
        "status": "trialing",
        "trial_end": 2_000,
        "discounts": ["di_all"],
        "default_tax_rates": [{"id": "txr_all"}],
    }
    running, following = write_phases(
        subscription, [item], 1_000, "month", {"price_old": "price_new"}.__getitem__
    )
    shared = {"discounts": [{"discount": "di_all"}], "default_tax_rates": ["txr_all"]}
    told = {
        "quantity": 2,
        "discounts": [{"discount": "di_item"}],
        "tax_rates": ["txr_item"],
        "metadata": {"seat": "a"},
    }
    assert running == {
        **shared,
        "start_date": 1_000,
        "end_date": 2_000,
        "trial_end": 2_000,
        "items": [{"price": "price_old", **told}],
    }
    assert following == {
        **shared,
        "duration": {"interval": "month", "interval_count": 1},
        "proration_behavior": "none",
        "items": [{"price": "price_new", **told}],
    }

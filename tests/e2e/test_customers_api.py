"""Customers over HTTP on the deployed stack: users, pages, and Stripe's subscription."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe
from click.testing import CliRunner

from infra.cli.__main__ import main
from infra.cli.billing_setup import Targets, apply, plan_changes, read_account
from infra.local.stack import LocalStack
from meterline.catalog import load_meters, load_plans
from tests.e2e.conftest import STRIPE_KEY, Answer, Api


def get(api: Api, path: str) -> Answer:
    return api.call("GET", path, key=api.admin_key)


def unique(word: str) -> str:
    return f"{word}-{os.urandom(4).hex()}"


@pytest.fixture(scope="module")
def billing(stripe_url: str) -> stripe.StripeClient:
    client = stripe.StripeClient(STRIPE_KEY, base_addresses={"api": stripe_url})
    found = read_account(client, load_plans(), Targets())
    apply(client, plan_changes(found, load_meters(), load_plans(), Targets()))
    return client


def subscribe(billing: stripe.StripeClient) -> tuple[str, Any]:
    customer = billing.v1.customers.create({"name": "Acme"})
    keys: Any = {"lookup_keys": ["meterline_pro_base", "meterline_pro_usage"]}
    prices = billing.v1.prices.list(keys).data
    made = billing.v1.subscriptions.create(
        {
            "customer": customer.id,
            "items": [{"price": price.id} for price in prices],
            "collection_method": "send_invoice",
            "days_until_due": 30,
        }
    )
    return customer.id, made


def test_a_customer_comes_back_with_its_users(api: Api) -> None:
    customer = unique("users")
    users = [
        {"id": "u_1", "name": "Ada", "email": "ada@example.com", "role": "admin"},
        {"id": "ü/2", "name": None, "email": None, "role": "member"},
    ]
    put = api.put_customer(customer, email="billing@example.com", users=users)
    assert put.status == 200
    assert put.told["users"] == users
    assert put.told["subscription"] is None
    shown = get(api, f"/v1/customers/{customer}")
    assert shown.status == 200
    assert shown.told == put.told
    assert api.put_customer(customer).told["users"] == users
    assert api.put_customer(customer, users=[users[0]]).told["users"] == [users[0]]
    assert api.put_customer(customer, users=[]).told["users"] == []


def test_a_thousand_users_are_taken_in_one_call(api: Api) -> None:
    customer = unique("seats")
    users = [{"id": f"u_{place:04d}", "role": "member"} for place in range(1_000)]
    put = api.put_customer(customer, users=users)
    assert put.status == 200
    shown = get(api, f"/v1/customers/{customer}").told["users"]
    assert [user["id"] for user in shown] == [user["id"] for user in users]


def test_pages_hold_every_customer_once_in_the_order_of_their_ids(api: Api) -> None:
    prefix = unique("page")
    made = [f"{prefix}-{place:02d}" for place in range(9)]
    for customer in reversed(made):
        assert api.put_customer(customer).status == 200
    seen: list[str] = []
    cursor = ""
    while True:
        page = get(api, f"/v1/customers?limit=4{cursor}")
        assert page.status == 200
        assert len(page.told["customers"]) <= 4
        seen += [customer["id"] for customer in page.told["customers"]]
        if page.told["next_cursor"] is None:
            break
        cursor = f"&cursor={page.told['next_cursor']}"
    assert seen == sorted(seen)
    assert [each for each in seen if each.startswith(prefix)] == made


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("limit=0", 400, "invalid_limit"),
        ("limit=101", 400, "invalid_limit"),
        ("limit=ten", 400, "invalid_limit"),
        ("limit=1&limit=2", 400, "invalid_limit"),
        ("limit=", 400, "invalid_limit"),
        ("cursor=x", 400, "invalid_cursor"),
        ("cursor=YWNtZQ==", 400, "invalid_cursor"),
        ("cursor=" + "A" * 2_000, 400, "invalid_cursor"),
    ],
)
def test_a_page_that_cannot_be_is_refused(api: Api, query: str, status: int, code: str) -> None:
    answered = get(api, f"/v1/customers?{query}")
    assert (answered.status, answered.told["code"]) == (status, code)


@pytest.mark.parametrize(
    ("users", "field"),
    [
        ({"id": "u_1"}, "users"),
        (["u_1"], "users.0"),
        ([{"name": "Ada"}], "users.0.id"),
        ([{"id": ""}], "users.0.id"),
        ([{"id": 7}], "users.0.id"),
        ([{"id": "u\u0000"}], "users.0.id"),
        ([{"id": "u" * 129}], "users.0.id"),
        ([{"id": "u_1", "role": "owner"}], "users.0.role"),
        ([{"id": "u_1", "email": "nobody"}], "users.0.email"),
        ([{"id": "u_1", "name": "n" * 201}], "users.0.name"),
        ([{"id": "u_1", "admin": True}], "users.0.admin"),
        ([{"id": "u_1"}, {"id": "u_1"}], "users"),
        ([{"id": f"u_{place}"} for place in range(1_001)], "users"),
    ],
)
def test_users_that_cannot_be_are_refused_and_nothing_is_written(
    api: Api, users: Any, field: str
) -> None:
    customer = unique("refused")
    refused = api.put_customer(customer, users=users)
    assert (refused.status, refused.told["code"]) == (422, "invalid_body")
    assert refused.told["errors"][0]["field"] == field
    assert get(api, f"/v1/customers/{customer}").status == 404


def test_the_list_is_for_admins(api: Api) -> None:
    assert api.call("GET", "/v1/customers").status == 401
    assert api.call("GET", "/v1/customers", key=api.usage_key).status == 403


def test_a_put_brings_stripes_subscription_and_another_customer_takes_it_away(
    api: Api, billing: stripe.StripeClient
) -> None:
    customer = unique("billed")
    billing_customer, made = subscribe(billing)
    put = api.put_customer(customer, billing_customer=billing_customer)
    assert put.status == 200
    heard = put.told["subscription"]
    item = made.to_dict()["items"]["data"][0]
    assert heard["id"] == made.id
    assert (heard["status"], heard["plan"], heard["meter"]) == ("active", "pro", "credits")
    for edge in ("start", "end"):
        told = datetime.fromisoformat(heard["current_period"][edge])
        assert told == datetime.fromtimestamp(item[f"current_period_{edge}"], UTC)
    assert datetime.now(UTC) - datetime.fromisoformat(heard["synced_at"]) < timedelta(minutes=5)
    # The subscription's own webhook may have brought it up to date once more in between.
    read = get(api, f"/v1/customers/{customer}").told["subscription"]
    assert read["synced_at"] >= heard["synced_at"]
    assert {**read, "synced_at": None} == {**heard, "synced_at": None}
    taken = api.put_customer(unique("other"), billing_customer=billing_customer)
    assert (taken.status, taken.told["code"]) == (409, "billing_customer_taken")
    without = billing.v1.customers.create({"name": "Nobody"}).id
    assert api.put_customer(customer, billing_customer=without).told["subscription"] is None
    assert api.put_customer(customer).told["subscription"] is None


def test_the_next_invoice_is_reckoned_here_as_stripe_previews_it(
    api: Api,
    billing: stripe.StripeClient,
    stack: LocalStack,
    stripe_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**stack.environment(), "STRIPE_API_KEY": STRIPE_KEY}.items():
        monkeypatch.setenv(name, value)
    customer = unique("previewed")
    billing_customer, _ = subscribe(billing)
    put = api.put_customer(customer, billing_customer=billing_customer)
    start = datetime.fromisoformat(put.told["subscription"]["current_period"]["start"])
    events = [
        {
            "specversion": "1.0",
            "id": str(place),
            "source": "preview",
            "type": "meterline.usage",
            "subject": customer,
            "time": (start + timedelta(milliseconds=ms)).isoformat(),
            "data": {"meter": "credits", "quantity": quantity},
        }
        # The first is of the hour in which the period starts, and not of the period.
        for place, (ms, quantity) in enumerate([(-1, "5000"), (0, "999.5"), (900, "1001.501")])
    ]
    assert api.report(*events).told["accepted"] == 3
    command = ["customers", "preview", "--stack", "meterline-local", "--stripe-url", stripe_url]
    deadline_s = time.monotonic() + 240
    while True:
        shown = CliRunner().invoke(main, [*command, customer])
        if shown.exit_code == 0 and "2,001.001 credits" in shown.output:
            break
        assert time.monotonic() < deadline_s, shown.output
    # 1,001.001 credits above the included 1,000, at half a cent each: 500.5005 cents.
    assert "here   34.01 usd" in shown.output
    assert "Stripe 34.01 usd" in shown.output


def test_a_billing_customer_that_stripe_does_not_know_does_not_stop_the_put(api: Api) -> None:
    put = api.put_customer(unique("lost"), billing_customer=unique("cus_nobody"))
    assert put.status == 200
    assert put.told["subscription"] is None

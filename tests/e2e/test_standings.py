"""Customers that are frozen, cancelled, unknown or without a plan, on the routes that they meet."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from infra.local.stripe_account import StripeAccount
from infra.local.stripe_server import StripeControl
from tests.e2e.billed import await_value, make_customer
from tests.e2e.conftest import STRIPE_KEY, Answer, Api, Webhooks
from tests.e2e.dashboards import sign_in
from tests.e2e.described import check_described
from tests.e2e.test_authorizations import ask, make_event, set_limits
from tests.e2e.test_dashboard_border import post_form, read_form_token
from tests.e2e.test_previews import preview


@dataclass(frozen=True)
class Routes:
    """The answers that one customer gets: status, and the code of a refusal."""

    api: Api
    customer: str

    def authorize(self) -> str:
        """The code of the decision on one credit."""
        answer = ask(self.api, self.customer, "1")
        assert answer.status == 200, answer.body
        return str(answer.told["code"])

    def preview(self) -> tuple[int, str | None]:
        """What a credit would cost."""
        return _read(preview(self.api, customer=self.customer, estimate={"quantity": "1"}))

    def report(self) -> str:
        """What becomes of a report: `accepted`, or the code of its rejection."""
        answer = self.api.report(make_event(self.customer, "1"))
        assert answer.status == 202, answer.body
        check_described(self.api, "POST", "/v1/usage", answer)
        rejected = answer.told["rejected"]
        return str(rejected[0]["code"]) if rejected else "accepted"

    def show(self, what: str) -> tuple[int, str | None]:
        """GET of `usage` or `limits`."""
        path = f"/v1/customers/{self.customer}/{what}"
        answer = self.api.call("GET", path, key=self.api.admin_key)
        check_described(self.api, "GET", f"/v1/customers/{{id}}/{what}", answer)
        return _read(answer)

    def limit(self, **limits: Any) -> tuple[int, str | None]:
        """PUT of limits."""
        path = f"/v1/customers/{self.customer}/limits"
        body = json.dumps(limits).encode()
        answer = self.api.call("PUT", path, key=self.api.admin_key, body=body)
        check_described(self.api, "PUT", "/v1/customers/{id}/limits", answer)
        return _read(answer)


def _read(answer: Answer) -> tuple[int, str | None]:
    return answer.status, answer.told.get("code")


OK = (200, None)


@pytest.fixture
def routes(api: Api) -> Callable[[str], Routes]:
    return lambda customer: Routes(api, customer)


def test_a_frozen_customer_is_refused_and_what_it_did_is_taken(
    api: Api, stripe_url: str, routes: Callable[[str], Routes]
) -> None:
    customer = "stands_frozen"
    make_customer(api, stripe_url, customer)
    # Ten times the floor of a customer without a history, at once.
    assert api.report(make_event(customer, "1000")).told["accepted"] == 1
    frozen = routes(customer)
    await_value(frozen.authorize, "customer_frozen")
    assert frozen.report() == "accepted"
    assert frozen.preview() == OK
    assert frozen.limit(stop_at={"quantity": "5000"}) == OK
    assert frozen.authorize() == "customer_frozen", "a higher limit does not lift a freeze"
    assert (frozen.show("usage"), frozen.show("limits")) == (OK, OK)


def test_a_cancelled_customer_is_refused_and_what_it_did_is_taken(
    api: Api, stripe_url: str, webhooks: Webhooks, routes: Callable[[str], Routes]
) -> None:
    customer = "stands_cancelled"
    billing_customer = make_customer(api, stripe_url, customer)
    client = StripeControl(stripe_url, STRIPE_KEY).client()
    [subscription] = client.v1.subscriptions.list({"customer": billing_customer}).data
    cancelled = routes(customer)
    assert cancelled.authorize() == "allowed"
    client.v1.subscriptions.cancel(subscription.id)
    # Stripe's webhook says so.
    await_value(cancelled.authorize, "subscription_ended")
    assert cancelled.preview() == (409, "no_terms")
    assert cancelled.report() == "accepted"
    assert (cancelled.show("usage"), cancelled.show("limits")) == (OK, OK)
    assert cancelled.limit(stop_at={"quantity": "5"}) == OK
    assert cancelled.authorize() == "subscription_ended"


def test_an_unknown_customer_is_told_so_everywhere(routes: Callable[[str], Routes]) -> None:
    unknown = routes("stands_nowhere")
    assert unknown.authorize() == "unknown_customer"
    assert unknown.preview() == (404, "not_found")
    assert unknown.report() == "unknown_customer"
    assert (unknown.show("usage"), unknown.show("limits")) == ((404, "not_found"),) * 2
    assert unknown.limit(block_overage=True) == (404, "not_found")


def test_a_customer_whose_plan_nobody_knows_is_told_so_and_what_it_did_is_taken(
    api: Api, stripe_url: str, routes: Callable[[str], Routes]
) -> None:
    customer = "stands_planless"
    account = StripeAccount(stripe_url, STRIPE_KEY)
    account.set_up()
    v1 = account.client.v1
    # Somebody sold a price of their own, in a currency that no plan of the catalog has.
    product = v1.products.create({"name": "By hand"})
    price = v1.prices.create(
        {
            "product": product.id,
            "currency": "eur",
            "unit_amount": 900,
            "recurring": {"interval": "month"},
        }
    )
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    clock = v1.test_helpers.test_clocks.create({"frozen_time": int(start.timestamp())})
    billed = v1.customers.create({"name": customer, "test_clock": clock.id})
    v1.subscriptions.create(
        {
            "customer": billed.id,
            "items": [{"price": price.id}],
            "collection_method": "send_invoice",
            "days_until_due": 30,
        }
    )
    assert api.put_customer(customer, billing_customer=billed.id).status == 200
    planless = routes(customer)
    assert planless.authorize() == "allowed", "no limit is set, and none can be"
    assert planless.preview() == (409, "no_terms")
    assert planless.report() == "accepted"
    assert (planless.show("usage"), planless.show("limits")) == ((409, "no_terms"),) * 2
    assert planless.limit(block_overage=True) == (409, "no_terms")


def test_a_limit_below_what_is_used_is_taken_and_refuses_from_then_on(
    api: Api, stripe_url: str, routes: Callable[[str], Routes]
) -> None:
    customer = "stands_above"
    make_customer(api, stripe_url, customer)
    assert api.report(make_event(customer, "7")).told["accepted"] == 1
    above = routes(customer)

    def used() -> str:
        return str(preview(api, customer=customer, estimate={"quantity": "1"}).told["used"])

    await_value(used, "7")
    assert above.authorize() == "allowed"
    assert set_limits(api, customer, stop_at={"quantity": "5"})["is_reached"] is True
    refused = ask(api, customer, "0.001").told
    assert (refused["decision"], refused["code"], refused["remaining"]) == (
        "deny",
        "hard_limit",
        "0",
    )
    assert refused["message"].startswith("You've hit your set limit of 5 credits. Raise it")
    told = preview(api, customer=customer, estimate={"quantity": "1"}).told
    assert (told["crosses_limit"], told["limit_left"]) == (True, "0")
    assert above.report() == "accepted", "work that was done is recorded"
    assert above.limit(stop_at={"quantity": "9"}) == OK
    assert above.authorize() == "allowed"


def test_a_limit_below_what_is_used_that_is_set_on_the_page_refuses_and_the_page_says_so(
    api: Api, stripe_url: str
) -> None:
    customer = "stands_at_the_page"
    make_customer(api, stripe_url, customer)
    assert api.report(make_event(customer, "7")).told["accepted"] == 1

    def used() -> str:
        return str(preview(api, customer=customer, estimate={"quantity": "1"}).told["used"])

    await_value(used, "7")
    cookie = {"Cookie": sign_in(api, customer)}
    form = {
        "form_token": read_form_token(api, cookie),
        "stop_at": "5",
        "stop_at_in": "quantity",
    }
    saved = post_form(api, "/settings/usage/limits", cookie, form)
    assert saved.status == 303, saved.body
    page = api.call("GET", saved.headers["location"].removeprefix(api.url), headers=cookie)
    assert b"usage stops now, until the next period" in page.body
    assert ask(api, customer, "0.001").told["code"] == "hard_limit"
    form |= {"form_token": read_form_token(api, cookie), "stop_at": "8"}
    saved = post_form(api, "/settings/usage/limits", cookie, form)
    page = api.call("GET", saved.headers["location"].removeprefix(api.url), headers=cookie)
    assert b"Your limits are saved." in page.body
    assert b"usage stops now" not in page.body
    assert ask(api, customer, "1").told["code"] == "allowed"

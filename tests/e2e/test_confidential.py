"""What must stay inside: no secret and nothing of a person in a log, no secret in an environment.

A log may say ids: a customer's, an event's, a message's, Stripe's. They are pseudonyms. It says no
name, address, user, action, key, token, secret, and nothing of a body or of an address called.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
import urllib3

from infra.local.stack import LocalStack
from infra.local.stripe_server.webhooks import sign
from tests.e2e.billed import BilledUsage, await_value, make_customer
from tests.e2e.conftest import STRIPE_KEY, Api, Webhooks
from tests.e2e.test_authorizations import ask, set_limits
from tests.e2e.test_books import invoke

_MARK = f"marker{secrets.token_hex(6)}"
MARKERS = {
    "the customer's name": f"{_MARK}-Ltd-name",
    "an email address": f"{_MARK}.person@private.example",
    "a user": f"u_{_MARK}_user",
    "a user's name": f"{_MARK} Surname",
    "an action that is a prompt": f"{_MARK} write me a poem on my divorce",
    "a source": f"{_MARK}/source",
    "a field that nobody knows": f"{_MARK}-unknown-field",
    "a body that is no JSON": f"{_MARK}-no-json",
    "a key that is wrong": f"mk_{_MARK}_wrong_key",
    "a token in an address": f"{_MARK}-link-token",
    "a cookie": f"{_MARK}-session-cookie",
    "what Stripe tells of a person": f"{_MARK}-stripe-person",
    "a signature": f"{_MARK}0signature",
}


@pytest.fixture(scope="module")
def secret_values(stack: LocalStack, api: Api, webhooks: Webhooks) -> dict[str, str]:
    """Every secret of the stack by where it is from, this session's keys too."""
    manager = stack.client("secretsmanager")
    found = {"usage key": api.usage_key, "admin key": api.admin_key, "Stripe's key": STRIPE_KEY}
    found |= {f"webhook {name}": secret for name, secret in webhooks.secrets.items()}
    for page in manager.get_paginator("list_secrets").paginate():
        for each in page["SecretList"]:
            text = manager.get_secret_value(SecretId=each["ARN"])["SecretString"]
            for place, value in list_leaves(json.loads(text)):
                found[f"{each['Name']} {place}"] = value
    assert len(found) >= 6
    return {place: value for place, value in found.items() if len(value) >= 8}


def list_leaves(told: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text inside of a secret's JSON."""
    if isinstance(told, dict):
        for name, value in told.items():
            yield from list_leaves(value, f"{place}.{name}")
    elif isinstance(told, list):
        for value in told:
            yield from list_leaves(value, place)
    else:
        yield place, str(told)


def list_routes(stack: LocalStack) -> list[tuple[str, str]]:
    """Method and path of everything that the API serves, as it is deployed."""
    items = stack.client("apigatewayv2").get_routes(ApiId=stack.outputs["ApiId"])["Items"]
    routes = [tuple(item["RouteKey"].split(" ", 1)) for item in items]
    assert len(routes) >= 18
    return [(method, path) for method, path in routes]


def call_every_route_badly(stack: LocalStack, api: Api, customer: str) -> None:
    """Every route with markers in the body, the query and the headers, and each kind of key."""
    mark = MARKERS
    bodies = [
        json.dumps({"name": mark["the customer's name"], "email": 7, mark["a source"]: 1}).encode(),
        json.dumps([{"id": 1, "x": mark["a field that nobody knows"]}]).encode(),
        b'{"a": ' + mark["a body that is no JSON"].encode(),
    ]
    headers = {
        "Cookie": f"session={mark['a cookie']}; __session={mark['a cookie']}",
        "User-Agent": mark["an email address"],
    }
    query = f"?token={mark['a token in an address']}&cursor={mark['a token in an address']}"
    for method, route in list_routes(stack):
        path = route.replace("{id}", customer).replace("{invoice}", f"in_{_MARK[:6]}")
        for key in (None, mark["a key that is wrong"], api.usage_key, api.admin_key):
            for body in bodies if method in ("POST", "PUT") else [None]:
                answer = api.call(method, path + query, key=key, body=body, headers=headers)
                assert answer.status < 500, (method, route, answer.body)


def use_well(stack: LocalStack, api: Api, stripe_url: str, customer: str) -> None:
    """A customer's day: people, usage, a refused call, a page; and what goes wrong at Stripe."""
    mark = MARKERS
    billing_customer = make_customer(api, stripe_url, customer)
    put = api.put_customer(
        customer,
        name=mark["the customer's name"],
        email=mark["an email address"],
        billing_customer=billing_customer,
        users=[{"id": mark["a user"], "name": mark["a user's name"], "role": "admin"}],
    )
    assert put.status == 200, put.body
    data = {
        "meter": "credits",
        "quantity": "3",
        "user": mark["a user"],
        "action": mark["an action that is a prompt"],
    }
    event = {
        "specversion": "1.0",
        "id": "marked",
        "source": mark["a source"],
        "type": "meterline.usage",
        "subject": customer,
        "time": datetime.now(UTC).isoformat(),
        "data": data,
    }
    assert api.report(event, {**event, "data": {**data, "quantity": "NaN"}}).status == 202
    await_value(BilledUsage(stripe_url, billing_customer, "meterline_credits").total, 3000)
    set_limits(api, customer, stop_at={"quantity": "1"}, warn_at={"quantity": "1"})
    denied = ask(api, customer, "1", action=data["action"], user=mark["a user"])
    assert denied.told["decision"] == "deny"
    session = api.call(
        "POST",
        "/v1/portal-sessions",
        key=api.admin_key,
        body=json.dumps({"customer": customer, "user": mark["a user"]}).encode(),
    )
    assert session.status == 201, session.body
    link = str(session.told["url"]).partition("/settings")[2]
    page = api.call("GET", f"/settings{link}")
    cookie = page.headers["Set-Cookie"].partition(";")[0]
    assert api.call("GET", "/settings/usage", headers={"Cookie": cookie}).status == 200
    # Tokens are secrets of this test alone.
    MARKERS["a link to a page"] = link.partition("token=")[2]
    MARKERS["a session of a page"] = cookie.partition("=")[2]
    # A batch that cannot be billed: no such customer at Stripe.
    api.put_customer(f"{customer}_unbilled", billing_customer="cus_of_nobody")
    api.report({**event, "subject": f"{customer}_unbilled"})


def send_webhooks(webhooks: Webhooks) -> None:
    """Deliveries that are forged, cannot be read, and are good, each with something of a person."""
    http = urllib3.PoolManager(retries=False, timeout=60.0)
    told = {
        "id": f"evt_{secrets.token_hex(6)}",
        "object": "event",
        "type": "customer.subscription.updated",
        "created": int(time.time()),
        "data": {
            "object": {
                "id": "sub_none",
                "customer": "cus_nobody",
                "description": MARKERS["what Stripe tells of a person"],
            }
        },
    }
    good = json.dumps(told).encode()
    broken = good[:-5]
    now_s = int(time.time())
    secret = webhooks.secrets["webhook"]
    for body, header in (
        (good, f"t={now_s},v1={MARKERS['a signature']}"),
        (broken, sign(broken, [secret], now_s)),
        (good, sign(good, [secret], now_s)),
    ):
        assert http.request(
            "POST", webhooks.url, body=body, headers={"Stripe-Signature": header}
        ).status in (200, 400)


def read_all_logs(stack: LocalStack) -> dict[str, str]:
    """Everything in every log group, by the group's name."""
    logs = stack.client("logs")
    found = {}
    for groups in logs.get_paginator("describe_log_groups").paginate():
        for group in groups["logGroups"]:
            pages = logs.get_paginator("filter_log_events").paginate(
                logGroupName=group["logGroupName"]
            )
            lines = [event["message"] for page in pages for event in page["events"]]
            found[group["logGroupName"]] = "\n".join(lines)
    return found


def list_written(text: str) -> set[str]:
    """A text as it may stand in a log: as it is, and as JSON or an address would write it."""
    return {text, json.dumps(text)[1:-1], quote(text), quote(text, safe="")}


def test_no_log_says_a_secret_or_anything_of_a_person(
    stack: LocalStack,
    api: Api,
    stripe_url: str,
    webhooks: Webhooks,
    secret_values: dict[str, str],
) -> None:
    customer = "confidential"
    use_well(stack, api, stripe_url, customer)
    call_every_route_badly(stack, api, customer)
    send_webhooks(webhooks)
    for function in ("WatchBreakers", "ReconcileUsage", "SettleInvoices", "PollStripeEvents"):
        invoke(stack, function, {})
    # What came of it in functions behind queues is in their logs when this is.
    await_value(
        lambda: any("confidential_unbilled" in line for line in stack.read_logs("EmitUsage")), True
    )
    logs = read_all_logs(stack)
    told = "\n".join(logs.values())
    # Logs are there, with ids, or nothing below would mean anything.
    assert '"customer":"confidential"' in told.replace(" ", "")
    silent = {group for group, text in logs.items() if not text and "ApiLogGroup" not in group}
    assert silent == set()
    leaked = [
        f"{what} in {group}"
        for what, text in {**MARKERS, **secret_values}.items()
        for group, lines in logs.items()
        if any(written in lines for written in list_written(text))
    ]
    assert leaked == []


def test_no_environment_holds_a_secret(stack: LocalStack, secret_values: dict[str, str]) -> None:
    functions = [
        each
        for page in stack.client("lambda").get_paginator("list_functions").paginate()
        for each in page["Functions"]
    ]
    assert len(functions) >= 18
    for function in functions:
        environment = function["Environment"]["Variables"]
        for place, value in secret_values.items():
            holding = [name for name, text in environment.items() if value in text]
            assert holding == [], f"{function['FunctionName']}: {place}"

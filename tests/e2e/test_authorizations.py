"""Leave to spend, over HTTP: a limit set by the customer's own control is kept."""

from __future__ import annotations

import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from tests.e2e.billed import await_value, make_customer
from tests.e2e.conftest import Answer, Api
from tests.e2e.described import check_described


def set_limits(api: Api, customer: str, **limits: Any) -> Any:
    """Set them; the answer."""
    path = f"/v1/customers/{customer}/limits"
    answer = api.call("PUT", path, key=api.admin_key, body=json.dumps(limits).encode())
    assert answer.status == 200, answer.body
    return answer.told


def ask(api: Api, customer: str, quantity: str, **more: Any) -> Answer:
    body = json.dumps({"customer": customer, "estimate": {"quantity": quantity}, **more})
    answer = api.call("POST", "/v1/authorizations", key=api.usage_key, body=body.encode())
    check_described(api, "POST", "/v1/authorizations", answer)
    return answer


def release(api: Api, authorization: str, body: bytes = b"{}") -> Answer:
    path = f"/v1/authorizations/{authorization}/release"
    answer = api.call("POST", path, key=api.usage_key, body=body)
    check_described(api, "POST", "/v1/authorizations/{id}/release", answer)
    return answer


def make_event(customer: str, quantity: str, authorization: str | None = None) -> dict[str, Any]:
    data: dict[str, Any] = {"meter": "credits", "quantity": quantity}
    if authorization is not None:
        data["authorization"] = authorization
    return {
        "specversion": "1.0",
        "id": secrets.token_hex(8),
        "source": "e2e",
        "type": "meterline.usage",
        "subject": customer,
        "time": datetime.now(UTC).isoformat(),
        "data": data,
    }


def test_calls_that_ask_first_use_a_limit_up_and_never_pass_it(api: Api, stripe_url: str) -> None:
    customer = "held"
    make_customer(api, stripe_url, customer)
    assert ask(api, customer, "1000000").told["authorization"] is None, "no limit is set"
    set_limits(api, customer, stop_at={"quantity": "50.5"})

    def spend(number: int) -> Decimal:
        asked = ask(api, customer, "2.5").told
        if asked["decision"] == "deny":
            assert asked["code"] == "hard_limit"
            return Decimal(0)
        used = Decimal("2.5") - Decimal(number % 3) / 10
        report = api.report(make_event(customer, str(used), asked["authorization"]))
        assert report.told["accepted"] == 1
        return used

    with ThreadPoolExecutor(8) as threads:
        used = sum(threads.map(spend, range(40)), Decimal(0))
    assert Decimal(45) < used <= Decimal("50.5")
    # Once all of it is settled, exactly the rest can be had.
    rest = Decimal("50.5") - used

    def ask_for_rest() -> bool:
        asked = ask(api, customer, str(rest)).told
        return bool(asked["decision"] == "allow")

    await_value(ask_for_rest, expected=True)
    refused = ask(api, customer, "0.001").told
    assert refused["message"] == (
        "You've hit your set limit of 50.5 credits. Raise it in settings to continue, "
        "or wait until next period."
    )
    assert (refused["remaining"], refused["raise_at"]) == ("0", "/settings/usage")
    assert refused["resets_at"] > datetime.now(UTC).isoformat()


def test_a_limit_in_money_and_a_release(api: Api, stripe_url: str) -> None:
    customer = "priced"
    make_customer(api, stripe_url, customer)
    # $29 a month with 1,000 credits, then half a cent each: $30 is 1,200 credits, and less than
    # half a cent of another one before it rounds to a cent more.
    set_limits(api, customer, stop_at={"amount_minor": 3000, "currency": "usd"})
    held = ask(api, customer, "1200").told
    assert held["decision"] == "allow"
    refused = ask(api, customer, "1").told
    assert refused["message"].startswith("You've hit your set limit of $30. Raise it")
    assert release(api, held["authorization"]).told == {"released": "1200"}
    assert release(api, held["authorization"]).status == 404
    assert ask(api, customer, "1").told["decision"] == "allow"


def test_the_kill_switch_leaves_the_included_quota(api: Api, stripe_url: str) -> None:
    customer = "switched"
    make_customer(api, stripe_url, customer)
    set_limits(api, customer, block_overage=True)
    assert ask(api, customer, "1000").told["decision"] == "allow"
    refused = ask(api, customer, "0.001").told
    assert (refused["decision"], refused["code"]) == ("deny", "overage_blocked")


def test_tokens_are_estimated_by_the_rate_card(api: Api) -> None:
    api.put_customer("estimated")
    set_limits(api, "estimated", stop_at={"quantity": "100"})
    usage = {"input_tokens": 1_000, "output_tokens": 1_000}
    body = {"provider": "anthropic", "model": "claude-sonnet-4-5", "usage": usage}
    asked = api.call(
        "POST",
        "/v1/authorizations",
        key=api.usage_key,
        body=json.dumps({"customer": "estimated", "estimate": body}).encode(),
    )
    assert asked.told["decision"] == "allow", asked.told
    assert Decimal(0) < Decimal(asked.told["remaining"]) < Decimal(100)


ASKS: dict[str, tuple[object, int, str]] = {
    "no estimate": ({"customer": "acme"}, 422, "invalid_body"),
    "an empty estimate": ({"customer": "acme", "estimate": {}}, 422, "invalid_body"),
    "both kinds of estimate": (
        {"customer": "acme", "estimate": {"quantity": "1", "usage": {"input_tokens": 1}}},
        422,
        "invalid_body",
    ),
    "a negative one": (
        {"customer": "acme", "estimate": {"quantity": "-1"}},
        422,
        "invalid_estimate",
    ),
    "a float": ({"customer": "acme", "estimate": {"quantity": 1.5}}, 422, "invalid_body"),
    "NaN": ({"customer": "acme", "estimate": {"quantity": "NaN"}}, 422, "invalid_estimate"),
    "1e30": ({"customer": "acme", "estimate": {"quantity": "1e30"}}, 422, "invalid_estimate"),
    "too fine": (
        {"customer": "acme", "estimate": {"quantity": "0.0001"}},
        422,
        "invalid_estimate",
    ),
    "too large": (
        {"customer": "acme", "estimate": {"quantity": "9" * 30}},
        422,
        "invalid_estimate",
    ),
    "usage without a model": (
        {"customer": "acme", "estimate": {"usage": {"input_tokens": 1}}},
        422,
        "invalid_estimate",
    ),
    "an unknown model": (
        {
            "customer": "acme",
            "estimate": {"provider": "x", "model": "y", "usage": {"input_tokens": 1}},
        },
        422,
        "invalid_estimate",
    ),
    "an unknown meter": (
        {"customer": "acme", "meter": "clicks", "estimate": {"quantity": "1"}},
        422,
        "unknown_meter",
    ),
    "a customer with a tilde": (
        {"customer": "a~b", "estimate": {"quantity": "1"}},
        422,
        "invalid_body",
    ),
    "an unknown field": (
        {"customer": "acme", "estimate": {"quantity": "1"}, "x": 1},
        422,
        "invalid_body",
    ),
    "a life of a second": (
        {"customer": "acme", "estimate": {"quantity": "1"}, "expires_in_s": 1},
        422,
        "invalid_body",
    ),
    "a list": ([], 422, "invalid_body"),
    "null": (None, 422, "invalid_body"),
}


@pytest.mark.parametrize("kind", ASKS)
def test_bad_requests_for_leave_are_told_what_is_wrong(api: Api, kind: str) -> None:
    api.put_customer("acme")
    body, status, code = ASKS[kind]
    answer = api.call(
        "POST", "/v1/authorizations", key=api.usage_key, body=json.dumps(body).encode()
    )
    assert (answer.status, answer.told["code"]) == (status, code), answer.body
    check_described(api, "POST", "/v1/authorizations", answer)


@pytest.mark.parametrize(
    ("authorization", "body", "status"),
    [
        ("nothing", b"{}", 404),
        ("a~b", b"{}", 404),
        ("acme~clicks~x", b"{}", 404),
        ("acme~credits~x", b"{}", 404),
        ("a%20b~credits~x", b"{}", 404),
        ("%00~credits~x", b"{}", 404),
        ("acme~credits~" + "x" * 5000, b"{}", 404),
        ("acme~credits~x", b"", 400),
        ("acme~credits~x", b"[]", 422),
        ("acme~credits~x", b'{"unspent": "-1"}', 422),
        ("acme~credits~x", b'{"events": -1}', 422),
        ("acme~credits~x", b'{"events": "1"}', 422),
        ("acme~credits~x", b'{"events": 1, "unspent": "1"}', 422),
        ("acme~credits~x", b'{"events": 1}', 404),
    ],
)
def test_bad_releases_are_told_what_is_wrong(
    api: Api, authorization: str, body: bytes, status: int
) -> None:
    answer = api.call(
        "POST", f"/v1/authorizations/{authorization}/release", key=api.usage_key, body=body
    )
    assert answer.status == status, answer.body
    assert answer.headers["content-type"].startswith("application/problem+json")


def test_both_routes_want_a_key_of_the_right_scope(api: Api) -> None:
    for path in ("/v1/authorizations", "/v1/authorizations/acme~credits~x/release"):
        assert api.call("POST", path, body=b"{}").status == 401
        assert api.call("POST", path, key="mk_wrong", body=b"{}").status == 401
        assert api.call("POST", path, key=api.admin_key, body=b"{}").status == 403


def test_an_unknown_and_a_planless_customer_are_refused_in_words(api: Api) -> None:
    unknown = ask(api, "nobody-knows", "1").told
    assert (unknown["decision"], unknown["code"]) == ("deny", "unknown_customer")

"""Previews over HTTP: from an estimate, and from what the action used before."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from tests.e2e.billed import await_value, make_customer
from tests.e2e.conftest import Answer, Api
from tests.e2e.described import check_described
from tests.e2e.test_authorizations import make_event, set_limits


def preview(api: Api, **body: Any) -> Answer:
    answer = api.call("POST", "/v1/previews", key=api.usage_key, body=json.dumps(body).encode())
    check_described(api, "POST", "/v1/previews", answer)
    return answer


def test_an_estimate_is_priced_against_the_quota_and_the_limit(api: Api, stripe_url: str) -> None:
    make_customer(api, stripe_url, "previewed")
    set_limits(api, "previewed", stop_at={"quantity": "1500"})
    told = preview(api, customer="previewed", estimate={"quantity": "1200"}).told
    assert told["likely"] == {
        "quantity": "1200",
        "amount": {"amount_minor": 100, "currency": "usd"},
    }
    assert (told["crosses_quota"], told["crosses_limit"], told["limit_left"]) == (
        True,
        False,
        "1500",
    )
    assert preview(api, customer="previewed", estimate={"quantity": "1500.001"}).told[
        "crosses_limit"
    ]


def test_without_an_estimate_the_actions_past_says_what_is_likely(
    api: Api, stripe_url: str
) -> None:
    customer = "remembered"
    make_customer(api, stripe_url, customer)
    for number in range(1, 21):
        event = make_event(customer, str(number))
        event["data"]["action"] = "report.generate"
        assert api.report(event).told["accepted"] == 1

    def read_runs() -> int:
        told = preview(api, customer=customer, action="report.generate")
        return int(told.told["runs"]) if told.status == 200 else 0

    await_value(read_runs, 20)
    told = preview(api, customer=customer, action="report.generate").told
    assert told["basis"] == "history"
    assert Decimal(told["likely"]["quantity"]) == 10
    assert Decimal(told["high"]["quantity"]) == 19
    assert Decimal(told["used"]) == 210


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "invalid_body"),
        ({"customer": "plain"}, 422, "invalid_body"),
        ({"customer": "plain", "estimate": {"quantity": "-1"}}, 422, "invalid_estimate"),
        ({"customer": "plain", "estimate": {}}, 422, "invalid_body"),
        ({"customer": "plain", "action": "never.done"}, 422, "no_history"),
        ({"customer": "plain", "action": "a\u0000b"}, 422, "invalid_body"),
        ({"customer": "nobody-at-all", "estimate": {"quantity": "1"}}, 404, "not_found"),
        ({"customer": "plain", "estimate": {"quantity": "1"}, "more": 1}, 422, "invalid_body"),
    ],
)
def test_bad_previews_are_told_what_is_wrong(
    api: Api, body: dict[str, Any], status: int, code: str
) -> None:
    api.put_customer("plain")
    answer = preview(api, **body)
    assert (answer.status, answer.told["code"]) == (status, code), answer.body


def test_a_preview_wants_a_usage_key(api: Api) -> None:
    assert api.call("POST", "/v1/previews", key=api.admin_key, body=b"{}").status == 403
    assert api.call("POST", "/v1/previews", body=b"{}").status == 401

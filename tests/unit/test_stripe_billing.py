"""Stripe's answers, and what each says about one use: sent, refused, not applied, unknown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import pytest
import requests
import stripe
import urllib3

from meterline.adapters.stripe_billing import LIMITS, StripeBilling
from meterline.domain.emission import (
    BillableFrom,
    BillableUsage,
    NotApplied,
    NotBilled,
    RefusalCode,
    Refused,
    SendOutcome,
    Sent,
    Unavailable,
    Unknown,
)

NOW_S = 1_795_327_200
USAGE = BillableUsage("cus_1", "meterline_credits", "ml_" + "0" * 40, NOW_S - 60, 1350)

Answer = tuple[int, Mapping[str, Any] | str, Mapping[str, str]] | Exception


class FakeHttp(stripe.HTTPClient):
    """Answers from a list; keeps what was asked."""

    name = "fake"

    def __init__(self, answers: Iterable[Answer]) -> None:
        super().__init__()
        self._answers = iter(answers)
        self.asked: list[tuple[str, str, dict[str, str], dict[str, str]]] = []

    def request(  # type: ignore[override]  # the base takes any headers, this one a mapping
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        self.asked.append((method, url, dict(headers), dict(parse_qsl(post_data or ""))))
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        status, body, told = answer
        text = body if isinstance(body, str) else json.dumps(body)
        return text.encode(), status, told


def make_billing(
    *answers: Answer, clock: list[float] | None = None
) -> tuple[StripeBilling, FakeHttp]:
    http = FakeHttp(answers)
    moment = clock or [float(NOW_S)]
    return StripeBilling(lambda: "sk_test_1", http_client=http, now_s=lambda: moment[0]), http


def error(
    status: int, message: str = "", code: str | None = None, **fields: str
) -> tuple[int, dict[str, Any], dict[str, str]]:
    told = {"type": "invalid_request_error", "message": message, **fields}
    if code:
        told["code"] = code
    return status, {"error": told}, {}


def connection_error(cause: Exception | None) -> stripe.APIConnectionError:
    failure = stripe.APIConnectionError("?")  # type: ignore[no-untyped-call]  # the SDK's own
    failure.__cause__ = cause
    return failure


OK: Answer = (200, {"object": "billing.meter_event", "identifier": USAGE.identifier}, {})
_POOL = urllib3.HTTPSConnectionPool("api.stripe.com")
_REFUSED = urllib3.exceptions.NewConnectionError(
    urllib3.connection.HTTPSConnection("api.stripe.com"), "refused"
)


def test_what_is_sent_is_the_whole_event_as_strings_and_integers() -> None:
    billing, http = make_billing(OK)
    assert billing.send(USAGE) == Sent()
    [(method, url, headers, body)] = http.asked
    assert (method, url) == ("post", "https://api.stripe.com/v1/billing/meter_events")
    assert body == {
        "event_name": "meterline_credits",
        "identifier": USAGE.identifier,
        "payload[stripe_customer_id]": "cus_1",
        "payload[value]": "1350",
        "timestamp": str(NOW_S - 60),
    }
    assert headers["Idempotency-Key"].startswith(USAGE.identifier)
    assert len(headers["Idempotency-Key"]) <= 255


def test_the_idempotency_key_is_the_same_for_the_same_content_and_only_for_it() -> None:
    others = [
        USAGE,
        USAGE,
        BillableUsage("cus_2", USAGE.event_name, USAGE.identifier, USAGE.at_s, 1350),
        BillableUsage("cus_1", "other", USAGE.identifier, USAGE.at_s, 1350),
        BillableUsage("cus_1", USAGE.event_name, "ml_1", USAGE.at_s, 1350),
        BillableUsage("cus_1", USAGE.event_name, USAGE.identifier, USAGE.at_s + 1, 1350),
        BillableUsage("cus_1", USAGE.event_name, USAGE.identifier, USAGE.at_s, 1351),
    ]
    billing, http = make_billing(*[OK] * len(others))
    for usage in others:
        billing.send(usage)
    keys = [headers["Idempotency-Key"] for _, _, headers, _ in http.asked]
    assert keys[0] == keys[1]
    assert len(set(keys)) == len(others) - 1


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (
            error(400, f"An event already exists with identifier {USAGE.identifier}."),
            Sent(repeated=True),
        ),
        (error(400, "submitted already", "duplicate_meter_event"), Sent(repeated=True)),
        (error(409, "locked", "lock_timeout"), NotApplied("HTTP 409")),
        (
            (429, {"error": {"message": "slow", "code": "rate_limit"}}, {"Retry-After": "7"}),
            NotApplied("HTTP 429", 7.0),
        ),
        (error(400, "slow", "rate_limit"), NotApplied("HTTP 400")),
        (error(500), Unknown("HTTP 500")),
        (error(503), Unknown("HTTP 503")),
        ((502, "<html>bad gateway</html>", {}), Unknown("HTTP 502")),
        ((200, "not json", {}), Unknown("HTTP 200")),
        (error(401, "no key"), NotApplied("the API key was refused", 300.0)),
        (error(403, "not yours"), NotApplied("the API key was refused", 300.0)),
        (
            connection_error(requests.ConnectTimeout()),
            NotApplied("no connection"),
        ),
        (
            connection_error(
                requests.ConnectionError(urllib3.exceptions.MaxRetryError(_POOL, "/v1", _REFUSED))
            ),
            NotApplied("no connection"),
        ),
        (connection_error(requests.ReadTimeout()), Unknown("no answer")),
        (
            connection_error(
                requests.ConnectionError(
                    urllib3.exceptions.ProtocolError("aborted", ConnectionResetError())
                )
            ),
            Unknown("no answer"),
        ),
        (connection_error(ConnectionResetError()), Unknown("no answer")),
        (connection_error(None), Unknown("no answer")),
    ],
)
def test_each_answer_is_told_apart(answer: Answer, outcome: SendOutcome) -> None:
    billing, _ = make_billing(answer)
    assert billing.send(USAGE) == outcome


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (error(400, "x", "archived_meter"), RefusalCode.METER_ARCHIVED),
        (error(400, "x", "meter_event_customer_not_found"), RefusalCode.UNKNOWN_CUSTOMER),
        (error(400, "No such customer: 'cus_1'", "resource_missing"), RefusalCode.UNKNOWN_CUSTOMER),
        (error(404, "No such meter", "resource_missing"), RefusalCode.UNKNOWN_METER),
        (error(400, "x", "no_meter"), RefusalCode.UNKNOWN_METER),
        (error(400, "x", "meter_event_invalid_value"), RefusalCode.BAD_VALUE),
        (error(400, "x", "meter_event_value_too_many_digits"), RefusalCode.TOO_MANY_DIGITS),
        (error(400, "bad", param="payload[value]"), RefusalCode.BAD_VALUE),
        (error(400, "x", "timestamp_too_far_in_past"), RefusalCode.TOO_OLD),
        (error(400, "x", "timestamp_in_future"), RefusalCode.IN_FUTURE),
        (error(400, "who knows", "parameter_unknown"), RefusalCode.BAD_REQUEST),
    ],
)
def test_what_can_never_succeed_is_refused_with_a_stable_code(
    answer: Answer, code: RefusalCode
) -> None:
    billing, _ = make_billing(answer)
    outcome = billing.send(USAGE)
    assert isinstance(outcome, Refused)
    assert outcome.code == code
    assert outcome.message


def test_a_stored_500_is_not_taken_for_an_answer_but_asked_anew_under_another_key() -> None:
    stored = (500, {"error": {"message": "boom"}}, {"Idempotent-Replayed": "true"})
    repeated = error(400, "An event already exists with identifier x.")
    billing, http = make_billing(stored, repeated)
    assert billing.send(USAGE) == Sent(repeated=True)
    first, second = (headers["Idempotency-Key"] for _, _, headers, _ in http.asked)
    assert second == f"{first}-{NOW_S}"
    assert http.asked[0][3] == http.asked[1][3]


def test_a_stored_refusal_is_asked_anew_because_its_cause_may_be_gone() -> None:
    status, body, _ = error(400, "No such customer: 'cus_1'", "resource_missing")
    billing, _ = make_billing((status, body, {"idempotent-replayed": "true"}), OK)
    assert billing.send(USAGE) == Sent()


def test_a_fresh_500_is_not_asked_anew_at_once() -> None:
    billing, http = make_billing(error(500))
    billing.send(USAGE)
    assert len(http.asked) == 1


def test_a_key_in_use_is_another_call_under_way_and_a_mismatch_is_asked_anew() -> None:
    in_use = error(409, "in use", "idempotency_key_in_use", type="idempotency_error")
    billing, http = make_billing(in_use)
    assert isinstance(billing.send(USAGE), NotApplied)
    assert len(http.asked) == 1
    mismatch = error(400, "Keys for idempotent requests …", type="idempotency_error")
    billing, _ = make_billing(mismatch, OK)
    assert billing.send(USAGE) == Sent()


def test_a_rotated_key_counts_from_the_next_call_on() -> None:
    keys = iter(["sk_test_old", "sk_test_new"])
    http = FakeHttp([OK, OK])
    billing = StripeBilling(lambda: next(keys), http_client=http)
    billing.send(USAGE)
    billing.send(USAGE)
    used = [headers["Authorization"] for _, _, headers, _ in http.asked]
    assert used == ["Bearer sk_test_old", "Bearer sk_test_new"]


def test_the_limits_are_stripes() -> None:
    assert (LIMITS.max_age_s, LIMITS.max_ahead_s) == (35 * 86400, 300)
    assert (LIMITS.max_digits, LIMITS.dedupe_s) == (15, 86400)


# From when on usage is billed


def page(*objects: Mapping[str, Any]) -> Answer:
    return 200, {"object": "list", "data": list(objects), "has_more": False, "url": "/v1/x"}, {}


def subscription(
    start_s: int,
    end_s: int,
    usage_type: str = "metered",
    *,
    cancel_at: int | None = None,
    ended_at: int | None = None,
    created: int = 0,
    status: str = "active",
) -> dict[str, Any]:
    item = {
        "id": "si_1",
        "object": "subscription_item",
        "created": created,
        "current_period_start": start_s,
        "current_period_end": end_s,
        "price": {
            "id": "price_metered",
            "object": "price",
            "recurring": {"usage_type": usage_type, "interval": "month"},
        },
    }
    listed = {"object": "list", "data": [item], "has_more": False, "url": "/v1/x"}
    told = {"id": "sub_1", "object": "subscription", "status": status, "items": listed}
    return {**told, "cancel_at": cancel_at, "ended_at": ended_at}


def draft(
    start_s: int, finalizes_at: int | None, reason: str = "subscription_cycle"
) -> dict[str, Any]:
    lines = {"object": "list", "data": [], "has_more": False, "url": "/v1/x"}
    return {
        "id": "in_1",
        "object": "invoice",
        "billing_reason": reason,
        "period_start": start_s,
        "period_end": PERIOD[0],
        "automatically_finalizes_at": finalizes_at,
        "parent": {"type": "subscription_details"},
        "lines": lines,
    }


PERIOD = (NOW_S - 86400, NOW_S + 86400)


def test_usage_is_billed_from_the_current_periods_start_on() -> None:
    billing, http = make_billing(page(subscription(*PERIOD)), page())
    assert billing.billable_from("cus_1") == BillableFrom(PERIOD[0])
    assert [method for method, *_ in http.asked] == ["get", "get"]
    assert "customer=cus_1" in http.asked[0][1]
    assert "status=draft" in http.asked[1][1]


def test_a_subscription_whose_first_payment_never_came_bills_nothing() -> None:
    expired = subscription(*PERIOD, ended_at=NOW_S - 7200, status="incomplete_expired")
    billing, _ = make_billing(page(expired), page(), page(expired))
    answer = billing.billable_from("cus_1")
    assert isinstance(answer, NotBilled)
    assert answer.code is RefusalCode.NO_SUBSCRIPTION


def test_the_answer_is_kept_for_an_hour_but_not_beyond_the_periods_end() -> None:
    clock = [float(NOW_S)]
    answers = [page(subscription(*PERIOD)), page()] * 2
    billing, http = make_billing(*answers, clock=clock)
    billing.billable_from("cus_1")
    clock[0] += 3599
    billing.billable_from("cus_1")
    assert len(http.asked) == 2
    clock[0] += 1
    billing.billable_from("cus_1")
    assert len(http.asked) == 4
    soon = (NOW_S - 86400, NOW_S + 100)
    clock = [float(NOW_S)]
    answers = [page(subscription(*soon)), page()] * 2
    billing, http = make_billing(*answers, clock=clock)
    billing.billable_from("cus_1")
    clock[0] += 100
    billing.billable_from("cus_1")
    assert len(http.asked) == 4


def test_a_draft_of_the_last_period_still_takes_usage_and_is_looked_at_every_minute() -> None:
    clock = [float(NOW_S)]
    last_start = PERIOD[0] - 30 * 86400
    answers = [page(subscription(*PERIOD)), page(draft(last_start, NOW_S + 3000))]
    after = [page(subscription(*PERIOD)), page()]
    billing, _ = make_billing(*answers, *after, clock=clock)
    assert billing.billable_from("cus_1") == BillableFrom(last_start)
    clock[0] += 60
    assert billing.billable_from("cus_1") == BillableFrom(PERIOD[0])


def test_a_draft_about_to_be_final_is_believed_no_longer_than_that() -> None:
    clock = [float(NOW_S)]
    last_start = PERIOD[0] - 30 * 86400
    answers = [page(subscription(*PERIOD)), page(draft(last_start, NOW_S + 10))]
    billing, http = make_billing(*answers, page(subscription(*PERIOD)), page(), clock=clock)
    billing.billable_from("cus_1")
    clock[0] += 10
    billing.billable_from("cus_1")
    assert len(http.asked) == 4


def usage_line(
    price: str, start_s: int, end_s: int, kind: str = "subscription_item_details"
) -> dict[str, Any]:
    return {
        "id": f"il_{price}",
        "object": "line_item",
        "parent": {"type": kind},
        "period": {"start": start_s, "end": end_s},
        "pricing": {"price_details": {"price": price}},
    }


def test_the_part_of_a_draft_before_its_plan_changed_takes_no_more_usage() -> None:
    start_s, changed_s = PERIOD[0] - 30 * 86400, PERIOD[0] - 10 * 86400
    renewed = draft(start_s, NOW_S + 3000)
    renewed["lines"]["data"] = [
        usage_line("price_left", start_s, changed_s, "invoice_item_details"),
        usage_line("price_metered", changed_s, PERIOD[0]),
        usage_line("price_flat", *PERIOD),
    ]
    billing, _ = make_billing(page(subscription(*PERIOD)), page(renewed))
    assert billing.billable_from("cus_1") == BillableFrom(changed_s)


def test_the_lines_of_a_draft_that_do_not_come_with_it_are_read_too() -> None:
    start_s, changed_s = PERIOD[0] - 30 * 86400, PERIOD[0] - 10 * 86400
    renewed = draft(start_s, NOW_S + 3000)
    renewed["lines"] |= {
        "data": [
            usage_line(f"price_{place}", changed_s, PERIOD[0], "invoice_item_details")
            for place in range(10)
        ],
        "has_more": True,
        "url": "/v1/invoices/in_1/lines",
    }
    rest = page(usage_line("price_metered", changed_s, PERIOD[0]))
    billing, http = make_billing(page(subscription(*PERIOD)), page(renewed), rest)
    assert billing.billable_from("cus_1") == BillableFrom(changed_s)
    assert "/v1/invoices/in_1/lines?starting_after=il_price_9" in http.asked[2][1]


def test_a_draft_whose_plan_was_left_at_the_renewal_takes_no_more_usage() -> None:
    renewed = draft(PERIOD[0] - 30 * 86400, NOW_S + 3000)
    renewed["lines"]["data"] = [usage_line("price_flat", *PERIOD)]
    switched = subscription(*PERIOD, created=PERIOD[0])
    billing, _ = make_billing(page(switched), page(renewed))
    assert billing.billable_from("cus_1") == BillableFrom(PERIOD[0])


def test_a_draft_that_bills_no_usage_of_the_last_period_does_not_reopen_it() -> None:
    manual = draft(0, None, reason="manual") | {"parent": None}
    proration = draft(0, None, reason="subscription_update")
    billing, _ = make_billing(page(subscription(*PERIOD)), page(manual, proration))
    assert billing.billable_from("cus_1") == BillableFrom(PERIOD[0])


def test_the_draft_after_a_cancellation_takes_usage_until_it_is_final() -> None:
    start_s = PERIOD[0] - 500
    billing, _ = make_billing(page(), page(draft(start_s, NOW_S + 3000)))
    assert billing.billable_from("cus_1") == BillableFrom(start_s, PERIOD[0])


def test_after_the_end_what_was_used_before_it_is_late_and_the_rest_is_not_billed() -> None:
    ended = subscription(*PERIOD, ended_at=NOW_S - 7200)
    licensed = subscription(*PERIOD, "licensed", ended_at=NOW_S)
    billing, http = make_billing(page(), page(), page(ended, licensed))
    assert billing.billable_from("cus_1") == BillableFrom(NOW_S - 7200, NOW_S - 7200)
    assert "status=ended" in http.asked[2][1]


def test_a_subscription_that_is_cancelled_takes_usage_until_it_ends() -> None:
    ending = subscription(*PERIOD, cancel_at=PERIOD[1])
    billing, _ = make_billing(page(ending), page())
    assert billing.billable_from("cus_1") == BillableFrom(PERIOD[0], PERIOD[1])
    billing, _ = make_billing(page(ending, subscription(*PERIOD)), page())
    assert billing.billable_from("cus_1") == BillableFrom(PERIOD[0])


@pytest.mark.parametrize("subscriptions", [[], [subscription(*PERIOD, usage_type="licensed")]])
def test_without_a_metered_item_nothing_is_billed(subscriptions: list[dict[str, Any]]) -> None:
    billing, _ = make_billing(page(*subscriptions), page(), page())
    found = billing.billable_from("cus_1")
    assert isinstance(found, NotBilled)
    assert found.code == RefusalCode.NO_SUBSCRIPTION


def test_a_customer_that_stripe_does_not_know_is_not_billed() -> None:
    billing, _ = make_billing(error(400, "No such customer: 'cus_1'", "resource_missing"))
    found = billing.billable_from("cus_1")
    assert isinstance(found, NotBilled)
    assert found.code == RefusalCode.UNKNOWN_CUSTOMER


@pytest.mark.parametrize(
    "answer", [error(500), error(429), error(401), connection_error(ConnectionResetError())]
)
def test_what_could_not_be_asked_is_not_kept(answer: Answer) -> None:
    billing, _ = make_billing(answer, page(subscription(*PERIOD)), page())
    assert isinstance(billing.billable_from("cus_1"), Unavailable)
    assert billing.billable_from("cus_1") == BillableFrom(PERIOD[0])

"""The API as a program meets it: what is sent, what comes back, and what Stripe is told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from meterline.http import MAX_BODY_BYTES
from meterline.schemas.openapi import build_document
from tests.e2e.billed import BilledUsage, await_value, make_customer
from tests.e2e.conftest import Answer, Api
from tests.e2e.described import check_described, read_document

Json = dict[str, Any]


def make_event(customer: str, event_id: str, **data: Any) -> Json:
    """One call of a model: 1,200 tokens in and 350 out, which are 2.95 credits."""
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": "backend/reports",
        "type": "meterline.usage",
        "subject": customer,
        "time": datetime.now(UTC).isoformat(),
        "data": {
            "meter": "credits",
            "user": "u_9",
            "action": "report.generate",
            "provider": "anthropic",
            "model": "claude-sonnet-4-5",
            "usage": {"input_tokens": 1200, "output_tokens": 350},
            **data,
        },
    }


def post(api: Api, document: object, content_type: str = "application/json") -> Json:
    """`POST /v1/usage`; a 202 that is as the document says."""
    body = json.dumps(document).encode()
    answer = api.call("POST", "/v1/usage", key=api.usage_key, body=body, content_type=content_type)
    assert answer.status == 202, answer.body[:500]
    check_described(api, "POST", "/v1/usage", answer)
    told: Json = answer.told
    return told


def told(accepted: int = 0, duplicates: int = 0, ignored: int = 0) -> Json:
    return {
        "accepted": accepted,
        "duplicates": duplicates,
        "ignored": ignored,
        "rejected": [],
    }


def test_one_model_call_is_one_meter_event_with_its_credits(api: Api, stripe_url: str) -> None:
    customer = "one-call"
    billing_customer = make_customer(api, stripe_url, customer)
    event = make_event(customer, "req_8f2")
    assert post(api, {"events": [event]}) == told(accepted=1)
    # The answer may have been lost, so it is sent again, and by a second process of the app too.
    assert post(api, {"events": [event]}) == told(duplicates=1)
    assert post(api, [event, event]) == told(duplicates=2)
    assert post(api, make_event(customer, "req_8f3", cached=True)) == told(ignored=1)
    # Events of one customer and meter are sent in order: behind this one there is nothing left.
    assert post(api, make_event(customer, "last", usage={"input_tokens": 1})) == told(accepted=1)

    billed = BilledUsage(stripe_url, billing_customer, "meterline_credits")
    await_value(billed.total, 2950 + 1)
    [first, _last] = billed.calls()
    assert (first["value"], first["outcome"]) == (2950, "accepted")
    assert first["timestamp"] == int(datetime.fromisoformat(event["time"]).timestamp())


def test_one_model_call_is_its_tokens_on_the_hourly_meter(api: Api, stripe_url: str) -> None:
    customer = "one-call-hourly"
    billing_customer = make_customer(api, stripe_url, customer)
    event = make_event(customer, "req_8f2", meter="tokens")
    for answer in (told(accepted=1), told(duplicates=1)):
        assert post(api, event) == answer
    billed = BilledUsage(stripe_url, billing_customer, "meterline_tokens")
    await_value(billed.total, 1550)
    assert post(api, make_event(customer, "req_8f3", meter="tokens")) == told(accepted=1)
    await_value(billed.total, 3100)


def as_one(events: list[Json]) -> tuple[object, str]:
    return events[0], "application/cloudevents+json; charset=UTF-8"


def as_batch(events: list[Json]) -> tuple[object, str]:
    return events, "application/cloudevents-batch+json"


def as_list(events: list[Json]) -> tuple[object, str]:
    return events, "application/json"


def as_object(events: list[Json]) -> tuple[object, str]:
    return {"events": events}, "application/json"


@pytest.mark.parametrize("shape", [as_one, as_batch, as_list, as_object])
def test_every_shape_of_a_report_is_taken(
    api: Api, shape: Callable[[list[Json]], tuple[object, str]]
) -> None:
    customer = f"shapes-{shape.__name__}"
    assert api.put_customer(customer).status == 200
    events = [make_event(customer, "a"), make_event(customer, "b")]
    document, content_type = shape(events)
    expected = 1 if shape is as_one else 2
    assert post(api, document, content_type) == told(accepted=expected)
    assert post(api, document, content_type) == told(duplicates=expected)


def test_what_other_cloudevents_clients_add_is_let_through(api: Api) -> None:
    assert api.put_customer("cloudevents").status == 200
    event = make_event("cloudevents", "a") | {
        "type": "prompt",
        "datacontenttype": "application/json",
        "dataschema": None,
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "partitionkey": "cloudevents",
    }
    assert post(api, event) == told(accepted=1)


def test_the_longest_body_is_taken_and_one_byte_more_is_refused_by_the_function(api: Api) -> None:
    assert api.put_customer("longest").status == 200
    # Every line feed is two bytes where the body is text within JSON.
    body = json.dumps(make_event("longest", "a")).encode().ljust(MAX_BODY_BYTES, b"\n")
    answer = api.call("POST", "/v1/usage", key=api.usage_key, body=body)
    assert (answer.status, answer.told) == (202, told(accepted=1))
    refused = api.call("POST", "/v1/usage", key=api.usage_key, body=body + b"\n")
    assert (refused.status, refused.told["code"]) == (413, "body_too_large")
    check_described(api, "POST", "/v1/usage", refused)


def test_1000_events_in_one_call_are_answered_with_a_wide_margin(api: Api) -> None:
    assert api.put_customer("thousand").status == 200
    events = [make_event("thousand", f"call-{number}") for number in range(1_000)]
    began_s = time.monotonic()
    assert post(api, {"events": events}) == told(accepted=1_000)
    took_s = time.monotonic() - began_s
    assert took_s < 15, f"API Gateway waits 30 s, and this took {took_s:.1f} s"
    assert post(api, {"events": events}) == told(duplicates=1_000)


def test_each_event_of_a_call_has_its_own_answer(api: Api) -> None:
    assert api.put_customer("mixed").status == 200
    assert post(api, make_event("mixed", "known")) == told(accepted=1)
    answer = post(
        api,
        [
            make_event("mixed", "new"),
            make_event("mixed", "known"),
            make_event("mixed", "cached", cached=True),
            make_event("mixed", "known", user="u_10"),
            make_event("mixed", "nobody-knows", model="claude-9"),
            make_event("mixed-nobody", "new"),
            "event",
        ],
    )
    rejected = answer.pop("rejected")
    assert answer == {"accepted": 1, "duplicates": 1, "ignored": 1}
    assert [(each["index"], each["id"], each["code"]) for each in rejected] == [
        (3, "known", "conflict"),
        (4, "nobody-knows", "unknown_model"),
        (5, "new", "unknown_customer"),
        (6, None, "invalid_event"),
    ]


def test_ids_of_one_customer_are_not_those_of_another(api: Api) -> None:
    for customer in ("own-ids-a", "own-ids-b"):
        assert api.put_customer(customer).status == 200
        assert post(api, make_event(customer, "invoice-42")) == told(accepted=1)


def test_a_customer_is_made_changed_and_shown(api: Api) -> None:
    def check(answer: Answer, method: str) -> Json:
        assert answer.status == 200, answer.body
        check_described(api, method, "/v1/customers/{id}", answer)
        shown: Json = answer.told
        return shown

    made = check(api.put_customer("shown", name="Shown Ltd", email="a@shown.example"), "PUT")
    assert (made["id"], made["name"], made["email"]) == ("shown", "Shown Ltd", "a@shown.example")
    again = check(api.put_customer("shown", name="Shown & Co"), "PUT")
    assert (again["name"], again["email"]) == ("Shown & Co", None)
    assert again["created_at"] == made["created_at"]
    got = check(api.call("GET", "/v1/customers/shown", key=api.admin_key), "GET")
    assert got == again


def test_customers_are_listed_as_the_document_says(api: Api) -> None:
    for customer in ("listed-a", "listed-b"):
        assert api.put_customer(customer).status == 200
    found, path = [], "/v1/customers?limit=2"
    while True:
        answer = api.call("GET", path, key=api.admin_key)
        assert answer.status == 200, answer.body
        check_described(api, "GET", "/v1/customers", answer)
        found += [customer["id"] for customer in answer.told["customers"]]
        if answer.told["next_cursor"] is None:
            break
        path = f"/v1/customers?limit=2&cursor={answer.told['next_cursor']}"
    assert {"listed-a", "listed-b"} <= set(found)
    assert found == sorted(set(found))


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "invalid_limit"),
        ("limit=-1", "invalid_limit"),
        ("limit=101", "invalid_limit"),
        ("limit=1e1", "invalid_limit"),
        ("limit=", "invalid_limit"),
        ("limit=" + "9" * 5_000, "invalid_limit"),
        ("limit=1&limit=2", "invalid_limit"),
        ("cursor=x", "invalid_cursor"),
        ("cursor=%00", "invalid_cursor"),
        ("cursor=Y3VzdG9tZXI6Li4v", "invalid_cursor"),
    ],
)
def test_a_bad_page_is_refused(api: Api, query: str, code: str) -> None:
    answer = api.call("GET", f"/v1/customers?{query}", key=api.admin_key)
    assert (answer.status, answer.told["code"]) == (400, code)
    check_described(api, "GET", "/v1/customers", answer)


def test_the_document_is_served_to_anyone_as_it_is_built(api: Api) -> None:
    answer = api.call("GET", "/openapi.json")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.told == json.loads(json.dumps(build_document()))
    assert read_document(api)["openapi"] == "3.1.0"

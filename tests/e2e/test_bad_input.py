"""Bad input over HTTP, one kind a row: what is sent, and the answer that it must get.

Rows of `CALLS` are answered as a whole, with problem+json. Rows of `EVENTS` are one bad event
between two good ones: it is refused by itself, with its code, and the good ones are in the ledger.
Rows of `GATEWAY` never reach a function: the answer is API Gateway's own (on this machine its
emulator's), so only its status counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.local.stack import LocalStack
from tests.e2e.conftest import Answer, Api

CUSTOMER = "bad-input"
SOURCE = "tests/bad"
NOW = datetime.now(UTC)
HUGE = "x" * 100_000

Json = dict[str, Any]
Raw = Callable[[Json], Json | str]


def make_event(event_id: str, **told: Any) -> Json:
    """A good event, but for what is told: `data_…` goes into its data, `DROP` takes away."""
    event: Json = {
        "specversion": "1.0",
        "id": event_id,
        "source": SOURCE,
        "type": "meterline.usage",
        "subject": CUSTOMER,
        "time": NOW.isoformat(),
        "data": {
            "meter": "credits",
            "user": "u_9",
            "action": "report.generate",
            "provider": "anthropic",
            "model": "claude-sonnet-4-5",
            "usage": {"input_tokens": 1200, "output_tokens": 350},
        },
    }
    for name, value in told.items():
        target = event["data"] if name.startswith("data_") else event
        key = name.removeprefix("data_")
        if value is DROP:
            del target[key]
        else:
            target[key] = value
    return event


class _Drop:
    pass


DROP = _Drop()


def make_quantity_event(event_id: str, quantity: Any, **told: Any) -> Json:
    return make_event(event_id, data_usage=DROP, data_quantity=quantity, **told)


def nest(depth: int) -> Any:
    nested: Any = 1
    for _ in range(depth):
        nested = [nested]
    return nested


@dataclass(frozen=True, slots=True)
class BadCall:
    """A call that is refused as a whole."""

    name: str
    status: int
    code: str
    body: bytes | None = b'{"events": []}'
    content_type: str | None = "application/json"
    method: str = "POST"
    path: str = "/v1/usage"
    key: str | None = "usage"
    headers: dict[str, str] = field(default_factory=dict)


GOOD_BODY = json.dumps({"events": [make_event("whole-call")]}).encode()
CUSTOMER_BODY = json.dumps({"name": "Acme", "plan": "pro"}).encode()


def put(name: str, body: object, code: str, status: int = 422, **told: Any) -> BadCall:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    path = told.pop("path", "/v1/customers/refused")
    return BadCall(name, status, code, encoded, method="PUT", path=path, key="admin", **told)


CALLS = [
    BadCall("no body", 400, "empty_body", body=None, headers={"Content-Type": "application/json"}),
    BadCall("an empty body", 400, "empty_body", body=b""),
    BadCall("white space", 400, "empty_body", body=b" \r\n\t "),
    BadCall("no JSON", 400, "invalid_json", body=b"usage=12"),
    BadCall("truncated JSON", 400, "invalid_json", body=GOOD_BODY[:-7]),
    BadCall("JSON and a rest", 400, "invalid_json", body=GOOD_BODY + b"]"),
    BadCall("single quotes", 400, "invalid_json", body=b"{'events': []}"),
    BadCall("a trailing comma", 400, "invalid_json", body=b'{"events": [],}'),
    BadCall("no UTF-8", 400, "invalid_json", body=b'{"events": "\xff\xfe"}'),
    BadCall("a NUL byte", 400, "invalid_json", body=b'{"events": "\x00"}'),
    BadCall("nothing but NUL bytes", 400, "invalid_json", body=b"\x00" * 100),
    BadCall("100,000 brackets", 400, "invalid_json", body=b"[" * 100_000),
    BadCall("nested 50,000 deep", 400, "invalid_json", body=b"[" * 50_000 + b"]" * 50_000),
    BadCall("a number of 5,000 digits", 400, "invalid_json", body=b"[" + b"7" * 5_000 + b"]"),
    BadCall("compressed", 415, "unsupported_content_encoding", headers={"Content-Encoding": "gzip"}),
    BadCall("text/plain", 415, "unsupported_media_type", GOOD_BODY, "text/plain"),
    BadCall("a form", 415, "unsupported_media_type", b"a=1", "application/x-www-form-urlencoded"),
    BadCall("a garbled content type", 415, "unsupported_media_type", GOOD_BODY, ";;/json"),
    BadCall("no content type", 415, "unsupported_media_type", GOOD_BODY, None),
    BadCall("null", 400, "invalid_body", b"null"),
    BadCall("a number", 400, "invalid_body", b"17"),
    BadCall("a string", 400, "invalid_body", b'"events"'),
    BadCall("true", 400, "invalid_body", b"true"),
    BadCall("NaN", 400, "invalid_body", b"NaN"),
    BadCall("events that are an object", 400, "invalid_body", b'{"events": {"0": {}}}'),
    BadCall("events that are null", 400, "invalid_body", b'{"events": null}'),
    BadCall("an empty list", 400, "no_events", b"[]"),
    BadCall("an empty list of events", 400, "no_events"),
    BadCall(
        "1,001 events",
        413,
        "too_many_events",
        json.dumps([make_event(f"many-{place}") for place in range(1_001)]).encode(),
    ),
    BadCall("7 MB", 413, "body_too_large", b'{"events": ["' + b"x" * 7_000_000 + b'"]}'),
    BadCall("7 MB of no JSON", 413, "body_too_large", b"x" * 7_000_000),
    BadCall("no key", 401, "unauthenticated", GOOD_BODY, key=None),
    BadCall("a wrong key", 401, "unauthenticated", GOOD_BODY, key="wrong"),
    BadCall("a key of another scope", 403, "forbidden", GOOD_BODY, key="admin"),
    BadCall(
        "an empty Authorization",
        401,
        "unauthenticated",
        GOOD_BODY,
        key=None,
        headers={"Authorization": ""},
    ),
    BadCall(
        "Bearer without a key",
        401,
        "unauthenticated",
        GOOD_BODY,
        key=None,
        headers={"Authorization": "Bearer "},
    ),
    BadCall(
        "Basic instead of Bearer",
        401,
        "unauthenticated",
        GOOD_BODY,
        key=None,
        headers={"Authorization": "Basic YWRtaW46YWRtaW4="},
    ),
    BadCall(
        "a key of 20,000 characters",
        401,
        "unauthenticated",
        GOOD_BODY,
        key=None,
        headers={"Authorization": "Bearer " + "k" * 20_000},
    ),
    BadCall(
        "a key that is not ASCII",
        401,
        "unauthenticated",
        GOOD_BODY,
        key=None,
        headers={"Authorization": "Bearer schl\u00fcssel"},
    ),
    put("a customer by a usage key", CUSTOMER_BODY, "forbidden", 403)._replace_key("usage")
    if False
    else BadCall(
        "a customer by a usage key",
        403,
        "forbidden",
        CUSTOMER_BODY,
        method="PUT",
        path="/v1/customers/refused",
    ),
    put("a customer without a plan", {"name": "Acme"}, "invalid_body"),
    put("a customer with an unknown plan", {"name": "Acme", "plan": "gold"}, "unknown_plan"),
    put("a customer with a field too many", {"name": "A", "plan": "pro", "x": 1}, "invalid_body"),
    put("a customer whose name is a number", {"name": 1, "plan": "pro"}, "invalid_body"),
    put("a customer whose name is NaN", b'{"name": NaN, "plan": "pro"}', "invalid_body"),
    put("a customer with a huge name", {"name": HUGE, "plan": "pro"}, "invalid_body"),
    put("a customer with a NUL in the name", {"name": "A\0", "plan": "pro"}, "invalid_body"),
    put("a customer with half a pair", {"name": "A\ud83d", "plan": "pro"}, "invalid_body"),
    put("a customer with half a pair as field", {"\ud83d": "", "name": "A"}, "invalid_body"),
    put("a customer with a bad email", {"name": "A", "plan": "pro", "email": "@"}, "invalid_body"),
    put("a customer that is a list", [], "invalid_body"),
    put(
        "100,000 fields too many",
        {f"field-{place}": 1 for place in range(100_000)},
        "invalid_body",
    ),
    put("a customer id of 65", CUSTOMER_BODY, "invalid_customer_id", 400, path="/v1/customers/" + "c" * 65),
    put("a customer id with a space", CUSTOMER_BODY, "invalid_customer_id", 400, path="/v1/customers/a%20b"),
    put("a customer id of dots", CUSTOMER_BODY, "invalid_customer_id", 400, path="/v1/customers/.."),
    put("a customer id with a NUL", CUSTOMER_BODY, "invalid_customer_id", 400, path="/v1/customers/a%00b"),
    put("a customer id with a hash", CUSTOMER_BODY, "invalid_customer_id", 400, path="/v1/customers/a%23b"),
    put("a customer id that climbs", CUSTOMER_BODY, "not_found", 404, path="/v1/customers/..%2f..%2fusage"),
    put("a customer id in Greek", CUSTOMER_BODY, "invalid_customer_id", 400, path="/v1/customers/%CE%B1"),
    BadCall("a customer that is not there", 404, "not_found", None, method="GET", path="/v1/customers/nobody", key="admin"),
]

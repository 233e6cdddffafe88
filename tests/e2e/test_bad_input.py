"""Bad input over HTTP, one kind a row: what is sent, and the answer that it must get.

Rows of `CALLS` are answered as a whole, with problem+json. Rows of `EVENTS` are one bad event
between two good ones: it is refused by itself, with its code, and the good ones are in the ledger.
Rows of `ODD` look bad and are not. Rows of `GATEWAY` never reach a function: the answer is API
Gateway's own (here its emulator's). On AWS a body of more than the 6 MB that a function takes
(Lambda quotas) ends at the gateway as well.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import pytest

from infra.local.stack import REGION, LocalStack
from meterline.adapters.dynamodb_ledger import DynamoLedger
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.domain.usage import EventKey, LedgerEntry
from tests.e2e.conftest import Answer, Api
from tests.e2e.described import check_described

CUSTOMER = "bad-input"
SOURCE = "tests/bad"
NOW = datetime.now(UTC)
HUGE = "x" * 100_000
HALF_A_PAIR = "cut short \ud83d"
DROP = object()

Json = dict[str, Any]


def make_event(event_id: str, **told: Any) -> Json:
    """A good event, but for what is told: `data_…` is of its data, `DROP` takes away."""
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


@dataclass(frozen=True, slots=True)
class BadEvent:
    """An event that is refused by itself; `told_id` is the id that the answer repeats."""

    name: str
    code: str
    event: object
    told_id: str | None = "bad"


ONE_EVENT = json.dumps(make_event("whole-call")).encode()
CUSTOMER_BODY = json.dumps({"name": "Acme", "plan": "pro"}).encode()


def put(
    name: str,
    code: str,
    body: object = CUSTOMER_BODY,
    *,
    status: int = 422,
    customer: str = "refused",
    key: str = "admin",
) -> BadCall:
    """`PUT /v1/customers/{id}`."""
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    path = f"/v1/customers/{customer}"
    return BadCall(name, status, code, encoded, method="PUT", path=path, key=key)


def authorize(name: str, header: str) -> BadCall:
    """A call that says who calls in a way that does not count."""
    headers = {"Authorization": header}
    return BadCall(name, 401, "unauthenticated", ONE_EVENT, key=None, headers=headers)


CALLS = [
    BadCall("no body", 400, "empty_body", None),
    BadCall("a body of no bytes", 400, "empty_body", b""),
    BadCall("white space", 400, "empty_body", b" \r\n\t "),
    BadCall("no JSON", 400, "invalid_json", b"usage=12"),
    BadCall("truncated JSON", 400, "invalid_json", ONE_EVENT[:-7]),
    BadCall("JSON and a rest", 400, "invalid_json", ONE_EVENT + b"]"),
    BadCall("single quotes", 400, "invalid_json", b"{'events': []}"),
    BadCall("a trailing comma", 400, "invalid_json", b'{"events": [],}'),
    BadCall("a NUL byte in a string", 400, "invalid_json", b'{"events": "\x00"}'),
    BadCall("nothing but NUL bytes", 400, "invalid_json", b"\x00" * 100),
    BadCall("100,000 open brackets", 400, "invalid_json", b"[" * 100_000),
    BadCall("lists 50,000 deep", 400, "invalid_json", b"[" * 50_000 + b"]" * 50_000),
    BadCall(
        "compressed",
        415,
        "unsupported_content_encoding",
        headers={"Content-Encoding": "gzip"},
    ),
    BadCall("text/plain", 415, "unsupported_media_type", ONE_EVENT, "text/plain"),
    BadCall("a form", 415, "unsupported_media_type", b"a=1", "application/x-www-form-urlencoded"),
    BadCall("a garbled content type", 415, "unsupported_media_type", ONE_EVENT, ";;/json"),
    BadCall("no content type", 415, "unsupported_media_type", ONE_EVENT, None),
    BadCall("null", 400, "invalid_body", b"null"),
    BadCall("a number", 400, "invalid_body", b"17"),
    BadCall("a string", 400, "invalid_body", b'"events"'),
    BadCall("true", 400, "invalid_body", b"true"),
    BadCall("NaN", 400, "invalid_body", b"NaN"),
    BadCall("events that are an object", 400, "invalid_body", b'{"events": {"0": {}}}'),
    BadCall("events that are null", 400, "invalid_body", b'{"events": null}'),
    BadCall("an empty list", 400, "no_events", b"[]"),
    BadCall("an empty list of events", 400, "no_events", b'{"events": []}'),
    BadCall(
        "1,001 events",
        413,
        "too_many_events",
        json.dumps([make_event(f"many-{place}") for place in range(1_001)]).encode(),
    ),
    BadCall("7 MB", 413, "body_too_large", b'{"events": ["' + b"x" * 7_000_000 + b'"]}'),
    BadCall("7 MB of no JSON", 413, "body_too_large", b"x" * 7_000_000),
    BadCall(
        "5 MB in 2 million characters",
        413,
        "body_too_large",
        ('{"events": ["' + "\u20ac" * 1_700_000 + '"]}').encode(),
    ),
    BadCall("no key", 401, "unauthenticated", ONE_EVENT, key=None),
    BadCall("a wrong key", 401, "unauthenticated", ONE_EVENT, key="wrong"),
    BadCall("a key of another scope", 403, "forbidden", ONE_EVENT, key="admin"),
    BadCall("no key and no JSON", 401, "unauthenticated", b"{", key=None),
    authorize("an empty Authorization", ""),
    authorize("Bearer without a key", "Bearer"),
    authorize("Bearer and spaces", "Bearer    "),
    authorize("Basic instead of Bearer", "Basic YWRtaW46YWRtaW4="),
    authorize("a key without Bearer", "ml_key_1234"),
    authorize("a key of 20,000 characters", "Bearer " + "k" * 20_000),
    authorize("a key that is not ASCII", "Bearer schl\u00fcssel"),
    put("a customer by a usage key", "forbidden", status=403, key="usage"),
    put("a customer by nobody's key", "unauthenticated", status=401, key="wrong"),
    put("a customer without a plan", "invalid_body", {"name": "Acme"}),
    put("a customer without a name", "invalid_body", {"plan": "pro"}),
    put("a customer of an unknown plan", "unknown_plan", {"name": "Acme", "plan": "gold"}),
    put("a field too many", "invalid_body", {"name": "A", "plan": "pro", "x": 1}),
    put("100,000 fields too many", "invalid_body", {f"field-{i}": 1 for i in range(100_000)}),
    put("a field with a huge name", "invalid_body", {"name": "A", "plan": "pro", HUGE: 1}),
    put("a name that is a number", "invalid_body", {"name": 1, "plan": "pro"}),
    put("a name that is NaN", "invalid_body", b'{"name": NaN, "plan": "pro"}'),
    put("a name that is true", "invalid_body", {"name": True, "plan": "pro"}),
    put("an empty name", "invalid_body", {"name": "", "plan": "pro"}),
    put("a huge name", "invalid_body", {"name": HUGE, "plan": "pro"}),
    put("a name with a NUL", "invalid_body", {"name": "A\0", "plan": "pro"}),
    put("a name with half a pair", "invalid_body", {"name": HALF_A_PAIR, "plan": "pro"}),
    put("a field of half a pair", "invalid_body", {"name": "A", "plan": "pro", HALF_A_PAIR: 1}),
    put("a bad email", "invalid_body", {"name": "A", "plan": "pro", "email": "@"}),
    put("a list as customer", "invalid_body", []),
    put("a string as customer", "invalid_body", "Acme"),
    put("truncated JSON as customer", "invalid_json", CUSTOMER_BODY[:-3], status=400),
    put("no body as customer", "empty_body", b"", status=400),
    put("a customer's id of 65", "invalid_customer_id", status=400, customer="c" * 65),
    put("a customer's id with a space", "invalid_customer_id", status=400, customer="a%20b"),
    put("a customer's id of two dots", "invalid_customer_id", status=400, customer=".."),
    put("a customer's id in Greek", "invalid_customer_id", status=400, customer="%CE%B1"),
    put("a customer's id with %", "invalid_customer_id", status=400, customer="a%25b"),
    put("a customer's id with a NUL", "not_found", status=404, customer="a%00b"),
    put("a customer's id with #", "not_found", status=404, customer="a%23b"),
    BadCall(
        "a customer that is not there",
        404,
        "not_found",
        None,
        method="GET",
        path="/v1/customers/nobody",
        key="admin",
    ),
]


def bad(name: str, code: str, /, **told: Any) -> BadEvent:
    """An event that is bad in what is told."""
    event = make_event("bad", **told)
    return BadEvent(name, code, event)


def bad_quantity(name: str, code: str, quantity: Any) -> BadEvent:
    """An event that reports this quantity."""
    event = make_event("bad", data_usage=DROP, data_quantity=quantity)
    return BadEvent(name, code, event)


def bad_raw(name: str, code: str, json_text: str) -> BadEvent:
    """An event that reports a quantity which only this JSON text can say."""
    text = json.dumps(make_event("bad", data_usage=DROP, data_quantity="@")).replace(
        '"@"', json_text
    )
    return BadEvent(name, code, text.encode())


def shift(**told: float) -> str:
    return (NOW + timedelta(**told)).isoformat()


USAGE = {"input_tokens": 1200, "output_tokens": 350}
EVENTS = [
    BadEvent("null", "invalid_event", None, None),
    BadEvent("a number", "invalid_event", 17, None),
    BadEvent("a string", "invalid_event", "event", None),
    BadEvent("a list", "invalid_event", [make_event("bad")], None),
    BadEvent("lists 150 deep", "invalid_event", nest(150), None),
    BadEvent("an empty object", "missing_field", {}, None),
    *(
        bad(f"no {name}", "missing_field", **{name: DROP})
        for name in ("specversion", "source", "type", "subject", "data")
    ),
    BadEvent("no id", "missing_field", make_event("", id=DROP), None),
    bad("an older specversion", "invalid_field", specversion="0.3"),
    bad("a specversion as number", "invalid_field", specversion=1.0),
    bad("an empty type", "invalid_field", type=""),
    bad("a type as number", "invalid_field", type=1),
    BadEvent("an id as number", "invalid_field", make_event("", id=17), None),
    BadEvent("an id that is true", "invalid_field", make_event("", id=True), None),
    BadEvent("an empty id", "invalid_field", make_event(""), ""),
    BadEvent("a huge id", "invalid_field", make_event(HUGE), None),
    BadEvent("an id with a NUL", "invalid_field", make_event("a\0b"), "a\0b"),
    BadEvent("an id with a line end", "invalid_field", make_event("a\nb"), "a\nb"),
    BadEvent("an id with the key's own separator", "invalid_field", make_event("\x1f"), "\x1f"),
    BadEvent("an id with a C1 control", "invalid_field", make_event("\x85"), "\x85"),
    BadEvent("an id of half a pair", "invalid_field", make_event(HALF_A_PAIR), "cut short ?"),
    bad("an empty source", "invalid_field", source=""),
    bad("a source with a NUL", "invalid_field", source="a\0b"),
    bad("a huge source", "invalid_field", source=HUGE),
    bad("the source of corrections", "invalid_field", source="meterline.correction"),
    bad("a source that is null", "invalid_field", source=None),
    bad("an unknown customer", "unknown_customer", subject="nobody"),
    bad("a customer that climbs", "invalid_field", subject="../bad-input"),
    bad("a customer with a hash", "invalid_field", subject="bad-input#credits"),
    bad("a customer in other letters", "unknown_customer", subject=CUSTOMER.upper()),
    bad("an empty customer", "invalid_field", subject=""),
    bad("a customer as a list", "invalid_field", subject=[CUSTOMER]),
    bad("data that are null", "invalid_field", data=None),
    bad("data that are a string", "invalid_field", data="eA=="),
    bad("data that are a list", "invalid_field", data=[]),
    bad("another content type of data", "invalid_field", datacontenttype="text/xml"),
    bad("time: garbage", "invalid_time", time="yesterday"),
    bad("time: empty", "invalid_time", time=""),
    bad("time: seconds since 1970", "invalid_field", time=1_795_000_000),
    bad("time: without zone", "invalid_time", time=NOW.replace(tzinfo=None).isoformat()),
    bad("time: a date", "invalid_time", time=f"{NOW:%Y-%m-%d}"),
    bad("time: a month of 13", "invalid_time", time="2026-13-01T00:00:00Z"),
    bad("time: 30 February", "invalid_time", time="2026-02-30T00:00:00Z"),
    bad("time: a leap second", "invalid_time", time="2016-12-31T23:59:60Z"),
    bad("time: a zone of 99:99", "invalid_time", time="2026-11-22T06:00:00+99:99"),
    bad("time: beyond the last day", "invalid_time", time="9999-12-31T23:59:59-23:59"),
    bad("time: before the first day", "invalid_time", time="0001-01-01T00:00:00+23:59"),
    bad("time: a space for T", "invalid_time", time="2026-11-22 06:00:00Z"),
    bad("time: other digits", "invalid_time", time="\u0662\u0660\u0662\u0666-11-22T06:00:00Z"),
    bad("time: huge", "invalid_field", time=HUGE),
    # More than these tests take from their collection to this one.
    bad("time: in three hours", "time_in_future", time=shift(hours=3)),
    bad("time: in a hundred years", "time_in_future", time=shift(days=36_500)),
    bad("time: 1970", "time_too_old", time="1970-01-01T00:00:00Z"),
    bad("time: three years ago", "time_too_old", time=shift(days=-1_096)),
    bad("no meter", "missing_field", data_meter=DROP),
    bad("an unknown meter", "unknown_meter", data_meter="apples"),
    bad("an empty meter", "invalid_field", data_meter=""),
    bad("a meter as number", "invalid_field", data_meter=1),
    bad("a field too many in data", "unknown_field", data_tokens=5),
    bad("a huge field too many in data", "unknown_field", **{f"data_{HUGE}": 5}),
    bad("a field of half a pair in data", "invalid_field", **{f"data_{HALF_A_PAIR}": 5}),
    bad("no provider", "missing_field", data_provider=DROP),
    bad("no model", "missing_field", data_model=DROP),
    bad("an unknown provider", "unknown_model", data_provider="acme-ai"),
    bad("an unknown model", "unknown_model", data_model="gpt-99"),
    bad("a model in other letters", "unknown_model", data_model="Claude-Sonnet-4-5"),
    bad("a model that is a pattern", "unknown_model", data_model="*"),
    bad("a huge model", "invalid_field", data_model=HUGE),
    bad("a model as number", "invalid_field", data_model=4.5),
    bad("an action with a NUL", "invalid_field", data_action="\0"),
    bad("an action with an escape code", "invalid_field", data_action="\x1b[2J"),
    bad("an action of half a pair", "invalid_field", data_action=HALF_A_PAIR),
    bad("a huge user", "invalid_field", data_user=HUGE),
    bad("a user as object", "invalid_field", data_user={"id": "u_9"}),
    bad("neither usage nor quantity", "missing_quantity", data_usage=DROP),
    bad("usage that is null", "missing_quantity", data_usage=None),
    bad("usage that is empty", "invalid_field", data_usage={}),
    bad("both usage and quantity", "ambiguous_quantity", data_quantity="1"),
    bad("usage of a meter without rates", "missing_quantity", data_meter="outcomes"),
    bad("usage as a list", "invalid_field", data_usage=[1200, 350]),
    bad("usage as a number", "invalid_field", data_usage=1550),
    bad("an unknown kind of usage", "unknown_usage_kind", data_usage={**USAGE, "gpu_s": 5}),
    bad(
        "an unknown kind of raw tokens",
        "unknown_usage_kind",
        data_meter="tokens",
        data_usage={"a": 1},
    ),
    bad("17 kinds of usage", "invalid_field", data_usage={f"kind_{i}": 1 for i in range(17)}),
    bad("a huge kind of usage", "invalid_field", data_usage={HUGE: 1}),
    bad("a kind of usage of half a pair", "invalid_field", data_usage={HALF_A_PAIR: 1}),
    bad("tokens below zero", "invalid_field", data_usage={"input_tokens": -1}),
    bad("tokens as a float", "invalid_field", data_usage={"input_tokens": 1200.0}),
    bad("tokens as a string", "invalid_field", data_usage={"input_tokens": "1200"}),
    bad("tokens that are true", "invalid_field", data_usage={"input_tokens": True}),
    bad("tokens that are null", "invalid_field", data_usage={"input_tokens": None}),
    bad("tokens that are NaN", "invalid_field", data_usage={"input_tokens": float("nan")}),
    bad("tokens without end", "invalid_field", data_usage={"input_tokens": float("inf")}),
    bad("1e30 tokens", "invalid_field", data_usage={"input_tokens": 1e30}),
    bad("10^30 tokens", "invalid_field", data_usage={"input_tokens": 10**30}),
    bad_quantity("10^12 credits", "quantity_too_large", "1000000000000"),
    bad_quantity("a quantity below zero", "invalid_quantity", "-1"),
    bad_quantity("a quantity of minus zero", "invalid_quantity", "-0"),
    bad_quantity("a quantity with +", "invalid_quantity", "+1"),
    bad_quantity("an empty quantity", "invalid_quantity", ""),
    bad_quantity("a quantity in words", "invalid_quantity", "twelve"),
    bad_quantity("a quantity with a comma", "invalid_quantity", "1,5"),
    bad_quantity("a quantity with spaces", "invalid_quantity", " 1 "),
    bad_quantity("a quantity without digits before the point", "invalid_quantity", ".5"),
    bad_quantity("a quantity in other digits", "invalid_quantity", "\u0661"),
    bad_quantity("a quantity with an underscore", "invalid_quantity", "1_000"),
    bad_quantity("a quantity in hexadecimal", "invalid_quantity", "0x10"),
    bad_quantity("the text NaN", "invalid_quantity", "NaN"),
    bad_quantity("the text Infinity", "invalid_quantity", "Infinity"),
    bad_quantity("the text 1e3", "invalid_quantity", "1e3"),
    bad_quantity("a huge quantity", "invalid_quantity", "9" * 100_000),
    bad_quantity("a quantity that is true", "invalid_quantity", True),
    bad_quantity("a quantity as object", "invalid_quantity", {"value": 1}),
    bad_quantity("a quantity as list", "invalid_quantity", ["1"]),
    bad_quantity("10^30 as text", "quantity_too_large", "1" + "0" * 30),
    bad_quantity("10^30 as number", "quantity_too_large", 10**30),
    bad_quantity("finer than a sub-unit", "quantity_too_fine", "0.0005"),
    bad_quantity("finer than 28 digits show", "quantity_too_fine", "1." + "0" * 38 + "1"),
    bad_raw("the number NaN", "invalid_quantity", "NaN"),
    bad_raw("the number Infinity", "invalid_quantity", "Infinity"),
    bad_raw("the number -Infinity", "invalid_quantity", "-Infinity"),
    bad_raw("the number -0.0", "invalid_quantity", "-0.0"),
    bad_raw("the number -1", "invalid_quantity", "-1"),
    bad_raw("the number 1.5", "invalid_quantity", "1.5"),
    bad_raw("the number 1e30", "invalid_quantity", "1e30"),
    bad_raw("the number 1e-7", "invalid_quantity", "1e-7"),
    bad_raw("the number 1e999", "invalid_quantity", "1e999"),
    bad_raw("a number of 4,000 digits", "invalid_quantity", "7" * 4_000),
    bad_raw("a number of 5,000 digits", "invalid_quantity", "7" * 5_000),
    bad("cached as text", "invalid_field", data_cached="true"),
    bad("cached as number", "invalid_field", data_cached=1),
    bad("cached and else not an event", "missing_field", data_cached=True, data_meter=DROP),
    bad("cached with bad tokens", "invalid_field", data_cached=True, data_usage={"a": -1}),
    bad("an unknown status", "invalid_field", data_status="half"),
    BadEvent(
        "an id that is known with other content",
        "conflict",
        make_event("known", data_user="u_10"),
        "known",
    ),
]

# What looks bad and is good, and the quantity that it comes to. The last of repeated names counts
# (RFC 8259, 4, leaves it open); CloudEvents lets attributes be added that nobody here knows.
ODD: list[tuple[str, object, str]] = [
    ("an id in any script", make_event("\u4e8b\u4ef6-\U0001f9fe-\u0394"), "2.95"),
    ("an id of 200 characters of four bytes", make_event("\U0001f9fe" * 200), "2.95"),
    ("a type of the sender's own", make_event("odd-type", type="prompt"), "2.95"),
    ("an attribute that is NaN", make_event("odd-nan", traceparent=float("nan")), "2.95"),
    ("an attribute with lists 100 deep", make_event("odd-deep", extra=nest(100)), "2.95"),
    ("a time that is null", make_event("odd-null", time=None), "2.95"),
    ("a time in another zone", make_event("odd-zone", time="2026-11-22t06:00:00.5+05:45"), "2.95"),
    ("a quantity of zero", make_event("odd-0", data_usage=DROP, data_quantity="0"), "0"),
    ("a quantity as whole number", make_event("odd-2", data_usage=DROP, data_quantity=2), "2"),
    (
        "a quantity of 80 characters",
        make_event("odd-80", data_usage=DROP, data_quantity="0" * 39 + "1." + "0" * 39),
        "1",
    ),
    (
        "the number -0",
        json.dumps(make_event("odd--0", data_usage=DROP, data_quantity="@"))
        .replace('"@"', "-0")
        .encode(),
        "0",
    ),
    (
        "an attribute said twice",
        json.dumps(make_event("odd-twice")).replace("{", '{"id": "first", ', 1).encode(),
        "2.95",
    ),
]

GATEWAY = [
    ("GET", "/v1/usage"),
    ("DELETE", "/v1/usage"),
    ("PATCH", "/v1/customers/bad-input"),
    ("DELETE", "/v1/customers/bad-input"),
    ("POST", "/v1/usage/"),
    ("POST", "/v1/Usage"),
    ("POST", "/v2/usage"),
    ("POST", "/v1/../v1/usage"),
    ("PUT", "/v1/customers/..%2f..%2fusage"),
    ("PUT", "/v1/customers/a%2fb"),
    ("PUT", "/v1/customers/../usage"),
    ("GET", "/v1/customers/"),
    ("GET", "/"),
    ("POST", "/openapi.json"),
]


def read_id(event: object) -> str:
    """The id of an event that is given as an object or as JSON."""
    told: Json = json.loads(event) if isinstance(event, bytes) else event  # type: ignore[assignment]
    return str(told["id"])


def send(
    api: Api,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    key: str | None = None,
) -> Answer:
    """Call with the path and the bytes exactly as they are, which most HTTP clients tidy up."""
    keys = {"usage": api.usage_key, "admin": api.admin_key}
    connection = http.client.HTTPConnection(urlsplit(api.url).netloc, timeout=60)
    try:
        connection.putrequest(method, path)
        if key is not None:
            connection.putheader("Authorization", f"Bearer {keys.get(key, key)}")
        for name, value in headers.items():
            connection.putheader(name, value.encode("latin-1"))
        if body is not None or method != "GET":
            connection.putheader("Content-Length", str(len(body or b"")))
        connection.endheaders(body)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def encode_batch(events: list[object]) -> bytes:
    """A list of events; one that is given as bytes is in it as it is."""
    texts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in events]
    return b'{"events": [' + b",".join(texts) + b"]}"


class Rows:
    """The table of what was sent and what came back."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, name: str, status: int, code: str, told: str) -> None:
        """One kind of input and its answer."""
        shown = told if len(told) <= 80 else f"{told[:79]}…"
        self._lines.append(f"{name:<42} {status} {code:<28} {shown}")

    def render(self) -> str:
        """The table as text."""
        return "\n".join([*self._lines, f"{len(self._lines)} kinds of input"])


@pytest.fixture(scope="module")
def rows(pytestconfig: pytest.Config) -> Iterator[Rows]:
    """The table, printed when all is done."""
    rows = Rows()
    yield rows
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print(f"\n{rows.render()}")


@pytest.fixture(scope="module")
def ledger(stack: LocalStack) -> DynamoLedger:
    """The deployed ledger, read beside the API."""
    session = botocore.session.Session()
    session.set_credentials("test", "test")
    session.set_config_variable("region", REGION)
    return DynamoLedger(
        DynamoWire(session, endpoint_url=stack.aws_url), stack.outputs["EventsTable"]
    )


@pytest.fixture(scope="module", autouse=True)
def _known(api: Api) -> None:
    """The customer of all rows, and the event that one of them contradicts."""
    assert api.put_customer(CUSTOMER).status == 200
    assert api.report(make_event("known")).status == 202


def find_event(ledger: DynamoLedger, event_id: str) -> LedgerEntry | None:
    return ledger.find(EventKey(CUSTOMER, SOURCE, event_id))


def read_problem(answer: Answer) -> Json:
    """The problem of an answer, whose shape every problem has."""
    assert answer.headers["content-type"] == "application/problem+json", answer.body[:500]
    assert len(answer.body) < 10_000, "an answer must not grow with what was sent"
    told: Json = answer.told
    assert told["status"] == answer.status
    assert isinstance(told["title"], str)
    assert told["title"]
    return told


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_a_bad_call_is_refused_with_a_problem(api: Api, rows: Rows, call: BadCall) -> None:
    headers = dict(call.headers)
    if call.content_type is not None:
        headers["Content-Type"] = call.content_type
    answer = send(api, call.method, call.path, call.body, headers, call.key)
    told = read_problem(answer)
    rows.add(call.name, answer.status, told["code"], told["title"])
    assert (answer.status, told["code"]) == (call.status, call.code), told
    path = "/v1/customers/{id}" if call.path.startswith("/v1/customers/") else call.path
    check_described(api, call.method, path, answer)


@pytest.mark.parametrize("row", EVENTS, ids=lambda row: row.name)
def test_a_bad_event_costs_itself_alone(
    api: Api, rows: Rows, ledger: DynamoLedger, row: BadEvent
) -> None:
    good = [f"{row.name}, before", f"{row.name}, after"]
    body = encode_batch([make_event(good[0]), row.event, make_event(good[1])])
    answer = send(api, "POST", "/v1/usage", body, {"Content-Type": "application/json"}, key="usage")
    assert answer.status == 202, answer.body[:500]
    assert len(answer.body) < 2_000, "an answer must not grow with what was sent"
    check_described(api, "POST", "/v1/usage", answer)
    told = answer.told
    [rejection] = told["rejected"]
    rows.add(row.name, answer.status, rejection["code"], rejection["message"])
    assert rejection["code"] == row.code, rejection
    assert rejection["message"]
    assert (rejection["index"], rejection["id"]) == (1, row.told_id)
    assert (told["accepted"], told["duplicates"], told["ignored"]) == (2, 0, 0)
    for event_id in good:
        entry = find_event(ledger, event_id)
        assert entry is not None
        assert entry.quantity == Decimal("2.95")
    assert find_event(ledger, "bad") is None


@pytest.mark.parametrize(("name", "event", "quantity"), ODD, ids=[name for name, _, _ in ODD])
def test_what_looks_bad_and_is_good_is_taken(
    api: Api, rows: Rows, ledger: DynamoLedger, name: str, event: object, quantity: str
) -> None:
    body = encode_batch([event])
    answer = send(api, "POST", "/v1/usage", body, {"Content-Type": "application/json"}, key="usage")
    rows.add(name, answer.status, "accepted", "")
    assert answer.status == 202, answer.body[:500]
    assert answer.told == {"accepted": 1, "duplicates": 0, "ignored": 0, "rejected": []}
    entry = find_event(ledger, read_id(event))
    assert entry is not None
    assert entry.quantity == Decimal(quantity)


@pytest.mark.parametrize(("method", "path"), GATEWAY)
def test_what_has_no_route_is_the_gateways_own_404(
    api: Api, rows: Rows, method: str, path: str
) -> None:
    answer = send(api, method, path, ONE_EVENT, {"Content-Type": "application/json"}, key="admin")
    rows.add(f"{method} {path}", answer.status, "(the gateway's own)", answer.told["message"])
    assert answer.status == 404
    assert answer.told == {"message": "Not Found"}


def test_nothing_but_the_good_events_is_in_the_ledger(ledger: DynamoLedger) -> None:
    held = {
        entry.key.id
        for entry in ledger.events_between(CUSTOMER, NOW - timedelta(days=1), NOW)
        if entry.at == NOW.replace(microsecond=NOW.microsecond // 1000 * 1000)
    }
    good = {f"{row.name}, {place}" for row in EVENTS for place in ("before", "after")}
    assert held - good <= {"known", *(read_id(event) for _, event, _ in ODD)}
    assert good <= held

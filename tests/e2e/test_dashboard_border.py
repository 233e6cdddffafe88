"""What is wrong with a call of the dashboard, and the answer: every route, key, token and form."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from infra.local.stack import LocalStack
from tests.e2e.conftest import Answer, Api
from tests.e2e.dashboards import USERS, link, sign_in
from tests.e2e.described import check_described

CUSTOMER = "border-acme"
OTHER = "border-birch"
USAGE = f"/v1/customers/{CUSTOMER}/usage"
LIMITS = f"/v1/customers/{CUSTOMER}/limits"
PORTAL = "/v1/portal-sessions"
PAGE = "/settings/usage"
CSV = "/settings/usage/events.csv"
GOOD_SPAN = "?from=2026-11-01T00:00:00Z&to=2026-11-02T00:00:00Z"
FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module", autouse=True)
def customers(api: Api) -> None:
    for customer in (CUSTOMER, OTHER):
        assert api.put_customer(customer, users=USERS).status == 200


@dataclass(frozen=True, slots=True)
class Bad:
    """A call that is wrong, and the status and code of its answer."""

    what: str
    method: str
    path: str
    status: int
    code: str | None = None
    body: Any = None
    key: str = "admin"
    content_type: str | None = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


MONEY = {"amount_minor": 5000, "currency": "usd"}
JSON_CALLS = [
    *(
        bad
        for method, path, body in (
            ("GET", USAGE, None),
            ("GET", LIMITS, None),
            ("PUT", LIMITS, {}),
            ("POST", PORTAL, {"customer": CUSTOMER}),
        )
        for bad in (
            Bad(f"{method} {path}: no key", method, path, 401, "unauthenticated", body, ""),
            Bad(f"{method} {path}: a made-up key", method, path, 401, "unauthenticated", body, "x"),
            Bad(f"{method} {path}: a usage key", method, path, 403, "forbidden", body, "usage"),
        )
    ),
    Bad("usage of nobody", "GET", "/v1/customers/nobody/usage", 404, "not_found"),
    Bad("usage of a strange id", "GET", "/v1/customers/%20a/usage", 400, "invalid_customer_id"),
    Bad("limits of nobody", "GET", "/v1/customers/nobody/limits", 404, "not_found"),
    Bad("limits for nobody", "PUT", "/v1/customers/nobody/limits", 404, "not_found", {}),
    Bad(
        "limits for a strange id",
        "PUT",
        "/v1/customers/a%20b/limits",
        400,
        "invalid_customer_id",
        {},
    ),
    Bad("limits: no body", "PUT", LIMITS, 400, "empty_body", b""),
    Bad("limits: no JSON", "PUT", LIMITS, 400, "invalid_json", b"{"),
    Bad("limits: a list", "PUT", LIMITS, 422, "invalid_body", []),
    Bad("limits: form data", "PUT", LIMITS, 415, "unsupported_media_type", {}, content_type=FORM),
    Bad("limits: an unknown field", "PUT", LIMITS, 422, "invalid_body", {"stopat": MONEY}),
    Bad("limits: a number alone", "PUT", LIMITS, 422, "invalid_body", {"stop_at": 50}),
    Bad("limits: a text flag", "PUT", LIMITS, 422, "invalid_body", {"block_overage": "yes"}),
    *(
        Bad(f"limits: {what}", "PUT", LIMITS, 422, code, {"stop_at": value})
        for what, code, value in (
            ("nothing inside", "invalid_body", {}),
            ("money and quantity", "invalid_body", {**MONEY, "quantity": "1"}),
            ("a fraction of a cent", "invalid_body", {**MONEY, "amount_minor": 50.5}),
            ("an amount as text", "invalid_body", {**MONEY, "amount_minor": "5000"}),
            ("an amount of zero", "invalid_body", {**MONEY, "amount_minor": 0}),
            ("a negative amount", "invalid_body", {**MONEY, "amount_minor": -1}),
            ("a huge amount", "invalid_body", {**MONEY, "amount_minor": 10**13}),
            ("NaN", "invalid_body", {**MONEY, "amount_minor": float("nan")}),
            ("no currency", "invalid_body", {"amount_minor": 5000}),
            ("an upper case currency", "invalid_body", {**MONEY, "currency": "USD"}),
            ("another currency", "wrong_currency", {**MONEY, "currency": "eur"}),
            ("below the base fee", "limit_below_base_fee", {**MONEY, "amount_minor": 2899}),
            ("a quantity as number", "invalid_body", {"quantity": 5}),
            ("a quantity with an exponent", "invalid_body", {"quantity": "1e3"}),
            ("a negative quantity", "invalid_body", {"quantity": "-1"}),
            ("too fine a quantity", "quantity_too_fine", {"quantity": "1.0001"}),
            ("a huge quantity", "limit_out_of_range", {"quantity": "9" * 20}),
        )
    ),
    Bad(
        "limits: a warning that never comes",
        "PUT",
        LIMITS,
        422,
        "warn_above_stop",
        {"warn_at": {"quantity": "3000"}, "stop_at": {"quantity": "2999.999"}},
    ),
    Bad("a link: no body", "POST", PORTAL, 400, "empty_body", b""),
    Bad("a link: no customer", "POST", PORTAL, 422, "invalid_body", {}),
    Bad("a link: for nobody", "POST", PORTAL, 404, "not_found", {"customer": "nobody"}),
    Bad("a link: a strange customer", "POST", PORTAL, 422, "invalid_body", {"customer": "a b"}),
    Bad(
        "a link: null bytes",
        "POST",
        PORTAL,
        422,
        "invalid_body",
        {"customer": CUSTOMER, "user": "\0"},
    ),
    Bad(
        "a link: a made-up role",
        "POST",
        PORTAL,
        422,
        "invalid_body",
        {"customer": CUSTOMER, "role": "owner"},
    ),
    Bad(
        "a link: a field too many",
        "POST",
        PORTAL,
        422,
        "invalid_body",
        {"customer": CUSTOMER, "ttl": 1},
    ),
]


@pytest.mark.parametrize("bad", JSON_CALLS, ids=lambda bad: bad.what)
def test_a_wrong_call_has_its_answer(api: Api, bad: Bad) -> None:
    key = {"admin": api.admin_key, "usage": api.usage_key, "": None}.get(bad.key, "wrong")
    body = bad.body if isinstance(bad.body, bytes | None) else json.dumps(bad.body).encode()
    answer = api.call(bad.method, bad.path, key=key, body=body, content_type=bad.content_type)
    assert answer.status == bad.status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    if bad.code is not None:
        assert answer.told["code"] == bad.code
    described = bad.path.partition("/customers/")[2].partition("/")[2]
    path = f"/v1/customers/{{id}}/{described}" if described else bad.path
    check_described(api, bad.method, path, answer)


def test_a_good_call_is_as_the_document_says(api: Api) -> None:
    for method, path, body in (
        ("GET", USAGE, None),
        ("PUT", LIMITS, {"stop_at": MONEY, "warn_at": {"quantity": "900"}}),
        ("GET", LIMITS, None),
        ("POST", PORTAL, {"customer": CUSTOMER, "user": "u_kim"}),
    ):
        sent = json.dumps(body).encode() if body is not None else None
        answer = api.call(method, path, key=api.admin_key, body=sent)
        check_described(api, method, path.replace(CUSTOMER, "{id}"), answer)


def read_claims(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def resign(token: str, key: str, algorithm: str = "HS256", **changes: Any) -> str:
    return jwt.encode({**read_claims(token), **changes}, key, algorithm=algorithm)


def without_signature(token: str, **changes: Any) -> str:
    head = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    body = json.dumps({**read_claims(token), **changes}).encode()
    return f"{head}.{base64.urlsafe_b64encode(body).rstrip(b'=').decode()}."


def changed(token: str, **changes: Any) -> str:
    """Other claims under the signature of the old ones."""
    head, _, signature = token.split(".")
    body = json.dumps({**read_claims(token), **changes}).encode()
    return f"{head}.{base64.urlsafe_b64encode(body).rstrip(b'=').decode()}.{signature}"


def bad_tokens(link_token: str, session: str) -> dict[str, tuple[str, str]]:
    """What was presented, as a link's token and as a session's, by what is wrong with it."""
    pem = (
        generate_private_key(SECP256R1())
        .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        .decode()
    )
    known = "k" * 64
    return {
        "nothing": ("", ""),
        "a word": ("token", "token"),
        "three dots": ("...", "..."),
        "a very long one": ("a" * 8000, "a" * 3500),
        "another key": (resign(link_token, known), resign(session, known)),
        "another algorithm": (resign(link_token, pem, "ES256"), resign(session, pem, "ES256")),
        "no algorithm": (without_signature(link_token), without_signature(session)),
        "another customer under the old signature": (
            changed(link_token, sub=OTHER),
            changed(session, sub=OTHER),
        ),
        "a later end under the old signature": (
            changed(link_token, exp=int(time.time()) + 10**6),
            changed(session, exp=int(time.time()) + 10**6),
        ),
        "admin under the old signature": (
            changed(link_token, role="admin"),
            changed(session, role="admin"),
        ),
        "each in the place of the other": (session, link_token),
    }


KINDS = [*bad_tokens(jwt.encode({}, "k" * 64), jwt.encode({}, "k" * 64))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_token_opens_no_route(api: Api, kind: str) -> None:
    link_token = link(api, CUSTOMER, user="u_noor").partition("token=")[2]
    name, _, session = sign_in(api, CUSTOMER, user="u_noor").partition("=")
    as_link, as_session = bad_tokens(link_token, session)[kind]
    check_refused(api.call("GET", f"{PAGE}?{urlencode({'token': as_link})}"), 401)
    cookie = {"Cookie": f"{name}={as_session}"}
    check_refused(api.call("GET", PAGE, headers=cookie), 401)
    check_refused(api.call("GET", CSV + GOOD_SPAN, headers=cookie), 401)
    for path in ("/settings/usage/limits", "/settings/usage/sign-out"):
        check_refused(post_form(api, path, cookie, {"form_token": as_session}), 401)


def test_a_link_works_once(api: Api) -> None:
    path = link(api, CUSTOMER, user="u_noor").removeprefix(api.url)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: api.call("GET", path), range(8)))
    [followed] = [answer for answer in answers if answer.status == 303]
    for answer in answers:
        if answer is not followed:
            check_refused(answer, 410)
            assert b"This link was used already" in answer.body
    mine = {"Cookie": str(followed.headers["set-cookie"]).partition(";")[0]}
    assert api.call("GET", path, headers=mine).status == 303, "a reload by the same browser"
    other = {"Cookie": sign_in(api, CUSTOMER, user="u_noor")}
    check_refused(api.call("GET", path, headers=other), 410)


def check_refused(answer: Answer, status: int) -> None:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "set-cookie" not in answer.headers
    assert b"<h1>" in answer.body
    assert b"Acme" not in answer.body


def post_form(
    api: Api,
    path: str,
    headers: Mapping[str, str],
    fields: Mapping[str, str] | bytes,
    content_type: str = FORM,
) -> Answer:
    body = fields if isinstance(fields, bytes) else urlencode(fields).encode()
    return api.call("POST", path, headers=dict(headers), body=body, content_type=content_type)


def read_form_token(api: Api, cookie: Mapping[str, str]) -> str:
    html = api.call("GET", PAGE, headers=dict(cookie)).body.decode()
    return html.partition('name="form_token" value="')[2].partition('"')[0]


def test_a_form_is_taken_from_its_own_sessions_page_alone(api: Api) -> None:
    mine = {"Cookie": sign_in(api, CUSTOMER)}
    again = {"Cookie": sign_in(api, CUSTOMER)}
    theirs = {"Cookie": sign_in(api, OTHER)}
    member = {"Cookie": sign_in(api, CUSTOMER, user="u_noor")}
    token = read_form_token(api, mine)
    path = "/settings/usage/limits"
    good = {"form_token": token, "stop_at": "60", "stop_at_in": "money"}
    for what, headers, fields, status in (
        ("no token", mine, {**good, "form_token": ""}, 401),
        (
            "another customer's token",
            mine,
            {**good, "form_token": read_form_token(api, theirs)},
            401,
        ),
        ("another session's token", mine, {**good, "form_token": read_form_token(api, again)}, 401),
        ("the session itself", mine, {**good, "form_token": mine["Cookie"].partition("=")[2]}, 401),
        ("another site", {**mine, "Origin": "https://evil.example"}, good, 403),
        ("a site that hides", {**mine, "Origin": "null"}, good, 403),
        ("a cross-site form", {**mine, "Sec-Fetch-Site": "cross-site"}, good, 403),
        ("nobody", {}, good, 401),
        ("a member", member, {**good, "form_token": read_form_token(api, member)}, 403),
    ):
        assert post_form(api, path, headers, fields).status == status, what
    assert api.call("GET", LIMITS, key=api.admin_key).told["stop_at"] != {
        "amount_minor": 6000,
        "currency": "usd",
    }
    assert post_form(api, path, {**mine, "Origin": api.url}, good).status == 303
    assert api.call("GET", LIMITS, key=api.admin_key).told["stop_at"]["amount_minor"] == 6000


@pytest.mark.parametrize(
    ("what", "fields"),
    [
        ("a word", {"stop_at": "much"}),
        ("a negative", {"stop_at": "-50"}),
        ("an exponent", {"stop_at": "1e3"}),
        ("half a cent", {"stop_at": "49.995"}),
        ("below the base fee", {"stop_at": "28.99"}),
        ("too fine", {"stop_at": "0.00001", "stop_at_in": "quantity"}),
        ("far too much", {"stop_at": "9" * 15}),
        ("other digits", {"stop_at": "٤٠"}),
        ("markup", {"stop_at": '"><script>alert(1)</script>'}),
        ("a warning that never comes", {"warn_at": "90", "stop_at": "80"}),
    ],
)
def test_a_form_with_a_mistake_comes_back_with_what_was_typed(
    api: Api, what: str, fields: dict[str, str]
) -> None:
    cookie = {"Cookie": sign_in(api, CUSTOMER)}
    sent = {"form_token": read_form_token(api, cookie), **fields}
    before = api.call("GET", LIMITS, key=api.admin_key).told
    answer = post_form(api, "/settings/usage/limits", cookie, sent)
    assert answer.status == 422
    assert b'role="alert"' in answer.body
    assert b"<script" not in answer.body
    assert api.call("GET", LIMITS, key=api.admin_key).told == before


@pytest.mark.parametrize(
    ("what", "body", "content_type", "status"),
    [
        ("JSON", b"{}", "application/json", 415),
        ("a long form", b"stop_at=" + b"1" * 20_000, FORM, 413),
        ("a hundred fields", b"&".join(b"a%d=1" % n for n in range(100)), FORM, 400),
        ("broken bytes", b"stop_at=%ff%fe", FORM, 400),
        ("nothing", b"", FORM, 401),
    ],
)
def test_a_form_that_cannot_be_read_is_refused(
    api: Api, what: str, body: bytes, content_type: str, status: int
) -> None:
    cookie = {"Cookie": sign_in(api, CUSTOMER)}
    answer = post_form(api, "/settings/usage/limits", cookie, body, content_type)
    assert answer.status == status, answer.body


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?from=2026-11-01T00:00:00Z",
        "?from=yesterday&to=today",
        "?from=2026-11-02T00:00:00Z&to=2026-11-01T00:00:00Z",
        "?from=2020-01-01T00:00:00Z&to=2026-01-01T00:00:00Z",
        "?from=0001-01-01T00:00:00%2B10:00&to=2026-01-01T00:00:00Z",
        "?from=%00&to=%00",
    ],
)
def test_a_span_that_cannot_be_is_refused(api: Api, query: str) -> None:
    cookie = {"Cookie": sign_in(api, CUSTOMER)}
    check_refused(api.call("GET", CSV + query, headers=cookie), 400)


def test_cookies_of_others_do_not_disturb(api: Api) -> None:
    session = sign_in(api, CUSTOMER)
    for strange in ("a=b; ", 'broken="; ', "x{}=1; ", "__Host-meterline_session=forged; "):
        assert api.call("GET", PAGE, headers={"Cookie": strange + session}).status == 200, strange


def test_signing_out_takes_the_cookie_away(api: Api) -> None:
    cookie = {"Cookie": sign_in(api, CUSTOMER)}
    token = read_form_token(api, cookie)
    answer = post_form(api, "/settings/usage/sign-out", cookie, {"form_token": token})
    assert answer.status == 303
    assert "1970" in answer.headers["set-cookie"]


def test_the_signing_key_is_no_variable_of_a_function(stack: LocalStack) -> None:
    secret = stack.client("secretsmanager").get_secret_value(
        SecretId=stack.outputs["DashboardSecret"]
    )
    key = json.loads(secret["SecretString"])["signing_key"]
    assert len(key) >= 64
    for name in ("ShowUsageFunctionName", "ServeDashboardFunctionName"):
        told = stack.client("lambda").get_function_configuration(FunctionName=stack.outputs[name])
        assert key not in json.dumps(told["Environment"])

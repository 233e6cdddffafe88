"""The app's own sign-in opens the dashboard of the deployed stack: Clerk, Supabase Auth, Auth.js.

Keys, tokens and cookies are real ones, made here; the issuer publishes its keys on 127.0.0.1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from infra.local.stack import LocalStack
from tests.e2e.conftest import Answer, Api
from tests.e2e.dashboards import USERS, DashboardSettings
from tests.unit.client_identity import issuers
from tests.unit.client_identity.issuers import KeyServer, serve_keys

ACME, BIRCH, SOLO = "signed-acme", "signed-birch", "signed-solo"
Headers = dict[str, str]


@dataclass(frozen=True, slots=True)
class SignIn:
    """One kind of sign-in: how it is set up, how its sessions look, and which are none."""

    kind: str
    settings: dict[str, Any]
    present: Callable[[str, str | None], Headers]
    """What a browser sends for a user of an organisation, or of none."""
    forged: dict[str, Headers]


def bearer(token: str) -> Headers:
    return {"Authorization": f"Bearer {token}"}


def cookies(values: dict[str, str]) -> Headers:
    return {"Cookie": "; ".join(f"{name}={value}" for name, value in values.items())}


def in_cookie(value: str) -> Headers:
    return cookies({issuers.AUTHJS_COOKIE: value})


def clerk(keys: KeyServer) -> SignIn:
    def token(user: str, organisation: str | None, **changes: object) -> str:
        told = {"o": {"id": organisation, "rol": "member"} if organisation else None}
        return keys.clerk_token(**{"sub": user, **told, **changes})

    good = keys.clerk_claims(sub="u_kim", o={"id": ACME})
    now_s = int(time.time())
    return SignIn(
        "clerk",
        {"kind": "clerk", "issuer": keys.url, "authorized_parties": [issuers.APP_ORIGIN]},
        lambda user, organisation: cookies({"__session": token(user, organisation)}),
        {
            "expired": bearer(token("u_kim", ACME, exp=now_s - 60)),
            "another customer under the old signature": bearer(
                issuers.change_payload(token("u_kim", ACME), o={"id": BIRCH})
            ),
            "another issuer": bearer(token("u_kim", ACME, iss="https://clerk.example")),
            "another issuer's key": bearer(
                issuers.sign(good, issuers.OTHER_RSA_KEY, "RS256", "rsa-1")
            ),
            "another app's origin": bearer(token("u_kim", ACME, azp="https://evil.example")),
            "pending": bearer(token("u_kim", ACME, sts="pending")),
            "impersonated": bearer(token("u_kim", ACME, act={"sub": "support"})),
            "the public key as a secret": bearer(
                issuers.sign_with_public_key_as_secret(
                    good, issuers.to_pem(issuers.RSA_KEY), "rsa-1"
                )
            ),
        },
    )


def supabase(keys: KeyServer) -> SignIn:
    def token(user: str, organisation: str | None, **changes: object) -> str:
        told = {"app_metadata": {"org_id": organisation} if organisation else {}}
        return keys.supabase_token(**{"sub": user, **told, **changes})

    good = keys.supabase_claims(sub="u_kim", app_metadata={"org_id": ACME})
    now_s = int(time.time())
    return SignIn(
        "supabase",
        {"kind": "supabase", "project_url": keys.url, "organisation_field": "org_id"},
        lambda user, organisation: bearer(token(user, organisation)),
        {
            "expired": bearer(token("u_kim", ACME, iat=now_s - 7200, exp=now_s - 60)),
            "another customer under the old signature": bearer(
                issuers.change_payload(token("u_kim", ACME), app_metadata={"org_id": BIRCH})
            ),
            "another project": bearer(
                token("u_kim", ACME, iss="https://other.supabase.co/auth/v1")
            ),
            "another project's key": bearer(
                issuers.sign(good, issuers.OTHER_EC_KEY, "ES256", "ec-1")
            ),
            "not signed in": bearer(token("u_kim", ACME, role="anon")),
            "anonymous": bearer(token("u_kim", ACME, is_anonymous=True)),
            "another audience": bearer(token("u_kim", ACME, aud="else")),
        },
    )


def authjs(_keys: KeyServer) -> SignIn:
    def seal(user: str, organisation: str | None, **changes: object) -> str:
        return issuers.seal_cookie(
            issuers.authjs_claims(**{"sub": user, "org": organisation, **changes})
        )

    good = issuers.authjs_claims(sub="u_kim", org=ACME)
    now_s = int(time.time())
    sealed = seal("u_kim", ACME)
    head, key, iv, text, tag = sealed.split(".")
    changed = ".".join((head, key, iv, ("B" if text[0] == "A" else "A") + text[1:], tag))
    return SignIn(
        "authjs",
        {"kind": "authjs", "secrets": [issuers.AUTHJS_SECRET], "organisation_claim": "org"},
        # Longer than one cookie may be, so that it comes in parts.
        lambda user, organisation: cookies(
            issuers.cut_in_chunks(seal(user, organisation, picture="x" * 4000))
        ),
        {
            "expired": in_cookie(seal("u_kim", ACME, exp=now_s - 60)),
            "changed": in_cookie(changed),
            "sealed with another secret": in_cookie(
                issuers.seal_cookie(good, secret="another app's secret of some length")
            ),
            "sealed for another cookie": in_cookie(
                issuers.seal_cookie(good, cookie="authjs.session-token")
            ),
            "only its first part": cookies(
                {f"{issuers.AUTHJS_COOKIE}.0": seal("u_kim", ACME, picture="x" * 4000)[:3000]}
            ),
        },
    )


@pytest.fixture(scope="module")
def keys() -> Iterator[KeyServer]:
    with serve_keys() as server:
        yield server


@pytest.fixture(scope="module", params=[clerk, supabase, authjs], ids=lambda make: make.__name__)
def sign_in(
    request: pytest.FixtureRequest, stack: LocalStack, api: Api, keys: KeyServer
) -> Iterator[SignIn]:
    for customer, users in ((ACME, USERS), (BIRCH, []), (SOLO, [])):
        assert api.put_customer(customer, name=f"The {customer}", users=users).status == 200
    made: SignIn = request.param(keys)
    with DashboardSettings(stack).changed(sign_in=made.settings):
        yield made


def open_page(api: Api, headers: Headers) -> Answer:
    return api.call("GET", "/settings/usage", headers=headers)


def test_the_apps_session_opens_the_dashboard_of_its_customer(api: Api, sign_in: SignIn) -> None:
    for user, organisation, is_admin in (
        ("u_kim", ACME, True),
        ("u_noor", ACME, False),
        ("somebody-new", ACME, False),
        ("u_kim", BIRCH, False),
        (SOLO, None, True),
    ):
        answer = open_page(api, sign_in.present(user, organisation))
        page = answer.body.decode()
        assert answer.status == 200, page
        assert f"<h1>The {organisation or user} · Usage</h1>" in page
        assert ("Save limits" in page) == is_admin, (user, organisation)
        assert ("Base fee" in page) == is_admin
        for other in {ACME, BIRCH, SOLO} - {organisation or user}:
            assert other not in page


def test_a_customer_that_nobody_made_has_no_dashboard(api: Api, sign_in: SignIn) -> None:
    answer = open_page(api, sign_in.present("u_kim", "signed-nobody"))
    assert answer.status == 404, answer.body


def test_what_is_no_session_of_the_app_opens_nothing(api: Api, sign_in: SignIn) -> None:
    for what, headers in {"nothing": {}, **sign_in.forged}.items():
        answer = open_page(api, headers)
        assert answer.status == 401, (what, answer.body)
        assert not any(each.encode() in answer.body for each in (ACME, BIRCH, SOLO)), what
        span = "from=2026-11-01T00:00:00Z&to=2026-11-02T00:00:00Z"
        path = f"/settings/usage/events.csv?{span}"
        assert api.call("GET", path, headers=headers).status == 401, what


def test_while_the_issuers_keys_cannot_be_had_nobody_is_refused_for_good(
    api: Api, stack: LocalStack, keys: KeyServer
) -> None:
    made = clerk(keys)
    with DashboardSettings(stack).changed(sign_in=made.settings):
        keys.status = 500
        try:
            assert open_page(api, made.present("u_kim", ACME)).status == 503
        finally:
            keys.status = 200


@pytest.mark.parametrize("issuer", ["http://clerk.example", "http://10.0.0.1"])
def test_keys_are_not_fetched_in_the_clear_from_another_machine(
    api: Api, stack: LocalStack, keys: KeyServer, issuer: str
) -> None:
    made = clerk(keys)
    with DashboardSettings(stack).changed(sign_in={**made.settings, "issuer": issuer}):
        assert open_page(api, made.present("u_kim", ACME)).status == 500

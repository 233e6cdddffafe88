"""A session of each identity layer gives the right customer or a clear refusal, in one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import jwt
import pytest
from rich.console import Console
from rich.table import Table

from meterline_client import identity_refusals as refusals
from meterline_client.attribution import acting_for_session
from meterline_client.identity import (
    AppTokens,
    AuthJsSessions,
    ClerkSessions,
    Identity,
    SupabaseSessions,
)
from tests.unit.client_identity import issuers as made
from tests.unit.client_identity.issuers import KeyServer

Expected: TypeAlias = str | type[refusals.IdentityError]
Verify: TypeAlias = Callable[[KeyServer], Identity]


@dataclass(frozen=True, slots=True)
class Situation:
    layer: str
    what: str
    verify: Verify
    expected: Expected
    """The customer to bill, or the refusal."""


def clerk(
    what: str, token: Callable[[KeyServer], str], expected: Expected, **options: Any
) -> Situation:
    def verify(server: KeyServer) -> Identity:
        sessions = ClerkSessions(server.url, [made.APP_ORIGIN], **options)
        return sessions.verify(token(server))

    return Situation("Clerk", what, verify, expected)


def supabase(
    what: str, token: Callable[[KeyServer], str], expected: Expected, **options: Any
) -> Situation:
    def verify(server: KeyServer) -> Identity:
        settings = {"organisation_field": "org_id", **options}
        sessions = SupabaseSessions(server.url, **settings)
        return sessions.verify(token(server))

    return Situation("Supabase Auth", what, verify, expected)


def authjs(
    what: str, cookies: Callable[[], dict[str, str]], expected: Expected, *secrets: str
) -> Situation:
    def verify(_: KeyServer) -> Identity:
        sessions = AuthJsSessions(secrets or [made.AUTHJS_SECRET], organisation_claim="org")
        return sessions.verify(cookies())

    return Situation("Auth.js cookie", what, verify, expected)


def app(what: str, token: Callable[[], str], expected: Expected) -> Situation:
    def verify(_: KeyServer) -> Identity:
        tokens = AppTokens(
            "https://app.example.test", "meterline", public_key=made.to_pem(made.EC_KEY)
        )
        return tokens.verify(token())

    return Situation("Auth.js, app's token", what, verify, expected)


def sealed(*names: str, **changes: object) -> dict[str, str]:
    claims = made.without(made.authjs_claims(**changes), *names)
    return {made.AUTHJS_COOKIE: made.seal_cookie(claims)}


def chunked() -> dict[str, str]:
    chunks = made.cut_in_chunks(made.seal_cookie(made.authjs_claims(picture="x" * 9000)))
    assert len(chunks) == 4
    return chunks


def flipped(value: str, at: int) -> str:
    return value[:at] + ("A" if value[at] != "A" else "B") + value[at + 1 :]


def forge_none(claims: dict[str, object]) -> str:
    return jwt.encode(claims, "", algorithm="none", headers={"kid": "rsa-1"})


PAST, FUTURE = int(time.time()) - 3600, int(time.time()) + 3600
C, S = KeyServer.clerk_token, KeyServer.supabase_token
HIDDEN_ORG = {"app_metadata": {"provider": "email"}, "user_metadata": {"org_id": "rich-neighbour"}}


def app_token(**changes: object) -> str:
    return made.sign(made.app_claims(**changes), made.EC_KEY, "ES256", None)


SITUATIONS = [
    # Clerk
    clerk("valid, organisation of version 2", C, "org_acme"),
    clerk("valid, no active organisation", lambda s: C(s, o=None), "user_2abc"),
    clerk(
        "valid, organisation of version 1", lambda s: C(s, v=None, o=None, org_id="org_1"), "org_1"
    ),
    clerk(
        "version 2, org_id is a custom claim", lambda s: C(s, o=None, org_id="org_x"), "user_2abc"
    ),
    clerk("expired", lambda s: C(s, exp=PAST), refusals.TokenExpiredError),
    clerk("not valid yet", lambda s: C(s, nbf=FUTURE), refusals.TokenNotYetValidError),
    clerk("issued in the future", lambda s: C(s, iat=FUTURE), refusals.TokenNotYetValidError),
    clerk(
        "other issuer, its own valid key id",
        lambda s: C(s, iss="https://evil.test"),
        refusals.WrongIssuerError,
    ),
    clerk("issuer with a slash more", lambda s: C(s, iss=s.url + "/"), refusals.WrongIssuerError),
    clerk("other origin (azp)", lambda s: C(s, azp="https://evil.test"), refusals.WrongPartyError),
    clerk("no origin (azp)", lambda s: C(s, azp=None), refusals.WrongPartyError),
    clerk("no origin, allowed", lambda s: C(s, azp=None), "org_acme", allow_missing_party=True),
    clerk(
        "an audience where none is expected",
        lambda s: C(s, aud="convex"),
        refusals.WrongAudienceError,
    ),
    clerk(
        "other audience",
        lambda s: C(s, aud="convex"),
        refusals.WrongAudienceError,
        audience="meterline",
    ),
    clerk(
        "no audience where one is expected", C, refusals.WrongAudienceError, audience="meterline"
    ),
    clerk(
        "the expected audience", lambda s: C(s, aud="meterline"), "org_acme", audience="meterline"
    ),
    clerk("session pending", lambda s: C(s, sts="pending"), refusals.SessionPendingError),
    clerk("impersonated, surfaced", lambda s: C(s, act={"sub": "user_admin"}), "org_acme"),
    clerk(
        "impersonated, not allowed",
        lambda s: C(s, act={"sub": "user_admin"}),
        refusals.ImpersonationRefusedError,
        allow_impersonation=False,
    ),
    clerk(
        "organisation demanded, none",
        lambda s: C(s, o=None),
        refusals.OrganisationMissingError,
        require_organisation=True,
    ),
    clerk("alg none", lambda s: forge_none(s.clerk_claims()), refusals.AlgorithmRefusedError),
    clerk(
        "other algorithm, right key",
        lambda s: made.sign(s.clerk_claims(), made.RSA_KEY, "RS512", "rsa-1"),
        refusals.AlgorithmRefusedError,
    ),
    clerk(
        "other algorithm, the issuer's other key",
        lambda s: made.sign(s.clerk_claims(), made.EC_KEY, "ES256", "ec-1"),
        refusals.AlgorithmRefusedError,
    ),
    clerk(
        "HS256 signed with the public key",
        lambda s: made.sign_with_public_key_as_secret(
            s.clerk_claims(), made.to_pem(made.RSA_KEY), "rsa-1"
        ),
        refusals.AlgorithmRefusedError,
    ),
    clerk(
        "key id of a key of another kind",
        lambda s: made.sign(s.clerk_claims(), made.RSA_KEY, "RS256", "ec-1"),
        refusals.AlgorithmRefusedError,
    ),
    clerk(
        "a stranger's key under a known id",
        lambda s: made.sign(s.clerk_claims(), made.OTHER_RSA_KEY, "RS256", "rsa-1"),
        refusals.SignatureInvalidError,
    ),
    clerk(
        "unknown key id",
        lambda s: made.sign(s.clerk_claims(), made.OTHER_RSA_KEY, "RS256", "rsa-9"),
        refusals.KeyUnknownError,
    ),
    clerk(
        "no key id",
        lambda s: made.sign(s.clerk_claims(), made.RSA_KEY, "RS256", None),
        refusals.KeyUnknownError,
    ),
    clerk(
        "claims changed",
        lambda s: made.change_payload(C(s), sub="user_rich"),
        refusals.SignatureInvalidError,
    ),
    clerk(
        "signature cut off", lambda s: C(s).rsplit(".", 1)[0] + ".", refusals.SignatureInvalidError
    ),
    clerk("no token", lambda s: "", refusals.TokenMissingError),
    clerk("not a token", lambda s: "not.a.token", refusals.TokenMalformedError),
    clerk("17,000 characters", lambda s: "x" * 17_000, refusals.TokenMalformedError),
    clerk(
        "no exp",
        lambda s: made.sign(made.without(s.clerk_claims(), "exp"), made.RSA_KEY, "RS256", "rsa-1"),
        refusals.TokenMalformedError,
    ),
    clerk("exp is infinite", lambda s: C(s, exp=float("inf")), refusals.TokenMalformedError),
    clerk("empty sub", lambda s: C(s, sub=""), refusals.TokenMalformedError),
    clerk(
        "control character in sub",
        lambda s: C(s, sub="user\x1fother"),
        refusals.TokenMalformedError,
    ),
    clerk("organisation is no object", lambda s: C(s, o="org_x"), refusals.TokenMalformedError),
    # Supabase Auth
    supabase("valid ES256, organisation in app_metadata", S, "acme"),
    supabase(
        "valid RS256",
        lambda s: made.sign(s.supabase_claims(), made.RSA_KEY, "RS256", "rsa-1"),
        "acme",
        algorithm="RS256",
    ),
    supabase(
        "valid HS256 with the secret",
        lambda s: made.sign(s.supabase_claims(), made.SHARED_SECRET, "HS256", None),
        "acme",
        algorithm="HS256",
        secret=made.SHARED_SECRET,
    ),
    supabase(
        "no organisation field configured",
        S,
        "0b7f3a52-9a53-4c1b-9d8e-6f2f2b1f7f10",
        organisation_field=None,
    ),
    supabase(
        "organisation only in user_metadata",
        lambda s: S(s, **HIDDEN_ORG),
        "0b7f3a52-9a53-4c1b-9d8e-6f2f2b1f7f10",
    ),
    supabase(
        "the same, organisation demanded",
        lambda s: S(s, **HIDDEN_ORG),
        refusals.OrganisationMissingError,
        require_organisation=True,
    ),
    supabase(
        "HS256 where ES256 is pinned",
        lambda s: made.sign(s.supabase_claims(), made.SHARED_SECRET, "HS256", "ec-1"),
        refusals.AlgorithmRefusedError,
    ),
    supabase(
        "HS256 signed with the public key",
        lambda s: made.sign_with_public_key_as_secret(
            s.supabase_claims(), made.to_pem(made.EC_KEY), "ec-1"
        ),
        refusals.AlgorithmRefusedError,
    ),
    supabase(
        "ES256 where HS256 is pinned",
        S,
        refusals.AlgorithmRefusedError,
        algorithm="HS256",
        secret=made.SHARED_SECRET,
    ),
    supabase(
        "HS256 with another secret",
        lambda s: made.sign(s.supabase_claims(), made.SHARED_SECRET[::-1], "HS256", None),
        refusals.SignatureInvalidError,
        algorithm="HS256",
        secret=made.SHARED_SECRET,
    ),
    supabase("alg none", lambda s: forge_none(s.supabase_claims()), refusals.AlgorithmRefusedError),
    supabase("expired", lambda s: S(s, exp=PAST), refusals.TokenExpiredError),
    supabase("issued in the future", lambda s: S(s, iat=FUTURE), refusals.TokenNotYetValidError),
    supabase(
        "another project's issuer",
        lambda s: S(s, iss="https://other.supabase.co/auth/v1"),
        refusals.WrongIssuerError,
    ),
    supabase("audience anon", lambda s: S(s, aud="anon"), refusals.WrongAudienceError),
    supabase("no audience", lambda s: S(s, aud=None), refusals.WrongAudienceError),
    supabase("role service_role", lambda s: S(s, role="service_role"), refusals.WrongRoleError),
    supabase("role anon", lambda s: S(s, role="anon"), refusals.WrongRoleError),
    supabase("anonymous user", lambda s: S(s, is_anonymous=True), refusals.AnonymousRefusedError),
    supabase(
        "anonymous user, allowed", lambda s: S(s, is_anonymous=True), "acme", allow_anonymous=True
    ),
    supabase(
        "is_anonymous is text", lambda s: S(s, is_anonymous="true"), refusals.TokenMalformedError
    ),
    supabase(
        "a stranger's key",
        lambda s: made.sign(s.supabase_claims(), made.OTHER_EC_KEY, "ES256", "ec-1"),
        refusals.SignatureInvalidError,
    ),
    supabase(
        "claims changed",
        lambda s: made.change_payload(S(s), sub="someone"),
        refusals.SignatureInvalidError,
    ),
    supabase(
        "organisation is a number",
        lambda s: S(s, app_metadata={"org_id": 7}),
        refusals.TokenMalformedError,
    ),
    # Auth.js, its own cookie
    authjs("valid", sealed, "acme"),
    authjs("valid, no organisation", lambda: sealed(org=None), "u_9"),
    authjs("valid in four chunks", chunked, "acme"),
    authjs(
        "valid, sealed with the secret before",
        sealed,
        "acme",
        "the next secret",
        made.AUTHJS_SECRET,
    ),
    authjs(
        "chunk 1 of 4 missing",
        lambda: made.without(chunked(), f"{made.AUTHJS_COOKIE}.1"),
        refusals.CookieIncompleteError,
    ),
    authjs(
        "chunk 0 missing",
        lambda: made.without(chunked(), f"{made.AUTHJS_COOKIE}.0"),
        refusals.CookieIncompleteError,
    ),
    authjs(
        "last chunk missing",
        lambda: made.without(chunked(), f"{made.AUTHJS_COOKIE}.3"),
        refusals.TokenMalformedError,
    ),
    authjs(
        "whole and in chunks at once",
        lambda: {**chunked(), **sealed()},
        refusals.CookieIncompleteError,
    ),
    authjs(
        "17 chunks",
        lambda: {f"{made.AUTHJS_COOKIE}.{n}": "x" for n in range(17)},
        refusals.CookieIncompleteError,
    ),
    authjs("another secret", sealed, refusals.SignatureInvalidError, "a stranger's secret"),
    authjs(
        "sealed for another cookie name",
        lambda: {
            made.AUTHJS_COOKIE: made.seal_cookie(
                made.authjs_claims(), cookie="authjs.session-token"
            )
        },
        refusals.SignatureInvalidError,
    ),
    authjs(
        "one letter of the ciphertext changed",
        lambda: {made.AUTHJS_COOKIE: flipped(sealed()[made.AUTHJS_COOKIE], -60)},
        refusals.SignatureInvalidError,
    ),
    authjs(
        "one letter of the tag changed",
        lambda: {made.AUTHJS_COOKIE: flipped(sealed()[made.AUTHJS_COOKIE], -20)},
        refusals.SignatureInvalidError,
    ),
    authjs(
        "encrypted with A256GCM",
        lambda: {made.AUTHJS_COOKIE: made.seal_cookie(made.authjs_claims(), enc="A256GCM")},
        refusals.AlgorithmRefusedError,
    ),
    authjs(
        "compressed",
        lambda: {made.AUTHJS_COOKIE: made.seal_cookie(made.authjs_claims(), zip="DEF")},
        refusals.AlgorithmRefusedError,
    ),
    authjs(
        "a signed token in its place",
        lambda: {made.AUTHJS_COOKIE: app_token()},
        refusals.TokenMalformedError,
    ),
    authjs("expired", lambda: sealed(exp=PAST), refusals.TokenExpiredError),
    authjs("not valid yet", lambda: sealed(nbf=FUTURE), refusals.TokenNotYetValidError),
    authjs("issued in the future", lambda: sealed(iat=FUTURE), refusals.TokenNotYetValidError),
    authjs(
        "exp is not a number (NaN)", lambda: sealed(exp=float("nan")), refusals.TokenMalformedError
    ),
    authjs("no exp", lambda: sealed("exp"), refusals.TokenMalformedError),
    authjs("no sub", lambda: sealed("sub"), refusals.TokenMalformedError),
    authjs(
        "no claims inside",
        lambda: {made.AUTHJS_COOKIE: made.seal_cookie("[1]")},
        refusals.TokenMalformedError,
    ),
    authjs(
        "no JSON inside",
        lambda: {made.AUTHJS_COOKIE: made.seal_cookie("hello")},
        refusals.TokenMalformedError,
    ),
    authjs(
        "an opaque id of a session in a database",
        lambda: {made.AUTHJS_COOKIE: "5b4d7c9e-opaque"},
        refusals.TokenMalformedError,
    ),
    authjs("no cookie", dict, refusals.TokenMissingError),
    # Auth.js, the app's own short token
    app("valid", app_token, "acme"),
    app("valid, no organisation", lambda: app_token(org=None), "u_9"),
    app(
        "valid for a day",
        lambda: app_token(exp=int(time.time()) + 86_400),
        refusals.TokenTooLongLivedError,
    ),
    app("expired", lambda: app_token(exp=PAST, iat=PAST - 60), refusals.TokenExpiredError),
    app("other issuer", lambda: app_token(iss="https://evil.test"), refusals.WrongIssuerError),
    app("other audience", lambda: app_token(aud="billing"), refusals.WrongAudienceError),
    app(
        "a stranger's key",
        lambda: made.sign(made.app_claims(), made.OTHER_EC_KEY, "ES256", None),
        refusals.SignatureInvalidError,
    ),
    app(
        "HS256 signed with the public key",
        lambda: made.sign_with_public_key_as_secret(
            made.app_claims(), made.to_pem(made.EC_KEY), "k"
        ),
        refusals.AlgorithmRefusedError,
    ),
    app("alg none", lambda: forge_none(made.app_claims()), refusals.AlgorithmRefusedError),
]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[list[tuple[Situation, str]]]:
    rows: list[tuple[Situation, str]] = []
    yield rows
    table = Table("layer", "session", "outcome", title=f"{len(rows)} sessions")
    for situation, outcome in rows:
        table.add_row(situation.layer, situation.what, outcome)
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        Console(width=120).print("\n", table)


@pytest.mark.parametrize(
    "situation", SITUATIONS, ids=lambda situation: f"{situation.layer}: {situation.what}"
)
def test_a_session_gives_the_right_customer_or_a_clear_refusal(
    situation: Situation, key_server: KeyServer, outcomes: list[tuple[Situation, str]]
) -> None:
    outcome: str | type[refusals.IdentityError]
    try:
        outcome = situation.verify(key_server).customer
    except refusals.IdentityError as refusal:
        outcome = type(refusal)
    shown = f"customer {outcome}" if isinstance(outcome, str) else outcome.__name__
    outcomes.append((situation, shown))
    assert outcome == situation.expected


def test_an_impersonator_is_named_beside_the_user(key_server: KeyServer) -> None:
    sessions = ClerkSessions(key_server.url, [made.APP_ORIGIN])
    identity = sessions.verify(key_server.clerk_token(act={"sub": "user_admin"}))
    assert (identity.user, identity.impersonator) == ("user_2abc", "user_admin")


def test_an_anonymous_user_is_marked_as_one(key_server: KeyServer) -> None:
    sessions = SupabaseSessions(key_server.url, allow_anonymous=True)
    assert sessions.verify(key_server.supabase_token(is_anonymous=True)).anonymous
    assert not sessions.verify(key_server.supabase_token()).anonymous


@pytest.mark.parametrize(
    ("algorithm", "key"), [("ES256", made.EC_KEY), ("RS256", made.RSA_KEY), ("EdDSA", made.ED_KEY)]
)
def test_an_app_signs_with_the_key_pair_of_its_choice(algorithm: str, key: made.PrivateKey) -> None:
    tokens = AppTokens(
        "https://app.example.test",
        "meterline",
        algorithm=algorithm,  # type: ignore[arg-type] # parametrised
        public_key=made.to_pem(key),
    )
    token = made.sign(made.app_claims(), key, algorithm, None)
    assert tokens.verify(token).customer == "acme"


def test_an_app_may_sign_with_a_secret_made_for_it() -> None:
    tokens = AppTokens(
        "https://app.example.test", "meterline", algorithm="HS256", secret=made.SHARED_SECRET
    )
    token = made.sign(made.app_claims(), made.SHARED_SECRET, "HS256", None)
    assert tokens.verify(token).user == "u_9"


def test_no_refusal_repeats_the_token_or_the_secret(key_server: KeyServer) -> None:
    for situation in SITUATIONS:
        if isinstance(situation.expected, str):
            continue
        with pytest.raises(refusals.IdentityError) as refusal:
            situation.verify(key_server)
        text = str(refusal.value)
        assert text
        assert "eyJ" not in text
        assert made.AUTHJS_SECRET not in text
        assert made.SHARED_SECRET not in text


def test_a_verified_session_attributes_the_calls_made_for_it(key_server: KeyServer) -> None:
    identity = ClerkSessions(key_server.url, [made.APP_ORIGIN]).verify(key_server.clerk_token())
    with acting_for_session(identity) as attribution:
        assert (attribution.customer, attribution.user) == ("org_acme", "user_2abc")
        assert attribution.customer == identity.customer

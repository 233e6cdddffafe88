"""Who may look: links, sessions, forms, and the sign-in of the app itself."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from meterline.adapters.identity_sessions import IdentitySessions
from meterline.adapters.jwt_viewers import JwtViewers
from meterline.adapters.secrets_dashboard import DashboardSecret, read_secret
from meterline.domain.customers import Role
from meterline.domain.sessions import LINK_LIFE, SESSION_LIFE, Viewer
from meterline.errors import (
    ConfigurationError,
    LinkUsedError,
    NotFoundError,
    UnauthenticatedError,
)
from meterline.services.portal_sessions import OpenPortalSession
from meterline.services.sign_in import SignIn
from tests.dashboard_fakes import (
    ADMIN,
    MEMBER,
    FakeAppSessions,
    FakeLinks,
    FakeOverviews,
    FakeTokens,
)

NOW = datetime(2026, 11, 22, 14, 3, 10, tzinfo=UTC)
KEY, OLD_KEY = "n" * 64, "o" * 64


def viewers(*keys: str) -> JwtViewers:
    return JwtViewers(lambda: DashboardSecret(keys or (KEY,), None))


def viewer(**told: Any) -> Viewer:
    made: dict[str, Any] = {
        "customer": "acme",
        "user": "u_1",
        "role": Role.MEMBER,
        "session": "s1",
        "expires_at": NOW + timedelta(minutes=5),
    }
    return Viewer(**{**made, **told})


def test_a_token_says_who_it_was_signed_for() -> None:
    tokens = viewers()
    for told in (viewer(), viewer(user=None, role=Role.ADMIN), viewer(role=None)):
        assert tokens.read(tokens.sign(told, "link", NOW), "link", NOW) == told


@pytest.mark.parametrize("purpose", ["session", "form"])
def test_a_token_is_good_for_its_own_purpose_alone(purpose: str) -> None:
    tokens = viewers()
    with pytest.raises(UnauthenticatedError):
        tokens.read(tokens.sign(viewer(), "link", NOW), purpose, NOW)


def test_a_token_ends_to_the_second() -> None:
    tokens = viewers()
    token = tokens.sign(viewer(), "link", NOW)
    tokens.read(token, "link", NOW + timedelta(minutes=5, seconds=-1))
    with pytest.raises(UnauthenticatedError, match="ended"):
        tokens.read(token, "link", NOW + timedelta(minutes=5))


def test_a_rotated_key_still_reads_what_it_signed_and_signs_no_more() -> None:
    signed_before = viewers(OLD_KEY).sign(viewer(), "link", NOW)
    rotated = viewers(KEY, OLD_KEY)
    assert rotated.read(signed_before, "link", NOW) == viewer()
    with pytest.raises(UnauthenticatedError):
        viewers(OLD_KEY).read(rotated.sign(viewer(), "link", NOW), "link", NOW)
    with pytest.raises(UnauthenticatedError):
        viewers(KEY).read(signed_before, "link", NOW)


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        {},
        {"signing_key": 7},
        {"signing_key": "short"},
        {"signing_key": KEY, "sign_in": 1},
    ],
)
def test_a_secret_that_cannot_be_is_refused(told: object) -> None:
    with pytest.raises(ConfigurationError):
        read_secret("meterline/dashboard", told)


def open_portal(tokens: FakeTokens) -> OpenPortalSession:
    overviews = FakeOverviews()
    overviews.add("acme", users=[ADMIN, MEMBER])
    return OpenPortalSession(overviews, tokens)


@pytest.mark.parametrize(
    ("user", "role", "signed"),
    [
        (None, None, Role.ADMIN),
        ("u_1", None, None),
        ("u_2", Role.ADMIN, None),
        ("stranger", None, Role.MEMBER),
        ("stranger", Role.ADMIN, Role.ADMIN),
    ],
)
def test_a_link_carries_a_role_only_for_whom_the_list_does_not_know(
    user: str | None, role: Role | None, signed: Role | None
) -> None:
    tokens = FakeTokens()
    made = open_portal(tokens)("acme", user, role, NOW)
    found = tokens.read(made.token, "link", NOW)
    assert (found.customer, found.user, found.role) == ("acme", user, signed)
    assert made.expires_at == NOW + LINK_LIFE


def test_there_is_no_link_for_nobody() -> None:
    with pytest.raises(NotFoundError):
        open_portal(FakeTokens())("nobody", None, None, NOW)


def test_a_link_becomes_a_session_of_its_own() -> None:
    tokens = FakeTokens()
    sign_in = SignIn(tokens, FakeLinks(), FakeAppSessions())
    link, other = (open_portal(tokens)("acme", None, None, NOW).token for _ in range(2))
    first, session = sign_in.follow_link(link, None, NOW)
    second, _ = sign_in.follow_link(other, session, NOW)
    assert first.expires_at == NOW + SESSION_LIFE
    assert first.session
    assert first.session != second.session
    assert sign_in.identify(session, None, {}, NOW) == first
    with pytest.raises(UnauthenticatedError):
        sign_in.identify(link, None, {}, NOW)


def test_a_link_works_once_but_for_the_browser_that_followed_it() -> None:
    tokens = FakeTokens()
    sign_in = SignIn(tokens, FakeLinks(), FakeAppSessions())
    link, other = (open_portal(tokens)("acme", None, None, NOW).token for _ in range(2))
    followed = sign_in.follow_link(link, None, NOW)
    assert sign_in.follow_link(link, followed[1], NOW + timedelta(minutes=1)) == followed
    _, others_session = sign_in.follow_link(other, None, NOW)
    for session in (None, "", "made up", others_session, link):
        with pytest.raises(LinkUsedError):
            sign_in.follow_link(link, session, NOW)


def test_nobody_is_signed_in_by_nothing() -> None:
    with pytest.raises(UnauthenticatedError):
        SignIn(FakeTokens(), FakeLinks(), FakeAppSessions()).identify(None, None, {}, NOW)


def test_a_session_of_ours_goes_before_the_apps() -> None:
    tokens = FakeTokens()
    sign_in = SignIn(tokens, FakeLinks(), FakeAppSessions(viewer(customer="theirs")))
    ours = tokens.sign(viewer(), "session", NOW)
    assert sign_in.identify(ours, None, {}, NOW).customer == "acme"
    assert sign_in.identify(None, None, {}, NOW).customer == "theirs"


def test_a_form_belongs_to_one_session() -> None:
    tokens = FakeTokens()
    sign_in = SignIn(tokens, FakeLinks(), FakeAppSessions())
    form = sign_in.sign_form(viewer(), NOW)
    sign_in.check_form(viewer(), form, NOW)
    for other in (viewer(session="s2"), viewer(user="u_2"), viewer(customer="birch")):
        with pytest.raises(UnauthenticatedError):
            sign_in.check_form(other, form, NOW)


class AppSignIn:
    """An app that signs its own tokens with a key pair (the advice for Auth.js)."""

    def __init__(self) -> None:
        self._key = generate_private_key(SECP256R1())
        public = self._key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        self.settings: dict[str, Any] = {
            "kind": "app",
            "issuer": "https://app.example",
            "audience": "meterline",
            "public_key": public.decode(),
        }

    def sign(self, **claims: Any) -> str:
        now_s = int(time.time())
        told = {"iss": "https://app.example", "aud": "meterline", "iat": now_s, "exp": now_s + 60}
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return jwt.encode({**told, **claims}, pem.decode(), algorithm="ES256")

    def sessions(self) -> IdentitySessions:
        return IdentitySessions(lambda: DashboardSecret((KEY,), self.settings))


def find(
    sessions: IdentitySessions, token: str | None, cookies: Mapping[str, str] | None = None
) -> Viewer | None:
    header = f"Bearer {token}" if token is not None else None
    return sessions.find(header, cookies or {}, NOW)


def test_the_apps_own_session_opens_the_dashboard_of_its_organisation() -> None:
    app = AppSignIn()
    found = find(app.sessions(), app.sign(sub="u_1", org="acme"))
    assert found is not None
    assert (found.customer, found.user, found.role) == ("acme", "u_1", Role.MEMBER)
    by_cookie = find(app.sessions(), None, {"__session": app.sign(sub="u_1", org="acme")})
    assert by_cookie == found


def test_a_session_without_an_organisation_is_a_customer_in_person() -> None:
    app = AppSignIn()
    found = find(app.sessions(), app.sign(sub="solo"))
    assert found is not None
    assert (found.customer, found.role) == ("solo", Role.ADMIN)


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.example"},
        {"aud": "another"},
        {"exp": int(time.time()) - 60},
        {"exp": int(time.time()) + 10**6},
        {"sub": 7},
        {"org": ["acme"]},
    ],
)
def test_a_session_of_another_kind_is_refused(claims: dict[str, Any]) -> None:
    app = AppSignIn()
    token = app.sign(**{"sub": "u_1", "org": "acme", **claims})
    with pytest.raises(UnauthenticatedError):
        find(app.sessions(), token)
    with pytest.raises(UnauthenticatedError):
        find(AppSignIn().sessions(), app.sign(sub="u_1"))


def test_without_a_sign_in_of_the_app_only_links_open_it() -> None:
    app = AppSignIn()
    sessions = IdentitySessions(lambda: DashboardSecret((KEY,), None))
    assert find(sessions, app.sign(sub="u_1", org="acme")) is None
    assert find(app.sessions(), None) is None


@pytest.mark.parametrize("kind", ["clerk", "supabase", "authjs", "app", "okta", None])
def test_a_sign_in_that_is_set_up_wrongly_says_so(kind: str | None) -> None:
    settings = {"kind": kind, "colour": "red"}
    sessions = IdentitySessions(lambda: DashboardSecret((KEY,), settings))
    with pytest.raises(ConfigurationError):
        find(sessions, "token")


def test_a_sign_in_that_changes_counts_at_once() -> None:
    app, other = AppSignIn(), AppSignIn()
    kept = {"settings": app.settings}
    sessions = IdentitySessions(lambda: DashboardSecret((KEY,), kept["settings"]))
    assert find(sessions, app.sign(sub="u_1", org="acme")) is not None
    kept["settings"] = json.loads(json.dumps(other.settings))
    assert find(sessions, other.sign(sub="u_1", org="acme")) is not None
    with pytest.raises(UnauthenticatedError):
        find(sessions, app.sign(sub="u_1", org="acme"))

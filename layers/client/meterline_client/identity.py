"""Who is signed in, and so who is billed: sessions of Clerk, Supabase Auth and Auth.js, verified.

Each class is made once, when the app starts, and its `verify` called for each request; it
answers an Identity or raises. Fetching an issuer's keys may block for some seconds, rarely: in
asyncio call it with `asyncio.to_thread`. PyJWT and joserfc are imported when first used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from meterline_client.identity_cookies import decrypt_cookie, join_chunks
from meterline_client.identity_refusals import (
    AnonymousRefusedError,
    IdentityError,
    IdentityRefusedError,
    ImpersonationRefusedError,
    KeysUnavailableError,
    OrganisationMissingError,
    SessionPendingError,
    TokenExpiredError,
    TokenMalformedError,
    TokenMissingError,
    TokenNotYetValidError,
    TokenTooLongLivedError,
    WrongPartyError,
    WrongRoleError,
)
from meterline_client.identity_signatures import (
    Key,
    PinnedKey,
    PublishedKeys,
    SharedSecret,
    verify_signed,
)

__all__ = [
    "AppTokens",
    "AuthJsSessions",
    "ClerkSessions",
    "Identity",
    "IdentityError",
    "IdentityRefusedError",
    "KeysUnavailableError",
    "SupabaseSessions",
    "find_token",
]

_MAX_NAME_CHARS = 255
_AUTHJS_LEEWAY_S = 15  # as Auth.js itself allows when it reads its cookie


@dataclass(frozen=True, slots=True)
class Identity:
    """A signed-in user, as a verified session says it."""

    user: str
    organisation: str | None
    claims: Mapping[str, Any]
    """All claims of the session, verified as a whole; what users can write is in it too."""
    impersonator: str | None = None
    """Who acts as this user, if someone does (Clerk's `act`)."""
    anonymous: bool = False

    @property
    def customer(self) -> str:
        """Who is billed: the organisation if the session has one, else the user alone."""
        return self.organisation or self.user


def find_token(
    authorization: str | None, cookies: Mapping[str, str] | None = None, cookie: str = "__session"
) -> str:
    """The token of an `Authorization: Bearer` header, else of the cookie; TokenMissingError."""
    if authorization is not None:
        scheme, _, token = authorization.strip().partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
    token = (cookies or {}).get(cookie, "")
    if not token:
        raise TokenMissingError("neither a bearer token nor a session cookie was presented")
    return token


class ClerkSessions:
    """Clerk's session tokens: RS256, keys at `{issuer}/.well-known/jwks.json`.

    Clerk sets no audience by default; what ties a token to the app is `azp`, the origin that
    asked for it. Clerk leaves `azp` out when the origin is unknown (apps that are no web page):
    such tokens are accepted only with `allow_missing_party`.
    """

    def __init__(
        self,
        issuer: str,
        authorized_parties: Collection[str],
        *,
        audience: str | None = None,
        allow_missing_party: bool = False,
        allow_impersonation: bool = True,
        require_organisation: bool = False,
        keys: Key | None = None,
    ) -> None:
        if isinstance(authorized_parties, str) or not (authorized_parties or allow_missing_party):
            raise ValueError("authorized_parties lists the app's origins")
        self._issuer = issuer
        self._parties = frozenset(authorized_parties)
        self._audience = audience
        self._allow_missing_party = allow_missing_party
        self._allow_impersonation = allow_impersonation
        self._require_organisation = require_organisation
        self._keys = keys or PublishedKeys(f"{issuer.rstrip('/')}/.well-known/jwks.json")

    def verify(self, token: str | None) -> Identity:
        """The user of a session token; raises IdentityRefusedError or KeysUnavailableError."""
        claims = verify_signed(token, self._keys, "RS256", self._issuer, self._audience)
        party = claims.get("azp")
        if party is None:
            if not self._allow_missing_party:
                raise WrongPartyError("the token names no authorized party")
        elif party not in self._parties:
            raise WrongPartyError("the token was issued to another origin")
        if claims.get("sts") == "pending":
            raise SessionPendingError("the session is pending")
        impersonator = None
        if claims.get("act") is not None:
            impersonator = _name(_object(claims, "act"), "sub")
            if not self._allow_impersonation:
                raise ImpersonationRefusedError("the session is an impersonation")
        organisation = self._read_organisation(claims)
        if self._require_organisation and organisation is None:
            raise OrganisationMissingError("the session has no active organisation")
        return Identity(_name(claims, "sub"), organisation, claims, impersonator)

    def _read_organisation(self, claims: Mapping[str, Any]) -> str | None:
        """`o.id` in version 2. `org_id` is Clerk's own only in version 1: later it is custom."""
        if claims.get("v") is None:
            return _optional_name(claims, "org_id")
        organisation = claims.get("o")
        return None if organisation is None else _name(_object(claims, "o"), "id")


class SupabaseSessions:
    """Supabase Auth's access tokens, with exactly one algorithm for the project.

    ES256 or RS256 with the project's published keys; or HS256 with an old project's `secret`,
    which no key set holds: then no keys are fetched. The organisation is only ever read from
    `app_metadata`; `user_metadata` is the user's to write.
    """

    def __init__(
        self,
        project_url: str,
        *,
        algorithm: Literal["ES256", "RS256", "HS256"] = "ES256",
        secret: str | None = None,
        organisation_field: str | None = None,
        require_organisation: bool = False,
        allow_anonymous: bool = False,
        keys: Key | None = None,
    ) -> None:
        _refuse_mixed_keys(algorithm, public=keys, secret=secret)
        if require_organisation and organisation_field is None:
            raise ValueError("require_organisation needs organisation_field")
        self._issuer = f"{project_url.rstrip('/')}/auth/v1"
        self._algorithm = algorithm
        self._organisation_field = organisation_field
        self._require_organisation = require_organisation
        self._allow_anonymous = allow_anonymous
        if secret is not None:
            self._keys: Key = SharedSecret(secret)
        else:
            self._keys = keys or PublishedKeys(f"{self._issuer}/.well-known/jwks.json")

    def verify(self, token: str | None) -> Identity:
        """The user of an access token; raises IdentityRefusedError or KeysUnavailableError."""
        claims = verify_signed(token, self._keys, self._algorithm, self._issuer, "authenticated")
        if claims.get("role") != "authenticated":
            raise WrongRoleError("the token is not a signed-in user's")
        anonymous = claims.get("is_anonymous", False)
        if not isinstance(anonymous, bool):
            raise TokenMalformedError("is_anonymous is neither true nor false")
        if anonymous and not self._allow_anonymous:
            raise AnonymousRefusedError("the user is anonymous")
        organisation = None
        if self._organisation_field is not None and claims.get("app_metadata") is not None:
            metadata = _object(claims, "app_metadata")
            organisation = _optional_name(metadata, self._organisation_field)
        if self._require_organisation and organisation is None:
            raise OrganisationMissingError(
                f"app_metadata has no {self._organisation_field}; user_metadata does not count"
            )
        return Identity(_name(claims, "sub"), organisation, claims, anonymous=anonymous)


class AuthJsSessions:
    """Auth.js's encrypted session cookie, for an app that keeps its sessions in it.

    Whoever holds the secret can also make sessions, so prefer AppTokens: only then may the
    secret stay in the app. Sessions kept in a database are opaque and cannot be verified here.
    """

    def __init__(
        self,
        secrets: Sequence[str],
        *,
        cookie: str = "__Secure-authjs.session-token",
        organisation_claim: str | None = None,
        require_organisation: bool = False,
        read_time_s: Callable[[], float] = time.time,
    ) -> None:
        if isinstance(secrets, str) or not secrets or not all(secrets):
            raise ValueError("secrets lists the app's AUTH_SECRET, the newest first")
        if require_organisation and organisation_claim is None:
            raise ValueError("require_organisation needs organisation_claim")
        self._secrets = tuple(secrets)
        self._cookie = cookie
        self._organisation_claim = organisation_claim
        self._require_organisation = require_organisation
        self._read_time_s = read_time_s

    def verify(self, cookies: Mapping[str, str]) -> Identity:
        """The user of a request's cookies, by name and decoded; raises IdentityRefusedError."""
        value = join_chunks(cookies, self._cookie)
        claims = decrypt_cookie(value, self._secrets, self._cookie)
        now_s = self._read_time_s()
        if now_s >= _time_s(claims, "exp") + _AUTHJS_LEEWAY_S:
            raise TokenExpiredError("the session has expired")
        for claim in ("nbf", "iat"):
            if claim in claims and _time_s(claims, claim) > now_s + _AUTHJS_LEEWAY_S:
                raise TokenNotYetValidError("the session is not valid yet")
        organisation = None
        if self._organisation_claim is not None:
            organisation = _optional_name(claims, self._organisation_claim)
        if self._require_organisation and organisation is None:
            raise OrganisationMissingError(f"the session has no {self._organisation_claim}")
        return Identity(_name(claims, "sub"), organisation, claims)


class AppTokens:
    """Short tokens that the app itself signs for a signed-in user: the choice for Auth.js.

    The app reads its own session and signs `iss`, `aud`, `sub`, `iat`, `exp` and, where there is
    one, the organisation in `org`, for at most `max_life_s`. With a key pair (`public_key` as PEM)
    this side holds nothing that could make a session; HS256 with a `secret` made for this
    purpose alone is for apps that cannot sign with one.
    """

    def __init__(
        self,
        issuer: str,
        audience: str,
        *,
        algorithm: Literal["ES256", "RS256", "EdDSA", "HS256"] = "ES256",
        public_key: str | None = None,
        secret: str | None = None,
        max_life_s: int = 300,
        require_organisation: bool = False,
    ) -> None:
        _refuse_mixed_keys(algorithm, public=public_key, secret=secret)
        self._issuer = issuer
        self._audience = audience
        self._algorithm = algorithm
        self._max_life_s = max_life_s
        self._require_organisation = require_organisation
        if secret is not None:
            self._key: Key = SharedSecret(secret)
        elif public_key is not None:
            self._key = PinnedKey(public_key)
        else:
            raise ValueError("a public key or a secret is needed")

    def verify(self, token: str | None) -> Identity:
        """The user of an app's token; raises IdentityRefusedError."""
        claims = verify_signed(token, self._key, self._algorithm, self._issuer, self._audience)
        if _time_s(claims, "exp") - _time_s(claims, "iat") > self._max_life_s:
            raise TokenTooLongLivedError(f"the token is valid for more than {self._max_life_s} s")
        organisation = _optional_name(claims, "org")
        if self._require_organisation and organisation is None:
            raise OrganisationMissingError("the token has no org")
        return Identity(_name(claims, "sub"), organisation, claims)


def _refuse_mixed_keys(algorithm: str, *, public: object, secret: str | None) -> None:
    """A public key is known to everyone: as an HS256 secret it would let anyone sign."""
    if (algorithm == "HS256") != (secret is not None):
        raise ValueError("HS256 goes with a secret, and a secret with HS256")
    if secret is not None and public is not None:
        raise ValueError("a secret and public keys are not mixed")
    if algorithm not in ("ES256", "RS256", "EdDSA", "HS256"):
        raise ValueError(f"unknown algorithm {algorithm}")


def _name(claims: Mapping[str, Any], claim: str) -> str:
    """An id as the ledger can keep it: 1 to 255 characters, none of them a control character."""
    value = claims.get(claim)
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME_CHARS:
        raise TokenMalformedError(f"{claim} is no id")
    if not value.isprintable():
        raise TokenMalformedError(f"{claim} holds control characters")
    return value


def _optional_name(claims: Mapping[str, Any], claim: str) -> str | None:
    return None if claims.get(claim) is None else _name(claims, claim)


def _object(claims: Mapping[str, Any], claim: str) -> Mapping[str, Any]:
    value = claims.get(claim)
    if not isinstance(value, dict):
        raise TokenMalformedError(f"{claim} is not an object")
    return value


def _time_s(claims: Mapping[str, Any], claim: str) -> float:
    value = claims.get(claim)
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise TokenMalformedError(f"{claim} is not a time")
    return value

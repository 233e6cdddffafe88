"""Check a signed token (JWS) against one issuer's key and the one algorithm pinned for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from meterline_client.identity_refusals import (
    AlgorithmRefusedError,
    KeysUnavailableError,
    KeyUnknownError,
    PackageMissingError,
    SignatureInvalidError,
    TokenExpiredError,
    TokenMalformedError,
    TokenMissingError,
    TokenNotYetValidError,
    WrongAudienceError,
    WrongIssuerError,
)

if TYPE_CHECKING:
    from types import ModuleType

    import jwt

FETCH_TIMEOUT_S = 2.0
MAX_TOKEN_CHARS = 16_384
_LEEWAY_S = 10
_MIN_SECRET_BYTES = 32  # RFC 7518, 3.2: an HS256 key is no shorter than its hash


class Key(Protocol):
    """Finds the key that a token's header names."""

    def find(self, header: Mapping[str, Any]) -> jwt.PyJWK | str | bytes:
        """The key; raises KeyUnknownError or KeysUnavailableError."""


class PublishedKeys:
    """The keys an issuer publishes as a JWKS, fetched when first needed and kept 5 minutes.

    An unknown key id fetches again, since keys rotate, but at most once per `cooldown_s`; a
    failed fetch is not repeated for `failure_cooldown_s`. So tokens with invented key ids can
    neither flood the issuer nor hold up users whose keys are known. Safe for threads; a fetch
    blocks for `FETCH_TIMEOUT_S` at most for each address it tries.
    """

    def __init__(self, url: str, cooldown_s: float = 30, failure_cooldown_s: float = 5) -> None:
        _refuse_plain_http(url)
        self.url = url
        self._cooldown_s = cooldown_s
        self._failure_cooldown_s = failure_cooldown_s
        self._client: jwt.PyJWKClient | None = None
        self._failed_at_s: float | None = None
        self._lock = threading.Lock()

    def find(self, header: Mapping[str, Any]) -> jwt.PyJWK:
        """The published key with the header's id; raises KeyUnknownError, KeysUnavailableError."""
        jwt = import_jwt()
        kid = header.get("kid")
        if not isinstance(kid, str) or not kid:
            raise KeyUnknownError("the token names no key")
        client = self._open()
        known = self._known(client, kid)
        if known is not None:
            return known
        with self._lock:
            failed_at_s = self._failed_at_s
            if failed_at_s is not None and (
                time.monotonic() - failed_at_s < self._failure_cooldown_s
            ):
                raise KeysUnavailableError(f"the keys at {self.url} could not be fetched just now")
            try:
                key = client.get_signing_key(kid)
            except (
                jwt.PyJWKSetError,
                jwt.PyJWKClientConnectionError,
                ValueError,
                OSError,
            ) as error:
                self._failed_at_s = time.monotonic()
                raise KeysUnavailableError(f"the keys at {self.url} cannot be read") from error
            except jwt.PyJWKClientError as error:
                if client.jwk_set_cache is None or client.jwk_set_cache.get() is None:
                    self._failed_at_s = time.monotonic()
                    raise KeysUnavailableError(f"{self.url} holds no keys") from error
                raise KeyUnknownError("the issuer publishes no key of that id") from error
            self._failed_at_s = None
            return key

    def _open(self) -> jwt.PyJWKClient:
        if self._client is None:
            self._client = import_jwt().PyJWKClient(
                self.url, timeout=FETCH_TIMEOUT_S, cooldown_duration=self._cooldown_s
            )
        return self._client

    def _known(self, client: jwt.PyJWKClient, kid: str) -> jwt.PyJWK | None:
        """A key that is at hand, without waiting for a fetch that another thread makes."""
        cached = client.jwk_set_cache.get() if client.jwk_set_cache is not None else None
        if cached is None:
            return None
        signing = [key for key in cached.keys if key.public_key_use in ("sig", None)]
        return client.match_kid(signing, kid)


class SharedSecret:
    """A secret that signs and verifies (HS256). Whoever holds it can also make sessions."""

    def __init__(self, secret: str) -> None:
        if len(secret.encode()) < _MIN_SECRET_BYTES:
            raise ValueError(f"an HS256 secret has at least {_MIN_SECRET_BYTES} bytes")
        if "-----BEGIN" in secret:
            raise ValueError("a public key is no secret")
        self._secret = secret

    def find(self, header: Mapping[str, Any]) -> str:  # noqa: ARG002 - a secret has no id
        """The secret, whatever the header names."""
        return self._secret


class PinnedKey:
    """One public key, as PEM, that the app was configured with."""

    def __init__(self, pem: str) -> None:
        if "PRIVATE" in pem or "-----BEGIN" not in pem:
            raise ValueError("a public key in PEM form is needed")
        self._pem = pem

    def find(self, header: Mapping[str, Any]) -> str:  # noqa: ARG002 - there is only this key
        """The key, whatever the header names."""
        return self._pem


def verify_signed(
    token: str | None, key: Key, algorithm: str, issuer: str, audience: str | None
) -> Mapping[str, Any]:
    """The claims of a token signed with `key`, for this issuer and audience, within its time.

    Requires `exp`, `iat`, `iss` and `sub`, and `aud` when an audience is given; a token with an
    audience is refused where none is expected. Leeway for clocks: 10 s. Raises an IdentityError.
    """
    jwt = import_jwt()
    if not token:
        raise TokenMissingError("no token was presented")
    if len(token) > MAX_TOKEN_CHARS:
        raise TokenMalformedError("the token is too long")
    try:
        header = jwt.get_unverified_header(token)
        if header.get("alg") != algorithm:
            # Checked before any key is looked for: a token must not choose how it is verified.
            raise AlgorithmRefusedError(f"only {algorithm} is accepted from this issuer")
        claims: dict[str, Any] = jwt.decode(
            token,
            key.find(header),
            algorithms=[algorithm],
            issuer=issuer,
            audience=audience,
            leeway=_LEEWAY_S,
            options={"require": ["exp", "iat", "iss", "sub"]},
        )
    except jwt.ExpiredSignatureError as error:
        raise TokenExpiredError("the token has expired") from error
    except jwt.ImmatureSignatureError as error:
        raise TokenNotYetValidError("the token is not valid yet") from error
    except jwt.InvalidIssuerError as error:
        raise WrongIssuerError("the token has another issuer") from error
    except jwt.InvalidAudienceError as error:
        raise WrongAudienceError("the token has another audience") from error
    except jwt.MissingRequiredClaimError as error:
        if error.claim == "aud":
            raise WrongAudienceError("the token has no audience") from error
        raise TokenMalformedError(f"the token has no {error.claim}") from error
    except jwt.InvalidAlgorithmError as error:
        raise AlgorithmRefusedError("the key is not one for this algorithm") from error
    except (jwt.InvalidSignatureError, jwt.InvalidKeyError) as error:
        raise SignatureInvalidError("the signature is not the issuer's") from error
    except (jwt.InvalidTokenError, OverflowError) as error:
        raise TokenMalformedError("the token cannot be read") from error
    return claims


def import_jwt() -> ModuleType:
    """PyJWT with cryptography, imported only when a token is verified."""
    try:
        import cryptography  # noqa: F401 - PyJWT without it knows HS256 only
        import jwt
    except ModuleNotFoundError as error:
        raise PackageMissingError("verifying sessions needs the package pyjwt[crypto]") from error
    return jwt


def _refuse_plain_http(url: str) -> None:
    """Keys fetched in the clear are anybody's keys; only this machine is excepted."""
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        raise ValueError(f"keys are fetched over https only, not from {url}")

"""Read an encrypted session cookie of Auth.js (JWE, `dir` with `A256CBC-HS512`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from meterline_client.identity_refusals import (
    AlgorithmRefusedError,
    CookieIncompleteError,
    PackageMissingError,
    SignatureInvalidError,
    TokenMalformedError,
    TokenMissingError,
)

_MAX_CHUNKS = 16
_KEY_BYTES = 64


def join_chunks(cookies: Mapping[str, str], name: str) -> str:
    """The cookie's value, whole or joined from `<name>.0`, `<name>.1`, …

    Raises TokenMissingError and CookieIncompleteError. A missing last chunk cannot be seen here:
    what is left then does not decrypt.
    """
    whole = cookies.get(name)
    numbers = sorted(
        int(suffix)
        for suffix in (
            key.removeprefix(f"{name}.") for key in cookies if key.startswith(f"{name}.")
        )
        if suffix.isascii() and suffix.isdecimal() and str(int(suffix)) == suffix
    )
    if not numbers:
        if not whole:
            raise TokenMissingError("no session cookie was presented")
        return whole
    if whole:
        raise CookieIncompleteError("the session cookie is there both whole and in chunks")
    if numbers != list(range(len(numbers))) or len(numbers) > _MAX_CHUNKS:
        raise CookieIncompleteError("the session cookie lacks a chunk")
    return "".join(cookies[f"{name}.{number}"] for number in numbers)


def decrypt_cookie(value: str, secrets: tuple[str, ...], name: str) -> Mapping[str, Any]:
    """The claims inside, whose times are not yet checked; raises an IdentityRefusedError.

    The cookie's name is part of the key, so a cookie is only good under its own name. Several
    secrets allow for their rotation: each is tried.
    """
    try:
        from joserfc import errors, jwe
        from joserfc.jwk import OctKey
    except ModuleNotFoundError as error:
        raise PackageMissingError("Auth.js cookies need the package joserfc") from error
    # The allowed list holds no `zip`: a compressed session is refused, not inflated.
    registry = jwe.JWERegistry(algorithms=["dir", "A256CBC-HS512"])
    for secret in secrets:
        key = OctKey.import_key(derive_key(secret, name))
        try:
            plaintext = jwe.decrypt_compact(value, key, registry=registry).plaintext
        except errors.UnsupportedAlgorithmError as error:
            raise AlgorithmRefusedError("only dir with A256CBC-HS512 is accepted") from error
        except (errors.DecodeError, errors.InvalidEncryptedKeyError):
            continue
        except (errors.JoseError, ValueError) as error:
            raise TokenMalformedError("the session cookie cannot be read") from error
        try:
            claims = json.loads(plaintext or b"")
        except ValueError as error:
            raise TokenMalformedError("the session cookie holds no JSON") from error
        if not isinstance(claims, dict):
            raise TokenMalformedError("the session cookie holds no claims")
        return claims
    raise SignatureInvalidError("the session cookie was not made with this app's secret")


@lru_cache(maxsize=16)
def derive_key(secret: str, name: str) -> bytes:
    """The 64 bytes that Auth.js derives from its secret and the cookie's name."""
    try:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ModuleNotFoundError as error:
        raise PackageMissingError("Auth.js cookies need the package cryptography") from error
    info = f"Auth.js Generated Encryption Key ({name})"
    return HKDF(SHA256(), _KEY_BYTES, salt=name.encode(), info=info.encode()).derive(
        secret.encode()
    )

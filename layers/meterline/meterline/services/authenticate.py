"""Tell from a call's `Authorization` header who calls, and whether they may."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from meterline.domain.api_keys import MAX_KEY_LENGTH, ApiKey, Scope, hash_key
from meterline.errors import ForbiddenError, UnauthenticatedError
from meterline.ports import ApiKeys

Admit = Callable[[ApiKey, datetime], None]
"""Count a call of a key, or raise `RateLimitedError` (`AdmitCalls`)."""


class Authenticate:
    """Checks `Authorization: Bearer <api key>`."""

    def __init__(self, keys: ApiKeys, admit: Admit, now: Callable[[], datetime]) -> None:
        self._keys = keys
        self._admit = admit
        self._now = now

    def __call__(self, header: str | None, scope: Scope) -> ApiKey:
        """The caller's key; raises `UnauthenticatedError`, `RateLimitedError`, `ForbiddenError`."""
        kind, _, key = (header or "").partition(" ")
        key = key.strip()
        if kind.lower() != "bearer" or not key:
            raise UnauthenticatedError("Send Authorization: Bearer followed by an API key.")
        found = self._keys.find(hash_key(key)) if len(key) <= MAX_KEY_LENGTH else None
        now = self._now()
        if found is None or not found.is_valid(now):
            raise UnauthenticatedError("This API key is not known.")
        self._admit(found, now)
        if scope not in found.scopes:
            raise ForbiddenError(f"This call needs an API key with the scope {scope}.")
        return found

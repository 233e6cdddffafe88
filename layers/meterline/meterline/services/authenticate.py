"""Tell from a call's `Authorization` header who calls, and whether they may."""

from __future__ import annotations

from meterline.domain.api_keys import MAX_KEY_LENGTH, ApiKey, Scope, hash_key
from meterline.errors import ForbiddenError, UnauthenticatedError
from meterline.ports import ApiKeys


class Authenticate:
    """Checks `Authorization: Bearer <api key>`."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    def __call__(self, header: str | None, scope: Scope) -> ApiKey:
        """The caller's key; raises `UnauthenticatedError` or `ForbiddenError`."""
        kind, _, key = (header or "").partition(" ")
        key = key.strip()
        if kind.lower() != "bearer" or not key:
            raise UnauthenticatedError("Send Authorization: Bearer followed by an API key.")
        found = self._keys.find(hash_key(key)) if len(key) <= MAX_KEY_LENGTH else None
        if found is None or found.revoked_at is not None:
            raise UnauthenticatedError("This API key is not known.")
        if scope not in found.scopes:
            raise ForbiddenError(f"This call needs an API key with the scope {scope}.")
        return found

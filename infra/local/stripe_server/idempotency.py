"""Idempotency-Key: one execution per key for 24 hours, its answer repeated to the letter.

Kept: any answer once the endpoint began to execute, 4xx and 500 too. Not kept: refused keys,
bad parameters, 409 and 429 (API reference, idempotent requests).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infra.local.stripe_server.errors import StripeError, idempotency_mismatch, invalid_request

KEPT_S = 24 * 3600
_MAX_KEY = 255


@dataclass(slots=True)
class _Kept:
    method: str
    path: str
    params: Any
    at_s: float
    status: int | None = None
    body: bytes = b""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Replay:
    """An answer given before under the same key."""

    status: int
    body: bytes
    request_id: str


class IdempotencyKeys:
    """The keys of the last 24 hours."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def begin(self, key: str, method: str, path: str, params: Any, now_s: float) -> Replay | None:
        """Claim a key, or give the answer it already has; mismatch and concurrency are errors."""
        if len(key) > _MAX_KEY:
            raise invalid_request("Idempotency keys may be at most 255 characters.")
        kept = self._kept.get(key)
        if kept is None or now_s - kept.at_s >= KEPT_S:
            self._kept[key] = _Kept(method, path, params, now_s)
            return None
        if (kept.method, kept.path) != (method, path):
            raise idempotency_mismatch(
                "Keys for idempotent requests can only be used for the same endpoint they were "
                f"first used for ('{kept.path}' vs. '{path}'). Try using a key other than '{key}' "
                "if you meant to execute a different request."
            )
        if kept.params != params:
            raise idempotency_mismatch(
                "Keys for idempotent requests can only be used with the same parameters they "
                f"were first used with. Try using a key other than '{key}' if you meant to "
                "execute a different request."
            )
        if kept.status is None:
            raise StripeError(
                409,
                "idempotency_error",
                "There is currently another in-progress request using this Idempotent Key (that "
                "probably means you submitted twice, and the other request is still going "
                f"through): {key}. Please try again later.",
                code="idempotency_key_in_use",
            )
        return Replay(kept.status, kept.body, kept.request_id)

    def keep(self, key: str, status: int, body: bytes, request_id: str) -> None:
        """Keep the answer for repeats."""
        kept = self._kept[key]
        kept.status, kept.body, kept.request_id = status, body, request_id

    def release(self, key: str) -> None:
        """Give up a claim: nothing was executed."""
        self._kept.pop(key, None)

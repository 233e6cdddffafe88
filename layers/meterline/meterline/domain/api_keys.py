"""API keys: who may call what. A key is shown once, when it is made; only its hash is kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

KEY_PREFIX = "ml_key_"
MAX_KEY_LENGTH = 200
DEFAULT_CALLS_PER_S = 500
"""What a key may make, where it was not made with another number."""


class Scope(StrEnum):
    """What a key opens."""

    USAGE = "usage"
    """Reporting and authorizing usage, from an app's backend."""
    ADMIN = "admin"
    """Customers, their limits and their numbers."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is kept: by its hash."""

    hash: str
    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    revoked_at: datetime | None = None
    expires_at: datetime | None = None
    """Of a key that was rotated: until then the old one counts beside the new one."""
    calls_per_s: int = DEFAULT_CALLS_PER_S

    def is_valid(self, now: datetime) -> bool:
        """Whether it opens anything."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def hash_key(key: str) -> str:
    """The hash under which a key is kept. Keys are 256 random bits, so no salt is needed."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()

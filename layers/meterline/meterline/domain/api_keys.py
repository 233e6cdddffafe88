"""API keys: who may call what. A key is shown once, when it is made; only its hash is kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

KEY_PREFIX = "ml_key_"
MAX_KEY_LENGTH = 200


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


def hash_key(key: str) -> str:
    """The hash under which a key is kept. Keys are 256 random bits, so no salt is needed."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()

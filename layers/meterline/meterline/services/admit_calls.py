"""Let an API key make so many calls a second and no more: protection against a client gone wild.

Each process counts for itself and tells a shared counter now and then, which answers what all of
them have let in. So a burst can pass its bound by what the processes have not told yet: at most
`SHARE_AT` calls each, and what one of them takes within a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from meterline.domain.api_keys import ApiKey
from meterline.errors import RateLimitedError, StorageError, StorageUnavailableError
from meterline.ports import KeyCalls

SLOT_S = 10
"""Calls are counted by slots of so many seconds: a burst within one is taken."""
SHARE_AT = 20
"""Calls that a process takes before it tells of them: a single call costs no write."""
SHARE_EVERY_S = 1.0
SEEN_EVERY_S = 3600.0
"""How often a process tells that a key is in use, however seldom it is used."""
_MOST_KEYS = 10_000


@dataclass(slots=True)
class _Count:
    slot: int = 0
    told: int = 0
    """Of all processes in this slot, when they were last asked about."""
    untold: int = 0
    told_at_s: float = -math.inf


class AdmitCalls:
    """Counts the calls of known keys. It never fails with its storage: then it counts alone."""

    def __init__(self, calls: KeyCalls) -> None:
        self._calls = calls
        self._counts: dict[str, _Count] = {}

    def __call__(self, key: ApiKey, now: datetime) -> None:
        """Count a call, or raise `RateLimitedError`. At most one write a second."""
        now_s = now.timestamp()
        slot = int(now_s) // SLOT_S
        count = self._counts.get(key.hash)
        if count is None:
            if len(self._counts) >= _MOST_KEYS:
                self._counts.clear()
            count = self._counts[key.hash] = _Count()
        if count.slot != slot:
            count.slot, count.told, count.untold = slot, 0, 0
        most = key.calls_per_s * SLOT_S
        if count.told + count.untold < most:
            count.untold += 1
            if _is_due(count, most, now_s):
                self._tell(key, count, now)
            if count.told + count.untold <= most:
                return
        raise RateLimitedError(
            f"This API key may make {key.calls_per_s} calls a second.",
            math.ceil((slot + 1) * SLOT_S - now_s),
        )

    def _tell(self, key: ApiKey, count: _Count, now: datetime) -> None:
        count.told_at_s = now.timestamp()
        try:
            count.told = self._calls.add(key.hash, count.slot, count.untold, now)
        except (StorageError, StorageUnavailableError):
            return  # A limit that nobody can look up must not stop what can still be written.
        count.untold = 0


def _is_due(count: _Count, most: int, now_s: float) -> bool:
    since_s = now_s - count.told_at_s
    enough = min(SHARE_AT, max(1, most // 10))
    return since_s >= SEEN_EVERY_S or (count.untold >= enough and since_s >= SHARE_EVERY_S)

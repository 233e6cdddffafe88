"""The server's clock: real time plus an offset that tests move, or the time that they set."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class ServerClock:
    """Seconds since the epoch, moved by `offset_s`; test clocks live beside it."""

    offset_s: float = 0.0
    _stands_at_s: float | None = None

    def now_s(self) -> int:
        """Whole seconds, as Stripe's timestamps are."""
        return int(self.now_exact_s())

    def now_exact_s(self) -> float:
        """With the fraction, for lags and windows shorter than a second."""
        if self._stands_at_s is not None:
            return self._stands_at_s
        return time.time() + self.offset_s

    def advance(self, seconds: float) -> None:
        """Move forward (or back, for a clock that jumps)."""
        if self._stands_at_s is not None:
            self._stands_at_s += seconds
        self.offset_s += seconds

    def set_to(self, timestamp_s: float) -> None:
        """Make this the time now: it stands still, however long the machine takes, until moved."""
        self._stands_at_s = timestamp_s
        self.offset_s = timestamp_s - time.time()

    def reset(self) -> None:
        """Back to real time."""
        self._stands_at_s, self.offset_s = None, 0.0

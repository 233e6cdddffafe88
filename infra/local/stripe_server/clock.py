"""The server's clock: real time plus an offset that tests move; test clocks live beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class ServerClock:
    """Seconds since the epoch, moved by `offset_s`."""

    offset_s: float = 0.0

    def now_s(self) -> int:
        """Whole seconds, as Stripe's timestamps are."""
        return int(self.now_exact_s())

    def now_exact_s(self) -> float:
        """With the fraction, for lags and windows shorter than a second."""
        return time.time() + self.offset_s

    def advance(self, seconds: float) -> None:
        """Move forward (or back, for a clock that jumps)."""
        self.offset_s += seconds

    def set_to(self, timestamp_s: float) -> None:
        """Make this the time now; it runs on from there."""
        self.offset_s = timestamp_s - time.time()

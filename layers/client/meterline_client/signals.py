"""Loud signals: what an operator must hear of, as a log line, a counter and a callback."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

logger = logging.getLogger("meterline_client")

LEVELS: Mapping[str, int] = MappingProxyType(
    {
        "authorization_unavailable": logging.WARNING,
        "cache_failed": logging.WARNING,
        "clock_ahead": logging.ERROR,
        "event_lost": logging.CRITICAL,
        "event_rejected": logging.ERROR,
        "line_damaged": logging.ERROR,
        "sender_failed": logging.CRITICAL,
        "service_refused": logging.ERROR,
        "service_unreachable": logging.WARNING,
        "spool_filling": logging.ERROR,
        "spool_full": logging.CRITICAL,
        "spool_unwritable": logging.CRITICAL,
        "usage_partial": logging.WARNING,
        "usage_unknown": logging.ERROR,
        "path_unmetered": logging.ERROR,
    }
)
"""Every signal there is, and how loud it is in the log."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One thing that an operator must hear of; `detail` holds ids and numbers, never content."""

    name: str
    message: str
    detail: Mapping[str, object] = field(default_factory=dict)


class SignalBoard:
    """Counts signals, logs them and hands them to the app's own callback."""

    def __init__(self, on_signal: Callable[[Signal], None] | None = None) -> None:
        self._on_signal = on_signal
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def counts(self) -> dict[str, int]:
        """How often each signal was raised since the start of this process."""
        with self._lock:
            return dict(self._counts)

    def raise_signal(self, name: str, message: str, **detail: object) -> None:
        """Raise one signal. A callback that fails is logged: it must not cost a call its result."""
        with self._lock:
            self._counts[name] += 1
        logger.log(LEVELS[name], "%s: %s", name, message, extra={"meterline": detail})
        if self._on_signal is not None:
            try:
                self._on_signal(Signal(name, message, detail))
            except Exception:
                # The callback is the app's, and may raise anything.
                logger.exception("the callback for signals failed on %s", name)

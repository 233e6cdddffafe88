"""Loud signals: what an operator must hear of, as a log line, a counter and a callback."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

WARNING, ERROR, CRITICAL = 30, 40, 50
"""The levels of `logging`, which is loaded with the first signal: it costs 5 ms."""

LEVELS: Mapping[str, int] = MappingProxyType(
    {
        "authorization_unavailable": WARNING,
        "cache_failed": WARNING,
        "clock_ahead": ERROR,
        "event_lost": CRITICAL,
        "event_rejected": ERROR,
        "line_damaged": ERROR,
        "sender_failed": CRITICAL,
        "service_refused": ERROR,
        "service_unreachable": WARNING,
        "spool_filling": ERROR,
        "spool_full": CRITICAL,
        "spool_unwritable": CRITICAL,
        "usage_partial": WARNING,
        "usage_unknown": ERROR,
        "path_unmetered": ERROR,
    }
)
"""Every signal there is, and how loud it is in the log."""


class Signal(NamedTuple):
    """One thing that an operator must hear of; `detail` holds ids and numbers, never content."""

    name: str
    message: str
    detail: Mapping[str, object] = MappingProxyType({})


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
        import logging

        logger = logging.getLogger("meterline_client")
        with self._lock:
            self._counts[name] += 1
        logger.log(LEVELS[name], "%s: %s", name, message, extra={"meterline": detail})
        if self._on_signal is not None:
            try:
                self._on_signal(Signal(name, message, detail))
            except Exception:
                # The callback is the app's, and may raise anything.
                logger.exception("the callback for signals failed on %s", name)

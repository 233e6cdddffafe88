"""Cuts: moments within a day at which a billing period begins or ends.

Totals are kept by the day. A day with a cut is counted in two parts, so that what lies before a
period on its first day is known without reading its events.
"""

from __future__ import annotations

from datetime import datetime, time
from typing import NamedTuple

from meterline.domain.periods import Period

_MIDNIGHT = time()


class Cut(NamedTuple):
    """A moment within a day."""

    at_s: int
    mark: str
    """`HHMMSS`, UTC."""


def mark_cut(at: datetime) -> str:
    """How the moment is written among the counters of its day."""
    return f"{at:%H%M%S}"


def list_cuts(period: Period) -> dict[str, Cut]:
    """Where a period begins and ends within a day, by day (`YYYY-MM-DD`).

    A day that it cuts twice is not in it: the little that it holds is read from the ledger.
    """
    if period.start.date() == period.end.date():
        return {}
    return {
        f"{edge:%Y-%m-%d}": Cut(int(edge.timestamp()), mark_cut(edge))
        for edge in (period.start, period.end)
        if edge.time() != _MIDNIGHT
    }

"""Periods as answers show them."""

from __future__ import annotations

from meterline.domain.periods import Period
from meterline.domain.times import format_time


def write_period(period: Period) -> dict[str, str]:
    """A period; its end is not in it."""
    return {"start": format_time(period.start), "end": format_time(period.end)}

"""Billing cycles: where a period ends, from an anchor that keeps its day of the month.

An anchor on the 31st bills on the last day of a shorter month and on the 31st again afterwards
(Stripe's documentation, billing cycle anchor).
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta

_FIXED_S = {"day": 86_400, "week": 7 * 86_400}


def _shift_months(anchor_s: int, months: int) -> int:
    anchor = datetime.fromtimestamp(anchor_s, UTC)
    index = anchor.year * 12 + anchor.month - 1 + months
    year, month = divmod(index, 12)
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return int(anchor.replace(year=year, month=month + 1, day=day).timestamp())


def shift(anchor_s: int, interval: str, count: int) -> int:
    """The anchor moved by `count` intervals (day, week, month, year), either way."""
    if interval in _FIXED_S:
        return anchor_s + int(timedelta(seconds=_FIXED_S[interval] * count).total_seconds())
    return _shift_months(anchor_s, count * (12 if interval == "year" else 1))


def next_boundary(anchor_s: int, interval: str, interval_count: int, after_s: int) -> int:
    """The first boundary of the cycle strictly after a time."""
    longest_s = {"day": 86_400, "week": 604_800, "month": 31 * 86_400, "year": 366 * 86_400}
    cycles = (after_s - anchor_s) // (longest_s[interval] * interval_count) - 1
    boundary = shift(anchor_s, interval, cycles * interval_count)
    while boundary <= after_s:
        cycles += 1
        boundary = shift(anchor_s, interval, cycles * interval_count)
    return boundary

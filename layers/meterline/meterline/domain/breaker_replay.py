"""The breaker on past usage: whom it would have frozen, and when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from meterline.domain.authorizations import PACE_SLOTS, SLOT_S
from meterline.domain.breaker import (
    HISTORY_DAYS,
    BreakerRule,
    DayUse,
    Trip,
    find_threshold,
    find_typical_day,
    sum_last_hour,
)

_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class ReplayedTrip:
    """One trip, at a second since 1970, with what had been used until then."""

    at_s: int
    trip: Trip
    used_before: int
    """Sub-units from the start of the replay to the trip, with the event that tripped."""


def replay_usage(
    uses: Iterable[tuple[int, int]], rule: BreakerRule, meter: str
) -> Iterator[ReplayedTrip]:
    """Trips over one customer's events (second, sub-units) in the order of time.

    After each trip the customer counts as unfrozen at once, as if somebody had said that all is
    well: so each trip is one more that a person would have had to look at.
    """
    hours: dict[int, int] = {}
    pace: dict[int, int] = {}
    today, threshold, typical = -1, 0, 0
    since_s = used = 0
    for at_s, sub_units in uses:
        day = at_s // _DAY_S
        if day != today:
            today = day
            days = _list_days(hours, day)
            threshold = find_threshold(days, rule, meter)
            typical = find_typical_day(days, rule.floors[meter])
        hours[at_s // 3600] = hours.get(at_s // 3600, 0) + sub_units
        slot = at_s // SLOT_S
        if slot not in pace:
            pace = {kept: size for kept, size in pace.items() if kept > slot - PACE_SLOTS}
        pace[slot] = pace.get(slot, 0) + sub_units
        used += sub_units
        hour = sum_last_hour(pace, at_s, since_s)
        if hour >= threshold:
            yield ReplayedTrip(at_s, Trip(hour, typical, threshold), used)
            since_s = at_s


def _list_days(hours: dict[int, int], day: int) -> list[DayUse]:
    first = (day - HISTORY_DAYS) * 24
    for hour in [hour for hour in hours if hour < first]:
        del hours[hour]
    days = []
    for each in range(day - HISTORY_DAYS, day):
        found = [hours.get(each * 24 + hour, 0) for hour in range(24)]
        if any(found):
            days.append(DayUse(sum(found), max(found)))
    return days

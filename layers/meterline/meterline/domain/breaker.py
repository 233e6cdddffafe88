"""The breaker: when an hour's usage is so far above a customer's days that something must be wrong.

The rule is ten times a typical day within one hour, where typical is the median of the days with
usage among the last 28: a median shrugs at a launch day or at the runaway itself, and days off do
not make a weekday customer look small. Two things lift it:
- a floor, so that a new customer's second try is not a runaway;
- habit: twice the second-highest daily peak hour of those 28 days. A batch job that was there on
  two days is expected on a third; one incident alone teaches nothing.
All amounts are whole sub-units of the meter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median_low

from meterline.domain.authorizations import SLOT_S

HISTORY_DAYS = 28
"""Four whole weeks, so that every weekday counts alike."""
HOUR_SLOTS = 3600 // SLOT_S
"""The running slot and those before it: 55 to 60 minutes, never more than an hour."""


class BreakerMode(StrEnum):
    """What happens when it trips."""

    FREEZE = "freeze"
    WARN = "warn"
    """Say so and do nothing: for tuning."""


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """How far is too far."""

    multiple: int
    """Typical days in one hour."""
    habit_multiple: int
    """Times the second-highest peak hour."""
    floors: Mapping[str, int]
    """By meter: what a typical day is at least."""
    mode: BreakerMode

    def least(self, meter: str) -> int:
        """Below this it never trips, whatever the history: no history need be read."""
        return self.multiple * self.floors[meter]


@dataclass(frozen=True, slots=True)
class DayUse:
    """One UTC day of a customer's meter."""

    sub_units: int
    peak_hour: int


@dataclass(frozen=True, slots=True)
class Trip:
    """The hour that tripped the breaker, and what it was held against."""

    hour: int
    typical_day: int
    threshold: int


def find_typical_day(days: Iterable[DayUse], floor: int) -> int:
    """The median of the days that saw usage, and at least the floor."""
    active = [day.sub_units for day in days if day.sub_units > 0]
    return max(floor, median_low(active)) if active else floor


def find_threshold(days: Sequence[DayUse], rule: BreakerRule, meter: str) -> int:
    """What one hour must reach to trip; `days` are the last 28 whole days, without today."""
    peaks = sorted((day.peak_hour for day in days), reverse=True)
    habit = peaks[1] if len(peaks) > 1 else 0
    typical = find_typical_day(days, rule.floors[meter])
    return max(rule.multiple * typical, rule.habit_multiple * habit)


def sum_last_hour(pace: Mapping[int, int], now_s: int, since_s: int = 0) -> int:
    """Usage of the last hour, of slots that began at `since_s` or later.

    After an unfreeze that is its moment: the usage that tripped the breaker does not trip it again.
    """
    newest = now_s // SLOT_S
    oldest = max(newest - HOUR_SLOTS + 1, -(-since_s // SLOT_S))
    # A sender's clock may be a little ahead of ours; what it dates there happened all the same.
    return sum(sub_units for slot, sub_units in pace.items() if slot >= oldest)


def judge(hour: int, days: Sequence[DayUse], rule: BreakerRule, meter: str) -> Trip | None:
    """Whether an hour's usage trips the breaker."""
    threshold = find_threshold(days, rule, meter)
    if hour < threshold:
        return None
    return Trip(hour, find_typical_day(days, rule.floors[meter]), threshold)

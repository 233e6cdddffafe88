"""Thresholds: from which usage of a period on a customer is warned, and when it is stopped.

Whoever set no warning is warned at 80% of a typical period, learned from its last ones, but not
before 80% of the included quota: below that nothing more is to be paid.
All amounts are whole sub-units of the plan's meter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

from meterline.domain.limits import Limits, StopCause, find_stop, most_quantity
from meterline.domain.meters import Meter
from meterline.domain.notifications import Happening
from meterline.domain.periods import Period
from meterline.domain.pricing import Plan

TYPICAL_PERIODS = 6
"""Past periods that typical usage is learned from."""
_WARN_PERCENT = 80


@dataclass(frozen=True, slots=True)
class Threshold:
    """A level of a period's usage, and what reaching it means. `name` tells it from others."""

    happening: Happening
    name: str
    sub_units: int
    stop: StopCause | None = None
    """What stops usage there, where something does."""

    def id_in(self, period: Period) -> str:
        """The crossing's id: once for each period and level."""
        return f"{self.happening}:{period.start:%Y%m%dT%H%M%SZ}:{self.name}"


def find_default_warning(past_periods: Sequence[int], included: int) -> int:
    """80% of the median of past periods with usage, and at least of the included quota."""
    used = [sub_units for sub_units in past_periods if sub_units > 0]
    typical = max(median_low(used), included) if used else included
    return typical * _WARN_PERCENT // 100


def list_thresholds(
    limits: Limits, plan: Plan, meter: Meter, past_periods: Sequence[int]
) -> tuple[Threshold, ...]:
    """The levels that count for a customer now; none at nothing, which everybody has reached."""
    if limits.warn_at is not None:
        warn = meter.to_sub_units(most_quantity(limits.warn_at, plan, meter))
        name = str(warn)
    else:
        warn = find_default_warning(past_periods, meter.to_sub_units(plan.included))
        name = "typical"
    thresholds = [Threshold(Happening.SOFT_LIMIT_CROSSED, name, warn)]
    stop = find_stop(limits, plan, meter)
    if stop is not None:
        level = meter.to_sub_units(stop.quantity)
        thresholds.append(Threshold(Happening.HARD_LIMIT_REACHED, str(level), level, stop.cause))
    return tuple(each for each in thresholds if each.sub_units > 0)


def find_crossed(thresholds: Sequence[Threshold], used: int) -> tuple[Threshold, ...]:
    """Those that the usage of a period has reached."""
    return tuple(each for each in thresholds if used >= each.sub_units)

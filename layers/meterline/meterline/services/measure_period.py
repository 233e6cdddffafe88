"""Measure what a customer used in a period, to the second, at a cost that does not grow with it."""

from __future__ import annotations

from datetime import datetime, timedelta

from meterline.domain.measuring import HOUR, HourSplit, floor_hour, split_hour
from meterline.domain.meters import Meter
from meterline.domain.periods import Period
from meterline.domain.usage import MAX_AHEAD
from meterline.ports import EventsInTime, PeriodTotals


class MeasurePeriod:
    """Sub-units of one customer and meter in a period, as far as they are counted.

    Reads the counters of its days, and for an edge inside an hour what is known of that hour's
    split. Only an hour that got events since it was split is read from the ledger again; the hour
    in which a period is about to end is counted whole until then.
    """

    def __init__(self, totals: PeriodTotals, ledger: EventsInTime) -> None:
        self._totals = totals
        self._ledger = ledger

    def __call__(self, customer: str, meter: Meter, period: Period, now: datetime) -> int:
        """Sub-units with `period.start` <= at < `period.end`."""
        first, last = floor_hour(period.start), floor_hour(period.end)
        is_cut_at_start = first < period.start
        if is_cut_at_start and first == last:
            # It starts and ends in one hour: too short a period to keep anything of.
            entries = self._ledger.events_between(customer, period.start, period.end)
            return split_hour(entries, meter, period.start).after_sub_units
        start = first + HOUR if is_cut_at_start else first
        total = self._totals.sum_hours(customer, meter.id, start, last).sub_units
        if is_cut_at_start:
            total += self._split(customer, meter, period.start).after_sub_units
        if last < period.end:
            if now + MAX_AHEAD + timedelta(seconds=1) < period.end:
                # No event can be dated behind the edge yet.
                total += self._totals.hour_total(customer, meter.id, last).sub_units
            else:
                total += self._split(customer, meter, period.end).before_sub_units
        return total

    def _split(self, customer: str, meter: Meter, edge: datetime) -> HourSplit:
        hour = floor_hour(edge)
        known = self._totals.read_split(customer, meter.id, edge)
        counted = self._totals.hour_total(customer, meter.id, hour).events
        if known is not None and known.events == counted:
            return known
        if not counted and known is None:
            return HourSplit(0, 0, 0)
        entries = self._ledger.events_between(customer, hour, hour + HOUR)
        split = split_hour(entries, meter, edge)
        if split != known:
            self._totals.write_split(customer, meter.id, edge, split)
        return split

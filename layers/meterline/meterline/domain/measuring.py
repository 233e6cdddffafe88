"""Measuring: a period's quantity from hourly counters, though periods start when they like.

Counters answer for whole hours. Where an edge cuts an hour, the ledger says how; that answer is
kept with the number of events that it came from, and is right for as long as the hour's counter
shows that number, since the ledger only ever grows.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from meterline.domain.meters import Meter
    from meterline.domain.usage import LedgerEntry

HOUR = timedelta(hours=1)


class HourTotal(NamedTuple):
    """What the totals hold for one hour of one customer and meter."""

    sub_units: int
    events: int
    """How many events it is the sum of; it only ever grows."""


class HourSplit(NamedTuple):
    """One hour of one customer and meter, cut at a moment inside it; the moment is in `after`."""

    before_sub_units: int
    after_sub_units: int
    events: int
    """How many events the whole hour held when it was cut."""


def floor_hour(moment: datetime) -> datetime:
    """The start of the UTC hour that the moment is in."""
    return moment.replace(minute=0, second=0, microsecond=0)


def split_hour(entries: Iterable[LedgerEntry], meter: Meter, edge: datetime) -> HourSplit:
    """Cut an hour's ledger entries of one customer at `edge`."""
    before = after = events = 0
    for entry in entries:
        if entry.meter == meter.id:
            events += 1
            if entry.at < edge:
                before += meter.to_sub_units(entry.quantity)
            else:
                after += meter.to_sub_units(entry.quantity)
    return HourSplit(before, after, events)

"""Emission: how what the ledger holds becomes what the billing layer is told.

Two modes, one per meter. `event`: each event is sent once under its own identifier. `hourly`:
the hour's total so far is sent, and overwrites what was sent for that hour before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class EmissionMode(StrEnum):
    """How a meter's usage is sent. Fixed for the life of the meter at the billing layer."""

    EVENT = "event"
    HOURLY = "hourly"


class EmissionEntry(NamedTuple):
    """One event to send: its deterministic identifier, its time, its value in sub-units."""

    identifier: str
    at_s: int
    """Seconds since the epoch, UTC."""
    sub_units: int


@dataclass(frozen=True, slots=True)
class EmissionBatch:
    """Events of one customer and meter that one totals transaction counted, in order.

    An event is in exactly one batch, because the batch is written in that transaction.
    """

    customer: str
    meter: str
    id: str
    entries: Sequence[EmissionEntry]


@dataclass(frozen=True, slots=True)
class BatchDue:
    """A message to the emitter: this batch is to be sent."""

    customer: str
    meter: str
    batch: str


@dataclass(frozen=True, slots=True)
class HourDue:
    """A message to the emitter: this hour's total has changed."""

    customer: str
    meter: str
    hour: datetime


EmissionDue = BatchDue | HourDue

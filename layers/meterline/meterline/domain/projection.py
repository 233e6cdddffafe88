"""Projection: how ledger entries, in the order of their stream, become totals and emission."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from meterline.domain.emission import (
    BatchDue,
    EmissionBatch,
    EmissionDue,
    EmissionEntry,
    EmissionMode,
    HourDue,
)
from meterline.domain.meters import Meter


class ProjectedEvent(NamedTuple):
    """What the totals need of a ledger entry. `hour` is `YYYY-MM-DDTHH`, UTC."""

    sequence: int
    """Its place in its stream shard; larger is later, and no two are alike."""
    customer: str
    meter: str
    hour: str
    at_s: int
    sub_units: int
    identifier: str
    action: str | None
    user: str | None


class DayKey(NamedTuple):
    """The totals of one customer's meter on one day (`YYYY-MM-DD`, UTC)."""

    customer: str
    meter: str
    day: str


class ShareKey(NamedTuple):
    """One action's or one user's part of a day."""

    customer: str
    meter: str
    day: str
    kind: str
    """`action` or `user`."""
    name: str


@dataclass(slots=True)
class Increment:
    """What is added to a counter: sub-units, and how many events they come from."""

    sub_units: int = 0
    events: int = 0

    def add(self, sub_units: int) -> None:
        """Count one event more."""
        self.sub_units += sub_units
        self.events += 1


@dataclass(slots=True)
class TotalsStep:
    """What one transaction does: counters go up, batches come to be, the checkpoint moves.

    `id` names the step: the shard and its first event, so that it is the same whenever the same
    checkpoint is left behind.
    """

    id: str
    through: int = 0
    days: dict[DayKey, dict[int, Increment]] = field(default_factory=dict)
    """Per day, what is added to each hour (0 to 23)."""
    shares: dict[ShareKey, Increment] = field(default_factory=dict)
    batches: dict[tuple[str, str], list[EmissionEntry]] = field(default_factory=dict)
    hours_due: dict[tuple[str, str, str], None] = field(default_factory=dict)

    @property
    def item_count(self) -> int:
        """How many items the transaction writes, without the checkpoint."""
        return len(self.days) + len(self.shares) + len(self.batches)

    def emission_batches(self) -> Iterator[EmissionBatch]:
        """The batches that this step makes."""
        for (customer, meter), entries in self.batches.items():
            yield EmissionBatch(customer, meter, self.id, entries)

    def pending(self) -> PendingEmission:
        """What is to be handed to the emitter once the step is done."""
        return PendingEmission(self.id, tuple(self.batches), tuple(self.hours_due))


@dataclass(frozen=True, slots=True)
class PendingEmission:
    """Hand-overs to the emitter that a checkpoint still owes."""

    id: str
    batches: Sequence[tuple[str, str]]
    """Customer and meter of each batch of that id."""
    hours: Sequence[tuple[str, str, str]]
    """Customer, meter and hour of each hourly total that changed."""

    def dues(self) -> Iterator[EmissionDue]:
        """The messages to the emitter, batches first."""
        for customer, meter in self.batches:
            yield BatchDue(customer, meter, self.id)
        for customer, meter, hour in self.hours:
            yield HourDue(customer, meter, read_hour(hour))

    def __bool__(self) -> bool:
        return bool(self.batches or self.hours)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a stream shard is counted, and which hand-overs of its last step are open."""

    through: int | None = None
    pending: PendingEmission | None = None


def plan_steps(
    events: Iterable[ProjectedEvent],
    meters: Mapping[str, Meter],
    name_step: Callable[[int], str],
    *,
    max_items: int,
    max_entries: int,
) -> Iterator[TotalsStep]:
    """Cut a shard's events, in order, into steps that each fit into one transaction.

    `max_items` counts what a transaction may write beside the checkpoint, `max_entries` the events
    of one emission batch. `name_step` makes a step's id from the sequence of its first event.
    """
    step: TotalsStep | None = None
    for event in events:
        mode = meters[event.meter].emission
        if step is None or not _fits(step, event, mode, max_items, max_entries):
            if step is not None:
                yield step
            step = TotalsStep(name_step(event.sequence))
        _count(step, event, mode)
    if step is not None:
        yield step


def read_hour(hour: str) -> datetime:
    """The start of an hour that is written `YYYY-MM-DDTHH`."""
    return datetime.strptime(hour, "%Y-%m-%dT%H").replace(tzinfo=UTC)


def _keys(event: ProjectedEvent) -> tuple[DayKey, list[ShareKey]]:
    day = event.hour[:10]
    shares = []
    if event.action is not None:
        shares.append(ShareKey(event.customer, event.meter, day, "action", event.action))
    if event.user is not None:
        shares.append(ShareKey(event.customer, event.meter, day, "user", event.user))
    return DayKey(event.customer, event.meter, day), shares


def _fits(
    step: TotalsStep, event: ProjectedEvent, mode: EmissionMode, max_items: int, max_entries: int
) -> bool:
    day, shares = _keys(event)
    more = (day not in step.days) + sum(share not in step.shares for share in shares)
    if mode is EmissionMode.EVENT and event.sub_units:
        entries = step.batches.get((event.customer, event.meter))
        if entries is None:
            more += 1
        elif len(entries) >= max_entries:
            return False
    return step.item_count + more <= max_items


def _count(step: TotalsStep, event: ProjectedEvent, mode: EmissionMode) -> None:
    step.through = event.sequence
    day, shares = _keys(event)
    hours = step.days.setdefault(day, defaultdict(Increment))
    hours[int(event.hour[11:13])].add(event.sub_units)
    for share in shares:
        step.shares.setdefault(share, Increment()).add(event.sub_units)
    if not event.sub_units:
        return  # Nothing to bill: a sender may report an event of zero to keep a complete list.
    if mode is EmissionMode.EVENT:
        step.batches.setdefault((event.customer, event.meter), []).append(
            EmissionEntry(event.identifier, event.at_s, event.sub_units)
        )
    else:
        step.hours_due[event.customer, event.meter, event.hour] = None

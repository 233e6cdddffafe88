"""Projection: how ledger entries, in the order of their stream, become totals and emission.

An event is counted by its stream, or, where the stream has lost it, by a recount of its customer
and meter (`meterline.services.recount_usage`); never by both. What the stream brings within
`FRESH_S` of its receipt is its alone: a recount leaves events alone until they are
`RECOUNT_AGE_S` old. What the stream brings later is counted behind a fence: one item for each
customer and meter, the recount's own checkpoint. A step with such events is refused when a
recount's step came in between, and a recount's step when one of those did.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import itemgetter
from typing import NamedTuple
from zlib import crc32

from meterline.domain.authorizations import MAX_SETTLED, Use, find_serial
from meterline.domain.cuts import Cut
from meterline.domain.emission import (
    BatchDue,
    EmissionBatch,
    EmissionDue,
    EmissionEntry,
    HourDue,
)
from meterline.domain.meters import EmissionMode, Meter

FRESH_S = 3600
RECOUNT_AGE_S = 7200
"""Twice `FRESH_S`: a delivery that took an event for fresh has ended by then, whatever the clocks
say. It runs for minutes, and AWS takes no call from a clock that is five minutes off."""

RECOUNT_STEP = "recount-"
MAX_UNBATCHED = 10_000
"""Of one step: 20 bytes each, where an item may have 400 KB."""

Pair = tuple[str, str]
"""A customer and a meter."""


class ProjectedEvent(NamedTuple):
    """What the totals need of a ledger entry. `hour` is `YYYY-MM-DDTHH`, UTC."""

    sequence: int
    """Its place in its stream shard; larger is later, and no two are alike."""
    customer: str
    meter: str
    hour: str
    at_s: int
    received_at_s: int
    sub_units: int
    identifier: str
    action: str | None
    user: str | None
    authorization: str | None = None
    cut: Cut | None = None
    """Of its day, as far as that is known."""


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
    """`YYYY-MM-DD`, with `#<HHMMSS` behind it for the part before a cut."""
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
class CutCount:
    """What is counted of a day with a cut."""

    before: Increment = field(default_factory=Increment)
    known: Increment = field(default_factory=Increment)
    """Whatever was counted when the cut was known. Where that is the whole day, `before` is all
    that is dated before the cut, and so are the shares of that part."""


@dataclass(slots=True)
class TotalsStep:
    """What one transaction does: counters go up, batches come to be, the checkpoint moves.

    `id` names the step: the shard and its first event, so that it is the same whenever the same
    checkpoint is left behind.
    """

    id: str
    through: int | None = None
    """Where the checkpoint stands after it, and `ahead` how far it is beyond that."""
    ahead: Ahead | None = None
    days: dict[DayKey, dict[int, Increment]] = field(default_factory=dict)
    """Per day, what is added to each hour (0 to 23)."""
    cuts: dict[DayKey, dict[str, CutCount]] = field(default_factory=dict)
    """Per day with a cut, what is added by the cut's mark."""
    shares: dict[ShareKey, Increment] = field(default_factory=dict)
    uses: dict[tuple[str, str], list[Use]] = field(default_factory=dict)
    """What each customer's and meter's budget is to count."""
    named: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many of those name an authorization."""
    batches: dict[tuple[str, str], list[EmissionEntry]] = field(default_factory=dict)
    unbatched: list[str] = field(default_factory=list)
    """The identifiers of events that are counted and in no batch: hourly ones, and those of zero.
    They are written down, so that of every event it can be told whether it was counted."""
    fences: dict[Pair, Checkpoint] = field(default_factory=dict)
    """Where the recounts of these customers and meters must still stand."""
    hours_due: dict[tuple[str, str, str], None] = field(default_factory=dict)

    @property
    def item_count(self) -> int:
        """How many items the transaction writes, without the checkpoint."""
        counters = len(self.days) + len(self.shares) + len(self.uses)
        return counters + len(self.batches) + bool(self.unbatched) + len(self.fences)

    def identifiers(self) -> set[str]:
        """The events that it counts."""
        batched = {entry.identifier for entries in self.batches.values() for entry in entries}
        return batched.union(self.unbatched)

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
class Ahead:
    """Beyond a checkpoint: what is counted of the records up to `until`, lane by lane.

    A lane is a number that all events of one customer and meter share. In the order of (lane,
    sequence), everything up to this place is counted and nothing after it.
    """

    lane: int
    sequence: int
    until: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a stream shard is counted, and which hand-overs of its last step are open."""

    through: int | None = None
    pending: PendingEmission | None = None
    ahead: Ahead | None = None
    passed: int | None = None
    """Of a recount's: how many steps with late events the streams have made past it."""

    def pass_by(self) -> Checkpoint:
        """Of a recount's: where it stands once a stream's late events have gone past it."""
        return replace(self, passed=(self.passed or 0) + 1)

    def has_counted(self, sequence: int, lane: int) -> bool:
        """Whether the event with that place and lane is in the totals."""
        if self.through is not None and sequence <= self.through:
            return True
        ahead = self.ahead
        return (
            ahead is not None
            and sequence <= ahead.until
            and (lane, sequence) <= (ahead.lane, ahead.sequence)
        )


@dataclass(frozen=True, slots=True)
class Fence:
    """Where the recount of a customer and meter stands, and what it has counted."""

    checkpoint: Checkpoint
    recounted: Set[str] = frozenset()
    """Identifiers of events, which a stream must not count again."""


_RECOUNT = "recount#"
"""How the names of recounts' shards begin; the stream's begin with `shardId`."""


def name_recount(customer: str, meter: str) -> str:
    """The shard that a recount of a customer's meter counts under."""
    return f"{_RECOUNT}{customer}#{meter}"


def read_recount(shard: str) -> Pair | None:
    """The customer and meter of such a shard; None for one of the stream."""
    if not shard.startswith(_RECOUNT):
        return None
    customer, _, meter = shard.removeprefix(_RECOUNT).rpartition("#")
    return customer, meter


def name_recount_step(place: int) -> str:
    """The id of a recount's step; no step of a stream begins so."""
    return f"{RECOUNT_STEP}{place:x}"


def find_late(events: Iterable[ProjectedEvent], now_s: int) -> set[Pair]:
    """Customers and meters with an event that came so late that a recount may have counted it."""
    return {
        (event.customer, event.meter) for event in events if now_s - event.received_at_s >= FRESH_S
    }


def plan_steps(
    events: Sequence[ProjectedEvent],
    meters: Mapping[str, Meter],
    name_step: Callable[[int], str],
    *,
    max_items: int,
    max_entries: int,
    checkpoint: Checkpoint | None = None,
    fences: Mapping[Pair, Fence] | None = None,
) -> Iterator[TotalsStep]:
    """Cut what a checkpoint has not counted of a delivery into steps of one transaction each.

    `events` are one shard's, in its order; `fences` those of the customers and meters of
    `find_late`. `max_items` counts what a transaction may write beside
    the checkpoint, `max_entries` the events of one emission batch. `name_step` makes a step's id
    from the sequence of its first event.

    Events are counted lane by lane, so that a customer's counters are in as few steps and its
    events in as few batches as can be: on 1,000 records of 50 customers that is a third of the
    write units, and a tenth of the messages, of steps in the stream's order.
    """
    if not events:
        return
    checkpoint = checkpoint or Checkpoint()
    lanes = _Lanes()
    fences = fences or {}
    recounted = frozenset[str]().union(*(fence.recounted for fence in fences.values()))
    fresh = [
        (lane, event)
        for lane, event in ((lanes.of(event), event) for event in events)
        if not checkpoint.has_counted(event.sequence, lane) and event.identifier not in recounted
    ]
    places = {pair: fence.checkpoint for pair, fence in fences.items()}
    plan = _Plan(meters, name_step, max_items, max_entries, places)
    last = events[-1].sequence
    through, ahead = checkpoint.through, checkpoint.ahead
    if ahead is not None and last < ahead.until:
        # This delivery ends before the one that was cut off: no lane can be finished with it.
        for step, (_, event) in plan.cut(fresh):
            step.through, step.ahead = event.sequence, ahead
            yield step
        return
    if ahead is not None:
        begun = [each for each in fresh if each[1].sequence <= ahead.until]
        yield from plan.by_lane(begun, through, ahead.until)
        fresh = fresh[len(begun) :]
        through = ahead.until
    yield from plan.by_lane(fresh, through, last)


class _Lanes:
    def __init__(self) -> None:
        self._known: dict[tuple[str, str], int] = {}

    def of(self, event: ProjectedEvent) -> int:
        pair = (event.customer, event.meter)
        lane = self._known.get(pair)
        if lane is None:
            lane = self._known[pair] = crc32("#".join(pair).encode())
        return lane


_LaneEvent = tuple[int, ProjectedEvent]


@dataclass(frozen=True, slots=True)
class _Plan:
    meters: Mapping[str, Meter]
    name_step: Callable[[int], str]
    max_items: int
    max_entries: int
    fences: dict[Pair, Checkpoint]
    """As each step finds them: the one before may have passed them."""

    def by_lane(
        self, events: Iterable[_LaneEvent], through: int | None, until: int
    ) -> Iterator[TotalsStep]:
        """Steps in the order of lanes; the last of them moves the checkpoint to `until`."""
        # Events come in the order of the stream, and sorting keeps it within a lane.
        cuts = list(self.cut(sorted(events, key=itemgetter(0))))
        for step, (lane, event) in cuts[:-1]:
            step.through, step.ahead = through, Ahead(lane, event.sequence, until)
            yield step
        for step, _ in cuts[-1:]:
            step.through = until
            yield step

    def cut(self, events: Iterable[_LaneEvent]) -> Iterator[tuple[TotalsStep, _LaneEvent]]:
        """Steps that each fit into one transaction, with the last event of each."""
        step: TotalsStep | None = None
        last: _LaneEvent | None = None
        for each in events:
            event = each[1]
            mode = self.meters[event.meter].emission
            if step is None or not self._fits(step, event, mode):
                if step is not None and last is not None:
                    yield step, last
                step = TotalsStep(self.name_step(event.sequence))
            self._pass_fence(step, (event.customer, event.meter))
            _count(step, event, mode)
            last = each
        if step is not None and last is not None:
            yield step, last

    def _pass_fence(self, step: TotalsStep, pair: Pair) -> None:
        if pair in self.fences and pair not in step.fences:
            place = step.fences[pair] = self.fences[pair]
            self.fences[pair] = place.pass_by()

    def _fits(self, step: TotalsStep, event: ProjectedEvent, mode: EmissionMode) -> bool:
        day, shares = _keys(event)
        pair = (event.customer, event.meter)
        if event.authorization and step.named[pair] >= MAX_SETTLED:
            return False
        more = (day not in step.days) + sum(share not in step.shares for share in shares)
        more += pair not in step.uses
        more += pair in self.fences and pair not in step.fences
        if mode is EmissionMode.EVENT and event.sub_units:
            entries = step.batches.get(pair)
            if entries is None:
                more += 1
            elif len(entries) >= self.max_entries:
                return False
        elif not step.unbatched:
            more += 1
        elif len(step.unbatched) >= MAX_UNBATCHED:
            return False
        return step.item_count + more <= self.max_items


def read_hour(hour: str) -> datetime:
    """The start of an hour that is written `YYYY-MM-DDTHH`."""
    return datetime.strptime(hour, "%Y-%m-%dT%H").replace(tzinfo=UTC)


def _keys(event: ProjectedEvent) -> tuple[DayKey, list[ShareKey]]:
    day = part = event.hour[:10]
    if event.cut is not None and event.at_s < event.cut.at_s:
        part = f"{day}#<{event.cut.mark}"
    shares = []
    if event.action is not None:
        shares.append(ShareKey(event.customer, event.meter, part, "action", event.action))
    if event.user is not None:
        shares.append(ShareKey(event.customer, event.meter, part, "user", event.user))
    return DayKey(event.customer, event.meter, day), shares


def _count(step: TotalsStep, event: ProjectedEvent, mode: EmissionMode) -> None:
    day, shares = _keys(event)
    hours = step.days.setdefault(day, defaultdict(Increment))
    hours[int(event.hour[11:13])].add(event.sub_units)
    if event.cut is not None:
        counted = step.cuts.setdefault(day, {}).setdefault(event.cut.mark, CutCount())
        counted.known.add(event.sub_units)
        if event.at_s < event.cut.at_s:
            counted.before.add(event.sub_units)
    for share in shares:
        step.shares.setdefault(share, Increment()).add(event.sub_units)
    serial = find_serial(event.authorization, event.customer, event.meter)
    step.named[event.customer, event.meter] += serial is not None
    step.uses.setdefault((event.customer, event.meter), []).append(
        Use(event.at_s, event.sub_units, serial)
    )
    if mode is EmissionMode.EVENT and event.sub_units:
        step.batches.setdefault((event.customer, event.meter), []).append(
            EmissionEntry(event.identifier, event.at_s, event.sub_units)
        )
        return
    step.unbatched.append(event.identifier)
    # There is nothing to bill of zero, which a sender may report to keep a complete list.
    if event.sub_units:
        step.hours_due[event.customer, event.meter, event.hour] = None

"""Count what the ledger holds and the stream has lost: each such event, and each of them once.

Lambda gives a stretch of the stream up when its records expire, a record may have been unreadable
to an older version, or the event source was off for a day. The checkpoint of the shard goes on
past what is lost, so nothing but the ledger knows of it. A recount holds the ledger's events of
one customer and meter against the events that are known to be counted, one by one, and counts
those that are missing as a shard of its own would: totals, batches and the recount's checkpoint
in one transaction, hand-overs to the emitter owed at the checkpoint until the queue has them.

The checkpoint is read before the evidence. Every other step that could count one of these events
moves it: another recount's, and that of a stream which comes late after all
(`meterline.domain.projection`). So a step that stands on stale evidence is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from meterline.domain.meters import EmissionMode, FinerThanSubUnitError, Meter
from meterline.domain.projection import (
    RECOUNT_AGE_S,
    Checkpoint,
    ProjectedEvent,
    TotalsStep,
    name_recount,
    name_recount_step,
    plan_steps,
)
from meterline.domain.quantities import MAX_SUB_UNITS
from meterline.domain.usage import LedgerEntry
from meterline.errors import StorageUnavailableError
from meterline.ports import (
    CheckpointMovedError,
    CountedEvents,
    EmissionQueue,
    EventsInTime,
    Totals,
)

STREAM_LIFE = timedelta(hours=49)
"""A stream keeps a record for 24 hours (DynamoDB developer guide); as long again for delays."""
PROVEN_FOR = timedelta(days=390)
"""What is known to be counted is kept for 400 days; of older events nothing can be told."""
_CLOCKS = timedelta(minutes=10)
_PART = 5_000
_MAX_LOST_RACES = 20


@dataclass(frozen=True, slots=True)
class Recount:
    """What was uncounted of one customer and meter: events, and their sum."""

    events: int = 0
    sub_units: int = 0
    unreadable: int = 0
    """Further events, which no meter of today can count."""


class RecountUsage:
    """Finds and counts the uncounted events of one customer and meter."""

    def __init__(
        self,
        ledger: EventsInTime,
        evidence: CountedEvents,
        totals: Totals,
        queue: EmissionQueue,
        *,
        max_items: int,
        max_entries: int,
    ) -> None:
        self._ledger = ledger
        self._evidence = evidence
        self._totals = totals
        self._queue = queue
        self._max_items = max_items
        self._max_entries = max_entries

    def find(
        self, customer: str, meter: Meter, start: datetime, end: datetime, now: datetime
    ) -> Iterator[LedgerEntry]:
        """The events of [start, end) that nothing has counted, in time order.

        Those younger than `RECOUNT_AGE_S` are left out: their stream may be about to count them.
        """
        taken_until = now - timedelta(seconds=RECOUNT_AGE_S)
        entries = (
            entry
            for entry in self._ledger.events_between(customer, start, end)
            if entry.meter == meter.id and now - PROVEN_FOR < entry.received_at <= taken_until
        )
        known: set[str] | None = None
        while part := list(islice(entries, _PART)):
            if known is None:
                known = self._evidence.list_batched(customer, meter.id)
                known |= self._evidence.list_recounted(customer, meter.id)
            missing = [each for each in part if each.key.identifier not in known]
            unbatched = [
                each
                for each in missing
                if meter.emission is EmissionMode.HOURLY or not each.quantity
            ]
            if unbatched:
                first = min(each.received_at for each in unbatched) - _CLOCKS
                last = max(each.received_at for each in unbatched) + STREAM_LIFE
                counted = self._evidence.list_unbatched(first, min(last, now + _CLOCKS))
                missing = [each for each in missing if each.key.identifier not in counted]
            yield from missing

    def __call__(
        self,
        customer: str,
        meter: Meter,
        start: datetime,
        end: datetime,
        now: datetime,
        *,
        progress: Callable[[int], None] = lambda _events: None,
    ) -> Recount:
        """Count the uncounted events of [start, end); `progress` hears of each step's.

        May be called again at any time and after any failure. Raises `StorageUnavailableError`.
        """
        shard = name_recount(customer, meter.id)
        found: dict[str, int] = {}
        for _ in range(_MAX_LOST_RACES):
            unreadable = 0
            checkpoint = self._totals.checkpoint(shard)
            self._hand_over(checkpoint)
            missing = self.find(customer, meter, start, end, now)
            try:
                while part := list(islice(missing, self._max_entries)):
                    events = [_project(entry, meter) for entry in part]
                    readable = [event for event in events if event is not None]
                    unreadable += len(events) - len(readable)
                    found |= {event.identifier: event.sub_units for event in readable}
                    while readable:
                        step = self._plan_step(readable, meter, checkpoint)
                        checkpoint = self._totals.apply(shard, checkpoint, step)
                        self._hand_over(checkpoint)
                        counted = step.identifiers()
                        progress(len(counted))
                        readable = [each for each in readable if each.identifier not in counted]
            except CheckpointMovedError:
                # A late stream or another recount counted some of them, or the answer to our own
                # transaction was lost: the evidence has to be read again.
                continue
            if checkpoint.pending:
                self._totals.clear_pending(shard, checkpoint)
            return Recount(len(found), sum(found.values()), unreadable)
        raise StorageUnavailableError(f"the checkpoint of {shard} never stood still")

    def _plan_step(
        self, events: Sequence[ProjectedEvent], meter: Meter, checkpoint: Checkpoint
    ) -> TotalsStep:
        """The first step of them, at the recount's next place."""
        place = (checkpoint.through or 0) + 1
        step = next(
            plan_steps(
                events,
                {meter.id: meter},
                lambda _first: name_recount_step(place),
                max_items=self._max_items,
                max_entries=self._max_entries,
            )
        )
        step.through, step.ahead = place, None
        return step

    def _hand_over(self, checkpoint: Checkpoint) -> None:
        if checkpoint.pending:
            self._queue.send(list(checkpoint.pending.dues()), renewal=checkpoint.pending.id)


def _project(entry: LedgerEntry, meter: Meter) -> ProjectedEvent | None:
    """What the totals need of it; None where the meter cannot count it."""
    try:
        sub_units = meter.to_sub_units(entry.quantity)
    except FinerThanSubUnitError:
        return None
    if abs(sub_units) > MAX_SUB_UNITS:
        return None
    return ProjectedEvent(
        # Their place in the recount is that of their step.
        sequence=0,
        customer=entry.key.customer,
        meter=meter.id,
        hour=f"{entry.at:%Y-%m-%dT%H}",
        at_s=int(entry.at.timestamp()),
        received_at_s=int(entry.received_at.timestamp()),
        sub_units=sub_units,
        identifier=entry.key.identifier,
        action=entry.action,
        user=entry.user,
        authorization=entry.authorization,
    )

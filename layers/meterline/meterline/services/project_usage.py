"""Turn the ledger's stream into totals, exactly once, and hand what must be billed to emission.

A batch of stream records comes at least once. Each step counts its events in one transaction
with the shard's checkpoint, so records that the checkpoint knows of are skipped. What a step owes
the emitter is kept at the checkpoint until the queue has taken it; a crash in between sends it
again, which is harmless, since an event is in exactly one batch and a batch is sent once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING
from zlib import crc32

from meterline.domain.cuts import list_cuts
from meterline.domain.meters import Meter
from meterline.domain.periods import Period
from meterline.domain.projection import (
    Checkpoint,
    ProjectedEvent,
    TotalsStep,
    find_late,
    plan_steps,
)
from meterline.errors import StorageUnavailableError
from meterline.ports import CheckpointMovedError, EmissionQueue, Totals

if TYPE_CHECKING:
    from meterline.services.watch_usage import Watch

_MAX_LOST_RACES = 5

FindPeriods = Callable[[Iterable[tuple[str, str]]], Mapping[tuple[str, str], Period]]
"""The billing periods of customers and meters, as far as they are known."""


@dataclass(frozen=True, slots=True)
class Projection:
    """What one batch of records came to."""

    counted: int = 0
    skipped: int = 0
    """Events that another delivery had counted."""
    handed_over: int = 0
    """Messages to the emitter."""
    watch: Watch | None = None
    """What the watch found in the budgets that changed."""
    watch_failure: str | None = None
    """Why it found nothing out: a scheduled scan does it again."""


class ProjectUsage:
    """The job of the ledger's stream."""

    def __init__(
        self,
        totals: Totals,
        queue: EmissionQueue,
        meters: Mapping[str, Meter],
        *,
        max_items: int,
        max_entries: int,
        now: Callable[[], datetime],
        watch: Callable[[Iterable[tuple[str, str]]], Watch] | None = None,
        find_periods: FindPeriods | None = None,
    ) -> None:
        self._find_periods = find_periods
        self._watch = watch
        self._now = now
        self._totals = totals
        self._queue = queue
        self._meters = meters
        self._max_items = max_items
        self._max_entries = max_entries

    def __call__(self, shard: str, events: Sequence[ProjectedEvent]) -> Projection:
        """Count one shard's events, which must be in the shard's order.

        Raises `StorageUnavailableError` when it got only part of the way; the same records must
        then be delivered again, as a stream does.
        """
        counted = handed_over = 0
        if self._find_periods is not None:
            events = _mark_cuts(events, self._find_periods)
        for _ in range(_MAX_LOST_RACES):
            checkpoint = self._totals.checkpoint(shard)
            late = find_late(events, int(self._now().timestamp()))
            fences = self._totals.fences(late) if late else {}
            handed_over += self._hand_over(checkpoint)
            try:
                for step in plan_steps(
                    events,
                    self._meters,
                    partial(_name_step, shard),
                    max_items=self._max_items,
                    max_entries=self._max_entries,
                    checkpoint=checkpoint,
                    fences=fences,
                ):
                    checkpoint = self._totals.apply(shard, checkpoint, step)
                    counted += _count_events(step)
                    handed_over += self._hand_over(checkpoint)
            except CheckpointMovedError:
                # Another delivery of these records or a recount of late ones was faster, or the
                # answer to our own transaction was lost. The checkpoints know which.
                continue
            if checkpoint.pending:
                self._totals.clear_pending(shard, checkpoint)
            return self._look(events, Projection(counted, len(events) - counted, handed_over))
        raise StorageUnavailableError(f"the checkpoint of {shard} never stood still")

    def _look(self, events: Sequence[ProjectedEvent], done: Projection) -> Projection:
        """Watch what these events changed, even where another delivery counted them: it may have
        ended before it looked. Nothing that goes wrong here holds the counting up."""
        if self._watch is None:
            return done
        try:
            watch = self._watch({(event.customer, event.meter) for event in events})
        except Exception as error:  # noqa: BLE001 - reported; a shard that stands still is worse
            return replace(done, watch_failure=f"{type(error).__name__}: {error}")
        return replace(done, watch=watch)

    def _hand_over(self, checkpoint: Checkpoint) -> int:
        if not checkpoint.pending:
            return 0
        dues = list(checkpoint.pending.dues())
        self._queue.send(dues, renewal=checkpoint.pending.id)
        return len(dues)


def _mark_cuts(
    events: Sequence[ProjectedEvent], find_periods: FindPeriods
) -> Sequence[ProjectedEvent]:
    periods = find_periods({(event.customer, event.meter) for event in events})
    cuts = {
        (*pair, day): cut
        for pair, period in periods.items()
        for day, cut in list_cuts(period).items()
    }
    days = {(event.customer, event.meter, event.hour[:10]) for event in events}
    if days.isdisjoint(cuts):
        return events
    return [
        event._replace(cut=cuts.get((event.customer, event.meter, event.hour[:10])))
        for event in events
    ]


def _name_step(shard: str, first_sequence: int) -> str:
    return f"{first_sequence:x}-{crc32(shard.encode()):08x}"


def _count_events(step: TotalsStep) -> int:
    return sum(increment.events for hours in step.days.values() for increment in hours.values())

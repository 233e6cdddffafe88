"""Settle sends that never got an answer, once a repeated identifier no longer does: by evidence.

The only witness is the billing layer's own summary of the minute. It is believed only when nothing
else can move in that minute, and only when it leaves a single answer; all else is for a person.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from meterline.domain.emission import BatchDue
from meterline.domain.meters import Meter
from meterline.domain.reconciliation import (
    Evidence,
    SentEntry,
    floor_minute,
    weigh_evidence,
)
from meterline.domain.sending import Progress
from meterline.errors import SupersededError
from meterline.ports import (
    BilledUsage,
    DroppedUsages,
    EmissionQueue,
    EmissionStore,
    EventsInTime,
    SendingRecords,
)

WINDOW = timedelta(hours=25)
"""Stripe knows a repeated identifier for 24 hours (API reference, meter events); and one more for
what a summary may lag behind."""
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Settled:
    """What was found out about the unknown sends of one minute."""

    minute: datetime
    billed: int = 0
    sent_again: int = 0
    """Proven not to have arrived, and handed to the emitter again."""
    undecided: int = 0
    why: str = ""
    """Why the evidence does not decide, as a stable code."""


class SettleByEvidence:
    """Compares minutes; changes a state only where the emitter has not touched it meanwhile."""

    def __init__(
        self,
        records: SendingRecords,
        ledger: EventsInTime,
        billed: BilledUsage,
        dropped: DroppedUsages,
        store: EmissionStore,
        queue: EmissionQueue,
    ) -> None:
        self._records = records
        self._ledger = ledger
        self._billed = billed
        self._dropped = dropped
        self._store = store
        self._queue = queue

    def __call__(
        self,
        customer: str,
        billing_customer: str,
        meter: Meter,
        made_from: datetime,
        now: datetime,
    ) -> list[Settled]:
        """Settle what can be settled of batches made since `made_from`, minute by minute."""
        by_minute = self._read_minutes(customer, meter, made_from)
        settled = []
        for minute_s in sorted(by_minute):
            entries = by_minute[minute_s]
            unknown = [each for each in entries if each.progress is Progress.UNKNOWN]
            if not unknown:
                continue
            minute = datetime.fromtimestamp(minute_s, UTC)
            why = self._find_doubt(customer, meter, minute, entries, unknown, now)
            if why:
                settled.append(Settled(minute, undecided=len(unknown), why=why))
                continue
            counted = self._billed.total(billing_customer, meter, minute, minute + _MINUTE)
            # Whatever was sent while the summary was read must show in the states by now.
            again = self._read_minutes(customer, meter, made_from).get(minute_s, [])
            if again != entries:
                settled.append(Settled(minute, undecided=len(unknown), why="moving"))
                continue
            settled.append(self._settle_minute(minute, entries, unknown, counted, now))
        return settled

    def _read_minutes(
        self, customer: str, meter: Meter, made_from: datetime
    ) -> dict[int, list[SentEntry]]:
        minutes: defaultdict[int, list[SentEntry]] = defaultdict(list)
        for record in self._records.batches_since(customer, meter.id, made_from):
            for each in record.list_entries():
                minutes[floor_minute(each.entry.at_s)].append(each)
        return minutes

    def _find_doubt(
        self,
        customer: str,
        meter: Meter,
        minute: datetime,
        entries: Sequence[SentEntry],
        unknown: Sequence[SentEntry],
        now: datetime,
    ) -> str:
        """Why the minute's summary would prove nothing; empty if it does."""
        if any(each.progress is Progress.PENDING for each in entries):
            return "pending"
        if any(each.in_doubt and each.progress is not Progress.UNKNOWN for each in entries):
            return "in_flight"
        if any(now - each.made_at < WINDOW for each in entries):
            return "too_fresh"
        if self._tried_lately(unknown, now):
            return "too_fresh"
        in_ledger = {
            entry.key.identifier
            for entry in self._ledger.events_between(customer, minute, minute + _MINUTE)
            if entry.meter == meter.id and entry.quantity
        }
        if in_ledger != {each.entry.identifier for each in entries}:
            return "uncounted"
        return ""

    def _tried_lately(self, unknown: Sequence[SentEntry], now: datetime) -> bool:
        limit_s = int((now - WINDOW).timestamp())
        for due in {each.due for each in unknown}:
            _batch, sending = self._store.load_batch(due)
            if sending is None:
                return True
            for each in unknown:
                tried_s = sending.unanswered.get(each.index) if each.due == due else None
                if tried_s is not None and tried_s > limit_s:
                    return True
        return False

    def _settle_minute(
        self,
        minute: datetime,
        entries: Sequence[SentEntry],
        unknown: Sequence[SentEntry],
        counted: int,
        now: datetime,
    ) -> Settled:
        names = [each.entry.identifier for each in entries if each.progress is Progress.SENT]
        dropped = self._dropped.find(names)
        known = sum(
            each.entry.sub_units
            for each in entries
            if each.progress is Progress.SENT and each.entry.identifier not in dropped
        )
        evidence = weigh_evidence([each.entry for each in unknown], counted - known)
        if evidence is None:
            return Settled(minute, undecided=len(unknown), why="ambiguous")
        undecided = 0
        for due in {each.due for each in unknown}:
            of_batch = [each for each in unknown if each.due == due]
            if not self._write(due, of_batch, evidence, now):
                undecided += len(of_batch)
        return Settled(
            minute,
            billed=len(evidence.billed),
            sent_again=len(evidence.not_billed),
            undecided=undecided,
            why="moving" if undecided else "",
        )

    def _write(
        self, due: BatchDue, unknown: Iterable[SentEntry], evidence: Evidence, now: datetime
    ) -> bool:
        """Write what was proven; False when the emitter was at the batch meanwhile."""
        _batch, sending = self._store.load_batch(due)
        if sending is None or sending.intent is not None:
            return False
        billed = []
        for each in unknown:
            if sending.progress[each.index] != Progress.UNKNOWN:
                return False
            if each.entry.identifier in evidence.billed:
                sending = sending.settle(each.index, Progress.SENT)
                billed.append(each.entry.identifier)
            else:
                # It never arrived, so the next send of it is the first.
                sending = replace(
                    sending.settle(each.index, Progress.PENDING),
                    unanswered={
                        index: at_s
                        for index, at_s in sending.unanswered.items()
                        if index != each.index
                    },
                )
        # Before the save: if that is lost, the entry is still unknown and is settled again.
        for identifier in billed:
            self._store.resolve_problem(due, identifier, now)
        try:
            saved = self._store.save_batch(
                due, replace(sending, done=not sending.has_pending), opened=(), now=now
            )
        except SupersededError:
            return False
        if saved.has_pending:
            self._queue.send([due], renewal=f"evidence:{saved.version}")
        elif not saved.has_open_problems:
            self._store.expire_batch(due, now)
        return True

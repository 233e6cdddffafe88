"""Compare what the ledger holds with what the billing layer counts, explain, and mend.

Only what cannot bill twice is mended: handing a batch to the emitter again (it knows what it
sent), an hour's total (it overwrites), a send that evidence settled, and what the billing layer
itself says it dropped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from meterline.domain.dropped import DroppedUsage
from meterline.domain.emission import WAITING, DeadLetters, HourDue, Lapse, Problem
from meterline.domain.measuring import HOUR, HourTotal, floor_hour
from meterline.domain.meters import EmissionMode, Meter
from meterline.domain.projection import RECOUNT_AGE_S
from meterline.domain.quantities import diverges
from meterline.domain.reconciliation import (
    GRACE,
    Cause,
    Difference,
    Explanation,
    HourKey,
    SentEntry,
    explain_hour,
    explain_lost,
    explain_stale,
    hour_of,
)
from meterline.domain.sending import Progress
from meterline.domain.subscriptions import Subscription
from meterline.domain.usage import LedgerEntry
from meterline.errors import SupersededError
from meterline.ports import (
    BilledUsage,
    CountedHours,
    DroppedUsages,
    EmissionInbox,
    EmissionQueue,
    EmissionStore,
    EventsInTime,
    Findings,
    ParkedBatches,
    SendingRecords,
)
from meterline.services.recount_usage import RecountUsage
from meterline.services.settle_by_evidence import SettleByEvidence, Settled

LOOK_CLOSELY = timedelta(hours=96)
"""Hour by hour, in one call to the billing layer; what is older is compared in one sum first."""
OLDEST = timedelta(days=35)
"""Older usage is not taken any more (Stripe's API reference, meter events)."""
CLOSED_FOR = timedelta(days=4)
"""For so long a period that has ended is compared too: a draft can be held for three days."""
SWEEP = timedelta(hours=2)
"""So much of the ledger is held against the totals by each run; `closely`, all of it."""
STUCK_FOR = timedelta(hours=1)
"""A batch that nobody works off for so long is handed to the emitter again."""
_CHUNK = 90
"""Problems that one save takes (`EmissionStore.save_batch`)."""
_AHEAD = timedelta(minutes=10)
"""A batch may be made so long before the time of an event in it: clocks run ahead."""


class Repair(StrEnum):
    """What was done about a difference."""

    HANDED_OVER = "handed_over"
    TOTAL_SENT_AGAIN = "total_sent_again"
    RECOUNTED = "recounted"
    """What the stream had lost was counted from the ledger."""
    TRIED_AGAIN = "tried_again"
    """What was refused because nobody billed the customer, now that somebody does."""
    TAKEN_BACK = "taken_back"
    """What the billing layer dropped counts as refused now, and lies in the dead-letter queue."""


class Repaired(NamedTuple):
    """One repair, and the batch or hour that it was about."""

    repair: Repair
    about: str
    events: int


@dataclass(frozen=True, slots=True)
class MeterBooks:
    """One customer's meter, as far as both sides were compared."""

    customer: str
    meter: str
    start: datetime
    end: datetime
    local_sub_units: int
    billed_sub_units: int
    differences: Sequence[Difference] = ()
    repaired: Sequence[Repaired] = ()
    settled: Sequence[Settled] = ()

    @property
    def agrees(self) -> bool:
        """Whether every hour is counted alike."""
        return not self.differences

    @property
    def diverges(self) -> bool:
        """Whether the whole differs by more than one per cent."""
        return diverges(self.local_sub_units, self.billed_sub_units)


@dataclass(slots=True)
class _Hours:
    local: Mapping[datetime, int] = field(default_factory=dict)
    billed: dict[datetime, int] = field(default_factory=dict)

    def differing(self) -> list[datetime]:
        hours = self.local.keys() | self.billed.keys()
        return sorted(hour for hour in hours if self.local.get(hour, 0) != self.billed.get(hour, 0))


class ReconcileUsage:
    """Compares one customer's meter, over the current period and one that has just ended."""

    def __init__(
        self,
        counted: CountedHours,
        billed: BilledUsage,
        ledger: EventsInTime,
        records: SendingRecords,
        dropped: DroppedUsages,
        parked: ParkedBatches,
        findings: Findings,
        store: EmissionStore,
        queue: EmissionQueue,
        inbox: EmissionInbox,
        recount: RecountUsage,
    ) -> None:
        self._counted = counted
        self._billed = billed
        self._ledger = ledger
        self._records = records
        self._dropped = dropped
        self._parked = parked
        self._findings = findings
        self._store = store
        self._queue = queue
        self._inbox = inbox
        self._recount = recount
        self._settle = SettleByEvidence(records, ledger, billed, dropped, store, queue)

    def __call__(
        self,
        customer: str,
        billing_customer: str,
        meter: Meter,
        span: tuple[datetime, datetime],
        now: datetime,
        *,
        repair: bool = True,
        closely: bool = False,
        unknown: Collection[datetime] = (),
    ) -> MeterBooks:
        """Compare the whole hours of `span`; `closely` looks at every hour and batch of it.

        `unknown` are the hours of sends without an answer (`list_unknown`): they are weighed even
        where both sides count alike, since they may all have arrived. Without `repair` nothing is
        changed, findings included. Raises `BillingUnavailableError` and `StorageUnavailableError`.
        """
        start, end = span
        lost, recounted = self._find_lost(
            customer, meter, start, end, now, repair=repair, closely=closely
        )
        hours = self._read_hours(customer, billing_customer, meter, start, end, closely=closely)
        differing = hours.differing()
        local = sum(hours.local.values())
        gap = sum(hours.local.get(at, 0) - hours.billed.get(at, 0) for at in differing)
        books = MeterBooks(customer, meter.id, start, end, local, local - gap)
        if meter.emission is EmissionMode.HOURLY:
            if differing:
                books = self._work_off_totals(books, meter, hours, differing, now, repair=repair)
        else:
            looked_at = {*differing, *(each for each in unknown if start <= each < end)}
            if looked_at or closely:
                books = self._work_off_events(
                    books,
                    billing_customer,
                    meter,
                    hours,
                    differing,
                    start if closely else min(looked_at),
                    now,
                    repair=repair,
                )
        told = {each.key.hour for each in books.differences}
        books = replace(
            books,
            differences=[*books.differences, *(each for each in lost if each.key.hour not in told)],
            repaired=[*recounted, *books.repaired],
        )
        if repair:
            self._keep(books, now)
        return books

    def list_unknown(self) -> Mapping[tuple[str, str], set[datetime]]:
        """By customer and meter, the hours of sends of which nobody knows if they arrived."""
        hours: defaultdict[tuple[str, str], set[datetime]] = defaultdict(set)
        for customer, meter, at in self._records.list_unknown():
            hours[customer, meter].add(floor_hour(at))
        return hours

    def _find_lost(
        self,
        customer: str,
        meter: Meter,
        start: datetime,
        end: datetime,
        now: datetime,
        *,
        repair: bool,
        closely: bool,
    ) -> tuple[list[Difference], list[Repaired]]:
        """What neither the totals nor the billing layer know of, because the stream has lost it.

        Found by holding the ledger against the totals; told by the hour, or counted now.
        """
        end = min(end, floor_hour(now - timedelta(seconds=RECOUNT_AGE_S)))
        start = start if closely else max(start, end - SWEEP)
        if start >= end:
            return [], []
        counted = self._counted.count_hours(customer, meter.id, start, end)
        held: defaultdict[datetime, list[int]] = defaultdict(lambda: [0, 0])
        for entry in self._ledger.events_between(customer, start, end):
            if entry.meter == meter.id:
                hour = held[floor_hour(entry.at)]
                hour[0] += meter.to_sub_units(entry.quantity)
                hour[1] += 1
        suspects = [hour for hour in held if counted.get(hour, (0, 0)) != tuple(held[hour])]
        if not suspects:
            return [], []
        first, last = min(suspects), max(suspects) + HOUR
        if repair:
            done = self._recount(customer, meter, first, last, now)
            about = f"{first:%Y-%m-%dT%H}/{last:%Y-%m-%dT%H}"
            return [], [Repaired(Repair.RECOUNTED, about, done.events)] if done.events else []
        lost: defaultdict[datetime, list[LedgerEntry]] = defaultdict(list)
        for entry in self._recount.find(customer, meter, first, last, now):
            lost[floor_hour(entry.at)].append(entry)
        return [
            explain_lost(
                HourKey(customer, meter.id, hour),
                [(each.key.identifier, meter.to_sub_units(each.quantity)) for each in entries],
                counted.get(hour, HourTotal(0, 0)).sub_units,
            )
            for hour, entries in lost.items()
        ], []

    def _read_hours(
        self,
        customer: str,
        billing_customer: str,
        meter: Meter,
        start: datetime,
        end: datetime,
        *,
        closely: bool,
    ) -> _Hours:
        recent = start if closely else max(start, end - LOOK_CLOSELY)
        local = self._counted.hours_between(customer, meter.id, start, end)
        hours = _Hours(local, dict(self._billed.hours(billing_customer, meter, recent, end)))
        if recent == start:
            return hours
        known = sum(value for at, value in local.items() if at < recent)
        if self._billed.total(billing_customer, meter, start, recent) != known:
            hours.billed |= self._billed.hours(billing_customer, meter, start, recent)
        else:
            hours.billed |= {at: value for at, value in local.items() if at < recent}
        return hours

    def _work_off_events(
        self,
        books: MeterBooks,
        billing_customer: str,
        meter: Meter,
        hours: _Hours,
        differing: Sequence[datetime],
        first: datetime,
        now: datetime,
        *,
        repair: bool,
    ) -> MeterBooks:
        made_from = first - _AHEAD
        entries = self._read_entries(books.customer, meter, made_from)
        parked = self._parked.parked()
        differences: list[Difference] = []
        repaired: list[Repaired] = []
        if repair:
            every = [each for rows in entries.values() for each in rows]
            repaired += self._hand_over(every, parked, now)
        for hour in differing:
            of_hour = entries.get(hour, [])
            dropped = self._dropped.find(
                [each.entry.identifier for each in of_hour if each.progress is Progress.SENT]
            )
            difference = self._explain(
                books.customer, meter, hour, hours, of_hour, dropped, parked, now
            )
            differences.append(difference)
            if repair:
                repaired += self._repair_hour(difference, of_hour, dropped, now)
        settled: list[Settled] = []
        if repair and any(
            each.progress is Progress.UNKNOWN for rows in entries.values() for each in rows
        ):
            settled = self._settle(books.customer, billing_customer, meter, made_from, now)
        return replace(books, differences=differences, repaired=repaired, settled=settled)

    def _read_entries(
        self, customer: str, meter: Meter, made_from: datetime
    ) -> dict[datetime, list[SentEntry]]:
        entries: defaultdict[datetime, list[SentEntry]] = defaultdict(list)
        for record in self._records.batches_since(customer, meter.id, made_from):
            for each in record.list_entries():
                entries[hour_of(each.entry.at_s)].append(each)
        return entries

    def _explain(
        self,
        customer: str,
        meter: Meter,
        hour: datetime,
        hours: _Hours,
        entries: Sequence[SentEntry],
        dropped: Mapping[str, DroppedUsage],
        parked: DeadLetters,
        now: datetime,
    ) -> Difference:
        of_ledger = self._read_ledger(customer, meter, hour)
        failed = [
            each.entry.identifier
            for each in entries
            if each.progress in (Progress.REFUSED, Progress.LATE, Progress.UNKNOWN)
        ]
        return explain_hour(
            HourKey(customer, meter.id, hour),
            ledger_sub_units=sum(meter.to_sub_units(entry.quantity) for entry in of_ledger),
            ledger_events=len(of_ledger),
            local_sub_units=hours.local.get(hour, 0),
            billed_sub_units=hours.billed.get(hour, 0),
            entries=entries,
            dropped=dropped,
            reasons=self._records.reasons_of(customer, meter.id, failed),
            parked=parked,
            now=now,
        )

    def _read_ledger(self, customer: str, meter: Meter, hour: datetime) -> list[LedgerEntry]:
        found = self._ledger.events_between(customer, hour, hour + HOUR)
        return [entry for entry in found if entry.meter == meter.id]

    def _hand_over(
        self, entries: Iterable[SentEntry], parked: DeadLetters, now: datetime
    ) -> list[Repaired]:
        stuck = Counter(
            each.due
            for each in entries
            if each.progress is Progress.PENDING
            and (now - each.made_at >= STUCK_FOR or each.due in parked.seen)
            # Tried again before its defect is mended, it would be one dead letter more.
            and not parked.keep_back(each.due)
        )
        if stuck:
            # The emitter knows what of it was sent: a message more does no harm.
            self._queue.send(list(stuck), renewal=f"reconciled:{now:%Y-%m-%dT%H:%M}")
        return [Repaired(Repair.HANDED_OVER, due.batch, count) for due, count in stuck.items()]

    def _repair_hour(
        self,
        difference: Difference,
        entries: Sequence[SentEntry],
        dropped: Mapping[str, DroppedUsage],
        now: datetime,
    ) -> list[Repaired]:
        repaired = self._try_again(
            difference.key, [each for each in entries if each.progress is Progress.REFUSED], now
        )
        missing = [each for each in entries if each.entry.identifier in dropped]
        # The report names it and the summary has it not: both must say so.
        if missing and difference.missing_sub_units >= sum(
            each.entry.sub_units for each in missing
        ):
            repaired += self._take_back(missing, dropped, now)
        return repaired

    def _try_again(
        self, key: HourKey, refused: Sequence[SentEntry], now: datetime
    ) -> list[Repaired]:
        names = [each.entry.identifier for each in refused]
        reasons = self._records.reasons_of(key.customer, key.meter, names) if names else {}
        waiting = [each for each in refused if reasons.get(each.entry.identifier) in WAITING]
        repaired = []
        for due in {each.due for each in waiting}:
            indexes = [each.index for each in waiting if each.due == due]
            _batch, sending = self._store.load_batch(due)
            if sending is None or not sending.done:
                continue  # The emitter is at it.
            for index in indexes:
                sending = sending.settle(index, Progress.PENDING)
            try:
                self._store.save_batch(due, replace(sending, done=False), opened=(), now=now)
            except SupersededError:
                continue
            # If this is lost, the batch is one that nobody works off.
            self._queue.send([due], renewal=f"reconciled:{now:%Y-%m-%dT%H:%M}")
            repaired.append(Repaired(Repair.TRIED_AGAIN, due.batch, len(indexes)))
        return repaired

    def _take_back(
        self, missing: Sequence[SentEntry], dropped: Mapping[str, DroppedUsage], now: datetime
    ) -> list[Repaired]:
        repaired = []
        for due in {each.due for each in missing}:
            of_batch = [each for each in missing if each.due == due][:_CHUNK]
            _batch, sending = self._store.load_batch(due)
            if sending is None or not sending.done:
                continue  # The emitter is at it.
            problems = []
            for each in of_batch:
                why = dropped[each.entry.identifier]
                sending = sending.settle(each.index, Progress.REFUSED)
                problems.append(
                    Problem(
                        Lapse.REFUSED,
                        why.code,
                        why.message,
                        each.entry.identifier,
                        each.entry.at_s,
                        each.entry.sub_units,
                    )
                )
            try:
                saved = self._store.save_batch(
                    due, replace(sending, parks=sending.parks + 1), opened=problems, now=now
                )
            except SupersededError:
                continue
            self._inbox.park(
                due,
                dedupe=f"{due.batch}:dropped:{saved.version}",
                code=str(Lapse.REFUSED),
                message=f"{len(of_batch)} dropped after they were taken",
            )
            repaired.append(Repaired(Repair.TAKEN_BACK, due.batch, len(of_batch)))
        return repaired

    def _work_off_totals(
        self,
        books: MeterBooks,
        meter: Meter,
        hours: _Hours,
        differing: Sequence[datetime],
        now: datetime,
        *,
        repair: bool,
    ) -> MeterBooks:
        parked = self._parked.parked()
        differences: list[Difference] = []
        repaired: list[Repaired] = []
        for hour in differing:
            key = HourKey(books.customer, meter.id, hour)
            local, billed = hours.local.get(hour, 0), hours.billed.get(hour, 0)
            due = HourDue(books.customer, meter.id, hour)
            sending = self._store.load_hour(due)
            if sending.lapse is not None:
                kind, code = sending.lapse.removeprefix("parking:").split(":")[:2]
                told = Explanation(Cause(kind), local - billed, 0, code)
                differences.append(Difference(key, local, billed, (told,)))
                if repair and code in WAITING:
                    self._queue.send([due], renewal=f"reconciled:{now:%Y-%m-%dT%H:%M}")
                    repaired.append(Repaired(Repair.TRIED_AGAIN, f"{hour:%Y-%m-%dT%H}", 0))
                continue
            if not local and sending.sent_sub_units is None:
                told = Explanation(Cause.FOREIGN, -billed, 0)
                differences.append(Difference(key, local, billed, (told,)))
                continue
            if parked.keep_back(due):
                told = Explanation(Cause.IN_DEAD_LETTERS, local - billed, 0)
                differences.append(Difference(key, local, billed, (told,)))
                continue
            differences.append(explain_stale(key, local, billed))
            if repair and self._renew_total(due, local, billed, now):
                repaired.append(Repaired(Repair.TOTAL_SENT_AGAIN, f"{hour:%Y-%m-%dT%H}", 0))
        return replace(books, differences=differences, repaired=repaired)

    def _renew_total(self, due: HourDue, local: int, billed: int, now: datetime) -> bool:
        """Have an hour's total sent again, even where it seems to have been taken."""
        sending = self._store.load_hour(due)
        if sending.attempt is not None:
            return False  # The emitter is at it, or will recover it.
        if sending.sent_sub_units is not None and sending.sent_sub_units != billed:
            # What stands there came after our last send: like an older total that arrived late.
            marked = sending.add_stray(billed, int(now.timestamp()))
            if sending.sent_sub_units == local:
                # Ours was the newest, and still something else counts: it is dated later.
                marked = replace(marked, event_at_s=int(due.hour.timestamp()) + 3599)
            try:
                self._store.save_hour(due, marked, opened=(), now=now)
            except SupersededError:
                return False
        self._queue.send([due], renewal=f"reconciled:{now:%Y-%m-%dT%H:%M}")
        return True

    def _keep(self, books: MeterBooks, now: datetime) -> None:
        """Put down what is not gone by itself, and close what is."""
        standing = {
            each.key.hour: each
            for each in books.differences
            if not each.is_transient and not self._is_settled(each)
        }
        for difference in standing.values():
            self._findings.put(difference, now)
        for hour in self._findings.open_hours(books.customer, books.meter):
            if books.start <= hour < books.end and hour not in standing:
                self._findings.close(HourKey(books.customer, books.meter, hour), now)

    @staticmethod
    def _is_settled(difference: Difference) -> bool:
        # Without an explanation that stands, the two sides met while we looked.
        return not difference.explanations


def spans_of(subscription: Subscription, now: datetime) -> tuple[datetime, datetime]:
    """From when to when usage is compared: whole hours that can still come onto an invoice."""
    start = subscription.current.start
    if subscription.past and now - start < CLOSED_FOR:
        start = subscription.past[-1].start
    start = max(start, now - OLDEST)
    end = max(floor_hour(now - GRACE), floor_hour(start))
    return floor_hour(start), end

"""Reconciliation: why the billing layer counts something else than the ledger, hour by hour.

The way of an event is ledger -> totals -> batch -> billing layer. Each cause below is a place on
that way where it can stand, and says by itself how many sub-units it keeps off the bill.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import combinations
from typing import NamedTuple

from meterline.domain.dropped import DroppedUsage
from meterline.domain.emission import BatchDue, DeadLetters, EmissionEntry
from meterline.domain.sending import BatchSending, Progress

GRACE = timedelta(minutes=10)
"""An hour is compared from ten minutes after its end on: until then its events are on their way."""
FRESH = timedelta(minutes=15)
"""What was sent so lately may not be in the billing layer's summaries yet: they are eventually
consistent (Stripe's OpenAPI document)."""
MAX_SEARCHED = 16
"""Unknown sends of one minute of which every choice is tried: 65,536 of them."""


class Cause(StrEnum):
    """Where usage stands that the two sides count differently."""

    UNCOUNTED = "uncounted"
    """In the ledger, but not in the totals: the projection is behind, or has lost it."""
    NOT_SENT = "not_sent"
    """In a batch that the emitter has not worked off."""
    IN_DEAD_LETTERS = "in_dead_letters"
    """In a batch whose message lies in the dead-letter queue."""
    IN_FLIGHT = "in_flight"
    """Sent a moment ago."""
    UNKNOWN = "unknown"
    """Sent without an answer; the summary says that it did not arrive."""
    REFUSED = "refused"
    LATE = "late"
    DROPPED = "dropped"
    """Taken, and dropped later, as an error report says."""
    STALE_TOTAL = "stale_total"
    """An hour's total that was overwritten by an older one, or never renewed."""
    FOREIGN = "foreign"
    """The billing layer counts usage that we never sent."""
    MISSING = "missing"
    """Sent and taken, but not counted, and nothing says why."""


TRANSIENT = frozenset({Cause.IN_FLIGHT, Cause.NOT_SENT, Cause.UNCOUNTED, Cause.STALE_TOTAL})
"""What goes away by itself, or is mended by sending again."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A part of a difference: positive sub-units are missing at the billing layer."""

    cause: Cause
    sub_units: int
    events: int
    reason: str = ""
    """The stable code of why, where there is one."""
    identifiers: Sequence[str] = ()
    """The first few events that it is about."""


class HourKey(NamedTuple):
    """One hour of one customer and meter."""

    customer: str
    meter: str
    hour: datetime


@dataclass(frozen=True, slots=True)
class Difference:
    """An hour that is counted differently, and all that explains it."""

    key: HourKey
    local_sub_units: int
    billed_sub_units: int
    explanations: Sequence[Explanation]

    @property
    def missing_sub_units(self) -> int:
        """What the ledger has more than the billing layer."""
        return self.local_sub_units - self.billed_sub_units

    @property
    def is_transient(self) -> bool:
        """Whether all of it goes away without anybody."""
        return all(each.cause in TRANSIENT for each in self.explanations)


@dataclass(frozen=True, slots=True)
class SentEntry:
    """One event of a batch, and how far its sending is."""

    due: BatchDue
    index: int
    entry: EmissionEntry
    progress: Progress
    made_at: datetime
    in_doubt: bool
    """A send of it is under way, or was not answered."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch as it was made and as far as it is sent."""

    due: BatchDue
    entries: Sequence[EmissionEntry]
    made_at: datetime
    sending: BatchSending | None

    def list_entries(self) -> Iterable[SentEntry]:
        """Its events, in order."""
        sending = self.sending or BatchSending.begin(len(self.entries))
        intent = sending.intent
        for index, entry in enumerate(self.entries):
            under_way = intent is not None and intent.start <= index < intent.end
            yield SentEntry(
                self.due,
                index,
                entry,
                Progress(sending.progress[index]),
                self.made_at,
                under_way or index in sending.unanswered,
            )


def explain_hour(
    key: HourKey,
    *,
    ledger_sub_units: int,
    ledger_events: int,
    local_sub_units: int,
    billed_sub_units: int,
    entries: Sequence[SentEntry],
    dropped: Mapping[str, DroppedUsage],
    reasons: Mapping[str, str],
    parked: DeadLetters,
    now: datetime,
) -> Difference:
    """Name all that makes an hour of a meter of single events differ.

    `ledger_*` is the sum of the ledger's own entries, `local_sub_units` what the totals say;
    `entries` are the hour's events in batches, `dropped` and `reasons` what is known of them by
    identifier, `parked` what lies in the dead-letter queue.
    """
    by_cause: dict[tuple[Cause, str], list[SentEntry]] = {}
    for each in entries:
        place = _place(each, dropped, reasons, parked, now)
        if place is not None:
            by_cause.setdefault(place, []).append(each)
    found = []
    uncounted = ledger_sub_units - local_sub_units
    if uncounted:
        missing = max(0, ledger_events - len(entries))
        found.append(Explanation(Cause.UNCOUNTED, uncounted, missing))
    in_batches = sum(each.entry.sub_units for each in entries)
    expected = in_batches
    unsure: list[Explanation] = []
    for (cause, reason), each_of in by_cause.items():
        explanation = _explain(cause, reason, each_of)
        if cause in (Cause.UNKNOWN, Cause.IN_FLIGHT):
            unsure.append(explanation)
        else:
            expected -= explanation.sub_units
            found.append(explanation)
    found += _explain_rest(expected - billed_sub_units, unsure)
    if local_sub_units != in_batches:
        found.append(Explanation(Cause.NOT_SENT, local_sub_units - in_batches, 0, "no_batch"))
    return Difference(key, ledger_sub_units, billed_sub_units, found)


def _place(
    each: SentEntry,
    dropped: Mapping[str, DroppedUsage],
    reasons: Mapping[str, str],
    parked: DeadLetters,
    now: datetime,
) -> tuple[Cause, str] | None:
    """Why an event may be missing there; None when it was taken, and not just now."""
    name = each.entry.identifier
    match each.progress:
        case Progress.REFUSED:
            return Cause.REFUSED, reasons.get(name, "")
        case Progress.LATE:
            return Cause.LATE, reasons.get(name, "")
        case Progress.UNKNOWN:
            return Cause.UNKNOWN, reasons.get(name, "")
        case Progress.PENDING if each.in_doubt and each.due in parked.seen:
            return Cause.UNKNOWN, str(Cause.IN_DEAD_LETTERS)
        case Progress.PENDING if each.in_doubt:
            return Cause.IN_FLIGHT, ""
        case Progress.PENDING if each.due in parked.seen:
            return Cause.IN_DEAD_LETTERS, ""
        case Progress.PENDING:
            return Cause.NOT_SENT, ""
    if name in dropped:
        return Cause.DROPPED, dropped[name].code
    return (Cause.IN_FLIGHT, "") if now - each.made_at < FRESH else None


def _explain(cause: Cause, reason: str, entries: Sequence[SentEntry]) -> Explanation:
    return Explanation(
        cause,
        sum(each.entry.sub_units for each in entries),
        len(entries),
        reason,
        tuple(each.entry.identifier for each in entries[:5]),
    )


def _explain_rest(rest: int, unsure: Sequence[Explanation]) -> list[Explanation]:
    """What is left of a difference, next to events of which nobody knows if they arrived."""
    if rest == 0:
        return []
    doubtful = sum(each.sub_units for each in unsure)
    if rest == doubtful:
        return list(unsure)
    if any(each.cause is Cause.IN_FLIGHT for each in unsure) and 0 < rest < doubtful:
        return [Explanation(Cause.IN_FLIGHT, rest, 0)]
    if unsure and 0 < rest < doubtful:
        # Some of the unknown have arrived; which of them, the minutes tell.
        unknown = unsure[0]
        return [Explanation(Cause.UNKNOWN, rest, 0, unknown.reason, unknown.identifiers)]
    return [Explanation(Cause.MISSING if rest > 0 else Cause.FOREIGN, rest, 0)]


def explain_lost(key: HourKey, lost: Sequence[tuple[str, int]], local_sub_units: int) -> Difference:
    """An hour that both sides count alike, and from which the stream has lost events.

    `lost` are their identifiers and sub-units.
    """
    total = sum(sub_units for _, sub_units in lost)
    names = tuple(identifier for identifier, _ in lost[:5])
    told = (Explanation(Cause.UNCOUNTED, total, len(lost), "", names),)
    return Difference(key, local_sub_units + total, local_sub_units, told)


def explain_stale(key: HourKey, local_sub_units: int, billed_sub_units: int) -> Difference:
    """An hour of a meter that is sent as totals: sending the total again mends it."""
    rest = local_sub_units - billed_sub_units
    told = (Explanation(Cause.STALE_TOTAL, rest, 0),)
    return Difference(key, local_sub_units, billed_sub_units, told)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a minute's summary proves of its unknown sends."""

    billed: frozenset[str]
    not_billed: frozenset[str]


def weigh_evidence(unknown: Sequence[EmissionEntry], surplus: int) -> Evidence | None:
    """Which unknown sends of a minute arrived, if `surplus` is what its summary counts beyond the
    sends that are known; None when more than one answer fits, or none.

    The summary is the only witness. It decides only where a single choice of the unknown sends
    adds up to what it saw: anything else stays with a person.
    """
    names = frozenset(each.identifier for each in unknown)
    if surplus == 0 and all(each.sub_units > 0 for each in unknown):
        return Evidence(frozenset(), names)
    if surplus == sum(each.sub_units for each in unknown) and all(
        each.sub_units > 0 for each in unknown
    ):
        return Evidence(names, frozenset())
    if len(unknown) > MAX_SEARCHED:
        return None
    fitting = [
        chosen
        for count in range(len(unknown) + 1)
        for chosen in combinations(unknown, count)
        if sum(each.sub_units for each in chosen) == surplus
    ]
    if len(fitting) != 1:
        return None
    billed = frozenset(each.identifier for each in fitting[0])
    return Evidence(billed, names - billed)


def floor_minute(at_s: int) -> int:
    """The start of the minute that a second is in: summaries take whole minutes."""
    return at_s - at_s % 60


def hour_of(at_s: int) -> datetime:
    """The start of the UTC hour that a second is in."""
    return datetime.fromtimestamp(at_s - at_s % 3600, UTC)

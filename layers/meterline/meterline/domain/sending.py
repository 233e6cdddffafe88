"""How far the sending of a batch or of an hour's total got, and what may be done next.

The rule behind all of it: before anything is sent, it is written down that it is about to be.
So after a crash at any point the record says which sends may have been applied, and since when.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum

from meterline.domain.emission import (
    BillableFrom,
    BillingLimits,
    EmissionEntry,
    Lapse,
    NotBilled,
    Problem,
    RefusalCode,
)
from meterline.domain.measuring import HourTotal
from meterline.domain.periods import Period

DEDUPE_MARGIN_S = 3600
"""A repeated identifier is relied on for an hour less than the billing layer promises: it counts
from when it got the first one, we from when we were about to send it."""

MAX_HOLD_S = 3600
"""An event from the future is held back (and its group with it) for at most an hour."""

LINGER_S = 120
"""A send without an answer may still arrive for so long: twice what the function may run."""

_HOUR_PREFIX = "mlh_"
BROKEN_OFF_PREFIX = "mlp_"
_MAX_STRAYS = 16
_REFUSED_FOR_CONTENT = frozenset({RefusalCode.BAD_VALUE, RefusalCode.TOO_MANY_DIGITS})


class Progress(StrEnum):
    """What has become of one entry; one character, because a batch keeps one for each."""

    PENDING = "."
    SENT = "s"
    LATE = "l"
    REFUSED = "r"
    UNKNOWN = "u"


_OPEN = frozenset({Progress.REFUSED, Progress.UNKNOWN})
_LAPSED = {
    Lapse.LATE: Progress.LATE,
    Lapse.REFUSED: Progress.REFUSED,
    Lapse.UNKNOWN: Progress.UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class Intent:
    """From `at_s` on, the pending entries from `start` up to `end` are being sent."""

    start: int
    end: int
    at_s: int


@dataclass(frozen=True, slots=True)
class BatchSending:
    """How far the sending of one batch got. `version` counts the saves and fences out others."""

    progress: str
    """One `Progress` for each entry."""
    version: int = 0
    unanswered: Mapping[int, int] = field(default_factory=dict)
    """Entry to seconds since the epoch: the first send of it that may have been applied."""
    intent: Intent | None = None
    parks: int = 0
    """How many times it was set aside with open problems."""
    done: bool = False

    @classmethod
    def begin(cls, count: int) -> BatchSending:
        """Nothing of `count` entries sent so far."""
        return cls(Progress.PENDING * count)

    def recover(self) -> BatchSending:
        """What an interrupted run was about to send may have been applied since it said so."""
        if self.intent is None:
            return self
        unanswered = dict(self.unanswered)
        for index in range(self.intent.start, self.intent.end):
            if self.progress[index] == Progress.PENDING:
                unanswered.setdefault(index, self.intent.at_s)
        return replace(self, unanswered=unanswered, intent=None)

    def intend(self, indexes: Iterable[int], at_s: int) -> BatchSending:
        """These entries are about to be sent, from `at_s` on."""
        chosen = list(indexes)
        progress = list(self.progress)
        for index in chosen:
            progress[index] = Progress.PENDING
        intent = Intent(min(chosen), max(chosen) + 1, at_s)
        return replace(self, progress="".join(progress), intent=intent, done=False)

    def settle(self, index: int, progress: Progress) -> BatchSending:
        """The entry's outcome; a send that may have been applied stays on record unless it was."""
        unanswered = self.unanswered
        if progress is Progress.SENT and index in unanswered:
            unanswered = {i: at_s for i, at_s in unanswered.items() if i != index}
        changed = self.progress[:index] + progress + self.progress[index + 1 :]
        return replace(self, progress=changed, unanswered=unanswered)

    def miss_answer(self, index: int, at_s: int) -> BatchSending:
        """A send of the entry, begun at `at_s`, may have been applied."""
        if index in self.unanswered:
            return self
        return replace(self, unanswered={**self.unanswered, index: at_s})

    @property
    def has_pending(self) -> bool:
        """Whether an entry still waits to be sent."""
        return Progress.PENDING in self.progress

    @property
    def has_open_problems(self) -> bool:
        """Whether an entry was refused, or is unknown for good."""
        return any(status in self.progress for status in _OPEN)

    def is_due(self, index: int, *, retry: bool) -> bool:
        """Whether the entry is to be looked at; `retry` takes up what was refused or unknown."""
        status = self.progress[index]
        return status == Progress.PENDING or (retry and status in _OPEN)


@dataclass(frozen=True, slots=True)
class Send:
    """Send it now."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Not before `until_s`."""

    until_s: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It is not to be sent: why."""

    problem: Problem

    @property
    def progress(self) -> Progress:
        """What becomes of the entry."""
        return _LAPSED[self.problem.kind]


Decision = Send | Wait | GiveUp


def decide_entry(
    entry: EmissionEntry,
    unanswered_at_s: int | None,
    *,
    limits: BillingLimits,
    billable: BillableFrom | NotBilled,
    now_s: int,
) -> Decision:
    """Whether an unsettled entry may be sent at `now_s`.

    An unanswered send is repeated only while a repeated identifier is recognised; after that, or
    where it could not be sent any more, nobody knows whether it was billed: never sent blind.
    """
    if unanswered_at_s is not None and now_s - unanswered_at_s >= limits.dedupe_s - DEDUPE_MARGIN_S:
        return GiveUp(
            _problem(
                entry,
                Lapse.UNKNOWN,
                "unanswered",
                f"sent at {_moment(unanswered_at_s)} without an answer",
            )
        )
    lapse = find_lapse(entry.at_s, entry.sub_units, limits=limits, billable=billable, now_s=now_s)
    if lapse is not None:
        return give_up(entry, *lapse, unanswered_at_s=unanswered_at_s)
    if entry.at_s > now_s:
        # Its period can still end before that, and then it would be taken and be on no invoice.
        return Wait(entry.at_s)
    return Send()


def give_up(
    entry: EmissionEntry,
    kind: Lapse,
    code: str,
    message: str,
    *,
    unanswered_at_s: int | None,
) -> GiveUp:
    """Give the entry up for that reason; as unknown, if an earlier send may have been applied.

    What is refused for its content alone was refused just so before.
    """
    if unanswered_at_s is not None and code not in _REFUSED_FOR_CONTENT:
        told = f"{message}; sent at {_moment(unanswered_at_s)} without an answer"
        return GiveUp(_problem(entry, Lapse.UNKNOWN, code, told))
    return GiveUp(_problem(entry, kind, code, message))


def find_lapse(
    at_s: int,
    sub_units: int,
    *,
    limits: BillingLimits,
    billable: BillableFrom | NotBilled,
    now_s: int,
) -> tuple[Lapse, str, str] | None:
    """Why usage at `at_s` can never be billed as it stands, with code and message, or None."""
    if isinstance(billable, NotBilled):
        return Lapse.REFUSED, billable.code, billable.message
    if len(str(abs(sub_units))) > limits.max_digits:
        return (
            Lapse.REFUSED,
            RefusalCode.TOO_MANY_DIGITS,
            f"the value has more than {limits.max_digits} digits",
        )
    if at_s < now_s - limits.max_age_s:
        days = limits.max_age_s // 86400
        return Lapse.LATE, RefusalCode.TOO_OLD, f"older than the {days} days that are taken"
    if at_s < billable.at_s:
        return (
            Lapse.LATE,
            "period_final",
            f"its period's invoice is final; usage counts from {_moment(billable.at_s)} on",
        )
    if billable.until_s is not None and at_s >= billable.until_s:
        return (
            Lapse.REFUSED,
            RefusalCode.NO_SUBSCRIPTION,
            f"the subscription ended at {_moment(billable.until_s)}",
        )
    if at_s > now_s + limits.max_ahead_s + MAX_HOLD_S:
        return Lapse.REFUSED, RefusalCode.IN_FUTURE, "too far in the future to wait for"
    return None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One send of an hour's total, begun at `at_s`."""

    sub_units: int
    at_s: int


@dataclass(frozen=True, slots=True)
class HourSending:
    """How far the sending of one hour's total got. `version` counts the saves.

    `strays` are sends without an answer, value to the time until which they may still arrive:
    one that arrives after a newer total would overwrite it. So the hour is settled only when the
    last total was sent after the last stray could arrive, or all strays say the same.
    """

    version: int = 0
    sequence: int = 0
    """How many sends were begun. Each has an identifier of its own, so that none is refused."""
    sent_sub_units: int | None = None
    """The last total that the billing layer is known to have taken."""
    event_at_s: int = 0
    """The timestamp of the last send. It never falls, so that the latest send is the latest."""
    attempt: Attempt | None = None
    strays: Mapping[int, int] = field(default_factory=dict)
    lapse: str | None = None
    """`kind:code:sub_units` of the problem that is open for this hour."""
    parks: int = 0

    def recover(self) -> HourSending:
        """An attempt that an interrupted run left open may still arrive."""
        if self.attempt is None:
            return self
        return self.drop_attempt(self.attempt.at_s + LINGER_S)

    def drop_attempt(self, until_s: int | None) -> HourSending:
        """End the attempt without an answer: it may arrive until `until_s`, or never (None)."""
        if self.attempt is None or until_s is None:
            return replace(self, attempt=None)
        return replace(self, attempt=None).add_stray(self.attempt.sub_units, until_s)

    def add_stray(self, sub_units: int, until_s: int) -> HourSending:
        """A send of that value may arrive until `until_s`."""
        strays = dict(self.strays)
        strays[sub_units] = max(until_s, strays.get(sub_units, 0))
        # Any two of them already force a fresh send after the last; the oldest can be forgotten.
        latest = sorted(strays.items(), key=lambda stray: stray[1])[-_MAX_STRAYS:]
        return replace(self, strays=dict(latest))

    def earliest_s(self, hour: datetime, billable_from_s: int) -> int:
        """From when on the hour's total can be dated so that it is billed, or the hour's start.

        A period may begin inside an hour: a new subscription, or anchors that are not aligned to
        the hour. What was sent before it lies in the period before, and stays there.
        """
        hour_s = int(hour.timestamp())
        is_untouched = not self.event_at_s or self.event_at_s >= billable_from_s
        if hour_s < billable_from_s < hour_s + 3600 and is_untouched:
            return billable_from_s
        return hour_s

    def begin(
        self, total: HourTotal, hour: datetime, now_s: int, earliest_s: int = 0
    ) -> HourSending:
        """Begin to send the total; its timestamp lies in the hour, not ahead, and never falls."""
        hour_s = int(hour.timestamp())
        sequence = self.sequence + 1
        event_at_s = hour_s + max(0, min(sequence, now_s - hour_s, 3599))
        return replace(
            self,
            sequence=sequence,
            event_at_s=max(self.event_at_s, event_at_s, earliest_s),
            attempt=Attempt(total.sub_units, now_s),
        )

    def succeed(self) -> HourSending:
        """The attempt was taken: strays that could only have arrived before it are history."""
        assert self.attempt is not None
        began_s = self.attempt.at_s
        return replace(
            self,
            attempt=None,
            sent_sub_units=self.attempt.sub_units,
            strays={value: until for value, until in self.strays.items() if until > began_s},
        )

    def resend_at_s(self) -> int | None:
        """From when the last total must be sent once more, or None if no stray can undo it."""
        others = [until for value, until in self.strays.items() if value != self.sent_sub_units]
        return max(others) if others else None


def hour_identifier(customer: str, meter: str, hour: datetime, sequence: int) -> str:
    """The identifier of one send of an hour's total, 44 characters; sequence 0 names the hour.

    It counts the sends, not the events: to mend an older total that arrived late, the same total
    must be sent again, and under its first identifier it would be refused as a repeat.
    """
    text = f"{customer}\x1f{meter}\x1f{hour.astimezone(UTC):%Y-%m-%dT%H}\x1f{sequence}"
    return _HOUR_PREFIX + hashlib.sha256(text.encode()).hexdigest()[:40]


def find_last_s(identifier: str, at_s: int) -> int:
    """The last second that a problem of that name is about: an hour's total is of a whole hour."""
    if identifier.startswith(BROKEN_OFF_PREFIX):
        return int(identifier.removeprefix(BROKEN_OFF_PREFIX)) - 1
    return at_s + 3599 if identifier.startswith(_HOUR_PREFIX) else at_s


def after_end_identifier(customer: str, meter: str, hour: datetime) -> str:
    """The name of what of an hour was used after a subscription's end; never that of a send."""
    return "mla_" + hour_identifier(customer, meter, hour, 0).removeprefix("mlh_")


def broken_off_identifier(part: Period) -> str:
    """The name of what is on no invoice of a period that ended before its time."""
    return f"{BROKEN_OFF_PREFIX}{int(part.end.timestamp())}"


def _problem(entry: EmissionEntry, kind: Lapse, code: str, message: str) -> Problem:
    return Problem(kind, str(code), message, entry.identifier, entry.at_s, entry.sub_units)


def _moment(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

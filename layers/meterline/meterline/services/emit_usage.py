"""Tell the billing layer what was used: each event once, or each hour's total so far.

Each message is one batch of events, or one hour, of one customer and meter. Messages of one
customer and meter (a group) are worked off in order and never side by side; once one of them is
handed back, all that follow it are too. What can never be billed is kept as a problem with its
reason and holds up nothing; nor does a message that a defect of ours keeps from being worked off.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from math import ceil

from meterline.domain.emission import (
    WAITING,
    BatchDue,
    BillableFrom,
    BillableUsage,
    Delivery,
    EmissionBatch,
    EmissionEntry,
    HourDue,
    Lapse,
    NotApplied,
    NotBilled,
    Problem,
    RefusalCode,
    Refused,
    SendOutcome,
    Sent,
    Unavailable,
    Unknown,
)
from meterline.domain.measuring import HourTotal
from meterline.domain.meters import Meter
from meterline.domain.sending import (
    LINGER_S,
    BatchSending,
    GiveUp,
    HourSending,
    Progress,
    Send,
    Wait,
    decide_entry,
    find_lapse,
    give_up,
    hour_identifier,
)
from meterline.errors import StorageUnavailableError, SupersededError
from meterline.ports import (
    BillingCustomers,
    BillingLayer,
    EmissionInbox,
    EmissionStore,
    HourTotals,
)

CHUNK = 45
"""Entries between two saves: what a crash leaves in doubt. The problems of two chunks and the state
must fit into one transaction of 100 items."""

MAX_DEFECTS = 6
"""A message that fails by a defect so often, over two minutes and more, holds its group up no
longer: it goes to the dead-letter queue."""
_DEFECTS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What code raises that is wrong, or met data that it cannot handle. Everything else is a matter
of waiting: for the network, the storage, a secret, a permission."""

_MAX_HOUR_ROUNDS = 5
_MAX_DELAY_S = 900


@dataclass(frozen=True, slots=True)
class HandedBack:
    """A delivery that is to come again after `delay_s`, and why."""

    id: str
    receipt: str
    delay_s: int
    reason: str


@dataclass(frozen=True, slots=True)
class EmissionReport:
    """What one call came to: deliveries handed back, counts, and groups that failed."""

    handed_back: Sequence[HandedBack]
    counts: EmissionCounts
    lapses: Mapping[tuple[str, Lapse, str], int]
    """How many could not be billed, by group, kind and code."""
    failures: Sequence[tuple[str, Exception]]
    """Group and error; its deliveries are among those handed back."""


@dataclass(slots=True)
class EmissionCounts:
    """Events (or hourly totals) by what became of them in this call, and tries beyond the first."""

    emitted: int = 0
    repeated: int = 0
    """Of those, the ones that the billing layer already had."""
    late: int = 0
    refused: int = 0
    unknown: int = 0
    retries: int = 0

    def add_lapse(self, kind: Lapse) -> None:
        """Count one that could not be billed."""
        setattr(self, kind, getattr(self, kind) + 1)

    def add(self, other: EmissionCounts) -> None:
        """Add the counts of another."""
        for name in ("emitted", "repeated", "late", "refused", "unknown", "retries"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a send is tried again inside one call, with full jitter, before it is handed back."""

    tries: int = 4
    base_s: float = 0.2
    cap_s: float = 5.0
    reserve_s: float = 20.0
    """What must be left of the call for one more try and the save after it."""
    threads: int = 10


class _HandBack(Exception):  # noqa: N818 - it says what happens next, nothing went wrong
    """Stop here and hand the delivery back after `delay_s`.

    Without one the delay grows with the receive count, from `at_least_s` on.
    """

    def __init__(
        self, reason: str, delay_s: float | None = None, *, at_least_s: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay_s = delay_s
        self.at_least_s = at_least_s or 0.0


class EmitUsage:
    """The job of the emission queue.

    `now` and `pause` are the clock; `seconds_left` in a call says how long it may still take.
    """

    def __init__(
        self,
        store: EmissionStore,
        inbox: EmissionInbox,
        billing: BillingLayer,
        customers: BillingCustomers,
        totals: HourTotals,
        meters: Mapping[str, Meter],
        *,
        now: Callable[[], datetime],
        pause: Callable[[float], None],
        policy: RetryPolicy | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.store = store
        self.inbox = inbox
        self.billing = billing
        self.customers = customers
        self.totals = totals
        self.meters = meters
        self.now = now
        self.pause = pause
        self.policy = policy or RetryPolicy()
        self.jitter = jitter
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __call__(
        self, deliveries: Sequence[Delivery], seconds_left: Callable[[], float]
    ) -> EmissionReport:
        """Work off the deliveries, groups side by side; those handed back are delayed already."""
        groups: dict[str, list[Delivery]] = {}
        for delivery in deliveries:
            groups.setdefault(delivery.group, []).append(delivery)
        runs = [_GroupRun(self, group, seconds_left) for group in groups.values()]
        if len(runs) == 1:
            runs[0].work()
        else:
            self._work_side_by_side(runs)
        counts = EmissionCounts()
        handed_back: list[HandedBack] = []
        lapses: dict[tuple[str, Lapse, str], int] = {}
        failures: list[tuple[str, Exception]] = []
        for run in runs:
            counts.add(run.counts)
            lapses |= {(run.group, *why): count for why, count in run.lapses.items()}
            handed_back += run.handed_back
            if run.failure is not None:
                failures.append((run.group, run.failure))
        self._delay(handed_back)
        return EmissionReport(handed_back, counts, lapses, failures)

    def _work_side_by_side(self, runs: Sequence[_GroupRun]) -> None:
        with self._lock:
            if self._executor is None:
                # Kept between calls, so that each thread keeps its connections.
                self._executor = ThreadPoolExecutor(self.policy.threads, "emit")
        futures = [self._executor.submit(run.work) for run in runs]
        wait(futures)
        for future in futures:
            future.result()

    def _delay(self, handed_back: Sequence[HandedBack]) -> None:
        by_delay: dict[int, list[str]] = {}
        for back in handed_back:
            by_delay.setdefault(back.delay_s, []).append(back.receipt)
        for delay_s, receipts in by_delay.items():
            self.inbox.delay(receipts, delay_s)


@dataclass
class _GroupRun:
    """The deliveries of one group in one call, in order."""

    job: EmitUsage
    deliveries: Sequence[Delivery]
    seconds_left: Callable[[], float]
    counts: EmissionCounts = field(default_factory=EmissionCounts)
    handed_back: list[HandedBack] = field(default_factory=list)
    lapses: Counter[tuple[Lapse, str]] = field(default_factory=Counter)
    failure: Exception | None = None

    @property
    def group(self) -> str:
        return self.deliveries[0].group

    def work(self) -> None:
        for index, delivery in enumerate(self.deliveries):
            try:
                self._work_off(delivery)
            except _HandBack as back:
                self._hand_back(index, back)
                return
            except SupersededError:
                self._hand_back(index, _HandBack("another run is at it"))
                return
            except Exception as error:  # noqa: BLE001 - reported, and only this group waits for it
                self.failure = error
                if not self._park_defect(delivery, error):
                    self._hand_back(index, _HandBack(f"failed: {type(error).__name__}"))
                    return

    def _park_defect(self, delivery: Delivery, error: Exception) -> bool:
        """Put aside what fails again and again by a defect of ours; what waits for somebody else
        waits for as long as it takes."""
        if not isinstance(error, _DEFECTS) or delivery.receive_count < MAX_DEFECTS:
            return False
        if delivery.due is None:
            return False
        try:
            self.job.inbox.park(
                delivery.due,
                dedupe=f"{delivery.id}:defect",
                code=RefusalCode.DEFECT,
                message=f"{type(error).__name__}, {delivery.receive_count} times",
            )
        except StorageUnavailableError:
            return False
        return True

    def _hand_back(self, index: int, back: _HandBack) -> None:
        delay_s = back.delay_s
        if delay_s is None:
            growing_s = 5.0 * 2 ** min(self.deliveries[index].receive_count - 1, 10)
            jittered_s = min(_MAX_DELAY_S, growing_s) * (0.5 + self.job.jitter() / 2)
            delay_s = max(jittered_s, back.at_least_s)
        # Rounded up: a moment too early would only be handed back once more.
        whole_s = max(0, min(_MAX_DELAY_S, ceil(delay_s)))
        self.handed_back += [
            HandedBack(delivery.id, delivery.receipt, whole_s, back.reason)
            for delivery in self.deliveries[index:]
        ]

    def _work_off(self, delivery: Delivery) -> None:
        match delivery.due:
            case None:
                self.job.inbox.park_unreadable(
                    delivery.body, group=delivery.group, dedupe=delivery.id
                )
            case BatchDue() as due:
                _BatchRun(self, due, delivery.parked).work()
            case HourDue() as due:
                _HourRun(self, due, delivery.parked).work()

    def count_lapse(self, kind: Lapse, code: str) -> None:
        self.counts.add_lapse(kind)
        self.lapses[kind, code] += 1

    def now_s(self) -> int:
        return int(self.job.now().timestamp())

    def check_time(self) -> None:
        if self.seconds_left() < self.job.policy.reserve_s:
            raise _HandBack("out of time", 0)

    def find_billing(self, customer: str) -> tuple[str, BillableFrom | NotBilled]:
        """The customer's id at the billing layer, and from when on it is billed."""
        billing_customer = self.job.customers.billing_customer(customer)
        if billing_customer is None:
            return "", NotBilled(
                RefusalCode.NO_BILLING_CUSTOMER,
                "the customer is unknown, or has no id at the billing layer",
            )
        billable = self.job.billing.billable_from(billing_customer)
        if isinstance(billable, Unavailable):
            raise _HandBack(billable.reason, at_least_s=billable.retry_after_s)
        return billing_customer, billable

    def send(self, usage: BillableUsage, miss: Callable[[int], bool]) -> SendOutcome:
        """Send, and try again what may be tried again; `miss` hears of each missing answer.

        `miss` gets the second in which that send began, and says whether to go on.
        """
        policy = self.job.policy
        outcome: SendOutcome = NotApplied("not tried")
        for attempt in range(policy.tries):
            if attempt:
                longest_s = min(policy.cap_s, policy.base_s * 2**attempt)
                pause_s = longest_s * self.job.jitter()
                if isinstance(outcome, NotApplied) and outcome.retry_after_s is not None:
                    pause_s = max(pause_s, outcome.retry_after_s)
                if pause_s + policy.reserve_s > self.seconds_left():
                    break
                self.job.pause(pause_s)
                self.counts.retries += 1
            began_s = self.now_s()
            outcome = self.job.billing.send(usage)
            if isinstance(outcome, Sent):
                self.counts.emitted += 1
                self.counts.repeated += outcome.repeated
                break
            if isinstance(outcome, Refused):
                break
            if isinstance(outcome, Unknown) and not miss(began_s):
                break
        return outcome


class _BatchRun:
    """The sending of one batch."""

    def __init__(self, run: _GroupRun, due: BatchDue, retry: bool) -> None:
        self._run = run
        self._job = run.job
        self._due = due
        self._retry = retry
        self._opened: list[Problem] = []

    def work(self) -> None:
        batch, found = self._job.store.load_batch(self._due)
        if found is not None and found.done and not (self._retry and found.has_open_problems):
            return
        if batch is None:
            self._park_missing()
            return
        self._batch: EmissionBatch = batch
        self._saved = found or BatchSending.begin(len(batch.entries))
        self._sending = self._saved.recover()
        # Where an entry was refused or given up before, its problem may be open.
        self._had_problems = self._retry or self._sending.parks > 0
        self._meter = self._job.meters.get(batch.meter)
        self._billing_customer = ""
        self._billable: BillableFrom | NotBilled
        if self._meter is None:
            self._billable = NotBilled(*_unknown_meter(batch.meter))
        else:
            self._billing_customer, self._billable = self._run.find_billing(batch.customer)
        try:
            wait_until_s = self._send_entries()
            if wait_until_s is not None:
                raise _HandBack("from the future", wait_until_s - self._run.now_s())
        except _HandBack:
            answered = replace(self._sending, intent=None)
            if answered != self._saved:
                self._save(answered)
            raise
        self._finish()

    def _send_entries(self) -> int | None:
        """Send what may be sent; until when the first of the others must wait, if any must."""
        wait_until_s: int | None = None
        for start in range(0, len(self._batch.entries), CHUNK):
            to_send = []
            for index in range(start, min(start + CHUNK, len(self._batch.entries))):
                if not self._sending.is_due(index, retry=self._retry):
                    continue
                match self._decide(index):
                    case Send():
                        to_send.append(index)
                    case Wait(until_s):
                        wait_until_s = min(until_s, wait_until_s or until_s)
                    case GiveUp() as verdict:
                        self._give_up(index, verdict)
            if to_send:
                self._run.check_time()
                # Written before the first send: from here on a crash leaves these in doubt.
                self._save(self._sending.intend(to_send, self._run.now_s()))
                for index in to_send:
                    self._send_entry(index)
                self._sending = replace(self._sending, intent=None)
            elif self._opened:
                self._save(replace(self._sending, intent=None))
        return wait_until_s

    def _decide(self, index: int) -> Send | Wait | GiveUp:
        return decide_entry(
            self._entry(index),
            self._sending.unanswered.get(index),
            limits=self._job.billing.limits,
            billable=self._billable,
            now_s=self._run.now_s(),
        )

    def _entry(self, index: int) -> EmissionEntry:
        return self._batch.entries[index]

    def _send_entry(self, index: int) -> None:
        self._run.check_time()
        assert self._meter is not None
        entry = self._entry(index)
        # Time has passed since the chunk was decided on: what is in doubt may have become too old.
        verdict = self._decide(index)
        if isinstance(verdict, GiveUp):
            self._give_up(index, verdict)
            return
        if isinstance(verdict, Wait):
            raise _HandBack("from the future", verdict.until_s - self._run.now_s())

        def miss(began_s: int) -> bool:
            self._sending = self._sending.miss_answer(index, began_s)
            return isinstance(self._decide(index), Send)

        usage = BillableUsage(
            self._billing_customer,
            self._meter.event_name,
            entry.identifier,
            entry.at_s,
            entry.sub_units,
        )
        match self._run.send(usage, miss):
            case Sent():
                if self._had_problems:
                    # Before the save: if the save is lost, the entry is in doubt, not forgotten.
                    self._job.store.resolve_problem(self._due, entry.identifier, self._job.now())
                self._sending = self._sending.settle(index, Progress.SENT)
            case Refused(code, message):
                kind = Lapse.LATE if code == RefusalCode.TOO_OLD else Lapse.REFUSED
                since_s = self._sending.unanswered.get(index)
                self._give_up(index, give_up(entry, kind, code, message, unanswered_at_s=since_s))
            case NotApplied(reason, retry_after_s):
                raise _HandBack(reason, at_least_s=retry_after_s)
            case Unknown(reason):
                raise _HandBack(reason)

    def _give_up(self, index: int, verdict: GiveUp) -> None:
        self._sending = self._sending.settle(index, verdict.progress)
        self._opened.append(verdict.problem)
        self._run.count_lapse(verdict.problem.kind, verdict.problem.code)

    def _finish(self) -> None:
        if self._sending.has_open_problems:
            # The problems are safe before the dead letter tells of them.
            if self._opened or self._sending.version == 0:
                self._save(self._sending)
            refused = self._sending.progress.count(Progress.REFUSED)
            unknown = self._sending.progress.count(Progress.UNKNOWN)
            waits = isinstance(self._billable, NotBilled) and self._billable.code in WAITING
            if unknown or not waits:
                self._job.inbox.park(
                    self._due,
                    dedupe=f"{self._due.batch}:{self._sending.parks}",
                    code=Lapse.REFUSED if refused else Lapse.UNKNOWN,
                    message=f"{refused} refused, {unknown} unknown, of {len(self._batch.entries)}",
                )
            self._job.store.keep_batch(self._due)
            self._sending = replace(self._sending, parks=self._sending.parks + 1)
        elif self._sending.parks:
            self._job.store.expire_batch(self._due, self._job.now())
        self._save(replace(self._sending, done=True, intent=None))

    def _save(self, sending: BatchSending) -> None:
        self._sending = self._job.store.save_batch(
            self._due, sending, opened=self._opened, now=self._job.now()
        )
        self._saved = self._sending
        self._opened = []

    def _park_missing(self) -> None:
        self._job.inbox.park(
            self._due,
            dedupe=f"{self._due.batch}:missing",
            code=RefusalCode.BATCH_MISSING,
            message="the emissions table holds no such batch",
        )


class _HourRun:
    """The sending of one hour's total."""

    def __init__(self, run: _GroupRun, due: HourDue, retry: bool) -> None:
        self._run = run
        self._job = run.job
        self._due = due
        self._retry = retry
        self._sending = HourSending()

    def work(self) -> None:
        self._sending = self._job.store.load_hour(self._due).recover()
        for _ in range(_MAX_HOUR_ROUNDS):
            # Read anew after each send: a total that changed meanwhile is sent as well.
            total = self._job.totals.hour_total(self._due.customer, self._due.meter, self._due.hour)
            resend_at_s = self._sending.resend_at_s()
            if total.sub_units == (self._sending.sent_sub_units or 0) and not self._is_unsure():
                self._settle()
                return
            if (
                resend_at_s is not None
                and total.sub_units == self._sending.sent_sub_units
                and resend_at_s > self._run.now_s()
            ):
                self._save(self._sending)
                raise _HandBack("an older total may still arrive", resend_at_s - self._run.now_s())
            if not self._send(total):
                return
        raise _HandBack("the total does not stand still", 0)

    def _is_unsure(self) -> bool:
        return self._sending.resend_at_s() is not None

    def _settle(self) -> None:
        if self._sending.lapse is None:
            return
        self._job.store.resolve_problem(self._due, self._name(), self._job.now())
        self._save(replace(self._sending, lapse=None))

    def _name(self) -> str:
        return hour_identifier(self._due.customer, self._due.meter, self._due.hour, 0)

    def _send(self, total: HourTotal) -> bool:
        """Send the total; False when it cannot be billed and that is on record."""
        meter = self._job.meters.get(self._due.meter)
        if meter is None:
            return self._give_up(total, (Lapse.REFUSED, *_unknown_meter(self._due.meter)))
        billing_customer, billable = self._run.find_billing(self._due.customer)
        billed_from_s = billable.at_s if isinstance(billable, BillableFrom) else 0
        earliest_s = self._sending.earliest_s(self._due.hour, billed_from_s)
        lapse = find_lapse(
            earliest_s,
            total.sub_units,
            limits=self._job.billing.limits,
            billable=billable,
            now_s=self._run.now_s(),
        )
        if lapse is not None:
            return self._give_up(total, lapse)
        self._wait_for_hour()
        self._run.check_time()
        self._save(self._sending.begin(total, self._due.hour, self._run.now_s(), earliest_s))
        assert self._sending.attempt is not None
        usage = BillableUsage(
            billing_customer,
            meter.event_name,
            hour_identifier(
                self._due.customer, self._due.meter, self._due.hour, self._sending.sequence
            ),
            self._sending.event_at_s,
            total.sub_units,
        )
        missed = False

        def miss(_began_s: int) -> bool:
            nonlocal missed
            missed = True
            return True

        outcome = self._run.send(usage, miss)
        until_s = self._run.now_s() + LINGER_S if missed else None
        match outcome:
            case Sent():
                self._save_sent(total.sub_units)
                return True
            case Refused(code, message):
                self._sending = self._sending.drop_attempt(until_s)
                kind = Lapse.LATE if code == RefusalCode.TOO_OLD else Lapse.REFUSED
                return self._give_up(total, (kind, code, message))
            case NotApplied(reason, retry_after_s):
                self._save(self._sending.drop_attempt(until_s))
                raise _HandBack(reason, at_least_s=retry_after_s)
            case Unknown(reason):
                self._save(self._sending.drop_attempt(until_s))
                raise _HandBack(reason)

    def _wait_for_hour(self) -> None:
        ahead = self._due.hour - self._job.now()
        if ahead > timedelta(0):
            raise _HandBack("from the future", ahead.total_seconds())

    def _save_sent(self, sub_units: int) -> None:
        try:
            self._save(self._sending.succeed())
        except SupersededError:
            # Another run sent its total around ours: which of the two arrived last is open.
            stored = self._job.store.load_hour(self._due).recover()
            self._sending = stored.add_stray(sub_units, self._run.now_s())
            self._save(self._sending)

    def _give_up(self, total: HourTotal, why: tuple[Lapse, str, str]) -> bool:
        kind, code, message = why
        rest = total.sub_units - (self._sending.sent_sub_units or 0)
        if self._is_unsure():
            kind, message = Lapse.UNKNOWN, f"{message}; a total was sent without an answer"
        problem = Problem(
            kind, str(code), message, self._name(), int(self._due.hour.timestamp()), rest
        )
        lapse = f"{kind}:{code}:{rest}"
        if lapse == self._sending.lapse and not self._retry:
            return False
        self._run.count_lapse(kind, str(code))
        self._save(replace(self._sending, lapse=f"parking:{lapse}"), [problem])
        if kind is Lapse.UNKNOWN or (kind is Lapse.REFUSED and code not in WAITING):
            self._job.inbox.park(
                self._due,
                dedupe=f"{self._name()}:{self._sending.parks}",
                code=str(code),
                message=message,
            )
        self._save(replace(self._sending, lapse=lapse, parks=self._sending.parks + 1))
        return False

    def _save(self, sending: HourSending, opened: Sequence[Problem] = ()) -> None:
        self._sending = self._job.store.save_hour(
            self._due, sending, opened=opened, now=self._job.now()
        )


def _unknown_meter(meter: str) -> tuple[str, str]:
    return RefusalCode.UNKNOWN_METER, f"the catalog has no meter {meter!r}"

"""Hand-written stand-ins for what the emitter talks to, with the rules that matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from meterline.domain.emission import (
    BatchDue,
    Billability,
    BillableFrom,
    BillableUsage,
    BillingLimits,
    Delivery,
    EmissionBatch,
    EmissionDue,
    EmissionEntry,
    HourDue,
    Lapse,
    NotApplied,
    Problem,
    RefusalCode,
    Refused,
    SendOutcome,
    Sent,
    Unknown,
)
from meterline.domain.measuring import HourTotal
from meterline.domain.meters import EmissionMode, Meter
from meterline.domain.sending import BatchSending, HourSending
from meterline.domain.usage import EventKey
from meterline.errors import SupersededError
from meterline.services.emit_usage import EmitUsage, RetryPolicy

START = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
VISIBILITY_S = 360
Forced = tuple[SendOutcome, int | None]
HATED_VALUE = -666
"""The fake billing layer refuses it for good."""

METERS = {
    "credits": Meter("credits", "credit", 1000, EmissionMode.EVENT, "ml_credits", "Credits"),
    "tokens": Meter("tokens", "token", 1, EmissionMode.HOURLY, "ml_tokens", "Tokens"),
}


def make_entries(count: int, at: datetime = START, name: str = "e") -> list[EmissionEntry]:
    """Events a second apart before `at`, worth 1000, 1001, … sub-units."""
    return [
        EmissionEntry(
            EventKey("acme", "test", f"{name}{i}").identifier, int(at.timestamp()) - i, 1000 + i
        )
        for i in range(count)
    ]


class FakeClock:
    """Time that moves only when it is told to, and by what is paused."""

    def __init__(self, at: datetime = START) -> None:
        self.at = at

    def now(self) -> datetime:
        return self.at

    def now_s(self) -> int:
        return int(self.at.timestamp())

    def move(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@dataclass
class FakeBilling:
    """A billing layer with Stripe's rules: identifiers hold 24 h, windows overwrite, no mercy.

    `weather` says what happens to the next call: None is fine weather, otherwise the outcome that
    is answered, and after how many seconds the send takes effect all the same (None: never).
    """

    clock: FakeClock
    window: bool = False
    latest_by_time: bool = False
    """Which event of a window counts: the latest by timestamp, or the last that came."""
    customers: set[str] = field(default_factory=lambda: {"cus_acme"})
    start_s: int = 0
    weather: Callable[[], Forced | None] = lambda: None
    before_effect: Callable[[BillableUsage], None] = lambda usage: None
    calls: int = 0
    accepted: list[BillableUsage] = field(default_factory=list)
    _travelling: list[tuple[int, BillableUsage]] = field(default_factory=list)
    _seen: dict[str, int] = field(default_factory=dict)
    limits: BillingLimits = field(
        default_factory=lambda: BillingLimits(35 * 86400, 300, 15, 24 * 3600)
    )

    def send(self, usage: BillableUsage) -> SendOutcome:
        self.calls += 1
        self.arrive()
        forced = self.weather()
        if forced is not None:
            outcome, effect_after_s = forced
            if effect_after_s is not None:
                self._travelling.append((self.clock.now_s() + effect_after_s, usage))
                self.arrive()
            return outcome
        self.before_effect(usage)
        return self._apply(usage, self.clock.now_s())

    def arrive(self) -> None:
        """Let the sends arrive that were still on their way by now."""
        now_s = self.clock.now_s()
        due = sorted((at for at in self._travelling if at[0] <= now_s), key=lambda at: at[0])
        self._travelling = [at for at in self._travelling if at[0] > now_s]
        for at_s, usage in due:
            self._apply(usage, at_s)

    def _apply(self, usage: BillableUsage, now_s: int) -> SendOutcome:
        if usage.billing_customer not in self.customers:
            return Refused(RefusalCode.UNKNOWN_CUSTOMER, "no such customer")
        if usage.sub_units == HATED_VALUE:
            return Refused(RefusalCode.BAD_VALUE, "a value that nobody likes")
        if not now_s - 35 * 86400 <= usage.at_s <= now_s + 300:
            return Refused(RefusalCode.BAD_REQUEST, "timestamp out of range")
        seen_s = self._seen.get(usage.identifier)
        if seen_s is not None and now_s - seen_s < 24 * 3600:
            return Sent(repeated=True)
        self._seen[usage.identifier] = now_s
        self.accepted.append(usage)
        return Sent()

    def billable_from(self, billing_customer: str) -> Billability:
        return BillableFrom(self.start_s)

    def times_billed(self, identifier: str) -> int:
        self.arrive()
        return sum(usage.identifier == identifier for usage in self.accepted)

    def hour_value(self, hour: datetime) -> int:
        """What counts for an hour on a meter with a window."""
        self.arrive()
        start_s = int(hour.timestamp())
        inside = [u for u in self.accepted if start_s <= u.at_s < start_s + 3600]
        if not inside:
            return 0
        if self.latest_by_time:
            newest_s = max(usage.at_s for usage in inside)
            inside = [usage for usage in inside if usage.at_s == newest_s]
        return inside[-1].sub_units


@dataclass
class FakeStore:
    """The emission store, in memory, with its version check."""

    batches: dict[BatchDue, EmissionBatch] = field(default_factory=dict)
    sendings: dict[BatchDue, BatchSending] = field(default_factory=dict)
    hours: dict[HourDue, HourSending] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)
    kept: set[BatchDue] = field(default_factory=set)
    saves: int = 0

    def load_batch(self, due: BatchDue) -> tuple[EmissionBatch | None, BatchSending | None]:
        return self.batches.get(due), self.sendings.get(due)

    def save_batch(
        self, due: BatchDue, sending: BatchSending, *, opened: Sequence[Problem], now: datetime
    ) -> BatchSending:
        assert len(opened) <= 90
        stored = self.sendings.get(due)
        if (stored.version if stored else 0) != sending.version:
            raise SupersededError(due.batch)
        self.saves += 1
        self.sendings[due] = replace(sending, version=sending.version + 1)
        self.problems |= {problem.identifier: problem for problem in opened}
        return self.sendings[due]

    def keep_batch(self, due: BatchDue) -> None:
        self.kept.add(due)

    def expire_batch(self, due: BatchDue, now: datetime) -> None:
        self.kept.discard(due)

    def load_hour(self, due: HourDue) -> HourSending:
        return self.hours.get(due, HourSending())

    def save_hour(
        self, due: HourDue, sending: HourSending, *, opened: Sequence[Problem], now: datetime
    ) -> HourSending:
        if self.load_hour(due).version != sending.version:
            raise SupersededError(str(due.hour))
        self.saves += 1
        self.hours[due] = replace(sending, version=sending.version + 1)
        self.problems |= {problem.identifier: problem for problem in opened}
        return self.hours[due]

    def open_problem(self, due: EmissionDue, problem: Problem, now: datetime) -> bool:
        known = self.problems.get(problem.identifier)
        if known is not None and known.code != problem.code:
            return False
        self.problems[problem.identifier] = problem
        return True

    def resolve_problem(self, due: EmissionDue, identifier: str, now: datetime) -> None:
        self.problems.pop(identifier, None)

    def open_problems(self, kind: Lapse) -> set[str]:
        return {name for name, problem in self.problems.items() if problem.kind is kind}


@dataclass
class FakeTotals:
    """Hour totals that a test sets."""

    totals: dict[datetime, HourTotal] = field(default_factory=dict)

    def add(self, hour: datetime, sub_units: int) -> None:
        before = self.totals.get(hour, HourTotal(0, 0))
        self.totals[hour] = HourTotal(before.sub_units + sub_units, before.events + 1)

    def hour_total(self, customer: str, meter: str, hour: datetime) -> HourTotal:
        return self.totals.get(hour, HourTotal(0, 0))


@dataclass
class FakeCustomers:
    """Which customer of the billing layer a customer is."""

    ids: dict[str, str] = field(default_factory=lambda: {"acme": "cus_acme"})

    def billing_customer(self, customer: str) -> str | None:
        return self.ids.get(customer)


@dataclass
class Message:
    """One message in the fake queue."""

    due: EmissionDue
    parked: bool = False
    receive_count: int = 0
    visible_at: datetime = START
    group: str = "acme#credits"
    deleted: bool = False
    code: str = ""
    told: str = ""


@dataclass
class FakeQueue:
    """A FIFO queue with groups, visibility and deletion, and its dead-letter queue."""

    clock: FakeClock
    messages: list[Message] = field(default_factory=list)
    dead: list[Message] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    dedupes: dict[str, datetime] = field(default_factory=dict)

    def put(self, due: EmissionDue, *, parked: bool = False) -> None:
        group = f"{due.customer}#{due.meter}"
        self.messages.append(Message(due, parked, visible_at=self.clock.now(), group=group))

    def receive(self) -> list[Delivery]:
        """Up to ten messages; none of a group of which one is in flight."""
        now = self.clock.now()
        blocked = {message.group for message in self.messages if message.visible_at > now}
        taken: list[Delivery] = []
        for index, message in enumerate(self.messages):
            if message.group in blocked or len(taken) == 10:
                continue
            message.receive_count += 1
            message.visible_at = now + timedelta(seconds=VISIBILITY_S)
            taken.append(self._delivery(index, message))
        return taken

    def _delivery(self, index: int, message: Message) -> Delivery:
        return Delivery(
            id=str(id(message)),
            receipt=str(id(message)),
            group=message.group,
            body="",
            due=message.due,
            parked=message.parked,
            receive_count=message.receive_count,
        )

    def delete(self, delivery: Delivery) -> None:
        self.messages = [m for m in self.messages if str(id(m)) != delivery.receipt]

    def delay(self, receipts: Sequence[str], delay_s: int) -> None:
        for message in self.messages:
            if str(id(message)) in receipts:
                message.visible_at = self.clock.now() + timedelta(seconds=delay_s)

    def park(self, due: EmissionDue, *, dedupe: str, code: str, message: str) -> None:
        at = self.dedupes.get(dedupe)
        if at is not None and self.clock.now() - at < timedelta(minutes=5):
            return
        self.dedupes[dedupe] = self.clock.now()
        self.dead.append(Message(due, parked=True, code=code, told=message))

    def park_unreadable(self, body: str, *, group: str, dedupe: str) -> None:
        self.unreadable.append(body)

    def redrive(self) -> int:
        dead, self.dead = self.dead, []
        for message in dead:
            self.put(message.due, parked=message.parked)
        return len(dead)

    def next_visible_at(self) -> datetime | None:
        """When a group is free again: none of its messages is in flight."""
        free_at: dict[str, datetime] = {}
        for message in self.messages:
            free_at[message.group] = max(
                message.visible_at, free_at.get(message.group, message.visible_at)
            )
        return min(free_at.values(), default=None)


@dataclass
class World:
    """The emitter with all that is around it."""

    clock: FakeClock = field(default_factory=FakeClock)
    store: FakeStore = field(default_factory=FakeStore)
    customers: FakeCustomers = field(default_factory=FakeCustomers)
    totals: FakeTotals = field(default_factory=FakeTotals)
    window: bool = False
    latest_by_time: bool = False
    seconds_left: float = 60.0
    pauses_s: list[float] = field(default_factory=list)
    jitter: Callable[[], float] = lambda: 0.5

    def __post_init__(self) -> None:
        self.billing = FakeBilling(
            self.clock, window=self.window, latest_by_time=self.latest_by_time
        )
        self.queue = FakeQueue(self.clock)

    def pause(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.clock.move(seconds)

    def emitter(self, wrap: Callable[[str, object], object] = lambda name, port: port) -> EmitUsage:
        """A freshly started emitter; `wrap` may put something in front of each port."""
        return EmitUsage(
            wrap("store", self.store),  # type: ignore[arg-type]  # a proxy of the same methods
            wrap("inbox", self.queue),  # type: ignore[arg-type]
            wrap("billing", self.billing),  # type: ignore[arg-type]
            wrap("customers", self.customers),  # type: ignore[arg-type]
            wrap("totals", self.totals),  # type: ignore[arg-type]
            METERS,
            now=self.clock.now,
            pause=self.pause,
            policy=RetryPolicy(),
            jitter=self.jitter,
        )

    def add_batch(self, entries: Sequence[EmissionEntry], name: str = "b1") -> BatchDue:
        """A batch as the projection leaves it, and its message."""
        due = BatchDue("acme", "credits", name)
        self.store.batches[due] = EmissionBatch("acme", "credits", name, list(entries))
        self.queue.put(due)
        return due

    def add_hour(self, hour: datetime, sub_units: int) -> HourDue:
        """Usage in an hour as the projection leaves it, and its message."""
        self.totals.add(hour, sub_units)
        due = HourDue("acme", "tokens", hour)
        self.queue.put(due)
        return due

    def deliver(
        self, emitter: EmitUsage | None = None, reach: Callable[[str], None] = lambda step: None
    ) -> list[str]:
        """One call with what the queue has; deletes what was not handed back. Reasons of those."""
        deliveries = self.queue.receive()
        if not deliveries:
            return []
        ends_at = self.clock.now() + timedelta(seconds=self.seconds_left)

        def seconds_left() -> float:
            return (ends_at - self.clock.now()).total_seconds()

        report = (emitter or self.emitter())(deliveries, seconds_left)
        for _, failure in report.failures:
            raise failure
        back = {handed.receipt for handed in report.handed_back}
        for delivery in deliveries:
            if delivery.receipt not in back:
                reach("before queue.delete")
                self.queue.delete(delivery)
                reach("after queue.delete")
        return [handed.reason for handed in report.handed_back]

    def drain(self, limit: int = 500) -> None:
        """Deliver until the queue is empty, moving the clock to when a message is seen again."""
        emitter = self.emitter()
        for _ in range(limit):
            at = self.queue.next_visible_at()
            if at is None:
                return
            self.clock.at = max(self.clock.at, at)
            self.deliver(emitter)
        raise AssertionError(f"{len(self.queue.messages)} messages left after {limit} calls")


THROTTLED: Forced = (NotApplied("HTTP 429"), None)
LOST_BEFORE: Forced = (Unknown("no answer"), None)
LOST_AFTER: Forced = (Unknown("no answer"), 0)
LOST_AND_LATE: Forced = (Unknown("no answer"), 90)


class Crash(BaseException):
    """The process is gone: nothing in it runs on, no handler catches it."""


@dataclass
class Crasher:
    """Counts every call on every port, twice (before and after it), and crashes at chosen ones."""

    at: set[int] = field(default_factory=set)
    steps: list[str] = field(default_factory=list)

    def reach(self, step: str) -> None:
        self.steps.append(step)
        if len(self.steps) - 1 in self.at:
            raise Crash(step)

    def wrap(self, name: str, port: object) -> object:
        return _Proxy(name, port, self)


class _Proxy:
    def __init__(self, name: str, port: object, crasher: Crasher) -> None:
        self._name = name
        self._port = port
        self._crasher = crasher

    def __getattr__(self, attribute: str) -> Any:
        method = getattr(self._port, attribute)
        if not callable(method):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self._crasher.reach(f"before {self._name}.{attribute}")
            answer = method(*args, **kwargs)
            self._crasher.reach(f"after {self._name}.{attribute}")
            return answer

        return call

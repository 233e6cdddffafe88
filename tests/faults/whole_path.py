"""The whole path in one process: real services, real storage, the local Stripe, and what can fail.

Time is a clock that the test moves, Stripe's with it. The queue is in memory with the rules of SQS
FIFO; the stream is the events table's own, delivered as Lambda does: in order, at least once.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from zlib import crc32

from botocore.exceptions import ClientError, ReadTimeoutError
from stripe.params import SubscriptionCreateParamsItem
from stripe.params.billing import MeterCreateParams

from infra.local.stripe_server import LocalStripe
from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_counted import DynamoCountedEvents
from meterline.adapters.dynamodb_emissions import MAX_ENTRIES, DynamoEmissions
from meterline.adapters.dynamodb_ledger import DynamoLedger
from meterline.adapters.dynamodb_stream import StreamReader
from meterline.adapters.dynamodb_totals import MAX_STEP_ITEMS, DynamoTotals
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.adapters.sqs_emission import SqsEmissionInbox
from meterline.adapters.sqs_emission_queue import SqsEmissionQueue
from meterline.adapters.stripe_billing import StripeBilling
from meterline.bootstrap import make_trace
from meterline.catalog import load_meters
from meterline.catalog.rate_cards import load_rate_card
from meterline.domain.emission import Billability, BillableUsage, BillingLimits, SendOutcome
from meterline.domain.meters import EmissionMode
from meterline.domain.times import format_time
from meterline.errors import MeterlineError, StorageUnavailableError
from meterline.schemas.emission import read_deliveries
from meterline.services.emit_usage import EmitUsage, RetryPolicy
from meterline.services.project_usage import ProjectUsage
from meterline.services.recount_usage import RecountUsage
from meterline.services.report_usage import ReportUsage, UsageReport
from meterline.services.trace_usage import TraceUsage
from tests.integration.storage.stores import Store

METERS = load_meters()
RATE_CARD = load_rate_card()
VISIBILITY_S = 360
DEDUPE = timedelta(minutes=5)
MAX_RECEIVES = 100
METER_EVENTS = "/v1/billing/meter_events"
_serial = itertools.count()


class Crash(BaseException):
    """The process is gone: nothing in it runs on, and no handler catches it."""


class Clock:
    """Time that moves only when it is told to; `followers` hear of it."""

    def __init__(self, at: datetime) -> None:
        self.at = at
        self.followers: list[Callable[[datetime], object]] = []

    def now(self) -> datetime:
        """The time now."""
        return self.at

    def move(self, seconds: float) -> None:
        """Move on."""
        self.set_to(self.at + timedelta(seconds=seconds))

    def set_to(self, at: datetime) -> None:
        """Move on to `at`; it never goes back."""
        if at <= self.at:
            return
        self.at = at
        for follow in self.followers:
            follow(at)


REFUSED = "refused"
"""A call was throttled until the client gave up: no effect."""
LOST = "answer lost"
"""The effect of a call is there; no answer ever came."""
REPEATED = "made twice"
"""The first answer was lost, so the client made the call again."""


@dataclass
class Steps:
    """Every call that the path makes, twice: before it and after it. Some of them crash or fail.

    After a crash nothing more happens until the next process starts.
    """

    crash_at: set[int] = field(default_factory=set)
    weather: Callable[[str], str | None] = lambda name: None
    names: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    crashed: bool = False

    def reach(self, name: str) -> None:
        """One step; raises `Crash` if it is the process's last."""
        if self.crashed:
            raise Crash(name)
        self.names.append(name)
        if len(self.names) - 1 in self.crash_at:
            self.crashed = True
            self.crashes.append(name)
            raise Crash(name)

    def call(
        self, name: str, effect: Callable[[], Any], fail: Callable[[str], Exception] | None = None
    ) -> Any:
        """Make a call between its two steps; `fail` makes the error where there is no answer."""
        self.reach(f"before {name}")
        failure = self.weather(name) if fail is not None else None
        if failure is not None:
            self.failures[f"{name}: {failure}"] += 1
        if failure == REFUSED and fail is not None:
            raise fail(failure)
        answer = effect()
        if failure == LOST and fail is not None:
            raise fail(failure)
        if failure == REPEATED:
            answer = effect()
        self.reach(f"after {name}")
        return answer


@dataclass
class SteppedWire(DynamoWire):
    """A wire whose calls are steps."""

    inner: DynamoWire
    steps: Steps
    name: str

    def call(
        self, operation: str, request: Mapping[str, Any], *, deadline_s: float = 60.0
    ) -> dict[str, Any]:
        answer: dict[str, Any] = self.steps.call(
            f"{self.name} {operation}",
            lambda: self.inner.call(operation, request, deadline_s=deadline_s),
            lambda failure: StorageUnavailableError(f"{operation}: {failure}"),
        )
        return answer


@dataclass
class SteppedBilling:
    """The billing layer; its calls are steps. Its failures are the local Stripe's own."""

    inner: StripeBilling
    steps: Steps

    @property
    def limits(self) -> BillingLimits:
        return self.inner.limits

    def send(self, usage: BillableUsage) -> SendOutcome:
        outcome: SendOutcome = self.steps.call(
            f"stripe send ({usage.event_name})", lambda: self.inner.send(usage)
        )
        return outcome

    def billable_from(self, billing_customer: str) -> Billability:
        found: Billability = self.steps.call(
            "stripe billable_from", lambda: self.inner.billable_from(billing_customer)
        )
        return found


@dataclass
class Message:
    """One message of a queue."""

    id: str
    body: str
    group: str
    visible_at: datetime
    receives: int = 0
    receipt: str = ""


@dataclass
class FifoQueue:
    """SQS FIFO: groups in order, one batch of a group in flight, deduplication for five minutes."""

    clock: Clock
    messages: list[Message] = field(default_factory=list)
    dropped: int = 0
    """Repeats that the deduplication dropped."""
    _seen: dict[tuple[str, str], datetime] = field(default_factory=dict)

    def send(self, body: str, group: str, dedupe: str) -> None:
        now = self.clock.now()
        at = self._seen.get((group, dedupe))
        if at is not None and now - at < DEDUPE:
            self.dropped += 1
            return
        self._seen[group, dedupe] = now
        self.messages.append(Message(f"m{next(_serial)}", body, group, now))

    def receive(self) -> list[Message]:
        """Up to ten messages, none of a group of which one is in flight."""
        now = self.clock.now()
        blocked = {message.group for message in self.messages if message.visible_at > now}
        taken = [message for message in self.messages if message.group not in blocked][:10]
        for message in taken:
            message.receives += 1
            message.visible_at = now + timedelta(seconds=VISIBILITY_S)
            message.receipt = f"{message.id}-{message.receives}"
        return taken

    def show(self, receipt: str, after_s: int) -> None:
        for message in self.messages:
            if message.receipt == receipt:
                message.visible_at = self.clock.now() + timedelta(seconds=after_s)

    def delete(self, receipt: str) -> None:
        self.messages = [message for message in self.messages if message.receipt != receipt]

    def next_visible_at(self) -> datetime | None:
        """When a group is free again."""
        free_at: dict[str, datetime] = {}
        for message in self.messages:
            free_at[message.group] = max(
                message.visible_at, free_at.get(message.group, message.visible_at)
            )
        return min(free_at.values(), default=None)


@dataclass
class SteppedSqs:
    """As much of boto3's SQS client as the adapters use, on queues in memory; calls are steps."""

    queues: Mapping[str, FifoQueue]
    steps: Steps

    def send_message_batch(
        self,
        *,
        QueueUrl: str,  # noqa: N803 - the names are boto3's
        Entries: Sequence[Mapping[str, str]],  # noqa: N803
    ) -> dict[str, Any]:
        def send() -> dict[str, Any]:
            failed = []
            for entry in Entries:
                if self.steps.weather("sqs entry") == REFUSED:
                    failed.append({"Id": entry["Id"], "Code": "InternalError"})
                    self.steps.failures["sqs entry: refused"] += 1
                    continue
                self._put(QueueUrl, entry)
            return {"Failed": failed} if failed else {}

        answer: dict[str, Any] = self.steps.call("sqs SendMessageBatch", send, self._fail)
        return answer

    def send_message(self, *, QueueUrl: str, **entry: str) -> dict[str, Any]:  # noqa: N803
        self.steps.call("sqs SendMessage", lambda: self._put(QueueUrl, entry), self._fail)
        return {}

    def change_message_visibility_batch(
        self,
        *,
        QueueUrl: str,  # noqa: N803
        Entries: Sequence[Mapping[str, Any]],  # noqa: N803
    ) -> dict[str, Any]:
        def show() -> None:
            for entry in Entries:
                self.queues[QueueUrl].show(entry["ReceiptHandle"], entry["VisibilityTimeout"])

        self.steps.call("sqs ChangeMessageVisibilityBatch", show, self._fail)
        return {}

    def _put(self, url: str, entry: Mapping[str, str]) -> None:
        self.queues[url].send(
            entry["MessageBody"], entry["MessageGroupId"], entry["MessageDeduplicationId"]
        )

    @staticmethod
    def _fail(failure: str) -> Exception:
        if failure == REFUSED:
            return ClientError({"Error": {"Code": "ThrottlingException"}}, "SendMessage")
        return ReadTimeoutError(endpoint_url="sqs")


class StreamTail:
    """What comes new into a table's stream, once; for all worlds that share the table."""

    def __init__(self, store: Store) -> None:
        self._client = store.client("dynamodbstreams")
        [stream] = self._client.list_streams(TableName=store.tables.events)["Streams"]
        self._arn = stream["StreamArn"]
        self._iterators: dict[str, str] = {}

    def _find_shards(self) -> None:
        described = self._client.describe_stream(StreamArn=self._arn)["StreamDescription"]
        for shard in described["Shards"]:
            if shard["ShardId"] not in self._iterators:
                self._iterators[shard["ShardId"]] = self._client.get_shard_iterator(
                    StreamArn=self._arn,
                    ShardId=shard["ShardId"],
                    ShardIteratorType="TRIM_HORIZON",
                )["ShardIterator"]

    def read_new(self) -> list[dict[str, Any]]:
        """The new records, in order."""
        if not any(self._iterators.values()):
            self._find_shards()
        records: list[dict[str, Any]] = []
        for shard_id in [shard for shard, iterator in self._iterators.items() if iterator]:
            while True:
                answer = self._client.get_records(ShardIterator=self._iterators[shard_id])
                records += answer["Records"]
                self._iterators[shard_id] = answer.get("NextShardIterator", "")
                if not answer["Records"] or not self._iterators[shard_id]:
                    break
        return records


@dataclass
class Shard:
    """One shard of the stream, and how many of its records Lambda has had handled."""

    id: str
    records: list[dict[str, Any]] = field(default_factory=list)
    position: int = 0


@dataclass
class Surroundings:
    """What all worlds of a session share."""

    store: Store
    local: LocalStripe
    tail: StreamTail = field(init=False)
    prices: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.tail = StreamTail(self.store)
        self.wire = self.store.wire()
        v1 = self.local.client().v1
        self.prices = []
        product = v1.products.create({"name": "Pro"}).id
        for meter in METERS.values():
            params: MeterCreateParams = {
                "display_name": meter.display_name,
                "event_name": meter.event_name,
                "default_aggregation": {"formula": "sum"},
            }
            if meter.emission is EmissionMode.HOURLY:
                params["event_time_window"] = "hour"
            made = v1.billing.meters.create(params)
            price = v1.prices.create(
                {
                    "currency": "usd",
                    "product": product,
                    "recurring": {"interval": "month", "usage_type": "metered", "meter": made.id},
                    "unit_amount_decimal": Decimal("0.0005"),
                    "billing_scheme": "per_unit",
                }
            )
            self.prices.append(price.id)

    def open_trace(self) -> TraceUsage:
        """The service that follows an event to its bill, on this storage."""
        tables = self.store.tables
        return make_trace(
            self.wire,
            self.store.accounts(self.wire),
            books_table=tables.books,
            events_table=tables.events,
            emissions_table=tables.emissions,
            totals_table=tables.totals,
        )

    def subscribe(self, name: str, at: datetime) -> str:
        """A customer at Stripe whose period began ten days before `at`."""
        v1 = self.local.client().v1
        customer = v1.customers.create({"name": name}).id
        items: list[SubscriptionCreateParamsItem] = [{"price": price} for price in self.prices]
        self.local.set_clock((at - timedelta(days=10)).timestamp())
        v1.subscriptions.create(
            {
                "customer": customer,
                "items": items,
                "collection_method": "send_invoice",
                "days_until_due": 30,
            }
        )
        self.local.set_clock(at.timestamp())
        return customer


@dataclass
class Books:
    """What became of one customer's events, read from where each is kept."""

    billed: int = 0
    """Events that Stripe counted, once each."""
    listed: Counter[str] = field(default_factory=Counter)
    """Open problems by kind."""
    hourly: int = 0
    """Sub-units of the hourly meters that Stripe counts, which are those of the totals."""

    def __str__(self) -> str:
        listed = "".join(f", {count} {kind}" for kind, count in sorted(self.listed.items()))
        return f"{self.billed} billed{listed}"


class World:
    """One customer of its own, with the whole path from its report to Stripe."""

    # Smaller `max_items` and `max_entries` cut a delivery into more transactions.
    def __init__(
        self,
        around: Surroundings,
        start: datetime,
        *,
        steps: Steps | None = None,
        dice: random.Random | None = None,
        subscribed: bool = True,
        max_items: int = MAX_STEP_ITEMS,
        max_entries: int = MAX_ENTRIES,
        is_named: Callable[[str], bool] = lambda name: True,
        shards: int = 1,
    ) -> None:
        self.max_items = max_items
        self.max_entries = max_entries
        self.around = around
        self.clock = Clock(start)
        self.steps = steps or Steps()
        self.dice = dice or random.Random(0)
        names = (f"world-{number}" for number in _serial)
        self.customer = next(name for name in names if is_named(name))
        self.shards = [Shard(f"shardId-{self.customer}-{number}") for number in range(shards)]
        self.billing_customer = around.subscribe(self.customer, start) if subscribed else None
        self.clock.followers.append(lambda at: around.local.set_clock(at.timestamp()))
        around.store.accounts(around.wire).put_customer(
            self.customer,
            {"name": "n", "plan": "pro", "billing_customer": self.billing_customer},
            start,
        )
        self.queue = FifoQueue(self.clock)
        self.dead = FifoQueue(self.clock)
        self.sent: dict[str, dict[str, Any]] = {}
        self.unanswered: list[list[dict[str, Any]]] = []
        """Reports that the client has no good answer to."""
        self.answers: Counter[str] = Counter()

    # The processes. Each call of these starts a new one.

    def _wire(self, name: str) -> SteppedWire:
        return SteppedWire(self.around.wire, self.steps, name)

    def _sqs(self) -> Any:
        return SteppedSqs({"queue": self.queue, "dead": self.dead}, self.steps)

    def reporter(self) -> ReportUsage:
        tables = self.around.store.tables
        return ReportUsage(
            DynamoLedger(self._wire("ledger"), tables.events, deadline_s=60.0),
            DynamoAccounts(self._wire("accounts"), tables.accounts),
            METERS,
            RATE_CARD,
        )

    def projector(self) -> ProjectUsage:
        tables = self.around.store.tables
        return ProjectUsage(
            DynamoTotals(self._wire("totals"), tables.totals, tables.emissions, now=self.clock.now),
            SqsEmissionQueue("queue", self._sqs()),
            METERS,
            max_items=self.max_items,
            max_entries=self.max_entries,
            now=self.clock.now,
        )

    def recounter(self) -> RecountUsage:
        tables = self.around.store.tables
        return RecountUsage(
            DynamoLedger(self._wire("ledger"), tables.events),
            DynamoCountedEvents(self._wire("evidence"), tables.emissions),
            DynamoTotals(self._wire("totals"), tables.totals, tables.emissions, now=self.clock.now),
            SqsEmissionQueue("queue", self._sqs()),
            max_items=self.max_items,
            max_entries=self.max_entries,
        )

    def emitter(self) -> EmitUsage:
        tables = self.around.store.tables
        billing = StripeBilling(
            lambda: self.around.local.key,
            api_base=self.around.local.url,
            timeout_s=5.0,
            now_s=lambda: self.clock.now().timestamp(),
        )
        return EmitUsage(
            DynamoEmissions(self._wire("emissions"), tables.emissions),
            SqsEmissionInbox("queue", "dead", self._sqs),
            SteppedBilling(billing, self.steps),
            DynamoAccounts(self._wire("accounts"), tables.accounts),
            DynamoTotals(self._wire("totals"), tables.totals, tables.emissions),
            METERS,
            now=self.clock.now,
            pause=self.clock.move,
            # One thread, so that the order of the steps is always the same.
            policy=RetryPolicy(threads=1),
            jitter=self.dice.random,
        )

    # What the client does

    def make_event(self, event_id: str, meter: str, quantity: int | str, **said: Any) -> None:
        """An event that the client will report; it keeps it until it is answered for."""
        at = said.pop("at", self.clock.now())
        self.sent[event_id] = {
            "specversion": "1.0",
            "id": event_id,
            "source": "backend",
            "type": "meterline.usage",
            "subject": self.customer,
            "time": format_time(at),
            "data": {"meter": meter, "quantity": quantity, **said},
        }

    def report(self, events: Sequence[Mapping[str, Any]]) -> UsageReport | None:
        """One call of the client; the answer, or None when there was none."""
        self.steps.crashed = False
        try:
            answer = self.reporter()(list(events), self.clock.now())
        except (Crash, MeterlineError):
            return None
        self.answers += Counter(accepted=answer.accepted, duplicates=answer.duplicates)
        assert not answer.rejected, answer.rejected
        return answer

    def report_until_answered(self) -> None:
        """Send what has no good answer, all of it again, until it has."""
        while self.unanswered:
            answer = self.report(self.unanswered[0])
            if answer is not None and not answer.undecided:
                self.unanswered.pop(0)

    # What Lambda does

    def deliver_records(
        self, count: int = 1000, *, again: int = 0, shard: Shard | None = None
    ) -> bool:
        """One delivery of a shard, with `again` records that were handled before; if there is
        any. It moves on only when the function says so."""
        self._read_stream()
        shard = shard or self.shards[0]
        start = max(0, shard.position - again)
        records = shard.records[start : start + again + count]
        if not records:
            return False
        self.steps.crashed = False
        batch = StreamReader(METERS, _NoDeadLetters())({"shardId": shard.id, "Records": records})
        try:
            self.projector()(batch.shard, batch.events)
            self.steps.reach("the stream moves on")
        except (Crash, MeterlineError):
            return True
        shard.position = max(shard.position, start + len(records))
        return True

    def lose_records(self, count: int = 1000) -> int:
        """Lambda gives the next records up, and goes on behind them; how many there were."""
        self._read_stream()
        shard = self.shards[0]
        lost = len(shard.records[shard.position : shard.position + count])
        shard.position += lost
        return lost

    def _read_stream(self) -> None:
        self.take_records(self.around.tail.read_new())

    def take_records(self, records: Sequence[dict[str, Any]]) -> None:
        """Put this world's records into its shards, as the table does: by their key."""
        for record in records:
            key = record["dynamodb"]["NewImage"]["k"]["S"]
            if key.startswith(f"{self.customer}\x1f"):
                self.shards[crc32(key.encode()) % len(self.shards)].records.append(record)

    def deliver_messages(self, emitter: EmitUsage | None = None) -> bool:
        """One delivery of the queue; what is not handed back is deleted."""
        messages = self.queue.receive()
        if not messages:
            return False
        self.steps.crashed = False
        ends_at = self.clock.now() + timedelta(seconds=60)

        def seconds_left() -> float:
            return (ends_at - self.clock.now()).total_seconds()

        event = {"Records": [lambda_record(message) for message in messages]}
        try:
            report = (emitter or self.emitter())(read_deliveries(event), seconds_left)
            self.steps.reach("before the queue deletes")
        except (Crash, MeterlineError):
            return True
        for _, failure in report.failures:
            assert self.is_failure_expected(failure), failure
        back = {handed.receipt for handed in report.handed_back}
        for message in messages:
            if message.receipt in back:
                if message.receives >= MAX_RECEIVES:
                    raise AssertionError("SQS would give the message up")
            else:
                self.queue.delete(message.receipt)
        return True

    def is_failure_expected(self, failure: Exception) -> bool:
        """Whether a group of the queue may fail so."""
        return isinstance(failure, MeterlineError)

    def redrive(self) -> int:
        """Move what is in the dead-letter queue back to the queue."""
        dead, self.dead.messages = self.dead.messages, []
        for message in dead:
            self.queue.send(message.body, message.group, f"redrive-{next(_serial)}")
        return len(dead)

    def drain(self) -> None:
        """No more failures: run until everything has gone all the way."""
        self.steps.crash_at = set()
        self.steps.weather = lambda name: None
        self.around.local.clear_faults()
        self.report_until_answered()
        for shard in self.shards:
            for _ in range(200):
                if not self.deliver_records(shard=shard):
                    break
            else:
                raise AssertionError(f"{shard.id} stands still at {shard.position}")
        emitter = self.emitter()
        for _ in range(500):
            at = self.queue.next_visible_at()
            if at is None:
                return
            self.clock.set_to(at)
            self.deliver_messages(emitter)
        raise AssertionError(f"{len(self.queue.messages)} messages are left")

    # What must be true in the end

    def check(self) -> Books:
        """Each event is in the ledger and the totals once, and billed once or listed."""
        store = self.around.store
        times = [datetime.fromisoformat(event["time"]) for event in self.sent.values()]
        ledger = store.ledger(self.around.wire)
        entries = list(
            ledger.events_between(self.customer, min(times), max(times) + timedelta(milliseconds=1))
        )
        assert Counter(entry.key.id for entry in entries) == Counter(list(self.sent))
        by_hour: Counter[tuple[str, datetime]] = Counter()
        counts: Counter[tuple[str, datetime]] = Counter()
        for entry in entries:
            hour = entry.at.replace(minute=0, second=0, microsecond=0)
            by_hour[entry.meter, hour] += METERS[entry.meter].to_sub_units(entry.quantity)
            counts[entry.meter, hour] += 1
        totals = store.totals(self.around.wire)
        for meter, hour in counts:
            found = totals.hour_total(self.customer, meter, hour)
            expected = (by_hour[meter, hour], counts[meter, hour])
            assert tuple(found) == expected, (meter, hour, "totals")
        return self._check_stripe(entries, by_hour)

    def _check_stripe(
        self, entries: Sequence[Any], by_hour: Mapping[tuple[str, datetime], int]
    ) -> Books:
        books = Books()
        problems = self.read_problems()
        for kind, _ in problems.values():
            books.listed[kind] += 1
        counted: Counter[str] = Counter()
        if self.billing_customer is not None:
            told = self.around.local.meter_events(
                customer=self.billing_customer, outcome="accepted"
            )
            counted = Counter(event["identifier"] for event in told)
        not_billed: Counter[str] = Counter()
        for entry in entries:
            meter = METERS[entry.meter]
            if meter.emission is EmissionMode.HOURLY or not entry.quantity:
                continue
            identifier = entry.key.identifier
            times_billed = counted[identifier]
            problem = problems.get(identifier)
            assert times_billed <= 1, f"{entry.key.id} was billed {times_billed} times"
            assert times_billed or problem, f"{entry.key.id} is lost"
            if times_billed and problem:
                assert problem[0] == "unknown", f"billed, and listed as {problem}"
            books.billed += times_billed
            if not times_billed:
                not_billed[meter.id] += meter.to_sub_units(entry.quantity)
        if self.billing_customer is None:
            return books
        stripe = self.around.local.totals()
        for meter in METERS.values():
            expected = sum(value for (name, _), value in by_hour.items() if name == meter.id)
            if meter.emission is EmissionMode.EVENT:
                expected -= not_billed[meter.id]
            elif any(identifier.startswith("mlh_") for identifier in problems):
                continue  # Its rest is listed; the caller knows which.
            found = stripe.get((meter.event_name, self.billing_customer), 0)
            assert found == expected, f"Stripe has {found} of {expected} {meter.id}"
            if meter.emission is EmissionMode.HOURLY:
                books.hourly += found
        return books

    def read_problems(self) -> dict[str, tuple[str, int]]:
        """Identifier -> kind and sub-units of each open problem."""
        problems: dict[str, tuple[str, int]] = {}
        for meter in METERS:
            answer = self.around.wire.call(
                "Query",
                {
                    "TableName": self.around.store.tables.emissions,
                    "KeyConditionExpression": "pk = :pk AND begins_with(sk, :problem)",
                    "ExpressionAttributeValues": {
                        ":pk": {"S": f"{self.customer}#{meter}"},
                        ":problem": {"S": "problem#"},
                    },
                    "ConsistentRead": True,
                },
            )
            for item in answer["Items"]:
                if "problem" in item:
                    problems[item["identifier"]["S"]] = (
                        item["problem"]["S"],
                        int(item["sub_units"]["S"]),
                    )
        return problems


class _NoDeadLetters:
    def put(self, body: Mapping[str, Any], reason: str) -> None:
        raise AssertionError(f"{reason}: {body}")


def lambda_record(message: Message) -> dict[str, Any]:
    """A message as Lambda hands it to a function."""
    return {
        "messageId": message.id,
        "receiptHandle": message.receipt,
        "body": message.body,
        "attributes": {
            "MessageGroupId": message.group,
            "ApproximateReceiveCount": str(message.receives),
        },
    }

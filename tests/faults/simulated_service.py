"""The deployed functions in one process: their services, real storage, queues over SQS's protocol.

What fails, fails as it does in AWS: calls go through a fault proxy while the weather is bad, a
process dies between any two calls, and then a new one starts that knows nothing.
"""

from __future__ import annotations

import functools
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import boto3
import stripe
import urllib3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.cli.billing_setup import Targets, apply, plan_changes, read_account
from infra.local.stripe_server import LocalStripe
from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_books import (
    DynamoDroppedUsages,
    DynamoFindings,
    DynamoInvoiceChecks,
)
from meterline.adapters.dynamodb_counted import DynamoCountedEvents
from meterline.adapters.dynamodb_emissions import MAX_ENTRIES, DynamoEmissions
from meterline.adapters.dynamodb_inbox import DynamoInbox
from meterline.adapters.dynamodb_ledger import DynamoLedger
from meterline.adapters.dynamodb_sending_records import DynamoCountedHours, DynamoSendingRecords
from meterline.adapters.dynamodb_stream import StreamReader
from meterline.adapters.dynamodb_totals import MAX_STEP_ITEMS, DynamoTotals
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.adapters.sqs_emission import SqsEmissionInbox
from meterline.adapters.sqs_emission_queue import SqsDeadLetters, SqsEmissionQueue
from meterline.adapters.stripe_access import StripeAccess
from meterline.adapters.stripe_billing import StripeBilling
from meterline.adapters.stripe_events import StripeEvents
from meterline.adapters.stripe_invoices import StripeInvoices
from meterline.adapters.stripe_subscriptions import StripeSubscriptions
from meterline.adapters.stripe_usage import StripeUsage
from meterline.catalog import load_plans
from meterline.domain.webhooks import Notice
from meterline.errors import MeterlineError, StorageUnavailableError
from meterline.schemas.emission import read_deliveries
from meterline.schemas.webhooks import decode_notice, encode_notice
from meterline.services.apply_stripe_event import ApplyStripeEvent
from meterline.services.emit_usage import EmitUsage, RetryPolicy
from meterline.services.list_after_end import ListAfterEnd
from meterline.services.poll_stripe_events import PollStripeEvents
from meterline.services.project_usage import ProjectUsage
from meterline.services.receive_stripe_webhook import ReceiveStripeWebhook
from meterline.services.recheck_invoices import RecheckInvoices
from meterline.services.reconcile_customers import ReconcileCustomers
from meterline.services.reconcile_usage import ReconcileUsage
from meterline.services.recount_usage import RecountUsage
from meterline.services.report_usage import ReportUsage, UsageReport
from meterline.services.settle_invoices import LatePolicy, SettleInvoices
from meterline.services.sync_subscriptions import SyncSubscriptions
from tests.faults.audited import ParkedInMemory
from tests.faults.invoiced import CatalogPlans
from tests.faults.queue_server import serve_queues
from tests.faults.whole_path import (
    MAX_RECEIVES,
    METERS,
    RATE_CARD,
    Clock,
    Crash,
    FifoQueue,
    Shard,
    SteppedBilling,
    SteppedWire,
    Steps,
    lambda_record,
)
from tests.integration.storage.stores import REGION, Store, make_session, run_fault_proxy

T = TypeVar("T")

SECRET = "whsec_of_the_simulation"
EMISSIONS, DEAD, NOTICES = "emissions", "emissions-dead", "stripe-events"
SHARDS = 2
_CRASH_PROBABILITY = 0.03
_MAX_DELIVERIES = 60
"""Of one queue in one tick: what is left waits for the next."""


@dataclass
class FaultProxy:
    """A proxy that answers with AWS's own errors while it has rules. `fired` counts them."""

    url: str
    fired: int = 0

    def __post_init__(self) -> None:
        self._pool = urllib3.PoolManager()

    def set_rules(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """Replace the rules; what the old ones did is added up first."""
        address = f"{self.url}/_microburst/rules"
        told = json.loads(self._pool.request("GET", address).data)
        self.fired += sum(rule["fired_count"] for rule in told)
        answer = self._pool.request(
            "POST",
            address,
            body=json.dumps(list(rules)).encode(),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status in (200, 201), answer.data


@dataclass
class SwitchedWire(DynamoWire):
    """A wire that goes through the fault proxy while `is_bad`."""

    direct: DynamoWire
    proxied: DynamoWire
    is_bad: bool = False

    def call(
        self, operation: str, request: Mapping[str, Any], *, deadline_s: float = 60.0
    ) -> dict[str, Any]:
        wire = self.proxied if self.is_bad else self.direct
        return wire.call(operation, request, deadline_s=deadline_s)


@dataclass
class SwitchedSqs:
    """boto3's client, or one that goes through the fault proxy while `is_bad`."""

    direct: Any
    proxied: Any
    is_bad: bool = False

    def call(self, operation: str, **request: Any) -> Any:
        """Make one call."""
        return getattr(self.proxied if self.is_bad else self.direct, operation)(**request)


@dataclass
class SteppedSqs:
    """As much of boto3's client as the adapters use; its calls are steps."""

    inner: SwitchedSqs
    steps: Steps

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        return functools.partial(self._call, operation)

    def _call(self, operation: str, **request: Any) -> Any:
        return self.steps.call(f"sqs {operation}", lambda: self.inner.call(operation, **request))


@dataclass
class Notices:
    """The queue between taking a webhook in and handling it."""

    sqs: SteppedSqs

    def put(self, notice: Notice) -> None:
        """Hand the event on."""
        try:
            self.sqs.send_message(QueueUrl=NOTICES, MessageBody=encode_notice(notice))
        except (BotoCoreError, ClientError) as error:
            raise StorageUnavailableError(f"SQS: {error}") from error


def connect_sqs(url: str) -> Any:
    """boto3's client for the queues at `url`; it tries once: each wait is in real time."""
    session = boto3.Session(botocore_session=make_session())
    retries: Any = {"mode": "standard", "total_max_attempts": 1}
    config = Config(connect_timeout=5, read_timeout=20, retries=retries)
    return session.client("sqs", endpoint_url=url, region_name=REGION, config=config)


@dataclass
class Ground:
    """What seeds run on, one after the other: storage, queues, and a fault proxy before each."""

    dynamodb_url: str
    dynamodb: FaultProxy
    queue_url: str
    sqs: FaultProxy
    queues: dict[str, FifoQueue]


@contextmanager
def prepare_ground(dynamodb_url: str) -> Iterator[Ground]:
    """The queues' server and both proxies, before the DynamoDB that is there."""
    queues: dict[str, FifoQueue] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        queue_url = stack.enter_context(serve_queues(queues))
        urls = [
            stack.enter_context(run_fault_proxy(upstream, directory))
            for upstream in (dynamodb_url, queue_url)
        ]
        yield Ground(dynamodb_url, FaultProxy(urls[0]), queue_url, FaultProxy(urls[1]), queues)


@dataclass
class Service:
    """All functions on one set of tables. An invocation answers None when it came to nothing."""

    store: Store
    local: LocalStripe
    clock: Clock
    wire: SwitchedWire
    sqs: SwitchedSqs
    queues: Mapping[str, FifoQueue]
    dice: random.Random
    steps: Steps = field(default_factory=Steps)
    shards: list[Shard] = field(init=False)
    invocations: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    held: set[str] = field(default_factory=set)
    """Invoices that were seen to be held, one time or another."""
    is_fair: bool = False
    """No process dies any more."""

    def __post_init__(self) -> None:
        self.shards = [Shard(f"shardId-{number}") for number in range(SHARDS)]
        self._seen: set[str] = set()
        self._tail_from_ms = 0
        self.prices = self._set_stripe_up()
        self.plans = CatalogPlans()
        self._start_processes()

    def _set_stripe_up(self) -> dict[str, list[str]]:
        client, plans = self.local.client(), load_plans()
        targets = Targets({}, {}, None, None)
        ids = apply(
            client, plan_changes(read_account(client, plans, targets), METERS, plans, targets)
        ).ids
        return {
            plan: [ids["price", f"{plan}.base"], ids["price", f"{plan}.usage"]] for plan in plans
        }

    # Processes

    def _start_processes(self) -> None:
        """New ones of all functions, with nothing in their memory."""
        tables = self.store.tables
        sqs: Any = SteppedSqs(self.sqs, self.steps)
        access = StripeAccess(lambda: self.local.key, api_base=self.local.url, retries=0)
        accounts = DynamoAccounts(self._step("accounts"), tables.accounts)
        books = self._step("books")
        emissions = DynamoEmissions(self._step("emissions"), tables.emissions)
        totals = DynamoTotals(
            self._step("totals"), tables.totals, tables.emissions, now=self.clock.now
        )
        records = DynamoSendingRecords(self._step("emissions"), tables.emissions)
        dropped = DynamoDroppedUsages(books, tables.books)
        inbox = DynamoInbox(self._step("inbox"), tables.inbox)
        events = StripeEvents(access)
        # One index shard a day instead of eight: an invoice is read with 31 queries, not 248.
        ledger = DynamoLedger(self._step("ledger"), tables.events, deadline_s=3.0, day_shards=1)
        queue = SqsEmissionQueue(EMISSIONS, sqs)
        outbox = SqsEmissionInbox(EMISSIONS, DEAD, lambda: sqs)
        notices = Notices(sqs)
        self.accounts = accounts
        self._report = ReportUsage(ledger, accounts, METERS, RATE_CARD)
        self._read_stream = StreamReader(METERS, SqsDeadLetters(DEAD, sqs))
        self._project = ProjectUsage(
            totals,
            queue,
            METERS,
            max_items=MAX_STEP_ITEMS,
            max_entries=MAX_ENTRIES,
            now=self.clock.now,
        )
        billing = StripeBilling(
            lambda: self.local.key,
            api_base=self.local.url,
            timeout_s=20.0,
            now_s=lambda: self.clock.now().timestamp(),
        )
        self._emit = EmitUsage(
            emissions,
            outbox,
            SteppedBilling(billing, self.steps),
            accounts,
            totals,
            METERS,
            now=self.clock.now,
            pause=self.clock.move,
            # One thread, so that the order of the steps is always the same.
            policy=RetryPolicy(threads=1),
            jitter=self.dice.random,
        )
        settle = SettleInvoices(
            StripeInvoices(access),
            DynamoInvoiceChecks(books, tables.books),
            accounts,
            ledger,
            self.plans,
            records,
            StripeUsage(access),
            METERS,
            policy=LatePolicy.BILL,
        )
        counted = DynamoCountedHours(self._step("totals"), tables.totals)
        list_after_end = ListAfterEnd(
            accounts, StripeSubscriptions(access), counted, ledger, records, emissions, METERS
        )
        self._receive = ReceiveStripeWebhook(lambda _fresh: [SECRET], inbox, notices)
        self._apply = ApplyStripeEvent(
            inbox,
            accounts,
            events,
            dropped,
            sync=SyncSubscriptions(accounts, StripeSubscriptions(access), self.plans),
            check_invoice=settle,
            list_after_end=list_after_end,
            tell_alert=lambda _event, _customers, _now: None,
        )
        self._poll = PollStripeEvents(events, inbox, notices)
        self._recheck = RecheckInvoices(DynamoInvoiceChecks(books, tables.books), records, settle)
        reconcile = ReconcileUsage(
            counted,
            StripeUsage(access),
            ledger,
            records,
            dropped,
            ParkedInMemory(self.queues[DEAD]),
            DynamoFindings(books, tables.books),
            emissions,
            queue,
            outbox,
            RecountUsage(
                ledger,
                DynamoCountedEvents(self._step("emissions"), tables.emissions),
                totals,
                queue,
                max_items=MAX_STEP_ITEMS,
                max_entries=MAX_ENTRIES,
            ),
        )
        self._reconcile = ReconcileCustomers(
            accounts,
            accounts,
            counted,
            reconcile,
            METERS,
            list_after_end=list_after_end,
            threads=1,
        )

    def _step(self, name: str) -> SteppedWire:
        return SteppedWire(self.wire, self.steps, name)

    def _invoke(self, name: str, work: Callable[[], T]) -> T | None:
        """One invocation; None when its process died or it raised what it may raise."""
        self.invocations[name] += 1
        self.steps.crashed = False
        reached = len(self.steps.names)
        if not self.is_fair and self.dice.random() < _CRASH_PROBABILITY:
            self.steps.crash_at = {reached + self.dice.randrange(16)}
        try:
            return work()
        except Crash:
            self._start_processes()
        except MeterlineError as error:
            self.failed[f"{name}: {type(error).__name__}"] += 1
        finally:
            self.steps.crash_at = set()
        return None

    # Functions

    def report(self, events: Sequence[Mapping[str, Any]]) -> UsageReport | None:
        """`POST /v1/usage`."""
        return self._invoke("report", lambda: self._report(list(events), self.clock.now()))

    def project(self) -> None:
        """The ledger's stream: every shard as far as it goes, some records again."""
        self._read_tail()
        for shard in self.shards:
            for _ in range(8):
                if shard.position >= len(shard.records):
                    break
                self._deliver(shard)

    def _read_tail(self) -> None:
        """What is new in the ledger, from the table: DynamoDB Local trims its streams after some
        minutes. The order between keys is by chance, as it is between real shards."""
        from_ms = self._tail_from_ms
        self._tail_from_ms = int(self.clock.now().timestamp() * 1000)
        request: dict[str, Any] = {
            "TableName": self.store.tables.events,
            "ConsistentRead": True,
            "FilterExpression": "r >= :from",
            "ExpressionAttributeValues": {":from": {"N": str(from_ms)}},
        }
        for item in scan(self.wire.direct, request):
            key = item["k"]["S"]
            if key not in self._seen:
                self._seen.add(key)
                image = {"NewImage": item, "SequenceNumber": str(len(self._seen)).zfill(21)}
                records = self.shards[crc32(key.encode()) % SHARDS].records
                records.append({"eventName": "INSERT", "dynamodb": image})

    def _deliver(self, shard: Shard) -> None:
        again = self.dice.randrange(3) if self.dice.random() < 0.3 else 0
        start = max(0, shard.position - again)
        records = shard.records[start : shard.position + self.dice.choice([3, 1000, 1000])]

        def work() -> bool:
            batch = self._read_stream({"shardId": shard.id, "Records": records})
            self._project(batch.shard, batch.events)
            self.steps.reach("the stream moves on")
            return True

        if self._invoke("project", work):
            shard.position = max(shard.position, start + len(records))

    def emit(self) -> None:
        """The emission queue, as long as something of it can be seen."""
        queue = self.queues[EMISSIONS]
        for _ in range(_MAX_DELIVERIES):
            messages = queue.receive()
            if not messages:
                return
            ends_at = self.clock.now() + timedelta(seconds=300)
            event = {"Records": [lambda_record(message) for message in messages]}

            def seconds_left(ends_at: datetime = ends_at) -> float:
                return (ends_at - self.clock.now()).total_seconds()

            deliveries = read_deliveries(event)
            report = self._invoke("emit", functools.partial(self._emit, deliveries, seconds_left))
            if report is None:
                continue
            for _, failure in report.failures:
                assert isinstance(failure, MeterlineError), repr(failure)
            back = {handed.receipt for handed in report.handed_back}
            for message in messages:
                if message.receipt not in back:
                    queue.delete(message.receipt)
                assert message.receives < MAX_RECEIVES, "SQS would give the message up"

    def receive_webhook(self, body: bytes) -> bool:
        """One delivery of Stripe's; whether it is answered with a 2xx."""
        now = self.clock.now()
        header = stripe.WebhookSignature.generate_signature_header(
            body.decode(), SECRET, timestamp=int(now.timestamp())
        )
        return self._invoke("webhook", lambda: self._receive(body, header, now)) is not None

    def apply_events(self) -> None:
        """The queue of what webhooks and the poll brought."""
        queue = self.queues[NOTICES]
        for _ in range(_MAX_DELIVERIES):
            messages = queue.receive()
            if not messages:
                return
            for message in messages:
                apply_it = functools.partial(
                    self._apply, decode_notice(message.body), self.clock.now()
                )
                if self._invoke("apply", apply_it) is not None:
                    queue.delete(message.receipt)

    def poll(self) -> int:
        """Look for events that no webhook brought; how many there were."""
        found = self._invoke("poll", lambda: self._poll(self.clock.now()))
        return found.missed if found is not None else 0

    def recheck(self) -> None:
        """Look at open invoices again, and note those that are held."""
        checks = DynamoInvoiceChecks(self.wire.direct, self.store.tables.books)
        self.held |= {each.invoice for each in checks.list_open() if each.state == "held"}
        self._invoke("recheck", lambda: self._recheck(self.clock.now()))

    def reconcile(self) -> int:
        """Compare every customer with Stripe, and mend; how many differences there were."""
        found = self._invoke("reconcile", lambda: self._reconcile(self.clock.now()))
        return sum(len(books.differences) for books in found.books) if found is not None else 0


def scan(wire: DynamoWire, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All items of a scan."""
    start: dict[str, Any] = {}
    while True:
        answer = wire.call("Scan", {**request, **start})
        yield from answer["Items"]
        if "LastEvaluatedKey" not in answer:
            return
        start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}


@contextmanager
def open_service(ground: Ground, clock: Clock, dice: random.Random) -> Iterator[Service]:
    """Fresh tables, a local Stripe and empty queues."""
    with ExitStack() as stack:
        store = Store("dynamodb_local", ground.dynamodb_url)
        local = stack.enter_context(LocalStripe(seed=dice.randrange(2**31)))
        local.set_clock(clock.now().timestamp())
        clock.followers.append(lambda at: local.set_clock(at.timestamp()))
        ground.queues |= {name: FifoQueue(clock) for name in (EMISSIONS, DEAD, NOTICES)}
        # Few tries, since each waits in real time; what gives up is delivered again.
        proxied = store.wire(ground.dynamodb.url, attempts=2, timeout_s=60.0)
        wire = SwitchedWire(store.wire(), proxied)
        sqs = SwitchedSqs(connect_sqs(ground.queue_url), connect_sqs(ground.sqs.url))
        yield Service(store, local, clock, wire, sqs, ground.queues, dice)

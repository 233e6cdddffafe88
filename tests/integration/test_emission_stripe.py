"""Emission with real parts: SQS and DynamoDB from the emulator, the local Stripe, real sockets."""

from __future__ import annotations

import importlib.util
import itertools
import json
import socket
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import boto3
import pytest
from stripe.params import SubscriptionCreateParamsItem
from stripe.params.billing import MeterCreateParams

from infra.local.stripe_server import LocalStripe
from meterline.adapters.dynamodb_emissions import DynamoEmissions, batch_item
from meterline.adapters.secrets_api_key import SecretApiKey
from meterline.adapters.sqs_emission import SqsEmissionInbox
from meterline.adapters.sqs_emission_queue import SqsEmissionQueue
from meterline.adapters.stripe_billing import StripeBilling
from meterline.catalog import load_meters
from meterline.domain.emission import (
    BatchDue,
    BillableFrom,
    BillableUsage,
    EmissionBatch,
    EmissionDue,
    EmissionEntry,
    HourDue,
    Lapse,
    NotApplied,
    RefusalCode,
    Refused,
    Sent,
    Unknown,
)
from meterline.domain.meters import EmissionMode
from meterline.domain.usage import EventKey
from meterline.errors import ConfigurationError, StorageUnavailableError
from meterline.schemas.dues import encode_due
from meterline.schemas.emission import read_deliveries
from meterline.services.emit_usage import EmitUsage, RetryPolicy
from tests.emission_fakes import Crash, Crasher, FakeCustomers, FakeTotals
from tests.integration.storage.stores import REPOSITORY, Store, make_session, run_emulator

_serial = itertools.count()
EVENTS_PATH = "/v1/billing/meter_events"


@pytest.fixture(scope="module")
def local_stripe() -> Iterator[LocalStripe]:
    with LocalStripe() as local:
        client = local.client()
        for meter in load_meters().values():
            params: MeterCreateParams = {
                "display_name": meter.display_name,
                "event_name": meter.event_name,
                "default_aggregation": {"formula": "sum"},
            }
            if meter.emission is EmissionMode.HOURLY:
                params["event_time_window"] = "hour"
            client.v1.billing.meters.create(params)
        yield local
        # Every request of the whole module is one that the SDK's own types describe.
        assert local.violations() == []


@pytest.fixture
def stripe_server(local_stripe: LocalStripe) -> Iterator[LocalStripe]:
    local_stripe.clear_faults()
    local_stripe.reset_clock()
    yield local_stripe
    local_stripe.clear_faults()
    local_stripe.reset_clock()


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with run_emulator(tmp_path_factory.mktemp("emulator")) as url:
        yield Store("emulator", url)


@cache
def _make_client(url: str, service: str) -> Any:
    session = boto3.Session(botocore_session=make_session())
    return session.client(service, endpoint_url=url)  # type: ignore[call-overload]


@dataclass
class Stage:
    """One customer's emission on real parts; the service runs here, its clock is Stripe's."""

    aws: Store
    local: LocalStripe
    subscribe: bool = True
    customer: str = field(init=False)
    billing_customer: str = field(init=False)
    totals: FakeTotals = field(default_factory=FakeTotals)
    ahead_s: float = 0.0
    timeout_s: float = 60.0
    """For an answer of Stripe's; short only where the local one is made to give none."""
    reports: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.customer = f"customer-{next(_serial)}"
        v1 = self.local.client().v1
        self.billing_customer = v1.customers.create({"name": self.customer}).id
        if self.subscribe:
            self.subscribe_now()
        self.sqs = _make_client(self.aws.url, "sqs")
        # A queue of its own, so that no test sees another's messages.
        name = uuid.uuid4().hex[:20]
        self.queue_url, self.dead_url = (
            self.sqs.create_queue(
                QueueName=f"{name}-{kind}.fifo",
                Attributes={"FifoQueue": "true", "VisibilityTimeout": "360"},
            )["QueueUrl"]
            for kind in ("emissions", "dead")
        )
        self.sender = SqsEmissionQueue(self.queue_url, session=make_session())
        self.store = DynamoEmissions(self.aws.wire(), self.aws.tables.emissions)
        self.billing = self.make_billing(self.timeout_s)
        self.start = self.now()

    def make_billing(self, timeout_s: float) -> StripeBilling:
        return StripeBilling(
            lambda: self.local.key,
            api_base=self.local.url,
            timeout_s=timeout_s,
            now_s=lambda: self.now().timestamp(),
        )

    def subscribe_now(self) -> None:
        v1 = self.local.client().v1
        meters = v1.billing.meters.list({"limit": 100}).data
        product = v1.products.create({"name": "Pro"})
        items: list[SubscriptionCreateParamsItem] = []
        for meter in meters:
            price = v1.prices.create(
                {
                    "currency": "usd",
                    "product": product.id,
                    "recurring": {"interval": "month", "usage_type": "metered", "meter": meter.id},
                    "unit_amount_decimal": Decimal("0.0005"),
                    "billing_scheme": "per_unit",
                }
            )
            items.append({"price": price.id})
        # Twenty days ago, so that the period is under way.
        self.local.advance_clock(-20 * 86400)
        v1.subscriptions.create(
            {
                "customer": self.billing_customer,
                "items": items,
                "collection_method": "send_invoice",
                "days_until_due": 30,
            }
        )
        self.local.reset_clock()

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.ahead_s)

    def move(self, seconds: float) -> None:
        """Move the clock, ours and Stripe's."""
        self.ahead_s += seconds
        self.local.advance_clock(seconds)

    def emitter(self, wrap: Callable[[str, Any], Any] = lambda name, port: port) -> EmitUsage:
        return EmitUsage(
            wrap("store", self.store),
            wrap("inbox", SqsEmissionInbox(self.queue_url, self.dead_url, lambda: self.sqs)),
            wrap("billing", self.billing),
            wrap("customers", FakeCustomers({self.customer: self.billing_customer})),
            wrap("totals", self.totals),
            load_meters(),
            now=self.now,
            pause=lambda seconds: None,
            policy=RetryPolicy(reserve_s=0.5),
        )

    def add_batch(self, count: int, name: str = "b1", *, bad: int = 0) -> list[EmissionEntry]:
        entries = [
            EmissionEntry(
                EventKey(self.customer, name, str(i)).identifier,
                int(self.start.timestamp()) - i,
                1000 + i if i >= bad else 10**15,
            )
            for i in range(count)
        ]
        item = batch_item(EmissionBatch(self.customer, "credits", name, entries), self.now())
        put = {"Put": {"TableName": self.aws.tables.emissions, "Item": item}}
        self.aws.wire().call("TransactWriteItems", {"TransactItems": [put]})
        self.send(BatchDue(self.customer, "credits", name))
        return entries

    def add_hour(self, hour: datetime, sub_units: int) -> None:
        self.totals.add(hour, sub_units)
        self.send(HourDue(self.customer, "tokens", hour))

    def send(self, due: EmissionDue) -> None:
        self.sender.send([due], renewal=uuid.uuid4().hex)

    def receive(self, url: str) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, AttributeNames=["All"]
        ).get("Messages", [])
        return messages

    def event_of(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """As Lambda hands the messages over."""
        return {
            "Records": [
                {
                    "messageId": message["MessageId"],
                    "receiptHandle": message["ReceiptHandle"],
                    "body": message["Body"],
                    "attributes": message["Attributes"],
                }
                for message in messages
            ]
        }

    def deliver(self, emitter: EmitUsage | None = None) -> bool:
        """One call with what the queue has; what is handed back is seen again at once."""
        messages = self.receive(self.queue_url)
        if not messages:
            return False
        try:
            report = (emitter or self.emitter())(
                read_deliveries(self.event_of(messages)), lambda: 30
            )
        except Crash:
            for message in messages:
                self._show_again(message["ReceiptHandle"])
            raise
        assert [failure for _, failure in report.failures] == []
        self.reports["calls"] += 1
        self.reports["retries"] += report.counts.retries
        self.reports["repeated"] += report.counts.repeated
        back = {handed.receipt for handed in report.handed_back}
        for message in messages:
            if message["ReceiptHandle"] in back:
                self._show_again(message["ReceiptHandle"])
            else:
                self.sqs.delete_message(
                    QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"]
                )
        return True

    def _show_again(self, receipt: str) -> None:
        # The delay is up: the queue's clock is real time, and this test's is not.
        self.sqs.change_message_visibility(
            QueueUrl=self.queue_url, ReceiptHandle=receipt, VisibilityTimeout=0
        )

    def drain(self) -> None:
        emitter = self.emitter()
        for _ in range(200):
            if not self.deliver(emitter):
                return
        raise AssertionError("the queue does not become empty")

    def redrive(self) -> list[str]:
        """Move what is in the dead-letter queue back; the bodies."""
        bodies = []
        while messages := self.receive(self.dead_url):
            for message in messages:
                bodies.append(message["Body"])
                self.sqs.send_message(
                    QueueUrl=self.queue_url,
                    MessageBody=message["Body"],
                    MessageGroupId=message["Attributes"]["MessageGroupId"],
                    MessageDeduplicationId=uuid.uuid4().hex,
                )
                self.sqs.delete_message(
                    QueueUrl=self.dead_url, ReceiptHandle=message["ReceiptHandle"]
                )
        return bodies

    def accepted(self) -> Counter[str]:
        """Identifier -> how many times Stripe counted it."""
        events = self.local.meter_events(customer=self.billing_customer, outcome="accepted")
        return Counter(event["identifier"] for event in events)

    def problems(self) -> dict[str, str]:
        """Identifier -> kind of each open problem of this customer."""
        found = {}
        for kind in Lapse:
            answer = _make_client(self.aws.url, "dynamodb").query(
                TableName=self.aws.tables.emissions,
                IndexName="by_problem",
                KeyConditionExpression="problem = :kind",
                ExpressionAttributeValues={":kind": {"S": kind}},
            )
            for item in answer["Items"]:
                if item["customer"]["S"] == self.customer:
                    found[item["identifier"]["S"]] = kind.value
        return found


@pytest.fixture
def stage(aws: Store, stripe_server: LocalStripe) -> Stage:
    return Stage(aws, stripe_server)


def test_every_event_reaches_stripe_once_through_throttling_errors_and_lost_answers(
    aws: Store, stripe_server: LocalStripe
) -> None:
    stage = Stage(aws, stripe_server, timeout_s=0.5)
    faults: list[tuple[str, dict[str, Any]]] = [
        ("error", {"status": 429, "probability": 0.1}),
        ("error", {"status": 409, "probability": 0.05}),
        ("error", {"status": 500, "probability": 0.05}),
        ("error", {"status": 500, "probability": 0.05, "saved": True}),
        ("error", {"status": 500, "when": "after", "probability": 0.05}),
        ("error", {"status": 500, "when": "after", "probability": 0.05, "saved": True}),
        ("drop", {"probability": 0.05}),
        ("drop", {"when": "after", "probability": 0.05}),
        ("timeout", {"probability": 0.01}),
        ("timeout", {"when": "after", "probability": 0.01}),
    ]
    for seed, (kind, rule) in enumerate(faults):
        stage.local.add_fault(kind, path=EVENTS_PATH, seed=seed, **rule)
    entries = stage.add_batch(150) + stage.add_batch(100, "b2", bad=2)
    stage.drain()
    stage.local.clear_faults()
    stage.drain()
    accepted = stage.accepted()
    good = [entry for entry in entries if entry.sub_units < 10**15]
    assert accepted == Counter(entry.identifier for entry in good)
    assert stage.local.totals()["meterline_credits", stage.billing_customer] == sum(
        entry.sub_units for entry in good
    )
    assert Counter(stage.problems().values()) == {"refused": 2}
    assert stage.reports["retries"] > 20
    assert stage.reports["repeated"] > 5


def test_an_hours_total_is_right_at_stripe_through_throttling_and_lost_answers(
    stage: Stage,
) -> None:
    for seed, (kind, when) in enumerate(
        [("drop", "before"), ("drop", "after"), ("error", "after")]
    ):
        stage.local.add_fault(kind, path=EVENTS_PATH, when=when, probability=0.2, seed=seed)
    hour = stage.start.replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    for number in range(20):
        stage.add_hour(hour, 100 + number)
        stage.deliver()
    stage.local.clear_faults()
    for _ in range(10):
        stage.move(150)
        if not stage.deliver():
            break
    total = stage.totals.hour_total(stage.customer, "tokens", hour).sub_units
    assert stage.local.totals()["meterline_tokens", stage.billing_customer] == total
    assert not stage.problems()


def test_a_redrive_after_25_hours_bills_nothing_twice_and_retries_what_was_refused(
    stage: Stage,
) -> None:
    entries = stage.add_batch(6, bad=1)
    # The last event's answer is lost each time, though it was taken the first time.
    stage.local.add_fault("drop", path=EVENTS_PATH, when="after", count=4)
    stage.deliver()
    assert len(stage.accepted()) == 1
    stage.move(25 * 3600)
    stage.drain()
    assert Counter(stage.problems().values()) == {"refused": 1, "unknown": 1}
    before = stage.accepted()
    for _ in range(2):
        bodies = stage.redrive()
        assert [json.loads(body)["parked_for"] for body in bodies] == ["refused"]
        stage.move(25 * 3600)
        stage.drain()
    assert stage.accepted() == before
    assert before == Counter(entry.identifier for entry in entries if entry.sub_units < 10**15)


@pytest.mark.parametrize("hours_later", [0, 25])
def test_a_crash_at_each_step_on_real_parts_bills_once_or_lists(
    aws: Store, stripe_server: LocalStripe, hours_later: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for step in itertools.count():
        stage = Stage(aws, stripe_server)
        entries = stage.add_batch(4, bad=1)
        crasher = Crasher({step})
        try:
            stage.deliver(stage.emitter(crasher.wrap))
            crashed = ""
        except Crash as crash:
            crashed = str(crash)
        stage.move(hours_later * 3600)
        stage.drain()
        accepted, problems = stage.accepted(), stage.problems()
        assert max(accepted.values(), default=0) <= 1, crashed
        for entry in entries:
            assert entry.identifier in accepted or entry.identifier in problems, crashed
            if entry.identifier in accepted:
                assert problems.get(entry.identifier, "unknown") == "unknown", crashed
        kinds = Counter(problems.values())
        rows.append((step, crashed or "no crash", f"{len(accepted)} billed, {dict(kinds)}"))
        stripe_server.reset_clock()
        if not crashed:
            break
        if not hours_later:
            assert (len(accepted), kinds) == (3, {"refused": 1}), crashed
    assert len(rows) > 15
    with capsys.disabled():
        print(f"\non the emulator and the local Stripe, {hours_later} hours later")
        for number, name, outcome in rows:
            print(f"{number:>4}  {name:40} {outcome}")


# The adapter on real sockets


def make_usage(stage: Stage, name: str = "x", value: int = 5) -> BillableUsage:
    identifier = EventKey(stage.customer, "adapter", name).identifier
    return BillableUsage(
        stage.billing_customer,
        "meterline_credits",
        identifier,
        int(stage.start.timestamp()),
        value,
    )


def test_a_port_where_nobody_listens_is_not_applied() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        billing = StripeBilling(lambda: "sk_test_1", api_base=url)
        usage = BillableUsage("cus_1", "m", "ml_1", 1, 1)
        assert billing.send(usage) == NotApplied("no connection")


@pytest.mark.parametrize("kind", ["timeout", "drop"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_answer_is_unknown_and_the_same_identifier_settles_it(
    stage: Stage, kind: str, when: str
) -> None:
    stage.local.add_fault(kind, path=EVENTS_PATH, when=when, count=1)
    usage = make_usage(stage)
    assert stage.make_billing(timeout_s=0.5).send(usage) == Unknown("no answer")
    settled = stage.billing.send(usage)
    assert isinstance(settled, Sent)
    assert stage.accepted() == {usage.identifier: 1}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_500_that_stripe_keeps_under_the_key_does_not_block_the_event(
    stage: Stage, when: str
) -> None:
    stage.local.add_fault("error", status=500, saved=True, path=EVENTS_PATH, when=when, count=1)
    usage = make_usage(stage)
    assert stage.billing.send(usage) == Unknown("HTTP 500")
    assert isinstance(stage.billing.send(usage), Sent)
    assert stage.accepted() == {usage.identifier: 1}


def test_what_stripe_refuses_comes_with_its_code(stage: Stage) -> None:
    usage = make_usage(stage)
    cases = {
        "too_many_digits": BillableUsage(
            usage.billing_customer, usage.event_name, "ml_a", usage.at_s, 10**15
        ),
        "unknown_meter": BillableUsage(usage.billing_customer, "nope", "ml_b", usage.at_s, 1),
        "timestamp_too_old": BillableUsage(
            usage.billing_customer, usage.event_name, "ml_c", usage.at_s - 36 * 86400, 1
        ),
        "timestamp_in_future": BillableUsage(
            usage.billing_customer, usage.event_name, "ml_d", usage.at_s + 400, 1
        ),
    }
    for code, case in cases.items():
        outcome = stage.billing.send(case)
        assert isinstance(outcome, Refused), code
        assert outcome.code == code


def test_threads_share_the_adapter(stage: Stage) -> None:
    stages = [stage] + [Stage(stage.aws, stage.local) for _ in range(3)]
    outcomes: list[object] = []

    def send_ten(of: Stage) -> None:
        outcomes.extend(stage.billing.send(make_usage(of, str(i))) for i in range(10))

    threads = [threading.Thread(target=send_ten, args=(of,)) for of in stages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [Sent()] * 40


def test_usage_of_a_period_counts_while_its_invoice_is_a_draft_and_not_when_it_is_final(
    aws: Store, stripe_server: LocalStripe
) -> None:
    stage = Stage(aws, stripe_server)
    began = int(stage.start.timestamp()) - 20 * 86400
    first = stage.billing.billable_from(stage.billing_customer)
    assert isinstance(first, BillableFrom)
    assert abs(first.at_s - began) < 120
    usage = make_usage(stage)
    assert isinstance(stage.billing.send(usage), Sent)

    # Into the next period, where the last one's invoice is a draft for an hour.
    v1 = stage.local.client().v1
    [item, *_] = v1.subscriptions.list({"customer": stage.billing_customer}).data[0].items.data
    stage.move(item.current_period_end + 60 - stage.now().timestamp())
    assert stage.billing.billable_from(stage.billing_customer) == first
    late = make_usage(stage, "while a draft", 7)
    assert isinstance(stage.billing.send(late), Sent)

    stage.move(3600)
    stage.local.settle()
    after = stage.billing.billable_from(stage.billing_customer)
    assert after == BillableFrom(item.current_period_end)
    [invoice, *_] = [
        invoice
        for invoice in v1.invoices.list({"customer": stage.billing_customer}).data
        if invoice.billing_reason == "subscription_cycle"
    ]
    assert invoice.status != "draft"
    assert sum(line.quantity or 0 for line in invoice.lines.data) == 5 + 7


def test_a_customer_without_a_subscription_is_not_billed_and_its_events_wait_in_the_list(
    aws: Store, stripe_server: LocalStripe
) -> None:
    stage = Stage(aws, stripe_server, subscribe=False)
    entries = stage.add_batch(3)
    stage.drain()
    assert stage.problems() == {entry.identifier: "refused" for entry in entries}
    assert not stage.redrive(), "somebody has to bill the customer first: it is no dead letter"
    stage.billing = StripeBilling(lambda: stage.local.key, api_base=stage.local.url)
    stage.subscribe_now()
    due = BatchDue(stage.customer, "credits", "b1")
    stage.sqs.send_message(
        QueueUrl=stage.queue_url,
        MessageBody=encode_due(due, parked_for=RefusalCode.NO_SUBSCRIPTION),
        MessageGroupId="again",
        MessageDeduplicationId=uuid.uuid4().hex,
    )
    stage.drain()
    assert stage.accepted() == Counter(entry.identifier for entry in entries)
    assert stage.problems() == {}


# The function itself


@pytest.fixture
def handler(stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The handler's module, loaded as Lambda loads it, with its environment."""
    secret = f"stripe-{uuid.uuid4().hex}"
    stage.aws.client("secretsmanager").create_secret(
        Name=secret, SecretString=json.dumps({"api_key": stage.local.key})
    )
    stage.aws.client().put_item(
        TableName=stage.aws.tables.accounts,
        Item={
            "pk": {"S": f"customer#{stage.customer}"},
            "sk": {"S": "profile"},
            "billing_customer": {"S": stage.billing_customer},
        },
    )
    environment = {
        "AWS_ENDPOINT_URL": stage.aws.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "EMISSIONS_TABLE": stage.aws.tables.emissions,
        "TOTALS_TABLE": stage.aws.tables.totals,
        "ACCOUNTS_TABLE": stage.aws.tables.accounts,
        "EMISSIONS_QUEUE_URL": stage.queue_url,
        "EMISSIONS_DLQ_URL": stage.dead_url,
        "STRIPE_SECRET_ID": secret,
        "STRIPE_API_BASE": stage.local.url,
        "POWERTOOLS_METRICS_NAMESPACE": "Meterline",
        "POWERTOOLS_SERVICE_NAME": "emit_usage",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    path = REPOSITORY / "functions/emit_usage/handler.py"
    spec = importlib.util.spec_from_file_location(f"emit_usage_{next(_serial)}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


CONTEXT = SimpleNamespace(
    get_remaining_time_in_millis=lambda: 60_000,
    function_name="emit_usage",
    memory_limit_in_mb=512,
    invoked_function_arn="arn:aws:lambda:us-east-1:000000000000:function:emit_usage",
    aws_request_id="1",
)


def read_metrics(printed: str) -> dict[str, float]:
    for line in printed.splitlines():
        if '"_aws"' in line:
            told = json.loads(line)
            names = [m["Name"] for m in told["_aws"]["CloudWatchMetrics"][0]["Metrics"]]
            return {name: sum(told[name]) for name in names}
    raise AssertionError("no metrics were printed")


def test_the_function_sends_counts_and_answers_with_what_is_to_come_again(
    stage: Stage, handler: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = stage.add_batch(5, bad=1)
    messages = stage.receive(stage.queue_url)
    answer = handler.lambda_handler(stage.event_of(messages), CONTEXT)
    assert answer == {"batchItemFailures": []}
    stage.sqs.delete_message(QueueUrl=stage.queue_url, ReceiptHandle=messages[0]["ReceiptHandle"])
    counts = read_metrics(capsys.readouterr().out)
    assert counts == {
        "EventsEmitted": 4,
        "EventsRefused": 1,
        "EventsLate": 0,
        "EventsUnknown": 0,
        "EmissionRetries": 0,
        "OldestWait": 0,
    }
    assert stage.accepted() == Counter(entry.identifier for entry in entries[1:])
    assert len(stage.receive(stage.dead_url)) == 1

    stage.add_batch(1, "b2")
    stage.local.add_fault("error", status=429, path=EVENTS_PATH, count=4)
    messages = stage.receive(stage.queue_url)
    sent_ms = int(messages[0]["Attributes"]["SentTimestamp"])
    messages[0]["Attributes"]["SentTimestamp"] = str(sent_ms - 7_200_000)
    answer = handler.lambda_handler(stage.event_of(messages), CONTEXT)
    assert answer == {"batchItemFailures": [{"itemIdentifier": messages[0]["MessageId"]}]}
    counts = read_metrics(capsys.readouterr().out)
    assert (counts["EventsEmitted"], counts["EmissionRetries"]) == (0, 3)
    assert counts["OldestWait"] >= 7200


@pytest.mark.parametrize("secret", ["{}", '{"api_key": ""}', "[]"])
def test_a_secret_that_holds_no_key_is_a_mistake_that_shows(
    aws: Store, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"stripe-{uuid.uuid4().hex}"
    _make_client(aws.url, "secretsmanager").create_secret(Name=name, SecretString=secret)
    with pytest.raises(ConfigurationError, match=name):
        SecretApiKey(name)()


def test_a_queue_that_does_not_answer_is_an_error_of_ours_with_a_name(aws: Store) -> None:
    nowhere = f"{aws.url}/000000000000/nowhere.fifo"
    inbox = SqsEmissionInbox(nowhere, nowhere, lambda: _make_client(aws.url, "sqs"))
    with pytest.raises(StorageUnavailableError, match="SQS"):
        inbox.park(BatchDue("a", "credits", "b"), dedupe="1", code="refused", message="x")
    with pytest.raises(StorageUnavailableError, match="SQS"):
        inbox.delay(["r"], 1)


def test_the_function_reads_an_hours_total_from_the_totals_table(
    stage: Stage, handler: ModuleType
) -> None:
    hour = stage.start.replace(minute=0, second=0, microsecond=0)
    stage.aws.client().put_item(
        TableName=stage.aws.tables.totals,
        Item={
            "pk": {"S": f"{stage.customer}#tokens"},
            "sk": {"S": f"day#{hour:%Y-%m-%d}"},
            f"q{hour:%H}": {"N": "4711"},
            f"n{hour:%H}": {"N": "3"},
        },
    )
    stage.send(HourDue(stage.customer, "tokens", hour))
    event = stage.event_of(stage.receive(stage.queue_url))
    assert handler.lambda_handler(event, CONTEXT) == {"batchItemFailures": []}
    assert stage.local.totals()["meterline_tokens", stage.billing_customer] == 4711


def test_a_message_that_nobody_can_read_goes_to_the_dead_letter_queue_as_it_is(
    stage: Stage, handler: ModuleType
) -> None:
    stage.sqs.send_message(
        QueueUrl=stage.queue_url,
        MessageBody="{broken",
        MessageGroupId="g",
        MessageDeduplicationId="d",
    )
    event = stage.event_of(stage.receive(stage.queue_url))
    assert handler.lambda_handler(event, CONTEXT) == {"batchItemFailures": []}
    assert [message["Body"] for message in stage.receive(stage.dead_url)] == ["{broken"]

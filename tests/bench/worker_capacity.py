"""Worker: what DynamoDB Local says that events consume, from the ledger to the billing layer.

The services as they are, with a queue and a billing layer that count. Environment: EVENTS_TABLE,
TOTALS_TABLE, EMISSIONS_TABLE, ACCOUNTS_TABLE, and AWS's own.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_budgets import DynamoBudgets
from meterline.adapters.dynamodb_catalog import DynamoPlans
from meterline.adapters.dynamodb_controls import DynamoControls
from meterline.adapters.dynamodb_emissions import MAX_ENTRIES, DynamoEmissions
from meterline.adapters.dynamodb_guardrails import DynamoGuardrails
from meterline.adapters.dynamodb_history import DynamoHistory
from meterline.adapters.dynamodb_ledger import DynamoLedger, write_item
from meterline.adapters.dynamodb_stream import StreamReader
from meterline.adapters.dynamodb_totals import MAX_STEP_ITEMS, DynamoTotals
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.adapters.partition_keys import partition_key
from meterline.catalog import load_meters
from meterline.catalog.guardrails import load_breaker_rule
from meterline.catalog.rate_cards import load_rate_card
from meterline.domain.breaker import BreakerMode
from meterline.domain.emission import (
    BillableFrom,
    BillableUsage,
    BillingLimits,
    Delivery,
    EmissionDue,
    Sent,
)
from meterline.domain.notifications import Notification
from meterline.domain.usage import LedgerEntry
from meterline.ports import Recorded
from meterline.schemas.dues import encode_due
from meterline.services.emit_usage import EmitUsage
from meterline.services.measure_period import MeasurePeriod
from meterline.services.project_usage import ProjectUsage
from meterline.services.report_usage import ReportUsage
from meterline.services.watch_usage import WatchUsage
from tests.bench.measuring import report
from tests.bench.usage_mix import (
    ONE_CUSTOMER,
    SAAS,
    Mix,
    UsageSource,
    delivery_of,
    pad_event,
    size_of,
)

EVENTS = 2000
"""Of each mix."""
MESSAGES_PER_INVOCATION = 10
_READS = frozenset({"GetItem", "BatchGetItem", "Query"})


class MeteredWire(DynamoWire):
    """The wire, counting what every call consumed.

    Of a transaction DynamoDB Local names the units of one item alone. So those are reckoned: two
    for each kilobyte, begun or whole, of each item as it is afterwards (DynamoDB developer guide,
    capacity of transactions). A batch of statements it does not answer for at all.
    """

    def __init__(self) -> None:
        super().__init__(pool_size=16)
        self.units: Counter[tuple[str, str]] = Counter()
        """By `read` or `write` and table; `calls` and operation."""
        self.silent: set[str] = set()
        """Operations that did not say."""

    def call(self, operation: str, request: Mapping[str, Any], **how: Any) -> dict[str, Any]:
        """Make the call and count."""
        answer = super().call(operation, {**request, "ReturnConsumedCapacity": "INDEXES"}, **how)
        self.units["calls", operation] += 1
        consumed = answer.get("ConsumedCapacity")
        if operation == "TransactWriteItems":
            for action in request["TransactItems"]:
                [(kind, part)] = action.items()
                item = part["Item"] if kind == "Put" else self._read(part)
                self.units["write", part["TableName"]] += 2 * -(-item_bytes(item) // 1024)
        elif not consumed:
            self.silent.add(operation)
        else:
            kind = "read" if operation in _READS else "write"
            for each in consumed if isinstance(consumed, list) else [consumed]:
                self.units[kind, each["TableName"]] += each["CapacityUnits"]
        return answer

    def _read(self, update: Mapping[str, Any]) -> Mapping[str, Any]:
        key = {"TableName": update["TableName"], "Key": update["Key"], "ConsistentRead": True}
        item: dict[str, Any] = super().call("GetItem", key)["Item"]
        return item

    def take(self) -> Counter[tuple[str, str]]:
        """What was consumed since this was asked last."""
        taken, self.units = self.units, Counter()
        return taken


def item_bytes(item: Mapping[str, Any]) -> int:
    """Size of an item, names included (DynamoDB developer guide, item sizes)."""
    return sum(len(name.encode()) + _value_bytes(value) for name, value in item.items())


def _value_bytes(value: Mapping[str, Any]) -> int:
    [(kind, held)] = value.items()
    match kind:
        case "S":
            return len(held.encode())
        case "N":
            return len(held.strip("-0.")) // 2 + 2
        case "B":
            return len(held) * 3 // 4
        case "BOOL" | "NULL":
            return 1
        case "SS":
            return sum(len(each.encode()) for each in held)
        case "M":
            return 3 + sum(1 + len(n.encode()) + _value_bytes(each) for n, each in held.items())
        case _:
            raise ValueError(kind)


@dataclass
class CountingQueue:
    """The emission queue: keeps what is handed over, and how many calls SQS would have got."""

    dues: list[EmissionDue] = field(default_factory=list)
    calls: int = 0

    def send(self, dues: Sequence[EmissionDue], *, renewal: str = "") -> None:
        """Take them."""
        self.dues += dues
        self.calls += -(-len(dues) // 10)


@dataclass
class CountingBilling:
    """A billing layer that takes everything and counts."""

    calls: Counter[str] = field(default_factory=Counter)
    """By customer: those for one and the same must not overlap, so they take turns."""
    limits: BillingLimits = field(default_factory=lambda: BillingLimits(35 * 86400, 300, 15, 86400))

    def send(self, usage: BillableUsage) -> Sent:
        """Take it."""
        self.calls[usage.billing_customer] += 1
        return Sent()

    def take(self) -> Counter[str]:
        """The calls since this was asked last."""
        taken, self.calls = self.calls, Counter()
        return taken

    def billable_from(self, billing_customer: str) -> BillableFrom:
        """Everything is billable."""
        return BillableFrom(0)


@dataclass
class CountingBus:
    """An event bus that takes everything: what it costs does not depend on the events."""

    published: int = 0

    def publish(self, notification: Notification) -> None:
        """Take it."""
        self.published += 1


class NothingUnread:
    """Dead letters that must not come to be here, and an inbox that hands nothing back."""

    def put(self, body: Mapping[str, Any], reason: str) -> None:
        """A record that cannot be read is a defect of the bench."""
        raise AssertionError(reason)

    def delay(self, receipts: Sequence[str], delay_s: int) -> None:
        """Nothing is to be handed back."""
        raise AssertionError(f"{len(receipts)} messages handed back")

    def park(self, due: EmissionDue, *, dedupe: str, code: str, message: str) -> None:
        """Nothing is to be parked."""
        raise AssertionError(f"{code}: {message}")

    def park_unreadable(self, body: str, *, group: str, dedupe: str) -> None:
        """Nothing is to be unreadable."""
        raise AssertionError(body)


class RecordingLedger:
    """A ledger that keeps the entries that it hands on."""

    def __init__(self, ledger: DynamoLedger) -> None:
        self._ledger = ledger
        self.entries: list[LedgerEntry] = []

    def record(self, entries: Sequence[LedgerEntry]) -> Sequence[Recorded]:
        """Hand them on."""
        self.entries += entries
        return self._ledger.record(entries)

    def list_digests(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        """Of events that cannot be rated: there are none."""
        return self._ledger.list_digests(keys)

    def take_items(self) -> list[dict[str, Any]]:
        """The items of the entries since this was asked last."""
        items = [write_item(entry, "AAAAAAAA") for entry in self.entries]
        self.entries.clear()
        return items


class Path:
    """The whole path on one set of tables."""

    def __init__(self) -> None:
        self.wire = MeteredWire()
        environment = os.environ
        self.events_table = environment["EVENTS_TABLE"]
        self.ledger = RecordingLedger(DynamoLedger(self.wire, self.events_table))
        accounts = DynamoAccounts(self.wire, environment["ACCOUNTS_TABLE"])
        meters = load_meters()
        self.report_usage = ReportUsage(self.ledger, accounts, meters, load_rate_card())
        totals = DynamoTotals(
            self.wire, environment["TOTALS_TABLE"], environment["EMISSIONS_TABLE"]
        )
        self.queue = CountingQueue()
        self.read_stream = StreamReader(meters, NothingUnread())
        watch = WatchUsage(
            DynamoBudgets(self.wire, environment["TOTALS_TABLE"]),
            DynamoControls(self.wire, environment["ACCOUNTS_TABLE"]),
            DynamoHistory(self.wire, environment["TOTALS_TABLE"]),
            DynamoGuardrails(self.wire, environment["ACCOUNTS_TABLE"]),
            CountingBus(),
            DynamoPlans(self.wire, environment["ACCOUNTS_TABLE"]),
            meters,
            load_breaker_rule(BreakerMode.WARN),
            MeasurePeriod(totals, DynamoLedger(self.wire, self.events_table)),
        )
        self.project_usage = ProjectUsage(
            totals,
            self.queue,
            meters,
            max_items=MAX_STEP_ITEMS,
            max_entries=MAX_ENTRIES,
            now=lambda: datetime.now(UTC),
            watch=lambda pairs: watch(pairs, datetime.now(UTC)),
            find_periods=totals.find_periods,
        )
        self.billing = CountingBilling()
        self.emit_usage = EmitUsage(
            DynamoEmissions(self.wire, environment["EMISSIONS_TABLE"]),
            NothingUnread(),
            self.billing,
            accounts,
            totals,
            meters,
            now=lambda: datetime.now(UTC),
            pause=time.sleep,
        )
        self._sequence = 1

    def record(self, events: Sequence[object]) -> list[dict[str, Any]]:
        """Report events; the ledger's items."""
        found = self.report_usage(events, datetime.now(UTC))
        if found.accepted != len(events):
            raise AssertionError(found)
        return self.ledger.take_items()

    def project(self, items: Sequence[dict[str, Any]], shard: str) -> None:
        """Deliver items as one batch of the stream."""
        delivery = delivery_of(items, self._sequence, shard)
        self._sequence += len(items)
        batch = self.read_stream(delivery)
        projection = self.project_usage(batch.shard, batch.events)
        if projection.watch_failure is not None:
            raise AssertionError(projection.watch_failure)

    def emit(self) -> Emitted:
        """Deliver all messages to the emitter, ten at a time."""
        dues, self.queue.dues = self.queue.dues, []
        emitted = Emitted(messages=len(dues))
        for start in range(0, len(dues), MESSAGES_PER_INVOCATION):
            deliveries = [
                Delivery(
                    id=f"{start + place}",
                    receipt="r",
                    group=partition_key(due.customer, due.meter),
                    body=encode_due(due),
                    due=due,
                    parked=False,
                    receive_count=1,
                )
                for place, due in enumerate(dues[start : start + MESSAGES_PER_INVOCATION])
            ]
            told = self.emit_usage(deliveries, lambda: 50.0)
            if told.handed_back or told.failures:
                raise AssertionError(told)
            calls = self.billing.take()
            emitted.invocations += 1
            emitted.calls += calls.total()
            emitted.calls_in_turn += max(calls.values(), default=0)
        return emitted


@dataclass
class Emitted:
    """What the emitter did: `calls_in_turn` is the longest line of each invocation, added up."""

    messages: int = 0
    invocations: int = 0
    calls: int = 0
    calls_in_turn: int = 0


def measure_write_units(path: Path) -> dict[str, Any]:
    """Write units of a typical event and of one of exactly 1,024 bytes, table and index."""
    source = UsageSource(SAAS, seed=11)
    found: dict[str, Any] = {}
    typical = source.events(100)
    large = [pad_event(event, 1024) for event in source.events(25)]
    for name, events in (("typical", typical), ("1024 bytes", large)):
        path.wire.take()
        items = path.record(events)
        # One by one as well: a call for one event is a PutItem of the very same item.
        batched = path.wire.take()
        again = source.events(10)
        if name != "typical":
            again = [pad_event(event, 1024) for event in again]
        for event in again:
            path.record([event])
        single = path.wire.take()
        found[name] = {
            "batched": batched["write", path.events_table] / len(events),
            "single": single["write", path.events_table] / len(again),
            "json_bytes": sum(map(size_of, events)) / len(events),
            "item_bytes": sum(map(item_bytes, items)) / len(items),
        }
    found["silent"] = sorted(path.wire.silent)
    return found


def measure_rest(path: Path, mix: Mix, meter: str, records: int) -> dict[str, float]:
    """Per event: units of projection and emission, messages, and calls of the billing layer."""
    source = UsageSource(mix, seed=records + len(mix.name) + len(meter))
    deliveries = EVENTS // records
    totals = Counter[tuple[str, str]]()
    emission = Counter[tuple[str, str]]()
    queue_calls = path.queue.calls
    counts: Counter[str] = Counter()
    for _ in range(deliveries):
        items = path.record(source.events(records, meter))
        path.wire.take()
        path.project(items, f"{mix.name}{meter}{records}")
        totals += path.wire.take()
        counts.update(asdict(path.emit()))
        emission += path.wire.take()

    def units(counted: Counter[tuple[str, str]], kind: str) -> float:
        return sum(number for key, number in counted.items() if key[0] == kind) / EVENTS

    return {
        "projection_write_units": units(totals, "write"),
        "projection_read_units": units(totals, "read"),
        "projection_calls": units(totals, "calls"),
        "projection_transactions": totals["calls", "TransactWriteItems"] / EVENTS,
        "emission_write_units": units(emission, "write"),
        "emission_read_units": units(emission, "read"),
        "emission_calls": units(emission, "calls"),
        "queue_calls": (path.queue.calls - queue_calls) / EVENTS,
        **{name: number / EVENTS for name, number in counts.items()},
    }


def main() -> None:
    """Measure and report."""
    path = Path()
    found: dict[str, Any] = {"write_units": measure_write_units(path), "rest": {}}
    for mix in (ONE_CUSTOMER, SAAS):
        for meter in ("credits", "tokens"):
            for records in (1000, 100):
                found["rest"][f"{mix.name}|{meter}|{records}"] = measure_rest(
                    path, mix, meter, records
                )
    report(found)


if __name__ == "__main__":
    main()

"""How far sending is, batch by batch, and what each hour counts: what a reconciliation reads.

It reads a customer's batches of a stretch of time as a whole, which costs a read unit for every
8 KB (some 280 events). That is done only where the two counts differ.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from meterline.adapters.dynamodb_emissions import (
    DynamoEmissions,
    read_batch_sending,
    unpack_entries,
)
from meterline.adapters.dynamodb_wire import DynamoWire, Item, query_pages, read_many
from meterline.adapters.partition_keys import partition_key
from meterline.domain.emission import TAKEN_FOR_NOTHING, BatchDue, Lapse, Problem
from meterline.domain.measuring import HourTotal
from meterline.domain.periods import Period
from meterline.domain.reconciliation import BatchRecord, SentEntry
from meterline.domain.sending import BROKEN_OFF_PREFIX, find_last_s
from meterline.errors import SearchedTooLongError

SEARCH_S = 5.0
"""How long one event is looked for: some 50 MB of batches."""


class DynamoSendingRecords:
    """Keeps `SendingRecords`, `SentUsage` and `LateProblems` of `meterline.ports` on the
    `emissions` table."""

    def __init__(
        self, wire: DynamoWire, table: str, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wire = wire
        self._table = table
        self._emissions = DynamoEmissions(wire, table)
        self._monotonic = monotonic

    def batches_since(
        self, customer: str, meter: str, made_from: datetime
    ) -> Iterator[BatchRecord]:
        """Every batch made since then, with how far it is sent, read strongly consistently."""
        pk = partition_key(customer, meter)
        # Batches first: the state of a batch is never read before the batch itself.
        made = list(self._query(pk, "batch#", made_from))
        sendings = {item["sk"]["S"][5:]: item for item in self._query(pk, "send#")}
        for item in made:
            name = item["sk"]["S"].removeprefix("batch#")
            sending = sendings.get(name)
            yield BatchRecord(
                BatchDue(customer, meter, name),
                unpack_entries(base64.b64decode(item["entries"]["B"])),
                datetime.fromisoformat(item["made_at"]["S"]),
                None if sending is None else read_batch_sending(sending),
            )

    def find_entry(
        self, customer: str, meter: str, identifier: str, made_from: datetime
    ) -> SentEntry | None:
        """One event in its batch, looked for through all that were made since then.

        A read unit for every 8 KB of all batches of the customer and meter: there is no index of
        what is in them, which would cost a write for every event.
        """
        pk = partition_key(customer, meter)
        digest = bytes.fromhex(identifier.removeprefix("ml_"))
        give_up_at_s = self._monotonic() + SEARCH_S
        for item in self._query(pk, "batch#", made_from):
            packed = base64.b64decode(item["entries"]["B"])
            if digest in packed:
                due = BatchDue(customer, meter, item["sk"]["S"].removeprefix("batch#"))
                _, sending = self._emissions.load_batch(due)
                made_at = datetime.fromisoformat(item["made_at"]["S"])
                record = BatchRecord(due, unpack_entries(packed), made_at, sending)
                for each in record.list_entries():
                    if each.entry.identifier == identifier:
                        return each
            if self._monotonic() > give_up_at_s:
                raise SearchedTooLongError(f"the batches of {customer} and {meter}")
        return None

    def reasons_of(
        self, customer: str, meter: str, identifiers: Sequence[str]
    ) -> Mapping[str, str]:
        """The codes of problems by identifier."""
        pk = partition_key(customer, meter)
        found = {}
        keys: list[Item] = [
            {"pk": {"S": pk}, "sk": {"S": f"problem#{name}"}} for name in identifiers
        ]
        for item in read_many(self._wire, self._table, keys):
            found[item["identifier"]["S"]] = item["code"]["S"]
        return found

    def find_listed(
        self, customer: str, meter: str, identifiers: Sequence[str]
    ) -> Mapping[str, int]:
        """Sub-units of problems that are open, or of what was taken for nothing, by identifier."""
        pk = partition_key(customer, meter)
        keys: list[Item] = [
            {"pk": {"S": pk}, "sk": {"S": f"problem#{name}"}} for name in identifiers
        ]
        return {
            item["identifier"]["S"]: int(item["sub_units"]["S"])
            for item in read_many(self._wire, self._table, keys, consistent=True)
            if "problem" in item or item["code"]["S"] in TAKEN_FOR_NOTHING
        }

    def is_in_broken_off(self, customer: str, meter: str, at: datetime) -> bool:
        """Whether usage of that time is listed with its period, which was not invoiced."""
        at_s = int(at.timestamp())
        return any(
            int(item["at_s"]["N"]) <= at_s <= find_last_s(item["identifier"]["S"], at_s)
            for item in self._query(partition_key(customer, meter), f"problem#{BROKEN_OFF_PREFIX}")
        )

    def list_late(self) -> Iterator[tuple[str, str, datetime]]:
        """Customer, meter and time of all that is late and not settled; of an hour, both ends."""
        for customer, meter, problem in self.list_open(Lapse.LATE):
            last_s = find_last_s(problem.identifier, problem.at_s)
            for at_s in {problem.at_s, last_s}:
                yield customer, meter, datetime.fromtimestamp(at_s, UTC)

    def list_unknown(self) -> Iterator[tuple[str, str, datetime]]:
        """Customer, meter and time of every send that is unknown and not settled."""
        for customer, meter, problem in self.list_open(Lapse.UNKNOWN):
            yield customer, meter, datetime.fromtimestamp(problem.at_s, UTC)

    def list_open(self, kind: Lapse) -> Iterator[tuple[str, str, Problem]]:
        """Customer, meter and problem of all that is open of a kind, oldest usage first."""
        request = {
            "TableName": self._table,
            "IndexName": "by_problem",
            "KeyConditionExpression": "problem = :kind",
            "ExpressionAttributeValues": {":kind": {"S": kind}},
        }
        for item in query_pages(self._wire, request):
            problem = Problem(
                kind,
                item["code"]["S"],
                item["message"]["S"],
                item["identifier"]["S"],
                int(item["at_s"]["N"]),
                int(item["sub_units"]["S"]),
            )
            yield item["customer"]["S"], item["meter"]["S"], problem

    def late_between(
        self, customer: str, meter: str, period: Period
    ) -> Sequence[tuple[str, datetime]]:
        """What is late of the period and the last second of each, read strongly consistently."""
        found = []
        for item in self._query(partition_key(customer, meter), "problem#"):
            name, at_s = item["identifier"]["S"], int(item["at_s"]["N"])
            last = datetime.fromtimestamp(find_last_s(name, at_s), UTC)
            is_late = item.get("problem", {}).get("S") == Lapse.LATE
            if is_late and at_s < period.end.timestamp() and last >= period.start:
                found.append((name, last))
        return found

    def resolve_late(self, customer: str, meter: str, identifier: str, now: datetime) -> None:
        """Take a late event out of the list of problems; the record of it stays."""
        self._emissions.resolve_problem(BatchDue(customer, meter, ""), identifier, now)

    def _query(
        self, pk: str, prefix: str, made_from: datetime | None = None
    ) -> Iterator[Mapping[str, Any]]:
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk AND begins_with(sk, :prefix)",
            "ExpressionAttributeValues": {":pk": {"S": pk}, ":prefix": {"S": prefix}},
            "ConsistentRead": True,
        }
        if made_from is not None:
            request["FilterExpression"] = "made_at >= :made_from"
            request["ExpressionAttributeValues"][":made_from"] = {
                "S": made_from.astimezone(UTC).isoformat()
            }
        yield from query_pages(self._wire, request)


class DynamoCountedHours:
    """Keeps `CountedHours` and `MetersInUse` of `meterline.ports` on the `totals` table."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table

    def hours_between(
        self, customer: str, meter: str, start: datetime, end: datetime
    ) -> Mapping[datetime, int]:
        """Sub-units of each hour in [start, end), both on the hour; a month is about ten units."""
        counted = self.count_hours(customer, meter, start, end)
        return {hour: total.sub_units for hour, total in counted.items()}

    def count_hours(
        self, customer: str, meter: str, start: datetime, end: datetime
    ) -> Mapping[datetime, HourTotal]:
        """The same, with the number of events of each hour."""
        request = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk AND sk BETWEEN :first AND :last",
            "ExpressionAttributeValues": {
                ":pk": {"S": partition_key(customer, meter)},
                ":first": {"S": f"day#{start:%Y-%m-%d}"},
                ":last": {"S": f"day#{end - timedelta(seconds=1):%Y-%m-%d}"},
            },
            "ConsistentRead": True,
        }
        found: dict[datetime, HourTotal] = {}
        for item in query_pages(self._wire, request):
            day = datetime.fromisoformat(item["sk"]["S"].removeprefix("day#")).replace(tzinfo=UTC)
            for hour in range(24):
                at = day + timedelta(hours=hour)
                if f"q{hour:02d}" in item and start <= at < end:
                    found[at] = HourTotal(
                        int(item[f"q{hour:02d}"]["N"]), int(item[f"n{hour:02d}"]["N"])
                    )
        return found

    def has_usage(self, customer: str, meter: str, start: datetime, end: datetime) -> bool:
        """Whether any day of the span counts anything."""
        return bool(self.hours_between(customer, meter, start, end))

"""The ledger on DynamoDB: one item per event under its own key, written only if it is new.

The table's partition key is the event's key, so one customer's writes spread over all partitions.
The index `by_day` lists a customer's events in time order. Its partition key ends in one of
`DAY_SHARDS` numbers, so that 1,000 events a second of one customer are 125 a second and key, where
DynamoDB gives a partition 1,000 write units.

Names are one letter because they count: DynamoDB bills an item by the kilobyte, names included,
and stores every event twice (table and index).
"""

from __future__ import annotations

import base64
import itertools
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from heapq import merge
from operator import attrgetter
from typing import Any
from zlib import crc32

from meterline.adapters.dynamodb_wire import (
    DynamoWire,
    Item,
    back_off_s,
    query_pages,
    read_many,
)
from meterline.domain.times import format_time, parse_time
from meterline.domain.usage import EventKey, LedgerEntry
from meterline.errors import StorageError, StorageUnavailableError
from meterline.ports import Recorded

DAY_SHARDS = 8
STATEMENTS_PER_CALL = 25
"""What BatchExecuteStatement takes (DynamoDB API reference)."""
CONCURRENT_CALLS = 8

# Entry field -> attribute name, for the fields that are plain text and may be absent.
_TEXTS = {
    "action": "a",
    "user": "u",
    "provider": "p",
    "model": "o",
    "rate_card": "c",
    "authorization": "h",
    "tier": "l",
    "status": "s",
    "response_id": "i",
}
_RETRYABLE_STATEMENT_CODES = frozenset(
    {
        "InternalServerError",
        "ItemCollectionSizeLimitExceeded",
        "ProvisionedThroughputExceeded",
        "RequestLimitExceeded",
        "ThrottlingError",
        "TransactionConflict",
    }
)
"""What a statement of a batch may answer that is worth another try (DynamoDB API reference,
BatchStatementError). These are not the codes of a whole call."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class DynamoLedger:
    """Keeps `meterline.ports.Ledger`, and lists what it holds."""

    def __init__(
        self,
        wire: DynamoWire,
        table: str,
        *,
        statements_per_call: int = STATEMENTS_PER_CALL,
        deadline_s: float = 8.0,
        day_shards: int = DAY_SHARDS,
    ) -> None:
        # `day_shards` can never change for a table that holds events.
        self._wire = wire
        self._table = table
        self._day_shards = day_shards
        self._statements_per_call = statements_per_call
        self._deadline_s = deadline_s
        self._threads = ThreadPoolExecutor(CONCURRENT_CALLS, "ledger")

    def record(self, entries: Sequence[LedgerEntry]) -> Sequence[Recorded]:
        """Write entries whose keys are distinct, each if its key is new; one outcome each.

        Costs two write units for each accepted entry of up to 1 KB, one for a known one. What is
        not decided after the ledger's `deadline_s` and the timeout of one call is `UNDECIDED`.
        """
        give_up_at_s = time.monotonic() + self._deadline_s
        # Tells our own write from an earlier one, when the answer to the first try was lost.
        attempt = base64.b64encode(secrets.token_bytes(6)).decode()
        size = self._statements_per_call
        parts = [entries[start : start + size] for start in range(0, len(entries), size)]
        if len(parts) == 1:
            return self._record_part(parts[0], attempt, give_up_at_s)
        outcomes = self._threads.map(
            lambda part: self._record_part(part, attempt, give_up_at_s), parts
        )
        return [outcome for part in outcomes for outcome in part]

    def events_between(
        self, customer: str, start: datetime, end: datetime
    ) -> Iterator[LedgerEntry]:
        """The customer's events with start <= at < end, in time order, without a scan."""
        # Times are kept to the millisecond, so the end is left out by one of them.
        first, last = _round_up(start), _round_up(end) - _MILLISECOND
        if first > last:
            return
        for place in range((last.date() - first.date()).days + 1):
            day = first.date() + timedelta(days=place)
            shards = (
                self._query_shard(f"{customer}#{day:%Y%m%d}#{shard}", first, last)
                for shard in range(self._day_shards)
            )
            yield from merge(*shards, key=attrgetter("at"))

    def find(self, key: EventKey) -> LedgerEntry | None:
        """One event by its key, read strongly consistently."""
        answer = self._wire.call(
            "GetItem",
            {"TableName": self._table, "Key": {"k": {"S": key.text}}, "ConsistentRead": True},
        )
        return read_item(answer["Item"]) if "Item" in answer else None

    def list_digests(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        """The digests of those of the keys (`EventKey.text`) that are taken; a read unit each.

        A key that is missing is free: what cannot all be read within the ledger's `deadline_s` is
        `StorageUnavailableError`.
        """
        give_up_at_s = time.monotonic() + self._deadline_s
        return {key: digest for key, digest, _ in self._read_digests(keys, give_up_at_s)}

    def _record_part(
        self, entries: Sequence[LedgerEntry], attempt: str, give_up_at_s: float
    ) -> list[Recorded]:
        outcomes = [Recorded.UNDECIDED] * len(entries)
        items = [write_item(entry, attempt, self._day_shards) for entry in entries]
        open_indexes = list(range(len(entries)))
        taken: list[int] = []
        for tries in itertools.count(1):
            try:
                written = self._insert([items[index] for index in open_indexes], give_up_at_s)
            except StorageUnavailableError:
                break
            retry = []
            for index, code in zip(open_indexes, written, strict=True):
                if code is None:
                    outcomes[index] = Recorded.ACCEPTED
                elif code == "DuplicateItem":
                    taken.append(index)
                elif code in _RETRYABLE_STATEMENT_CODES:
                    retry.append(index)
                else:
                    raise StorageError(code, f"the ledger refused {entries[index].key.id!r}")
            open_indexes = retry
            pause_s = back_off_s(tries)
            if not retry or time.monotonic() + pause_s > give_up_at_s:
                break
            time.sleep(pause_s)
        for index, outcome in self._compare(taken, entries, attempt, give_up_at_s):
            outcomes[index] = outcome
        return outcomes

    def _insert(self, items: Sequence[Item], give_up_at_s: float) -> list[str | None]:
        """Write each item if its key is new; None for one that is written, else an error code."""
        left_s = give_up_at_s - time.monotonic()
        if len(items) == 1:
            try:
                self._wire.call(
                    "PutItem",
                    {
                        "TableName": self._table,
                        "Item": items[0],
                        "ConditionExpression": "attribute_not_exists(k)",
                    },
                    deadline_s=left_s,
                )
            except StorageError as error:
                if error.code != "ConditionalCheckFailedException":
                    raise
                return ["DuplicateItem"]
            return [None]
        answer = self._wire.call(
            "BatchExecuteStatement",
            {
                "Statements": [
                    {
                        "Statement": _insert_statement(self._table, tuple(item)),
                        "Parameters": list(item.values()),
                    }
                    for item in items
                ]
            },
            deadline_s=left_s,
        )
        return [told["Error"]["Code"] if "Error" in told else None for told in answer["Responses"]]

    def _compare(
        self,
        indexes: Sequence[int],
        entries: Sequence[LedgerEntry],
        attempt: str,
        give_up_at_s: float,
    ) -> Iterator[tuple[int, Recorded]]:
        """What the entries at `indexes`, whose keys are taken, are to what the ledger holds."""
        held: dict[str, tuple[bytes, str]] = {}
        with suppress(StorageUnavailableError):
            keys = [entries[index].key.text for index in indexes]
            for key, digest, by in self._read_digests(keys, give_up_at_s):
                held[key] = digest, by
        for index in indexes:
            found = held.get(entries[index].key.text)
            if found is None:
                continue  # Not read: it stays undecided.
            digest, by = found
            if by == attempt:
                yield index, Recorded.ACCEPTED
            elif digest == entries[index].digest:
                yield index, Recorded.DUPLICATE
            else:
                yield index, Recorded.CONFLICT

    def _read_digests(
        self, keys: Sequence[str], give_up_at_s: float
    ) -> Iterator[tuple[str, bytes, str]]:
        """Of the keys that are taken: the key, its entry's digest, and the try that wrote it."""
        items = read_many(
            self._wire,
            self._table,
            [{"k": {"S": key}} for key in keys],
            consistent=True,
            attributes="k, x, w",
            deadline_s=give_up_at_s - time.monotonic(),
        )
        for item in items:
            yield item["k"]["S"], base64.b64decode(item["x"]["B"]), item["w"]["B"]

    def _query_shard(self, shard: str, first: datetime, last: datetime) -> Iterator[LedgerEntry]:
        request: dict[str, Any] = {
            "TableName": self._table,
            "IndexName": "by_day",
            "KeyConditionExpression": "d = :d AND t BETWEEN :first AND :last",
            "ExpressionAttributeValues": {
                ":d": {"S": shard},
                ":first": {"S": format_time(first)},
                ":last": {"S": format_time(last)},
            },
        }
        for item in query_pages(self._wire, request):
            yield read_item(item)


def _round_up(moment: datetime) -> datetime:
    """The moment in UTC, or the next whole millisecond after it."""
    return moment.astimezone(UTC) + timedelta(microseconds=-moment.microsecond % 1000)


@lru_cache(maxsize=512)
def _insert_statement(table: str, names: tuple[str, ...]) -> str:
    return f'INSERT INTO "{table}" VALUE {{' + ",".join(f"'{name}':?" for name in names) + "}"


def write_item(entry: LedgerEntry, attempt: str, day_shards: int = DAY_SHARDS) -> Item:
    """The item of an entry; `attempt` is the base64 name of the try that writes it."""
    key = entry.key.text
    at = format_time(entry.at)
    item: Item = {
        "k": {"S": key},
        "d": {
            "S": f"{entry.key.customer}#{at[:4]}{at[5:7]}{at[8:10]}"
            f"#{crc32(key.encode()) % day_shards}"
        },
        "t": {"S": at},
        "m": {"S": entry.meter},
        "q": {"N": str(entry.quantity)},
        "x": {"B": base64.b64encode(entry.digest).decode()},
        "w": {"B": attempt},
        "r": {"N": str((entry.received_at - _EPOCH) // timedelta(milliseconds=1))},
    }
    for field, name in _TEXTS.items():
        value = getattr(entry, field)
        if value is not None:
            item[name] = {"S": value}
    if entry.usage is not None:
        item["n"] = {"M": {kind: {"N": str(count)} for kind, count in entry.usage.items() if count}}
    return item


def read_item(item: Mapping[str, Any]) -> LedgerEntry:
    """Read what `write_item` wrote."""
    return LedgerEntry(
        key=EventKey.parse(item["k"]["S"]),
        at=parse_time(item["t"]["S"]),
        meter=item["m"]["S"],
        quantity=Decimal(item["q"]["N"]),
        digest=base64.b64decode(item["x"]["B"]),
        received_at=_EPOCH + timedelta(milliseconds=int(item["r"]["N"])),
        usage=(
            {kind: int(count["N"]) for kind, count in item["n"]["M"].items()}
            if "n" in item
            else None
        ),
        **{field: item[name]["S"] for field, name in _TEXTS.items() if name in item},
    )

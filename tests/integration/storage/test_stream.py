"""What the ledger writes comes out of the table's stream, once and in order, and can be counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from meterline.adapters.dynamodb_set_aside import SetAsideOnce
from meterline.adapters.dynamodb_stream import StreamReader
from meterline.catalog import load_meters
from meterline.domain.usage import LedgerEntry
from meterline.errors import StorageUnavailableError
from meterline.ports import Recorded
from tests.integration.storage.entries import NOON, make_entry
from tests.integration.storage.stores import Store

METERS = load_meters()


@dataclass
class KeptLetters:
    """Records that could not be read, with the reason."""

    kept: list[tuple[Mapping[str, Any], str]] = field(default_factory=list)

    def put(self, body: Mapping[str, Any], reason: str) -> None:
        self.kept.append((body, reason))


def read_stream(store: Store, customer: str) -> list[dict[str, Any]]:
    """All records of a customer in the events table's stream."""
    streams = store.client("dynamodbstreams")
    [stream] = streams.list_streams(TableName=store.tables.events)["Streams"]
    shards = streams.describe_stream(StreamArn=stream["StreamArn"])["StreamDescription"]["Shards"]
    records: list[dict[str, Any]] = []
    for shard in shards:
        iterator = streams.get_shard_iterator(
            StreamArn=stream["StreamArn"],
            ShardId=shard["ShardId"],
            ShardIteratorType="TRIM_HORIZON",
        )["ShardIterator"]
        while iterator:
            answer = streams.get_records(ShardIterator=iterator)
            if not answer["Records"]:
                break
            records += answer["Records"]
            iterator = answer.get("NextShardIterator")
    prefix = f"{customer}\x1f"
    return [
        record for record in records if record["dynamodb"]["NewImage"]["k"]["S"].startswith(prefix)
    ]


def make_entries(customer: str) -> list[LedgerEntry]:
    entries = [
        make_entry(customer, f"req_{number}", at=NOON + timedelta(milliseconds=number * 7777))
        for number in range(60)
    ]
    entries[7] = make_entry(
        customer,
        "with everything",
        at=NOON + timedelta(hours=11, minutes=59, seconds=59.999),
        quantity=Decimal("1.234"),
        action="report.generate",
        user="u_9",
        provider="anthropic",
        model="m",
        usage={"input_tokens": 1},
        tier="t",
        status="partial",
        response_id="r",
        rate_card="c",
        authorization="h",
    )
    entries[8] = make_entry(customer, "tokens", meter="tokens", quantity=Decimal(10**15 - 1))
    return entries


def test_each_accepted_event_is_in_the_stream_once(store: Store, customer: str) -> None:
    entries = make_entries(customer)
    ledger = store.ledger()
    assert set(ledger.record(entries[:59])) == {Recorded.ACCEPTED}
    # One alone is written in another way than many; known ones write nothing.
    assert ledger.record(entries[59:]) == [Recorded.ACCEPTED]
    assert set(ledger.record(entries)) == {Recorded.DUPLICATE}
    records = read_stream(store, customer)
    letters = KeptLetters()
    batch = StreamReader(METERS, letters)({"shardId": "shardId-1", "Records": records})
    assert (batch.shard, batch.set_aside, letters.kept) == ("shardId-1", 0, [])
    sequences = [event.sequence for event in batch.events]
    assert sequences == sorted(set(sequences))
    by_identifier = {event.identifier: event for event in batch.events}
    assert len(by_identifier) == len(batch.events) == len(entries)
    for entry in entries:
        event = by_identifier[entry.key.identifier]
        assert event._replace(sequence=0) == event._replace(
            sequence=0,
            customer=customer,
            meter=entry.meter,
            hour=f"{entry.at:%Y-%m-%dT%H}",
            at_s=int(entry.at.timestamp()),
            sub_units=METERS[entry.meter].to_sub_units(entry.quantity),
            action=entry.action,
            user=entry.user,
        )


def test_a_record_that_cannot_be_read_is_set_aside_with_its_reason(
    dynamodb_local_store: Store, customer: str
) -> None:
    store = dynamodb_local_store
    entries = [
        make_entry(customer, "good"),
        make_entry(customer, "gone", meter="a meter that the catalog lost"),
        make_entry(customer, "fine", quantity=Decimal("0.0001")),
    ]
    store.ledger().record(entries)
    letters = KeptLetters()
    records = read_stream(store, customer)
    batch = StreamReader(METERS, letters)({"shardId": "shardId-1", "Records": records})
    assert [event.identifier for event in batch.events] == [entries[0].key.identifier]
    assert batch.set_aside == 2
    assert sorted(reason for _, reason in letters.kept) == [
        "unreadable_record: FinerThanSubUnitError('0.0001 credit is finer than 1/1000')",
        "unreadable_record: KeyError('a meter that the catalog lost')",
    ]


def test_a_record_that_comes_again_is_set_aside_once(store: Store, customer: str) -> None:
    letters = KeptLetters()
    once = SetAsideOnce(letters, store.wire(), store.tables.totals)
    records = [{"eventID": f"{customer}-{number}", "dynamodb": {}} for number in range(2)]
    for _ in range(3):
        for record in records:
            once.put(record, "unreadable_record: why")
    nameless = {"dynamodb": {"Keys": {"k": {"S": customer}}}}
    once.put(nameless, "unreadable_record: why")
    once.put(nameless, "unreadable_record: why")
    assert [record for record, _ in letters.kept] == [*records, nameless]


def test_a_record_that_could_not_be_set_aside_is_set_aside_when_it_comes_again(
    store: Store, customer: str
) -> None:
    class NoDeadLetters:
        def put(self, body: Mapping[str, Any], reason: str) -> None:
            raise StorageUnavailableError("late")

    record = {"eventID": customer}
    with pytest.raises(StorageUnavailableError):
        SetAsideOnce(NoDeadLetters(), store.wire(), store.tables.totals).put(record, "why")
    letters = KeptLetters()
    SetAsideOnce(letters, store.wire(), store.tables.totals).put(record, "why")
    assert letters.kept == [(record, "why")]

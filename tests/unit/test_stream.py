"""The ledger's stream, as the ledger writes it and Lambda delivers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.adapters.dynamodb_ledger import write_item
from meterline.adapters.dynamodb_stream import StreamReader
from meterline.catalog import load_meters
from meterline.domain.usage import EventKey, LedgerEntry
from meterline.errors import ConfigurationError, StorageUnavailableError

METERS = load_meters()
AT = datetime(2026, 11, 22, 23, 59, 59, 999_000, tzinfo=UTC)
ENTRY = LedgerEntry(
    key=EventKey("acme", "backend/reports", "req_8f2"),
    at=AT,
    meter="credits",
    quantity=Decimal("2.95"),
    digest=b"digest",
    received_at=AT,
    action="report.generate",
    user="u_9",
)
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)


class FakeDeadLetters:
    """Keeps what is set aside."""

    def __init__(self) -> None:
        self.kept: list[tuple[Mapping[str, Any], str]] = []

    def put(self, body: Mapping[str, Any], reason: str) -> None:
        self.kept.append((body, reason))


def make_record(entry: LedgerEntry, sequence: int = 1) -> dict[str, Any]:
    image = write_item(entry, "AAAA")
    return {
        "eventName": "INSERT",
        "dynamodb": {"SequenceNumber": str(sequence), "NewImage": image},
    }


def deliver(*records: Mapping[str, Any], shard: str | None = "shard-1") -> dict[str, Any]:
    return {"Records": list(records)} | ({"shardId": shard} if shard else {})


def test_an_entry_is_read_as_the_totals_need_it() -> None:
    batch = StreamReader(METERS, FakeDeadLetters())(deliver(make_record(ENTRY, 10**20 + 1)))
    [event] = batch.events
    assert (batch.shard, batch.set_aside) == ("shard-1", 0)
    assert event.sequence == 10**20 + 1
    assert (event.customer, event.meter, event.sub_units) == ("acme", "credits", 2950)
    assert event.hour == "2026-11-22T23"
    assert event.at_s == int(AT.timestamp())
    assert event.identifier == ENTRY.key.identifier
    assert (event.action, event.user) == ("report.generate", "u_9")


@given(
    st.builds(EventKey, st.from_regex(r"\A[a-z]{1,20}\Z"), TEXT, TEXT),
    st.integers(0, 10**15 - 1),
    st.sampled_from(sorted(METERS)),
    st.integers(0, 700 * 86_400_000),
    st.none() | TEXT,
    st.none() | TEXT,
)
def test_whatever_the_ledger_writes_is_read_to_the_last_sub_unit(
    key: EventKey,
    sub_units: int,
    meter: str,
    back_ms: int,
    action: str | None,
    user: str | None,
) -> None:
    at = AT - timedelta(milliseconds=back_ms)
    entry = replace(
        ENTRY,
        key=key,
        meter=meter,
        quantity=METERS[meter].from_sub_units(sub_units),
        at=at,
        action=action,
        user=user,
    )
    dead_letters = FakeDeadLetters()
    [event] = StreamReader(METERS, dead_letters)(deliver(make_record(entry))).events
    assert dead_letters.kept == []
    assert event.sub_units == sub_units
    assert event.hour == f"{at:%Y-%m-%dT%H}"
    assert event.at_s == at.replace(microsecond=0).timestamp()
    assert (event.customer, event.identifier) == (key.customer, key.identifier)
    assert (event.action, event.user) == (action, user)


def spoil(**changes: Any) -> dict[str, Any]:
    record = make_record(ENTRY)
    image = record["dynamodb"]["NewImage"]
    for name, value in changes.items():
        if value is None:
            del image[name]
        else:
            image[name] = value
    return record


@pytest.mark.parametrize(
    "record",
    [
        spoil(m={"S": "apples"}),
        spoil(m=None),
        spoil(q={"N": "0.00001"}),
        spoil(q={"N": "many"}),
        spoil(q={"N": "9.9E+125"}),
        spoil(q={"N": "-1000000000000"}),
        spoil(q={"NULL": True}),
        spoil(t={"S": "yesterday"}),
        spoil(t={"S": "2026-11-22"}),
        spoil(t={"S": "2026-11-22T01:00:00.000+02:00"}),
        spoil(k={"S": "acme"}),
        {"eventName": "REMOVE", "dynamodb": {"SequenceNumber": "1"}},
        {"eventName": "INSERT"},
        {"eventName": "INSERT", "dynamodb": {"SequenceNumber": "1", "NewImage": None}},
    ],
)
def test_what_cannot_be_read_is_set_aside_with_its_reason_and_costs_no_other(
    record: Mapping[str, Any],
) -> None:
    dead_letters = FakeDeadLetters()
    read = StreamReader(METERS, dead_letters)
    batch = read(deliver(make_record(ENTRY, 1), record, make_record(ENTRY, 3)))
    assert [event.sequence for event in batch.events] == [1, 3]
    assert batch.set_aside == 1
    [(kept, reason)] = dead_letters.kept
    assert kept == record
    assert reason.startswith("unreadable_record: ")


def test_what_cannot_be_set_aside_is_not_passed_over() -> None:
    class NoDeadLetters:
        def put(self, body: Mapping[str, Any], reason: str) -> None:
            raise StorageUnavailableError("late")

    with pytest.raises(StorageUnavailableError):
        StreamReader(METERS, NoDeadLetters())(deliver({"eventName": "INSERT"}))


def test_a_delivery_that_names_no_shard_is_refused_unless_the_stream_has_one() -> None:
    delivery = deliver(make_record(ENTRY), shard=None)
    with pytest.raises(ConfigurationError, match="TumblingWindowInSeconds"):
        StreamReader(METERS, FakeDeadLetters())(delivery)
    assert StreamReader(METERS, FakeDeadLetters(), one_shard=True)(delivery).shard == "only"


def test_the_end_of_a_window_without_records_is_an_empty_batch() -> None:
    batch = StreamReader(METERS, FakeDeadLetters())({"shardId": "shard-1", "Records": []})
    assert (batch.events, batch.set_aside) == ([], 0)

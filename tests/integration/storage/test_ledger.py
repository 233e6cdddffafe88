"""The ledger's contract, on every store: each event is accepted once, whoever sends it how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zlib import crc32

import pytest

from meterline.adapters.dynamodb_ledger import DAY_SHARDS, write_item
from meterline.domain.usage import EventKey, LedgerEntry
from meterline.ports import Recorded
from tests.integration.storage.entries import NOON, make_entry
from tests.integration.storage.stores import Store


def record_one(store: Store, entry: LedgerEntry) -> Recorded:
    [outcome] = store.ledger().record([entry])
    return outcome


def test_a_new_event_is_accepted_and_kept_as_it_came(store: Store, customer: str) -> None:
    entry = make_entry(
        customer,
        "req_1",
        quantity=Decimal("0.001"),
        action="report.generate",
        user="u_9",
        provider="anthropic",
        model="claude-sonnet-4-5",
        usage={"input_tokens": 1200, "output_tokens": 350, "cache_read_tokens": 0},
        rate_card="2026-11-01",
        authorization="auth_1",
        tier="batch",
        status="partial",
        response_id="msg_1",
    )
    ledger = store.ledger()
    assert list(ledger.record([entry])) == [Recorded.ACCEPTED]
    found = ledger.find(entry.key)
    # A count of zero says nothing, and is not kept.
    assert found == replace(entry, usage={"input_tokens": 1200, "output_tokens": 350})


def test_the_same_event_again_is_a_duplicate_and_the_first_stays(
    store: Store, customer: str
) -> None:
    entry = make_entry(customer, "req_1")
    assert record_one(store, entry) is Recorded.ACCEPTED
    assert record_one(store, entry) is Recorded.DUPLICATE
    later = replace(entry, received_at=entry.received_at + timedelta(days=400))
    assert record_one(store, later) is Recorded.DUPLICATE
    assert store.ledger().find(entry.key) == entry


def test_the_same_id_at_another_time_is_the_same_event(store: Store, customer: str) -> None:
    entry = make_entry(customer, "req_1")
    assert record_one(store, entry) is Recorded.ACCEPTED
    moved = replace(entry, at=entry.at + timedelta(days=40))
    assert record_one(store, moved) is Recorded.DUPLICATE
    assert list(store.ledger().events_between(customer, moved.at, moved.at + timedelta(1))) == []


def test_the_same_id_with_other_content_is_a_conflict_and_the_first_stays(
    store: Store, customer: str
) -> None:
    entry = make_entry(customer, "req_1", digest=b"1" * 16)
    assert record_one(store, entry) is Recorded.ACCEPTED
    other = replace(entry, quantity=Decimal(99), digest=b"2" * 16)
    assert record_one(store, other) is Recorded.CONFLICT
    assert store.ledger().find(entry.key) == entry


def test_ids_are_the_senders_own(store: Store, customer: str) -> None:
    entries = [
        make_entry(customer, "invoice-42", source="a"),
        make_entry(customer, "invoice-42", source="b"),
        make_entry(f"{customer}-x", "invoice-42", source="a"),
        # The same letters, cut elsewhere.
        make_entry(customer, "ainvoice-42", source=""),
        make_entry(customer, "-42", source="ainvoice"),
    ]
    assert set(store.ledger().record(entries)) == {Recorded.ACCEPTED}
    assert len({entry.key.identifier for entry in entries}) == len(entries)


@pytest.mark.parametrize(
    "text",
    [
        "ümläut",
        "請求書-42",
        "🧾" * 200,
        "a" * 200,
        "مرحبا",
        "e\u0301 is not \u00e9",
        "with 'quotes' \"and\" \\backslash ? # { }",
        " ",
    ],
)
def test_any_text_is_an_id_and_a_source(store: Store, text: str) -> None:
    # The longest customer of 64 characters, source and id of 200: below 2,048 bytes of a key.
    customer = f"{crc32(text.encode()):0>64}"
    entries = [make_entry(customer, text, source=text), make_entry(customer, "plain")]
    assert set(store.ledger().record(entries)) == {Recorded.ACCEPTED}
    assert set(store.ledger().record(entries)) == {Recorded.DUPLICATE}
    assert store.ledger().find(entries[0].key) == entries[0]
    listed = store.ledger().events_between(customer, NOON, NOON + timedelta(hours=1))
    assert {entry.key for entry in listed} == {entry.key for entry in entries}


def test_composed_and_decomposed_letters_are_different_ids(store: Store, customer: str) -> None:
    entries = [make_entry(customer, "caf\u00e9"), make_entry(customer, "cafe\u0301")]
    assert set(store.ledger().record(entries)) == {Recorded.ACCEPTED}


@pytest.mark.parametrize("quantity", ["0", "0.001", "999999999999.999", "999999999999999"])
def test_a_quantity_comes_back_exactly(store: Store, customer: str, quantity: str) -> None:
    entry = make_entry(customer, "req_1", quantity=Decimal(quantity))
    assert record_one(store, entry) is Recorded.ACCEPTED
    found = store.ledger().find(entry.key)
    assert found is not None
    assert found.quantity == Decimal(quantity)


def test_a_thousand_events_go_in_one_call_and_known_ones_cost_the_others_nothing(
    store: Store, customer: str
) -> None:
    entries = [make_entry(customer, f"req_{number}") for number in range(1000)]
    known = entries[3:1000:7]
    conflicting = [replace(entry, digest=b"other" + b"-" * 11) for entry in entries[5:1000:7]]
    ledger = store.ledger()
    assert Counter(ledger.record(known + conflicting)) == {
        Recorded.ACCEPTED: len(known) + len(conflicting)
    }
    outcomes = ledger.record(entries)
    assert len(outcomes) == 1000
    for number, outcome in enumerate(outcomes):
        expected = {3: Recorded.DUPLICATE, 5: Recorded.CONFLICT}.get(number % 7, Recorded.ACCEPTED)
        assert outcome is expected, number
    assert set(ledger.record(known)) == {Recorded.DUPLICATE}


def test_no_events_are_no_work(store: Store) -> None:
    assert list(store.ledger().record([])) == []


def test_of_concurrent_writers_of_the_same_ids_each_event_is_accepted_once(
    store: Store, customer: str
) -> None:
    entries = [make_entry(customer, f"req_{number}") for number in range(60)]
    ledger = store.ledger(store.wire(pool_size=32))

    def write(turn: int) -> Sequence[tuple[str, Recorded]]:
        # Each writer starts elsewhere: in a database with locks this is how deadlocks are made.
        mine = entries[turn * 7 :] + entries[: turn * 7]
        if turn % 2:
            mine.reverse()
        return list(zip((entry.key.text for entry in mine), ledger.record(mine), strict=True))

    with ThreadPoolExecutor(8) as threads:
        answers = [pair for part in threads.map(write, range(8)) for pair in part]
    accepted = Counter(key for key, outcome in answers if outcome is Recorded.ACCEPTED)
    assert accepted == {entry.key.text: 1 for entry in entries}
    others = {outcome for _, outcome in answers if outcome is not Recorded.ACCEPTED}
    assert others == {Recorded.DUPLICATE}
    assert len(list(ledger.events_between(customer, NOON, NOON + timedelta(hours=1)))) == 60


def test_a_days_events_are_listed_in_order_from_the_start_up_to_the_end(
    store: Store, customer: str
) -> None:
    millisecond = timedelta(milliseconds=1)
    start, end = NOON, NOON + timedelta(hours=1)
    moments = [start - millisecond, start, start + millisecond, end - millisecond, end]
    # Several at the same instant, and enough that all eight parts of a day hold some.
    moments += [start + timedelta(minutes=number % 59) for number in range(60)]
    entries = [make_entry(customer, f"req_{i}", at=at) for i, at in enumerate(moments)]
    neighbours = [make_entry(f"{customer}0", "req_n"), make_entry(customer[:-1] or "c", "req_n")]
    ledger = store.ledger()
    assert set(ledger.record(entries + neighbours)) == {Recorded.ACCEPTED}
    listed = list(ledger.events_between(customer, start, end))
    assert [entry.at for entry in listed] == sorted(at for at in moments if start <= at < end)
    expected = {entry.key for entry in entries if start <= entry.at < end}
    assert {entry.key for entry in listed} == expected
    assert len(listed) == len(expected)


def test_events_are_listed_over_midnight_of_any_time_zone(store: Store, customer: str) -> None:
    midnight = datetime(2026, 3, 1, tzinfo=UTC)
    moments = [midnight + timedelta(hours=hours) for hours in (-25, -1, 0, 1, 23, 24)]
    ledger = store.ledger()
    ledger.record([make_entry(customer, f"req_{i}", at=at) for i, at in enumerate(moments)])

    def list_hours(start: datetime, end: datetime) -> list[float]:
        listed = ledger.events_between(customer, start, end)
        return [(entry.at - midnight) / timedelta(hours=1) for entry in listed]

    assert list_hours(midnight, midnight + timedelta(days=1)) == [0, 1, 23]
    assert list_hours(midnight - timedelta(hours=1), midnight + timedelta(hours=1)) == [-1, 0]
    berlin_day = datetime.fromisoformat("2026-03-01T00:00:00+01:00")
    assert list_hours(berlin_day, berlin_day + timedelta(days=1)) == [-1, 0, 1]
    assert list_hours(midnight, midnight) == []


def test_a_listing_goes_on_where_a_page_of_a_megabyte_ends(store: Store, customer: str) -> None:
    ledger = store.ledger()
    # One of the eight parts of the day alone must be over a page of 1 MB.
    large = {f"kind_{kind}" + "k" * 48: 10**12 for kind in range(16)}
    text = "t" * 128
    candidates = (
        make_entry(
            customer, f"req_{number}" + "i" * 190, source="s" * 200,
            usage=large, user=text, action=text, model=text, provider=text,
            at=NOON + timedelta(milliseconds=number),
        )
        for number in range(10**6)
    )  # fmt: skip
    entries = []
    for entry in candidates:
        if ledger_shard(entry.key) == 0:
            entries.append(entry)
        if len(entries) == 650:
            break
    wire = store.wire()
    for start in range(0, len(entries), 25):
        puts = [
            {"PutRequest": {"Item": write_item(entry, "AAAA")}}
            for entry in entries[start : start + 25]
        ]
        answer = wire.call("BatchWriteItem", {"RequestItems": {store.tables.events: puts}})
        assert not answer.get("UnprocessedItems")
    listed = list(ledger.events_between(customer, NOON, NOON + timedelta(hours=1)))
    assert [entry.key for entry in listed] == [entry.key for entry in entries]
    client = store.client()
    page = client.query(
        TableName=store.tables.events,
        IndexName="by_day",
        KeyConditionExpression="d = :d",
        ExpressionAttributeValues={":d": {"S": f"{customer}#{NOON:%Y%m%d}#0"}},
    )
    assert "LastEvaluatedKey" in page, "the test must be about more than one page"


def ledger_shard(key: EventKey) -> int:
    return crc32(key.text.encode()) % DAY_SHARDS


def test_an_event_that_is_not_there_is_not_found(store: Store, customer: str) -> None:
    assert store.ledger().find(EventKey(customer, "backend", "never")) is None

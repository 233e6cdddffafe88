"""The emission store's contract, on every store."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from meterline.adapters.dynamodb_emissions import MAX_ENTRIES, batch_item
from meterline.adapters.dynamodb_wire import DynamoWire, TransactionCanceledError
from meterline.domain.emission import (
    BatchDue,
    EmissionBatch,
    EmissionEntry,
    HourDue,
    Lapse,
    Problem,
)
from meterline.domain.measuring import HourTotal
from meterline.domain.sending import BatchSending, HourSending, Progress
from meterline.domain.usage import EventKey
from meterline.errors import SupersededError
from tests.integration.storage.stores import Store

NOW = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
NOW_S = int(NOW.timestamp())
EXPIRY_S = int((NOW + timedelta(days=400)).timestamp())


def make_entries(count: int, customer: str) -> list[EmissionEntry]:
    return [
        EmissionEntry(EventKey(customer, "s", str(i)).identifier, NOW_S - i, 10**15 * (-1) ** i - i)
        for i in range(count)
    ]


def make_problem(number: int, kind: Lapse = Lapse.REFUSED) -> Problem:
    return Problem(kind, "bad_value", "no good", f"ml_{number:040x}", NOW_S - number, 10**40)


def write_batch(store: Store, customer: str, count: int) -> tuple[BatchDue, EmissionBatch]:
    batch = EmissionBatch(customer, "credits", "b1", make_entries(count, customer))
    put = {"Put": {"TableName": store.tables.emissions, "Item": batch_item(batch, NOW)}}
    store.wire().call("TransactWriteItems", {"TransactItems": [put]})
    return BatchDue(customer, "credits", "b1"), batch


def list_problems(store: Store, kind: Lapse, customer: str) -> list[str]:
    answer = store.client().query(
        TableName=store.tables.emissions,
        IndexName="by_problem",
        KeyConditionExpression="problem = :kind",
        FilterExpression="customer = :customer",
        ExpressionAttributeValues={":kind": {"S": kind}, ":customer": {"S": customer}},
    )
    return [item["identifier"]["S"] for item in answer["Items"]]


def read_item(store: Store, customer: str, meter: str, sk: str) -> dict[str, dict[str, str]]:
    answer = store.client().get_item(
        TableName=store.tables.emissions,
        Key={"pk": {"S": f"{customer}#{meter}"}, "sk": {"S": sk}},
    )
    item: dict[str, dict[str, str]] = answer.get("Item", {})
    return item


def test_a_full_batch_reads_as_it_was_written(store: Store, customer: str) -> None:
    due, batch = write_batch(store, customer, MAX_ENTRIES)
    assert store.emissions().load_batch(due) == (batch, None)


def test_what_is_not_there_is_none(store: Store, customer: str) -> None:
    assert store.emissions().load_batch(BatchDue(customer, "credits", "b9")) == (None, None)
    assert store.emissions().load_hour(HourDue(customer, "tokens", NOW)) == HourSending()


def test_a_batchs_state_reads_as_it_was_written(store: Store, customer: str) -> None:
    due, _ = write_batch(store, customer, 4)
    emissions = store.emissions()
    sending = BatchSending.begin(4).intend([1, 2, 3], NOW_S).miss_answer(2, NOW_S)
    sending = sending.settle(0, Progress.SENT).settle(1, Progress.REFUSED)
    saved = emissions.save_batch(due, sending, opened=[], now=NOW)
    assert saved == replace(sending, version=1)
    assert emissions.load_batch(due)[1] == saved
    again = emissions.save_batch(due, replace(saved, intent=None, parks=3), opened=[], now=NOW)
    assert emissions.load_batch(due)[1] == again


def test_a_state_that_was_read_before_another_save_is_superseded(
    store: Store, customer: str
) -> None:
    due, _ = write_batch(store, customer, 2)
    emissions = store.emissions()
    first = BatchSending.begin(2)
    emissions.save_batch(due, first, opened=[], now=NOW)
    with pytest.raises(SupersededError):
        emissions.save_batch(due, first, opened=[], now=NOW)
    with pytest.raises(SupersededError):
        emissions.save_batch(due, first, opened=[make_problem(1)], now=NOW)
    assert not read_item(store, customer, "credits", f"problem#{make_problem(1).identifier}")


def test_of_many_savers_of_one_version_exactly_one_wins(store: Store, customer: str) -> None:
    due, _ = write_batch(store, customer, 2)
    emissions = store.emissions()
    wins: list[int] = []
    start = threading.Barrier(8)

    def save(number: int) -> None:
        start.wait()
        try:
            emissions.save_batch(
                due, replace(BatchSending.begin(2), parks=number), opened=[], now=NOW
            )
        except SupersededError:
            return
        wins.append(number)

    threads = [threading.Thread(target=save, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    stored = emissions.load_batch(due)[1]
    assert stored is not None
    assert stored.parks == wins[0]


class ForgetfulWire:
    """A wire that makes each write twice, as a client does whose first answer was lost."""

    def __init__(self, wire: DynamoWire) -> None:
        self._wire = wire

    def call(
        self, operation: str, request: dict[str, object], *, deadline_s: float = 60.0
    ) -> dict[str, object]:
        if operation in ("PutItem", "TransactWriteItems"):
            self._wire.call(operation, request, deadline_s=deadline_s)
        return self._wire.call(operation, request, deadline_s=deadline_s)


@pytest.mark.parametrize("problems", [0, 2])
def test_our_own_save_whose_answer_was_lost_is_no_one_elses(
    store: Store, customer: str, problems: int
) -> None:
    due, _ = write_batch(store, customer, 2)
    emissions = store.emissions(ForgetfulWire(store.wire()))  # type: ignore[arg-type]  # same calls
    opened = [make_problem(number) for number in range(problems)]
    saved = emissions.save_batch(due, BatchSending.begin(2), opened=opened, now=NOW)
    assert store.emissions().load_batch(due)[1] == saved


def test_ninety_problems_open_with_the_state_and_close_one_by_one(
    store: Store, customer: str
) -> None:
    due, _ = write_batch(store, customer, 2)
    emissions = store.emissions()
    problems = [make_problem(number) for number in range(90)]
    emissions.save_batch(due, BatchSending.begin(2), opened=problems, now=NOW)
    listed = list_problems(store, Lapse.REFUSED, customer)
    # By the time of the event, oldest first.
    assert listed == [problem.identifier for problem in reversed(problems)]
    emissions.resolve_problem(due, problems[0].identifier, NOW)
    assert problems[0].identifier not in list_problems(store, Lapse.REFUSED, customer)
    closed = read_item(store, customer, "credits", f"problem#{problems[0].identifier}")
    assert closed["expires_at"] == {"N": str(EXPIRY_S)}
    assert closed["sub_units"] == {"S": str(10**40)}
    still_open = read_item(store, customer, "credits", f"problem#{problems[1].identifier}")
    assert "expires_at" not in still_open


def test_a_problem_that_comes_again_keeps_when_it_was_first_seen(
    store: Store, customer: str
) -> None:
    due, _ = write_batch(store, customer, 2)
    emissions = store.emissions()
    problem = make_problem(1)
    saved = emissions.save_batch(due, BatchSending.begin(2), opened=[problem], now=NOW)
    emissions.resolve_problem(due, problem.identifier, NOW)
    later = NOW + timedelta(days=2)
    emissions.save_batch(due, saved, opened=[replace(problem, kind=Lapse.UNKNOWN)], now=later)
    item = read_item(store, customer, "credits", f"problem#{problem.identifier}")
    assert item["first_seen"]["S"].startswith("2026-11-22")
    assert item["last_seen"]["S"].startswith("2026-11-24")
    assert "resolved_at" not in item
    assert "expires_at" not in item
    assert list_problems(store, Lapse.UNKNOWN, customer) == [problem.identifier]
    assert list_problems(store, Lapse.REFUSED, customer) == []


def test_resolving_what_was_never_a_problem_leaves_no_trace(store: Store, customer: str) -> None:
    due = BatchDue(customer, "credits", "b1")
    store.emissions().resolve_problem(due, "ml_x", NOW)
    assert not read_item(store, customer, "credits", "problem#ml_x")


def test_only_what_is_settled_is_let_go(store: Store, customer: str) -> None:
    due, _ = write_batch(store, customer, 2)
    emissions = store.emissions()
    saved = emissions.save_batch(due, BatchSending("sr", done=True), opened=[], now=NOW)
    assert "expires_at" not in read_item(store, customer, "credits", "send#b1")
    assert read_item(store, customer, "credits", "batch#b1")["expires_at"] == {"N": str(EXPIRY_S)}
    emissions.keep_batch(due)
    assert "expires_at" not in read_item(store, customer, "credits", "batch#b1")
    emissions.expire_batch(due, NOW)
    emissions.save_batch(due, replace(saved, progress="sl"), opened=[], now=NOW)
    assert read_item(store, customer, "credits", "send#b1")["expires_at"] == {"N": str(EXPIRY_S)}
    assert read_item(store, customer, "credits", "batch#b1")["expires_at"] == {"N": str(EXPIRY_S)}


def test_an_hours_state_reads_as_it_was_written(store: Store, customer: str) -> None:
    due = HourDue(customer, "tokens", NOW)
    emissions = store.emissions()
    begun = HourSending().add_stray(-7, NOW_S + 9).begin(HourTotal(10**20, 3), NOW, NOW_S + 60)
    saved = emissions.save_hour(due, begun, opened=[], now=NOW)
    assert emissions.load_hour(due) == saved
    settled = emissions.save_hour(due, replace(saved.succeed(), strays={}), opened=[], now=NOW)
    assert emissions.load_hour(due) == settled
    assert settled.sent_sub_units == 10**20
    item = read_item(store, customer, "tokens", "hour#2026-11-22T06")
    assert item["expires_at"] == {"N": str(EXPIRY_S)}
    lapsed = replace(settled, lapse="late:period_final:5")
    emissions.save_hour(due, lapsed, opened=[make_problem(1, Lapse.LATE)], now=NOW)
    assert emissions.load_hour(due).lapse == "late:period_final:5"
    assert "expires_at" not in read_item(store, customer, "tokens", "hour#2026-11-22T06")
    with pytest.raises(SupersededError):
        emissions.save_hour(due, settled, opened=[], now=NOW)


def test_a_save_that_the_storage_refuses_is_not_taken_for_somebody_elses(
    dynamodb_local_store: Store, customer: str
) -> None:
    emissions = dynamodb_local_store.emissions()
    due, batch = write_batch(dynamodb_local_store, customer, 2)
    problem = make_problem(1, Lapse.REFUSED)
    # An item has at most 409,600 bytes: this one has no room for the problem.
    dynamodb_local_store.client().put_item(
        TableName=dynamodb_local_store.tables.emissions,
        Item={
            "pk": {"S": f"{customer}#credits"},
            "sk": {"S": f"problem#{problem.identifier}"},
            "filler": {"S": "x" * 409_450},
        },
    )
    sending = BatchSending.begin(len(batch.entries))
    with pytest.raises(TransactionCanceledError):
        emissions.save_batch(due, sending, opened=[problem], now=NOW)

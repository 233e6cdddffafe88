"""The totals' contract, on every store: a step is counted once, with its checkpoint, or not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterline.adapters.dynamodb_emissions import MAX_ENTRIES
from meterline.adapters.dynamodb_totals import MAX_STEP_ITEMS
from meterline.adapters.dynamodb_wire import DynamoWire, TransactionCanceledError
from meterline.catalog import load_meters
from meterline.domain.emission import BatchDue, HourDue
from meterline.domain.measuring import HourTotal
from meterline.domain.projection import (
    Checkpoint,
    PendingEmission,
    ProjectedEvent,
    TotalsStep,
    name_recount,
    plan_steps,
)
from meterline.domain.usage import EventKey
from meterline.errors import StorageUnavailableError
from meterline.ports import CheckpointMovedError
from tests.integration.storage.conftest import FaultProxy
from tests.integration.storage.stores import Store

HOUR = datetime(2026, 11, 20, 12, tzinfo=UTC)
METERS = load_meters()
# As large as DynamoDB's: longer than a number of DynamoDB or a float could hold.
FIRST_SEQUENCE = 4421584500000000017450439091000000


def make_event(customer: str, number: int, **said: Any) -> ProjectedEvent:
    """Event `number` of a shard: 1,000 sub-units of credits at noon, but for what is said."""
    event = ProjectedEvent(
        sequence=FIRST_SEQUENCE + number,
        customer=customer,
        meter="credits",
        hour="2026-11-20T12",
        at_s=int(HOUR.timestamp()),
        received_at_s=int(HOUR.timestamp()),
        sub_units=1000,
        identifier=EventKey(customer, "backend", f"req_{number}").identifier,
        action=None,
        user=None,
    )
    return event._replace(**said)


def plan_one(*events: ProjectedEvent, name: str = "step") -> TotalsStep:
    """The one step that these events come to."""
    [step] = plan_steps(
        events,
        METERS,
        lambda first: f"{name}-{first:x}",
        max_items=MAX_STEP_ITEMS,
        max_entries=MAX_ENTRIES,
    )
    return step


def test_a_shard_that_was_never_counted_has_no_checkpoint(store: Store, shard: str) -> None:
    assert store.totals().checkpoint(shard) == Checkpoint()


def test_a_step_moves_counters_batch_and_checkpoint(
    store: Store, customer: str, shard: str
) -> None:
    totals = store.totals()
    step = plan_one(
        make_event(customer, 0, action="report", user="u_1"),
        make_event(customer, 1, action="report", user="u_2", sub_units=1),
        make_event(customer, 2, hour="2026-11-20T13", sub_units=7),
        make_event(customer, 3, hour="2026-11-21T00", sub_units=11),
        make_event(customer, 4, meter="tokens", sub_units=10**15 - 1),
        make_event(customer, 5, sub_units=0),
    )
    after = totals.apply(shard, Checkpoint(), step)
    assert after == Checkpoint(FIRST_SEQUENCE + 5, step.pending())
    assert totals.checkpoint(shard) == after
    assert totals.hour_total(customer, "credits", HOUR) == HourTotal(1001, 3)
    assert totals.hour_total(customer, "credits", HOUR.replace(hour=13)) == HourTotal(7, 1)
    assert totals.hour_total(customer, "credits", HOUR.replace(hour=14)) == HourTotal(0, 0)
    assert totals.day_total(customer, "credits", "2026-11-20") == HourTotal(1008, 4)
    assert totals.day_total(customer, "credits", "2026-11-21") == HourTotal(11, 1)
    assert totals.hour_total(customer, "tokens", HOUR) == HourTotal(10**15 - 1, 1)
    assert read_shares(store, customer) == {
        "action#2026-11-20#report": (1001, 2),
        "user#2026-11-20#u_1": (1000, 1),
        "user#2026-11-20#u_2": (1, 1),
    }
    batch, sending = store.emissions().load_batch(BatchDue(customer, "credits", step.id))
    assert sending is None
    assert batch is not None
    assert [entry.sub_units for entry in batch.entries] == [1000, 1, 7, 11]
    assert list(step.pending().dues()) == [
        BatchDue(customer, "credits", step.id),
        HourDue(customer, "tokens", HOUR),
    ]


def test_a_checkpoint_goes_when_its_shard_is_long_silent_and_owes_nothing(
    store: Store, customer: str, shard: str
) -> None:
    totals = store.totals()

    def expires_at(of: str) -> float | None:
        item = store.wire().call(
            "GetItem",
            {
                "TableName": store.tables.totals,
                "Key": {"pk": {"S": f"shard#{of}"}, "sk": {"S": "checkpoint"}},
            },
        )["Item"]
        return float(item["expires_at"]["N"]) if "expires_at" in item else None

    owing = totals.apply(shard, Checkpoint(), plan_one(make_event(customer, 0)))
    assert expires_at(shard) is None, "the emitter still has to hear of it"
    totals.clear_pending(shard, owing)
    at = expires_at(shard)
    assert at is not None
    # The stream keeps records for a day: what the checkpoint knows of is gone long before it is.
    assert at - time.time() > timedelta(days=2).total_seconds()
    totals.apply(shard, replace(owing, pending=None), plan_one(make_event(customer, 1)))
    assert expires_at(shard) is None
    recount = name_recount(customer, "credits")
    step = plan_one(make_event(customer, 2, sub_units=0))
    step.through = 1
    totals.apply(recount, Checkpoint(), step)
    assert expires_at(recount) is None, "its places would begin anew"


def read_shares(store: Store, customer: str) -> dict[str, tuple[int, int]]:
    return {
        f"{kind}#2026-11-20#{name}": (share.sub_units, share.events)
        for kind in ("action", "user")
        for name, share in (
            store.totals().day_shares(customer, "credits", "2026-11-20", kind).items()
        )
    }


def test_shares_of_many_names_come_back_whatever_item_they_went_to(
    store: Store, customer: str, shard: str
) -> None:
    checkpoint = Checkpoint()
    names = [f"u_{number}" for number in range(90)] + ["ü" * 128]
    for turn in range(3):
        # A process that starts anew knows of no names, and chooses other items.
        totals = store.totals()
        events = [
            make_event(customer, 100 * turn + place, user=name, sub_units=place + 1)
            for place, name in enumerate(names)
        ]
        checkpoint = totals.apply(shard, checkpoint, plan_one(*events, name=f"{turn}"))
    shares = store.totals().day_shares(customer, "credits", "2026-11-20", "user")
    assert shares == {name: HourTotal(3 * (place + 1), 3) for place, name in enumerate(names)}


def test_a_day_of_more_names_than_an_item_holds_is_counted(
    dynamodb_local_store: Store, customer: str, shard: str
) -> None:
    store = dynamodb_local_store
    totals = store.totals()
    checkpoint = totals.apply(shard, Checkpoint(), plan_one(make_event(customer, 0, user="u_0")))
    [item] = store.client().query(
        TableName=store.tables.totals,
        KeyConditionExpression="pk = :pk AND begins_with(sk, :sk)",
        ExpressionAttributeValues={
            ":pk": {"S": f"{customer}#credits"},
            ":sk": {"S": "action#2026-11-20#"},
        },
    )["Items"]
    # As though many processes had each begun with that item: 409,600 bytes are the most.
    full = {f"{kind}u:{number:035d}": {"N": "1"} for number in range(5115) for kind in "qn"}
    store.client().put_item(TableName=store.tables.totals, Item=item | full)
    names = [f"{number:036x}z" for number in range(90)]
    for turn in range(2):
        events = [
            make_event(customer, 100 * turn + place + 1, user=name)
            for place, name in enumerate(names)
        ]
        checkpoint = totals.apply(shard, checkpoint, plan_one(*events, name=f"{turn}"))
    assert totals.checkpoint(shard) == checkpoint
    shares = totals.day_shares(customer, "credits", "2026-11-20", "user")
    assert {name: shares[name] for name in names} == dict.fromkeys(names, HourTotal(2000, 2))
    assert len(shares) == 5115 + 1 + 90


def test_steps_add_up(store: Store, customer: str, shard: str) -> None:
    totals = store.totals()
    checkpoint = Checkpoint()
    for number in range(5):
        step = plan_one(make_event(customer, number, user="u", sub_units=10**14 + number))
        checkpoint = totals.apply(shard, checkpoint, step)
    expected = HourTotal(5 * 10**14 + 10, 5)
    assert totals.hour_total(customer, "credits", HOUR) == expected
    assert totals.day_total(customer, "credits", "2026-11-20") == expected
    assert read_shares(store, customer) == {"user#2026-11-20#u": tuple(expected)}


def test_a_step_from_a_checkpoint_that_moved_counts_nothing(
    store: Store, customer: str, shard: str
) -> None:
    totals = store.totals()
    step = plan_one(make_event(customer, 0, user="u"))
    first = totals.apply(shard, Checkpoint(), step)
    for stale in (Checkpoint(), Checkpoint(FIRST_SEQUENCE - 1), Checkpoint(FIRST_SEQUENCE + 9)):
        with pytest.raises(CheckpointMovedError):
            totals.apply(shard, stale, plan_one(make_event(customer, 1, user="u"), name="stale"))
    assert totals.checkpoint(shard) == first
    assert totals.hour_total(customer, "credits", HOUR) == HourTotal(1000, 1)
    stale_batch = BatchDue(customer, "credits", f"stale-{FIRST_SEQUENCE + 1:x}")
    assert store.emissions().load_batch(stale_batch) == (None, None)


def test_shards_have_checkpoints_of_their_own(store: Store, customer: str, shard: str) -> None:
    totals = store.totals()
    totals.apply(shard, Checkpoint(), plan_one(make_event(customer, 7), name="a"))
    totals.apply(f"{shard}-2", Checkpoint(), plan_one(make_event(customer, 3), name="b"))
    assert totals.checkpoint(shard).through == FIRST_SEQUENCE + 7
    assert totals.checkpoint(f"{shard}-2").through == FIRST_SEQUENCE + 3
    assert totals.hour_total(customer, "credits", HOUR) == HourTotal(2000, 2)


def test_a_batch_is_never_written_over(store: Store, customer: str, shard: str) -> None:
    totals = store.totals()
    first = plan_one(make_event(customer, 0), name="same")
    totals.apply(shard, Checkpoint(), first)
    with pytest.raises(TransactionCanceledError):
        totals.apply(f"{shard}-2", Checkpoint(), plan_one(make_event(customer, 0), name="same"))
    assert totals.checkpoint(f"{shard}-2") == Checkpoint()
    assert totals.hour_total(customer, "credits", HOUR) == HourTotal(1000, 1)


def test_of_two_that_count_the_same_records_at_once_one_counts(
    store: Store, customer: str, shard: str
) -> None:

    step = plan_one(make_event(customer, 0, user="u"))

    def apply(_turn: int) -> bool:
        try:
            store.totals().apply(shard, Checkpoint(), step)
        except CheckpointMovedError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(apply, range(4))) == 1
    assert store.totals().hour_total(customer, "credits", HOUR) == HourTotal(1000, 1)


def test_shards_that_count_one_customer_at_once_lose_nothing(
    store: Store, customer: str, shard: str
) -> None:

    def count(turn: int) -> None:
        totals = store.totals()
        checkpoint = Checkpoint()
        for number in range(8):
            event = make_event(customer, turn * 100 + number, user="u")
            step = plan_one(event, name=f"{turn}")
            checkpoint = totals.apply(f"{shard}-{turn}", checkpoint, step)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count, range(4)))
    assert store.totals().hour_total(customer, "credits", HOUR) == HourTotal(32_000, 32)
    assert read_shares(store, customer) == {"user#2026-11-20#u": (32_000, 32)}


def test_the_largest_step_fits_into_one_transaction(
    store: Store, customer: str, shard: str
) -> None:
    # Two days, one batch of the largest size, and shares with the longest names for the rest.
    def make_events(shares: int) -> list[ProjectedEvent]:
        return [
            make_event(
                customer,
                number,
                user=("ü" * 120 + f"{number % shares:04}") if number < 400 else None,
                hour=f"2026-11-{20 + number % 2 * (number >= 400)}T{number % 24:02}",
                sub_units=10**15 - 1 - number,
            )
            for number in range(MAX_ENTRIES)
        ]

    few = plan_one(*make_events(1))
    events = make_events(1 + MAX_STEP_ITEMS - few.item_count)
    step = plan_one(*events)
    assert step.item_count == MAX_STEP_ITEMS == 99
    totals = store.totals()
    after = totals.apply(shard, Checkpoint(), step)
    assert totals.checkpoint(shard) == after
    days = [totals.day_total(customer, "credits", f"2026-11-{day}") for day in (20, 21)]
    assert sum(day.sub_units for day in days) == sum(event.sub_units for event in events)
    assert sum(day.events for day in days) == MAX_ENTRIES
    batch, _ = store.emissions().load_batch(BatchDue(customer, "credits", step.id))
    assert batch is not None
    assert [entry.identifier for entry in batch.entries] == [event.identifier for event in events]


def test_hand_overs_come_back_as_they_were_left(store: Store, customer: str, shard: str) -> None:
    pending = PendingEmission(
        "5f-1",
        tuple((f"{customer}.{number}-x_Y", "credits") for number in range(40)),
        tuple(
            (f"{customer}.{number}", "tokens", f"2026-11-20T{number:02}") for number in range(24)
        ),
    )

    @dataclass
    class Step(TotalsStep):
        def pending(self) -> PendingEmission:
            return pending

    after = store.totals().apply(shard, Checkpoint(), Step("5f-1", through=1))
    assert after.pending == pending
    assert store.totals().checkpoint(shard) == after


def test_hand_overs_are_forgotten_once_they_are_done(
    store: Store, customer: str, shard: str
) -> None:
    totals = store.totals()
    after = totals.apply(shard, Checkpoint(), plan_one(make_event(customer, 0)))
    assert after.pending
    totals.clear_pending(shard, after)
    assert totals.checkpoint(shard) == Checkpoint(after.through)
    totals.clear_pending(shard, after)
    assert totals.checkpoint(shard) == Checkpoint(after.through)


def test_hand_overs_of_a_later_step_are_not_forgotten_by_a_run_that_fell_behind(
    store: Store, customer: str, shard: str
) -> None:
    totals = store.totals()
    first = totals.apply(shard, Checkpoint(), plan_one(make_event(customer, 0)))
    second = totals.apply(shard, first, plan_one(make_event(customer, 1)))
    totals.clear_pending(shard, first)
    assert totals.checkpoint(shard) == second
    assert second.pending


def test_hours_are_utc_hours(store: Store, customer: str, shard: str) -> None:
    totals = store.totals()
    totals.apply(shard, Checkpoint(), plan_one(make_event(customer, 0, hour="2026-11-20T23")))
    berlin = datetime.fromisoformat("2026-11-21T00:00:00+01:00")
    assert totals.hour_total(customer, "credits", berlin) == HourTotal(1000, 1)


@dataclass
class Refusals(DynamoWire):
    """A wire on which the first `times` transactions are refused for these reasons."""

    inner: DynamoWire
    reasons: list[str]
    times: int
    seen: int = 0

    def call(
        self, operation: str, request: Mapping[str, Any], *, deadline_s: float = 60.0
    ) -> dict[str, Any]:
        if operation == "TransactWriteItems":
            self.seen += 1
            if self.seen <= self.times:
                raise TransactionCanceledError("made up", self.reasons)
        return self.inner.call(operation, request, deadline_s=deadline_s)


def test_a_step_that_meets_another_transaction_is_tried_again(
    dynamodb_local_store: Store, customer: str, shard: str
) -> None:
    store = dynamodb_local_store
    wire = Refusals(store.wire(), ["None", "TransactionConflict"], times=3)
    store.totals(wire).apply(shard, Checkpoint(), plan_one(make_event(customer, 0)))
    assert wire.seen == 4
    assert store.totals().hour_total(customer, "credits", HOUR) == HourTotal(1000, 1)


def test_a_step_that_always_meets_others_is_given_up_for_now(
    dynamodb_local_store: Store, customer: str, shard: str
) -> None:
    store = dynamodb_local_store
    wire = Refusals(store.wire(), ["TransactionConflict"], times=10**6)
    with pytest.raises(StorageUnavailableError):
        store.totals(wire).apply(shard, Checkpoint(), plan_one(make_event(customer, 0)))
    assert store.totals().checkpoint(shard) == Checkpoint()


def test_a_step_that_is_refused_for_another_reason_is_an_error(
    dynamodb_local_store: Store, customer: str, shard: str
) -> None:
    store = dynamodb_local_store
    wire = Refusals(store.wire(), ["None", "ValidationError"], times=1)
    with pytest.raises(TransactionCanceledError):
        store.totals(wire).apply(shard, Checkpoint(), plan_one(make_event(customer, 0)))


def test_a_step_whose_answer_was_lost_is_counted_once_and_found_at_the_checkpoint(
    dynamodb_local_store: Store, customer: str, shard: str, proxy: FaultProxy
) -> None:
    store = dynamodb_local_store
    proxy.set_rules({"operation": "TransactWriteItems", "response": {"abort_bytes": 1}, "times": 1})
    step = plan_one(make_event(customer, 0))
    with pytest.raises(CheckpointMovedError):
        store.totals(store.wire(proxy.url, timeout_s=0.7)).apply(shard, Checkpoint(), step)
    assert proxy.count_fired() == 1
    assert store.totals().checkpoint(shard) == Checkpoint(FIRST_SEQUENCE, step.pending())
    assert store.totals().hour_total(customer, "credits", HOUR) == HourTotal(1000, 1)


def test_a_shard_is_not_counted_while_the_storage_is_down(
    dynamodb_local_store: Store, customer: str, shard: str, proxy: FaultProxy
) -> None:
    store = dynamodb_local_store
    proxy.set_rules({"error": {"code": "InternalServerError"}})
    totals = store.totals(store.wire(proxy.url, attempts=2))
    with pytest.raises(StorageUnavailableError):
        totals.checkpoint(shard)
    with pytest.raises(StorageUnavailableError):
        totals.apply(shard, Checkpoint(), plan_one(make_event(customer, 0)))
    assert store.totals().checkpoint(shard) == Checkpoint()

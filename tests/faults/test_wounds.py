"""Where users of other metering systems were hurt, one by one; here each must end well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterline.adapters.dynamodb_ledger import DynamoLedger
from meterline.domain.measuring import HourTotal
from meterline.domain.usage import EventKey
from meterline.services.report_usage import ReportUsage
from tests.faults.whole_path import (
    LOST,
    METER_EVENTS,
    METERS,
    RATE_CARD,
    REFUSED,
    Steps,
    Surroundings,
    World,
)


@pytest.fixture
def start() -> datetime:
    return datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - timedelta(hours=1)


@pytest.fixture
def world(around: Surroundings, start: datetime) -> Iterator[World]:
    """A customer of its own, and a Stripe without faults."""
    around.local.clear_faults()
    yield World(around, start)
    around.local.clear_faults()


def add_credits(world: World, count: int) -> list[dict[str, Any]]:
    for number in range(count):
        world.make_event(f"c{number}", "credits", 10 + number)
    return list(world.sent.values())


def read_attempts(world: World) -> list[dict[str, Any]]:
    """What Stripe has done about each credits event of this world's customer."""
    return world.around.local.meter_events(
        customer=world.billing_customer or "", event_name="meterline_credits"
    )


def count_requests(world: World) -> Counter[str]:
    """Identifier -> requests about it, those included that Stripe answered from its memory."""
    identifiers = {
        EventKey(world.customer, "backend", event_id).identifier for event_id in world.sent
    }
    keys = [request["idempotency_key"] or "" for request in world.around.local.journal()]
    named = (key.partition("-")[0] for key in keys)
    return Counter(identifier for identifier in named if identifier in identifiers)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_wound_1_no_key_is_claimed_without_its_usage(world: World, moment: str) -> None:
    events = add_credits(world, 5)
    step = f"{moment} ledger BatchExecuteStatement"
    world.steps.crash_at = {2 if moment == "before" else 3}
    assert world.report(events) is None
    assert world.steps.crashes == [step]
    world.unanswered.append(events)
    world.drain()
    # Told "done" or told "known": either way it is metered, because the key is the usage.
    assert world.answers == ({"accepted": 5} if moment == "before" else {"duplicates": 5})
    assert world.check().billed == 5


def test_wound_2_a_repeated_identifier_is_delivered_and_metering_goes_on(world: World) -> None:
    events = add_credits(world, 6)
    world.report(events)
    world.deliver_records()
    # All six are counted, and no answer to any of them arrives in time.
    at = int(world.clock.now().timestamp())
    for event in events:
        key = EventKey(world.customer, "backend", event["id"])
        sub_units = str(int(event["data"]["quantity"]) * 1000)
        world.around.local.client().v1.billing.meter_events.create(
            {
                "event_name": "meterline_credits",
                "payload": {
                    "stripe_customer_id": world.billing_customer or "",
                    "value": sub_units,
                },
                "identifier": key.identifier,
                "timestamp": at,
            }
        )
    world.drain()
    assert Counter(attempt["outcome"] for attempt in read_attempts(world)) == {
        "accepted": 6,
        "duplicate": 6,
    }
    world.make_event("later", "credits", 1)
    world.unanswered.append([world.sent["later"]])
    world.drain()
    assert world.check().billed == 7
    assert not world.dead.messages


def test_wound_3_every_attempt_at_an_event_carries_the_same_identifier(world: World) -> None:
    events = add_credits(world, 4)
    world.report(events)
    world.deliver_records()
    world.around.local.add_fault("error", status=500, path=METER_EVENTS, probability=0.5, seed=3)
    world.around.local.add_fault("drop", when="after", path=METER_EVENTS, probability=0.5, seed=4)
    for _ in range(6):
        world.deliver_messages()
        world.clock.move(900)
    world.drain()
    expected = {EventKey(world.customer, "backend", event["id"]).identifier for event in events}
    assert {attempt["identifier"] for attempt in read_attempts(world)} == expected
    # Each request under the identifier's own Idempotency-Key, the first as well as the last.
    assert count_requests(world).total() > 4
    assert set(count_requests(world)) == expected
    assert world.check().billed == 4


def test_wound_4_a_crash_between_sending_and_marking_as_sent_bills_once(world: World) -> None:
    world.report(add_credits(world, 3))
    world.deliver_records()
    for _ in range(5):
        # Whatever it sends next, it never gets to write that down.
        world.steps.names.clear()
        world.steps.crash_at = set(range(9, 200))
        world.deliver_messages()
        world.clock.move(400)
    assert all("stripe send" in crash for crash in world.steps.crashes), world.steps.crashes
    world.drain()
    assert world.check().billed == 3
    assert max(count_requests(world).values()) > 3, "it was told of the same event again and again"


def test_wound_5_a_known_id_costs_the_others_nothing(world: World) -> None:
    events = add_credits(world, 30)
    world.report(events[:1])
    answer = world.report([*events, events[7], {"specversion": "1.0"}][:31])
    assert answer is not None
    assert (answer.accepted, answer.duplicates, answer.rejected) == (29, 2, [])
    world.drain()
    assert world.check().billed == 30


def test_wound_6_what_is_accepted_is_aggregated_and_seen_at_once(world: World) -> None:
    events = add_credits(world, 4)
    hour = world.clock.now().replace(minute=0)
    totals = world.around.store.totals()
    for count in range(1, 5):
        world.report([events[count - 1]])
        world.deliver_records()
        expected = sum(int(event["data"]["quantity"]) * 1000 for event in events[:count])
        assert totals.hour_total(world.customer, "credits", hour) == HourTotal(expected, count)
    world.drain()
    assert world.check().billed == 4


def test_wound_13_usage_after_its_invoice_is_final_is_listed_and_usage_before_it_is_billed(
    world: World,
) -> None:
    first = world.clock.now()
    v1 = world.around.local.client().v1
    [subscription] = v1.subscriptions.list({"customer": world.billing_customer or ""}).data
    period_end = datetime.fromtimestamp(subscription.items.data[0].current_period_end, UTC)
    assert first < period_end

    # The draft stands for an hour: what comes then still counts.
    world.clock.set_to(period_end + timedelta(minutes=20))
    world.make_event("in the draft's hour", "credits", 5, at=period_end - timedelta(hours=1))
    world.unanswered.append([world.sent["in the draft's hour"]])
    world.drain()
    assert str(world.check()) == "1 billed"

    world.clock.set_to(period_end + timedelta(hours=3))
    late_at = period_end - timedelta(hours=2)
    world.make_event("after it is final", "credits", 7, at=late_at)
    world.make_event("of the hour, after it", "tokens", 900, at=late_at)
    world.make_event("of the new period", "credits", 11)
    world.unanswered.append(list(world.sent.values()))
    world.drain()
    books = world.check()
    assert books.billed == 2
    assert books.listed == {"late": 2}
    assert sorted(sub_units for _, sub_units in world.read_problems().values()) == [900, 7000]
    drafts = v1.invoices.list({"customer": world.billing_customer or "", "status": "draft"}).data
    assert drafts == [], "the period's invoice is final"


def test_wound_16_a_queue_that_refuses_costs_the_caller_nothing_and_loses_nothing(
    world: World,
) -> None:
    world.steps.weather = lambda name: REFUSED if name.startswith("sqs") else None
    events = add_credits(world, 4)
    world.unanswered.append(events)
    world.report_until_answered()
    assert world.answers == {"accepted": 4}
    assert not [name for name in world.steps.names if "sqs" in name], "the answer needs no queue"
    for _ in range(3):
        world.deliver_records()
    assert world.shards[0].position == 0, "the stream waits"
    assert not world.queue.messages
    world.report(events)
    assert world.answers == {"accepted": 4, "duplicates": 4}
    world.drain()
    assert world.check().billed == 4


def test_wound_16_a_queue_whose_answers_are_lost_has_each_batch_once(world: World) -> None:
    lost = iter([LOST, LOST, LOST])
    world.steps.weather = lambda name: next(lost, None) if "SendMessageBatch" in name else None
    world.report(add_credits(world, 4))
    for _ in range(4):
        world.deliver_records()
    assert len(world.queue.messages) == 1
    assert world.queue.dropped == 3
    world.drain()
    assert world.check().billed == 4


def test_wound_17_32_clients_with_the_same_ids_in_other_orders_all_get_answers(
    world: World,
) -> None:
    events = add_credits(world, 100)
    store = world.around.store
    reporter = ReportUsage(
        DynamoLedger(store.wire(pool_size=32), store.tables.events, deadline_s=60.0),
        store.accounts(),
        METERS,
        RATE_CARD,
    )

    def report(client: int) -> tuple[int, int]:
        mine = events[client * 3 :] + events[: client * 3]
        answer = reporter(mine[:: -1 if client % 2 else 1], world.clock.now())
        assert (answer.undecided, answer.rejected) == (0, [])
        return answer.accepted, answer.duplicates

    with ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(report, range(32)))
    assert sum(accepted for accepted, _ in answers) == 100
    assert sum(duplicates for _, duplicates in answers) == 31 * 100
    world.drain()
    assert world.check().billed == 100


def test_wound_18_one_customers_id_never_swallows_anothers(
    around: Surroundings, start: datetime
) -> None:
    worlds = [World(around, start), World(around, start)]
    for number, world in enumerate(worlds):
        world.make_event("invoice-42", "credits", 42 + number)
        world.unanswered.append(list(world.sent.values()))
        world.report_until_answered()
        assert world.answers == {"accepted": 1}
    # The records of both lie in one stream; each world takes its own.
    records = around.tail.read_new()
    for world in worlds:
        world.take_records(records)
        world.drain()
        assert world.check().billed == 1


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ({"id": "nul\0byte"}, "invalid_field"),
        ({"quantity": "1e-7"}, "invalid_quantity"),
        ({"quantity": 1e15}, "invalid_quantity"),
        ({"quantity": "1e15"}, "invalid_quantity"),
        ({"quantity": 10**15}, "quantity_too_large"),
        ({"quantity": "0.0000001"}, "quantity_too_fine"),
        ({"id": None}, "invalid_field"),
        ({"id": ""}, "invalid_field"),
    ],
    ids=str,
)
def test_wound_18_an_odd_event_is_refused_by_itself_and_nothing_becomes_zero(
    world: World, bad: dict[str, Any], code: str
) -> None:
    good = add_credits(world, 3)
    odd = {**good[0], "id": bad.get("id", "odd")}
    if "quantity" in bad:
        odd["data"] = {"meter": "credits", "quantity": bad["quantity"]}
    answer = world.reporter()([good[0], odd, *good[1:]], world.clock.now())
    assert (answer.accepted, answer.duplicates) == (3, 0)
    [rejection] = answer.rejected
    assert (rejection.index, rejection.code) == (1, code)
    world.drain()
    assert world.check().billed == 3


def test_wound_18_events_without_ids_are_refused_not_merged(world: World) -> None:
    good = add_credits(world, 1)
    nameless = {key: value for key, value in good[0].items() if key != "id"}
    answer = world.reporter()([nameless, nameless, good[0]], world.clock.now())
    assert answer.accepted == 1
    assert [rejection.code for rejection in answer.rejected] == ["missing_field"] * 2


def test_a_world_has_no_hidden_steps() -> None:
    steps = Steps(crash_at={0})
    with pytest.raises(BaseException, match="one"):
        steps.reach("one")
    with pytest.raises(BaseException, match="two"):
        steps.reach("two")
    assert steps.names == ["one"]

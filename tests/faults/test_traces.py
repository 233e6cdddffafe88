"""One event on its way to the bill: what a trace of it says at each place."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from meterline.adapters.dynamodb_sending_records import SEARCH_S, DynamoSendingRecords
from meterline.domain.usage import EventKey
from meterline.errors import NotFoundError, SearchedTooLongError
from meterline.services.trace_usage import SendingState, SentUsage
from tests.faults.whole_path import Surroundings, World

START = datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - timedelta(hours=2)


def trace(world: World, event_id: str) -> SentUsage:
    return world.around.open_trace().find_event(EventKey(world.customer, "backend", event_id)).sent


@pytest.mark.parametrize(("meter", "prefix"), [("credits", "ml_"), ("tokens", "mlh_")])
def test_an_event_is_uncounted_then_pending_then_sent_under_the_identifier_told(
    around: Surroundings, meter: str, prefix: str
) -> None:
    around.local.clear_faults()
    world = World(around, START)
    with pytest.raises(NotFoundError):
        trace(world, "one")
    world.make_event("one", meter, 7)
    world.report(list(world.sent.values()))
    assert trace(world, "one").state is SendingState.UNCOUNTED
    while world.deliver_records():
        continue
    assert trace(world, "one").state is SendingState.PENDING
    world.drain()
    sent = trace(world, "one")
    assert sent.state is SendingState.SENT
    assert sent.identifier.startswith(prefix)
    assert (sent.batch is not None) is (meter == "credits")
    told = around.local.meter_events(customer=str(world.billing_customer))
    assert [each["identifier"] for each in told] == [sent.identifier]
    # More of the same hour makes the hour's total stale, and a single event's fate no other.
    world.make_event("two", meter, 1)
    world.report([world.sent["two"]])
    while world.deliver_records():
        continue
    stale = SendingState.PENDING if meter == "tokens" else SendingState.SENT
    assert trace(world, "one").state is stale


@pytest.mark.parametrize("meter", ["credits", "tokens"])
def test_an_event_that_is_not_billed_says_why(around: Surroundings, meter: str) -> None:
    world = World(around, START, subscribed=False)
    world.make_event("nobody's", meter, 7)
    world.unanswered.append(list(world.sent.values()))
    world.drain()
    sent = trace(world, "nobody's")
    assert (sent.state, sent.problem) == (SendingState.REFUSED, "no_billing_customer")


def test_an_event_of_nothing_has_nothing_to_send(around: Surroundings) -> None:
    world = World(around, START)
    world.make_event("nothing", "credits", 0)
    world.unanswered.append(list(world.sent.values()))
    world.drain()
    assert trace(world, "nothing").state is SendingState.NOTHING_TO_SEND


def test_a_search_that_takes_too_long_is_given_up(around: Surroundings) -> None:
    world = World(around, START, max_entries=1)
    for number in range(3):
        world.make_event(f"many-{number}", "credits", 1)
    world.unanswered.append(list(world.sent.values()))
    world.drain()
    identifier = EventKey(world.customer, "backend", "never").identifier
    where = (world.customer, "credits", identifier, START - timedelta(days=1))
    tables = world.around.store.tables
    quick = DynamoSendingRecords(around.wire, tables.emissions)
    assert quick.find_entry(*where) is None
    clock = itertools.count(0, SEARCH_S / 2)
    slow = DynamoSendingRecords(around.wire, tables.emissions, monotonic=lambda: next(clock))
    with pytest.raises(SearchedTooLongError):
        slow.find_entry(*where)

"""What lay in the dead-letter queue for longer than Stripe remembers identifiers, redriven."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from meterline.domain.emission import (
    Billability,
    BillableUsage,
    BillingLimits,
    NotBilled,
    RefusalCode,
    SendOutcome,
)
from meterline.ports import BillingLayer
from meterline.services.emit_usage import EmitUsage
from tests.faults.whole_path import METER_EVENTS, Surroundings, World

MORE_THAN_A_DAY_S = 26 * 3600


@pytest.fixture
def start() -> datetime:
    return datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - timedelta(hours=1)


def make_world(around: Surroundings, start: datetime) -> World:
    world = World(around, start)
    report_all(world)
    return world


def report_all(world: World) -> None:
    """Events of both modes, which the client is to report."""
    for number in range(4):
        world.make_event(f"c{number}", "credits", 10 + number)
        world.make_event(f"t{number}", "tokens", 1000 + number)
    world.unanswered.append(list(world.sent.values()))


class WorldOfGoneCustomer(World):
    """Its customer's id at Stripe is that of somebody who was deleted there."""

    is_gone = True

    def emitter(self) -> EmitUsage:
        job = super().emitter()
        job.billing = GoneCustomer(job.billing) if self.is_gone else job.billing
        job.customers = AnyId() if self.is_gone else job.customers
        return job


@dataclass
class AnyId:
    """Every customer has an id."""

    def billing_customer(self, customer: str) -> str | None:
        return f"cus_gone_{customer}"


@dataclass
class GoneCustomer:
    """A billing layer that knows nobody."""

    inner: BillingLayer

    @property
    def limits(self) -> BillingLimits:
        return self.inner.limits

    def send(self, usage: BillableUsage) -> SendOutcome:
        raise AssertionError(f"{usage.billing_customer} is not billed")

    def billable_from(self, billing_customer: str) -> Billability:
        return NotBilled(RefusalCode.UNKNOWN_CUSTOMER, f"No such customer: {billing_customer}")


def redrive_later(world: World, *, times: int = 1) -> None:
    """A day and more goes by on both sides, then the queue is redriven and worked off."""
    for _ in range(times):
        world.clock.move(MORE_THAN_A_DAY_S)
        world.redrive()
        world.drain()


def test_after_a_day_stripe_would_count_a_repeated_identifier_again(
    around: Surroundings, start: datetime
) -> None:
    # What makes the other tests of this file mean something.
    world = make_world(around, start)
    world.drain()
    world.check()
    billed = around.local.meter_events(customer=world.billing_customer or "", outcome="accepted")
    world.clock.move(MORE_THAN_A_DAY_S)
    event = next(event for event in billed if event["event_name"] == "meterline_credits")
    around.local.client().v1.billing.meter_events.create(
        {
            "event_name": event["event_name"],
            "payload": {"stripe_customer_id": world.billing_customer or "", "value": "1"},
            "identifier": event["identifier"],
            "timestamp": int(world.clock.now().timestamp()),
        }
    )
    with pytest.raises(AssertionError, match="billed 2 times"):
        world.check()


def test_refused_events_are_billed_once_when_they_are_redriven_after_a_day(
    around: Surroundings, start: datetime
) -> None:
    world = WorldOfGoneCustomer(around, start, subscribed=False)
    report_all(world)
    world.drain()
    books = world.check()
    assert (books.billed, books.listed) == (0, {"refused": 5})
    assert len(world.dead.messages) == 2

    redrive_later(world)
    assert world.check().listed == {"refused": 5}

    # Somebody mends what was wrong.
    world.is_gone = False
    world.billing_customer = around.subscribe(world.customer, world.clock.now())
    around.store.accounts().put_customer(
        world.customer, {"billing_customer": world.billing_customer}, world.clock.now()
    )
    redrive_later(world)
    books = world.check()
    assert (books.billed, books.listed, books.hourly) == (4, {}, 4006)
    assert not world.dead.messages


def test_what_was_sent_is_not_sent_again_when_its_message_is_redriven_after_a_day(
    around: Surroundings, start: datetime
) -> None:
    world = make_world(around, start)
    world.report_until_answered()
    world.deliver_records()
    # Somebody kept copies: SQS moves a message that was received too often as it is.
    copies = [(message.body, message.group) for message in world.queue.messages]
    world.drain()
    books = world.check()
    assert (books.billed, books.listed, books.hourly) == (4, {}, 4006)
    for body, group in copies * 2:
        world.dead.send(body, group, f"copy-{len(world.dead.messages)}")
    redrive_later(world)
    assert world.check() == books


def test_what_was_half_sent_is_not_sent_blind_when_it_is_redriven_after_a_day(
    around: Surroundings, start: datetime
) -> None:
    world = make_world(around, start)
    world.report_until_answered()
    world.deliver_records()
    # Stripe counts the second send, and the process ends before it hears so.
    done = len(world.steps.names)
    world.steps.crash_at = {done + find_second_send(around, start)}
    assert world.deliver_messages()
    assert world.steps.crashes == ["after stripe send (meterline_credits)"]

    world.clock.move(MORE_THAN_A_DAY_S)
    world.drain()
    books = world.check()
    # All that the interrupted run was about to send may have been billed: two of the four were.
    assert (books.billed, books.listed, books.hourly) == (2, {"unknown": 4}, 4006)
    redrive_later(world, times=3)
    assert world.check() == books
    attempts = around.local.meter_events(
        customer=world.billing_customer or "", event_name="meterline_credits"
    )
    assert len(attempts) == 2


def find_second_send(around: Surroundings, start: datetime) -> int:
    """How many steps into the emission of such a world Stripe has answered the second send."""
    world = make_world(around, start)
    world.report_until_answered()
    world.deliver_records()
    before = len(world.steps.names)
    world.deliver_messages()
    names = world.steps.names[before:]
    sends = [i for i, name in enumerate(names) if name == "after stripe send (meterline_credits)"]
    return sends[1]


def test_an_answer_that_never_comes_is_unknown_after_a_day_and_stays_so(
    around: Surroundings, start: datetime
) -> None:
    world = make_world(around, start)
    world.report_until_answered()
    world.deliver_records()
    around.local.add_fault("drop", when="after", path=METER_EVENTS)
    for _ in range(3):
        world.deliver_messages()
        world.clock.move(1000)
    world.clock.move(MORE_THAN_A_DAY_S)
    world.drain()
    books = world.check()
    # The first was sent, and counted; behind it nothing was sent before the clock moved.
    assert books.billed == 4
    assert books.listed == {"unknown": 1}
    redrive_later(world, times=2)
    assert world.check() == books

"""Every kind of difference, planted by hand: found, named rightly, and mended or reported.

Real storage, real services, the local Stripe; only the clock and the queue are the test's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from meterline.domain.dropped import DroppedUsage
from meterline.domain.emission import (
    BatchDue,
    Billability,
    BillableUsage,
    BillingLimits,
    EmissionEntry,
    HourDue,
    SendOutcome,
)
from meterline.domain.reconciliation import Cause, Difference
from meterline.domain.sending import BatchSending, Progress
from meterline.domain.usage import EventKey
from meterline.ports import BillingLayer
from meterline.services.emit_usage import EmitUsage
from meterline.services.reconcile_usage import Repair
from tests.faults.audited import Auditor
from tests.faults.whole_path import METERS, Surroundings, World

START = datetime.now(UTC).replace(minute=20, second=0, microsecond=0) - timedelta(days=3)
DAY_S = 86_400
_serial = itertools.count()


@dataclass
class Scene:
    """A world, its auditor, and when it began."""

    world: World
    auditor: Auditor

    def use(self, *quantities: str, meter: str = "credits") -> None:
        """Report events, a minute apart, and have them counted but not yet sent."""
        names = []
        for quantity in quantities:
            name = f"event-{next(_serial)}"
            self.world.make_event(name, meter, quantity)
            names.append(name)
            self.world.clock.move(60)
        self.world.report([self.world.sent[name] for name in names])

    def project(self) -> None:
        """Count what is in the stream."""
        while self.world.deliver_records():
            continue

    def settle(self) -> None:
        """Let all go its way."""
        self.project()
        self.world.drain()

    def causes(self, books_meter: str = "credits") -> dict[Cause, int]:
        """One look: what is missing at Stripe, by cause."""
        return by_cause(self.auditor.look(books_meter).differences)

    def batch(self) -> BatchDue:
        """The one batch there is."""
        world = self.world
        [record] = self.auditor.records.batches_since(world.customer, "credits", START)
        return record.due


def by_cause(differences: list[Difference] | tuple[Difference, ...] | object) -> dict[Cause, int]:
    found: dict[Cause, int] = {}
    assert isinstance(differences, list | tuple)
    for difference in differences:
        assert difference.missing_sub_units == sum(
            each.sub_units for each in difference.explanations
        ), "what is explained is not what is missing"
        for each in difference.explanations:
            found[each.cause] = found.get(each.cause, 0) + each.sub_units
    return found


@pytest.fixture
def scene(around: Surroundings) -> Scene:
    world = World(around, START)
    return Scene(world, Auditor(world))


def test_books_that_agree_are_left_alone(scene: Scene) -> None:
    scene.use("1", "2.5", "0.001")
    scene.settle()
    scene.world.clock.move(7200)
    books = scene.auditor.look()
    assert books.agrees
    assert books.local_sub_units == books.billed_sub_units == 3501
    assert not books.diverges
    assert not books.repaired


def test_what_the_projection_has_not_counted_is_uncounted(scene: Scene) -> None:
    scene.use("1", "2")
    scene.settle()
    scene.use("4")
    scene.world.clock.move(7200)
    assert scene.causes() == {}, "the totals know nothing of it: nothing differs there yet"
    scene.project()
    assert scene.causes() == {Cause.NOT_SENT: 4000}


@pytest.mark.parametrize("meter", ["credits", "tokens"])
def test_what_the_stream_has_lost_is_named_then_counted_and_billed_once(
    scene: Scene, meter: str
) -> None:
    scene.use("1", "2", meter=meter)
    scene.settle()
    scene.use("4", "0", meter=meter)
    names = list(scene.world.sent)[-2:]
    scene.world.lose_records()
    scene.use("8", meter=meter)
    scene.settle()
    scene.world.clock.move(3 * 3600)
    lost = METERS[meter].to_sub_units(Decimal(4))
    [difference] = scene.auditor.look(meter, repair=False).differences
    [told] = difference.explanations
    assert (told.cause, told.sub_units, told.events) == (Cause.UNCOUNTED, lost, 2)
    assert set(told.identifiers) == {
        EventKey(scene.world.customer, "backend", name).identifier for name in names
    }
    books = scene.auditor.look(meter)
    assert [(each.repair, each.events) for each in books.repaired if each.events] == [
        (Repair.RECOUNTED, 2)
    ]
    scene.world.drain()
    scene.world.clock.move(3600)
    books = scene.auditor.look(meter)
    assert books.agrees
    assert books.billed_sub_units == METERS[meter].to_sub_units(Decimal(15))
    assert not books.repaired


def test_a_part_of_an_hour_that_was_never_counted_is_named(scene: Scene) -> None:
    scene.use("1", "2", "4")
    scene.project()
    store = scene.world.around.store
    # Totals that lost an event: as after a stretch of the stream that was given up.
    at = scene.world.clock.now() - timedelta(minutes=1)
    store.client().update_item(
        TableName=store.tables.totals,
        Key={"pk": {"S": f"{scene.world.customer}#credits"}, "sk": {"S": f"day#{at:%Y-%m-%d}"}},
        UpdateExpression=f"ADD q{at:%H} :less",
        ExpressionAttributeValues={":less": {"N": "-4000"}},
    )
    scene.settle()
    scene.world.clock.move(7200)
    assert Cause.UNCOUNTED in scene.causes()


def test_a_batch_that_nobody_works_off_is_handed_over_again_and_billed_once(scene: Scene) -> None:
    scene.use("1", "2")
    scene.project()
    scene.world.queue.messages.clear()
    scene.world.clock.move(7200)
    books = scene.auditor.look()
    assert by_cause(books.differences) == {Cause.NOT_SENT: 3000}
    assert [each.repair for each in books.repaired] == [Repair.HANDED_OVER]
    scene.settle()
    assert scene.auditor.look().agrees
    assert scene.auditor.billed_total(START) == 3000


def test_a_batch_that_is_handed_over_needlessly_is_still_billed_once(scene: Scene) -> None:
    scene.use("1", "2")
    scene.project()
    scene.world.clock.move(7200)
    for _ in range(3):
        scene.auditor.look()
        scene.world.clock.move(600)
    scene.settle()
    assert scene.auditor.billed_total(START) == 3000


def test_a_batch_in_the_dead_letter_queue_is_named_so_and_handed_over(scene: Scene) -> None:
    scene.use("1", "2")
    scene.project()
    # SQS itself moved it: received too often.
    scene.world.dead.messages, scene.world.queue.messages = scene.world.queue.messages, []
    scene.world.clock.move(7200)
    books = scene.auditor.look()
    assert by_cause(books.differences) == {Cause.IN_DEAD_LETTERS: 3000}
    assert [each.repair for each in books.repaired] == [Repair.HANDED_OVER]
    scene.settle()
    assert scene.auditor.look().agrees
    scene.world.redrive()
    scene.settle()
    assert scene.auditor.billed_total(START) == 3000


def test_a_batch_that_arrived_and_whose_message_is_lost_is_found_by_a_close_look(
    scene: Scene,
) -> None:
    scene.use("1", "2")
    scene.project()
    due = scene.batch()
    batch, _none = scene.auditor.emissions.load_batch(due)
    assert batch is not None
    # The process died after its sends and before it wrote that they were taken.
    world = scene.world
    began_s = int(world.clock.now().timestamp())
    intended = BatchSending.begin(2).intend(range(2), began_s)
    for entry in batch.entries:
        _tell_stripe_of(scene, entry)
    scene.auditor.emissions.save_batch(due, intended, opened=(), now=world.clock.now())
    world.queue.messages.clear()
    world.clock.move(7200)
    assert scene.auditor.look().agrees
    books = scene.auditor.look(closely=True)
    assert books.agrees
    assert [each.repair for each in books.repaired] == [Repair.HANDED_OVER]
    scene.settle()
    _batch, sending = scene.auditor.emissions.load_batch(due)
    assert sending is not None
    assert sending.done
    assert scene.auditor.billed_total(START) == 3000
    assert not scene.auditor.look(closely=True).repaired


def test_a_dead_letter_whose_sends_were_never_answered_for_is_named_and_kept_on_record(
    scene: Scene,
) -> None:
    scene.use("1", "2")
    scene.project()
    world, due = scene.world, scene.batch()
    intended = BatchSending.begin(2).intend(range(2), int(world.clock.now().timestamp()))
    scene.auditor.emissions.save_batch(due, intended, opened=(), now=world.clock.now())
    world.dead.messages, world.queue.messages = world.queue.messages, []
    world.clock.move(7200)
    [difference] = scene.auditor.look(repair=False).differences
    [told] = difference.explanations
    assert (told.cause, told.reason, told.sub_units) == (Cause.UNKNOWN, "in_dead_letters", 3000)
    assert not difference.is_transient


class DefectiveBilling:
    """A billing layer whose adapter has a defect of ours, until it is mended."""

    def __init__(self, inner: BillingLayer) -> None:
        self.inner = inner
        self.is_mended = False

    @property
    def limits(self) -> BillingLimits:
        return self.inner.limits

    def send(self, usage: BillableUsage) -> SendOutcome:
        return self.inner.send(usage)

    def billable_from(self, billing_customer: str) -> Billability:
        if not self.is_mended:
            raise KeyError("billing_cycle_anchor")
        return self.inner.billable_from(billing_customer)


class DefectiveWorld(World):
    """Its emitter has a defect, and nothing that it is handed is ever done."""

    billing: DefectiveBilling | None = None

    def emitter(self) -> EmitUsage:
        job = super().emitter()
        self.billing = self.billing or DefectiveBilling(job.billing)
        job.billing = self.billing
        return job

    def is_failure_expected(self, failure: Exception) -> bool:
        return isinstance(failure, KeyError)


@pytest.mark.parametrize(("meter", "sub_units"), [("credits", 3000), ("tokens", 3)])
def test_what_a_lasting_defect_keeps_back_is_one_dead_letter_until_it_is_mended(
    around: Surroundings, meter: str, sub_units: int
) -> None:
    world = DefectiveWorld(around, START)
    scene = Scene(world, Auditor(world))
    scene.use("1", "2", meter=meter)
    scene.settle()
    assert len(world.dead.messages) == 1
    for _hour in range(4):
        world.clock.move(3600)
        books = scene.auditor.look(meter)
        scene.settle()
        assert len(world.dead.messages) == 1
    assert not books.repaired
    assert by_cause(books.differences) == {Cause.IN_DEAD_LETTERS: sub_units}
    assert by_cause(scene.auditor.open_findings()) == {Cause.IN_DEAD_LETTERS: sub_units}
    assert world.billing is not None
    world.billing.is_mended = True
    world.redrive()
    scene.settle()
    world.clock.move(3600)
    assert scene.auditor.look(meter).agrees
    assert not world.dead.messages
    assert not scene.auditor.open_findings()
    assert scene.auditor.billed_total(START, meter) == sub_units


def test_what_was_refused_is_named_with_its_code_and_stays_on_record(around: Surroundings) -> None:
    world = World(around, START, subscribed=False)
    scene = Scene(world, Auditor(world))
    scene.use("1", "2")
    scene.settle()
    world.billing_customer = around.subscribe(world.customer, START)
    world.clock.move(7200)
    books = scene.auditor.look()
    [difference] = books.differences
    [explanation] = difference.explanations
    assert (explanation.cause, explanation.reason) == (Cause.REFUSED, "no_billing_customer")
    assert (explanation.sub_units, explanation.events) == (3000, 2)
    assert books.diverges
    assert [each.key.hour for each in scene.auditor.open_findings()] == [difference.key.hour]
    assert not world.dead.messages
    # Somebody bills the customer from now on: the rest goes by itself.
    around.store.accounts(around.wire).put_customer(
        world.customer, {"billing_customer": world.billing_customer}, START
    )
    scene.settle()
    books = scene.auditor.look()
    assert books.agrees
    assert books.billed_sub_units == 3000
    world.clock.move(2 * DAY_S)
    scene.settle()
    assert scene.auditor.look().agrees
    assert not scene.auditor.open_findings()


def test_late_usage_is_named_with_its_reason(scene: Scene) -> None:
    scene.use("1")
    scene.settle()
    early = scene.world.clock.now() - timedelta(days=11)
    scene.world.make_event("early", "credits", "8", at=early)
    scene.world.report([scene.world.sent["early"]])
    scene.settle()
    scene.world.clock.move(7200)
    books = scene.auditor.look(days=13)
    [difference] = books.differences
    assert difference.key.hour <= early
    [explanation] = difference.explanations
    assert (explanation.cause, explanation.reason) == (Cause.LATE, "period_final")


def test_what_was_sent_a_moment_ago_is_in_flight(scene: Scene) -> None:
    scene.world.clock.set_to(START.replace(minute=58))
    scene.use("1", "2")
    around = scene.world.around
    around.local.configure(summary_lag_s=3600)
    try:
        scene.settle()
        # The hour has just become old enough to be compared.
        scene.world.clock.set_to(START.replace(minute=10) + timedelta(hours=1))
        assert scene.causes() == {Cause.IN_FLIGHT: 3000}
        assert not scene.auditor.open_findings()
    finally:
        around.local.configure(summary_lag_s=0)
    scene.world.clock.move(7200)
    assert scene.auditor.look().agrees


def test_usage_that_we_never_sent_is_foreign_and_left_to_a_person(scene: Scene) -> None:
    scene.use("1", "2")
    scene.settle()
    _tell_stripe(scene, "somebody-elses", 250)
    scene.world.clock.move(7200)
    books = scene.auditor.look()
    assert by_cause(books.differences) == {Cause.FOREIGN: -250}
    assert not books.repaired
    assert len(scene.auditor.open_findings()) == 1


def test_usage_that_vanished_at_stripe_is_missing_and_left_to_a_person(scene: Scene) -> None:
    scene.use("1", "2")
    scene.settle()
    client = scene.world.around.local.client()
    [sent, *_] = scene.world.around.local.meter_events(
        customer=str(scene.world.billing_customer), outcome="accepted"
    )
    client.v1.billing.meter_event_adjustments.create(
        {
            "event_name": "meterline_credits",
            "type": "cancel",
            "cancel": {"identifier": sent["identifier"]},
        }
    )
    scene.world.clock.move(7200)
    books = scene.auditor.look()
    assert by_cause(books.differences) == {Cause.MISSING: int(sent["raw_value"])}
    assert not books.repaired


def test_what_stripe_dropped_after_taking_it_is_taken_back_and_can_be_sent_again(
    scene: Scene,
) -> None:
    world, local = scene.world, scene.world.around.local
    scene.use("1", "2")
    scene.project()
    scene.settle()
    # Taken with 200 and dropped later: it counts for nothing, and a report tells.
    [first, _second] = local.meter_events(customer=str(world.billing_customer))
    local.client().v1.billing.meter_event_adjustments.create(
        {
            "event_name": "meterline_credits",
            "type": "cancel",
            "cancel": {"identifier": first["identifier"]},
        }
    )
    sample = DroppedUsage(first["identifier"], "meter_event_customer_not_found", "No such customer")
    scene.auditor.dropped.record([sample], world.clock.now())
    world.clock.move(7200)
    books = scene.auditor.look()
    value = int(first["raw_value"])
    assert by_cause(books.differences) == {Cause.DROPPED: value}
    assert [each.repair for each in books.repaired] == [Repair.TAKEN_BACK]
    again = scene.auditor.look()
    assert by_cause(again.differences) == {Cause.REFUSED: value}
    # Stripe knows the identifier for a day; after that a redrive bills it, once.
    world.clock.move(DAY_S + 3600)
    assert world.redrive() == 1
    scene.settle()
    assert scene.auditor.look().agrees
    assert scene.auditor.billed_total(START) == 3000


@pytest.mark.parametrize("second", [0, 3599], ids=["of our own second", "of the last second"])
def test_an_overwritten_hour_is_stale_and_sent_again(scene: Scene, second: int) -> None:
    scene.use("100", "200", meter="tokens")
    scene.settle()
    # An older total overwrites ours: on a meter with windows the latest event counts.
    hour = START.replace(minute=0)
    sent = scene.auditor.emissions.load_hour(HourDue(scene.world.customer, "tokens", hour))
    scene.world.clock.set_to(hour + timedelta(hours=1))
    at = datetime.fromtimestamp(max(sent.event_at_s, int(hour.timestamp()) + second), UTC)
    _tell_stripe(scene, "older-total", 100, event_name="meterline_tokens", at=at)
    scene.world.clock.move(7200)
    books = scene.auditor.look("tokens")
    assert by_cause(books.differences) == {Cause.STALE_TOTAL: 200}
    assert [each.repair for each in books.repaired] == [Repair.TOTAL_SENT_AGAIN]
    scene.settle()
    assert scene.auditor.look("tokens").agrees
    assert scene.auditor.billed_total(START, "tokens") == 300


def test_an_hour_that_was_never_renewed_is_stale_and_sent_again(scene: Scene) -> None:
    scene.use("100", meter="tokens")
    scene.settle()
    scene.use("200", meter="tokens")
    scene.project()
    scene.world.queue.messages.clear()
    scene.world.clock.move(7200)
    assert scene.causes("tokens") == {Cause.STALE_TOTAL: 200}
    scene.settle()
    assert scene.auditor.look("tokens").agrees


def test_a_refused_hour_says_why(around: Surroundings) -> None:
    world = World(around, START, subscribed=False)
    scene = Scene(world, Auditor(world))
    scene.use("100", meter="tokens")
    scene.settle()
    world.billing_customer = around.subscribe(world.customer, START)
    world.clock.move(7200)
    [difference] = scene.auditor.look("tokens").differences
    [explanation] = difference.explanations
    assert (explanation.cause, explanation.reason) == (Cause.REFUSED, "no_billing_customer")
    assert not world.dead.messages
    around.store.accounts(around.wire).put_customer(
        world.customer, {"billing_customer": world.billing_customer}, START
    )
    scene.settle()
    assert scene.auditor.look("tokens").agrees


def test_an_older_difference_is_found_by_its_sum(scene: Scene) -> None:
    scene.use("1", "2")
    scene.project()
    scene.world.queue.messages.clear()
    scene.world.clock.move(6 * DAY_S)
    assert scene.causes() == {Cause.NOT_SENT: 3000}
    scene.settle()
    assert scene.auditor.look(closely=True).agrees


def test_without_repair_nothing_is_changed(scene: Scene) -> None:
    scene.use("1", "2")
    scene.settle()
    _tell_stripe(scene, "foreign-and-watched", 9)
    scene.world.clock.move(7200)
    books = scene.auditor.look(repair=False)
    assert by_cause(books.differences) == {Cause.FOREIGN: -9}
    assert not scene.auditor.open_findings()


# Sends without an answer, older than the time for which a repeat settles them


def _make_unknown(scene: Scene, arrived: Callable[[int], bool]) -> list[str]:
    """Three events of which Stripe never answered for; some of them arrived."""
    world = scene.world
    for place, quantity in enumerate(("1", "2", "4")):
        world.make_event(f"unknown-{next(_serial)}-{place}", "credits", quantity)
    names = list(world.sent)[-3:]
    world.report([world.sent[name] for name in names])
    scene.project()
    due = scene.batch()
    batch, _none = scene.auditor.emissions.load_batch(due)
    assert batch is not None
    for place, entry in enumerate(batch.entries):
        if arrived(place):
            _tell_stripe_of(scene, entry)
    # As an interrupted run leaves it: about to be sent, and nothing said since.
    began_s = int(world.clock.now().timestamp())
    intended = BatchSending.begin(len(batch.entries)).intend(range(len(batch.entries)), began_s)
    scene.auditor.emissions.save_batch(due, intended, opened=(), now=world.clock.now())
    world.clock.move(DAY_S)
    # More than the window minus its margin later: the emitter gives them up as unknown.
    scene.settle()
    _batch, sending = scene.auditor.emissions.load_batch(due)
    assert sending is not None
    assert sending.progress == Progress.UNKNOWN * 3
    return [entry.identifier for entry in batch.entries]


@pytest.mark.parametrize(
    ("arrived", "sub_units"),
    [
        (lambda place: False, 0),
        (lambda place: True, 7000),
        (lambda place: place == 1, None),
    ],
    ids=["none arrived", "all arrived", "one arrived"],
)
def test_unknown_sends_are_settled_by_the_minute_and_billed_once(
    scene: Scene, arrived: Callable[[int], bool], sub_units: int | None
) -> None:
    _make_unknown(scene, arrived)
    scene.world.clock.move(2 * 3600)
    before = scene.auditor.billed_total(START)
    assert sub_units is None or before == sub_units
    books = scene.auditor.look()
    assert set(by_cause(books.differences)) == (set() if before == 7000 else {Cause.UNKNOWN})
    assert [each.undecided for each in books.settled] == [0] * len(books.settled)
    assert sum(each.billed + each.sent_again for each in books.settled) == 3
    scene.settle()
    _batch, sending = scene.auditor.emissions.load_batch(scene.batch())
    assert sending is not None
    assert sending.progress == Progress.SENT * 3
    assert not scene.world.read_problems(), "what is settled is out of the list"
    assert scene.auditor.billed_total(START) == 7000
    assert scene.auditor.look().agrees


def test_unknown_sends_are_never_settled_while_something_else_of_the_minute_is_open(
    scene: Scene,
) -> None:
    _make_unknown(scene, lambda place: False)
    scene.world.clock.move(2 * 3600)
    first = min(datetime.fromisoformat(each["time"]) for each in scene.world.sent.values())
    scene.world.make_event("of-the-same-minute", "credits", "16", at=first)
    scene.world.report([scene.world.sent["of-the-same-minute"]])
    scene.project()
    books = scene.auditor.look()
    assert {each.why for each in books.settled} == {"pending"}
    assert sum(each.undecided for each in books.settled) == 3


def test_unknown_sends_are_never_settled_by_a_sum_that_fits_twice(scene: Scene) -> None:
    _make_unknown(scene, lambda place: False)
    # A surplus of 3,000 that is foreign: 1,000 and 2,000 would fit, so it proves the wrong thing.
    # A surplus of 500 fits no choice at all, and is left to a person.
    first = min(datetime.fromisoformat(each["time"]) for each in scene.world.sent.values())
    _tell_stripe(scene, "in-between", 500, at=first)
    scene.world.clock.move(2 * 3600)
    books = scene.auditor.look()
    assert {each.why for each in books.settled} == {"ambiguous"}
    scene.settle()
    assert scene.auditor.billed_total(START) == 500, "nothing was sent again"


def test_a_send_that_the_emitter_is_at_is_not_touched(scene: Scene) -> None:
    _make_unknown(scene, lambda place: False)
    due = scene.batch()
    scene.world.clock.move(2 * 3600)
    _batch, sending = scene.auditor.emissions.load_batch(due)
    assert sending is not None
    now_s = int(scene.world.clock.now().timestamp())
    scene.auditor.emissions.save_batch(
        due,
        replace(sending, intent=None).intend([0], now_s),
        opened=(),
        now=scene.world.clock.now(),
    )
    books = scene.auditor.look()
    assert {each.why for each in books.settled} <= {"pending", "in_flight"}


def _tell_stripe_of(scene: Scene, entry: EmissionEntry) -> None:
    scene.world.around.local.client().v1.billing.meter_events.create(
        {
            "event_name": "meterline_credits",
            "identifier": entry.identifier,
            "timestamp": entry.at_s,
            "payload": {
                "stripe_customer_id": str(scene.world.billing_customer),
                "value": str(entry.sub_units),
            },
        }
    )


def _tell_stripe(
    scene: Scene,
    name: str,
    value: int,
    *,
    event_name: str = "meterline_credits",
    at: datetime | None = None,
) -> None:
    moment = at or scene.world.clock.now() - timedelta(seconds=30)
    scene.world.around.local.client().v1.billing.meter_events.create(
        {
            "event_name": event_name,
            "identifier": f"{name}-{scene.world.customer}",
            "timestamp": int(moment.timestamp()),
            "payload": {
                "stripe_customer_id": str(scene.world.billing_customer),
                "value": str(value),
            },
        }
    )


def test_an_hour_is_named_by_the_hour_that_is_due(scene: Scene) -> None:
    scene.use("100", meter="tokens")
    scene.project()
    hour = START.replace(minute=0)
    due = HourDue(scene.world.customer, "tokens", hour)
    assert scene.auditor.emissions.load_hour(due).sent_sub_units is None
    scene.settle()
    assert scene.auditor.emissions.load_hour(due).sent_sub_units == 100

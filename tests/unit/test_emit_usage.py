"""The emitter's rules, one by one."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meterline.adapters.dynamodb_emissions import (
    MAX_ENTRIES,
    batch_item,
    pack_entries,
    unpack_entries,
)
from meterline.domain.emission import (
    BatchDue,
    BillableUsage,
    Delivery,
    EmissionBatch,
    EmissionEntry,
    HourDue,
    Lapse,
    NotApplied,
    NotBilled,
    Problem,
    RefusalCode,
    SendOutcome,
    Sent,
    Unavailable,
    Unknown,
)
from meterline.domain.measuring import HourTotal
from meterline.domain.sending import LINGER_S, HourSending
from meterline.errors import StorageUnavailableError
from meterline.schemas.dues import encode_due
from meterline.schemas.emission import decode_due, read_deliveries
from meterline.services.emit_usage import MAX_DEFECTS
from tests.emission_fakes import (
    HATED_VALUE,
    LOST_AFTER,
    LOST_AND_LATE,
    LOST_BEFORE,
    START,
    THROTTLED,
    FakeBilling,
    Forced,
    World,
    make_entries,
)

HOUR = START - timedelta(hours=1)
REPO = Path(__file__).parents[2]


def script(world: World, *forced: Forced | None) -> None:
    """The weather of the next calls, one by one; then it is fine."""
    coming = iter(forced)
    world.billing.weather = lambda: next(coming, None)


def only_problem(world: World) -> Problem:
    (problem,) = world.store.problems.values()
    return problem


# Batches


def test_each_event_is_sent_once_under_its_own_identifier_time_and_value() -> None:
    world = World()
    entries = make_entries(3)
    world.add_batch(entries)
    world.deliver()
    assert world.billing.accepted == [
        BillableUsage("cus_acme", "ml_credits", e.identifier, e.at_s, e.sub_units) for e in entries
    ]
    assert not world.queue.messages
    assert not world.store.problems


def test_the_same_message_twice_sends_nothing_twice() -> None:
    world = World()
    due = world.add_batch(make_entries(3))
    world.queue.put(due)
    world.drain()
    assert world.billing.calls == 3


def test_a_batch_with_open_problems_is_kept_until_they_are_settled() -> None:
    world = World()
    settled = world.add_batch(make_entries(2), "settled")
    open_ = world.add_batch([make_entries(1, name="x")[0]._replace(sub_units=HATED_VALUE)], "open")
    world.drain()
    assert settled not in world.store.kept
    assert open_ in world.store.kept


def test_an_event_that_the_billing_layer_already_has_counts_as_sent() -> None:
    world = World()
    entry = make_entries(1)[0]
    world.billing.send(
        BillableUsage("cus_acme", "ml_credits", entry.identifier, entry.at_s, entry.sub_units)
    )
    world.add_batch([entry])
    report = world.emitter()(world.queue.receive(), lambda: 60.0)
    assert (report.counts.emitted, report.counts.repeated) == (1, 1)
    assert not report.handed_back
    assert world.billing.times_billed(entry.identifier) == 1


def test_throttling_is_retried_with_growing_pauses_and_then_handed_back() -> None:
    world = World()
    world.add_batch(make_entries(1))
    script(world, *[THROTTLED] * 4)
    assert world.deliver() == ["HTTP 429"]
    assert world.pauses_s == [0.2, 0.4, 0.8]
    assert not world.store.sendings[BatchDue("acme", "credits", "b1")].unanswered
    world.drain()
    assert len(world.billing.accepted) == 1


def test_the_delay_of_a_message_grows_with_its_receive_count_up_to_15_minutes() -> None:
    world = World()
    world.add_batch(make_entries(1))
    world.billing.weather = lambda: THROTTLED
    delays_s = []
    for _ in range(10):
        before = world.queue.next_visible_at()
        assert before is not None
        world.clock.at = max(world.clock.at, before)
        (handed,) = world.emitter()(world.queue.receive(), lambda: 60.0).handed_back
        delays_s.append(handed.delay_s)
    assert delays_s == [4, 8, 15, 30, 60, 120, 240, 480, 675, 675]


def test_retry_after_is_respected_inside_a_call_and_when_handing_back() -> None:
    world = World()
    world.add_batch(make_entries(1))
    script(world, (NotApplied("HTTP 429", 7.0), None))
    world.deliver()
    assert world.pauses_s == [7.0]
    world.add_batch(make_entries(1, name="later"), "b2")
    script(world, (NotApplied("the API key was refused", 300.0), None))
    (handed,) = world.emitter()(world.queue.receive(), lambda: 60.0).handed_back
    assert handed.delay_s == 300


def test_a_missing_answer_is_retried_under_the_same_identifier() -> None:
    world = World()
    entries = make_entries(2)
    world.add_batch(entries)
    script(world, LOST_AFTER, LOST_BEFORE)
    world.deliver()
    assert [world.billing.times_billed(e.identifier) for e in entries] == [1, 1]
    assert not world.queue.messages


def test_an_unanswered_send_is_recorded_with_the_time_of_its_first_try() -> None:
    world = World()
    due = world.add_batch(make_entries(2))
    script(world, None, *[LOST_BEFORE] * 4)
    assert world.deliver() == ["no answer"]
    assert world.store.sendings[due].progress == "s."
    assert world.store.sendings[due].unanswered == {1: int(START.timestamp())}


@pytest.mark.parametrize(("hours", "billed"), [(22, 1), (23, 0)])
def test_an_unanswered_send_is_repeated_for_23_hours_and_then_listed_as_unknown(
    hours: int, billed: int
) -> None:
    world = World()
    world.add_batch(make_entries(1))
    script(world, *[LOST_BEFORE] * 4)
    world.deliver()
    world.clock.at = START + timedelta(hours=hours)
    world.drain()
    assert len(world.billing.accepted) == billed
    if not billed:
        assert only_problem(world).kind is Lapse.UNKNOWN
        assert only_problem(world).code == "unanswered"
        assert [message.code for message in world.queue.dead] == ["unknown"]


def test_a_redrive_after_more_than_24_hours_bills_nothing_twice() -> None:
    world = World()
    entries = make_entries(3)
    entries[1] = entries[1]._replace(sub_units=HATED_VALUE)
    world.add_batch(entries)
    script(world, None, None, *[LOST_AFTER] * 4)
    world.deliver()
    world.clock.move(30 * 3600)
    world.drain()
    for _ in range(3):
        world.clock.move(30 * 3600)
        assert world.queue.redrive() == 1
        world.drain()
    assert [world.billing.times_billed(e.identifier) for e in entries] == [1, 0, 1]
    assert {p.kind for p in world.store.problems.values()} == {Lapse.REFUSED, Lapse.UNKNOWN}


def test_what_is_refused_is_parked_at_once_with_its_reason_and_holds_up_nothing() -> None:
    world = World()
    first = [make_entries(1, name="bad")[0]._replace(sub_units=HATED_VALUE), *make_entries(2)]
    world.add_batch(first, "b1")
    world.add_batch(make_entries(2, name="next"), "b2")
    assert world.deliver() == []
    assert len(world.billing.accepted) == 4
    problem = only_problem(world)
    assert (problem.kind, problem.code, problem.sub_units) == (
        Lapse.REFUSED,
        RefusalCode.BAD_VALUE,
        HATED_VALUE,
    )
    assert [(m.due, m.code) for m in world.queue.dead] == [
        (BatchDue("acme", "credits", "b1"), "refused")
    ]


def test_a_redrive_tries_what_was_refused_again_and_nothing_else() -> None:
    world = World()
    world.billing.customers = set()
    entries = make_entries(2)
    world.add_batch(entries)
    world.deliver()
    assert len(world.store.open_problems(Lapse.REFUSED)) == 2
    world.clock.move(5 * 86400)
    world.billing.customers = {"cus_acme"}
    world.queue.redrive()
    calls_before = world.billing.calls
    world.drain()
    assert world.billing.calls == calls_before + 2
    assert [world.billing.times_billed(e.identifier) for e in entries] == [1, 1]
    assert not world.store.problems
    assert not world.queue.dead


def test_a_plain_redelivery_does_not_try_what_was_refused_again() -> None:
    world = World()
    due = world.add_batch([make_entries(1)[0]._replace(sub_units=HATED_VALUE)])
    world.drain()
    world.queue.put(due)
    world.drain()
    assert world.billing.calls == 1
    assert len(world.queue.dead) == 1


def test_a_crash_after_parking_leaves_what_was_refused_as_refused() -> None:
    world = World()
    world.billing.customers = set()
    world.add_batch(make_entries(1))

    class Gone(BaseException):
        pass

    class CrashingInbox:
        def park(self, *args: object, **kwargs: object) -> None:
            raise Gone

    with pytest.raises(Gone):
        world.deliver(
            world.emitter(lambda name, port: CrashingInbox() if name == "inbox" else port)
        )
    world.drain()
    assert only_problem(world).kind is Lapse.REFUSED


def test_a_refusal_after_a_missing_answer_is_unknown_because_it_may_have_been_billed() -> None:
    world = World()
    world.add_batch(make_entries(1))
    script(world, *[LOST_AFTER] * 4)
    world.deliver()
    world.billing.customers = set()
    world.drain()
    assert only_problem(world).kind is Lapse.UNKNOWN
    assert only_problem(world).code == RefusalCode.UNKNOWN_CUSTOMER


def test_a_customer_without_a_billing_id_is_refused_without_a_call() -> None:
    world = World()
    world.customers.ids = {}
    world.add_batch(make_entries(100))
    world.drain()
    assert world.billing.calls == 0
    assert len(world.store.open_problems(Lapse.REFUSED)) == 100
    assert only_problem_codes(world) == {RefusalCode.NO_BILLING_CUSTOMER}
    assert not world.queue.dead, "nothing is wrong with it: it waits"


def only_problem_codes(world: World) -> set[str]:
    return {problem.code for problem in world.store.problems.values()}


def test_a_customer_without_a_subscription_is_refused_without_a_call() -> None:
    world = World()
    world.billing.billable_from = lambda billing_customer: NotBilled(  # type: ignore[method-assign]
        RefusalCode.NO_SUBSCRIPTION, "none"
    )
    world.add_batch(make_entries(3))
    world.drain()
    assert world.billing.calls == 0
    assert only_problem_codes(world) == {RefusalCode.NO_SUBSCRIPTION}
    assert not world.queue.dead


def test_a_billing_layer_that_cannot_be_asked_hands_the_message_back() -> None:
    world = World()
    world.billing.billable_from = lambda billing_customer: Unavailable("HTTP 500")  # type: ignore[method-assign]
    world.add_batch(make_entries(3))
    assert world.deliver() == ["HTTP 500"]
    assert world.store.saves == 0


@pytest.mark.parametrize(
    ("age", "code"),
    [(timedelta(days=35, seconds=1), "timestamp_too_old"), (timedelta(days=3), "period_final")],
)
def test_what_comes_too_late_is_kept_as_late_with_its_reason(age: timedelta, code: str) -> None:
    world = World()
    world.billing.start_s = int((START - timedelta(days=2)).timestamp())
    world.add_batch([*make_entries(1, START - age, "late"), *make_entries(1)])
    world.drain()
    problem = only_problem(world)
    assert (problem.kind, problem.code) == (Lapse.LATE, code)
    assert len(world.billing.accepted) == 1
    assert not world.queue.dead


def test_usage_exactly_at_the_start_of_the_period_is_sent() -> None:
    world = World()
    world.billing.start_s = int(START.timestamp())
    world.add_batch(make_entries(1))
    world.drain()
    assert len(world.billing.accepted) == 1


def test_an_event_from_the_future_is_sent_when_its_time_has_come() -> None:
    world = World()
    ahead = make_entries(1, START + timedelta(minutes=4), "ahead")[0]
    world.add_batch([*make_entries(2), ahead])
    assert world.deliver() == ["from the future"]
    assert len(world.billing.accepted) == 2
    world.drain()
    assert len(world.billing.accepted) == 3
    assert timedelta(minutes=4) <= world.clock.at - START < timedelta(minutes=5)
    assert not world.store.problems


def test_an_event_too_far_ahead_is_refused_not_held() -> None:
    world = World()
    world.add_batch(make_entries(1, START + timedelta(hours=2)))
    world.drain()
    assert only_problem_codes(world) == {RefusalCode.IN_FUTURE}
    assert world.clock.at == START


@pytest.mark.parametrize(("value", "sent"), [(10**15 - 1, 1), (10**15, 0), (-(10**15), 0)])
def test_a_value_of_more_than_15_digits_is_refused(value: int, sent: int) -> None:
    world = World()
    world.add_batch([make_entries(1)[0]._replace(sub_units=value)])
    world.drain()
    assert len(world.billing.accepted) == sent
    if not sent:
        assert only_problem(world).code == RefusalCode.TOO_MANY_DIGITS


def test_a_call_that_runs_out_of_time_keeps_its_progress_and_hands_back_at_once() -> None:
    world = World(seconds_left=25)
    entries = make_entries(30)
    due = world.add_batch(entries)
    world.billing.before_effect = lambda usage: world.clock.move(1)
    (handed,) = world.emitter()(
        world.queue.receive(), lambda: 25 - (world.clock.at - START).total_seconds()
    ).handed_back
    assert (handed.reason, handed.delay_s) == ("out of time", 0)
    assert world.store.sendings[due].progress == "s" * 6 + "." * 24
    assert world.store.sendings[due].intent is None
    assert not world.store.sendings[due].unanswered
    world.drain()
    assert [world.billing.times_billed(e.identifier) for e in entries] == [1] * 30


def test_once_a_message_is_handed_back_all_later_ones_of_its_group_are() -> None:
    world = World()
    for name in ("b1", "b2", "b3"):
        world.add_batch(make_entries(1, name=name), name)
    script(world, None, *[THROTTLED] * 4)
    assert world.deliver() == ["HTTP 429", "HTTP 429"]
    assert [message.due for message in world.queue.messages] == [
        BatchDue("acme", "credits", "b2"),
        BatchDue("acme", "credits", "b3"),
    ]
    assert len(world.billing.accepted) == 1


def make_two_groups() -> World:
    """A batch of one event each for two customers."""
    world = World()
    world.customers.ids["other"] = "cus_other"
    world.billing.customers.add("cus_other")
    world.add_batch(make_entries(1))
    other = BatchDue("other", "credits", "b1")
    entry = make_entries(1, name="other")[0]
    world.store.batches[other] = EmissionBatch("other", "credits", "b1", [entry])
    world.queue.put(other)
    return world


def test_groups_are_worked_off_side_by_side_and_one_does_not_hold_up_another() -> None:
    world = make_two_groups()
    both_there = threading.Barrier(2, timeout=60)
    # Passes only if both groups are in a send at the same time.

    def meet(usage: BillableUsage) -> None:
        both_there.wait()

    world.billing.before_effect = meet
    assert world.deliver() == []
    assert len(world.billing.accepted) == 2


def test_a_defect_in_one_group_is_reported_and_hands_back_only_that_group() -> None:
    world = make_two_groups()

    def fail_for_acme(usage: BillableUsage) -> None:
        if usage.billing_customer == "cus_acme":
            raise ZeroDivisionError

    world.billing.before_effect = fail_for_acme
    report = world.emitter()(world.queue.receive(), lambda: 60.0)
    assert [(group, type(error)) for group, error in report.failures] == [
        ("acme#credits", ZeroDivisionError)
    ]
    assert len(report.handed_back) == 1
    assert [usage.billing_customer for usage in world.billing.accepted] == ["cus_other"]


def work_off(world: World) -> int:
    """One call as soon as something is due; deletes what is not handed back. Groups that failed."""
    at = world.queue.next_visible_at()
    world.clock.at = max(world.clock.at, at or world.clock.at)
    deliveries = world.queue.receive()
    report = world.emitter()(deliveries, lambda: 60.0)
    back = {handed.receipt for handed in report.handed_back}
    for delivery in deliveries:
        if delivery.receipt not in back:
            world.queue.delete(delivery)
    return len(report.failures)


class UnheardOfError(Exception):
    """What another library raises when it could not get through."""


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyError("meter")])
def test_a_message_that_fails_by_a_defect_again_and_again_holds_up_its_group_no_longer(
    error: Exception,
) -> None:
    world = World()
    entries = make_entries(2)
    first, second = world.add_batch(entries[:1]), world.add_batch(entries[1:], "b2")

    def fail_for_first(usage: BillableUsage) -> None:
        if usage.identifier == entries[0].identifier:
            raise error

    world.billing.before_effect = fail_for_first
    failures = 0
    began_s = world.clock.now_s()
    while world.queue.messages:
        failures += work_off(world)
    assert failures == MAX_DEFECTS
    assert 60 < world.clock.now_s() - began_s < 600
    assert [(each.due, each.code) for each in world.queue.dead] == [(first, RefusalCode.DEFECT)]
    assert world.queue.dead[0].told == f"{type(error).__name__}, {MAX_DEFECTS} times"
    assert world.store.sendings[second].done
    assert [usage.identifier for usage in world.billing.accepted] == [entries[1].identifier]
    # Mended, the message is tried again, and nothing is lost or billed twice.
    world.billing.before_effect = lambda usage: None
    world.queue.redrive()
    world.drain()
    assert sorted(usage.identifier for usage in world.billing.accepted) == sorted(
        each.identifier for each in entries
    )


@pytest.mark.parametrize("error", [StorageUnavailableError("busy"), OSError(), UnheardOfError()])
def test_what_waits_for_somebody_else_waits_for_as_long_as_it_takes(error: Exception) -> None:
    world = World()
    world.add_batch(make_entries(1))

    def fail(usage: BillableUsage) -> None:
        raise error

    world.billing.before_effect = fail
    for _ in range(MAX_DEFECTS * 5):
        assert work_off(world) == 1
    assert world.queue.dead == []
    world.billing.before_effect = lambda usage: None
    world.drain()
    assert len(world.billing.accepted) == 1


def test_a_batch_that_is_not_there_is_parked_with_its_reason() -> None:
    world = World()
    world.queue.put(BatchDue("acme", "credits", "nowhere"))
    world.drain()
    assert [message.code for message in world.queue.dead] == [RefusalCode.BATCH_MISSING]


def test_the_report_says_what_was_not_billed_by_group_kind_and_code() -> None:
    world = World()
    entries = make_entries(4)
    entries[0] = entries[0]._replace(sub_units=HATED_VALUE)
    entries[1] = entries[1]._replace(sub_units=HATED_VALUE)
    entries[2] = entries[2]._replace(at_s=entries[2].at_s - 40 * 86400)
    world.add_batch(entries)
    report = world.emitter()(world.queue.receive(), lambda: 60.0)
    assert report.lapses == {
        ("acme#credits", Lapse.REFUSED, "bad_value"): 2,
        ("acme#credits", Lapse.LATE, "timestamp_too_old"): 1,
    }


def test_a_message_that_nobody_can_read_is_parked_as_it_is() -> None:
    world = World()
    unreadable = Delivery("m1", "r1", "g", "{broken", None, parked=False, receive_count=1)
    report = world.emitter()([unreadable], lambda: 60.0)
    assert world.queue.unreadable == ["{broken"]
    assert not report.handed_back


def test_a_run_that_was_overtaken_hands_its_message_back_and_overwrites_nothing() -> None:
    world = World()
    due = world.add_batch(make_entries(2))
    overtaken = False

    def overtake(usage: BillableUsage) -> None:
        nonlocal overtaken
        if not overtaken:
            overtaken = True
            copy = Delivery("2", "2", "acme#credits", "", due, parked=False, receive_count=1)
            assert not world.emitter()([copy], lambda: 60.0).handed_back

    world.billing.before_effect = overtake
    assert world.deliver() == ["another run is at it"]
    assert world.store.sendings[due].progress == "ss"
    assert [world.billing.times_billed(e.identifier) for e in make_entries(2)] == [1, 1]


# Hours


def test_the_total_so_far_is_sent_and_sent_again_only_when_it_has_changed() -> None:
    world = World(window=True)
    world.add_hour(HOUR, 100)
    world.drain()
    world.queue.put(HourDue("acme", "tokens", HOUR))
    world.drain()
    assert [usage.sub_units for usage in world.billing.accepted] == [100]
    world.add_hour(HOUR, 20)
    world.drain()
    assert [usage.sub_units for usage in world.billing.accepted] == [100, 120]
    assert world.billing.hour_value(HOUR) == 120


def test_a_total_that_changes_while_it_is_sent_is_sent_again_in_the_same_call() -> None:
    world = World(window=True)
    world.add_hour(HOUR, 100)

    def use_more(usage: BillableUsage) -> None:
        if usage.sub_units == 100:
            world.totals.add(HOUR, 1)

    world.billing.before_effect = use_more
    assert world.deliver() == []
    assert world.billing.hour_value(HOUR) == 101


def test_timestamps_lie_in_the_hour_and_not_ahead_and_never_fall() -> None:
    world = World(window=True)
    hour = START
    for _ in range(40):
        world.add_hour(hour, 5)
        world.drain()
        newest = world.billing.accepted[-1]
        assert int(hour.timestamp()) <= newest.at_s <= world.clock.now_s()
        world.clock.move(0.5)
    times = [usage.at_s for usage in world.billing.accepted]
    assert times == sorted(times)
    world.clock.move(86400)
    world.add_hour(hour, 5)
    world.drain()
    assert times[-1] <= world.billing.accepted[-1].at_s < int(hour.timestamp()) + 3600


@pytest.mark.parametrize("latest_by_time", [False, True])
def test_a_stale_total_that_is_sent_after_a_newer_one_is_noticed_and_mended(
    latest_by_time: bool,
) -> None:
    world = World(window=True, latest_by_time=latest_by_time)
    world.add_hour(HOUR, 100)
    overtaken = False

    def overtake(usage: BillableUsage) -> None:
        # Another run sends a newer total while the first one's request is under way.
        nonlocal overtaken
        if not overtaken:
            overtaken = True
            world.totals.add(HOUR, 11)
            due = HourDue("acme", "tokens", HOUR)
            copy = Delivery("2", "2", "acme#tokens", "", due, parked=False, receive_count=1)
            world.emitter()([copy], lambda: 60.0)

    world.billing.before_effect = overtake
    world.deliver()
    world.drain()
    assert world.billing.hour_value(HOUR) == 111
    # By the second run's record the hour was settled; the first run's send came after it.
    assert [usage.sub_units for usage in world.billing.accepted][-1] == 111


def test_even_a_run_that_outlives_what_is_waited_for_mends_what_it_overwrote() -> None:
    world = World(window=True)
    world.add_hour(HOUR, 100)
    overtaken = False

    def overtake(usage: BillableUsage) -> None:
        nonlocal overtaken
        if not overtaken:
            overtaken = True
            world.totals.add(HOUR, 11)
            due = HourDue("acme", "tokens", HOUR)
            copy = Delivery("2", "2", "acme#tokens", "", due, parked=False, receive_count=1)
            assert world.emitter()([copy], lambda: 60.0).handed_back
            world.clock.move(2 * LINGER_S)
            assert not world.emitter()([copy], lambda: 60.0).handed_back
            assert world.billing.hour_value(HOUR) == 111

    world.billing.before_effect = overtake
    world.deliver()
    world.drain()
    assert world.billing.hour_value(HOUR) == 111


@pytest.mark.parametrize("latest_by_time", [False, True])
def test_an_older_total_that_arrives_long_after_its_answer_was_given_up_is_overwritten(
    latest_by_time: bool,
) -> None:
    world = World(window=True, latest_by_time=latest_by_time)
    world.add_hour(HOUR, 100)
    script(world, LOST_AND_LATE, *[THROTTLED] * 3)
    world.deliver()
    world.add_hour(HOUR, 11)
    world.drain()
    world.clock.move(2 * LINGER_S)
    assert world.billing.hour_value(HOUR) == 111


def test_a_final_period_keeps_the_rest_of_an_hour_as_late() -> None:
    world = World(window=True)
    world.add_hour(HOUR, 100)
    world.drain()
    world.billing.start_s = int(START.timestamp())
    world.add_hour(HOUR, 30)
    world.add_hour(HOUR, 4)
    world.drain()
    problem = only_problem(world)
    assert (problem.kind, problem.sub_units, problem.at_s) == (
        Lapse.LATE,
        34,
        int(HOUR.timestamp()),
    )
    assert world.billing.calls == 1
    assert not world.queue.dead


def test_the_hour_in_which_a_subscription_begins_is_billed_from_its_beginning_on() -> None:
    world = World(window=True)
    began_s = int(HOUR.timestamp()) + 1380
    world.billing.start_s = began_s
    world.add_hour(HOUR, 100)
    world.drain()
    world.add_hour(HOUR, 5)
    world.drain()
    assert [(usage.at_s, usage.sub_units) for usage in world.billing.accepted] == [
        (began_s, 100),
        (began_s, 105),
    ]
    assert not world.store.problems


def test_an_hour_that_was_billed_in_a_period_that_is_final_is_not_billed_again_in_the_next() -> (
    None
):
    world = World(window=True)
    world.add_hour(HOUR, 100)
    world.drain()
    world.billing.start_s = int(HOUR.timestamp()) + 1380
    world.add_hour(HOUR, 5)
    world.drain()
    assert [usage.sub_units for usage in world.billing.accepted] == [100]
    assert (only_problem(world).kind, only_problem(world).sub_units) == (Lapse.LATE, 5)


def test_a_refused_hour_is_parked_once_and_mended_by_a_redrive() -> None:
    world = World(window=True)
    world.billing.customers = set()
    world.add_hour(HOUR, 100)
    world.queue.put(HourDue("acme", "tokens", HOUR))
    world.drain()
    assert only_problem(world).kind is Lapse.REFUSED
    assert [message.code for message in world.queue.dead] == [RefusalCode.UNKNOWN_CUSTOMER]
    world.billing.customers = {"cus_acme"}
    world.queue.redrive()
    world.drain()
    assert world.billing.hour_value(HOUR) == 100
    assert not world.store.problems
    assert not world.queue.dead


def test_two_strays_of_other_values_force_a_fresh_send_however_many_there_were() -> None:
    sending = HourSending(sent_sub_units=5)
    for value in range(100):
        sending = sending.add_stray(value, 1000 + value)
    assert len(sending.strays) == 16
    assert sending.resend_at_s() == 1099
    total = HourTotal(7, 3)
    after = sending.begin(total, HOUR, int(HOUR.timestamp())).succeed()
    assert after.resend_at_s() is None


# Messages and batches as they are written down


def test_messages_read_as_they_were_written() -> None:
    batch = BatchDue("acme", "credits", "b1")
    hour = HourDue("acme", "tokens", HOUR)
    assert decode_due(encode_due(batch)) == (batch, False)
    assert decode_due(encode_due(hour)) == (hour, False)
    assert decode_due(encode_due(batch, parked_for="refused", parked_message="why")) == (
        batch,
        True,
    )


@pytest.mark.parametrize(
    "body",
    ["", "{}", "[]", '{"due":"batch"}', '{"due":"hour","customer":"a","meter":"m","hour":"x"}'],
)
def test_a_body_that_says_nothing_becomes_a_delivery_without_a_due(body: str) -> None:
    event = {
        "Records": [
            {
                "messageId": "m1",
                "receiptHandle": "r1",
                "body": body,
                "attributes": {"MessageGroupId": "g", "ApproximateReceiveCount": "3"},
            }
        ]
    }
    assert read_deliveries(event) == [Delivery("m1", "r1", "g", body, None, False, 3)]


def test_packed_entries_read_as_they_were_written_and_take_little_room() -> None:
    values = [0, 1, -1, 127, 128, -128, -129, 10**15, -(10**15), 10**40]
    entries = [
        EmissionEntry(make_entries(1, name=str(i))[0].identifier, 1_795_000_000 + i, value)
        for i, value in enumerate(values)
    ]
    assert unpack_entries(pack_entries(entries)) == entries
    full = make_entries(MAX_ENTRIES)
    assert len(pack_entries(full)) <= 29 * MAX_ENTRIES
    now = datetime.now(UTC)
    item = batch_item(EmissionBatch("acme", "credits", "b1", full), now)
    assert len(json.dumps(item)) < 40_000
    assert int(item["expires_at"]["N"]) > (now + timedelta(days=399)).timestamp()


@pytest.mark.parametrize("count", [0, MAX_ENTRIES + 1])
def test_a_batch_without_entries_or_with_too_many_is_not_written(count: int) -> None:
    with pytest.raises(ValueError, match="a batch has"):
        batch_item(EmissionBatch("acme", "credits", "b1", make_entries(count)), START)


def test_an_identifier_that_is_no_events_is_not_packed() -> None:
    with pytest.raises(ValueError, match="identifier"):
        pack_entries([EmissionEntry("ml_00", 0, 1)])


def test_a_stray_is_waited_for_twice_as_long_as_the_function_may_run() -> None:
    template = (REPO / "template.yaml").read_text(encoding="utf-8")
    function = template.split("  EmitUsageFunction:\n")[1].split("\n\n")[0]
    (timeout_s,) = re.findall(r"Timeout: (\d+)", function)
    assert 2 * int(timeout_s) <= LINGER_S


@dataclass
class _OneAnswer(FakeBilling):
    """A billing layer that always answers the same."""

    answer: SendOutcome = field(default_factory=Sent)

    def send(self, usage: BillableUsage) -> SendOutcome:
        self.calls += 1
        return self.answer


@pytest.mark.parametrize("answer", [Unknown("HTTP 500"), NotApplied("HTTP 409")])
def test_an_outage_of_a_day_ends_with_every_event_billed_or_listed(answer: SendOutcome) -> None:
    world = World()
    entries = make_entries(3)
    world.add_batch(entries)
    good, world.billing = world.billing, _OneAnswer(world.clock, answer=answer)
    while world.clock.at < START + timedelta(hours=25):
        at = world.queue.next_visible_at()
        if at is None:
            break
        world.clock.at = max(world.clock.at, at)
        world.deliver()
    world.billing = good
    world.drain()
    billed = [world.billing.times_billed(e.identifier) for e in entries]
    if isinstance(answer, NotApplied):
        assert billed == [1, 1, 1]
    else:
        # The first was in doubt for too long; the others were never tried.
        assert billed == [0, 1, 1]
        assert only_problem(world).kind is Lapse.UNKNOWN

"""The breaker: ten typical days within an hour trip it, and what is usual does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meterline.catalog.guardrails import load_breaker_rule
from meterline.domain.authorizations import SLOT_S
from meterline.domain.breaker import (
    DayUse,
    find_threshold,
    find_typical_day,
    judge,
    sum_last_hour,
)

RULE = load_breaker_rule()
FLOOR = RULE.floors["credits"]
NOW_S = 1_795_348_800
STEADY = [DayUse(480_000, 60_000)] * 28


def test_ten_typical_days_within_an_hour_trip_it_and_a_thousandth_less_does_not() -> None:
    assert judge(4_800_000, STEADY, RULE, "credits") is not None
    assert judge(4_799_999, STEADY, RULE, "credits") is None


def test_a_new_customer_is_judged_by_the_floor() -> None:
    assert find_threshold([], RULE, "credits") == 10 * FLOOR
    assert judge(10 * FLOOR - 1, [], RULE, "credits") is None
    assert judge(10 * FLOOR, [], RULE, "credits") is not None


def test_days_off_do_not_make_a_weekday_customer_look_small() -> None:
    weeks = ([DayUse(480_000, 60_000)] * 5 + [DayUse(0, 0)] * 2) * 4
    assert find_typical_day(weeks, FLOOR) == 480_000


def test_one_past_incident_neither_moves_the_typical_day_nor_becomes_a_habit() -> None:
    days = [*STEADY[:-1], DayUse(50_000_000, 12_000_000)]
    assert find_threshold(days, RULE, "credits") == 4_800_000


def test_a_batch_job_that_was_there_on_two_days_is_expected_on_a_third() -> None:
    days = [*STEADY[:-2], *[DayUse(6_000_000, 5_000_000)] * 2]
    assert judge(5_500_000, days, RULE, "credits") is None
    assert judge(10_000_000, days, RULE, "credits") is not None


def test_the_last_hour_is_never_more_than_an_hour() -> None:
    newest = NOW_S // SLOT_S
    pace = {newest - number: 1 for number in range(-1, 20)}
    # The slot of a clock that runs ahead, the running one, and eleven before it.
    assert sum_last_hour(pace, NOW_S) == 13


def test_what_was_used_before_an_unfreeze_does_not_count_afterwards() -> None:
    newest = NOW_S // SLOT_S
    pace = {newest: 7, newest - 1: 100}
    assert sum_last_hour(pace, NOW_S + 10, NOW_S) == 7
    # In mid-slot, what came before it cannot be told apart: the whole slot is let go.
    assert sum_last_hour(pace, NOW_S + 10, NOW_S + 1) == 0


@given(
    st.lists(st.integers(0, 10**9), max_size=28),
    st.integers(0, 10**10),
)
def test_it_never_trips_below_its_least_and_never_above_its_threshold_does_it_hold(
    totals: list[int], hour: int
) -> None:
    days = [DayUse(total, total // 10) for total in totals]
    trip = judge(hour, days, RULE, "credits")
    assert (trip is not None) == (hour >= find_threshold(days, RULE, "credits"))
    if trip is not None:
        assert hour >= RULE.least("credits")

"""Periods: every moment of a subscription's life is in exactly one of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterline.domain.periods import (
    Cycle,
    Interval,
    Period,
    PeriodError,
    Timeline,
    calendar_month,
)
from meterline.domain.subscriptions import MAX_PAST, follow
from tests.dashboard_fakes import make_subscription


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def period(start: str, end: str) -> Period:
    return Period(utc(start), utc(end))


SECONDS = st.integers(1_577_836_800, 1_988_150_400).map(
    lambda second: datetime.fromtimestamp(second, UTC)
)
CYCLES = st.builds(Cycle, SECONDS, st.sampled_from(Interval), st.integers(1, 6))
SPANS = st.integers(1, 400 * 86_400).map(lambda seconds: timedelta(seconds=seconds))
PERIODS = st.builds(lambda start, span: Period(start, start + span), SECONDS, SPANS)


@pytest.mark.parametrize(
    ("anchor", "at", "start", "end"),
    [
        ("2026-01-31T00:00:00", "2026-02-10", "2026-01-31", "2026-02-28"),
        ("2026-01-31T00:00:00", "2026-02-28", "2026-02-28", "2026-03-31"),
        ("2026-01-31T00:00:00", "2026-04-30", "2026-04-30", "2026-05-31"),
        ("2028-01-31T00:00:00", "2028-02-29", "2028-02-29", "2028-03-31"),
        ("2026-01-30T00:00:00", "2028-02-29", "2028-02-29", "2028-03-30"),
        ("2026-01-29T00:00:00", "2027-02-28", "2027-02-28", "2027-03-29"),
        ("2026-01-29T00:00:00", "2028-02-29", "2028-02-29", "2028-03-29"),
        ("2026-12-31T23:59:59", "2027-02-28T23", "2027-01-31T23:59:59", "2027-02-28T23:59:59"),
        ("2026-03-15T10:37", "2026-03-15T10:36:59.999", "2026-02-15T10:37", "2026-03-15T10:37"),
        ("2026-03-15T10:37", "2026-03-15T10:37", "2026-03-15T10:37", "2026-04-15T10:37"),
        ("2026-11-30T08:00:00", "2026-01-15", "2025-12-30T08:00:00", "2026-01-30T08:00:00"),
    ],
)  # fmt: skip
def test_a_monthly_cycle_keeps_its_day_and_yields_only_to_shorter_months(
    anchor: str, at: str, start: str, end: str
) -> None:
    cycle = Cycle(utc(anchor), Interval.MONTH)
    assert cycle.period_at(utc(at)) == period(start, end)


def test_a_year_from_the_29th_of_february_ends_on_the_28th_and_comes_back() -> None:
    cycle = Cycle(utc("2028-02-29T12:00:00"), Interval.YEAR)
    assert [cycle.boundary(index).date().isoformat() for index in range(-4, 5)] == [
        "2024-02-29",
        "2025-02-28",
        "2026-02-28",
        "2027-02-28",
        "2028-02-29",
        "2029-02-28",
        "2030-02-28",
        "2031-02-28",
        "2032-02-29",
    ]


@given(CYCLES, SECONDS, st.integers(0, 999_999))
def test_a_cycle_has_one_period_for_every_moment(
    cycle: Cycle, at: datetime, microsecond: int
) -> None:
    moment = at.replace(microsecond=microsecond)
    found = cycle.period_at(moment)
    assert moment in found
    assert cycle.period_at(found.start) == found
    assert cycle.period_at(found.end).start == found.end
    assert cycle.period_at(found.start - timedelta(microseconds=1)).end == found.start


@given(
    CYCLES,
    SECONDS,
    st.none() | SPANS,
    st.lists(PERIODS, max_size=5),
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
)
@settings(max_examples=400)
def test_every_moment_of_a_life_is_in_exactly_one_period_and_no_other_in_any(
    cycle: Cycle,
    start: datetime,
    span: timedelta | None,
    told: list[Period],
    places: list[float],
) -> None:
    end = None if span is None else start + span
    timeline = Timeline(cycle, start, end, tuple(told))
    horizon = min(end or start + timedelta(days=800), start + timedelta(days=60))
    periods = list(timeline.periods_between(start, horizon))
    assert periods[0].start == start
    for before, after in pairwise(periods):
        assert before.end == after.start
    assert periods[-1].end >= horizon
    for place in places:
        at = start + (horizon - start) * place
        holders = [one for one in periods if at in one]
        if at < horizon:
            assert [timeline.period_at(at)] == holders
    assert timeline.period_at(start - timedelta(microseconds=1)) is None
    if end is not None:
        assert timeline.period_at(end) is None
        last = timeline.period_at(end - timedelta(microseconds=1))
        assert last is not None
        assert last.end == end


@given(CYCLES, SECONDS, PERIODS, st.lists(PERIODS, max_size=4))
def test_what_is_told_first_wins(
    cycle: Cycle, start: datetime, current: Period, others: list[Period]
) -> None:
    timeline = Timeline(cycle, min(start, current.start), None, (current, *others))
    assert timeline.period_at(current.start) == current
    assert timeline.period_at(current.end - timedelta(microseconds=1)) == current


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-01-01", "2026-01-01"),
        ("2026-01-02", "2026-01-01"),
        ("2026-01-01T00:00:00.5", "2026-01-02"),
    ],
)
def test_a_period_that_cannot_be_is_refused(start: str, end: str) -> None:
    with pytest.raises(PeriodError):
        period(start, end)


def test_a_time_without_a_zone_is_no_bound_of_a_period() -> None:
    with pytest.raises(PeriodError):
        Period(datetime(2026, 1, 1), datetime(2026, 2, 1))  # noqa: DTZ001 - what is refused


def test_a_customer_whom_nobody_bills_has_calendar_months() -> None:
    assert calendar_month(utc("2026-02-28T23:59:59.999")) == period("2026-02-01", "2026-03-01")


SUBSCRIPTION = make_subscription(
    utc("2026-03-10T09:30:00"),
    utc("2026-04-10T09:30:00"),
    anchor=utc("2026-01-10T09:30:00"),
    started_at=utc("2026-01-10T09:30:00"),
    synced_at=utc("2026-03-11T00:00:00"),
)


def test_an_upgrade_that_restarts_the_cycle_ends_the_period_at_that_second() -> None:
    upgraded = replace(
        SUBSCRIPTION,
        current=period("2026-03-20T12:00:01", "2026-04-20T12:00:01"),
        anchor=utc("2026-03-20T12:00:01"),
    )
    known = follow(SUBSCRIPTION, upgraded)
    assert known.past == (period("2026-03-10T09:30:00", "2026-03-20T12:00:01"),)
    assert known.period_at(utc("2026-03-20T12:00:00.999")) == known.past[0]
    assert known.period_at(utc("2026-03-20T12:00:01")) == known.current
    # Without the memory, the new anchor would have moved the old period's start.
    assert upgraded.period_at(utc("2026-03-15")) != known.past[0]


def test_a_plan_change_that_keeps_the_cycle_keeps_the_period() -> None:
    changed = replace(SUBSCRIPTION, plan="team", prices=("price_team",))
    assert follow(SUBSCRIPTION, changed).past == ()
    assert follow(SUBSCRIPTION, changed).period_at(utc("2026-03-10T09:30:00")) == changed.current


def test_renewals_that_nobody_told_us_of_are_filled_in_from_the_anchor() -> None:
    heard = replace(SUBSCRIPTION, current=period("2026-07-10T09:30:00", "2026-08-10T09:30:00"))
    known = follow(SUBSCRIPTION, heard)
    periods = known.timeline.periods_between(known.started_at, utc("2026-08-01"))
    assert [each.start.month for each in periods] == [1, 2, 3, 4, 5, 6, 7]


def test_a_trial_is_one_period_however_long_and_the_paid_cycle_starts_at_its_end() -> None:
    trial = replace(
        SUBSCRIPTION,
        status="trialing",
        current=period("2026-01-05T07:00:00", "2026-03-06T07:00:00"),
        anchor=utc("2026-03-06T07:00:00"),
        started_at=utc("2026-01-05T07:00:00"),
        trial_start=utc("2026-01-05T07:00:00"),
        trial_end=utc("2026-03-06T07:00:00"),
    )
    assert trial.is_trial(trial.current)
    assert trial.period_at(utc("2026-03-06T07:00:00")) == period(
        "2026-03-06T07:00:00", "2026-04-06T07:00:00"
    )
    # Heard of only later, its trial is known from its own two ends.
    paying = replace(
        trial, status="active", current=period("2026-04-06T07:00:00", "2026-05-06T07:00:00")
    )
    found = list(paying.timeline.periods_between(paying.started_at, utc("2026-05-01")))
    assert found == [
        period("2026-01-05T07:00:00", "2026-03-06T07:00:00"),
        period("2026-03-06T07:00:00", "2026-04-06T07:00:00"),
        period("2026-04-06T07:00:00", "2026-05-06T07:00:00"),
    ]
    assert [paying.is_trial(each) for each in found] == [True, False, False]


def test_a_cancellation_ends_the_last_period_and_nothing_follows() -> None:
    cancelled = replace(SUBSCRIPTION, status="canceled", ended_at=utc("2026-03-17T03:04:05"))
    last = cancelled.period_at(utc("2026-03-17T03:04:04"))
    assert last == period("2026-03-10T09:30:00", "2026-03-17T03:04:05")
    assert cancelled.period_at(utc("2026-03-17T03:04:05")) is None
    at_period_end = replace(SUBSCRIPTION, cancel_at=SUBSCRIPTION.current.end)
    assert at_period_end.period_at(SUBSCRIPTION.current.end) is None


def test_another_subscription_starts_a_memory_of_its_own() -> None:
    other = replace(SUBSCRIPTION, id="sub_2", current=period("2026-05-01", "2026-06-01"))
    assert follow(SUBSCRIPTION, other) == other


def test_the_memory_of_periods_is_bounded() -> None:
    known = SUBSCRIPTION
    for _ in range(MAX_PAST + 5):
        start = known.current.end
        known = follow(known, replace(known, current=Period(start, start + timedelta(days=7))))
    assert len(known.past) == MAX_PAST
    assert known.past[-1].end == known.current.start


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["renew", "restart", "trial", "miss"]), st.integers(1, 40 * 86_400)
    ),
    max_size=8,
)  # fmt: skip


@given(SECONDS, CHANGES, st.none() | st.integers(1, 90 * 86_400))
@settings(max_examples=300)
def test_whatever_happens_to_a_subscription_no_moment_is_in_two_periods_or_none(
    start: datetime, changes: list[tuple[str, int]], cancelled_after_s: int | None
) -> None:
    known = replace(
        SUBSCRIPTION,
        started_at=start,
        anchor=start,
        current=Cycle(start, Interval.MONTH).period_at(start),
    )
    for change, seconds in changes:
        heard = known
        if change == "renew":
            following = Cycle(known.anchor, Interval.MONTH).period_at(known.current.end)
            heard = replace(known, current=following)
        elif change == "miss":
            later = known.current.end + timedelta(seconds=seconds)
            heard = replace(known, current=Cycle(known.anchor, Interval.MONTH).period_at(later))
        else:
            now = known.current.start + timedelta(
                seconds=1 + seconds % max(1, known.current.seconds - 1)
            )
            if change == "restart":
                current = Cycle(now, Interval.MONTH).period_at(now)
                heard = replace(known, anchor=now, current=current)
            else:
                ends = now + timedelta(seconds=seconds)
                heard = replace(
                    known, anchor=ends, current=Period(now, ends), trial_start=now, trial_end=ends
                )
        known = follow(known, heard)
    if cancelled_after_s is not None:
        ended_at = known.current.start + timedelta(seconds=cancelled_after_s)
        known = replace(known, ended_at=ended_at)
    horizon = known.ended_at or known.current.end + timedelta(days=90)
    periods = list(known.timeline.periods_between(start, horizon))
    assert periods[0].start == start
    for before, after in pairwise(periods):
        assert before.end == after.start
        assert known.period_at(before.end - timedelta(milliseconds=1)) == before
        assert known.period_at(before.end) == after
    assert periods[-1].end >= horizon

"""The forecast: never below what is used, and nearer than the straight line."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.domain.forecast import forecast_period
from meterline.domain.periods import Period
from tests.bench.forecasts import SHAPES, back_test

START = datetime(2026, 11, 1, tzinfo=UTC)
NOVEMBER = Period(START, datetime(2026, 12, 1, tzinfo=UTC))


@pytest.mark.parametrize("shape", ["steady", "growing", "weekly", "bursty", "declining", "sparse"])
def test_with_a_history_it_is_nearer_than_the_straight_line(shape: str) -> None:
    found = back_test(SHAPES[shape], known_days=60, histories=60)
    assert found.our_mean <= found.line_mean
    # Early, where the line doubts nothing, by far; and on no day worse by more than a percent.
    assert found.ours[1] < found.line[1]
    assert all(found.ours[day] <= found.line[day] + 0.01 for day in found.ours)


@pytest.mark.parametrize("shape", ["steady", "growing", "weekly", "bursty"])
def test_without_a_history_it_is_no_worse(shape: str) -> None:
    found = back_test(SHAPES[shape], known_days=0, histories=60)
    assert found.our_mean <= found.line_mean * 1.01


@pytest.mark.parametrize("shape", ["steady", "weekly", "bursty", "sparse"])
def test_the_range_holds_most_of_the_time(shape: str) -> None:
    found = back_test(SHAPES[shape], known_days=60, histories=60)
    assert sum(found.held.values()) / len(found.held) > 0.6


def test_nothing_known_is_no_forecast() -> None:
    assert forecast_period({}, 0, NOVEMBER, START + timedelta(days=3)) is None


def test_at_the_end_of_the_period_it_is_what_was_used() -> None:
    days = {date(2026, 11, day): 100 for day in range(1, 31)}
    found = forecast_period(days, 3000, NOVEMBER, NOVEMBER.end)
    assert found is not None
    assert (found.low, found.expected, found.high) == (3000, 3000, 3000)
    assert found.is_settled


def test_the_same_every_day_goes_on_the_same() -> None:
    days = {date(2026, 10, 1) + timedelta(days=place): 100 for place in range(41)}
    found = forecast_period(days, 1000, NOVEMBER, START + timedelta(days=10))
    assert found is not None
    assert (found.low, found.expected, found.high) == (3000, 3000, 3000)


def test_a_day_that_is_half_gone_counts_for_the_half_that_is_left() -> None:
    days = {date(2026, 10, 1) + timedelta(days=place): 100 for place in range(41)}
    days[date(2026, 11, 11)] = 50
    found = forecast_period(days, 1050, NOVEMBER, START + timedelta(days=10, hours=12))
    assert found is not None
    assert found.expected == 3000


def test_a_weekend_is_not_forecast_like_a_monday() -> None:
    first = date(2026, 10, 5)  # A Monday.
    days = {
        day: 0 if day.weekday() >= 5 else 100
        for day in (first + timedelta(days=place) for place in range(28))
    }
    period = Period(datetime(2026, 11, 2, tzinfo=UTC), datetime(2026, 11, 30, tzinfo=UTC))
    found = forecast_period(days, 0, period, period.start)
    assert found is not None
    assert abs(found.expected - 2000) <= 150


@given(
    amounts=st.lists(st.integers(0, 10**12), min_size=1, max_size=60),
    gone_s=st.integers(0, 30 * 86400),
)
def test_it_never_falls_below_what_is_used_and_its_ends_are_in_order(
    amounts: list[int], gone_s: int
) -> None:
    now = START + timedelta(seconds=gone_s)
    days = {now.date() - timedelta(days=back): amount for back, amount in enumerate(amounts)}
    used = sum(amount for day, amount in days.items() if day >= START.date())
    found = forecast_period(days, used, NOVEMBER, now)
    if found is not None:
        assert used <= found.low <= found.expected <= found.high

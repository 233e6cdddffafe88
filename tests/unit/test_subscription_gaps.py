"""The time that no subscription bills, between the end of one and the start of the next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.domain.periods import Period
from meterline.domain.subscriptions import Life, find_gaps

DAY = datetime(2026, 11, 1, tzinfo=UTC)
UNTIL = DAY + timedelta(days=20)


def day(number: int) -> datetime:
    return DAY + timedelta(days=number)


def life(start: int, end: int | None) -> Life:
    return Life(day(start), None if end is None else day(end))


@pytest.mark.parametrize(
    ("lives", "gaps"),
    [
        ([], []),
        ([life(0, None)], []),
        ([life(0, 5)], [(5, 20)]),
        ([life(0, 30)], []),
        ([life(0, 5), life(8, None)], [(5, 8)]),
        ([life(8, None), life(0, 5)], [(5, 8)]),
        ([life(0, 5), life(5, None)], []),
        ([life(0, 5), life(25, None)], [(5, 20)]),
        ([life(0, 9), life(3, 5), life(12, 15)], [(9, 12), (15, 20)]),
        ([life(0, 9), life(3, None)], []),
        ([life(4, 4), life(8, None)], [(4, 8)]),
    ],
)
def test_a_gap_begins_with_an_end_and_ends_with_a_start(
    lives: list[Life], gaps: list[tuple[int, int]]
) -> None:
    assert find_gaps(lives, UNTIL) == [Period(day(start), day(end)) for start, end in gaps]


SPANS = st.tuples(st.integers(0, 19), st.none() | st.integers(0, 25)).map(
    lambda span: life(span[0], None if span[1] is None else max(span))  # type: ignore[type-var]
)


@given(st.lists(SPANS, max_size=6))
def test_every_day_from_the_first_start_on_is_in_a_life_or_in_a_gap(lives: list[Life]) -> None:
    gaps = find_gaps(lives, UNTIL)
    for number in range(20):
        at = day(number)
        is_billed = any(each.start <= at and (each.end is None or at < each.end) for each in lives)
        has_begun = any(each.start <= at for each in lives)
        assert any(at in gap for gap in gaps) == (has_begun and not is_billed)

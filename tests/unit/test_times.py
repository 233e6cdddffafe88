"""Times: RFC 3339 in, UTC to the millisecond out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.domain.times import format_time, parse_time

FIRST = datetime(1, 1, 3, tzinfo=UTC)
SPAN_US = (datetime(9999, 12, 29, tzinfo=UTC) - FIRST) // timedelta(microseconds=1)
MOMENTS = st.integers(0, SPAN_US).map(lambda offset_us: FIRST + timedelta(microseconds=offset_us))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22T06:00:00Z", datetime(2026, 11, 22, 6, tzinfo=UTC)),
        ("2026-11-22t06:00:00z", datetime(2026, 11, 22, 6, tzinfo=UTC)),
        ("2026-11-22T06:00:00+05:45", datetime(2026, 11, 22, 0, 15, tzinfo=UTC)),
        ("2026-11-22T06:00:00-00:00", datetime(2026, 11, 22, 6, tzinfo=UTC)),
        ("2026-11-22T06:00:00.5Z", datetime(2026, 11, 22, 6, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-11-22T06:00:00.123456789Z", datetime(2026, 11, 22, 6, 0, 0, 123_000, tzinfo=UTC)),
        ("2028-02-29T23:59:59.999Z", datetime(2028, 2, 29, 23, 59, 59, 999_000, tzinfo=UTC)),
    ],
)
def test_rfc_3339_is_read_in_utc_to_the_millisecond(text: str, moment: datetime) -> None:
    assert parse_time(text) == moment
    assert parse_time(text).tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-11-22",
        "2026-11-22T06:00Z",
        "2026-11-22T06:00:00",
        "2026-11-22 06:00:00Z",
        "20261122T060000Z",
        "2026-W47-7T06:00:00Z",
        "2026-02-29T06:00:00Z",
        "2026-13-01T06:00:00Z",
        "2026-11-22T24:00:00Z",
        "2026-11-22T23:60:00Z",
        "2016-12-31T23:59:60Z",
        "2026-11-22T06:00:00+24:00",
        "2026-11-22T06:00:00+0100",
        "2026-11-22T06:00:00.Z",
        "2026-11-22T06:00:00.1234567890Z",
        "0000-01-01T00:00:00Z",
        "9999-12-31T23:59:59-00:01",
        "0001-01-01T00:00:00+00:01",
        "\u0662\u0660\u0662\u0666-11-22T06:00:00Z",
        "2026-11-22T06:00:00Z\n",
        " 2026-11-22T06:00:00Z",
    ],
)
def test_anything_else_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_time(text)


@given(
    MOMENTS,
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
)
def test_what_is_written_is_read_back_whatever_the_zone(moment: datetime, minutes: int) -> None:
    there = moment.astimezone(timezone(timedelta(minutes=minutes)))
    written = format_time(there)
    assert len(written) == 24
    assert abs(parse_time(written) - there) < timedelta(milliseconds=1)
    assert format_time(parse_time(written)) == written
    assert parse_time(there.isoformat()) == parse_time(written)


@given(st.lists(MOMENTS, min_size=2, max_size=2))
def test_text_sorts_as_time_does(moments: list[datetime]) -> None:
    first, second = sorted(moments)
    assert format_time(first) <= format_time(second)


@given(st.text(max_size=40))
def test_no_text_is_more_than_a_value_error(text: str) -> None:
    try:
        parse_time(text)
    except ValueError:
        return
    assert len(text) >= 20

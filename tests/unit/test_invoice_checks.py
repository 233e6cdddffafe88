"""What surrounds a period that the billing layer can be asked about."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

import pytest

from meterline.catalog import load_meters
from meterline.domain.invoice_checks import bound_counted, cut_countable
from meterline.domain.meters import EmissionMode
from meterline.domain.periods import Period
from meterline.domain.usage import EventKey, LedgerEntry

CREDITS = load_meters()["credits"]


def _entry(quantity: str, at: datetime, meter: str = "credits") -> LedgerEntry:
    key = EventKey("acme", "backend", f"{at}{quantity}")
    return LedgerEntry(key, at, meter, Decimal(quantity), b"0" * 32, at)


def _at(day: int, hour: int, minute: int, second: int = 0) -> datetime:
    return datetime(2026, 2, day, hour, minute, second, tzinfo=UTC)


@pytest.mark.parametrize(
    ("mode", "period", "cuts"),
    [
        (
            EmissionMode.EVENT,
            Period(_at(1, 9, 41, 7), _at(28, 9, 41, 7)),
            [_at(1, 9, 41), _at(1, 9, 42), _at(28, 9, 41), _at(28, 9, 42)],
        ),
        (
            EmissionMode.HOURLY,
            Period(_at(1, 9, 41, 7), _at(28, 9, 41, 7)),
            [_at(1, 9, 0), _at(1, 10, 0), _at(28, 9, 0), _at(28, 10, 0)],
        ),
        (
            EmissionMode.HOURLY,
            Period(_at(1, 9, 0), _at(28, 9, 41)),
            [_at(1, 9, 0), _at(28, 9, 0), _at(28, 10, 0)],
        ),
        (
            EmissionMode.HOURLY,
            Period(_at(1, 9, 0), _at(28, 9, 0)),
            [_at(1, 9, 0), _at(28, 9, 0)],
        ),
        (
            EmissionMode.EVENT,
            Period(_at(1, 9, 41, 7), _at(1, 9, 41, 9)),
            [_at(1, 9, 41), _at(1, 9, 42)],
        ),
    ],
)
def test_a_period_is_widened_to_whole_minutes_or_hours_and_those_at_its_ends_are_apart(
    mode: EmissionMode, period: Period, cuts: list[datetime]
) -> None:
    assert [*cut_countable(period, mode)] == [Period(*each) for each in pairwise(cuts)]


def test_of_usage_outside_of_the_period_any_part_may_be_counted_and_of_its_own_all() -> None:
    period = Period(_at(1, 9, 41, 7), _at(28, 9, 41, 7))
    entries = [
        _entry("4", _at(1, 9, 41, 7)),
        _entry("-1", _at(1, 9, 41, 50)),
        _entry("20", _at(1, 9, 41, 6)),
        _entry("-7", _at(28, 9, 41, 7)),
        _entry("900", _at(1, 9, 41, 9), meter="tokens"),
    ]
    assert bound_counted(entries, period, CREDITS) == (3_000 - 7_000, 3_000 + 20_000)
    assert bound_counted(entries[:2], period, CREDITS) == (3_000, 3_000)

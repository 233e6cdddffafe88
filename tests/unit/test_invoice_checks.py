"""What surrounds a period that the billing layer can be asked about."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from meterline.domain.invoice_checks import widen_to_countable
from meterline.domain.meters import EmissionMode
from meterline.domain.periods import Period


def _at(day: int, hour: int, minute: int, second: int = 0) -> datetime:
    return datetime(2026, 2, day, hour, minute, second, tzinfo=UTC)


@pytest.mark.parametrize(
    ("mode", "period", "around"),
    [
        (
            EmissionMode.EVENT,
            Period(_at(1, 9, 41, 7), _at(28, 9, 41, 7)),
            Period(_at(1, 9, 41), _at(28, 9, 42)),
        ),
        (
            EmissionMode.HOURLY,
            Period(_at(1, 9, 41, 7), _at(28, 9, 41, 7)),
            Period(_at(1, 9, 0), _at(28, 10, 0)),
        ),
        (
            EmissionMode.HOURLY,
            Period(_at(1, 9, 0), _at(28, 9, 0)),
            Period(_at(1, 9, 0), _at(28, 9, 0)),
        ),
    ],
)
def test_a_period_is_widened_to_whole_minutes_or_hours_and_no_further(
    mode: EmissionMode, period: Period, around: Period
) -> None:
    assert widen_to_countable(period, mode) == around

"""Cuts: the days that a period divides."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from meterline.domain.cuts import list_cuts
from meterline.domain.periods import Period


@pytest.mark.parametrize(
    ("start", "end", "cuts"),
    [
        ("2026-11-03T09:23:41", "2026-12-03T09:23:41", {"2026-11-03", "2026-12-03"}),
        ("2026-11-03T00:00:00", "2026-12-03T09:23:41", {"2026-12-03"}),
        ("2026-11-03T00:00:01", "2026-12-03T00:00:00", {"2026-11-03"}),
        ("2026-11-01T00:00:00", "2026-12-01T00:00:00", set()),
        ("2026-11-03T09:00:00", "2026-11-03T12:00:00", set()),
        ("2026-11-03T09:00:00", "2026-11-04T09:00:00", {"2026-11-03", "2026-11-04"}),
    ],
)
def test_a_day_is_cut_where_a_period_begins_or_ends_within_it(
    start: str, end: str, cuts: set[str]
) -> None:
    edges = [datetime.fromisoformat(each).replace(tzinfo=UTC) for each in (start, end)]
    found = list_cuts(Period(*edges))
    assert set(found) == cuts
    for day, cut in found.items():
        at = datetime.fromtimestamp(cut.at_s, UTC)
        assert at in edges
        assert (f"{at:%Y-%m-%d}", f"{at:%H%M%S}") == (day, cut.mark)

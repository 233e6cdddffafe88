"""The forecast held against the straight line: `python -m tests.bench.forecasts`.

Histories are made by seed, a shape each; the period has 30 days. An error is the distance of the
forecast from what the period came to, as a share of it; the mean is over histories. The straight
line is what was used so far, divided by the days gone, times the days of the period.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from random import Random

from rich.console import Console
from rich.table import Table

from meterline.domain.forecast import forecast_period
from meterline.domain.periods import Period
from tests.bench.results import Row

DAYS = 30
LOOKED_AT = (1, 2, 3, 5, 7, 10, 14, 18, 21, 25, 28)
"""Days gone of the period."""
_FIRST = date(2026, 1, 5)
_WEEK = (1.3, 1.35, 1.3, 1.25, 1.2, 0.25, 0.2)

Shape = Callable[[int, date, int, Random], float]


def steady(_place: int, _day: date, _length: int, dice: Random) -> float:
    """The same every day, give or take a quarter."""
    return 10_000 * dice.lognormvariate(0, 0.25)


def growing(place: int, _day: date, _length: int, dice: Random) -> float:
    """Two percent more every day."""
    return float(10_000 * 1.02**place * dice.lognormvariate(0, 0.25))


def declining(place: int, _day: date, _length: int, dice: Random) -> float:
    """One and a half percent less every day."""
    return float(10_000 * 0.985**place * dice.lognormvariate(0, 0.25))


def weekly(_place: int, day: date, _length: int, dice: Random) -> float:
    """Working days, and next to nothing at weekends."""
    return 10_000 * _WEEK[day.weekday()] * dice.lognormvariate(0, 0.2)


def bursty(_place: int, _day: date, _length: int, dice: Random) -> float:
    """Now and then a day of eight to twenty ordinary ones."""
    burst = dice.uniform(8, 20) if dice.random() < 0.06 else 1.0
    return 10_000 * dice.lognormvariate(0, 0.5) * burst


def sparse(_place: int, _day: date, _length: int, dice: Random) -> float:
    """Nothing on four of five days."""
    return 50_000 * dice.lognormvariate(0, 0.5) if dice.random() < 0.2 else 0.0


def stepping(place: int, _day: date, length: int, dice: Random) -> float:
    """Three times as much from the period's seventh day on."""
    return 10_000 * (3 if place >= length - 24 else 1) * dice.lognormvariate(0, 0.25)


SHAPES: Mapping[str, Shape] = {
    each.__name__: each for each in (steady, growing, weekly, bursty, declining, sparse, stepping)
}


@dataclass(frozen=True, slots=True)
class BackTest:
    """Mean errors by days gone, of ours and of the line, and how often the range held."""

    ours: Mapping[int, float]
    line: Mapping[int, float]
    held: Mapping[int, float]

    @property
    def our_mean(self) -> float:
        """Over all days looked at."""
        return sum(self.ours.values()) / len(self.ours)

    @property
    def line_mean(self) -> float:
        """The straight line's."""
        return sum(self.line.values()) / len(self.line)


def back_test(shape: Shape, *, known_days: int, histories: int = 150, seed: int = 7) -> BackTest:
    """Forecast many histories of a shape, with so many days known before the period."""
    dice = Random(seed)
    ours, line, held = (dict.fromkeys(LOOKED_AT, 0.0) for _ in range(3))
    for _ in range(histories):
        first = _FIRST + timedelta(days=dice.randrange(7))
        length = known_days + DAYS
        days = [first + timedelta(days=place) for place in range(length)]
        amounts = [int(shape(place, day, length, dice)) for place, day in enumerate(days)]
        _compare(days, amounts, known_days, ours, line, held)
    for errors in (ours, line, held):
        for day in errors:
            errors[day] /= histories
    return BackTest(ours, line, held)


def _compare(
    days: Sequence[date],
    amounts: Sequence[int],
    known_days: int,
    ours: dict[int, float],
    line: dict[int, float],
    held: dict[int, float],
) -> None:
    begins = days[known_days]
    start = datetime(begins.year, begins.month, begins.day, tzinfo=UTC)
    period = Period(start, start + timedelta(days=DAYS))
    came_to = sum(amounts[known_days:]) or 1
    for gone in LOOKED_AT:
        known = dict(zip(days[: known_days + gone], amounts, strict=False))
        used = sum(amounts[known_days : known_days + gone])
        now = start + timedelta(days=gone)
        found = forecast_period(known, used, period, now, since=days[0])
        ours[gone] += abs((found.expected if found else 0) - came_to) / came_to
        line[gone] += abs(used / gone * DAYS - came_to) / came_to
        held[gone] += found is not None and found.low <= came_to <= found.high


def forecast_rows() -> list[Row]:
    """Rows for the bench's table: what was asked for, with sixty days known before."""
    rows = []
    for name in ("steady", "growing", "weekly", "bursty"):
        found = back_test(SHAPES[name], known_days=60)
        rows.append(
            Row(
                f"forecast's mean error, {name} usage",
                100 * found.our_mean,
                "%",
                baseline=f"straight line {100 * found.line_mean:.1f}%",
                ratio=f"{found.our_mean / found.line_mean:.2f}",
                target="<= 1 x",
                met=found.our_mean <= found.line_mean,
            )
        )
    return rows


def main() -> None:
    """Print errors by day of the period, ours over the line's, in percent."""
    for known_days in (60, 0):
        table = Table(
            title=f"Mean error in %, forecast / straight line; {known_days} days known before"
        )
        table.add_column("history")
        for day in LOOKED_AT:
            table.add_column(f"day {day}", justify="right")
        table.add_column("all", justify="right")
        table.add_column("range held", justify="right")
        for name, shape in SHAPES.items():
            found = back_test(shape, known_days=known_days)
            table.add_row(
                name,
                *(f"{found.ours[day]:.0%} / {found.line[day]:.0%}" for day in LOOKED_AT),
                f"{found.our_mean:.1%} / {found.line_mean:.1%}",
                f"{sum(found.held.values()) / len(found.held):.0%}",
            )
        Console(width=190).print(table)


if __name__ == "__main__":
    main()

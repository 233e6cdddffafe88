"""What a period will come to: an estimate for people, on no path of billing, so with floats.

The straight line (used so far / days so far x days) doubts nothing: a burst on the second day is
carried on for the whole period, a Monday stands for a week, and what was seen before the period
counts for nothing. This looks at up to `HISTORY_DAYS` whole days before now instead:

- each weekday has a factor, drawn towards 1 as by `_WEEKS_OF_DOUBT` ordinary week more;
- what is left after it is a level with a trend, by least squares in which a day counts half as
  much as one `_HALF_LIFE_DAYS` later; a trend counts as far as it stands out of the noise, and
  fades by the day;
- the rest of today and the days to come follow level, trend and weekday.

The range holds four of five outcomes when days vary as they did: it is what the noise of single
days and the doubt about the level add up to. `tests/bench/forecasts.py` holds it against the
straight line on histories of several shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from math import sqrt

from meterline.domain.periods import Period

HISTORY_DAYS = 56
_WEEKS_OF_DOUBT = 1.0
_HALF_LIFE_DAYS = 21.0
_TREND_PROOF = 2.0
"""A slope of less than so many standard errors is taken for noise."""
_FADE = 0.97
_Z_80 = 1.2816
"""Half the width of a normal distribution's middle 80%, in standard deviations."""
_WEEKDAY_DAYS = 14
"""Two of each weekday: with fewer there are no factors."""
_TREND_DAYS = 21
"""With fewer there is no trend, only a mean."""
_FEW_DAYS = 5
"""With fewer, days are taken to vary at least half as much as they hold."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """A period's quantity at its end, in sub-units: four of five times from `low` to `high`."""

    low: int
    expected: int
    high: int

    @property
    def is_settled(self) -> bool:
        """Whether low and high are so close that one number says it: within 5%."""
        return self.high - self.low <= 0.05 * self.expected


def forecast_period(
    days: Mapping[date, int],
    used: int,
    period: Period,
    now: datetime,
    *,
    since: date | None = None,
) -> Forecast | None:
    """Forecast what `period` will hold; None as long as there is nothing to go by.

    `days` are sub-units by UTC day, today included, for as long before now as is known; a day that
    is not there had none. `used` is what the period holds already, and `since` the customer's
    first day, where it is known: days without usage before the first use count from there.
    """
    now = min(max(now.astimezone(UTC), period.start), period.end)
    today = now.date()
    midnight = datetime(today.year, today.month, today.day, tzinfo=UTC)
    past = _list_past(days, today, since)
    gone = (now - midnight) / timedelta(days=1)
    so_far = days.get(today, 0)
    if not past:
        if not so_far:
            return None
        # Nothing but today: it counts for as much of a day as is gone of it.
        past = [so_far / max(gone, 0.25)]
    factors = _weigh_weekdays(past, today)
    model = _fit(
        past,
        [
            factors[(today - timedelta(days=len(past) - place)).weekday()]
            for place in range(len(past))
        ],
    )
    to_come = weight = drift = 0.0
    day, ahead = midnight, 0
    while day < period.end:
        end = min(day + timedelta(days=1), period.end)
        part = (end - max(day, now)) / timedelta(days=1)
        if part > 0:
            factor = factors[day.weekday()] * part
            to_come += factor * model.at(ahead)
            weight += factor
            drift += factor * model.steps(ahead)
        day, ahead = day + timedelta(days=1), ahead + 1
    # Days vary by themselves, and all of them together with the level and with the trend.
    spread = _Z_80 * sqrt(
        weight * model.noise**2 + (weight * model.doubt) ** 2 + (drift * model.slope_doubt) ** 2
    )
    expected = used + max(0.0, to_come)
    return Forecast(
        max(used, round(expected - spread)),
        max(used, round(expected)),
        max(used, round(expected + spread)),
    )


@dataclass(frozen=True, slots=True)
class _Model:
    level: float
    slope: float
    noise: float
    doubt: float
    slope_doubt: float

    def at(self, ahead: int) -> float:
        """The level `ahead` days from today."""
        return max(0.0, self.level + self.slope * self.steps(ahead))

    @staticmethod
    def steps(ahead: int) -> float:
        """How many days' worth of trend lie that far ahead: it fades on the way."""
        return (1 - _FADE ** (ahead + 1)) / (1 - _FADE)


def _list_past(days: Mapping[date, int], today: date, since: date | None) -> list[float]:
    """The whole days before today, oldest first, from the first one that saw usage or `since`."""
    known = [day for day, amount in days.items() if amount and day < today]
    if not known:
        return []
    first = min(known) if since is None else min(*known, since)
    length = min((today - first).days, HISTORY_DAYS)
    return [float(days.get(today - timedelta(days=back), 0)) for back in range(length, 0, -1)]


def _weigh_weekdays(past: Sequence[float], today: date) -> list[float]:
    """A factor for each weekday, Monday first. Outliers are cut off, so that none makes one."""
    if len(past) < _WEEKDAY_DAYS:
        return [1.0] * 7
    ordered = sorted(past)
    cut = 3 * ordered[len(ordered) // 2] or ordered[-1]
    sums, counts = [0.0] * 7, [0] * 7
    for place, amount in enumerate(past):
        weekday = (today - timedelta(days=len(past) - place)).weekday()
        sums[weekday] += min(amount, cut)
        counts[weekday] += 1
    mean = sum(sums) / len(past)
    if not mean:
        return [1.0] * 7
    raw = [
        (total + _WEEKS_OF_DOUBT * mean) / ((count + _WEEKS_OF_DOUBT) * mean)
        for total, count in zip(sums, counts, strict=True)
    ]
    return [factor * 7 / sum(raw) for factor in raw]


def _fit(past: Sequence[float], factors: Sequence[float]) -> _Model:
    """A weighted line through the amounts without their factors, its slope kept as far as it is
    certain.

    A day weighs as much as its factor, so that the levels and the factors make the amounts again:
    else quiet days, divided by little, would speak as loud as busy ones.
    """
    count = len(past)
    amounts = [amount / factor for amount, factor in zip(past, factors, strict=True)]
    places = [float(place) for place in range(-count, 0)]
    weights = [
        factor * 0.5 ** (-place / _HALF_LIFE_DAYS)
        for place, factor in zip(places, factors, strict=True)
    ]
    total = sum(weights)
    mean = _average(weights, amounts)
    middle = _average(weights, places)
    effective = total**2 / sum(w * w for w in weights)
    slope = error = 0.0
    if count >= _TREND_DAYS:
        across = _average(weights, [(x - middle) ** 2 for x in places])
        together = [(x - middle) * (y - mean) for x, y in zip(places, amounts, strict=True)]
        slope = _average(weights, together) / across
        error = _spread(weights, places, amounts, middle, mean, slope) / sqrt(across * effective)
        # As James and Stein draw a mean to zero: the less, the further it stands out.
        slope *= max(0.0, 1 - (_TREND_PROOF * error / slope) ** 2) if slope else 0.0
    noise = _spread(weights, places, amounts, middle, mean, slope)
    if count < _FEW_DAYS:
        noise = max(noise, mean / 2)
    return _Model(
        mean + slope * (-1 - middle),
        slope,
        noise,
        noise / sqrt(effective),
        error,
    )


def _spread(
    weights: Sequence[float],
    places: Sequence[float],
    amounts: Sequence[float],
    middle: float,
    mean: float,
    slope: float,
) -> float:
    """How far amounts lie from the line, as a standard deviation."""
    squares = [(y - mean - slope * (x - middle)) ** 2 for x, y in zip(places, amounts, strict=True)]
    return sqrt(_average(weights, squares))


def _average(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)

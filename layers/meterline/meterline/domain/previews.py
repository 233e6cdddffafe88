"""Previews: what an action would cost before it is done, from an estimate or from its past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from meterline.domain.meters import Meter
from meterline.domain.pricing import Plan, price_usage, total_minor

MIN_PAST = 5
"""Past runs from which a median says something."""


class Basis(StrEnum):
    """Where an estimate comes from."""

    ESTIMATE = "estimate"
    HISTORY = "history"


@dataclass(frozen=True, slots=True)
class PastRuns:
    """What an action used before, in sub-units; p95 by nearest rank."""

    runs: int
    median: int
    p95: int


@dataclass(frozen=True, slots=True)
class Cost:
    """A quantity and what it adds to the period's bill, in minor units."""

    quantity: Decimal
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What an action would bring. `likely` is the estimate or the median, `high` the p95."""

    basis: Basis
    likely: Cost
    high: Cost
    runs: int
    used: Decimal
    """Used and held in the period."""
    included_left: Decimal
    limit_left: Decimal | None
    crosses_quota: bool
    """Whether the likely quantity goes from within the included quota beyond it."""
    crosses_limit: bool
    """Whether the likely quantity would be refused."""


def summarize_runs(quantities: Sequence[int]) -> PastRuns | None:
    """Median and 95th percentile of past runs; None where there are too few."""
    if len(quantities) < MIN_PAST:
        return None
    ordered = sorted(quantities)
    return PastRuns(
        len(ordered),
        ordered[(len(ordered) - 1) // 2],
        ordered[-(-95 * len(ordered) // 100) - 1],
    )


def preview_use(
    likely: int,
    high: int,
    *,
    basis: Basis,
    runs: int,
    committed: int,
    stop: int | None,
    plan: Plan,
    meter: Meter,
    is_free: bool,
) -> Preview:
    """What using so many sub-units would bring, on top of what is used and held."""
    included = meter.to_sub_units(plan.included)
    return Preview(
        basis,
        _cost(likely, committed, plan, meter, is_free=is_free),
        _cost(high, committed, plan, meter, is_free=is_free),
        runs,
        meter.from_sub_units(committed),
        meter.from_sub_units(max(0, included - committed)),
        None if stop is None else meter.from_sub_units(max(0, stop - committed)),
        committed <= included < committed + likely,
        stop is not None and committed + likely > stop,
    )


def _cost(sub_units: int, committed: int, plan: Plan, meter: Meter, *, is_free: bool) -> Cost:
    """What it adds: the difference of two whole bills, so that rounding is the invoice's own."""
    if is_free:
        return Cost(meter.from_sub_units(sub_units), 0)
    before, after = (
        total_minor(price_usage(meter.from_sub_units(max(0, each)), plan))
        for each in (committed, committed + sub_units)
    )
    return Cost(meter.from_sub_units(sub_units), after - before)

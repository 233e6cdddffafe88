"""Previews: what is said beforehand is what the bill becomes."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from meterline.catalog import load_meters, load_plans
from meterline.domain.previews import Basis, Preview, preview_use, summarize_runs
from meterline.domain.pricing import price_usage, total_minor

CREDITS = load_meters()["credits"]
PRO = load_plans()["pro"]


def preview(
    likely: int, committed: int, stop: int | None = None, *, is_free: bool = False
) -> Preview:
    return preview_use(
        likely,
        likely,
        basis=Basis.ESTIMATE,
        runs=0,
        committed=committed,
        stop=stop,
        plan=PRO,
        meter=CREDITS,
        is_free=is_free,
    )


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_the_amount_is_what_the_bill_grows_by(likely: int, committed: int) -> None:
    before, after = (
        total_minor(price_usage(CREDITS.from_sub_units(each), PRO))
        for each in (committed, committed + likely)
    )
    assert preview(likely, committed).likely.amount_minor == after - before


def test_within_the_quota_it_costs_nothing_and_beyond_it_the_overage() -> None:
    assert preview(50_000, 900_000).likely.amount_minor == 0
    crossing = preview(300_000, 900_000)
    assert (crossing.likely.amount_minor, crossing.crosses_quota) == (100, True)
    assert crossing.included_left == 100
    assert preview(300_000, 1_100_000).crosses_quota is False


def test_it_says_when_a_limit_would_refuse_it() -> None:
    assert preview(101, 900, 1_000).crosses_limit
    left = preview(100, 900, 1_000)
    assert (left.crosses_limit, left.limit_left) == (False, Decimal("0.1"))
    assert preview(1, 2_000, 1_000).limit_left == 0


def test_in_a_trial_nothing_is_to_be_paid() -> None:
    assert preview(10**9, 10**9, is_free=True).likely.amount_minor == 0


def test_few_runs_say_nothing_and_many_their_median_and_p95() -> None:
    assert summarize_runs([1, 2, 3, 4]) is None
    runs = summarize_runs(range(1, 101))
    assert runs is not None
    assert (runs.runs, runs.median, runs.p95) == (100, 50, 95)

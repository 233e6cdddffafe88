"""Price: tables by hand, and what must hold for every quantity and every plan."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.domain.pricing import (
    LineKind,
    NegativeQuantityError,
    Plan,
    Tier,
    price,
    price_usage,
    round_line,
    split_by_tier,
    total_minor,
)


def _plan(*tiers: Tier, base_fee_minor: int = 0) -> Plan:
    return Plan("p", "P", "usd", base_fee_minor, "credits", tiers)


PRO = _plan(Tier(Decimal(1000), Decimal(0)), Tier(None, Decimal("0.5")), base_fee_minor=2900)


@pytest.mark.parametrize(
    ("quantity", "total"),
    [
        ("0", 2900),
        ("999.999", 2900),
        ("1000", 2900),
        ("1000.998", 2900),
        ("1000.999", 2900),
        ("1001", 2901),
        ("1002", 2901),
        ("1501", 3151),
        ("2000", 3400),
        ("1000000", 2900 + 499_500),
    ],
)
def test_the_pro_plan_charges_29_dollars_and_5_per_further_thousand(
    quantity: str, total: int
) -> None:
    assert total_minor(price(Decimal(quantity), PRO)) == total


@pytest.mark.parametrize(
    ("exact", "rounded"),
    [
        ("0", 0),
        ("0.4999999999999999999999999999", 0),
        ("0.5", 1),
        ("1.5", 2),
        ("2.5", 3),
        ("111.6", 112),
        ("999999999999999.5", 1_000_000_000_000_000),
    ],
)
def test_a_line_is_rounded_half_up(exact: str, rounded: int) -> None:
    assert round_line(Decimal(exact)) == rounded


def test_each_line_is_rounded_by_itself() -> None:
    plan = _plan(
        Tier(Decimal(3), Decimal("0.5")),
        Tier(Decimal(6), Decimal("0.5")),
        Tier(None, Decimal("3.6")),
    )
    lines = price_usage(Decimal(37), plan)
    assert [line.amount_minor for line in lines] == [2, 2, 112]
    assert sum(line.exact_minor for line in lines) == Decimal("114.6")


def test_flat_amounts_are_lines_of_their_own_and_the_first_tier_is_always_reached() -> None:
    plan = _plan(Tier(Decimal(10), Decimal(1), 300), Tier(None, Decimal(2), 700))
    assert [(line.kind, line.amount_minor) for line in price_usage(Decimal(0), plan)] == [
        (LineKind.TIER, 0),
        (LineKind.TIER_FLAT, 300),
    ]
    assert total_minor(price_usage(Decimal(10), plan)) == 310
    assert total_minor(price_usage(Decimal(11), plan)) == 310 + 2 + 700


def test_a_negative_quantity_has_no_price() -> None:
    with pytest.raises(NegativeQuantityError):
        price_usage(Decimal(-1), PRO)


def test_nothing_is_lost_at_fifteen_digits_and_twelve_decimals() -> None:
    plan = _plan(Tier(None, Decimal("0.000000000001")))
    (line,) = price_usage(Decimal("999999999999999"), plan)
    assert line.exact_minor == Decimal("999.999999999999")


quantities = st.decimals(0, 10**12, places=3)
rates = st.decimals(0, 1000, places=9)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    ends = sorted(draw(st.sets(st.decimals(Decimal("0.001"), 10**9, places=3), max_size=4)))
    flats = st.integers(0, 100_000)
    tiers = [Tier(end, draw(rates), draw(flats)) for end in ends]
    return _plan(*tiers, Tier(None, draw(rates), draw(flats)))


@given(quantities, plans())
def test_the_parts_of_the_tiers_add_up_to_the_quantity(quantity: Decimal, plan: Plan) -> None:
    parts = split_by_tier(quantity, plan.tiers)
    assert sum(map(Fraction, parts)) == Fraction(quantity)
    assert all(part > 0 for part in parts[1:])


@given(quantities, plans())
def test_before_rounding_the_tiers_equal_the_sum_of_their_parts(
    quantity: Decimal, plan: Plan
) -> None:
    expected = Fraction(0)
    below = Fraction(0)
    for index, tier in enumerate(plan.tiers):
        if index and Fraction(quantity) <= below:
            break
        end = Fraction(quantity) if tier.up_to is None else Fraction(tier.up_to)
        expected += (min(Fraction(quantity), end) - below) * Fraction(tier.unit_amount_minor)
        expected += tier.flat_amount_minor
        below = end
    lines = price_usage(quantity, plan)
    assert sum(Fraction(line.exact_minor) for line in lines) == expected


@given(quantities, quantities, plans())
def test_more_usage_never_costs_less(one: Decimal, other: Decimal, plan: Plan) -> None:
    low, high = sorted((one, other))
    assert total_minor(price(low, plan)) <= total_minor(price(high, plan))


@given(quantities, plans())
def test_rounding_moves_a_line_by_half_a_unit_at_most(quantity: Decimal, plan: Plan) -> None:
    for line in price(quantity, plan):
        off = Fraction(line.amount_minor) - Fraction(line.exact_minor)
        assert -Fraction(1, 2) < off <= Fraction(1, 2)


@given(quantities)
def test_what_is_included_costs_nothing(quantity: Decimal) -> None:
    charged = total_minor(price_usage(quantity, PRO))
    assert (charged == 0) == (quantity < PRO.included + 1)

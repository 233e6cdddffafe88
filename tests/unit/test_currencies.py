"""Currencies: how amounts are written, and to what they are rounded."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.catalog import CATALOG_DIR, InvalidCatalogError, load_meters, load_plans
from meterline.catalog import read_plans_text as read_plans
from meterline.domain.currencies import count_decimals, smallest_step_minor, to_main_unit
from meterline.domain.pricing import price, price_usage, round_line, total_minor

CURRENCIES = st.sampled_from(["usd", "eur", "jpy", "vnd", "ugx", "isk", "kwd", "tnd", "bhd"])
AMOUNTS = st.decimals(0, 10**12, places=9)


@pytest.mark.parametrize(
    ("currency", "decimals", "step", "amount_minor", "main"),
    [
        ("usd", 2, 1, 2900, "29.00"),
        ("jpy", 0, 1, 2900, "2900"),
        ("ugx", 2, 100, 290_000, "2900.00"),
        ("isk", 2, 100, 100, "1.00"),
        ("kwd", 3, 10, 2_910, "2.910"),
        ("huf", 2, 1, 5, "0.05"),
    ],
)
def test_a_currency_has_its_decimals_and_its_smallest_amount(
    currency: str, decimals: int, step: int, amount_minor: int, main: str
) -> None:
    assert count_decimals(currency) == decimals
    assert smallest_step_minor(currency) == step
    assert str(to_main_unit(amount_minor, currency)) == main


@pytest.mark.parametrize(
    ("exact", "step", "rounded"),
    [
        ("49.999", 100, 0),
        ("50", 100, 100),
        ("149.99", 100, 100),
        ("150", 100, 200),
        ("5114.999", 10, 5110),
        ("5115", 10, 5120),
        ("111.6", 1, 112),
    ],
)
def test_a_line_is_rounded_half_up_to_what_can_be_charged(
    exact: str, step: int, rounded: int
) -> None:
    assert round_line(Decimal(exact), step) == rounded


@given(AMOUNTS, CURRENCIES)
def test_rounding_moves_a_line_by_half_a_step_at_most(exact: Decimal, currency: str) -> None:
    step = smallest_step_minor(currency)
    rounded = round_line(exact, step)
    assert rounded % step == 0
    assert abs(rounded - exact) * 2 <= step


@given(AMOUNTS, AMOUNTS, CURRENCIES)
def test_rounding_keeps_the_order(one: Decimal, other: Decimal, currency: str) -> None:
    low, high = sorted((one, other))
    step = smallest_step_minor(currency)
    assert round_line(low, step) <= round_line(high, step)


@given(st.integers(0, 10**12), st.integers(0, 10**9), CURRENCIES)
def test_more_usage_never_costs_less_in_any_currency(
    sub_units: int, more: int, currency: str
) -> None:
    plan = replace(load_plans()["pro"], currency=currency)
    less_minor, more_minor = (
        total_minor(price(Decimal(each) / 1000, plan)) for each in (sub_units, sub_units + more)
    )
    assert less_minor <= more_minor


@given(st.integers(0, 10**12), CURRENCIES)
def test_before_rounding_the_tiers_hold_all_of_the_quantity(sub_units: int, currency: str) -> None:
    plan = replace(load_plans()["pro"], currency=currency)
    quantity = Decimal(sub_units) / 1000
    lines = price_usage(quantity, plan)
    assert sum(line.quantity for line in lines) == quantity
    assert sum(line.exact_minor for line in lines) == max(quantity - 1000, Decimal(0)) * Decimal(
        "0.5"
    )


def test_a_fee_that_nobody_can_be_charged_is_refused() -> None:
    text = Path(CATALOG_DIR / "plans.toml").read_text("utf-8")
    for currency, fee in (("ugx", 2950), ("isk", 1), ("kwd", 2905)):
        wrong = text.replace('"usd"', f'"{currency}"').replace("2900", str(fee))
        with pytest.raises(InvalidCatalogError, match="multiples"):
            read_plans(wrong, load_meters())
    fine = text.replace('"usd"', '"ugx"')
    assert read_plans(fine, load_meters())["pro"].base_fee_minor == 2900

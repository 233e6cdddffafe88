"""Quantities: whole numbers of sub-units, exact."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.catalog import load_meters
from meterline.domain.quantities import MAX_SUB_UNITS, parse_quantity, round_to_sub_units
from meterline.errors import RejectedEventError

CREDITS = load_meters()["credits"]
TOKENS = load_meters()["tokens"]
POWERS = st.integers(0, 9).map(lambda power: replace(CREDITS, sub_units=10**power))


def refuse(reported: str | int) -> str:
    with pytest.raises(RejectedEventError) as refused:
        parse_quantity(reported, CREDITS)
    return refused.value.code


@pytest.mark.parametrize(
    ("reported", "quantity"),
    [
        ("0", "0"),
        (0, "0"),
        (12, "12"),
        ("12.5", "12.5"),
        ("0.001", "0.001"),
        ("0012.500", "12.5"),
        ("0" * 40 + ".5", None),
        ("1." + "0" * 40, "1"),
        ("999999999999.999", "999999999999.999"),
    ],
)
def test_plain_decimal_notation_is_read_exactly(reported: str | int, quantity: str | None) -> None:
    expected = Decimal(quantity) if quantity is not None else Decimal("0.5")
    assert parse_quantity(reported, CREDITS) == expected


@pytest.mark.parametrize(
    "reported",
    [
        *("", "-1", "-0", "+1", "1e3", "1E3", ".5", "5.", "1,5", " 1", "1\n", "1_000", "1\0"),
        *("NaN", "Infinity", "0x1", "twelve", "\u0661", "\uff11", "1" * 41, "1." + "1" * 41),
    ],
)
def test_any_other_notation_is_refused(reported: str) -> None:
    assert refuse(reported) == "invalid_quantity"


@pytest.mark.parametrize(
    "reported", ["0.0001", "1.0005", "0." + "0" * 39 + "1", "1." + "0" * 39 + "1"]
)
def test_what_is_finer_than_a_sub_unit_is_refused_however_fine(reported: str) -> None:
    assert refuse(reported) == "quantity_too_fine"


@pytest.mark.parametrize("reported", ["1000000000000", 10**12, "1" + "0" * 39, 10**39, 7 * 10**30])
def test_what_no_billing_layer_takes_at_once_is_refused(reported: str | int) -> None:
    assert refuse(reported) == "quantity_too_large"


@given(st.integers(0, MAX_SUB_UNITS), POWERS)
def test_every_whole_number_of_sub_units_is_read_back(count: int, meter: object) -> None:
    assert isinstance(meter, type(CREDITS))
    quantity = parse_quantity(format(meter.from_sub_units(count), "f"), meter)
    assert meter.to_sub_units(quantity) == count


@given(
    st.decimals(0, 10**11, allow_nan=False, allow_infinity=False, places=20),
    POWERS,
)
def test_a_computed_quantity_is_rounded_once_half_up(exact: Decimal, meter: object) -> None:
    assert isinstance(meter, type(CREDITS))
    scaled = Fraction(exact) * meter.sub_units
    expected = floor(scaled + Fraction(1, 2))
    if expected > MAX_SUB_UNITS:
        with pytest.raises(RejectedEventError):
            round_to_sub_units(exact, meter)
    else:
        assert Fraction(round_to_sub_units(exact, meter)) * meter.sub_units == expected


@pytest.mark.parametrize(
    ("exact", "rounded"),
    [("0.0005", "0.001"), ("0.00049999", "0"), ("1.0015", "1.002"), ("2.0025", "2.003")],
)
def test_a_tie_goes_up(exact: str, rounded: str) -> None:
    assert round_to_sub_units(Decimal(exact), CREDITS) == Decimal(rounded)


def test_a_meter_without_sub_units_takes_whole_numbers() -> None:
    assert parse_quantity("7.0", TOKENS) == 7
    with pytest.raises(RejectedEventError) as refused:
        parse_quantity("7.5", TOKENS)
    assert refused.value.code == "quantity_too_fine"
    assert "multiple of 1." in str(refused.value)

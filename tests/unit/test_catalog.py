"""The catalog as checked in, and every mistake that a file can hold."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from meterline.catalog import (
    InvalidCatalogError,
    load_meters,
    load_plans,
    read_meters,
    read_plans,
)
from meterline.domain.meters import EmissionMode, FinerThanSubUnitError
from meterline.domain.pricing import UnknownCurrencyError

METER = """
[credits]
display_name = "Credits"
unit = "credit"
sub_units = 1000
emission = "event"
event_name = "credits"
"""
PLAN = """
[pro]
name = "Pro"
currency = "usd"
base_fee_minor = 2900
meter = "credits"

[[pro.tiers]]
up_to = 1000
unit_amount_minor = 0

[[pro.tiers]]
unit_amount_minor = 0.5
"""
EURO = """
[pro.currency_options.eur]
base_fee_minor = 2700
[[pro.currency_options.eur.tiers]]
up_to = 1000
unit_amount_minor = 0
[[pro.currency_options.eur.tiers]]
unit_amount_minor = 0.45
"""


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_checked_in_catalog_is_the_plan_of_the_pricing_page() -> None:
    meters, plans = load_meters(), load_plans()
    assert set(meters) == {"credits", "tokens", "outcomes"}
    assert meters["credits"].emission is EmissionMode.EVENT
    assert meters["tokens"].emission is EmissionMode.HOURLY
    pro = plans["pro"]
    assert (pro.base_fee_minor, pro.currency, pro.included) == (2900, "usd", Decimal(1000))
    assert pro.tiers[-1].unit_amount_minor == Decimal("0.5")


def test_amounts_are_exact_decimals_and_never_floats(tmp_path: Path) -> None:
    meters = read_meters(_write(tmp_path / "meters.toml", METER))
    text = PLAN.replace("= 0.5", "= 0.1")
    plan = read_plans(_write(tmp_path / "plans.toml", text), meters)["pro"]
    assert plan.tiers[1].unit_amount_minor == Decimal("0.1")


@pytest.mark.parametrize(
    ("old", "new", "where", "what"),
    [
        ('unit = "credit"', "", "meters.credits.unit", "missing"),
        ('unit = "credit"', "unit = 5", "meters.credits.unit", "must be str"),
        ('unit = "credit"', 'unit = ""', "meters.credits.unit", "1 to 40"),
        ("sub_units = 1000", "sub_units = 300", "sub_units", "power of ten"),
        ("sub_units = 1000", "sub_units = true", "sub_units", "must be int"),
        ("sub_units = 1000", "sub_units = 0", "sub_units", "power of ten"),
        ('"event"', '"daily"', "emission", "event, hourly"),
        ("[credits]", "[Credits]", "meters.Credits", "lower case"),
        ("sub_units", "colour = 1\nsub_units", "meters.credits", "unknown key colour"),
        ('event_name = "credits"', f'event_name = "{"x" * 101}"', "event_name", "1 to 100"),
        ("[credits]", "credits = 5\n[other]", "meters.credits", "is not a table"),
        ("[credits]", "[credits", "meters.toml", ""),
    ],
)
def test_a_mistake_in_the_meters_file_is_named_with_its_place(
    tmp_path: Path, old: str, new: str, where: str, what: str
) -> None:
    assert old in METER
    path = _write(tmp_path / "meters.toml", METER.replace(old, new, 1))
    with pytest.raises(InvalidCatalogError) as caught:
        read_meters(path)
    assert where in str(caught.value)
    assert what in str(caught.value)


def test_two_meters_cannot_share_an_event_name(tmp_path: Path) -> None:
    both = METER + METER.replace("[credits]", "[tokens]")
    with pytest.raises(InvalidCatalogError, match="already used by credits"):
        read_meters(_write(tmp_path / "meters.toml", both))


@pytest.mark.parametrize(
    ("old", "new", "where", "what"),
    [
        ('meter = "credits"', 'meter = "gold"', "plans.pro.meter", "no meter 'gold'"),
        ('"usd"', '"USD"', "plans.pro.currency", "lower case ISO 4217"),
        ("= 2900", "= -1", "base_fee_minor", "negative"),
        ("= 2900", "= 29.5", "base_fee_minor", "must be int"),
        ("up_to = 1000\n", "", "tiers[0].up_to", "missing"),
        ("up_to = 1000", "up_to = 0", "tiers[0].up_to", "must be above 0"),
        ("up_to = 1000", "up_to = 0.0001", "tiers[0].up_to", "finer than 1/1000"),
        ("= 0.5", "= 0.5\nup_to = 2000", "tiers[1].up_to", "the last tier has no end"),
        ("= 0.5", "= -0.5", "tiers[1].unit_amount_minor", "negative"),
        ("= 0.5", '= "0.5"', "tiers[1].unit_amount_minor", "must be a number"),
        ("= 0.5", "= nan", "tiers[1].unit_amount_minor", "finite"),
        ("= 0.5", "= true", "tiers[1].unit_amount_minor", "must be a number"),
        ("= 0.5", "= 0.0000000001", "tiers[1].unit_amount_minor", "more than 12 decimals"),
        ("= 0.5", "= 0.5\nflat_amount_minor = 1.5", "flat_amount_minor", "must be int"),
        ("= 0.5", "= 0.5\nper = 1000", "tiers[1]", "unknown key per"),
        ('name = "Pro"', 'name = "Pro"\ninterval = "fortnight"', "interval", "must be one of"),
        ('name = "Pro"', 'name = "Pro"\nblock_overage = 1', "block_overage", "must be bool"),
        ('name = "Pro"', 'name = "Pro"\nblock_overage = true', "block_overage", "must be free"),
    ],
)
def test_a_mistake_in_the_plans_file_is_named_with_its_place(
    tmp_path: Path, old: str, new: str, where: str, what: str
) -> None:
    assert old in PLAN
    meters = read_meters(_write(tmp_path / "meters.toml", METER))
    with pytest.raises(InvalidCatalogError) as caught:
        read_plans(_write(tmp_path / "plans.toml", PLAN.replace(old, new, 1)), meters)
    assert where in str(caught.value)
    assert what in str(caught.value)


def test_a_plan_that_blocks_overage_needs_a_quota_and_is_free_beyond_it(tmp_path: Path) -> None:
    meters = read_meters(_write(tmp_path / "meters.toml", METER))
    free = PLAN.replace("= 0.5", "= 0").replace('"Pro"', '"Pro"\nblock_overage = true')
    plan = read_plans(_write(tmp_path / "plans.toml", free), meters)["pro"]
    assert (plan.block_overage, plan.included) == (True, Decimal(1000))
    endless = free.replace("[[pro.tiers]]\nup_to = 1000\nunit_amount_minor = 0\n", "")
    with pytest.raises(InvalidCatalogError, match="needs an included quota"):
        read_plans(_write(tmp_path / "plans.toml", endless), meters)
    with pytest.raises(InvalidCatalogError, match="must be free"):
        read_plans(_write(tmp_path / "plans.toml", free + EURO), meters)


def test_a_plan_without_tiers_is_refused(tmp_path: Path) -> None:
    meters = read_meters(_write(tmp_path / "meters.toml", METER))
    text = PLAN.split("[[")[0] + "tiers = []\n"
    with pytest.raises(InvalidCatalogError, match="at least one tier"):
        read_plans(_write(tmp_path / "plans.toml", text), meters)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("options.eur", "options.usd", "the plan's own currency"),
        ("options.eur", "options.Euro", "ISO 4217"),
        ("up_to = 1000", "up_to = 900", "must end where the plan's own tiers end"),
    ],
)
def test_other_currencies_have_the_same_tiers(
    tmp_path: Path, old: str, new: str, what: str
) -> None:
    meters = read_meters(_write(tmp_path / "meters.toml", METER))
    text = PLAN + EURO.replace(old, new)
    with pytest.raises(InvalidCatalogError, match=what):
        read_plans(_write(tmp_path / "plans.toml", text), meters)


def test_a_plan_is_read_in_each_of_its_currencies(tmp_path: Path) -> None:
    meters = read_meters(_write(tmp_path / "meters.toml", METER))
    plan = read_plans(_write(tmp_path / "plans.toml", PLAN + EURO), meters)["pro"]
    euro = plan.in_currency("eur")
    assert (euro.currency, euro.base_fee_minor) == ("eur", 2700)
    assert euro.tiers[1].unit_amount_minor == Decimal("0.45")
    assert plan.in_currency("usd") is plan
    with pytest.raises(UnknownCurrencyError):
        plan.in_currency("jpy")


def test_quantities_become_sub_units_exactly_or_not_at_all() -> None:
    meter = load_meters()["credits"]
    assert meter.to_sub_units(Decimal("1.501")) == 1501
    assert meter.from_sub_units(1501) == Decimal("1.501")
    with pytest.raises(FinerThanSubUnitError):
        meter.to_sub_units(Decimal("1.5011"))

"""Limits: what may be set, and the quantity that it comes to."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.catalog import load_meters, load_plans
from meterline.domain.limits import (
    InvalidLimitError,
    Limit,
    Limits,
    MoneyLimit,
    QuantityLimit,
    StopCause,
    check_limits,
    find_stop,
    most_quantity,
    stop_quantity,
)
from meterline.domain.pricing import CurrencyOption, Plan, Tier, price, total_minor
from meterline.schemas.limits import LimitsInput, read_form, write_limits

PRO, FREE = load_plans()["pro"], load_plans()["free"]
CREDITS = load_meters()["credits"]
YEN = replace(
    PRO,
    currency="jpy",
    tiers=(Tier(Decimal(1000), Decimal(0)), Tier(None, Decimal("0.7"), flat_amount_minor=100)),
)
FOREVER_FREE = replace(PRO, tiers=(Tier(None, Decimal(0)),))


def money(amount_minor: int, currency: str = "usd") -> MoneyLimit:
    return MoneyLimit(amount_minor, currency)


def test_forty_dollars_are_eleven_beyond_the_fee() -> None:
    # 2,200.999 credits cost 1,100.4995 cents, which rounds down; a thousandth more rounds up.
    assert most_quantity(money(4000), PRO, CREDITS) == Decimal("3200.999")


@given(st.integers(2900, 10**9), st.sampled_from([PRO, YEN]))
def test_the_quantity_of_an_amount_is_the_largest_that_it_pays_for(
    amount_minor: int, plan: Plan
) -> None:
    most = most_quantity(money(amount_minor, plan.currency), plan, CREDITS)
    assert total_minor(price(most, plan)) <= amount_minor
    assert total_minor(price(most + Decimal("0.001"), plan)) > amount_minor


def test_a_limit_keeps_its_own_currency_when_the_subscription_is_billed_in_another() -> None:
    in_both = replace(PRO, currency_options={"jpy": CurrencyOption(YEN.base_fee_minor, YEN.tiers)})
    # 5,000 cents are not 5,000 yen.
    limit = money(5000)
    billed_in_yen = in_both.in_currency("jpy")
    assert most_quantity(limit, billed_in_yen, CREDITS) == most_quantity(limit, PRO, CREDITS)
    assert most_quantity(money(5000, "jpy"), in_both, CREDITS) == most_quantity(
        money(5000, "jpy"), YEN, CREDITS
    )
    # Back again it is the plan that it was.
    assert billed_in_yen.in_currency("usd") == in_both


def test_of_a_currency_that_the_plan_has_lost_the_number_is_left() -> None:
    assert most_quantity(money(5000, "eur"), PRO, CREDITS) == most_quantity(
        money(5000), PRO, CREDITS
    )


def test_an_amount_that_nothing_reaches_is_every_quantity_there_is() -> None:
    assert most_quantity(money(2900), FOREVER_FREE, CREDITS) == Decimal(10**12) - Decimal("0.001")


@pytest.mark.parametrize(
    ("limits", "stop"),
    [
        (Limits(), None),
        (Limits(stop_at=QuantityLimit(Decimal(5000))), Decimal(5000)),
        (Limits(stop_at=money(4000)), Decimal("3200.999")),
        (Limits(block_overage=True), Decimal(1000)),
        (Limits(stop_at=QuantityLimit(Decimal(5000)), block_overage=True), Decimal(1000)),
        (Limits(stop_at=QuantityLimit(Decimal(7)), block_overage=True), Decimal(7)),
    ],
)
def test_what_stops_is_the_least_of_what_was_set(limits: Limits, stop: Decimal | None) -> None:
    assert stop_quantity(limits, PRO, CREDITS) == stop


@pytest.mark.parametrize(
    ("limits", "stop"),
    [
        (Limits(), 100),
        (Limits(block_overage=True), 100),
        (Limits(stop_at=QuantityLimit(Decimal(5000))), 100),
        (Limits(stop_at=QuantityLimit(Decimal(7))), 7),
    ],
)
def test_the_free_plan_stops_at_its_quota_whatever_was_set(limits: Limits, stop: int) -> None:
    assert stop_quantity(limits, FREE, CREDITS) == stop


@pytest.mark.parametrize(
    ("plan", "limits", "cause"),
    [
        (PRO, Limits(), None),
        (PRO, Limits(stop_at=QuantityLimit(Decimal(5000))), StopCause.HARD_LIMIT),
        (PRO, Limits(block_overage=True), StopCause.OVERAGE_BLOCKED),
        (
            PRO,
            Limits(stop_at=QuantityLimit(Decimal(5000)), block_overage=True),
            StopCause.OVERAGE_BLOCKED,
        ),
        (PRO, Limits(stop_at=QuantityLimit(Decimal(7)), block_overage=True), StopCause.HARD_LIMIT),
        (FREE, Limits(), StopCause.PLAN_QUOTA),
        (FREE, Limits(block_overage=True), StopCause.PLAN_QUOTA),
        (FREE, Limits(stop_at=QuantityLimit(Decimal(5000))), StopCause.PLAN_QUOTA),
        (FREE, Limits(stop_at=QuantityLimit(Decimal(7))), StopCause.HARD_LIMIT),
    ],
)
def test_what_stops_first_is_known(plan: Plan, limits: Limits, cause: StopCause | None) -> None:
    stop = find_stop(limits, plan, CREDITS)
    assert (stop.cause if stop is not None else None) == cause


@pytest.mark.parametrize("used", ["0", "100", "100.001", "1000000"])
def test_the_free_plan_never_charges(used: str) -> None:
    assert total_minor(price(Decimal(used), FREE)) == 0


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        (money(4000, "eur"), "wrong_currency"),
        (money(0), "limit_out_of_range"),
        (money(10**12 + 1), "limit_out_of_range"),
        (money(2899), "limit_below_base_fee"),
        (QuantityLimit(Decimal("0.0001")), "quantity_too_fine"),
        (QuantityLimit(Decimal(f"5.{'0' * 39}1")), "quantity_too_fine"),
        (QuantityLimit(Decimal(10**13)), "limit_out_of_range"),
    ],
)
def test_a_limit_that_means_nothing_is_refused(limit: Limit, code: str) -> None:
    for limits in (Limits(warn_at=limit), Limits(stop_at=limit)):
        with pytest.raises(InvalidLimitError) as refused:
            check_limits(limits, PRO, CREDITS)
        assert refused.value.code == code


def test_a_warning_and_a_stop_are_compared_whatever_they_are_in() -> None:
    check_limits(Limits(money(4000), QuantityLimit(Decimal("3200.999"))), PRO, CREDITS)
    with pytest.raises(InvalidLimitError):
        check_limits(Limits(money(4000), QuantityLimit(Decimal("3200.998"))), PRO, CREDITS)


def test_an_amount_of_exactly_the_base_fee_is_the_quota_and_a_cents_rounding() -> None:
    check_limits(Limits(stop_at=money(2900)), PRO, CREDITS)
    assert most_quantity(money(2900), PRO, CREDITS) == Decimal("1000.999")


@pytest.mark.parametrize(
    ("typed", "unit", "limit"),
    [
        ("", "money", None),
        ("  ", "quantity", None),
        ("50", "money", money(5000)),
        ("49.9", "money", money(4990)),
        ("1,250.50", "money", money(125050)),
        ("1,000,000", "quantity", QuantityLimit(Decimal(1_000_000))),
        ("5000", "quantity", QuantityLimit(Decimal(5000))),
        ("0.5", "quantity", QuantityLimit(Decimal("0.5"))),
    ],
)
def test_a_form_is_read_as_it_is_typed(typed: str, unit: str, limit: Limit | None) -> None:
    assert read_form({"stop_at": typed, "stop_at_in": unit}, PRO).stop_at == limit


@pytest.mark.parametrize("typed", ["49,90", "12,5", "1,2345", "1234,567", ",5", "1,,000", "5,"])
def test_a_comma_that_parts_no_thousands_is_refused_not_left_out(typed: str) -> None:
    for unit in ("money", "quantity"):
        with pytest.raises(InvalidLimitError) as refused:
            read_form({"stop_at": typed, "stop_at_in": unit}, PRO)
        assert refused.value.code == "invalid_number"


def test_yen_have_no_cents() -> None:
    assert read_form({"stop_at": "5000"}, YEN).stop_at == money(5000, "jpy")
    with pytest.raises(InvalidLimitError):
        read_form({"stop_at": "5000.5"}, YEN)


def test_what_was_set_comes_back() -> None:
    told = {"warn_at": {"quantity": "12.5"}, "stop_at": {"amount_minor": 4000, "currency": "usd"}}
    limits = LimitsInput.model_validate(told).read()
    written = write_limits(limits, PRO, CREDITS, Decimal("3200.998"))
    assert {name: written[name] for name in told} == told
    assert (written["stops_at_quantity"], written["is_reached"]) == ("3200.999", False)
    # A limit below what is used is taken, and says so.
    assert write_limits(limits, PRO, CREDITS, Decimal("3200.999"))["is_reached"] is True
    assert write_limits(Limits(), PRO, CREDITS, Decimal(10**9))["is_reached"] is False

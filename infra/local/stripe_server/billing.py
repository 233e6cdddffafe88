"""What a quantity costs on one of the server's prices, line by line, in exact arithmetic.

Written apart from the service's own pricing, with fractions instead of decimals, so that the
two can be compared: a line per tier reached and a line per flat amount, each rounded half up.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True, slots=True)
class PricedLine:
    """One line before it is dressed as Stripe's JSON; `amount` in whole minor units."""

    quantity: int
    unit_amount_decimal: str | None
    amount: int
    label: str


def round_half_up(amount: Fraction) -> int:
    """To a whole minor unit; a tie goes away from zero."""
    doubled = abs(amount) * 2 + 1
    whole = doubled.numerator // (doubled.denominator * 2)
    return -whole if amount < 0 else whole


_STEPS = {"isk": 100, "ugx": 100, "bhd": 10, "jod": 10, "kwd": 10, "omr": 10, "tnd": 10}
"""Minor units of which only multiples can be charged (Stripe's documentation, currencies). That
invoice lines are rounded to them is inferred: Stripe says only that no other amount is taken."""


def round_charge(amount: Fraction, currency: str) -> int:
    """To the nearest amount that the currency has; a tie goes away from zero."""
    step = _STEPS.get(currency, 1)
    return round_half_up(amount / step) * step


def price_graduated(
    tiers: list[dict[str, Any]], quantity: int, currency: str = "usd"
) -> list[PricedLine]:
    """Graduated tiers: each unit at the price of the tier it falls in, `up_to` inclusive."""
    lines: list[PricedLine] = []
    floor = 0
    for number, tier in enumerate(tiers, start=1):
        if number > 1 and quantity <= floor:
            break
        ceiling = quantity if tier["up_to"] is None else min(quantity, tier["up_to"])
        units = max(0, ceiling - floor)
        rate = tier["unit_amount_decimal"]
        if rate is not None or tier["flat_amount_decimal"] is None:
            amount = round_charge(units * Fraction(rate or "0"), currency)
            lines.append(PricedLine(units, rate or "0", amount, f"Tier {number}"))
        flat = tier["flat_amount_decimal"]
        if flat is not None and Fraction(flat):
            lines.append(
                PricedLine(
                    0, None, round_charge(Fraction(flat), currency), f"Tier {number} flat fee"
                )
            )
        if tier["up_to"] is None:
            break
        floor = tier["up_to"]
    return lines


def price_volume(
    tiers: list[dict[str, Any]], quantity: int, currency: str = "usd"
) -> list[PricedLine]:
    """Volume tiers: every unit at the price of the tier that the whole quantity reaches."""
    for number, tier in enumerate(tiers, start=1):
        if tier["up_to"] is None or quantity <= tier["up_to"]:
            rate = tier["unit_amount_decimal"] or "0"
            lines = [
                PricedLine(
                    quantity,
                    rate,
                    round_charge(quantity * Fraction(rate), currency),
                    f"Tier {number}",
                )
            ]
            flat = tier["flat_amount_decimal"]
            if flat is not None and Fraction(flat):
                lines.append(
                    PricedLine(
                        0, None, round_charge(Fraction(flat), currency), f"Tier {number} flat fee"
                    )
                )
            return lines
    raise AssertionError("the last tier has no end")


def price_quantity(price: dict[str, Any], currency: str, quantity: int) -> list[PricedLine]:
    """The lines of a stored price in one of its currencies; below zero bills zero."""
    quantity = max(0, quantity)
    option = price if price["currency"] == currency else price["currency_options"][currency]
    if price["billing_scheme"] == "tiered":
        graduated = price["tiers_mode"] == "graduated"
        price_tiers = price_graduated if graduated else price_volume
        return price_tiers(option["tiers"], quantity, currency)
    rate = option["unit_amount_decimal"]
    divide = price["transform_quantity"]
    units = quantity
    if divide:
        units, rest = divmod(quantity, divide["divide_by"])
        units += 1 if rest and divide["round"] == "up" else 0
    return [PricedLine(units, rate, round_charge(units * Fraction(rate), currency), "")]


def prorate(amount: int, part_s: int, whole_s: int) -> int:
    """A share of a fee by seconds, rounded half up."""
    return round_half_up(Fraction(amount) * Fraction(part_s, whole_s))

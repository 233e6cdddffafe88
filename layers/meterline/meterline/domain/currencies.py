"""Currencies as Stripe writes their amounts: how many decimals, and which amounts there are.

Source: Stripe's documentation, currencies: zero-decimal currencies; ISK and UGX, which are written
with two decimals but have none; three-decimal currencies, whose last digit must be 0.
"""

from __future__ import annotations

from decimal import Decimal

_ZERO_DECIMAL = frozenset(
    {
        *("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga"),
        *("pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"),
    }
)
_ZERO_DECIMAL_WRITTEN_WITH_TWO = frozenset({"isk", "ugx"})
_THREE_DECIMAL = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})


def count_decimals(currency: str) -> int:
    """Decimals between a currency's main unit and the minor unit in which amounts are written."""
    if currency in _ZERO_DECIMAL:
        return 0
    return 3 if currency in _THREE_DECIMAL else 2


def smallest_step_minor(currency: str) -> int:
    """Every amount that can be charged is a multiple of this many minor units."""
    if currency in _ZERO_DECIMAL_WRITTEN_WITH_TWO:
        return 100
    return 10 if currency in _THREE_DECIMAL else 1


def to_main_unit(amount_minor: int, currency: str) -> Decimal:
    """An amount in the currency's main unit, exact, with all its decimals: 2900 usd is 29.00."""
    return Decimal(amount_minor).scaleb(-count_decimals(currency))

"""Quantities: exact Decimals that are whole numbers of a meter's sub-units."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Context, Decimal

from meterline.domain.meters import Meter
from meterline.errors import RejectedEventError

MAX_DIGITS = 15
"""Digits of a quantity in sub-units. Stripe takes integers of at most 15 digits as meter values."""
MAX_SUB_UNITS = 10**MAX_DIGITS - 1
_DIVERGENCE_LIMIT_PERCENT = 1

_WIDE = Context(prec=60, rounding=ROUND_HALF_UP)
"""Wide enough that no product of admitted numbers is rounded on the way."""
QUANTITY_PATTERN = r"^[0-9]{1,40}(\.[0-9]{1,40})?$"
"""A reported quantity: plain decimal notation."""
_DECIMAL_TEXT = re.compile(QUANTITY_PATTERN)
_WHOLE = Decimal(1)


def round_to_sub_units(quantity: Decimal, meter: Meter) -> Decimal:
    """Round a computed quantity to the meter's sub-unit, once, half up (rule 1 of money)."""
    scaled = _WIDE.multiply(quantity, Decimal(meter.sub_units))
    return admit_sub_units(int(_WIDE.quantize(scaled, _WHOLE)), meter)


def parse_quantity(reported: str | int, meter: Meter) -> Decimal:
    """Read a reported quantity: plain decimal notation, not negative, no finer than a sub-unit."""
    text = str(reported)
    if not _DECIMAL_TEXT.fullmatch(text):
        raise RejectedEventError(
            "invalid_quantity",
            'data.quantity must be a decimal string such as "12.5": digits, no sign or exponent.',
        )
    quantity = Decimal(text)
    if quantity > MAX_SUB_UNITS:
        raise _too_large()
    scaled = _WIDE.multiply(quantity, Decimal(meter.sub_units))
    count = int(scaled)
    if count != scaled:
        raise RejectedEventError(
            "quantity_too_fine",
            f"data.quantity must be a multiple of {meter.from_sub_units(1)}.",
        )
    return admit_sub_units(count, meter)


def admit_sub_units(count: int, meter: Meter) -> Decimal:
    """The quantity of `count` sub-units, unless it is more than a billing layer takes at once."""
    if count > MAX_SUB_UNITS:
        raise _too_large()
    return meter.from_sub_units(count)


def _too_large() -> RejectedEventError:
    return RejectedEventError(
        "quantity_too_large", f"One event may hold at most {MAX_SUB_UNITS} sub-units."
    )


def diverges(ours: int, theirs: int) -> bool:
    """Whether two counts of sub-units differ by more than one per cent of the larger one."""
    larger = max(abs(ours), abs(theirs))
    return abs(ours - theirs) * 100 > larger * _DIVERGENCE_LIMIT_PERCENT

"""Numbers, money and times as people read them. All times are UTC, and say so."""

from __future__ import annotations

from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal

from meterline.domain.currencies import count_decimals, smallest_step_minor, to_main_unit

_SYMBOLS = {"usd": "$", "eur": "€", "gbp": "£", "jpy": "¥", "inr": "₹", "krw": "₩"}
_NO_BREAK = "\u00a0"


def format_money(amount_minor: int, currency: str) -> str:
    """`$29.00`, `¥2,900`, `KWD 2.900`; a currency without a sign of its own is named."""
    decimals = 0 if smallest_step_minor(currency) == 100 else count_decimals(currency)
    amount = f"{abs(to_main_unit(amount_minor, currency)):,.{decimals}f}"
    sign = "\u2212" if amount_minor < 0 else ""
    symbol = _SYMBOLS.get(currency)
    return sign + (symbol + amount if symbol else f"{currency.upper()}{_NO_BREAK}{amount}")


def format_rate(amount_minor: Decimal, currency: str) -> str:
    """A price that may be finer than a minor unit, with the decimals that it has: `$0.005`."""
    decimals = count_decimals(currency)
    exact = amount_minor.scaleb(-decimals).normalize()
    exponent = exact.as_tuple().exponent
    decimals = max(decimals, -exponent if isinstance(exponent, int) else 0)
    symbol = _SYMBOLS.get(currency)
    amount = f"{exact:,.{decimals}f}"
    return symbol + amount if symbol else f"{currency.upper()}{_NO_BREAK}{amount}"


def format_quantity(quantity: Decimal) -> str:
    """Exact, with thousands apart and without zeros at the end: `1,234.5`."""
    text = f"{quantity:,f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "\u2212")


def format_whole(quantity: Decimal) -> str:
    """An estimate: to the unit."""
    return f"{quantity.quantize(Decimal(1), rounding=ROUND_HALF_UP):,f}"


def format_percent(share: Decimal) -> str:
    """A share of 1, to a tenth of a percent: `60.3%`."""
    return f"{(share * 100).quantize(Decimal('0.1'), rounding=ROUND_HALF_UP)}%"


def format_unit(quantity: Decimal, unit: str) -> str:
    """The unit, in the plural unless it is exactly one."""
    return unit if quantity == 1 else f"{unit}s"


def format_day(day: date) -> str:
    """`3 Nov 2026`."""
    return f"{day.day} {day:%b %Y}"


def format_short_day(day: date) -> str:
    """`3 Nov`."""
    return f"{day.day} {day:%b}"


def format_moment(moment: datetime) -> str:
    """`3 Nov 2026, 14:03 UTC`; without the time where it is midnight."""
    if not (moment.hour or moment.minute or moment.second):
        return f"{format_day(moment)}"
    return f"{format_day(moment)}, {moment:%H:%M} UTC"


def format_clock(moment: datetime) -> str:
    """`14:03:10`."""
    return f"{moment:%H:%M:%S}"

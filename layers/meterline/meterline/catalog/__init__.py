"""The checked-in catalog: meters and plans, read from the TOML files in this folder.

Standard library only, because functions read it at cold start. Every mistake in a file is an
`InvalidCatalogError` that names the table and the key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from meterline.domain.currencies import smallest_step_minor
from meterline.domain.meters import EmissionMode, Meter, Rating
from meterline.domain.pricing import CurrencyOption, Plan, Tier

__all__ = [
    "CATALOG_DIR",
    "CurrencyOption",
    "InvalidCatalogError",
    "Meter",
    "Plan",
    "Tier",
    "load_meters",
    "load_plans",
    "read_meters",
    "read_plans",
    "read_plans_text",
]

CATALOG_DIR = Path(__file__).parent
_ID = re.compile(r"[a-z][a-z0-9_]{0,39}")
_CURRENCY = re.compile(r"[a-z]{3}")
_INTERVALS = ("day", "week", "month", "year")
_VERSION_KEYS = frozenset({"version", "effective_from"})
"""What stands above the plans in their file, see `meterline.catalog.versions`."""
_MAX_RATE_DECIMALS = 12
"""Stripe takes at most 12 decimals in `unit_amount_decimal` (API reference, prices)."""


class InvalidCatalogError(ValueError):
    """A catalog file says something that cannot be: where, and what."""


def _read_toml(path: Path) -> dict[str, Any]:
    return _read_text(path.read_text(encoding="utf-8"), path.name)


def _read_text(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise InvalidCatalogError(f"{name}: {error}") from error


class _Table:
    """One TOML table, read key by key, so that what is left over is a mistake."""

    def __init__(self, where: str, values: object) -> None:
        if not isinstance(values, dict):
            raise InvalidCatalogError(f"{where}: is not a table")
        self.where = where
        self._left: dict[str, Any] = dict(values)

    def fail(self, key: str, what: str) -> InvalidCatalogError:
        return InvalidCatalogError(f"{self.where}.{key}: {what}")

    def take(self, key: str, kind: type, *, default: Any = None, required: bool = True) -> Any:
        if key not in self._left:
            if required:
                raise self.fail(key, "is missing")
            return default
        value = self._left.pop(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.fail(key, f"must be {kind.__name__}, is {value!r}")
        return value

    def take_text(self, key: str, max_length: int, *, default: str | None = None) -> str:
        text: str = self.take(key, str, default=default, required=default is None)
        if not 0 < len(text) <= max_length:
            raise self.fail(key, f"must have 1 to {max_length} characters")
        return text

    def take_minor(self, key: str, *, default: int | None = None) -> int:
        amount: int = self.take(key, int, default=default, required=default is None)
        if amount < 0:
            raise self.fail(key, "must not be negative")
        return amount

    def take_decimal(self, key: str) -> Decimal:
        value = self._left.pop(key, None)
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            raise self.fail(key, f"must be a number, is {value!r}")
        number = Decimal(value)
        if not number.is_finite() or number < 0:
            raise self.fail(key, "must be finite and not negative")
        return number

    def has(self, key: str) -> bool:
        return key in self._left

    def close(self) -> None:
        if self._left:
            raise InvalidCatalogError(f"{self.where}: unknown key {sorted(self._left)[0]}")


def _read_meter(meter_id: str, values: object) -> Meter:
    table = _Table(f"meters.{meter_id}", values)
    if not _ID.fullmatch(meter_id):
        raise InvalidCatalogError(f"meters.{meter_id}: an id is lower case letters, digits and _")
    mode = table.take("emission", str)
    if mode not in tuple(EmissionMode):
        raise table.fail("emission", f"must be one of {', '.join(EmissionMode)}, is {mode!r}")
    rating: str = table.take("rating", str, default=Rating.NONE.value, required=False)
    if rating not in tuple(Rating):
        raise table.fail("rating", f"must be one of {', '.join(Rating)}, is {rating!r}")
    sub_units: int = table.take("sub_units", int)
    if sub_units < 1 or sub_units not in [10**power for power in range(10)]:
        raise table.fail("sub_units", "must be a power of ten from 1 to 10^9")
    meter = Meter(
        id=meter_id,
        unit=table.take_text("unit", 40),
        sub_units=sub_units,
        emission=EmissionMode(mode),
        event_name=table.take_text("event_name", 100),
        display_name=table.take_text("display_name", 250),
        rating=Rating(rating),
    )
    table.close()
    return meter


def _read_tiers(table: _Table, meter: Meter) -> tuple[Tier, ...]:
    rows: list[object] = table.take("tiers", list)
    if not rows:
        raise table.fail("tiers", "needs at least one tier")
    tiers: list[Tier] = []
    below = Decimal(0)
    for index, row in enumerate(rows):
        tier_table = _Table(f"{table.where}.tiers[{index}]", row)
        last = index == len(rows) - 1
        up_to: Decimal | None = None
        if tier_table.has("up_to"):
            if last:
                raise tier_table.fail("up_to", "the last tier has no end")
            up_to = tier_table.take_decimal("up_to")
            if up_to <= below:
                raise tier_table.fail("up_to", f"must be above {below}")
            if up_to * meter.sub_units != int(up_to * meter.sub_units):
                raise tier_table.fail("up_to", f"is finer than 1/{meter.sub_units} {meter.unit}")
            below = up_to
        elif not last:
            raise tier_table.fail("up_to", "is missing: only the last tier has no end")
        rate = tier_table.take_decimal("unit_amount_minor")
        exponent = (rate / meter.sub_units).normalize().as_tuple().exponent
        if isinstance(exponent, int) and -exponent > _MAX_RATE_DECIMALS:
            raise tier_table.fail(
                "unit_amount_minor",
                f"per sub-unit it has more than {_MAX_RATE_DECIMALS} decimals",
            )
        flat_minor = tier_table.take_minor("flat_amount_minor", default=0)
        tier_table.close()
        tiers.append(Tier(up_to, rate, flat_minor))
    return tuple(tiers)


def _check_steps(where: str, currency: str, amounts_minor: Iterable[int]) -> None:
    step_minor = smallest_step_minor(currency)
    for amount_minor in amounts_minor:
        if amount_minor % step_minor:
            raise InvalidCatalogError(
                f"{where}: {amount_minor} cannot be charged: amounts in {currency} are multiples "
                f"of {step_minor} minor units"
            )


def _check_currency(where: str, currency: str) -> str:
    if not _CURRENCY.fullmatch(currency):
        raise InvalidCatalogError(f"{where}: {currency!r} is not a lower case ISO 4217 code")
    return currency


def _read_plan(plan_id: str, values: object, meters: Mapping[str, Meter]) -> Plan:
    table = _Table(f"plans.{plan_id}", values)
    if not _ID.fullmatch(plan_id):
        raise InvalidCatalogError(f"plans.{plan_id}: an id is lower case letters, digits and _")
    meter_id: str = table.take("meter", str)
    if meter_id not in meters:
        raise table.fail("meter", f"there is no meter {meter_id!r}")
    meter = meters[meter_id]
    interval = table.take_text("interval", 10, default="month")
    if interval not in _INTERVALS:
        raise table.fail("interval", f"must be one of {', '.join(_INTERVALS)}")
    currency = _check_currency(f"{table.where}.currency", table.take("currency", str))
    name = table.take_text("name", 250)
    base_fee_minor = table.take_minor("base_fee_minor")
    tiers = _read_tiers(table, meter)
    flat_minor = [tier.flat_amount_minor for tier in tiers]
    _check_steps(table.where, currency, [base_fee_minor, *flat_minor])
    options: dict[str, CurrencyOption] = {}
    for other, option in table.take("currency_options", dict, default={}, required=False).items():
        where = f"{table.where}.currency_options.{other}"
        if _check_currency(where, other) == currency:
            raise InvalidCatalogError(f"{where}: is the plan's own currency")
        option_table = _Table(where, option)
        fee = option_table.take_minor("base_fee_minor")
        option_tiers = _read_tiers(option_table, meter)
        if [tier.up_to for tier in option_tiers] != [tier.up_to for tier in tiers]:
            raise InvalidCatalogError(f"{where}.tiers: must end where the plan's own tiers end")
        option_table.close()
        option_flat_minor = [tier.flat_amount_minor for tier in option_tiers]
        _check_steps(where, other, [fee, *option_flat_minor])
        options[other] = CurrencyOption(fee, option_tiers)
    block_overage: bool = table.take("block_overage", bool, default=False, required=False)
    plan = Plan(
        plan_id, name, currency, base_fee_minor, meter_id, tiers, interval, options, block_overage
    )
    if block_overage:
        _check_block(table, plan)
    table.close()
    return plan


def _check_block(table: _Table, plan: Plan) -> None:
    """What was counted without leave lies beyond the quota too, and it must cost nothing either."""
    if not plan.included:
        raise table.fail("block_overage", "needs an included quota to stop at")
    for tiers in (plan.tiers, *(option.tiers for option in plan.currency_options.values())):
        if any(tier.unit_amount_minor or tier.flat_amount_minor for tier in tiers):
            raise table.fail("block_overage", "every tier must be free: there is no overage")


def read_meters(path: Path) -> Mapping[str, Meter]:
    """Read a meters file: id -> Meter. Raises InvalidCatalogError."""
    meters = {key: _read_meter(key, values) for key, values in _read_toml(path).items()}
    names: dict[str, str] = {}
    for meter in meters.values():
        if meter.event_name in names:
            raise InvalidCatalogError(
                f"meters.{meter.id}.event_name: already used by {names[meter.event_name]}"
            )
        names[meter.event_name] = meter.id
    return meters


def read_plans(path: Path, meters: Mapping[str, Meter]) -> Mapping[str, Plan]:
    """Read a plans file: id -> Plan. Raises InvalidCatalogError."""
    return read_plans_text(path.read_text(encoding="utf-8"), meters, path.name)


def read_plans_text(
    text: str, meters: Mapping[str, Meter], name: str = "plans"
) -> Mapping[str, Plan]:
    """Read what a plans file says: id -> Plan. Raises InvalidCatalogError."""
    document = _read_text(text, name)
    return {
        key: _read_plan(key, values, meters)
        for key, values in document.items()
        if key not in _VERSION_KEYS
    }


@cache
def load_meters() -> Mapping[str, Meter]:
    """The meters of this deployment, by id."""
    return read_meters(CATALOG_DIR / "meters.toml")


@cache
def load_plans() -> Mapping[str, Plan]:
    """The plans of this deployment, by id."""
    return read_plans(CATALOG_DIR / "plans.toml", load_meters())

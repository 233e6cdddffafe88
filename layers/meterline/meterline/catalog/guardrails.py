"""The breaker's rule, from the checked-in file."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from functools import cache

from meterline.catalog import CATALOG_DIR, InvalidCatalogError, load_meters
from meterline.domain.breaker import BreakerMode, BreakerRule


@cache
def load_breaker_rule(mode: BreakerMode = BreakerMode.FREEZE) -> BreakerRule:
    """The rule of this deployment. Raises InvalidCatalogError when a meter has no floor."""
    text = (CATALOG_DIR / "guardrails.toml").read_text(encoding="utf-8")
    told = tomllib.loads(text, parse_float=Decimal)
    floors = {}
    for meter in load_meters().values():
        floor = told["floor_per_day"].get(meter.id)
        if floor is None or floor <= 0:
            raise InvalidCatalogError(f"guardrails.floor_per_day.{meter.id}: must be above nothing")
        floors[meter.id] = meter.to_sub_units(Decimal(floor))
    return BreakerRule(told["multiple"], told["habit_multiple"], floors, mode)

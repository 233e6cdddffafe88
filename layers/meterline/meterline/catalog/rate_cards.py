"""The checked-in rate card, read and checked once per process."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

from meterline.catalog import CATALOG_DIR, InvalidCatalogError
from meterline.domain.rating import TOKEN_KINDS, WORK_KINDS, Rate, RateCard

_TOKENS = (1, 1_000, 1_000_000)
_WORK_QUOTED = {"images": 1, "predict_time_ms": 1_000}
"""Of what is not tokens, how many a rate is quoted for: an image, a second."""
_MAX_RATE_DIGITS = 12
_MAX_RATE = 10**6
_MAX_RATE_DECIMALS = 15
"""So that every sum of credits is exact, see `meterline.domain.rating`."""


def read_rate_card(text: str) -> RateCard:
    """Read a rate card from TOML; whatever is unclear in it is a `InvalidCatalogError`."""
    try:
        document = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise InvalidCatalogError(f"rate card: {error}") from error
    tokens = document.get("tokens")
    if tokens not in _TOKENS:
        raise InvalidCatalogError("rate card: tokens must be 1, 1000 or 1000000")
    version = document.get("version")
    if not isinstance(version, str) or not version:
        raise InvalidCatalogError("rate card: version must be a string")
    rates = document.get("rates")
    if not isinstance(rates, list) or not rates:
        raise InvalidCatalogError("rate card: at least one [[rates]] is needed")
    return RateCard(version, [_read_rate(rate, tokens) for rate in rates])


@cache
def load_rate_card() -> RateCard:
    """The rate card that is bundled with the service."""
    return read_rate_card((CATALOG_DIR / "rate_card.toml").read_text("utf-8"))


def _read_rate(rate: Mapping[str, Any], tokens: int) -> Rate:
    provider, models = rate.get("provider"), rate.get("models")
    if not isinstance(provider, str) or not isinstance(models, list) or not models:
        raise InvalidCatalogError("rate card: every rate needs a provider and a list of models")
    where = f"rate card: {provider} {models[0]}"
    unknown = rate.keys() - {"provider", "models", *TOKEN_KINDS, *WORK_KINDS}
    if unknown:
        raise InvalidCatalogError(f"{where}: unknown key {sorted(unknown)[0]}")
    quoted = dict.fromkeys(TOKEN_KINDS, tokens) | _WORK_QUOTED
    credits_per_one = {
        kind: _read_number(rate[kind], where, kind).scaleb(1 - len(str(quoted[kind])))
        for kind in quoted
        if kind in rate
    }
    needed = {"input_tokens", "output_tokens"}
    if credits_per_one.keys() & set(TOKEN_KINDS) and not needed <= credits_per_one.keys():
        raise InvalidCatalogError(f"{where}: input_tokens and output_tokens are needed")
    if not credits_per_one:
        raise InvalidCatalogError(f"{where}: rates of tokens, {' or '.join(WORK_KINDS)} are needed")
    return Rate(provider, tuple(models), credits_per_one)


def _read_number(value: object, where: str, kind: str) -> Decimal:
    try:
        number = Decimal(value) if isinstance(value, str) else None
    except InvalidOperation:
        number = None
    if number is None or not number.is_finite() or number < 0:
        raise InvalidCatalogError(f"{where}: {kind} must be a decimal string, not negative")
    if len(number.as_tuple().digits) > _MAX_RATE_DIGITS:
        raise InvalidCatalogError(f"{where}: {kind} has more than {_MAX_RATE_DIGITS} digits")
    if number >= _MAX_RATE or -int(number.as_tuple().exponent) > _MAX_RATE_DECIMALS:
        raise InvalidCatalogError(
            f"{where}: {kind} must be below {_MAX_RATE} and have at most {_MAX_RATE_DECIMALS} "
            "decimals"
        )
    return number

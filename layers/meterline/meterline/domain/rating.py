"""Rating: how what a provider reports becomes a quantity of a meter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Context, Decimal
from fnmatch import translate

from meterline.domain.meters import Meter
from meterline.domain.quantities import admit_sub_units, round_to_sub_units
from meterline.errors import RejectedEventError

_EXACT = Context(prec=60)
"""A card's rates have at most 21 decimals and 6 digits before them, tokens at most 13 digits: no
sum of their products needs more than 41."""

TOKEN_KINDS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
)
"""The kinds of tokens that an event may report. They are disjoint: a cached input token is in
`cache_read_tokens` and nowhere else, a reasoning token in `output_tokens`."""
WORK_KINDS = ("images", "predict_time_ms")
"""What models report that are not paid by the token: images made, milliseconds of a machine."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Credits per one of each kind of use for the models of one provider that match `models`."""

    provider: str
    models: tuple[str, ...]
    credits_per_one: Mapping[str, Decimal]
    _patterns: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "_patterns", tuple(re.compile(translate(pattern)) for pattern in self.models)
        )

    def covers(self, provider: str, model: str) -> bool:
        """Whether this rate is for that model; patterns are shell globs, letter case counts."""
        return provider == self.provider and any(p.match(model) for p in self._patterns)


class RateCard:
    """All rates of one version, in order: the first that covers a model is the one that counts."""

    def __init__(self, version: str, rates: Sequence[Rate]) -> None:
        self.version = version
        self.rates = tuple(rates)
        self._found: dict[tuple[str, str], Rate | None] = {}

    def at(self, _moment: datetime) -> RateCard:
        """Itself: a card on its own counts at all times (see `meterline.ports.RateCards`)."""
        return self

    def rate_for(self, provider: str, model: str) -> Rate:
        """The rate of that model; an unknown one is refused, never priced at zero."""
        try:
            rate = self._found[provider, model]
        except KeyError:
            rate = next((rate for rate in self.rates if rate.covers(provider, model)), None)
            if len(self._found) < 1_000:  # A sender of random model names must not fill the memory.
                self._found[provider, model] = rate
        if rate is None:
            raise RejectedEventError(
                "unknown_model", f"The rate card has no rate for {provider} {model}."
            )
        return rate

    def credits(self, provider: str, model: str, usage: Mapping[str, int], meter: Meter) -> Decimal:
        """Credits of one event: exact per kind of use, rounded to the sub-unit once, at the end."""
        per_one = self.rate_for(provider, model).credits_per_one
        total = Decimal(0)
        for kind, count in usage.items():
            if not count:
                continue
            rate = per_one.get(kind)
            if rate is None:
                raise RejectedEventError(
                    "unknown_usage_kind",
                    f"The rate card has no rate for {kind} of {provider} {model}.",
                )
            total = _EXACT.add(total, _EXACT.multiply(rate, Decimal(count)))
        return round_to_sub_units(total, meter)


def count_tokens(usage: Mapping[str, int], meter: Meter) -> Decimal:
    """Raw tokens of one event: all kinds added, since they are disjoint."""
    unknown = usage.keys() - set(TOKEN_KINDS)
    if unknown:
        raise RejectedEventError(
            "unknown_usage_kind", f"data.usage.{min(unknown)} is not a kind of tokens."
        )
    return admit_sub_units(sum(usage.values()) * meter.sub_units, meter)

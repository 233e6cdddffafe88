"""What a provider asks for a model call, by genai-prices: for cost and margin, never for a bill."""

from __future__ import annotations

import warnings
from datetime import datetime
from decimal import Decimal

from genai_prices import Usage, calc_price

from infra.cli.past_usage import PastEvent

_CACHED = ("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens")

_STANDARD_TIERS = frozenset({None, "auto", "default", "standard"})


class NoPriceError(LookupError):
    """The price list has nothing for the event, or nothing but zero; the message says which."""


class ProviderCosts:
    """Costs in US dollars. Prices are those of the event's day, as far as the list knows them."""

    def __init__(self) -> None:
        self._missing: dict[tuple[str, str], str] = {}

    def of(self, event: PastEvent) -> Decimal:
        """What the event cost; raises `NoPriceError`."""
        if event.usage is None:
            raise NoPriceError("no token counts were reported")
        if not event.provider or not event.model:
            raise NoPriceError("no provider or model was reported")
        known = self._missing.get((event.provider, event.model))
        if known is not None:
            raise NoPriceError(known)
        try:
            cost = self._look_up(event, event.provider, event.model, event.at)
        except NoPriceError:
            raise
        except LookupError:
            why = f"no price for {event.provider} {event.model}"
            self._missing[event.provider, event.model] = why
            raise NoPriceError(why) from None
        if not cost and any(event.usage.values()):
            raise NoPriceError(f"the price of {event.provider} {event.model} is zero")
        return cost

    @staticmethod
    def _look_up(event: PastEvent, provider: str, model: str, at: datetime) -> Decimal:
        usage = event.usage or {}
        cached = {kind: usage.get(kind, 0) for kind in _CACHED}
        # Our kinds are disjoint; the list's are nested: all cached input is input, and what is
        # written for an hour is written.
        told = {
            "input_tokens": usage.get("input_tokens", 0) + sum(cached.values()),
            "output_tokens": usage.get("output_tokens", 0),
            "cache_read_tokens": cached["cache_read_tokens"],
            "cache_write_tokens": cached["cache_write_tokens"] + cached["cache_write_1h_tokens"],
            "cache_write_1h_tokens": cached["cache_write_1h_tokens"],
        }
        with warnings.catch_warnings():
            # A kind that the list cannot price would only be warned of, and cost nothing.
            warnings.simplefilter("error", UserWarning)
            try:
                found = calc_price(
                    Usage(**{kind: count for kind, count in told.items() if count}),
                    model,
                    provider_id=provider,
                    genai_request_timestamp=at,
                    price_context={"service_tier": event.tier} if event.tier else None,
                )
            except (UserWarning, ValueError) as problem:
                raise LookupError(str(problem)) from problem
        if event.tier not in _STANDARD_TIERS:
            variants = found.model.price_variants or ()
            if not any(variant.when.get("service_tier") == event.tier for variant in variants):
                # The list would answer with the standard price.
                raise NoPriceError(f"no price for the {event.tier} tier of {provider} {model}")
        return found.total_price

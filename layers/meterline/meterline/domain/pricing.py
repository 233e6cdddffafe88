"""Price: what a period's quantity costs on a plan, as a pure function, line by line.

A graduated price is one invoice line per tier reached, plus one per flat amount, and each line
is rounded by itself: that is how Stripe bills (recorded invoices: 31 x 3.6 = 111.6 -> 112).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Context, Decimal
from enum import StrEnum

from meterline.domain.currencies import smallest_step_minor

_EXACT = Context(prec=60)
"""Wide enough for 15 digits of sub-units times a rate of 12 decimals, so nothing is rounded."""


class UnknownCurrencyError(ValueError):
    """The plan has no price in this currency."""


class NegativeQuantityError(ValueError):
    """A period's quantity below zero has no price; Stripe bills such a cycle as 0."""


class LineKind(StrEnum):
    """What an invoice line stands for."""

    BASE_FEE = "base_fee"
    TIER = "tier"
    TIER_FLAT = "tier_flat"


@dataclass(frozen=True, slots=True)
class Tier:
    """One graduated tier: the units above the tier before it, up to and including `up_to`."""

    up_to: Decimal | None
    """In the meter's own units; None in the last tier."""
    unit_amount_minor: Decimal
    """Per unit of the meter, in minor units of the currency, exact."""
    flat_amount_minor: int = 0
    """Charged once when the tier is reached; the first tier is always reached."""


@dataclass(frozen=True, slots=True)
class CurrencyOption:
    """The same plan in another currency."""

    base_fee_minor: int
    tiers: tuple[Tier, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A base fee each period and graduated tiers on one meter, in one or more currencies."""

    id: str
    name: str
    currency: str
    base_fee_minor: int
    meter: str
    tiers: tuple[Tier, ...]
    interval: str = "month"
    currency_options: Mapping[str, CurrencyOption] = field(default_factory=dict)
    block_overage: bool = False
    """Usage stops at the included quota, for every customer, and nothing beyond it is charged."""

    @property
    def included(self) -> Decimal:
        """The quota: units of the meter that cost nothing before the first priced tier."""
        included = Decimal(0)
        for tier in self.tiers:
            if tier.unit_amount_minor or tier.flat_amount_minor or tier.up_to is None:
                break
            included = tier.up_to
        return included

    def in_currency(self, currency: str) -> Plan:
        """The plan as a customer of this currency is billed, or UnknownCurrencyError."""
        if currency == self.currency:
            return self
        others = dict(self.currency_options)
        option = others.pop(currency, None)
        if option is None:
            raise UnknownCurrencyError(f"plan {self.id} has no price in {currency}")
        others[self.currency] = CurrencyOption(self.base_fee_minor, self.tiers)
        return replace(
            self,
            currency=currency,
            base_fee_minor=option.base_fee_minor,
            tiers=option.tiers,
            currency_options=others,
        )


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an invoice: exact before rounding, and the rounded amount that is charged."""

    kind: LineKind
    quantity: Decimal
    unit_amount_minor: Decimal
    exact_minor: Decimal
    amount_minor: int
    tier: int | None = None
    """Index of the tier, None for the base fee."""


def round_line(exact_minor: Decimal, step_minor: int = 1) -> int:
    """Round one line half up, to a multiple of `step_minor`: the only rounding of money there is.

    The step is the currency's (`smallest_step_minor`): one minor unit, but for those of which
    Stripe charges only multiples. That lines follow it is inferred from what can be charged.
    """
    steps = _EXACT.divide(exact_minor, Decimal(step_minor))
    return int(steps.quantize(Decimal(1), rounding=ROUND_HALF_UP, context=_EXACT)) * step_minor


def split_by_tier(quantity: Decimal, tiers: tuple[Tier, ...]) -> tuple[Decimal, ...]:
    """How much of the quantity falls into each tier that it reaches; the first always counts."""
    parts: list[Decimal] = []
    below = Decimal(0)
    for tier in tiers:
        if parts and quantity <= below:
            break
        top = quantity if tier.up_to is None else min(quantity, tier.up_to)
        parts.append(_EXACT.subtract(top, below))
        below = top if tier.up_to is None else tier.up_to
    return tuple(parts)


def price_usage(quantity: Decimal, plan: Plan) -> tuple[Line, ...]:
    """The metered lines alone, for a quantity in the meter's own units."""
    if quantity < 0:
        raise NegativeQuantityError(f"quantity {quantity} on plan {plan.id}")
    step_minor = smallest_step_minor(plan.currency)
    lines: list[Line] = []
    for index, part in enumerate(split_by_tier(quantity, plan.tiers)):
        tier = plan.tiers[index]
        exact = _EXACT.multiply(part, tier.unit_amount_minor)
        lines.append(
            Line(
                LineKind.TIER,
                part,
                tier.unit_amount_minor,
                exact,
                round_line(exact, step_minor),
                index,
            )
        )
        if tier.flat_amount_minor:
            flat = Decimal(tier.flat_amount_minor)
            lines.append(
                Line(LineKind.TIER_FLAT, Decimal(1), flat, flat, tier.flat_amount_minor, index)
            )
    return tuple(lines)


def price_base_fee(plan: Plan) -> Line:
    """The base fee of one period."""
    fee = Decimal(plan.base_fee_minor)
    return Line(LineKind.BASE_FEE, Decimal(1), fee, fee, plan.base_fee_minor)


def price(quantity: Decimal, plan: Plan) -> tuple[Line, ...]:
    """Every line of one period's bill: the base fee, then the usage tier by tier."""
    return (price_base_fee(plan), *price_usage(quantity, plan))


def total_minor(lines: tuple[Line, ...]) -> int:
    """The sum of the rounded lines: what the invoice asks for."""
    return sum(line.amount_minor for line in lines)

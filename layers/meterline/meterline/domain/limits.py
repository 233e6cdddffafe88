"""Limits that a customer sets for its own spending, and what they come to in quantity.

An amount of money stands for the whole bill of a period, its base fee included: "$50" is what the
next invoice may ask at most. Limits are kept here; they are enforced where leave to spend is given.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from meterline.domain.meters import FinerThanSubUnitError, Meter
from meterline.domain.pricing import Plan, UnknownCurrencyError, price, total_minor
from meterline.domain.quantities import MAX_SUB_UNITS

MAX_AMOUNT_MINOR = 10**12
"""Of a limit: above any bill that Stripe can charge (8 digits for most currencies)."""


class InvalidLimitError(ValueError):
    """A limit that can mean nothing on the customer's plan; `field` says which, `code` why."""

    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


@dataclass(frozen=True, slots=True)
class MoneyLimit:
    """At most so much on the period's bill, in minor units."""

    amount_minor: int
    currency: str


@dataclass(frozen=True, slots=True)
class QuantityLimit:
    """At most so much of the meter in a period."""

    quantity: Decimal


Limit = MoneyLimit | QuantityLimit


@dataclass(frozen=True, slots=True)
class Limits:
    """All that a customer set: warn (soft), stop (hard), and no overage at all (kill switch)."""

    warn_at: Limit | None = None
    stop_at: Limit | None = None
    block_overage: bool = False
    changed_at: datetime | None = None
    changed_by: str | None = None
    """`key <name>` for an API key, `user <id>` for a person on the page."""


class StopCause(StrEnum):
    """What stops usage: each asks something else of whoever wants to go on."""

    HARD_LIMIT = "hard_limit"
    """The customer's own `stop_at`."""
    OVERAGE_BLOCKED = "overage_blocked"
    """The customer's own kill switch, at the included quota."""
    PLAN_QUOTA = "plan_quota"
    """The plan itself, which has no overage."""


class Stop(NamedTuple):
    """The quantity of a period at which usage stops, and what stops it."""

    cause: StopCause
    quantity: Decimal


def most_quantity(limit: Limit, plan: Plan, meter: Meter) -> Decimal:
    """The largest quantity of a period that keeps the limit, in whole sub-units of the meter.

    Price grows with quantity and rounds by line, so the bound is searched, not divided out: the
    bill of this quantity is within the amount, and that of one sub-unit more is not. It is the
    bill in the limit's own currency: a limit of $50 that was set before there was a subscription
    does not become one of 50 of whatever the subscription is billed in.
    """
    if isinstance(limit, QuantityLimit):
        return limit.quantity
    # A plan that has lost that currency leaves nothing but the number.
    with suppress(UnknownCurrencyError):
        plan = plan.in_currency(limit.currency)
    low, high = 0, MAX_SUB_UNITS
    if _bill(high, plan, meter) <= limit.amount_minor:
        return meter.from_sub_units(high)
    while high - low > 1:
        middle = (low + high) // 2
        if _bill(middle, plan, meter) <= limit.amount_minor:
            low = middle
        else:
            high = middle
    return meter.from_sub_units(low)


def find_stop(limits: Limits, plan: Plan, meter: Meter) -> Stop | None:
    """Where usage stops, and by what: the first of what the customer set and the plan says."""
    stop = None
    if plan.block_overage:
        stop = Stop(StopCause.PLAN_QUOTA, plan.included)
    elif limits.block_overage:
        stop = Stop(StopCause.OVERAGE_BLOCKED, plan.included)
    if limits.stop_at is not None:
        most = most_quantity(limits.stop_at, plan, meter)
        if stop is None or most <= stop.quantity:
            stop = Stop(StopCause.HARD_LIMIT, most)
    return stop


def stop_quantity(limits: Limits, plan: Plan, meter: Meter) -> Decimal | None:
    """The quantity at which usage stops; None for no stop."""
    stop = find_stop(limits, plan, meter)
    return stop.quantity if stop is not None else None


def check_limits(limits: Limits, plan: Plan, meter: Meter) -> None:
    """Raise `InvalidLimitError` for limits that can mean nothing on this plan."""
    for field, limit in (("warn_at", limits.warn_at), ("stop_at", limits.stop_at)):
        if isinstance(limit, MoneyLimit):
            _check_money(field, limit, plan)
        elif isinstance(limit, QuantityLimit):
            _check_quantity(field, limit, meter)
    if limits.warn_at is not None and limits.stop_at is not None:
        warned = most_quantity(limits.warn_at, plan, meter)
        if warned > most_quantity(limits.stop_at, plan, meter):
            raise InvalidLimitError(
                "warn_at", "warn_above_stop", "warn_at is above stop_at: it would never warn."
            )


def _check_money(field: str, limit: MoneyLimit, plan: Plan) -> None:
    if limit.currency != plan.currency:
        raise InvalidLimitError(
            field, "wrong_currency", f"{field} must be in {plan.currency}, as the bill is."
        )
    if not 0 < limit.amount_minor <= MAX_AMOUNT_MINOR:
        raise InvalidLimitError(field, "limit_out_of_range", f"{field} is out of range.")
    if limit.amount_minor < plan.base_fee_minor:
        raise InvalidLimitError(
            field,
            "limit_below_base_fee",
            f"{field} is below the plan's base fee, which is on every bill.",
        )


def _check_quantity(field: str, limit: QuantityLimit, meter: Meter) -> None:
    try:
        sub_units = meter.to_sub_units(limit.quantity)
    except FinerThanSubUnitError:
        raise InvalidLimitError(
            field,
            "quantity_too_fine",
            f"{field} must be a multiple of {meter.from_sub_units(1)} {meter.unit}.",
        ) from None
    if not 0 <= sub_units <= MAX_SUB_UNITS:
        raise InvalidLimitError(field, "limit_out_of_range", f"{field} is out of range.")


def _bill(sub_units: int, plan: Plan, meter: Meter) -> int:
    return total_minor(price(meter.from_sub_units(sub_units), plan))

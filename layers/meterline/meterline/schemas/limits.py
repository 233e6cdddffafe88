"""Limits as they cross the border, as JSON and as the page's form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from meterline.domain.currencies import count_decimals
from meterline.domain.limits import (
    MAX_AMOUNT_MINOR,
    InvalidLimitError,
    Limit,
    Limits,
    MoneyLimit,
    QuantityLimit,
    most_quantity,
    stop_quantity,
)
from meterline.domain.meters import Meter
from meterline.domain.pricing import Plan
from meterline.domain.quantities import QUANTITY_PATTERN
from meterline.domain.times import format_time

_FORM_NUMBER = re.compile(r"([0-9]{1,15}|[0-9]{1,3}(,[0-9]{3}){1,4})(\.[0-9]{1,12})?", re.ASCII)
"""Commas only between thousands: `49,90` is no 4,990, and nobody's limit is to be a hundredfold."""


class UnreadableNumberError(InvalidLimitError):
    """What was typed into a field is no number that a limit can be."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, "invalid_number", message)


class MoneyInput(BaseModel):
    """An amount on the period's whole bill, its base fee included."""

    model_config = ConfigDict(extra="forbid", strict=True)

    amount_minor: Annotated[int, Field(ge=1, le=MAX_AMOUNT_MINOR)]
    currency: Annotated[str, Field(pattern=r"^[a-z]{3}$")]


class QuantityInput(BaseModel):
    """A quantity of the plan's meter in a period."""

    model_config = ConfigDict(extra="forbid", strict=True)

    quantity: Annotated[str, Field(pattern=QUANTITY_PATTERN)]


class LimitsInput(BaseModel):
    """The body of `PUT /v1/customers/{id}/limits`: all of them; what is left out is off."""

    model_config = ConfigDict(extra="forbid", strict=True)

    warn_at: MoneyInput | QuantityInput | None = None
    stop_at: MoneyInput | QuantityInput | None = None
    block_overage: bool = False

    def read(self) -> Limits:
        """As the service knows them."""
        return Limits(_read(self.warn_at), _read(self.stop_at), self.block_overage)


def read_form(form: Mapping[str, str], plan: Plan) -> Limits:
    """The page's form: a number and its unit (`money`, `quantity`) for each; empty is off.

    Raises `InvalidLimitError`.
    """
    return Limits(
        _read_field("warn_at", form, plan),
        _read_field("stop_at", form, plan),
        form.get("block_overage") == "on",
    )


def write_limits(limits: Limits, plan: Plan, meter: Meter, used: Decimal) -> dict[str, Any]:
    """The answer: what was set, the quantities that it comes to on the plan as it is now, and
    whether what is used has reached the stop."""
    stop = stop_quantity(limits, plan, meter)
    warn = limits.warn_at
    return {
        "warn_at": _write(limits.warn_at),
        "stop_at": _write(limits.stop_at),
        "block_overage": limits.block_overage,
        "warns_at_quantity": str(most_quantity(warn, plan, meter)) if warn is not None else None,
        "stops_at_quantity": str(stop) if stop is not None else None,
        "is_reached": stop is not None and used >= stop,
        "changed_at": format_time(limits.changed_at) if limits.changed_at is not None else None,
        "changed_by": limits.changed_by,
    }


def _read(told: MoneyInput | QuantityInput | None) -> Limit | None:
    if isinstance(told, MoneyInput):
        return MoneyLimit(told.amount_minor, told.currency)
    return QuantityLimit(Decimal(told.quantity)) if told is not None else None


def _write(limit: Limit | None) -> dict[str, Any] | None:
    if isinstance(limit, MoneyLimit):
        return {"amount_minor": limit.amount_minor, "currency": limit.currency}
    return {"quantity": str(limit.quantity)} if limit is not None else None


def _read_field(field: str, form: Mapping[str, str], plan: Plan) -> Limit | None:
    text = form.get(field, "").strip()
    if not text:
        return None
    if not _FORM_NUMBER.fullmatch(text):
        raise UnreadableNumberError(field, "Write a number such as 50 or 49.90.")
    number = Decimal(text.replace(",", ""))
    if form.get(f"{field}_in") == "quantity":
        return QuantityLimit(number)
    amount = number.scaleb(count_decimals(plan.currency))
    if amount != int(amount):
        raise UnreadableNumberError(field, "That is finer than the currency is.")
    return MoneyLimit(int(amount), plan.currency)

"""Invoices to come: what the billing layer will ask for if nothing else happens."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from meterline.domain.periods import Period
from meterline.domain.pricing import Line, Plan, price_base_fee, price_usage, total_minor


@dataclass(frozen=True, slots=True)
class InvoicePreview:
    """The next invoice as things stand at `as_of`: usage looks back, the base fee ahead.

    Without taxes, discounts, prorations and the customer's balance, which are the billing layer's.
    """

    plan: Plan
    """In the invoice's currency, as it counts for the usage."""
    usage_period: Period
    quantity: Decimal
    """What is used in the usage period so far, in the meter's unit, whether billed or not."""
    usage_lines: tuple[Line, ...]
    fee_period: Period | None
    """None: the subscription ends with the usage period."""
    fee_lines: tuple[Line, ...]
    as_of: datetime

    @property
    def lines(self) -> tuple[Line, ...]:
        """All lines, usage first, as Stripe orders them."""
        return (*self.usage_lines, *self.fee_lines)

    @property
    def total_minor(self) -> int:
        """What the invoice asks for."""
        return total_minor(self.lines)


def preview(
    *,
    plan: Plan,
    next_plan: Plan | None,
    usage_period: Period,
    quantity: Decimal,
    is_free: bool,
    fee_period: Period | None,
    as_of: datetime,
) -> InvoicePreview:
    """The invoice's lines. `next_plan` is whose base fee follows, None where nothing does;
    `is_free` says that usage is on no invoice (a trial). A period below zero bills 0 (Stripe's
    documentation, meter events)."""
    billed = max(quantity, Decimal(0))
    return InvoicePreview(
        plan=plan,
        usage_period=usage_period,
        quantity=quantity,
        usage_lines=() if is_free else price_usage(billed, plan),
        fee_period=fee_period,
        fee_lines=(price_base_fee(next_plan),) if next_plan is not None else (),
        as_of=as_of,
    )

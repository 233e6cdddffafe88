"""What customers and operators are told of, each crossing once: its id says which one it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Happening(StrEnum):
    """What happened: the `detail-type` on the event bus and the `type` of an outgoing webhook."""

    SOFT_LIMIT_CROSSED = "SoftLimitCrossed"
    HARD_LIMIT_REACHED = "HardLimitReached"
    CUSTOMER_FROZEN = "CustomerFrozen"
    CUSTOMER_FROZEN_BY_OPERATOR = "CustomerFrozenByOperator"
    RUNAWAY_SUSPECTED = "RunawaySuspected"
    """The breaker would have frozen the customer, but is set to warn."""
    CUSTOMER_UNFROZEN = "CustomerUnfrozen"
    INVOICE_SPIKED = "InvoiceSpiked"
    BILLING_ALERT_TRIGGERED = "BillingAlertTriggered"
    """An alert that an operator set up at the billing layer went off."""


class Channel(StrEnum):
    """A way to tell somebody; the in-app list is the store of notifications itself."""

    EMAIL = "email"
    SLACK = "slack"
    WEBHOOK = "webhook"


CHANNELS: Mapping[Happening, tuple[Channel, ...]] = {
    Happening.SOFT_LIMIT_CROSSED: (Channel.EMAIL, Channel.WEBHOOK),
    Happening.HARD_LIMIT_REACHED: (Channel.EMAIL, Channel.WEBHOOK),
    Happening.CUSTOMER_FROZEN: (Channel.SLACK, Channel.EMAIL, Channel.WEBHOOK),
    Happening.CUSTOMER_FROZEN_BY_OPERATOR: (Channel.SLACK, Channel.EMAIL, Channel.WEBHOOK),
    Happening.RUNAWAY_SUSPECTED: (Channel.SLACK,),
    Happening.CUSTOMER_UNFROZEN: (Channel.SLACK, Channel.WEBHOOK),
    Happening.INVOICE_SPIKED: (Channel.SLACK,),
    Happening.BILLING_ALERT_TRIGGERED: (Channel.SLACK, Channel.EMAIL, Channel.WEBHOOK),
}
"""Customers hear of their limits and their account, operators of runaways and invoices."""


@dataclass(frozen=True, slots=True)
class Notification:
    """One happening. `id` is the same whenever the same crossing is found again."""

    id: str
    customer: str
    happening: Happening
    at: datetime
    facts: Mapping[str, str]
    """What the templates say, in words of the contract: quantities as decimal strings."""

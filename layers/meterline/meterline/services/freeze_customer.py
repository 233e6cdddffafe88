"""Freeze a customer by hand, with who did it and why in the audit trail."""

from __future__ import annotations

from datetime import datetime

from meterline.domain.controls import Freeze
from meterline.domain.notifications import Happening, Notification
from meterline.domain.times import format_time
from meterline.errors import MeterlineError, NotFoundError
from meterline.ports import Controls, Guardrails


class AlreadyFrozenError(MeterlineError):
    """The customer is frozen: the first freeze stays, with its reason."""


class FreezeCustomer:
    """An operator's command. Who is to be told is told by the scheduled scan within minutes."""

    def __init__(self, controls: Controls, guardrails: Guardrails) -> None:
        self._controls = controls
        self._guardrails = guardrails

    def __call__(self, customer: str, reason: str, by: str, now: datetime) -> Freeze:
        """The freeze. Raises `NotFoundError` and `AlreadyFrozenError`."""
        standing = self._controls.get_standing(customer)
        if standing is None:
            raise NotFoundError(f"There is no customer {customer}.")
        freeze = Freeze(now, "operator", by, reason)
        happening = Happening.CUSTOMER_FROZEN_BY_OPERATOR
        told = Notification(
            f"{happening}:{format_time(now)}",
            customer,
            happening,
            now,
            {"by": by, "reason": reason},
        )
        if standing.is_frozen or not self._guardrails.freeze(customer, freeze, told):
            raise AlreadyFrozenError(f"{customer} is frozen already.")
        return freeze

"""Lift a freeze, with who did it and why in the audit trail."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from meterline.domain.controls import Freeze, Lifting
from meterline.domain.notifications import Happening, Notification
from meterline.domain.times import format_time
from meterline.errors import InvalidRequestError, NotFoundError
from meterline.ports import Controls, EventBus, Guardrails, NotPublishedError


class UnfreezeCustomer:
    """The job of `POST /v1/customers/{id}/unfreeze`.

    The usage that tripped the breaker does not trip it again: it judges what came afterwards.
    """

    def __init__(self, controls: Controls, guardrails: Guardrails, bus: EventBus) -> None:
        self._controls = controls
        self._guardrails = guardrails
        self._bus = bus

    def __call__(self, customer: str, reason: str, by: str, now: datetime) -> Freeze:
        """The freeze as it is now, lifted. Raises `NotFoundError` and `InvalidRequestError`."""
        standing = self._controls.get_standing(customer)
        if standing is None:
            raise NotFoundError(f"There is no customer {customer}.")
        freeze = standing.freeze
        if freeze is None or freeze.lifted_at is not None:
            raise InvalidRequestError("not_frozen", f"{customer} is not frozen.", status=409)
        lifted = Notification(
            f"{Happening.CUSTOMER_UNFROZEN}:{format_time(freeze.frozen_at)}",
            customer,
            Happening.CUSTOMER_UNFROZEN,
            now,
            {"by": by, "reason": reason, "frozen_at": format_time(freeze.frozen_at)},
        )
        if not self._guardrails.unfreeze(customer, freeze, Lifting(now, by, reason), lifted):
            raise InvalidRequestError("not_frozen", f"{customer} is not frozen.", status=409)
        try:
            self._bus.publish(lifted)
        except NotPublishedError:
            pass  # It is kept as open: the scheduled scan publishes it.
        else:
            self._guardrails.mark_published(lifted)
        return replace(freeze, lifted_at=now)

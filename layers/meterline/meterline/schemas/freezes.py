"""Freezes and notifications as they cross the HTTP border."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from meterline.domain.controls import Freeze
from meterline.domain.notifications import Happening, Notification
from meterline.domain.times import format_time


class UnfreezeInput(BaseModel):
    """The body of an unfreeze: why, for the audit trail."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: Annotated[
        str,
        Field(
            min_length=1,
            max_length=500,
            pattern=r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$",
        ),
    ]


class FreezeAnswer(BaseModel):
    """A freeze that was lifted."""

    model_config = ConfigDict(extra="forbid")

    customer: str
    frozen_at: datetime
    reason: str
    detail: str
    lifted_at: datetime


class NotificationAnswer(BaseModel):
    """Something that the customer was told of."""

    model_config = ConfigDict(extra="forbid")

    id: str
    type: Happening
    at: datetime
    facts: dict[str, str]


class NotificationsAnswer(BaseModel):
    """A customer's in-app notifications, the newest first."""

    model_config = ConfigDict(extra="forbid")

    notifications: list[NotificationAnswer]


def write_freeze(customer: str, freeze: Freeze) -> dict[str, Any]:
    """A `FreezeAnswer`."""
    return {
        "customer": customer,
        "frozen_at": format_time(freeze.frozen_at),
        "reason": freeze.reason,
        "detail": freeze.detail,
        "lifted_at": freeze.lifted_at and format_time(freeze.lifted_at),
    }


def write_notification(notification: Notification) -> dict[str, Any]:
    """A `NotificationAnswer`."""
    return {
        "id": notification.id,
        "type": notification.happening.value,
        "at": format_time(notification.at),
        "facts": dict(notification.facts),
    }

"""Notifications as they cross the event bus and the queue behind it."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from meterline.domain.notifications import Happening, Notification


class NotificationDetail(BaseModel):
    """The `detail` of an event on the bus."""

    model_config = ConfigDict(extra="ignore")

    id: str
    customer: str
    type: Happening
    at: datetime
    facts: dict[str, str]


class BusEvent(BaseModel):
    """An event of the bus, as its rule hands it to a queue."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    detail: NotificationDetail


def decode_bus_event(body: str) -> Notification:
    """A notification out of a queue's message; raises pydantic's `ValidationError`."""
    detail = BusEvent.model_validate_json(body).detail
    return Notification(detail.id, detail.customer, detail.type, detail.at, detail.facts)

"""What comes in from Stripe: snapshot and thin events, and the message that hands one on."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from meterline.domain.webhooks import Notice
from meterline.errors import InvalidRequestError


class _Snapshot(BaseModel):
    """A v1 event; `data.object` is the object as it was then."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str = Field(min_length=1, max_length=255)
    type: str = Field(min_length=1, max_length=255)
    created: int = Field(ge=0)
    data: dict[str, Any]


class _RelatedObject(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str = Field(max_length=255)


class _Thin(BaseModel):
    """A v2 event notification: what happened must be fetched."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str = Field(min_length=1, max_length=255)
    type: str = Field(min_length=1, max_length=255)
    created: datetime
    related_object: _RelatedObject | None = None


class NoticeMessage(BaseModel):
    """The queue's message: an event by name, nothing of its content."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    id: str
    type: str
    object_id: str | None = None
    customer: str | None = None
    created_s: int


def read_notice(body: bytes) -> Notice:
    """The event that a delivery names; `InvalidRequestError` if it names none."""
    try:
        told = from_json(body)
    except ValueError as error:
        raise InvalidRequestError("invalid_json", f"The body is not JSON: {error}.") from None
    try:
        return parse_notice(told)
    except ValidationError:
        raise InvalidRequestError("invalid_body", "The body is not an event of Stripe's.") from None


def parse_notice(told: object) -> Notice:
    """The event that Stripe's object describes; pydantic's ValidationError if it is none."""
    if isinstance(told, dict) and told.get("object") == "v2.core.event":
        thin = _Thin.model_validate(told)
        about = thin.related_object.id if thin.related_object is not None else None
        return Notice(thin.id, thin.type, about, None, int(thin.created.timestamp()))
    event = _Snapshot.model_validate(told)
    found = event.data.get("object")
    found = found if isinstance(found, dict) else {}
    return Notice(
        event.id,
        event.type,
        _read_id(found.get("id")),
        _read_id(found.get("customer")),
        event.created,
    )


def encode_notice(notice: Notice) -> str:
    """The message that hands an event on."""
    return NoticeMessage(
        id=notice.id,
        type=notice.type,
        object_id=notice.object_id,
        customer=notice.customer,
        created_s=notice.created_s,
    ).model_dump_json(exclude_none=True)


def decode_notice(body: str) -> Notice:
    """The event that a message hands on; pydantic's ValidationError."""
    message = NoticeMessage.model_validate_json(body)
    return Notice(message.id, message.type, message.object_id, message.customer, message.created_s)


def _read_id(value: object) -> str | None:
    """An id, or an expanded object's; an upcoming invoice has none."""
    if isinstance(value, dict):
        value = value.get("id")
    return value if isinstance(value, str) and value else None

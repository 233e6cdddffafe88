"""The messages of the emission queue and its dead-letter queue, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from meterline.domain.emission import BatchDue, Delivery, EmissionDue, HourDue


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    customer: str
    meter: str
    parked_for: str | None = None
    """Set when the message was parked in the dead-letter queue: why, as a stable code. Who moves
    it back to the main queue asks for the refused entries to be tried again."""
    parked_message: str | None = None


class BatchMessage(_Message):
    """This batch is to be sent."""

    due: Literal["batch"] = "batch"
    batch: str


class HourMessage(_Message):
    """This hour's total has changed. `hour` is when the hour starts."""

    due: Literal["hour"] = "hour"
    hour: AwareDatetime


EmissionMessage = Annotated[BatchMessage | HourMessage, Field(discriminator="due")]
_MESSAGE: TypeAdapter[BatchMessage | HourMessage] = TypeAdapter(EmissionMessage)


def decode_due(body: str) -> tuple[EmissionDue, bool]:
    """What a message says is due, and whether it was parked before; pydantic's ValidationError."""
    message = _MESSAGE.validate_json(body)
    parked = message.parked_for is not None
    if isinstance(message, BatchMessage):
        return BatchDue(message.customer, message.meter, message.batch), parked
    return HourDue(message.customer, message.meter, to_hour(message.hour)), parked


def read_reason(body: str) -> tuple[str, str]:
    """Why a message was parked: code and message, empty if it never was."""
    message = _MESSAGE.validate_json(body)
    return message.parked_for or "", message.parked_message or ""


def to_hour(at: datetime) -> datetime:
    """The start of the UTC hour that holds `at`."""
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def read_deliveries(event: Mapping[str, Any]) -> list[Delivery]:
    """The messages of a Lambda event of a FIFO queue; a body that says nothing has no `due`."""
    return [_read_delivery(record) for record in event["Records"]]


def _read_delivery(record: Mapping[str, Any]) -> Delivery:
    due: EmissionDue | None
    try:
        due, parked = decode_due(record["body"])
    except ValidationError:
        # Not an error of the call: the emitter sets the message aside.
        due, parked = None, False
    attributes = record["attributes"]
    return Delivery(
        id=record["messageId"],
        receipt=record["receiptHandle"],
        group=attributes["MessageGroupId"],
        body=record["body"],
        due=due,
        parked=parked,
        receive_count=int(attributes["ApproximateReceiveCount"]),
    )

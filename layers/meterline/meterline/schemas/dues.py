"""What is due as it goes out to the emission queue, as JSON.

Apart from the models that read it: most functions only send, and models take long to load.
"""

from __future__ import annotations

from datetime import UTC

from pydantic_core import to_json

from meterline.domain.emission import BatchDue, EmissionDue


def encode_due(
    due: EmissionDue, *, parked_for: str | None = None, parked_message: str | None = None
) -> str:
    """A `BatchMessage` or an `HourMessage` of `meterline.schemas.emission`."""
    message: dict[str, object] = {"customer": due.customer, "meter": due.meter}
    if parked_for is not None:
        message["parked_for"] = parked_for
    if parked_message is not None:
        message["parked_message"] = parked_message
    if isinstance(due, BatchDue):
        message |= {"due": "batch", "batch": due.batch}
    else:
        message |= {"due": "hour", "hour": due.hour.astimezone(UTC)}
    return to_json(message).decode()

"""The usage report as it crosses the border: CloudEvents 1.0 with our `data`.

Every event is read by itself, so that a bad one never costs the others.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from meterline.domain.quantities import QUANTITY_PATTERN
from meterline.domain.usage import CORRECTIONS
from meterline.errors import InvalidRequestError, RejectedEventError
from meterline.schemas.locations import write_location
from meterline.schemas.names import TEXT_PATTERN, CustomerId, Label, SenderText, limit_text

MAX_EVENTS = 1_000
"""Events in one call."""
MAX_TOKENS = 10**12
"""Tokens of one kind in one event."""

TokenCount = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
ReportedUsage = Annotated[
    dict[Annotated[str, limit_text(64)], TokenCount],
    Field(
        min_length=1,
        max_length=16,
        description="Tokens of each kind, and each token in one kind only: input_tokens, "
        "output_tokens, cache_read_tokens, cache_write_tokens, cache_write_1h_tokens. Or what "
        "the rate card has besides: images, predict_time_ms.",
    ),
]
Quantity = (
    Annotated[str, Field(max_length=82, json_schema_extra={"pattern": QUANTITY_PATTERN})]
    | Annotated[int, Field(ge=0)]
)
"""A decimal string, or a whole number."""


class EventData(BaseModel):
    """What was used. Either `usage`, as the provider reports it, or `quantity`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    meter: Annotated[Label, Field(examples=["credits"])]
    user: Annotated[Label | None, Field(description="The customer's user who caused it.")] = None
    action: Annotated[Label | None, Field(description="What the user did with the app.")] = None
    provider: Annotated[Label | None, Field(examples=["anthropic"])] = None
    model: Annotated[Label | None, Field(examples=["claude-sonnet-4-5"])] = None
    usage: ReportedUsage | None = None
    quantity: Annotated[
        Quantity | None,
        Field(description="In the meter's own unit, exact, no finer than its sub-unit."),
    ] = None
    cached: Annotated[
        bool, Field(description="Answered from a cache of the app's own: it costs nothing.")
    ] = False
    authorization: Annotated[
        Label | None, Field(description="The authorization that this event settles.")
    ] = None
    tier: Annotated[Label | None, Field(description="The provider's service tier.")] = None
    status: Annotated[
        Literal["complete", "partial"] | None,
        Field(description="partial when the provider's answer was cut short."),
    ] = None
    response_id: Annotated[
        Label | None, Field(description="The provider's id of its answer, kept as evidence.")
    ] = None


def _check_source(source: str) -> str:
    # Else a report could take the place of the entry that an operator is yet to make.
    if source == CORRECTIONS:
        raise PydanticCustomError("reserved", "This source is that of corrections")
    return source


class UsageEvent(BaseModel):
    """One CloudEvent. Extension attributes of CloudEvents are let through and not kept."""

    model_config = ConfigDict(extra="ignore", strict=True)

    specversion: Literal["1.0"]
    id: Annotated[
        SenderText,
        Field(description="Made once for each unit of work and kept on every retry."),
    ]
    source: Annotated[SenderText, AfterValidator(_check_source)]
    # An app may send what it sends elsewhere: what makes it a usage report is its data.
    type: Annotated[
        SenderText,
        Field(description="meterline.usage, or the sender's own.", examples=["meterline.usage"]),
    ]
    subject: Annotated[CustomerId, Field(description="The customer's id.")]
    time: Annotated[
        Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})] | None,
        Field(description="When it was used: RFC 3339. Left out, it is when the call came."),
    ] = None
    datacontenttype: Annotated[str, Field(pattern=r"^application/([a-z.+-]+\+)?json")] | None = None
    data: EventData


def read_event(raw: object) -> UsageEvent:
    """Read one event; what is wrong with it first is the `RejectedEventError`."""
    try:
        return UsageEvent.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _rejection(first) from None


def list_events(document: object) -> list[object]:
    """The events of a body: one CloudEvent, a list of them, or `{"events": […]}`."""
    if isinstance(document, list):
        events = document
    elif isinstance(document, dict) and "events" in document and "specversion" not in document:
        events = document["events"]
        if not isinstance(events, list):
            raise InvalidRequestError("invalid_body", '"events" must be a list of CloudEvents.')
    elif isinstance(document, dict):
        events = [document]
    else:
        raise InvalidRequestError(
            "invalid_body",
            'The body must be a CloudEvent, a list of CloudEvents, or {"events": [...]}.',
        )
    if not events:
        raise InvalidRequestError("no_events", "The body holds no event.")
    if len(events) > MAX_EVENTS:
        raise InvalidRequestError(
            "too_many_events", f"One call takes at most {MAX_EVENTS} events.", status=413
        )
    return events


def _rejection(error: ErrorDetails) -> RejectedEventError:
    where = write_location(part for part in error["loc"] if part not in ("str", "int"))
    if not where:
        return RejectedEventError("invalid_event", "An event must be a JSON object.")
    if error["type"] == "missing":
        return RejectedEventError("missing_field", f"{where} is missing.")
    if error["type"] == "extra_forbidden":
        return RejectedEventError("unknown_field", f"{where} is not a field of an event.")
    if where.startswith("data.quantity"):
        return RejectedEventError(
            "invalid_quantity", 'data.quantity must be a decimal string such as "12.5".'
        )
    return RejectedEventError("invalid_field", f"{where}: {_explain(error)}")


def _explain(error: ErrorDetails) -> str:
    if (
        error["type"] == "string_pattern_mismatch"
        and error.get("ctx", {}).get("pattern") == TEXT_PATTERN
    ):
        return "Control characters are not allowed."
    if error["type"] == "string_unicode":
        return "Half of a surrogate pair is no text."
    if error["type"] == "model_type":
        return "This must be a JSON object."
    return f"{error['msg']}."

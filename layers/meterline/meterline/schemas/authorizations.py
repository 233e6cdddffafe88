"""Authorizations as they cross the border."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from meterline.domain.authorizations import (
    DEFAULT_LIFE,
    MAX_LIFE,
    AuthorizationId,
    Hold,
    InvalidAuthorizationError,
)
from meterline.domain.meters import Meter, Rating
from meterline.domain.quantities import parse_quantity
from meterline.domain.rating import count_tokens
from meterline.domain.times import format_time
from meterline.errors import InvalidRequestError, NotFoundError, RejectedEventError
from meterline.ports import RateCards
from meterline.schemas.events import Quantity, ReportedUsage
from meterline.schemas.names import CustomerId, Label
from meterline.services.authorize_usage import Decision, Request

MIN_LIFE_S = 10
_CUSTOMER_ID: TypeAdapter[str] = TypeAdapter(CustomerId)


class EstimateInput(BaseModel):
    """What an action will use at most: a quantity, or tokens of a model that are rated as usage."""

    model_config = ConfigDict(extra="forbid", strict=True)

    quantity: Quantity | None = None
    provider: Annotated[Label | None, Field(examples=["anthropic"])] = None
    model: Annotated[Label | None, Field(examples=["claude-sonnet-4-5"])] = None
    usage: ReportedUsage | None = None

    @model_validator(mode="after")
    def _is_one_of_two(self) -> EstimateInput:
        if (self.quantity is None) == (self.usage is None):
            raise ValueError("an estimate has either quantity or usage")
        return self


class AuthorizationInput(BaseModel):
    """The body of `POST /v1/authorizations`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    customer: CustomerId
    user: Label | None = None
    action: Label | None = None
    meter: Annotated[Label | None, Field(description="Left out: the one that the plan bills.")] = (
        None
    )
    estimate: EstimateInput
    lease: Annotated[
        bool,
        Field(description="Draw it down event by event, instead of settling it with the first."),
    ] = False
    expires_in_s: Annotated[
        int, Field(ge=MIN_LIFE_S, le=int(MAX_LIFE.total_seconds()), description="Seconds.")
    ] = int(DEFAULT_LIFE.total_seconds())


class ReleaseInput(BaseModel):
    """The body of a release. Of a lease, `unspent` is given back, or `events` closes it; all else,
    and a lease with neither, whole."""

    model_config = ConfigDict(extra="forbid", strict=True)

    unspent: Quantity | None = None
    events: Annotated[
        int | None,
        Field(
            ge=0,
            le=1_000_000,
            description="So many events name the lease in all. With the last its rest goes.",
        ),
    ] = None

    @model_validator(mode="after")
    def _take_one(self) -> Self:
        if self.unspent is not None and self.events is not None:
            raise ValueError("give unspent or events, not both")
        return self


class AuthorizationAnswer(BaseModel):
    """Yes or no. A no says when the limit counts anew and where it is raised."""

    model_config = ConfigDict(extra="forbid")

    decision: Literal["allow", "deny"]
    code: Annotated[str, Field(description="Stable: for programs.")]
    message: Annotated[str, Field(description="For the customer's users; it may change.")]
    authorization: Annotated[
        str | None, Field(description="To be named by the event. null: nothing needs to be held.")
    ]
    remaining: Annotated[
        str | None, Field(description="Left below the limit, without what is held.")
    ]
    expires_at: datetime | None
    resets_at: Annotated[datetime | None, Field(description="When the period ends.")]
    raise_at: Annotated[str | None, Field(description="Where the limit can be changed.")]


class ReleaseAnswer(BaseModel):
    """What was given back."""

    model_config = ConfigDict(extra="forbid")

    released: Annotated[str, Field(description="In the meter's own unit.")]


def is_customer_id(text: str) -> bool:
    """Whether a text can be a customer's id."""
    try:
        _CUSTOMER_ID.validate_python(text)
    except ValidationError:
        return False
    return True


def read_estimate(
    estimate: EstimateInput, rate_cards: RateCards, now: datetime
) -> Callable[[Meter], Decimal]:
    """How to read an estimate in a meter; what cannot be rated is an `InvalidRequestError`."""

    def rate(meter: Meter) -> Decimal:
        try:
            return _rate(estimate, meter, rate_cards, now)
        except RejectedEventError as error:
            raise InvalidRequestError("invalid_estimate", str(error), status=422) from None

    return rate


def _rate(estimate: EstimateInput, meter: Meter, rate_cards: RateCards, now: datetime) -> Decimal:
    if estimate.usage is None:
        assert estimate.quantity is not None  # The model takes one of the two.
        return parse_quantity(estimate.quantity, meter)
    if meter.rating is Rating.RATE_CARD:
        if estimate.provider is None or estimate.model is None:
            raise RejectedEventError("missing_field", "estimate needs provider and model.")
        card = rate_cards.at(now)
        return card.credits(estimate.provider, estimate.model, estimate.usage, meter)
    if meter.rating is Rating.TOKENS:
        return count_tokens(estimate.usage, meter)
    raise RejectedEventError(
        "missing_quantity", f"The meter {meter.id} takes estimate.quantity only."
    )


def read_request(told: AuthorizationInput, rate_cards: RateCards, now: datetime) -> Request:
    """What the service is asked."""
    return Request(
        told.customer,
        read_estimate(told.estimate, rate_cards, now),
        told.meter,
        timedelta(seconds=told.expires_in_s),
        told.lease,
    )


def read_authorization(text: str, meters: Mapping[str, Meter]) -> AuthorizationId:
    """An authorization in a path; `NotFoundError` for what cannot be one."""
    try:
        named = AuthorizationId.parse(text)
    except InvalidAuthorizationError:
        named = None
    if named is None or named.meter not in meters or not is_customer_id(named.customer):
        raise NotFoundError("There is no such authorization.")
    return named


def read_unspent(told: ReleaseInput, meter: Meter) -> Decimal | None:
    """What of a lease was not spent; None for all of it."""
    if told.unspent is None:
        return None
    try:
        return parse_quantity(told.unspent, meter)
    except RejectedEventError as error:
        raise InvalidRequestError("invalid_unspent", str(error), status=422) from None


def write_decision(decision: Decision, settings_url: str) -> dict[str, Any]:
    """An `AuthorizationAnswer`."""
    is_limited = decision.code in ("hard_limit", "overage_blocked")
    return {
        "decision": "allow" if decision.is_allowed else "deny",
        "code": decision.code,
        "message": decision.message,
        "authorization": decision.authorization,
        "remaining": None if decision.remaining is None else f"{decision.remaining:f}",
        "expires_at": decision.expires_at and format_time(decision.expires_at),
        "resets_at": decision.resets_at and format_time(decision.resets_at),
        "raise_at": settings_url if is_limited else None,
    }


def write_release(hold: Hold, meter: Meter) -> dict[str, Any]:
    """A `ReleaseAnswer`."""
    return {"released": f"{meter.from_sub_units(hold.sub_units):f}"}

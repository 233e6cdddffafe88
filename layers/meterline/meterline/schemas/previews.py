"""Previews as they cross the border."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from meterline.domain.previews import Cost, Preview
from meterline.domain.times import format_time
from meterline.ports import RateCards
from meterline.schemas.authorizations import EstimateInput, read_estimate
from meterline.schemas.names import CustomerId, Label
from meterline.services.authorize_usage import Terms
from meterline.services.preview_usage import PreviewRequest


class PreviewInput(BaseModel):
    """The body of `POST /v1/previews`: an estimate, or an action whose past says what it takes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    customer: CustomerId
    user: Label | None = None
    action: Label | None = None
    estimate: EstimateInput | None = None

    @model_validator(mode="after")
    def _says_what(self) -> PreviewInput:
        if self.action is None and self.estimate is None:
            raise ValueError("a preview needs an action or an estimate")
        return self


class MoneyAnswer(BaseModel):
    """An amount in minor units."""

    model_config = ConfigDict(extra="forbid")

    amount_minor: int
    currency: str


class CostAnswer(BaseModel):
    """A quantity of the plan's meter, and what it adds to the period's bill."""

    model_config = ConfigDict(extra="forbid")

    quantity: str
    amount: MoneyAnswer


class PreviewAnswer(BaseModel):
    """What the action would bring."""

    model_config = ConfigDict(extra="forbid")

    basis: Literal["estimate", "history"]
    runs: Annotated[int, Field(ge=0, description="Past runs of the action in 28 days, if named.")]
    meter: str
    likely: Annotated[CostAnswer, Field(description="The estimate, or the median of past runs.")]
    high: Annotated[CostAnswer, Field(description="The estimate, or the 95th percentile.")]
    used: Annotated[str, Field(description="Used and held in the period.")]
    included_left: str
    limit_left: str | None
    crosses_quota: bool
    crosses_limit: bool
    resets_at: datetime


def read_preview(told: PreviewInput, rate_cards: RateCards, now: datetime) -> PreviewRequest:
    """What the service is asked."""
    estimate = told.estimate
    return PreviewRequest(
        told.customer,
        told.action,
        None if estimate is None else read_estimate(estimate, rate_cards, now),
    )


def write_preview(preview: Preview, terms: Terms) -> dict[str, Any]:
    """A `PreviewAnswer`."""
    currency = terms.plan.currency
    return {
        "basis": preview.basis.value,
        "runs": preview.runs,
        "meter": terms.meter.id,
        "likely": _write_cost(preview.likely, currency),
        "high": _write_cost(preview.high, currency),
        "used": f"{preview.used:f}",
        "included_left": f"{preview.included_left:f}",
        "limit_left": None if preview.limit_left is None else f"{preview.limit_left:f}",
        "crosses_quota": preview.crosses_quota,
        "crosses_limit": preview.crosses_limit,
        "resets_at": format_time(terms.period.end),
    }


def _write_cost(cost: Cost, currency: str) -> dict[str, Any]:
    return {
        "quantity": f"{cost.quantity:f}",
        "amount": {"amount_minor": cost.amount_minor, "currency": currency},
    }

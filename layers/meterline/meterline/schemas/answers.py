"""What the API answers, as models: for the OpenAPI document, and to check real answers by.

The functions write their answers without them: a report of 1,000 events is answered on the path
where every microsecond is paid for.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from meterline.domain.customers import Role
from meterline.schemas.events import CustomerId

Count = Annotated[int, Field(ge=0)]


class RejectedEvent(BaseModel):
    """An event that was not taken. The others of the call are not touched by it."""

    model_config = ConfigDict(extra="forbid")

    index: Annotated[Count, Field(description="Its place in the call; the first is 0.")]
    id: Annotated[str | None, Field(description="Its id, where it could be read.")]
    code: Annotated[str, Field(description="Stable: for programs.")]
    message: Annotated[str, Field(description="For people; it may change.")]


class UsageAnswer(BaseModel):
    """What became of the events of a call."""

    model_config = ConfigDict(extra="forbid")

    accepted: Annotated[Count, Field(description="New, and in the ledger.")]
    duplicates: Annotated[Count, Field(description="Known already: they count once.")]
    ignored: Annotated[Count, Field(description="Cache hits: nothing to bill.")]
    rejected: list[RejectedEvent]


class ListedCustomer(BaseModel):
    """A customer, the account that is billed, as a list shows it."""

    model_config = ConfigDict(extra="forbid")

    id: CustomerId
    name: str
    email: str | None
    plan: str
    billing_customer: Annotated[str | None, Field(description="Its id at the billing layer.")]
    created_at: datetime
    updated_at: datetime


class UserAnswer(BaseModel):
    """A person (seat) of a customer."""

    model_config = ConfigDict(extra="forbid")

    id: str
    name: str | None
    email: str | None
    role: Role


class PeriodAnswer(BaseModel):
    """A billing period; its end is not in it."""

    model_config = ConfigDict(extra="forbid")

    start: datetime
    end: datetime


class SubscriptionAnswer(BaseModel):
    """A customer's subscription, as the billing layer last told of it."""

    model_config = ConfigDict(extra="forbid")

    id: str
    status: str
    plan: str | None
    meter: str | None
    currency: str
    current_period: PeriodAnswer
    ends_at: datetime | None
    trial_end: datetime | None
    synced_at: datetime


class CustomerAnswer(ListedCustomer):
    """A customer with its users and its subscription."""

    users: list[UserAnswer]
    subscription: SubscriptionAnswer | None


class CustomerPage(BaseModel):
    """Some customers in the order of their ids."""

    model_config = ConfigDict(extra="forbid")

    customers: list[ListedCustomer]
    next_cursor: Annotated[
        str | None, Field(description="The `cursor` of the page behind this one; null: it ends.")
    ]


class Problem(BaseModel):
    """Why a call was refused (RFC 9457, application/problem+json)."""

    type: Literal["about:blank"]
    title: Annotated[str, Field(description="For people; it may change.")]
    status: Annotated[int, Field(ge=400, le=599)]
    code: Annotated[str, Field(description="Stable: for programs.")]


class FieldError(BaseModel):
    """What is wrong with one field of a body."""

    field: str
    message: str


class InvalidBodyProblem(Problem):
    """A body that is not what the call takes. `errors` names up to 20 fields."""

    errors: list[FieldError] = []


class UndecidedProblem(Problem):
    """The storage did not answer in time. Send the whole call again; nothing counts twice.

    Where some events were decided, the counts say what became of them.
    """

    accepted: Count | None = None
    duplicates: Count | None = None
    ignored: Count | None = None
    rejected: list[RejectedEvent] | None = None
    undecided: Annotated[
        Count | None, Field(description="Events that may or may not be in the ledger.")
    ] = None


class GatewayMessage(BaseModel):
    """API Gateway's own answer, where a call never reached a function."""

    message: str

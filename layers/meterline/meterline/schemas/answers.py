"""What the API answers, as models: for the OpenAPI document, and to check real answers by.

The functions write their answers without them: a report of 1,000 events is answered on the path
where every microsecond is paid for.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from meterline.domain.customers import Role
from meterline.domain.invoice_checks import CheckState
from meterline.domain.meters import EmissionMode
from meterline.schemas.names import CustomerId
from meterline.services.trace_usage import SendingState

Count = Annotated[int, Field(ge=0)]
NextCursor = Annotated[
    str | None, Field(description="The `cursor` of the page behind this one; null: it ends.")
]


class Answer(BaseModel):
    """What we answer, and nothing besides."""

    model_config = ConfigDict(extra="forbid")


class RejectedEvent(Answer):
    """An event that was not taken. The others of the call are not touched by it."""

    index: Annotated[Count, Field(description="Its place in the call; the first is 0.")]
    id: Annotated[str | None, Field(description="Its id, where it could be read.")]
    code: Annotated[str, Field(description="Stable: for programs.")]
    message: Annotated[str, Field(description="For people; it may change.")]


class UsageAnswer(Answer):
    """What became of the events of a call."""

    accepted: Annotated[Count, Field(description="New, and in the ledger.")]
    duplicates: Annotated[Count, Field(description="Known already: they count once.")]
    ignored: Annotated[Count, Field(description="Cache hits: nothing to bill.")]
    rejected: list[RejectedEvent]


class ListedCustomer(Answer):
    """A customer, the account that is billed, as a list shows it."""

    id: CustomerId
    name: str
    email: str | None
    plan: str
    billing_customer: Annotated[str | None, Field(description="Its id at the billing layer.")]
    created_at: datetime
    updated_at: datetime


class UserAnswer(Answer):
    """A person (seat) of a customer."""

    id: str
    name: str | None
    email: str | None
    role: Role


class PeriodAnswer(Answer):
    """A billing period; its end is not in it."""

    start: datetime
    end: datetime


class SubscriptionAnswer(Answer):
    """A customer's subscription, as the billing layer last told of it."""

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


class CustomerPage(Answer):
    """Some customers in the order of their ids."""

    customers: list[ListedCustomer]
    next_cursor: NextCursor


class MoneyAnswer(Answer):
    """An amount in minor units of its currency."""

    amount_minor: int
    currency: Annotated[str, Field(pattern=r"^[a-z]{3}$")]


Quantity = Annotated[str, Field(pattern=r"^-?[0-9]+(\.[0-9]+)?$", description="Exact, decimal.")]


class QuantityAnswer(Answer):
    """A quantity of the plan's meter."""

    quantity: Quantity


class LimitsAnswer(Answer):
    """A customer's limits. An amount stands for the whole bill of a period."""

    warn_at: MoneyAnswer | QuantityAnswer | None
    stop_at: MoneyAnswer | QuantityAnswer | None
    block_overage: bool
    warns_at_quantity: Annotated[
        Quantity | None, Field(description="What warn_at comes to on the plan as it is now.")
    ]
    stops_at_quantity: Annotated[
        Quantity | None, Field(description="The least of what stops billable usage.")
    ]
    is_reached: Annotated[
        bool, Field(description="As much is used already: from now on leave to spend is refused.")
    ]
    changed_at: datetime | None
    changed_by: str | None


class CostAnswer(Answer):
    """What a period costs."""

    base_fee: MoneyAnswer
    overage: MoneyAnswer
    total: MoneyAnswer


class OutlookAnswer(CostAnswer):
    """What a period may come to, and what that costs."""

    quantity: Quantity


class ForecastAnswer(Answer):
    """What the period will come to: four of five times from low to high."""

    low: OutlookAnswer
    expected: OutlookAnswer
    high: OutlookAnswer


class TierAnswer(Answer):
    """A price from the tier before it up to and including `up_to`; null: without end."""

    up_to: Quantity | None
    unit_amount_minor: Quantity
    flat_amount_minor: int


class PlanAnswer(Answer):
    """A plan's terms in the customer's currency."""

    id: str
    name: str
    base_fee: MoneyAnswer
    included: Quantity
    tiers: list[TierAnswer]
    block_overage: Annotated[bool, Field(description="Usage stops at the included quota.")]


class NamedAnswer(Answer):
    """A customer's id and name."""

    id: str
    name: str


class MeterAnswer(Answer):
    """What is counted."""

    id: str
    unit: str


class DayAnswer(Answer):
    """One UTC day."""

    day: date
    quantity: Quantity
    events: int


class ActionAnswer(Answer):
    """What an action counts for; null: events that named none."""

    action: str | None
    quantity: Quantity
    events: int
    share: Annotated[str, Field(description="Of the total, from 0 to 1.")]


class UserShareAnswer(Answer):
    """What a user counts for; null: events that named none."""

    user: str | None
    name: str | None
    role: Role | None
    quantity: Quantity
    events: int
    share: str


class InvoiceAnswer(Answer):
    """An invoice at the billing layer."""

    id: str
    number: str | None
    status: str
    total: MoneyAnswer
    created_at: datetime
    page_url: str | None


class ComparisonAnswer(Answer):
    """Our count next to the billing layer's, from the period's start until a whole hour."""

    from_: Annotated[datetime, Field(alias="from")]
    until: datetime
    ours_sub_units: int
    theirs_sub_units: int
    diverges: Annotated[bool, Field(description="By more than 1%.")]


class BillingAnswer(Answer):
    """What the billing layer said when it was last asked."""

    asked_at: datetime
    comparison: ComparisonAnswer | None
    invoices: list[InvoiceAnswer]


class UsageReportAnswer(Answer):
    """A customer's dashboard."""

    customer: NamedAnswer
    as_of: datetime
    counted_at: Annotated[datetime | None, Field(description="When anything was last added.")]
    period: PeriodAnswer
    subscription_status: str | None
    plan: PlanAnswer
    meter: MeterAnswer
    usage_is_free: bool
    used: Quantity
    events: int
    included: Quantity
    remaining: Quantity
    overage: Quantity
    cost: CostAnswer | None
    forecast: ForecastAnswer | None
    days: list[DayAnswer]
    actions: list[ActionAnswer]
    users: list[UserShareAnswer]
    limits: LimitsAnswer
    billing: BillingAnswer | None


class InvoiceLineAnswer(Answer):
    """What an invoice bills of one meter in one period, all its tiers together."""

    meter: str
    period: PeriodAnswer
    plan: str | None
    quantity: Annotated[Quantity, Field(description="What the ledger holds.")]
    billed: Annotated[Quantity, Field(description="What the invoice asks for.")]
    settled_later: Annotated[
        Quantity,
        Field(description="Of what the invoice has too little, what was billed or waived."),
    ]
    events: Count
    digest: Annotated[
        str,
        Field(
            pattern="^[0-9a-f]{64}$",
            description="SHA-256 over the line's events: for each its source, id, time, meter and "
            "quantity as the list of events writes them, parted by tabs and ended by a newline; "
            "the lines sorted as bytes.",
        ),
    ]


class CheckedInvoiceAnswer(Answer):
    """An invoice next to the ledger, as they were last compared."""

    id: str
    state: CheckState
    currency: str
    checked_at: datetime
    lines: list[InvoiceLineAnswer]


class CheckedInvoicesAnswer(Answer):
    """A customer's invoices with usage on them, the newest period first."""

    invoices: list[CheckedInvoiceAnswer]


class LedgerEventAnswer(Answer):
    """An event as the ledger keeps it."""

    source: str
    id: str
    time: datetime
    received_at: datetime
    meter: str
    quantity: Quantity
    user: str | None
    action: str | None
    provider: str | None
    model: str | None
    usage: dict[str, int] | None
    rate_card: str | None
    tier: str | None
    status: str | None
    response_id: str | None


class InvoiceEventsAnswer(Answer):
    """Some of the events that an invoice bills."""

    events: list[LedgerEventAnswer]
    next_cursor: NextCursor


class SentUsageAnswer(Answer):
    """Under which identifier an event is told to the billing layer, and how far that is."""

    mode: EmissionMode
    identifier: Annotated[
        str, Field(description="Its name there; of an hourly meter, that of the hour's total.")
    ]
    state: SendingState
    batch: str | None
    problem: Annotated[str | None, Field(description="Why it was not billed.")]


class TracedEventAnswer(Answer):
    """One event on its way from the ledger to the invoice."""

    event: LedgerEventAnswer
    billing: SentUsageAnswer
    invoice: Annotated[str | None, Field(description="The invoice of its period, if there is one.")]
    invoice_state: CheckState | None
    line: InvoiceLineAnswer | None


class PortalSessionAnswer(Answer):
    """A link to a dashboard, to be followed until it expires."""

    url: str
    expires_at: datetime


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

"""The OpenAPI document: made from the models that the functions read with, and from one table.

The table says which call answers which codes; tests hold it against the routes of the template,
against every code in the source, and against real answers of the deployed API.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from meterline.domain.api_keys import Scope
from meterline.http import MAX_BODY_BYTES
from meterline.schemas.answers import (
    CheckedInvoicesAnswer,
    CustomerAnswer,
    CustomerPage,
    GatewayMessage,
    InvalidBodyProblem,
    InvoiceEventsAnswer,
    LimitsAnswer,
    PortalSessionAnswer,
    Problem,
    TracedEventAnswer,
    UndecidedProblem,
    UsageAnswer,
    UsageReportAnswer,
)
from meterline.schemas.authorizations import (
    AuthorizationAnswer,
    AuthorizationInput,
    ReleaseAnswer,
    ReleaseInput,
)
from meterline.schemas.customers import DEFAULT_LIMIT, MAX_LIMIT, CustomerInput
from meterline.schemas.events import MAX_EVENTS, UsageEvent
from meterline.schemas.freezes import FreezeAnswer, NotificationsAnswer, UnfreezeInput
from meterline.schemas.limits import LimitsInput
from meterline.schemas.names import CustomerId
from meterline.schemas.portal import PortalSessionInput
from meterline.schemas.previews import PreviewAnswer, PreviewInput
from meterline.schemas.traces import DEFAULT_EVENTS, MAX_EVENTS_PER_PAGE

API_VERSION: Final = "1.0"

PROBLEMS: Final[Mapping[str, tuple[int, ...]]] = {
    "billing_customer_taken": (409,),
    "body_too_large": (413,),
    "empty_body": (400,),
    "forbidden": (403,),
    "internal_error": (500,),
    "invalid_body": (400, 422),
    "invalid_cursor": (400,),
    "invalid_customer_id": (400,),
    "invalid_estimate": (422,),
    "invalid_event_name": (400,),
    "invalid_json": (400,),
    "invalid_limit": (400,),
    "invalid_unspent": (422,),
    "limit_below_base_fee": (422,),
    "limit_out_of_range": (422,),
    "no_events": (400,),
    "no_history": (422,),
    "no_terms": (409,),
    "not_found": (404,),
    "not_frozen": (409,),
    "quantity_too_fine": (422,),
    "rate_limited": (429,),
    "storage_unavailable": (503,),
    "too_many_events": (413,),
    "unauthenticated": (401,),
    "unknown_meter": (422,),
    "unknown_plan": (422,),
    "unsupported_content_encoding": (415,),
    "unsupported_media_type": (415,),
    "warn_above_stop": (422,),
    "wrong_currency": (422,),
}
"""Every code of a problem, and the statuses that it comes with."""

REJECTIONS: Final[Mapping[str, str]] = {
    "ambiguous_quantity": "It has both data.usage and data.quantity.",
    "conflict": "An event of that customer, source and id is known with other content; it stays.",
    "invalid_event": "It is not a JSON object.",
    "invalid_field": "A field is not what it must be; the message says which.",
    "invalid_quantity": "data.quantity is not a decimal string.",
    "invalid_time": "time is not an RFC 3339 time with its zone.",
    "missing_field": "A field is missing; the message says which.",
    "missing_quantity": "It has neither data.usage nor data.quantity, or not the one needed.",
    "quantity_too_fine": "data.quantity is no whole number of the meter's sub-units.",
    "quantity_too_large": "It is more than a billing layer takes at once.",
    "time_in_future": "time is more than 5 minutes ahead.",
    "time_too_old": "time is more than two years ago.",
    "unknown_customer": "There is no such customer. Create it, and send the event again.",
    "unknown_field": "data has a field that nobody here knows.",
    "unknown_meter": "There is no such meter.",
    "unknown_model": "The rate card has no rate for that model; it is never priced at zero.",
    "unknown_usage_kind": "The rate card has no rate for that kind of tokens of that model.",
}
"""Every code of an event that is not taken, and what it means."""

_AUTHENTICATION = ("unauthenticated", "rate_limited", "forbidden")
_BODY = (
    "unsupported_media_type",
    "unsupported_content_encoding",
    "body_too_large",
    "empty_body",
    "invalid_json",
)
_OURS = ("internal_error", "storage_unavailable")
_GATEWAY_STATUSES = (413, 429, 500, 503)
_PROBLEM_MODELS: Mapping[str, type[Problem]] = {
    "invalid_body": InvalidBodyProblem,
    "storage_unavailable": UndecidedProblem,
}
_STATUS_WORDS = {
    303: "On to another page.",
    400: "The call cannot be read.",
    401: "No API key, or one that is not known.",
    403: "The API key has not the scope that the call needs.",
    404: "There is no such thing.",
    409: "The customer is not in a state for it; the code says why.",
    413: "Too much for one call.",
    415: "A body in a form that the call does not take.",
    422: "The body is not what the call takes.",
    429: "Too many calls a second, of this key or of all. Wait, and send it again.",
    500: "Something went wrong on our side. Send it again; nothing counts twice.",
    503: "The storage did not answer in time. Send it again; nothing counts twice.",
}
_EVENT = {
    "specversion": "1.0",
    "id": "req_8f2",
    "source": "backend/reports",
    "type": "meterline.usage",
    "subject": "acme",
    "time": "2026-11-22T06:00:00Z",
    "data": {
        "meter": "credits",
        "user": "u_9",
        "action": "report.generate",
        "provider": "anthropic",
        "model": "claude-sonnet-4-5",
        "usage": {
            "input_tokens": 1200,
            "output_tokens": 350,
            "cache_read_tokens": 0,
            "cache_write_tokens": 0,
        },
    },
}
_EVENT_OF_QUANTITY = {
    **_EVENT,
    "id": "report-17",
    "data": {"meter": "outcomes", "quantity": "1", "action": "report.generate"},
}
_CUSTOMER = {"name": "Acme Ltd", "plan": "pro", "billing_customer": "cus_QXg1o8vcGmoR32"}
_USER = {"id": "u_9", "name": "Kim", "email": "kim@acme.example", "role": "admin"}
_LIMITS = {
    "warn_at": {"amount_minor": 4000, "currency": "usd"},
    "stop_at": {"quantity": "5000"},
    "block_overage": False,
}
_LIMITS_ANSWER = {
    **_LIMITS,
    "warns_at_quantity": "3200.999",
    "stops_at_quantity": "5000",
    "is_reached": False,
    "changed_at": "2026-11-22T07:30:00.000Z",
    "changed_by": "key backend",
}


def _cost(overage_minor: int) -> dict[str, Any]:
    return {
        "base_fee": {"amount_minor": 2900, "currency": "usd"},
        "overage": {"amount_minor": overage_minor, "currency": "usd"},
        "total": {"amount_minor": 2900 + overage_minor, "currency": "usd"},
    }


_USAGE_REPORT = {
    "customer": {"id": "acme", "name": "Acme Ltd"},
    "as_of": "2026-11-22T14:03:10.000Z",
    "counted_at": "2026-11-22T14:03:08.123Z",
    "period": {"start": "2026-11-03T00:00:00.000Z", "end": "2026-12-03T00:00:00.000Z"},
    "subscription_status": "active",
    "plan": {
        "id": "pro",
        "name": "Pro",
        "base_fee": {"amount_minor": 2900, "currency": "usd"},
        "included": "1000",
        "tiers": [
            {"up_to": "1000", "unit_amount_minor": "0", "flat_amount_minor": 0},
            {"up_to": None, "unit_amount_minor": "0.5", "flat_amount_minor": 0},
        ],
        "block_overage": False,
    },
    "meter": {"id": "credits", "unit": "credit"},
    "usage_is_free": False,
    "used": "1200.5",
    "events": 640,
    "included": "1000",
    "remaining": "0",
    "overage": "200.5",
    "cost": _cost(100),
    "forecast": {
        "low": {"quantity": "1610", **_cost(305)},
        "expected": {"quantity": "1720", **_cost(360)},
        "high": {"quantity": "1830", **_cost(415)},
    },
    "days": [{"day": "2026-11-22", "quantity": "61.25", "events": 33}],
    "actions": [
        {"action": "report.generate", "quantity": "1200.5", "events": 640, "share": "1.0000"}
    ],
    "users": [
        {
            "user": "u_9",
            "name": "Kim",
            "role": "admin",
            "quantity": "1200.5",
            "events": 640,
            "share": "1.0000",
        }
    ],
    "limits": _LIMITS_ANSWER,
    "billing": {
        "asked_at": "2026-11-22T14:01:00.000Z",
        "comparison": {
            "from": "2026-11-03T00:00:00.000Z",
            "until": "2026-11-22T13:00:00.000Z",
            "ours_sub_units": 1190000,
            "theirs_sub_units": 1190000,
            "diverges": False,
        },
        "invoices": [
            {
                "id": "in_1SWKD2",
                "number": "ACME-0001",
                "status": "paid",
                "total": {"amount_minor": 2900, "currency": "usd"},
                "created_at": "2026-11-03T00:05:00.000Z",
                "page_url": "https://invoice.stripe.com/i/acct_1/test_1",
            }
        ],
    },
}
_INVOICE_LINE = {
    "meter": "credits",
    "period": {"start": "2026-11-03T00:00:00.000Z", "end": "2026-12-03T00:00:00.000Z"},
    "plan": "pro",
    "quantity": "1200.5",
    "billed": "1200.5",
    "settled_later": "0",
    "events": 640,
    "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}
_LEDGER_EVENT = {
    "source": "backend/reports",
    "id": "req_8f2",
    "time": "2026-11-22T06:00:00.000Z",
    "received_at": "2026-11-22T06:00:00.214Z",
    "meter": "credits",
    "quantity": "2.95",
    "user": "u_9",
    "action": "report.generate",
    "provider": "anthropic",
    "model": "claude-sonnet-4-5",
    "usage": {"input_tokens": 1200, "output_tokens": 350},
    "rate_card": "2026-11-01",
    "tier": None,
    "status": None,
    "response_id": None,
}
_LISTED_CUSTOMER = {
    "id": "acme",
    "email": "billing@acme.example",
    **_CUSTOMER,
    "created_at": "2026-11-22T06:00:00.000Z",
    "updated_at": "2026-11-22T07:30:00.000Z",
}
_ACCOUNT = {
    **_LISTED_CUSTOMER,
    "users": [_USER],
    "subscription": {
        "id": "sub_1SWKD2",
        "status": "active",
        "plan": "pro",
        "meter": "credits",
        "currency": "usd",
        "current_period": {
            "start": "2026-11-03T00:00:00.000Z",
            "end": "2026-12-03T00:00:00.000Z",
        },
        "ends_at": None,
        "trial_end": None,
        "synced_at": "2026-11-22T06:00:00.000Z",
    },
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of the API: what the document says of it."""

    method: str
    path: str
    name: str
    summary: str
    description: str
    status: int
    answer: type[BaseModel] | None = None
    example: Any = None
    codes: Sequence[str] = ()
    """Codes of its problems; an `invalid_body` comes as 400 where `statuses` does not say else."""
    scope: Scope | None = None
    statuses: Mapping[str, int] | None = None
    body: Mapping[str, Any] | None = None
    """What the call takes: media types, as OpenAPI writes them."""
    parameters: Sequence[Mapping[str, Any]] = ()
    media: str = "application/json"
    """Of an answer without a model."""
    further_media: Sequence[str] = ()
    """In which it can be had as well, by `Accept`."""
    page_statuses: Sequence[int] = ()
    """Of a page: what else it can answer, as a page too."""


def _refer(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _examples(**values: Any) -> dict[str, Any]:
    return {name: {"value": value} for name, value in values.items()}


_CUSTOMER_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": TypeAdapter(CustomerId).json_schema(),
}


def _usage_body() -> dict[str, Any]:
    event = _refer(UsageEvent)
    events = {"type": "array", "minItems": 1, "maxItems": MAX_EVENTS, "items": event}
    wrapped = {"type": "object", "required": ["events"], "properties": {"events": events}}
    return {
        "application/json": {
            "schema": {"anyOf": [wrapped, events, event]},
            "examples": _examples(
                events={"events": [_EVENT, _EVENT_OF_QUANTITY]},
                list=[_EVENT],
                one=_EVENT,
            ),
        },
        "application/cloudevents+json": {"schema": event, "examples": _examples(one=_EVENT)},
        "application/cloudevents-batch+json": {
            "schema": events,
            "examples": _examples(batch=[_EVENT, _EVENT_OF_QUANTITY]),
        },
    }


def _form_body(*fields: str) -> dict[str, Any]:
    properties = {field: {"type": "string"} for field in fields}
    schema = {"type": "object", "required": ["form_token"], "properties": properties}
    return {"application/x-www-form-urlencoded": {"schema": schema}}


def _page_parameters(default: int, most: int) -> tuple[dict[str, Any], ...]:
    return (
        {
            "name": "limit",
            "in": "query",
            "schema": {"type": "integer", "minimum": 1, "maximum": most, "default": default},
        },
        {
            "name": "cursor",
            "in": "query",
            "description": "`next_cursor` of the page before.",
            "schema": {"type": "string"},
        },
    )


OPERATIONS: Final = (
    Operation(
        "POST",
        "/v1/usage",
        "reportUsage",
        "Report usage",
        f"One event, a list of events, or an object that holds a list; up to {MAX_EVENTS} events "
        f"and {MAX_BODY_BYTES} bytes. Each event is judged by itself: a bad one never costs the "
        "others. An event is known by its customer (`subject`), `source` and `id`, for ever and "
        "whatever its time: after any failure, send the whole call again.",
        202,
        UsageAnswer,
        {
            "accepted": 1,
            "duplicates": 1,
            "ignored": 0,
            "rejected": [
                {
                    "index": 2,
                    "id": "req_8f4",
                    "code": "unknown_model",
                    "message": "The rate card has no rate for anthropic claude-9.",
                }
            ],
        },
        (*_AUTHENTICATION, *_BODY, "invalid_body", "no_events", "too_many_events", *_OURS),
        Scope.USAGE,
        body=_usage_body(),
    ),
    Operation(
        "PUT",
        "/v1/customers/{id}",
        "putCustomer",
        "Create a customer, or make it what the call says",
        "A field that is null or left out is taken away, but for `users`: left out, they stay. The "
        "same call again is harmless.",
        200,
        CustomerAnswer,
        {**_LISTED_CUSTOMER, "users": [], "subscription": None},
        (
            *_AUTHENTICATION,
            *_BODY,
            "invalid_customer_id",
            "not_found",
            "invalid_body",
            "billing_customer_taken",
            "unknown_plan",
            *_OURS,
        ),
        Scope.ADMIN,
        {"invalid_body": 422},
        parameters=(_CUSTOMER_ID,),
        body={
            "application/json": {
                "schema": _refer(CustomerInput),
                "examples": _examples(
                    customer=_CUSTOMER, with_users={**_CUSTOMER, "users": [_USER]}
                ),
            }
        },
    ),
    Operation(
        "GET",
        "/v1/customers/{id}",
        "getCustomer",
        "Show a customer",
        "The customer as it is now.",
        200,
        CustomerAnswer,
        _ACCOUNT,
        (*_AUTHENTICATION, "invalid_customer_id", "not_found", *_OURS),
        Scope.ADMIN,
        parameters=(_CUSTOMER_ID,),
    ),
    Operation(
        "GET",
        "/v1/customers",
        "listCustomers",
        "List customers",
        "Customers in the order of their ids, page by page.",
        200,
        CustomerPage,
        {"customers": [_LISTED_CUSTOMER], "next_cursor": None},
        (*_AUTHENTICATION, "invalid_limit", "invalid_cursor", *_OURS),
        Scope.ADMIN,
        parameters=_page_parameters(DEFAULT_LIMIT, MAX_LIMIT),
    ),
    Operation(
        "POST",
        "/v1/authorizations",
        "authorizeUsage",
        "Ask for leave to spend",
        "Holds the estimate when the customer has a limit: what is used and held never passes it. "
        "An event that names the authorization settles it; what no event settles is given back by "
        "a release, or when it expires. A no is a decision too, and comes with 200.",
        200,
        AuthorizationAnswer,
        {
            "decision": "deny",
            "code": "hard_limit",
            "message": "You've hit your set limit of $50. Raise it in settings to continue, or "
            "wait until next period.",
            "authorization": None,
            "remaining": "12.5",
            "expires_at": None,
            "resets_at": "2026-12-03T00:00:00.000Z",
            "raise_at": "/settings/usage",
        },
        (
            *_AUTHENTICATION,
            *_BODY,
            "invalid_body",
            "invalid_estimate",
            "unknown_meter",
            *_OURS,
        ),
        Scope.USAGE,
        {"invalid_body": 422},
        body={
            "application/json": {
                "schema": _refer(AuthorizationInput),
                "examples": _examples(
                    quantity={
                        "customer": "acme",
                        "user": "u_9",
                        "action": "report.generate",
                        "estimate": {"quantity": "50"},
                    },
                    tokens={
                        "customer": "acme",
                        "estimate": {
                            "provider": "anthropic",
                            "model": "claude-sonnet-4-5",
                            "usage": {"input_tokens": 1200, "output_tokens": 4096},
                        },
                    },
                    lease={"customer": "acme", "estimate": {"quantity": "500"}, "lease": True},
                ),
            }
        },
    ),
    Operation(
        "POST",
        "/v1/authorizations/{id}/release",
        "releaseAuthorization",
        "Give an authorization back",
        "Of a lease, `unspent` is given back, and the rest waits for its events; or `events` says "
        "how many there are in all, and the rest goes with the last. All else is given back whole.",
        200,
        ReleaseAnswer,
        {"released": "50"},
        (*_AUTHENTICATION, *_BODY, "not_found", "invalid_body", "invalid_unspent", *_OURS),
        Scope.USAGE,
        {"invalid_body": 422},
        parameters=({"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},),
        body={
            "application/json": {
                "schema": _refer(ReleaseInput),
                "examples": _examples(
                    whole={}, rest_of_a_lease={"unspent": "120.5"}, end_of_a_lease={"events": 12}
                ),
            }
        },
    ),
    Operation(
        "GET",
        "/v1/customers/{id}/usage",
        "showUsage",
        "The dashboard's numbers",
        "The period that runs: usage, cost so far, forecast, 30 days, shares of actions and users, "
        "limits, and what the billing layer said when it was last asked. Asking is never waited "
        "for: a call asks for a new comparison when the last one is five minutes old.",
        200,
        UsageReportAnswer,
        _USAGE_REPORT,
        (*_AUTHENTICATION, "invalid_customer_id", "not_found", "no_terms", *_OURS),
        Scope.ADMIN,
        parameters=(_CUSTOMER_ID,),
    ),
    Operation(
        "PUT",
        "/v1/customers/{id}/limits",
        "putLimits",
        "Set a customer's limits",
        "All of them: what is null or left out is off. An amount of money stands for the whole "
        "bill of a period, base fee included.",
        200,
        LimitsAnswer,
        _LIMITS_ANSWER,
        (
            *_AUTHENTICATION,
            *_BODY,
            "invalid_customer_id",
            "not_found",
            "no_terms",
            "invalid_body",
            "wrong_currency",
            "limit_out_of_range",
            "limit_below_base_fee",
            "quantity_too_fine",
            "warn_above_stop",
            *_OURS,
        ),
        Scope.ADMIN,
        {"invalid_body": 422},
        parameters=(_CUSTOMER_ID,),
        body={
            "application/json": {
                "schema": _refer(LimitsInput),
                "examples": _examples(limits=_LIMITS, none={}),
            }
        },
    ),
    Operation(
        "GET",
        "/v1/customers/{id}/limits",
        "getLimits",
        "Show a customer's limits",
        "What was set, and the quantities that it comes to.",
        200,
        LimitsAnswer,
        _LIMITS_ANSWER,
        (*_AUTHENTICATION, "invalid_customer_id", "not_found", "no_terms", *_OURS),
        Scope.ADMIN,
        parameters=(_CUSTOMER_ID,),
    ),
    Operation(
        "GET",
        "/v1/customers/{id}/invoices",
        "listInvoices",
        "List a customer's invoices, next to the ledger",
        "Each with its lines of usage: what the ledger holds, what is billed, and the digest that "
        "the events behind it add up to.",
        200,
        CheckedInvoicesAnswer,
        {
            "invoices": [
                {
                    "id": "in_1SWKD2",
                    "state": "final",
                    "currency": "usd",
                    "checked_at": "2026-12-03T01:05:00.000Z",
                    "lines": [_INVOICE_LINE],
                }
            ]
        },
        (*_AUTHENTICATION, "invalid_customer_id", "not_found", *_OURS),
        Scope.ADMIN,
        parameters=(_CUSTOMER_ID,),
    ),
    Operation(
        "GET",
        "/v1/customers/{id}/invoices/{invoice}/events",
        "listInvoiceEvents",
        "List the events behind an invoice",
        "Line by line, in the order of time, page by page. With `Accept: text/csv` as CSV, where "
        "`Link` names the next page.",
        200,
        InvoiceEventsAnswer,
        {"events": [_LEDGER_EVENT], "next_cursor": None},
        (
            *_AUTHENTICATION,
            "invalid_customer_id",
            "invalid_limit",
            "invalid_cursor",
            "not_found",
            *_OURS,
        ),
        Scope.ADMIN,
        parameters=(
            _CUSTOMER_ID,
            {"name": "invoice", "in": "path", "required": True, "schema": {"type": "string"}},
            *_page_parameters(DEFAULT_EVENTS, MAX_EVENTS_PER_PAGE),
        ),
        further_media=("text/csv",),
    ),
    Operation(
        "GET",
        "/v1/customers/{id}/events",
        "traceEvent",
        "Trace one event to its invoice",
        "The event as the ledger keeps it, the identifier under which the billing layer is told of "
        "it, how far that is, and the line of the invoice that bills its period.",
        200,
        TracedEventAnswer,
        {
            "event": _LEDGER_EVENT,
            "billing": {
                "mode": "event",
                "identifier": "ml_4b0c1f0f2a7f7a1a2b3c4d5e6f708192a3b4c5d6",
                "state": "sent",
                "batch": "shardId-00000001790000000000-1f2e3d4c-100000000000000000001",
                "problem": None,
            },
            "invoice": "in_1SWKD2",
            "invoice_state": "final",
            "line": _INVOICE_LINE,
        },
        (*_AUTHENTICATION, "invalid_customer_id", "invalid_event_name", "not_found", *_OURS),
        Scope.ADMIN,
        parameters=(
            _CUSTOMER_ID,
            *(
                {"name": name, "in": "query", "required": True, "schema": {"type": "string"}}
                for name in ("source", "id")
            ),
        ),
    ),
    Operation(
        "POST",
        "/v1/portal-sessions",
        "createPortalSession",
        "A link to a customer's dashboard",
        "For somebody whom the app has signed in. The link works once and for five minutes; it "
        "starts a session of an hour. Without `user` it shows everything of the customer; a user "
        "of the customer's list sees what their role there allows.",
        201,
        PortalSessionAnswer,
        {
            "url": "https://billing.example/settings/usage?token=eyJhbGciOi",
            "expires_at": "2026-11-22T14:08:10.000Z",
        },
        (*_AUTHENTICATION, *_BODY, "not_found", "invalid_body", *_OURS),
        Scope.ADMIN,
        {"invalid_body": 422},
        body={
            "application/json": {
                "schema": _refer(PortalSessionInput),
                "examples": _examples(
                    account={"customer": "acme"}, user={"customer": "acme", "user": "u_9"}
                ),
            }
        },
    ),
    Operation(
        "GET",
        "/settings/usage",
        "getUsagePage",
        "The dashboard as a page",
        "For whoever is signed in. With `token`, of a link, it starts a session and leads on to "
        "itself.",
        200,
        media="text/html",
        page_statuses=(303, 401, 403, 404, 500, 503),
        parameters=({"name": "token", "in": "query", "schema": {"type": "string"}},),
    ),
    Operation(
        "POST",
        "/settings/usage/limits",
        "postLimitsForm",
        "The page's form of limits",
        "Only from a page of the same session; leads back to the page.",
        303,
        media="text/html",
        page_statuses=(400, 401, 403, 404, 413, 415, 422, 500, 503),
        body=_form_body("form_token", "warn_at", "warn_at_in", "stop_at", "stop_at_in"),
    ),
    Operation(
        "POST",
        "/settings/usage/sign-out",
        "postSignOut",
        "End the page's session in this browser",
        "Only from a page of the same session.",
        303,
        media="text/html",
        page_statuses=(400, 401, 403, 413, 415, 500, 503),
        body=_form_body("form_token"),
    ),
    Operation(
        "GET",
        "/settings/usage/events.csv",
        "getEventsCsv",
        "Events as CSV",
        "The events from `from` up to and not including `to`, for whoever is signed in; a member "
        "gets their own. Where one file does not hold them all, `Link` names the next.",
        200,
        media="text/csv",
        page_statuses=(400, 401, 403, 404, 500, 503),
        parameters=tuple(
            {
                "name": name,
                "in": "query",
                "required": True,
                "schema": {"type": "string", "format": "date-time"},
            }
            for name in ("from", "to")
        ),
    ),
    Operation(
        "GET",
        "/settings/usage/invoice-events.csv",
        "getInvoiceEventsCsv",
        "Events behind an invoice as CSV",
        "For the customer's admins; the digest of `listInvoices` can be made from it. Where one "
        "file does not hold them all, `Link` names the next.",
        200,
        media="text/csv",
        page_statuses=(400, 401, 403, 404, 500, 503),
        parameters=tuple(
            {
                "name": name,
                "in": "query",
                "required": name == "invoice",
                "schema": {"type": "string"},
            }
            for name in ("invoice", "cursor")
        ),
    ),
    Operation(
        "GET",
        "/pricing",
        "getPricing",
        "What it costs, as a page",
        "For everybody.",
        200,
        media="text/html",
        page_statuses=(500, 503),
    ),
    Operation(
        "GET",
        "/pricing/changelog",
        "getPricingChangelog",
        "What changed in pricing, as a page",
        "For everybody.",
        200,
        media="text/html",
        page_statuses=(500, 503),
    ),
    Operation(
        "POST",
        "/v1/previews",
        "previewUsage",
        "Preview what an action would cost",
        "From an estimate, or from what the action used in the last 28 days: median and 95th "
        "percentile. Nothing is held: ask for an authorization to be sure of it.",
        200,
        PreviewAnswer,
        {
            "basis": "history",
            "runs": 41,
            "meter": "credits",
            "likely": {
                "quantity": "50",
                "amount": {"amount_minor": 25, "currency": "usd"},
            },
            "high": {
                "quantity": "112.5",
                "amount": {"amount_minor": 56, "currency": "usd"},
            },
            "used": "1204.75",
            "included_left": "0",
            "limit_left": "795.25",
            "crosses_quota": False,
            "crosses_limit": False,
            "resets_at": "2026-12-03T00:00:00.000Z",
        },
        (
            *_AUTHENTICATION,
            *_BODY,
            "not_found",
            "no_terms",
            "no_history",
            "invalid_body",
            "invalid_estimate",
            *_OURS,
        ),
        Scope.USAGE,
        {"invalid_body": 422},
        body={
            "application/json": {
                "schema": _refer(PreviewInput),
                "examples": _examples(
                    action={"customer": "acme", "action": "report.generate"},
                    estimate={"customer": "acme", "estimate": {"quantity": "50"}},
                ),
            }
        },
    ),
    Operation(
        "POST",
        "/v1/customers/{id}/unfreeze",
        "unfreezeCustomer",
        "Lift a freeze",
        "The usage that tripped the breaker does not trip it again. Who lifted it and why is kept "
        "in the audit trail.",
        200,
        FreezeAnswer,
        {
            "customer": "acme",
            "frozen_at": "2026-11-22T06:12:00.000Z",
            "reason": "breaker",
            "detail": "5000 credits within an hour, against 120 on a typical day",
            "lifted_at": "2026-11-22T06:40:00.000Z",
        },
        (
            *_AUTHENTICATION,
            *_BODY,
            "invalid_customer_id",
            "not_found",
            "not_frozen",
            "invalid_body",
            *_OURS,
        ),
        Scope.ADMIN,
        {"invalid_body": 422},
        parameters=(_CUSTOMER_ID,),
        body={
            "application/json": {
                "schema": _refer(UnfreezeInput),
                "examples": _examples(reason={"reason": "The customer stopped the agent."}),
            }
        },
    ),
    Operation(
        "GET",
        "/v1/customers/{id}/notifications",
        "listNotifications",
        "List what a customer was told",
        "Crossings of limits and freezes, each once, the newest first: for the app's own list.",
        200,
        NotificationsAnswer,
        {
            "notifications": [
                {
                    "id": "SoftLimitCrossed:20261103T000000Z:800000",
                    "type": "SoftLimitCrossed",
                    "at": "2026-11-22T06:00:00.000Z",
                    "facts": {"meter": "credits", "used": "801.5", "limit": "800 credits"},
                }
            ]
        },
        (*_AUTHENTICATION, "invalid_customer_id", *_OURS),
        Scope.ADMIN,
        parameters=(_CUSTOMER_ID,),
    ),
    Operation(
        "GET",
        "/openapi.json",
        "getOpenapi",
        "This document",
        "No API key is needed.",
        200,
        None,
        None,
        ("internal_error",),
    ),
)
"""Every call of the API."""


def build_document() -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    paths: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for operation in OPERATIONS:
        paths[operation.path][operation.method.lower()] = _write_operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Meterline",
            "version": API_VERSION,
            "description": "Usage-based billing: report what was used, once or as often as you "
            "like; it is billed once. Errors are application/problem+json with a stable `code`.",
        },
        "servers": [{"url": "/"}],
        "paths": dict(paths),
        "components": {
            "schemas": _write_schemas(),
            "securitySchemes": {
                "apiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key with the scope that the call names.",
                }
            },
        },
    }


def _write_schemas() -> dict[str, Any]:
    models = (
        *(UsageEvent, CustomerInput, UsageAnswer, CustomerAnswer, CustomerPage),
        *(LimitsInput, LimitsAnswer, UsageReportAnswer, PortalSessionInput, PortalSessionAnswer),
        *(PreviewInput, PreviewAnswer),
        *(CheckedInvoicesAnswer, InvoiceEventsAnswer, TracedEventAnswer),
        *(UnfreezeInput, FreezeAnswer, NotificationsAnswer),
        *(AuthorizationInput, AuthorizationAnswer, ReleaseInput, ReleaseAnswer),
        *(Problem, InvalidBodyProblem, UndecidedProblem, GatewayMessage),
    )
    _, document = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
    )
    schemas: dict[str, Any] = document["$defs"]
    rejection = schemas["RejectedEvent"]["properties"]["code"]
    rejection["enum"] = sorted(REJECTIONS)
    rejection["description"] = "\n".join(
        f"- {code}: {REJECTIONS[code]}" for code in sorted(REJECTIONS)
    )
    for name in ("Problem", "InvalidBodyProblem", "UndecidedProblem"):
        schemas[name]["properties"]["code"]["enum"] = sorted(PROBLEMS)
    return schemas


def _write_operation(operation: Operation) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "Done."}
    if operation.answer is None:
        kind = "object" if operation.media == "application/json" else "string"
        success["content"] = {operation.media: {"schema": {"type": kind}}}
    else:
        success["content"] = {
            "application/json": {
                "schema": _refer(operation.answer),
                "examples": _examples(answer=operation.example),
            },
            **{media: {"schema": {"type": "string"}} for media in operation.further_media},
        }
    written: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": operation.description,
        "security": [] if operation.scope is None else [{"apiKey": [operation.scope.value]}],
        "responses": {
            str(operation.status): success,
            **_write_problems(operation),
            **{str(status): _write_page(status) for status in operation.page_statuses},
        },
    }
    if operation.parameters:
        written["parameters"] = list(operation.parameters)
    if operation.body is not None:
        written["requestBody"] = {"required": True, "content": operation.body}
    return written


def _write_problems(operation: Operation) -> dict[str, Any]:
    """One response for each status, with the codes that come with it."""
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for code in operation.codes:
        by_status[(operation.statuses or {}).get(code, PROBLEMS[code][0])].append(code)
    for status in _GATEWAY_STATUSES:
        if status != 413 or operation.body is not None:
            by_status[status] += ()
    return {
        str(status): _write_problem(status, codes) for status, codes in sorted(by_status.items())
    }


def _write_page(status: int) -> dict[str, Any]:
    content: dict[str, Any] = {"text/html": {"schema": {"type": "string"}}}
    if status in _GATEWAY_STATUSES:
        content["application/json"] = {"schema": _refer(GatewayMessage)}
    return {"description": _STATUS_WORDS[status], "content": content}


def _write_problem(status: int, codes: Sequence[str]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if codes:
        models = {_PROBLEM_MODELS.get(code, Problem) for code in codes}
        schemas = [_refer(model) for model in sorted(models, key=lambda model: model.__name__)]
        content["application/problem+json"] = {
            "schema": {
                **(schemas[0] if len(schemas) == 1 else {"anyOf": schemas}),
                "properties": {"code": {"enum": list(codes)}, "status": {"const": status}},
            }
        }
    if status in _GATEWAY_STATUSES:
        content["application/json"] = {"schema": _refer(GatewayMessage)}
    response: dict[str, Any] = {"description": _STATUS_WORDS[status], "content": content}
    if status == 401:
        response["headers"] = {"WWW-Authenticate": {"schema": {"const": "Bearer"}}}
    if status == 503 or "rate_limited" in codes:
        response["headers"] = {"Retry-After": {"schema": {"type": "string"}}}
    return response

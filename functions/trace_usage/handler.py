"""`/v1/customers/{id}`: its invoices, the events behind each, and the way of one event."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlencode

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.bootstrap import trace_usage as build_trace_usage
from meterline.domain.api_keys import Scope
from meterline.domain.usage import EventKey
from meterline.http import answer, make_app
from meterline.schemas.export import write_csv
from meterline.schemas.names import read_customer_id
from meterline.schemas.traces import (
    read_event_limit,
    read_event_name,
    read_place,
    write_events,
    write_invoices,
    write_place,
    write_trace,
)

logger = Logger()
app: APIGatewayHttpResolver = make_app(logger)
authenticate, trace_usage = build_trace_usage(os.environ)


@app.get("/v1/customers/<customer_id>/invoices")
def list_invoices(customer_id: str) -> Response[str]:
    """The customer's invoices with usage on them, next to the ledger."""
    authenticate(app.current_event.headers.get("authorization"), Scope.ADMIN)
    found = trace_usage.list_invoices(read_customer_id(customer_id))
    return answer(200, write_invoices(found, trace_usage.meters))


@app.get("/v1/customers/<customer_id>/invoices/<invoice_id>/events")
def list_events(customer_id: str, invoice_id: str) -> Response[str]:
    """The events that an invoice bills, page by page, as JSON or as CSV."""
    authenticate(app.current_event.headers.get("authorization"), Scope.ADMIN)
    customer = read_customer_id(customer_id)
    asked = app.current_event.query_string_parameters or {}
    limit, after = read_event_limit(asked.get("limit")), read_place(asked.get("cursor"))
    check = trace_usage.events.get_invoice(customer, invoice_id)
    page = trace_usage.events.read_page(check, limit, after)
    if "text/csv" not in (app.current_event.headers.get("accept") or "").lower():
        return answer(200, write_events(page))
    headers = {}
    if page.next_after is not None:
        following = urlencode({"limit": limit, "cursor": write_place(page.next_after)})
        path = f"/v1/customers/{customer}/invoices/{invoice_id}/events"
        headers["Link"] = f'<{path}?{following}>; rel="next"'
    return Response(200, "text/csv; charset=utf-8", write_csv(page.entries), headers=headers)


@app.get("/v1/customers/<customer_id>/events")
def find_event(customer_id: str) -> Response[str]:
    """One event by its source and id: how it was told to the billing layer, what bills it."""
    authenticate(app.current_event.headers.get("authorization"), Scope.ADMIN)
    customer = read_customer_id(customer_id)
    source, event_id = read_event_name(app.current_event.query_string_parameters or {})
    found = trace_usage.find_event(EventKey(customer, source, event_id))
    return answer(200, write_trace(found, trace_usage.meters))


@logger.inject_lambda_context
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """API Gateway's HTTP API, payload format 2.0."""
    return app.resolve(event, context)

"""`/v1/customers`: create, change, show and list the accounts that are billed."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.bootstrap import authenticate_and_manage_customers
from meterline.clock import utc_now
from meterline.domain.api_keys import Scope
from meterline.http import answer, make_app, read_json
from meterline.schemas.customers import (
    CustomerInput,
    read_cursor,
    read_limit,
    write_account,
    write_cursor,
    write_customer,
)
from meterline.schemas.names import read_customer_id

logger = Logger()
app: APIGatewayHttpResolver = make_app(logger)
authenticate, manage_customers = authenticate_and_manage_customers(os.environ)


@app.put("/v1/customers/<customer_id>")
def put_customer(customer_id: str) -> Response[str]:
    """Create the customer or replace what is known of it."""
    authenticate(app.current_event.headers.get("authorization"), Scope.ADMIN)
    told = CustomerInput.model_validate(read_json(app.current_event))
    put = manage_customers.put(read_customer_id(customer_id), told, utc_now())
    if put.sync_failure is not None:
        logger.warning(
            "subscription not synced", customer=put.account.customer.id, reason=put.sync_failure
        )
    return answer(200, write_account(put.account))


@app.get("/v1/customers")
def list_customers() -> Response[str]:
    """List customers by id, page by page."""
    authenticate(app.current_event.headers.get("authorization"), Scope.ADMIN)
    asked = app.current_event.query_string_parameters or {}
    page = manage_customers.list(read_limit(asked.get("limit")), read_cursor(asked.get("cursor")))
    return answer(
        200,
        {
            "customers": [write_customer(customer) for customer in page.customers],
            "next_cursor": write_cursor(page.next_after),
        },
    )


@app.get("/v1/customers/<customer_id>")
def get_customer(customer_id: str) -> Response[str]:
    """Show the customer."""
    authenticate(app.current_event.headers.get("authorization"), Scope.ADMIN)
    return answer(200, write_account(manage_customers.get(read_customer_id(customer_id))))


@logger.inject_lambda_context
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """API Gateway's HTTP API, payload format 2.0."""
    return app.resolve(event, context)

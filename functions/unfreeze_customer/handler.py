"""`/v1/customers/{id}`: lift a freeze, and list what the customer was told."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.bootstrap import authenticate_and_unfreeze_customer
from meterline.clock import utc_now
from meterline.domain.api_keys import Scope
from meterline.http import answer, make_app, read_json
from meterline.schemas.freezes import UnfreezeInput, write_freeze, write_notification
from meterline.schemas.names import read_customer_id

logger = Logger()
app: APIGatewayHttpResolver = make_app(logger)
authenticate, unfreeze_customer, guardrails = authenticate_and_unfreeze_customer(os.environ)


@app.post("/v1/customers/<customer_id>/unfreeze")
def post_unfreeze(customer_id: str) -> Response[str]:
    """Lift the freeze."""
    key = authenticate(app.current_event.headers.get("authorization"), Scope.ADMIN)
    customer = read_customer_id(customer_id)
    told = UnfreezeInput.model_validate(read_json(app.current_event))
    freeze = unfreeze_customer(customer, told.reason, f"key {key.name}", utc_now())
    # By whom is in the audit trail: a key may be named after a person.
    logger.warning("customer unfrozen", customer=customer)
    return answer(200, write_freeze(customer, freeze))


@app.get("/v1/customers/<customer_id>/notifications")
def list_notifications(customer_id: str) -> Response[str]:
    """What the customer was told, the newest first."""
    authenticate(app.current_event.headers.get("authorization"), Scope.ADMIN)
    found = guardrails.list_notifications(read_customer_id(customer_id))
    return answer(200, {"notifications": [write_notification(each) for each in found]})


@logger.inject_lambda_context
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """API Gateway's HTTP API, payload format 2.0."""
    return app.resolve(event, context)

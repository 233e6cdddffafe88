"""`/v1/authorizations`: give leave to spend, and take back what was not spent."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.bootstrap import authenticate_and_authorize_usage
from meterline.clock import utc_now
from meterline.domain.api_keys import Scope
from meterline.http import answer, make_app, read_json
from meterline.schemas.authorizations import (
    AuthorizationInput,
    ReleaseInput,
    read_authorization,
    read_request,
    read_unspent,
    write_decision,
    write_release,
)

logger = Logger()
metrics = Metrics()
app: APIGatewayHttpResolver = make_app(logger)
authenticate, authorize_usage, rate_cards = authenticate_and_authorize_usage(os.environ)
SETTINGS_PATH = "/settings/usage"


@app.post("/v1/authorizations")
def post_authorization() -> Response[str]:
    """Ask for leave to spend an estimate."""
    authenticate(app.current_event.headers.get("authorization"), Scope.USAGE)
    told = AuthorizationInput.model_validate(read_json(app.current_event))
    now = utc_now()
    decision = authorize_usage(read_request(told, rate_cards, now), now)
    metrics.add_metric(
        "AuthorizationsGiven" if decision.is_allowed else "AuthorizationsDenied",
        MetricUnit.Count,
        1,
    )
    if not decision.is_allowed:
        logger.info("authorization denied", customer=told.customer, code=decision.code)
    return answer(200, write_decision(decision, SETTINGS_PATH))


@app.post("/v1/authorizations/<authorization>/release")
def post_release(authorization: str) -> Response[str]:
    """Give back what is held."""
    authenticate(app.current_event.headers.get("authorization"), Scope.USAGE)
    told = ReleaseInput.model_validate(read_json(app.current_event))
    named = read_authorization(authorization, authorize_usage.meters)
    unspent = read_unspent(told, authorize_usage.meters[named.meter])
    released = authorize_usage.release(named, unspent, utc_now(), events=told.events)
    return answer(200, write_release(released, authorize_usage.meters[named.meter]))


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """API Gateway's HTTP API, payload format 2.0."""
    return app.resolve(event, context)

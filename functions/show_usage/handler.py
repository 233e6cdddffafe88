"""A customer's numbers and limits as JSON, and links to its dashboard."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.bootstrap import show_usage as build_show_usage
from meterline.clock import utc_now
from meterline.domain.api_keys import Scope
from meterline.domain.limits import InvalidLimitError
from meterline.domain.times import format_time
from meterline.http import answer, make_app, problem, read_json
from meterline.schemas.addresses import find_page
from meterline.schemas.limits import LimitsInput, write_limits
from meterline.schemas.names import read_customer_id
from meterline.schemas.portal import PortalSessionInput
from meterline.schemas.usage import write_report

logger = Logger()
metrics = Metrics()
app = make_app(logger)
authenticate, show_usage, set_limits, open_portal_session = build_show_usage(os.environ)


def explain_invalid_limit(error: InvalidLimitError) -> Response[str]:
    """A limit that means nothing on the customer's plan."""
    return problem(
        422, error.code, str(error), errors=[{"field": error.field, "message": str(error)}]
    )


app.exception_handler(InvalidLimitError)(explain_invalid_limit)


@app.get("/v1/customers/<customer_id>/usage")
def get_usage(customer_id: str) -> Response[str]:
    """The dashboard's numbers."""
    authenticate(app.current_event.headers.get("authorization"), Scope.ADMIN)
    customer = read_customer_id(customer_id)
    report = show_usage(customer, utc_now())
    if report.comparison_failure is not None:
        logger.warning("no comparison asked", customer=customer, reason=report.comparison_failure)
    if report.facts is not None and report.facts.comparison is not None:
        metrics.add_metric(
            "DashboardDivergence", MetricUnit.Count, int(report.facts.comparison.diverges)
        )
    return answer(200, write_report(report), {"Cache-Control": "no-store"})


@app.put("/v1/customers/<customer_id>/limits")
def put_limits(customer_id: str) -> Response[str]:
    """Make these the customer's limits."""
    key = authenticate(app.current_event.headers.get("authorization"), Scope.ADMIN)
    told = LimitsInput.model_validate(read_json(app.current_event))
    now = utc_now()
    done = set_limits.put(read_customer_id(customer_id), told.read(), f"key {key.name}", now)
    return answer(200, write_limits(done.limits, done.plan, done.meter, done.used))


@app.get("/v1/customers/<customer_id>/limits")
def get_limits(customer_id: str) -> Response[str]:
    """The customer's limits."""
    authenticate(app.current_event.headers.get("authorization"), Scope.ADMIN)
    found = set_limits.get(read_customer_id(customer_id), utc_now())
    return answer(200, write_limits(found.limits, found.plan, found.meter, found.used))


@app.post("/v1/portal-sessions")
def post_portal_session() -> Response[str]:
    """A link to a customer's dashboard for somebody whom the app has signed in."""
    authenticate(app.current_event.headers.get("authorization"), Scope.ADMIN)
    told = PortalSessionInput.model_validate(read_json(app.current_event))
    made = open_portal_session(told.customer, told.user, told.role, utc_now())
    return answer(
        201,
        {
            "url": f"{find_page(app.current_event)}?token={made.token}",
            "expires_at": format_time(made.expires_at),
        },
        {"Cache-Control": "no-store"},
    )


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """API Gateway's HTTP API, payload format 2.0."""
    return app.resolve(event, context)

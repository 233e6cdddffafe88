"""`POST /v1/usage`: take reports of usage and answer for each event."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.bootstrap import authenticate_and_report_usage
from meterline.clock import utc_now
from meterline.domain.api_keys import Scope
from meterline.http import answer, make_app, read_json, unavailable
from meterline.schemas.events import list_events

logger = Logger()
metrics = Metrics()
app = make_app(logger)
authenticate, report_usage = authenticate_and_report_usage(os.environ)


@app.post("/v1/usage")
def post_usage() -> Response[str]:
    """Record the call's events."""
    authenticate(app.current_event.headers.get("authorization"), Scope.USAGE)
    report = report_usage(list_events(read_json(app.current_event)), utc_now())
    metrics.add_metric("EventsAccepted", MetricUnit.Count, report.accepted)
    metrics.add_metric("EventsDuplicate", MetricUnit.Count, report.duplicates)
    metrics.add_metric("EventsIgnored", MetricUnit.Count, report.ignored)
    metrics.add_metric("EventsRejected", MetricUnit.Count, len(report.rejected))
    told = {
        "accepted": report.accepted,
        "duplicates": report.duplicates,
        "ignored": report.ignored,
        "rejected": [asdict(rejection) for rejection in report.rejected],
    }
    if report.undecided:
        metrics.add_metric("EventsUndecided", MetricUnit.Count, report.undecided)
        return unavailable(**told, undecided=report.undecided)
    return answer(202, told)


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """API Gateway's HTTP API, payload format 2.0."""
    return app.resolve(event, context)

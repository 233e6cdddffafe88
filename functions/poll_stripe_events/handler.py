"""Every few minutes: find the events of Stripe's that no webhook brought."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.bootstrap import poll_stripe_events as build_poll_stripe_events
from meterline.clock import utc_now

logger = Logger()
metrics = Metrics()
poll_stripe_events = build_poll_stripe_events(os.environ)


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(_event: dict[str, Any], _context: LambdaContext) -> dict[str, int]:
    """A schedule's call; answers with what was found."""
    polled = poll_stripe_events(utc_now())
    metrics.add_metric("WebhooksMissed", MetricUnit.Count, polled.missed)
    logger.info("polled", seen=polled.seen, missed=polled.missed)
    return {"seen": polled.seen, "missed": polled.missed}

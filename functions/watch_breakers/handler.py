"""A schedule: look at all budgets for what the stream's deliveries left out."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.bootstrap import watch_breakers as build_watch_breakers
from meterline.clock import utc_now

logger = Logger()
metrics = Metrics()
watch_breakers = build_watch_breakers(os.environ)
_RESERVE_MS = 5_000


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(_event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """One scan; what there was no time for is the next one's."""
    scan = watch_breakers(utc_now(), lambda: context.get_remaining_time_in_millis() > _RESERVE_MS)
    metrics.add_metric("BudgetsWatched", MetricUnit.Count, scan.budgets)
    metrics.add_metric("HoldsExpired", MetricUnit.Count, scan.expired)
    metrics.add_metric("CustomersFrozen", MetricUnit.Count, len(scan.watch.frozen))
    metrics.add_metric("NotificationsUnpublished", MetricUnit.Count, scan.watch.unpublished)
    for customer in (*scan.watch.frozen, *scan.watch.suspected):
        logger.warning("the breaker tripped", customer=customer)
    if not scan.is_complete:
        logger.warning("the scan ran out of time", budgets=scan.budgets)
    return {"budgets": scan.budgets, "expired": scan.expired, "published": scan.published}

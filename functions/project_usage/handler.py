"""The ledger's stream: count what was recorded, exactly once, and hand it to emission."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.bootstrap import project_usage as build_project_usage
from meterline.bootstrap import read_stream as build_read_stream

logger = Logger()
metrics = Metrics()
read_stream = build_read_stream(os.environ)
project_usage = build_project_usage(os.environ)


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """A batch of stream records, with the shard that a tumbling window names.

    Fails as a whole, so that the stream delivers the batch again: the checkpoint makes what was
    counted before cost nothing. The empty state is what a tumbling window wants back.
    """
    batch = read_stream(event)
    if batch.events:
        projection = project_usage(batch.shard, batch.events)
        metrics.add_metric("EventsCounted", MetricUnit.Count, projection.counted)
        metrics.add_metric("EventsCountedBefore", MetricUnit.Count, projection.skipped)
        if projection.watch is not None:
            watch = projection.watch
            metrics.add_metric("ThresholdsCrossed", MetricUnit.Count, watch.crossed)
            metrics.add_metric("CustomersFrozen", MetricUnit.Count, len(watch.frozen))
            metrics.add_metric("BudgetsLeftToScan", MetricUnit.Count, watch.left)
            for customer in (*watch.frozen, *watch.suspected):
                logger.warning("the breaker tripped", customer=customer)
        if projection.watch_failure is not None:
            metrics.add_metric("WatchesFailed", MetricUnit.Count, 1)
            logger.warning("budgets were not watched", reason=projection.watch_failure)
    if batch.set_aside:
        metrics.add_metric("RecordsSetAside", MetricUnit.Count, batch.set_aside)
    return {"state": {}}

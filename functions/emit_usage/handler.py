"""The emission queue: tell the billing layer what was used."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.bootstrap import emit_usage as build_emit_usage
from meterline.clock import utc_now
from meterline.failures import list_places
from meterline.queue_waits import oldest_wait_s
from meterline.schemas.emission import read_deliveries

logger = Logger()
metrics = Metrics()
emit_usage = build_emit_usage(os.environ)


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """A batch of messages, FIFO in each group; answers with those that are to come again."""
    report = emit_usage(
        read_deliveries(event), lambda: context.get_remaining_time_in_millis() / 1000
    )
    counts = report.counts
    metrics.add_metric("EventsEmitted", MetricUnit.Count, counts.emitted)
    metrics.add_metric("EventsRefused", MetricUnit.Count, counts.refused)
    metrics.add_metric("EventsLate", MetricUnit.Count, counts.late)
    metrics.add_metric("EventsUnknown", MetricUnit.Count, counts.unknown)
    metrics.add_metric("EmissionRetries", MetricUnit.Count, counts.retries)
    left = [back.id for back in report.handed_back]
    wait_s = oldest_wait_s(event["Records"], left, utc_now())
    metrics.add_metric("OldestWait", MetricUnit.Seconds, wait_s)
    for back in report.handed_back:
        logger.info(
            "handed back", message_id=back.id, delay_s=back.delay_s, handed_back_for=back.reason
        )
    for (group, kind, code), count in report.lapses.items():
        logger.warning("not billed", group=group, kind=kind, code=code, events=count)
    for group, failure in report.failures:
        logger.error(
            "group failed", group=group, error=type(failure).__name__, places=list_places(failure)
        )
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in left]}

"""The queue of Stripe's events: bring our side in step with what is true now."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import ValidationError

from meterline.bootstrap import apply_stripe_event as build_apply_stripe_event
from meterline.clock import utc_now
from meterline.errors import MeterlineError
from meterline.failures import list_places
from meterline.queue_waits import oldest_wait_s
from meterline.schemas.webhooks import decode_notice

logger = Logger()
metrics = Metrics()
apply_stripe_event = build_apply_stripe_event(os.environ)


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """A batch of messages; answers with those that are to come again."""
    failed = [record["messageId"] for record in event["Records"] if not _apply(record)]
    metrics.add_metric("StripeEventsFailed", MetricUnit.Count, len(failed))
    wait_s = oldest_wait_s(event["Records"], failed, utc_now())
    metrics.add_metric("OldestWait", MetricUnit.Seconds, wait_s)
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}


def _apply(record: dict[str, Any]) -> bool:
    try:
        notice = decode_notice(record["body"])
    except ValidationError:
        logger.exception("message cannot be read", message_id=record["messageId"])
        return False
    about: dict[str, Any] = {"event_id": notice.id, "event_type": notice.type}
    try:
        done = apply_stripe_event(notice, utc_now())
    except MeterlineError as error:
        logger.warning("event not applied", **about, reason=f"{type(error).__name__}: {error}")
        return False
    except Exception as error:  # noqa: BLE001 - told of, and one event's alone: its wait rings
        name, places = type(error).__name__, list_places(error)
        logger.error("event not applied", **about, reason=name, places=places)
        return False
    logger.info("event applied", **about, applied=done.applied, customers=list(done.customers))
    metrics.add_metric("StripeEventsApplied", MetricUnit.Count, 1)
    if notice.type == "invoice.finalization_failed":
        metrics.add_metric("InvoiceFinalizationsFailed", MetricUnit.Count, 1)
        logger.error("invoice could not be finalised", **about, invoice=notice.object_id)
    if done.report is not None:
        metrics.add_metric("UsageDropped", MetricUnit.Count, done.report.count)
        logger.error(
            "usage was dropped after it was taken",
            **about,
            billing_meter=done.report.billing_meter,
            dropped=done.report.count,
            codes=list(done.report.codes),
            identifiers=[sample.identifier for sample in done.report.samples],
        )
    return True

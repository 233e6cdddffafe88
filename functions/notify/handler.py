"""The event bus's queue: tell people of what happened."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import ValidationError

from meterline.bootstrap import notify as build_notify
from meterline.clock import utc_now
from meterline.errors import MeterlineError
from meterline.schemas.notifications import decode_bus_event

logger = Logger()
metrics = Metrics()
notify = build_notify(os.environ)


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """A batch of messages; answers with those that are to come again."""
    failed = [record["messageId"] for record in event["Records"] if not _tell(record)]
    metrics.add_metric("NotificationsFailed", MetricUnit.Count, len(failed))
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}


def _tell(record: dict[str, Any]) -> bool:
    try:
        notification = decode_bus_event(record["body"])
    except ValidationError:
        logger.exception("message cannot be read", message_id=record["messageId"])
        return False
    about: dict[str, Any] = {"customer": notification.customer, "notification": notification.id}
    try:
        telling = notify(notification, utc_now())
    except MeterlineError as error:
        logger.warning("not told", **about, reason=f"{type(error).__name__}: {error}")
        return False
    metrics.add_metric("NotificationsSent", MetricUnit.Count, len(telling.sent))
    logger.info("told", **about, sent=telling.sent, skipped=telling.skipped, failed=telling.failed)
    return telling.is_done

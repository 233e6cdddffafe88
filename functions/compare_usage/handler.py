"""The comparisons queue: our count of a customer's period next to the billing layer's."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.data_classes import SQSEvent
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.bootstrap import compare_usage as build_compare_usage
from meterline.clock import utc_now
from meterline.errors import BillingUnavailableError

logger = Logger()
metrics = Metrics()
compare_usage = build_compare_usage(os.environ)


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], _context: LambdaContext) -> None:
    """One message, `{"customer": …}`."""
    for record in SQSEvent(event).records:
        customer = str(record.json_body["customer"])
        try:
            facts = compare_usage(customer, utc_now())
        except BillingUnavailableError as error:
            # The next look at the dashboard asks again; a message that waits would be no sooner.
            logger.warning("billing layer not asked", customer=customer, reason=str(error))
            metrics.add_metric("ComparisonsFailed", MetricUnit.Count, 1)
            continue
        if facts is None or facts.comparison is None:
            continue
        told = facts.comparison
        metrics.add_metric("ComparisonsMade", MetricUnit.Count, 1)
        metrics.add_metric("ComparisonsDiverged", MetricUnit.Count, int(told.diverges))
        if told.diverges:
            logger.warning(
                "counts diverge",
                customer=customer,
                meter=told.meter,
                period_start=told.period_start.isoformat(),
                until=told.until.isoformat(),
                ours_sub_units=told.ours,
                theirs_sub_units=told.theirs,
            )

"""Every hour: compare the ledger with what Stripe counts, explain what differs, and mend it."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.bootstrap import reconcile_usage as build_reconcile_usage
from meterline.clock import utc_now
from meterline.services.reconcile_customers import Reconciliation
from meterline.services.reconcile_usage import Repair

logger = Logger()
metrics = Metrics()
reconcile_customers, cursor = build_reconcile_usage(os.environ)
_RESERVE_MS = 120_000
"""What a page of a hundred customers may take."""


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """A schedule's call, or one with `{"customers": […], "closely": true}`."""
    customers = [str(each) for each in event.get("customers", [])]
    run = reconcile_customers(
        utc_now(),
        customers=customers,
        after=None if customers else cursor.read(),
        closely=bool(event.get("closely", False)),
        has_time=lambda: context.get_remaining_time_in_millis() > _RESERVE_MS,
    )
    if not customers:
        cursor.write(run.left)
    _tell(run)
    return {
        "customers": run.customers,
        "agree": sum(each.agrees for each in run.books),
        "differ": sum(not each.agrees for each in run.books),
        "diverge": len(run.divergent),
        "failed": len(run.failed),
        "left": run.left,
    }


def _tell(run: Reconciliation) -> None:
    causes: Counter[str] = Counter()
    for books in run.books:
        about: dict[str, Any] = {"customer": books.customer, "meter": books.meter}
        for difference in books.differences:
            causes.update(each.cause for each in difference.explanations)
            logger.warning(
                "counted differently",
                **about,
                hour=difference.key.hour,
                local_sub_units=difference.local_sub_units,
                billed_sub_units=difference.billed_sub_units,
                causes={each.cause: each.sub_units for each in difference.explanations},
            )
        for repaired in books.repaired:
            logger.info(
                "repaired",
                **about,
                repair=repaired.repair,
                what=repaired.about,
                events=repaired.events,
            )
        for settled in books.settled:
            logger.info(
                "unknown sends weighed",
                **about,
                minute=settled.minute,
                billed=settled.billed,
                sent_again=settled.sent_again,
                undecided=settled.undecided,
                why=settled.why,
            )
        if books.diverges:
            logger.error(
                "ledger and bill differ by more than 1%",
                **about,
                local_sub_units=books.local_sub_units,
                billed_sub_units=books.billed_sub_units,
            )
    for customer, why in run.failed.items():
        logger.error("customer not compared", customer=customer, reason=why)
    metrics.add_metric("MetersCompared", MetricUnit.Count, len(run.books))
    metrics.add_metric(
        "EventsRecounted",
        MetricUnit.Count,
        sum(
            each.events
            for books in run.books
            for each in books.repaired
            if each.repair is Repair.RECOUNTED
        ),
    )
    metrics.add_metric("MetersDivergent", MetricUnit.Count, len(run.divergent))
    metrics.add_metric("CustomersNotCompared", MetricUnit.Count, len(run.failed))
    metrics.add_metric(
        "UnknownSends",
        MetricUnit.Count,
        sum(settled.undecided for books in run.books for settled in books.settled),
    )
    for cause, count in causes.items():
        metrics.add_metric(f"Differences{cause.title().replace('_', '')}", MetricUnit.Count, count)

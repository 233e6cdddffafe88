"""Every ten minutes: release the drafts that agree by now, and settle what came late."""

from __future__ import annotations

import os
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.bootstrap import settle_invoices as build_settle_invoices
from meterline.clock import utc_now
from meterline.domain.invoice_checks import CheckState

logger = Logger()
metrics = Metrics()
recheck_invoices = build_settle_invoices(os.environ)


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(_event: dict[str, Any], _context: LambdaContext) -> dict[str, int]:
    """A schedule's call; answers with how many invoices stand how."""
    run = recheck_invoices(utc_now())
    states = [each.check.state for each in run.settled if each.check is not None]
    late = [(each, settled) for each in run.settled for settled in each.late]
    for each, settled in late:
        logger.warning(
            "late usage settled",
            invoice=each.invoice.id,
            meter=settled.meter,
            sub_units=settled.sub_units,
            amount_minor=settled.amount_minor,
            waived=settled.waived,
            item=settled.item,
        )
    for invoice, why in run.failed.items():
        logger.error("invoice not checked", invoice=invoice, reason=why)
    counts = {
        "InvoicesHeld": states.count(CheckState.HELD),
        "InvoicesDiffer": states.count(CheckState.FINAL_DIFFERS),
        "InvoicesNotChecked": len(run.failed),
        "LateSettled": len(late),
        "LateWithoutInvoice": run.homeless,
    }
    for name, count in counts.items():
        metrics.add_metric(name, MetricUnit.Count, count)
    return counts

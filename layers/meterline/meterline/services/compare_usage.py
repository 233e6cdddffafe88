"""Compare our count of a customer's period with the billing layer's, and fetch its invoices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from meterline.domain.measuring import floor_hour
from meterline.domain.meters import Meter
from meterline.domain.overviews import BillingFacts, Comparison
from meterline.domain.periods import Period
from meterline.errors import SupersededError
from meterline.ports import BilledUsage, BillingStatements, Overviews, Plans
from meterline.services.find_terms import find_terms

SETTLING = timedelta(minutes=10)
"""For so long usage may be on its way, and Stripe's summaries behind (API reference: eventually
consistent). Counts are compared up to the last whole hour that ended before that."""
MAX_INVOICES = 12

Measure = Callable[[str, Meter, Period, datetime], int]


class CompareUsage:
    """The job that every look at a dashboard asks for, and that no look waits for."""

    def __init__(
        self,
        overviews: Overviews,
        measure: Measure,
        billed: BilledUsage,
        statements: BillingStatements,
        plans: Plans,
        meters: Mapping[str, Meter],
    ) -> None:
        self._overviews = overviews
        self._measure = measure
        self._billed = billed
        self._statements = statements
        self._plans = plans
        self._meters = meters

    def __call__(self, customer: str, now: datetime) -> BillingFacts | None:
        """What the billing layer says now; None for a customer that it does not have.

        Raises `BillingUnavailableError`: then what it said before stands, with its time.
        """
        overview = self._overviews.load(customer)
        if overview is None or overview.account.customer.billing_customer is None:
            return None
        billing_customer = overview.account.customer.billing_customer
        period, _, meter, _ = find_terms(overview.account, self._plans, self._meters, now)
        # Stripe takes whole minutes; both sides count from the same one.
        start = period.start.replace(second=0)
        end = min(floor_hour(now - SETTLING), period.end)
        comparison = None
        if start < end:
            ours = self._measure(customer, meter, Period(start, end), now)
            theirs = self._billed.total(billing_customer, meter, start, end)
            comparison = Comparison(meter.id, start, end, ours, theirs, now)
        invoices = tuple(self._statements.list_invoices(billing_customer, MAX_INVOICES))
        facts = BillingFacts(now, comparison, invoices)
        try:
            self._overviews.put_facts(customer, facts)
        except SupersededError:
            # Somebody asked later than we did: their answer is the newer one.
            return None
        return facts

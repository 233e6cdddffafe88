"""Set and show a customer's limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from meterline.domain.limits import Limits, check_limits
from meterline.domain.meters import Meter
from meterline.domain.pricing import Plan
from meterline.errors import NotFoundError
from meterline.ports import Budgets, Overviews, Plans
from meterline.services.find_terms import find_terms

if TYPE_CHECKING:
    from meterline.services.authorize_usage import Measure


@dataclass(frozen=True, slots=True)
class SetLimitsResult:
    """The limits as they are now, and the terms that they are read in."""

    limits: Limits
    plan: Plan
    meter: Meter
    used: Decimal
    """Used and held in the period, as far as it is counted."""


class SetLimits:
    """The job of `/v1/customers/{id}/limits`, and of the form on the page."""

    def __init__(
        self,
        overviews: Overviews,
        budgets: Budgets,
        plans: Plans,
        meters: Mapping[str, Meter],
        measure: Measure,
    ) -> None:
        self._overviews = overviews
        self._budgets = budgets
        self._plans = plans
        self._meters = meters
        self._measure = measure

    def put(self, customer: str, limits: Limits, by: str, now: datetime) -> SetLimitsResult:
        """Make these the customer's limits; `NotFoundError` or `InvalidLimitError`."""
        before = self.get(customer, now)
        check_limits(limits, before.plan, before.meter)
        changed = replace(limits, changed_at=now, changed_by=by)
        self._overviews.put_limits(customer, changed)
        return replace(before, limits=changed)

    def get(self, customer: str, now: datetime) -> SetLimitsResult:
        """The customer's limits; `NotFoundError`."""
        overview = self._overviews.load(customer)
        if overview is None:
            raise NotFoundError(f"There is no customer {customer}.")
        period, plan, meter, _ = find_terms(overview.account, self._plans, self._meters, now)
        budget = self._budgets.get(customer, meter.id)
        used = budget.committed
        if budget.period != period:
            used = self._measure(customer, meter, period, now)
        return SetLimitsResult(overview.limits, plan, meter, meter.from_sub_units(used))

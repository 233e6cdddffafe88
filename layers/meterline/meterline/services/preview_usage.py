"""Say what an action would cost, without holding anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from meterline.domain.limits import stop_quantity
from meterline.domain.meters import Meter
from meterline.domain.previews import (
    Basis,
    PastRuns,
    Preview,
    preview_use,
    summarize_runs,
)
from meterline.errors import InvalidRequestError, NotFoundError
from meterline.ports import ActionHistory, Budgets, Controls, Plans
from meterline.services.authorize_usage import Measure, NoTermsError, Terms, find_terms

HISTORY = timedelta(days=28)
MAX_RUNS = 1_000
"""Past runs that are read: the newest."""


@dataclass(frozen=True, slots=True)
class PreviewRequest:
    """What is asked. Without an estimate the action's own past says what is likely."""

    customer: str
    action: str | None
    estimate: Callable[[Meter], Decimal] | None


class PreviewUsage:
    """The job of `POST /v1/previews`."""

    def __init__(
        self,
        controls: Controls,
        budgets: Budgets,
        history: ActionHistory,
        plans: Plans,
        meters: Mapping[str, Meter],
        measure: Measure,
    ) -> None:
        self._controls = controls
        self._budgets = budgets
        self._history = history
        self._plans = plans
        self._meters = meters
        self._measure = measure

    def __call__(self, asked: PreviewRequest, now: datetime) -> tuple[Preview, Terms]:
        """The preview in the customer's terms. Raises `NotFoundError`, `InvalidRequestError`."""
        standing = self._controls.get_standing(asked.customer)
        if standing is None:
            raise NotFoundError(f"There is no customer {asked.customer}.")
        try:
            terms = find_terms(standing, self._plans, self._meters, now)
        except NoTermsError as error:
            raise InvalidRequestError("no_terms", str(error), status=409) from None
        meter = terms.meter
        past = self._find_past(asked, meter, now)
        if asked.estimate is not None:
            likely = meter.to_sub_units(asked.estimate(meter))
            high, basis = likely, Basis.ESTIMATE
        elif past is not None:
            likely, high, basis = past.median, past.p95, Basis.HISTORY
        else:
            raise InvalidRequestError(
                "no_history",
                "The action has too few runs to learn from: send an estimate.",
                status=422,
            )
        budget = self._budgets.get(asked.customer, meter.id)
        committed = budget.committed
        if budget.period != terms.period:
            committed = self._measure(asked.customer, meter, terms.period, now)
        stop = stop_quantity(standing.limits, terms.plan, meter)
        preview = preview_use(
            likely,
            high,
            basis=basis,
            runs=past.runs if past is not None else 0,
            committed=committed,
            stop=None if stop is None else meter.to_sub_units(stop),
            plan=terms.plan,
            meter=meter,
            is_free=terms.is_free,
        )
        return preview, terms

    def _find_past(self, asked: PreviewRequest, meter: Meter, now: datetime) -> PastRuns | None:
        if asked.action is None:
            return None
        quantities = self._history.list_runs(
            asked.customer, meter.id, asked.action, now - HISTORY, now, MAX_RUNS
        )
        return summarize_runs([meter.to_sub_units(quantity) for quantity in quantities])

"""The terms that count for a customer's dashboard, its limits and its comparison."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from meterline.domain.customers import Account
from meterline.domain.meters import Meter
from meterline.domain.periods import Period, calendar_month
from meterline.domain.pricing import Plan, UnknownCurrencyError
from meterline.errors import InvalidRequestError
from meterline.ports import Plans


def find_terms(
    account: Account, plans: Plans, meters: Mapping[str, Meter], now: datetime
) -> tuple[Period, Plan, Meter, bool]:
    """The period that runs, the plan that prices it, its meter, and whether usage is free in it.

    Without a subscription the calendar month (UTC) counts. Raises `InvalidRequestError` for a plan
    that is not in the catalog, or not in the subscription's currency.
    """
    subscription = account.subscription
    period = calendar_month(now)
    metered_since = None
    is_free = False
    if subscription is not None:
        period = subscription.period_at(now) or subscription.current
        metered_since = subscription.metered_since
        is_free = subscription.is_trial(period) or subscription.metered_item is None
    known = plans.at(period.start)
    plan = known.get(account.billed_plan) or known.get(account.customer.plan)
    if plan is None:
        raise InvalidRequestError(
            "no_terms", f"There is no plan {account.billed_plan}.", status=409
        )
    if subscription is not None:
        try:
            plan = plan.in_currency(subscription.currency)
        except UnknownCurrencyError as error:
            raise InvalidRequestError("no_terms", str(error), status=409) from error
    return period.clip(metered_since, None) or period, plan, meters[plan.meter], is_free

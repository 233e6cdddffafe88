"""Preview the invoice that a customer's subscription will bring next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from meterline.domain.customers import Account
from meterline.domain.invoices import InvoicePreview, preview
from meterline.domain.meters import Meter
from meterline.domain.periods import Period
from meterline.domain.pricing import Plan, UnknownCurrencyError
from meterline.domain.subscriptions import Subscription
from meterline.errors import MeterlineError
from meterline.ports import Plans


class NothingToBillError(MeterlineError):
    """No invoice is to come; `code` is stable and says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


Measure = Callable[[str, Meter, Period, datetime], int]


class PreviewInvoice:
    """Prices what is counted, by the plan that counts for the period."""

    def __init__(self, measure: Measure, plans: Plans, meters: Mapping[str, Meter]) -> None:
        self._measure = measure
        self._plans = plans
        self._meters = meters

    def __call__(self, account: Account, now: datetime) -> InvoicePreview:
        """The next invoice as things stand; raises `NothingToBillError`."""
        subscription = account.subscription
        if subscription is None:
            raise NothingToBillError("no_subscription", "There is no subscription to bill.")
        if not subscription.is_billed:
            raise NothingToBillError(
                "subscription_ended", f"The subscription is {subscription.status}."
            )
        period = subscription.period_at(now) or subscription.current
        plan = self._find_plan(account, subscription, period.start)
        meter = self._meters[plan.meter]
        usage_period = period.clip(subscription.metered_since, None) or period
        quantity = meter.from_sub_units(
            self._measure(account.customer.id, meter, usage_period, now)
        )
        following = subscription.period_at(period.end)
        return preview(
            plan=plan,
            next_plan=(
                self._find_plan(account, subscription, following.start) if following else None
            ),
            usage_period=usage_period,
            quantity=quantity,
            is_free=subscription.is_trial(period) or subscription.metered_item is None,
            fee_period=following,
            as_of=now,
        )

    def _find_plan(self, account: Account, subscription: Subscription, at: datetime) -> Plan:
        plan = self._plans.at(at).get(account.billed_plan)
        if plan is None:
            raise NothingToBillError("unknown_plan", f"There is no plan {account.billed_plan}.")
        try:
            return plan.in_currency(subscription.currency)
        except UnknownCurrencyError as error:
            raise NothingToBillError("unknown_currency", f"The {error}.") from error

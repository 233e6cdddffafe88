"""Give leave to spend, and hold what it is for: what is held and used never passes a limit."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

from meterline.domain.authorizations import (
    DEFAULT_LIFE,
    MAX_HOLDS,
    AuthorizationId,
    Hold,
)
from meterline.domain.controls import Standing
from meterline.domain.currencies import count_decimals, to_main_unit
from meterline.domain.limits import Limit, Limits, MoneyLimit, Stop, StopCause, find_stop
from meterline.domain.meters import Meter
from meterline.domain.periods import Period, calendar_month
from meterline.domain.pricing import Plan, UnknownCurrencyError
from meterline.errors import (
    InvalidRequestError,
    MeterlineError,
    NotFoundError,
    StorageUnavailableError,
)
from meterline.ports import Budgets, Controls, Plans

_MAX_TRIES = 8
Measure = Callable[[str, Meter, Period, datetime], int]
"""Sub-units of a customer and meter in a period, as far as they are counted."""


class NoTermsError(MeterlineError):
    """There is nothing to hold a limit against; `code` is stable and says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Terms:
    """What a customer's limits mean at a moment."""

    period: Period
    """In which usage counts."""
    plan: Plan
    meter: Meter
    is_free: bool
    """Whether usage costs nothing: a trial, or nobody bills it."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Yes or no, with a stable `code`. `message` is for the customer's own users."""

    is_allowed: bool
    code: str
    message: str
    authorization: str | None = None
    """None where nothing needs to be held."""
    remaining: Decimal | None = None
    """What is left below the limit, without what is held; None without a limit."""
    expires_at: datetime | None = None
    resets_at: datetime | None = None
    """When the period ends that the limit is of."""


@dataclass(frozen=True, slots=True)
class Request:
    """Leave that is asked for. Without a `meter` it is the plan's own."""

    customer: str
    estimate: Callable[[Meter], Decimal]
    meter: str | None = None
    life: timedelta = DEFAULT_LIFE
    is_lease: bool = False


class AuthorizeUsage:
    """The job of `/v1/authorizations`."""

    def __init__(
        self,
        controls: Controls,
        budgets: Budgets,
        plans: Plans,
        meters: Mapping[str, Meter],
        measure: Measure,
        make_serial: Callable[[], str] = lambda: secrets.token_urlsafe(9),
    ) -> None:
        self._controls = controls
        self._budgets = budgets
        self._plans = plans
        self.meters = meters
        self._measure = measure
        self._make_serial = make_serial

    def __call__(self, asked: Request, now: datetime) -> Decision:
        """Decide, and hold the estimate when the customer has a limit.

        For a customer without one it costs one read. Raises `StorageUnavailableError`, and what
        reading the estimate raises.
        """
        standing = self._controls.get_standing(asked.customer)
        if standing is None:
            return _deny("unknown_customer", f"There is no customer {asked.customer}.")
        if standing.is_frozen:
            return _deny(
                "customer_frozen",
                "Usage is paused for your account, because it rose far above what is usual. "
                "Contact us to go on.",
            )
        limits = standing.limits
        try:
            terms = find_terms(standing, self._plans, self.meters, now)
        except NoTermsError as error:
            is_limited = limits.stop_at is not None or limits.block_overage
            if error.code == "unknown_plan" and not is_limited:
                return Decision(True, "allowed", "No limit is set.")
            return _deny(error.code, str(error))
        meter = self.meters.get(asked.meter) if asked.meter is not None else terms.meter
        if meter is None:
            raise InvalidRequestError(
                "unknown_meter", f"There is no meter {asked.meter}.", status=422
            )
        estimate = asked.estimate(meter)
        stop = find_stop(limits, terms.plan, terms.meter)
        if stop is None or meter.id != terms.meter.id:
            # A limit is on what is billed: other meters are counted, and cost nothing.
            return Decision(True, "allowed", "No limit is set.", resets_at=terms.period.end)
        hold = Hold(
            meter.to_sub_units(estimate),
            int((now + asked.life).timestamp()),
            asked.is_lease,
        )
        return self._reserve(asked.customer, terms, limits, hold, stop, now)

    def release(
        self,
        named: AuthorizationId,
        unspent: Decimal | None,
        now: datetime,
        *,
        events: int | None = None,
    ) -> Hold:
        """Give back what is held, or of a lease only `unspent`; what was given back.

        Raises `NotFoundError` for what is not held (any more), and `StorageUnavailableError`.
        The rest of a lease stays held until its events have come, or it expires. With `events` it
        is closed: so many events name it in all, and with the last of them its rest goes.
        """
        meter = self.meters[named.meter]
        where = (named.customer, named.meter)
        given: Hold | None = None
        after: Hold | None = None
        for _ in range(_MAX_TRIES):
            hold = self._budgets.get(*where).holds.get(named.serial)
            if given is not None and _is_done(hold, after):
                return given  # The answer to our own write was lost, or another's came first.
            if hold is None or hold.expires_at_s <= now.timestamp():
                raise NotFoundError("Nothing is held under this authorization any more.")
            closed = replace(hold, closes_at=events)
            if not hold.is_lease or (closed.is_over if events is not None else unspent is None):
                given, after = hold, None
                is_written = self._budgets.give_back(*where, {named.serial: hold})
            else:
                back = 0 if unspent is None else min(meter.to_sub_units(unspent), hold.sub_units)
                given = replace(hold, sub_units=back)
                after = replace(closed, sub_units=hold.sub_units - back)
                is_written = self._budgets.shrink(*where, named.serial, hold, after)
            if is_written:
                return given
        raise StorageUnavailableError(f"the budget of {named.customer} never stood still")

    def _reserve(
        self,
        customer: str,
        terms: Terms,
        limits: Limits,
        hold: Hold,
        stop: Stop,
        now: datetime,
    ) -> Decision:
        meter = terms.meter
        stop_sub_units = meter.to_sub_units(stop.quantity)
        serial = self._make_serial()
        for _ in range(_MAX_TRIES):
            committed = self._budgets.reserve(
                customer, meter.id, terms.period, serial, hold, stop_sub_units=stop_sub_units
            )
            if committed is None:
                budget = self._budgets.get(customer, meter.id)
                if serial in budget.holds:
                    committed = budget.committed  # The answer to our own write was lost.
            if committed is not None:
                return Decision(
                    True,
                    "allowed",
                    "Go ahead.",
                    AuthorizationId(customer, meter.id, serial).text,
                    meter.from_sub_units(max(0, stop_sub_units - committed)),
                    now + timedelta(seconds=hold.expires_at_s - int(now.timestamp())),
                    terms.period.end,
                )
            if budget.period != terms.period:
                used = self._measure(customer, meter, terms.period, now)
                self._budgets.begin(customer, meter.id, budget, terms.period, used)
                continue
            expired = budget.expired(now)
            if expired:
                self._budgets.give_back(customer, meter.id, expired)
                continue
            if budget.committed + hold.sub_units > stop_sub_units:
                room = budget.room(stop_sub_units)
                return _refuse(terms, limits, stop.cause, meter.from_sub_units(room))
            if len(budget.holds) >= MAX_HOLDS:
                return _deny(
                    "too_many_authorizations",
                    f"There are {MAX_HOLDS} open authorizations. Settle or release some, or take "
                    "a lease for many calls.",
                )
            # Room came free between the two reads: ask again.
        raise StorageUnavailableError(f"the budget of {customer} never stood still")


def _is_done(hold: Hold | None, after: Hold | None) -> bool:
    """Whether a hold is where a release was to bring it, or beyond: never is it done twice."""
    if hold is None or after is None:
        return hold is None
    return hold.closes_at == after.closes_at and hold.sub_units <= after.sub_units


def find_terms(
    standing: Standing, plans: Plans, meters: Mapping[str, Meter], now: datetime
) -> Terms:
    """What counts for a customer at a moment; raises `NoTermsError`.

    Without a subscription the calendar month (UTC) is the period.
    """
    subscription = standing.subscription
    if subscription is None:
        period: Period | None = calendar_month(now)
    else:
        period = subscription.period_at(now) if subscription.is_billed else None
    if period is None:
        raise NoTermsError(
            "subscription_ended", "Your subscription has ended. Renew it in settings to continue."
        )
    plan = plans.at(period.start).get(standing.billed_plan)
    if plan is None:
        raise NoTermsError("unknown_plan", f"There is no plan {standing.billed_plan}.")
    if subscription is None:
        return Terms(period, plan, meters[plan.meter], is_free=True)
    try:
        plan = plan.in_currency(subscription.currency)
    except UnknownCurrencyError as error:
        raise NoTermsError("unknown_plan", str(error)) from None
    return Terms(
        period.clip(subscription.metered_since, None) or period,
        plan,
        meters[plan.meter],
        is_free=subscription.is_trial(period) or subscription.metered_item is None,
    )


def write_limit(limit: Limit, meter: Meter) -> str:
    """A limit as a person reads it: `$50`, `12.50 EUR` or `2,000 credits`."""
    if not isinstance(limit, MoneyLimit):
        return f"{limit.quantity:,f} {meter.unit}s"
    amount = to_main_unit(limit.amount_minor, limit.currency)
    if limit.currency != "usd":
        return f"{amount:,.{count_decimals(limit.currency)}f} {limit.currency.upper()}"
    return f"${amount:,.0f}" if amount == amount.to_integral_value() else f"${amount:,.2f}"


def _refuse(terms: Terms, limits: Limits, cause: StopCause, remaining: Decimal) -> Decision:
    """The refusal of the limit that is met first."""
    meter = terms.meter
    if cause is StopCause.HARD_LIMIT and limits.stop_at is not None:
        code, what = "hard_limit", f"your set limit of {write_limit(limits.stop_at, meter)}"
        message = f"You've hit {what}. Raise it in settings to continue, or wait until next period."
    else:
        code = "overage_blocked"
        message = f"You've used the {terms.plan.included:,f} {meter.unit}s that your plan includes"
        message += (
            ". Change your plan to continue, or wait until next period."
            if cause is StopCause.PLAN_QUOTA
            else ", and overage is blocked. Allow it in settings to continue, or wait until next "
            "period."
        )
    return Decision(False, code, message, remaining=remaining, resets_at=terms.period.end)


def _deny(code: str, message: str) -> Decision:
    return Decision(False, code, message)

"""The numbers of a customer's dashboard: one period's usage, what it costs, where it leads to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal

from meterline.domain.customers import Account, Role, User
from meterline.domain.forecast import HISTORY_DAYS, forecast_period
from meterline.domain.limits import Limits, stop_quantity
from meterline.domain.meters import Meter
from meterline.domain.overviews import BillingFacts, Overview
from meterline.domain.period_usage import (
    Count,
    DayCount,
    Edge,
    Shares,
    UsageCounts,
    holds,
    list_days,
    make_edge,
    needs_edge,
    read_period,
    start_of_day,
)
from meterline.domain.periods import Period
from meterline.domain.pricing import Plan, price_usage, total_minor
from meterline.domain.usage import MAX_AHEAD
from meterline.errors import (
    ForbiddenError,
    NotFoundError,
    StorageError,
    StorageUnavailableError,
)
from meterline.ports import ComparisonRequests, EventsInTime, Overviews, Plans, UsageCounters
from meterline.services.export_events import ExportWindow, plan_windows
from meterline.services.find_terms import find_terms

CHART_DAYS = 30
_EDGE_PATIENCE = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Cost:
    """Minor units: the base fee, what comes on top of it, and both."""

    base_fee_minor: int
    overage_minor: int

    @property
    def total_minor(self) -> int:
        """What the period costs in all."""
        return self.base_fee_minor + self.overage_minor


@dataclass(frozen=True, slots=True)
class Outlook:
    """One end of a forecast: a quantity, and what it would cost."""

    quantity: Decimal
    cost: Cost


@dataclass(frozen=True, slots=True)
class SpendForecast:
    """What the period will come to: four of five times from `low` to `high`."""

    low: Outlook
    expected: Outlook
    high: Outlook
    is_settled: bool
    """Whether low and high are so close that one number says it."""


@dataclass(frozen=True, slots=True)
class DayUsage:
    """One UTC day of the chart."""

    day: date
    quantity: Decimal
    events: int


@dataclass(frozen=True, slots=True)
class Share:
    """What one action or user counts for; a `name` of None is what named none."""

    name: str | None
    quantity: Decimal
    events: int
    share: Decimal
    """Of the period's total, from 0 to 1, to four decimals."""
    user: User | None = None


@dataclass(frozen=True, slots=True)
class UsageReport:
    """A customer's dashboard. For a member only what a member sees is in it.

    A member sees the customer's total and quota and their own usage: no other user's, no action,
    no money.
    """

    account: Account
    viewer: str | None
    """The member whose view it is; None for all of it."""
    period: Period
    plan: Plan
    meter: Meter
    is_free: bool
    """Usage of this period is on no invoice: a trial, or no metered price."""
    used: Decimal
    events: int
    cost: Cost | None
    forecast: SpendForecast | None
    days: Sequence[DayUsage]
    actions: Sequence[Share]
    users: Sequence[Share]
    limits: Limits
    facts: BillingFacts | None
    counted_at: datetime | None
    as_of: datetime
    exports: Sequence[ExportWindow] = ()
    """Spans of the period whose events fit into one file each."""
    comparison_failure: str | None = None
    """Why no comparison could be asked for, if so."""

    @property
    def is_stopped(self) -> bool:
        """Whether as much is used as a limit lets."""
        stop = stop_quantity(self.limits, self.plan, self.meter)
        return stop is not None and self.used >= stop

    @property
    def included(self) -> Decimal:
        """The plan's quota."""
        return self.plan.included

    @property
    def remaining(self) -> Decimal:
        """What is left of the quota."""
        return max(self.included - self.used, Decimal(0))

    @property
    def overage(self) -> Decimal:
        """What is used beyond the quota."""
        return max(self.used - self.included, Decimal(0))

    @property
    def included_a_day(self) -> Decimal:
        """The quota spread evenly over the period's days: the chart's line."""
        return self.included * 86_400 / self.period.seconds


class ShowUsage:
    """Reads a dashboard; it costs the same whatever the number of events behind it."""

    def __init__(
        self,
        overviews: Overviews,
        counters: UsageCounters,
        ledger: EventsInTime,
        plans: Plans,
        meters: Mapping[str, Meter],
        comparisons: ComparisonRequests,
    ) -> None:
        self._overviews = overviews
        self._counters = counters
        self._ledger = ledger
        self._plans = plans
        self._meters = meters
        self._comparisons = comparisons

    def __call__(self, customer: str, now: datetime) -> UsageReport:
        """The customer's whole dashboard at `now`; raises `NotFoundError`."""
        overview = self._overviews.load(customer)
        if overview is None:
            raise NotFoundError(f"There is no customer {customer}.")
        return self.show(overview, now)

    def show(self, overview: Overview, now: datetime, *, member: str | None = None) -> UsageReport:
        """The dashboard of a customer that is read already, or what a `member` sees of it."""
        customer = overview.account.customer.id
        account = overview.account
        period, plan, meter, is_free = find_terms(account, self._plans, self._meters, now)
        charged = replace(plan, base_fee_minor=0) if _is_trial(account, period) else plan
        today = now.date()
        head = period.start if needs_edge(period.start) else None
        counts = self._counters.read(
            customer,
            meter.id,
            days_from=min(period.start.date(), today - timedelta(days=HISTORY_DAYS)),
            shares_from=period.start.date()
            if member is None
            else min(period.start.date(), today - timedelta(days=CHART_DAYS)),
            until=(now + MAX_AHEAD).date(),
            edge=head,
        )
        usage = read_period(
            counts,
            period,
            self._find_edge(customer, meter, counts, head, now),
            self._read_behind(customer, meter, counts, period.end, now),
        )
        failure = None
        if account.customer.billing_customer is not None and (
            overview.facts is None or overview.facts.is_due(now, period)
        ):
            failure = self._ask_for_comparison(customer)
        chart = list_days(today, CHART_DAYS)
        if member is not None:
            own = {day: shares.get(member, Count()) for day, shares in counts.users.items()}
            return UsageReport(
                account=account,
                viewer=member,
                period=period,
                plan=plan,
                meter=meter,
                is_free=is_free,
                used=meter.from_sub_units(usage.total.sub_units),
                events=usage.total.events,
                cost=None,
                forecast=None,
                days=_list_chart(chart, own, meter),
                actions=(),
                users=_list_own(member, usage.users, usage.total, account.users, meter),
                limits=overview.limits,
                facts=None,
                counted_at=usage.counted_at,
                as_of=now,
                exports=plan_windows(counts.days, period),
                comparison_failure=failure,
            )
        return UsageReport(
            account=account,
            viewer=None,
            period=period,
            plan=plan,
            meter=meter,
            is_free=is_free,
            used=meter.from_sub_units(usage.total.sub_units),
            events=usage.total.events,
            cost=price_period(meter.from_sub_units(usage.total.sub_units), charged, is_free),
            forecast=_forecast(counts, usage.total, period, charged, meter, is_free, now, account),
            days=_list_chart(chart, {day: each.total for day, each in counts.days.items()}, meter),
            actions=_list_shares(usage.actions, usage.total, meter),
            users=_list_shares(usage.users, usage.total, meter, account.users),
            limits=overview.limits,
            facts=overview.facts,
            counted_at=usage.counted_at,
            as_of=now,
            exports=plan_windows(counts.days, period),
            comparison_failure=failure,
        )

    def _find_edge(
        self, customer: str, meter: Meter, counts: UsageCounts, at: datetime | None, now: datetime
    ) -> Edge | None:
        """What lies before the period on its first day: kept, or made from the ledger and kept."""
        if at is None:
            return None
        day = counts.days.get(at.date(), DayCount())
        counted = day.until_hour(at.hour)
        if not counted.events:
            return None
        kept = counts.edges.get(at)
        if kept is not None and holds(kept, day, now, patience=_EDGE_PATIENCE):
            return kept
        entries = self._ledger.events_between(customer, start_of_day(at.date()), at)
        edge = make_edge(at, entries, meter, day, now)
        before = day.until_hour(at.hour - 1).events
        if before <= edge.total.events <= counted.events:
            # Else the ledger's index has not heard of all that is counted, or we have not counted
            # all that it has: the next load looks again.
            self._counters.keep_edge(customer, meter.id, edge)
        return edge

    def _read_behind(
        self, customer: str, meter: Meter, counts: UsageCounts, end: datetime, now: datetime
    ) -> Edge | None:
        """What is dated behind the period's end already: only its last minutes can have that."""
        if not needs_edge(end) or now + MAX_AHEAD < end:
            return None
        entries = self._ledger.events_between(customer, end, now + MAX_AHEAD + timedelta(seconds=1))
        return make_edge(end, entries, meter, counts.days.get(end.date(), DayCount()), now)

    def _ask_for_comparison(self, customer: str) -> str | None:
        try:
            self._comparisons.request(customer)
        except (StorageError, StorageUnavailableError) as error:
            # The page is worth more than the comparison; the next load asks again.
            return str(error)
        return None


def _is_trial(account: Account, period: Period) -> bool:
    """Whether nothing at all is charged for the period."""
    return account.subscription is not None and account.subscription.is_trial(period)


def price_period(quantity: Decimal, plan: Plan, is_free: bool) -> Cost:
    """What a period of that quantity costs; one below zero costs its base fee alone."""
    if is_free:
        return Cost(plan.base_fee_minor, 0)
    return Cost(plan.base_fee_minor, total_minor(price_usage(max(quantity, Decimal(0)), plan)))


def _forecast(
    counts: UsageCounts,
    total: Count,
    period: Period,
    plan: Plan,
    meter: Meter,
    is_free: bool,
    now: datetime,
    account: Account,
) -> SpendForecast | None:
    found = forecast_period(
        {day: each.total.sub_units for day, each in counts.days.items()},
        total.sub_units,
        period,
        now,
        since=account.customer.created_at.date(),
    )
    if found is None:
        return None

    def look(sub_units: int) -> Outlook:
        quantity = meter.from_sub_units(sub_units)
        return Outlook(quantity, price_period(quantity, plan, is_free))

    return SpendForecast(look(found.low), look(found.expected), look(found.high), found.is_settled)


def _list_chart(
    chart: Iterable[date], counts: Mapping[date, Count], meter: Meter
) -> tuple[DayUsage, ...]:
    return tuple(
        DayUsage(day, meter.from_sub_units(count.sub_units), count.events)
        for day in chart
        for count in (counts.get(day, Count()),)
    )


def _list_shares(
    shares: Shares, total: Count, meter: Meter, users: Iterable[User] | None = None
) -> tuple[Share, ...]:
    """The largest first; then what named nobody, so that all of them add up to the total."""
    known = {user.id: user for user in users or ()}
    share = _share_of(total)
    listed = [
        Share(
            name,
            meter.from_sub_units(count.sub_units),
            count.events,
            share(count),
            known.get(name),
        )
        for name, count in sorted(shares.items(), key=lambda each: (-each[1].sub_units, each[0]))
    ]
    rest = total
    for count in shares.values():
        rest = rest.minus(count)
    if rest.events or rest.sub_units:
        listed.append(Share(None, meter.from_sub_units(rest.sub_units), rest.events, share(rest)))
    return tuple(listed)


def _list_own(
    member: str, shares: Shares, total: Count, users: Iterable[User], meter: Meter
) -> tuple[Share, ...]:
    count = shares.get(member, Count())
    known = next((user for user in users if user.id == member), None)
    return (
        Share(
            member,
            meter.from_sub_units(count.sub_units),
            count.events,
            _share_of(total)(count),
            known,
        ),
    )


def _share_of(total: Count) -> Callable[[Count], Decimal]:
    def share(count: Count) -> Decimal:
        if not total.sub_units:
            return Decimal(0)
        return (Decimal(count.sub_units) / total.sub_units).quantize(Decimal("0.0001"))

    return share


def require_role(account: Account, user: str | None, role: Role | None) -> Role:
    """What a signed-in person may see. A user of the customer's list has the role that stands
    there; without a user it is the account itself, and whoever made the session said which role."""
    if user is not None:
        found = account.find_user(user)
        if found is not None:
            return found.role
        if role is None:
            raise ForbiddenError("This user is no longer one of the customer's.")
    return role or Role.ADMIN

"""Watch what was just counted: begin periods, tell of limits that were crossed, stop runaways.

It runs after every delivery of the ledger's stream, so within seconds of the usage, and again from
a schedule for what a crash left out or what there was no time for: counting must not wait for it.
Whatever it finds it may find again: freezes and notifications are written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from meterline.domain.authorizations import SLOT_S, Budget
from meterline.domain.breaker import (
    HISTORY_DAYS,
    BreakerMode,
    BreakerRule,
    DayUse,
    Trip,
    judge,
    sum_last_hour,
)
from meterline.domain.controls import Freeze, Standing
from meterline.domain.limits import StopCause
from meterline.domain.meters import Meter
from meterline.domain.notifications import Happening, Notification
from meterline.domain.periods import Period, calendar_month
from meterline.domain.thresholds import (
    TYPICAL_PERIODS,
    Threshold,
    find_crossed,
    find_default_warning,
    list_thresholds,
)
from meterline.domain.times import format_time
from meterline.errors import StorageUnavailableError
from meterline.ports import (
    Budgets,
    Controls,
    EventBus,
    Guardrails,
    NotPublishedError,
    Plans,
    UsageHistory,
)
from meterline.services.authorize_usage import Measure, NoTermsError, Terms, find_terms, write_limit

STANDING_LIFE = timedelta(seconds=30)
"""How long a limit that was changed may still warn as it was. It stops at once all the same:
authorizations read it every time."""
BUS_REST = timedelta(seconds=30)
"""How long a bus that failed is left alone: each try at one that hangs takes seconds."""
_CACHE_SIZE = 10_000
Pair = tuple[str, str]


@dataclass(slots=True)
class Watch:
    """What was found."""

    frozen: list[str] = field(default_factory=list)
    suspected: list[str] = field(default_factory=list)
    crossed: int = 0
    unpublished: int = 0
    """Notifications that the bus did not take: a scan publishes them."""
    left: int = 0
    """Budgets that there was no time for: a scan looks at them."""


class WatchUsage:
    """The watch over budgets."""

    def __init__(
        self,
        budgets: Budgets,
        controls: Controls,
        history: UsageHistory,
        guardrails: Guardrails,
        bus: EventBus,
        plans: Plans,
        meters: Mapping[str, Meter],
        rule: BreakerRule,
        measure: Measure,
        has_time: Callable[[], bool] = lambda: True,
    ) -> None:
        self._budgets = budgets
        self._controls = controls
        self._history = history
        self._guardrails = guardrails
        self._bus = bus
        self._plans = plans
        self._meters = meters
        self._rule = rule
        self._measure = measure
        self._has_time = has_time
        self._bus_rests_until: datetime | None = None
        self._standings: dict[str, tuple[datetime, Standing | None]] = {}
        self._past: dict[tuple[str, str, datetime], Sequence[int]] = {}
        self._days: dict[tuple[str, str, date], Sequence[DayUse]] = {}
        self._told: set[tuple[str, str]] = set()

    def __call__(self, pairs: Iterable[Pair], now: datetime) -> Watch:
        """Look at the budgets of these customers and meters while there is time.

        Those that go fastest come first: a runaway is not missed for want of time. Raises
        `StorageUnavailableError` when they cannot even be read.
        """
        watch = Watch()
        now_s = int(now.timestamp())
        budgets = self._budgets.get_many(list(pairs))
        for pair in sorted(
            budgets, key=lambda each: sum_last_hour(budgets[each].pace, now_s), reverse=True
        ):
            if self._has_time():
                try:
                    self.look(*pair, budgets[pair], now, watch)
                    continue
                except StorageUnavailableError:
                    if self._has_time():
                        raise
            watch.left += 1
        return watch

    def look(self, customer: str, meter: str, budget: Budget, now: datetime, watch: Watch) -> None:
        """Look at one budget as it was read."""
        if sum_last_hour(budget.pace, int(now.timestamp())) >= self._rule.least(meter):
            self._break(customer, meter, budget, now, watch)
        standing = self._find_standing(customer, now)
        if standing is None:
            return
        try:
            terms = find_terms(standing, self._plans, self._meters, now)
        except NoTermsError:
            return
        if terms.meter.id != meter:
            return
        used = budget.used
        if budget.period != terms.period:
            used = self._measure(customer, terms.meter, terms.period, now)
            self._budgets.begin(customer, meter, budget, terms.period, used)
        for threshold in find_crossed(self._thresholds(standing, terms, used), used):
            self._tell_crossing(customer, standing, terms, threshold, used, now, watch)

    def publish(self, notification: Notification, now: datetime, watch: Watch) -> None:
        """Put a notification that is kept onto the bus; when that fails, a scan does it.

        After a failure the next ones are left to the scan as well: a delivery of the stream must
        not wait for a bus that is down.
        """
        is_resting = self._bus_rests_until is not None and now < self._bus_rests_until
        if is_resting or not self._has_time():
            watch.unpublished += 1
            return
        try:
            self._bus.publish(notification)
        except NotPublishedError:
            self._bus_rests_until = now + BUS_REST
            watch.unpublished += 1
        else:
            self._guardrails.mark_published(notification)

    def _break(
        self, customer: str, meter: str, budget: Budget, now: datetime, watch: Watch
    ) -> None:
        days = self._list_days(customer, meter, now)
        now_s = int(now.timestamp())
        if judge(sum_last_hour(budget.pace, now_s), days, self._rule, meter) is None:
            return
        # Read anew: an unfreeze of a second ago must count.
        standing = self._controls.get_standing(customer)
        if standing is None or standing.is_frozen:
            return
        lifted_at = standing.freeze.lifted_at if standing.freeze is not None else None
        hour = sum_last_hour(budget.pace, now_s, int(lifted_at.timestamp()) if lifted_at else 0)
        trip = judge(hour, days, self._rule, meter)
        if trip is None:
            return
        facts = self._describe(customer, meter, budget, trip, now)
        if self._rule.mode is BreakerMode.WARN:
            suspicion = Notification(
                f"{Happening.RUNAWAY_SUSPECTED}:{meter}:{now:%Y%m%dT%H}",
                customer,
                Happening.RUNAWAY_SUSPECTED,
                now,
                facts,
            )
            if self._guardrails.record(suspicion):
                watch.suspected.append(customer)
                self.publish(suspicion, now, watch)
            return
        freeze = Freeze(
            now,
            "breaker",
            "breaker",
            f"{facts['used_last_hour']} {facts['unit']}s within an hour, against "
            f"{facts['typical_day']} on a typical day",
        )
        frozen = Notification(
            f"{Happening.CUSTOMER_FROZEN}:{format_time(now)}",
            customer,
            Happening.CUSTOMER_FROZEN,
            now,
            facts,
        )
        if self._guardrails.freeze(customer, freeze, frozen):
            watch.frozen.append(customer)
            self.publish(frozen, now, watch)

    def _describe(
        self, customer: str, meter: str, budget: Budget, trip: Trip, now: datetime
    ) -> dict[str, str]:
        unit = self._meters[meter]
        quick = trip.typical_day * self._rule.multiple * SLOT_S // 86_400
        newest = int(now.timestamp()) // SLOT_S
        quick_slots = [
            slot
            for slot, sub_units in budget.pace.items()
            if newest - 12 < slot and sub_units > quick
        ]
        since = datetime.fromtimestamp(min(quick_slots, default=newest) * SLOT_S, now.tzinfo)
        # What runs away at midnight has not named much of its new day yet.
        days = sorted({now.date(), since.date()}, reverse=True)
        return {
            "meter": meter,
            "unit": unit.unit,
            "used_last_hour": f"{unit.from_sub_units(trip.hour):f}",
            "typical_day": f"{unit.from_sub_units(trip.typical_day):f}",
            "threshold": f"{unit.from_sub_units(trip.threshold):f}",
            "since": format_time(since),
            "top_action": self._find_top(customer, meter, days, "action"),
            "top_user": self._find_top(customer, meter, days, "user"),
        }

    def _find_top(self, customer: str, meter: str, days: Iterable[date], kind: str) -> str:
        try:
            for day in days:
                if (name := self._history.find_top(customer, meter, day, kind)) is not None:
                    return name
            return "not named"
        except StorageUnavailableError:
            # A day of very many names takes long to read, and a runaway is not to wait for it.
            return "not known"

    def _list_days(self, customer: str, meter: str, now: datetime) -> Sequence[DayUse]:
        last = now.date() - timedelta(days=1)
        key = (customer, meter, last)
        if key not in self._days:
            if len(self._days) >= _CACHE_SIZE:
                self._days.clear()
            first = last - timedelta(days=HISTORY_DAYS - 1)
            self._days[key] = list(self._history.list_days(customer, meter, first, last).values())
        return self._days[key]

    def _find_standing(self, customer: str, now: datetime) -> Standing | None:
        kept = self._standings.get(customer)
        if kept is None or kept[0] <= now:
            if len(self._standings) >= _CACHE_SIZE:
                self._standings.clear()
            kept = (now + STANDING_LIFE, self._controls.get_standing(customer))
            self._standings[customer] = kept
        return kept[1]

    def _thresholds(self, standing: Standing, terms: Terms, used: int) -> tuple[Threshold, ...]:
        past: Sequence[int] = ()
        included = terms.meter.to_sub_units(terms.plan.included)
        if standing.limits.warn_at is None and used >= find_default_warning((), included):
            # Below that nothing is to be told: the past need not be read.
            past = self._find_past(standing, terms)
        return list_thresholds(standing.limits, terms.plan, terms.meter, past)

    def _find_past(self, standing: Standing, terms: Terms) -> Sequence[int]:
        key = (standing.customer.id, terms.meter.id, terms.period.start)
        if key not in self._past:
            if len(self._past) >= _CACHE_SIZE:
                self._past.clear()
            self._past[key] = [
                self._history.sum_hours(*key[:2], *_on_the_hour(period)).sub_units
                for period in _list_past(standing, terms)
            ]
        return self._past[key]

    def _tell_crossing(
        self,
        customer: str,
        standing: Standing,
        terms: Terms,
        threshold: Threshold,
        used: int,
        now: datetime,
        watch: Watch,
    ) -> None:
        crossing = (customer, threshold.id_in(terms.period))
        if crossing in self._told:
            return
        meter = terms.meter
        limits = standing.limits
        limit = limits.warn_at if threshold.stop is None else None
        if threshold.stop is StopCause.HARD_LIMIT:
            limit = limits.stop_at
        level = f"{meter.from_sub_units(threshold.sub_units):f}"
        notification = Notification(
            crossing[1],
            customer,
            threshold.happening,
            now,
            {
                "meter": meter.id,
                "unit": meter.unit,
                "used": f"{meter.from_sub_units(used):f}",
                "level": level,
                "limit": write_limit(limit, meter)
                if limit is not None
                else f"{level} {meter.unit}s",
                "included": f"{terms.plan.included:f}",
                "resets_at": format_time(terms.period.end),
                **({"stopped_by": str(threshold.stop)} if threshold.stop is not None else {}),
            },
        )
        if self._guardrails.record(notification):
            watch.crossed += 1
            self.publish(notification, now, watch)
        if len(self._told) >= _CACHE_SIZE:
            self._told.clear()
        self._told.add(crossing)


def _list_past(standing: Standing, terms: Terms) -> list[Period]:
    """The last periods before this one, as the subscription or the calendar has them."""
    past: list[Period] = []
    start = terms.period.start
    while len(past) < TYPICAL_PERIODS:
        at = start - timedelta(seconds=1)
        if standing.subscription is not None:
            period = standing.subscription.period_at(at)
        else:
            period = calendar_month(at)
        if period is None:
            break
        past.append(period)
        start = period.start
    return past


def _on_the_hour(period: Period) -> tuple[datetime, datetime]:
    # Typical usage need not be exact: an hour at each edge counts whole, or not.
    start, end = (each.replace(minute=0, second=0) for each in (period.start, period.end))
    return start, end

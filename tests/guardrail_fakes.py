"""Budgets, freezes and a bus in memory, with the conditions of the real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from meterline.catalog import load_meters, load_plans
from meterline.catalog.guardrails import load_breaker_rule
from meterline.domain.authorizations import MAX_HOLDS, Budget, Hold, Use, count_uses, find_serial
from meterline.domain.breaker import DayUse
from meterline.domain.controls import Freeze, Lifting, Standing
from meterline.domain.customers import Customer
from meterline.domain.invoice_checks import HoldReason
from meterline.domain.invoice_spikes import ComparedInvoice
from meterline.domain.limits import Limits
from meterline.domain.measuring import HourTotal
from meterline.domain.meters import Meter
from meterline.domain.notifications import Happening, Notification
from meterline.domain.periods import Period, calendar_month
from meterline.domain.pricing import Plan
from meterline.ports import NotPublishedError
from meterline.services.authorize_usage import AuthorizeUsage, Decision, Request
from meterline.services.watch_usage import WatchUsage
from tests.dashboard_fakes import make_subscription

METERS = load_meters()
CREDITS = METERS["credits"]
NOW = datetime(2026, 11, 22, 12, 2, tzinfo=UTC)
Pair = tuple[str, str]


class FakeBudgets:
    """Keeps `Budgets`."""

    def __init__(self) -> None:
        self.kept: dict[Pair, Budget] = {}

    def get(self, customer: str, meter: str) -> Budget:
        return self.kept.get((customer, meter), Budget())

    def get_many(self, pairs: Iterable[Pair]) -> Mapping[Pair, Budget]:
        return {pair: self.get(*pair) for pair in pairs}

    def reserve(
        self,
        customer: str,
        meter: str,
        period: Period,
        serial: str,
        hold: Hold,
        *,
        stop_sub_units: int,
    ) -> int | None:
        budget = self.get(customer, meter)
        if budget.period != period or len(budget.holds) >= MAX_HOLDS or serial in budget.holds:
            return None
        committed = budget.committed + hold.sub_units
        if committed > stop_sub_units:
            return None
        holds = {**budget.holds, serial: hold}
        self.kept[customer, meter] = replace(budget, committed=committed, holds=holds)
        return committed

    def give_back(self, customer: str, meter: str, holds: Mapping[str, Hold]) -> bool:
        budget = self.get(customer, meter)
        if any(budget.holds.get(serial) != hold for serial, hold in holds.items()):
            return False
        self.kept[customer, meter] = replace(
            budget,
            committed=budget.committed - sum(hold.sub_units for hold in holds.values()),
            holds={serial: hold for serial, hold in budget.holds.items() if serial not in holds},
        )
        return True

    def shrink(self, customer: str, meter: str, serial: str, before: Hold, after: Hold) -> bool:
        if not self.give_back(customer, meter, {serial: before}):
            return False
        budget = self.get(customer, meter)
        self.kept[customer, meter] = replace(
            budget,
            committed=budget.committed + after.sub_units,
            holds={**budget.holds, serial: after},
        )
        return True

    def begin(self, customer: str, meter: str, before: Budget, period: Period, used: int) -> bool:
        if self.get(customer, meter) != before:
            return False
        held = sum(hold.sub_units for hold in before.holds.values())
        self.kept[customer, meter] = replace(
            before, period=period, used=used, committed=used + held
        )
        return True

    def count(self, customer: str, meter: str, use: Use) -> None:
        """What the projection does with an event."""
        budget = self.get(customer, meter)
        change = count_uses(budget, [use])
        holds = {each: hold for each, hold in budget.holds.items() if each not in change.settled}
        holds |= {each: after for each, (_, after) in change.drawn.items()}
        pace = dict(budget.pace)
        for slot, sub_units in change.pace.items():
            pace[slot] = pace.get(slot, 0) + sub_units
        self.kept[customer, meter] = replace(
            budget,
            used=budget.used + change.used,
            committed=budget.committed + change.committed,
            holds=holds,
            revision=budget.revision + 1,
            pace=pace,
        )


class FakeGuardrails:
    """Keeps `Controls` and `Guardrails`. `before_record` may fail."""

    def __init__(self) -> None:
        self.before_record: Callable[[], None] = lambda: None
        self.standings: dict[str, Standing] = {}
        self.told: dict[tuple[str, str], Notification] = {}
        self.open: set[tuple[str, str]] = set()

    def get_standing(self, customer: str) -> Standing | None:
        return self.standings.get(customer)

    def record(self, notification: Notification) -> bool:
        self.before_record()
        key = (notification.customer, notification.id)
        if key in self.told:
            return False
        self.told[key] = notification
        self.open.add(key)
        return True

    def is_known(self, notification: Notification) -> bool:
        return (notification.customer, notification.id) in self.told

    def mark_published(self, notification: Notification) -> None:
        self.open.discard((notification.customer, notification.id))

    def list_open(self) -> Sequence[Notification]:
        return [self.told[key] for key in sorted(self.open)]

    def freeze(self, customer: str, freeze: Freeze, notification: Notification) -> bool:
        if self.standings[customer].is_frozen:
            return False
        self.standings[customer] = replace(self.standings[customer], freeze=freeze)
        return self.record(notification)

    def unfreeze(
        self, customer: str, freeze: Freeze, lifted: Lifting, notification: Notification
    ) -> bool:
        lifting = replace(freeze, lifted_at=lifted.at)
        self.standings[customer] = replace(self.standings[customer], freeze=lifting)
        return self.record(notification)

    def kinds(self, customer: str) -> list[Happening]:
        """What the customer's notifications are of."""
        return [each.happening for (owner, _), each in self.told.items() if owner == customer]


class FakeBus:
    """Keeps `EventBus`; it can be down. `before_publish` is what a try takes."""

    def __init__(self) -> None:
        self.published: list[Notification] = []
        self.is_down = False
        self.tries = 0
        self.before_publish: Callable[[], None] = lambda: None

    def publish(self, notification: Notification) -> None:
        self.tries += 1
        self.before_publish()
        if self.is_down:
            raise NotPublishedError("the bus is down")
        self.published.append(notification)


class FakeHistory:
    """Keeps `UsageHistory`: each day before alike, an eighth of it in its peak hour.

    `past` is what each period before used.
    """

    def __init__(self) -> None:
        self.days: dict[str, int] = {}
        self.past = 0

    def list_days(
        self, customer: str, meter: str, first: date, last: date
    ) -> Mapping[date, DayUse]:
        size = self.days.get(customer)
        if size is None:
            return {}
        span = range(first.toordinal(), last.toordinal() + 1)
        return {date.fromordinal(day): DayUse(size, size // 8) for day in span}

    def sum_hours(self, customer: str, meter: str, start: datetime, end: datetime) -> HourTotal:
        return HourTotal(self.past, 1)

    def find_top(self, customer: str, meter: str, day: date, kind: str) -> str | None:
        return f"the {kind}"


class FakeActionHistory:
    """Keeps `ActionHistory`: nothing was done before."""

    def list_runs(
        self, customer: str, meter: str, action: str, start: datetime, end: datetime, most: int
    ) -> Sequence[Decimal]:
        return ()


class FakeInvoices:
    """Keeps `ComparableInvoices`: a draft and the one before it, and whether it is held."""

    def __init__(self, draft: ComparedInvoice, before: ComparedInvoice | None) -> None:
        self._draft = draft
        self._before = before
        self.held: list[tuple[str, HoldReason]] = []

    def read(self, invoice: str) -> ComparedInvoice:
        return self._draft

    def find_previous(self, invoice: str) -> ComparedInvoice | None:
        return self._before

    def hold(self, invoice: str, reason: HoldReason, why: str) -> None:
        self.held.append((invoice, reason))


class CatalogPlans:
    """Keeps `Plans`, as they are checked in."""

    def at(self, moment: datetime) -> Mapping[str, Plan]:
        return load_plans()


class Guarded:
    """Customers whose usage is counted at once, and who ask for leave."""

    def __init__(self, history: FakeHistory | None = None) -> None:
        self.budgets = FakeBudgets()
        self.guardrails = FakeGuardrails()
        self.bus = FakeBus()
        self.history = history or FakeHistory()
        self.authorize_usage = AuthorizeUsage(
            self.guardrails, self.budgets, CatalogPlans(), METERS, self.measure
        )
        self.has_time: Callable[[], bool] = lambda: True
        self.watch_usage = WatchUsage(
            self.budgets,
            self.guardrails,
            self.history,
            self.guardrails,
            self.bus,
            CatalogPlans(),
            METERS,
            load_breaker_rule(),
            self.measure,
            self._has_time,
        )

    def _has_time(self) -> bool:
        return self.has_time()

    def measure(self, customer: str, meter: Meter, period: Period, now: datetime) -> int:
        """What was counted: all of it in the last hour."""
        return sum(self.budgets.get(customer, meter.id).pace.values())

    def make(self, customer: str, limits: Limits | None = None, plan: str = "pro") -> None:
        """A customer with limits, whose subscription bills it for the calendar month."""
        found = Customer(customer, customer.title(), None, plan, None, NOW, NOW)
        month = calendar_month(NOW)
        subscription = make_subscription(
            month.start,
            month.end,
            plan=plan,
            started_at=month.start - timedelta(days=365),
            synced_at=NOW,
        )
        self.guardrails.standings[customer] = Standing(found, subscription, limits or Limits())

    def use(self, customer: str, quantity: str, authorization: str | None = None) -> None:
        """Usage of now, which is counted."""
        serial = find_serial(authorization, customer, CREDITS.id)
        sub_units = CREDITS.to_sub_units(Decimal(quantity))
        self.budgets.count(customer, CREDITS.id, Use(int(NOW.timestamp()), sub_units, serial))

    def ask(self, customer: str, quantity: str) -> Decision:
        """Ask for leave."""
        request = Request(customer, lambda _meter: Decimal(quantity))
        return self.authorize_usage(request, NOW)

"""The dashboard's outside in memory: customers, counters, a ledger, and who asked for what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal

from meterline.catalog import load_plans
from meterline.domain.customers import Account, Customer, Role, User
from meterline.domain.limits import Limits
from meterline.domain.meters import Meter
from meterline.domain.overviews import BillingFacts, Overview, PastInvoice
from meterline.domain.period_usage import Count, DayCount, Edge, UsageCounts
from meterline.domain.periods import Interval, Period
from meterline.domain.pricing import Plan
from meterline.domain.sessions import Viewer
from meterline.domain.subscriptions import Subscription
from meterline.domain.usage import EventKey, LedgerEntry
from meterline.errors import StorageUnavailableError, SupersededError, UnauthenticatedError

CREATED = datetime(2026, 1, 1, tzinfo=UTC)


def make_entry(
    at: datetime,
    quantity: str = "1",
    *,
    customer: str = "acme",
    action: str | None = "report",
    user: str | None = "u_1",
    meter: str = "credits",
    id: str = "",  # noqa: A002 - the event's own word
) -> LedgerEntry:
    """An event as the ledger has it."""
    return LedgerEntry(
        key=EventKey(customer, "tests", id or at.isoformat()),
        at=at,
        meter=meter,
        quantity=Decimal(quantity),
        digest=b"",
        received_at=at,
        action=action,
        user=user,
    )


def make_subscription(start: datetime, end: datetime, **told: object) -> Subscription:
    """A subscription whose current period is that one."""
    made = Subscription(
        id="sub_1",
        status="active",
        plan="pro",
        currency="usd",
        prices=("price_1",),
        metered_item="si_1",
        meter="credits",
        current=Period(start, end),
        anchor=start,
        interval=Interval.MONTH,
        interval_count=1,
        started_at=start,
        cancel_at=None,
        ended_at=None,
        trial_start=None,
        trial_end=None,
        synced_at=start,
    )
    return replace(made, **told)  # type: ignore[arg-type]


class FakePlans:
    """The bundled plans, at any time."""

    def at(self, moment: datetime) -> Mapping[str, Plan]:
        return load_plans()


class FakeOverviews:
    """Keeps `Overviews`."""

    def __init__(self) -> None:
        self.kept: dict[str, Overview] = {}

    def add(
        self,
        customer: str = "acme",
        *,
        users: Sequence[User] = (),
        subscription: Subscription | None = None,
        billing_customer: str | None = None,
    ) -> None:
        """Make a customer on the plan `pro`."""
        made = Customer(customer, customer, None, "pro", billing_customer, CREATED, CREATED)
        self.kept[customer] = Overview(Account(made, tuple(users), subscription), Limits(), None)

    def load(self, customer: str) -> Overview | None:
        return self.kept.get(customer)

    def put_limits(self, customer: str, limits: Limits) -> None:
        self.kept[customer] = replace(self.kept[customer], limits=limits)

    def put_facts(self, customer: str, facts: BillingFacts) -> None:
        before = self.kept[customer].facts
        if before is not None and before.asked_at > facts.asked_at:
            raise SupersededError("asked again")
        self.kept[customer] = replace(self.kept[customer], facts=facts)


class FakeUsage:
    """Keeps `UsageCounters` and `EventsInTime`: counters are what the entries add up to.

    `read_from_ledger` counts the entries that were read one by one.
    """

    def __init__(self, entries: Iterable[LedgerEntry] = ()) -> None:
        self.entries = list(entries)
        self.edges: dict[datetime, Edge] = {}
        self.read_from_ledger = 0

    def events_between(
        self, customer: str, start: datetime, end: datetime
    ) -> Iterable[LedgerEntry]:
        for entry in sorted(self.entries, key=lambda each: each.at):
            if entry.key.customer == customer and start <= entry.at < end:
                self.read_from_ledger += 1
                yield entry

    def read(
        self,
        customer: str,
        meter: str,
        *,
        days_from: date,
        shares_from: date,
        until: date,
        edge: datetime | None,
    ) -> UsageCounts:
        hours: defaultdict[date, defaultdict[int, Count]] = defaultdict(lambda: defaultdict(Count))
        actions: defaultdict[date, defaultdict[str, Count]] = defaultdict(
            lambda: defaultdict(Count)
        )
        users: defaultdict[date, defaultdict[str, Count]] = defaultdict(lambda: defaultdict(Count))
        for entry in self.entries:
            day = entry.at.date()
            if (entry.key.customer, entry.meter) != (customer, meter) or day > until:
                continue
            one = Count(int(entry.quantity * 1000), 1)
            if day >= days_from:
                hours[day][entry.at.hour] = hours[day][entry.at.hour].plus(one)
            if day >= shares_from and entry.action is not None:
                actions[day][entry.action] = actions[day][entry.action].plus(one)
            if day >= shares_from and entry.user is not None:
                users[day][entry.user] = users[day][entry.user].plus(one)
        days = {
            day: DayCount(
                Count(
                    sum(count.sub_units for count in of_day.values()),
                    sum(count.events for count in of_day.values()),
                ),
                dict(of_day),
                datetime(day.year, day.month, day.day, 23, 59, tzinfo=UTC),
            )
            for day, of_day in hours.items()
        }
        kept = self.edges.get(edge) if edge is not None else None
        return UsageCounts(days, actions, users, {kept.at: kept} if kept is not None else {})

    def keep_edge(self, customer: str, meter: str, edge: Edge) -> None:
        self.edges[edge.at] = edge


class FakeComparisons:
    """Keeps `ComparisonRequests`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.is_down = False

    def request(self, customer: str) -> None:
        if self.is_down:
            raise StorageUnavailableError("the queue is away")
        self.asked.append(customer)


class FakeBilling:
    """Keeps `BilledUsage` and `BillingStatements`: one count for everybody, and some invoices."""

    def __init__(self, count: int, invoices: Sequence[PastInvoice] = ()) -> None:
        self.count = count
        self.invoices = invoices
        self.asked: list[tuple[str, str, datetime, datetime]] = []

    def total(self, billing_customer: str, meter: Meter, start: datetime, end: datetime) -> int:
        self.asked.append((billing_customer, meter.event_name, start, end))
        return self.count

    def hours(
        self, billing_customer: str, meter: Meter, start: datetime, end: datetime
    ) -> Mapping[datetime, int]:
        return {start: self.total(billing_customer, meter, start, end)}

    def list_invoices(self, billing_customer: str, limit: int) -> Sequence[PastInvoice]:
        return self.invoices[:limit]


class FakeTokens:
    """Keeps `ViewerTokens`, unsigned."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[Viewer, str]] = {}

    def sign(self, viewer: Viewer, purpose: str, now: datetime) -> str:
        token = f"{purpose}-{len(self.made)}"
        self.made[token] = (viewer, purpose)
        return token

    def read(self, token: str, purpose: str, now: datetime) -> Viewer:
        found = self.made.get(token)
        if found is None or found[1] != purpose or now >= found[0].expires_at:
            raise UnauthenticatedError("not valid")
        return found[0]


class FakeLinks:
    """Keeps `FollowedLinks`."""

    def __init__(self) -> None:
        self.followed: set[str] = set()

    def follow(self, link: str, expires_at: datetime) -> bool:
        is_first = link not in self.followed
        self.followed.add(link)
        return is_first


class FakeAppSessions:
    """Keeps `AppSessions`: whoever it was told of is signed in."""

    def __init__(self, viewer: Viewer | None = None) -> None:
        self.viewer = viewer

    def find(
        self, authorization: str | None, cookies: Mapping[str, str], now: datetime
    ) -> Viewer | None:
        return self.viewer


ADMIN = User("u_1", "Kim", None, Role.ADMIN)
MEMBER = User("u_2", "Noor", None, Role.MEMBER)

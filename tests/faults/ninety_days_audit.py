"""What ninety days came to: every invoice against the ledger, every event billed once or listed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from meterline.adapters.dynamodb_ledger import read_item
from meterline.adapters.stripe_access import StripeAccess
from meterline.adapters.stripe_invoices import LATE_KEY, StripeInvoices
from meterline.domain.emission import AFTER_END
from meterline.domain.pricing import price_usage, total_minor
from meterline.domain.usage import LedgerEntry
from tests.faults.simulated_service import Service, scan


@dataclass
class Customer:
    """One customer as its own people see it."""

    name: str
    billing_customer: str
    plan: str
    busy: float
    """Calls a day."""
    subscription: str | None = None
    period_end: datetime | None = None
    """None while it has no subscription."""
    next_plan: str | None = None
    is_leaving: bool = False
    returns_at: datetime | None = None
    planned: datetime | None = None
    """The renewal that is in the agenda."""
    sent: dict[str, dict[str, Any]] = field(default_factory=dict)
    unanswered: list[list[dict[str, Any]]] = field(default_factory=list)
    turned_away: set[str] = field(default_factory=set)
    """Events that were refused when they were reported."""

    def follow(self, subscription: Mapping[str, Any], plan: str) -> None:
        """Learn how the subscription is now."""
        if subscription["status"] == "canceled":
            self.period_end, self.is_leaving = None, False
            return
        self.subscription = subscription["id"]
        ends_s = subscription["items"]["data"][0]["current_period_end"]
        ends = datetime.fromtimestamp(ends_s, UTC)
        if self.next_plan is not None and self.period_end not in (None, ends):
            plan, self.next_plan = self.next_plan, None
        self.plan, self.period_end = plan, ends


@dataclass
class Row:
    """What a seed came to."""

    seed: int
    customers: int
    events: int = 0
    billed: int = 0
    listed: Counter[str] = field(default_factory=Counter)
    """Events that are on no invoice of Stripe's meter, by the code of their reason."""
    turned_away: int = 0
    repeats: int = 0
    late: int = 0
    ahead: int = 0
    renewals: int = 0
    plan_changes: Counter[str] = field(default_factory=Counter)
    cancellations: int = 0
    returns: int = 0
    outages: int = 0
    faults: int = 0
    crashes: int = 0
    webhooks: int = 0
    repeated: int = 0
    disordered: int = 0
    dropped: int = 0
    polled: int = 0
    held: int = 0
    differences: int = 0
    invoices: int = 0
    late_items: int = 0
    invoices_wrong: int = 0
    events_lost: int = 0
    events_twice: int = 0
    amount_minor: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @staticmethod
    def headings() -> str:
        """Of the table."""
        return "".join(f"{name:>{_width(name)}}" for name in _COLUMNS)

    def __str__(self) -> str:
        told = {
            **{name: getattr(self, name) for name in _COLUMNS if hasattr(self, name)},
            "listed": sum(self.listed.values()),
            "plan_changes": sum(self.plan_changes.values()),
            "seconds": round(self.seconds),
        }
        line = "".join(f"{told[name]:>{_width(name)}}" for name in _COLUMNS)
        reasons = ", ".join(f"{count} {code}" for code, count in sorted(self.listed.items()))
        return f"{line}  {reasons}"


_COLUMNS = (
    "seed",
    "customers",
    "events",
    "billed",
    "listed",
    "turned_away",
    "repeats",
    "late",
    "renewals",
    "plan_changes",
    "cancellations",
    "returns",
    "outages",
    "faults",
    "crashes",
    "webhooks",
    "repeated",
    "disordered",
    "dropped",
    "held",
    "invoices",
    "late_items",
    "invoices_wrong",
    "events_lost",
    "events_twice",
    "seconds",
)


def _width(name: str) -> int:
    return max(6, len(name)) + 1


def audit(service: Service, customers: Sequence[Customer], row: Row) -> None:
    """Fill in what was billed, and say everything that is wrong."""
    direct, tables = service.wire.direct, service.store.tables
    ledger: defaultdict[str, list[LedgerEntry]] = defaultdict(list)
    for item in scan(direct, {"TableName": tables.events, "ConsistentRead": True}):
        entry = read_item(item)
        ledger[entry.key.customer].append(entry)
    problems = {
        item["identifier"]["S"]: item["code"]["S"]
        for item in scan(direct, {"TableName": tables.emissions, "ConsistentRead": True})
        if item["sk"]["S"].startswith("problem#")
        # What is settled is no reason any more why Stripe asks nothing for what it took.
        and ("problem" in item or item["code"]["S"] != AFTER_END)
    }
    accepted = Counter(
        told["identifier"] for told in service.local.meter_events(outcome="accepted")
    )
    books = _Books(service, row, problems, accepted)
    for customer in customers:
        books.check(customer, ledger[customer.name])


@dataclass
class _Books:
    service: Service
    row: Row
    problems: Mapping[str, str]
    accepted: Counter[str]

    def __post_init__(self) -> None:
        local = self.service.local
        self.stripe = local.client()
        self.invoices = StripeInvoices(StripeAccess(lambda: local.key, api_base=local.url))

    def check(self, customer: Customer, entries: Sequence[LedgerEntry]) -> None:
        self._check_events(customer, entries)
        spans = self._check_invoices(customer, entries)
        self._check_coverage(customer, entries, spans)

    def _check_events(self, customer: Customer, entries: Sequence[LedgerEntry]) -> None:
        """Reported events are in the ledger once, and each is billed once, or listed."""
        row = self.row
        row.turned_away += len(customer.turned_away)
        wanted = Counter(customer.sent.keys() - customer.turned_away)
        found = Counter(entry.key.id for entry in entries)
        for event_id in (wanted - found).elements():
            self._lose(f"{customer.name}: {event_id} was reported and is not in the ledger")
        for event_id in (found - wanted).elements():
            self._double(f"{customer.name}: {event_id} is in the ledger and nobody reported it")
        for entry in entries:
            name = entry.key.identifier
            times = self.accepted[name]
            row.billed += times
            if times == 1 and self.problems.get(name) == AFTER_END:
                # Taken and counted by Stripe: `_check_coverage` sees that no invoice asks for it.
                row.billed -= 1
                row.listed[AFTER_END] += 1
            elif times > 1:
                self._double(f"{customer.name}: {entry.key.id} was billed {times} times")
            elif not times and name in self.problems:
                row.listed[self.problems[name]] += 1
            elif not times:
                self._lose(f"{customer.name}: {entry.key.id} is neither billed nor listed")

    def _check_invoices(
        self, customer: Customer, entries: Sequence[LedgerEntry]
    ) -> list[tuple[datetime, datetime]]:
        """Each metered line, with what was billed later for it, is the ledger's; all its spans."""
        items = self._list_late_items(customer)
        spans = []
        listed = self.stripe.v1.invoices.list({"customer": customer.billing_customer, "limit": 100})
        for invoice in listed.auto_paging_iter():
            found = self.invoices.get(invoice.id)
            self.row.invoices += 1
            self.row.renewals += invoice.billing_reason == "subscription_cycle"
            if invoice.status == "draft":
                self._blame(f"{customer.name}: {invoice.id} is still a draft")
            for line in found.usage:
                spans.append((line.period.start, line.period.end))
                plan = self.service.plans.at(line.period.start)[str(line.plan)]
                in_period = _within(entries, line.period.start, line.period.end)
                quantity = sum((entry.quantity for entry in in_period), Decimal(0))
                start_s = int(line.period.start.timestamp())
                later = items.pop((invoice.id, start_s), 0)
                billed = line.amount_minor + later
                expected = total_minor(price_usage(quantity, plan))
                self.row.amount_minor += billed
                if billed != expected:
                    self._blame(
                        f"{customer.name} {invoice.id} ({found.status}, {line.plan}) "
                        f"{line.period.start:%m-%d %H:%M} to {line.period.end:%m-%d %H:%M}: "
                        f"{line.amount_minor} + {later} billed, {expected} by the ledger"
                    )
        for (invoice_id, start_s), amount in items.items():
            self._blame(f"{customer.name}: {amount} billed later for {invoice_id} {start_s}")
        return spans

    def _list_late_items(self, customer: Customer) -> Counter[tuple[str, int]]:
        """What was billed later, by invoice and start of the period."""
        listed = self.stripe.v1.invoice_items.list(
            {"customer": customer.billing_customer, "limit": 100}
        )
        amounts: Counter[tuple[str, int]] = Counter()
        for item in listed.auto_paging_iter():
            name = item.metadata.to_dict().get(LATE_KEY) if item.metadata is not None else None
            if name is not None:
                self.row.late_items += 1
                amounts[name.split(":")[0], item.period.start] += item.amount
        return amounts

    def _check_coverage(
        self,
        customer: Customer,
        entries: Sequence[LedgerEntry],
        spans: Iterable[tuple[datetime, datetime]],
    ) -> None:
        """What Stripe counted is on an invoice, or will be on the next, or else it is listed as
        taken after the end; and what is listed so is on none."""
        known = list(spans)
        listed = self.stripe.v1.subscriptions.list({"customer": customer.billing_customer})
        for subscription in listed.data:
            first = subscription.to_dict()["items"]["data"][0]["current_period_start"]
            # The open period is cut where the plan changed: all of it comes onto one invoice.
            known.append((datetime.fromtimestamp(first, UTC), datetime.max.replace(tzinfo=UTC)))
        for entry in entries:
            name = entry.key.identifier
            is_asked = any(start <= entry.at < end for start, end in known)
            is_listed = self.problems.get(name) == AFTER_END
            if is_listed and (is_asked or not self.accepted[name]):
                self._double(
                    f"{customer.name}: {entry.key.id} of {entry.at:%m-%d %H:%M} is listed as taken "
                    "after the end, and is on an invoice or was never taken"
                )
            elif self.accepted[name] and not is_asked and not is_listed:
                self._lose(
                    f"{customer.name}: {entry.key.id} of {entry.at:%m-%d %H:%M} was taken by "
                    "Stripe and is on no invoice"
                )

    def _lose(self, what: str) -> None:
        self.row.events_lost += 1
        self.row.wrong.append(what)

    def _double(self, what: str) -> None:
        self.row.events_twice += 1
        self.row.wrong.append(what)

    def _blame(self, what: str) -> None:
        self.row.invoices_wrong += 1
        self.row.wrong.append(what)


def _within(
    entries: Sequence[LedgerEntry], start: datetime, end: datetime
) -> Iterable[LedgerEntry]:
    return (entry for entry in entries if start <= entry.at < end)

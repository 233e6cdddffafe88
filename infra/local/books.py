"""The books of `make run`: what was sent, what the ledger holds, what Stripe counts and bills."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from infra.local.stripe_account import StripeAccount, Subscriber
from infra.local.workload import Fate, Report
from meterline.adapters.dynamodb_ledger import DynamoLedger
from meterline.domain.meters import Meter
from meterline.domain.pricing import Plan, price_usage, total_minor


@dataclass(slots=True)
class MeterBook:
    """One customer's meter: events and sub-units, as each of three parties counts them."""

    expected_events: int = 0
    expected_sub_units: int = 0
    ledger_events: int = 0
    ledger_sub_units: int = 0
    stripe_sub_units: int = 0
    listed: Counter[str] = field(default_factory=Counter)
    """Events that could not be billed, by the reason that they are listed with."""

    @property
    def agrees(self) -> bool:
        """Whether sender, ledger and Stripe count the same, to the last sub-unit."""
        return (
            self.expected_events == self.ledger_events
            and self.expected_sub_units == self.ledger_sub_units == self.stripe_sub_units
            and not self.listed
        )


@dataclass(slots=True)
class Bill:
    """What one invoice says of usage, next to what the plan makes of the ledger's quantity."""

    name: str
    stripe_minor: int
    priced_minor: int
    total_minor: int


@dataclass(slots=True)
class Book:
    """All that is known of one customer."""

    customer: str
    subscriber: Subscriber
    expected: Counter[Fate] = field(default_factory=Counter)
    answered: Counter[Fate] = field(default_factory=Counter)
    meters: dict[str, MeterBook] = field(default_factory=lambda: defaultdict(MeterBook))
    bills: list[Bill] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether every number that should be equal is."""
        return (
            self.expected == self.answered
            and all(meter.agrees for meter in self.meters.values())
            and bool(self.bills)
            and all(bill.stripe_minor == bill.priced_minor for bill in self.bills)
        )

    def expect(self, reports: Iterable[Report]) -> None:
        """Note what the sender knows must become of the customer's reports."""
        for report in reports:
            if report.customer != self.customer:
                continue
            self.expected[report.fate] += 1
            if report.fate is Fate.ACCEPTED:
                self.meters[report.meter].expected_events += 1
                self.meters[report.meter].expected_sub_units += report.sub_units

    def read_ledger(
        self, ledger: DynamoLedger, meters: Mapping[str, Meter], start: datetime, end: datetime
    ) -> None:
        """Add up the ledger's entries themselves, not the totals made from them."""
        for meter in self.meters.values():
            meter.ledger_events = meter.ledger_sub_units = 0
        for entry in ledger.events_between(self.customer, start, end):
            book = self.meters[entry.meter]
            book.ledger_events += 1
            book.ledger_sub_units += meters[entry.meter].to_sub_units(entry.quantity)

    def read_stripe(self, account: StripeAccount, start: datetime, end: datetime) -> None:
        """Add up what Stripe counts, meter by meter."""
        for meter_id, meter in self.meters.items():
            meter.stripe_sub_units = account.meter_total(self.subscriber, meter_id, start, end)

    def read_listed(self, listed: Mapping[tuple[str, str], Counter[str]]) -> None:
        """Note which events could not be billed, and why."""
        for (customer, meter_id), reasons in listed.items():
            if customer == self.customer:
                self.meters[meter_id].listed = reasons

    def read_bills(
        self, account: StripeAccount, ledger: DynamoLedger, meter: Meter, plan: Plan
    ) -> None:
        """Compare every invoice's usage with the plan's price of the ledger in its period."""
        self.bills = []
        for bill in account.bills(self.subscriber):
            quantity = sum(
                (
                    entry.quantity
                    for entry in ledger.events_between(self.customer, bill.start, bill.end)
                    if entry.meter == meter.id
                ),
                Decimal(0),
            )
            priced = total_minor(price_usage(quantity, plan))
            self.bills.append(Bill(bill.name, bill.usage_minor, priced, bill.total_minor))


def print_books(
    console: Console, books: Sequence[Book], meters: Mapping[str, Meter], currency: str
) -> None:
    """What was answered, a line per customer; then the books, a line per customer and meter."""
    answers = _open_table("Answers", ["customer"], ["sent", *Fate])
    counted = _open_table(
        "The books",
        ["customer", "meter"],
        ["ledger", "Stripe", f"usage, {currency}", f"invoice, {currency}", "equal"],
    )
    for book in books:
        answers.add_row(
            book.customer,
            f"{sum(book.expected.values()):,}",
            *(f"{book.answered[fate]:,}" for fate in Fate),
        )
        for place, (meter_id, counts) in enumerate(sorted(book.meters.items())):
            meter = meters[meter_id]
            first = place == 0
            counted.add_row(
                book.customer if first else "",
                meter_id,
                f"{meter.from_sub_units(counts.ledger_sub_units):,}",
                f"{meter.from_sub_units(counts.stripe_sub_units):,}",
                _money(sum(bill.stripe_minor for bill in book.bills)) if first else "",
                _money(book.bills[-1].total_minor) if first and book.bills else "",
                ("[green]yes[/green]" if book.agrees else "[red]no[/red]")
                if first
                else ("[green]yes[/green]" if counts.agrees else "[red]no[/red]"),
            )
    console.print(answers, counted, _caption(books))
    for book in books:
        for line in _differences(book):
            console.print(f"[red]{book.customer}: {line}[/red]", highlight=False)


def _open_table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    # Both fit into the 80 columns of a usual terminal.
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for heading in names:
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _differences(book: Book) -> list[str]:
    lines = [
        f"{fate}: the API answered {book.answered[fate]}, the sender expects {book.expected[fate]}"
        for fate in Fate
        if book.answered[fate] != book.expected[fate]
    ]
    for meter_id, counts in book.meters.items():
        if not counts.agrees:
            lines.append(
                f"{meter_id}: expected {counts.expected_events} events and "
                f"{counts.expected_sub_units} sub-units, ledger {counts.ledger_events} and "
                f"{counts.ledger_sub_units}, Stripe {counts.stripe_sub_units} sub-units, "
                f"listed {dict(counts.listed)}"
            )
    lines += [
        f"{bill.name}: usage is {bill.stripe_minor} at Stripe, {bill.priced_minor} by the plan"
        for bill in book.bills
        if bill.stripe_minor != bill.priced_minor
    ]
    if not book.bills:
        lines.append("there is no invoice")
    return lines


def _caption(books: Sequence[Book]) -> str:
    agreed = sum(book.agrees for book in books)
    return f"{agreed} of {len(books)} customers agree: every answer, sub-unit and cent of usage."


def _money(amount_minor: int) -> str:
    return f"{amount_minor // 100:,}.{amount_minor % 100:02d}"

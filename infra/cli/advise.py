"""`advise`: which metric to bill, which quota to include, what a switch would change.

Everything is reckoned from past events. The ledger keeps what providers reported, so another
meter is measured over the same months without having run: there is nothing to switch on first,
nothing that could be billed twice, and outcomes count as soon as an app reports them beside the
meter that is billed. `advise switch` lays old and new plan side by side; the switch itself is a
plans file with a later `effective_from`, applied with `catalog apply`: a period is priced by the
version of its start, so a plan changes its meter between two periods and never within one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from infra.cli.advisor import (
    Advice,
    Metric,
    TooLittleDataError,
    advise,
    count_quantity,
    find_quota,
)
from infra.cli.past_usage import CsvDefaults, Gaps, PastEvent, read_csv, read_ledger
from infra.cli.provider_costs import ProviderCosts
from infra.cli.stack_access import choose_customers, open_stack, stack_option
from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_catalog import DynamoPlans, DynamoRateCards
from meterline.adapters.dynamodb_totals import DynamoTotals
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.catalog import InvalidCatalogError, load_meters, load_plans, read_plans_text
from meterline.catalog.rate_cards import load_rate_card, read_rate_card
from meterline.domain.currencies import to_main_unit
from meterline.domain.measuring import floor_hour
from meterline.domain.pricing import Plan, price, total_minor
from meterline.domain.rating import RateCard

_file = click.Path(exists=True, dir_okay=False, path_type=Path)


class _Number(click.ParamType):
    """A decimal number, exact."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> Decimal:
        try:
            number = Decimal(value)
        except InvalidOperation:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not number.is_finite() or number < 0:
            self.fail(f"{value!r} must be finite and not negative", param, ctx)
        return number


_source_options = (
    click.option("--csv", "csv_path", type=_file, help="Read a CSV file, not the ledger."),
    click.option("--provider", help="For a CSV without that column."),
    click.option("--model", help="For a CSV without that column."),
    click.option("--customer", multiple=True, help="Only these customers of the ledger."),
    click.option(
        "--days",
        type=click.IntRange(1, 3650),
        default=90,
        show_default=True,
        help="How far the ledger is read back.",
    ),
    click.option("--plans", type=_file, help="Plans file; the stack's plans without it."),
    click.option("--plan", "plan_id", default="pro", show_default=True, help="The plan."),
    click.option("--rate-card", type=_file, help="Rate card; the stack's own without it."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)


def _with_source(function: Any) -> Any:
    for option in reversed(_source_options):
        function = option(function)
    return stack_option(function)


@click.group("advise")
def command() -> None:
    """What past usage says about metric, quota and a change of plan."""


@command.command("metric")
@_with_source
@click.option("--margin", type=_Number(), default="0.7", show_default=True, help="Target margin.")
@click.option(
    "--usd-rate", type=_Number(), default="1", help="The plan's currency for a dollar of cost."
)
def metric(
    stack_name: str,
    csv_path: Path | None,
    provider: str | None,
    model: str | None,
    customer: tuple[str, ...],
    days: int,
    plans: Path | None,
    plan_id: str,
    rate_card: Path | None,
    margin: Decimal,
    usd_rate: Decimal,
    *,
    as_json: bool,
) -> None:
    """Raw tokens, credits or outcomes: cost per unit, margins, bills, and which one to bill."""
    if margin >= 1:
        raise click.UsageError("--margin is a share of the price: below 1")
    catalog = _open_catalog(stack_name, csv_path)
    plan = catalog.find_plan(plans, plan_id)
    if plan.currency != "usd" and usd_rate == 1:
        raise click.UsageError(f"costs are in dollars: give --usd-rate for {plan.currency}")
    gaps = Gaps()
    events = _without_repeats(
        _read_events(stack_name, csv_path, provider, model, customer, days, gaps), plan, gaps
    )
    try:
        advice = advise(
            events,
            ProviderCosts().of,
            catalog.find_card(rate_card),
            load_meters(),
            plan,
            gaps,
            target_margin=margin,
            usd_rate=usd_rate,
        )
    except TooLittleDataError as error:
        _print_gaps(Console(stderr=True), gaps)
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(_write_advice(advice), indent=2))
    else:
        _print_advice(Console(), advice, plan, margin)


@command.command("quota")
@click.option(
    "--percentile",
    type=click.IntRange(1, 100),
    default=95,
    show_default=True,
    help="How many of a hundred customers it is to cover.",
)
@click.option(
    "--days",
    type=click.IntRange(30, 730),
    default=90,
    show_default=True,
    help="How far totals are read back, in whole months of 30 days.",
)
@click.option(
    "--meter",
    "meter_id",
    type=click.Choice([*load_meters()]),
    default="credits",
    show_default=True,
)
@stack_option
def quota(stack_name: str, percentile: int, days: int, meter_id: str) -> None:
    """The included quota that covers most customers, each by its highest 30 days."""
    stack = open_stack(stack_name)
    wire = stack.wire()
    accounts = DynamoAccounts(wire, stack.table("Accounts"))
    totals = DynamoTotals(wire, stack.table("Totals"), stack.table("Emissions"))
    meter = load_meters()[meter_id]
    end = floor_hour(datetime.now(UTC)) + timedelta(hours=1)
    windows = [
        (end - timedelta(days=30 * (place + 1)), end - timedelta(days=30 * place))
        for place in range(days // 30)
    ]
    highest = []
    known = choose_customers(accounts, [])
    for customer in track(known, "customers", console=Console(stderr=True), transient=True):
        used = max(totals.sum_hours(customer, meter.id, *window).sub_units for window in windows)
        if used:
            highest.append(meter.from_sub_units(used))
    try:
        found = find_quota(highest, percentile)
    except TooLittleDataError as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"Include {found.quantity:,f} {meter.unit}s: {found.customers - found.above} of "
        f"{found.customers} customers stayed within that in each 30 days of the last "
        f"{30 * len(windows)}.\nThe median customer's highest 30 days: {found.median:,f}."
    )


@command.command("switch")
@_with_source
@click.option("--new-plans", type=_file, required=True, help="Plans file as it would be.")
def switch(
    stack_name: str,
    csv_path: Path | None,
    provider: str | None,
    model: str | None,
    customer: tuple[str, ...],
    days: int,
    plans: Path | None,
    plan_id: str,
    rate_card: Path | None,
    new_plans: Path,
    *,
    as_json: bool,
) -> None:
    """Each customer's bill per calendar month on the plan as it is and as it would be."""
    catalog = _open_catalog(stack_name, csv_path)
    old, new = catalog.find_plan(plans, plan_id), catalog.find_plan(new_plans, plan_id)
    if old.currency != new.currency:
        raise click.UsageError("the two plans have different currencies: nothing to compare")
    gaps = Gaps()
    months: dict[tuple[str, str], list[Decimal]] = {}
    card, meters = catalog.find_card(rate_card), load_meters()
    events = _read_events(stack_name, csv_path, provider, model, customer, days, gaps)
    for event in _without_repeats(events, old, gaps):
        used = months.setdefault((event.customer, f"{event.at:%Y-%m}"), [Decimal(0), Decimal(0)])
        for side, plan in enumerate((old, new)):
            quantity = count_quantity(event, Metric(plan.meter), card, meters)
            if quantity is not None:
                used[side] += quantity
            elif event.usage is not None or event.meter == old.meter:
                what = f"{event.provider} {event.model}" if event.usage else "a bare quantity"
                gaps.add(f"{plan.meter} cannot count {what}", event)
    rows = [
        {
            "customer": name,
            "month": month,
            "old_quantity": str(used[0]),
            "new_quantity": str(used[1]),
            "old_minor": total_minor(price(used[0], old)),
            "new_minor": total_minor(price(used[1], new)),
        }
        for (name, month), used in sorted(months.items())
    ]
    if as_json:
        click.echo(json.dumps({"currency": old.currency, "bills": rows, "gaps": gaps.events}))
        return
    console = Console()
    table = Table(title=f"{plan_id}: {old.meter} now, {new.meter} then ({old.currency})")
    for heading in ("customer", "month"):
        table.add_column(heading)
    for heading in (old.meter, new.meter, "bill now", "bill then", "difference"):
        table.add_column(heading, justify="right")
    for row in rows:
        was, will = int(str(row["old_minor"])), int(str(row["new_minor"]))
        table.add_row(
            str(row["customer"]),
            str(row["month"]),
            f"{Decimal(str(row['old_quantity'])):,f}",
            f"{Decimal(str(row['new_quantity'])):,f}",
            *(f"{to_main_unit(amount, old.currency):,}" for amount in (was, will, will - was)),
        )
    console.print(table)
    _print_gaps(console, gaps)


def _read_events(
    stack_name: str,
    csv_path: Path | None,
    provider: str | None,
    model: str | None,
    customers: Sequence[str],
    days: int,
    gaps: Gaps,
) -> Iterator[PastEvent]:
    if csv_path is not None:
        return read_csv(csv_path, CsvDefaults(provider=provider, model=model), gaps)
    return read_ledger(stack_name, customers, days)


def _without_repeats(events: Iterable[PastEvent], plan: Plan, gaps: Gaps) -> Iterator[PastEvent]:
    """Leave out calls that an app reported for another meter too: they are there once already."""
    for event in events:
        if event.usage is not None and event.meter not in (None, plan.meter):
            gaps.add(f"reported for {event.meter}, beside {plan.meter}", event)
        else:
            yield event


def _open_catalog(stack_name: str, csv_path: Path | None) -> OperatorCatalog:
    now = datetime.now(UTC)
    if csv_path is not None:
        return OperatorCatalog(now)
    stack = open_stack(stack_name)
    return OperatorCatalog(now, (stack.wire(), stack.table("Accounts")))


class OperatorCatalog:
    """The operator's plans and rate card: of a file, else what counts on the stack at `now`, else
    (for a CSV, which needs no stack) what is bundled. `place` is the stack's accounts table."""

    def __init__(self, now: datetime, place: tuple[DynamoWire, str] | None = None) -> None:
        self._now = now
        self._place = place

    def find_card(self, path: Path | None) -> RateCard:
        """The rate card; raises `click.ClickException` for a file that is none."""
        if path is not None:
            try:
                return read_rate_card(path.read_text("utf-8"))
            except InvalidCatalogError as error:
                raise click.ClickException(f"{path.name}: {error}") from error
        if self._place is None:
            return load_rate_card()
        return DynamoRateCards(*self._place).at(self._now)

    def find_plan(self, path: Path | None, plan_id: str) -> Plan:
        """The plan; raises `click.ClickException`."""
        plans = self._find_plans(path)
        if plan_id not in plans:
            raise click.UsageError(f"there is no plan {plan_id}: {', '.join(plans)}")
        meter = plans[plan_id].meter
        if meter not in tuple(Metric):
            raise click.UsageError(f"the plan bills {meter}, which is none of the three")
        return plans[plan_id]

    def _find_plans(self, path: Path | None) -> Mapping[str, Plan]:
        if path is not None:
            try:
                return read_plans_text(path.read_text("utf-8"), load_meters())
            except InvalidCatalogError as error:
                raise click.ClickException(f"{path.name}: {error}") from error
        return load_plans() if self._place is None else DynamoPlans(*self._place).at(self._now)


def _print_advice(console: Console, advice: Advice, plan: Plan, margin: Decimal) -> None:
    currency = plan.currency
    table = Table(title=f"What each metric would have meant, {currency}")
    table.add_column("metric")
    for heading in (
        "units",
        "covers",
        "unit cost",
        "varies",
        "revenue",
        "worst margin",
        "at a loss",
    ):
        table.add_column(heading, justify="right")
    for report in advice.reports.values():
        table.add_row(
            f"{report.metric}{' *' if report.metric is advice.recommended else ''}",
            f"{report.quantity:,.0f}",
            f"{report.covered:.0%}",
            f"{report.cost_per_unit:.6f}",
            f"{report.variation:.0%}",
            f"{report.revenue:,}",
            f"{report.worst_margin:.0%}" if report.worst_margin is not None else "-",
            f"{report.losing} of {len(report.bills)}",
        )
    console.print(table)
    table = Table(title=f"Each customer's bill and margin, {currency}")
    table.add_column("customer")
    table.add_column("cost", justify="right")
    for report in advice.reports.values():
        table.add_column(f"{report.metric}", justify="right")
        table.add_column("margin", justify="right")
    names = {
        bill.customer: bill.cost for report in advice.reports.values() for bill in report.bills
    }
    for name, cost in names.items():
        cells = [name, f"{cost:,.2f}"]
        for report in advice.reports.values():
            bill = next((each for each in report.bills if each.customer == name), None)
            cells.append(f"{bill.bill:,}" if bill is not None else "-")
            found = bill.margin if bill is not None else None
            cells.append(f"{found:.0%}" if found is not None else "-")
        table.add_row(*cells)
    console.print(table)
    console.print(f"[bold]Bill {advice.recommended}.[/bold]")
    for reason in advice.reasons:
        console.print(f"- {reason}", highlight=False)
    proposal = advice.proposal
    unit = load_meters()[advice.recommended].unit
    asked = f"At {proposal.unit_price:f} {currency} it asks {proposal.markup:.1f} times its cost; "
    lines = [
        f"One {unit} is {proposal.tokens_per_unit:,.0f} tokens of this mix.",
        asked + f"{proposal.min_unit_price:.6f} would leave a margin of {margin:.0%}.",
    ]
    if proposal.unit_factor != 1:
        lines.append(
            f"A usual event is below 1 or above 100 {unit}s: multiply the rate card by "
            f"{proposal.unit_factor.normalize():f}, and divide prices by it."
        )
    for line in lines:
        console.print(f"- {line}", highlight=False)
    _print_gaps(console, advice.gaps)


def _print_gaps(console: Console, gaps: Gaps) -> None:
    if not gaps.events:
        return
    table = Table(title="Set aside: not in the figures above")
    table.add_column("why")
    table.add_column("events", justify="right")
    table.add_column("tokens", justify="right")
    for why, count in sorted(gaps.events.items(), key=lambda gap: -gap[1]):
        table.add_row(why, f"{count:,}", f"{gaps.tokens[why]:,}")
    console.print(table)


def _write_advice(advice: Advice) -> dict[str, Any]:
    return {
        "recommended": advice.recommended,
        "reasons": list(advice.reasons),
        "proposal": {
            "tokens_per_unit": str(advice.proposal.tokens_per_unit),
            "unit_factor": str(advice.proposal.unit_factor),
            "min_unit_price": str(advice.proposal.min_unit_price),
            "unit_price": str(advice.proposal.unit_price),
            "markup": str(advice.proposal.markup),
        },
        "metrics": {
            report.metric.value: {
                "quantity": str(report.quantity),
                "covered": str(report.covered),
                "cost_per_unit": str(report.cost_per_unit),
                "variation": str(report.variation),
                "revenue": str(report.revenue),
                "customers": {
                    bill.customer: {"cost": str(bill.cost), "bill": str(bill.bill)}
                    for bill in report.bills
                },
            }
            for report in advice.reports.values()
        },
        "gaps": {
            why: {"events": count, "tokens": advice.gaps.tokens[why]}
            for why, count in advice.gaps.events.items()
        },
    }

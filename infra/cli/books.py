"""`books`: do ledger and bill agree? Compare, see what does not, let an invoice go."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import boto3
import click
from rich.console import Console
from rich.progress import Progress

from infra.cli.operator import Trail, actor_option, reason_options
from infra.cli.stack_access import Stack, choose_customers, open_stack, stack_option
from infra.cli.stripe_access import access_stripe, read_key, stripe_options
from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_books import (
    DynamoAuditTrail,
    DynamoFindings,
    DynamoInvoiceChecks,
)
from meterline.adapters.dynamodb_sending_records import DynamoSendingRecords
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.adapters.sqs_emission import SqsEmissionInbox
from meterline.adapters.sqs_emission_queue import SqsEmissionQueue
from meterline.adapters.sqs_parked import SqsParked
from meterline.adapters.stripe_usage import StripeUsage
from meterline.bootstrap import (
    make_invoice_settlement,
    make_list_after_end,
    make_reconciliation,
    make_recount,
)
from meterline.catalog import load_meters
from meterline.domain.emission import Lapse, Problem
from meterline.domain.invoice_checks import (
    HoldReason,
    InvoiceCheck,
    write_event_line,
    write_quantity,
)
from meterline.domain.reconciliation import Difference
from meterline.domain.sending import find_last_s
from meterline.services.reconcile_customers import ReconcileCustomers
from meterline.services.settle_invoices import SettleInvoices


@dataclass(frozen=True, slots=True)
class Desk:
    """One invoice before an operator, who says who they are and why."""

    invoice: str
    settle: SettleInvoices
    trail: Trail
    actor: str
    reason: str

    def record(self, action: str, outcome: str) -> None:
        """One entry of the trail about this invoice."""
        self.trail.record(action, self.invoice, outcome)


def on_invoice(function: Callable[..., None]) -> Callable[..., None]:
    """The argument INVOICE and the options of whoever decides about one, as a `Desk`."""

    @click.argument("invoice")
    @stripe_options
    @reason_options
    @stack_option
    @wraps(function)
    def opened(
        stack_name: str,
        invoice: str,
        actor: str,
        reason: str,
        stripe_url: str | None,
        key_file: Path | None,
        *,
        live: bool,
        **options: Any,
    ) -> None:
        stack, wire = _open(stack_name)
        settle = open_settlement(stack, wire, read_key(key_file, live=live), stripe_url)
        trail = Trail(stack, wire, actor, reason)
        function(Desk(invoice, settle, trail, actor, reason), **options)

    return opened


@click.group("books")
def command() -> None:
    """Ledger and bill: compare them, see what differs, let an invoice go."""


@command.command("reconcile")
@click.argument("customers", nargs=-1)
@click.option("--repair/--no-repair", default=False, show_default=True, help="Mend what is safe.")
@click.option("--closely", is_flag=True, help="Every hour of the period, not only the last days.")
@stripe_options
@stack_option
def reconcile(
    stack_name: str,
    customers: tuple[str, ...],
    stripe_url: str | None,
    key_file: Path | None,
    *,
    repair: bool,
    closely: bool,
    live: bool,
) -> None:
    """Compare CUSTOMERS, or all, with Stripe now; exit status 1 if any differ."""
    key = read_key(key_file, live=live)
    stack = open_stack(stack_name)
    wire = stack.wire()
    queue_url = stack.outputs["EmissionsQueueUrl"]
    dead_url = stack.outputs["EmissionsDeadLetterQueueUrl"]
    sqs = boto3.client("sqs")
    stripe_access = access_stripe(key, stripe_url)
    job, counted = make_reconciliation(
        wire,
        events_table=stack.table("Events"),
        totals_table=stack.table("Totals"),
        emissions_table=stack.table("Emissions"),
        books_table=stack.table("Books"),
        billed=StripeUsage(stripe_access),
        parked=SqsParked(dead_url, sqs),
        queue=SqsEmissionQueue(queue_url, sqs),
        inbox=SqsEmissionInbox(queue_url, dead_url, lambda: sqs),
    )
    accounts = DynamoAccounts(wire, stack.table("Accounts"))
    wanted = choose_customers(accounts, customers)
    list_after_end = make_list_after_end(
        wire,
        stripe_access,
        accounts_table=stack.table("Accounts"),
        events_table=stack.table("Events"),
        totals_table=stack.table("Totals"),
        emissions_table=stack.table("Emissions"),
    )
    service = ReconcileCustomers(
        accounts, accounts, counted, job, load_meters(), list_after_end=list_after_end
    )
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("customers", total=len(wanted))
        run = service(
            datetime.now(UTC),
            customers=wanted,
            repair=repair,
            closely=closely,
            progress=lambda: bar.advance(task),
        )
    for books in run.books:
        if not books.agrees:
            click.echo(
                f"{books.customer}\t{books.meter}\tledger {books.local_sub_units}"
                f"\tbilled {books.billed_sub_units}"
            )
        for difference in books.differences:
            click.echo(f"  {_describe(difference)}")
        for repaired in books.repaired:
            click.echo(f"  {repaired.repair}: {repaired.about}")
        for settled in books.settled:
            click.echo(
                f"  unknown sends of {settled.minute:%Y-%m-%dT%H:%M}Z: {settled.billed} billed, "
                f"{settled.sent_again} sent again, {settled.undecided} undecided {settled.why}"
            )
    for customer, why in run.failed.items():
        click.echo(f"{customer}: {why}", err=True)
    agree = sum(books.agrees for books in run.books)
    click.echo(f"{agree} of {len(run.books)} agree, {len(run.failed)} could not be compared")
    if run.failed or agree < len(run.books):
        raise SystemExit(1)


@command.command("recount")
@click.argument("customers", nargs=-1)
@click.option("--meter", "only", type=click.Choice([*load_meters()]), help="This one alone.")
@click.option("--from", "start", type=click.DateTime(), required=True, help="UTC, of the events.")
@click.option("--to", "end", type=click.DateTime(), help="UTC, not included; now if not given.")
@click.option("--dry-run", is_flag=True, help="List them, and change nothing.")
@actor_option
@click.option("--reason", help="Why; it is kept. A dry run needs none.")
@stack_option
def recount(
    stack_name: str,
    customers: tuple[str, ...],
    only: str | None,
    start: datetime,
    end: datetime | None,
    actor: str,
    reason: str | None,
    *,
    dry_run: bool,
) -> None:
    """Count and bill what the stream has lost of CUSTOMERS, or of all: each event once.

    Events of the last two hours are left to the stream.
    """
    now = datetime.now(UTC)
    span = (start.replace(tzinfo=UTC), end.replace(tzinfo=UTC) if end else now)
    if span[0] >= span[1]:
        raise click.UsageError("--from must be before --to, and before now")
    if not dry_run and not reason:
        raise click.UsageError("Missing option '--reason': it is kept with what was counted")
    stack, wire = _open(stack_name)
    trail = Trail(stack, wire, actor, reason or "")
    job = make_recount(
        wire,
        events_table=stack.table("Events"),
        totals_table=stack.table("Totals"),
        emissions_table=stack.table("Emissions"),
        queue=SqsEmissionQueue(stack.outputs["EmissionsQueueUrl"], boto3.client("sqs")),
    )
    accounts = DynamoAccounts(wire, stack.table("Accounts"))
    wanted = choose_customers(accounts, customers)
    if not dry_run:
        trail.record("recount", " ".join(customers) or "all", "begun")
    meters = [meter for name, meter in load_meters().items() if only in (None, name)]
    pairs = [(name, meter) for name in wanted for meter in meters]
    total = 0
    with click.progressbar(pairs, label="looking", file=sys.stderr) as looking:
        for customer, meter in looking:
            if dry_run:
                for entry in job.find(customer, meter, *span, now):
                    total += 1
                    click.echo(write_event_line(entry))
                continue
            subject = f"{customer}#{meter.id}"
            found = job(customer, meter, *span, now)
            total += found.events
            if found.events or found.unreadable:
                told = f"{found.events} events, {found.sub_units} sub-units"
                if found.unreadable:
                    told += f", {found.unreadable} that {meter.id} cannot count"
                trail.record("recount", subject, told)
                click.echo(f"{subject}\t{told}")
    click.echo(f"{total} events {'are uncounted' if dry_run else 'counted'}", err=True)


@command.command("findings")
@stack_option
def findings(stack_name: str) -> None:
    """Differences that did not go away, one a line: customer, meter, hour, what is known."""
    stack = open_stack(stack_name)
    for difference in DynamoFindings(stack.wire(), stack.table("Books")).list_open():
        key = difference.key
        click.echo(f"{key.customer}\t{key.meter}\t{_describe(difference)}")


@command.command("unbilled")
@stack_option
def unbilled(stack_name: str) -> None:
    """Usage that no invoice asks for, one a line: kind, code, customer, meter, when, how much,
    the identifier at Stripe, and why."""
    stack = open_stack(stack_name)
    for line in describe_unbilled(DynamoSendingRecords(stack.wire(), stack.table("Emissions"))):
        click.echo(line)


@command.command("close")
@click.argument("customer")
@click.argument("identifiers", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of the customer's, not only IDENTIFIERS.")
@reason_options
@stack_option
def close(
    stack_name: str,
    customer: str,
    identifiers: tuple[str, ...],
    actor: str,
    reason: str,
    *,
    every: bool,
) -> None:
    """Take late usage of CUSTOMER, such as was billed by hand, out of the list of what is unbilled.

    IDENTIFIERS are those at Stripe, as `books unbilled` has them. Only what is late and has no
    invoice can be closed: an invoice's is settled with it, and what was refused can be sent again.
    """
    if every == bool(identifiers):
        raise click.UsageError("name IDENTIFIERS, or --all")
    stack, wire = _open(stack_name)
    trail = Trail(stack, wire, actor, reason)
    records = DynamoSendingRecords(wire, stack.table("Emissions"))
    checks = DynamoInvoiceChecks(wire, stack.table("Books"))
    left = set(identifiers)
    closed = 0
    for whose, meter, problem in records.list_open(Lapse.LATE):
        if whose != customer or not (every or problem.identifier in identifiers):
            continue
        left.discard(problem.identifier)
        if invoice := find_invoice(checks, customer, meter, problem):
            click.echo(f"{problem.identifier}: {invoice} settles it (`books check`)", err=True)
            continue
        trail.record("close", f"{customer}#{meter}/{problem.identifier}", problem.code)
        records.resolve_late(customer, meter, problem.identifier, datetime.now(UTC))
        closed += 1
        click.echo(f"{problem.identifier}\t{meter}\t{problem.code}")
    for identifier in sorted(left):
        click.echo(f"{identifier}: {customer} has no such late usage", err=True)
    if not closed:
        raise click.ClickException("nothing was closed")


@command.command("invoices")
@stack_option
def invoices(stack_name: str) -> None:
    """Invoices that are held, or final and different."""
    stack = open_stack(stack_name)
    for check in DynamoInvoiceChecks(stack.wire(), stack.table("Books")).list_open():
        if not check.agrees:
            click.echo(_describe_check(check))


@command.command("check")
@on_invoice
def check(desk: Desk) -> None:
    """Compare INVOICE with the ledger now: hold it, let it go, settle what came late."""
    desk.record("check invoice", "begun")
    settled = desk.settle(desk.invoice, datetime.now(UTC))
    if settled is None or settled.check is None:
        click.echo("nothing on it is metered by us")
        return
    for late in settled.late:
        how = "waived" if late.waived else f"item {late.item}"
        click.echo(f"late: {late.sub_units} sub-units, {late.amount_minor} minor, {how}")
    desk.record("check invoice", settled.check.state)
    click.echo(_describe_check(settled.check))


@command.command("release")
@on_invoice
@click.option(
    "--hold",
    type=click.Choice(["difference", "spike"]),
    default="difference",
    show_default=True,
    help="Which reason to hold it ends: it is not the ledger's, or far above the last one.",
)
def release(desk: Desk, hold: str) -> None:
    """End a hold of INVOICE as it is; it goes when nothing holds it any more."""
    desk.record(f"release invoice ({hold})", "begun")
    left = desk.settle.release(
        desk.invoice,
        HoldReason[hold.upper()],
        actor=desk.actor,
        reason=desk.reason,
        now=datetime.now(UTC),
    )
    desk.record(f"release invoice ({hold})", "released")
    if left:
        names = ", ".join(sorted(each.name.lower() for each in left))
        click.echo(f"{desk.invoice} is still held: {names}")
    else:
        click.echo(f"{desk.invoice} goes its way; Stripe finalises it within an hour or so")


@command.command("waive")
@on_invoice
def waive(desk: Desk) -> None:
    """Ask nothing for what INVOICE lacks and nobody can bill: it is void, or its price not ours."""
    desk.record("waive", "begun")
    waived = desk.settle.waive(
        desk.invoice, actor=desk.actor, reason=desk.reason, now=datetime.now(UTC)
    )
    desk.record("waive", "waived")
    click.echo(_describe_check(waived))


@command.command("audit")
@click.option(
    "--month", type=click.DateTime(["%Y-%m"]), help="2026-11, say; this one if not given."
)
@stack_option
def audit(stack_name: str, month: datetime | None) -> None:
    """What operators did: when, who, what, to which thing, what came of it, why."""
    stack = open_stack(stack_name)
    trail = DynamoAuditTrail(stack.wire(), stack.table("Books"))
    for entry in trail.list_month(f"{month or datetime.now(UTC):%Y-%m}"):
        click.echo(
            f"{entry.at:%Y-%m-%dT%H:%M:%SZ}\t{entry.actor}\t{entry.action}\t{entry.subject}"
            f"\t{entry.outcome}\t{entry.reason}"
        )


def describe_unbilled(records: DynamoSendingRecords) -> Iterator[str]:
    """What could not be billed and is not settled, a line each, kind by kind."""
    meters = load_meters()
    for kind in Lapse:
        for customer, meter, problem in records.list_open(kind):
            at = datetime.fromtimestamp(problem.at_s, UTC)
            quantity = f"{problem.sub_units} sub-units"
            if meter in meters:
                quantity = write_quantity(meters[meter].from_sub_units(problem.sub_units))
            yield (
                f"{kind}\t{problem.code}\t{customer}\t{meter}\t{at:%Y-%m-%dT%H:%M:%SZ}"
                f"\t{quantity}\t{problem.identifier}\t{problem.message}"
            )


def find_invoice(
    checks: DynamoInvoiceChecks, customer: str, meter: str, problem: Problem
) -> str | None:
    """The invoice that late usage is settled with; an hour may be of two periods."""
    for at_s in (problem.at_s, find_last_s(problem.identifier, problem.at_s)):
        invoice = checks.invoice_of(customer, meter, datetime.fromtimestamp(at_s, UTC))
        if invoice is not None:
            return invoice
    return None


def _open(stack_name: str) -> tuple[Stack, DynamoWire]:
    stack = open_stack(stack_name)
    return stack, stack.wire()


def open_settlement(
    stack: Stack, wire: DynamoWire, key: str, stripe_url: str | None
) -> SettleInvoices:
    """The check of one invoice, which bills or waives late usage as the stack itself does."""
    return make_invoice_settlement(
        wire,
        access_stripe(key, stripe_url),
        accounts_table=stack.table("Accounts"),
        books_table=stack.table("Books"),
        events_table=stack.table("Events"),
        emissions_table=stack.table("Emissions"),
        late_policy=stack.outputs["LateUsagePolicy"],
    )


def _describe(difference: Difference) -> str:
    causes = ", ".join(
        f"{each.cause} {each.sub_units}" + (f" ({each.reason})" if each.reason else "")
        for each in difference.explanations
    )
    return f"{difference.key.hour:%Y-%m-%dT%H}Z\t{difference.missing_sub_units} missing: {causes}"


def _describe_check(check: InvoiceCheck) -> str:
    spans = "; ".join(
        f"{span.meter} {span.period.start:%Y-%m-%d}..{span.period.end:%Y-%m-%d}: ledger "
        f"{span.ledger_sub_units}, billed {span.billed_sub_units}, settled "
        f"{span.settled_sub_units}, {span.events} events, digest {span.digest}"
        for span in check.spans
    )
    return f"{check.invoice}\t{check.customer}\t{check.state}\t{spans}"

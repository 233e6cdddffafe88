"""`events`: from an invoice to the events behind it and back, corrections, and replays."""

from __future__ import annotations

from datetime import UTC, datetime

import boto3
import click

from infra.cli.operator import Trail, reason_options
from infra.cli.stack_access import choose_customers, open_stack, stack_option
from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_books import DynamoInvoiceChecks
from meterline.adapters.dynamodb_ledger import DynamoLedger
from meterline.adapters.dynamodb_sending_records import DynamoSendingRecords
from meterline.adapters.sqs_emission_queue import SqsEmissionQueue
from meterline.bootstrap import make_trace
from meterline.catalog import load_meters
from meterline.domain.invoice_checks import digest_events, write_event_line, write_quantity
from meterline.domain.usage import EventKey
from meterline.errors import NotFoundError
from meterline.schemas.export import write_csv
from meterline.services.correct_event import CorrectEvent


@click.group("events")
def command() -> None:
    """Events: those behind an invoice, the invoice of one of them, corrections, replays."""


@command.command("of-invoice")
@click.argument("invoice")
@click.option("--format", "form", type=click.Choice(["csv", "lines"]), default="csv")
@stack_option
def of_invoice(stack_name: str, invoice: str, form: str) -> None:
    """The events that INVOICE bills; their digest goes to the other channel.

    `--format lines` is what the digest is made from: sorted bytewise, it is its SHA-256.
    """
    stack = open_stack(stack_name)
    wire = stack.wire()
    check = DynamoInvoiceChecks(wire, stack.table("Books")).get(invoice)
    if check is None:
        raise click.ClickException(f"{invoice} was never compared with the ledger")
    ledger = DynamoLedger(wire, stack.table("Events"))
    for place, span in enumerate(check.spans):
        found = ledger.events_between(check.customer, span.period.start, span.period.end)
        entries = [entry for entry in found if entry.meter == span.meter]
        if form == "csv":
            click.echo(write_csv(entries, header=place == 0), nl=False)
        else:
            for line in sorted(write_event_line(entry) for entry in entries):
                click.echo(line)
        digest, count = digest_events(entries)
        same = "as on the invoice" if digest == span.digest else f"the invoice has {span.digest}"
        click.echo(f"{span.meter}: {count} events, digest {digest}, {same}", err=True)


@command.command("trace")
@click.argument("customer")
@click.argument("source")
@click.argument("event_id", metavar="ID")
@stack_option
def trace(stack_name: str, customer: str, source: str, event_id: str) -> None:
    """From one event to its identifier at Stripe, how far it is, and the invoice that bills it."""
    stack = open_stack(stack_name)
    wire = stack.wire()
    trace_usage = make_trace(
        wire,
        DynamoAccounts(wire, stack.table("Accounts")),
        books_table=stack.table("Books"),
        events_table=stack.table("Events"),
        emissions_table=stack.table("Emissions"),
        totals_table=stack.table("Totals"),
    )
    try:
        found = trace_usage.find_event(EventKey(customer, source, event_id))
    except NotFoundError as error:
        raise click.ClickException(str(error)) from error
    sent = found.sent
    click.echo(f"ledger\t{write_event_line(found.entry)}")
    click.echo(f"identifier\t{sent.identifier}")
    click.echo(f"batch\t{sent.batch or '-'}\t{sent.state}\t{sent.problem or ''}".rstrip())
    click.echo(f"invoice\t{found.invoice.invoice if found.invoice else 'none so far'}")


@command.command("reverse")
@click.argument("customer")
@click.argument("source")
@click.argument("event_id", metavar="ID")
@reason_options
@stack_option
def reverse(
    stack_name: str, customer: str, source: str, event_id: str, actor: str, reason: str
) -> None:
    """Take one event back by a further entry; the bill follows by itself."""
    stack = open_stack(stack_name)
    wire = stack.wire()
    trail = Trail(stack, wire, actor, reason)
    ledger = DynamoLedger(wire, stack.table("Events"))
    subject = f"{customer}/{source}/{event_id}"
    trail.record("reverse", subject, "begun")
    key = EventKey(customer, source, event_id)
    entry = CorrectEvent(ledger, ledger)(key, datetime.now(UTC))
    trail.record("reverse", subject, f"{write_quantity(entry.quantity)} {entry.meter}")
    click.echo(f"{write_quantity(entry.quantity)} {entry.meter} as {entry.key.id}")


@command.command("replay")
@click.argument("customer")
@click.argument("meter", type=click.Choice([*load_meters()]), metavar="METER")
@click.option("--since", type=click.DateTime(), required=True, help="UTC; batches made from then.")
@reason_options
@stack_option
def replay(
    stack_name: str, customer: str, meter: str, since: datetime, actor: str, reason: str
) -> None:
    """Hand the batches of a stretch of time to the emitter again, if any of it is not sent."""
    stack = open_stack(stack_name)
    wire = stack.wire()
    choose_customers(DynamoAccounts(wire, stack.table("Accounts")), [customer])
    trail = Trail(stack, wire, actor, reason)
    records = DynamoSendingRecords(wire, stack.table("Emissions"))
    dues = [
        record.due
        for record in records.batches_since(customer, meter, since.replace(tzinfo=UTC))
        if record.sending is None or not record.sending.done
    ]
    subject = f"{customer}#{meter} since {since:%Y-%m-%dT%H:%M}Z"
    trail.record("replay", subject, f"begun: {len(dues)} batches")
    queue = SqsEmissionQueue(stack.outputs["EmissionsQueueUrl"], boto3.client("sqs"))
    queue.send(dues, renewal=f"replay:{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}")
    trail.record("replay", subject, f"{len(dues)} batches handed over")
    click.echo(f"{len(dues)} batches handed over")

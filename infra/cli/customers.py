"""`customers`: the accounts that are billed, their subscriptions, and their next invoice."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
import stripe
from rich.console import Console
from rich.progress import Progress

from infra.cli.stack_access import each_customer, open_stack, stack_option
from infra.cli.stripe_access import (
    access_stripe,
    describe_error,
    open_client,
    read_key,
    stripe_options,
)
from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_catalog import DynamoPlans
from meterline.adapters.dynamodb_ledger import DynamoLedger
from meterline.adapters.dynamodb_totals import DynamoTotals
from meterline.adapters.stripe_subscriptions import StripeSubscriptions
from meterline.catalog import load_meters
from meterline.domain.currencies import to_main_unit
from meterline.domain.customers import Account
from meterline.errors import MeterlineError
from meterline.services.measure_period import MeasurePeriod
from meterline.services.preview_invoice import NothingToBillError, PreviewInvoice
from meterline.services.sync_subscriptions import SyncSubscriptions


@click.group("customers")
def command() -> None:
    """Customers: list them, and ask Stripe about their subscriptions."""


@command.command("list")
@stack_option
def list_customers(stack_name: str) -> None:
    """Every customer, one a line: id, plan, billing customer, subscription, current period."""
    stack = open_stack(stack_name)
    accounts = DynamoAccounts(stack.wire(), stack.table("Accounts"))
    for customer in each_customer(accounts):
        known = accounts.get_subscription(customer.id)
        told = (
            f"{known.status} {known.current.start:%Y-%m-%dT%H:%M:%SZ}"
            f"..{known.current.end:%Y-%m-%dT%H:%M:%SZ}"
            if known is not None
            else "no subscription"
        )
        click.echo(f"{customer.id}\t{customer.plan}\t{customer.billing_customer or '-'}\t{told}")


@command.command("sync")
@stripe_options
@click.argument("ids", nargs=-1)
@stack_option
def sync(
    stack_name: str,
    ids: tuple[str, ...],
    stripe_url: str | None,
    key_file: Path | None,
    *,
    live: bool,
) -> None:
    """Ask Stripe about the subscriptions of these customers, or of all, and write them down."""
    key = read_key(key_file, live=live)
    stack = open_stack(stack_name)
    wire, table = stack.wire(), stack.table("Accounts")
    accounts = DynamoAccounts(wire, table)
    reader = StripeSubscriptions(access_stripe(key, stripe_url))
    job = SyncSubscriptions(accounts, reader, DynamoPlans(wire, table))
    customers = list(ids or (customer.id for customer in each_customer(accounts)))
    found = missing = 0
    failed: dict[str, str] = {}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for customer in bar.track(customers, description="customers"):
            try:
                known = job(customer, datetime.now(UTC))
            except MeterlineError as error:
                failed[customer] = str(error) or type(error).__name__
                continue
            found += known is not None
            missing += known is None
    click.echo(f"{found} with a subscription, {missing} without, {len(failed)} failed")
    for customer, why in failed.items():
        click.echo(f"  {customer}: {why}")
    if failed:
        raise click.ClickException("not every customer could be asked about; run it again")


@command.command("preview")
@stripe_options
@click.argument("customer")
@stack_option
def preview(
    stack_name: str, customer: str, stripe_url: str | None, key_file: Path | None, *, live: bool
) -> None:
    """The customer's next invoice, as it is reckoned here and as Stripe previews it."""
    key = read_key(key_file, live=live)
    stack = open_stack(stack_name)
    wire, table = stack.wire(), stack.table("Accounts")
    accounts = DynamoAccounts(wire, table)
    found = accounts.get_customer(customer)
    if found is None:
        raise click.UsageError(f"there is no customer {customer}")
    account = Account(found, (), accounts.get_subscription(customer))
    totals = DynamoTotals(wire, stack.table("Totals"), stack.table("Emissions"))
    measure = MeasurePeriod(totals, DynamoLedger(wire, stack.table("Events")))
    service = PreviewInvoice(measure, DynamoPlans(wire, table), load_meters())
    try:
        ours = service(account, datetime.now(UTC))
    except NothingToBillError as error:
        raise click.ClickException(str(error)) from error
    assert account.subscription is not None  # Without one there is nothing to bill.
    try:
        theirs = open_client(key, stripe_url).v1.invoices.create_preview(
            {"subscription": account.subscription.id}
        )
    except stripe.StripeError as error:
        raise click.ClickException(describe_error(error)) from error
    currency = account.subscription.currency
    click.echo(
        f"{customer}: {ours.quantity:,f} {ours.plan.meter} since "
        f"{ours.usage_period.start:%Y-%m-%dT%H:%M:%SZ}"
    )
    for line in ours.lines:
        click.echo(
            f"  {line.kind:<10} {line.quantity:>16,f} x {line.unit_amount_minor:f} = "
            f"{to_main_unit(line.amount_minor, currency):,}"
        )
    click.echo(f"here   {to_main_unit(ours.total_minor, currency):,} {currency}")
    click.echo(f"Stripe {to_main_unit(theirs.total, currency):,} {currency}")
    if ours.total_minor != theirs.total:
        raise click.ClickException(
            "they differ: usage that is not counted or not sent yet, or items that only Stripe has"
        )

"""`customers`: the accounts that are billed, and their subscriptions brought up to date."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from infra.cli.stack_access import open_stack, stack_option
from infra.cli.stripe_access import read_key
from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_catalog import DynamoPlans
from meterline.adapters.stripe_subscriptions import StripeSubscriptions
from meterline.domain.customers import Customer
from meterline.errors import MeterlineError
from meterline.services.sync_subscriptions import SyncSubscriptions

_PAGE = 100


@click.group("customers")
def command() -> None:
    """Customers: list them, and ask Stripe about their subscriptions."""


@command.command("list")
@stack_option
def list_customers(stack_name: str) -> None:
    """Every customer, one a line: id, plan, billing customer, subscription, current period."""
    stack = open_stack(stack_name)
    accounts = DynamoAccounts(stack.wire(), stack.table("Accounts"))
    for customer in _each_customer(accounts):
        known = accounts.get_subscription(customer.id)
        told = (
            f"{known.status} {known.current.start:%Y-%m-%dT%H:%M:%SZ}"
            f"..{known.current.end:%Y-%m-%dT%H:%M:%SZ}"
            if known is not None
            else "no subscription"
        )
        click.echo(f"{customer.id}\t{customer.plan}\t{customer.billing_customer or '-'}\t{told}")


@command.command("sync")
@click.option("--stripe-url", help="Another server that speaks Stripe's API, e.g. a local one.")
@click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Holds the key; otherwise STRIPE_API_KEY.",
)
@click.option("--live", is_flag=True, help="Needed with a live key.")
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
    reader = StripeSubscriptions(lambda: key, api_base=stripe_url, timeout_s=30.0, retries=2)
    job = SyncSubscriptions(accounts, reader, DynamoPlans(wire, table))
    customers = list(ids or (customer.id for customer in _each_customer(accounts)))
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


def _each_customer(accounts: DynamoAccounts) -> Iterator[Customer]:
    after: str | None = None
    while page := accounts.list_customers(_PAGE, after):
        yield from page
        after = page[-1].id

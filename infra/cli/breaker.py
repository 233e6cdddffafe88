"""`breaker`: freeze and unfreeze by hand, who did it, and what it would have done in the past."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import click

from infra.cli.operator import Trail, reason_options
from infra.cli.past_usage import CsvDefaults, Gaps, PastEvent, read_csv, read_ledger
from infra.cli.stack_access import choose_customers, open_stack, stack_option
from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_controls import DynamoControls
from meterline.adapters.dynamodb_guardrails import DynamoGuardrails
from meterline.adapters.eventbridge_bus import EventBridgeBus
from meterline.catalog import load_meters
from meterline.catalog.guardrails import load_breaker_rule
from meterline.catalog.rate_cards import load_rate_card
from meterline.domain.breaker_replay import ReplayedTrip, replay_usage
from meterline.domain.meters import Meter
from meterline.errors import RejectedEventError
from meterline.services.freeze_customer import FreezeCustomer
from meterline.services.unfreeze_customer import UnfreezeCustomer


@click.group("breaker")
def command() -> None:
    """The breaker, which freezes a customer whose usage runs away."""


@command.command("replay")
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Read a CSV file, not the ledger.",
)
@click.option("--provider", default="openai", show_default=True, help="Of rows that name none.")
@click.option("--model", default="gpt-4o", show_default=True, help="Of rows that name none.")
@click.option(
    "--days",
    type=click.IntRange(1, 3650),
    default=60,
    show_default=True,
    help="How far the ledger is read back.",
)
@click.option(
    "--meter",
    "meter_id",
    type=click.Choice([*load_meters()]),
    default="credits",
    show_default=True,
)
@click.argument("customers", nargs=-1)
@stack_option
def replay(
    stack_name: str,
    customers: tuple[str, ...],
    csv_file: Path | None,
    provider: str,
    model: str,
    days: int,
    meter_id: str,
) -> None:
    """Say which of CUSTOMERS (all without any) it would have frozen, and when.

    Reads the deployed ledger, or a file of past requests with --csv.
    """
    meter = load_meters()[meter_id]
    gaps = Gaps()
    if csv_file is not None:
        past = read_csv(csv_file, CsvDefaults("all", provider, model), gaps)
    else:
        past = read_ledger(stack_name, customers, days)
    uses = collect_uses(past, meter, gaps)
    rule = load_breaker_rule()
    frozen = 0
    for customer in sorted(uses):
        trips = list(replay_usage(sorted(uses[customer]), rule, meter.id))
        frozen += bool(trips)
        for trip in trips:
            click.echo(f"{customer}  {_describe(trip, meter)}")
    click.echo(
        f"{len(uses)} customers, {sum(map(len, uses.values()))} events: "
        f"{frozen} would have been frozen."
    )
    for why, count in gaps.events.items():
        click.echo(f"left out: {count} x {why}", err=True)


@command.command("freeze")
@click.argument("customer")
@reason_options
@stack_option
def freeze(stack_name: str, customer: str, actor: str, reason: str) -> None:
    """Refuse all further billable usage of CUSTOMER, until somebody lifts it."""
    stack = open_stack(stack_name)
    wire, table = stack.wire(), stack.table("Accounts")
    job = FreezeCustomer(DynamoControls(wire, table), DynamoGuardrails(wire, table))
    job(customer, reason, f"operator {actor}", datetime.now(UTC))
    Trail(stack, wire, actor, reason).record("freeze", customer, "frozen")
    click.echo(f"{customer} is frozen; its channels are told within minutes")


@command.command("unfreeze")
@click.argument("customer")
@reason_options
@stack_option
def unfreeze(stack_name: str, customer: str, actor: str, reason: str) -> None:
    """Lift CUSTOMER's freeze, the breaker's or an operator's."""
    stack = open_stack(stack_name)
    wire, table = stack.wire(), stack.table("Accounts")
    bus = EventBridgeBus(stack.outputs["EventBus"])
    job = UnfreezeCustomer(DynamoControls(wire, table), DynamoGuardrails(wire, table), bus)
    lifted = job(customer, reason, f"operator {actor}", datetime.now(UTC))
    Trail(stack, wire, actor, reason).record("unfreeze", customer, "lifted")
    click.echo(f"{customer} may go on; it was frozen since {lifted.frozen_at:%Y-%m-%dT%H:%M:%SZ}")


@command.command("audit")
@click.argument("customer")
@stack_option
def audit(stack_name: str, customer: str) -> None:
    """Every freeze of CUSTOMER and its end: when, what, by whom, why."""
    stack = open_stack(stack_name)
    wire, table = stack.wire(), stack.table("Accounts")
    choose_customers(DynamoAccounts(wire, table), [customer])
    for entry in DynamoGuardrails(wire, table).list_audit(customer):
        click.echo(f"{entry['at']}\t{entry['what']}\t{entry['by']}\t{entry['why']}")


def collect_uses(
    past: Iterable[PastEvent], meter: Meter, gaps: Gaps
) -> dict[str, list[tuple[int, int]]]:
    """Second and sub-units of each customer's events of a meter; tokens by today's rate card."""
    uses: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for event in past:
        if event.quantity is not None:
            if event.meter == meter.id:
                uses[event.customer].append(
                    (int(event.at.timestamp()), meter.to_sub_units(event.quantity))
                )
            continue
        try:
            card = load_rate_card().at(event.at)
            quantity = card.credits(
                event.provider or "", event.model or "", event.usage or {}, meter
            )
        except RejectedEventError as error:
            gaps.add(error.code, event)
            continue
        uses[event.customer].append((int(event.at.timestamp()), meter.to_sub_units(quantity)))
    return dict(uses)


def _describe(replayed: ReplayedTrip, meter: Meter) -> str:
    trip = replayed.trip
    hour, typical, threshold = (
        meter.from_sub_units(each) for each in (trip.hour, trip.typical_day, trip.threshold)
    )
    return (
        f"{datetime.fromtimestamp(replayed.at_s, UTC):%Y-%m-%dT%H:%M:%SZ}  {hour:,f} {meter.unit}s "
        f"within an hour; typical day {typical:,f}, stops at {threshold:,f}"
    )

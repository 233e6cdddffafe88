"""`setup`: meters, products, prices, webhook endpoint and event destination, from the catalog."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import click
import stripe
from rich.console import Console
from rich.progress import Progress

from infra.cli.attach_usage import Attached, ProrationBehavior, attach_usage, find_subscriptions
from infra.cli.billing_setup import (
    Action,
    Applied,
    Change,
    SetupRefusedError,
    Targets,
    apply,
    plan_changes,
    read_account,
)
from infra.cli.move_subscriptions import (
    PARTS,
    Moved,
    find_movable,
    find_prices,
    move_subscriptions,
)
from infra.cli.stripe_access import describe_error, open_client, read_key, stripe_options
from meterline.catalog import (
    CATALOG_DIR,
    InvalidCatalogError,
    Meter,
    Plan,
    read_meters,
    read_plans,
)
from meterline.catalog.versions import CatalogVersion, Kind, read_version

__all__ = ["apply", "command", "plan_changes", "read_account"]


def _read_pairs(_ctx: click.Context, param: click.Parameter, rows: tuple[str, ...]) -> Any:
    pairs = {}
    for row in rows:
        plan, found, value = row.partition("=")
        if not (plan and found and value):
            raise click.BadParameter(f"{row!r} is not PLAN=ID", param=param)
        pairs[plan] = value
    return pairs


_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("setup")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print ids and changes as JSON.")
@stripe_options
@click.option("--meters", type=_file, default=CATALOG_DIR / "meters.toml", help="Meters file.")
@click.option("--plans", type=_file, default=CATALOG_DIR / "plans.toml", help="Plans file.")
@click.option(
    "--product", multiple=True, callback=_read_pairs, help="PLAN=prod_…: use this product."
)
@click.option(
    "--base-price", multiple=True, callback=_read_pairs, help="PLAN=price_…: use this flat price."
)
@click.option("--webhook-url", help="Where Stripe sends events: endpoint and event destination.")
@click.option("--events-url", help="Where thin events go, if not to --webhook-url.")
@click.option(
    "--secrets-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Signing secrets are written here (mode 600); needed when one is to be created.",
)
@click.option("--attach", is_flag=True, help="Add the metered item to existing subscriptions.")
@click.option(
    "--proration-behavior",
    type=click.Choice(["create_prorations", "none", "always_invoice"]),
    help="With --attach: there is no default, choose.",
)
@click.option(
    "--move-at-renewal",
    is_flag=True,
    help="Take subscriptions with older prices of a plan over to its new ones, when they renew.",
)
@click.option("--test-clock", help="With --attach or --move-at-renewal: only this test clock's.")
def command(
    *,
    dry_run: bool,
    as_json: bool,
    stripe_url: str | None,
    key_file: Path | None,
    live: bool,
    meters: Path,
    plans: Path,
    product: Mapping[str, str],
    base_price: Mapping[str, str],
    webhook_url: str | None,
    events_url: str | None,
    secrets_file: Path | None,
    attach: bool,
    proration_behavior: str | None,
    move_at_renewal: bool,
    test_clock: str | None,
) -> None:
    """Create or update at Stripe what the catalog describes. A second run changes nothing."""
    if attach and proration_behavior is None:
        raise click.UsageError("--attach needs --proration-behavior: it changes what is billed")
    targets = Targets(product, base_price, webhook_url, events_url)
    client = open_client(read_key(key_file, live=live), stripe_url)
    out = Console(stderr=as_json, highlight=False, soft_wrap=True)
    try:
        known_meters = read_meters(meters)
        known_plans = read_plans(plans, known_meters)
        version = read_version(Kind.PLANS, plans.read_text("utf-8")) if move_at_renewal else None
        _check_plans(known_plans, targets)
        found = read_account(client, known_plans, targets)
        changes = plan_changes(found, known_meters, known_plans, targets)
        keep_secret = _open_secrets(changes, secrets_file, dry_run=dry_run)
        for change in changes:
            out.print(change.describe(), markup=False)
        applied = _known(changes) if dry_run else apply(client, changes, keep_secret)
        attached = {}
        if attach:
            behavior = cast("ProrationBehavior", proration_behavior)
            attached = {
                plan.id: _attach(
                    client, plan, applied, behavior, test_clock, dry_run=dry_run, out=out
                )
                for plan in known_plans.values()
            }
        moved = {}
        if version is not None:
            moved = {
                plan.id: _move(client, plan, version, applied, test_clock, dry_run=dry_run, out=out)
                for plan in known_plans.values()
            }
    except (SetupRefusedError, InvalidCatalogError) as error:
        raise click.ClickException(str(error)) from error
    except stripe.StripeError as error:
        raise click.ClickException(describe_error(error)) from error
    changed = sum(change.action is not Action.KEEP for change in changes)
    out.print(f"{changed} change{'' if changed == 1 else 's'}{' to make' if dry_run else ' made'}")
    if as_json:
        summary = _summarise(changes, applied, known_meters, known_plans, attached)
        told = {plan: asdict(result) for plan, result in moved.items()}
        click.echo(json.dumps({"dry_run": dry_run, **summary, "moved": told}, indent=2))
    failed = [result.failed for result in attached.values()]
    if any([*failed, *(result.failed for result in moved.values())]):
        raise click.ClickException("not every subscription could be changed; run it again")


def _check_plans(plans: Mapping[str, Plan], targets: Targets) -> None:
    for plan in {**targets.products, **targets.base_prices}:
        if plan not in plans:
            raise SetupRefusedError(f"there is no plan {plan!r}: {', '.join(plans)}")


def _open_secrets(
    changes: tuple[Change, ...], path: Path | None, *, dry_run: bool
) -> Callable[[str, str], None]:
    """What writes down a new signing secret; the file is known to take it before one is made."""
    creates = any(
        change.action is Action.CREATE
        and change.resource in ("webhook_endpoint", "event_destination")
        for change in changes
    )
    if creates and path is None:
        raise click.UsageError(
            "Stripe shows a signing secret only when it is created: give --secrets-file"
        )
    if not creates or path is None or dry_run:
        return _refuse_secret
    try:
        text = path.read_text("utf-8") if path.exists() else ""
        known = json.loads(text or "{}")
        if not isinstance(known, dict):
            raise ValueError("it is not a JSON object")
        _write_secrets(path, known)
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{path} cannot hold signing secrets: {error}") from error

    def keep(key: str, secret: str) -> None:
        known[key] = secret
        _write_secrets(path, known)

    return keep


def _refuse_secret(key: str, _secret: str) -> None:
    raise AssertionError(f"nothing was to be created that has a secret, and {key} has")


def _write_secrets(path: Path, secrets: Mapping[str, str]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        # One that was there before may be open to others.
        os.fchmod(descriptor, 0o600)
        json.dump(secrets, file, indent=2)


def _known(changes: tuple[Change, ...]) -> Applied:
    """What a dry run can say: the ids of what is there already."""
    ids = {
        (change.resource, change.key): change.object_id
        for change in changes
        if change.object_id and change.action is not Action.ARCHIVE
    }
    return Applied(ids)


def _attach(
    client: stripe.StripeClient,
    plan: Plan,
    applied: Applied,
    behavior: ProrationBehavior,
    test_clock: str | None,
    *,
    dry_run: bool,
    out: Console,
) -> Attached:
    base = applied.ids.get(("price", f"{plan.id}.base"))
    if base is None:
        out.print(f"plan {plan.id}: its base price is not there yet, so nothing has it")
        return Attached()
    subscriptions = find_subscriptions(client, base, test_clock)
    with Progress(console=out, transient=True) as bar:
        task = bar.add_task(f"plan {plan.id}", total=len(subscriptions))
        result = attach_usage(
            client,
            plan,
            subscriptions,
            applied.ids.get(("price", f"{plan.id}.usage"), ""),
            applied.ids.get(("meter", plan.meter), ""),
            behavior,
            dry_run=dry_run,
            progress=lambda: bar.advance(task),
        )
    out.print(
        f"plan {plan.id}: {len(result.added)} {'to add' if dry_run else 'added'}, "
        f"{len(result.already)} had it, {len(result.skipped)} skipped, {len(result.failed)} failed"
    )
    for name, why in {**result.skipped, **result.failed}.items():
        out.print(f"  {name}: {why}", markup=False)
    return result


def _move(
    client: stripe.StripeClient,
    plan: Plan,
    version: CatalogVersion,
    applied: Applied,
    test_clock: str | None,
    *,
    dry_run: bool,
    out: Console,
) -> Moved:
    current = {part: applied.ids.get(("price", f"{plan.id}.{part}"), "") for part in PARTS}
    product = applied.ids.get(("product", plan.id))
    if product is None or not all(current.values()):
        # A dry run before the new prices are made: there is nothing yet to move to.
        out.print(f"plan {plan.id}: its new prices are not there yet")
        return Moved()
    prices = find_prices(client, plan, product, current)
    subscriptions = find_movable(client, prices, test_clock)
    with Progress(console=out, transient=True) as bar:
        task = bar.add_task(f"plan {plan.id}", total=len(subscriptions))
        result = move_subscriptions(
            client,
            plan,
            (version.version, version.effective_from),
            prices,
            subscriptions,
            dry_run=dry_run,
            progress=lambda: bar.advance(task),
        )
    out.print(
        f"plan {plan.id}: {len(result.scheduled)} {'to move' if dry_run else 'moving'} at renewal, "
        f"{len(result.already)} were, {len(result.later)} renew before the version counts, "
        f"{len(result.skipped)} skipped, {len(result.failed)} failed"
    )
    for name, why in {**result.later, **result.skipped, **result.failed}.items():
        out.print(f"  {name}: {why}", markup=False)
    return result


def _summarise(
    changes: tuple[Change, ...],
    applied: Applied,
    meters: Mapping[str, Meter],
    plans: Mapping[str, Plan],
    attached: Mapping[str, Attached],
) -> dict[str, Any]:
    ids = applied.ids
    return {
        "changes": [
            {
                "action": change.action,
                "resource": change.resource,
                "key": change.key,
                "id": ids.get((change.resource, change.key)) or change.object_id,
                "why": change.why,
            }
            for change in changes
        ],
        "meters": {meter: ids.get(("meter", meter)) for meter in meters},
        "plans": {
            plan: {
                "product": ids.get(("product", plan)),
                "prices": {
                    "base": ids.get(("price", f"{plan}.base")),
                    "metered": ids.get(("price", f"{plan}.usage")),
                },
            }
            for plan in plans
        },
        "webhook_endpoint": ids.get(("webhook_endpoint", "webhook")),
        "event_destination": ids.get(("event_destination", "meter_errors")),
        "attached": {
            plan: {
                "added": result.added,
                "already": result.already,
                "skipped": result.skipped,
                "failed": result.failed,
            }
            for plan, result in attached.items()
        },
    }

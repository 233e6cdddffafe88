"""The whole product on this machine, a workload through it, and the books compared.

Starts a local Stripe and the emulator, deploys the template, sets Stripe up, creates customers
with subscriptions, reports a workload, waits until everything is billed, and prints the books.
With STRIPE_API_KEY=sk_test_... in the environment, Stripe's test mode takes the local one's place.
"""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import botocore.session
import click
import httpx
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from infra.local.books import Book, print_books
from infra.local.replay import ReplayFailedError, Sender, await_rest
from infra.local.settlement import Settlement
from infra.local.stack import LOCAL, REGION, REPOSITORY, LocalStack, StackFailedError
from infra.local.stripe_account import StripeAccount, open_account
from infra.local.workload import (
    Fate,
    Report,
    TraceError,
    make_calls,
    make_reports,
    read_trace,
)
from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_ledger import DynamoLedger
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.catalog import CATALOG_DIR, load_meters, load_plans
from meterline.domain.api_keys import KEY_PREFIX, ApiKey, Scope, hash_key

CUSTOMERS = {
    "acme": "Acme Research",
    "birch": "Birch & Partners",
    "cedar": "Cedar Labs",
    "delta": "Delta Freight",
    "elm": "Elm Street Books",
}
ENDPOINTS = LOCAL / "endpoints.json"
PLAN = "pro"
CALLS = 6_000
DAYS = 30
console = Console()


@click.command(help=__doc__)
@click.option("--once", is_flag=True, help="End with the books: status 0 only if all agree.")
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Replay a CSV of TIMESTAMP,ContextTokens,GeneratedTokens instead of made-up calls.",
)
@click.option("--calls", type=click.IntRange(1, 1_000_000), default=CALLS, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the made-up workload.")
def main(once: bool, trace: Path | None, calls: int, seed: int) -> None:
    """Run it; a wrong trace or a stack that does not come up ends with status 2."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        agreed = run(once=once, trace=trace, calls=calls, seed=seed)
    except (TraceError, StackFailedError, ReplayFailedError) as error:
        console.print(str(error), style="red", highlight=False, markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("\nStopped; nothing is left running.")
        sys.exit(130)
    sys.exit(0 if agreed else 1)


def run(*, once: bool, trace: Path | None, calls: int, seed: int) -> bool:
    """Bring it up, send the workload, compare the books; whether all of them agree."""
    now = datetime.now(UTC).replace(microsecond=0)
    dice = random.Random(seed)  # noqa: S311 - a repeatable workload, not a secret
    if trace is None:
        model_calls = make_calls(calls, now - timedelta(days=DAYS), now, dice)
    else:
        model_calls = read_trace(trace, now - timedelta(minutes=1))
    reports = list(make_reports(model_calls, [*CUSTOMERS], CATALOG_DIR / "rate_card.toml", dice))
    # Subscriptions begin on a whole hour before the first call.
    start = model_calls[0].at.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    with contextlib.ExitStack() as opened:
        # Nobody finds the addresses of a run that was killed, or of this one when it has ended.
        ENDPOINTS.unlink(missing_ok=True)
        opened.callback(ENDPOINTS.unlink, missing_ok=True)
        account = opened.enter_context(open_account())
        with console.status("Building, and deploying to the emulator"):
            stack = opened.enter_context(
                LocalStack("run", stripe_url=account.url, stripe_key=account.key)
            )
        wire = open_wire(stack)
        keys = make_keys(DynamoAccounts(wire, stack.outputs["AccountsTable"]))
        with console.status("Setting Stripe up: meters, product, prices, subscriptions"):
            webhook_url = _open_webhooks(stack, account)
            books = [
                Book(customer, account.subscribe(customer, name, start))
                for customer, name in CUSTOMERS.items()
            ]
        for book in books:
            put_customer(
                stack.api_url,
                keys["admin"],
                book.customer,
                book.subscriber.billing_customer,
                name=CUSTOMERS[book.customer],
            )
            book.expect(reports)
        _write_endpoints(stack, account, keys, books, webhook_url)
        ledger = DynamoLedger(wire, stack.outputs["EventsTable"])
        meters, plan = load_meters(), load_plans()[PLAN]
        settlement = Settlement(stack, meters)
        _replay(stack.api_url, keys["usage"], account, settlement, books, reports, now)
        with console.status("Comparing the books"):
            listed = settlement.count_listed()
            # Stripe's summaries take whole minutes.
            end = now.replace(second=0) + timedelta(minutes=6)
            for book in books:
                book.read_ledger(ledger, meters, start, end)
                book.read_stripe(account, start, end)
                book.read_bills(account, ledger, meters[plan.meter], plan)
                book.read_listed(listed)
        print_books(console, books, meters, plan.currency)
        agreed = all(book.agrees for book in books)
        if not once:
            where = ENDPOINTS.relative_to(REPOSITORY)
            _print_links(stack.api_url, keys["admin"], books)
            console.print(f"Up until Ctrl-C. {where} has the addresses and keys.")
            threading.Event().wait()
    return agreed


def _replay(
    api_url: str,
    api_key: str,
    account: StripeAccount,
    settlement: Settlement,
    books: Sequence[Book],
    reports: Sequence[Report],
    now: datetime,
) -> None:
    """Send the reports, period by period, and wait after each until all is billed.

    Stripe takes usage of a period until that period's invoice is final, so the clocks of its
    customers must not pass the end of a period before that period's usage has arrived.
    """
    sender = Sender(api_url, api_key)
    boundary = min(book.subscriber.period_end for book in books)
    cut = next((place for place, report in enumerate(reports) if report.at >= boundary), None)
    phases = [(reports[:cut], min(boundary - timedelta(seconds=1), now))]
    if cut is not None:
        phases.append((reports[cut:], now))
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        sending = progress.add_task("reported", total=len(reports))
        billing = progress.add_task("billed  ", total=None)
        for part, to in phases:
            for book in books:
                account.advance(book.subscriber, to)
            sender.send(part, partial(progress.advance, sending))
            accepted = sum(tally[Fate.ACCEPTED] for tally in sender.tallies.values())
            progress.update(billing, total=accepted)
            _await_billed(settlement, accepted, progress, billing)
    for book in books:
        book.answered = Counter(+sender.tallies[book.customer])


def _await_billed(
    settlement: Settlement, accepted: int, progress: Progress, billing: TaskID
) -> None:
    await_rest(
        partial(settlement.count_open, accepted),
        lambda left: progress.update(billing, completed=accepted - left),
    )


def open_wire(stack: LocalStack) -> DynamoWire:
    """The service's own way to DynamoDB, to this stack's tables."""
    environment = stack.environment()
    session = botocore.session.get_session()
    session.set_credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    session.set_config_variable("region", REGION)
    return DynamoWire(session, endpoint_url=stack.aws_url)


def make_keys(accounts: DynamoAccounts) -> dict[str, str]:
    """An API key for each scope, by the scope's name."""
    keys = {}
    for scope in Scope:
        keys[scope.value] = KEY_PREFIX + secrets.token_urlsafe(32)
        accounts.add_key(
            ApiKey(hash_key(keys[scope]), f"make run: {scope}", frozenset({scope}), _now())
        )
    return keys


def put_customer(
    api_url: str, admin_key: str, customer: str, billing_customer: str, *, name: str
) -> None:
    """`PUT /v1/customers/{id}`. Raises `ReplayFailedError`."""
    answer = httpx.put(
        f"{api_url}/v1/customers/{customer}",
        json={
            "name": name,
            "email": f"billing@{customer}.example",
            "plan": PLAN,
            "billing_customer": billing_customer,
        },
        headers={"Authorization": f"Bearer {admin_key}"},
        timeout=30,
    )
    if answer.status_code != 200:
        raise ReplayFailedError(f"PUT customer {customer}: {answer.text}")


def _open_webhooks(stack: LocalStack, account: StripeAccount) -> str:
    """Set Stripe up, with its webhooks going to this stack where they can reach it."""
    url = stack.open_webhook_gateway()
    if account.url:
        stack.store_webhook_secrets(account.set_up(url))
    else:
        # Stripe itself cannot reach this machine; `stripe listen --forward-to` can.
        account.set_up()
    return url


def _print_links(api_url: str, admin_key: str, books: Sequence[Book]) -> None:
    """A link to each customer's dashboard, as an app would make one for who is signed in."""
    console.print(
        "Dashboards; a link is good for five minutes, POST /v1/portal-sessions makes more:"
    )
    for book in books:
        answer = httpx.post(
            f"{api_url}/v1/portal-sessions",
            json={"customer": book.customer},
            headers={"Authorization": f"Bearer {admin_key}"},
            timeout=30,
        )
        if answer.status_code != 201:
            raise ReplayFailedError(f"portal session of {book.customer}: {answer.text}")
        # Whole, so that a terminal can follow it.
        console.print(f"  {book.customer}: {answer.json()['url']}", soft_wrap=True, highlight=False)


def _write_endpoints(
    stack: LocalStack,
    account: StripeAccount,
    keys: dict[str, str],
    books: Sequence[Book],
    webhook_url: str,
) -> None:
    """Where everything is, for any program that wants to talk to it."""
    endpoints: dict[str, Any] = {
        "api": stack.api_url,
        "webhook": webhook_url,
        "dashboard": f"{stack.api_url}/settings/usage",
        "stripe": account.url or "https://api.stripe.com",
        "stripe_key": account.key,
        "aws": stack.aws_url,
        "api_key": keys["usage"],
        "admin_key": keys["admin"],
        "customers": [
            {"id": book.customer, "billing_customer": book.subscriber.billing_customer}
            for book in books
        ],
        "meters": {
            meter.id: {
                "stripe_meter": account.objects["meters"][meter.id],
                "sub_units": meter.sub_units,
            }
            for meter in load_meters().values()
        },
        "tables": {
            name: stack.outputs[f"{name.title()}Table"]
            for name in ("events", "totals", "emissions", "accounts", "inbox", "books")
        },
    }
    draft = ENDPOINTS.with_suffix(".new")
    draft.write_text(json.dumps(endpoints, indent=2) + "\n")
    draft.chmod(0o600)
    draft.replace(ENDPOINTS)


def _now() -> datetime:
    return datetime.now(UTC)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

"""`make load`: the deployed stack under load, and its books afterwards.

Deploys the template onto an emulator of its own, finds by a short ramp the highest rate at which
the bill keeps up, holds it, then sends ten times of it for a minute, and waits until all is billed.
What the stack cannot take it refuses with 429 or 503, and is sent again. Ends with status 0 only if
all that was sent was taken, and each customer's ledger and bill hold exactly that.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import NoReturn

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from infra.local.replay import ReplayFailedError
from infra.local.run import make_keys, open_wire, put_customer
from infra.local.stack import LOCAL, LocalStack, StackFailedError
from infra.local.stripe_account import StripeAccount, open_local_account
from infra.local.stripe_server import StripeControl
from meterline.adapters.dynamodb_accounts import DynamoAccounts
from tests.load.phases import METER, Load, NotDrainedError, Row
from tests.load.traffic import CallRefusedError, Traffic

REPORT = LOCAL / "load.txt"
_CALLS = 8
_WAITING = 24
_WIDTH = 130
console = Console()


@click.command(help=__doc__)
@click.option("--minutes", type=click.FloatRange(0.1, 600), default=10.0, show_default=True)
@click.option("--rate", type=click.FloatRange(1, 100_000), help="Events a second; no ramp then.")
@click.option("--burst", type=click.FloatRange(1, 100), default=10.0, show_default=True)
@click.option("--burst-seconds", type=click.FloatRange(1, 3600), default=60.0, show_default=True)
@click.option("--batch", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--customers", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--senders", type=click.IntRange(1, 500), default=64, show_default=True)
@click.option("--drain-minutes", type=click.FloatRange(0.1, 600), default=60.0, show_default=True)
def main(
    minutes: float,
    rate: float | None,
    burst: float,
    burst_seconds: float,
    batch: int,
    customers: int,
    senders: int,
    drain_minutes: float,
) -> None:
    """Run it; 1 when the books disagree, 2 when it could not run to its end."""
    stop = threading.Event()

    def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
        stop.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    try:
        with _open_load(customers, batch, senders) as load:
            limit_s = drain_minutes * 60
            rows: list[Row] = []
            if rate is None:
                rate = load.find_rate(rows, stop, limit_s, console)
            rows.append(load.run_phase("sustained", rate, minutes * 60, stop, limit_s, console))
            rows.append(
                load.run_phase("burst", rate * burst, burst_seconds, stop, limit_s, console)
            )
            with console.status("Comparing the books"):
                wrong = load.compare()
    except (StackFailedError, ReplayFailedError, CallRefusedError, NotDrainedError) as error:
        console.print(str(error), style="red", highlight=False, markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("\nStopped; nothing is left running.")
        sys.exit(130)
    _print_report(rows, load.traffic, wrong)
    sys.exit(1 if wrong else 0)


@contextlib.contextmanager
def _open_load(count: int, batch: int, senders: int) -> Iterator[Load]:
    with contextlib.ExitStack() as opened:
        account = opened.enter_context(open_local_account())
        with console.status("Building, and deploying to the emulator"):
            stack = opened.enter_context(
                LocalStack("load", stripe_url=account.url, stripe_key=account.key)
            )
        keys = make_keys(DynamoAccounts(open_wire(stack), stack.outputs["AccountsTable"]))
        with console.status("Setting Stripe up, with its customers"):
            account.set_up()
            customers = _subscribe(stack, account, keys["admin"], count)
        address = stack.open_gateway(stack.api_host, calls=_CALLS, waiting=_WAITING)
        traffic = Traffic(address, keys["usage"], [*customers], batch=batch, senders=senders)
        yield Load(stack, StripeControl(account.url, account.key), customers, traffic)


def _subscribe(
    stack: LocalStack, account: StripeAccount, admin_key: str, count: int
) -> dict[str, str]:
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    customers = {}
    for number in range(count):
        customer = f"load-{number}"
        subscriber = account.subscribe(customer, customer, start)
        # Far enough that no event of this run is ahead of its customer's time.
        account.advance(subscriber, datetime.now(UTC) + timedelta(hours=12))
        put_customer(stack.api_url, admin_key, customer, subscriber.billing_customer, name=customer)
        customers[customer] = subscriber.billing_customer
    return customers


def _print_report(rows: Sequence[Row], traffic: Traffic, wrong: Mapping[str, str]) -> None:
    """The table, on the terminal and in a file, and what does not agree."""
    table = Table(title=f"{METER}, {datetime.now(UTC):%Y-%m-%d}", title_justify="left", box=SIMPLE)
    # From due: with the time that a call waited for a sender or for its next try. Repeated: taken
    # before, by a call whose answer did not come or came as 503.
    columns = (
        *("phase", "offered/s", "taken/s", "events", "p50 ms", "p99 ms", "p99 ms\nfrom due"),
        *("429", "503", "no or\nother", "repeated", "longest\nlag s", "drained\nin s"),
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "phase" else "right")
    for row in rows:
        figures = row.figures
        other = figures.refused.total() - figures.refused["429"] - figures.refused["503"]
        numbers = (
            *(figures.rate, figures.taken_rate, figures.events),
            *(_quantile(figures.answered_ms, 0.5), _quantile(figures.answered_ms, 0.99)),
            *(_quantile(figures.late_ms, 0.99), figures.refused["429"], figures.refused["503"]),
            *(other, figures.duplicates, row.longest_lag_s, row.drain_s),
        )
        table.add_row(row.phase, *(f"{number:,.0f}" for number in numbers))
    taken = sum(traffic.sent.events.values())
    verdict = [f"{customer}: {what}" for customer, what in wrong.items()] or [
        f"{taken:,} events taken, in the ledger and billed, of {len(traffic.sent.events)} customers"
    ]
    with REPORT.open("w") as file:
        for out in (Console(width=max(console.width, _WIDTH)), Console(file=file, width=_WIDTH)):
            out.print(table)
            out.print("\n".join(verdict), highlight=False)


def _quantile(numbers: Sequence[float], share: float) -> float:
    """The number that `share` of them do not pass; 0 of none."""
    ordered = sorted(numbers)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


if __name__ == "__main__":
    main()

"""Phases of a load on a deployed stack, and its books afterwards."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from infra.local.run import open_wire
from infra.local.stack import LocalStack
from infra.local.stripe_server import StripeControl
from meterline.adapters.dynamodb_ledger import DynamoLedger
from meterline.catalog import load_meters
from tests.load.traffic import BilledWatch, Figures, Traffic, compare_books

METER = "credits"
_FIRST_RATE = 100.0
_STEP_S = 20.0
_MOST_LAG_S = 5.0
"""With more in a step of the ramp, the bill does not keep up."""


class NotDrainedError(Exception):
    """The bill has not caught up in time."""


@dataclass(frozen=True, slots=True)
class Row:
    """A phase, and how far the bill was behind in it."""

    phase: str
    figures: Figures
    longest_lag_s: float
    drain_s: float


class Load:
    """A stack, its customers with their ids at Stripe, and the traffic to it."""

    def __init__(
        self, stack: LocalStack, stripe: StripeControl, customers: dict[str, str], traffic: Traffic
    ) -> None:
        self._stack = stack
        self._stripe = stripe
        self._meter = load_meters()[METER]
        self._customers = customers
        self._began_at = datetime.now(UTC)
        self.traffic = traffic

    def read_billed(self) -> dict[str, int]:
        """What Stripe counts, by customer."""
        totals = self._stripe.totals()
        return {
            customer: totals.get((self._meter.event_name, billed), 0)
            for customer, billed in self._customers.items()
        }

    def run_phase(
        self,
        name: str,
        rate: float,
        seconds: float,
        stop: threading.Event,
        limit_s: float,
        console: Console,
    ) -> Row:
        """Send at a rate, then wait until all is billed. Raises `NotDrainedError`."""
        bars = (
            TextColumn("{task.description:24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[lag]}"),
        )
        with Progress(*bars, console=console) as progress, self.watch() as watch:
            total = round(rate * seconds)
            task = progress.add_task(f"{name} at {rate:,.0f}/s", total=total, lag="")

            def tell(events: int) -> None:
                lag = f"bill {watch.lag_s:.0f} s behind" if watch.lag_s >= 1 else ""
                progress.update(task, advance=events, lag=lag)

            figures = self.traffic.run(rate, seconds, stop, tell)
            behind_s = watch.look()
            drained_s = watch.drain(limit_s, stop)
            progress.update(task, lag=f"bill {behind_s:.0f} s behind at the end")
        if drained_s is None:
            raise NotDrainedError(f"{name}: {watch.lag_s:.0f} s behind after {limit_s:.0f} s more")
        return Row(name, figures, watch.longest_lag_s, drained_s)

    def watch(self) -> BilledWatch:
        """The look at how far the bill is behind."""
        return BilledWatch(self.traffic.sent, self.read_billed)

    def find_rate(
        self, rows: list[Row], stop: threading.Event, limit_s: float, console: Console
    ) -> float:
        """The highest rate of the ramp with which the bill keeps up: doubled, then halved twice."""
        good, bad, rate = 0.0, 0.0, _FIRST_RATE
        while bad == 0 or bad - good > good / 4:
            row = self.run_phase(f"ramp {len(rows) + 1}", rate, _STEP_S, stop, limit_s, console)
            rows.append(row)
            if row.longest_lag_s <= _MOST_LAG_S and row.figures.seconds < _STEP_S + _MOST_LAG_S:
                good = rate
            else:
                bad = rate
            if good == 0 and bad <= 1:
                raise NotDrainedError("not even one event a second is billed in time")
            rate = good * 2 if bad == 0 else (good + bad) / 2
        return good

    def compare(self) -> dict[str, str]:
        """What does not agree, by customer."""
        ledger = DynamoLedger(open_wire(self._stack), self._stack.outputs["EventsTable"])
        kept = {}
        for customer in self._customers:
            events = sub_units = 0
            until = datetime.now(UTC) + timedelta(minutes=1)
            for entry in ledger.events_between(customer, self._began_at, until):
                events += 1
                sub_units += self._meter.to_sub_units(entry.quantity)
            kept[customer] = (events, sub_units)
        wrong = compare_books(self.traffic.sent, kept, self.read_billed())
        taken = sum(self.traffic.sent.events.values())
        if taken != self.traffic.made:
            wrong["all"] = f"{self.traffic.made} events made, {taken} taken"
        return wrong

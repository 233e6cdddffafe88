"""Ninety days of many customers on the real services, real storage and the local Stripe.

    python -m tests.faults.ninety_days --seeds 20 --customers 50

Every day customers report usage: twice, late, with clocks that run ahead. DynamoDB and SQS throttle
and lose answers, processes crash, Stripe is away for hours, webhooks repeat, come in disorder or
never. Periods renew, some customers cancel. In the end every invoice, with what was billed later
for its period, must be what the plan makes of the ledger, to the cent, and every event must be
billed once or be on a list with its reason.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from infra.local.stripe_server import LocalStripe
from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_books import DynamoDroppedUsages
from meterline.adapters.dynamodb_inbox import DynamoInbox
from meterline.adapters.stripe_access import StripeAccess
from meterline.adapters.stripe_events import StripeEvents
from meterline.adapters.stripe_subscriptions import StripeSubscriptions
from meterline.domain.pricing import price_usage, total_minor
from meterline.domain.webhooks import Notice
from meterline.errors import MeterlineError
from meterline.services.apply_stripe_event import ApplyStripeEvent
from meterline.services.sync_subscriptions import SyncSubscriptions
from tests.faults.invoiced import PRO, CatalogPlans, Office, PlannedSurroundings
from tests.faults.whole_path import (
    LOST,
    METER_EVENTS,
    METERS,
    REFUSED,
    REPEATED,
    Clock,
    FifoQueue,
    Steps,
    Surroundings,
    World,
)
from tests.integration.storage.stores import Store

DAYS = 90
CREDITS = METERS["credits"]


@dataclass
class Row:
    """What a seed came to."""

    seed: int
    customers: int = 0
    events: int = 0
    repeats: int = 0
    late: int = 0
    faults: int = 0
    crashes: int = 0
    outages: int = 0
    webhooks: int = 0
    held: int = 0
    invoices: int = 0
    late_items: int = 0
    listed: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class SharedTail:
    """What is new in the ledger, handed to all the worlds that live on one table.

    Read from the table, not from its stream: DynamoDB Local trims the stream of a table after some
    minutes of such a run. The order between keys is by chance, as it is between real shards.
    """

    store: Store
    worlds: list[World]
    seen: set[str] = field(default_factory=set)

    def hand_out(self) -> None:
        """Give every world what is new of its own."""
        pages = (
            self.store.client()
            .get_paginator("scan")
            .paginate(TableName=self.store.tables.events, ConsistentRead=True)
        )
        fresh = []
        for item in (item for page in pages for item in page["Items"]):
            if item["k"]["S"] not in self.seen:
                self.seen.add(item["k"]["S"])
                number = str(len(self.seen)).zfill(21)
                fresh.append(
                    {
                        "eventName": "INSERT",
                        "dynamodb": {"NewImage": item, "SequenceNumber": number},
                    }
                )
        for world in self.worlds:
            world.take_records(fresh)

    def read_new(self) -> list[dict[str, Any]]:
        """Nothing: every world has been given its own already."""
        return []


@dataclass
class Simulation:
    """One seed's ninety days."""

    around: Surroundings
    seed: int
    customers: int
    start: datetime
    events_a_day: float = 0.5
    worlds: list[World] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.row = Row(self.seed, self.customers)
        self.clock = Clock(self.start)
        self.clock.followers.append(lambda at: self.around.local.set_clock(at.timestamp()))
        for _ in range(self.customers):
            steps = Steps(weather=self._weather)
            world = World(self.around, self.start, steps=steps, dice=self.dice)
            world.clock = self.clock
            world.queue, world.dead = FifoQueue(self.clock), FifoQueue(self.clock)
            self.worlds.append(world)
        self.tail = SharedTail(self.around.store, self.worlds)
        self.around.tail = self.tail  # type: ignore[assignment]  # of the same shape
        self.offices = {world.customer: Office(world) for world in self.worlds}
        self.stripe = self.around.local.client()
        tables, wire = self.around.store.tables, self.around.wire
        local = self.around.local
        self.accounts = DynamoAccounts(wire, tables.accounts)
        stripe_access = StripeAccess(lambda: local.key, api_base=local.url)
        self.events = StripeEvents(stripe_access)
        self.inbox = DynamoInbox(wire, tables.inbox)
        subscriptions = StripeSubscriptions(stripe_access)
        self.apply = ApplyStripeEvent(
            self.inbox,
            self.accounts,
            self.events,
            DynamoDroppedUsages(wire, tables.books),
            sync=SyncSubscriptions(self.accounts, subscriptions, CatalogPlans()),
            check_invoice=self._office().settlement(),
        )
        self.since_s = int(self.start.timestamp())
        self.undelivered: list[Notice] = []
        self.is_out_until = self.start

    def _office(self) -> Office:
        return next(iter(self.offices.values()))

    def _weather(self, _name: str) -> str | None:
        roll = self.dice.random()
        if roll < 0.01:
            return REFUSED
        if roll < 0.015:
            return LOST
        return REPEATED if roll < 0.02 else None

    def run(self) -> Row:
        """All days, then fine weather until everything has come to rest."""
        began_s = time.monotonic()
        for _ in range(DAYS):
            self._live_a_day()
        self._come_to_rest()
        self._check()
        for world in self.worlds:
            self.row.faults += sum(world.steps.failures.values())
            self.row.crashes += len(world.steps.crashes)
        self.row.seconds = time.monotonic() - began_s
        return self.row

    def _live_a_day(self) -> None:
        self._have_outage()
        for hours in (6, 6, 6, 6):
            for world in self.worlds:
                if self.dice.random() < self.events_a_day / 4:
                    self._report(world)
            self._work()
            self._hear_webhooks()
            self.clock.move(hours * 3600 + self.dice.randrange(-600, 600))
        if self.dice.random() < 0.02:
            self._cancel(self.dice.choice(self.worlds))

    def _have_outage(self) -> None:
        local = self.around.local
        if self.clock.now() >= self.is_out_until:
            local.clear_faults()
        if self.dice.random() < 0.08:
            self.row.outages += 1
            self.is_out_until = self.clock.now() + timedelta(hours=self.dice.randrange(1, 20))
            kind = self.dice.choice(["error", "drop"])
            told: dict[str, Any] = {"status": 500} if kind == "error" else {}
            self._add_fault(kind, path=METER_EVENTS, probability=0.7, **told)

    def _add_fault(self, kind: str, **rule: Any) -> None:
        rule |= {"when": self.dice.choice(["before", "after"]), "seed": self.seed}
        self.around.local.add_fault(kind, **rule)

    def _report(self, world: World) -> None:
        at = self.clock.now() + timedelta(seconds=self.dice.randrange(-3600, 200))
        if self.dice.random() < 0.06:
            at -= timedelta(days=self.dice.randrange(1, 34))
            self.row.late += 1
        at = max(at, self.start)
        sub_units = int(self.dice.lognormvariate(11.5, 1.2)) + 1
        name = f"{world.customer}-{len(world.sent)}"
        world.make_event(name, "credits", str(Decimal(sub_units) / 1000), at=at)
        self.row.events += 1
        copies = 1 + (self.dice.random() < 0.1)
        self.row.repeats += copies - 1
        for _ in range(copies):
            if self.dice.random() < 0.05:
                world.steps.crash_at = {len(world.steps.names) + self.dice.randrange(8)}
            answer = world.report([world.sent[name]])
            if answer is None or answer.undecided:
                world.unanswered.append([world.sent[name]])

    def _work(self) -> None:
        """The functions do what they can in this weather."""
        for world in self.worlds:
            if self.dice.random() < 0.05:
                world.steps.crash_at = {len(world.steps.names) + self.dice.randrange(12)}
            for batch in list(world.unanswered):
                answer = world.report(batch)
                if answer is not None and not answer.undecided:
                    world.unanswered.remove(batch)
        self.tail.hand_out()
        for world in self.worlds:
            for _ in range(3):
                if not world.deliver_records(again=self.dice.randrange(2)):
                    break
                if world.shards[0].position >= len(world.shards[0].records):
                    break
            if world.queue.messages:
                world.deliver_messages()

    def _hear_webhooks(self, *, fair: bool = False) -> None:
        """What happened at Stripe since, twice, out of order, and some of it much later."""
        now_s = int(self.clock.now().timestamp())
        fresh = list(self.events.since(self.since_s))
        self.since_s = now_s - 60
        waiting = [*self.undelivered, *fresh]
        if not fair:
            waiting += [each for each in fresh if self.dice.random() < 0.2]
            self.dice.shuffle(waiting)
        self.undelivered = []
        for notice in waiting:
            if not fair and self.dice.random() < 0.1:
                self.undelivered.append(notice)
                continue
            self.row.webhooks += 1
            try:
                self.apply(notice, self.clock.now())
            except MeterlineError:
                self.undelivered.append(notice)

    def _cancel(self, world: World) -> None:
        listed = self.stripe.v1.subscriptions.list({"customer": str(world.billing_customer)})
        for subscription in listed.data:
            if not subscription.cancel_at_period_end:
                self.stripe.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})

    def _come_to_rest(self) -> None:
        self.around.local.clear_faults()
        for world in self.worlds:
            world.steps.weather = lambda name: None
            world.steps.crash_at = set()
        for _ in range(4):
            for world in self.worlds:
                world.report_until_answered()
            self.tail.hand_out()
            for world in self.worlds:
                world.drain()
            self._hear_webhooks(fair=True)
            self.row.held += sum(1 for _ in self._office().checks.list_open())
            self._office().recheck()
            self.clock.move(2 * 3600)

    def _check(self) -> None:
        for world in self.worlds:
            self._check_customer(world)

    def _check_customer(self, world: World) -> None:
        office = self.offices[world.customer]
        ledger = self.around.store.ledger(self.around.wire)
        end = self.clock.now() + timedelta(days=1)
        entries = list(ledger.events_between(world.customer, self.start, end))
        names = Counter(entry.key.id for entry in entries)
        if names != Counter(list(world.sent)):
            self.row.wrong.append(f"{world.customer}: the ledger is not what was reported")
        told = self.around.local.meter_events(
            customer=str(world.billing_customer), outcome="accepted"
        )
        accepted = Counter(each["identifier"] for each in told)
        records = office.records
        pk = f"{world.customer}#credits"
        problems = {item["identifier"]["S"]: item for item in records._query(pk, "problem#")}
        for entry in entries:
            name = entry.key.identifier
            if accepted[name] > 1:
                self.row.wrong.append(f"{world.customer}: {entry.key.id} billed twice")
            if not accepted[name]:
                if name not in problems:
                    self.row.wrong.append(f"{world.customer}: {entry.key.id} is nowhere")
                else:
                    self.row.listed[problems[name]["code"]["S"]] += 1
        items = office.items()
        for invoice in office.list_invoices():
            found = office.invoices.get(invoice.id)
            for line in found.usage:
                quantity = sum(
                    (
                        entry.quantity
                        for entry in entries
                        if line.period.start <= entry.at < line.period.end
                    ),
                    Decimal(0),
                )
                later = [
                    item
                    for item in items
                    if (item.metadata.to_dict() if item.metadata is not None else {})
                    .get("meterline_late", "")
                    .startswith(f"{invoice.id}:")
                ]
                self.row.invoices += 1
                self.row.late_items += len(later)
                expected = total_minor(price_usage(quantity, PRO))
                billed = line.amount_minor + sum(item.amount for item in later)
                if billed != expected:
                    self.row.wrong.append(
                        f"{world.customer} {invoice.id} ({found.status}): {billed} billed, "
                        f"{expected} by the ledger"
                    )


@contextmanager
def open_surroundings(url: str) -> Iterator[Surroundings]:
    """Fresh tables on the DynamoDB at `url`, and a local Stripe."""
    with LocalStripe() as local:
        yield PlannedSurroundings(Store("dynamodb_local", url), local)


def simulate(url: str, seed: int, customers: int) -> Row:
    """One seed on the DynamoDB at `url`."""
    start = datetime.now(UTC).replace(minute=20, second=0, microsecond=0)
    with open_surroundings(url) as around:
        return Simulation(around, seed, customers, start).run()


HEADINGS = (
    "seed customers events repeats late faults crashes outages webhooks invoices items listed wrong"
)


def describe(row: Row) -> str:
    """One line of the table."""
    return (
        f"{row.seed:4} {row.customers:9} {row.events:6} {row.repeats:7} {row.late:4} "
        f"{row.faults:6} {row.crashes:7} {row.outages:7} {row.webhooks:8} {row.invoices:8} "
        f"{row.late_items:5} {sum(row.listed.values()):6} {len(row.wrong):5}  {row.seconds:.0f} s "
        f"{dict(row.listed)}"
    )


def main() -> None:
    """Print the table; status 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--customers", type=int, default=50)
    parser.add_argument("--dynamodb", default=os.environ.get("DYNAMODB_LOCAL_URL"))
    told = parser.parse_args()
    if not told.dynamodb:
        parser.error("where is DynamoDB Local? --dynamodb http://127.0.0.1:8000")
    print(HEADINGS)
    wrong = False
    for seed in range(told.first, told.first + told.seeds):
        row = simulate(told.dynamodb, seed, told.customers)
        print(describe(row), flush=True)
        for line in row.wrong:
            wrong = True
            print(f"     {line}", flush=True)
    sys.exit(wrong)


if __name__ == "__main__":
    main()

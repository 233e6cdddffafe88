"""Ninety days of many customers on the real services, real storage and the local Stripe.

    python -m tests.faults.ninety_days --seeds 20 --customers 50

Customers report usage: twice, late, from clocks that run behind and ahead. They change their plan
in the middle of a period, at its end, or with a new period; they cancel at once or at the end, and
some come back. DynamoDB and SQS throttle for hours, fail, and cut connections after the effect;
Stripe is away for hours; processes die between any two calls; webhooks repeat, come in disorder,
much later or never. In the end every invoice, with what was billed later for its period, must be
what the plan makes of the ledger, to the cent, and every event must be billed once or be on a list
with its reason.

Time is simulated: something happens every six hours or so, and shortly after each renewal, so that
drafts are met as drafts. The poll for lost webhooks runs daily, reconciliation weekly, all else at
every step.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from multiprocessing import Process, Queue
from pathlib import Path
from queue import Empty
from typing import Any

import stripe

from meterline.domain.times import format_time
from meterline.domain.webhooks import HANDLED
from tests.dynamodb_local import is_installed, run_dynamodb_local
from tests.faults.ninety_days_audit import Customer, Row, audit
from tests.faults.simulated_service import Ground, Service, open_service, prepare_ground
from tests.faults.whole_path import Clock

START = datetime(2027, 1, 1, 0, 20, tzinfo=UTC)
"""A short February lies in the ninety days. The same seed is nearly the same story each time."""
DAYS = 90
REST = timedelta(days=4)
"""Fair weather at the end: what is unknown can be settled by evidence after a day."""
_STEP = timedelta(hours=6)
_WEBHOOK_TYPES = sorted(name for name in HANDLED if not name.startswith("v1."))
_TABLE = Path(__file__).resolve().parents[2] / ".local" / "ninety_days.txt"

_THROTTLED = {"error": {"code": "ProvisionedThroughputExceededException"}}
_CUT_AFTER_EFFECT = {"response": {"abort_bytes": 0}}
_DYNAMODB_FAULTS: Sequence[dict[str, Any]] = (
    _THROTTLED,
    {"error": {"code": "ThrottlingException"}},
    {"error": {"code": "RequestLimitExceeded"}},
    {"error": {"code": "InternalServerError"}},
    {
        "operation": "TransactWriteItems",
        "error": {
            "code": "TransactionCanceledException",
            "fields": {"CancellationReasons": [{"Code": "None"}, {"Code": "ThrottlingError"}]},
        },
    },
    {
        "operation": "TransactWriteItems",
        "error": {
            "code": "TransactionCanceledException",
            "fields": {"CancellationReasons": [{"Code": "TransactionConflict"}]},
        },
    },
    _CUT_AFTER_EFFECT,
    {"reset": True},
)
_SQS_FAULTS: Sequence[dict[str, Any]] = (
    {"error": {"code": "RequestThrottled"}},
    {"error": {"code": "ThrottlingException", "status": 400}},
    {"error": {"code": "InternalError", "status": 500}},
    _CUT_AFTER_EFFECT,
    {"reset": True},
)
_STRIPE_FAULTS: Sequence[dict[str, Any]] = (
    {"kind": "error", "status": 500, "when": "before"},
    {"kind": "error", "status": 500, "when": "after"},
    {"kind": "error", "status": 503, "when": "before"},
    {"kind": "error", "status": 429, "when": "before"},
    {"kind": "drop", "when": "before"},
    {"kind": "drop", "when": "after"},
)


@dataclass(frozen=True)
class Window:
    """Bad weather: of what, from when to when, and what goes wrong."""

    of: str
    start: datetime
    end: datetime
    rules: tuple[dict[str, Any], ...]


@dataclass
class Weather:
    """The bad hours of a seed, and which of them are now."""

    service: Service
    ground: Ground
    windows: Sequence[Window]
    now: frozenset[int] = frozenset()

    def follow(self, at: datetime) -> None:
        """Put the rules in force that are in force at `at`."""
        current = frozenset(
            index for index, window in enumerate(self.windows) if window.start <= at < window.end
        )
        if current != self.now:
            self._change(current)

    @property
    def is_stripe_there(self) -> bool:
        """Whether people can talk to Stripe."""
        return not self._rules_of("stripe", self.now)

    def clear(self) -> None:
        """No bad weather any more."""
        self._change(frozenset())

    def _change(self, current: frozenset[int]) -> None:
        self.now = current
        dynamodb, sqs = self._rules_of("dynamodb", current), self._rules_of("sqs", current)
        self.ground.dynamodb.set_rules(dynamodb)
        self.service.wire.is_bad = bool(dynamodb)
        self.ground.sqs.set_rules(sqs)
        self.service.sqs.is_bad = bool(sqs)
        local = self.service.local
        local.clear_faults()
        for rule in self._rules_of("stripe", current):
            local.add_fault(**rule)

    def _rules_of(self, of: str, current: frozenset[int]) -> list[dict[str, Any]]:
        windows = (self.windows[index] for index in current)
        return [rule for window in windows if window.of == of for rule in window.rules]


def draw_weather(dice: random.Random, start: datetime) -> list[Window]:
    """The bad hours of ninety days."""
    windows = []
    for of, count, longest_h in (("stripe", 7, 30), ("dynamodb", 7, 14), ("sqs", 6, 14)):
        for _ in range(count):
            begins = start + timedelta(hours=dice.uniform(12, DAYS * 24 - 36))
            ends = begins + timedelta(hours=dice.uniform(2, longest_h))
            windows.append(Window(of, begins, ends, tuple(_draw_rules(dice, of))))
    return windows


def _draw_rules(dice: random.Random, of: str) -> Iterator[dict[str, Any]]:
    if of == "stripe":
        for fault in dice.sample(_STRIPE_FAULTS, 2):
            share, seed = dice.choice([0.2, 0.45, 0.7]), dice.randrange(10**6)
            yield {**fault, "path": "/v[12]/.*", "probability": share, "seed": seed}
        return
    faults = _DYNAMODB_FAULTS if of == "dynamodb" else _SQS_FAULTS
    for fault in dice.sample(faults, 3):
        sequence = {"fail": dice.randrange(1, 5), "pass": dice.randrange(2, 12)}
        yield {"service": of, **fault, "sequence": sequence}


@dataclass
class Simulation:
    """One seed's ninety days."""

    service: Service
    ground: Ground
    seed: int
    count: int
    start: datetime
    is_told: bool = False
    customers: list[Customer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = self.service.dice
        self.clock = self.service.clock
        self.stripe = self.service.local.client()
        self.row = Row(self.seed, self.count)
        self.end = self.start + timedelta(days=DAYS)
        self.weather = Weather(self.service, self.ground, draw_weather(self.dice, self.start))
        self.agenda: list[datetime] = []
        self.mailbag: list[bytes] = []
        self.delivered: set[bytes] = set()
        self.heard: set[str] = set()
        self.heard_from = self.start - timedelta(days=31)
        self.began_s = time.monotonic()

    def run(self) -> Row:
        """All days, then fair weather until everything has come to rest."""
        self._sign_up()
        at = self.start
        while at < self.end + REST:
            at += _STEP + timedelta(seconds=self.dice.randrange(-1800, 1800))
            heapq.heappush(self.agenda, at)
        days = 0
        while self.agenda:
            at = heapq.heappop(self.agenda)
            self.clock.set_to(at)
            self._plan_renewals(at)
            if at >= self.end and not self.service.is_fair:
                self._clear_up()
            self._tick()
            if (at - self.start).days > days:
                days = (at - self.start).days
                self._end_day(days)
        self.row.seconds = time.monotonic() - self.began_s
        self._fill_row()
        audit(self.service, self.customers, self.row)
        self.row.seconds = time.monotonic() - self.began_s
        return self.row

    def _sign_up(self) -> None:
        """Customers whose periods began at any time of the last month."""
        begins = sorted(
            self.start - timedelta(seconds=self.dice.randrange(60, 27 * 86400))
            for _ in range(self.count)
        )
        local = self.service.local
        for number, at in enumerate(begins):
            local.set_clock(at.timestamp())
            name = f"customer-{self.seed}-{number}"
            found = self.stripe.v1.customers.create({"name": name}).id
            # Most are small: half of them make a call every week, a few several a day.
            busy = min(4.0, self.dice.lognormvariate(-1.9, 1.2))
            plan = self.dice.choice(["free", "pro", "pro", "pro", "team"])
            customer = Customer(name, found, plan, busy)
            self.customers.append(customer)
            self._subscribe(customer, plan)
            self.service.accounts.put_customer(
                name, {"name": name, "plan": plan, "billing_customer": found}, at
            )
        local.set_clock(self.start.timestamp())

    def _subscribe(self, customer: Customer, plan: str) -> None:
        made = self.stripe.v1.subscriptions.create(
            {
                "customer": customer.billing_customer,
                "items": [{"price": price} for price in self.service.prices[plan]],
                "collection_method": "send_invoice",
                "days_until_due": 30,
            }
        )
        customer.follow(made.to_dict(), plan)

    def _plan_renewals(self, at: datetime) -> None:
        """Come back shortly after each renewal, while the draft is there, and when it is final."""
        for customer in self.customers:
            ends = customer.period_end
            if ends is None or customer.planned == ends or ends > at + 2 * _STEP:
                continue
            customer.planned = ends
            for minutes in (self.dice.uniform(1, 50), self.dice.uniform(62, 200)):
                heapq.heappush(self.agenda, max(at, ends + timedelta(minutes=minutes)))

    def _clear_up(self) -> None:
        self.weather.clear()
        self.service.is_fair = True

    def _tick(self) -> None:
        now = self.clock.now()
        if not self.service.is_fair:
            self.weather.follow(now)
            self._use()
        self._report_again()
        # Functions run side by side: sometimes an invoice is met before its usage is sent.
        jobs = [self._bill, self._hear_of_stripe]
        if self.dice.random() < 0.3:
            jobs.reverse()
        for work in jobs:
            work()
        self.service.recheck()
        self._look_after_subscriptions(now)

    def _bill(self) -> None:
        self.service.project()
        self.service.emit()

    def _hear_of_stripe(self) -> None:
        self._fetch_mail()
        self._deliver_mail()
        self.service.apply_events()

    def _end_day(self, day: int) -> None:
        self.row.polled += self.service.poll()
        if day % 7 == 0 or self.service.is_fair:
            self.row.differences += self.service.reconcile()
        if not self.service.is_fair and self.weather.is_stripe_there:
            self._live_a_day()
        if self.is_told and day % 10 == 0:
            spent_s = time.monotonic() - self.began_s
            events = sum(len(each.sent) for each in self.customers)
            print(
                f"  seed {self.seed}: day {day} of {DAYS}, {events} events, {spent_s:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    # Usage

    def _use(self) -> None:
        for customer in self.customers:
            # Most stop when they have left, and some do not notice.
            calls_a_day = customer.busy if customer.period_end is not None else customer.busy / 10
            if self.dice.random() < calls_a_day / 4:
                burst = 1 + min(20, int(self.dice.expovariate(0.9)))
                self._report(customer, [self._make_event(customer) for _ in range(burst)])

    def _make_event(self, customer: Customer) -> dict[str, Any]:
        dice = self.dice
        at = self.clock.now() + timedelta(seconds=dice.randrange(-3600, 280))
        roll = dice.random()
        if roll < 0.06:
            at -= timedelta(days=dice.randrange(1, 34))
            self.row.late += 1
        elif roll < 0.065:
            at -= timedelta(days=dice.randrange(36, 60))
            self.row.late += 1
        elif roll < 0.07:
            at += timedelta(minutes=dice.randrange(10, 300))
            self.row.ahead += 1
        at = max(at, self.start)
        sub_units = int(dice.lognormvariate(10.7, 1.4)) + 1
        event_id = f"{customer.name}-{len(customer.sent)}"
        event = {
            "specversion": "1.0",
            "id": event_id,
            "source": "backend",
            "type": "meterline.usage",
            "subject": customer.name,
            "time": format_time(at),
            "data": {"meter": "credits", "quantity": str(Decimal(sub_units) / 1000)},
        }
        customer.sent[event_id] = event
        return event

    def _report(self, customer: Customer, events: list[dict[str, Any]]) -> None:
        """One call; a tenth are made again although they were answered."""
        copies = 2 if self.dice.random() < 0.1 else 1
        self.row.repeats += (copies - 1) * len(events)
        for _ in range(copies):
            answer = self.service.report(events)
            if answer is None or answer.undecided:
                if events not in customer.unanswered:
                    customer.unanswered.append(events)
            else:
                refused = [rejection.id for rejection in answer.rejected if rejection.id]
                customer.turned_away.update(refused)

    def _report_again(self) -> None:
        for customer in self.customers:
            waiting, customer.unanswered = customer.unanswered, []
            for events in waiting:
                self.row.repeats += len(events)
                self._report(customer, events)

    # Webhooks

    def _fetch_mail(self) -> None:
        """What Stripe has to tell since the last time; a part of it is never delivered."""
        since = self.heard_from
        now = self.clock.now()
        try:
            listed = self.stripe.v1.events.list(
                {
                    "created": {"gte": int(since.timestamp())},
                    "types": list(_WEBHOOK_TYPES),
                    "limit": 100,
                }
            )
            found = [event.to_dict() for event in listed.auto_paging_iter()]
        except stripe.StripeError:
            return
        self.heard_from = now - timedelta(minutes=5)
        for event in reversed(found):
            if event["id"] in self.heard:
                continue
            self.heard.add(event["id"])
            self.row.webhooks += 1
            if not self.service.is_fair and self.dice.random() < 0.05:
                self.row.dropped += 1
                continue
            self.mailbag.append(json.dumps(event, default=str).encode())

    def _deliver_mail(self) -> None:
        """Deliver in any order, some twice, some much later; what is not taken comes again."""
        bag, self.mailbag = self.mailbag, []
        order = list(range(len(bag)))
        if not self.service.is_fair:
            self.dice.shuffle(order)
        latest = -1
        for index in order:
            body = bag[index]
            if not self.service.is_fair and self.dice.random() < 0.1:
                self.mailbag.append(body)
                continue
            self.row.disordered += index < latest
            latest = max(latest, index)
            for _ in range(2 if self.dice.random() < 0.15 else 1):
                self.row.repeated += body in self.delivered
                if self.service.receive_webhook(body):
                    self.delivered.add(body)
                elif body not in self.mailbag:
                    self.mailbag.append(body)

    # What people do at Stripe

    def _look_after_subscriptions(self, now: datetime) -> None:
        """Learn of periods that have turned; some of those who left come back."""
        if not self.weather.is_stripe_there:
            return
        for customer in self.customers:
            if customer.period_end is not None and customer.period_end <= now:
                found = self.stripe.v1.subscriptions.retrieve(str(customer.subscription))
                customer.follow(found.to_dict(), customer.plan)
            if customer.returns_at is not None and customer.returns_at <= now:
                customer.returns_at = None
                self.row.returns += 1
                self._subscribe(customer, self.dice.choice(["free", "pro", "team"]))

    def _live_a_day(self) -> None:
        for customer in self.customers:
            if customer.period_end is None or customer.is_leaving:
                continue
            roll = self.dice.random()
            if roll < 0.004:
                self._cancel(customer)
            elif roll < 0.016:
                self._change_plan(customer)

    def _cancel(self, customer: Customer) -> None:
        self.row.cancellations += 1
        name = str(customer.subscription)
        if self.dice.random() < 0.5:
            found = self.stripe.v1.subscriptions.update(name, {"cancel_at_period_end": True})
            customer.is_leaving = True
        else:
            found = self.stripe.v1.subscriptions.cancel(name, {"invoice_now": True})
        customer.follow(found.to_dict(), customer.plan)
        if self.dice.random() < 0.4:
            leaves_at = customer.period_end or self.clock.now()
            customer.returns_at = leaves_at + timedelta(days=self.dice.uniform(2, 20))

    def _change_plan(self, customer: Customer) -> None:
        """To another plan: in mid-period, at its end, or with a new period from now on."""
        plan = self.dice.choice(sorted({"free", "pro", "team"} - {customer.plan}))
        name = str(customer.subscription)
        found = self.stripe.v1.subscriptions.retrieve(name).to_dict()
        if found["schedule"] is not None:
            return
        how = self.dice.choice(["now", "renewal", "restart"])
        self.row.plan_changes[how] += 1
        if how == "renewal":
            self._schedule(found, plan)
            customer.next_plan = plan
            return
        prices = dict(
            zip(self.service.prices[customer.plan], self.service.prices[plan], strict=True)
        )
        params: Any = {
            "items": [
                {"id": item["id"], "price": prices[item["price"]["id"]]}
                for item in found["items"]["data"]
            ],
            "proration_behavior": "create_prorations",
        }
        if how == "restart":
            params["billing_cycle_anchor"] = {"type": "now"}
        changed = self.stripe.v1.subscriptions.update(name, params)
        customer.follow(changed.to_dict(), plan)

    def _schedule(self, subscription: dict[str, Any], plan: str) -> None:
        """Another plan from the next renewal on (Stripe's documentation, schedules)."""
        schedules = self.stripe.v1.subscription_schedules
        made = schedules.create({"from_subscription": subscription["id"]})
        [phase] = made.phases
        current: Any = {
            "items": [{"price": item["price"]["id"]} for item in subscription["items"]["data"]],
            "start_date": phase.start_date,
            "end_date": phase.end_date,
        }
        following: Any = {
            "items": [{"price": price} for price in self.service.prices[plan]],
            "duration": {"interval": "month", "interval_count": 1},
        }
        schedules.update(made.id, {"end_behavior": "release", "phases": [current, following]})

    def _fill_row(self) -> None:
        self.weather.clear()
        row, service = self.row, self.service
        row.events = sum(len(each.sent) for each in self.customers)
        row.crashes = len(service.steps.crashes)
        row.held = len(service.held)
        row.outages = len(self.weather.windows)
        row.faults = self.ground.dynamodb.fired + self.ground.sqs.fired


def simulate(ground: Ground, seed: int, customers: int, *, is_told: bool = False) -> Row:
    """One seed."""
    dice, clock = random.Random(seed), Clock(START)
    with open_service(ground, clock, dice) as service:
        row = Simulation(service, ground, seed, customers, START, is_told).run()
        # Every request of ninety days is one that the SDK's own types describe.
        row.wrong += [f"Stripe does not know {each}" for each in service.local.violations()]
        return row


def _simulate_all(seeds: Sequence[int], customers: int, rows: Queue[Row | None]) -> None:
    """One job: its seeds one after the other, and a None when it is through."""
    # Ctrl-C reaches every job by itself; what it started ends with it.
    with suppress(KeyboardInterrupt):
        for seed in seeds:
            # DynamoDB Local gets slower from seed to seed, so each has its own.
            with run_dynamodb_local() as url, prepare_ground(url) as ground:
                rows.put(simulate(ground, seed, customers, is_told=True))
        rows.put(None)


def _run_jobs(seeds: Sequence[int], customers: int, jobs: int) -> Iterator[Row]:
    """The rows as they come; RuntimeError if a job ended before its seeds did."""
    rows: Queue[Row | None] = Queue()
    processes = [
        Process(target=_simulate_all, args=(seeds[number::jobs], customers, rows))
        for number in range(min(jobs, len(seeds)))
    ]
    for process in processes:
        process.start()
    left = len(processes)
    while left:
        try:
            row = rows.get(timeout=5)
        except Empty:
            if sum(process.is_alive() for process in processes) < left:
                raise RuntimeError("a job ended before its seeds did") from None
            continue
        if row is None:
            left -= 1
        else:
            yield row


def main() -> None:
    """Print the table; status 1 if anything is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--first", type=int, default=1, help="the first of them (default 1)")
    parser.add_argument("--customers", type=int, default=50, help="of each seed (default 50)")
    parser.add_argument("--jobs", type=int, default=1, help="seeds side by side (default 1)")
    told = parser.parse_args()
    if not is_installed():
        parser.error("needs DynamoDB Local: install Java and run `make dynamodb-local`")
    _TABLE.parent.mkdir(exist_ok=True)
    print(Row.headings(), flush=True)
    wrong = False
    seeds = range(told.first, told.first + told.seeds)
    try:
        for row in _run_jobs(seeds, told.customers, told.jobs):
            wrong = wrong or bool(row.wrong)
            lines = "\n".join([str(row), *(f"     {line}" for line in row.wrong)])
            print(lines, flush=True)
            with _TABLE.open("a") as table:
                table.write(f"{lines}\n")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        print(f"Rows are kept in {_TABLE}, below those of earlier runs.")
    sys.exit(wrong)


if __name__ == "__main__":
    main()

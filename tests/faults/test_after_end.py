"""Stripe took usage of after a subscription's end, before that end was heard of: it is listed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.cli.books import describe_unbilled
from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_emissions import DynamoEmissions
from meterline.adapters.dynamodb_ledger import DynamoLedger
from meterline.adapters.dynamodb_sending_records import DynamoCountedHours, DynamoSendingRecords
from meterline.adapters.stripe_access import StripeAccess
from meterline.adapters.stripe_subscriptions import StripeSubscriptions
from meterline.domain.emission import AFTER_END, PERIOD_NOT_INVOICED
from meterline.domain.periods import Period
from meterline.domain.usage import EventKey
from meterline.services.emit_usage import EmitUsage
from meterline.services.list_after_end import ListAfterEnd
from meterline.services.sync_subscriptions import SyncSubscriptions
from meterline.services.trace_usage import SendingState
from tests.faults.audited import Auditor
from tests.faults.invoiced import CatalogPlans
from tests.faults.whole_path import METERS, Crash, SteppedWire, Surroundings, World

START = datetime.now(UTC).replace(minute=20, second=0, microsecond=0) - timedelta(days=5)
_serial = itertools.count()


@dataclass
class Leaving:
    """A customer that leaves, and one emitter that goes on by what it was told before."""

    world: World
    emitter: EmitUsage = field(init=False)

    def __post_init__(self) -> None:
        world = self.world
        self.v1 = world.around.local.client().v1
        self.access = StripeAccess(lambda: world.around.local.key, api_base=world.around.local.url)
        self.emitter = world.emitter()
        self.records = DynamoSendingRecords(world.around.wire, world.around.store.tables.emissions)
        self.sync()

    def use(self, quantity: str, *, meter: str = "credits", at: datetime | None = None) -> str:
        """Report an event, count it and send it by the emitter that is there; its identifier."""
        name = f"leaving-{next(_serial)}"
        self.world.make_event(name, meter, quantity, at=at or self.world.clock.now())
        self.world.report([self.world.sent[name]])
        while self.world.deliver_records():
            continue
        while self.world.deliver_messages(self.emitter):
            continue
        return EventKey(self.world.customer, "backend", name).identifier

    def leave(self, *, invoice_now: bool = True) -> None:
        """Cancel at once."""
        self.v1.subscriptions.cancel(self.subscription(), {"invoice_now": invoice_now})

    def subscription(self) -> str:
        """The one that is alive."""
        [found] = self.v1.subscriptions.list({"customer": str(self.world.billing_customer)}).data
        return found.id

    def come_back(self, **params: Any) -> None:
        """Subscribe again."""
        told: Any = {
            "customer": str(self.world.billing_customer),
            "items": [{"price": price} for price in self.world.around.prices],
            "collection_method": "send_invoice",
            "days_until_due": 30,
            **params,
        }
        self.v1.subscriptions.create(told)

    def sync(self) -> None:
        """Hear of how the subscription is."""
        accounts = self._accounts()
        SyncSubscriptions(accounts, StripeSubscriptions(self.access), CatalogPlans())(
            self.world.customer, self.world.clock.now()
        )

    def list_after_end(self) -> int:
        """One look, by a new process."""
        tables = self.world.around.store.tables
        job = ListAfterEnd(
            self._accounts(),
            StripeSubscriptions(self.access),
            DynamoCountedHours(self._wire("totals"), tables.totals),
            DynamoLedger(self._wire("ledger"), tables.events),
            DynamoSendingRecords(self._wire("records"), tables.emissions),
            DynamoEmissions(self._wire("emissions"), tables.emissions),
            METERS,
        )
        return job(self.world.customer, self.world.clock.now())

    def _accounts(self) -> DynamoAccounts:
        return DynamoAccounts(self._wire("accounts"), self.world.around.store.tables.accounts)

    def _wire(self, name: str) -> SteppedWire:
        return SteppedWire(self.world.around.wire, self.world.steps, name)

    def times_taken(self, identifier: str) -> int:
        """How often Stripe has it."""
        told = self.world.around.local.meter_events(
            customer=str(self.world.billing_customer), outcome="accepted"
        )
        return sum(event["identifier"] == identifier for event in told)

    def reasons(self, *identifiers: str, meter: str = "credits") -> list[str | None]:
        """The codes under which events are listed."""
        found = self.records.reasons_of(self.world.customer, meter, identifiers)
        return [found.get(each) for each in identifiers]

    def trace(self, number: int) -> tuple[SendingState, str | None]:
        """How far an event of this customer is, and why it is not billed, as its trace says."""
        service = self.world.around.open_trace()
        name = list(self.world.sent)[number]
        sent = service.find_event(EventKey(self.world.customer, "backend", name)).sent
        return sent.state, sent.problem

    def tell_unbilled(self) -> set[tuple[str, ...]]:
        """What the operator's command says of this customer: name, kind, code, quantity."""
        rows = [line.split("\t") for line in describe_unbilled(self.records)]
        return {(row[6], row[0], row[1], row[5]) for row in rows if row[2] == self.world.customer}


@pytest.fixture
def leaving(around: Surroundings) -> Leaving:
    return Leaving(World(around, START))


def cancel_soon(leaving: Leaving) -> None:
    """At a moment that is named beforehand."""
    ends = leaving.world.clock.now() + timedelta(seconds=60)
    leaving.v1.subscriptions.update(leaving.subscription(), {"cancel_at": int(ends.timestamp())})
    leaving.world.clock.move(60)


@pytest.mark.parametrize("leave", [Leaving.leave, cancel_soon], ids=["at once", "soon"])
def test_usage_that_was_sent_before_the_end_was_heard_of_is_listed_once(
    leaving: Leaving, leave: Callable[[Leaving], None]
) -> None:
    early = leaving.use("4")
    leaving.world.clock.move(60)
    leave(leaving)
    at_the_end = leaving.use("8")
    leaving.world.clock.move(175)
    after = leaving.use("5.957")
    assert [leaving.times_taken(each) for each in (early, at_the_end, after)] == [1, 1, 1]
    leaving.sync()
    assert leaving.list_after_end() == 2
    for _ in range(2):
        leaving.world.clock.move(3600)
        assert leaving.list_after_end() == 0
    assert leaving.world.read_problems() == {at_the_end: ("late", 8000), after: ("late", 5957)}
    assert leaving.tell_unbilled() == {
        (at_the_end, "late", AFTER_END, "8"),
        (after, "late", AFTER_END, "5.957"),
    }
    assert [leaving.trace(number) for number in range(3)] == [
        (SendingState.SENT, None),
        (SendingState.SENT, AFTER_END),
        (SendingState.SENT, AFTER_END),
    ]


def test_nothing_is_listed_while_the_subscription_lives(leaving: Leaving) -> None:
    leaving.use("4")
    leaving.world.clock.move(3600)
    assert leaving.list_after_end() == 0
    assert not leaving.world.read_problems()


@pytest.mark.parametrize("heard", ["at each step", "when all is over"])
def test_a_customer_that_returns_is_billed_from_then_on_and_nothing_is_sent_again(
    leaving: Leaving, heard: str
) -> None:
    early = leaving.use("1")
    leaving.world.clock.move(60)
    leaving.leave()
    leaving.world.clock.move(120)
    between = leaving.use("2")
    if heard == "at each step":
        leaving.sync()
        assert leaving.list_after_end() == 1
    leaving.world.clock.move(5400)
    unbilled = leaving.use("3")
    assert leaving.reasons(between, unbilled) == [
        AFTER_END if heard == "at each step" else None,
        "no_subscription",
    ]
    leaving.world.clock.move(5400)
    leaving.come_back()
    leaving.world.clock.move(7200)
    leaving.emitter = leaving.world.emitter()
    later = leaving.use("4")
    leaving.sync()
    assert leaving.list_after_end() == (heard == "when all is over")
    for _ in range(2):
        leaving.world.clock.move(2 * 3600)
        Auditor(leaving.world).look()
        leaving.world.redrive()
        leaving.world.drain()
        assert leaving.list_after_end() == 0
    names = (early, between, unbilled, later)
    assert [leaving.times_taken(each) for each in names] == [1, 1, 0, 1]
    assert leaving.reasons(between) == [AFTER_END]
    assert leaving.world.read_problems().keys() == {between, unbilled}


def test_what_a_subscription_that_is_dated_back_bills_is_not_listed(leaving: Leaving) -> None:
    leaving.use("1")
    leaving.world.clock.move(60)
    ended_s = int(leaving.world.clock.now().timestamp())
    leaving.leave()
    leaving.world.clock.move(120)
    leaving.use("2")
    leaving.come_back(backdate_start_date=ended_s)
    leaving.sync()
    assert leaving.list_after_end() == 0
    assert not leaving.world.read_problems()


def test_a_send_without_an_answer_is_listed_as_that_until_it_is_known_to_have_arrived(
    leaving: Leaving,
) -> None:
    leaving.use("1")
    leaving.world.clock.move(60)
    leaving.leave()
    leaving.world.clock.move(120)
    leaving.world.around.local.add_fault(
        kind="drop", when="after", path="/v1/billing/meter_events", probability=1, seed=1
    )
    taken = leaving.use("2")
    leaving.world.around.local.clear_faults()
    assert leaving.times_taken(taken) == 1
    leaving.sync()
    assert leaving.list_after_end() == 0, "nobody knows yet whether it was taken"
    leaving.world.clock.move(26 * 3600)
    leaving.world.drain()
    assert leaving.world.read_problems() == {taken: ("unknown", 2000)}
    assert leaving.list_after_end() == 0
    auditor = Auditor(leaving.world)
    for _ in range(2):
        leaving.world.clock.move(3600)
        auditor.look(closely=True)
        leaving.world.drain()
    assert leaving.list_after_end() == 1
    assert leaving.world.read_problems() == {taken: ("late", 2000)}
    assert leaving.reasons(taken) == [AFTER_END]
    assert leaving.times_taken(taken) == 1


def test_of_an_hours_total_the_part_after_the_end_is_listed(leaving: Leaving) -> None:
    leaving.use("10", meter="tokens")
    leaving.world.clock.move(600)
    leaving.leave()
    leaving.world.clock.move(600)
    leaving.use("7", meter="tokens")
    leaving.world.clock.move(1500)
    next_hour = leaving.use("5", meter="tokens")
    assert next_hour
    leaving.sync()
    assert leaving.list_after_end() == 2
    assert sorted(leaving.world.read_problems().values()) == [("late", 5), ("late", 7)]
    # By now the end is known to whoever sends: what comes is refused, and listed by itself.
    leaving.world.clock.move(60)
    leaving.emitter = leaving.world.emitter()
    leaving.use("3", meter="tokens")
    for _ in range(2):
        assert leaving.list_after_end() == 0
    assert sorted(leaving.world.read_problems().values()) == [
        ("late", 5),
        ("late", 7),
        ("refused", 3),
    ]
    assert leaving.trace(1) == (SendingState.SENT, AFTER_END)


def test_a_crash_at_any_step_leaves_nothing_unlisted_and_nothing_listed_twice(
    leaving: Leaving,
) -> None:
    leaving.use("1")
    leaving.world.clock.move(60)
    leaving.leave()
    taken = {leaving.use(quantity) for quantity in ("2", "3")}
    leaving.sync()
    steps = leaving.world.steps
    for crash_at in range(200):
        steps.crashed = False
        steps.crash_at = {len(steps.names) + crash_at}
        try:
            leaving.list_after_end()
        except Crash:
            continue
        break
    else:
        pytest.fail("it never came to an end")
    steps.crash_at = set()
    assert crash_at >= 10
    assert leaving.list_after_end() == 0
    assert leaving.world.read_problems().keys() == taken


@pytest.mark.parametrize(("meter", "quantity"), [("credits", "4"), ("tokens", "4000")])
@pytest.mark.parametrize("returns", [False, True], ids=["gone", "returns"])
def test_a_period_that_ends_without_an_invoice_is_listed_as_a_whole_once(
    leaving: Leaving, meter: str, quantity: str, returns: bool
) -> None:
    used = [leaving.use(quantity, meter=meter)]
    leaving.world.clock.move(5400)
    used.append(leaving.use(quantity, meter=meter))
    leaving.world.clock.move(60)
    leaving.leave(invoice_now=False)
    leaving.world.clock.move(60)
    leaving.use("1", meter=meter)
    leaving.sync()
    assert leaving.list_after_end() == 1, "what came after the end"
    assert leaving.list_after_end() == 0, "an invoice may be under way"
    leaving.world.clock.move(3600)
    if returns:
        leaving.come_back()
        leaving.sync()
    assert leaving.list_after_end() == 1
    taken = leaving.world.around.local.meter_events(
        customer=str(leaving.world.billing_customer), outcome="accepted"
    )
    for _ in range(3):
        leaving.world.clock.move(2 * 86400)
        leaving.emitter = leaving.world.emitter()
        leaving.world.redrive()
        leaving.world.drain()
        assert leaving.list_after_end() == 0
    assert {(code, told) for _, _, code, told in leaving.tell_unbilled()} == {
        (PERIOD_NOT_INVOICED, str(2 * int(quantity))),
        (AFTER_END, "1"),
    }
    assert taken == leaving.world.around.local.meter_events(
        customer=str(leaving.world.billing_customer), outcome="accepted"
    )
    if meter == "credits":
        assert [leaving.trace(number) for number in range(3)] == [
            (SendingState.SENT, PERIOD_NOT_INVOICED),
            (SendingState.SENT, PERIOD_NOT_INVOICED),
            (SendingState.SENT, AFTER_END),
        ]


@pytest.mark.parametrize("meter", ["credits", "tokens"])
@pytest.mark.parametrize("leave", [Leaving.leave, cancel_soon], ids=["at once", "soon"])
def test_a_period_that_was_broken_off_with_an_invoice_is_not_listed(
    leaving: Leaving, meter: str, leave: Callable[[Leaving], None]
) -> None:
    leaving.use("4", meter=meter)
    leaving.world.clock.move(60)
    leave(leaving)
    leaving.sync()
    for _ in range(3):
        leaving.world.clock.move(3600)
        assert leaving.list_after_end() == 0
    assert not leaving.world.read_problems()


def test_of_a_broken_off_period_only_what_no_invoice_asked_for_is_listed(leaving: Leaving) -> None:
    leaving.use("4")
    leaving.world.clock.move(32 * 86400)
    leaving.sync()
    leaving.emitter = leaving.world.emitter()
    leaving.use("5")
    leaving.world.clock.move(60)
    leaving.leave(invoice_now=False)
    leaving.world.clock.move(7200)
    leaving.sync()
    assert leaving.list_after_end() == 1
    assert {row[2:] for row in leaving.tell_unbilled()} == {(PERIOD_NOT_INVOICED, "5")}


def test_an_invoice_that_comes_after_all_takes_the_listing_away(leaving: Leaving) -> None:
    leaving.use("4")
    leaving.world.clock.move(60)
    leaving.leave(invoice_now=False)
    leaving.world.clock.move(7200)
    leaving.sync()
    assert leaving.list_after_end() == 1
    # As the settling of an invoice does, once nothing is owed of a line's period.
    now = leaving.world.clock.now().replace(microsecond=0)
    customer, period = leaving.world.customer, Period(now - timedelta(days=1), now)
    [(name, last)] = leaving.records.late_between(customer, "credits", period)
    assert last < now - timedelta(seconds=7200)
    assert not leaving.records.late_between(
        customer, "credits", Period(last + timedelta(seconds=1), now)
    ), "it is of no later period"
    leaving.records.resolve_late(customer, "credits", name, now)
    assert leaving.list_after_end() == 0
    assert not leaving.world.read_problems()

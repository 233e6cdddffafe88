"""Where limits of other systems did not hold, or held too much; here each must end well."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from threading import Barrier
from typing import Any

import pytest

from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_budgets import DynamoBudgets
from meterline.adapters.dynamodb_controls import DynamoControls
from meterline.adapters.dynamodb_overviews import DynamoOverviews
from meterline.adapters.partition_keys import partition_key
from meterline.adapters.stripe_access import StripeAccess
from meterline.adapters.stripe_subscriptions import StripeSubscriptions
from meterline.domain.authorizations import DEFAULT_LIFE, AuthorizationId
from meterline.domain.limits import Limits, MoneyLimit, QuantityLimit
from meterline.domain.pricing import price, total_minor
from meterline.services.authorize_usage import AuthorizeUsage, Decision, Request
from meterline.services.measure_period import MeasurePeriod
from meterline.services.sync_subscriptions import SyncSubscriptions
from tests.faults.invoiced import PRO, CatalogPlans, Office
from tests.faults.whole_path import METERS, Surroundings, World

CREDITS = METERS["credits"]
START = datetime.now(UTC).replace(minute=10, second=0, microsecond=0) - timedelta(hours=6)


class Desk:
    """Where one world's customer asks for leave to spend, against a limit of its own."""

    def __init__(self, world: World, stop_at: QuantityLimit | MoneyLimit) -> None:
        self.world = world
        store = world.around.store
        wire = store.wire(pool_size=32)
        accounts = DynamoAccounts(wire, store.tables.accounts)
        local = world.around.local
        stripe = StripeSubscriptions(StripeAccess(lambda: local.key, api_base=local.url))
        now = world.clock.now()
        assert SyncSubscriptions(accounts, stripe, CatalogPlans())(world.customer, now) is not None
        limits = Limits(None, stop_at)
        DynamoOverviews(wire, store.tables.accounts).put_limits(world.customer, limits)
        self.budgets = DynamoBudgets(wire, store.tables.totals)
        self._authorize = AuthorizeUsage(
            DynamoControls(wire, store.tables.accounts),
            self.budgets,
            CatalogPlans(),
            METERS,
            MeasurePeriod(store.totals(wire), store.ledger(wire)),
        )

    def ask(self, quantity: str, **more: Any) -> Decision:
        """Ask for leave, as of the world's time."""
        estimate: Callable[..., Decimal] = lambda _meter: Decimal(quantity)  # noqa: E731
        request = Request(self.world.customer, estimate, **more)
        return self._authorize(request, self.world.clock.now())

    def release(self, decision: Decision) -> None:
        """Give the leave back."""
        assert decision.authorization is not None
        named = AuthorizationId.parse(decision.authorization)
        self._authorize.release(named, None, self.world.clock.now())

    def use(self, event_id: str, quantity: str, decision: Decision | None = None) -> None:
        """Report what was really used, under the leave for it; nothing counts it yet."""
        said = {} if decision is None else {"authorization": decision.authorization}
        self.world.make_event(event_id, "credits", quantity, **said)
        answer = self.world.report([self.world.sent[event_id]])
        assert answer is not None
        assert answer.accepted == 1

    def count(self) -> None:
        """Let the stream catch up."""
        while self.world.deliver_records():
            continue

    def state(self) -> tuple[Decimal, Decimal, int]:
        """Used, used and held together, and how many holds are open."""
        budget = self.budgets.get(self.world.customer, "credits")
        used, committed = map(CREDITS.from_sub_units, (budget.used, budget.committed))
        return used, committed, len(budget.holds)

    def wipe(self) -> None:
        """Lose the budget, as a cache is lost."""
        key = partition_key(self.world.customer, "credits")
        self.world.around.wire.call(
            "DeleteItem",
            {
                "TableName": self.world.around.store.tables.totals,
                "Key": {"pk": {"S": key}, "sk": {"S": "budget"}},
            },
        )


@pytest.fixture
def desk(planned: Surroundings) -> Desk:
    """A limit of 100 credits."""
    return Desk(World(planned, START), QuantityLimit(Decimal(100)))


def test_wound_7_64_calls_at_once_never_walk_past_a_budget_together(desk: Desk) -> None:
    start = Barrier(32)

    def call(number: int) -> Decision:
        if number < 32:
            start.wait(timeout=60)
        return desk.ask("7.003")

    with ThreadPoolExecutor(32) as clients:
        decisions = list(clients.map(call, range(64)))
    allowed = [decision for decision in decisions if decision.is_allowed]
    assert len(allowed) == 14, "100 / 7.003: each of them had room, and together they have no more"
    assert {each.code for each in decisions if not each.is_allowed} == {"hard_limit"}
    for number, decision in enumerate(allowed):
        desk.use(f"call-{number}", "7.003", decision)
    # What was used and is not counted yet is held all the same.
    assert not desk.ask("7.003").is_allowed
    desk.world.drain()
    assert desk.state() == (Decimal("98.042"), Decimal("98.042"), 0)
    assert desk.world.check().billed == 14


@pytest.mark.parametrize("ending", ["the client is gone", "the stream was cut", "the call failed"])
def test_wound_8_what_a_broken_call_held_is_given_back(desk: Desk, ending: str) -> None:
    held = desk.ask("100")
    assert held.is_allowed
    assert not desk.ask("1").is_allowed
    if ending == "the call failed":
        desk.release(held)
    elif ending == "the stream was cut":
        # What came before the cut is reported, and settles the leave for it.
        desk.use("cut", "30", held)
        desk.count()
    else:
        desk.world.clock.move(DEFAULT_LIFE.total_seconds() + 1)
    left = "70" if ending == "the stream was cut" else "100"
    assert desk.ask(left).is_allowed, "the period is not over for the customer"
    assert not desk.ask("0.001").is_allowed


def test_wound_8_a_report_after_its_leave_expired_counts_once(desk: Desk) -> None:
    slow = desk.ask("60")
    desk.world.clock.move(DEFAULT_LIFE.total_seconds() + 1)
    assert desk.ask("40").is_allowed
    desk.use("slow", "55", slow)
    desk.count()
    used, committed, holds = desk.state()
    assert (used, committed, holds) == (Decimal(55), Decimal(95), 1)


def test_wound_10_a_count_that_lags_leaves_no_room_that_is_not_there(desk: Desk) -> None:
    for number in range(3):
        decision = desk.ask("30")
        desk.use(f"lag-{number}", "30", decision)
    # Nothing is counted so far, and there is room for 10 more.
    assert desk.state() == (Decimal(0), Decimal(90), 3)
    refused = desk.ask("10.001")
    assert (refused.is_allowed, refused.remaining) == (False, Decimal(10))
    desk.world.drain()
    assert desk.state() == (Decimal(90), Decimal(90), 0)
    assert desk.ask("10").remaining == 0


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "not yet counted"])
def test_wound_10_a_budget_that_is_lost_gives_no_spent_credits_back(
    desk: Desk, counted: bool
) -> None:
    desk.use("spent", "95", desk.ask("95"))
    if counted:
        desk.world.drain()
        desk.wipe()
    else:
        desk.wipe()
        desk.world.drain()
    refused = desk.ask("6")
    assert (refused.is_allowed, refused.remaining) == (False, Decimal(5))
    assert desk.ask("5").is_allowed
    assert desk.world.check().billed == 1


def test_wound_14_a_limit_of_25_dollars_is_what_four_hours_of_a_loop_cost(
    planned: Surroundings,
) -> None:
    office = Office(World(planned, START))
    limit_minor = PRO.base_fee_minor + 2500
    desk = Desk(office.world, MoneyLimit(limit_minor, "usd"))
    a_call, calls = "740", 480
    unlimited = total_minor(price(Decimal(a_call) * calls, PRO)) - PRO.base_fee_minor
    assert unlimited > 177_000, "without a limit it is the $1,771 of the story"
    codes = []
    for number in range(calls):
        decision = desk.ask(a_call)
        codes.append(decision.code)
        if decision.is_allowed:
            desk.use(f"loop-{number}", a_call, decision)
        if number % 20 == 19:
            desk.count()  # The stream lags by ten minutes.
        office.world.clock.move(30)
    assert set(codes[8:]) == {"hard_limit"}
    office.world.drain()
    draft = office.go_to_renewal()
    settled = office.look(draft.id)
    assert settled.check.agrees
    assert limit_minor - 400 < draft.total <= limit_minor

"""Authorizations on every store: what is held and used never passes a limit, to the last unit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from queue import Empty, SimpleQueue
from threading import Barrier

import pytest

from meterline.adapters.dynamodb_budgets import DynamoBudgets
from meterline.adapters.dynamodb_catalog import DynamoPlans
from meterline.adapters.dynamodb_controls import DynamoControls
from meterline.adapters.dynamodb_emissions import MAX_ENTRIES
from meterline.adapters.dynamodb_overviews import DynamoOverviews
from meterline.adapters.dynamodb_totals import MAX_STEP_ITEMS, DynamoTotals
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.catalog import load_meters
from meterline.domain.authorizations import AuthorizationId
from meterline.domain.limits import Limits, QuantityLimit
from meterline.domain.projection import ProjectedEvent, plan_steps
from meterline.errors import NotFoundError
from meterline.services.authorize_usage import AuthorizeUsage, Decision, Request
from meterline.services.measure_period import MeasurePeriod
from tests.integration.storage.stores import Store

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
METERS = load_meters()
CREDITS = METERS["credits"]
LIMIT = Decimal("1000.125")


def build_authorize_usage(store: Store, wire: DynamoWire) -> AuthorizeUsage:
    """The service on a store."""
    tables = store.tables
    return AuthorizeUsage(
        DynamoControls(wire, tables.accounts),
        DynamoBudgets(wire, tables.totals),
        DynamoPlans(wire, tables.accounts),
        METERS,
        MeasurePeriod(store.totals(wire), store.ledger(wire)),
    )


class World:
    """One customer with a limit on a store, and its stream."""

    def __init__(self, store: Store, customer: str) -> None:
        self.customer = customer
        self.wire = store.wire(pool_size=32)
        self.budgets = DynamoBudgets(self.wire, store.tables.totals)
        tables = store.tables
        self.totals = DynamoTotals(self.wire, tables.totals, tables.emissions, now=lambda: NOW)
        self.authorize_usage = build_authorize_usage(store, self.wire)
        store.accounts(self.wire).put_customer(customer, {"name": "Acme", "plan": "pro"}, NOW)
        self.overviews = DynamoOverviews(self.wire, store.tables.accounts)
        self._sequence = itertools.count(1)

    def limit(self, quantity: Decimal | None, *, block_overage: bool = False) -> None:
        stop = None if quantity is None else QuantityLimit(quantity)
        self.overviews.put_limits(self.customer, Limits(None, stop, block_overage))

    def ask(
        self, quantity: str, now: datetime = NOW, *, lease: bool = False, life_s: int = 900
    ) -> Decision:
        estimate: Callable[..., Decimal] = lambda _meter: Decimal(quantity)  # noqa: E731
        request = Request(self.customer, estimate, life=timedelta(seconds=life_s), is_lease=lease)
        return self.authorize_usage(request, now)

    def count(self, *events: tuple[str, str | None], at: datetime = NOW) -> None:
        """Count events (quantity, authorization) as the stream's projection does."""
        shard = f"shard-of-{self.customer}"
        projected = [
            ProjectedEvent(
                sequence=sequence,
                customer=self.customer,
                meter="credits",
                hour=f"{at:%Y-%m-%dT%H}",
                at_s=int(at.timestamp()),
                received_at_s=int(at.timestamp()),
                sub_units=CREDITS.to_sub_units(Decimal(quantity)),
                identifier=f"ml_{sequence:040x}",
                action=None,
                user=None,
                authorization=authorization,
            )
            for (quantity, authorization), sequence in zip(events, self._sequence, strict=False)
        ]
        checkpoint = self.totals.checkpoint(shard)
        for step in plan_steps(
            projected,
            METERS,
            lambda first: f"{shard}-{first}",
            max_items=MAX_STEP_ITEMS,
            max_entries=MAX_ENTRIES,
            checkpoint=checkpoint,
        ):
            checkpoint = self.totals.apply(shard, checkpoint, step)

    def state(self) -> tuple[Decimal | int, ...]:
        """Used, committed, and how many holds are open."""
        budget = self.budgets.get(self.customer, "credits")
        return (
            CREDITS.from_sub_units(budget.used),
            CREDITS.from_sub_units(budget.committed),
            len(budget.holds),
        )


@pytest.fixture
def world(store: Store, customer: str) -> World:
    return World(store, customer)


def test_a_customer_without_a_limit_is_let_through_and_nothing_is_held(world: World) -> None:
    decision = world.ask("1000000")
    assert decision.is_allowed
    assert decision.authorization is None
    assert world.state() == (0, 0, 0)


def test_an_event_settles_its_authorization_for_less_or_for_more(world: World) -> None:
    world.limit(Decimal(10))
    less, more = world.ask("4"), world.ask("4")
    assert world.state() == (0, 8, 2)
    world.count(("1.5", less.authorization), ("5", more.authorization))
    assert world.state() == (Decimal("6.5"), Decimal("6.5"), 0)


def test_a_second_event_of_an_authorization_counts_like_one_without(world: World) -> None:
    world.limit(Decimal(10))
    held = world.ask("4")
    world.count(("1", held.authorization))
    world.count(("1", held.authorization))
    assert world.state() == (2, 2, 0)


def test_two_events_of_one_delivery_settle_an_authorization_once(world: World) -> None:
    world.limit(Decimal(10))
    held = world.ask("4")
    world.count(("1", held.authorization), ("1", held.authorization), ("1", None))
    assert world.state() == (3, 3, 0)


def test_what_was_used_before_a_limit_was_set_counts_against_it(world: World) -> None:
    world.count(("7", None))
    world.limit(Decimal(10))
    assert world.ask("3.001").code == "hard_limit"
    assert world.ask("3").remaining == 0


def test_a_limit_below_what_is_used_refuses_everything(world: World) -> None:
    world.count(("7", None))
    world.limit(Decimal(5))
    decision = world.ask("0.001")
    assert not decision.is_allowed
    assert decision.remaining == 0
    assert decision.message == (
        "You've hit your set limit of 5 credits. Raise it in settings to continue, "
        "or wait until next period."
    )


def test_blocked_overage_leaves_exactly_the_included_quota(world: World) -> None:
    world.limit(None, block_overage=True)
    assert world.ask("1000").is_allowed
    refused = world.ask("0.001")
    assert (refused.is_allowed, refused.code) == (False, "overage_blocked")


def test_the_free_plan_leaves_exactly_its_quota_with_nothing_set(
    world: World, store: Store
) -> None:
    store.accounts(world.wire).put_customer(world.customer, {"name": "Acme", "plan": "free"}, NOW)
    held = world.ask("100")
    assert (held.is_allowed, held.remaining) == (True, Decimal(0))
    world.count(("99.5", held.authorization))
    assert world.ask("0.5").is_allowed
    refused = world.ask("0.001")
    assert (refused.is_allowed, refused.code) == (False, "overage_blocked")
    assert refused.message == (
        "You've used the 100 credits that your plan includes. Change your plan to continue, "
        "or wait until next period."
    )


def test_release_gives_back_and_a_settle_afterwards_counts(world: World) -> None:
    world.limit(Decimal(10))
    held = world.ask("10")
    assert held.authorization is not None
    assert not world.ask("1").is_allowed
    released = world.authorize_usage.release(AuthorizationId.parse(held.authorization), None, NOW)
    assert released.sub_units == 10_000
    assert world.state() == (0, 0, 0)
    world.count(("2", held.authorization))
    assert world.state() == (2, 2, 0)


def test_what_expired_is_given_back_to_the_next_who_asks(world: World) -> None:
    world.limit(Decimal(10))
    gone = world.ask("10", life_s=60)
    assert not world.ask("1", NOW + timedelta(seconds=59)).is_allowed
    assert world.ask("10", NOW + timedelta(seconds=60)).is_allowed
    world.count(("1", gone.authorization))
    assert world.state() == (1, 11, 1), "work that was done is counted, whatever was given since"


def test_a_lease_is_drawn_down_and_what_is_left_goes_back(world: World) -> None:
    world.limit(Decimal(10))
    lease = world.ask("8", lease=True)
    assert lease.authorization is not None
    world.count(*[("1", lease.authorization)] * 3)
    assert world.state() == (3, 8, 1)
    named = AuthorizationId.parse(lease.authorization)
    # Two calls are reported and not counted yet: their room stays held.
    assert world.authorize_usage.release(named, Decimal(3), NOW).sub_units == 3_000
    assert world.state() == (3, 5, 1)
    world.count(*[("1", lease.authorization)] * 2)
    assert world.state() == (5, 5, 0)


def test_a_lease_that_is_closed_goes_with_the_last_of_its_events(world: World) -> None:
    world.limit(Decimal(10))
    lease = world.ask("8", lease=True)
    assert lease.authorization is not None
    named = AuthorizationId.parse(lease.authorization)
    world.count(("1", lease.authorization))
    # Three events in all: two are on their way, and keep their room until they have come.
    for _ in range(2):
        assert world.authorize_usage.release(named, None, NOW, events=3).sub_units == 0
    assert world.state() == (1, 8, 1)
    world.count(("1", lease.authorization))
    assert world.state() == (2, 8, 1)
    world.count(("0.5", lease.authorization), ("1", None))
    assert world.state() == (Decimal("3.5"), Decimal("3.5"), 0)
    with pytest.raises(NotFoundError):
        world.authorize_usage.release(named, None, NOW, events=3)


def test_a_lease_whose_events_have_all_come_goes_when_it_is_closed(world: World) -> None:
    world.limit(Decimal(10))
    lease = world.ask("8", lease=True)
    assert lease.authorization is not None
    world.count(*[("1", lease.authorization)] * 2)
    named = AuthorizationId.parse(lease.authorization)
    assert world.authorize_usage.release(named, None, NOW, events=2).sub_units == 6_000
    assert world.state() == (2, 2, 0)


def test_a_new_period_starts_from_its_own_usage_and_keeps_what_is_held(world: World) -> None:
    world.limit(Decimal(10))
    held = world.ask("4")
    world.count(("5", None))
    december = datetime(2026, 12, 1, 0, 5, tzinfo=UTC)
    world.count(("1", None), at=december)
    assert world.state() == (5, 9, 1), "a later period's event is not this one's"
    assert world.ask("5", december).is_allowed is True
    assert world.state() == (1, 10, 2), "a hold goes when its event comes, or when room is needed"
    world.count(("2", held.authorization), at=december)
    assert world.state() == (3, 8, 1)


def test_an_authorization_of_another_customer_settles_nothing(
    store: Store, world: World, customer: str
) -> None:
    other = World(store, f"{customer}-other")
    world.limit(Decimal(10))
    held = world.ask("4")
    other.count(("1", held.authorization))
    assert world.state() == (0, 4, 1)


def estimate(number: int) -> Decimal:
    """What a client asks for."""
    return Decimal(3) + Decimal(number % 7) / 1000


def actual(number: int) -> Decimal:
    """What it uses."""
    return estimate(number) - Decimal(number % 3) / 1000


def run_pairs(world: World, clients: int) -> list[int]:
    """Clients that ask at once and settle at once what they got; the numbers of those that did.

    Their events are counted while others still ask, as the stream's deliveries are.
    """
    start = Barrier(32)
    turns = itertools.count()
    reported: SimpleQueue[tuple[int, str]] = SimpleQueue()

    def run(number: int) -> None:
        if next(turns) < 32:
            start.wait(timeout=60)
        decision = world.ask(f"{estimate(number)}", life_s=3600)
        if decision.authorization is not None:
            reported.put((number, decision.authorization))

    settled: list[int] = []
    with ThreadPoolExecutor(32) as threads:
        asking = [threads.submit(run, number) for number in range(clients)]
        while not all(each.done() for each in asking) or not reported.empty():
            try:
                delivery = [reported.get(timeout=0.1)]
            except Empty:
                continue
            while not reported.empty():
                delivery.append(reported.get())
            world.count(*[(f"{actual(number)}", held) for number, held in delivery])
            settled += [number for number, _ in delivery]
            used, committed, _ = world.state()
            assert used <= committed <= LIMIT
    for each in asking:
        each.result()
    return settled


def test_500_clients_at_once_never_pass_a_limit_and_leave_nothing_held(
    store: Store, customer: str
) -> None:
    world = World(store, customer)
    world.limit(LIMIT)
    settled = run_pairs(world, 500)
    used, committed, holds = world.state()
    assert used == committed == sum(map(actual, settled), Decimal(0)) <= LIMIT
    assert holds == 0
    assert len(set(settled)) == len(settled)
    assert 320 < len(settled) < 340, "the limit was used up, not given away"
    # Exact to the last unit: what is left can be had, and not a thousandth more.
    assert not world.ask(f"{LIMIT - used + Decimal('0.001')}").is_allowed
    assert world.ask(f"{LIMIT - used}").is_allowed

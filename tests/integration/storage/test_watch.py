"""The watch on every store: limits are told of once, runaways are frozen once, and lifted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from meterline.adapters.dynamodb_budgets import DynamoBudgets
from meterline.adapters.dynamodb_catalog import DynamoPlans
from meterline.adapters.dynamodb_controls import DynamoControls
from meterline.adapters.dynamodb_guardrails import DynamoGuardrails
from meterline.adapters.dynamodb_history import DynamoHistory
from meterline.catalog.guardrails import load_breaker_rule
from meterline.domain.breaker import BreakerMode
from meterline.domain.limits import Limits, QuantityLimit
from meterline.domain.notifications import Happening, Notification
from meterline.errors import InvalidRequestError, NotFoundError
from meterline.ports import NotPublishedError
from meterline.services.measure_period import MeasurePeriod
from meterline.services.unfreeze_customer import UnfreezeCustomer
from meterline.services.watch_breakers import WatchBreakers
from meterline.services.watch_usage import Watch, WatchUsage
from tests.integration.storage.stores import Store
from tests.integration.storage.test_authorizations import METERS, World

NOW = datetime(2026, 11, 22, 12, 2, tzinfo=UTC)


class Bus:
    """An event bus that keeps what it was told, and can be down."""

    def __init__(self) -> None:
        self.published: list[Notification] = []
        self.is_down = False
        self.tries = 0

    def publish(self, notification: Notification) -> None:
        self.tries += 1
        if self.is_down:
            raise NotPublishedError("the bus is down")
        self.published.append(notification)

    def kinds(self, customer: str) -> list[Happening]:
        return [each.happening for each in self.published if each.customer == customer]


class Watched(World):
    """A customer that is watched."""

    def __init__(self, store: Store, customer: str) -> None:
        super().__init__(store, customer)
        self.store = store
        self.bus = Bus()
        self.guardrails = DynamoGuardrails(self.wire, store.tables.accounts)
        self.controls = DynamoControls(self.wire, store.tables.accounts)

    def make_watch(self, mode: BreakerMode = BreakerMode.FREEZE) -> WatchUsage:
        """A watch of a process that starts anew: it remembers nothing."""
        tables = self.store.tables
        return WatchUsage(
            DynamoBudgets(self.wire, tables.totals),
            self.controls,
            DynamoHistory(self.wire, tables.totals),
            self.guardrails,
            self.bus,
            DynamoPlans(self.wire, tables.accounts),
            METERS,
            load_breaker_rule(mode),
            MeasurePeriod(self.totals, self.store.ledger(self.wire)),
        )

    def watch(self, now: datetime = NOW, mode: BreakerMode = BreakerMode.FREEZE) -> Watch:
        return self.make_watch(mode)([(self.customer, "credits")], now)

    def live(self, days: int, per_day: str) -> None:
        """Days of usage before today, at noon."""
        for ago in range(1, days + 1):
            self.count((per_day, None), at=NOW - timedelta(days=ago))

    def warn_at(self, quantity: int) -> None:
        self.overviews.put_limits(self.customer, Limits(QuantityLimit(Decimal(quantity))))

    def scan(self, now: datetime) -> int:
        """A scheduled scan; how many notifications it published."""
        scan = WatchBreakers(
            self.store.accounts(self.wire),
            DynamoBudgets(self.wire, self.store.tables.totals),
            self.guardrails,
            self.make_watch(),
            METERS,
        )
        return scan(now, lambda: True).published


@pytest.fixture
def world(store: Store, customer: str) -> Watched:
    return Watched(store, customer)


def test_a_warning_is_told_once_however_often_the_watch_looks(world: Watched) -> None:
    world.warn_at(100)
    world.count(("99.999", None), at=NOW)
    assert world.watch().crossed == 0
    world.count(("0.001", None), at=NOW)
    assert [world.watch().crossed for _ in range(3)] == [1, 0, 0]
    [told] = world.bus.published
    assert told.happening is Happening.SOFT_LIMIT_CROSSED
    assert (told.facts["used"], told.facts["limit"]) == ("100", "100 credits")
    assert world.guardrails.list_notifications(world.customer)[0].id == told.id


def test_processes_that_find_the_same_crossing_at_once_tell_it_once(
    store: Store, customer: str
) -> None:
    world = Watched(store, customer)
    world.warn_at(100)
    world.count(("100", None), at=NOW)
    with ThreadPoolExecutor(8) as threads:
        crossed = sum(watch.crossed for watch in threads.map(lambda _: world.watch(), range(8)))
    assert crossed == len(world.bus.published) == 1


def test_another_level_in_the_same_period_is_another_crossing(world: Watched) -> None:
    world.warn_at(100)
    world.count(("150", None), at=NOW)
    world.watch()
    world.warn_at(140)
    assert world.watch().crossed == 1


def test_a_stop_that_is_reached_is_told_and_refused(world: Watched) -> None:
    world.limit(Decimal(50))
    world.count(("50", None), at=NOW)
    assert world.watch().crossed == 1
    assert world.bus.kinds(world.customer) == [Happening.HARD_LIMIT_REACHED]
    assert not world.ask("0.001", NOW).is_allowed


def test_without_a_setting_the_warning_is_at_80_percent_of_what_is_typical(world: Watched) -> None:
    for month, quantity in ((8, "4000"), (9, "2000"), (10, "3000")):
        world.count((quantity, None), at=datetime(2026, month, 5, 12, tzinfo=UTC))
    world.count(("2399", None), at=NOW - timedelta(days=3))
    assert world.watch().crossed == 0
    world.count(("1", None), at=NOW)
    assert world.watch().crossed == 1
    assert world.bus.published[0].facts["level"] == "2400"


def test_a_runaway_is_frozen_once_and_refused_at_once(world: Watched) -> None:
    world.live(10, "200")
    world.count(("1999.999", None), at=NOW)
    assert world.watch().frozen == []
    world.count(("0.001", None), at=NOW)
    assert world.watch().frozen == [world.customer]
    assert world.watch().frozen == []
    refused = world.ask("0.001", NOW)
    assert (refused.is_allowed, refused.code) == (False, "customer_frozen")
    [frozen] = [each for each in world.bus.published if each.happening is Happening.CUSTOMER_FROZEN]
    assert frozen.facts["used_last_hour"] == "2000"
    assert frozen.facts["typical_day"] == "200"
    # Work that was done is recorded all the same.
    world.count(("5", None), at=NOW)
    assert world.totals.day_total(world.customer, "credits", "2026-11-22").sub_units == 2_005_000


def test_unfrozen_it_does_not_trip_on_the_same_usage_and_does_on_as_much_again(
    world: Watched,
) -> None:
    world.live(10, "200")
    world.count(("2000", None), at=NOW)
    world.watch()
    unfreeze = UnfreezeCustomer(world.controls, world.guardrails, world.bus)
    lifted_at = NOW + timedelta(minutes=4)
    unfreeze(world.customer, "The agent was stopped.", "key ops", lifted_at)
    assert world.ask("1", lifted_at).is_allowed
    # Reports of the runaway that come late, dated before the unfreeze, change nothing.
    world.count(("1500", None), at=NOW + timedelta(minutes=1))
    assert world.watch(lifted_at + timedelta(seconds=30)).frozen == []
    again = lifted_at + timedelta(minutes=5)
    world.count(("2000", None), at=again)
    assert world.watch(again).frozen == [world.customer]
    audit = [
        (each["what"], each["by"], each["why"])
        for each in world.guardrails.list_audit(world.customer)
    ]
    assert [what for what, _, _ in audit] == ["frozen", "unfrozen", "frozen"]
    assert audit[1][1:] == ("key ops", "The agent was stopped.")


def test_only_what_is_frozen_can_be_unfrozen(world: Watched) -> None:
    unfreeze = UnfreezeCustomer(world.controls, world.guardrails, world.bus)
    with pytest.raises(InvalidRequestError):
        unfreeze(world.customer, "why not", "key ops", NOW)
    with pytest.raises(NotFoundError):
        unfreeze("nobody-at-all", "why not", "key ops", NOW)


def test_set_to_warn_the_breaker_says_so_and_freezes_nobody(world: Watched) -> None:
    world.live(10, "200")
    world.count(("2000", None), at=NOW)
    assert world.watch(mode=BreakerMode.WARN).suspected == [world.customer]
    assert world.watch(mode=BreakerMode.WARN).suspected == []
    assert world.ask("1", NOW).is_allowed


def test_old_usage_that_is_reported_late_is_no_runaway(world: Watched) -> None:
    world.live(10, "200")
    world.count(("50000", None), at=NOW - timedelta(hours=2))
    assert world.watch().frozen == []


def test_what_the_bus_did_not_take_a_scan_publishes(world: Watched) -> None:
    world.warn_at(100)
    world.count(("100", None), at=NOW)
    world.bus.is_down = True
    assert world.watch().unpublished == 1
    world.bus.is_down = False
    assert world.scan(NOW + timedelta(seconds=31)) >= 1
    assert world.bus.kinds(world.customer) == [Happening.SOFT_LIMIT_CROSSED]
    world.scan(NOW + timedelta(minutes=2))
    assert len(world.bus.kinds(world.customer)) == 1


def test_a_bus_that_is_down_is_tried_once_in_a_delivery(world: Watched) -> None:
    both = Limits(QuantityLimit(Decimal(50)), QuantityLimit(Decimal(100)))
    world.overviews.put_limits(world.customer, both)
    world.count(("100", None), at=NOW)
    world.bus.is_down = True
    assert world.watch().unpublished == 2
    assert world.bus.tries == 1


def test_a_scan_finds_a_runaway_and_holds_that_expired(world: Watched) -> None:
    world.limit(Decimal(100_000))
    world.ask("7", NOW, life_s=60)
    world.live(10, "200")
    world.count(("2000", None), at=NOW)
    world.scan(NOW + timedelta(minutes=2))
    assert Happening.CUSTOMER_FROZEN in world.bus.kinds(world.customer)
    assert world.state()[2] == 0

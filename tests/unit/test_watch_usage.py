"""The watch after a delivery: it never holds metering up, and what it left the scan finds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from meterline.domain.authorizations import Use
from meterline.domain.limits import Limits, MoneyLimit, QuantityLimit
from meterline.domain.notifications import Happening
from meterline.errors import StorageUnavailableError
from tests.guardrail_fakes import NOW, FakeHistory, Guarded, Pair

BUDGET_S = 2.0


class Stopwatch:
    """A clock that only what is slow moves on."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0

    def has_time(self) -> bool:
        return self.elapsed_s < BUDGET_S

    def take(self, seconds: float) -> Callable[[], None]:
        """What takes so long."""

        def pass_time() -> None:
            self.elapsed_s += seconds

        return pass_time


def make_crossings(count: int) -> tuple[Guarded, list[Pair]]:
    """So many customers, each over the level at which it wants to be warned."""
    guarded = Guarded()
    customers = [f"customer-{number}" for number in range(count)]
    for customer in customers:
        guarded.make(customer, Limits(QuantityLimit(Decimal(10))))
        guarded.use(customer, "20")
    return guarded, [(customer, "credits") for customer in customers]


def test_a_bus_that_hangs_costs_one_try_and_no_more_for_half_a_minute() -> None:
    guarded, pairs = make_crossings(50)
    clock = Stopwatch()
    guarded.bus.is_down = True
    guarded.bus.before_publish = clock.take(3.0)
    watch = guarded.watch_usage(pairs, NOW)
    assert (guarded.bus.tries, clock.elapsed_s) == (1, 3.0)
    assert (watch.crossed, watch.unpublished, watch.left) == (50, 50, 0)
    assert len(guarded.guardrails.list_open()) == 50, "kept for the scan"


def test_when_the_time_is_up_the_rest_is_left_to_the_scan() -> None:
    guarded, pairs = make_crossings(50)
    clock = Stopwatch()
    guarded.has_time = clock.has_time
    guarded.bus.before_publish = clock.take(0.5)
    watch = guarded.watch_usage(pairs, NOW)
    assert (guarded.bus.tries, clock.elapsed_s) == (4, BUDGET_S)
    assert (watch.crossed, watch.left) == (4, 46)
    # With time again, as the scan has it, all of them are told, and those of before not again.
    guarded.has_time = lambda: True
    assert guarded.watch_usage(pairs, NOW).crossed == 46
    assert len(guarded.bus.published) == 50


def test_a_runaway_is_looked_at_first_however_many_others_there_are() -> None:
    guarded, pairs = make_crossings(50)
    guarded.make("runaway")
    guarded.use("runaway", "1000")
    clock = Stopwatch()
    guarded.has_time = clock.has_time
    guarded.bus.before_publish = clock.take(BUDGET_S)
    watch = guarded.watch_usage([*pairs, ("runaway", "credits")], NOW)
    assert watch.frozen == ["runaway"]
    assert guarded.bus.published[0].happening is Happening.CUSTOMER_FROZEN


def test_a_table_that_answers_too_late_is_left_to_the_scan_and_one_that_fails_is_told() -> None:
    guarded, pairs = make_crossings(3)
    clock = Stopwatch()
    guarded.has_time = clock.has_time

    def fail() -> None:
        raise StorageUnavailableError("no answer")

    def fail_late() -> None:
        clock.elapsed_s = BUDGET_S
        fail()

    guarded.guardrails.before_record = fail_late
    watch = guarded.watch_usage(pairs, NOW)
    assert (watch.crossed, watch.left) == (0, 3)
    clock.elapsed_s = 0.0
    guarded.guardrails.before_record = fail
    with pytest.raises(StorageUnavailableError):
        guarded.watch_usage(pairs, NOW)


def test_a_runaway_is_stopped_also_where_nobody_can_say_in_time_what_it_does() -> None:
    class Slow(FakeHistory):
        def find_top(self, customer: str, meter: str, day: date, kind: str) -> str | None:
            raise StorageUnavailableError("the time for it is up")

    guarded = Guarded(Slow())
    guarded.make("acme")
    guarded.use("acme", "1000000")
    assert guarded.watch_usage([("acme", "credits")], NOW).frozen == ["acme"]
    [frozen] = [
        each for each in guarded.bus.published if each.happening is Happening.CUSTOMER_FROZEN
    ]
    assert (frozen.facts["top_action"], frozen.facts["top_user"]) == ("not known", "not known")


def test_a_runaway_of_just_before_midnight_is_named_after_it_too() -> None:
    runs_away = datetime(2026, 11, 22, 23, 50, tzinfo=UTC)

    class OfYesterday(FakeHistory):
        def find_top(self, customer: str, meter: str, day: date, kind: str) -> str | None:
            return f"its {kind}" if day == runs_away.date() else None

    guarded = Guarded(OfYesterday())
    guarded.make("acme")
    guarded.budgets.count("acme", "credits", Use(int(runs_away.timestamp()), 1_000_000_000, None))
    guarded.watch_usage([("acme", "credits")], runs_away + timedelta(minutes=15))
    [frozen] = [
        each for each in guarded.bus.published if each.happening is Happening.CUSTOMER_FROZEN
    ]
    assert (frozen.facts["top_action"], frozen.facts["top_user"]) == ("its action", "its user")


@pytest.mark.parametrize(
    ("plan", "limits", "told"),
    [
        ("pro", Limits(stop_at=MoneyLimit(2900, "usd")), ("hard_limit", "$29")),
        ("pro", Limits(block_overage=True), ("overage_blocked", "1000 credits")),
        ("free", Limits(), ("plan_quota", "100 credits")),
        # The set limit lies beyond, and is not what was hit.
        (
            "free",
            Limits(stop_at=QuantityLimit(Decimal(500))),
            ("plan_quota", "100 credits"),
        ),
    ],
)
def test_a_stop_that_is_told_says_what_stopped(
    plan: str, limits: Limits, told: tuple[str, str]
) -> None:
    guarded = Guarded()
    guarded.make("acme", limits, plan)
    guarded.use("acme", "1001")
    guarded.watch_usage([("acme", "credits")], NOW)
    [stopped] = [
        each for each in guarded.bus.published if each.happening is Happening.HARD_LIMIT_REACHED
    ]
    assert (stopped.facts["stopped_by"], stopped.facts["limit"]) == told

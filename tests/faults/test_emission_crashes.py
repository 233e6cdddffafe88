"""A crash at every single step of emission, and random ones with all that can go wrong besides."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import pytest

from meterline.domain.emission import EmissionEntry, Lapse
from meterline.services import emit_usage
from tests.emission_fakes import (
    HATED_VALUE,
    LOST_AFTER,
    LOST_AND_LATE,
    LOST_BEFORE,
    START,
    THROTTLED,
    Crash,
    Crasher,
    Forced,
    World,
    make_entries,
)

HOUR = START - timedelta(hours=1)


def deliver_or_crash(world: World, crasher: Crasher) -> str | None:
    """One delivery by a fresh process; the step at which it crashed, if it did."""
    try:
        world.deliver(world.emitter(crasher.wrap), crasher.reach)
    except Crash as crash:
        return str(crash)
    return None


def check_events(world: World, entries: list[EmissionEntry]) -> Counter[str]:
    """Each event is billed once or listed, and what is listed as not billed is not billed."""
    found: Counter[str] = Counter()
    for entry in entries:
        times = world.billing.times_billed(entry.identifier)
        assert times <= 1, f"{entry} billed {times} times"
        problem = world.store.problems.get(entry.identifier)
        assert times or problem, f"{entry} is lost"
        if times and problem:
            assert problem.kind is Lapse.UNKNOWN, f"billed, yet listed as {problem}"
        found["billed" if not problem else problem.kind] += 1
    return found


# Event mode: a good event, one refused, one too old, one for a later period's end.
def mixed_entries() -> list[EmissionEntry]:
    good = make_entries(4)
    refused = make_entries(1, name="refused")[0]._replace(sub_units=HATED_VALUE)
    old = make_entries(1, START - timedelta(days=36), name="old")[0]
    return [good[0], refused, good[1], old, good[2], good[3]]


def event_world() -> tuple[World, list[EmissionEntry]]:
    world = World()
    entries = mixed_entries()
    world.add_batch(entries)
    return world, entries


def hour_world(latest_by_time: bool) -> World:
    world = World(window=True, latest_by_time=latest_by_time)
    world.add_hour(HOUR, 100)
    return world


def count_steps(world: World) -> list[str]:
    crasher = Crasher()
    assert deliver_or_crash(world, crasher) is None
    return crasher.steps


EVENT_STEPS = count_steps(event_world()[0])
HOUR_STEPS = count_steps(hour_world(False))


@pytest.mark.parametrize("hours_later", [0, 25])
@pytest.mark.parametrize("step", range(len(EVENT_STEPS)))
def test_a_crash_at_any_step_of_a_batch_bills_each_event_once_or_lists_it(
    step: int, hours_later: int
) -> None:
    world, entries = event_world()
    assert deliver_or_crash(world, Crasher({step})) == EVENT_STEPS[step]
    world.clock.move(hours_later * 3600)
    world.drain()
    found = check_events(world, entries)
    if not hours_later:
        assert found == {"billed": 4, "refused": 1, "late": 1}
    world.clock.move(25 * 3600)
    world.queue.redrive()
    world.drain()
    check_events(world, entries)


@pytest.mark.parametrize("latest_by_time", [False, True])
@pytest.mark.parametrize("hours_later", [0, 25])
@pytest.mark.parametrize("step", range(len(HOUR_STEPS)))
def test_a_crash_at_any_step_of_an_hour_leaves_the_right_total(
    step: int, hours_later: int, latest_by_time: bool
) -> None:
    world = hour_world(latest_by_time)
    assert deliver_or_crash(world, Crasher({step})) == HOUR_STEPS[step]
    world.clock.move(hours_later * 3600)
    world.add_hour(HOUR, 23)
    world.drain()
    assert world.billing.hour_value(HOUR) == 123
    assert not world.store.problems


@dataclass
class Weather:
    """Random throttling and lost answers, for `until` calls; then the sky clears."""

    dice: random.Random
    badness: float
    until: int
    calls: int = 0

    def __call__(self) -> Forced | None:
        self.calls += 1
        if self.calls > self.until or self.dice.random() > self.badness:
            return None
        return self.dice.choice([THROTTLED, LOST_BEFORE, LOST_AFTER, LOST_AND_LATE])


def live_through(world: World, dice: random.Random, more: Callable[[], None]) -> Counter[str]:
    """Deliver with crashes and clock moves at random, then with none until the queue is empty."""
    seen: Counter[str] = Counter()
    for _ in range(dice.randint(2, 8)):
        at = world.queue.next_visible_at()
        if at is not None:
            world.clock.at = max(world.clock.at, at)
        crasher = Crasher(
            {dice.randint(0, dice.choice([12, 150]))} if dice.random() < 0.8 else set()
        )
        crashed = deliver_or_crash(world, crasher)
        seen[crashed or "no crash"] += 1
        if dice.random() < 0.3:
            world.clock.move(dice.choice([60, 3600, 22 * 3600, 25 * 3600, 3 * 86400]))
            seen["clock moved"] += 1
        if dice.random() < 0.3:
            more()
        if dice.random() < 0.2 and world.queue.redrive():
            seen["redriven"] += 1
    world.drain()
    return seen


def random_batches(seed: int) -> tuple[World, list[EmissionEntry], Counter[str]]:
    dice = random.Random(seed)
    world = World(jitter=dice.random, seconds_left=dice.choice([25.0, 60.0]))
    world.billing.weather = Weather(dice, dice.choice([0.0, 0.05, 0.3, 0.8]), 400)
    entries: list[EmissionEntry] = []

    def add() -> None:
        name = f"b{len(world.store.batches)}"
        made = make_entries(dice.randint(1, 120), world.clock.now(), name)
        for index in range(len(made)):
            match dice.randint(0, 60):
                case 0:
                    made[index] = made[index]._replace(sub_units=HATED_VALUE)
                case 1:
                    made[index] = made[index]._replace(sub_units=10**15)
                case 2:
                    made[index] = made[index]._replace(at_s=world.clock.now_s() - 36 * 86400)
                case 3:
                    ahead_s = dice.choice([200, 900, 9000])
                    made[index] = made[index]._replace(at_s=world.clock.now_s() + ahead_s)
        due = world.add_batch(made, name)
        entries.extend(made)
        if dice.random() < 0.4:
            world.queue.put(due)

    for _ in range(dice.randint(1, 3)):
        add()
    seen = live_through(world, dice, add)
    check_events(world, entries)
    world.clock.move(dice.choice([600, 25 * 3600]))
    world.queue.redrive()
    world.drain()
    return world, entries, seen


def test_300_random_histories_of_batches_bill_no_event_twice_and_lose_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcomes: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    for seed in range(300):
        world, entries, seen = random_batches(seed)
        found = check_events(world, entries)
        outcomes += found
        steps += seen
        for name, problem in world.store.problems.items():
            if problem.kind is Lapse.UNKNOWN:
                outcomes[f"unknown, and billed {world.billing.times_billed(name)}"] += 1
    assert outcomes["billed"] > 10_000
    assert all(outcomes[kind] for kind in Lapse), outcomes
    with capsys.disabled():
        print_table("event mode: 300 random histories", steps, outcomes)


def test_300_random_histories_of_hours_end_with_the_right_total(
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcomes: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    for seed in range(300):
        dice = random.Random(seed)
        world = World(jitter=dice.random, window=True, latest_by_time=bool(dice.getrandbits(1)))
        world.billing.weather = Weather(dice, dice.choice([0.0, 0.3, 0.8]), 100)
        hours = [HOUR, HOUR - timedelta(hours=5)]

        def add(world: World = world, dice: random.Random = dice) -> None:
            world.add_hour(dice.choice(hours), dice.randint(0, 1000))  # noqa: B023

        for _ in range(dice.randint(1, 4)):
            add()
        steps += live_through(world, dice, add)
        assert not world.store.problems
        world.clock.move(3600)
        for hour in hours:
            expected = world.totals.hour_total("acme", "tokens", hour).sub_units
            assert world.billing.hour_value(hour) == expected, (seed, hour)
            outcomes["hours right"] += 1
        outcomes["sends"] += world.billing.calls
    with capsys.disabled():
        print_table("hourly mode: 300 random histories", steps, outcomes)


def test_each_step_was_crashed_at_and_the_table_says_what_came_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows: list[tuple[int, str, str, str]] = []
    for step, name in enumerate(EVENT_STEPS):
        cells = []
        for hours_later in (0, 25):
            world, entries = event_world()
            deliver_or_crash(world, Crasher({step}))
            world.clock.move(hours_later * 3600)
            world.drain()
            found = check_events(world, entries)
            cells.append(" ".join(f"{kind} {count}" for kind, count in sorted(found.items())))
        rows.append((step, name, cells[0], cells[1]))
    for step, name in enumerate(HOUR_STEPS):
        cells = []
        for hours_later in (0, 25):
            world = hour_world(False)
            deliver_or_crash(world, Crasher({step}))
            world.clock.move(hours_later * 3600)
            world.drain()
            cells.append(f"total {world.billing.hour_value(HOUR)} of 100")
        rows.append((step, "hourly: " + name, cells[0], cells[1]))
    assert len(rows) == len(EVENT_STEPS) + len(HOUR_STEPS)
    with capsys.disabled():
        print(f"\n{'step':>4}  {'crash':44} {'and again at once':40} and again after 25 h")
        for number, crash, soon, late in rows:
            print(f"{number:>4}  {crash:44} {soon:40} {late}")


def print_table(title: str, steps: Counter[str], outcomes: Counter[str]) -> None:
    print(f"\n{title}")
    for name, count in steps.most_common():
        print(f"  {count:>6}  {name}")
    print("  outcomes: " + ", ".join(f"{count} {name}" for name, count in outcomes.items()))


def test_the_chunk_is_small_enough_for_one_transaction() -> None:
    assert 2 * emit_usage.CHUNK + 1 <= 100

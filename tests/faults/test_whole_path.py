"""Crashes, lost answers and throttling between a report and Stripe's answer, everywhere at once."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

import pytest

from tests.faults.whole_path import (
    LOST,
    METER_EVENTS,
    REFUSED,
    REPEATED,
    Books,
    Steps,
    Surroundings,
    World,
)

DAY_S = 86_400
HISTORIES = 200


@pytest.fixture
def start() -> datetime:
    """Now, away from the edges of an hour, so that an hour's events are in one hour."""
    return datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - timedelta(hours=1)


def make_usual_world(around: Surroundings, start: datetime, steps: Steps) -> World:
    """Both modes in two reports, which share an event; a delivery is three transactions."""
    world = World(
        around, start, steps=steps, max_items=4, max_entries=2, is_named=has_credits_first
    )
    at = world.clock.now()
    for number in range(3):
        world.make_event(f"c{number}", "credits", f"1.{number:03}", action="report", user="u_1")
    for number in range(3):
        world.make_event(f"t{number}", "tokens", 100 + number, at=at - timedelta(hours=number // 2))
    events = list(world.sent.values())
    world.unanswered = [events[:4], events[3:]]
    return world


def has_credits_first(customer: str) -> bool:
    """The order of a delivery's lanes comes from their names: here it must always be the same."""
    return crc32(f"{customer}#credits".encode()) < crc32(f"{customer}#tokens".encode())


def run(world: World) -> None:
    """The way of the data, once, whatever strikes; what is left over is for `drain`."""
    for _ in range(4):
        if world.unanswered:
            answer = world.report(world.unanswered[0])
            if answer is not None and not answer.undecided:
                world.unanswered.pop(0)
    for _ in range(3):
        world.deliver_records()
    for _ in range(3):
        world.deliver_messages()


def test_without_failures_every_event_is_billed_once(around: Surroundings, start: datetime) -> None:
    world = make_usual_world(around, start, Steps())
    run(world)
    assert world.shards[0].position == 6
    assert not world.queue.messages
    assert str(world.check()) == "3 billed"
    assert world.answers == {"accepted": 6, "duplicates": 1}


def test_a_crash_at_every_single_step_loses_nothing_and_bills_nothing_twice(
    around: Surroundings, start: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_usual_world(around, start, Steps())
    run(world)
    names = list(world.steps.names)
    assert len(names) > 60
    rows: list[tuple[str, str, str]] = []
    for step, name in enumerate(names):
        soon = crash_at(around, start, step, name, hours_later=0)
        assert str(soon) == "3 billed", f"step {step}, {name}: {soon}"
        assert soon.hourly == 303
        # Where Stripe may have had a send, a day decides whether it is still safe to ask again.
        cell = "-"
        if is_sending(name):
            late = crash_at(around, start, step, name, hours_later=25)
            assert late.hourly == 303
            cell = f"{late}; {late.hourly} hourly"
        rows.append((name, f"{soon}; {soon.hourly} hourly", cell))
    print_steps(rows, capsys)
    assert any("unknown" in late for _, _, late in rows), "a day later some cannot be known"


def is_sending(name: str) -> bool:
    return any(part in name for part in ("stripe", "emissions", "queue deletes"))


def crash_at(
    around: Surroundings, start: datetime, step: int, name: str, *, hours_later: int
) -> Books:
    world = make_usual_world(around, start, Steps({step}))
    run(world)
    assert world.steps.crashes == [name]
    world.clock.move(hours_later * 3600)
    world.drain()
    return world.check()


def print_steps(rows: list[tuple[str, str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{'':>4}  {'crash':58} {'gone on at once':22} gone on after 25 h")
        for step, (name, soon, late) in enumerate(rows):
            print(f"{step:>4}  {name:58} {soon:22} {late}")


STRIPE_FAULTS: list[dict[str, Any]] = [
    {"kind": "error", "status": 429},
    {"kind": "error", "status": 409},
    {"kind": "error", "status": 500},
    {"kind": "error", "status": 500, "saved": True},
    {"kind": "error", "status": 500, "when": "after"},
    {"kind": "error", "status": 500, "when": "after", "saved": True},
    {"kind": "drop"},
    {"kind": "drop", "when": "after"},
]


def live_through(around: Surroundings, start: datetime, seed: int) -> tuple[World, Books]:
    """One random history: clients that resend, crashes, failures, redeliveries, clock moves."""
    dice = random.Random(seed)
    badness = dice.choice([0.0, 0.05, 0.2])

    def weather(_name: str) -> str | None:
        return dice.choice([REFUSED, LOST, REPEATED]) if dice.random() < badness else None

    steps = Steps({dice.randrange(160) for _ in range(dice.randint(1, 5))}, weather)
    world = World(
        around,
        start,
        steps=steps,
        dice=dice,
        # So few items that each event has a transaction to itself, or as many as there may be.
        max_items=dice.choice([4, 7, 99]),
        max_entries=dice.choice([1, 3, 500]),
        shards=dice.choice([1, 3]),
    )
    patient = seed % 4 != 0
    for _ in range(dice.randint(3, 7)):
        act(world, dice)
        if dice.random() < 0.3:
            world.clock.move(dice.choice([20, 400] if patient else [400, 4 * 3600, 25 * 3600]))
            steps.failures["clock moved"] += 1
    world.drain()
    return world, world.check()


def act(world: World, dice: random.Random) -> None:
    make_random_report(world, dice)
    # A client without a good answer sends all of it again; now and then it does so with one.
    for report in [*world.unanswered]:
        answer = world.report(dice.sample(report, len(report)))
        if answer is not None and not answer.undecided and dice.random() < 0.8:
            world.unanswered.remove(report)
    for _ in range(dice.randint(0, 2)):
        shard = dice.choice(world.shards)
        again = dice.choice([0, 0, 2, 1000])
        world.deliver_records(dice.choice([1, 3, 1000]), again=again, shard=shard)
    if dice.random() < 0.4:
        world.around.local.add_fault(**dice.choice(STRIPE_FAULTS), count=1, path=METER_EVENTS)
        world.steps.failures["stripe"] += 1
    for _ in range(dice.randint(0, 2)):
        world.deliver_messages()
    if dice.random() < 0.2:
        world.redrive()


def make_random_report(world: World, dice: random.Random) -> None:
    for _ in range(dice.randint(1, 4)):
        at = world.clock.now() - timedelta(minutes=dice.randrange(150))
        meter = dice.choice(["credits", "tokens", "outcomes"])
        world.make_event(
            f"e{len(world.sent)}",
            meter,
            f"{dice.randrange(5000)}" + (".125" if meter == "credits" else ""),
            at=at,
            user=dice.choice(["u_1", "u_2"]),
        )
    world.unanswered.append(
        dice.sample(list(world.sent.values()), dice.randint(1, len(world.sent)))
    )
    fresh = {event["id"] for report in world.unanswered for event in report}
    world.unanswered[-1] += [e for e in [*world.sent.values()][-4:] if e["id"] not in fresh]


def test_random_histories_lose_nothing_and_bill_nothing_twice(
    around: Surroundings, start: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    crashes: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for seed in range(HISTORIES):
        try:
            world, books = live_through(around, start, seed)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        crashes.update(name.removeprefix("before ") for name in world.steps.crashes)
        failures += world.steps.failures
        outcomes["billed once"] += books.billed
        outcomes["sent by clients"] += len(world.sent)
        outcomes["answered duplicate"] += world.answers["duplicates"]
        for kind, count in books.listed.items():
            outcomes[f"listed {kind}"] += count
        if seed % 4:
            assert not books.listed, f"seed {seed}: within a day nothing has to stay unknown"
    with capsys.disabled():
        print(f"\n{HISTORIES} random histories of the whole path: {dict(outcomes)}")
        for title, counts in (("crashes", crashes), ("failures", failures)):
            print(f"  {counts.total()} {title}")
            for name, count in counts.most_common():
                print(f"    {count:>4}  {name}")
    assert crashes.total() > HISTORIES / 2
    assert outcomes["answered duplicate"] > 100

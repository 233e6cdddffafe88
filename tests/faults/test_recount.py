"""Usage that the stream has lost is counted from the ledger, once, whoever else is at it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterline.errors import MeterlineError
from tests.faults.test_whole_path import has_credits_first
from tests.faults.whole_path import (
    LOST,
    METERS,
    REFUSED,
    REPEATED,
    Books,
    Crash,
    Shard,
    Steps,
    Surroundings,
    World,
)

HISTORIES = 40
HOUR_S = 3600


@pytest.fixture
def start() -> datetime:
    """Some hours ago, away from the edges of an hour: the stream's clock is the machine's."""
    return datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - timedelta(hours=6)


class LossyWorld(World):
    """A world whose stream can lose records, with the operator who has them counted."""

    def recount(self) -> int | None:
        """Count what is missing of every meter; None when it was cut off."""
        self.steps.crashed = False
        begun, now = min(self._times()), self.clock.now()
        try:
            return sum(
                self.recounter()(
                    self.customer, meter, begun, now + timedelta(minutes=1), now
                ).events
                for meter in METERS.values()
            )
        except (Crash, MeterlineError):
            return None

    def list_missing(self) -> Counter[str]:
        """The ids of the uncounted events, however often they are listed."""
        self.steps.crashed = False
        begun, now = min(self._times()), self.clock.now()
        return Counter(
            entry.key.id
            for meter in METERS.values()
            for entry in self.recounter().find(
                self.customer, meter, begun, now + timedelta(minutes=1), now
            )
        )

    def _times(self) -> list[datetime]:
        return [datetime.fromisoformat(event["time"]) for event in self.sent.values()]


def make_lossy_world(around: Surroundings, start: datetime, steps: Steps) -> LossyWorld:
    """Both modes and an event of zero; of seven records the stream has lost five."""
    world = LossyWorld(
        around, start, steps=steps, max_items=5, max_entries=2, is_named=has_credits_first
    )
    for number in range(3):
        # At times of their own, so that they are always counted in this order.
        at = start + timedelta(seconds=number)
        world.make_event(
            f"c{number}", "credits", f"1.{number:03}", at=at, action="report", user="u_1"
        )
        world.make_event(f"t{number}", "tokens", 100 + number, at=at - timedelta(hours=1))
    world.make_event("zero", "credits", 0, at=start + timedelta(seconds=3))
    events = [*world.sent.values()]
    world.report(events[:2])
    world.deliver_records()
    world.report(events)
    assert world.lose_records() == 5
    world.clock.move(3 * HOUR_S)
    return world


def finish(world: LossyWorld, *, comes_late: bool = False) -> Books:
    """No more failures: have counted what is missing, and follow it all the way."""
    world.steps.crash_at = set()
    world.steps.weather = lambda _name: None
    if comes_late:
        world.shards[0].position = 0
    world.report_until_answered()
    world.clock.move(3 * HOUR_S)
    assert world.recount() is not None
    world.drain()
    assert world.recount() == 0
    return world.check()


def test_what_the_stream_lost_is_found_by_name_and_counted_once(
    around: Surroundings, start: datetime
) -> None:
    world = make_lossy_world(around, start, Steps())
    assert world.list_missing() == Counter(["c1", "c2", "zero", "t1", "t2"])
    assert world.recount() == 5
    assert not world.list_missing()
    assert world.recount() == 0
    world.drain()
    books = world.check()
    assert (str(books), books.hourly) == ("3 billed", 303)


def test_what_the_stream_may_still_bring_is_left_to_it(
    around: Surroundings, start: datetime
) -> None:
    world = make_lossy_world(around, start, Steps())
    world.make_event("fresh", "credits", 1)
    world.report([world.sent["fresh"]])
    world.clock.move(HOUR_S)
    assert "fresh" not in world.list_missing()
    world.clock.move(HOUR_S)
    assert "fresh" in world.list_missing()


def test_a_stream_that_comes_late_after_all_counts_nothing_again(
    around: Surroundings, start: datetime
) -> None:
    world = make_lossy_world(around, start, Steps())
    assert world.recount() == 5
    LateShard(world).deliver(world.shards[0].records[2:])
    world.drain()
    assert str(world.check()) == "3 billed"


class LateShard:
    """What was lost, on a shard whose checkpoint knows nothing: only the fence keeps it single."""

    def __init__(self, world: LossyWorld) -> None:
        self._world = world

    def deliver(self, records: list[dict[str, Any]]) -> None:
        shard = Shard(f"shardId-late-{self._world.customer}", records)
        while self._world.deliver_records(shard=shard):
            continue


def test_a_crash_at_any_step_of_a_recount_counts_each_event_once(
    around: Surroundings,
    start: datetime,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = make_lossy_world(around, start, Steps())
    first = len(world.steps.names)
    world.recount()
    names = world.steps.names[first:]
    assert len(names) > 30
    rows = []
    for step, name in list_moments(names):
        world = make_lossy_world(around, start, Steps({first + step}))
        assert world.recount() is None
        assert world.steps.crashes == [name]
        left = len(world.list_missing())
        # After every other crash the stream brings them after all.
        if step % 2:
            LateShard(world).deliver(world.shards[0].records[2:])
        books = finish(world)
        assert (str(books), books.hourly) == ("3 billed", 303), f"step {step}, {name}"
        rows.append(f"{step:>4}  {name:44} {left} left, then {books}")
    with capsys.disabled():
        print("\ncrashes of a recount of 5 lost events", *rows, sep="\n")


def list_moments(names: list[str]) -> list[tuple[int, str]]:
    """The steps between which something differs: of reads in a row, the first."""
    return [
        (step, name)
        for step, name in enumerate(names)
        if "Query" not in name or "Query" not in names[step - 1]
    ]


def test_between_any_two_steps_of_a_recount_the_stream_or_another_recount_may_come(
    around: Surroundings, start: datetime
) -> None:
    def deliver(world: LossyWorld) -> None:
        LateShard(world).deliver(world.shards[0].records[2:])

    def recount(world: LossyWorld) -> None:
        assert world.recount() is not None

    world = make_lossy_world(around, start, Steps())
    first = len(world.steps.names)
    world.recount()
    moments = list_moments(world.steps.names[first:])
    for others in (deliver, recount):
        for step, _ in moments[:: 2 if others is deliver else 4]:
            world = make_lossy_world(around, start, Steps())
            world.steps = Meeting(world.steps.names, first + step, world, others)
            assert world.recount() is not None
            assert world.steps.met, step
            books = finish(world)
            assert (str(books), books.hourly) == ("3 billed", 303), f"step {step}"


class Meeting(Steps):
    """At one step somebody else does all of their work."""

    def __init__(
        self, names: list[str], at: int, world: LossyWorld, others: Callable[[LossyWorld], None]
    ) -> None:
        super().__init__(names=list(names))
        self._at = at
        self._world = world
        self._others = others
        self.met = False

    def reach(self, name: str) -> None:
        super().reach(name)
        if not self.met and len(self.names) > self._at:
            self.met = True
            self._others(self._world)


def test_random_histories_with_lost_stretches_count_each_event_once(
    around: Surroundings, start: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(HISTORIES):
        dice = random.Random(seed)
        try:
            world, lost = live_through(around, start, dice)
            books = finish(world, comes_late=dice.random() < 0.5)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        outcomes["events"] += len(world.sent)
        outcomes["lost by the stream"] += lost
        outcomes["crashes"] += len(world.steps.crashes)
        outcomes["failures"] += world.steps.failures.total()
        outcomes["billed once"] += books.billed
    with capsys.disabled():
        print(f"\n{HISTORIES} random histories with lost stretches: {dict(outcomes)}")
    assert outcomes["lost by the stream"] > HISTORIES
    assert outcomes["crashes"] > HISTORIES / 4


def live_through(
    around: Surroundings, start: datetime, dice: random.Random
) -> tuple[LossyWorld, int]:
    """Reports, lost stretches, deliveries late and again, recounts, crashes, hours."""
    badness = dice.choice([0.0, 0.05])

    def weather(_name: str) -> str | None:
        return dice.choice([REFUSED, LOST, REPEATED]) if dice.random() < badness else None

    world = LossyWorld(
        around,
        start,
        steps=Steps({dice.randrange(250) for _ in range(dice.randint(0, 4))}, weather),
        dice=dice,
        max_items=dice.choice([5, 8, 99]),
        max_entries=dice.choice([1, 3, 500]),
    )
    lost = 0
    for _ in range(dice.randint(3, 7)):
        for _ in range(dice.randint(1, 3)):
            meter = dice.choice(["credits", "tokens", "outcomes"])
            at = world.clock.now() - timedelta(minutes=dice.randrange(90))
            world.make_event(f"e{len(world.sent)}", meter, dice.choice([0, 1, 5]), at=at)
            world.unanswered.append([[*world.sent.values()][-1]])
        world.report_until_answered()
        if dice.random() < 0.5:
            lost += world.lose_records(dice.randint(1, 3))
        if dice.random() < 0.7:
            world.deliver_records(dice.choice([1, 3, 1000]), again=dice.choice([0, 2]))
        world.clock.move(dice.choice([60, HOUR_S, 3 * HOUR_S]))
        if dice.random() < 0.5:
            world.recount()
        if dice.random() < 0.5:
            world.deliver_messages()
    return world, lost

"""The ledger's stream becomes totals exactly once, whatever breaks, and whoever else is at it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.catalog import load_meters
from meterline.domain.emission import BatchDue, EmissionDue, EmissionEntry, HourDue
from meterline.domain.projection import Checkpoint, Fence, Pair, ProjectedEvent, TotalsStep
from meterline.errors import StorageUnavailableError
from meterline.ports import CheckpointMovedError
from meterline.services.project_usage import Projection, ProjectUsage
from meterline.services.watch_usage import Watch

METERS = load_meters()
MAX_ITEMS = 7
MAX_ENTRIES = 3
NOW = datetime.fromtimestamp(1_795_000_200, UTC)
HOURS = ("2026-11-21T23", "2026-11-22T00", "2026-11-22T06")
Effect = Callable[[str], object]
"""What happens at a moment of a run, such as `before send`."""


class ProcessEndedError(Exception):
    """The process is gone."""


def make_event(sequence: int) -> ProjectedEvent:
    """Events of four customers by turns, one of them on an hourly meter, some of zero."""
    customer = ("acme", "birch", "cedar", "acme")[sequence % 4]
    return ProjectedEvent(
        sequence=sequence,
        customer=customer,
        meter="tokens" if customer == "birch" else "credits",
        hour=HOURS[sequence % 3],
        at_s=1_795_000_000 + sequence,
        received_at_s=1_795_000_000 + sequence,
        sub_units=0 if sequence % 5 == 0 else 10 + sequence,
        identifier=f"ml_{sequence:040x}",
        action=f"a{sequence % 3}" if sequence % 2 else None,
        user=f"u{sequence % 2}",
    )


EVENTS = [make_event(sequence) for sequence in range(100, 124)]


class World:
    """Totals and queue in memory; `disturb` is called before and after each of their calls."""

    def __init__(self) -> None:
        self.at: dict[str, Checkpoint] = {}
        self.day_totals: Counter[tuple[str, str, str]] = Counter()
        self.hour_totals: Counter[tuple[str, str, str]] = Counter()
        self.shares: Counter[tuple[str, str, str, str, str]] = Counter()
        self.counted = 0
        self.batches: dict[tuple[str, str, str], list[EmissionEntry]] = {}
        self.sent: list[tuple[EmissionDue, str]] = []
        self.disturb: Callable[[str], None] = lambda _: None

    def checkpoint(self, shard: str) -> Checkpoint:
        self.disturb("before checkpoint")
        found = self.at.get(shard, Checkpoint())
        self.disturb("after checkpoint")
        return found

    def apply(self, shard: str, expected: Checkpoint, step: TotalsStep) -> Checkpoint:
        self.disturb("before apply")
        assert 0 < step.item_count <= MAX_ITEMS
        held = self.at.get(shard, Checkpoint())
        if (held.through, held.ahead) != (expected.through, expected.ahead):
            raise CheckpointMovedError(shard)
        moved = Checkpoint(step.through, step.pending() or None, step.ahead)
        self.at[shard] = moved
        for day, hours in step.days.items():
            for hour, more in hours.items():
                self.day_totals[day] += more.sub_units
                self.hour_totals[day.customer, day.meter, f"{day.day}T{hour:02d}"] += more.sub_units
                self.counted += more.events
        for share, more in step.shares.items():
            self.shares[share] += more.sub_units
        for batch in step.emission_batches():
            key = (batch.customer, batch.meter, batch.id)
            assert key not in self.batches, "a batch is written once"
            assert 0 < len(batch.entries) <= MAX_ENTRIES
            self.batches[key] = list(batch.entries)
        self.disturb("after apply")
        return moved

    def fences(self, pairs: Iterable[Pair]) -> Mapping[Pair, Fence]:
        raise AssertionError(f"nothing of {list(pairs)} is late")

    def clear_pending(self, shard: str, checkpoint: Checkpoint) -> None:
        self.disturb("before clear")
        held = self.at[shard]
        if (held.through, held.ahead) == (checkpoint.through, checkpoint.ahead):
            self.at[shard] = Checkpoint(held.through, None, held.ahead)
        self.disturb("after clear")

    def send(self, dues: Sequence[EmissionDue], *, renewal: str) -> None:
        self.disturb("before send")
        self.sent += [(due, renewal) for due in dues]
        self.disturb("after send")


def run(world: World, events: Sequence[ProjectedEvent], shard: str = "shard-1") -> Projection:
    project = ProjectUsage(
        world, world, METERS, max_items=MAX_ITEMS, max_entries=MAX_ENTRIES, now=lambda: NOW
    )
    return project(shard, events)


def check_settled(world: World, events: Sequence[ProjectedEvent] = EVENTS) -> None:
    """Every event is in the totals once, in one batch or hour at most, and handed over."""
    days: Counter[tuple[str, str, str]] = Counter()
    hours: Counter[tuple[str, str, str]] = Counter()
    shares: Counter[tuple[str, str, str, str, str]] = Counter()
    for event in events:
        of = (event.customer, event.meter)
        days[*of, event.hour[:10]] += event.sub_units
        hours[*of, event.hour] += event.sub_units
        if event.action is not None:
            shares[*of, event.hour[:10], "action", event.action] += event.sub_units
        if event.user is not None:
            shares[*of, event.hour[:10], "user", event.user] += event.sub_units
    assert world.counted == len(events)
    assert +world.day_totals == +days
    assert +world.hour_totals == +hours
    assert +world.shares == +shares

    billed = [event for event in events if event.sub_units and event.meter == "credits"]
    emitted = Counter(entry for batch in world.batches.values() for entry in batch)
    assert emitted == Counter(
        EmissionEntry(event.identifier, event.at_s, event.sub_units) for event in billed
    )
    handed_over = {due for due, _ in world.sent}
    assert {due for due in handed_over if isinstance(due, BatchDue)} == {
        BatchDue(*key) for key in world.batches
    }
    assert {
        (due.customer, due.meter, f"{due.hour:%Y-%m-%dT%H}")
        for due in handed_over
        if isinstance(due, HourDue)
    } == {
        (event.customer, event.meter, event.hour)
        for event in events
        if event.sub_units and event.meter == "tokens"
    }
    assert all(not checkpoint.pending for checkpoint in world.at.values())


def count_points() -> int:
    """How many moments there are at which an undisturbed run can be disturbed."""
    world = World()
    points: list[str] = []
    world.disturb = points.append
    run(world, EVENTS)
    return len(points)


def disturb_at(world: World, point: int, effect: Effect) -> None:
    """Let `effect` happen at that moment of the run, once."""
    moments = count()

    def disturb(moment: str) -> None:
        if next(moments) == point:
            effect(moment)

    world.disturb = disturb


def run_rival(world: World, length: int, point: int) -> Effect:
    """Another run of the same records' beginning, which itself ends at one of its moments."""

    def rival(_: str) -> None:
        disturbed = world.disturb
        disturb_at(world, point, crash)
        with suppress(ProcessEndedError):
            run(world, EVENTS[:length])
        world.disturb = disturbed

    return rival


POINTS = count_points()


def crash(_: str) -> None:
    raise ProcessEndedError


def be_unavailable(_: str) -> None:
    raise StorageUnavailableError("no answer")


def lose_answer(moment: str) -> None:
    """The transaction is done and its answer lost: the adapter's own retry meets its own work."""
    if moment == "after apply":
        raise CheckpointMovedError("a retry of what had been done")


def test_there_is_something_to_disturb() -> None:
    assert POINTS > 30


def test_a_delivery_is_counted_and_handed_over() -> None:
    world = World()
    assert run(world, EVENTS) == Projection(len(EVENTS), 0, len(world.sent))
    check_settled(world)


def test_a_batch_is_handed_over_once_where_nothing_breaks() -> None:
    world = World()
    run(world, EVENTS)
    batches = [due for due, _ in world.sent if isinstance(due, BatchDue)]
    assert len(batches) == len(set(batches)) == len(world.batches)


def test_a_repeated_delivery_counts_nothing_and_sends_nothing() -> None:
    world = World()
    run(world, EVENTS)
    sent = list(world.sent)
    assert run(world, EVENTS) == Projection(0, len(EVENTS), 0)
    assert world.sent == sent
    check_settled(world)


def test_deliveries_that_overlap_count_each_event_once() -> None:
    world = World()
    for start, end in ((0, 10), (5, 12), (0, 3), (11, 24), (0, 24)):
        run(world, EVENTS[start:end])
    check_settled(world)


def test_shards_have_checkpoints_of_their_own() -> None:
    world = World()
    run(world, EVENTS, "shard-1")
    run(world, EVENTS, "shard-2")
    assert world.counted == 2 * len(EVENTS)
    assert len(world.at) == 2
    assert len({due for due, _ in world.sent if isinstance(due, BatchDue)}) == len(world.batches)


def test_an_empty_delivery_does_nothing() -> None:
    world = World()
    assert run(world, []) == Projection(0, 0, 0)
    assert world.sent == []


def test_an_hour_that_changes_again_is_handed_over_anew() -> None:
    world = World()
    [first, second] = [event for event in EVENTS if event.meter == "tokens" and event.sub_units][:2]
    second = second._replace(hour=first.hour)
    run(world, [first])
    run(world, [second])
    [(due, renewal), (again, other)] = world.sent
    assert due == again
    assert renewal != other, "or the queue would drop it as a repeat"


@pytest.mark.parametrize("point", range(POINTS))
@pytest.mark.parametrize("effect", [crash, be_unavailable])
def test_a_run_that_breaks_at_any_moment_is_mended_by_the_next(point: int, effect: Effect) -> None:
    world = World()
    disturb_at(world, point, effect)
    with pytest.raises((ProcessEndedError, StorageUnavailableError)):
        run(world, EVENTS)
    world.disturb = lambda _: None
    run(world, EVENTS)
    check_settled(world)


@pytest.mark.parametrize("point", range(POINTS))
def test_another_run_of_the_same_delivery_at_any_moment_does_no_harm(point: int) -> None:
    world = World()
    disturb_at(world, point, lambda _: run(world, EVENTS))
    run(world, EVENTS)
    check_settled(world)


@pytest.mark.parametrize("rival_point", range(POINTS))
def test_another_run_that_ends_at_any_moment_does_no_harm(rival_point: int) -> None:
    for point in range(POINTS):
        world = World()
        disturb_at(world, point, run_rival(world, len(EVENTS), rival_point))
        run(world, EVENTS)
        check_settled(world)


@pytest.mark.parametrize("rival_point", range(POINTS))
def test_a_longer_run_that_ends_at_any_moment_does_no_harm_to_a_shorter(rival_point: int) -> None:
    for point in range(POINTS):
        world = World()
        disturb_at(world, point, run_rival(world, len(EVENTS), rival_point))
        run(world, EVENTS[:15])
        run(world, EVENTS)
        check_settled(world)


@pytest.mark.parametrize("point", range(POINTS))
def test_a_longer_run_at_any_moment_does_no_harm_to_a_shorter(point: int) -> None:
    world = World()
    disturb_at(world, point, lambda _: run(world, EVENTS))
    run(world, EVENTS[:15])
    world.disturb = lambda _: None
    run(world, EVENTS)
    check_settled(world)


@pytest.mark.parametrize("point", range(POINTS))
def test_an_answer_that_is_lost_after_any_step_counts_it_once(point: int) -> None:
    world = World()
    disturb_at(world, point, lose_answer)
    told = run(world, EVENTS)
    assert told.counted + told.skipped == len(EVENTS)
    check_settled(world)


def test_a_checkpoint_that_never_stands_still_is_given_up() -> None:
    world = World()

    def disturb(moment: str) -> None:
        if moment == "before apply":
            raise CheckpointMovedError("somebody was faster")

    world.disturb = disturb
    with pytest.raises(StorageUnavailableError):
        run(world, EVENTS)
    world.disturb = lambda _: None
    run(world, EVENTS)
    check_settled(world)


def test_a_watch_that_fails_in_any_way_holds_no_count_up_and_is_told() -> None:
    world = World()

    def watch(pairs: Iterable[tuple[str, str]]) -> Watch:
        assert ("acme", "credits") in set(pairs)
        raise KeyError("a plan's meter")

    project = ProjectUsage(
        world,
        world,
        METERS,
        max_items=MAX_ITEMS,
        max_entries=MAX_ENTRIES,
        now=lambda: NOW,
        watch=watch,
    )
    projection = project("shard-1", EVENTS)
    assert projection.watch is None
    assert projection.watch_failure == 'KeyError: "a plan\'s meter"'
    assert projection.counted == len(EVENTS)
    check_settled(world)


def test_a_zombie_that_wakes_up_after_all_is_done_changes_nothing() -> None:
    world = World()
    stale = world.checkpoint("shard-1")
    run(world, EVENTS)
    before = world.at["shard-1"]

    class Zombie(World):
        """Sees the checkpoint as it was when it fell asleep, the first time."""

        asleep = True

        def checkpoint(self, shard: str) -> Checkpoint:
            if self.asleep:
                self.asleep = False
                return stale
            return world.at[shard]

        def apply(self, shard: str, expected: Checkpoint, step: TotalsStep) -> Checkpoint:
            return world.apply(shard, expected, step)

    zombie = Zombie()
    assert run(zombie, EVENTS[:9]) == Projection(0, 9, 0)
    assert world.at["shard-1"] == before
    check_settled(world)


_BREAKS = st.tuples(
    st.integers(1, len(EVENTS)),
    st.integers(0, POINTS),
    st.sampled_from(["crash", "unavailable", "lost answer", "rival"]),
    st.integers(1, len(EVENTS)),
    st.integers(0, POINTS),
)


@given(st.lists(_BREAKS, max_size=12))
def test_any_history_of_broken_and_rival_runs_ends_with_each_event_counted_once(
    history: list[tuple[int, int, str, int, int]],
) -> None:
    world = World()
    for length, point, what, other_length, rival_point in history:
        effects: dict[str, Effect] = {
            "crash": crash,
            "unavailable": be_unavailable,
            "lost answer": lose_answer,
            "rival": run_rival(world, other_length, rival_point),
        }
        disturb_at(world, point, effects[what])
        try:
            run(world, EVENTS[:length])
        except (ProcessEndedError, StorageUnavailableError):
            continue
    world.disturb = lambda _: None
    run(world, EVENTS)
    check_settled(world)

"""Steps of a delivery: each event once and in its customer's order, whatever is cut off."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from meterline.catalog import load_meters
from meterline.domain.emission import EmissionEntry
from meterline.domain.projection import (
    Checkpoint,
    Fence,
    ProjectedEvent,
    TotalsStep,
    plan_steps,
)

METERS = load_meters()
EVENTS = 40


def make_event(sequence: int, customer: int, user: int) -> ProjectedEvent:
    return ProjectedEvent(
        sequence=sequence,
        customer=f"c{customer}",
        meter=("credits", "tokens", "outcomes")[customer % 3],
        hour="2026-11-20T12",
        at_s=1_795_176_000 + sequence,
        received_at_s=1_795_176_000 + sequence,
        sub_units=1 + sequence,
        identifier=f"ml_{sequence:040x}",
        action=None,
        user=f"u{user}",
    )


def plan(
    events: list[ProjectedEvent], checkpoint: Checkpoint, max_items: int = 6, max_entries: int = 4
) -> list[TotalsStep]:
    return list(
        plan_steps(
            events,
            METERS,
            lambda first: f"{first:x}",
            max_items=max_items,
            max_entries=max_entries,
            checkpoint=checkpoint,
        )
    )


class CountedSteps:
    """Totals in memory: what a run of transactions has left behind."""

    def __init__(self) -> None:
        self.checkpoint = Checkpoint()
        self.sub_units: Counter[tuple[str, str]] = Counter()
        self.entries: dict[tuple[str, str], list[EmissionEntry]] = {}
        self.batches: set[tuple[str, str, str]] = set()

    def apply(self, step: TotalsStep) -> None:
        for day, hours in step.days.items():
            for more in hours.values():
                self.sub_units[day.customer, day.meter] += more.sub_units
        for (customer, meter), entries in step.batches.items():
            batch = (customer, meter, step.id)
            assert batch not in self.batches
            self.batches.add(batch)
            self.entries.setdefault((customer, meter), []).extend(entries)
        moved = Checkpoint(step.through, step.pending(), step.ahead)
        assert (moved.through, moved.ahead) != (self.checkpoint.through, self.checkpoint.ahead)
        self.checkpoint = moved


drawn_events = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=EVENTS
).map(lambda pairs: [make_event(10 + place, *pair) for place, pair in enumerate(pairs)])


@given(
    drawn_events,
    st.lists(st.tuples(st.integers(1, EVENTS), st.integers(0, 8)), max_size=12),
    st.integers(3, 9),
)
def test_every_event_counts_once_whatever_deliveries_are_cut_off_and_however_long_they_are(
    events: list[ProjectedEvent], deliveries: list[tuple[int, int]], max_items: int
) -> None:
    totals = CountedSteps()
    # Each delivery begins at the first record that is not behind the checkpoint, or earlier, has
    # a length of its own, and crashes after some of its steps; the last one gets through.
    for length, steps in [*deliveries, (len(events), EVENTS)]:
        for step in plan(events[:length], totals.checkpoint, max_items)[:steps]:
            totals.apply(step)
    expected: Counter[tuple[str, str]] = Counter()
    for event in events:
        expected[event.customer, event.meter] += event.sub_units
    assert totals.sub_units == expected
    assert plan(events, totals.checkpoint, max_items) == []
    for entries in totals.entries.values():
        assert entries == sorted(entries, key=lambda entry: entry.at_s)


@given(drawn_events)
def test_no_step_is_larger_than_it_may_be(events: list[ProjectedEvent]) -> None:
    for step in plan(events, Checkpoint()):
        assert 0 < step.item_count <= 6
        assert all(len(entries) <= 4 for entries in step.batches.values())


@given(drawn_events)
def test_a_customer_is_in_no_more_steps_than_its_own_items_need(
    events: list[ProjectedEvent],
) -> None:
    steps = plan(events, Checkpoint(), max_items=99, max_entries=500)
    pairs = [pair for step in steps for pair in {(day.customer, day.meter) for day in step.days}]
    assert len(pairs) == len(set(pairs))


def test_a_delivery_that_is_counted_needs_no_step() -> None:
    events = [make_event(10 + place, place % 5, 0) for place in range(20)]
    totals = CountedSteps()
    for step in plan(events, Checkpoint()):
        totals.apply(step)
    assert plan(events, totals.checkpoint) == []
    assert plan([], totals.checkpoint) == []


@given(drawn_events, st.sets(st.integers(10, 10 + EVENTS)))
def test_late_events_pass_the_fence_of_their_customer_and_recounted_ones_are_left_out(
    events: list[ProjectedEvent], recounted: set[int]
) -> None:
    names = {f"ml_{sequence:040x}" for sequence in recounted}
    pairs = {(event.customer, event.meter) for event in events}
    steps = list(
        plan_steps(
            events,
            METERS,
            lambda first: f"{first:x}",
            max_items=6,
            max_entries=4,
            fences={pair: Fence(Checkpoint(through=3), names) for pair in pairs},
        )
    )
    # Every step says which events it counts, and between them they count each one once.
    counted = [name for step in steps for name in step.identifiers()]
    assert sorted(counted) == sorted({event.identifier for event in events} - names)
    passed: Counter[tuple[str, str]] = Counter()
    for step in steps:
        assert step.item_count <= 6
        assert step.fences.keys() == {(day.customer, day.meter) for day in step.days}
        for pair, place in step.fences.items():
            # As the step before it has left it.
            assert (place.through, place.passed or 0) == (3, passed[pair])
            passed[pair] += 1

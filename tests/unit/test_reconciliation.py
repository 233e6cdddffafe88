"""Reconciliation as pure rules: parts that add up, and evidence that decides or does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.domain.dropped import DroppedUsage
from meterline.domain.emission import BatchDue, DeadLetters, EmissionEntry
from meterline.domain.periods import Period
from meterline.domain.reconciliation import (
    BatchRecord,
    Cause,
    HourKey,
    SentEntry,
    explain_hour,
    weigh_evidence,
)
from meterline.domain.sending import BatchSending, Progress
from meterline.domain.subscriptions import Subscription
from meterline.services.reconcile_usage import spans_of
from tests.dashboard_fakes import make_subscription

NOW = datetime(2026, 11, 22, 10, 30, tzinfo=UTC)
KEY = HourKey("acme", "credits", NOW.replace(minute=0) - timedelta(hours=3))
DUE = BatchDue("acme", "credits", "b1")


def entry(name: str, sub_units: int) -> EmissionEntry:
    return EmissionEntry(name, int(KEY.hour.timestamp()), sub_units)


def sent(name: str, sub_units: int, progress: Progress, *, minutes: int = 120) -> SentEntry:
    made_at = NOW - timedelta(minutes=minutes)
    return SentEntry(DUE, 0, entry(name, sub_units), progress, made_at, in_doubt=False)


@given(
    states=st.lists(
        st.tuples(st.integers(-500, 5000), st.sampled_from(list(Progress)), st.integers(0, 300)),
        max_size=12,
    ),
    dropped=st.sets(st.integers(0, 11)),
    uncounted=st.integers(-1000, 1000),
    lost=st.integers(-1000, 1000),
    billed=st.integers(-5000, 50_000),
    parked=st.booleans(),
)
def test_what_explains_a_difference_always_adds_up_to_it(
    states: list[tuple[int, Progress, int]],
    dropped: set[int],
    uncounted: int,
    lost: int,
    billed: int,
    parked: bool,
) -> None:
    entries = [
        sent(f"e{place}", value, progress, minutes=minutes)
        for place, (value, progress, minutes) in enumerate(states)
    ]
    in_batches = sum(each.entry.sub_units for each in entries)
    totals = in_batches + lost
    difference = explain_hour(
        KEY,
        ledger_sub_units=totals + uncounted,
        ledger_events=len(entries),
        local_sub_units=totals,
        billed_sub_units=billed,
        entries=entries,
        dropped={f"e{i}": DroppedUsage(f"e{i}", "code", "") for i in dropped},
        reasons={},
        parked=DeadLetters(frozenset({DUE} if parked else ())),
        now=NOW,
    )
    told = sum(each.sub_units for each in difference.explanations)
    assert told == difference.missing_sub_units


UNKNOWN = [entry("a", 1), entry("b", 2), entry("c", 4)]


@pytest.mark.parametrize("surplus", range(8))
def test_evidence_that_only_one_choice_fits_decides(surplus: int) -> None:
    evidence = weigh_evidence(UNKNOWN, surplus)
    assert evidence is not None
    expected = {name for name, value in (("a", 1), ("b", 2), ("c", 4)) if surplus & value}
    assert evidence.billed == expected
    assert evidence.not_billed == {"a", "b", "c"} - expected


@pytest.mark.parametrize(
    ("unknown", "surplus"),
    [
        ([("a", 1), ("b", 1)], 1),
        ([("a", 1), ("b", 2), ("c", 3)], 3),
        ([("a", 5)], 4),
        ([("a", 5)], -5),
        ([("a", 5), ("b", -5)], 0),
        ([(f"e{i}", 1) for i in range(40)], 20),
    ],
    ids=["two alike", "a sum that is also one", "too little", "below", "cancelling", "too many"],
)
def test_evidence_that_fits_twice_or_never_decides_nothing(
    unknown: list[tuple[str, int]], surplus: int
) -> None:
    assert weigh_evidence([entry(name, value) for name, value in unknown], surplus) is None


@pytest.mark.parametrize("surplus", [0, 40])
def test_of_many_sends_all_or_none_is_still_decided(surplus: int) -> None:
    many = [entry(f"e{i}", 1) for i in range(40)]
    evidence = weigh_evidence(many, surplus)
    assert evidence is not None
    assert len(evidence.billed) == surplus


def test_an_entry_that_is_being_sent_or_was_not_answered_for_is_in_doubt() -> None:
    entries = [entry(f"e{i}", 1) for i in range(4)]
    sending = BatchSending.begin(4).settle(0, Progress.SENT).miss_answer(1, 5).intend([2], 9)
    record = BatchRecord(DUE, entries, NOW, sending)
    assert [each.in_doubt for each in record.list_entries()] == [False, True, True, False]


def test_a_batch_that_nobody_began_is_pending() -> None:
    record = BatchRecord(DUE, [entry("e", 1)], NOW, None)
    [only] = record.list_entries()
    difference = explain_hour(
        KEY,
        ledger_sub_units=1,
        ledger_events=1,
        local_sub_units=1,
        billed_sub_units=0,
        entries=[only],
        dropped={},
        reasons={},
        parked=DeadLetters(),
        now=NOW,
    )
    [explanation] = difference.explanations
    assert explanation.cause is Cause.NOT_SENT
    assert difference.is_transient


def subscription(current: Period, *past: Period) -> Subscription:
    return make_subscription(current.start, current.end, past=past)


def days_ago(days: float) -> datetime:
    return NOW.replace(minute=20) - timedelta(days=days)


def test_a_period_that_has_just_ended_is_compared_too() -> None:
    current = Period(days_ago(2), days_ago(-28))
    before = Period(days_ago(33), days_ago(2))
    start, end = spans_of(subscription(current, before), NOW)
    assert start == days_ago(33).replace(minute=0)
    assert end == NOW.replace(minute=0)


def test_a_period_that_ended_long_ago_is_not() -> None:
    current = Period(days_ago(5), days_ago(-25))
    before = Period(days_ago(36), days_ago(5))
    assert spans_of(subscription(current, before), NOW)[0] == days_ago(5).replace(minute=0)


def test_nothing_is_compared_that_is_too_old_to_be_taken() -> None:
    current = Period(days_ago(300), days_ago(-65))
    start, _end = spans_of(subscription(current), NOW)
    assert start >= NOW - timedelta(days=35, hours=1)

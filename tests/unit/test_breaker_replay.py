"""The breaker on generated histories and recorded traffic: whom it stops and whom it must not."""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from meterline.catalog.guardrails import load_breaker_rule
from meterline.domain.breaker_replay import ReplayedTrip, replay_usage

RULE = load_breaker_rule()
TRACE = Path(__file__).resolve().parents[3] / "shared/data/azure_llm_trace_code.csv"
START_S = int(datetime(2026, 9, 7, tzinfo=UTC).timestamp())
DAYS = 56
SEEDS = int(os.environ.get("METERLINE_HISTORIES", "12"))
"""Customers of each kind."""
Uses = list[tuple[int, int]]
History = Callable[[random.Random], Uses]


def make_days(dice: random.Random, size_of: Callable[[int], float]) -> Uses:
    """Calls of log-normal size over each day's working hours; `size_of` a day in credits."""
    uses: Uses = []
    for day in range(DAYS):
        wanted = size_of(day)
        calls = max(1, int(dice.gauss(200, 40)))
        if wanted <= 0:
            continue
        sizes = [dice.lognormvariate(0, 1.2) for _ in range(calls)]
        scale = wanted / sum(sizes)
        for size in sizes:
            second = int(min(86_399, max(0, dice.gauss(13.5 * 3600, 2.5 * 3600))))
            uses.append((START_S + day * 86_400 + second, int(size * scale * 1000)))
    return sorted(uses)


def steady(dice: random.Random) -> Uses:
    base = dice.lognormvariate(5, 1)
    return make_days(dice, lambda _: base * dice.lognormvariate(0, 0.4))


def weekly(dice: random.Random) -> Uses:
    base = dice.lognormvariate(5, 1)
    return make_days(
        dice, lambda day: base * dice.lognormvariate(0, 0.3) * (0 if day % 7 > 4 else 1)
    )


def growing(dice: random.Random) -> Uses:
    base = dice.lognormvariate(4, 1)
    return make_days(dice, lambda day: base * 1.06**day * dice.lognormvariate(0, 0.3))


def launch_day(dice: random.Random) -> Uses:
    """Twenty times as much on one day, and three times from then on."""
    base = dice.lognormvariate(5, 1)
    return make_days(
        dice,
        lambda day: (
            base * dice.lognormvariate(0, 0.3) * (20 if day == 40 else 3 if day > 40 else 1)
        ),
    )


def batch_job(dice: random.Random) -> Uses:
    """Once a week, fifteen days' worth within half an hour."""
    base = dice.lognormvariate(5, 1)
    uses = make_days(dice, lambda _: base * dice.lognormvariate(0, 0.3))
    for day in range(6, DAYS, 7):
        at_s = START_S + day * 86_400 + 2 * 3600
        uses += [(at_s + 6 * number, int(base * 15 / 300 * 1000)) for number in range(300)]
    return sorted(uses)


def count_frozen(history: History) -> tuple[int, int]:
    """Of some customers: how many were ever frozen, and how often in all."""
    found = [
        list(replay_usage(history(random.Random(seed)), RULE, "credits")) for seed in range(SEEDS)
    ]
    return sum(bool(trips) for trips in found), sum(map(len, found))


@pytest.mark.parametrize(
    ("history", "most_percent"),
    # A launch can bring ten typical days within an hour, which nobody could tell from a loop.
    [(steady, 0), (weekly, 0), (growing, 0), (launch_day, 2)],
)
def test_ordinary_customers_are_not_frozen(
    history: History, most_percent: int, record_property: Callable[[str, object], None]
) -> None:
    frozen, trips = count_frozen(history)
    record_property("frozen", frozen)
    print(
        f"\n{history.__name__}: {frozen} of {SEEDS} customers frozen, {trips} trips in {DAYS} days"
    )
    assert frozen * 100 <= most_percent * SEEDS


def test_a_new_batch_job_is_stopped_until_it_is_a_habit() -> None:
    frozen, trips = count_frozen(batch_job)
    print(f"\nbatch_job: {frozen} of {SEEDS} customers frozen, {trips} trips in {DAYS} days")
    # A week's first two runs look like a runaway, the other six of the eight do not.
    assert trips <= 2 * SEEDS
    for seed in range(SEEDS):
        for each in replay_usage(batch_job(random.Random(seed)), RULE, "credits"):
            assert (each.at_s - START_S) // 86_400 in (6, 13)


def read_trace() -> Iterator[tuple[int, int]]:
    """A credit for every thousand tokens."""
    with TRACE.open(newline="") as file:
        for row in csv.DictReader(file):
            at = datetime.fromisoformat(row["TIMESTAMP"][:19]).replace(tzinfo=UTC)
            yield int(at.timestamp()), int(row["ContextTokens"]) + int(row["GeneratedTokens"])


@pytest.mark.skipif(not TRACE.exists(), reason="no sample traces lie beside the checkout")
def test_an_hour_of_recorded_traffic_trips_a_new_customer_and_not_one_who_works_so_every_day() -> (
    None
):
    hour = list(read_trace())
    alone = list(replay_usage(hour, RULE, "credits"))
    assert len(hour) == 8819
    # Eighteen million tokens in a customer's very first hour: nobody could tell it from a loop.
    assert alone
    assert alone[0].used_before == pytest.approx(1_000_000, rel=0.02)
    eight_hours_a_day = [
        (at_s + 86_400 * day + 3600 * turn, size)
        for day in range(10)
        for turn in range(8)
        for at_s, size in hour
    ]
    later = hour[0][0] + 86_400
    trips = [each for each in replay_usage(eight_hours_a_day, RULE, "credits") if each.at_s > later]
    print(f"\ntrace: {len(alone)} trips for a new customer, {len(trips)} for one of ten days")
    assert trips == []


def make_incident(tokens: int, hours: int) -> Uses:
    """A month of 480 credits a day, then so many tokens, evenly spread over so many hours."""
    month = [
        (START_S + 86_400 * day + 32_400 + 600 * call, 10_000)
        for day in range(28)
        for call in range(48)
    ]
    calls = hours * 600
    began_s = START_S + 28 * 86_400 + 18 * 3600
    return month + [(began_s + 6 * call, tokens // calls) for call in range(calls)]


@pytest.mark.parametrize(
    ("name", "tokens", "hours"),
    [
        # $14,000 in a weekend, at the Pro plan's $5 a million tokens.
        ("the weekend of an agent that loops", 2_800_000_000, 60),
        # 200 million tokens before anybody noticed: told without a time, so a day is taken.
        ("a template that is wrong", 200_000_000, 24),
    ],
)
def test_the_two_incidents_are_stopped_within_the_hour(name: str, tokens: int, hours: int) -> None:
    incident = make_incident(tokens, hours)
    first: ReplayedTrip = next(iter(replay_usage(incident, RULE, "credits")))
    began_s = START_S + 28 * 86_400 + 18 * 3600
    minutes = (first.at_s - began_s) / 60
    slipped = first.used_before - 28 * 480_000
    cost = slipped / 1_000_000 * 5
    print(
        f"\n{name}: frozen after {minutes:.0f} minutes at {slipped:,} tokens, "
        f"${cost:,.2f} instead of ${tokens // 1_000_000 * 5:,}"
    )
    assert 0 <= minutes <= 60
    assert cost < 50

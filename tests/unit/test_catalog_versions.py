"""Versions of the catalog: the past keeps its rates, whatever is applied later."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.adapters.dynamodb_catalog import CACHE_S, STALE_S, DynamoRateCards
from meterline.catalog import InvalidCatalogError, load_meters, load_plans
from meterline.catalog.versions import (
    MIN_NOTICE,
    CatalogRefusedError,
    CatalogVersion,
    Effective,
    Kind,
    list_differences,
    load_bundled,
    plan_apply,
    read_plan_books,
    read_rate_cards,
    read_version,
)
from meterline.errors import StorageUnavailableError

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
LATER = NOW + timedelta(days=9)
BUNDLED = load_bundled(Kind.RATE_CARD)
RATES = """
version = "{version}"
effective_from = "{since}"
tokens = 1000
[[rates]]
provider = "anthropic"
models = ["claude-sonnet-*"]
input_tokens = "{rate}"
output_tokens = "5"
"""


def card(version: str, since: datetime, rate: str = "1") -> CatalogVersion:
    text = RATES.format(version=version, since=since.isoformat(), rate=rate)
    return read_version(Kind.RATE_CARD, text)


def credits_of(versions: list[CatalogVersion], at: datetime) -> Decimal:
    found = read_rate_cards(versions).at(at)
    usage = {"input_tokens": 1_000}
    return found.credits("anthropic", "claude-sonnet-4-5", usage, load_meters()["credits"])


def test_what_is_bundled_is_a_version_of_itself() -> None:
    assert BUNDLED.version == "2026-11-01"
    assert load_bundled(Kind.PLANS).effective_from == datetime(2026, 11, 1, tzinfo=UTC)


def test_the_first_version_is_written_with_the_bundled_one_before_it() -> None:
    new = card("2", LATER)
    assert plan_apply([], new, NOW) == (BUNDLED, new)


def test_applying_the_bundled_file_pins_it() -> None:
    assert plan_apply([], BUNDLED, NOW) == (BUNDLED,)


def test_applying_twice_changes_nothing() -> None:
    new = card("2", LATER)
    # Words that say nothing else, such as comments, are no change.
    again = read_version(Kind.RATE_CARD, f"# Again.\n{new.content}")
    assert plan_apply([BUNDLED, new], again, LATER + timedelta(days=400)) == ()


def test_an_applied_version_cannot_say_something_else() -> None:
    known = [BUNDLED, card("2", LATER)]
    for changed in (card("2", LATER, "1.1"), card("2", LATER + timedelta(days=1))):
        with pytest.raises(CatalogRefusedError, match="stays as it is"):
            plan_apply(known, changed, NOW)


def test_two_versions_cannot_count_from_the_same_moment() -> None:
    with pytest.raises(CatalogRefusedError, match="counts from"):
        plan_apply([BUNDLED, card("2", LATER)], card("3", LATER, "2"), NOW)


@pytest.mark.parametrize(
    "since", [NOW - timedelta(days=1), NOW, NOW + MIN_NOTICE - timedelta(seconds=1)]
)
def test_the_past_and_the_next_minutes_keep_their_rates(since: datetime) -> None:
    with pytest.raises(CatalogRefusedError, match="minutes ahead"):
        plan_apply([BUNDLED], card("2", since), NOW)


def test_a_version_between_two_that_wait_is_taken_while_it_is_ahead() -> None:
    known = [BUNDLED, card("3", LATER)]
    between = card("2", NOW + MIN_NOTICE)
    assert plan_apply(known, between, NOW) == (between,)


def test_an_event_is_rated_by_the_version_of_its_own_time() -> None:
    first, second = card("1", NOW - timedelta(days=9), "1"), card("2", LATER, "3")
    versions = [second, first]
    assert credits_of(versions, LATER) == 3
    assert credits_of(versions, LATER - timedelta(milliseconds=1)) == 1
    assert credits_of(versions, NOW - timedelta(days=500)) == 1


TIMES = st.integers(0, 4_000_000_000).map(lambda second: datetime.fromtimestamp(second, UTC))


@given(st.lists(TIMES, min_size=1, unique=True), TIMES, TIMES)
def test_a_later_version_never_changes_what_counted_before_it(
    starts: list[datetime], new: datetime, at: datetime
) -> None:
    before = Effective([(start, start) for start in starts])
    after = Effective([(start, start) for start in [*starts, new]])
    if new > min(starts) and at < new:
        assert after.at(at) == before.at(at)
    in_force = [start for start in starts if start <= at]
    assert before.at(at) == (max(in_force) if in_force else min(starts))


def test_differences_are_named_by_what_they_are_about() -> None:
    lines = list_differences(card("1", NOW), card("2", LATER, "1.1"))
    assert lines == [
        f"~ effective_from: {NOW.isoformat()} -> {LATER.isoformat()}",
        "~ rates[anthropic claude-sonnet-*].input_tokens: 1 -> 1.1 (+10.0%)",
        "~ version: 1 -> 2",
    ]


def test_plans_change_their_meter_from_a_date_on() -> None:
    bundled = load_bundled(Kind.PLANS)
    switched = replace(
        bundled,
        version="2027",
        effective_from=LATER,
        content=bundled.content.replace('meter = "credits"', 'meter = "tokens"'),
    )
    books = read_plan_books([bundled, switched])
    assert books.at(LATER - timedelta(seconds=1))["pro"] == load_plans()["pro"]
    assert books.at(LATER)["pro"].meter == "tokens"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (('version = "2"', ""), "version"),
        (('version = "2"', "version = 2"), "version"),
        (('version = "2"', 'version = "a b"'), "version"),
        (('effective_from = "', 'effective_from = "soon '), "effective_from"),
        (("+00:00", ""), "effective_from"),
        (('tokens = 1000', "tokens = 999"), "tokens"),
        (('input_tokens = "1"', "input_tokens = 1.0"), "input_tokens"),
        (('input_tokens = "1"', 'input_tokens = "-1"'), "input_tokens"),
        (('input_tokens = "1"', 'input_tokens = "NaN"'), "input_tokens"),
        (("output_tokens", "outptu_tokens"), "outptu_tokens"),
        (("[[rates]]", "[[rates"), "rate card"),
        (("[[rates]]", "# " + "x" * 300_000 + "\n[[rates]]"), "bytes"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused_with_the_place(change: tuple[str, str], word: str) -> None:
    text = RATES.format(version="2", since=LATER.isoformat(), rate="1").replace(*change)
    with pytest.raises(InvalidCatalogError, match=word):
        read_version(Kind.RATE_CARD, text)


class FakeWire:
    """Answers queries of the accounts table with the versions that it is given."""

    def __init__(self) -> None:
        self.versions: list[CatalogVersion] = []
        self.is_down = False
        self.calls = 0

    def call(self, operation: str, request: Any) -> dict[str, Any]:
        assert operation == "Query"
        self.calls += 1
        if self.is_down:
            raise StorageUnavailableError("no answer")
        return {
            "Items": [
                {
                    "version": {"S": each.version},
                    "effective_from": {"S": f"{each.effective_from:%Y-%m-%dT%H:%M:%S}Z"},
                    "content": {"S": each.content},
                    "applied_at": {"S": "2026-11-22T10:00:00.000Z"},
                }
                for each in self.versions
            ]
        }


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_process_reads_versions_once_a_minute() -> None:
    wire, clock = FakeWire(), Clock()
    cards = DynamoRateCards(wire, "accounts", monotonic=clock)  # type: ignore[arg-type]
    assert cards.at(NOW).version == BUNDLED.version
    wire.versions = [BUNDLED, card("2", LATER)]
    assert cards.at(LATER).version == BUNDLED.version
    assert wire.calls == 1
    clock.now_s += CACHE_S
    assert cards.at(LATER).version == "2"
    assert cards.at(NOW).version == BUNDLED.version
    assert wire.calls == 2


def test_a_silent_table_is_borne_for_less_than_the_notice_and_not_asked_each_time() -> None:
    wire, clock = FakeWire(), Clock()
    cards = DynamoRateCards(wire, "accounts", monotonic=clock)  # type: ignore[arg-type]
    wire.is_down = True
    with pytest.raises(StorageUnavailableError):
        cards.at(NOW)
    wire.is_down = False
    cards.at(NOW)
    wire.is_down = True
    clock.now_s += CACHE_S
    for _ in range(100):
        assert cards.at(NOW).version == BUNDLED.version
    assert wire.calls == 3
    clock.now_s += STALE_S
    with pytest.raises(StorageUnavailableError):
        cards.at(NOW)
    ahead_s = 300  # What an event's time may be ahead of ours.
    assert STALE_S + ahead_s <= MIN_NOTICE.total_seconds()

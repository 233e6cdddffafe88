"""How many calls a key may make, over several processes that tell each other now and then."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from meterline.domain.api_keys import ApiKey, Scope, hash_key
from meterline.errors import RateLimitedError, StorageError, StorageUnavailableError
from meterline.services.admit_calls import SHARE_AT, SLOT_S, AdmitCalls

NOW = datetime(2026, 11, 22, 6, 0, 0, tzinfo=UTC)


class FakeCalls:
    """The shared counter; `down` is how it fails."""

    def __init__(self, down: Exception | None = None) -> None:
        self.slots: Counter[tuple[str, int]] = Counter()
        self.writes: list[datetime] = []
        self.down = down

    def add(self, key_hash: str, slot: int, calls: int, now: datetime) -> int:
        self.writes.append(now)
        if self.down is not None:
            raise self.down
        self.slots[key_hash, slot] += calls
        return self.slots[key_hash, slot]


def make_key(calls_per_s: int, name: str = "backend") -> ApiKey:
    return ApiKey(hash_key(name), name, frozenset(Scope), NOW, calls_per_s=calls_per_s)


def count_admitted(admit: AdmitCalls, key: ApiKey, times: list[datetime]) -> int:
    admitted = 0
    for at in times:
        try:
            admit(key, at)
        except RateLimitedError:
            continue
        admitted += 1
    return admitted


def spread(calls: int, seconds: float, start: datetime = NOW) -> list[datetime]:
    return [start + timedelta(seconds=seconds * place / calls) for place in range(calls)]


def test_a_key_within_its_rate_is_never_refused() -> None:
    admit = AdmitCalls(FakeCalls())
    assert count_admitted(admit, make_key(10), spread(600, 60)) == 600


def test_what_is_too_much_is_refused_until_the_slot_ends() -> None:
    admit, key = AdmitCalls(FakeCalls()), make_key(10)
    at = NOW + timedelta(seconds=2.5)
    assert count_admitted(admit, key, [at] * 500) == 10 * SLOT_S
    with pytest.raises(RateLimitedError, match="10 calls a second") as refused:
        admit(key, at)
    assert refused.value.retry_after_s == 8
    admit(key, at + timedelta(seconds=refused.value.retry_after_s))


def test_each_key_has_a_rate_of_its_own() -> None:
    admit = AdmitCalls(FakeCalls())
    assert count_admitted(admit, make_key(1), [NOW] * 50) == SLOT_S
    assert count_admitted(admit, make_key(1, "another"), [NOW] * 50) == SLOT_S


@pytest.mark.parametrize("processes", [2, 8])
def test_several_processes_pass_the_bound_by_no_more_than_they_have_not_told(
    processes: int,
) -> None:
    shared, key = FakeCalls(), make_key(50)
    each = [AdmitCalls(shared) for _ in range(processes)]
    # Every process gets 30 calls a second: together far above 50.
    times = spread(30 * SLOT_S, SLOT_S)
    admitted = sum(count_admitted(admit, key, [at]) for at in times for admit in each)
    most = 50 * SLOT_S
    untold = SHARE_AT + 30  # Told from so many on, and at most once a second.
    assert most <= admitted <= most + processes * untold
    assert admitted < processes * len(times)


def test_a_process_tells_at_most_once_a_second_and_of_a_single_call_nothing() -> None:
    shared, key = FakeCalls(), make_key(1000)
    admit = AdmitCalls(shared)
    count_admitted(admit, key, spread(3000, 30))
    gaps = [after - before for before, after in zip(shared.writes, shared.writes[1:], strict=False)]
    assert min(gaps) >= timedelta(seconds=1)
    assert len(shared.writes) <= 31

    single = FakeCalls()
    admit = AdmitCalls(single)
    count_admitted(admit, key, spread(60, 3000))
    assert len(single.writes) == 1, "that the key is in use, and nothing else"


def test_a_key_in_use_is_seen_every_hour() -> None:
    shared = FakeCalls()
    admit = AdmitCalls(shared)
    count_admitted(admit, make_key(10), [NOW + timedelta(minutes=20 * turn) for turn in range(10)])
    assert shared.writes == [NOW + timedelta(hours=hour) for hour in range(4)]


@pytest.mark.parametrize(
    "down", [StorageUnavailableError("late"), StorageError("AccessDenied", "no")]
)
def test_a_storage_that_is_down_refuses_nobody_within_the_rate(down: Exception) -> None:
    shared, key = FakeCalls(down), make_key(10)
    admit = AdmitCalls(shared)
    assert count_admitted(admit, key, spread(100, 10)) == 100
    assert len(shared.writes) <= 11
    # Alone it still counts.
    assert count_admitted(admit, key, [NOW + timedelta(seconds=20)] * 500) == 10 * SLOT_S

"""The accounts' contract, on every store: customers, keys, and how long they are remembered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meterline.adapters.dynamodb_accounts import CACHE_S
from meterline.adapters.dynamodb_key_calls import DynamoKeyCalls
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.domain.api_keys import ApiKey, Scope, hash_key
from meterline.domain.customers import Customer
from meterline.errors import StorageUnavailableError, SupersededError
from tests.integration.storage.conftest import FaultProxy
from tests.integration.storage.stores import Store

NOW = datetime(2026, 11, 22, 6, 0, 0, 123_000, tzinfo=UTC)
PROFILE = {"name": "Acme", "plan": "pro", "email": "a@acme.test", "billing_customer": None}


@dataclass
class Counting(DynamoWire):
    """A wire that notes which operations went over it."""

    inner: DynamoWire
    operations: list[str] = field(default_factory=list)

    def call(self, operation: str, request: Any, *, deadline_s: float = 60.0) -> dict[str, Any]:
        self.operations.append(operation)
        return self.inner.call(operation, request, deadline_s=deadline_s)


def test_a_customer_is_created_changed_and_read_back(store: Store, customer: str) -> None:
    accounts = store.accounts()
    assert accounts.get_customer(customer) is None
    made = accounts.put_customer(
        customer, {**PROFILE, "billing_customer": f"cus_1_{customer}"}, NOW
    )
    assert made == Customer(
        id=customer,
        name="Acme",
        email="a@acme.test",
        plan="pro",
        billing_customer=f"cus_1_{customer}",
        created_at=NOW,
        updated_at=NOW,
    )
    assert accounts.get_customer(customer) == made
    later = NOW + timedelta(days=1)
    changed = accounts.put_customer(customer, {"name": "Acme, Inc.", "email": None}, later)
    assert (changed.name, changed.email, changed.plan) == ("Acme, Inc.", None, "pro")
    assert (changed.created_at, changed.updated_at) == (NOW, later)
    assert accounts.get_customer(customer) == changed


def test_which_customers_are_known(store: Store, customer: str) -> None:
    accounts = store.accounts()
    wanted = {f"{customer}-{number}" for number in range(230)}
    for number in range(0, 230, 10):
        accounts.put_customer(f"{customer}-{number}", PROFILE, NOW)
    assert accounts.known(wanted) == {f"{customer}-{number}" for number in range(0, 230, 10)}
    assert accounts.known([]) == set()


def test_the_id_at_the_billing_layer(store: Store, customer: str) -> None:
    accounts = store.accounts()
    assert accounts.billing_customer(customer) is None
    accounts.put_customer(customer, PROFILE, NOW)
    assert accounts.billing_customer(customer) is None
    accounts.put_customer(customer, {"billing_customer": f"cus_9_{customer}"}, NOW)
    assert accounts.billing_customer(customer) == f"cus_9_{customer}"


def test_a_key_is_found_by_its_hash_with_its_scopes_until_it_is_revoked(
    store: Store, customer: str
) -> None:
    accounts = store.accounts(monotonic=iter(range(0, 10**6, 60)).__next__)
    hashed = hash_key(customer)
    assert accounts.find(hashed) is None
    key = ApiKey(hashed, "backend", frozenset({Scope.USAGE}), NOW)
    accounts.add_key(key)
    assert accounts.find(hashed) == key
    both = ApiKey(hashed, "backend", frozenset(Scope), NOW, revoked_at=NOW + timedelta(1))
    accounts.add_key(both)
    assert accounts.find(hashed) == both


def test_a_key_is_rotated_in_one_write_with_its_end_and_its_rate(
    store: Store, customer: str
) -> None:
    wire = Counting(store.wire())
    accounts = store.accounts(wire)
    old = ApiKey(hash_key(customer), "backend", frozenset({Scope.USAGE}), NOW, calls_per_s=7)
    accounts.add_key(old)
    new = replace(old, hash=hash_key(f"{customer} new"), created_at=NOW + timedelta(1))
    ending = replace(old, expires_at=NOW + timedelta(8))
    wire.operations.clear()
    accounts.rotate_key(ending, new)
    assert wire.operations == ["TransactWriteItems"]
    assert (accounts.find(old.hash), accounts.find(new.hash)) == (ending, new)


def test_a_key_that_was_revoked_is_not_rotated_back_by_somebody_who_has_not_heard(
    store: Store, customer: str
) -> None:
    accounts = store.accounts()
    key = ApiKey(hash_key(customer), "backend", frozenset({Scope.USAGE}), NOW)
    revoked = replace(key, revoked_at=NOW)
    accounts.add_key(revoked)
    new = replace(key, hash=hash_key(f"{customer} new"))
    with pytest.raises(SupersededError):
        accounts.rotate_key(replace(key, expires_at=NOW + timedelta(7)), new)
    assert (accounts.find(key.hash), accounts.find(new.hash)) == (revoked, None)


def test_calls_of_a_key_are_counted_together_slot_by_slot(store: Store, customer: str) -> None:
    one, other = (DynamoKeyCalls(store.wire(), store.tables.accounts) for _ in range(2))
    key, slot = hash_key(customer), int(NOW.timestamp()) // 10
    assert one.last_used([key]) == {}
    assert [one.add(key, slot, 3, NOW), other.add(key, slot, 20, NOW)] == [3, 23]
    later = NOW + timedelta(seconds=10)
    assert other.add(key, slot + 1, 5, later) == 5
    # A process whose clock is behind is told its own count, and disturbs nobody's.
    assert one.add(key, slot, 4, NOW) == 4
    assert one.add(key, slot + 1, 1, later) == 6
    assert one.last_used([key, hash_key("nobody's")]) == {key: later}
    assert store.accounts().find(key) is None


def test_processes_that_count_at_once_lose_no_call(store: Store, customer: str) -> None:
    calls = DynamoKeyCalls(store.wire(pool_size=16), store.tables.accounts)
    key = hash_key(customer)
    with ThreadPoolExecutor(16) as processes:
        told = list(processes.map(lambda _: calls.add(key, 1, 1, NOW), range(64)))
    assert sorted(told) == list(range(1, 65))


def test_what_was_read_is_remembered_for_half_a_minute(store: Store, customer: str) -> None:
    clock_s = 1000.0
    wire = Counting(store.wire())
    accounts = store.accounts(wire, monotonic=lambda: clock_s)
    store.accounts().put_customer(
        customer, {**PROFILE, "billing_customer": f"cus_1_{customer}"}, NOW
    )
    assert accounts.billing_customer(customer) == f"cus_1_{customer}"
    store.accounts().put_customer(customer, {"billing_customer": f"cus_2_{customer}"}, NOW)
    clock_s += CACHE_S - 0.1
    assert accounts.billing_customer(customer) == f"cus_1_{customer}"
    assert accounts.known({customer}) == {customer}
    assert wire.operations == ["BatchGetItem"]
    clock_s += 0.2
    assert accounts.billing_customer(customer) == f"cus_2_{customer}"
    assert wire.operations == ["BatchGetItem"] * 2


def test_what_is_not_there_is_looked_for_every_time(store: Store, customer: str) -> None:
    accounts = store.accounts()
    assert accounts.known({customer}) == set()
    store.accounts().put_customer(customer, PROFILE, NOW)
    assert accounts.known({customer}) == {customer}


def test_our_own_change_counts_at_once(store: Store, customer: str) -> None:
    accounts = store.accounts()
    accounts.put_customer(customer, {**PROFILE, "billing_customer": f"cus_1_{customer}"}, NOW)
    assert accounts.billing_customer(customer) == f"cus_1_{customer}"
    accounts.put_customer(customer, {"billing_customer": f"cus_2_{customer}"}, NOW)
    assert accounts.billing_customer(customer) == f"cus_2_{customer}"


def test_a_customer_and_a_key_cannot_be_taken_for_each_other(store: Store, customer: str) -> None:
    accounts = store.accounts()
    accounts.put_customer(customer, PROFILE, NOW)
    assert accounts.find(customer) is None
    accounts.add_key(ApiKey(customer + "k", "n", frozenset({Scope.ADMIN}), NOW))
    assert accounts.known({customer + "k"}) == set()


def test_remembering_is_bounded(store: Store, customer: str) -> None:
    accounts = store.accounts()
    accounts.put_customer(customer, PROFILE, NOW)
    assert accounts.known({customer}) == {customer}
    held = accounts._cache
    held.update({f"customer#old-{number}": (float("inf"), {}) for number in range(10_000)})
    store.accounts().put_customer(f"{customer}-2", PROFILE, NOW)
    assert accounts.known({f"{customer}-2"}) == {f"{customer}-2"}
    assert len(held) == 1


def test_accounts_that_cannot_be_read_are_not_taken_for_unknown(
    dynamodb_local_store: Store, customer: str, proxy: FaultProxy
) -> None:
    store = dynamodb_local_store
    store.accounts().put_customer(customer, PROFILE, NOW)
    proxy.set_rules({"error": {"code": "ThrottlingException", "status": 400}})
    accounts = store.accounts(store.wire(proxy.url, attempts=2))
    with pytest.raises(StorageUnavailableError):
        accounts.known({customer})
    with pytest.raises(StorageUnavailableError):
        accounts.find(hash_key("x"))
    with pytest.raises(StorageUnavailableError):
        accounts.billing_customer(customer)


def test_an_id_at_the_billing_layer_counts_as_soon_as_it_is_there(
    store: Store, customer: str
) -> None:
    accounts, elsewhere = store.accounts(), store.accounts()
    elsewhere.put_customer(customer, PROFILE, NOW)
    assert accounts.billing_customer(customer) is None
    elsewhere.put_customer(customer, {"billing_customer": f"cus_{customer}"}, NOW)
    assert accounts.billing_customer(customer) == f"cus_{customer}"
    assert accounts.of_billing_customer(f"cus_{customer}") == [customer]

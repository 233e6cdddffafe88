"""The stores that the contract suite runs on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import urllib3

from meterline.adapters.dynamodb_wire import DynamoWire
from tests.integration.storage.stores import (
    Store,
    make_session,
    run_emulator,
    run_fault_proxy,
    run_moto,
)

_serial = itertools.count()


@pytest.fixture(scope="session")
def moto_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """moto's server. Its PartiQL fails on INSERT with parameters (TypeError in 5.2.5), so here the
    ledger writes single items, which is the other of its two ways to write."""
    with run_moto(tmp_path_factory.mktemp("moto")) as url:
        yield Store("moto", url, statements_per_call=1)


@pytest.fixture(scope="session")
def emulator_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The emulator that the stack is deployed on."""
    with run_emulator(tmp_path_factory.mktemp("emulator")) as url:
        yield Store("emulator", url)


@pytest.fixture(scope="session")
def dynamodb_local_store(dynamodb_local: str) -> Store:
    """DynamoDB Local: the reference for conditional writes, transactions and PartiQL."""
    return Store("dynamodb_local", dynamodb_local)


@pytest.fixture(scope="session", params=["moto_store", "emulator_store", "dynamodb_local_store"])
def store(request: pytest.FixtureRequest) -> Store:
    """Each store in turn."""
    found: Store = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def customer() -> str:
    """A customer that no other test uses, so that tests may share tables."""
    return f"customer-{next(_serial)}"


@pytest.fixture
def shard() -> str:
    """A stream shard that no other test uses."""
    return f"shardId-{next(_serial)}"


@dataclass
class FaultProxy:
    """A proxy in front of a store, and its rules."""

    url: str

    def __post_init__(self) -> None:
        self._pool = urllib3.PoolManager()

    def set_rules(self, *rules: dict[str, Any]) -> None:
        """Replace all rules."""
        answer = self._pool.request(
            "POST",
            f"{self.url}/_microburst/rules",
            body=json.dumps(rules).encode(),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status in (200, 201), answer.data

    def count_fired(self) -> int:
        """How many faults were made since `clear`."""
        return len(json.loads(self._pool.request("GET", f"{self.url}/_microburst/fired").data))

    def clear(self) -> None:
        """No rules, no record of faults."""
        self._pool.request("DELETE", f"{self.url}/_microburst/rules")
        self._pool.request("DELETE", f"{self.url}/_microburst/fired")


@pytest.fixture(scope="session")
def shared_proxy(
    dynamodb_local: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FaultProxy]:
    """One proxy for the session, in front of DynamoDB Local."""
    with run_fault_proxy(dynamodb_local, tmp_path_factory.mktemp("proxy")) as url:
        # Its first call takes seconds: it reads DynamoDB's service model.
        DynamoWire(make_session(), endpoint_url=url, timeout_s=60).call("ListTables", {})
        yield FaultProxy(url)


@pytest.fixture
def proxy(shared_proxy: FaultProxy) -> FaultProxy:
    """The proxy, without rules."""
    shared_proxy.clear()
    return shared_proxy

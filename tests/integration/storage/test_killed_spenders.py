"""A third of the clients is killed, each a process of its own: what they held comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from decimal import Decimal

import pytest

from meterline.domain.authorizations import AuthorizationId
from meterline.domain.usage import LedgerEntry
from tests.integration.storage.spenders import Job
from tests.integration.storage.stores import REPOSITORY, Store
from tests.integration.storage.test_authorizations import NOW, World

CLIENTS = int(os.environ.get("METERLINE_SPENDERS", "96"))
LIMIT = Decimal(2 * CLIENTS) + Decimal("0.125")
"""About two thirds of what they ask for."""


@pytest.fixture
def world(store: Store, customer: str) -> World:
    made = World(store, customer)
    made.limit(LIMIT)
    return made


def list_new(store: Store, world: World, known: set[str]) -> Iterator[LedgerEntry]:
    """What the ledger took since the last time."""
    day = NOW.replace(hour=0)
    for entry in store.ledger(world.wire).events_between(
        world.customer, day, day + timedelta(days=1)
    ):
        if entry.key.id not in known:
            known.add(entry.key.id)
            yield entry


def test_with_a_third_of_the_clients_killed_all_comes_back_after_expiry(
    store: Store, world: World, customer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    entries: list[LedgerEntry] = []
    known: set[str] = set()

    def count_new() -> None:
        """What a delivery of the stream does; at no moment is more held and used than the limit."""
        found = list(list_new(store, world, known))
        world.count(*[(f"{each.quantity}", each.authorization) for each in found])
        entries.extend(found)
        assert world.state()[1] <= LIMIT

    job = Job.of(store, customer, CLIENTS, seed=CLIENTS)
    host = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.storage.spenders", json.dumps(asdict(job))],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
    )
    while True:
        count_new()
        try:
            told, _ = host.communicate(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
        break
    assert host.returncode == 0
    count_new()
    ends = json.loads(told)
    lived, killed = ends["lived"], ends["killed"]
    used, committed, holds = world.state()
    with capsys.disabled():
        print(
            f"\n{store.name}: {CLIENTS} clients, killed {killed}, lived {lived}; "
            f"used {used} of {LIMIT}, {holds} holds left, {committed} committed"
        )
    assert sum(killed.values()) == CLIENTS // 3
    assert set(lived) <= {"reported", "refused"}
    # Whoever lived is counted; of the killed ones, whoever had reported.
    assert lived["reported"] <= len(entries) <= sum(lived.values()) + sum(killed.values())
    assert used == sum((entry.quantity for entry in entries), Decimal(0))
    open_holds = world.budgets.get(customer, "credits").holds
    settled = {AuthorizationId.parse(entry.authorization or "").serial for entry in entries}
    assert not settled & set(open_holds), "each event settled its own"
    assert holds == len(open_holds) > 0, "nobody died while holding"
    assert used < committed <= LIMIT

    later = NOW + timedelta(hours=1)
    rest = world.ask(f"{LIMIT - used}", later)
    assert rest.authorization is not None
    assert world.state() == (used, LIMIT, 1), "exactly what is left, to the last unit"
    assert not world.ask("0.001", later).is_allowed
    world.authorize_usage.release(AuthorizationId.parse(rest.authorization), None, later)
    assert world.state() == (used, used, 0)

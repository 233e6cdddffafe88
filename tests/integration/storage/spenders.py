"""Clients that ask for leave, spend and report, each a process of its own; some are killed.

`python -m tests.integration.storage.spenders` reads a job as JSON from its first argument, forks
its clients, kills the victims at random moments and prints, as JSON, how far each client had come.
A victim that is through before its moment has come waits for it: how fast the machine is decides
how far victims come, and not how many there are.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from heapq import heappop, heappush
from typing import Any, BinaryIO

from meterline.domain.meters import Meter
from meterline.services.authorize_usage import AuthorizeUsage, Request
from tests.integration.storage.entries import make_entry
from tests.integration.storage.stores import Store, Tables
from tests.integration.storage.test_authorizations import NOW, build_authorize_usage

AT_ONCE = 32
_LONGEST_CALL_S = 0.04
_LONGEST_LIFE_S = 0.1
"""Within which a victim is killed."""
BEGAN, HELD, REFUSED, REPORTED = b"began", b"held", b"refused", b"reported"


@dataclass(frozen=True)
class Job:
    """Whose clients, how many, and which luck; `url` and `tables` are of the store."""

    store: str
    url: str
    tables: Mapping[str, str]
    customer: str
    clients: int
    seed: int

    @classmethod
    def of(cls, store: Store, customer: str, clients: int, seed: int) -> Job:
        """A job on a store whose tables are there."""
        return cls(store.name, store.url, asdict(store.tables), customer, clients, seed)

    def open(self) -> Store:
        """The store, from another process."""
        return Store(self.store, self.url, 1, Tables(**self.tables))


@dataclass(frozen=True)
class Victim:
    """When a client is killed: so long after it began, or in the midst of its model call."""

    delay_s: float
    in_call: bool

    @property
    def stages(self) -> frozenset[bytes]:
        """From when the delay counts: whichever comes first."""
        return frozenset({HELD, REFUSED} if self.in_call else {BEGAN})


def spend(job: Job, number: int, victim: Victim | None, tell: Callable[[bytes], object]) -> None:
    """One client: ask, work, report what was used."""
    tell(BEGAN)
    store, dice = job.open(), random.Random(f"{job.seed}/{number}")
    wire = store.wire()
    authorize_usage: AuthorizeUsage = build_authorize_usage(store, wire)
    estimate = Decimal(3) + Decimal(dice.randrange(7)) / 1000

    def read_estimate(_meter: Meter) -> Decimal:
        return estimate

    decision = authorize_usage(Request(job.customer, read_estimate), NOW)
    if not decision.is_allowed:
        tell(REFUSED)
        return
    tell(HELD)
    if victim is not None and victim.in_call:
        signal.pause()
    time.sleep(dice.uniform(0, _LONGEST_CALL_S))  # The model call.
    used = estimate - Decimal(dice.randrange(3)) / 1000
    entry = make_entry(
        job.customer,
        f"call-{number}",
        at=NOW,
        quantity=used,
        authorization=decision.authorization,
    )
    store.ledger(wire).record([entry])
    tell(REPORTED)


def fork_client(job: Job, number: int, victim: Victim | None) -> tuple[int, BinaryIO]:
    """The client's process, and what it tells."""
    theirs, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        os.nice(5)  # So that whoever kills gets its turn in time.
        try:
            spend(job, number, victim, lambda stage: os.write(ours, stage + b"\n"))
            if victim is not None:
                signal.pause()
            status = 0
        finally:
            os._exit(status)
    os.close(ours)
    return pid, os.fdopen(theirs, "rb", buffering=0)


def run_clients(job: Job) -> dict[str, Any]:
    """Run them all: how many came how far of those that lived, and of those that were killed."""
    dice = random.Random(job.seed)
    victims = {
        number: Victim(dice.uniform(0, _LONGEST_LIFE_S), in_call=dice.random() < 0.5)
        for number in dice.sample(range(job.clients), job.clients // 3)
    }
    waiting = list(range(job.clients))
    stages: dict[int, bytes] = {}
    alive: dict[int, int] = {}
    due: list[tuple[float, int]] = []
    lived: dict[str, int] = {}
    killed: dict[str, int] = {}
    with selectors.DefaultSelector() as told:
        while waiting or alive:
            while waiting and len(alive) < AT_ONCE:
                number = waiting.pop()
                alive[number], pipe = fork_client(job, number, victims.get(number))
                told.register(pipe, selectors.EVENT_READ, number)
            patience_s = max(0.0, due[0][0] - time.monotonic()) if due else None
            for key, _ in told.select(patience_s):
                number = key.data
                said = os.read(key.fd, 4096)
                if said:
                    stages[number] = said.split()[-1]
                    victim = victims.get(number)
                    if victim is not None and not victim.stages.isdisjoint(said.split()):
                        heappush(due, (time.monotonic() + victim.delay_s, number))
                    continue
                told.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
                _, status = os.waitpid(alive.pop(number), 0)
                ends = killed if os.WIFSIGNALED(status) else lived
                assert ends is killed or status == 0, f"client {number} ended with {status}"
                stage = stages[number].decode()
                ends[stage] = ends.get(stage, 0) + 1
            while due and due[0][0] <= time.monotonic():
                _, number = heappop(due)
                if number in alive:
                    # It is a child that nobody has waited for yet: its id is nobody else's.
                    os.kill(alive[number], signal.SIGKILL)
    return {"lived": lived, "killed": killed}


if __name__ == "__main__":
    print(json.dumps(run_clients(Job(**json.loads(sys.argv[1])))))

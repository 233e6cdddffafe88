"""The emitter's side of its queue, as the threads of one call use it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError
from typing import Any

from meterline.adapters.sqs_emission import SqsEmissionInbox
from meterline.domain.emission import BatchDue


class FakeSqs:
    """A queue that keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send_message(self, **message: Any) -> None:
        self.sent.append(message)


def test_groups_that_park_at_once_share_one_client() -> None:
    both_make = Barrier(2)
    made: list[FakeSqs] = []

    def make() -> Any:
        # Passed only when two threads make a client at the same time.
        with suppress(BrokenBarrierError):
            both_make.wait(timeout=0.5)
        made.append(FakeSqs())
        return made[-1]

    inbox = SqsEmissionInbox("queue", "dead", make)
    customers = [f"customer-{number}" for number in range(8)]

    def park(customer: str) -> None:
        due = BatchDue(customer, "credits", "1-0")
        inbox.park(due, dedupe="1-0:0", code="refused", message="no such customer")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(park, customers))
    assert len(made) == 1
    assert sorted(json.loads(each["MessageBody"])["customer"] for each in made[0].sent) == customers

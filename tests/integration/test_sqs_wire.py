"""Sending to SQS without boto3's client, against moto."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from botocore.session import Session
from moto.server import ThreadedMotoServer

from meterline.adapters.sqs_comparisons import SqsComparisons
from meterline.adapters.sqs_emission import SqsEmissionInbox
from meterline.adapters.sqs_emission_queue import SqsDeadLetters, SqsEmissionQueue
from meterline.adapters.sqs_notices import SqsNotices
from meterline.adapters.sqs_parked import SqsParked
from meterline.adapters.sqs_wire import SqsWire
from meterline.domain.emission import BatchDue, DeadLetters, HourDue
from meterline.domain.webhooks import Notice
from meterline.errors import StorageUnavailableError
from tests.integration.storage.test_wire import answer_with, http_answer


@pytest.fixture(autouse=True)
def _region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


class Queue:
    """A queue of a test's own."""

    def __init__(self, address: str, name: str) -> None:
        self.sqs = boto3.client("sqs", endpoint_url=address)
        attributes = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
        made = self.sqs.create_queue(QueueName=name, Attributes=attributes)  # type: ignore[arg-type]
        self.url = made["QueueUrl"]

    def bodies(self) -> list[str]:
        """What lies there."""
        told = self.sqs.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10)
        return [message["Body"] for message in told.get("Messages", [])]


def test_dues_reach_the_queue_in_their_customers_group_and_once(url: str) -> None:
    queue = Queue(url, "emissions.fifo")
    dues = [BatchDue(f"customer-{place}", "credits", "b1") for place in range(3)]
    sender = SqsEmissionQueue(queue.url, session=Session())
    sender.send(dues)
    sender.send(dues)
    assert sorted(json.loads(body)["customer"] for body in queue.bodies()) == [
        "customer-0",
        "customer-1",
        "customer-2",
    ]


def test_a_repair_is_not_taken_for_the_projections_own_message(url: str) -> None:
    queue = Queue(url, "repaired.fifo")
    due = BatchDue("acme", "credits", "b1")
    sender = SqsEmissionQueue(queue.url, session=Session())
    for renewal in ("step-1", "step-1", "reconciled:2026-11-22T10:00"):
        sender.send([due], renewal=renewal)
    # A receive gives no second message of a group whose first is in flight.
    found = 0
    while told := queue.sqs.receive_message(QueueUrl=queue.url).get("Messages"):
        found += len(told)
        queue.sqs.delete_message(QueueUrl=queue.url, ReceiptHandle=told[0]["ReceiptHandle"])
    assert found == 2


def test_a_notice_a_comparison_and_a_dead_letter_reach_their_queues(url: str) -> None:
    notices, comparisons, dead = (
        Queue(url, name) for name in ("notices", "comparisons.fifo", "dead-letters")
    )
    SqsNotices(notices.url).put(Notice("evt_1", "invoice.created", "in_1", "cus_1", 1_700_000_000))
    SqsComparisons(comparisons.url).request("acme")
    SqsDeadLetters(dead.url).put({"eventID": "1"}, "no counter can hold it")
    assert [json.loads(body)["id"] for body in notices.bodies()] == ["evt_1"]
    assert [json.loads(body) for body in comparisons.bodies()] == [{"customer": "acme"}]
    assert [json.loads(body) for body in dead.bodies()] == [{"eventID": "1"}]


def test_a_queue_that_is_not_there_or_does_not_answer_is_unavailable(url: str) -> None:
    wire = SqsWire(f"{url}/123456789012/nowhere")
    with pytest.raises(StorageUnavailableError, match="SendMessage: 400"):
        wire.send_message(QueueUrl=f"{url}/123456789012/nowhere", MessageBody="{}")
    with pytest.raises(StorageUnavailableError, match="SendMessage"):
        SqsWire("http://127.0.0.1:9/1/q").send_message(QueueUrl="q", MessageBody="{}")


def test_what_is_parked_is_seen_removed_or_given_back(url: str) -> None:
    queue = Queue(url, "parked.fifo")
    SqsEmissionQueue(queue.url, session=Session()).send(
        [BatchDue("acme", "credits", "b1"), BatchDue("acme", "credits", "b2")]
    )
    parked = SqsParked(queue.url, SqsWire(queue.url))
    with parked.look() as messages:
        assert {message.due for message in messages} == {
            BatchDue("acme", "credits", "b1"),
            BatchDue("acme", "credits", "b2"),
        }
        parked.remove(messages[0])
    assert messages[1].due is not None
    assert parked.parked() == DeadLetters(frozenset({messages[1].due}))


def test_what_a_defect_put_there_is_told_from_the_rest(url: str) -> None:
    dead = Queue(url, "parked-defects.fifo")
    inbox = SqsEmissionInbox("unused", dead.url, lambda: boto3.client("sqs", endpoint_url=url))
    batch = BatchDue("acme", "credits", "b1")
    hour = HourDue("acme", "tokens", datetime(2026, 11, 22, 6, tzinfo=UTC))
    other = BatchDue("other", "credits", "b2")
    for due, code in ((batch, "refused"), (hour, "defect"), (other, "defect")):
        inbox.park(due, dedupe="1", code=code, message="why")
    found = SqsParked(dead.url, SqsWire(dead.url)).parked()
    assert found == DeadLetters(frozenset({batch, hour, other}), frozenset({hour, other}))
    assert [found.keep_back(due) for due in (batch, hour, other)] == [False, True, True]
    # What is not seen may lie behind the defect of the same customer and meter.
    assert found.keep_back(BatchDue("other", "credits", "b3"))
    assert not found.keep_back(BatchDue("acme", "credits", "b4"))


class SomeServers:
    """A queue whose messages lie on servers that are only asked by those who wait."""

    def __init__(self, sqs: Any) -> None:
        self._sqs = sqs

    def receive_message(self, **request: Any) -> Any:
        return self._sqs.receive_message(**request) if request["WaitTimeSeconds"] else {}

    def __getattr__(self, operation: str) -> Any:
        return getattr(self._sqs, operation)


def test_what_is_parked_is_looked_for_on_all_of_the_queues_servers(url: str) -> None:
    queue = Queue(url, "parked-apart.fifo")
    due = BatchDue("acme", "credits", "b1")
    SqsEmissionQueue(queue.url, session=Session()).send([due])
    asked: Any = SomeServers(queue.sqs)
    assert SqsParked(queue.url, asked).parked() == DeadLetters(frozenset({due}))


def test_an_answer_that_was_cut_on_its_way_is_asked_for_again() -> None:
    with answer_with(
        http_answer("200 OK", b'{"Messages": [{"Bo'), http_answer("200 OK", b'{"Messages": []}')
    ) as url:
        assert SqsWire(f"{url}/1/q").receive_message(QueueUrl=f"{url}/1/q") == {"Messages": []}

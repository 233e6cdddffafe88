"""The sender: what each answer means, and that nothing but a receipt settles a report."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meterline_client.errors import ServiceUnreachableError
from meterline_client.sender import MAX_DELAY_S, Sender, SenderSettings
from meterline_client.service_connection import Answer
from meterline_client.signals import SignalBoard
from meterline_client.spool import Spool

Reply = Callable[[list[dict[str, str]]], Answer]


def receipt(events: list[dict[str, str]], *rejected: int) -> Answer:
    refused = [
        {"index": n, "id": events[n]["id"], "code": "meter_unknown", "message": "no such meter"}
        for n in rejected
    ]
    body = {"accepted": len(events) - len(refused), "duplicates": 0, "ignored": 0}
    return Answer(202, json.dumps(body | {"rejected": refused}).encode(), None)


class Service:
    """Answers as scripted, then well; remembers the ids of every report."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.reports: list[list[str]] = []
        self.taken: list[str] = []

    def post(
        self,
        path: str,
        body: bytes,
        *,
        timeout_s: float | None = None,
        is_repeatable: bool = True,
    ) -> Answer:
        assert is_repeatable
        assert path == "/v1/usage"
        events = json.loads(body)["events"]
        self.reports.append([event["id"] for event in events])
        answer = self.replies.pop(0)(events) if self.replies else receipt(events)
        if answer.status == 202:
            self.taken += [event["id"] for event in events]
        return answer

    def close(self) -> None:
        pass


def answer(status: int, body: bytes = b"{}", retry_after_s: float | None = None) -> Reply:
    return lambda _: Answer(status, body, retry_after_s)


def no_answer(_: object) -> Answer:
    raise ServiceUnreachableError("reset")


class Fixture:
    """A sender on a fake service, with its spool and signals."""

    def __init__(self, directory: Path, service: Service, **settings: int) -> None:
        self.signals = SignalBoard()
        self.spool = Spool(directory, self.signals)
        self.service = service
        self.sender = Sender(
            self.spool,
            service,
            self.signals,
            SenderSettings(linger_s=0.001, **settings),
            rng=random.Random(5),
        )

    def append(self, *names: str) -> None:
        for name in names:
            event = {"id": name, "source": "s", "subject": "acme", "data": {}}
            self.spool.append(json.dumps(event).encode() + b"\n")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Fixture]]:
    made: list[Fixture] = []

    def make_fixture(*replies: Reply, **settings: int) -> Fixture:
        made.append(Fixture(tmp_path, Service(*replies), **settings))
        return made[-1]

    yield make_fixture
    for fixture in made:
        fixture.sender.stop(0.1)


Make = Callable[..., Fixture]


def test_a_receipt_settles_a_report(make: Make) -> None:
    fixture = make()
    fixture.append("a", "b")
    assert fixture.sender.flush(60)
    assert fixture.service.reports == [["a", "b"]]
    assert fixture.signals.counts == {}


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_all_is_sent_again_after_a_failure_of_the_service(make: Make, status: int) -> None:
    fixture = make(answer(status))
    fixture.append("a", "b")
    assert fixture.sender.flush(60)
    assert fixture.service.reports == [["a", "b"]] * 2
    assert fixture.signals.counts == {"service_unreachable": 1}


def test_all_is_sent_again_when_no_answer_came(make: Make) -> None:
    fixture = make(no_answer, no_answer)
    fixture.append("a")
    assert fixture.sender.flush(60)
    assert fixture.service.reports == [["a"]] * 3


@pytest.mark.parametrize("status", [200, 201, 204, 301, 401, 403, 404, 405, 409])
def test_anything_else_keeps_the_events_and_says_so(make: Make, status: int) -> None:
    fixture = make(answer(status))
    fixture.append("a")
    assert fixture.sender.flush(60)
    assert fixture.service.reports == [["a"]] * 2
    assert fixture.signals.counts == {"service_refused": 1}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>welcome</html>",
        b"[]",
        b'{"accepted": 2}',
        b'{"accepted": 1, "duplicates": 0, "ignored": 0, "rejected": []}',
        b'{"accepted": "2", "duplicates": 0, "ignored": 0, "rejected": []}',
        b'{"accepted": 1, "duplicates": 0, "ignored": 0, "rejected": [{"index": 2}]}',
        b'{"accepted": 1, "duplicates": 0, "ignored": 0, "rejected": ["b"]}',
    ],
)
def test_a_202_that_does_not_add_up_is_no_receipt(make: Make, body: bytes) -> None:
    fixture = make(answer(202, body))
    fixture.append("a", "b")
    assert fixture.sender.flush(60)
    assert len(fixture.service.reports) == 2
    assert fixture.signals.counts == {"service_refused": 1}


def test_rejected_events_are_final_and_the_others_are_taken(make: Make, tmp_path: Path) -> None:
    fixture = make(lambda events: receipt(events, 1))
    fixture.append("a", "b", "c")
    assert fixture.sender.flush(60)
    assert len(fixture.service.reports) == 1
    (line,) = (tmp_path / "rejected.jsonl").read_text().splitlines()
    note = json.loads(line)
    assert (note["code"], note["event"]["id"]) == ("meter_unknown", "b")
    assert fixture.signals.counts == {"event_rejected": 1}


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_body_that_is_refused_is_halved_until_the_bad_event_stands_alone(
    make: Make, tmp_path: Path, status: int
) -> None:
    def refuse_bad(events: list[dict[str, str]]) -> Answer:
        if any(event["id"] == "bad" for event in events):
            return Answer(status, b'{"code": "event_unreadable", "detail": "no"}', None)
        return receipt(events)

    fixture = make(*[refuse_bad] * 30)
    fixture.append("a", "b", "c", "bad", "d", "e")
    assert fixture.sender.flush(60)
    assert sorted(fixture.service.taken) == ["a", "b", "c", "d", "e"]
    (line,) = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["event"]["id"] == "bad"


def test_reports_are_bounded_in_events(make: Make) -> None:
    fixture = make(max_batch_events=4)
    names = [f"e{number}" for number in range(10)]
    fixture.append(*names)
    assert fixture.sender.flush(60)
    assert fixture.service.reports == [names[:4], names[4:8], names[8:]]


def test_delays_double_with_jitter_up_to_a_minute(make: Make) -> None:
    sender = make().sender
    delays_s = [sender._delay("service_unreachable", "x", None) for _ in range(20)]
    for number, delay_s in enumerate(delays_s):
        full_s = min(MAX_DELAY_S, 0.25 * 2**number)
        assert full_s / 2 <= delay_s <= full_s
    assert len(set(delays_s)) == 20


def test_retry_after_is_heeded_but_not_without_end(make: Make) -> None:
    sender = make().sender
    assert sender._delay("service_unreachable", "x", 40.0) == 40.0
    assert sender._delay("service_unreachable", "x", 1e9) == 300.0


def test_a_long_outage_is_told_ever_less_often(make: Make) -> None:
    fixture = make()
    for _ in range(100):
        fixture.sender._delay("service_unreachable", "x", None)
    assert fixture.signals.counts == {"service_unreachable": 7}


def test_a_flush_gives_up_in_time_and_what_was_kept_stays(make: Make) -> None:
    fixture = make(*[no_answer] * 50)
    fixture.append("a")
    assert fixture.sender.flush(0.05) is False
    assert fixture.spool.has_work()


def test_a_service_that_raises_what_it_must_not_does_not_end_the_sender(make: Make) -> None:
    def fail(_: object) -> Answer:
        raise ZeroDivisionError

    fixture = make(fail)
    fixture.append("a")
    assert fixture.sender.flush(60)
    assert fixture.signals.counts == {"sender_failed": 1}


def test_what_is_appended_during_a_report_is_sent_after_it(make: Make) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait(events: list[dict[str, str]]) -> Answer:
        entered.set()
        assert leave.wait(60)
        return receipt(events)

    fixture = make(wait)
    fixture.append("a")
    fixture.sender.wake()
    assert entered.wait(60)
    fixture.append("b")
    fixture.sender.wake()
    leave.set()
    assert fixture.sender.flush(60)
    assert fixture.service.reports == [["a"], ["b"]]

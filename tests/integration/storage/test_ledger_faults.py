"""The ledger when the storage answers late, badly or not at all."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from meterline.adapters.dynamodb_ledger import STATEMENTS_PER_CALL, DynamoLedger
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.catalog import load_meters
from meterline.catalog.rate_cards import load_rate_card
from meterline.domain.rating import RateCard
from meterline.errors import StorageError, StorageUnavailableError
from meterline.ports import Recorded
from meterline.services.report_usage import ReportUsage
from tests.integration.storage.conftest import FaultProxy
from tests.integration.storage.entries import NOON, make_entry
from tests.integration.storage.stores import Store, make_session

THROTTLED_STATEMENTS = (
    "InternalServerError",
    "ProvisionedThroughputExceeded",
    "RequestLimitExceeded",
    "ThrottlingError",
    "TransactionConflict",
)
LONG_S = 30.0
"""Longer than any deadline given here, on a busy machine too; without it, it would be a minute."""
LOST_ANSWER = {"response": {"abort_bytes": 1}, "times": 1}


@dataclass
class StatementFaults(DynamoWire):
    """A wire on which some statements of each batch are refused `times` times with `code`."""

    inner: DynamoWire
    code: str
    times: int
    lose_answers: bool = False
    """Refused or not, the statement is carried out: the refusal is about the answer."""
    refused: Counter[str] = field(default_factory=Counter)

    def call(
        self, operation: str, request: Mapping[str, Any], *, deadline_s: float = 60.0
    ) -> dict[str, Any]:
        if operation != "BatchExecuteStatement":
            return self.inner.call(operation, request, deadline_s=deadline_s)
        statements = request["Statements"]
        faulty = [index for index in range(len(statements)) if self._refuse(statements[index])]
        passed = [
            statement
            for index, statement in enumerate(statements)
            if index not in faulty or self.lose_answers
        ]
        answers: list[Any] = []
        if passed:
            answered = self.inner.call(
                operation, {**request, "Statements": passed}, deadline_s=deadline_s
            )
            answers = answered["Responses"]
        refusal = {"Error": {"Code": self.code, "Message": "made up"}}
        if self.lose_answers:
            told = [refusal if i in faulty else answer for i, answer in enumerate(answers)]
        else:
            rest = iter(answers)
            told = [refusal if i in faulty else next(rest) for i in range(len(statements))]
        return {"Responses": told}

    def _refuse(self, statement: Mapping[str, Any]) -> bool:
        key = statement["Parameters"][0]["S"]
        if not key.endswith(("1", "4")) or self.refused[key] >= self.times:
            return False
        self.refused[key] += 1
        return True


@pytest.fixture
def local(dynamodb_local_store: Store) -> Store:
    """DynamoDB Local alone: what happens before the storage is the same for each."""
    return dynamodb_local_store


@pytest.mark.parametrize("lose_answers", [False, True])
@pytest.mark.parametrize("code", THROTTLED_STATEMENTS)
def test_statements_that_are_throttled_are_written_by_a_later_try(
    local: Store, customer: str, code: str, lose_answers: bool
) -> None:
    wire = StatementFaults(local.wire(), code, times=2, lose_answers=lose_answers)
    entries = [make_entry(customer, f"req_{number}") for number in range(30)]
    assert Counter(local.ledger(wire).record(entries)) == {Recorded.ACCEPTED: 30}
    assert set(wire.refused.values()) == {2}, "each faulty statement was refused twice"
    assert set(local.ledger().record(entries)) == {Recorded.DUPLICATE}


def test_statements_that_stay_throttled_are_undecided_and_cost_the_others_nothing(
    local: Store, customer: str
) -> None:
    wire = StatementFaults(local.wire(), "ThrottlingError", times=10**6)
    entries = [make_entry(customer, f"req_{number}") for number in range(30)]
    began_s = time.monotonic()
    outcomes = local.ledger(wire, deadline_s=0.8).record(entries)
    assert time.monotonic() - began_s < LONG_S
    for number, outcome in enumerate(outcomes):
        expected = Recorded.UNDECIDED if number % 10 in (1, 4) else Recorded.ACCEPTED
        assert outcome is expected, number
    again = local.ledger().record(entries)
    for number, outcome in enumerate(again):
        expected = Recorded.ACCEPTED if number % 10 in (1, 4) else Recorded.DUPLICATE
        assert outcome is expected, number


def test_a_statement_that_is_refused_for_good_is_an_error(local: Store, customer: str) -> None:
    wire = StatementFaults(local.wire(), "AccessDenied", times=10**6)
    entries = [make_entry(customer, f"req_{number}") for number in range(10)]
    with pytest.raises(StorageError, match="AccessDenied"):
        local.ledger(wire).record(entries)


@pytest.mark.parametrize("count", [1, STATEMENTS_PER_CALL])
def test_our_own_write_is_known_as_ours_when_its_answer_was_lost(
    local: Store, customer: str, proxy: FaultProxy, count: int
) -> None:
    entries = [make_entry(customer, f"req_{number}") for number in range(count)]
    operation = "PutItem" if count == 1 else "BatchExecuteStatement"
    proxy.set_rules({"operation": operation, **LOST_ANSWER})
    ledger = local.ledger(local.wire(proxy.url, timeout_s=0.7))
    assert set(ledger.record(entries)) == {Recorded.ACCEPTED}
    assert proxy.count_fired() == 1
    assert set(ledger.record(entries)) == {Recorded.DUPLICATE}


def test_a_write_whose_answers_are_all_lost_is_undecided_and_a_duplicate_later(
    local: Store, customer: str, proxy: FaultProxy
) -> None:
    entries = [make_entry(customer, f"req_{number}") for number in range(40)]
    proxy.set_rules({"operation": "BatchExecuteStatement", "response": {"abort_bytes": 1}})
    ledger = local.ledger(local.wire(proxy.url), deadline_s=1.0)
    assert set(ledger.record(entries)) == {Recorded.UNDECIDED}
    ledger = local.ledger()
    assert set(ledger.record(entries)) == {Recorded.DUPLICATE}
    assert len(list(ledger.events_between(customer, NOON, NOON + timedelta(hours=1)))) == 40


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ProvisionedThroughputExceededException", 400),
        ("ThrottlingException", 400),
        ("RequestLimitExceeded", 400),
        ("InternalServerError", 500),
        ("ServiceUnavailable", 503),
    ],
)
def test_a_call_that_is_throttled_or_fails_is_made_again(
    local: Store, customer: str, proxy: FaultProxy, code: str, status: int
) -> None:
    proxy.set_rules(
        {
            "operation": "BatchExecuteStatement",
            "error": {"code": code, "status": status},
            "times": 3,
        }
    )
    entries = [make_entry(customer, f"req_{number}") for number in range(20)]
    assert set(local.ledger(local.wire(proxy.url)).record(entries)) == {Recorded.ACCEPTED}
    assert proxy.count_fired() == 3


def test_a_storage_that_only_throttles_leaves_all_undecided_within_the_deadline(
    local: Store, customer: str, proxy: FaultProxy
) -> None:
    proxy.set_rules({"error": {"code": "ProvisionedThroughputExceededException", "status": 400}})
    entries = [make_entry(customer, f"req_{number}") for number in range(1000)]
    began_s = time.monotonic()
    outcomes = local.ledger(local.wire(proxy.url), deadline_s=1.0).record(entries)
    assert time.monotonic() - began_s < LONG_S
    assert set(outcomes) == {Recorded.UNDECIDED}
    proxy.clear()
    assert list(local.ledger().events_between(customer, NOON, NOON + timedelta(hours=1))) == []


def test_a_storage_that_hangs_leaves_a_thousand_events_undecided_within_the_deadline(
    local: Store, customer: str, proxy: FaultProxy
) -> None:
    proxy.set_rules({"timeout_ms": 60_000})
    wire = local.wire(proxy.url, timeout_s=0.5)
    entries = [make_entry(customer, f"req_{number}") for number in range(1000)]
    began_s = time.monotonic()
    outcomes = local.ledger(wire, deadline_s=1.0).record(entries)
    assert time.monotonic() - began_s < LONG_S
    assert set(outcomes) == {Recorded.UNDECIDED}
    # One deadline for all: each thread began calls for a second, and not one for each part.
    assert 0 < proxy.count_fired() < len(entries) // STATEMENTS_PER_CALL


def test_a_storage_that_is_down_leaves_all_undecided(customer: str) -> None:
    with socket.socket() as taken:  # Nobody listens there, and nobody else can.
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        wire = DynamoWire(make_session(), endpoint_url=url)
        ledger = DynamoLedger(wire, "events", deadline_s=1.0)
        outcomes = ledger.record([make_entry(customer, f"req_{number}") for number in range(200)])
        assert set(outcomes) == {Recorded.UNDECIDED}
        with pytest.raises(StorageUnavailableError):
            ledger.find(make_entry(customer, "req_0").key)


def test_when_only_the_comparison_fails_the_known_are_undecided_and_the_new_accepted(
    local: Store, customer: str, proxy: FaultProxy
) -> None:
    entries = [make_entry(customer, f"req_{number}") for number in range(20)]
    local.ledger().record(entries[:10])
    proxy.set_rules({"operation": "BatchGetItem", "error": {"code": "InternalServerError"}})
    ledger = local.ledger(local.wire(proxy.url), deadline_s=0.5)
    outcomes = ledger.record(entries)
    assert outcomes == [Recorded.UNDECIDED] * 10 + [Recorded.ACCEPTED] * 10


@dataclass
class ShortReads(DynamoWire):
    """A wire on which a batch read gives three items and leaves the other keys unprocessed, as
    throttling does; from read `answered` on, it gives none."""

    inner: DynamoWire
    answered: int = 10**6
    reads: int = 0

    def call(
        self, operation: str, request: Mapping[str, Any], *, deadline_s: float = 60.0
    ) -> dict[str, Any]:
        if operation != "BatchGetItem":
            return self.inner.call(operation, request, deadline_s=deadline_s)
        self.reads += 1
        if self.reads > self.answered:
            return {"Responses": {}, "UnprocessedKeys": request["RequestItems"]}
        [(table, asked)] = request["RequestItems"].items()
        first, rest = asked["Keys"][:3], asked["Keys"][3:]
        answer = self.inner.call(
            operation, {"RequestItems": {table: {**asked, "Keys": first}}}, deadline_s=deadline_s
        )
        unprocessed = {table: {**asked, "Keys": rest}} if rest else {}
        return {**answer, "UnprocessedKeys": unprocessed}


def test_keys_that_a_read_left_out_are_read_again(local: Store, customer: str) -> None:
    entries = [make_entry(customer, f"req_{number}") for number in range(14)]
    local.ledger().record(entries)
    wire = ShortReads(local.wire())
    assert set(local.ledger(wire).record(entries)) == {Recorded.DUPLICATE}
    assert wire.reads == 5
    assert len(local.ledger(wire).list_digests([entry.key.text for entry in entries])) == 14


def test_entries_whose_keys_are_never_read_stay_undecided(local: Store, customer: str) -> None:
    entries = [make_entry(customer, f"req_{number}") for number in range(14)]
    local.ledger().record(entries)
    outcomes = Counter(
        local.ledger(ShortReads(local.wire(), answered=1), deadline_s=1.0).record(entries)
    )
    assert outcomes[Recorded.UNDECIDED] >= 11
    assert outcomes.keys() <= {Recorded.DUPLICATE, Recorded.UNDECIDED}


def test_what_cannot_be_rated_any_more_is_not_refused_while_its_keys_are_not_read(
    local: Store, customer: str
) -> None:
    accounts = local.accounts()
    accounts.put_customer(customer, {"name": "Acme", "plan": "pro"}, NOON)
    data = {"meter": "credits", "provider": "anthropic", "model": "claude-sonnet-4-5"}
    events = [
        {
            "specversion": "1.0",
            "id": f"req_{number}",
            "source": "backend",
            "type": "meterline.usage",
            "subject": customer,
            "data": {**data, "usage": {"input_tokens": 1200}},
        }
        for number in range(5)
    ]
    report = ReportUsage(local.ledger(), accounts, load_meters(), load_rate_card())
    assert report(events, NOON).accepted == 5
    wire, later = ShortReads(local.wire(), answered=1), RateCard("later", [])
    told = ReportUsage(local.ledger(wire), accounts, load_meters(), later)(events, NOON)
    assert (told.undecided, told.rejected) == (5, [])
    told = ReportUsage(local.ledger(), accounts, load_meters(), later)(events, NOON)
    assert (told.duplicates, told.undecided, told.rejected) == (5, 0, [])

"""Many clients that report the same ids at once: each event is accepted once and billed once."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import botocore.session
import urllib3

from infra.local.stack import REGION, LocalStack
from meterline.adapters.dynamodb_ledger import DynamoLedger
from meterline.adapters.dynamodb_totals import DynamoTotals
from meterline.adapters.dynamodb_wire import DynamoWire
from tests.e2e.billed import BilledUsage, await_value, make_customer
from tests.e2e.conftest import Answer, Api

CLIENTS = 64
EVENTS = 1_000
PER_CALL = (100, 250)
ANSWER_TIMEOUT_S = 240.0
"""64,000 events are a while's work for an emulator that is one process, and calls wait in line."""
NOW = datetime.now(UTC)
Json = dict[str, Any]


def make_events(customer: str) -> list[Json]:
    """Events of 1,000 + 6 n thousandths of a credit each: at $3 a million input tokens."""
    return [
        {
            "specversion": "1.0",
            "id": f"call-{number}",
            "source": "tests/crowd",
            "type": "meterline.usage",
            "subject": customer,
            "time": (NOW - timedelta(milliseconds=number)).isoformat(),
            "data": {
                "meter": "credits",
                "user": f"u_{number % 7}",
                "action": "report.generate",
                "provider": "anthropic",
                "model": "claude-sonnet-4-5",
                "usage": {"input_tokens": 1_000 + number, "output_tokens": number},
            },
        }
        for number in range(EVENTS)
    ]


SUB_UNITS = sum(1_000 + 6 * number for number in range(EVENTS))


def cut(events: list[Json], dice: random.Random) -> Iterator[list[Json]]:
    """The events in an order of the client's own, in calls of sizes of its own."""
    shuffled = dice.sample(events, len(events))
    while shuffled:
        size = dice.randint(*PER_CALL)
        yield shuffled[:size]
        shuffled = shuffled[size:]


def test_64_clients_with_the_same_1000_ids_are_one_client(
    api: Api, stack: LocalStack, stripe_url: str
) -> None:
    customer = "crowd-of-64"
    billing_customer = make_customer(api, stripe_url, customer)
    events = make_events(customer)
    together = Barrier(CLIENTS)
    http = urllib3.PoolManager(maxsize=CLIENTS, retries=False, timeout=ANSWER_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {api.usage_key}", "Content-Type": "application/json"}

    def report(client: int) -> list[Answer]:
        calls = [json.dumps(call).encode() for call in cut(events, random.Random(client))]
        together.wait(60)
        answers = [
            http.request("POST", f"{api.url}/v1/usage", body=call, headers=headers)
            for call in calls
        ]
        return [Answer(answer.status, answer.headers, answer.data) for answer in answers]

    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = [answer for own in clients.map(report, range(CLIENTS)) for answer in own]

    assert [answer.body for answer in answers if answer.status != 202] == []
    told = [answer.told for answer in answers]
    assert sum(each["accepted"] for each in told) == EVENTS
    assert sum(each["duplicates"] for each in told) == (CLIENTS - 1) * EVENTS
    assert [each["rejected"] for each in told if each["rejected"]] == []

    session = botocore.session.Session()
    session.set_credentials("test", "test")
    session.set_config_variable("region", REGION)
    wire = DynamoWire(session, endpoint_url=stack.aws_url)
    ledger = DynamoLedger(wire, stack.outputs["EventsTable"])
    held = list(
        ledger.events_between(customer, NOW - timedelta(minutes=1), NOW + timedelta(minutes=1))
    )
    assert len(held) == EVENTS
    assert {entry.key.id for entry in held} == {event["id"] for event in events}
    assert sum(entry.quantity for entry in held) * 1_000 == SUB_UNITS

    totals = DynamoTotals(wire, stack.outputs["TotalsTable"], stack.outputs["EmissionsTable"])
    days = {f"{entry.at:%Y-%m-%d}" for entry in held}

    def read_totals() -> tuple[int, int]:
        found = [totals.day_total(customer, "credits", day) for day in days]
        return sum(each.sub_units for each in found), sum(each.events for each in found)

    await_value(read_totals, (SUB_UNITS, EVENTS))

    billed = BilledUsage(stripe_url, billing_customer, "meterline_credits")
    await_value(billed.total, SUB_UNITS)
    calls = billed.calls()
    assert len(calls) == EVENTS
    assert {call["identifier"] for call in calls} == {entry.key.identifier for entry in held}


def test_64_clients_with_one_event_are_told_of_one(api: Api) -> None:
    customer = "crowd-of-one"
    assert api.put_customer(customer).status == 200
    [event] = make_events(customer)[:1]
    together = Barrier(CLIENTS)

    def report(_: int) -> Answer:
        together.wait(60)
        return api.report(event)

    with ThreadPoolExecutor(CLIENTS) as clients:
        told = [answer.told for answer in clients.map(report, range(CLIENTS))]
    assert sorted((each["accepted"], each["duplicates"]) for each in told) == [
        *[(0, 1)] * (CLIENTS - 1),
        (1, 0),
    ]


def test_64_clients_that_contradict_each_other_leave_one_event(api: Api) -> None:
    customer = "crowd-at-odds"
    assert api.put_customer(customer).status == 200
    [event] = make_events(customer)[:1]
    together = Barrier(CLIENTS)

    def report(client: int) -> Answer:
        contradiction = {**event, "data": {**event["data"], "user": f"u_{client}"}}
        together.wait(60)
        return api.report(contradiction)

    with ThreadPoolExecutor(CLIENTS) as clients:
        told = [answer.told for answer in clients.map(report, range(CLIENTS))]
    assert sum(each["accepted"] for each in told) == 1
    codes = [rejection["code"] for each in told for rejection in each["rejected"]]
    assert codes == ["conflict"] * (CLIENTS - 1)

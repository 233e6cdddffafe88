"""A look at a dashboard with ever more events behind it: `python -m tests.bench.dashboard_load`.

Counters and the ledger's entries around the period's start are written straight into DynamoDB
Local, as many as a customer of that size would have, and as `project_usage` counts them in a period
that it knows of. Where it did not, as when a plan is changed within a day, the first look reads
that day's events: this is measured too. Read units are DynamoDB Local's own; the time
is of the deployed function under the Lambda runtime emulator, invocation and all, when it is warm.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

import boto3
from rich.console import Console
from rich.table import Table

from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_catalog import DynamoPlans
from meterline.adapters.dynamodb_ledger import DynamoLedger, write_item
from meterline.adapters.dynamodb_overviews import DynamoOverviews
from meterline.adapters.dynamodb_usage import DynamoUsage
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.catalog import load_meters
from meterline.domain.api_keys import ApiKey, Scope, hash_key
from meterline.domain.customers import Role, User
from meterline.domain.cuts import mark_cut
from meterline.domain.usage import EventKey, LedgerEntry
from meterline.services.show_usage import ShowUsage
from tests.bench.built_layers import build_layers
from tests.bench.cold_starts import emulated_runtime, invoke, link_runtime
from tests.bench.local_dynamodb import AWS, CountingWire, create_tables
from tests.bench.measuring import FUNCTIONS
from tests.bench.results import Row
from tests.dashboard_fakes import make_subscription
from tests.dynamodb_local import is_installed, run_dynamodb_local

SIZES = (1_000, 100_000, 1_000_000)
"""Events of the period so far."""
GOAL_MS = 50.0
USERS = 20
ACTIONS = 8
_KEY = "bench-dashboard"
_HISTORY_DAYS = 56
_PERIOD_DAYS = 19
_NAMES_PER_ITEM = 16
_CALLS = 60


@dataclass(frozen=True, slots=True)
class Load:
    """One size: read units of looks, and what they take."""

    events: int
    unknown_units: float
    """Of the first look at a period that was not known when its first day was counted."""
    first_units: float
    units: float
    first_ms: float
    warm_ms: float
    slow_ms: float
    """The 95th percentile of warm calls."""


class _NoComparisons:
    def request(self, customer: str) -> None:
        """Nobody bills these customers."""


def measure() -> list[Load]:
    """All sizes in one run."""
    layers = build_layers()
    with run_dynamodb_local() as url, tempfile.TemporaryDirectory(prefix="meterline-") as directory:
        environment = {**AWS, "AWS_ENDPOINT_URL_DYNAMODB": url}
        os.environ.update(environment)
        dynamodb = boto3.client("dynamodb", endpoint_url=url, region_name="us-east-1")
        tables = create_tables(dynamodb, "dashboard")
        now = datetime.now(UTC)
        DynamoAccounts(DynamoWire(endpoint_url=url), tables["ACCOUNTS_TABLE"]).add_key(
            ApiKey(hash_key(_KEY), "bench", frozenset({Scope.ADMIN}), now)
        )
        for size in SIZES:
            seed(dynamodb, tables, size, now)
        runtime = link_runtime(Path(directory))
        path = [FUNCTIONS / "show_usage", *layers, runtime]
        with emulated_runtime("serve_dashboard", path, environment | tables) as port:
            call(port, SIZES[0])
            return [_measure_size(url, tables, port, size, now) for size in SIZES]


def _measure_size(url: str, tables: Mapping[str, str], port: int, size: int, now: datetime) -> Load:
    """The very first look of a customer's period is the function's."""
    first_ms = call(port, size)
    times = sorted(call(port, size) for _ in range(_CALLS))
    wire = CountingWire(endpoint_url=url)
    show = ShowUsage(
        DynamoOverviews(wire, tables["ACCOUNTS_TABLE"]),
        DynamoUsage(wire, tables["TOTALS_TABLE"]),
        DynamoLedger(wire, tables["EVENTS_TABLE"]),
        DynamoPlans(wire, tables["ACCOUNTS_TABLE"]),
        load_meters(),
        _NoComparisons(),
    )
    show(name_customer(SIZES[0]), now)  # The catalog is read once a minute.
    wire.reads = 0.0
    report = show(name_customer(size), now)
    first_units, wire.reads = wire.reads, 0.0
    # Around 19 days of it; what lies before the period's start is taken off to the event.
    assert 0.9 * size < report.events < 1.1 * size, report.events
    assert show(name_customer(size), now).events == report.events
    units, wire.reads = wire.reads, 0.0
    start = report.period.start
    boto3.client("dynamodb", endpoint_url=url, region_name="us-east-1").update_item(
        TableName=tables["TOTALS_TABLE"],
        Key={
            "pk": {"S": f"{name_customer(size)}#credits"},
            "sk": {"S": f"day#{start:%Y-%m-%d}"},
        },
        UpdateExpression="REMOVE #known",
        ExpressionAttributeNames={"#known": f"n@{mark_cut(start)}"},
    )
    assert show(name_customer(size), now).events == report.events
    return Load(
        size,
        wire.reads,
        first_units,
        units,
        first_ms,
        median(times),
        times[int(len(times) * 0.95)],
    )


def call(port: int, size: int) -> float:
    """Milliseconds of one invocation for the customer of that size."""
    path = f"/v1/customers/{name_customer(size)}/usage"
    event = {
        "version": "2.0",
        "routeKey": "GET /v1/customers/{id}/usage",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"authorization": f"Bearer {_KEY}"},
        "requestContext": {
            "accountId": "1",
            "apiId": "a",
            "domainName": "a.execute-api.us-east-1.amazonaws.com",
            "http": {"method": "GET", "path": path, "protocol": "HTTP/1.1", "sourceIp": "::1"},
            "requestId": "r",
            "routeKey": "GET /v1/customers/{id}/usage",
            "stage": "$default",
            "timeEpoch": 0,
        },
        "isBase64Encoded": False,
    }
    began_s = time.perf_counter()
    answer = invoke(port, event)
    took_ms = (time.perf_counter() - began_s) * 1000
    assert answer["statusCode"] == 200, answer
    assert json.loads(answer["body"])["customer"]["id"] == name_customer(size)
    return took_ms


def name_customer(size: int) -> str:
    """The customer with so many events."""
    return f"customer-{size}"


def seed(dynamodb: Any, tables: Mapping[str, str], size: int, now: datetime) -> None:
    """Write the customer: its account, its counters, and the ledger around the period's start."""
    customer = name_customer(size)
    start = (now - timedelta(days=_PERIOD_DAYS)).replace(
        hour=9, minute=23, second=41, microsecond=0
    )
    wire = DynamoWire(endpoint_url=dynamodb.meta.endpoint_url)
    accounts = DynamoAccounts(wire, tables["ACCOUNTS_TABLE"])
    told = {"name": customer, "plan": "pro", "billing_customer": None, "email": None}
    accounts.put_customer(customer, told, now)
    accounts.put_users(
        customer, [User(f"user-{place}", f"User {place}", None, Role.MEMBER) for place in range(20)]
    )
    accounts.put_customer(customer, {**told, "billing_customer": f"cus_{size}"}, now)
    subscription = make_subscription(start, start + timedelta(days=30), synced_at=now)
    accounts.replace_subscription(customer, f"cus_{size}", None, subscription)
    # Nobody bills it any more, so that no look asks for a comparison.
    dynamodb.update_item(
        TableName=tables["ACCOUNTS_TABLE"],
        Key={"pk": {"S": f"customer#{customer}"}, "sk": {"S": "profile"}},
        UpdateExpression="REMOVE billing_customer",
    )
    an_hour = max(1, size // (_PERIOD_DAYS * 24))
    entries = list(_list_entries(customer, start, an_hour))
    for back in range(_HISTORY_DAYS):
        day = now - timedelta(days=back)
        items = _write_day(customer, day, an_hour)
        if day.date() == start.date():
            _cut_day(items, start, [entry for entry in entries if entry.at < start], an_hour)
        _put(dynamodb, tables["TOTALS_TABLE"], items)
    _put(dynamodb, tables["EVENTS_TABLE"], [write_item(entry, "AA==") for entry in entries])


def _write_day(customer: str, day: datetime, an_hour: int) -> list[dict[str, Any]]:
    pk = {"S": f"{customer}#credits"}
    events = an_hour * 24
    whole: dict[str, Any] = {"pk": pk, "sk": {"S": f"day#{day:%Y-%m-%d}"}} | _count("", events)
    for hour in range(24):
        whole |= _count(f"{hour:02d}", an_hour)
    items = [whole]
    for kind, names in (("action", ACTIONS), ("user", USERS)):
        for first in range(0, names, _NAMES_PER_ITEM):
            item: dict[str, Any] = {
                "pk": pk,
                "sk": {"S": f"{kind}#{day:%Y-%m-%d}#1-{first // _NAMES_PER_ITEM:x}"},
            }
            for place in range(first, min(first + _NAMES_PER_ITEM, names)):
                item |= _count(f":{kind}-{place}", events // names)
            items.append(item)
    return items


def _cut_day(
    items: list[dict[str, Any]], start: datetime, before: Sequence[LedgerEntry], an_hour: int
) -> None:
    """Count the day as it is where the period's start is known."""
    mark = mark_cut(start)
    whole, *shares = items
    whole |= _count(f"<{mark}", len(before)) | _count(f"@{mark}", an_hour * 24)
    named = Counter(name for entry in before for name in (entry.action, entry.user))
    for item in shares:
        day, _, bucket = item["sk"]["S"].rpartition("#")
        part = {"pk": item["pk"], "sk": {"S": f"{day}#<{mark}#{bucket}"}}
        for attribute in [each for each in item if each.startswith("n:")]:
            name, events = attribute[2:], int(item[attribute]["N"])
            part.update(_count(f":{name}", named[name]))
            item.update(_count(f":{name}", max(events - named[name], 0)))
        items.append(part)


def _count(suffix: str, events: int) -> dict[str, Any]:
    return {f"q{suffix}": {"N": str(events * 1500)}, f"n{suffix}": {"N": str(events)}}


def _list_entries(customer: str, start: datetime, an_hour: int) -> Iterator[LedgerEntry]:
    """The first day's events up to the end of the hour in which the period begins."""
    midnight = start.replace(hour=0, minute=0, second=0)
    for hour in range(start.hour + 1):
        for place in range(an_hour):
            at = midnight + timedelta(hours=hour, seconds=3600 * place / an_hour)
            yield LedgerEntry(
                EventKey(customer, "bench", f"{hour}-{place}"),
                at.replace(microsecond=0),
                "credits",
                Decimal("1.5"),
                base64.b64decode("AA=="),
                at,
                action=f"action-{place % ACTIONS}",
                user=f"user-{place % USERS}",
                provider="anthropic",
                model="claude-sonnet-4-5",
                usage={"input_tokens": 1200, "output_tokens": 60},
                rate_card="2026-11-01",
            )


def _put(dynamodb: Any, table: str, items: Sequence[Mapping[str, Any]]) -> None:
    for first in range(0, len(items), 25):
        request = {
            table: [{"PutRequest": {"Item": _as_boto3(item)}} for item in items[first : first + 25]]
        }
        while request:
            request = dynamodb.batch_write_item(RequestItems=request)["UnprocessedItems"]


def _as_boto3(item: Mapping[str, Any]) -> dict[str, Any]:
    """The client encodes bytes by itself."""
    return {
        name: {"B": base64.b64decode(value["B"])} if "B" in value else value
        for name, value in item.items()
    }


def load_rows(loads: Sequence[Load]) -> list[Row]:
    """Rows for the bench's table."""
    least = min(load.units for load in loads)
    rows = []
    for load in loads:
        rows.append(
            Row(
                f"dashboard JSON, {load.events:,} events, warm",
                load.warm_ms,
                "ms",
                baseline=f"first look of a period {load.first_ms:.0f} ms",
                target=f"<= {GOAL_MS:.0f} ms",
                met=load.warm_ms <= GOAL_MS,
            )
        )
        rows.append(
            Row(
                f"dashboard JSON, {load.events:,} events, reads",
                load.units,
                "read units",
                baseline=f"first look of a period {load.first_units:,.1f}, "
                f"of one not known {load.unknown_units:,.0f}",
                ratio=f"{max(load.units, load.first_units) / least:.2f}",
                target="flat",
                met=max(load.units, load.first_units) <= 1.1 * least,
            )
        )
    return rows


def main() -> None:
    """Print one table."""
    if not is_installed():
        raise SystemExit("Needs DynamoDB Local: install Java and run `make dynamodb-local`.")
    table = Table(title=f"One look, {USERS} users and {ACTIONS} actions a day")
    headings = ("read units", "warm ms", "p95 ms", "first: units", "first: ms", "not known: units")
    for heading in ("events", *headings):
        table.add_column(heading, justify="right")
    for load in measure():
        table.add_row(
            f"{load.events:,}",
            f"{load.units:.1f}",
            f"{load.warm_ms:.1f}",
            f"{load.slow_ms:.1f}",
            f"{load.first_units:,.1f}",
            f"{load.first_ms:.0f}",
            f"{load.unknown_units:,.1f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

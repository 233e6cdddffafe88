"""Authorizations: time of a warm call and units: `python -m tests.bench.authorize_load`.

The time is of the deployed function under the Lambda runtime emulator with DynamoDB Local,
invocation and all, one call after another. Units are DynamoDB Local's own.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
from rich.console import Console
from rich.table import Table

from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_budgets import DynamoBudgets
from meterline.adapters.dynamodb_catalog import DynamoPlans
from meterline.adapters.dynamodb_controls import DynamoControls
from meterline.adapters.dynamodb_ledger import DynamoLedger
from meterline.adapters.dynamodb_overviews import DynamoOverviews
from meterline.adapters.dynamodb_totals import DynamoTotals
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.catalog import load_meters
from meterline.domain.api_keys import ApiKey, Scope, hash_key
from meterline.domain.authorizations import AuthorizationId
from meterline.domain.limits import Limits, QuantityLimit
from meterline.domain.projection import ProjectedEvent, plan_steps
from meterline.domain.usage import EventKey
from meterline.services.authorize_usage import AuthorizeUsage, Request
from meterline.services.measure_period import MeasurePeriod
from tests.bench.built_layers import build_layers
from tests.bench.cold_starts import emulated_runtime, invoke, link_runtime
from tests.bench.local_dynamodb import AWS, CountingWire, create_tables
from tests.bench.measuring import FUNCTIONS
from tests.bench.prices import price_of_authorizations
from tests.bench.results import Row
from tests.dynamodb_local import is_installed, run_dynamodb_local

_KEY = "bench-authorize"
_CALLS = 300
_CALLS_PER_LEASE = 100
_MEMORY_MB = 1024


@dataclass(frozen=True, slots=True)
class Figures:
    """Milliseconds of warm calls, and read and write units of one of each kind."""

    free_ms: Sequence[float]
    limited_ms: Sequence[float]
    free_units: tuple[float, float]
    limited_units: tuple[float, float]
    release_units: tuple[float, float]
    settle_units: tuple[float, float]
    """What a delivery of one event takes more because it names an authorization."""


def measure() -> Figures:
    """Both kinds of customers in one run."""
    layers = build_layers()
    with run_dynamodb_local() as url, tempfile.TemporaryDirectory(prefix="meterline-") as directory:
        environment = {**AWS, "AWS_ENDPOINT_URL_DYNAMODB": url}
        os.environ.update(environment)
        dynamodb = boto3.client("dynamodb", endpoint_url=url, region_name="us-east-1")
        tables = create_tables(dynamodb, "authorize")
        seed(DynamoWire(endpoint_url=url), tables)
        units = measure_units(CountingWire(endpoint_url=url), tables)
        path = [FUNCTIONS / "authorize_usage", *layers, link_runtime(Path(directory))]
        with emulated_runtime("authorize_usage", path, environment | tables) as port:
            for customer in ("free", "limited"):
                call(port, customer)
            times: dict[str, list[float]] = {"free": [], "limited": []}
            for _ in range(_CALLS):
                for customer, found in times.items():
                    found.append(call(port, customer))
    return Figures(sorted(times["free"]), sorted(times["limited"]), *units)


def seed(wire: DynamoWire, tables: Mapping[str, str]) -> None:
    """A customer without a limit and one with."""
    now = datetime.now(UTC)
    accounts = DynamoAccounts(wire, tables["ACCOUNTS_TABLE"])
    key = ApiKey(hash_key(_KEY), "bench", frozenset({Scope.USAGE}), now, calls_per_s=10**6)
    accounts.add_key(key)
    for customer in ("free", "limited"):
        accounts.put_customer(customer, {"name": customer, "plan": "pro"}, now)
    limits = Limits(stop_at=QuantityLimit(Decimal(10**9)))
    DynamoOverviews(wire, tables["ACCOUNTS_TABLE"]).put_limits("limited", limits)


def measure_units(wire: CountingWire, tables: Mapping[str, str]) -> Sequence[tuple[float, float]]:
    """Read and write units of an authorization without a limit, with one, a release, a settle."""
    totals = DynamoTotals(wire, tables["TOTALS_TABLE"], tables["EMISSIONS_TABLE"])
    authorize = AuthorizeUsage(
        DynamoControls(wire, tables["ACCOUNTS_TABLE"]),
        DynamoBudgets(wire, tables["TOTALS_TABLE"]),
        DynamoPlans(wire, tables["ACCOUNTS_TABLE"]),
        load_meters(),
        MeasurePeriod(totals, DynamoLedger(wire, tables["EVENTS_TABLE"])),
    )
    now = datetime.now(UTC)
    found = []
    for customer in ("free", "limited"):
        request = Request(customer, lambda _: Decimal(1))
        authorize(request, now)  # The period begins, and the catalog is read.
        wire.take()
        decision = authorize(request, now)
        assert decision.is_allowed
        found.append(wire.take())
    assert decision.authorization is not None
    authorize.release(AuthorizationId.parse(decision.authorization), None, now)
    found.append(wire.take())
    held = authorize(Request("limited", lambda _: Decimal(1)), now).authorization
    assert held is not None
    wire.take()
    # The first of a day makes its items; what comes after it is alike.
    _, plain, settling = (
        _count_one(wire, totals, sequence, named, now)
        for sequence, named in enumerate((None, None, held), 1)
    )
    return [*found, (settling[0] - plain[0], settling[1] - plain[1])]


def _count_one(
    wire: CountingWire, totals: DynamoTotals, sequence: int, named: str | None, now: datetime
) -> tuple[float, float]:
    hour, at_s = f"{now:%Y-%m-%dT%H}", int(now.timestamp())
    identifier = EventKey("limited", "bench", str(sequence)).identifier
    event = ProjectedEvent(
        sequence, "limited", "credits", hour, at_s, at_s, 1000, identifier, "draw", "u_1", named
    )
    checkpoint = totals.checkpoint("shardId-1")
    [step] = plan_steps(
        [event], load_meters(), str, max_items=90, max_entries=90, checkpoint=checkpoint
    )
    wire.take()
    totals.apply("shardId-1", checkpoint, step)
    return wire.take()


def call(port: int, customer: str) -> float:
    """Milliseconds of asking; what is held is given back, outside of the time."""
    body = {"customer": customer, "estimate": {"quantity": "1.5"}}
    began_s = time.perf_counter()
    told = _post(port, "/v1/authorizations", "/v1/authorizations", body)
    took_ms = (time.perf_counter() - began_s) * 1000
    assert told["decision"] == "allow", told
    if told["authorization"] is not None:
        path = f"/v1/authorizations/{told['authorization']}/release"
        _post(port, path, "/v1/authorizations/{id}/release", {})
    return took_ms


def _post(port: int, path: str, route: str, body: Mapping[str, Any]) -> Any:
    event = {
        "version": "2.0",
        "routeKey": f"POST {route}",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"authorization": f"Bearer {_KEY}", "content-type": "application/json"},
        "requestContext": {
            "accountId": "1",
            "apiId": "a",
            "domainName": "a.execute-api.us-east-1.amazonaws.com",
            "http": {"method": "POST", "path": path, "protocol": "HTTP/1.1", "sourceIp": "::1"},
            "requestId": "r",
            "routeKey": f"POST {route}",
            "stage": "$default",
            "timeEpoch": 0,
        },
        "body": json.dumps(body),
        "isBase64Encoded": False,
    }
    answer = invoke(port, event)
    assert answer["statusCode"] == 200, answer
    return json.loads(answer["body"])


def authorize_rows(figures: Figures) -> list[Row]:
    """Rows for the bench's table."""
    rows = []
    for name, times in (("no limit", figures.free_ms), ("a limit", figures.limited_ms)):
        p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
        rows.append(Row(f"authorize, {name}, warm p50", p50, "ms", baseline=f"p99 {p99:.1f} ms"))
    units = (
        ("authorize, no limit", figures.free_units, "1 read"),
        ("authorize, a limit", figures.limited_units, ""),
        ("release", figures.release_units, ""),
        ("settle, on top of counting the event", figures.settle_units, ""),
    )
    for name, (reads, writes), target in units:
        rows.append(
            Row(
                f"{name}: units",
                reads + writes,
                "units",
                baseline=f"{reads:g} read, {writes:g} written",
                target=target,
                met=(reads, writes) == (1.0, 0.0) if target else None,
            )
        )
    for name, times, used in (
        ("no limit", figures.free_ms, figures.free_units),
        ("a limit", figures.limited_ms, figures.limited_units),
    ):
        dollars = price_of_authorizations(*used, times[len(times) // 2], _MEMORY_MB)
        rows.append(
            Row(
                f"price of authorizations, {name}, outside of the totals",
                float(dollars),
                "$ per million calls",
                f"by leases of {_CALLS_PER_LEASE} calls $ {dollars / _CALLS_PER_LEASE:.2f}",
            )
        )
    writes = figures.limited_units[1]
    rows.append(
        Row(
            f"leases of {_CALLS_PER_LEASE} calls: writes per 1,000 calls, reckoned",
            2 * writes * 1_000 / _CALLS_PER_LEASE,
            "units",
            baseline=f"{2 * writes * 1_000:g} one by one, asked and released",
        )
    )
    return rows


def main() -> None:
    """Print one table."""
    if not is_installed():
        raise SystemExit("Needs DynamoDB Local: install Java and run `make dynamodb-local`.")
    table = Table(title="Authorizations")
    for heading in ("what", "value", "unit", "beside it"):
        table.add_column(heading)
    for row in authorize_rows(measure()):
        table.add_row(row.what, f"{row.figure:.2f}", row.unit, row.baseline)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

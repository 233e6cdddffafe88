"""`python -m tests.bench [--only PART]…`: what an event costs, next to baselines of the same run.

Workers run on the layers alone, as functions do. The machine may be busy with other things, so
what is compared is measured in turns, and medians are taken.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NoReturn

import boto3
from moto.server import ThreadedMotoServer
from rich.console import Console
from samcli.yamlhelper import yaml_parse

from tests.bench.authorize_load import authorize_rows
from tests.bench.authorize_load import measure as measure_authorizations
from tests.bench.built_layers import build_layers, run_worker
from tests.bench.client.measurements import run as measure_client
from tests.bench.cold_starts import CALLS, measure_cold_starts
from tests.bench.dashboard_load import load_rows
from tests.bench.dashboard_load import measure as measure_dashboard
from tests.bench.forecasts import forecast_rows
from tests.bench.local_dynamodb import AWS, create_table, create_tables
from tests.bench.measuring import REPOSITORY
from tests.bench.prices import (
    ACCESS_LOG_BYTES,
    BILLING_LATENCY_MS,
    PLATFORM_LOG_BYTES,
    STORAGE_LATENCY_MS,
    TRANSACTION_LATENCY_MS,
    Usage,
    duration_ms,
    itemise,
    price_of_ledger,
)
from tests.bench.results import Row, make_table, write_results
from tests.bench.usage_mix import ONE_CUSTOMER, SAAS, customer_ids
from tests.dynamodb_local import is_installed, run_dynamodb_local

_API_KEY = "bench-key"
_BATCH = 100
_PRICED_RECORDS = 1000
_ROUNDS = {"report": 5, "project": 5, "cold": 8}


@dataclass(frozen=True, slots=True)
class Findings:
    """What the workers found."""

    report: Mapping[str, Any]
    capacity: Mapping[str, Any]
    project: Mapping[str, Any]


Tell = Callable[[str], None]


def measure_usage(tell: Tell) -> Iterator[Row]:
    """CPU, units and list price from the report to the billing layer."""
    layers = build_layers()
    with run_dynamodb_local() as url, running_sqs() as sqs:
        environment = {**AWS, "AWS_ENDPOINT_URL_DYNAMODB": url}
        os.environ.update(environment)
        tell("report_usage and single writes, in turns")
        report = run_worker("tests.bench.worker_report", layers, environment | prepare_report(url))
        tell("project_usage")
        project = run_worker(
            "tests.bench.worker_project", layers, environment | prepare_project(url, sqs)
        )
        tell("units from the ledger to the billing layer")
        capacity = run_worker(
            "tests.bench.worker_capacity", layers, environment | prepare_tables(url, "capacity")
        )
    findings = Findings(report, capacity, project)
    yield from report_rows(findings)
    yield from unit_rows(findings)
    yield from project_rows(findings)
    yield from billing_rows(findings)
    yield from price_rows(findings)


def measure_cold(tell: Tell) -> Iterator[Row]:
    """Every function's cold start, next to its empty twin."""
    tell("cold starts under the Lambda runtime emulator")
    yield from cold_rows(measure_cold_starts(build_layers(), _ROUNDS["cold"], AWS))


def measure_looks(tell: Tell) -> Iterator[Row]:
    """Looks at the dashboard."""
    tell("looks at the dashboard")
    yield from load_rows(measure_dashboard())


def measure_leaves(tell: Tell) -> Iterator[Row]:
    """Authorizations."""
    tell("authorizations")
    yield from authorize_rows(measure_authorizations())


def measure_forecasts(tell: Tell) -> Iterator[Row]:
    """The forecast against the straight line."""
    tell("forecasts")
    yield from forecast_rows()


def measure_apps(tell: Tell) -> Iterator[Row]:
    """What the client adds to a model call."""
    tell("the client, in turns with the bare SDKs")
    yield from measure_client()


PARTS: Mapping[str, Callable[[Tell], Iterable[Row]]] = {
    "usage": measure_usage,
    "cold": measure_cold,
    "dashboard": measure_looks,
    "authorize": measure_leaves,
    "forecast": measure_forecasts,
    "client": measure_apps,
}
_WITHOUT_DYNAMODB = frozenset({"cold", "forecast", "client"})


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what it does not know ends the program with status 2."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        choices=PARTS,
        metavar="PART",
        help=f"one of {', '.join(PARTS)}; may be given again. Shown, and not written to .local",
    )
    return parser.parse_args(arguments)


def main() -> int:
    """Run the parts; 0 whatever the figures are, since it is a table and not a test."""
    options = read_options()
    # What is open is closed on the way out, as after Ctrl-C: no process is left behind.
    signal.signal(signal.SIGTERM, _leave)
    console = Console(stderr=True)
    chosen = options.only or list(PARTS)
    if not _WITHOUT_DYNAMODB.issuperset(chosen) and not is_installed():
        console.print("The bench needs DynamoDB Local: install Java and run `make dynamodb-local`.")
        return 1
    began_s = time.monotonic()

    def tell(what: str) -> None:
        console.print(f"[{time.monotonic() - began_s:4.0f} s] {what}", highlight=False)

    rows: list[Row] = []
    try:
        tell("building the layers")
        build_layers()
        for name, measure in PARTS.items():
            if name in chosen:
                rows += measure(tell)
    except KeyboardInterrupt:
        tell("stopped")
        return 130
    notes = make_notes(time.monotonic() - began_s)
    if options.only:
        Console(width=None if Console().is_terminal else 150).print(make_table(rows, notes))
    else:
        write_results(rows, notes, REPOSITORY / ".local")
    return 0


def _leave(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def make_notes(took_s: float) -> list[str]:
    """What must be known to read the table."""
    return [
        (
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, Python {sys.version.split()[0]}, "
            f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {took_s:.0f} s."
        ),
        (
            "CPU is of the whole process, medians of rounds taken in turns, on the layers as "
            "deployed and DynamoDB Local. Of cold starts, also taken in turns, the quickest of "
            f"{_ROUNDS['cold']} counts."
        ),
        (
            "Units are DynamoDB Local's own, of PutItem for the ledger (it does not answer for "
            "BatchExecuteStatement), and reckoned for transactions (of which it names one item): "
            "two per begun kilobyte of each item."
        ),
        (
            "Messages of project_usage go to a moto SQS. The billing layer counts calls and "
            "answers at once."
        ),
        (
            f"Prices assume {STORAGE_LATENCY_MS} ms for a storage call, {TRANSACTION_LATENCY_MS} "
            f"ms for a transaction, {BILLING_LATENCY_MS} ms for a call of Stripe, ten messages an "
            "invocation of emit_usage, and CPU as measured here."
        ),
        (
            "What the client adds is the median over blocks of five calls, metered next to bare, "
            "with the official SDKs against a server of this machine."
        ),
    ]


@contextmanager
def running_sqs() -> Iterator[str]:
    """The URL of an SQS of this process, which does not log every call."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def prepare_tables(url: str, prefix: str) -> dict[str, str]:
    """Tables with the mix's customers and an API key, as the functions' environment."""
    # The layers are of the workers; this process has the same code in the checkout.
    sys.path.insert(0, str(REPOSITORY / "layers" / "meterline"))
    from meterline.adapters.dynamodb_accounts import DynamoAccounts
    from meterline.adapters.dynamodb_wire import DynamoWire
    from meterline.domain.api_keys import ApiKey, Scope, hash_key

    tables = create_tables(boto3.client("dynamodb", endpoint_url=url), prefix)
    accounts = DynamoAccounts(DynamoWire(endpoint_url=url), tables["ACCOUNTS_TABLE"])
    now = datetime.now(UTC)
    key = ApiKey(hash_key(_API_KEY), "bench", frozenset({Scope.USAGE}), now, calls_per_s=10**6)
    accounts.add_key(key)
    for customer in customer_ids(SAAS):
        changes = {"name": customer, "plan": "pro", "billing_customer": f"cus_{customer}"}
        accounts.put_customer(customer, changes, now)
    return tables


def prepare_report(url: str) -> dict[str, str]:
    """What the worker of report_usage needs."""
    plain = create_table(boto3.client("dynamodb", endpoint_url=url), "EventsTable", "plain")
    return {
        **prepare_tables(url, "report"),
        **_function_environment(),
        "PLAIN_TABLE": plain,
        "BENCH_API_KEY": _API_KEY,
        "BENCH_ROUNDS": str(_ROUNDS["report"]),
    }


def prepare_project(url: str, sqs: str) -> dict[str, str]:
    """What the worker of project_usage needs."""
    queues = boto3.client("sqs", endpoint_url=sqs)
    emissions = queues.create_queue(QueueName="emissions.fifo", Attributes={"FifoQueue": "true"})
    return {
        **prepare_tables(url, "project"),
        **_function_environment(),
        "AWS_ENDPOINT_URL_SQS": sqs,
        "EMISSIONS_QUEUE_URL": emissions["QueueUrl"],
        "PROJECTION_DLQ_URL": queues.create_queue(QueueName="projection-dlq")["QueueUrl"],
        "STREAM_SHARDS": "many",
        "EVENT_BUS": "bench",
        "BREAKER_MODE": "warn",
        "BENCH_ROUNDS": str(_ROUNDS["project"]),
    }


def _function_environment() -> dict[str, str]:
    return {"POWERTOOLS_METRICS_NAMESPACE": "Meterline", "LOG_LEVEL": "INFO"}


def report_rows(findings: Findings) -> Iterator[Row]:
    """CPU per event of the whole handler, against single conditional writes."""
    plain = findings.report["plain"]["cpu_ms"]
    baseline = f"{plain:.3g} ms: one conditional PutItem, boto3"
    for size, samples in findings.report["whole"].items():
        cpu = samples["cpu_ms"]
        target = {"1": "", "100": "≤ 1/10, goal 1/14"}.get(size, "")
        yield Row(
            f"report_usage, CPU per event, {size} a call",
            cpu,
            "ms",
            baseline,
            f"1/{plain / cpu:.1f}",
            target,
            plain / cpu >= 10 if target else None,
        )
        baseline = "the same"


def unit_rows(findings: Findings) -> Iterator[Row]:
    """Write units of an event."""
    found = findings.capacity["write_units"]
    for name in ("typical", "1024 bytes"):
        units = found[name]["single"]
        yield Row(
            f"write units per event, index included, {name}",
            units,
            "units",
            f"{found[name]['json_bytes']:.0f} bytes of JSON",
            target="≤ 2",
            met=units <= 2,
        )


def project_rows(findings: Findings) -> Iterator[Row]:
    """Events per second and core of the projection."""
    for name, samples in findings.project["shapes"].items():
        rate = 1000 / samples["cpu_ms"]
        yield Row(
            f"project_usage, {name}",
            rate,
            "events per s and core",
            f"wall {1000 / samples['wall_ms']:,.0f} per s with DynamoDB Local",
            target="≥ 5,000",
            met=rate >= 5000,
        )


def billing_rows(findings: Findings) -> Iterator[Row]:
    """Calls of the billing layer."""
    for mode, meter in (("event", "credits"), ("hourly", "tokens")):
        for mix in (ONE_CUSTOMER, SAAS):
            for records in (1000, 100):
                found = findings.capacity["rest"][f"{mix.name}|{meter}|{records}"]
                yield Row(
                    f"Stripe calls per 1,000 events, mode {mode}",
                    found["calls"] * 1000,
                    "calls",
                    f"{mix.name}, {records} records a delivery",
                )


def cold_rows(found: Mapping[str, Mapping[str, float]]) -> Iterator[Row]:
    """Time to the first answer, against an empty function."""
    for name, times in found.items():
        ratio = times["cold"] / times["empty_cold"]
        yield Row(
            f"cold start of {name}",
            times["cold"],
            "ms",
            f"{times['empty_cold']:.0f} ms: empty, same base packages",
            f"{ratio:.2f}",
            "≤ 1.5",
            ratio <= 1.5,
        )
    for name, times in found.items():
        if name in CALLS:
            yield Row(
                f"warm call of {name}, no other service",
                times["warm"],
                "ms",
                f"{times['empty_warm']:.1f} ms: empty",
            )


def read_memory(function: str) -> int:
    """Memory of a function in MB, from the template."""
    template = yaml_parse((REPOSITORY / "template.yaml").read_text())
    logical_id = "".join(part.capitalize() for part in function.split("_")) + "Function"
    declared = template["Resources"][logical_id]["Properties"]
    memory: int = declared.get("MemorySize", template["Globals"]["Function"]["MemorySize"])
    return memory


def take_usage(findings: Findings, mix: str, meter: str, records: int) -> Usage:
    """What one event of that mix takes when it comes in calls of `_BATCH`."""
    rest = findings.capacity["rest"][f"{mix}|{meter}|{records}"]
    report_mb, project_mb, emit_mb = (
        read_memory(name) for name in ("report_usage", "project_usage", "emit_usage")
    )
    whole = findings.report["whole"][str(_BATCH)]
    # Parts of a call are written side by side.
    report_ms = duration_ms(whole["cpu_ms"] * _BATCH, report_mb, STORAGE_LATENCY_MS) / _BATCH
    shape = f"{mix}, {meter}"
    cpu_ms = findings.project["shapes"].get(shape, findings.project["shapes"][f"{mix}, credits"])
    transactions = rest["projection_transactions"]
    other_calls = rest["projection_calls"] - transactions + rest["queue_calls"]
    project_ms = duration_ms(
        cpu_ms["cpu_ms"],
        project_mb,
        transactions * TRANSACTION_LATENCY_MS + other_calls * STORAGE_LATENCY_MS,
    )
    emit_ms = (
        rest["calls_in_turn"] * BILLING_LATENCY_MS + rest["emission_calls"] * STORAGE_LATENCY_MS / 4
    )
    logged = findings.report["log_bytes_per_call"][str(_BATCH)]
    per_call = logged + PLATFORM_LOG_BYTES + ACCESS_LOG_BYTES
    per_delivery = findings.project["log_bytes_per_call"] + PLATFORM_LOG_BYTES
    return Usage(
        calls=1 / _BATCH,
        report_ms=report_ms,
        report_memory_mb=report_mb,
        ledger_write_units=findings.capacity["write_units"]["typical"]["single"],
        deliveries=1 / records,
        project_ms=project_ms,
        project_memory_mb=project_mb,
        projection_write_units=rest["projection_write_units"],
        projection_read_units=rest["projection_read_units"],
        queue_requests=rest["queue_calls"] + 2 * rest["invocations"],
        emit_invocations=rest["invocations"],
        emit_ms=emit_ms,
        emit_memory_mb=emit_mb,
        emission_write_units=rest["emission_write_units"],
        emission_read_units=rest["emission_read_units"],
        log_bytes=per_call / _BATCH
        + per_delivery / records
        + (logged + PLATFORM_LOG_BYTES) * rest["invocations"],
    )


def price_rows(findings: Findings) -> Iterator[Row]:
    """List price of a million events."""
    for mode, meter in (("event", "credits"), ("hourly", "tokens")):
        items = itemise(take_usage(findings, SAAS.name, meter, _PRICED_RECORDS))
        for name, dollars in items.items():
            yield Row(f"price, mode {mode}: {name}", float(dollars), "$ per million events")
        yield _total(f"price, mode {mode}: total", items.values(), f"{SAAS.name}, 1,000 records")
    stored = findings.capacity["write_units"]["typical"]["item_bytes"]
    yield Row(
        "kept for each million events: the ledger, a month, outside of the totals",
        float(price_of_ledger(stored)),
        "$ a month",
        f"{stored:.0f} bytes an event, twice with its index, with point-in-time recovery",
    )
    for mode, meter in (("event", "credits"), ("hourly", "tokens")):
        for mix, records in ((ONE_CUSTOMER, 1000), (ONE_CUSTOMER, 100), (SAAS, 100)):
            items = itemise(take_usage(findings, mix.name, meter, records))
            where = f"{mix.name}, {records:,} records"
            yield _total(f"price, mode {mode}: total", items.values(), where)


def _total(what: str, items: Iterable[Decimal], where: str) -> Row:
    total = float(sum(items))
    return Row(
        what,
        total,
        "$ per million events",
        f"{where} a delivery, {_BATCH} events a call",
        target="≤ 2.00",
        met=total <= 2,
    )


if __name__ == "__main__":
    sys.exit(main())

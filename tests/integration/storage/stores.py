"""Places that speak DynamoDB's protocol, with the tables as the template defines them."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

import boto3
import botocore.session
from cfnlint.decode.cfn_yaml import load as load_template  # type: ignore[import-untyped]

from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_emissions import DynamoEmissions
from meterline.adapters.dynamodb_ledger import STATEMENTS_PER_CALL, DynamoLedger
from meterline.adapters.dynamodb_totals import DynamoTotals
from meterline.adapters.dynamodb_wire import DynamoWire
from tests.ports import find_free_port, wait_for_port

REPOSITORY = Path(__file__).resolve().parents[3]
REGION = "us-east-1"
_DEFINED: Mapping[str, Any] = load_template(str(REPOSITORY / "infra/storage.yaml"))["Resources"]
_OF_A_TABLE = ("AttributeDefinitions", "BillingMode", "GlobalSecondaryIndexes", "KeySchema")
_serial = itertools.count()


def make_session() -> botocore.session.Session:
    """A session with credentials that every local server takes."""
    session = botocore.session.Session()
    session.set_credentials("test", "test")
    session.set_config_variable("region", REGION)
    return session


def _define_table(resource: str, name: str) -> dict[str, Any]:
    properties = _DEFINED[resource]["Properties"]
    definition = {key: properties[key] for key in _OF_A_TABLE if key in properties}
    if "StreamSpecification" in properties:
        definition["StreamSpecification"] = {
            "StreamEnabled": True,
            **properties["StreamSpecification"],
        }
    return {"TableName": name, **definition}


@dataclass(frozen=True)
class Tables:
    """The names of one set of tables."""

    events: str
    totals: str
    emissions: str
    accounts: str
    inbox: str
    books: str


@dataclass
class Store:
    """One server with one set of tables. `statements_per_call` is what its PartiQL can take."""

    name: str
    url: str
    statements_per_call: int = STATEMENTS_PER_CALL
    made: InitVar[Tables | None] = None
    """Tables that are there already."""
    tables: Tables = field(init=False)

    def __post_init__(self, made: Tables | None) -> None:
        self.tables = made or self.create_tables()

    def client(self, service: str = "dynamodb") -> Any:
        """A boto3 client, to look at things from outside."""
        session = boto3.Session(botocore_session=make_session())
        return session.client(service, endpoint_url=self.url)  # type: ignore[call-overload]

    def create_tables(self) -> Tables:
        """A fresh set of the template's tables."""
        suffix = next(_serial)
        client = self.client()
        names = {}
        for kind in ("events", "totals", "emissions", "accounts", "inbox", "books"):
            names[kind] = f"{kind}-{os.getpid()}-{suffix}"
            client.create_table(**_define_table(f"{kind.title()}Table", names[kind]))
        for name in names.values():
            client.get_waiter("table_exists").wait(
                TableName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 30}
            )
        return Tables(**names)

    def wire(self, url: str | None = None, **settings: Any) -> DynamoWire:
        """A wire to the server, or to `url` in front of it; patient, for a machine that is busy."""
        settings = {"timeout_s": 20.0, "deadline_s": 60.0} | settings
        return DynamoWire(make_session(), endpoint_url=url or self.url, **settings)

    def ledger(self, wire: DynamoWire | None = None, **settings: Any) -> DynamoLedger:
        """The ledger on this store."""
        settings = {
            "statements_per_call": self.statements_per_call,
            "deadline_s": 60.0,
        } | settings
        return DynamoLedger(wire or self.wire(), self.tables.events, **settings)

    def totals(self, wire: DynamoWire | None = None) -> DynamoTotals:
        """The totals on this store."""
        return DynamoTotals(wire or self.wire(), self.tables.totals, self.tables.emissions)

    def emissions(self, wire: DynamoWire | None = None) -> DynamoEmissions:
        """What is to be sent, on this store."""
        return DynamoEmissions(wire or self.wire(), self.tables.emissions)

    def accounts(self, wire: DynamoWire | None = None, **settings: Any) -> DynamoAccounts:
        """Customers and keys on this store."""
        return DynamoAccounts(wire or self.wire(), self.tables.accounts, **settings)


@contextmanager
def run_server(
    command: list[str], port: int, log: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A server process of the test environment's own interpreter that listens on `port`."""
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env={**quiet, **environment},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for_port(port, process)
        yield process
    finally:
        # Nothing of it is kept, and asked politely it would wait for its open connections.
        assert process.stdin is not None
        process.stdin.close()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def run_emulator(directory: Path) -> Iterator[str]:
    """The URL of an emulator of its own, with nothing deployed."""
    port = find_free_port()
    environment = {
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "STATE_DIR": str(directory / "state"),
        "S3_DATA_DIR": str(directory / "s3"),
        "TMPDIR": str(directory),
        "FUNCTION_PYTHON": sys.executable,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
    }
    log = directory / "emulator.log"
    with run_server(["-m", "infra.local.emulator_process"], port, log, **environment):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def run_moto(directory: Path) -> Iterator[str]:
    """The URL of a moto of its own."""
    port = find_free_port()
    command = ["-m", "tests.integration.storage.moto_process", str(port)]
    with run_server(command, port, directory / "moto.log"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def run_fault_proxy(upstream: str, directory: Path) -> Iterator[str]:
    """The URL of a proxy that answers with AWS's own faults when it is told to."""
    port = find_free_port()
    command = ["-m", "microburst", "--host", "127.0.0.1", "--port", str(port)]
    with run_server([*command, "--upstream", upstream], port, directory / "proxy.log"):
        yield f"http://127.0.0.1:{port}"

"""DynamoDB Local for the bench, with the tables of the template."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from samcli.yamlhelper import yaml_parse

from tests.bench.measuring import REPOSITORY
from tests.ports import find_free_port, wait_for_port

_HOME = REPOSITORY / ".local" / "dynamodb-local"
_TABLES = ("EventsTable", "TotalsTable", "EmissionsTable", "AccountsTable")


def is_installed() -> bool:
    """Whether `make dynamodb-local` was run and Java is there."""
    return shutil.which("java") is not None and (_HOME / "DynamoDBLocal.jar").exists()


@contextmanager
def running_dynamodb() -> Iterator[str]:
    """The URL of a DynamoDB Local in memory, for as long as the block lasts."""
    port = find_free_port()
    command = ["java", "-Djava.library.path=./DynamoDBLocal_lib", "-jar", "DynamoDBLocal.jar"]
    process = subprocess.Popen(
        [*command, "-inMemory", "-disableTelemetry", "-port", str(port)],
        cwd=_HOME,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def create_table(dynamodb: Any, kind: str, name: str) -> str:
    """Make a table with the keys and indexes that the template gives to `kind`."""
    template = yaml_parse((REPOSITORY / "infra" / "storage.yaml").read_text())
    declared: Mapping[str, Any] = template["Resources"][kind]["Properties"]
    shape = {
        part: declared[part]
        for part in (
            "AttributeDefinitions",
            "KeySchema",
            "BillingMode",
            "GlobalSecondaryIndexes",
        )
        if part in declared
    }
    dynamodb.create_table(TableName=name, **shape)
    return name


def create_tables(dynamodb: Any, prefix: str) -> dict[str, str]:
    """All tables of the template, under the names of the functions' environment."""
    return {
        kind.removesuffix("Table").upper() + "_TABLE": create_table(
            dynamodb, kind, f"{prefix}-{kind.removesuffix('Table').lower()}"
        )
        for kind in _TABLES
    }

"""What the bench has in DynamoDB Local: the tables of the template, and a wire that counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samcli.yamlhelper import yaml_parse

from meterline.adapters.dynamodb_wire import DynamoWire
from tests.bench.measuring import REPOSITORY

AWS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
"""The environment of what calls it."""
_TABLES = ("EventsTable", "TotalsTable", "EmissionsTable", "AccountsTable")


class CountingWire(DynamoWire):
    """Adds up what DynamoDB says that its answers cost, reads and writes apart."""

    reads = writes = 0.0

    def call(self, operation: str, request: Mapping[str, Any], **told: Any) -> dict[str, Any]:
        """Make the call and count."""
        answer = super().call(operation, {**request, "ReturnConsumedCapacity": "TOTAL"}, **told)
        consumed = answer["ConsumedCapacity"]
        told_units = consumed if isinstance(consumed, list) else [consumed]
        units = sum(each["CapacityUnits"] for each in told_units)
        if operation in ("Query", "GetItem", "BatchGetItem"):
            self.reads += units
        else:
            self.writes += units
        return answer

    def take(self) -> tuple[float, float]:
        """Reads and writes since the last time."""
        taken = self.reads, self.writes
        self.reads = self.writes = 0.0
        return taken


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

"""What says whether a customer may spend, from the `accounts` table in one read.

The sort keys `freeze`, `limits`, `profile` and `subscription` follow each other in a customer's
partition, with nothing large between them: one query reads all four for one read unit (4 KB,
strongly consistent), so that a limit, a freeze or a cancelled subscription counts at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meterline.adapters.dynamodb_accounts import read_customer, read_subscription
from meterline.adapters.dynamodb_overviews import read_limits
from meterline.adapters.dynamodb_wire import DynamoWire, query_pages
from meterline.domain.controls import Freeze, Standing
from meterline.domain.limits import Limits
from meterline.domain.times import parse_time


class DynamoControls:
    """Keeps `meterline.ports.Controls`."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table

    def get_standing(self, customer: str) -> Standing | None:
        """The customer, its subscription, limits and freeze; None where there is no customer."""
        request = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk AND sk BETWEEN :first AND :last",
            "ExpressionAttributeValues": {
                ":pk": {"S": f"customer#{customer}"},
                ":first": {"S": "freeze"},
                ":last": {"S": "subscription"},
            },
            "ConsistentRead": True,
        }
        items = {item["sk"]["S"]: item for item in query_pages(self._wire, request)}
        if "profile" not in items:
            return None
        return Standing(
            read_customer(items["profile"]),
            read_subscription(items["subscription"]) if "subscription" in items else None,
            read_limits(items["limits"]) if "limits" in items else Limits(),
            read_freeze(items["freeze"]) if "freeze" in items else None,
        )


def read_freeze(item: Mapping[str, Any]) -> Freeze:
    """Read a `freeze` item."""
    return Freeze(
        parse_time(item["frozen_at"]["S"]),
        item["reason"]["S"],
        item["by"]["S"],
        item["detail"]["S"],
        parse_time(item["lifted_at"]["S"]) if "lifted_at" in item else None,
    )

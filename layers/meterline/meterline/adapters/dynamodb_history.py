"""A customer's past in the `totals` table, as the breaker and the default warning judge by it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from meterline.adapters.dynamodb_emissions import partition_key
from meterline.adapters.dynamodb_totals import DynamoTotals
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.domain.breaker import DayUse
from meterline.domain.emission import HourTotal

_HOURS = [f"q{hour:02d}" for hour in range(24)]


class DynamoHistory:
    """Keeps `meterline.ports.UsageHistory`."""

    def __init__(self, wire: DynamoWire, totals_table: str) -> None:
        self._wire = wire
        self._table = totals_table
        # Only its counters are read.
        self._totals = DynamoTotals(wire, totals_table, emissions_table="")

    def list_days(
        self, customer: str, meter: str, first: date, last: date
    ) -> Mapping[date, DayUse]:
        """The days with usage, both ends included. Half a read unit per 4 KB: a month takes ten."""
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk AND sk BETWEEN :first AND :last",
            "ExpressionAttributeValues": {
                ":pk": {"S": partition_key(customer, meter)},
                ":first": {"S": f"day#{first}"},
                ":last": {"S": f"day#{last}"},
            },
        }
        days: dict[date, DayUse] = {}
        while True:
            answer = self._wire.call("Query", request)
            for item in answer["Items"]:
                hours = [int(item[hour]["N"]) for hour in _HOURS if hour in item]
                day = date.fromisoformat(item["sk"]["S"].removeprefix("day#"))
                days[day] = DayUse(int(item["q"]["N"]), max(hours, default=0))
            if "LastEvaluatedKey" not in answer:
                return days
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def sum_hours(self, customer: str, meter: str, start: datetime, end: datetime) -> HourTotal:
        """What the hours of [start, end) hold."""
        return self._totals.sum_hours(customer, meter, start, end)

    def find_top(self, customer: str, meter: str, day: date, kind: str) -> str | None:
        """The action or user (`kind`) that used most on a day; None when none was named."""
        shares = self._totals.day_shares(customer, meter, str(day), kind)
        return max(shares, key=lambda name: shares[name].sub_units, default=None)

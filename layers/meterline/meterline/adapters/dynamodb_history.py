"""A customer's past in the `totals` table, as the breaker and the default warning judge by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from meterline.adapters.dynamodb_counters import DynamoCounters
from meterline.adapters.dynamodb_wire import DynamoWire, query_pages
from meterline.adapters.partition_keys import partition_key
from meterline.domain.breaker import DayUse
from meterline.domain.measuring import HourTotal
from meterline.ports import EventsInTime

_MAX_READ = 2_000
"""Events of one preview: a busy customer's newest days say enough."""
_HOURS = [f"q{hour:02d}" for hour in range(24)]


class DynamoHistory:
    """Keeps `meterline.ports.UsageHistory`."""

    def __init__(self, wire: DynamoWire, totals_table: str) -> None:
        self._wire = wire
        self._table = totals_table
        self._counters = DynamoCounters(wire, totals_table)

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
        for item in query_pages(self._wire, request):
            hours = [int(item[hour]["N"]) for hour in _HOURS if hour in item]
            day = date.fromisoformat(item["sk"]["S"].removeprefix("day#"))
            days[day] = DayUse(int(item["q"]["N"]), max(hours, default=0))
        return days

    def sum_hours(self, customer: str, meter: str, start: datetime, end: datetime) -> HourTotal:
        """What the hours of [start, end) hold."""
        return self._counters.sum_hours(customer, meter, start, end)

    def find_top(self, customer: str, meter: str, day: date, kind: str) -> str | None:
        """The action or user (`kind`) that used most on a day; None when none was named."""
        shares = self._counters.day_shares(customer, meter, str(day), kind)
        return max(shares, key=lambda name: shares[name].sub_units, default=None)


class DynamoActionHistory:
    """Keeps `meterline.ports.ActionHistory`: the totals say on which days, the ledger how much."""

    def __init__(self, wire: DynamoWire, totals_table: str, ledger: EventsInTime) -> None:
        self._wire = wire
        self._table = totals_table
        self._ledger = ledger

    def list_runs(
        self,
        customer: str,
        meter: str,
        action: str,
        start: datetime,
        end: datetime,
        most: int,
    ) -> Sequence[Decimal]:
        """What the action's newest events used, one quantity each; at most `most`."""
        found: list[Decimal] = []
        read = 0
        for day in self._list_days(customer, meter, action, start.date(), end.date()):
            midnight = datetime.combine(day, time(), UTC)
            for entry in self._ledger.events_between(
                customer, max(start, midnight), min(end, midnight + timedelta(days=1))
            ):
                read += 1
                if entry.meter == meter and entry.action == action:
                    found.append(entry.quantity)
                if len(found) >= most or read >= _MAX_READ:
                    return found
        return found

    def _list_days(
        self, customer: str, meter: str, action: str, first: date, last: date
    ) -> list[date]:
        """The days on which the action was used, the newest first."""
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk AND sk BETWEEN :first AND :last",
            "ProjectionExpression": "sk, #action",
            "ExpressionAttributeNames": {"#action": f"n:{action}"},
            "ExpressionAttributeValues": {
                ":pk": {"S": partition_key(customer, meter)},
                ":first": {"S": f"action#{first}#"},
                ":last": {"S": f"action#{last}#~"},
            },
        }
        days: set[date] = set()
        for item in query_pages(self._wire, request):
            if f"n:{action}" in item:
                days.add(date.fromisoformat(item["sk"]["S"].split("#")[1]))
        return sorted(days, reverse=True)

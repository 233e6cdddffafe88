"""The counters of the `totals` table as they are read; `dynamodb_totals` says how they are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from meterline.adapters.dynamodb_wire import DynamoWire, query_pages
from meterline.adapters.partition_keys import partition_key
from meterline.domain.cuts import mark_cut
from meterline.domain.measuring import HourSplit, HourTotal

_NOTHING = {"N": "0"}


class DynamoCounters:
    """Keeps `meterline.ports.HourTotals` and `meterline.ports.PeriodTotals`."""

    def __init__(self, wire: DynamoWire, totals_table: str) -> None:
        self._wire = wire
        self._totals_table = totals_table

    def hour_total(self, customer: str, meter: str, hour: datetime) -> HourTotal:
        """What one hour holds, read strongly consistently. One read unit."""
        moment = hour.astimezone(UTC)
        item = self._get(partition_key(customer, meter), f"day#{moment:%Y-%m-%d}") or {}
        return HourTotal(
            int(item.get(f"q{moment:%H}", {"N": "0"})["N"]),
            int(item.get(f"n{moment:%H}", {"N": "0"})["N"]),
        )

    def sum_hours(self, customer: str, meter: str, start: datetime, end: datetime) -> HourTotal:
        """What the hours of [start, end) hold, read strongly consistently.

        A read unit for every 4 KB, and a day is at most 1.4 KB: a month costs about ten.
        """
        if start >= end:
            return HourTotal(0, 0)
        last = end - timedelta(hours=1)
        request: dict[str, Any] = {
            "TableName": self._totals_table,
            "KeyConditionExpression": "pk = :pk AND sk BETWEEN :first AND :last",
            "ExpressionAttributeValues": {
                ":pk": {"S": partition_key(customer, meter)},
                ":first": {"S": f"day#{start:%Y-%m-%d}"},
                ":last": {"S": f"day#{last:%Y-%m-%d}"},
            },
            "ConsistentRead": True,
        }
        sub_units = events = 0
        for item in query_pages(self._wire, request):
            day = item["sk"]["S"].removeprefix("day#")
            for suffix in _hours_of_day(day, start, last):
                sub_units += int(item.get(f"q{suffix}", _NOTHING)["N"])
                events += int(item.get(f"n{suffix}", _NOTHING)["N"])
        return HourTotal(sub_units, events)

    def read_split(self, customer: str, meter: str, edge: datetime) -> HourSplit | None:
        """How the hour around `edge` is split: as its day was counted with that cut, or else as it
        was last found to be. One read unit, or two."""
        pk = partition_key(customer, meter)
        day = self._get(pk, f"day#{edge:%Y-%m-%d}") or {}
        mark = mark_cut(edge)
        if day.get(f"n@{mark}", _NOTHING) == day.get("n"):
            earlier = sum(int(day.get(f"q{hour:02d}", _NOTHING)["N"]) for hour in range(edge.hour))
            before = int(day[f"q<{mark}"]["N"]) - earlier
            whole = int(day.get(f"q{edge:%H}", _NOTHING)["N"])
            events = int(day.get(f"n{edge:%H}", _NOTHING)["N"])
            return HourSplit(before, whole - before, events)
        item = self._get(pk, f"split#{edge:%Y-%m-%dT%H:%M:%SZ}")
        if item is None:
            return None
        return HourSplit(*(int(item[name]["N"]) for name in ("before", "after", "n")))

    def write_split(self, customer: str, meter: str, edge: datetime, split: HourSplit) -> None:
        """Remember a split. Derived from the ledger, so writing it twice is harmless."""
        item = {
            "pk": {"S": partition_key(customer, meter)},
            "sk": {"S": f"split#{edge:%Y-%m-%dT%H:%M:%SZ}"},
            "before": {"N": str(split.before_sub_units)},
            "after": {"N": str(split.after_sub_units)},
            "n": {"N": str(split.events)},
        }
        self._wire.call("PutItem", {"TableName": self._totals_table, "Item": item})

    def day_total(self, customer: str, meter: str, day: str) -> HourTotal:
        """What one day (`YYYY-MM-DD`, UTC) holds, read strongly consistently. One read unit."""
        item = self._get(partition_key(customer, meter), f"day#{day}") or {}
        return HourTotal(int(item.get("q", {"N": "0"})["N"]), int(item.get("n", {"N": "0"})["N"]))

    def day_shares(self, customer: str, meter: str, day: str, kind: str) -> dict[str, HourTotal]:
        """Each action's or user's part of a day (`kind` as in `ShareKey`), by name.

        Read strongly consistently; a read unit per 4 KB, about a hundred names.
        """
        shares: dict[str, HourTotal] = {}
        for item_kind in ("action",) if kind == "action" else ("action", "user"):
            request: dict[str, Any] = {
                "TableName": self._totals_table,
                "KeyConditionExpression": "pk = :pk AND begins_with(sk, :sk)",
                "ExpressionAttributeValues": {
                    ":pk": {"S": partition_key(customer, meter)},
                    ":sk": {"S": f"{item_kind}#{day}#"},
                },
                "ConsistentRead": True,
            }
            for item in query_pages(self._wire, request):
                for name, sub_units, events in list_shares(item, kind):
                    before = shares.get(name, HourTotal(0, 0))
                    shares[name] = HourTotal(before.sub_units + sub_units, before.events + events)
        return shares

    def _get(self, pk: str, sk: str) -> Mapping[str, Any] | None:
        answer = self._wire.call(
            "GetItem",
            {
                "TableName": self._totals_table,
                "Key": {"pk": {"S": pk}, "sk": {"S": sk}},
                "ConsistentRead": True,
            },
        )
        return answer.get("Item")


def list_shares(item: Mapping[str, Any], kind: str) -> Iterator[tuple[str, int, int]]:
    """Name, sub-units and events of each action or user (`kind`) in an item of shares."""
    if item["sk"]["S"].startswith(f"{kind}#"):
        prefix = ":"
    elif kind == "user":
        prefix = "u:"  # The few users of a day are among its actions.
    else:
        return
    for attribute, value in item.items():
        if attribute.startswith(f"q{prefix}"):
            name = attribute[1 + len(prefix) :]
            yield name, int(value["N"]), int(item[f"n{prefix}{name}"]["N"])


def _hours_of_day(day: str, start: datetime, last: datetime) -> list[str]:
    """Suffixes of the counters of a day's hours between two hours; "" is the whole day."""
    low = start.hour if day == f"{start:%Y-%m-%d}" else 0
    high = last.hour if day == f"{last:%Y-%m-%d}" else 23
    return [""] if (low, high) == (0, 23) else [f"{hour:02d}" for hour in range(low, high + 1)]

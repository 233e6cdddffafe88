"""The `totals` table as the dashboard reads it: some weeks of one meter, and edges of periods.

Three queries side by side, whatever the number of events behind the counters. An edge is among
the counters of its day, where all of that day was counted when it was known. Any other is made
from the ledger and kept at sk `edge#<time>` as JSON, with the number of events it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime
from typing import Any

from pydantic_core import from_json, to_json

from meterline.adapters.dynamodb_counters import list_shares
from meterline.adapters.dynamodb_wire import DynamoWire, query_pages
from meterline.adapters.partition_keys import partition_key
from meterline.domain.cuts import mark_cut
from meterline.domain.period_usage import Count, DayCount, Edge, Shares, UsageCounts
from meterline.domain.times import format_time, parse_time

_HOURS = [f"{hour:02d}" for hour in range(24)]
_BEHIND_ALL = "~"
"""Sorts behind every bucket's name."""
_MAX_EDGE_BYTES = 390_000
"""An item has at most 400 KB, its key with it (DynamoDB developer guide, quotas)."""
_CutDay = tuple[date, str]
"""A day, and the mark of a cut in it."""


class DynamoUsage:
    """Keeps `meterline.ports.UsageCounters`."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table
        self._threads = ThreadPoolExecutor(4, "usage")

    def read(
        self,
        customer: str,
        meter: str,
        *,
        days_from: date,
        shares_from: date,
        until: date,
        edge: datetime | None,
    ) -> UsageCounts:
        """Counters of days from `days_from`, shares from `shares_from`, both up to `until`.

        Half a read unit for every 4 KB: eight weeks of days take about ten kilobytes a week, and
        16 names of a day one. `edge` is the one to look for.
        """
        pk = partition_key(customer, meter)
        days = self._threads.submit(self._read_days, pk, days_from, until)
        actions = self._threads.submit(self._read_shares, pk, "action", shares_from, until)
        users = self._threads.submit(self._read_shares, pk, "user", shares_from, until)
        kept = self._read_edge(pk, edge) if edge is not None else None
        by_day, cuts = days.result()
        actions_by_day, actions_before = _sum_shares(actions.result(), "action")
        users_by_day, users_before = _sum_shares([*actions.result(), *users.result()], "user")
        if edge is not None and (counted := cuts.get(_name_cut(edge))) is not None:
            kept = Edge(
                edge,
                counted,
                actions_before.get(_name_cut(edge), {}),
                users_before.get(_name_cut(edge), {}),
                by_day[edge.date()].until_hour(edge.hour).events,
                by_day[edge.date()].counted_at or edge,
            )
        return UsageCounts(
            by_day, actions_by_day, users_by_day, {kept.at: kept} if kept is not None else {}
        )

    def keep_edge(self, customer: str, meter: str, edge: Edge) -> None:
        """Remember an edge; the newest made stands. One of so many names that no item holds it is
        not kept: then it is made from the ledger at every look."""
        content = to_json(
            {
                "total": edge.total,
                "actions": edge.actions,
                "users": edge.users,
                "hours_events": edge.hours_events,
                "made_at": format_time(edge.made_at),
            }
        )
        if len(content) > _MAX_EDGE_BYTES:
            return
        self._wire.call(
            "PutItem",
            {
                "TableName": self._table,
                "Item": {
                    "pk": {"S": partition_key(customer, meter)},
                    "sk": {"S": _edge_key(edge.at)},
                    "edge": {"S": content.decode()},
                },
            },
        )

    def _read_days(
        self, pk: str, first: date, last: date
    ) -> tuple[Mapping[date, DayCount], Mapping[_CutDay, Count]]:
        """Days, and what is dated before each cut that all of its day was counted with."""
        days: dict[date, DayCount] = {}
        cuts: dict[_CutDay, Count] = {}
        for item in self._query(pk, f"day#{first}", f"day#{last}"):
            hours = {
                hour: _read_count(item, name)
                for hour, name in enumerate(_HOURS)
                if f"n{name}" in item
            }
            counted_at = parse_time(item["counted_at"]["S"]) if "counted_at" in item else None
            day = date.fromisoformat(item["sk"]["S"][4:])
            days[day] = DayCount(_read_count(item, ""), hours, counted_at)
            for attribute in item:
                if attribute.startswith("n@") and item[attribute] == item["n"]:
                    cuts[day, attribute[2:]] = _read_count(item, f"<{attribute[2:]}")
        return days, cuts

    def _read_shares(
        self, pk: str, kind: str, first: date, last: date
    ) -> Sequence[Mapping[str, Any]]:
        return list(self._query(pk, f"{kind}#{first}#", f"{kind}#{last}#{_BEHIND_ALL}"))

    def _read_edge(self, pk: str, at: datetime) -> Edge | None:
        answer = self._wire.call(
            "GetItem",
            {"TableName": self._table, "Key": {"pk": {"S": pk}, "sk": {"S": _edge_key(at)}}},
        )
        if "Item" not in answer:
            return None
        told = from_json(answer["Item"]["edge"]["S"])
        return Edge(
            at,
            Count(*told["total"]),
            {name: Count(*count) for name, count in told["actions"].items()},
            {name: Count(*count) for name, count in told["users"].items()},
            told["hours_events"],
            parse_time(told["made_at"]),
        )

    def _query(self, pk: str, first: str, last: str) -> Iterator[Mapping[str, Any]]:
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk AND sk BETWEEN :first AND :last",
            "ExpressionAttributeValues": {
                ":pk": {"S": pk},
                ":first": {"S": first},
                ":last": {"S": last},
            },
        }
        yield from query_pages(self._wire, request)


def _name_cut(at: datetime) -> _CutDay:
    return at.date(), mark_cut(at)


def _sum_shares(
    items: Iterable[Mapping[str, Any]], kind: str
) -> tuple[Mapping[date, Shares], Mapping[_CutDay, Shares]]:
    """Shares of whole days, and of what is dated before a cut."""
    shares: dict[date, dict[str, Count]] = {}
    before_cuts: dict[_CutDay, dict[str, Count]] = {}
    for item in items:
        _, day_text, part, *_ = item["sk"]["S"].split("#")
        day = date.fromisoformat(day_text)
        parts = [shares.setdefault(day, {})]
        if part.startswith("<"):
            parts.append(before_cuts.setdefault((day, part[1:]), {}))
        for name, sub_units, events in list_shares(item, kind):
            count = Count(sub_units, events)
            for each in parts:
                each[name] = each.get(name, Count()).plus(count)
    return shares, before_cuts


def _edge_key(at: datetime) -> str:
    return f"edge#{format_time(at)}"


def _read_count(item: Mapping[str, Any], suffix: str) -> Count:
    return Count(int(item[f"q{suffix}"]["N"]), int(item[f"n{suffix}"]["N"]))

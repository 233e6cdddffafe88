"""Budgets in the `totals` table: pk `customer#meter`, sk `budget`.

Attributes: `start` and `end` of the period, `used` and `committed` (sub-units; `committed` is what
is used and held together, since a condition of DynamoDB cannot add), `holds` (a map from an
authorization's serial to its hold as text), `rev` (how often projection changed it), and `p<slot>`
for each five minutes of the last hour.

A hold lives inside the budget, not in an item of its own: so it is one conditional write of one
unit per kilobyte (about 25 open holds), where a transaction over two items costs four and meets
itself under load (DynamoDB developer guide, transaction conflicts).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from meterline.adapters.dynamodb_wire import DynamoWire, read_many
from meterline.adapters.partition_keys import partition_key
from meterline.domain.authorizations import (
    MAX_HOLDS,
    MAX_SETTLED,
    PACE_SLOTS,
    SLOT_S,
    Budget,
    BudgetChange,
    Hold,
)
from meterline.domain.periods import Period
from meterline.domain.times import format_time, parse_time
from meterline.errors import StorageError

Pair = tuple[str, str]
"""A customer and a meter."""


class DynamoBudgets:
    """Keeps `meterline.ports.Budgets`."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table

    def get(self, customer: str, meter: str) -> Budget:
        """The budget as it is, read strongly consistently; an empty one where there is none."""
        answer = self._wire.call(
            "GetItem",
            {"TableName": self._table, "Key": _key(customer, meter), "ConsistentRead": True},
        )
        return read_budget(answer["Item"]) if "Item" in answer else Budget()

    def get_many(self, pairs: Iterable[Pair]) -> dict[Pair, Budget]:
        """Budgets by customer and meter, read strongly consistently; a call for every hundred."""
        wanted = list(pairs)
        found = {pair: Budget() for pair in wanted}
        by_pk = {partition_key(*pair): pair for pair in wanted}
        keys = [_key(*pair) for pair in wanted]
        for item in read_many(self._wire, self._table, keys, consistent=True):
            found[by_pk[item["pk"]["S"]]] = read_budget(item)
        return found

    def reserve(
        self,
        customer: str,
        meter: str,
        period: Period,
        serial: str,
        hold: Hold,
        *,
        stop_sub_units: int,
    ) -> int | None:
        """Hold, if the budget is of this period and stays within the stop.

        What is committed afterwards; None when a condition does not hold, and then nothing is
        held. One write unit per kilobyte of the budget, refused or not.
        """
        changed = self._update(
            customer,
            meter,
            {
                # Each term guards one thing: the period that the sum is of, the limit itself, the
                # size of the item, and that a serial is never held twice.
                "ConditionExpression": "#start = :start AND #end = :end AND committed <= :most "
                "AND size(holds) < :holds AND attribute_not_exists(holds.#serial)",
                "UpdateExpression": "SET committed = committed + :estimate, holds.#serial = :hold",
                "ExpressionAttributeNames": {
                    "#start": "start",
                    "#end": "end",
                    "#serial": serial,
                },
                "ExpressionAttributeValues": {
                    **_period_values(period),
                    ":most": {"N": str(stop_sub_units - hold.sub_units)},
                    ":holds": {"N": str(MAX_HOLDS)},
                    ":estimate": {"N": str(hold.sub_units)},
                    ":hold": {"S": hold.text},
                },
            },
        )
        return None if changed is None else int(changed["committed"]["N"])

    def give_back(self, customer: str, meter: str, holds: Mapping[str, Hold]) -> bool:
        """Take holds away that are still as they were read; False when one of them is not.

        A write for every `MAX_SETTLED` of them: those before a refused one stand.
        """
        changes = [(serial, (hold, None)) for serial, hold in holds.items()]
        parts = [changes[at : at + MAX_SETTLED] for at in range(0, len(changes), MAX_SETTLED)]
        return all(self._change_holds(customer, meter, dict(part)) for part in parts)

    def shrink(self, customer: str, meter: str, serial: str, before: Hold, after: Hold) -> bool:
        """Give a part of a hold back; False when it is no longer as it was read."""
        return self._change_holds(customer, meter, {serial: (before, after)})

    def begin(self, customer: str, meter: str, before: Budget, period: Period, used: int) -> bool:
        """Begin a period with what is counted of it; False when the budget changed meanwhile.

        Neither may projection have counted anything since `before` was read (or it might be in
        `used`, or not), nor may anything have been held or given back.
        """
        held = sum(hold.sub_units for hold in before.holds.values())
        values: dict[str, Any] = {
            **_period_values(period),
            ":used": {"N": str(used)},
            ":committed": {"N": str(used + held)},
        }
        conditions = []
        for name, value in (("rev", before.revision), ("committed", before.committed)):
            if value or (name == "committed" and before.period is not None):
                conditions.append(f"{name} = :before_{name}")
                values[f":before_{name}"] = {"N": str(value)}
            else:
                conditions.append(f"attribute_not_exists({name})")
        sets = "#start = :start, #end = :end, used = :used, committed = :committed"
        if before.period is None:
            sets += ", holds = if_not_exists(holds, :none)"
            values[":none"] = {"M": {}}
        begun = self._update(
            customer,
            meter,
            {
                "ConditionExpression": " AND ".join(conditions),
                "UpdateExpression": f"SET {sets}",
                "ExpressionAttributeNames": {"#start": "start", "#end": "end"},
                "ExpressionAttributeValues": values,
            },
        )
        return begun is not None

    def _change_holds(
        self, customer: str, meter: str, changes: Mapping[str, tuple[Hold, Hold | None]]
    ) -> bool:
        given_back = sum(
            before.sub_units - (after.sub_units if after is not None else 0)
            for before, after in changes.values()
        )
        names, values, conditions, sets, removes = _write_holds(changes)
        request: dict[str, Any] = {
            "ConditionExpression": " AND ".join(conditions),
            "UpdateExpression": ", ".join(["SET committed = committed - :back", *sets])
            + (f" REMOVE {', '.join(removes)}" if removes else ""),
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": {**values, ":back": {"N": str(given_back)}},
        }
        return self._update(customer, meter, request) is not None

    def _update(
        self, customer: str, meter: str, request: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        try:
            answer = self._wire.call(
                "UpdateItem",
                {
                    "TableName": self._table,
                    "Key": _key(customer, meter),
                    "ReturnValues": "UPDATED_NEW",
                    **request,
                },
            )
        except StorageError as error:
            if error.code == "ConditionalCheckFailedException":
                return None
            raise
        changed: Mapping[str, Any] = answer.get("Attributes", {})
        return changed


def count_action(
    table: str, customer: str, meter: str, before: Budget, change: BudgetChange, newest_slot: int
) -> dict[str, Any]:
    """The part of a transaction that counts events into a budget, if it is as it was read."""
    names: dict[str, str] = {}
    values: dict[str, Any] = {":one": {"N": "1"}}
    adds = ["rev :one"]
    conditions: list[str] = []
    sets: list[str] = []
    removes: list[str] = []
    if before.period is None:
        conditions.append("attribute_not_exists(#start)")
        names["#start"] = "start"
    else:
        conditions.append("#start = :start AND #end = :end")
        names |= {"#start": "start", "#end": "end"}
        values |= _period_values(before.period)
        values |= {":used": {"N": str(change.used)}, ":committed": {"N": str(change.committed)}}
        adds += ["used :used", "committed :committed"]
        changes: dict[str, tuple[Hold, Hold | None]] = {
            serial: (hold, None) for serial, hold in change.settled.items()
        }
        changes |= change.drawn
        hold_names, hold_values, hold_conditions, sets, removes = _write_holds(changes)
        names |= hold_names
        values |= hold_values
        conditions += hold_conditions
    oldest_slot = newest_slot - PACE_SLOTS
    for place, (slot, sub_units) in enumerate(sorted(change.pace.items())):
        if slot > oldest_slot:
            names[f"#p{place}"] = f"p{slot}"
            values[f":p{place}"] = {"N": str(sub_units)}
            adds.append(f"#p{place} :p{place}")
    for place, slot in enumerate(slot for slot in before.pace if slot <= oldest_slot):
        names[f"#o{place}"] = f"p{slot}"
        removes.append(f"#o{place}")
    update = "ADD " + ", ".join(adds)
    if sets:
        update += " SET " + ", ".join(sets)
    if removes:
        update += " REMOVE " + ", ".join(removes)
    return {
        "Update": {
            "TableName": table,
            "Key": _key(customer, meter),
            "ConditionExpression": " AND ".join(conditions),
            "UpdateExpression": update,
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
        }
    }


def read_budget(item: Mapping[str, Any]) -> Budget:
    """Read a `budget` item."""
    return Budget(
        Period(parse_time(item["start"]["S"]), parse_time(item["end"]["S"]))
        if "start" in item
        else None,
        int(item["used"]["N"]) if "used" in item else 0,
        int(item["committed"]["N"]) if "committed" in item else 0,
        {serial: Hold.parse(hold["S"]) for serial, hold in item["holds"]["M"].items()}
        if "holds" in item
        else {},
        int(item["rev"]["N"]) if "rev" in item else 0,
        {
            int(name[1:]): int(value["N"])
            for name, value in item.items()
            if name[0] == "p" and name[1:].isdigit()
        },
    )


def slot_of(at_s: int) -> int:
    """The slot of a budget's pace that a second belongs to."""
    return at_s // SLOT_S


def _write_holds(
    changes: Mapping[str, tuple[Hold, Hold | None]],
) -> tuple[dict[str, str], dict[str, Any], list[str], list[str], list[str]]:
    names: dict[str, str] = {}
    values: dict[str, Any] = {}
    conditions, sets, removes = [], [], []
    for place, (serial, (before, after)) in enumerate(changes.items()):
        names[f"#h{place}"] = serial
        values[f":h{place}"] = {"S": before.text}
        conditions.append(f"holds.#h{place} = :h{place}")
        if after is None:
            removes.append(f"holds.#h{place}")
        else:
            values[f":l{place}"] = {"S": after.text}
            sets.append(f"holds.#h{place} = :l{place}")
    return names, values, conditions, sets, removes


def _period_values(period: Period) -> dict[str, Any]:
    return {":start": {"S": format_time(period.start)}, ":end": {"S": format_time(period.end)}}


def _key(customer: str, meter: str) -> dict[str, Any]:
    return {"pk": {"S": partition_key(customer, meter)}, "sk": {"S": "budget"}}

"""The `totals` table: counters derived from the ledger, and the checkpoints of its stream.

Partition key `pk` is `customer#meter`; sort keys and attributes:
`day#<YYYY-MM-DD>` has `q` and `n` (sub-units and events of the day) and, for each hour that saw
usage, `q00`..`q23` and `n00`..`n23`; `action#<day>#<name>` and `user#<day>#<name>` have `q` and
`n`. A checkpoint is at pk `shard#<shard>`, sk `checkpoint`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from meterline.adapters.dynamodb_emissions import batch_item, partition_key
from meterline.adapters.dynamodb_wire import (
    DynamoWire,
    TransactionCanceledError,
    back_off_s,
)
from meterline.domain.emission import HourTotal
from meterline.domain.projection import (
    Ahead,
    Checkpoint,
    Increment,
    PendingEmission,
    TotalsStep,
)
from meterline.errors import StorageError, StorageUnavailableError
from meterline.ports import CheckpointMovedError

MAX_STEP_ITEMS = 99
"""Items of a step: a transaction takes 100 (DynamoDB API reference), one is the checkpoint."""
_MAX_CONFLICTS = 8


class DynamoTotals:
    """Keeps `meterline.ports.Totals` and `meterline.ports.HourTotals`."""

    def __init__(self, wire: DynamoWire, totals_table: str, emissions_table: str) -> None:
        self._wire = wire
        self._totals_table = totals_table
        self._emissions_table = emissions_table

    def checkpoint(self, shard: str) -> Checkpoint:
        """How far the shard is counted, read strongly consistently. One read unit."""
        item = self._get(f"shard#{shard}", "checkpoint")
        if item is None:
            return Checkpoint()
        return Checkpoint(
            int(item["through"]["S"]) if "through" in item else None,
            _read_pending(item["pending"]["S"]) if "pending" in item else None,
            Ahead(*map(int, item["ahead"]["S"].split(":"))) if "ahead" in item else None,
        )

    def apply(self, shard: str, expected: Checkpoint, step: TotalsStep) -> Checkpoint:
        """Count a step, make its batches and move the checkpoint, in one transaction.

        Two write units per kilobyte of each item. Raises `CheckpointMovedError`, or
        `StorageUnavailableError` when other transactions were in the way for too long.
        """
        now = datetime.now(UTC)
        moved = Checkpoint(step.through, step.pending() or None, step.ahead)
        # The checkpoint goes first, so that its reason is the first of a refused transaction.
        actions: list[dict[str, Any]] = [{"Update": self._move(shard, expected, moved)}]
        for day, hours in step.days.items():
            total = Increment(
                sum(increment.sub_units for increment in hours.values()),
                sum(increment.events for increment in hours.values()),
            )
            counters = {"": total} | {f"{hour:02d}": more for hour, more in hours.items()}
            actions.append(self._add(day.customer, day.meter, f"day#{day.day}", counters))
        for share, more in step.shares.items():
            sort_key = f"{share.kind}#{share.day}#{share.name}"
            actions.append(self._add(share.customer, share.meter, sort_key, {"": more}))
        for batch in step.emission_batches():
            item = batch_item(batch, now)
            actions.append({"Put": {"TableName": self._emissions_table, "Item": item}})
        for tries in range(1, _MAX_CONFLICTS + 1):
            try:
                self._wire.call("TransactWriteItems", {"TransactItems": actions})
            except TransactionCanceledError as error:
                if error.reasons and error.reasons[0] == "ConditionalCheckFailed":
                    raise CheckpointMovedError(f"the checkpoint of {shard} moved") from None
                if not error.is_conflict:
                    raise
                time.sleep(back_off_s(tries))
            else:
                return moved
        raise StorageUnavailableError(f"{_MAX_CONFLICTS} transactions of {shard} met others")

    def clear_pending(self, shard: str, checkpoint: Checkpoint) -> None:
        """Forget the hand-overs of `checkpoint`, unless it has moved since. One write unit."""
        try:
            self._wire.call(
                "UpdateItem", self._move(shard, checkpoint, replace(checkpoint, pending=None))
            )
        except StorageError as error:
            if error.code != "ConditionalCheckFailedException":
                raise
            # Somebody went on from here, and has the hand-overs in hand.

    def hour_total(self, customer: str, meter: str, hour: datetime) -> HourTotal:
        """What one hour holds, read strongly consistently. One read unit."""
        moment = hour.astimezone(UTC)
        item = self._get(partition_key(customer, meter), f"day#{moment:%Y-%m-%d}") or {}
        return HourTotal(
            int(item.get(f"q{moment:%H}", {"N": "0"})["N"]),
            int(item.get(f"n{moment:%H}", {"N": "0"})["N"]),
        )

    def day_total(self, customer: str, meter: str, day: str) -> HourTotal:
        """What one day (`YYYY-MM-DD`, UTC) holds, read strongly consistently. One read unit."""
        item = self._get(partition_key(customer, meter), f"day#{day}") or {}
        return HourTotal(int(item.get("q", {"N": "0"})["N"]), int(item.get("n", {"N": "0"})["N"]))

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

    def _add(
        self, customer: str, meter: str, sort_key: str, counters: Mapping[str, Increment]
    ) -> dict[str, Any]:
        values: dict[str, Any] = {}
        parts = []
        for place, (suffix, more) in enumerate(counters.items()):
            parts.append(f"q{suffix} :q{place}, n{suffix} :n{place}")
            values[f":q{place}"] = {"N": str(more.sub_units)}
            values[f":n{place}"] = {"N": str(more.events)}
        return {
            "Update": {
                "TableName": self._totals_table,
                "Key": {"pk": {"S": partition_key(customer, meter)}, "sk": {"S": sort_key}},
                "UpdateExpression": "ADD " + ", ".join(parts),
                "ExpressionAttributeValues": values,
            }
        }

    def _move(self, shard: str, expected: Checkpoint, moved: Checkpoint) -> dict[str, Any]:
        values = {":now": {"S": datetime.now(UTC).isoformat()}}
        conditions, sets, removed = [], ["moved_at = :now"], []
        for name, value in _write_place(expected).items():
            if value is None:
                conditions.append(f"attribute_not_exists({name})")
            else:
                conditions.append(f"{name} = :expected_{name}")
                values[f":expected_{name}"] = {"S": value}
        pending = _write_pending(moved.pending) if moved.pending else None
        for name, value in (_write_place(moved) | {"pending": pending}).items():
            if value is None:
                removed.append(name)
            else:
                sets.append(f"{name} = :{name}")
                values[f":{name}"] = {"S": value}
        update = "SET " + ", ".join(sets)
        if removed:
            update += " REMOVE " + ", ".join(removed)
        return {
            "TableName": self._totals_table,
            "Key": {"pk": {"S": f"shard#{shard}"}, "sk": {"S": "checkpoint"}},
            "UpdateExpression": update,
            "ConditionExpression": " AND ".join(conditions),
            "ExpressionAttributeValues": values,
        }


def _write_place(checkpoint: Checkpoint) -> dict[str, str | None]:
    """Where a checkpoint stands: no two of one shard's are alike, so it is also its version."""
    ahead = checkpoint.ahead
    return {
        "through": None if checkpoint.through is None else str(checkpoint.through),
        "ahead": None if ahead is None else f"{ahead.lane}:{ahead.sequence}:{ahead.until}",
    }


def _write_pending(pending: PendingEmission) -> str:
    return json.dumps([pending.id, pending.batches, pending.hours], separators=(",", ":"))


def _read_pending(text: str) -> PendingEmission:
    step_id, batches, hours = json.loads(text)
    return PendingEmission(
        step_id,
        tuple((customer, meter) for customer, meter in batches),
        tuple((customer, meter, hour) for customer, meter, hour in hours),
    )

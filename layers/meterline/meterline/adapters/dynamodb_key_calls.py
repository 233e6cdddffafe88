"""How many calls each API key makes, in the `accounts` table: pk `calls#<hash>`, sk `calls`.

One item a key, used again for each slot of time, so that nothing is left to be cleared away. It
is apart from the key's own item: whoever may count calls cannot change what a key opens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from meterline.adapters.dynamodb_wire import DynamoWire, Item, read_many
from meterline.domain.times import format_time, parse_time
from meterline.errors import StorageError

DEADLINE_S = 0.5
"""A call waits no longer for leave to go on."""
_ADD = ("SET last_used_at = :now ADD calls :calls", "slot = :slot")
_BEGIN = (
    "SET slot = :slot, calls = :calls, last_used_at = :now",
    "attribute_not_exists(slot) OR slot < :slot",
)


class DynamoKeyCalls:
    """Keeps `meterline.ports.KeyCalls`."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table

    def add(self, key_hash: str, slot: int, calls: int, now: datetime) -> int:
        """Add calls to a slot; how many it has now. One write unit, two when the slot is new.

        What another process has found to be a later slot already is left as it is.
        """
        values = {":slot": {"N": str(slot)}, ":calls": {"N": str(calls)}}
        # When the slot is new, another process may begin it between the first two tries.
        for change, condition in (_ADD, _BEGIN, _ADD):
            total = self._update(key_hash, change, condition, values, now)
            if total is not None:
                return total
        return calls

    def last_used(self, key_hashes: Sequence[str]) -> Mapping[str, datetime]:
        """When each key was last heard of, to the hour or better; unused ones are left out."""
        keys = [_key(key_hash) for key_hash in key_hashes]
        return {
            item["pk"]["S"].removeprefix("calls#"): parse_time(item["last_used_at"]["S"])
            for item in read_many(self._wire, self._table, keys)
        }

    def _update(
        self, key_hash: str, change: str, condition: str, values: Item, now: datetime
    ) -> int | None:
        request: dict[str, Any] = {
            "TableName": self._table,
            "Key": _key(key_hash),
            "UpdateExpression": change,
            "ConditionExpression": condition,
            "ExpressionAttributeValues": {**values, ":now": {"S": format_time(now)}},
            "ReturnValues": "UPDATED_NEW",
        }
        try:
            answer = self._wire.call("UpdateItem", request, deadline_s=DEADLINE_S)
        except StorageError as error:
            if error.code != "ConditionalCheckFailedException":
                raise
            return None
        return int(answer["Attributes"]["calls"]["N"])


def _key(key_hash: str) -> Item:
    return {"pk": {"S": f"calls#{key_hash}"}, "sk": {"S": "calls"}}

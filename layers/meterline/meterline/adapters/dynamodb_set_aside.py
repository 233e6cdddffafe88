"""Records that were set aside, each once: a delivery that fails afterwards brings them again.

The mark is an item of the `totals` table, at pk `aside#<event id>`, sk `record`. The stream keeps
a record for a day, so two days of marks are enough. Where a process ends between the letter and the
mark, the record is set aside a second time; never not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from pydantic_core import to_json

from meterline.adapters.dynamodb_stream import DeadLetters
from meterline.adapters.dynamodb_wire import DynamoWire, Item

_KEPT_FOR = timedelta(days=2)


class SetAsideOnce:
    """Keeps `DeadLetters` of the stream's reader in front of another."""

    def __init__(
        self,
        letters: DeadLetters,
        wire: DynamoWire,
        table: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._letters = letters
        self._wire = wire
        self._table = table
        self._now = now

    def put(self, body: Mapping[str, Any], reason: str) -> None:
        """Set a record aside, unless it is already; raises StorageUnavailableError."""
        key: Item = {"pk": {"S": f"aside#{_name(body)}"}, "sk": {"S": "record"}}
        held = self._wire.call(
            "GetItem", {"TableName": self._table, "Key": key, "ConsistentRead": True}
        )
        if "Item" in held:
            return
        self._letters.put(body, reason)
        expires_at = int((self._now() + _KEPT_FOR).timestamp())
        item = key | {"reason": {"S": reason}, "expires_at": {"N": str(expires_at)}}
        self._wire.call("PutItem", {"TableName": self._table, "Item": item})


def _name(record: Mapping[str, Any]) -> str:
    """The stream's own id of the record, or one made from all of it."""
    told = record.get("eventID")
    return told if isinstance(told, str) else sha256(to_json(record)).hexdigest()

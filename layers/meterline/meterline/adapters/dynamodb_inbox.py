"""The `inbox` table: which events of the billing layer were heard of, and how far they are.

Partition key `id` is the event's id; `queued_at` and `done_at` say how far it came. Nothing of an
event's content is kept. `poll#cursor` is where the poll of the billing layer's own list stands.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.domain.times import format_time
from meterline.domain.webhooks import Notice
from meterline.errors import StorageError

KEPT_FOR = timedelta(days=45)
"""Stripe delivers again for three days and lists events for thirty (API reference, events)."""
_CURSOR = "poll#cursor"


class DynamoInbox:
    """Keeps `meterline.ports.Inbox`. Raises StorageUnavailableError."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table

    def note(self, notice: Notice, now: datetime) -> bool:
        """Write the event down; whether it was queued before. One write unit."""
        values: dict[str, Any] = {
            ":now": {"S": format_time(now)},
            ":type": {"S": notice.type},
            ":created_s": {"N": str(notice.created_s)},
            ":expires_at": {"N": str(int((now + KEPT_FOR).timestamp()))},
            ":one": {"N": "1"},
        }
        answer = self._wire.call(
            "UpdateItem",
            {
                "TableName": self._table,
                "Key": {"id": {"S": notice.id}},
                "UpdateExpression": (
                    "SET received_at = if_not_exists(received_at, :now), #type = :type, "
                    "created_s = :created_s, expires_at = :expires_at ADD deliveries :one"
                ),
                "ExpressionAttributeNames": {"#type": "type"},
                "ExpressionAttributeValues": values,
                "ReturnValues": "ALL_NEW",
            },
        )
        return "queued_at" in answer["Attributes"]

    def mark_queued(self, notice_id: str, now: datetime) -> None:
        """Note that it is in the queue. One write unit."""
        self._set(notice_id, "queued_at", now)

    def is_done(self, notice_id: str) -> bool:
        """Whether it was handled, read strongly consistently."""
        return "done_at" in (self._get(notice_id) or {})

    def mark_done(self, notice_id: str, now: datetime) -> None:
        """Note that it was handled. One write unit."""
        self._set(notice_id, "done_at", now)

    def cursor(self) -> int | None:
        """Up to which second the list was read."""
        item = self._get(_CURSOR)
        return int(item["at_s"]["N"]) if item is not None else None

    def move_cursor(self, to_s: int) -> None:
        """Move the cursor forward; a poll that was slower than another one changes nothing."""
        try:
            self._wire.call(
                "UpdateItem",
                {
                    "TableName": self._table,
                    "Key": {"id": {"S": _CURSOR}},
                    "UpdateExpression": "SET at_s = :to",
                    "ConditionExpression": "attribute_not_exists(at_s) OR at_s < :to",
                    "ExpressionAttributeValues": {":to": {"N": str(to_s)}},
                },
            )
        except StorageError as error:
            if error.code != "ConditionalCheckFailedException":
                raise

    def _set(self, notice_id: str, name: str, now: datetime) -> None:
        self._wire.call(
            "UpdateItem",
            {
                "TableName": self._table,
                "Key": {"id": {"S": notice_id}},
                "UpdateExpression": f"SET {name} = if_not_exists({name}, :now)",
                "ExpressionAttributeValues": {":now": {"S": format_time(now)}},
            },
        )

    def _get(self, notice_id: str) -> dict[str, Any] | None:
        answer = self._wire.call(
            "GetItem",
            {"TableName": self._table, "Key": {"id": {"S": notice_id}}, "ConsistentRead": True},
        )
        return answer.get("Item")

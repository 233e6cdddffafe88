"""Freezes, notifications and the audit trail in the `accounts` table.

Items: pk `customer#<id>`, sk `freeze` (the last freeze, lifted or not); pk `notices#<id>`, sk the
notification's id; pk `audit#<id>`, sk `<time>#<what>`. A notification carries `kind = notice` until
it is on the event bus, so that the sparse index `by_kind` lists what is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic_core import from_json, to_json

from meterline.adapters.dynamodb_wire import DynamoWire, TransactionCanceledError, query_pages
from meterline.domain.controls import Freeze, Lifting
from meterline.domain.notifications import Channel, Happening, Notification
from meterline.domain.times import format_time, parse_time
from meterline.errors import StorageError, StorageUnavailableError

_OPEN = "notice"
_NOTICES = "notices#"


class DynamoGuardrails:
    """Keeps `meterline.ports.Guardrails` and `Deliveries`."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table

    def record(self, notification: Notification) -> bool:
        """Keep it, unless it is known; whether it is new. Two write units."""
        return self._write({"Put": self._notice(notification)})

    def is_known(self, notification: Notification) -> bool:
        """Whether it was recorded before, read strongly consistently. One read unit."""
        answer = self._wire.call(
            "GetItem",
            {
                "TableName": self._table,
                "Key": _notice_key(notification),
                "ConsistentRead": True,
            },
        )
        return "Item" in answer

    def mark_published(self, notification: Notification) -> None:
        """It is on the event bus. Two write units."""
        self._wire.call(
            "UpdateItem",
            {
                "TableName": self._table,
                "Key": _notice_key(notification),
                "UpdateExpression": "REMOVE kind",
            },
        )

    def list_open(self) -> Sequence[Notification]:
        """What was kept and never marked as published; read from the index, a moment late."""
        request: dict[str, Any] = {
            "TableName": self._table,
            "IndexName": "by_kind",
            "KeyConditionExpression": "kind = :kind",
            "ExpressionAttributeValues": {":kind": {"S": _OPEN}},
        }
        return [_read_notice(item) for item in query_pages(self._wire, request)]

    def list_notifications(self, customer: str) -> Sequence[Notification]:
        """The customer's in-app list, the newest first."""
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": {"S": f"{_NOTICES}{customer}"}},
        }
        found = [_read_notice(item) for item in query_pages(self._wire, request)]
        return sorted(found, key=lambda notification: notification.at, reverse=True)

    def list_audit(self, customer: str) -> Sequence[Mapping[str, str]]:
        """What was done to the customer, by whom, when and why; the oldest first."""
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": {"S": f"audit#{customer}"}},
        }
        return [
            {name: value["S"] for name, value in item.items() if name not in ("pk", "sk")}
            for item in query_pages(self._wire, request)
        ]

    def freeze(self, customer: str, freeze: Freeze, notification: Notification) -> bool:
        """Freeze, note it in the audit trail and keep the notification; False when frozen.

        One transaction of three items, six write units; made once, however often it is tried.
        """
        put = {
            "TableName": self._table,
            "Item": {
                **_freeze_key(customer),
                "frozen_at": {"S": format_time(freeze.frozen_at)},
                "reason": {"S": freeze.reason},
                "by": {"S": freeze.by},
                "detail": {"S": freeze.detail},
            },
            "ConditionExpression": "attribute_not_exists(pk) OR attribute_exists(lifted_at)",
        }
        audit = self._audit(customer, freeze.frozen_at, "frozen", freeze.by, freeze.detail)
        return self._write({"Put": put}, {"Put": audit}, {"Put": self._notice(notification)})

    def unfreeze(
        self, customer: str, freeze: Freeze, lifted: Lifting, notification: Notification
    ) -> bool:
        """Lift this very freeze, with the audit trail; False when it is another or lifted."""
        update = {
            "TableName": self._table,
            "Key": _freeze_key(customer),
            "UpdateExpression": "SET lifted_at = :at",
            "ConditionExpression": "frozen_at = :frozen AND attribute_not_exists(lifted_at)",
            "ExpressionAttributeValues": {
                ":at": {"S": format_time(lifted.at)},
                ":frozen": {"S": format_time(freeze.frozen_at)},
            },
        }
        audit = self._audit(customer, lifted.at, "unfrozen", lifted.by, lifted.reason)
        return self._write({"Update": update}, {"Put": audit}, {"Put": self._notice(notification)})

    def claim(self, notification: Notification, channel: Channel, now_s: int, until_s: int) -> bool:
        """Take a channel's delivery in hand until then; False when it is done or in other hands."""
        name = channel.value
        try:
            self._wire.call(
                "UpdateItem",
                {
                    "TableName": self._table,
                    "Key": _notice_key(notification),
                    "UpdateExpression": f"SET {name}_claim = :until",
                    "ConditionExpression": f"attribute_exists(pk) AND attribute_not_exists({name}"
                    f"_done) AND (attribute_not_exists({name}_claim) OR {name}_claim <= :now)",
                    "ExpressionAttributeValues": {
                        ":until": {"N": str(until_s)},
                        ":now": {"N": str(now_s)},
                    },
                },
            )
        except StorageError as error:
            if error.code != "ConditionalCheckFailedException":
                raise
            return False
        return True

    def is_delivered(self, notification: Notification, channel: Channel) -> bool:
        """Whether the channel has it."""
        answer = self._wire.call(
            "GetItem",
            {
                "TableName": self._table,
                "Key": _notice_key(notification),
                "ConsistentRead": True,
            },
        )
        return f"{channel.value}_done" in answer.get("Item", {})

    def settle(self, notification: Notification, channel: Channel, outcome: str) -> None:
        """Write down how the delivery ended: `sent`, or `skipped: <why>`."""
        self._wire.call(
            "UpdateItem",
            {
                "TableName": self._table,
                "Key": _notice_key(notification),
                "UpdateExpression": f"SET {channel.value}_done = :outcome",
                "ExpressionAttributeValues": {":outcome": {"S": outcome}},
            },
        )

    def give_up_claim(self, notification: Notification, channel: Channel) -> None:
        """The delivery failed: the next try need not wait for the claim to end."""
        self._wire.call(
            "UpdateItem",
            {
                "TableName": self._table,
                "Key": _notice_key(notification),
                "UpdateExpression": f"REMOVE {channel.value}_claim",
            },
        )

    def _notice(self, notification: Notification) -> dict[str, Any]:
        return {
            "TableName": self._table,
            "Item": {
                **_notice_key(notification),
                "kind": {"S": _OPEN},
                "happening": {"S": notification.happening.value},
                "at": {"S": format_time(notification.at)},
                "facts": {"S": to_json(dict(notification.facts)).decode()},
            },
            "ConditionExpression": "attribute_not_exists(pk)",
        }

    def _audit(self, customer: str, at: datetime, what: str, by: str, why: str) -> dict[str, Any]:
        moment = format_time(at)
        return {
            "TableName": self._table,
            "Item": {
                "pk": {"S": f"audit#{customer}"},
                "sk": {"S": f"{moment}#{what}"},
                "at": {"S": moment},
                "what": {"S": what},
                "by": {"S": by},
                "why": {"S": why},
            },
        }

    def _write(self, *actions: Mapping[str, Any]) -> bool:
        try:
            self._wire.call("TransactWriteItems", {"TransactItems": list(actions)})
        except TransactionCanceledError as error:
            if "ConditionalCheckFailed" in error.reasons:
                return False
            if error.is_conflict:
                raise StorageUnavailableError("another write was in the way") from None
            raise
        return True


def _notice_key(notification: Notification) -> dict[str, Any]:
    return {"pk": {"S": f"{_NOTICES}{notification.customer}"}, "sk": {"S": notification.id}}


def _freeze_key(customer: str) -> dict[str, Any]:
    return {"pk": {"S": f"customer#{customer}"}, "sk": {"S": "freeze"}}


def _read_notice(item: Mapping[str, Any]) -> Notification:
    return Notification(
        item["sk"]["S"],
        item["pk"]["S"].removeprefix(_NOTICES),
        Happening(item["happening"]["S"]),
        parse_time(item["at"]["S"]),
        from_json(item["facts"]["S"]),
    )

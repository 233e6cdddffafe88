"""Links that were followed, in the `accounts` table at pk `link#<id>` until `forget_at` (TTL)."""

from __future__ import annotations

from datetime import datetime

from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.errors import StorageError


class DynamoLinks:
    """Keeps `meterline.ports.FollowedLinks`."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table

    def follow(self, link: str, expires_at: datetime) -> bool:
        """Whether it is the first time; one conditional write. DynamoDB forgets it afterwards."""
        item = {
            "pk": {"S": f"link#{link}"},
            "sk": {"S": "followed"},
            "forget_at": {"N": str(int(expires_at.timestamp()) + 1)},
        }
        request = {
            "TableName": self._table,
            "Item": item,
            "ConditionExpression": "attribute_not_exists(pk)",
        }
        try:
            self._wire.call("PutItem", request)
        except StorageError as error:
            if error.code != "ConditionalCheckFailedException":
                raise
            return False
        return True

"""Which events are counted, event by event: for finding those that are not.

A batch names its events. Those that are in none, because their meter is sent as totals or because
they are of zero, are written down by the step that counts them: 20 bytes each in one item of the
`emissions` table, at pk `counted#<YYYY-MM-DDTHH>` of its hour, or at the customer's and meter's
own pk where a recount counted them. They are kept for as long as batches are.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from meterline.adapters.dynamodb_emissions import (
    KEPT_FOR,
    pack_identifier,
    unpack_entries,
    unpack_identifiers,
)
from meterline.adapters.dynamodb_wire import DynamoWire, Item, query_pages
from meterline.adapters.partition_keys import partition_key
from meterline.domain.projection import RECOUNT_STEP

_COUNTED = "counted#"
_HOUR = timedelta(hours=1)


def counted_item(
    step: str, identifiers: Iterable[str], now: datetime, *, recount_of: tuple[str, str] | None
) -> Item:
    """The item that says which events a step counted without a batch."""
    packed = b"".join(map(pack_identifier, identifiers))
    pk = partition_key(*recount_of) if recount_of else _hour_key(now)
    return {
        "pk": {"S": pk},
        "sk": {"S": f"{_COUNTED}{step}"},
        "identifiers": {"B": base64.b64encode(packed).decode()},
        "expires_at": {"N": str(int((now + KEPT_FOR).timestamp()))},
    }


class DynamoCountedEvents:
    """Keeps `meterline.ports.CountedEvents` on the `emissions` table."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table

    def list_batched(self, customer: str, meter: str) -> set[str]:
        """The events of all batches; a read unit for every 4 KB, some 140 events."""
        found: set[str] = set()
        for item in self._query(partition_key(customer, meter), "batch#"):
            packed = base64.b64decode(item["entries"]["B"])
            found.update(entry.identifier for entry in unpack_entries(packed))
        return found

    def list_unbatched(self, first: datetime, last: datetime) -> set[str]:
        """The events that streams' steps between the two counted without a batch."""
        found: set[str] = set()
        hour = first.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        while hour <= last:
            for item in self._query(_hour_key(hour), _COUNTED):
                found.update(unpack_identifiers(base64.b64decode(item["identifiers"]["B"])))
            hour += _HOUR
        return found

    def list_recounted(self, customer: str, meter: str) -> set[str]:
        """The events that recounts counted, in batches or not."""
        found: set[str] = set()
        pk = partition_key(customer, meter)
        for item in self._query(pk, _COUNTED):
            found.update(unpack_identifiers(base64.b64decode(item["identifiers"]["B"])))
        for item in self._query(pk, f"batch#{RECOUNT_STEP}"):
            packed = base64.b64decode(item["entries"]["B"])
            found.update(entry.identifier for entry in unpack_entries(packed))
        return found

    def _query(self, pk: str, prefix: str) -> Iterator[Item]:
        request = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk AND begins_with(sk, :prefix)",
            "ExpressionAttributeValues": {":pk": {"S": pk}, ":prefix": {"S": prefix}},
            "ConsistentRead": True,
        }
        for item in query_pages(self._wire, request):
            yield dict(item)


def _hour_key(at: datetime) -> str:
    return f"{_COUNTED}{at.astimezone(UTC):%Y-%m-%dT%H}"

"""The `books` table: what was found out about whether ledger and bill agree.

`pk`, `sk` and what they hold: `dropped#<identifier>`, `report`: usage that the billing layer
dropped after taking it. `invoice#<id>`, `check`: an invoice next to the ledger.
`finding#<customer>#<meter>`, `<hour>`: a difference that is not explained away. `late#<invoice>`.
`audit#<YYYY-MM>`, `<time>#<n>`: what operators did. Items with `kind` and `at` are listed by the
sparse index `by_kind`: open findings, invoices that are held.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from meterline.adapters.dynamodb_wire import DynamoWire, Item, back_off_s
from meterline.domain.dropped import DroppedUsage
from meterline.domain.times import format_time
from meterline.errors import StorageUnavailableError

KEPT_FOR = timedelta(days=400)
"""As long as the record of what was sent."""
KEYS_PER_GET = 100
_MAX_GETS = 8


class DynamoDroppedUsages:
    """Keeps `meterline.ports.DroppedUsages`. Raises StorageUnavailableError."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table

    def record(self, samples: Sequence[DroppedUsage], now: datetime) -> None:
        """Keep the samples, one write unit each; the same again replaces it."""
        for sample in samples:
            self._wire.call(
                "PutItem",
                {
                    "TableName": self._table,
                    "Item": {
                        "pk": {"S": f"dropped#{sample.identifier}"},
                        "sk": {"S": "report"},
                        "code": {"S": sample.code},
                        "message": {"S": sample.message},
                        "reported_at": {"S": format_time(now)},
                        "expires_at": {"N": str(int((now + KEPT_FOR).timestamp()))},
                    },
                },
            )

    def find(self, identifiers: Sequence[str]) -> Mapping[str, DroppedUsage]:
        """Those that were named; half a read unit for each that is asked for."""
        found: dict[str, DroppedUsage] = {}
        for start in range(0, len(identifiers), KEYS_PER_GET):
            keys: list[Item] = [
                {"pk": {"S": f"dropped#{name}"}, "sk": {"S": "report"}}
                for name in identifiers[start : start + KEYS_PER_GET]
            ]
            for item in read_many(self._wire, self._table, keys):
                name = item["pk"]["S"].removeprefix("dropped#")
                found[name] = DroppedUsage(name, item["code"]["S"], item["message"]["S"])
        return found


def read_many(wire: DynamoWire, table: str, keys: Sequence[Item]) -> list[dict[str, Any]]:
    """Up to `KEYS_PER_GET` items by their keys; what is not there is left out."""
    request: dict[str, Any] = {table: {"Keys": list(keys)}}
    items: list[dict[str, Any]] = []
    for tries in range(1, _MAX_GETS + 1):
        answer = wire.call("BatchGetItem", {"RequestItems": request})
        items += answer["Responses"].get(table, ())
        request = answer.get("UnprocessedKeys") or {}
        if not request:
            return items
        time.sleep(back_off_s(tries))
    raise StorageUnavailableError("BatchGetItem: keys left unprocessed")

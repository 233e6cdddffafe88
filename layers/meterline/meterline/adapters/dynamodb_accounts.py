"""The `accounts` table: customers and API keys.

Items: pk `customer#<id>`, sk `profile`; pk `key#<hash>`, sk `key`. What every call needs is kept
in the process for `CACHE_S` seconds. What is not there is looked for every time, so that a new
customer or key counts at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from meterline.adapters.dynamodb_wire import DynamoWire, back_off_s
from meterline.domain.api_keys import ApiKey, Scope
from meterline.domain.customers import Customer
from meterline.domain.times import format_time, parse_time
from meterline.errors import StorageUnavailableError

CACHE_S = 30.0
"""How long a revoked key or a changed customer may still be taken for what it was."""
_CACHE_SIZE = 10_000
_KEYS_PER_GET = 100
_MAX_GETS = 8


class DynamoAccounts:
    """Keeps `meterline.ports.Customers`, `ApiKeys` and `BillingCustomers`."""

    def __init__(
        self, wire: DynamoWire, table: str, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wire = wire
        self._table = table
        self._monotonic = monotonic
        self._cache: dict[str, tuple[float, Mapping[str, Any]]] = {}

    def known(self, customers: Iterable[str]) -> set[str]:
        """Those of `customers` that exist; a read unit each, unless it was read lately."""
        wanted = {f"customer#{customer}" for customer in customers}
        found = self._read_many(wanted, "profile")
        return {pk.removeprefix("customer#") for pk in found}

    def billing_customer(self, customer: str) -> str | None:
        """The customer's id at the billing layer, or None."""
        item = self._read_many({f"customer#{customer}"}, "profile").get(f"customer#{customer}")
        return item["billing_customer"]["S"] if item and "billing_customer" in item else None

    def find(self, key_hash: str) -> ApiKey | None:
        """An API key by its hash."""
        pk = f"key#{key_hash}"
        item = self._read_many({pk}, "key").get(pk)
        if item is None:
            return None
        return ApiKey(
            hash=key_hash,
            name=item["name"]["S"],
            scopes=frozenset(Scope(scope) for scope in item["scopes"]["SS"]),
            created_at=parse_time(item["created_at"]["S"]),
            revoked_at=parse_time(item["revoked_at"]["S"]) if "revoked_at" in item else None,
        )

    def add_key(self, key: ApiKey) -> None:
        """Keep an API key; the same hash again replaces it."""
        item: dict[str, Any] = {
            "pk": {"S": f"key#{key.hash}"},
            "sk": {"S": "key"},
            "name": {"S": key.name},
            "scopes": {"SS": sorted(key.scopes)},
            "created_at": {"S": format_time(key.created_at)},
        }
        if key.revoked_at is not None:
            item["revoked_at"] = {"S": format_time(key.revoked_at)}
        self._wire.call("PutItem", {"TableName": self._table, "Item": item})

    def get_customer(self, customer: str) -> Customer | None:
        """One customer as it is now, read strongly consistently."""
        answer = self._wire.call(
            "GetItem",
            {
                "TableName": self._table,
                "Key": {"pk": {"S": f"customer#{customer}"}, "sk": {"S": "profile"}},
                "ConsistentRead": True,
            },
        )
        return _read_customer(answer["Item"]) if "Item" in answer else None

    def put_customer(
        self, customer: str, changes: Mapping[str, str | None], now: datetime
    ) -> Customer:
        """Create a customer or change the named fields of one; a None takes a field away."""
        names = {"#updated_at": "updated_at"}
        values = {":now": {"S": format_time(now)}}
        sets = ["#updated_at = :now", "created_at = if_not_exists(created_at, :now)"]
        removes = []
        for field, value in changes.items():
            names[f"#{field}"] = field
            if value is None:
                removes.append(f"#{field}")
            else:
                values[f":{field}"] = {"S": value}
                sets.append(f"#{field} = :{field}")
        update = "SET " + ", ".join(sets) + (" REMOVE " + ", ".join(removes) if removes else "")
        answer = self._wire.call(
            "UpdateItem",
            {
                "TableName": self._table,
                "Key": {"pk": {"S": f"customer#{customer}"}, "sk": {"S": "profile"}},
                "UpdateExpression": update,
                "ExpressionAttributeNames": names,
                "ExpressionAttributeValues": values,
                "ReturnValues": "ALL_NEW",
            },
        )
        self._cache.pop(f"customer#{customer}", None)
        return _read_customer(answer["Attributes"])

    def _read_many(self, pks: set[str], sk: str) -> dict[str, Mapping[str, Any]]:
        """Items by partition key, from the cache or the table; what is not there is left out."""
        now_s = self._monotonic()
        found: dict[str, Mapping[str, Any]] = {}
        for pk in pks:
            held = self._cache.get(pk)
            if held is not None and held[0] > now_s:
                found[pk] = held[1]
        missing = sorted(pks - found.keys())
        if len(self._cache) + len(missing) > _CACHE_SIZE:
            self._cache.clear()
        for start in range(0, len(missing), _KEYS_PER_GET):
            for item in self._get_many(missing[start : start + _KEYS_PER_GET], sk):
                pk = item["pk"]["S"]
                self._cache[pk] = (now_s + CACHE_S, item)
                found[pk] = item
        return found

    def _get_many(self, pks: list[str], sk: str) -> list[Mapping[str, Any]]:
        request: Mapping[str, Any] = {
            self._table: {
                "Keys": [{"pk": {"S": pk}, "sk": {"S": sk}} for pk in pks],
                "ConsistentRead": True,
            }
        }
        items: list[Mapping[str, Any]] = []
        for tries in range(1, _MAX_GETS + 1):
            answer = self._wire.call("BatchGetItem", {"RequestItems": request})
            items += answer["Responses"].get(self._table, [])
            request = answer.get("UnprocessedKeys") or {}
            if not request:
                return items
            time.sleep(back_off_s(tries))
        raise StorageUnavailableError("the accounts could not be read in time")


def _read_customer(item: Mapping[str, Any]) -> Customer:
    return Customer(
        id=item["pk"]["S"].removeprefix("customer#"),
        name=item["name"]["S"],
        email=item["email"]["S"] if "email" in item else None,
        plan=item["plan"]["S"],
        billing_customer=item["billing_customer"]["S"] if "billing_customer" in item else None,
        created_at=parse_time(item["created_at"]["S"]),
        updated_at=parse_time(item["updated_at"]["S"]),
    )

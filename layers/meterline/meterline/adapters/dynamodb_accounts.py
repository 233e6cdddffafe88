"""The `accounts` table: customers, their users and subscriptions, and API keys.

Items: pk `customer#<id>`, sk `profile`, `subscription` or `user#<id>`; pk `billing#<id>`, sk
`customer`, which says whose that id of the billing layer is; pk `key#<hash>`, sk `key`.
Profiles and keys carry `kind`, so that the sparse index `by_kind` lists them. What every call needs
is kept in the process for `CACHE_S` seconds. What is not there is looked for every time, so that a
new customer or key counts at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from meterline.adapters.dynamodb_wire import (
    DynamoWire,
    Item,
    TransactionCanceledError,
    back_off_s,
    query_pages,
    read_many,
)
from meterline.domain.api_keys import ApiKey, Scope
from meterline.domain.customers import Customer, Role, User
from meterline.domain.periods import Interval, Period
from meterline.domain.subscriptions import Subscription
from meterline.domain.times import format_time, parse_time
from meterline.errors import (
    BillingCustomerTakenError,
    StorageError,
    StorageUnavailableError,
    SupersededError,
)

CACHE_S = 30.0
"""How long a revoked key or a changed customer may still be taken for what it was."""
_CACHE_SIZE = 10_000
_MAX_GETS = 8
_MAX_PUTS = 6
_WRITES_PER_CALL = 25
"""What BatchWriteItem takes (DynamoDB API reference)."""


class DynamoAccounts:
    """Keeps `meterline.ports.Customers`, `CustomerAccounts`, `SubscriptionRecords`, `ApiKeys` and
    `BillingCustomers`."""

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
        """The customer's id at the billing layer, or None; one that is new counts at once."""
        pk = f"customer#{customer}"
        item = self._read_many({pk}, "profile").get(pk)
        if item is not None and "billing_customer" not in item:
            # Kept from a moment ago, perhaps: it may have one by now.
            self._cache.pop(pk, None)
            item = self._read_many({pk}, "profile").get(pk)
        return item["billing_customer"]["S"] if item and "billing_customer" in item else None

    def find(self, key_hash: str) -> ApiKey | None:
        """An API key by its hash."""
        pk = f"key#{key_hash}"
        item = self._read_many({pk}, "key").get(pk)
        return _read_key(item) if item is not None else None

    def list_keys(self) -> Sequence[ApiKey]:
        """Every API key, revoked ones too; read from the index, so a moment late."""
        request = {
            "TableName": self._table,
            "IndexName": "by_kind",
            "KeyConditionExpression": "kind = :kind",
            "ExpressionAttributeValues": {":kind": {"S": "api_key"}},
        }
        return [_read_key(item) for item in query_pages(self._wire, request)]

    def add_key(self, key: ApiKey) -> None:
        """Keep an API key; the same hash again replaces it."""
        self._wire.call("PutItem", self._write_key(key))

    def rotate_key(self, old: ApiKey, new: ApiKey) -> None:
        """Keep both as they are now, or neither: `SupersededError` where the old one is revoked.

        Who rotates read it from the index, which may not have heard of that.
        """
        unless_revoked = {"ConditionExpression": "attribute_not_exists(revoked_at)"}
        puts = [{"Put": self._write_key(old) | unless_revoked}, {"Put": self._write_key(new)}]
        try:
            self._wire.call("TransactWriteItems", {"TransactItems": puts})
        except TransactionCanceledError as error:
            if "ConditionalCheckFailed" in error.reasons:
                raise SupersededError(f"the key {old.name} is revoked") from None
            raise

    def _write_key(self, key: ApiKey) -> dict[str, Any]:
        item: dict[str, Any] = {
            "pk": {"S": f"key#{key.hash}"},
            "sk": {"S": "key"},
            "kind": {"S": "api_key"},
            "name": {"S": key.name},
            "scopes": {"SS": sorted(key.scopes)},
            "created_at": {"S": format_time(key.created_at)},
            "calls_per_s": {"N": str(key.calls_per_s)},
        }
        for name, moment in (("revoked_at", key.revoked_at), ("expires_at", key.expires_at)):
            if moment is not None:
                item[name] = {"S": format_time(moment)}
        return {"TableName": self._table, "Item": item}

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
        return read_customer(answer["Item"]) if "Item" in answer else None

    def put_customer(
        self, customer: str, changes: Mapping[str, str | None], now: datetime
    ) -> Customer:
        """Create a customer or change the named fields of one; a None takes a field away.

        A change of `billing_customer` is one transaction: the old one's subscription goes, so that
        no reader ever takes it for the new one's, and the new one is claimed, so that no two
        customers are ever billed to it. Raises `BillingCustomerTakenError`.
        """
        for tries in range(1, _MAX_PUTS + 1):
            found = self._put(customer, changes, now)
            self._cache.pop(f"customer#{customer}", None)
            if found is not None:
                return found
            time.sleep(back_off_s(tries))
        raise StorageUnavailableError(f"{customer} is being changed by others")

    def find_by_billing_customer(self, billing_customer: str) -> str | None:
        """The customer that has this id at the billing layer, read strongly consistently."""
        answer = self._wire.call(
            "GetItem",
            {"TableName": self._table, "Key": _claim(billing_customer), "ConsistentRead": True},
        )
        return answer["Item"]["customer"]["S"] if "Item" in answer else None

    def _put(
        self, customer: str, changes: Mapping[str, str | None], now: datetime
    ) -> Customer | None:
        """The customer as it was written; None when its billing customer changed meanwhile."""
        update: dict[str, Any] = {
            "TableName": self._table,
            "Key": _key(customer, "profile"),
            **_write_changes(changes, now),
        }
        if "billing_customer" not in changes:
            answer = self._wire.call("UpdateItem", {**update, "ReturnValues": "ALL_NEW"})
            return read_customer(answer["Attributes"])
        before = self.get_customer(customer)
        old = before.billing_customer if before is not None else None
        new = changes["billing_customer"]
        if old is None:
            update["ConditionExpression"] = "attribute_not_exists(billing_customer)"
        else:
            update["ConditionExpression"] = "billing_customer = :old"
            update["ExpressionAttributeValues"][":old"] = {"S": old}
        if old == new:
            try:
                answer = self._wire.call("UpdateItem", {**update, "ReturnValues": "ALL_NEW"})
            except StorageError as error:
                if error.code != "ConditionalCheckFailedException":
                    raise
                return None
            return read_customer(answer["Attributes"])
        claim = {
            "TableName": self._table,
            "ConditionExpression": "attribute_not_exists(pk) OR customer = :customer",
            "ExpressionAttributeValues": {":customer": {"S": customer}},
        }
        actions: list[dict[str, Any]] = [{"Update": update}]
        if new is not None:
            item = {**_claim(new), "customer": {"S": customer}}
            actions.append({"Put": {**claim, "Item": item}})
        if old is not None:
            actions.append({"Delete": {**claim, "Key": _claim(old)}})
            forget = {"TableName": self._table, "Key": _key(customer, "subscription")}
            actions.append({"Delete": forget})
        try:
            self._wire.call("TransactWriteItems", {"TransactItems": actions})
        except TransactionCanceledError as error:
            if new is not None and error.reasons[1:2] == ["ConditionalCheckFailed"]:
                raise BillingCustomerTakenError(f"{new} is another customer's") from None
            if error.is_conflict or error.reasons[:1] == ["ConditionalCheckFailed"]:
                return None
            raise
        return self.get_customer(customer)

    def list_customers(self, limit: int, after: str | None) -> Sequence[Customer]:
        """Up to `limit` customers by id, behind `after`; read from the index, so a moment late."""
        condition, values = "kind = :kind", {":kind": {"S": "customer"}}
        if after is not None:
            condition += " AND pk > :after"
            values[":after"] = {"S": f"customer#{after}"}
        request = {
            "TableName": self._table,
            "IndexName": "by_kind",
            "KeyConditionExpression": condition,
            "ExpressionAttributeValues": values,
        }
        return [read_customer(item) for item in query_pages(self._wire, request, limit)]

    def of_billing_customer(self, billing_customer: str) -> Sequence[str]:
        """The customer with that id at the billing layer, as a list of one or none.

        Read strongly consistently: an event that comes right after a customer was linked is not
        taken for somebody else's.
        """
        found = self.find_by_billing_customer(billing_customer)
        return [found] if found is not None else []

    def list_users(self, customer: str) -> Sequence[User]:
        """The customer's users by id, read strongly consistently."""
        request = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk AND begins_with(sk, :user)",
            "ExpressionAttributeValues": {
                ":pk": {"S": f"customer#{customer}"},
                ":user": {"S": "user#"},
            },
            "ConsistentRead": True,
        }
        return [read_user(item) for item in query_pages(self._wire, request)]

    def put_users(self, customer: str, users: Sequence[User]) -> None:
        """Make these the customer's users: a write unit for each one that differs."""
        before = {user.id: user for user in self.list_users(customer)}
        wanted = {user.id: user for user in users}
        writes: list[dict[str, Any]] = [
            {"PutRequest": {"Item": _write_user(customer, user)}}
            for user in wanted.values()
            if before.get(user.id) != user
        ]
        writes += [
            {"DeleteRequest": {"Key": _key(customer, f"user#{gone}")}}
            for gone in before.keys() - wanted.keys()
        ]
        for start in range(0, len(writes), _WRITES_PER_CALL):
            self._write_many(writes[start : start + _WRITES_PER_CALL])

    def get_subscription(self, customer: str) -> Subscription | None:
        """The customer's subscription as last heard, read strongly consistently."""
        answer = self._wire.call(
            "GetItem",
            {
                "TableName": self._table,
                "Key": _key(customer, "subscription"),
                "ConsistentRead": True,
            },
        )
        return read_subscription(answer["Item"]) if "Item" in answer else None

    def replace_subscription(
        self,
        customer: str,
        billing_customer: str,
        before: Subscription | None,
        after: Subscription | None,
    ) -> None:
        """Write `after` (None: take it away) in the place of `before`, or `SupersededError`."""
        change: dict[str, Any] = {
            "TableName": self._table,
            "ConditionExpression": "attribute_not_exists(pk)",
        }
        if before is not None:
            change["ConditionExpression"] = "synced_at = :before"
            change["ExpressionAttributeValues"] = {":before": {"S": format_time(before.synced_at)}}
        if after is not None:
            item = {**_key(customer, "subscription"), **_write_subscription(after)}
            action = {"Put": {**change, "Item": item}}
        else:
            action = {"Delete": {**change, "Key": _key(customer, "subscription")}}
        is_same_customer = {
            "TableName": self._table,
            "Key": _key(customer, "profile"),
            "ConditionExpression": "billing_customer = :billing_customer",
            "ExpressionAttributeValues": {":billing_customer": {"S": billing_customer}},
        }
        try:
            self._wire.call(
                "TransactWriteItems",
                {"TransactItems": [action, {"ConditionCheck": is_same_customer}]},
            )
        except TransactionCanceledError as error:
            if error.is_conflict or "ConditionalCheckFailed" in error.reasons:
                raise SupersededError(f"the subscription of {customer} changed meanwhile") from None
            raise

    def _write_many(self, writes: list[dict[str, Any]]) -> None:
        request: Mapping[str, Any] = {self._table: writes}
        for tries in range(1, _MAX_GETS + 1):
            answer = self._wire.call("BatchWriteItem", {"RequestItems": request})
            request = answer.get("UnprocessedItems") or {}
            if not request:
                return
            time.sleep(back_off_s(tries))
        raise StorageUnavailableError("the users could not be written in time")

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
        keys: list[Item] = [{"pk": {"S": pk}, "sk": {"S": sk}} for pk in missing]
        for item in read_many(self._wire, self._table, keys, consistent=True):
            pk = item["pk"]["S"]
            self._cache[pk] = (now_s + CACHE_S, item)
            found[pk] = item
        return found


def _read_key(item: Mapping[str, Any]) -> ApiKey:
    return ApiKey(
        hash=item["pk"]["S"].removeprefix("key#"),
        name=item["name"]["S"],
        scopes=frozenset(Scope(scope) for scope in item["scopes"]["SS"]),
        created_at=parse_time(item["created_at"]["S"]),
        revoked_at=_read_time(item, "revoked_at"),
        expires_at=_read_time(item, "expires_at"),
        calls_per_s=int(item["calls_per_s"]["N"]),
    )


def read_customer(item: Mapping[str, Any]) -> Customer:
    """Read a `profile` item."""
    return Customer(
        id=item["pk"]["S"].removeprefix("customer#"),
        name=item["name"]["S"],
        email=item["email"]["S"] if "email" in item else None,
        plan=item["plan"]["S"],
        billing_customer=item["billing_customer"]["S"] if "billing_customer" in item else None,
        created_at=parse_time(item["created_at"]["S"]),
        updated_at=parse_time(item["updated_at"]["S"]),
    )


def _claim(billing_customer: str) -> dict[str, Any]:
    return {"pk": {"S": f"billing#{billing_customer}"}, "sk": {"S": "customer"}}


def _key(customer: str, sk: str) -> dict[str, Any]:
    return {"pk": {"S": f"customer#{customer}"}, "sk": {"S": sk}}


def _write_changes(changes: Mapping[str, str | None], now: datetime) -> dict[str, Any]:
    """An UpdateItem's expression; names are all aliased, since `name` and `plan` are reserved."""
    names = {"#updated_at": "updated_at", "#kind": "kind"}
    values = {":now": {"S": format_time(now)}, ":kind": {"S": "customer"}}
    sets = ["#updated_at = :now", "#kind = :kind", "created_at = if_not_exists(created_at, :now)"]
    removes = []
    for field, value in changes.items():
        names[f"#{field}"] = field
        if value is None:
            removes.append(f"#{field}")
        else:
            values[f":{field}"] = {"S": value}
            sets.append(f"#{field} = :{field}")
    return {
        "UpdateExpression": "SET "
        + ", ".join(sets)
        + (" REMOVE " + ", ".join(removes) if removes else ""),
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": values,
    }


def _write_user(customer: str, user: User) -> dict[str, Any]:
    item: dict[str, Any] = {**_key(customer, f"user#{user.id}"), "role": {"S": user.role.value}}
    for field, value in (("name", user.name), ("email", user.email)):
        if value is not None:
            item[field] = {"S": value}
    return item


def read_user(item: Mapping[str, Any]) -> User:
    """Read a `user#<id>` item."""
    return User(
        id=item["sk"]["S"].removeprefix("user#"),
        name=item["name"]["S"] if "name" in item else None,
        email=item["email"]["S"] if "email" in item else None,
        role=Role(item["role"]["S"]),
    )


_SUBSCRIPTION_TEXTS = ("plan", "metered_item", "meter", "metered_price")
_SUBSCRIPTION_TIMES = ("cancel_at", "ended_at", "trial_start", "trial_end", "metered_since")


def _write_subscription(subscription: Subscription) -> dict[str, Any]:
    item: dict[str, Any] = {
        "subscription": {"S": subscription.id},
        "status": {"S": subscription.status},
        "currency": {"S": subscription.currency},
        "prices": {"L": [{"S": price} for price in subscription.prices]},
        "current_period_start": {"S": format_time(subscription.current.start)},
        "current_period_end": {"S": format_time(subscription.current.end)},
        "anchor": {"S": format_time(subscription.anchor)},
        "interval": {"S": subscription.interval.value},
        "interval_count": {"N": str(subscription.interval_count)},
        "started_at": {"S": format_time(subscription.started_at)},
        "synced_at": {"S": format_time(subscription.synced_at)},
        "past": {
            "L": [
                {"L": [{"S": format_time(period.start)}, {"S": format_time(period.end)}]}
                for period in subscription.past
            ]
        },
    }
    for field in _SUBSCRIPTION_TEXTS:
        text = getattr(subscription, field)
        if text is not None:
            item[field] = {"S": text}
    for field in _SUBSCRIPTION_TIMES:
        moment = getattr(subscription, field)
        if moment is not None:
            item[field] = {"S": format_time(moment)}
    return item


def read_subscription(item: Mapping[str, Any]) -> Subscription:
    """Read a `subscription` item."""
    return Subscription(
        id=item["subscription"]["S"],
        status=item["status"]["S"],
        plan=_read_text(item, "plan"),
        currency=item["currency"]["S"],
        prices=tuple(price["S"] for price in item["prices"]["L"]),
        metered_item=_read_text(item, "metered_item"),
        meter=_read_text(item, "meter"),
        current=_read_period(item["current_period_start"], item["current_period_end"]),
        anchor=parse_time(item["anchor"]["S"]),
        interval=Interval(item["interval"]["S"]),
        interval_count=int(item["interval_count"]["N"]),
        started_at=parse_time(item["started_at"]["S"]),
        cancel_at=_read_time(item, "cancel_at"),
        ended_at=_read_time(item, "ended_at"),
        trial_start=_read_time(item, "trial_start"),
        trial_end=_read_time(item, "trial_end"),
        synced_at=parse_time(item["synced_at"]["S"]),
        past=tuple(_read_period(*period["L"]) for period in item["past"]["L"]),
        metered_since=_read_time(item, "metered_since"),
        metered_price=_read_text(item, "metered_price"),
    )


def _read_text(item: Mapping[str, Any], field: str) -> str | None:
    return item[field]["S"] if field in item else None


def _read_time(item: Mapping[str, Any], field: str) -> datetime | None:
    return parse_time(item[field]["S"]) if field in item else None


def _read_period(start: Mapping[str, str], end: Mapping[str, str]) -> Period:
    return Period(parse_time(start["S"]), parse_time(end["S"]))

"""What the dashboard keeps in the `accounts` table, and a customer's whole partition in one query.

Items at pk `customer#<id>`: sk `limits`, and sk `billing`, what the billing layer said when it was
last asked for the dashboard. All else there is `meterline.adapters.dynamodb_accounts`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from pydantic_core import from_json, to_json

from meterline.adapters.dynamodb_accounts import read_customer, read_subscription, read_user
from meterline.adapters.dynamodb_wire import DynamoWire, query_pages
from meterline.domain.customers import Account
from meterline.domain.limits import Limit, Limits, MoneyLimit, QuantityLimit
from meterline.domain.overviews import BillingFacts, Comparison, Overview, PastInvoice
from meterline.domain.times import format_time, parse_time
from meterline.errors import StorageError, SupersededError


class DynamoOverviews:
    """Keeps `meterline.ports.Overviews`."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table

    def load(self, customer: str) -> Overview | None:
        """Everything of one customer; a read unit for every 4 KB: about a hundred users."""
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": {"S": f"customer#{customer}"}},
            "ConsistentRead": True,
        }
        items = list(query_pages(self._wire, request))
        return _read_overview(items)

    def put_limits(self, customer: str, limits: Limits) -> None:
        """Make these the customer's limits. One write unit."""
        item: dict[str, Any] = {
            **_key(customer, "limits"),
            "block_overage": {"BOOL": limits.block_overage},
        }
        for field, limit in (("warn_at", limits.warn_at), ("stop_at", limits.stop_at)):
            if limit is not None:
                item[field] = _write_limit(limit)
        if limits.changed_at is not None:
            item["changed_at"] = {"S": format_time(limits.changed_at)}
        if limits.changed_by is not None:
            item["changed_by"] = {"S": limits.changed_by}
        self._wire.call("PutItem", {"TableName": self._table, "Item": item})

    def put_facts(self, customer: str, facts: BillingFacts) -> None:
        """Remember what the billing layer said, unless it was asked again since."""
        item: dict[str, Any] = {
            **_key(customer, "billing"),
            "asked_at": {"S": format_time(facts.asked_at)},
            "invoices": {"S": to_json([_write_invoice(each) for each in facts.invoices]).decode()},
        }
        told = facts.comparison
        if told is not None:
            item["meter"] = {"S": told.meter}
            item["period_start"] = {"S": format_time(told.period_start)}
            item["until"] = {"S": format_time(told.until)}
            item["ours"] = {"N": str(told.ours)}
            item["theirs"] = {"N": str(told.theirs)}
            item["compared_at"] = {"S": format_time(told.compared_at)}
        try:
            self._wire.call(
                "PutItem",
                {
                    "TableName": self._table,
                    "Item": item,
                    "ConditionExpression": "attribute_not_exists(pk) OR asked_at <= :asked_at",
                    "ExpressionAttributeValues": {":asked_at": item["asked_at"]},
                },
            )
        except StorageError as error:
            if error.code != "ConditionalCheckFailedException":
                raise
            raise SupersededError(f"the billing layer was asked of {customer} again") from None


def _key(customer: str, sk: str) -> dict[str, Any]:
    return {"pk": {"S": f"customer#{customer}"}, "sk": {"S": sk}}


def _read_overview(items: list[Mapping[str, Any]]) -> Overview | None:
    by_sk = {item["sk"]["S"]: item for item in items}
    profile, subscription = by_sk.get("profile"), by_sk.get("subscription")
    if profile is None:
        return None
    limits, facts = by_sk.get("limits"), by_sk.get("billing")
    return Overview(
        Account(
            read_customer(profile),
            tuple(read_user(item) for sk, item in by_sk.items() if sk.startswith("user#")),
            read_subscription(subscription) if subscription is not None else None,
        ),
        read_limits(limits) if limits is not None else Limits(),
        _read_facts(facts) if facts is not None else None,
    )


def _write_limit(limit: Limit) -> dict[str, Any]:
    if isinstance(limit, QuantityLimit):
        return {"M": {"quantity": {"N": str(limit.quantity)}}}
    return {
        "M": {
            "amount_minor": {"N": str(limit.amount_minor)},
            "currency": {"S": limit.currency},
        }
    }


def _read_limit(item: Mapping[str, Any], field: str) -> Limit | None:
    if field not in item:
        return None
    told = item[field]["M"]
    if "quantity" in told:
        return QuantityLimit(Decimal(told["quantity"]["N"]))
    return MoneyLimit(int(told["amount_minor"]["N"]), told["currency"]["S"])


def read_limits(item: Mapping[str, Any]) -> Limits:
    """Read a `limits` item."""
    return Limits(
        _read_limit(item, "warn_at"),
        _read_limit(item, "stop_at"),
        item["block_overage"]["BOOL"],
        parse_time(item["changed_at"]["S"]) if "changed_at" in item else None,
        item["changed_by"]["S"] if "changed_by" in item else None,
    )


def _write_invoice(invoice: PastInvoice) -> dict[str, Any]:
    return {
        "id": invoice.id,
        "number": invoice.number,
        "status": invoice.status,
        "currency": invoice.currency,
        "total_minor": invoice.total_minor,
        "created_at": format_time(invoice.created_at),
        "page_url": invoice.page_url,
    }


def _read_facts(item: Mapping[str, Any]) -> BillingFacts:
    comparison = None
    if "compared_at" in item:
        comparison = Comparison(
            item["meter"]["S"],
            _read_time(item, "period_start"),
            _read_time(item, "until"),
            int(item["ours"]["N"]),
            int(item["theirs"]["N"]),
            _read_time(item, "compared_at"),
        )
    invoices = tuple(
        PastInvoice(**{**told, "created_at": parse_time(told["created_at"])})
        for told in from_json(item["invoices"]["S"])
    )
    return BillingFacts(_read_time(item, "asked_at"), comparison, invoices)


def _read_time(item: Mapping[str, Any], field: str) -> datetime:
    return parse_time(item[field]["S"])

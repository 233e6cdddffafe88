"""The `books` table: what was found out about whether ledger and bill agree.

`pk`, `sk` and what they hold: `dropped#<identifier>`, `report`: usage that the billing layer
dropped after taking it. `invoice#<id>`, `check`: an invoice next to the ledger.
`finding#<customer>#<meter>`, `<hour>`: a difference that is not explained away. `late#<invoice>`.
`audit#<YYYY-MM>`, `<time>#<n>`: what operators did. Items with `kind` and `at` are listed by the
sparse index `by_kind`: open findings, invoices that are held.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from meterline.adapters.dynamodb_wire import DynamoWire, Item, query_pages, read_many
from meterline.domain.dropped import DroppedUsage
from meterline.domain.invoice_checks import (
    CheckedSpan,
    CheckState,
    InvoiceCheck,
)
from meterline.domain.periods import Period
from meterline.domain.reconciliation import Cause, Difference, Explanation, HourKey
from meterline.domain.times import format_time, parse_time
from meterline.errors import StorageError, SupersededError

KEPT_FOR = timedelta(days=400)
"""As long as the record of what was sent."""


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
                        "expires_at": expiry(now),
                    },
                },
            )

    def find(self, identifiers: Sequence[str]) -> Mapping[str, DroppedUsage]:
        """Those that were named; half a read unit for each that is asked for."""
        found: dict[str, DroppedUsage] = {}
        keys: list[Item] = [
            {"pk": {"S": f"dropped#{name}"}, "sk": {"S": "report"}} for name in identifiers
        ]
        for item in read_many(self._wire, self._table, keys):
            name = item["pk"]["S"].removeprefix("dropped#")
            found[name] = DroppedUsage(name, item["code"]["S"], item["message"]["S"])
        return found


class DynamoFindings:
    """Keeps `meterline.ports.Findings`. Raises StorageUnavailableError."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table

    def open_hours(self, customer: str, meter: str) -> set[datetime]:
        """The hours of open findings."""
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk",
            "FilterExpression": "attribute_exists(kind)",
            "ExpressionAttributeValues": {":pk": {"S": _finding_pk(customer, meter)}},
            "ConsistentRead": True,
        }
        return {parse_time(item["sk"]["S"]) for item in query_pages(self._wire, request)}

    def put(self, difference: Difference, now: datetime) -> None:
        """Keep a difference. One write unit per kilobyte."""
        key = difference.key
        self._wire.call(
            "UpdateItem",
            {
                "TableName": self._table,
                "Key": _finding_key(key),
                "UpdateExpression": (
                    "SET kind = :kind, #at = if_not_exists(#at, :now), last_seen = :now, "
                    "customer = :customer, meter = :meter, local_sub_units = :local, "
                    "billed_sub_units = :billed, explanations = :explanations "
                    "REMOVE closed_at, expires_at"
                ),
                "ExpressionAttributeNames": {"#at": "at"},
                "ExpressionAttributeValues": {
                    ":kind": {"S": "finding"},
                    ":now": {"S": format_time(now)},
                    ":customer": {"S": key.customer},
                    ":meter": {"S": key.meter},
                    # As text: DynamoDB's numbers end at 38 digits.
                    ":local": {"S": str(difference.local_sub_units)},
                    ":billed": {"S": str(difference.billed_sub_units)},
                    ":explanations": {"S": _write_explanations(difference)},
                },
            },
        )

    def close(self, key: HourKey, now: datetime) -> None:
        """Take the finding out of the list; it stays as a record for `KEPT_FOR`."""
        self._wire.call(
            "UpdateItem",
            {
                "TableName": self._table,
                "Key": _finding_key(key),
                "UpdateExpression": "SET closed_at = :now, expires_at = :expires REMOVE kind",
                "ExpressionAttributeValues": {
                    ":now": {"S": format_time(now)},
                    ":expires": expiry(now),
                },
            },
        )

    def list_open(self) -> Iterator[Difference]:
        """Every open finding, oldest first; read from the index, so a moment late."""
        request = {
            "TableName": self._table,
            "IndexName": "by_kind",
            "KeyConditionExpression": "kind = :kind",
            "ExpressionAttributeValues": {":kind": {"S": "finding"}},
        }
        for item in query_pages(self._wire, request):
            key = HourKey(item["customer"]["S"], item["meter"]["S"], parse_time(item["sk"]["S"]))
            yield Difference(
                key,
                int(item["local_sub_units"]["S"]),
                int(item["billed_sub_units"]["S"]),
                _read_explanations(item["explanations"]["S"]),
            )


class DynamoInvoiceChecks:
    """Keeps `meterline.ports.InvoiceChecks`. Raises StorageUnavailableError."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table

    def get(self, invoice: str) -> InvoiceCheck | None:
        """The last comparison, read strongly consistently."""
        answer = self._wire.call(
            "GetItem",
            {"TableName": self._table, "Key": _check_key(invoice), "ConsistentRead": True},
        )
        return _read_check(answer["Item"]) if "Item" in answer else None

    def save(self, check: InvoiceCheck) -> InvoiceCheck:
        """Write it in the place of the version that was read, or `SupersededError`."""
        if not check.version:
            self._point_to(check)
        saved = replace(check, version=check.version + 1)
        token = uuid.uuid4().hex
        put: dict[str, Any] = {
            "TableName": self._table,
            "Item": {**_check_key(check.invoice), **_write_check(saved), "saved_by": {"S": token}},
            "ConditionExpression": "attribute_not_exists(pk)",
        }
        if check.version:
            put["ConditionExpression"] = "version = :expected"
            put["ExpressionAttributeValues"] = {":expected": {"N": str(check.version)}}
        try:
            self._wire.call("PutItem", put)
        except StorageError as error:
            if error.code != "ConditionalCheckFailedException":
                raise
            # The wire calls again when an answer is lost: then the other writer was ourselves.
            key = {"TableName": self._table, "Key": _check_key(check.invoice)}
            stored = self._wire.call("GetItem", {**key, "ConsistentRead": True})
            if stored.get("Item", {}).get("saved_by", {}).get("S") != token:
                raise SupersededError(f"the check of {check.invoice} changed meanwhile") from None
        return saved

    def invoice_of(self, customer: str, meter: str, at: datetime) -> str | None:
        """The invoice whose period of that meter contains `at`, if one was checked."""
        request = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk AND sk <= :at",
            "ExpressionAttributeValues": {
                ":pk": {"S": f"spans#{customer}#{meter}"},
                ":at": {"S": f"{format_time(at)}#~"},
            },
            "ScanIndexForward": False,
            "ConsistentRead": True,
        }
        for item in query_pages(self._wire, request):
            if parse_time(item["end"]["S"]) > at:
                return str(item["invoice"]["S"])
        return None

    def list_of(self, customer: str, meter: str) -> Iterator[str]:
        """The customer's invoices that bill the meter, newest period first."""
        request = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": {"S": f"spans#{customer}#{meter}"}},
            "ScanIndexForward": False,
        }
        for item in query_pages(self._wire, request):
            yield item["invoice"]["S"]

    def _point_to(self, check: InvoiceCheck) -> None:
        """From a customer's periods to the invoice, so that an event leads to its bill."""
        for span in check.spans:
            self._wire.call(
                "PutItem",
                {
                    "TableName": self._table,
                    "Item": {
                        "pk": {"S": f"spans#{check.customer}#{span.meter}"},
                        "sk": {"S": f"{format_time(span.period.start)}#{check.invoice}"},
                        "end": {"S": format_time(span.period.end)},
                        "invoice": {"S": check.invoice},
                    },
                },
            )

    def list_open(self) -> Iterator[InvoiceCheck]:
        """Invoices that are held, or final and different, oldest first."""
        request = {
            "TableName": self._table,
            "IndexName": "by_kind",
            "KeyConditionExpression": "kind = :kind",
            "ExpressionAttributeValues": {":kind": {"S": "invoice"}},
        }
        for item in query_pages(self._wire, request):
            yield _read_check(item)


def _check_key(invoice: str) -> Item:
    return {"pk": {"S": f"invoice#{invoice}"}, "sk": {"S": "check"}}


def _write_check(check: InvoiceCheck) -> Item:
    item: Item = {
        "customer": {"S": check.customer},
        "currency": {"S": check.currency},
        "state": {"S": check.state},
        "checked_at": {"S": format_time(check.checked_at)},
        "note": {"S": check.note},
        "version": {"N": str(check.version)},
        "spans": {"S": json.dumps([_write_span(span) for span in check.spans])},
    }
    if check.held_since is not None:
        item["held_since"] = {"S": format_time(check.held_since)}
    if check.final_since is not None:
        item["final_since"] = {"S": format_time(check.final_since)}
    if check.is_open:
        item["kind"] = {"S": "invoice"}
        item["at"] = {"S": format_time(check.held_since or check.checked_at)}
    return item


def _write_span(span: CheckedSpan) -> list[Any]:
    return [
        span.meter,
        format_time(span.period.start),
        format_time(span.period.end),
        str(span.ledger_sub_units),
        str(span.billed_sub_units),
        span.events,
        span.digest,
        span.plan,
        str(span.settled_sub_units),
        str(span.settling_sub_units),
        span.is_closed,
    ]


def _read_check(item: Mapping[str, Any]) -> InvoiceCheck:
    return InvoiceCheck(
        invoice=item["pk"]["S"].removeprefix("invoice#"),
        customer=item["customer"]["S"],
        currency=item["currency"]["S"],
        state=CheckState(item["state"]["S"]),
        spans=tuple(_read_span(*row) for row in json.loads(item["spans"]["S"])),
        checked_at=parse_time(item["checked_at"]["S"]),
        held_since=parse_time(item["held_since"]["S"]) if "held_since" in item else None,
        final_since=parse_time(item["final_since"]["S"]) if "final_since" in item else None,
        note=item["note"]["S"],
        version=int(item["version"]["N"]),
    )


def _read_span(
    meter: str,
    start: str,
    end: str,
    ledger: str,
    billed: str,
    events: int,
    digest: str,
    plan: str | None,
    settled: str,
    settling: str,
    is_closed: bool = False,
) -> CheckedSpan:
    return CheckedSpan(
        meter,
        Period(parse_time(start), parse_time(end)),
        int(ledger),
        int(billed),
        events,
        digest,
        plan,
        int(settled),
        int(settling),
        is_closed,
    )


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """What an operator did: who, what, to which thing, why, and what came of it."""

    at: datetime
    actor: str
    action: str
    subject: str
    reason: str
    outcome: str = ""


class DynamoAuditTrail:
    """What operators did, month by month; entries are written once and never changed."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table

    def record(self, entry: AuditEntry) -> None:
        """Write it down. Raises StorageUnavailableError: then nothing was to be done."""
        at = format_time(entry.at)
        self._wire.call(
            "PutItem",
            {
                "TableName": self._table,
                "Item": {
                    "pk": {"S": f"audit#{at[:7]}"},
                    "sk": {"S": f"{at}#{uuid.uuid4().hex[:8]}"},
                    "actor": {"S": entry.actor},
                    "action": {"S": entry.action},
                    "subject": {"S": entry.subject},
                    "reason": {"S": entry.reason},
                    "outcome": {"S": entry.outcome},
                },
            },
        )

    def list_month(self, month: str) -> Iterator[AuditEntry]:
        """The entries of a month (`YYYY-MM`), oldest first."""
        request = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": {"S": f"audit#{month}"}},
            "ConsistentRead": True,
        }
        for item in query_pages(self._wire, request):
            yield AuditEntry(
                parse_time(item["sk"]["S"].partition("#")[0]),
                *(item[name]["S"] for name in ("actor", "action", "subject", "reason", "outcome")),
            )


class DynamoRunCursor:
    """Keeps `meterline.ports.RunCursor` at pk `run#<name>`."""

    def __init__(self, wire: DynamoWire, table: str, name: str) -> None:
        self._wire = wire
        self._table = table
        self._key: Item = {"pk": {"S": f"run#{name}"}, "sk": {"S": "cursor"}}

    def read(self) -> str | None:
        """The place; None for the beginning."""
        answer = self._wire.call("GetItem", {"TableName": self._table, "Key": self._key})
        place = answer.get("Item", {}).get("place", {}).get("S")
        return None if place is None else str(place)

    def write(self, place: str | None) -> None:
        """The next run begins there."""
        item = self._key if place is None else {**self._key, "place": {"S": place}}
        self._wire.call("PutItem", {"TableName": self._table, "Item": item})


def _finding_pk(customer: str, meter: str) -> str:
    return f"finding#{customer}#{meter}"


def _finding_key(key: HourKey) -> Item:
    return {
        "pk": {"S": _finding_pk(key.customer, key.meter)},
        "sk": {"S": format_time(key.hour)},
    }


def _write_explanations(difference: Difference) -> str:
    rows = [
        [each.cause, str(each.sub_units), each.events, each.reason, list(each.identifiers)]
        for each in difference.explanations
    ]
    return json.dumps(rows, separators=(",", ":"))


def _read_explanations(text: str) -> tuple[Explanation, ...]:
    return tuple(
        Explanation(Cause(cause), int(sub_units), events, reason, tuple(identifiers))
        for cause, sub_units, events, reason, identifiers in json.loads(text)
    )


def expiry(now: datetime) -> dict[str, str]:
    """The `expires_at` of what is written now and is history."""
    return {"N": str(int((now + KEPT_FOR).timestamp()))}

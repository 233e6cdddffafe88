"""The `emissions` table: batches to send, how far their sending got, and what could not be billed.

Partition key `pk` is `customer#meter`; the sort key says what an item is:
`batch#<id>` the events of a batch, packed, written once by the totals' own transaction;
`send#<id>` how far sending that batch got; `hour#<YYYY-MM-DDTHH>` the same for an hour's total;
`problem#<identifier>` one event that could not be billed, in the sparse index `by_problem` while
it is open. Values are DynamoDB's own JSON, where bytes are base64 text.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from meterline.adapters.dynamodb_wire import (
    DynamoWire,
    Item,
    TransactionCanceledError,
    read_many,
)
from meterline.adapters.partition_keys import partition_key
from meterline.domain.emission import (
    BatchDue,
    EmissionBatch,
    EmissionDue,
    EmissionEntry,
    HourDue,
    Problem,
)
from meterline.domain.sending import Attempt, BatchSending, HourSending, Intent
from meterline.errors import StorageError, StorageUnavailableError, SupersededError

MAX_ENTRIES = 500
"""Entries in one batch: at most 15 kB packed, and about 40 s of serial calls to Stripe."""

KEPT_FOR = timedelta(days=400)
"""How long the record of what was sent is kept, once nothing about it is open."""

_CONDITION_FAILED = "ConditionalCheckFailedException"
_PREFIX = "ml_"
_IDENTIFIER_BYTES = 20
_AT_BYTES = 5


def batch_item(batch: EmissionBatch, made_at: datetime) -> Item:
    """The item of a new batch of 1 to `MAX_ENTRIES` entries, for a `Put` in TransactWriteItems.

    It comes with its time to live, which spares an update of every batch; the emitter takes it
    away while a problem of the batch is open.
    """
    if not 0 < len(batch.entries) <= MAX_ENTRIES:
        raise ValueError(f"a batch has 1 to {MAX_ENTRIES} entries, not {len(batch.entries)}")
    return {
        "pk": {"S": partition_key(batch.customer, batch.meter)},
        "sk": {"S": f"batch#{batch.id}"},
        "entries": {"B": base64.b64encode(pack_entries(batch.entries)).decode()},
        "count": {"N": str(len(batch.entries))},
        "made_at": {"S": made_at.astimezone(UTC).isoformat()},
        "expires_at": _expiry(made_at),
    }


def pack_entries(entries: Sequence[EmissionEntry]) -> bytes:
    """Entries as bytes, about 29 each: 20 of the identifier, 5 of the time, a length, the value."""
    packed = bytearray()
    for identifier, at_s, sub_units in entries:
        packed += pack_identifier(identifier)
        packed += at_s.to_bytes(_AT_BYTES, "big", signed=True)
        value = sub_units.to_bytes(sub_units.bit_length() // 8 + 1, "big", signed=True)
        packed.append(len(value))
        packed += value
    return bytes(packed)


def pack_identifier(identifier: str) -> bytes:
    """An event's identifier as 20 bytes."""
    digest = bytes.fromhex(identifier.removeprefix(_PREFIX))
    if len(digest) != _IDENTIFIER_BYTES or not identifier.startswith(_PREFIX):
        raise ValueError(f"not an event's identifier: {identifier!r}")
    return digest


def unpack_identifiers(packed: bytes) -> Iterator[str]:
    """The identifiers that `pack_identifier` packed, in order."""
    for start in range(0, len(packed), _IDENTIFIER_BYTES):
        yield _PREFIX + packed[start : start + _IDENTIFIER_BYTES].hex()


def unpack_entries(packed: bytes) -> list[EmissionEntry]:
    """The entries that `pack_entries` packed, in order."""
    entries = []
    position = 0
    while position < len(packed):
        identifier_end = position + _IDENTIFIER_BYTES
        at_end = identifier_end + _AT_BYTES
        value_end = at_end + 1 + packed[at_end]
        entries.append(
            EmissionEntry(
                _PREFIX + packed[position:identifier_end].hex(),
                int.from_bytes(packed[identifier_end:at_end], "big", signed=True),
                int.from_bytes(packed[at_end + 1 : value_end], "big", signed=True),
            )
        )
        position = value_end
    return entries


class DynamoEmissions:
    """The `emissions` table as the emitter's store; StorageUnavailableError, StorageError."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table

    def load_batch(self, due: BatchDue) -> tuple[EmissionBatch | None, BatchSending | None]:
        """The batch and how far its sending got, in one strongly consistent read."""
        batch_key, send_key = _key(due, f"batch#{due.batch}"), _key(due, f"send#{due.batch}")
        found = self._get_all([batch_key, send_key])
        item = found.get(f"batch#{due.batch}")
        batch = None
        if item is not None:
            entries = unpack_entries(base64.b64decode(item["entries"]["B"]))
            batch = EmissionBatch(due.customer, due.meter, due.batch, entries)
        sending = found.get(f"send#{due.batch}")
        return batch, None if sending is None else read_batch_sending(sending)

    def save_batch(
        self, due: BatchDue, sending: BatchSending, *, opened: Sequence[Problem], now: datetime
    ) -> BatchSending:
        """Write the state if its version is still the one that was read, and the problems."""
        saved = replace(sending, version=sending.version + 1)
        item = _key(due, f"send#{due.batch}") | _write_batch_sending(saved)
        if saved.done and not saved.has_open_problems:
            item["expires_at"] = _expiry(now)
        self._save(due, item, sending.version, opened, now)
        return saved

    def keep_batch(self, due: BatchDue) -> None:
        """Take the batch's time to live away, for as long as a problem of it is open."""
        self._update_existing(_key(due, f"batch#{due.batch}"), "REMOVE expires_at", {})

    def expire_batch(self, due: BatchDue, now: datetime) -> None:
        """Set the batch's time to live."""
        self._update_existing(
            _key(due, f"batch#{due.batch}"), "SET expires_at = :at", {":at": _expiry(now)}
        )

    def load_hour(self, due: HourDue) -> HourSending:
        """How far the hour's sending got, in one strongly consistent read."""
        item = self._get_all([_key(due, _hour_sk(due))]).get(_hour_sk(due))
        return HourSending() if item is None else _read_hour_sending(item)

    def save_hour(
        self, due: HourDue, sending: HourSending, *, opened: Sequence[Problem], now: datetime
    ) -> HourSending:
        """Write the state if its version is still the one that was read, and the problems."""
        saved = replace(sending, version=sending.version + 1)
        item = _key(due, _hour_sk(due)) | _write_hour_sending(saved)
        if saved.attempt is None and saved.resend_at_s() is None and saved.lapse is None:
            item["expires_at"] = _expiry(now)
        self._save(due, item, sending.version, opened, now)
        return saved

    def open_problem(self, due: EmissionDue, problem: Problem, now: datetime) -> bool:
        """Open it by itself, where nothing else is open of that event; whether it is."""
        update = self._open_problem(due, problem, now)
        update["ConditionExpression"] = "attribute_not_exists(problem) OR code = :code"
        try:
            self._wire.call("UpdateItem", update)
        except StorageError as error:
            if error.code != _CONDITION_FAILED:
                raise
            return False
        return True

    def resolve_problem(self, due: EmissionDue, identifier: str, now: datetime) -> None:
        """Take the problem out of the index `by_problem`; the item stays as the record of it."""
        self._update_existing(
            _key(due, f"problem#{identifier}"),
            "SET resolved_at = :now, expires_at = :expiry REMOVE problem",
            {":now": {"S": _iso(now)}, ":expiry": _expiry(now)},
        )

    def _get_all(self, keys: Sequence[Item]) -> dict[str, Item]:
        items = read_many(self._wire, self._table, keys, consistent=True)
        return {item["sk"]["S"]: dict(item) for item in items}

    def _save(
        self,
        due: EmissionDue,
        item: Item,
        expected_version: int,
        opened: Sequence[Problem],
        now: datetime,
    ) -> None:
        # The token tells our own write, whose answer was lost, from somebody else's.
        token = uuid.uuid4().hex
        put: dict[str, Any] = {
            "TableName": self._table,
            "Item": item | {"saved_by": {"S": token}},
        }
        if expected_version:
            put["ConditionExpression"] = "version = :expected"
            put["ExpressionAttributeValues"] = {":expected": {"N": str(expected_version)}}
        else:
            put["ConditionExpression"] = "attribute_not_exists(pk)"
        try:
            if opened:
                self._wire.call(
                    "TransactWriteItems",
                    {
                        "ClientRequestToken": token,
                        "TransactItems": [
                            {"Put": put},
                            *({"Update": self._open_problem(due, p, now)} for p in opened),
                        ],
                    },
                )
            else:
                self._wire.call("PutItem", put)
        except TransactionCanceledError as error:
            if error.is_conflict:
                raise StorageUnavailableError(str(error)) from error
            if "ConditionalCheckFailed" not in error.reasons:
                raise
            self._check_superseded(item, token, error)
        except StorageError as error:
            if error.code != _CONDITION_FAILED:
                raise
            self._check_superseded(item, token, error)

    def _check_superseded(self, item: Item, token: str, error: StorageError) -> None:
        key = {"pk": item["pk"], "sk": item["sk"]}
        stored = self._get_all([key]).get(item["sk"]["S"], {})
        if stored.get("saved_by", {}).get("S") != token:
            raise SupersededError(f"{item['pk']['S']} {item['sk']['S']}") from error

    def _open_problem(self, due: EmissionDue, problem: Problem, now: datetime) -> dict[str, Any]:
        source = due.batch if isinstance(due, BatchDue) else _hour_sk(due)
        return {
            "TableName": self._table,
            "Key": _key(due, f"problem#{problem.identifier}"),
            "UpdateExpression": (
                "SET problem = :kind, code = :code, message = :message, at_s = :at_s, #at = :at, "
                "sub_units = :sub_units, identifier = :identifier, customer = :customer, "
                "meter = :meter, #source = :source, last_seen = :now, "
                "first_seen = if_not_exists(first_seen, :now) REMOVE resolved_at, expires_at"
            ),
            "ExpressionAttributeNames": {"#at": "at", "#source": "source"},
            "ExpressionAttributeValues": {
                ":kind": {"S": str(problem.kind)},
                ":code": {"S": problem.code},
                ":message": {"S": problem.message},
                ":at_s": {"N": str(problem.at_s)},
                ":at": {"S": _iso(datetime.fromtimestamp(problem.at_s, UTC))},
                # As text: DynamoDB's numbers end at 38 digits.
                ":sub_units": {"S": str(problem.sub_units)},
                ":identifier": {"S": problem.identifier},
                ":customer": {"S": due.customer},
                ":meter": {"S": due.meter},
                ":source": {"S": source},
                ":now": {"S": _iso(now)},
            },
        }

    def _update_existing(self, key: Item, expression: str, values: Mapping[str, Any]) -> None:
        update: dict[str, Any] = {
            "TableName": self._table,
            "Key": key,
            "UpdateExpression": expression,
            "ConditionExpression": "attribute_exists(pk)",
        }
        if values:
            update["ExpressionAttributeValues"] = dict(values)
        try:
            self._wire.call("UpdateItem", update)
        except StorageError as error:
            if error.code != _CONDITION_FAILED:
                raise


def _key(due: EmissionDue, sort_key: str) -> Item:
    return {"pk": {"S": partition_key(due.customer, due.meter)}, "sk": {"S": sort_key}}


def _hour_sk(due: HourDue) -> str:
    return f"hour#{due.hour.astimezone(UTC):%Y-%m-%dT%H}"


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _expiry(now: datetime) -> dict[str, str]:
    return {"N": str(int((now + KEPT_FOR).timestamp()))}


def _write_pairs(pairs: Mapping[int, int]) -> dict[str, str]:
    return {"S": ",".join(f"{key}:{value}" for key, value in pairs.items())}


def _read_pairs(value: Mapping[str, str]) -> dict[int, int]:
    pairs = (pair.split(":") for pair in value["S"].split(",") if pair)
    return {int(key): int(number) for key, number in pairs}


def _write_batch_sending(sending: BatchSending) -> Item:
    item: Item = {
        "version": {"N": str(sending.version)},
        "progress": {"S": sending.progress},
        "unanswered": _write_pairs(sending.unanswered),
        "parks": {"N": str(sending.parks)},
        "done": {"BOOL": sending.done},
    }
    if sending.intent is not None:
        intent = sending.intent
        item["intent"] = {"S": f"{intent.start}:{intent.end}:{intent.at_s}"}
    return item


def read_batch_sending(item: Mapping[str, Any]) -> BatchSending:
    """Read a `send#<id>` item."""
    intent = None
    if "intent" in item:
        intent = Intent(*(int(part) for part in item["intent"]["S"].split(":")))
    return BatchSending(
        progress=item["progress"]["S"],
        version=int(item["version"]["N"]),
        unanswered=_read_pairs(item["unanswered"]),
        intent=intent,
        parks=int(item["parks"]["N"]),
        done=item["done"]["BOOL"],
    )


def _write_hour_sending(sending: HourSending) -> Item:
    item: Item = {
        "version": {"N": str(sending.version)},
        "sequence": {"N": str(sending.sequence)},
        "event_at_s": {"N": str(sending.event_at_s)},
        "strays": _write_pairs(sending.strays),
        "parks": {"N": str(sending.parks)},
    }
    if sending.sent_sub_units is not None:
        item["sent_sub_units"] = {"S": str(sending.sent_sub_units)}
    if sending.attempt is not None:
        item["attempt"] = {"S": f"{sending.attempt.sub_units}:{sending.attempt.at_s}"}
    if sending.lapse is not None:
        item["lapse"] = {"S": sending.lapse}
    return item


def _read_hour_sending(item: Item) -> HourSending:
    attempt = None
    if "attempt" in item:
        attempt = Attempt(*(int(part) for part in item["attempt"]["S"].split(":")))
    return HourSending(
        version=int(item["version"]["N"]),
        sequence=int(item["sequence"]["N"]),
        sent_sub_units=int(item["sent_sub_units"]["S"]) if "sent_sub_units" in item else None,
        event_at_s=int(item["event_at_s"]["N"]),
        attempt=attempt,
        strays=_read_pairs(item["strays"]),
        lapse=item["lapse"]["S"] if "lapse" in item else None,
        parks=int(item["parks"]["N"]),
    )

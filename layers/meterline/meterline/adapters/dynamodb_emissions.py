"""The `emissions` table: batches to send, how far their sending got, and what could not be billed.

Partition key `pk` is `customer#meter`; the sort key says what an item is:
`batch#<id>` the events of a batch, packed, written once by the totals' own transaction;
`send#<id>` how far sending that batch got; `hour#<YYYY-MM-DDTHH>` the same for an hour's total;
`problem#<identifier>` one event that could not be billed, in the sparse index `by_problem` while
it is open. Values are DynamoDB's own JSON, where bytes are base64 text.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime

from meterline.adapters.dynamodb_wire import Item
from meterline.domain.emission import EmissionBatch, EmissionEntry

MAX_ENTRIES = 500
"""Entries in one batch: at most 15 kB packed, and about 40 s of serial calls to Stripe."""

_PREFIX = "ml_"
_IDENTIFIER_BYTES = 20
_AT_BYTES = 5


def partition_key(customer: str, meter: str) -> str:
    """`customer#meter`: all that is kept about sending one customer's usage of one meter."""
    return f"{customer}#{meter}"


def batch_item(batch: EmissionBatch, made_at: datetime) -> Item:
    """The item of a new batch of 1 to `MAX_ENTRIES` entries, for a `Put` in TransactWriteItems.

    It has no time to live: the emitter sets one when every entry is settled.
    """
    if not 0 < len(batch.entries) <= MAX_ENTRIES:
        raise ValueError(f"a batch has 1 to {MAX_ENTRIES} entries, not {len(batch.entries)}")
    return {
        "pk": {"S": partition_key(batch.customer, batch.meter)},
        "sk": {"S": f"batch#{batch.id}"},
        "entries": {"B": base64.b64encode(pack_entries(batch.entries)).decode()},
        "count": {"N": str(len(batch.entries))},
        "made_at": {"S": made_at.astimezone(UTC).isoformat()},
    }


def pack_entries(entries: Sequence[EmissionEntry]) -> bytes:
    """Entries as bytes, about 29 each: 20 of the identifier, 5 of the time, a length, the value."""
    packed = bytearray()
    for identifier, at_s, sub_units in entries:
        digest = bytes.fromhex(identifier.removeprefix(_PREFIX))
        if len(digest) != _IDENTIFIER_BYTES or not identifier.startswith(_PREFIX):
            raise ValueError(f"not an event's identifier: {identifier!r}")
        packed += digest
        packed += at_s.to_bytes(_AT_BYTES, "big", signed=True)
        value = sub_units.to_bytes(sub_units.bit_length() // 8 + 1, "big", signed=True)
        packed.append(len(value))
        packed += value
    return bytes(packed)


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

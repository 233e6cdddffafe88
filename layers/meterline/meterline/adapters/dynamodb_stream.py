"""The ledger's stream as Lambda delivers it: records of one shard, in order, at least once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

from meterline.domain.meters import FinerThanSubUnitError, Meter
from meterline.domain.projection import ProjectedEvent
from meterline.domain.quantities import MAX_SUB_UNITS
from meterline.domain.usage import EventKey
from meterline.errors import ConfigurationError

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
"""As `meterline.domain.times.format_time` writes it: its first 13 characters are the UTC hour."""
_UNREADABLE = (
    KeyError,
    TypeError,
    ValueError,
    InvalidOperation,
    OverflowError,
    FinerThanSubUnitError,
)


class DeadLetters(Protocol):
    """Where a record goes that can never be counted."""

    def put(self, body: Mapping[str, Any], reason: str) -> None:
        """Keep it, with the reason; returns only when it is kept."""
        ...


@dataclass(frozen=True, slots=True)
class StreamBatch:
    """The events of one delivery, and how many of its records could not be read."""

    shard: str
    events: Sequence[ProjectedEvent]
    set_aside: int


class StreamReader:
    """Reads deliveries; what cannot be read is set aside with its reason, not dropped."""

    def __init__(
        self, meters: Mapping[str, Meter], dead_letters: DeadLetters, *, one_shard: bool = False
    ) -> None:
        self._meters = meters
        self._dead_letters = dead_letters
        self._one_shard = one_shard

    def __call__(self, delivery: Mapping[str, Any]) -> StreamBatch:
        """Read one delivery.

        Lambda names the shard only in tumbling windows (Lambda developer guide, DynamoDB
        windows). Without it two shards would share a checkpoint and lose usage, so a delivery
        that does not name it is a `ConfigurationError`, unless the stream is known to have one.
        """
        shard = delivery.get("shardId")
        if not shard:
            if not self._one_shard:
                raise ConfigurationError(
                    "the stream's delivery names no shard: give its event source mapping "
                    "a TumblingWindowInSeconds"
                )
            shard = "only"
        events = []
        set_aside = 0
        for record in delivery.get("Records", ()):
            try:
                events.append(self._read(record["dynamodb"]))
            except _UNREADABLE as error:
                self._dead_letters.put(record, f"unreadable_record: {error!r}")
                set_aside += 1
        return StreamBatch(shard, events, set_aside)

    def _read(self, change: Mapping[str, Any]) -> ProjectedEvent:
        image = change["NewImage"]
        key = EventKey.parse(image["k"]["S"])
        meter = self._meters[image["m"]["S"]]
        at = image["t"]["S"]
        if not _TIME.fullmatch(at):
            raise ValueError(f"{at!r} is not a time as the ledger writes it")
        sub_units = meter.to_sub_units(Decimal(image["q"]["N"]))
        if abs(sub_units) > MAX_SUB_UNITS:
            # More than a counter holds, and the transaction of its step would fail for ever.
            raise ValueError(f"more than {MAX_SUB_UNITS} sub-units")
        return ProjectedEvent(
            sequence=int(change["SequenceNumber"]),
            customer=key.customer,
            meter=meter.id,
            hour=at[:13],
            at_s=int(datetime.fromisoformat(at).timestamp()),
            received_at_s=int(image["r"]["N"]) // 1000,
            sub_units=sub_units,
            identifier=key.identifier,
            action=image["a"]["S"] if "a" in image else None,
            user=image["u"]["S"] if "u" in image else None,
            authorization=image["h"]["S"] if "h" in image else None,
        )

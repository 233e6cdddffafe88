"""The `totals` table: counters derived from the ledger, and the checkpoints of its stream.

Partition key `pk` is `customer#meter`; sort keys and attributes:
`day#<YYYY-MM-DD>` has `q` and `n` (sub-units and events of the day) and, for each hour that saw
usage, `q00`..`q23` and `n00`..`n23`, and `counted_at`, its newest step; `action#<day>#<bucket>`
and `user#<day>#<bucket>` have `q:<name>` and `n:<name>` for each name in that bucket, and a name
may be in several buckets. Where a day has few names, its users are among its actions, as
`qu:<name>` and `nu:<name>`. A day in which a period begins or ends at 09:23:41 has `n<092341` too
(what is dated before it) and `n@092341` (what was counted when that was known), each with its
`q`, and `action#<day>#<092341#<bucket>` for the names before it. `edge#<time>` is what lies
before a period's start on its first day (`meterline.adapters.dynamodb_usage`).
`split#<edge>` is how a period's edge cuts its hour (`meterline.domain.measuring`). A checkpoint
is at pk `shard#<shard>`, sk `checkpoint`, that of a recount at `shard#recount#<customer>#<meter>`.

An item costs two write units in a transaction however little of it changes, so names share one:
on 1,000 records of 50 customers with 20 users each, a quarter of the units of an item per name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

from meterline.adapters.dynamodb_budgets import DynamoBudgets, count_action, slot_of
from meterline.adapters.dynamodb_counted import DynamoCountedEvents, counted_item
from meterline.adapters.dynamodb_counters import DynamoCounters
from meterline.adapters.dynamodb_emissions import batch_item
from meterline.adapters.dynamodb_wire import (
    DynamoWire,
    Item,
    TransactionCanceledError,
    back_off_s,
    read_many,
)
from meterline.adapters.partition_keys import partition_key
from meterline.domain.authorizations import Budget, count_uses
from meterline.domain.periods import Period
from meterline.domain.projection import (
    Ahead,
    Checkpoint,
    Fence,
    Increment,
    Pair,
    PendingEmission,
    ShareKey,
    TotalsStep,
    name_recount,
    read_recount,
)
from meterline.domain.times import format_time
from meterline.errors import StorageError, StorageUnavailableError
from meterline.ports import CheckpointMovedError

MAX_STEP_ITEMS = 99
"""Items of a step: a transaction takes 100 (DynamoDB API reference), one is the checkpoint."""
CHECKPOINT_LIFE = timedelta(days=7)
"""For so long a shard may be silent before its checkpoint goes. What lies at or below it is older,
and the stream keeps records for 24 hours only (DynamoDB developer guide): it can come no more. One
that owes hand-overs stays until they are made; that of a recount, whose places must not begin anew,
for ever."""
_MAX_CONFLICTS = 8
_NAMES_PER_ITEM = 16
"""About a kilobyte: 40 bytes for a name of ten characters with its two counters."""
_NAMES_TOGETHER = 24
"""Actions and users of one day in one item: a kilobyte as well, with its key."""
_LONG_NAME = 40
"""A longer name has an item of its own."""
_MAX_NAMES_OF_DAY = 4096
"""Of one customer's day; further ones have an item of their own."""
_MAX_PERIODS_KNOWN = 100_000
_MAX_NAMES_KNOWN = 200_000
"""Of all days that a process keeps in mind: about 100 MB where each is a customer's only one."""


class DynamoTotals(DynamoCounters):
    """Keeps `meterline.ports.Totals`, and what `DynamoCounters` keeps."""

    def __init__(
        self,
        wire: DynamoWire,
        totals_table: str,
        emissions_table: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(wire, totals_table)
        self._now = now
        self._emissions_table = emissions_table
        self._buckets = _ShareBuckets()
        self._budgets = DynamoBudgets(wire, totals_table)
        self._periods: dict[tuple[str, str], Period | None] = {}
        self._counted = DynamoCountedEvents(wire, emissions_table)

    def checkpoint(self, shard: str) -> Checkpoint:
        """How far the shard is counted, read strongly consistently. One read unit."""
        return _read_checkpoint(self._get(f"shard#{shard}", "checkpoint") or {})

    def fences(self, pairs: Iterable[Pair]) -> Mapping[Pair, Fence]:
        """Where the recounts of these stand, read strongly consistently; one read unit each.

        Where there was a recount, one or two queries more say what it counted.
        """
        found = {pair: Fence(Checkpoint()) for pair in pairs}
        by_pk = {f"shard#{name_recount(*pair)}": pair for pair in found}
        keys: list[Item] = [{"pk": {"S": pk}, "sk": {"S": "checkpoint"}} for pk in by_pk]
        for item in read_many(self._wire, self._totals_table, keys, consistent=True):
            pair, checkpoint = by_pk[item["pk"]["S"]], _read_checkpoint(item)
            # Read after the checkpoint, so that a step which adds to it makes that one stale.
            recounted = (
                frozenset[str]()
                if checkpoint.through is None
                else self._counted.list_recounted(*pair)
            )
            found[pair] = Fence(checkpoint, recounted)
        return found

    def apply(self, shard: str, expected: Checkpoint, step: TotalsStep) -> Checkpoint:
        """Count a step, make its batches and move the checkpoint, in one transaction.

        `shard` may be that of a recount (`name_recount`), whose steps are found again by its name.
        Two write units per kilobyte of each item. Raises `CheckpointMovedError`, or
        `StorageUnavailableError` when other transactions were in the way for too long.
        """
        now = self._now()
        moved = Checkpoint(step.through, step.pending() or None, step.ahead, expected.passed)
        # Checkpoints go first, so that their reasons are the first of a refused transaction.
        actions: list[dict[str, Any]] = [
            {"Update": self._move(shard, expected, moved)},
            *(
                {"Update": self._pass_by(name_recount(*pair), place)}
                for pair, place in step.fences.items()
            ),
        ]
        checkpoints = len(actions)
        for day, hours in step.days.items():
            total = Increment(
                sum(increment.sub_units for increment in hours.values()),
                sum(increment.events for increment in hours.values()),
            )
            counters = {"": total} | {f"{hour:02d}": more for hour, more in hours.items()}
            for mark, cut in step.cuts.get(day, {}).items():
                counters |= {f"<{mark}": cut.before, f"@{mark}": cut.known}
            add = self._add(day.customer, day.meter, f"day#{day.day}", counters)
            # Readers say as of when their numbers are.
            add["Update"]["UpdateExpression"] = (
                "SET counted_at = :at " + add["Update"]["UpdateExpression"]
            )
            add["Update"]["ExpressionAttributeValues"][":at"] = {"S": format_time(now)}
            actions.append(add)
        for batch in step.emission_batches():
            put = {
                "TableName": self._emissions_table,
                "Item": batch_item(batch, now),
                # Two steps never share a name. If they did, this would lose the first one's usage.
                "ConditionExpression": "attribute_not_exists(pk)",
            }
            actions.append({"Put": put})
        if step.unbatched:
            recount_of = read_recount(shard)
            put = {
                "TableName": self._emissions_table,
                "Item": counted_item(step.id, step.unbatched, now, recount_of=recount_of),
            }
            actions.append({"Put": put})
        for tries in range(1, _MAX_CONFLICTS + 1):
            buckets = self._buckets.fill(step.shares)
            shares = [self._add(*bucket, counters) for bucket, counters in buckets.items()]
            budgets = self._count_budgets(step, now)
            try:
                self._wire.call(
                    "TransactWriteItems", {"TransactItems": [*actions, *shares, *budgets]}
                )
            except TransactionCanceledError as error:
                if "ConditionalCheckFailed" in error.reasons[:checkpoints]:
                    raise CheckpointMovedError(f"a checkpoint of {shard} moved") from None
                share_reasons = error.reasons[len(actions) :][: len(shares)]
                if "ValidationError" in share_reasons:
                    # An item has at most 400 KB: no number of names may hold up the shard.
                    full = zip(buckets, share_reasons, strict=True)
                    if self._buckets.split(
                        bucket for bucket, why in full if why == "ValidationError"
                    ):
                        continue
                    raise
                # A hold was given back, or a period began, since the budgets were read.
                budget_reasons = error.reasons[len(actions) + len(shares) :]
                if "ConditionalCheckFailed" not in budget_reasons and not error.is_conflict:
                    raise
                time.sleep(back_off_s(tries))
            else:
                return moved
        raise StorageUnavailableError(f"{_MAX_CONFLICTS} transactions of {shard} met others")

    def find_periods(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Period]:
        """The periods of these budgets as last seen: once in a process, and with every step that
        counts in one. A read unit for each that was never seen."""
        wanted = list(pairs)
        unseen = [pair for pair in wanted if pair not in self._periods]
        if unseen:
            self._get_budgets(unseen)
        periods = {pair: self._periods.get(pair) for pair in wanted}
        return {pair: period for pair, period in periods.items() if period is not None}

    def _get_budgets(self, pairs: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], Budget]:
        budgets = self._budgets.get_many(pairs)
        if len(self._periods) > _MAX_PERIODS_KNOWN:
            self._periods.clear()
        self._periods |= {pair: budget.period for pair, budget in budgets.items()}
        return budgets

    def _count_budgets(self, step: TotalsStep, now: datetime) -> list[dict[str, Any]]:
        budgets = self._get_budgets(step.uses)
        newest_slot = slot_of(int(now.timestamp()))
        return [
            count_action(
                self._totals_table,
                *pair,
                budgets[pair],
                count_uses(budgets[pair], uses),
                newest_slot,
            )
            for pair, uses in step.uses.items()
        ]

    def clear_pending(self, shard: str, checkpoint: Checkpoint) -> None:
        """Forget the hand-overs of `checkpoint`, unless it has moved since. One write unit."""
        try:
            self._wire.call(
                "UpdateItem", self._move(shard, checkpoint, replace(checkpoint, pending=None))
            )
        except StorageError as error:
            if error.code != "ConditionalCheckFailedException":
                raise
            # Somebody went on from here, and has the hand-overs in hand.

    def _add(
        self, customer: str, meter: str, sort_key: str, counters: Mapping[str, Increment]
    ) -> dict[str, Any]:
        names: dict[str, str] = {}
        values: dict[str, Any] = {}
        parts = []
        for place, (suffix, more) in enumerate(counters.items()):
            parts.append(f"#q{place} :q{place}, #n{place} :n{place}")
            names |= {f"#q{place}": f"q{suffix}", f"#n{place}": f"n{suffix}"}
            values[f":q{place}"] = {"N": str(more.sub_units)}
            values[f":n{place}"] = {"N": str(more.events)}
        return {
            "Update": {
                "TableName": self._totals_table,
                "Key": {"pk": {"S": partition_key(customer, meter)}, "sk": {"S": sort_key}},
                "UpdateExpression": "ADD " + ", ".join(parts),
                "ExpressionAttributeNames": names,
                "ExpressionAttributeValues": values,
            }
        }

    def _move(self, shard: str, expected: Checkpoint, moved: Checkpoint) -> dict[str, Any]:
        condition, values = _expect(expected)
        values[":now"] = {"S": self._now().isoformat()}
        sets, removed = ["moved_at = :now"], []
        if moved.pending is None and read_recount(shard) is None:
            values[":expires"] = {"N": str(int((self._now() + CHECKPOINT_LIFE).timestamp()))}
            sets.append("expires_at = :expires")
        else:
            removed.append("expires_at")
        pending = _write_pending(moved.pending) if moved.pending else None
        for name, value in (_write_place(moved) | {"pending": pending}).items():
            if value is None:
                removed.append(name)
            else:
                sets.append(f"{name} = :{name}")
                values[f":{name}"] = {"S": value}
        update = "SET " + ", ".join(sets)
        if removed:
            update += " REMOVE " + ", ".join(removed)
        return {
            "TableName": self._totals_table,
            "Key": {"pk": {"S": f"shard#{shard}"}, "sk": {"S": "checkpoint"}},
            "UpdateExpression": update,
            "ConditionExpression": condition,
            "ExpressionAttributeValues": values,
        }

    def _pass_by(self, shard: str, expected: Checkpoint) -> dict[str, Any]:
        condition, values = _expect(expected)
        values[":passed"] = {"S": str(expected.pass_by().passed)}
        return {
            "TableName": self._totals_table,
            "Key": {"pk": {"S": f"shard#{shard}"}, "sk": {"S": "checkpoint"}},
            "UpdateExpression": "SET passed = :passed",
            "ConditionExpression": condition,
            "ExpressionAttributeValues": values,
        }


_FIRST_BUCKET = "0-0"
_Bucket = tuple[str, str, str]
"""Customer, meter and sort key of an item of shares."""


class _ShareBuckets:
    """Which item of a day a name's share goes to.

    Readers add up all of a day's items, so any choice is right; this one keeps items small. With
    every `_NAMES_PER_ITEM` names that this process has met on that day, there are more buckets. A
    process that starts anew begins with one bucket again, and adds that many names to it at most.
    Where an item is full all the same, that day's names have an item each from then on.
    """

    def __init__(self) -> None:
        self._names: dict[_Bucket, set[str]] = {}
        """By customer, meter and `<kind>#<day>`, the longest known first."""
        self._known = 0
        self._split: set[_Bucket] = set()

    def fill(self, shares: Mapping[ShareKey, Increment]) -> dict[_Bucket, dict[str, Increment]]:
        """What is added to each item: by customer, meter and sort key, counters by suffix."""
        buckets: dict[_Bucket, dict[str, Increment]] = {}
        for share, more in shares.items():
            sort_key, prefix = self._choose(share)
            bucket = buckets.setdefault((share.customer, share.meter, sort_key), {})
            bucket[prefix + share.name] = more
        return buckets

    def split(self, full: Iterable[_Bucket]) -> bool:
        """Give the names of these items' days an item each; False where they all have."""
        days = {
            (customer, meter, sort_key.rpartition("#")[0]) for customer, meter, sort_key in full
        }
        is_new = not days <= self._split
        self._split |= days
        return is_new

    def _choose(self, share: ShareKey) -> tuple[str, str]:
        """The sort key of the item for a share, and what stands before its name there."""
        actions, users = (
            (share.customer, share.meter, f"{kind}#{share.day}") for kind in ("action", "user")
        )
        day = users if share.kind == "user" else actions
        # Not a checksum: senders choose names, and many that meet in one item would fill it.
        place = int.from_bytes(blake2b(share.name.encode(), digest_size=8).digest())
        own = f"{day[2]}#{place:016x}", ":"
        if len(share.name) > _LONG_NAME or day in self._split:
            return own
        names = self._names.setdefault(day, set())
        if share.name not in names:
            if len(names) >= _MAX_NAMES_OF_DAY:
                return own
            names.add(share.name)
            self._known += 1
            while self._known > _MAX_NAMES_KNOWN:
                self._known -= len(self._names.pop(next(iter(self._names))))
        if day is users and actions not in self._split:
            together = len(names) + len(self._names.get(actions, ()))
            if together <= _NAMES_TOGETHER:
                return f"{actions[2]}#{_FIRST_BUCKET}", "u:"
        bits = (len(names) // (_NAMES_PER_ITEM + 1)).bit_length()
        return f"{day[2]}#{bits}-{place & ((1 << bits) - 1):x}", ":"


def _write_place(checkpoint: Checkpoint) -> dict[str, str | None]:
    """Where a checkpoint stands: no two of one shard's are alike, so it is also its version."""
    ahead = checkpoint.ahead
    return {
        "through": None if checkpoint.through is None else str(checkpoint.through),
        "ahead": None if ahead is None else f"{ahead.lane}:{ahead.sequence}:{ahead.until}",
        "passed": None if checkpoint.passed is None else str(checkpoint.passed),
    }


def _expect(checkpoint: Checkpoint) -> tuple[str, dict[str, Any]]:
    """The condition that a checkpoint still stands there, and its values."""
    conditions = []
    values: dict[str, Any] = {}
    for name, value in _write_place(checkpoint).items():
        if value is None:
            conditions.append(f"attribute_not_exists({name})")
        else:
            conditions.append(f"{name} = :expected_{name}")
            values[f":expected_{name}"] = {"S": value}
    return " AND ".join(conditions), values


def _read_checkpoint(item: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(
        int(item["through"]["S"]) if "through" in item else None,
        _read_pending(item["pending"]["S"]) if "pending" in item else None,
        Ahead(*map(int, item["ahead"]["S"].split(":"))) if "ahead" in item else None,
        int(item["passed"]["S"]) if "passed" in item else None,
    )


def _write_pending(pending: PendingEmission) -> str:
    return json.dumps([pending.id, pending.batches, pending.hours], separators=(",", ":"))


def _read_pending(text: str) -> PendingEmission:
    step_id, batches, hours = json.loads(text)
    return PendingEmission(
        step_id,
        tuple((customer, meter) for customer, meter in batches),
        tuple((customer, meter, hour) for customer, meter, hour in hours),
    )

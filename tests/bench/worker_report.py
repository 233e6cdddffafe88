"""Worker: CPU of the whole `report_usage` handler, and of single conditional writes by boto3.

Environment: EVENTS_TABLE, ACCOUNTS_TABLE, PLAIN_TABLE (shaped like the ledger), BENCH_API_KEY,
BENCH_ROUNDS, and AWS's own.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any

import boto3

from meterline.adapters.dynamodb_ledger import write_item
from meterline.catalog import load_meters
from meterline.catalog.rate_cards import load_rate_card
from meterline.domain.usage import LedgerEntry
from meterline.ports import Recorded
from meterline.services.report_usage import ReportUsage
from tests.bench.measuring import Function, Samples, report
from tests.bench.usage_mix import SAAS, UsageSource, call_of

SIZES = (1, 25, 100, 1000)
_EVENTS_A_ROUND = 300
_SINGLES_A_ROUND = 60
_PLAIN_A_ROUND = 200


class KeptLedger:
    """A ledger that keeps what it is given, so that the same items can be written otherwise."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []

    def record(self, entries: Any) -> list[Recorded]:
        """Keep them."""
        self.entries += entries
        return [Recorded.ACCEPTED] * len(entries)

    def list_digests(self, keys: Any) -> dict[str, bytes]:
        """None of them: each event is new."""
        return {}


class AllKnown:
    """Customers who all exist."""

    def known(self, customers: Any) -> set[str]:
        """All of them."""
        return set(customers)


def make_items(source: UsageSource, count: int, meter: str = "credits") -> list[dict[str, Any]]:
    """The ledger's items of `count` events, as `report_usage` would write them."""
    ledger = KeptLedger()
    made = ReportUsage(ledger, AllKnown(), load_meters(), load_rate_card())(
        source.events(count, meter), datetime.now(UTC)
    )
    if made.accepted != count:
        raise AssertionError(made.rejected)
    return [write_item(entry, "AAAAAAAA") for entry in ledger.entries]


def as_parameters(item: dict[str, Any]) -> dict[str, Any]:
    """The item as boto3's client takes it: bytes as bytes."""
    return {name: {"B": b"x" * 16} if "B" in value else value for name, value in item.items()}


def main() -> None:
    """Measure in interleaved rounds and report medians."""
    rounds = int(os.environ["BENCH_ROUNDS"])
    source = UsageSource(SAAS, seed=1)
    key = os.environ["BENCH_API_KEY"]
    function = Function("report_usage")
    dynamodb = boto3.client("dynamodb")
    table = os.environ["PLAIN_TABLE"]
    plain = Samples()
    whole = {size: Samples() for size in SIZES}
    log_bytes = dict.fromkeys(SIZES, 0)
    # Every customer is read once, as in a function that has been at work for a while.
    function(call_of(source.events(1000), key))
    for number in range(rounds):
        items = [as_parameters(item) for item in make_items(source, _PLAIN_A_ROUND)]

        def put_singly(items: list[dict[str, Any]] = items) -> None:
            for item in items:
                dynamodb.put_item(
                    TableName=table, Item=item, ConditionExpression="attribute_not_exists(k)"
                )

        if number == 0:
            put_singly([as_parameters(item) for item in make_items(source, 20)])
        plain.take(put_singly, _PLAIN_A_ROUND)
        for size in SIZES:
            count = _SINGLES_A_ROUND if size == 1 else max(size, _EVENTS_A_ROUND)
            calls = [call_of(source.events(size), key) for _ in range(count // size)]
            answers: list[dict[str, Any]] = []

            def invoke(calls: list[Any] = calls, answers: list[Any] = answers) -> None:
                answers.extend([function(call) for call in calls])

            function.take_log_bytes()
            whole[size].take(invoke, len(calls) * size)
            log_bytes[size] = function.take_log_bytes() // len(calls)
            for answer in answers:
                if json.loads(answer["body"]).get("accepted") != size:
                    raise AssertionError(answer)
    report(
        {
            "plain": plain.summary(),
            "whole": {str(size): samples.summary() for size, samples in whole.items()},
            "log_bytes_per_call": {str(size): count for size, count in log_bytes.items()},
        }
    )


if __name__ == "__main__":
    main()

"""Names of a day share items that stay small, however many customers and names there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import islice, product
from typing import Any
from zlib import crc32

import botocore.session

from meterline.adapters.dynamodb_totals import DynamoTotals
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.domain.projection import Checkpoint, Increment, ShareKey, TotalsStep

DAY = "2026-11-20"


class RecordingWire(DynamoWire):
    """A wire to nowhere that keeps in mind which names went into which item of shares."""

    def __init__(self) -> None:
        session = botocore.session.Session()
        session.set_credentials("test", "test")
        session.set_config_variable("region", "us-east-1")
        super().__init__(session, endpoint_url="http://127.0.0.1:9")
        self.names: dict[tuple[str, str], set[str]] = defaultdict(set)

    def call(
        self, operation: str, request: Mapping[str, Any], *, deadline_s: float = 60.0
    ) -> dict[str, Any]:
        assert operation == "TransactWriteItems"
        for action in request["TransactItems"]:
            key = action["Update"]["Key"]
            names = action["Update"].get("ExpressionAttributeNames", {}).values()
            self.names[key["pk"]["S"], key["sk"]["S"]] |= {
                name for name in names if name.startswith(("q:", "qu:"))
            }
        return {}


def count_users(totals: DynamoTotals, checkpoint: Checkpoint, *users: tuple[str, str]) -> None:
    """Count an event of each of these users, given as customer and user."""
    shares = {
        ShareKey(customer, "credits", DAY, "user", user): Increment(1, 1)
        for customer, user in users
    }
    totals.apply("shard", checkpoint, TotalsStep("step", through=1, shares=shares))


def list_items(wire: RecordingWire, customer: str) -> list[int]:
    """How many names each of the customer's items holds."""
    return [
        len(names)
        for (pk, sk), names in wire.names.items()
        if pk == f"{customer}#credits" and sk.startswith(("action#", "user#"))
    ]


def test_a_day_of_few_names_has_one_item_for_all_of_them() -> None:
    wire = RecordingWire()
    totals = DynamoTotals(wire, "totals", "emissions")
    actions = {
        ShareKey("acme", "credits", DAY, "action", f"a_{n}"): Increment(1, 1) for n in range(4)
    }
    totals.apply("shard", Checkpoint(), TotalsStep("step", through=1, shares=actions))
    count_users(totals, Checkpoint(), *[("acme", f"u_{number:06d}") for number in range(20)])
    assert list_items(wire, "acme") == [24]
    count_users(totals, Checkpoint(), ("acme", "u_000020"))
    assert sum(list_items(wire, "acme")) == 25


def test_a_name_more_than_a_process_keeps_in_mind_has_an_item_of_its_own() -> None:
    wire = RecordingWire()
    totals = DynamoTotals(wire, "totals", "emissions")
    users = [("acme", f"u_{number:06d}") for number in range(20_000)]
    for start in range(0, len(users), 50):
        count_users(totals, Checkpoint(), *users[start : start + 50])
    sizes = list_items(wire, "acme")
    assert sum(sizes) >= len(users)
    assert max(sizes) < 60


def test_names_of_one_customer_are_spread_however_many_customers_come_between() -> None:
    wire = RecordingWire()
    totals = DynamoTotals(wire, "totals", "emissions")
    for number in range(1_000):
        others = [(f"customer-{number * 5 + other}", "u_1") for other in range(5)]
        count_users(totals, Checkpoint(), ("acme", f"u_{number:06d}"), *others)
    assert max(list_items(wire, "acme")) < 40


def test_names_that_a_sender_made_for_one_checksum_do_not_meet_in_one_item() -> None:
    # Two words of one length and one checksum: so every row of them has one checksum too.
    words = ("plumless", "buckeroo")
    assert len({crc32(word.encode()) for word in words}) == 1
    for length in (5, 16):
        wire = RecordingWire()
        totals = DynamoTotals(wire, "totals", "emissions")
        names = ["".join(row) for row in islice(product(words, repeat=length), 2_000)]
        assert len({crc32(name.encode()) for name in names}) == 1
        for start in range(0, len(names), 50):
            users = [("acme", name) for name in names[start : start + 50]]
            count_users(totals, Checkpoint(), *users)
        # Of 128 characters, some 1,500 names are the 400 KB of an item.
        assert max(list_items(wire, "acme")) < 60

"""`make run`'s wait: what is counted as still open."""

from __future__ import annotations

from typing import Any, cast

import pytest

from infra.local.settlement import Settlement
from infra.local.stack import LocalStack
from meterline.catalog import load_meters


class FakeTables:
    """A stack with items in two tables, and its own client."""

    def __init__(self, **items: list[dict[str, Any]]) -> None:
        self.outputs = {"TotalsTable": "totals", "EmissionsTable": "emissions"}
        self._items = items

    def client(self, _service: str) -> FakeTables:
        return self

    def get_paginator(self, _name: str) -> FakeTables:
        return self

    def paginate(self, **request: Any) -> list[dict[str, Any]]:
        return [{"Items": self._items[request["TableName"]]}]


DAY = {"pk": {"S": "acme#credits"}, "sk": {"S": "day#2026-11-22"}, "n": {"N": "5"}}
BATCH = {"pk": {"S": "acme#credits"}, "sk": {"S": "batch#b1"}, "count": {"N": "2"}}


@pytest.mark.parametrize(
    ("accepted", "batches", "left"), [(7, [], 2), (7, [BATCH], 4), (5, [], 0), (3, [], 0)]
)
def test_open_is_what_is_uncounted_or_unsent_and_never_what_others_reported(
    accepted: int, batches: list[dict[str, Any]], left: int
) -> None:
    stack = cast(LocalStack, FakeTables(totals=[DAY], emissions=batches))
    assert Settlement(stack, load_meters()).count_open(accepted) == left

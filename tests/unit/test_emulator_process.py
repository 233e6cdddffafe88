"""The local emulator: conditions of a policy see which items a call names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.local.emulator_process import find_leading_keys

CUSTOMER = {"pk": {"S": "customer#acme"}, "sk": {"S": "limits"}}
KEY = {"pk": {"S": "key#0a1b"}, "sk": {"S": "key"}}


@pytest.mark.parametrize(
    "call",
    [
        {"TableName": "accounts", "Item": KEY},
        {"TableName": "accounts", "Key": KEY, "UpdateExpression": "SET scopes = :scopes"},
        {"RequestItems": {"accounts": [{"PutRequest": {"Item": KEY}}]}},
        {"RequestItems": {"accounts": [{"DeleteRequest": {"Key": KEY}}]}},
        {"TransactItems": [{"Put": {"TableName": "accounts", "Item": KEY}}]},
    ],
    ids=["put", "update", "put-of-many", "delete-of-many", "transaction"],
)
def test_the_keys_of_a_write_are_found(call: dict[str, Any]) -> None:
    assert find_leading_keys(json.dumps(call).encode()) == ["key#0a1b"]


def test_no_item_of_a_call_hides_behind_another() -> None:
    writes = [{"Put": {"TableName": "accounts", "Item": each}} for each in (CUSTOMER, KEY)]
    found = find_leading_keys(json.dumps({"TransactItems": writes}).encode())
    assert sorted(found) == ["customer#acme", "key#0a1b"]


def test_a_call_that_names_no_item_has_no_keys() -> None:
    assert find_leading_keys(json.dumps({"TableName": "accounts"}).encode()) == []

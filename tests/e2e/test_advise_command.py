"""The advisor's questions to the deployed stack: its ledger and its totals."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from click.testing import CliRunner

from infra.cli.__main__ import main
from infra.local.stack import LocalStack
from tests.e2e.conftest import Api

_DEADLINE_S = 240.0


def ask(stack: LocalStack, monkeypatch: pytest.MonkeyPatch, verb: str, *arguments: str) -> Any:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    return CliRunner().invoke(main, ["advise", verb, "--stack", "meterline-local", *arguments])


def test_metric_and_quota_are_found_from_what_was_reported(
    stack: LocalStack, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = f"advised-{os.urandom(4).hex()}"
    assert api.put_customer(customer).status == 200
    now = datetime.now(UTC)
    told = {"provider": "anthropic", "model": "claude-sonnet-4-5", "action": "report"}
    events = [
        {
            "specversion": "1.0",
            "id": str(place),
            "source": "advisor",
            "type": "meterline.usage",
            "subject": customer,
            "time": (now - timedelta(minutes=place)).isoformat(),
            "data": {"meter": "credits", **told, "usage": {"input_tokens": 10 ** (place % 6)}},
        }
        for place in range(24)
    ]
    assert api.report(*events).told["accepted"] == 24
    deadline_s = time.monotonic() + _DEADLINE_S
    while True:
        # The index that lists a customer's events follows the ledger a moment later.
        answered = ask(stack, monkeypatch, "metric", "--customer", customer, "--json")
        told_back = json.loads(answered.stdout) if answered.exit_code == 0 else {}
        tokens = told_back.get("metrics", {}).get("tokens", {}).get("quantity")
        if tokens == str(4 * 111_111):
            break
        assert time.monotonic() < deadline_s, answered.output
    assert told_back["recommended"] == "credits"
    assert Decimal(told_back["metrics"]["credits"]["quantity"]) == Decimal("444.444")
    assert told_back["gaps"] == {}
    while True:
        quota = ask(stack, monkeypatch, "quota", "--percentile", "100")
        if quota.exit_code == 0:
            included = Decimal(quota.output.split()[1].replace(",", ""))
            if included >= Decimal("444.444"):
                break
        assert time.monotonic() < deadline_s, quota.output
    assert ask(stack, monkeypatch, "quota", "--meter", "gold").exit_code == 2

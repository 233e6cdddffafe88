"""kill -9 at 100 random moments of 2,000 calls over 4 processes: nothing lost, nothing twice.

The same against the deployed stack is in `tests/e2e/test_client_on_stack.py`.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.client.killed_workers import run_killed_workers
from tests.integration.client.ledger_server import LedgerServer
from tests.integration.client.provider_server import ProviderServer


def test_every_call_handed_back_is_in_the_ledger_exactly_once_despite_100_kills(
    provider: ProviderServer,
    ledger: LedgerServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    provider.reset()
    ledger.reset()
    rng = random.Random(7)
    moods: list[int | str] = [503, "lost", "ok", "ok", "ok"]
    ledger.script(*(rng.choice(moods) for _ in range(400)))

    outcome = run_killed_workers(ledger.url, "test-key", provider.url, tmp_path)

    billed = Counter(event["data"]["user"] for event in ledger.read_events())
    handed_back = Counter(outcome.handed_back)
    answered = sum(1 for seen in provider.seen if seen.method == "POST")
    with capsys.disabled():
        print(
            f"\nkill -9: {outcome.kills} kills ({outcome.kills_at_work} of workers with calls "
            f"behind them), {answered} calls answered by the provider, "
            f"{len(handed_back)} handed back, {sum(billed.values())} events in the ledger "
            f"({sum(billed.values()) - len(handed_back)} of calls cut between spool and app), "
            f"{len(ledger.reports)} reports, {outcome.seconds:.0f} s"
        )
    assert outcome.kills == 100
    assert len(handed_back) == 2_000
    assert {user for user, times in handed_back.items() if times != 1} == set()
    assert {user for user, times in billed.items() if times != 1} == set()
    assert set(handed_back) - set(billed) == set()
    assert sum(billed.values()) <= answered
    assert list((tmp_path / "spool").glob("events-*")) == []
    assert not (tmp_path / "spool" / "rejected.jsonl").exists()

"""The operator's commands against the deployed stack."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from infra.cli.__main__ import main
from infra.local.stack import LocalStack
from meterline.catalog.versions import Kind, load_bundled
from tests.e2e.conftest import STRIPE_KEY, Api

SINCE = "2030-01-01T00:00:00Z"


@pytest.fixture
def run(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> object:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STRIPE_API_KEY", STRIPE_KEY)

    def invoke(*arguments: str) -> Result:
        [first, *rest] = arguments
        command, _, verb = first.partition(" ")
        return CliRunner().invoke(main, [command, verb, "--stack", "meterline-local", *rest])

    return invoke


def test_a_new_version_is_shown_then_applied_and_never_changed(run: object, tmp_path: Path) -> None:
    assert callable(run)
    bundled = load_bundled(Kind.RATE_CARD)
    text = bundled.content.replace('version = "2026-11-01"', 'version = "2030"')
    text = text.replace("2026-11-01T00:00:00Z", SINCE).replace('"1.667"', '"1.7"')
    path = tmp_path / "rate_card.toml"
    path.write_text(text)
    card = ("--rate-card", str(path))

    shown = run("catalog diff", *card)
    assert shown.exit_code == 0, shown.output
    assert "input_tokens: 1.667 -> 1.7 (+2.0%)" in shown.output
    dry = run("catalog apply", "--dry-run", *card)
    assert f"would apply rate_card 2030 from {SINCE}" in dry.output
    assert "2030" not in run("catalog list").output
    assert run("catalog apply", *card).exit_code == 0
    listed = run("catalog list").output
    assert f"  rate_card 2030 from {SINCE}" in listed
    assert "* rate_card 2026-11-01" in listed
    assert "keep   rate_card 2030" in run("catalog apply", *card).output
    path.write_text(text.replace('"1.7"', '"1.8"'))
    refused = run("catalog apply", *card)
    assert refused.exit_code == 1
    assert "stays as it is" in refused.output
    path.write_text(text.replace("2030-01", "2025-01").replace('"2030"', '"2025"'))
    assert "minutes ahead" in run("catalog apply", *card).output
    path.write_text("version = ")
    assert run("catalog apply", *card).exit_code == 1


def test_customers_are_listed_and_synced(run: object, api: Api, stripe_url: str) -> None:
    assert callable(run)
    api.put_customer("synced", billing_customer="cus_nobody")
    listed = run("customers list")
    assert listed.exit_code == 0, listed.output
    assert "synced\tpro\tcus_nobody\tno subscription" in listed.output
    synced = run("customers sync", "--stripe-url", stripe_url, "synced")
    assert synced.exit_code == 0, synced.output
    assert "0 with a subscription, 1 without, 0 failed" in synced.output
    failed = run("customers sync", "--stripe-url", "http://127.0.0.1:9", "synced")
    assert failed.exit_code == 1

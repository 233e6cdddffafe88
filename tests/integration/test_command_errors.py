"""The operator's commands: what cannot be asked or read is one line and status 1, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from infra.cli.__main__ import main

NOBODY = "http://127.0.0.1:9"


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An operator with credentials, for whom nothing listens at AWS's address."""
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "local"),
        ("AWS_SECRET_ACCESS_KEY", "local"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_MAX_ATTEMPTS", "1"),
        ("AWS_ENDPOINT_URL", NOBODY),
        ("STRIPE_API_KEY", "sk_test_local"),
    ):
        monkeypatch.setenv(name, value)
    return monkeypatch


def is_one_line(result: Result) -> bool:
    return result.exit_code == 1 and result.output.count("\n") == 1


@pytest.mark.parametrize("address", [NOBODY, "nonsense"])
def test_an_address_where_no_aws_is_is_told_in_one_line(
    operator: pytest.MonkeyPatch, address: str
) -> None:
    operator.setenv("AWS_ENDPOINT_URL", address)
    result = run("keys", "list", "--stack", "meterline-x")
    assert is_one_line(result), result.output
    assert result.output.startswith("Error: stack meterline-x: ")
    assert address in result.output


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("address", [NOBODY, "nonsense"])
def test_an_address_where_no_stripe_is_is_told_in_one_line(address: str) -> None:
    result = run("setup", "--dry-run", "--stripe-url", address)
    assert is_one_line(result), result.output
    assert result.output.startswith("Error: Stripe: ")
    assert address.removeprefix("http://").partition(":")[0] in result.output


def test_a_csv_that_is_not_utf_8_is_set_aside_and_not_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "past.csv").write_bytes(
        b"time,provider,model,input_tokens,action\n"
        b"2026-10-01T00:00:00Z,openai,gpt-4o,1000,caf\xe9\n"
        b"2026-10-01T00:00:0\xe9Z,openai,gpt-4o,1000,ask\n"
    )
    result = run("breaker", "replay", "--csv", str(tmp_path / "past.csv"))
    assert result.exit_code == 0, result.output
    assert "1 customers, 1 events" in result.output
    assert "left out: 1 x unreadable row" in result.output


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("breaker replay --meter credit", "'--meter'"),
        ("breaker replay --days 0", "'--days'"),
        ("advise quota --meter credit", "'--meter'"),
        ("events replay acme credit --since 2026-11-01 --reason lost", "'METER'"),
        ("books audit --month november", "'--month'"),
        ("books recount --from 2026-11-02 --to 2026-11-01 --reason lost", "--from"),
        ("books recount --from 2026-11-01", "'--reason'"),
        ("keys create --scope usage --name \t", "'--name'"),
    ],
)
def test_an_option_that_means_nothing_is_refused_before_the_stack_is_asked(
    words: str, told: str
) -> None:
    result = run(*words.split(" "))
    assert result.exit_code == 2, result.output
    assert told in result.output


@pytest.mark.usefixtures("operator")
def test_a_dry_run_needs_no_reason() -> None:
    words = ("books", "recount", "--from", "2026-11-01", "--dry-run", "--stack", "meterline-x")
    result = run(*words)
    assert is_one_line(result), result.output
    assert result.output.startswith("Error: stack meterline-x: "), "it got as far as the stack"

"""The operator's commands: what cannot be asked or read is one line and status 1, no traceback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from infra.cli.__main__ import main
from infra.cli.books import open_settlement
from infra.cli.stack_access import Stack
from meterline.errors import ConfigurationError

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


@pytest.mark.parametrize(
    "key", ["sk_test_secret\nsecond line", "sk_test_secret é", "sk_test_secret x"]
)
def test_a_key_that_no_request_could_carry_is_refused_without_being_shown(
    operator: pytest.MonkeyPatch, tmp_path: Path, key: str
) -> None:
    operator.delenv("STRIPE_API_KEY")
    (tmp_path / "key").write_text(key)
    result = run("setup", "--dry-run", "--stripe-url", NOBODY, "--key-file", str(tmp_path / "key"))
    assert result.exit_code == 2, result.output
    assert "one word of ASCII" in result.output
    assert "secret" not in result.output


@pytest.mark.usefixtures("operator")
def test_a_catalog_file_that_is_not_utf_8_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "plans.toml").write_bytes(b"[pro]\nname = 'caf\xe9'\n")
    result = run("setup", "--dry-run", "--plans", str(tmp_path / "plans.toml"))
    assert is_one_line(result), result.output
    assert "is not UTF-8" in result.output


class _OtherStack(BaseHTTPRequestHandler):
    """CloudFormation, with a stack that has nothing of ours."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = (
            b"<DescribeStacksResponse><DescribeStacksResult><Stacks><member>"
            b"<StackName>another</StackName><CreationTime>2026-11-01T00:00:00Z</CreationTime>"
            b"<StackStatus>CREATE_COMPLETE</StackStatus>"
            b"</member></Stacks></DescribeStacksResult></DescribeStacksResponse>"
        )
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def other_stack(operator: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _OtherStack) as server:
        operator.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("other_stack")
@pytest.mark.parametrize(
    ("words", "output"),
    [
        ("keys list", "AccountsTable"),
        ("dead-letters list", "EmissionsDeadLetterQueueUrl"),
        ("books check in_1 --reason why", "AccountsTable"),
    ],
)
def test_a_stack_of_somebody_elses_is_told_in_one_line(words: str, output: str) -> None:
    result = run(*words.split(), "--stack", "another")
    assert is_one_line(result), result.output
    assert f"no output {output}" in result.output


def test_late_usage_is_settled_by_the_stacks_policy_and_not_by_the_operators_environment(
    operator: pytest.MonkeyPatch,
) -> None:
    operator.setenv("LATE_USAGE_POLICY", "bill")
    tables = {f"{name}Table": name for name in ("Accounts", "Books", "Events", "Emissions")}
    stack = Stack({**tables, "LateUsagePolicy": "neither"})
    with pytest.raises(ConfigurationError, match="neither"):
        open_settlement(stack, stack.wire(), "sk_test_local", NOBODY)


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

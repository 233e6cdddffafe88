"""API keys as an operator makes and revokes them, against the deployed stack."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest

from infra.local.stack import REPOSITORY, LocalStack

_STACK = ("--stack", "meterline-local")


def _cli(stack: LocalStack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", "keys", *arguments],
        cwd=REPOSITORY,
        env=stack.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _get_customer(stack: LocalStack, key: str) -> httpx.Response:
    return httpx.get(
        f"{stack.api_url}/v1/customers/nobody-yet",
        headers={"Authorization": f"Bearer {key}"},
        timeout=30,
    )


def test_a_key_opens_its_scope_and_nothing_once_it_is_revoked(stack: LocalStack) -> None:
    made = _cli(stack, "create", "--scope", "admin", "--name", "console", *_STACK)
    unused = _cli(stack, "create", "--scope", "admin", "--name", "never used", *_STACK)
    assert made.returncode == unused.returncode == 0, made.stderr + unused.stderr
    key, unused_key = made.stdout.strip(), unused.stdout.strip()

    assert _get_customer(stack, key).json()["code"] == "not_found"
    listed = _cli(stack, "list", *_STACK).stdout
    assert key not in listed
    assert "never used" in listed

    # Revoked before a function has seen it: the time that functions hold a key does not matter.
    [line] = [line for line in listed.splitlines() if line.endswith("never used")]
    revoked = _cli(stack, "revoke", line.split("\t")[0], *_STACK)
    assert revoked.returncode == 0, revoked.stderr
    assert _get_customer(stack, unused_key).json()["code"] == "unauthenticated"
    [line] = [
        line
        for line in _cli(stack, "list", *_STACK).stdout.splitlines()
        if line.endswith("never used")
    ]
    assert "revoked" in line


def test_a_key_of_another_scope_is_turned_away(stack: LocalStack) -> None:
    key = _cli(stack, "create", "--scope", "usage", "--name", "backend", *_STACK).stdout.strip()
    answer = _get_customer(stack, key)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "--scope", "root", "--name", "x", *_STACK), "'root' is not one of"),
        (("create", "--name", "x", *_STACK), "Missing option '--scope'"),
        (("revoke", "ffffffffffffffffff", *_STACK), "0 keys begin with"),
        (("list", "--stack", "no-such-stack"), "no-such-stack"),
    ],
)
def test_what_cannot_be_is_said_clearly(
    stack: LocalStack, arguments: tuple[str, ...], said: str
) -> None:
    ended = _cli(stack, *arguments)
    assert ended.returncode != 0
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr

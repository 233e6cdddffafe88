"""API keys as an operator makes and revokes them, against the deployed stack."""

from __future__ import annotations

import subprocess
import sys
import time

import httpx
import pytest

from infra.local.stack import REPOSITORY, LocalStack
from tests.e2e.conftest import Api
from tests.e2e.described import check_described

_STACK = ("--stack", "meterline-local")


def _cli(
    stack: LocalStack, *arguments: str, group: str = "keys"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", group, *arguments],
        cwd=REPOSITORY,
        env=stack.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def _get_customer(stack: LocalStack, key: str) -> httpx.Response:
    return httpx.get(
        f"{stack.api_url}/v1/customers/nobody-yet",
        headers={"Authorization": f"Bearer {key}"},
        timeout=60,
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


def test_a_key_is_rotated_in_one_step_and_the_old_one_ends(stack: LocalStack) -> None:
    made = _cli(stack, "create", "--scope", "admin", "--name", "rotated", "--rate", "40", *_STACK)
    old, old_hash = made.stdout.strip(), made.stderr.split()[2].rstrip(".")
    rotated = _cli(stack, "rotate", old_hash, "--valid-for", "1", *_STACK)
    new, new_hash = rotated.stdout.strip(), rotated.stderr.split()[2].rstrip(".")
    assert "counts until" in rotated.stderr
    for key in (old, new):
        assert _get_customer(stack, key).json()["code"] == "not_found"
    lines = {
        line.split("\t")[0]: line.split("\t")
        for line in _cli(stack, "list", *_STACK).stdout.splitlines()
    }
    assert lines[old_hash][3].startswith("until ")
    assert lines[new_hash][3:5] == ["valid", "40/s"]
    assert all(lines[each][5].startswith("used ") for each in (old_hash, new_hash))

    trail = _cli(stack, "audit", *_STACK, group="books").stdout
    assert f"rotate key\t{old_hash} rotated\t{new_hash} in its place" in trail

    # One that nobody has used so far, so that no function remembers it as valid.
    made = _cli(stack, "create", "--scope", "admin", "--name", "ended", *_STACK)
    ended, ended_hash = made.stdout.strip(), made.stderr.split()[2].rstrip(".")
    assert _cli(stack, "rotate", ended_hash, "--valid-for", "0", *_STACK).returncode == 0
    assert _get_customer(stack, ended).json()["code"] == "unauthenticated"
    again = _cli(stack, "rotate", ended_hash, *_STACK)
    assert again.returncode != 0
    assert "not valid any more" in again.stderr


def test_a_key_that_calls_too_often_is_told_to_wait_and_may_go_on(
    stack: LocalStack, api: Api
) -> None:
    made = _cli(stack, "create", "--scope", "admin", "--name", "wild", "--rate", "1", *_STACK)
    key = made.stdout.strip()
    for _ in range(200):
        answer = api.call("GET", "/v1/customers/nobody-yet", key=key)
        if answer.status == 429:
            break
        assert answer.status == 404
    check_described(api, "GET", "/v1/customers/{id}", answer)
    assert answer.told["code"] == "rate_limited"
    wait_s = int(answer.headers["retry-after"])
    assert 1 <= wait_s <= 10
    # Others are not held up by it, and after the time told there is room again.
    assert api.call("GET", "/v1/customers/nobody-yet", key=api.admin_key).status == 404
    time.sleep(wait_s)
    assert api.call("GET", "/v1/customers/nobody-yet", key=key).status == 404


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

"""The stack as `sam deploy` brings it up, next to the local Stripe, for a whole test session."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import urllib3

from infra.local.stack import REGION, REPOSITORY, LocalStack
from infra.local.stripe_account import StripeAccount
from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.domain.api_keys import ApiKey, Scope, hash_key

STRIPE_KEY = "sk_test_local"
WHY = ("--actor", "ann", "--reason", "a test")
Run = Callable[..., subprocess.CompletedProcess[str]]
"""A command of the operator's, ended; `ok=False` where it is to fail."""
_START_TIMEOUT_S = 60.0


HERE = Path(__file__).parent
LOOK_BACK = ["test_confidential.py", "test_permissions.py"]
"""What looks at all that ran before, and so comes last."""
_left_out = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Nothing is left out yet."""
    config.stash[_left_out] = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what lies here, for `-m e2e` and `-m "not e2e"`; what looks back comes last."""
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    for item in ours:
        item.add_marker(pytest.mark.e2e)
    files = {item.path for item in ours}
    config.stash[_left_out] += [each.name for each in HERE.glob("test_*.py") if each not in files]
    config.stash[_left_out] += [argument for argument in config.args if "::" in argument]
    ours.sort(key=lambda item: item.path.name in LOOK_BACK)
    places = iter(ours)
    items[:] = [next(places) if item.path.is_relative_to(HERE) else item for item in items]


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Remember tests of this folder that an option left out."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.config.stash[_left_out].append(item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember tests of this folder that did not do what they are there for."""
    report = yield
    if not report.passed:
        item.config.stash[_left_out].append(f"{item.nodeid} {report.outcome}")
    return report


@pytest.fixture
def left_out(request: pytest.FixtureRequest) -> list[str]:
    """What of this folder did not run, or not to its end; empty in a whole run."""
    return request.config.stash[_left_out]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the status, the headers, the body as bytes and, where it is JSON, read."""

    status: int
    headers: Any
    body: bytes

    @property
    def told(self) -> Any:
        """The body read as JSON."""
        return json.loads(self.body)


class Api:
    """The deployed API, called as any program would: HTTP to its address and nothing else."""

    def __init__(self, url: str, usage_key: str, admin_key: str) -> None:
        self.url = url
        self.usage_key = usage_key
        self.admin_key = admin_key
        # A call is made once: a retry of ours would hide what a test is to see.
        self._http = urllib3.PoolManager(maxsize=64, retries=False, timeout=60.0)

    def call(
        self,
        method: str,
        path: str,
        *,
        key: str | None = None,
        body: bytes | None = None,
        content_type: str | None = "application/json",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Call with the bytes as they are."""
        sent = dict(headers or {})
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        if body is not None and content_type is not None:
            sent["Content-Type"] = content_type
        answer = self._http.request(method, self.url + path, body=body, headers=sent)
        return Answer(answer.status, answer.headers, answer.data)

    def report(self, *events: dict[str, Any]) -> Answer:
        """`POST /v1/usage` with the events."""
        body = json.dumps({"events": events}).encode()
        return self.call("POST", "/v1/usage", key=self.usage_key, body=body)

    def put_customer(self, customer: str, **told: Any) -> Answer:
        """`PUT /v1/customers/{id}`."""
        body = json.dumps({"name": customer, "plan": "pro", **told}).encode()
        return self.call("PUT", f"/v1/customers/{customer}", key=self.admin_key, body=body)


@pytest.fixture(scope="session")
def stripe_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A local Stripe of this session."""
    directory = tmp_path_factory.mktemp("stripe")
    ready = directory / "ready"
    command = ["-m", "infra.local.stripe_server", "--port", "0", "--key", STRIPE_KEY]
    with (directory / "stripe.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, *command, "--ready-file", str(ready)], stdout=log, stderr=log
        )
    try:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not ready.exists():
            assert server.poll() is None, (directory / "stripe.log").read_text()
            assert time.monotonic() < deadline_s, "the local Stripe is not ready"
            time.sleep(0.05)
        yield str(json.loads(ready.read_text())["url"])
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="session")
def stack(stripe_url: str) -> Iterator[LocalStack]:
    """The deployed stack of this session, every function held to its role."""
    with LocalStack("e2e", stripe_url=stripe_url, stripe_key=STRIPE_KEY, enforce_iam=True) as up:
        yield up


@dataclass(frozen=True, slots=True)
class Webhooks:
    """Where this session's Stripe delivers, and the secrets that it signs with, by their names."""

    url: str
    secrets: dict[str, str]


@pytest.fixture(scope="session")
def webhooks(stack: LocalStack, stripe_url: str) -> Webhooks:
    """The webhooks of this session's Stripe go to this session's stack, set up once."""
    url = stack.open_webhook_gateway()
    secrets = StripeAccount(stripe_url, STRIPE_KEY).set_up(url)
    stack.store_webhook_secrets(secrets)
    return Webhooks(url, secrets)


@pytest.fixture(scope="session")
def api(stack: LocalStack) -> Api:
    """The API, with a key of each scope."""
    session = botocore.session.Session()
    session.set_credentials("test", "test")
    session.set_config_variable("region", REGION)
    wire = DynamoWire(session, endpoint_url=stack.aws_url)
    accounts = DynamoAccounts(wire, stack.outputs["AccountsTable"])
    keys = {scope: f"mk_{secrets.token_urlsafe(24)}" for scope in (Scope.USAGE, Scope.ADMIN)}
    for scope, key in keys.items():
        accounts.add_key(ApiKey(hash_key(key), scope, frozenset({scope}), datetime.now(UTC), None))
    return Api(stack.api_url, keys[Scope.USAGE], keys[Scope.ADMIN])


@pytest.fixture(scope="session")
def run(stack: LocalStack) -> Run:
    """Runs the command line against this session's stack."""

    def call(*words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            [sys.executable, "-m", "infra.cli", *words, "--stack", "meterline-local"],
            cwd=REPOSITORY,
            env={**stack.environment(), "STRIPE_API_KEY": STRIPE_KEY},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode == 0) is ok, ended.stdout + ended.stderr
        return ended

    return call

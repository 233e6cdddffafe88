"""The local Stripe as a process of its own: ready file, signals, owner."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from infra.local.stripe_server import StripeControl

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def _server(ready: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "infra.local.stripe_server", "--ready-file", str(ready)]
    process = subprocess.Popen(
        [*command, *options], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        # Said after the ready file is written.
        assert process.stdout.readline().startswith("local Stripe on http://127.0.0.1:")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_is_and_ends_cleanly_when_asked(tmp_path: Path, sign: int) -> None:
    ready = tmp_path / "ready.json"
    with _server(ready, "--key", "sk_test_mine") as process:
        told = json.loads(ready.read_text())
        assert (told["key"], told["pid"]) == ("sk_test_mine", process.pid)
        client = StripeControl(told["url"], told["key"]).client()
        assert client.v1.customers.list({}).data == []
        process.send_signal(sign)
        assert process.wait(10) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{told['url']}/_local/health")


def test_it_ends_while_a_request_is_waiting_for_an_answer(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    with _server(ready) as process:
        url = json.loads(ready.read_text())["url"]
        control = StripeControl(url)
        control.add_fault("timeout", method="GET", path="/v1/customers")
        deadline_s = time.monotonic() + 30
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(
                httpx.get, f"{url}/v1/customers", auth=("sk_test_local", ""), timeout=60
            )
            while not control.faults()[0]["hits"] and time.monotonic() < deadline_s:
                time.sleep(0.01)
            process.terminate()
            assert process.wait(10) == 0
            # The connection is cut, or told that the server could not answer: never a result.
            if asked.exception(30) is None:
                assert asked.result().status_code == 500


def test_it_ends_with_its_owner(tmp_path: Path) -> None:
    with _server(tmp_path / "ready.json", "--owned") as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0
        process.stdin = None

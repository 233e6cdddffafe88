"""The gateway before the emulator: another `Host`, bodies whole, and no room for endless calls."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import urllib3

from infra.local.emulator_gateway import BODY_LIMIT_BYTES

CALLS = 4
WAITING = 28


class Upstream(ThreadingHTTPServer):
    """Answers every request with what it was sent, and counts how many are there at once."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), EchoHandler)
        self.lock = threading.Lock()
        self.present = 0
        self.most_present = 0
        self.full = threading.Event()
        self.released = threading.Event()


class EchoHandler(BaseHTTPRequestHandler):
    """Echoes bodies; `/chunked` answers in chunks, `/crowd` waits for others, `/held` for leave."""

    protocol_version = "HTTP/1.1"
    server: Upstream

    def handle_any(self) -> None:
        with self.server.lock:
            self.server.present += 1
            self.server.most_present = max(self.server.most_present, self.server.present)
            if self.server.present == CALLS:
                self.server.full.set()
        if self.path == "/crowd":
            self.server.full.wait(60)
        if self.path == "/held":
            self.server.released.wait(60)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        with self.server.lock:
            self.server.present -= 1
        if self.path == "/nothing":
            self.send_response(204)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Seen-Host", self.headers["Host"])
        self.send_header("Seen-Path", self.path)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_HEAD = handle_any  # noqa: N815 - the base looks for these names

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base's name
        """Keep the test's output clean."""


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def gateway_before(upstream: Upstream, *options: str) -> Iterator[int]:
    """Its port."""
    command = ["-m", "infra.local.emulator_gateway", "--host", "abc.execute-api.localhost"]
    numbers = ["--upstream-port", str(upstream.server_address[1]), "--calls", str(CALLS)]
    numbers += ["--waiting", str(WAITING), *options]
    with subprocess.Popen(
        [sys.executable, *command, *numbers], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as gateway:
        assert gateway.stdin is not None
        assert gateway.stdout is not None
        yield int(gateway.stdout.readline())
        gateway.stdin.close()
        gateway.wait(60)


@pytest.fixture
def port(upstream: Upstream) -> Iterator[int]:
    with gateway_before(upstream) as number:
        yield number


def test_a_request_goes_on_with_another_host_and_comes_back_as_answered(port: int) -> None:
    with urllib3.PoolManager(retries=False) as http:
        url = f"http://127.0.0.1:{port}/v1/usage?a=%20b"
        for body in (b"one", b"", b"\x00" * 300_000):
            answer = http.request("POST", url, body=body)
            assert answer.status == 200
            assert answer.data == body
            assert answer.headers["seen-host"] == "abc.execute-api.localhost"
            assert answer.headers["seen-path"] == "/v1/usage?a=%20b"


def test_a_connection_serves_one_request_after_another(port: int) -> None:
    with urllib3.HTTPConnectionPool("127.0.0.1", port, retries=False) as pool:
        for path in ("/a", "/nothing", "/b"):
            pool.request("GET", path)
        assert pool.request("HEAD", "/c").status == 200
        assert pool.request("GET", "/d").status == 200
        assert pool.num_connections == 1


def test_chunks_are_read_on_the_way_in_and_passed_on_on_the_way_out(port: int) -> None:
    with urllib3.PoolManager(retries=False) as http:
        answer = http.request(
            "POST", f"http://127.0.0.1:{port}/x", body=iter([b"one", b"two"]), chunked=True
        )
        assert answer.data == b"onetwo"
        assert http.request("GET", f"http://127.0.0.1:{port}/chunked").data == b"onetwo"


def test_no_more_calls_go_on_at_once_than_there_is_room_for(port: int, upstream: Upstream) -> None:
    def call(_number: int) -> int:
        with urllib3.PoolManager(retries=False) as http:
            return http.request("GET", f"http://127.0.0.1:{port}/crowd").status

    with ThreadPoolExecutor(32) as clients:
        assert list(clients.map(call, range(32))) == [200] * 32
    assert upstream.most_present == CALLS


def test_what_comes_when_all_room_is_taken_is_told_to_come_again(
    port: int, upstream: Upstream
) -> None:
    refused: queue.Queue[int] = queue.Queue()

    def call(_number: int) -> int:
        with urllib3.PoolManager(retries=False) as http:
            status = http.request("GET", f"http://127.0.0.1:{port}/held").status
        if status == 429:
            refused.put(status)
        return status

    with ThreadPoolExecutor(CALLS + WAITING + 3) as clients:
        answers = clients.map(call, range(CALLS + WAITING + 3))
        for _ in range(3):
            refused.get(timeout=60)
        upstream.released.set()
        assert sorted(answers) == [200] * (CALLS + WAITING) + [429] * 3


def test_what_comes_faster_than_the_rate_is_told_to_come_again(upstream: Upstream) -> None:
    # One call at once, the next after 1,000 s.
    with gateway_before(upstream, "--rate", "0.001") as port, urllib3.PoolManager() as http:
        url = f"http://127.0.0.1:{port}/a"
        assert [http.request("GET", url).status for _ in range(3)] == [200, 429, 429]


def exchange(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_a_client_that_waits_for_leave_to_send_is_given_it(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert connection.recv(1024) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"ab")
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"ab")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"HTTP/1.1 400"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"HTTP/1.1 400"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", b"HTTP/1.1 400"),
        (
            b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (BODY_LIMIT_BYTES + 1),
            b"HTTP/1.1 413",
        ),
    ],
    ids=["no-request", "no-header", "negative-length", "bad-chunk", "long-head", "too-large"],
)
def test_what_is_no_request_is_answered_and_the_gateway_lives_on(
    port: int, request_bytes: bytes, status: bytes
) -> None:
    assert exchange(port, request_bytes).startswith(status)
    assert exchange(port, b"GET /y HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )


def test_a_client_that_leaves_halfway_holds_up_nobody(port: int) -> None:
    half = b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf"
    stuck = [socket.create_connection(("127.0.0.1", port)) for _ in range(3 * CALLS)]
    for connection in stuck:
        connection.sendall(half)
    assert exchange(port, b"GET /y HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )
    for connection in stuck:
        connection.close()

"""Kept connections: used again while they last, replaced when they are gone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from urllib3.util import parse_url

from meterline.adapters.kept_connections import KeptConnections, NoAnswerError


class CountingHandler(BaseHTTPRequestHandler):
    """Echoes the body; `/close` ends the connection after the answer, `/drop` before it, and
    `/together` answers once four ask."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_gone = self.connection in self.server.gone  # type: ignore[attr-defined]
        if self.path == "/drop" or is_gone:
            self.close_connection = True
            return
        if self.path == "/together":
            self.server.together.wait(timeout=60)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if self.path == "/close":
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class CountingServer(ThreadingHTTPServer):
    """Counts its connections, and can end all of them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CountingHandler)
        self.accepted: list[socket.socket] = []
        self.together = threading.Barrier(4)
        self.gone: list[socket.socket] = []
        """Connections that look alive and give no answer any more."""

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        self.accepted.append(connection)
        return connection, address


@pytest.fixture
def server() -> Iterator[CountingServer]:
    with CountingServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def connections(server: CountingServer) -> KeptConnections:
    return make_connections(server.server_port)


def make_connections(port: int, kept: int = 4) -> KeptConnections:
    address = parse_url(f"http://127.0.0.1:{port}")
    return KeptConnections(address, connect_timeout_s=60.0, read_timeout_s=60.0, kept=kept)


def test_a_connection_is_used_again(server: CountingServer, connections: KeptConnections) -> None:
    for number in range(5):
        assert connections.post("/", b"%d" % number, {}) == (200, b"%d" % number)
    assert len(server.accepted) == 1


def test_a_connection_that_the_other_side_ends_is_not_used_again(
    server: CountingServer, connections: KeptConnections
) -> None:
    for _ in range(3):
        assert connections.post("/close", b"x", {}) == (200, b"x")
    assert len(server.accepted) == 3


def test_an_idle_connection_that_was_cut_is_replaced_before_it_is_used(
    server: CountingServer, connections: KeptConnections
) -> None:
    connections.post("/", b"x", {})
    server.accepted[0].shutdown(socket.SHUT_RDWR)
    assert connections.post("/", b"y", {}) == (200, b"y")
    assert len(server.accepted) == 2


def test_a_call_without_an_answer_says_so_and_is_not_repeated(
    server: CountingServer, connections: KeptConnections
) -> None:
    with pytest.raises(NoAnswerError):
        connections.post("/drop", b"x", {})
    assert len(server.accepted) == 1


def test_one_try_is_lost_to_connections_that_all_died_unseen(server: CountingServer) -> None:
    connections = make_connections(server.server_port, kept=8)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: connections.post("/together", b"x", {}), range(4)))
    assert answers == [(200, b"x")] * 4
    assert len(server.accepted) == 4
    server.gone = list(server.accepted)
    with pytest.raises(NoAnswerError):
        connections.post("/", b"y", {})
    assert connections.post("/", b"y", {}) == (200, b"y")


def test_where_nobody_listens_there_is_no_answer() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(NoAnswerError):
            make_connections(unused.getsockname()[1]).post("/", b"x", {})


def test_threads_do_not_share_a_connection_at_once(server: CountingServer) -> None:
    connections = make_connections(server.server_port)
    wrong: list[bytes] = []

    def post(turn: int) -> None:
        for number in range(30):
            body = b"%d.%d" % (turn, number) * 100
            if connections.post("/", body, {}) != (200, body):
                wrong.append(body)

    threads = [threading.Thread(target=post, args=(turn,)) for turn in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []

"""Connections to Meterline: kept alive, replaced when stale, never mixed up."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from meterline_client.errors import ServiceUnreachableError
from meterline_client.service_connection import ServiceConnection

ANSWER = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nRetry-After: 7\r\n\r\n{}"


@dataclass
class Plan:
    """What a raw server does on each connection it accepts, one script of answers each."""

    connections: list[list[bytes]]
    requests: list[bytes] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)


def serve(listener: socket.socket, plan: Plan) -> None:
    with contextlib.suppress(OSError):  # The test is through, and has closed its end.
        serve_connections(listener, plan)


def serve_connections(listener: socket.socket, plan: Plan) -> None:
    for answers in plan.connections:
        connection, _ = listener.accept()
        with connection:
            for answer in answers:
                received = b""
                while b"\r\n\r\n" not in received or not received.endswith(b"}"):
                    part = connection.recv(65_536)
                    if not part:
                        return
                    received += part
                plan.requests.append(received)
                connection.sendall(answer)
        plan.closed.set()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


def start(listener: socket.socket, *connections: list[bytes]) -> tuple[Plan, ServiceConnection]:
    plan = Plan(list(connections))
    threading.Thread(target=serve, args=(listener, plan), daemon=True).start()
    port = listener.getsockname()[1]
    return plan, ServiceConnection(f"http://127.0.0.1:{port}/prod/", "key-1", timeout_s=60.0)


def test_a_call_carries_the_key_and_the_endpoints_own_path(listener: socket.socket) -> None:
    plan, service = start(listener, [ANSWER])
    answer = service.post("/v1/usage", b"{}")
    assert (answer.status, answer.body, answer.retry_after_s) == (202, b"{}", 7.0)
    head = plan.requests[0].lower()
    assert head.startswith(b"post /prod/v1/usage http/1.1\r\n")
    assert b"\r\nauthorization: bearer key-1\r\n" in head
    assert b"\r\ncontent-type: application/json\r\n" in head


def test_one_connection_serves_many_calls(listener: socket.socket) -> None:
    plan, service = start(listener, [ANSWER] * 5)
    for _ in range(5):
        assert service.post("/v1/usage", b"{}").status == 202
    assert len(plan.requests) == 5


@pytest.mark.parametrize("is_repeatable", [True, False])
def test_a_connection_closed_while_idle_is_replaced_before_it_is_used(
    listener: socket.socket, is_repeatable: bool
) -> None:
    plan, service = start(listener, [ANSWER], [ANSWER])
    service.post("/v1/usage", b"{}")
    assert plan.closed.wait(60)
    assert service.post("/v1/usage", b"{}", is_repeatable=is_repeatable).status == 202
    assert len(plan.requests) == 2


def test_a_kept_connection_that_fails_in_use_is_replaced_for_what_may_be_repeated(
    listener: socket.socket,
) -> None:
    plan, service = start(listener, [ANSWER, b""], [ANSWER])
    service.post("/v1/usage", b"{}")
    assert service.post("/v1/usage", b"{}").status == 202
    assert len(plan.requests) == 3


def test_what_must_not_be_repeated_is_not(listener: socket.socket) -> None:
    plan, service = start(listener, [ANSWER, b""], [ANSWER])
    service.post("/v1/usage", b"{}")
    with pytest.raises(ServiceUnreachableError):
        service.post("/v1/authorizations", b"{}", is_repeatable=False)
    assert len(plan.requests) == 2


@pytest.mark.parametrize(
    "nonsense", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 202 OK\r\nContent-Length: 9\r\n\r\n{}"]
)
def test_what_is_no_whole_answer_is_no_answer(listener: socket.socket, nonsense: bytes) -> None:
    _, service = start(listener, [nonsense])
    with pytest.raises(ServiceUnreachableError):
        service.post("/v1/usage", b"{}")


def test_a_service_that_is_not_there_is_unreachable() -> None:
    with pytest.raises(ServiceUnreachableError):
        ServiceConnection("http://127.0.0.1:9", "k").post("/v1/usage", b"{}")


def test_a_service_that_does_not_answer_in_time_is_unreachable(listener: socket.socket) -> None:
    service = ServiceConnection(f"http://127.0.0.1:{listener.getsockname()[1]}", "k")
    with pytest.raises(ServiceUnreachableError):
        service.post("/v1/usage", b"{}", timeout_s=0.05)


@pytest.mark.parametrize("endpoint", ["", "api.example.com", "ftp://x"])
def test_an_address_that_is_none_is_refused_at_once(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        ServiceConnection(endpoint, "k")


@pytest.mark.parametrize("key", ["", "a\r\nX-Injected: 1"])
def test_a_key_that_would_break_the_request_is_refused_at_once(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        ServiceConnection("https://api.example.com", key)

"""HTTP to Meterline: kept-alive connections, one answer per call."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from meterline_client.errors import ServiceUnreachableError

if TYPE_CHECKING:
    from http.client import HTTPConnection
    from socket import socket

MAX_ANSWER_BYTES = 8 << 20
"""The longest answer that is read: 1,000 rejections fit many times over."""
MAX_IDLE_CONNECTIONS = 8


class Answer(NamedTuple):
    """What the service said: the status, the body, and when it wants to be asked again."""

    status: int
    body: bytes
    retry_after_s: float | None


class ServiceConnection:
    """Posts JSON to Meterline with the API key, from any thread."""

    def __init__(self, endpoint: str, api_key: str, *, timeout_s: float = 10.0) -> None:
        if not endpoint.startswith(("http://", "https://")):
            raise ValueError("the endpoint must be an http:// or https:// address")
        if not api_key or not api_key.isprintable():
            raise ValueError("the API key must be a printable string")
        self._endpoint = endpoint.rstrip("/")
        self._headers = {
            "Authorization": f"Bearer {api_key}",
            "Content-Type": "application/json",
            "User-Agent": "meterline-client/0.1.0",
        }
        self._timeout_s = timeout_s
        self._idle: deque[HTTPConnection] = deque(maxlen=MAX_IDLE_CONNECTIONS)
        self._lock = threading.Lock()
        self._process = os.getpid()

    def post(
        self,
        path: str,
        body: bytes,
        *,
        timeout_s: float | None = None,
        is_repeatable: bool = True,
    ) -> Answer:
        """Post one JSON body. Raises ServiceUnreachableError when no answer came.

        A kept connection that fails is replaced once, so the body may arrive twice, unless
        `is_repeatable` is False.
        """
        # Not at import: these cost some 20 ms, and a process that meters nothing never needs them.
        from http.client import HTTPException

        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        connection, used_before = self._take(timeout_s)
        while True:
            try:
                return self._exchange(connection, path, body)
            except (HTTPException, OSError) as error:
                connection.close()
                if not (used_before and is_repeatable) or isinstance(error, TimeoutError):
                    raise ServiceUnreachableError(f"no answer from Meterline: {error!r}") from error
                connection, used_before = self._connect(timeout_s), False

    def _exchange(self, connection: HTTPConnection, path: str, said: bytes) -> Answer:
        connection.request("POST", self._prefix + path, body=said, headers=self._headers)
        response = connection.getresponse()
        body = response.read(MAX_ANSWER_BYTES)
        if response.length:
            # http.client says nothing of a body that is cut when it reads a bounded part.
            raise ConnectionError(f"the answer was cut or too long: {response.length} bytes more")
        answer = Answer(
            response.status,
            body,
            _read_retry_after_s(response.headers.get("Retry-After")),
        )
        if response.isclosed() and not response.will_close:
            with self._lock:
                self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _take(self, timeout_s: float) -> tuple[HTTPConnection, bool]:
        if self._process != os.getpid():
            # A connection shared with the parent would mix up both processes' answers.
            self._process = os.getpid()
            self._lock = threading.Lock()
            self._idle.clear()
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._connect(timeout_s), False
            if connection.sock is not None and not _has_something_to_read(connection.sock):
                connection.sock.settimeout(timeout_s)
                return connection, True
            connection.close()

    def _connect(self, timeout_s: float) -> HTTPConnection:
        from http.client import HTTPConnection, HTTPSConnection
        from urllib.parse import urlsplit

        parts = urlsplit(self._endpoint)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=timeout_s)

    @property
    def _prefix(self) -> str:
        _, _, rest = self._endpoint.partition("://")
        _, slash, path = rest.partition("/")
        return slash + path

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            connections, self._idle = [*self._idle], deque(maxlen=MAX_IDLE_CONNECTIONS)
        for connection in connections:
            connection.close()


def _has_something_to_read(sock: socket) -> bool:
    """Between two calls that is the other side's goodbye, or its mistake."""
    from select import POLLIN, poll

    watched = poll()
    watched.register(sock, POLLIN)
    return bool(watched.poll(0))


def _read_retry_after_s(value: str | None) -> float | None:
    """Read Retry-After in seconds; a date is left to the caller's own backoff."""
    return float(value) if value is not None and value.isascii() and value.isdigit() else None

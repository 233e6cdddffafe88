"""Kept-alive HTTP connections to one address, on the standard library's client.

urllib3's pool does the same and more; of a call with 25 inserts that was a quarter of the CPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from urllib3.util import Url
from urllib3.util.wait import wait_for_read

from meterline.adapters.trusted_tls import begin_trusted_tls, trusted_tls


class NoAnswerError(Exception):
    """The call got no whole answer: whether it had an effect is open."""


class KeptConnections:
    """Connections to one address, up to `kept` of them idle. Safe to share between threads."""

    def __init__(
        self, address: Url, *, connect_timeout_s: float, read_timeout_s: float, kept: int
    ) -> None:
        self._address = address
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._kept = kept
        self._idle: deque[HTTPConnection] = deque()
        if address.scheme == "https":
            begin_trusted_tls()

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and body of the answer; raises `NoAnswerError`."""
        connection = self._take()
        try:
            connection.request("POST", path, body, dict(headers))
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, HTTPException) as error:
            connection.close()
            # Idle ones broke with it, as after a function was frozen: the next try gets a new one.
            self._drop_idle()
            raise NoAnswerError(f"{type(error).__name__}: {error}") from error
        if answer.will_close or len(self._idle) >= self._kept:
            connection.close()
        else:
            self._idle.append(connection)
        return answer.status, content

    def _take(self) -> HTTPConnection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._connect()
            # An idle connection that can be read has been closed by the other side.
            if connection.sock is not None and not wait_for_read(connection.sock, timeout=0.0):
                return connection
            connection.close()

    def _drop_idle(self) -> None:
        for _ in range(len(self._idle)):
            with suppress(IndexError):  # Another thread may have taken it.
                self._idle.pop().close()

    def _connect(self) -> HTTPConnection:
        host, port = self._address.host or "", self._address.port
        connection = (
            HTTPConnection(host, port, timeout=self._connect_timeout_s)
            if self._address.scheme != "https"
            else HTTPSConnection(host, port, timeout=self._connect_timeout_s, context=trusted_tls())
        )
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise NoAnswerError(f"{type(error).__name__}: {error}") from error
        connection.sock.settimeout(self._read_timeout_s)
        return connection

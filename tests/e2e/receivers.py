"""Receivers of Slack's and webhooks' calls on this machine, which keep what came."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Call:
    """One call that came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def told(self) -> Any:
        """The body read as JSON."""
        return json.loads(self.body)


@dataclass
class Receiver:
    """A server that keeps calls; it refuses each of `failures`, a path and a word, once."""

    url: str
    calls: list[Call] = field(default_factory=list)
    failures: list[tuple[str, bytes]] = field(default_factory=list)

    def to(self, path: str, word: str = "") -> list[Call]:
        """The calls to a path whose body holds a word."""
        return [call for call in self.calls if call.path == path and word in call.body.decode()]


@contextmanager
def run_receiver() -> Iterator[Receiver]:
    """A receiver on a port of the system's choice."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = 200
            refused = [
                (path, word)
                for path, word in receiver.failures
                if path == self.path and word in body
            ]
            if refused:
                receiver.failures.remove(refused[0])
                status = 503
            else:
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.calls.append(Call(self.path, headers, body))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

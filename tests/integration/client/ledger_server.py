"""A ledger on 127.0.0.1 that answers `POST /v1/usage` and the authorizations as Meterline does."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from decimal import Decimal
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.integration.client.quiet_server import QuietServer


class LedgerServer:
    """Takes each event once, by (customer, source, id); can be told to fail first.

    A step of its script is a status to answer instead, `lost` (take the events, then reset the
    connection) or `reset` (take nothing).
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.events: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.calls = 0
        self.reports: list[int] = []
        self.steps: deque[int | str] = deque()
        self.rejects: dict[str, str] = {}
        self.latest: str | None = None
        """An event dated after this is rejected as from the future."""
        self.limit: Decimal | None = None
        self.held: dict[str, Decimal] = {}
        self.released: list[str] = []
        self.release_bodies: list[Any] = []
        self.authorizations: list[dict[str, Any]] = []
        self.authorize_status: int | None = None
        ledger = self

        class Handler(_Handler):
            shared = ledger

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()

    def script(self, *steps: int | str) -> None:
        """Take these steps, one for each report, before answering well again."""
        with self.lock:
            self.steps.extend(steps)

    def read_events(self) -> list[dict[str, Any]]:
        """The events taken so far, in order."""
        with self.lock:
            return list(self.events.values())

    def reset(self) -> None:
        """Forget everything."""
        with self.lock:
            self.events.clear()
            self.steps.clear()
            self.rejects.clear()
            self.reports.clear()
            self.held.clear()
            self.released.clear()
            self.release_bodies.clear()
            self.authorizations.clear()
            self.latest = None
            self.limit = None
            self.authorize_status = None
            self.calls = 0

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Take a report and answer it as the contract says."""
        answer: dict[str, Any] = {"accepted": 0, "duplicates": 0, "ignored": 0, "rejected": []}
        with self.lock:
            for index, event in enumerate(events):
                key = (event["subject"], event["source"], event["id"])
                code = self.rejects.get(event["subject"])
                if self.latest is not None and event.get("time", "") > self.latest:
                    code = "time_in_future"
                if code is None and key in self.events:
                    if self.events[key]["data"] == event["data"]:
                        answer["duplicates"] += 1
                        continue
                    code = "conflict"
                if code is not None:
                    refusal = {"index": index, "id": event["id"], "code": code, "message": code}
                    answer["rejected"].append(refusal)
                    continue
                self.events[key] = dict(event)
                answer["accepted"] += 1
                self.held.pop(event["data"].get("authorization", ""), None)
        return answer

    def authorize(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Hold an estimate, or refuse it when it would pass the limit."""
        with self.lock:
            self.authorizations.append(dict(request))
            asked = Decimal(request["estimate"]["quantity"])
            held = sum(self.held.values(), Decimal(0))
            if self.limit is not None and held + asked > self.limit:
                message = "You've hit your set limit of $5."
                return {"decision": "deny", "code": "limit_reached", "message": message}
            name = f"auth_{len(self.authorizations)}"
            self.held[name] = asked
            return {
                "decision": "allow",
                "code": "ok",
                "message": "",
                "authorization": name,
                "remaining": "100",
                "expires_at": "2026-11-22T07:00:00Z",
            }


class _Handler(BaseHTTPRequestHandler):
    shared: LedgerServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's word
        """Say nothing."""

    def do_POST(self) -> None:
        """Take a report, a request for leave, or a release."""
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        ledger = self.shared
        with ledger.lock:
            ledger.calls += 1
        if self.headers.get("Authorization") != "Bearer test-key":
            self._send(401, {"code": "unauthorized"})
        elif self.path == "/v1/usage":
            self._take_report(raw)
        elif self.path == "/v1/authorizations":
            if ledger.authorize_status is not None:
                self._send(ledger.authorize_status, {"code": "scripted"})
            else:
                self._send(200, ledger.authorize(json.loads(raw)))
        elif self.path.endswith("/release"):
            name = self.path.split("/")[-2]
            with ledger.lock:
                ledger.released.append(name)
                ledger.release_bodies.append(json.loads(raw))
                ledger.held.pop(name, None)
            self._send(200, {"released": True})
        else:
            self._send(404, {"code": "not_found"})

    def _take_report(self, raw: bytes) -> None:
        ledger = self.shared
        events = json.loads(raw)["events"]
        with ledger.lock:
            step = ledger.steps.popleft() if ledger.steps else None
            ledger.reports.append(len(events))
        if step == 413 and len(events) == 1:
            step = None
        if isinstance(step, int):
            self._send(step, {"code": "scripted", "detail": "scripted"})
            return
        if step == "page":
            self._send(200, {"welcome": "to the captive portal"})
            return
        answer = ledger.take(events) if step != "reset" else {}
        if step in ("reset", "lost"):
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True
            return
        self._send(202, answer)

    def _send(self, status: int, body: Mapping[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

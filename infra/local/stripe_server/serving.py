"""Running the server: on a socket of its own, in this thread or in another one."""

from __future__ import annotations

import socket
import threading
from asyncio import BaseTransport
from types import TracebackType
from typing import Any, Self

import httpx
import stripe
import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from infra.local.stripe_server.app import StripeApp
from infra.local.stripe_server.control import build_control

DEFAULT_KEY = "sk_test_local"
_START_TIMEOUT_S = 60.0


class _Connections:
    """Open connections by peer address, so that a fault can cut one."""

    def __init__(self) -> None:
        self._open: dict[Any, BaseTransport] = {}

    def cut(self, client: Any) -> None:
        transport = self._open.get(tuple(client))
        if transport is not None:
            transport.abort()  # type: ignore[attr-defined]  # uvicorn's is a socket transport

    def protocol(self) -> type[Any]:
        opened = self._open

        class TrackedProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]  # chosen at run time
            def connection_made(self, transport: BaseTransport) -> None:
                self._peer = transport.get_extra_info("peername")
                opened[self._peer] = transport
                super().connection_made(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                opened.pop(self._peer, None)
                super().connection_lost(exc)

        return TrackedProtocol


class _Server(uvicorn.Server):
    """Says when it is ready to be talked to."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


def bind(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1; port 0 lets the system choose."""
    # The protocol is named because asyncio switches Nagle off only for what it knows to be TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(1024)
    return listener


def build_server(*, key: str, check_requests: bool, seed: int = 0) -> _Server:
    """A server that is not running yet; hand `bind(...)` to its `run`."""
    connections = _Connections()
    app = StripeApp(key=key, check_requests=check_requests, cut=connections.cut, seed=seed)
    app.control = build_control(app)
    config = uvicorn.Config(
        app,
        http=connections.protocol(),
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=75,
    )
    return _Server(config)


class StripeControl:
    """The control API of a running server, as methods. See control.py for what each does."""

    def __init__(self, url: str, key: str = DEFAULT_KEY) -> None:
        self.url = url
        self.key = key
        self._http = httpx.Client(base_url=url, timeout=60.0, trust_env=False)

    def client(self, *, timeout_s: float = 10.0) -> stripe.StripeClient:
        """An official client of this server that never retries by itself."""
        return stripe.StripeClient(
            self.key,
            base_addresses={"api": self.url},
            http_client=stripe.RequestsClient(timeout=timeout_s),
            max_network_retries=0,
        )

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        response = self._http.request(method, f"/_local/{path}", **options)
        if response.status_code >= 400:
            raise ValueError(response.json()["error"])
        return response.json()

    def state(self) -> Any:
        """GET state."""
        return self._ask("GET", "state")

    def configure(self, **settings: Any) -> None:
        """POST settings."""
        self._ask("POST", "settings", json=settings)

    def advance_clock(self, seconds: float) -> int:
        """Move the server's clock; its time afterwards."""
        now: int = self._ask("POST", "clock", json={"advance_s": seconds})["now"]
        return now

    def set_clock(self, timestamp_s: float) -> int:
        """Set the server's clock, which stands from then on; its time afterwards."""
        now: int = self._ask("POST", "clock", json={"set": timestamp_s})["now"]
        return now

    def reset_clock(self) -> int:
        """Back to real time."""
        now: int = self._ask("POST", "clock", json={"reset": True})["now"]
        return now

    def add_fault(self, kind: str, **rule: Any) -> None:
        """POST faults."""
        self._ask("POST", "faults", json={"kind": kind, **rule})

    def faults(self) -> Any:
        """GET faults, with how often each has struck."""
        return self._ask("GET", "faults")

    def clear_faults(self) -> None:
        """DELETE faults."""
        self._ask("DELETE", "faults")

    def set_webhook_faults(self, **faults: Any) -> None:
        """POST webhook_faults."""
        self._ask("POST", "webhook_faults", json=faults)

    def roll_webhook_secret(self, endpoint: str, *, keep_old: bool = True) -> str:
        """A new signing secret beside the old one, or instead of it."""
        path = f"webhook_endpoints/{endpoint}/roll_secret"
        secret: str = self._ask("POST", path, json={"keep_old": keep_old})["secret"]
        return secret

    def meter_events(self, **filters: str) -> list[dict[str, Any]]:
        """Every meter event call, with its outcome."""
        events: list[dict[str, Any]] = self._ask("GET", "meter_events", params=filters)
        return events

    def totals(self) -> dict[tuple[str, str], int]:
        """(event name, customer) -> what the meter has counted over all time."""
        rows = self._ask("GET", "totals")
        return {(row["event_name"], row["customer"]): int(row["total"]) for row in rows}

    def deliveries(self) -> list[dict[str, Any]]:
        """Webhook deliveries."""
        rows: list[dict[str, Any]] = self._ask("GET", "deliveries")
        return rows

    def violations(self) -> list[dict[str, Any]]:
        """Requests that stripe.params does not describe."""
        rows: list[dict[str, Any]] = self._ask("GET", "violations")
        return rows

    def journal(self) -> list[dict[str, Any]]:
        """The last requests."""
        rows: list[dict[str, Any]] = self._ask("GET", "journal")
        return rows

    def settle(self, timeout_s: float = 60.0) -> bool:
        """Wait until webhooks are through; False when they are not in time."""
        options = {"json": {"timeout_s": timeout_s}, "timeout": timeout_s + 20}
        idle: bool = self._ask("POST", "settle", **options)["idle"]
        return idle

    def reset(self) -> None:
        """POST reset."""
        self._ask("POST", "reset")

    def close(self) -> None:
        """End the control connection; the server stays."""
        self._http.close()


class LocalStripe(StripeControl):
    """A server in a thread of this process, for tests: `with LocalStripe() as local: …`."""

    def __init__(
        self,
        *,
        key: str = DEFAULT_KEY,
        port: int = 0,
        check_requests: bool = True,
        seed: int = 0,
    ) -> None:
        self._listener = bind(port)
        super().__init__(f"http://127.0.0.1:{self._listener.getsockname()[1]}", key)
        self._server = build_server(key=key, check_requests=check_requests, seed=seed)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._listener],), daemon=True, name="local-stripe"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._server.ready.wait(_START_TIMEOUT_S):
            raise TimeoutError("the local Stripe did not start")
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()
        self._server.should_exit = True
        self._thread.join(_START_TIMEOUT_S)
        self._listener.close()

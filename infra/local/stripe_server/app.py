"""The ASGI application: what happens to a request before and after its endpoint.

In this order: key, faults before, route, request check, Idempotency-Key, lock, endpoint,
expansion, faults after, answer. Endpoints run whole, one after another, on one thread.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter, deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from infra.local.stripe_server import errors
from infra.local.stripe_server.account import API_VERSION, Account, Json, RequestContext
from infra.local.stripe_server.errors import StripeError
from infra.local.stripe_server.expand import expand
from infra.local.stripe_server.faults import Fault, FaultPlan
from infra.local.stripe_server.forms import decode_form
from infra.local.stripe_server.idempotency import IdempotencyKeys, Replay
from infra.local.stripe_server.request_check import Problem, shape_of
from infra.local.stripe_server.resources import (  # noqa: F401 - each adds its routes
    alerts,
    credit_notes,
    customers,
    destinations,
    events,
    invoice_items,
    invoices,
    meters,
    products,
    schedules,
    subscriptions,
    test_clocks,
)
from infra.local.stripe_server.routes import Route, call, find_route
from infra.local.stripe_server.webhooks import WebhookDeliverer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
CutConnection = Callable[[Any], None]

_JOURNAL_LENGTH = 50_000
_TICK_S = 0.5
_LOOK_S = 0.02
_METER_EVENTS = "/v1/billing/meter_events"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came in."""

    method: str
    path: str
    query: str
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def idempotency_key(self) -> str | None:
        """Of POSTs only; Stripe ignores it elsewhere."""
        raw = self.headers.get(b"idempotency-key")
        return raw.decode("latin-1") if raw and self.method == "POST" else None


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it goes out."""

    status: int
    body: bytes
    request_id: str
    idempotency_key: str | None = None
    replay_of: str | None = None


def _encode(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class StripeApp:
    """One account behind Stripe's API; `/_local/…` goes to the control application."""

    def __init__(
        self, *, key: str, check_requests: bool, cut: CutConnection, seed: int = 0
    ) -> None:
        self.key = key
        self.check_requests = check_requests
        self.account = Account(seed=seed)
        self.faults = FaultPlan()
        self.violations: list[Json] = []
        self.journal: deque[Json] = deque(maxlen=_JOURNAL_LENGTH)
        self.calls: Counter[str] = Counter()
        self.control: Callable[[Scope, Receive, Send], Awaitable[None]] | None = None
        self._cut = cut
        self._keys = IdempotencyKeys()
        self._locked: set[tuple[str, str]] = set()
        self._deliverer: WebhookDeliverer | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._report_due: asyncio.TimerHandle | None = None

    @property
    def deliverer(self) -> WebhookDeliverer:
        """The webhook deliverer, made in the server's own event loop."""
        if self._deliverer is None:
            self._deliverer = WebhookDeliverer(self.account)
        return self._deliverer

    @property
    def locked(self) -> int:
        """How many customers' meters are held by a meter event."""
        return len(self._locked)

    async def reset(self) -> None:
        """Forget everything but the key, the clock and the settings."""
        self.account.reset()
        self.faults.rules.clear()
        self.violations.clear()
        self.journal.clear()
        self.calls.clear()
        self._keys = IdempotencyKeys()
        self._forget_report()
        await self.deliverer.forget()

    def catch_up(self) -> None:
        """Do what time has brought, and hand new events to the deliverer."""
        test_clocks.finish_advances(self.account)
        self.account.run_due(None, self.account.clock.now_s())
        if self.account.failed_usage and self._report_due is None:
            self._report_due = asyncio.get_running_loop().call_later(
                self.account.settings.error_report_delay_s, self.report_failed_usage
            )
        if self.account.outbox:
            self.deliverer.flush()

    def report_failed_usage(self) -> None:
        """Send the thin events for usage that was dropped."""
        self._forget_report()
        events.report_failed_usage(self.account)
        self.deliverer.flush()

    def _forget_report(self) -> None:
        # Else one that was due before would send, too early, what fails from now on.
        if self._report_due is not None:
            self._report_due.cancel()
            self._report_due = None

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self.catch_up()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            if self.control is not None and scope["path"].startswith("/_local"):
                await self.control(scope, receive, send)
            else:
                await self._serve(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self._ticker = asyncio.get_running_loop().create_task(self._tick())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._ticker.cancel()
        await self.deliverer.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        request = Request(
            scope["method"],
            scope["path"],
            scope["query_string"].decode("latin-1"),
            dict(scope["headers"]),
            body,
        )
        fault = self.faults.pick(request.method, request.path)
        if fault is not None and await self._strike(fault, "before", scope, receive):
            return
        answer = await self._answer(request, fault)
        if fault is not None and await self._strike(fault, "after", scope, receive):
            self._note(request, answer, lost=True)
            self.catch_up()
            return
        self._note(request, answer, lost=False)
        await self._send(send, answer)
        self.catch_up()

    async def _strike(self, fault: Fault, when: str, scope: Scope, receive: Receive) -> bool:
        """Play a fault; True when the request gets no answer."""
        if fault.when != when or fault.kind == "error":
            return False
        if fault.kind == "latency":
            await asyncio.sleep(fault.latency_ms / 1000)
            return False
        if fault.kind == "drop":
            self._cut(scope["client"])
        while (await receive())["type"] != "http.disconnect":
            pass
        return True

    def _note(self, request: Request, answer: Answer, *, lost: bool) -> None:
        self.calls[f"{request.method} {request.path}"] += 1
        self.journal.append(
            {
                "method": request.method,
                "path": request.path,
                "status": answer.status,
                "idempotency_key": answer.idempotency_key,
                "replayed": answer.replay_of is not None,
                "answer_lost": lost,
            }
        )

    async def _answer(self, request: Request, fault: Fault | None) -> Answer:
        request_id = self.account.new_id("req")
        key = request.idempotency_key
        claimed = False
        lock: tuple[str, str] | None = None
        try:
            self._check_key(request)
            error = _error_of(fault)
            if (
                error is not None
                and fault is not None
                and not fault.saved
                and fault.when != "after"
            ):
                raise error
            entry, ids, params, raw = self._read(request)
            if key is not None:
                now_s = self.account.clock.now_exact_s()
                replay = self._keys.begin(key, request.method, request.path, raw, now_s)
                if isinstance(replay, Replay):
                    return Answer(replay.status, replay.body, request_id, key, replay.request_id)
                claimed = True
            if request.path == _METER_EVENTS:
                wanted = meters.lock_of(self.account, params)
                if wanted in self._locked:
                    raise errors.lock_timeout()
                if wanted is not None:
                    lock = wanted
                    self._locked.add(lock)
                    await self._hold_lock()
            status, body = self._execute(entry, ids, params, request_id, key, fault)
            if claimed and key is not None:
                self._keys.keep(key, status, body, request_id)
            if error is not None and fault is not None and fault.when == "after":
                return Answer(error.status, _encode(error.body()), request_id, key)
            return Answer(status, body, request_id, key)
        except StripeError as error:
            if claimed and key is not None:
                self._keys.release(key)
            return Answer(error.status, _encode(error.body()), request_id, key)
        finally:
            if lock is not None:
                self._locked.discard(lock)

    async def _hold_lock(self) -> None:
        """As long as the setting says, also when it is changed meanwhile."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while (left_s := began_s + self.account.settings.lock_hold_s - loop.time()) > 0:
            await asyncio.sleep(min(left_s, _LOOK_S))

    def _execute(
        self,
        entry: Route,
        ids: tuple[str, ...],
        params: Json,
        request_id: str,
        key: str | None,
        fault: Fault | None,
    ) -> tuple[int, bytes]:
        """The endpoint's answer, or its refusal, which an Idempotency-Key keeps as well."""
        error = _error_of(fault)
        if error is not None and fault is not None and fault.saved and fault.when == "before":
            return error.status, _encode(error.body())
        self.account.request = RequestContext(request_id, key)
        try:
            test_clocks.finish_advances(self.account)
            self.account.run_due(None, self.account.clock.now_s())
            shown = call(entry, self.account, params, ids)
            if params.get("expand"):
                shown = expand(self.account, shown, params["expand"])
            status, body = 200, _encode(shown)
        except StripeError as refusal:
            status, body = refusal.status, _encode(refusal.body())
        finally:
            self.account.request = RequestContext()
        if error is not None and fault is not None and fault.saved and fault.when == "after":
            return error.status, _encode(error.body())
        return status, body

    def _check_key(self, request: Request) -> None:
        raw = request.headers.get(b"authorization", b"").decode("latin-1")
        scheme, _, given = raw.partition(" ")
        if scheme.lower() == "basic":
            given = base64.b64decode(given).decode("latin-1").partition(":")[0]
        if not given:
            raise errors.unauthorized(
                "You did not provide an API key. You need to provide your API key in the "
                "Authorization header, using Bearer auth (e.g. 'Authorization: Bearer "
                "YOUR_SECRET_KEY')."
            )
        if given != self.key:
            raise errors.unauthorized(f"Invalid API Key provided: {given[:8]}***{given[-4:]}")

    def _read(self, request: Request) -> tuple[Route, tuple[str, ...], Json, Json]:
        found = find_route(request.method, request.path)
        if found is None:
            raise errors.invalid_request(
                f"Unrecognized request URL ({request.method}: {request.path}). Please see "
                "https://stripe.com/docs or we can help at https://support.stripe.com/.",
                status=404,
            )
        entry, ids = found
        raw = self._decode(request)
        problems: list[Problem] = []
        params: Json = shape_of(entry.params).read(raw, "", problems)
        for problem in problems:
            self.violations.append(
                {
                    "method": request.method,
                    "path": request.path,
                    "param": problem.param,
                    "code": problem.code,
                    "message": problem.message,
                }
            )
        if problems and (self.check_requests or _breaks(problems)):
            worst = problems[0]
            raise errors.invalid_request(worst.message, code=worst.code, param=worst.param)
        return entry, ids, params, raw

    @staticmethod
    def _decode(request: Request) -> Json:
        if request.method != "POST":
            return decode_form(request.query)
        if request.path.startswith("/v2/"):
            if not request.body:
                return {}
            try:
                decoded = json.loads(request.body)
            except ValueError as error:
                raise errors.invalid_request(f"Invalid JSON: {error}") from error
            if not isinstance(decoded, dict):
                raise errors.invalid_request("The body must be a JSON object.")
            return decoded
        try:
            text = request.body.decode()
        except UnicodeDecodeError as error:
            raise errors.invalid_request("Invalid UTF-8 in the request body.") from error
        return decode_form(text)

    async def _send(self, send: Send, answer: Answer) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(answer.body)).encode()),
            (b"request-id", answer.request_id.encode()),
            (b"stripe-version", API_VERSION.encode()),
        ]
        if answer.idempotency_key is not None:
            headers.append((b"idempotency-key", answer.idempotency_key.encode("latin-1")))
            original = answer.replay_of or answer.request_id
            headers.append((b"original-request", original.encode()))
            if answer.replay_of is not None:
                headers.append((b"idempotent-replayed", b"true"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})


def _breaks(problems: list[Problem]) -> bool:
    """Whether an endpoint cannot run at all, even when requests are not checked."""
    return any(problem.code != "parameter_unknown" for problem in problems)


def _error_of(fault: Fault | None) -> StripeError | None:
    if fault is None or fault.kind != "error":
        return None
    if fault.status == 429:
        return errors.rate_limited()
    if fault.status == 409:
        return errors.lock_timeout()
    return errors.server_failure(fault.status)

"""The meter: what an app makes one of, and wraps its clients and its work with.

What only some apps need is imported where it is used: an import of this package is felt in every
cold start.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from meterline_client.attribution import (
    MAX_ID_CHARACTERS,
    Attribution,
    Unmetered,
    authorized_by,
    check_label,
    find_attribution,
    find_payer,
)
from meterline_client.errors import MeterClosedError
from meterline_client.events import Work, encode_event, format_quantity
from meterline_client.signals import Signal, SignalBoard

if TYPE_CHECKING:
    from decimal import Decimal
    from pathlib import Path

    from meterline_client.authorizing import Authorizer, Holds, Leave
    from meterline_client.caching import Cache, CachedCalls
    from meterline_client.calls import Call, Measured
    from meterline_client.deferring import DeferredCalls
    from meterline_client.sender import Service

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")

LOG_MARK = "METERLINE_EVENT "
"""What starts a line of a log that holds an event, for `python -m meterline_client replay`."""


class MeterSettings(NamedTuple):
    """Where events go, and what is promised about them until they are there.

    `strict` syncs every event to the disk before the call's result is handed back: a power cut
    then costs nothing. Without it, it costs at most what was appended during one `linger_s` and
    one request (`timeout_s`). kill -9 costs nothing either way.
    """

    endpoint: str
    api_key: str
    source: str
    """Who reports: an event's id is unique per customer and source."""
    spool: Path
    meter: str = "credits"
    strict: bool = False
    linger_s: float = 0.5
    timeout_s: float = 10.0
    max_spool_bytes: int = 1 << 30
    max_held_events: int = 1_000
    """How many events memory may hold while the disk refuses them (0 in strict mode)."""
    close_timeout_s: float = 5.0
    fail_open: bool = False
    """Whether calls go on when leave to spend cannot be asked for."""
    authorize_timeout_s: float = 5.0
    """A cold start takes 0.4 s here and 1.9 s from layers without bytecode, before AWS's own part;
    a call that is refused for want of an answer costs the app more than the wait."""
    handle_sigterm: bool = True
    """Deliver on SIGTERM, where the app has not set a handler of its own before."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> MeterSettings:
        """Read METERLINE_ENDPOINT, _API_KEY, _SOURCE and _SPOOL. Raises KeyError on a missing one.

        In a Lambda only the temporary directory can be written to: there _SPOOL may be left out.
        """
        from pathlib import Path

        found = os.environ if environment is None else environment
        spool = found.get("METERLINE_SPOOL")
        if spool is None and "AWS_LAMBDA_FUNCTION_NAME" in found:
            import tempfile

            spool = str(Path(tempfile.gettempdir()) / "meterline")
        if spool is None:
            raise KeyError("METERLINE_SPOOL")
        return cls(
            endpoint=found["METERLINE_ENDPOINT"],
            api_key=found["METERLINE_API_KEY"],
            source=found["METERLINE_SOURCE"],
            spool=Path(spool),
            strict=found.get("METERLINE_STRICT", "0") == "1",
        )


class Meter:
    """Meters calls: exactly one event for each that succeeded, kept on disk until it is delivered.

    One per process is enough; it is safe to share between threads, tasks and forked children.
    """

    def __init__(
        self,
        settings: MeterSettings,
        *,
        on_signal: Callable[[Signal], None] | None = None,
        clock: Callable[[], float] = time.time,
        service: Service | None = None,
    ) -> None:
        from meterline_client.sender import Sender, SenderSettings
        from meterline_client.service_connection import ServiceConnection
        from meterline_client.spool import Spool

        check_label("source", settings.source, MAX_ID_CHARACTERS)
        check_label("meter", settings.meter)
        self.settings = settings
        self.signals = SignalBoard(on_signal)
        self.default_meter = settings.meter
        self._clock = clock
        self._closed = False
        self._spool = Spool(
            settings.spool,
            self.signals,
            strict=settings.strict,
            max_bytes=settings.max_spool_bytes,
            max_held=settings.max_held_events,
        )
        self._service = service or ServiceConnection(
            settings.endpoint, settings.api_key, timeout_s=settings.timeout_s
        )
        self._sender = Sender(
            self._spool, self._service, self.signals, SenderSettings(linger_s=settings.linger_s)
        )
        self._lazy_lock = threading.Lock()
        self._deferred: DeferredCalls | None = None
        self._leaves: tuple[Authorizer, Holds] | None = None
        _close_at_exit(self)
        if settings.handle_sigterm:
            _close_at_sigterm(self)
        if self._spool.has_work():
            self._sender.wake()

    @classmethod
    def from_environment(cls, **options: Any) -> Meter:
        """Make a meter from the METERLINE_ variables; see `MeterSettings.from_environment`."""
        return cls(MeterSettings.from_environment(), **options)

    # Metering calls

    def wrap(self, client: C, *, provider: str | None = None, include_usage: bool = True) -> C:
        """Meter a client of anthropic, openai or replicate in place, and return it.

        `provider` names an OpenAI-compatible gateway ("openrouter", "litellm", "vercel"). Streams
        of Chat Completions are asked for their usage unless `include_usage` is False; the chunk
        that brings it is kept from the app if the app did not ask for it. Raises
        ClientUnsupportedError on any other object.
        """
        from meterline_client.wrapping import wrap_client

        return wrap_client(self, client, provider, include_usage)

    def measure(
        self,
        *,
        meter: str | None = None,
        quantity: Decimal | int | str | None = None,
        provider: str | None = None,
        model: str | None = None,
        action: str | None = None,
        id: str | None = None,  # noqa: A002 - the word of the contract
    ) -> Measured:
        """Open a block of work that the app measures itself, as `with` or `async with`.

        Raises CustomerMissingError at once when nobody is acting, SpoolFullError when its event
        could not be kept. `id` makes the event the same one on a retry in another process.
        """
        from meterline_client.calls import Call, Measured

        attribution = find_attribution()
        if action is not None:
            attribution = attribution._replace(action=action).checked()
        self._check_ready()
        call = Call(
            self,
            attribution,
            meter=meter or self.settings.meter,
            provider=provider or "",
            model=model,
            event_id=None if id is None else check_label("id", id, MAX_ID_CHARACTERS),
        )
        return Measured(call, quantity=None if quantity is None else format_quantity(quantity))

    def metered(
        self,
        *,
        meter: str | None = None,
        quantity: Decimal | int | str | None = None,
        usage: Callable[[Any], Mapping[str, int]] | None = None,
        provider: str | None = None,
        model: str | None = None,
        action: str | None = None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorate a function whose success is one event, of `quantity` or of `usage(result)`."""
        import inspect

        if (quantity is None) == (usage is None):
            raise ValueError("say either the quantity of each call or how to read its usage")
        options: dict[str, Any] = {
            "meter": meter,
            "quantity": quantity,
            "provider": provider,
            "model": model,
            "action": action,
        }

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
                raise TypeError("a generator has no one end: use `meter.measure()` inside it")
            if inspect.iscoroutinefunction(function):

                @functools.wraps(function)
                async def run_async(*args: Any, **kwargs: Any) -> Any:
                    with self.measure(**options) as measured:
                        result = await function(*args, **kwargs)
                        if usage is not None:
                            measured.use(**usage(result))
                        return result

                return run_async  # type: ignore[return-value]

            @functools.wraps(function)
            def run(*args: P.args, **kwargs: P.kwargs) -> R:
                with self.measure(**options) as measured:
                    result = function(*args, **kwargs)
                    if usage is not None:
                        measured.use(**usage(result))
                    return result

            return run

        return decorate

    def record_response(
        self,
        provider: str,
        body: Any,
        *,
        id: str,  # noqa: A002 - the word of the contract
        meter: str | None = None,
    ) -> None:
        """Meter an answer that came another way: a batch's result, a webhook's prediction.

        `id` must be the same whenever the same answer is met again, for instance
        `f"{batch.id}/{custom_id}"`; then it is billed once. An answer that failed bills nothing.
        """
        with self.measure(meter=meter, provider=provider, id=id) as measured:
            measured.respond(body)

    def cached(
        self,
        cache: Cache | MutableMapping[str, Any],
        *,
        key: Callable[..., str],
        ttl_s: int | None = None,
        dump: Callable[[Any], Any] | None = None,
        load: Callable[[Any], Any] | None = None,
    ) -> CachedCalls:
        """Decorate a function of metered calls with a cache in front: a hit never meters.

        A dict keeps answers as they are; any other cache keeps JSON, unless `dump` and `load` say
        otherwise. `key` takes the function's arguments. Callers of one key fly once.
        """
        from meterline_client.caching import CachedCalls

        return CachedCalls(cache, self.signals, key=key, ttl_s=ttl_s, dump=dump, load=load)

    # Leave first

    @contextlib.contextmanager
    def authorized(
        self,
        *,
        lease: bool = False,
        meter: str | None = None,
        expires_in_s: int | None = None,
        **estimate: Any,
    ) -> Iterator[Leave]:
        """Ask for leave to spend an estimate before the call inside, whose event then settles it.

        For several calls take a `lease`: their events draw it down one by one, and with the last of
        them its rest is given back. Without a `meter` it is of the one that the plan bills.
        Raises AuthorizationDeniedError, whose message is for the user, before anything is spent.
        What no event inside settles is given back.
        """
        attribution = find_attribution()
        asked = _write_request(estimate, lease, meter, expires_in_s)
        leave = self._find_leaves()[0].ask(attribution, asked)
        with self._under(leave, is_lease=lease):
            yield leave

    @contextlib.asynccontextmanager
    async def authorized_async(
        self,
        *,
        lease: bool = False,
        meter: str | None = None,
        expires_in_s: int | None = None,
        **estimate: Any,
    ) -> AsyncIterator[Leave]:
        """As `authorized`, without blocking the event loop."""
        import asyncio

        attribution = find_attribution()
        asked = _write_request(estimate, lease, meter, expires_in_s)
        leave = await asyncio.to_thread(self._find_leaves()[0].ask, attribution, asked)
        with self._under(leave, is_lease=lease):
            yield leave

    @contextlib.contextmanager
    def _under(self, leave: Leave, *, is_lease: bool) -> Iterator[None]:
        if leave.authorization is None:
            yield
            return
        holds = self._find_leaves()[1]
        holds.begin(leave.authorization, is_lease=is_lease)
        try:
            with authorized_by(leave.authorization):
                yield
        finally:
            holds.leave(leave.authorization)

    def _find_leaves(self) -> tuple[Authorizer, Holds]:
        from meterline_client.authorizing import Authorizer, Holds

        with self._lazy_lock:
            if self._leaves is None:
                authorizer = Authorizer(
                    self._service,
                    self.signals,
                    fail_open=self.settings.fail_open,
                    timeout_s=self.settings.authorize_timeout_s,
                )
                self._leaves = authorizer, Holds(authorizer.give_back)
            return self._leaves

    # Delivery

    @property
    def counts(self) -> dict[str, int]:
        """How often each signal was raised in this process."""
        return self.signals.counts

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Deliver what was kept so far; say whether all of it arrived in time."""
        give_up_at_s = time.monotonic() + timeout_s
        delivered = self._sender.flush(timeout_s)
        if self._leaves is not None:
            self._leaves[1].finish(give_up_at_s - time.monotonic())
        return delivered

    def close(self, timeout_s: float | None = None) -> bool:
        """Deliver and let go; say whether all arrived. What did not stays for the next process."""
        if self._closed:
            return True
        self._closed = True
        limit_s = self.settings.close_timeout_s if timeout_s is None else timeout_s
        if self._deferred is not None:
            self._deferred.settle_all(limit_s)
        if self._leaves is not None:
            self._leaves[1].finish(limit_s, leave_all=True)
        delivered = self._sender.stop(limit_s)
        if not self._sender.is_running:
            self._spool.close()
        return delivered

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def lambda_handler(self, handler: Callable[[Any, Any], R]) -> Callable[[Any, Any], R]:
        """Decorate a Lambda handler: its events are delivered before the invocation ends.

        A Lambda is frozen between invocations and may never thaw, and its disk goes with it; so
        what could not be delivered half a second before the time is up is also written to the
        function's log, which the platform collects from outside. Replaying the log is safe.
        """

        @functools.wraps(handler)
        def handle(event: Any, context: Any) -> R:
            try:
                return handler(event, context)
            finally:
                left_s = context.get_remaining_time_in_millis() / 1000 - 0.5
                if not self.flush(max(0.0, left_s)):
                    self.log_undelivered()

        return handle

    def log_undelivered(self) -> None:
        """Write each event that is not delivered to standard output, to be replayed from a log."""
        for line in self._spool.read_undelivered():
            print(LOG_MARK + line.decode(), flush=True)

    # What calls need

    def check_call(self) -> Attribution | None:
        """Return who is billed for a call that is about to be made; None when the platform pays.

        Raises CustomerMissingError, MeterClosedError or SpoolFullError before the provider is
        called.
        """
        payer = find_payer()
        if isinstance(payer, Unmetered):
            return None
        self._check_ready()
        return payer

    def _check_ready(self) -> None:
        if self._closed:
            raise MeterClosedError("the meter is closed: this call would not be billed")
        self._spool.check_room()

    def begin_authorized(self, authorization: str) -> None:
        """A call under an authorization is about to be made."""
        self._find_leaves()[1].open_call(authorization)

    def end_authorized(self, authorization: str, *, settled: bool) -> None:
        """A call under an authorization ended: with an event that settles it, or without one."""
        self._find_leaves()[1].end_call(authorization, settled=settled)

    def defer(self, call: Call, work_id: str, poll: Callable[[], Mapping[str, Any]] | None) -> None:
        """Keep a call whose work goes on after the answer."""
        from meterline_client.deferring import DeferredCalls

        with self._lazy_lock:
            if self._deferred is None:
                self._deferred = DeferredCalls()
        self._deferred.add(call, work_id, poll)

    def find_deferred(self, provider: str, work_id: str) -> Call | None:
        """Return the deferred call of a piece of work."""
        return None if self._deferred is None else self._deferred.find(provider, work_id)

    def keep(self, event_id: str, attribution: Attribution, work: Work) -> None:
        """Keep one event. Never raises: what it stands for is done and paid for."""
        try:
            line = encode_event(event_id, self.settings.source, self._clock(), attribution, work)
        except (ValueError, TypeError) as error:
            self.note_unknown(event_id, attribution, {"reason": f"no event can hold it: {error}"})
            return
        self.keep_line(line)

    def keep_line(self, line: bytes) -> None:
        """Keep an event that is encoded already, with its newline, as `replay` finds them."""
        self._spool.append(line)
        self._sender.wake()

    def note_unknown(self, event_id: str, attribution: Attribution, note: dict[str, Any]) -> None:
        """Keep the evidence of a call whose usage nobody reported, in unknown.jsonl."""
        self._spool.append_note(
            "unknown",
            {
                "id": event_id,
                "customer": attribution.customer,
                "user": attribution.user,
                "action": attribution.action,
                "at_s": round(self._clock(), 3),
                **note,
            },
        )
        self.signals.raise_signal(
            "usage_unknown",
            f"a call succeeded and is not billed: {note.get('reason')}",
            id=event_id,
            customer=attribution.customer,
            response_id=note.get("response_id"),
        )


def _write_request(
    estimate: Mapping[str, Any], lease: bool, meter: str | None, expires_in_s: int | None
) -> dict[str, Any]:
    asked: dict[str, Any] = {"estimate": dict(estimate), "meter": meter}
    if lease:
        asked["lease"] = True
    if expires_in_s is not None:
        asked["expires_in_s"] = expires_in_s
    return asked


def _close_at_exit(meter: Meter) -> None:
    reference = weakref.ref(meter)

    def close() -> None:
        found = reference()
        if found is not None:
            found.close()

    atexit.register(close)


_closed_at_sigterm: weakref.WeakSet[Meter] = weakref.WeakSet()


def _close_at_sigterm(meter: Meter) -> None:
    """Deliver before SIGTERM ends the process, where it would end at once otherwise.

    An app that has its own handler ends by itself, and `atexit` delivers.
    """
    import signal

    _closed_at_sigterm.add(meter)
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def handle(number: int, _: FrameType | None) -> None:
        meters = list(_closed_at_sigterm)
        # In threads of their own: this one may hold a lock that closing needs.
        closers = [threading.Thread(target=found.close, daemon=True) for found in meters]
        for closer in closers:
            closer.start()
        for closer, found in zip(closers, meters, strict=True):
            closer.join(found.settings.close_timeout_s + 1)
        signal.signal(number, signal.SIG_DFL)
        sys.stdout.flush()
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, handle)

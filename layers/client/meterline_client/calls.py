"""One call from before it is made until it is settled: its id, its customer, and its end."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Mapping
from decimal import Decimal
from types import TracebackType
from typing import Any, Protocol

from meterline_client.attribution import Attribution, clip_label
from meterline_client.events import Work, check_usage, format_quantity, make_event_id
from meterline_client.reading import CallUnsuccessfulError, Usage, read_usage
from meterline_client.signals import SignalBoard

IN_PROGRESS = frozenset({"queued", "in_progress", "starting", "processing"})
"""What OpenAI's background responses and Replicate's predictions call a call that has not ended."""


class Recorder(Protocol):
    """Where the events of settled calls go."""

    signals: SignalBoard
    default_meter: str
    """What calls of wrapped clients are counted on."""

    def keep(self, event_id: str, attribution: Attribution, work: Work) -> None:
        """Keep one event, durably, before returning."""

    def note_unknown(self, event_id: str, attribution: Attribution, note: dict[str, Any]) -> None:
        """Keep the evidence of a call whose usage nobody reported."""

    def begin_authorized(self, authorization: str) -> None:
        """A call under an authorization is about to be made."""

    def end_authorized(self, authorization: str, *, settled: bool) -> None:
        """A call under an authorization ended: with an event that settles it, or without one."""


class Call:
    """A call that is about to be made. It settles once, however often its end is told."""

    __slots__ = ("_open", "attribution", "id", "meter", "model", "provider", "recorder")

    def __init__(
        self,
        recorder: Recorder,
        attribution: Attribution,
        *,
        meter: str,
        provider: str,
        model: str | None = None,
        event_id: str | None = None,
    ) -> None:
        self.recorder = recorder
        self.attribution = attribution
        self.meter = meter
        self.provider = provider
        self.model = model
        self.id = event_id or make_event_id()
        # list.pop is atomic: of several threads that tell the end, one takes the token.
        self._open = [True]

    def begin(self) -> Call:
        """The call is about to be made."""
        if self.attribution.authorization is not None:
            self.recorder.begin_authorized(self.attribution.authorization)
        return self

    @property
    def is_open(self) -> bool:
        """Say whether the call has not been settled yet."""
        return bool(self._open)

    def settle(self, usage: Usage, *, partial: bool = False) -> None:
        """The call succeeded (or, `partial`, was cut) and the provider reported this usage."""
        if not self._take():
            return
        self._keep(self.id, usage, usage.model or self.model, partial)
        for number, other in enumerate(usage.also, 1):
            self._keep(f"{self.id}-{number}", other, other.model or self.model, partial)
        if partial:
            self.recorder.signals.raise_signal(
                "usage_partial",
                "a stream was cut: what had been reported until then is billed",
                id=self.id,
                customer=self.attribution.customer,
                response_id=usage.response_id,
            )
        self._end(settled=True)

    def settle_work(self, work: Work) -> None:
        """The call succeeded, and the app itself measured it."""
        if self._take():
            self.recorder.keep(self.id, self.attribution, work)
            self._end(settled=True)

    def _end(self, *, settled: bool) -> None:
        if self.attribution.authorization is not None:
            self.recorder.end_authorized(self.attribution.authorization, settled=settled)

    def _keep(self, event_id: str, usage: Usage, model: str | None, partial: bool) -> None:
        work = Work(
            meter=self.meter,
            usage=usage.kinds,
            provider=self.provider,
            model=model,
            tier=clip_label(usage.tier),
            response_id=clip_label(usage.response_id),
            status="partial" if partial else None,
        )
        self.recorder.keep(event_id, self.attribution, work)

    def settle_body(self, body: Any) -> str | None:
        """The provider answered with success: read the answer and settle.

        Returns the status when the answer says that the work has not ended yet; then the call
        stays open. An answer that says the work failed bills nothing.
        """
        try:
            usage = read_usage(self.provider, body)
        except CallUnsuccessfulError as error:
            if error.status in IN_PROGRESS:
                return error.status
            self.drop()
        except Exception as error:  # noqa: BLE001 - the app's answer is paid for: it must arrive
            self.give_up(f"the answer's usage cannot be read: {error!r}", read_response_id(body))
        else:
            self.settle(usage)
        return None

    def drop(self) -> None:
        """The call failed: nothing is billed."""
        if self._take():
            self._end(settled=False)

    def give_up(self, reason: str, response_id: str | None = None) -> None:
        """The call may have cost money, and nobody said how much: never guess, say so loudly."""
        if not self._take():
            return
        self.recorder.note_unknown(
            self.id,
            self.attribution,
            {
                "reason": reason,
                "provider": self.provider,
                "model": self.model,
                "response_id": response_id,
            },
        )
        self._end(settled=False)

    def _take(self) -> bool:
        try:
            return self._open.pop()
        except IndexError:
            return False


def read_response_id(body: Any) -> str | None:
    """Read the provider's own id of an answer, or None."""
    value = body.get("id") if isinstance(body, Mapping) else getattr(body, "id", None)
    return value if isinstance(value, str) else None


_measured: contextvars.ContextVar[Measured | None] = contextvars.ContextVar(
    "meterline_measured", default=None
)


def open_call(
    recorder: Recorder, attribution: Attribution, provider: str, model: str | None
) -> Call:
    """Open the call of a wrapped client, right before the provider is called."""
    note_paid_work()
    call = Call(recorder, attribution, meter=recorder.default_meter, provider=provider, model=model)
    return call if attribution.authorization is None else call.begin()


def note_hit() -> None:
    """Tell the block around, if any, that a cache gave an answer inside it."""
    measured = _measured.get()
    if measured is not None:
        measured.hits += 1


def note_paid_work() -> None:
    """Tell the block around, if any, that something was done inside it that costs money."""
    measured = _measured.get()
    if measured is not None:
        measured.paid += 1


class Measured:
    """Work measured by the app itself: images, GPU seconds, outcomes. A context manager.

    Say how much with `use` or `count` before the block ends. A block that raises bills nothing, nor
    does one that was answered by a cache alone. The id is the same on every retry inside the block.
    """

    __slots__ = ("_call", "_lock", "_quantity", "_response", "_token", "_usage", "hits", "paid")

    def __init__(self, call: Call, *, quantity: str | None) -> None:
        self._call = call
        self._quantity = quantity
        self._usage: dict[str, int] = {}
        self._response: Any = None
        self._token: contextvars.Token[Measured | None] | None = None
        self._lock = threading.Lock()
        self.hits = 0
        """Answers that a cache gave inside the block."""
        self.paid = 0
        """Calls to providers, and answers that a cache did not have, inside the block."""

    @property
    def id(self) -> str:
        """The event's id."""
        return self._call.id

    def use(self, **usage: int) -> None:
        """Add whole numbers of usage kinds, such as `images=4` or `predict_time_ms=1200`."""
        with self._lock:
            for kind, count in check_usage(usage).items():
                self._usage[kind] = self._usage.get(kind, 0) + count

    def count(self, quantity: Decimal | int | str) -> None:
        """Set the quantity in the meter's own unit. Raises TypeError on a float."""
        self._quantity = format_quantity(quantity)

    def respond(self, body: Any) -> None:
        """Take the provider's own answer, whose usage is read when the block ends."""
        self._response = body

    def __enter__(self) -> Measured:
        self._call.begin()
        self._token = _measured.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._token is not None:
            _measured.reset(self._token)
            self._token = None
        if kind is not None or (self.hits and not self.paid):
            self._call.drop()
            return
        call = self._call
        if self._response is not None:
            status = call.settle_body(self._response)
            if status is not None:
                call.give_up(
                    f"the answer says {status!r}: report it again when the work has ended",
                    read_response_id(self._response),
                )
        elif self._usage or self._quantity is not None:
            call.settle_work(
                Work(
                    meter=call.meter,
                    usage=self._usage or None,
                    quantity=None if self._usage else self._quantity,
                    provider=call.provider or None,
                    model=call.model,
                )
            )
        else:
            call.give_up("the block ended without saying how much was used")

    async def __aenter__(self) -> Measured:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)

"""The background sender: batches what the spool keeps, and sends until Meterline has it.

What an answer means: 202 settles the batch, and what it rejects is final. No answer, 429 and 5xx
mean "send all of it again", which is safe, since the service takes an event id once. Any other 4xx
keeps the events and says so loudly: a wrong key or address is for a person to mend. A body that the
service cannot take (400, 413, 422) is halved until the one bad event stands alone.
"""

from __future__ import annotations

import json
import os
import threading
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from meterline_client.errors import ServiceUnreachableError
from meterline_client.service_connection import Answer
from meterline_client.signals import SignalBoard
from meterline_client.spool import Batch, Spool

if TYPE_CHECKING:
    import random

FIRST_DELAY_S = 0.25
MAX_DELAY_S = 60.0
MAX_RETRY_AFTER_S = 300.0
ADOPT_EVERY_S = 5.0
BODY_REFUSALS = frozenset({400, 413, 422})


class Service(Protocol):
    """Where events are posted to."""

    def post(
        self,
        path: str,
        body: bytes,
        *,
        timeout_s: float | None = None,
        is_repeatable: bool = True,
    ) -> Answer:
        """Post one JSON body; raise ServiceUnreachableError when no answer came."""

    def close(self) -> None:
        """Let go of connections."""


class SenderSettings(NamedTuple):
    """How the sender batches: it gathers for `linger_s` after the first event of a batch."""

    linger_s: float = 0.5
    max_batch_events: int = 500
    max_batch_bytes: int = 512 << 10


class Sender:
    """Sends a spool's lines from one daemon thread, started by the first event."""

    def __init__(
        self,
        spool: Spool,
        service: Service,
        signals: SignalBoard,
        settings: SenderSettings,
        *,
        rng: random.Random | None = None,
    ) -> None:
        self._spool = spool
        self._service = service
        self._signals = signals
        self._settings = settings
        self._rng = rng
        self._start_idle()
        reference = weakref.ref(self)

        def start_child_idle() -> None:
            sender = reference()
            if sender is not None:
                sender._start_idle()

        os.register_at_fork(after_in_child=start_child_idle)

    def _start_idle(self) -> None:
        """As at birth, and as in a forked child, which inherits no threads."""
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._wake = threading.Event()
        self._is_told = False
        """A line waits and the sender knows; cleared before it reads the spool."""
        self._urgent = threading.Event()
        self._progress = threading.Condition()
        self._stopping = False
        self._failures = 0
        self._batch_limit = self._settings.max_batch_events
        self._adopted_at_s = time.monotonic()

    def wake(self) -> None:
        """Say that a line was appended. Cheap when the sender knows already."""
        if not self._is_told:
            self._is_told = True
            self._wake.set()
            if self._thread is None:
                self._ensure_running()

    def _ensure_running(self) -> None:
        with self._start_lock:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(
                    target=self._run, name="meterline-sender", daemon=True
                )
                self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Send what was appended so far, without lingering; say whether all of it arrived."""
        mark = self._spool.mark()
        deadline_s = time.monotonic() + timeout_s
        if self._spool.is_delivered(mark):
            return True
        self._ensure_running()
        self._urgent.set()
        self._wake.set()
        with self._progress:
            while not self._spool.is_delivered(mark):
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or self._thread is None:
                    return False
                self._progress.wait(left_s)
        return True

    def stop(self, timeout_s: float) -> bool:
        """Flush, then end the thread; say whether everything arrived and the thread is gone."""
        deadline_s = time.monotonic() + timeout_s
        delivered = self.flush(timeout_s)
        self._stopping = True
        self._urgent.set()
        self._wake.set()
        thread = self._thread
        if thread is not None:
            thread.join(max(0.0, deadline_s - time.monotonic()) + 0.1)
            if thread.is_alive():
                return False
        self._service.close()
        return delivered

    @property
    def is_running(self) -> bool:
        """Say whether the thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(ADOPT_EVERY_S)
            if self._wake.is_set():
                self._urgent.wait(self._settings.linger_s)
            self._urgent.clear()
            self._wake.clear()
            self._is_told = False
            self._adopt_when_due()
            try:
                delay_s = self._send_waiting()
            except Exception as error:  # noqa: BLE001 - a dead sender would be a silent one
                delay_s = self._delay("sender_failed", f"the sender failed: {error!r}", None)
            with self._progress:
                self._progress.notify_all()
            if delay_s is not None and not self._stopping:
                self._urgent.wait(delay_s)
                self._wake.set()

    def _adopt_when_due(self) -> None:
        now_s = time.monotonic()
        if now_s - self._adopted_at_s >= ADOPT_EVERY_S:
            self._adopted_at_s = now_s
            self._spool.adopt()

    def _send_waiting(self) -> float | None:
        """Send batches until none is left; return how long to wait when one could not be sent."""
        while not self._stopping:
            self._spool.sync()
            batch = self._spool.read_batch(self._batch_limit, self._settings.max_batch_bytes)
            if batch is None:
                return None
            body = b'{"events":[' + b",".join(batch.lines) + b"]}"
            try:
                answer = self._service.post("/v1/usage", body)
            except ServiceUnreachableError as error:
                return self._delay("service_unreachable", str(error), None)
            delay_s = self._settle(batch, answer)
            if delay_s is not None:
                return delay_s
            with self._progress:
                self._progress.notify_all()
        return None

    def _settle(self, batch: Batch, answer: Answer) -> float | None:
        """Act on one answer; return how long to wait before the batch is sent again, if it is."""
        if answer.status == 429 or answer.status >= 500:
            message = f"Meterline answered {answer.status}; the events are kept and sent again"
            return self._delay("service_unreachable", message, answer.retry_after_s)
        if answer.status in BODY_REFUSALS:
            if len(batch.lines) > 1:
                self._batch_limit = max(1, len(batch.lines) // 2)
                return None
            problem = _read_object(answer.body)
            code = str(problem.get("code", answer.status))
            self._set_rejected_aside(batch.lines[0], code, str(problem.get("detail", "")))
        else:
            rejected = _read_rejections(answer, len(batch.lines))
            if rejected is None:
                message = (
                    f"Meterline answered {answer.status}, which is no answer to a report: "
                    "check the address and the key. The events are kept"
                )
                return self._delay("service_refused", message, None)
            for rejection in rejected:
                line = batch.lines[rejection["index"]]
                code = str(rejection.get("code"))
                if not (code == "time_in_future" and self._send_undated(line)):
                    self._set_rejected_aside(line, code, str(rejection.get("message")))
        self._spool.acknowledge(batch)
        self._failures = 0
        self._batch_limit = min(self._settings.max_batch_events, self._batch_limit * 2)
        return None

    def _send_undated(self, line: bytes) -> bool:
        """Send an event from a clock that ran ahead again, to be dated by when it arrives.

        Its id is the same, so it is the same event.
        """
        event = json.loads(line)
        if event.pop("time", None) is None:
            return False
        self._spool.append(json.dumps(event, separators=(",", ":")).encode() + b"\n")
        self._signals.raise_signal(
            "clock_ahead",
            "this machine's clock was ahead when an event was made; Meterline dates it instead",
            id=event["id"],
        )
        return True

    def _set_rejected_aside(self, line: bytes, code: str, message: str) -> None:
        event = json.loads(line)
        self._spool.append_note("rejected", {"code": code, "message": message, "event": event})
        self._signals.raise_signal(
            "event_rejected",
            f"Meterline rejected an event for good ({code}): {message}; it is in rejected.jsonl",
            id=event["id"],
            customer=event["subject"],
            code=code,
        )

    def _delay(self, signal: str, message: str, retry_after_s: float | None) -> float:
        """Count a failure and return a jittered, doubling delay in seconds."""
        self._failures += 1
        # Not each time: an outage of hours is one fact, told ever less often.
        if self._failures & (self._failures - 1) == 0:
            self._signals.raise_signal(signal, message, failures=self._failures)
        backoff_s: float = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** min(self._failures - 1, 16))
        if self._rng is None:
            import random  # Needed on failure only, and 3 ms to load.

            self._rng = random.Random()  # noqa: S311 - jitter, not a secret
        delay_s = backoff_s * self._rng.uniform(0.5, 1.0)
        if retry_after_s is not None:
            delay_s = max(delay_s, min(retry_after_s, MAX_RETRY_AFTER_S))
        return delay_s


def _read_object(body: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read_rejections(answer: Answer, sent: int) -> list[dict[str, Any]] | None:
    """Return the rejected of a true answer to a report, or None for anything else.

    A page that some proxy answers with 200 must not pass for a receipt: the counts must add up.
    """
    if answer.status != 202:
        return None
    receipt = _read_object(answer.body)
    rejected = receipt.get("rejected")
    if not isinstance(rejected, list):
        return None
    counts = [receipt.get(name) for name in ("accepted", "duplicates", "ignored")]
    if not all(isinstance(count, int) for count in counts):
        return None
    if sum(count for count in counts if isinstance(count, int)) + len(rejected) != sent:
        return None
    for rejection in rejected:
        index = rejection.get("index") if isinstance(rejection, dict) else None
        if not isinstance(index, int) or not 0 <= index < sent:
            return None
    return rejected

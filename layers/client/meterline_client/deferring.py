"""Calls whose work goes on after the answer: predictions and background responses.

Whoever asks next how the work stands, the app or the poller here, settles the call; so an app that
never asks again, or that stops reading a prediction's stream, is billed right all the same.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from meterline_client.calls import Call

Poll = Callable[[], Mapping[str, Any]]
MAX_DEFERRED = 10_000


class DeferredCalls:
    """Keeps deferred calls in memory, and polls those that can be polled, ever less often."""

    def __init__(
        self, *, first_wait_s: float = 1.0, max_wait_s: float = 30.0, give_up_after_s: float = 3600
    ) -> None:
        self._first_wait_s = first_wait_s
        self._max_wait_s = max_wait_s
        self._give_up_after_s = give_up_after_s
        self._start_empty()
        reference = weakref.ref(self)

        def start_child_empty() -> None:
            deferred = reference()
            if deferred is not None:
                deferred._start_empty()

        os.register_at_fork(after_in_child=start_child_empty)

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[tuple[str, str], _Deferred] = {}
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def add(self, call: Call, work_id: str, poll: Poll | None) -> None:
        """Keep a call until its work has ended. Beyond 10,000 the oldest is given up, loudly."""
        now_s = time.monotonic()
        oldest = None
        with self._lock:
            key = (call.provider, work_id)
            if key in self._calls:
                return
            if len(self._calls) >= MAX_DEFERRED:
                oldest = self._calls.pop(next(iter(self._calls)))
            self._calls[key] = _Deferred(call, work_id, poll, now_s, self._first_wait_s)
            if poll is not None and self._thread is None and not self._closing:
                self._thread = threading.Thread(
                    target=self._run, name="meterline-poller", daemon=True
                )
                self._thread.start()
        self._wake.set()
        if oldest is not None:
            oldest.give_up("too many calls are unfinished")

    def find(self, provider: str, work_id: str) -> Call | None:
        """Return the open call of a piece of work."""
        with self._lock:
            deferred = self._calls.get((provider, work_id))
        return deferred.call if deferred is not None else None

    def settle_all(self, timeout_s: float) -> None:
        """Ask about every call once more, then give the unfinished up, loudly."""
        deadline_s = time.monotonic() + timeout_s
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        for deferred in self._forget_settled():
            if deferred.poll is not None and time.monotonic() < deadline_s:
                deferred.ask(0.0)
        for deferred in self._forget_settled():
            deferred.give_up("the process ended before the work did")
        with self._lock:
            self._calls.clear()

    def _forget_settled(self) -> list[_Deferred]:
        with self._lock:
            self._calls = {key: d for key, d in self._calls.items() if d.call.is_open}
            return list(self._calls.values())

    def _run(self) -> None:
        while not self._closing:
            waiting = [d for d in self._forget_settled() if d.poll is not None]
            now_s = time.monotonic()
            for deferred in waiting:
                if self._closing:
                    return
                if now_s - deferred.since_s > self._give_up_after_s:
                    deferred.give_up("the work did not end in time")
                elif now_s >= deferred.due_s:
                    deferred.ask(self._max_wait_s)
            next_s = min((d.due_s for d in waiting if d.call.is_open), default=None)
            self._wake.clear()
            self._wake.wait(None if next_s is None else max(0.05, next_s - time.monotonic()))


class _Deferred:
    """One unfinished call, and when to ask about it next."""

    __slots__ = ("call", "due_s", "poll", "since_s", "wait_s", "work_id")

    def __init__(
        self, call: Call, work_id: str, poll: Poll | None, now_s: float, wait_s: float
    ) -> None:
        self.call = call
        self.work_id = work_id
        self.poll = poll
        self.since_s = now_s
        self.wait_s = wait_s
        self.due_s = now_s + wait_s

    def ask(self, max_wait_s: float) -> None:
        """Ask how the work stands and settle the call if it ended."""
        if self.poll is None:
            return
        try:
            body = self.poll()
        except Exception as error:  # noqa: BLE001 - the provider's SDK raises as it likes; ask again
            body = {"status": "processing", "error": repr(error)}
        self.call.settle_body(body)
        self.wait_s = min(self.wait_s * 2, max_wait_s)
        self.due_s = time.monotonic() + self.wait_s

    def give_up(self, reason: str) -> None:
        self.call.give_up(f"{reason}: ask the provider about {self.work_id}", self.work_id)

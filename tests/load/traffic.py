"""Usage sent at a rate, as a customer's backend would: what is refused for now is sent again.

The rate is kept whatever the answers: calls wait in a queue when all senders are busy, as events
wait in a client's spool. So nothing that was due is left out, and its time counts from when it was
due.
"""

from __future__ import annotations

import http.client
import json
import queue
import random
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import cycle
from typing import Any
from urllib.parse import urlsplit

SUB_UNITS = 1000
"""Of a credit. Quantities here are whole credits, 1 to 5."""
_LONGEST_PAUSE_S = 5.0
_CALL_TIMEOUT_S = 60.0


class CallRefusedError(Exception):
    """The API refused for good what it should have taken; says what it answered."""


@dataclass(slots=True)
class Sent:
    """What the API took, of all phases so far."""

    events: Counter[str] = field(default_factory=Counter)
    sub_units: Counter[str] = field(default_factory=Counter)
    steps: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])
    """When so many sub-units had been taken in all, by the monotonic clock."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, call: Call) -> None:
        """A call that was answered with 202."""
        with self.lock:
            self.events[call.customer] += call.events
            self.sub_units[call.customer] += call.sub_units
            self.steps.append((time.monotonic(), self.steps[-1][1] + call.sub_units))

    def lag_s(self, billed: int) -> float:
        """How far back lies what is not among the first `billed` sub-units that were taken."""
        with self.lock:
            while len(self.steps) > 1 and self.steps[1][1] <= billed:
                del self.steps[0]
            return time.monotonic() - self.steps[1][0] if len(self.steps) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Call:
    """One report, to be sent until it is taken."""

    customer: str
    body: bytes
    events: int
    sub_units: int
    due_s: float


@dataclass(slots=True)
class Figures:
    """What a phase came to."""

    rate: float
    events: int = 0
    duplicates: int = 0
    seconds: float = 0.0
    answered_ms: list[float] = field(default_factory=list)
    """The time of each call that was taken, from when it was sent."""
    late_ms: list[float] = field(default_factory=list)
    """The time of each call that was taken, from when it was due."""
    refused: Counter[str] = field(default_factory=Counter)
    """Answers that asked for another try, by status, `none` where no answer came."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def taken_rate(self) -> float:
        """Events taken a second, over the time that they were due in or that taking them took."""
        return self.events / max(self.seconds, self.events / self.rate)


class Traffic:
    """Events of some customers, `batch` a call, from `senders` connections."""

    def __init__(
        self, api_url: str, api_key: str, customers: Sequence[str], *, batch: int, senders: int
    ) -> None:
        self._address = urlsplit(api_url).netloc
        self._headers = {
            "Authorization": f"Bearer {api_key}",
            "Content-Type": "application/cloudevents-batch+json",
        }
        self._customers = cycle(customers)
        self._batch = batch
        self._senders = senders
        self._run = secrets.token_hex(4)
        self.made = 0
        self._dice = random.Random(1)
        self.sent = Sent()

    def run(
        self, rate: float, seconds: float, stop: threading.Event, told: Callable[[int], None]
    ) -> Figures:
        """Send `rate` events a second, until all that was due is taken; `told` hears how many.

        Raises `CallRefusedError`. Ends early once `stop` is set.
        """
        figures, calls = Figures(rate), round(rate * seconds / self._batch)
        due: queue.Queue[Call | None] = queue.Queue()
        failures: list[Exception] = []
        threads = [
            threading.Thread(
                target=self._send_all, args=(due, figures, stop, told, failures), daemon=True
            )
            for _ in range(self._senders)
        ]
        for thread in threads:
            thread.start()
        begun_s = time.monotonic()
        for number in range(calls):
            due_s = begun_s + number * self._batch / rate
            if stop.wait(max(0.0, due_s - time.monotonic())):
                break
            due.put(self._make_call(due_s))
        for _ in threads:
            due.put(None)
        for thread in threads:
            thread.join()
        figures.seconds = time.monotonic() - begun_s
        if failures:
            raise failures[0]
        return figures

    def _make_call(self, due_s: float) -> Call:
        customer, at = next(self._customers), datetime.now(UTC).isoformat()
        quantities = [self._dice.randint(1, 5) for _ in range(self._batch)]
        events = []
        for quantity in quantities:
            self.made += 1
            events.append(
                {
                    "specversion": "1.0",
                    "id": f"{self._run}-{self.made}",
                    "source": "load",
                    "type": "meterline.usage",
                    "subject": customer,
                    "time": at,
                    "data": {"meter": "credits", "quantity": str(quantity), "action": "load"},
                }
            )
        body = json.dumps(events).encode()
        return Call(customer, body, self._batch, sum(quantities) * SUB_UNITS, due_s)

    def _send_all(
        self,
        due: queue.Queue[Call | None],
        figures: Figures,
        stop: threading.Event,
        told: Callable[[int], None],
        failures: list[Exception],
    ) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=_CALL_TIMEOUT_S)
        try:
            while (call := due.get()) is not None and not stop.is_set():
                self._send(connection, call, figures, stop)
                told(call.events)
        except Exception as error:  # noqa: BLE001 - it is raised again where the phase was begun
            failures.append(error)
            stop.set()
        finally:
            connection.close()

    def _send(
        self,
        connection: http.client.HTTPConnection,
        call: Call,
        figures: Figures,
        stop: threading.Event,
    ) -> None:
        pause_s = 0.1
        while not stop.is_set():
            sent_s = time.monotonic()
            status, told = self._post(connection, call.body)
            if status == "202":
                now_s = time.monotonic()
                if told["accepted"] + told["duplicates"] != call.events:
                    raise CallRefusedError(f"of {call.events} events: {told}")
                with figures.lock:
                    figures.events += call.events
                    figures.duplicates += told["duplicates"]
                    figures.answered_ms.append((now_s - sent_s) * 1000)
                    figures.late_ms.append((now_s - call.due_s) * 1000)
                self.sent.add(call)
                return
            if status.startswith("4") and status != "429":
                raise CallRefusedError(f"{status}: {told}")
            with figures.lock:
                figures.refused[status] += 1
            # Full jitter, so that those who were refused together do not come back together.
            stop.wait(random.uniform(0.05, pause_s))
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    def _post(self, connection: http.client.HTTPConnection, body: bytes) -> tuple[str, Any]:
        try:
            connection.request("POST", "/v1/usage", body, self._headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return "none", None
        status = str(answer.status)
        return status, json.loads(content) if status == "202" else content[:300]


class BilledWatch:
    """Looks at the bill while traffic runs: how far behind it is."""

    def __init__(self, sent: Sent, read_billed: Callable[[], dict[str, int]]) -> None:
        self._sent = sent
        self._read_billed = read_billed
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failures: list[Exception] = []
        self.lag_s = 0.0
        self.longest_lag_s = 0.0

    def __enter__(self) -> BilledWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def look(self) -> float:
        """The lag now, in seconds."""
        if self._failures:
            raise self._failures[0]
        self.lag_s = self._sent.lag_s(sum(self._read_billed().values()))
        self.longest_lag_s = max(self.longest_lag_s, self.lag_s)
        return self.lag_s

    def drain(self, limit_s: float, stop: threading.Event) -> float | None:
        """Wait until all that was taken is billed; the seconds it took, None if not in time."""
        begun_s = time.monotonic()
        while self.look() > 0:
            if time.monotonic() - begun_s > limit_s or stop.wait(0.2):
                return None
        return time.monotonic() - begun_s

    def _run(self) -> None:
        pause_s = 1.0
        while not self._done.wait(pause_s):
            begun_s = time.monotonic()
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - the next look raises it
                self._failures.append(error)
                return
            # Looking must cost the machine little of what it measures.
            pause_s = max(1.0, 20 * (time.monotonic() - begun_s))


def compare_books(
    sent: Sent, ledger: dict[str, tuple[int, int]], billed: dict[str, int]
) -> dict[str, str]:
    """What does not agree, by customer; `ledger` has events and sub-units of each."""
    wrong = defaultdict(list)
    for customer, events in sent.events.items():
        kept_events, kept_sub_units = ledger[customer]
        if kept_events != events:
            wrong[customer].append(f"{events} events taken, {kept_events} in the ledger")
        if kept_sub_units != sent.sub_units[customer]:
            wrong[customer].append(
                f"{sent.sub_units[customer]} sub-units taken, {kept_sub_units} in the ledger"
            )
        if billed.get(customer, 0) != sent.sub_units[customer]:
            wrong[customer].append(
                f"{sent.sub_units[customer]} sub-units taken, {billed.get(customer, 0)} billed"
            )
    return {customer: "; ".join(differences) for customer, differences in wrong.items()}

"""Send a workload's reports to the API as its customers' backends would, and wait for the bill."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from infra.local.workload import Fate, Report

EVENTS_PER_CALL = 100
SENDERS = 4
_ATTEMPTS = 8
_PATIENCE_S = 120.0
_POLL_S = 0.5


class ReplayFailedError(Exception):
    """The workload could not be sent, or the books never came to rest; says what stood still."""


class Sender:
    """Posts reports, and tallies what the API said became of them, per customer."""

    def __init__(self, api_url: str, api_key: str) -> None:
        self._address = urlsplit(api_url).netloc
        self._headers = {
            "Authorization": f"Bearer {api_key}",
            "Content-Type": "application/cloudevents-batch+json",
        }
        self.tallies: dict[str, Counter[Fate]] = defaultdict(Counter)

    def send(self, reports: Sequence[Report], on_sent: Callable[[int], None]) -> None:
        """Send all; each customer's reports in their order, customers side by side."""
        by_customer: dict[str, list[Report]] = defaultdict(list)
        for report in reports:
            by_customer[report.customer].append(report)
        with ThreadPoolExecutor(SENDERS, "sender") as pool:
            jobs = [
                pool.submit(self._send_all, customer, theirs, on_sent)
                for customer, theirs in by_customer.items()
            ]
            for job in jobs:
                job.result()

    def _send_all(
        self, customer: str, reports: Sequence[Report], on_sent: Callable[[int], None]
    ) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        tally = self.tallies[customer]
        for start in range(0, len(reports), EVENTS_PER_CALL):
            part = reports[start : start + EVENTS_PER_CALL]
            told = self._post(connection, json.dumps([report.event for report in part]).encode())
            tally[Fate.ACCEPTED] += told["accepted"]
            tally[Fate.DUPLICATE] += told["duplicates"]
            tally[Fate.IGNORED] += told["ignored"]
            tally[Fate.REJECTED] += len(told["rejected"])
            on_sent(len(part))
        connection.close()

    def _post(self, connection: http.client.HTTPConnection, body: bytes) -> dict[str, Any]:
        why = ""
        for attempt in range(_ATTEMPTS):
            time.sleep(min(2.0, 0.1 * 2**attempt) if attempt else 0)
            try:
                connection.request("POST", "/v1/usage", body, self._headers)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                why = repr(error)
                continue
            if answer.status == 202:
                decoded: dict[str, Any] = json.loads(content)
                return decoded
            why = f"{answer.status} {content[:300].decode(errors='replace')}"
            if answer.status < 500 and answer.status != 429:
                break
        raise ReplayFailedError(f"POST /v1/usage: {why}")


def await_rest(count_open: Callable[[], int], on_open: Callable[[int], None]) -> None:
    """Wait until nothing is open any more; `count_open` says how many events still are.

    Raises `ReplayFailedError` when the count has not moved for two minutes.
    """
    best = None
    moved_at_s = time.monotonic()
    while left := count_open():
        on_open(left)
        if best is None or left < best:
            best, moved_at_s = left, time.monotonic()
        if time.monotonic() - moved_at_s > _PATIENCE_S:
            raise ReplayFailedError(f"{left} events were neither billed nor listed with a reason")
        time.sleep(_POLL_S)
    on_open(0)

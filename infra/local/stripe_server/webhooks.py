"""Deliveries: signed POSTs of events to endpoints, with retries and the faults of real life.

By default each target gets its events once and in order, and a delivery that fails is tried
again. `WebhookFaults` repeats, shuffles and drops; what is dropped stays in the events list.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
import time
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from infra.local.stripe_server.account import Account, Json
from infra.local.stripe_server.resources.destinations import destinations_for, url_of

_TIMEOUT_S = 10.0


@dataclass(slots=True)
class WebhookFaults:
    """How deliveries go wrong; probabilities from 0 to 1, drawn from `seed`."""

    repeat_probability: float = 0.0
    drop_probability: float = 0.0
    shuffle_window_s: float = 0.0
    """Deliveries of one target are held this long and then sent in random order."""
    retry_delays_s: tuple[float, ...] = (1.0, 5.0, 30.0)
    seed: int = 0


@dataclass(slots=True)
class Delivery:
    """One event to one target, with all its attempts."""

    event: str
    type: str
    target: str
    url: str
    attempts: int = 0
    outcome: str = "pending"
    """pending, delivered, failed (no retry left) or dropped."""
    statuses: list[int | None] = field(default_factory=list)
    """HTTP status of each attempt; None when there was no answer."""

    def as_json(self) -> Json:
        """For the control API."""
        return asdict(self)


def sign(body: bytes, secrets: list[str], at_s: int) -> str:
    """A Stripe-Signature header; during a rotation it holds a signature for each secret."""
    signed = b"%d.%s" % (at_s, body)
    digests = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    return ",".join([f"t={at_s}", *(f"v1={digest}" for digest in digests)])


def _payload(event: Json) -> bytes:
    if event["object"] == "v2.core.event":
        event = {key: value for key, value in event.items() if key != "data"}
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()


class WebhookDeliverer:
    """Sends what is in the account's outbox; lives in the server's event loop."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.set_faults(WebhookFaults())
        self.deliveries: list[Delivery] = []
        self._queues: dict[str, asyncio.Queue[tuple[Json, Json, Delivery]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._client: httpx.AsyncClient | None = None

    def set_faults(self, faults: WebhookFaults) -> None:
        """Replace the faults in force."""
        self.faults = faults
        self._random = random.Random(faults.seed)  # noqa: S311 - a repeatable test

    def flush(self) -> None:
        """Queue everything in the outbox for whoever takes it."""
        events, self.account.outbox = self.account.outbox, []
        for event in events:
            for target in destinations_for(self.account, event):
                self._queue(event, target)

    def _queue(self, event: Json, target: Json) -> None:
        delivery = Delivery(event["id"], event["type"], target["id"], url_of(target))
        self.deliveries.append(delivery)
        if self._random.random() < self.faults.drop_probability:
            delivery.outcome = "dropped"
            return
        copies = 2 if self._random.random() < self.faults.repeat_probability else 1
        queue = self._queues.get(target["id"])
        if queue is None:
            queue = self._queues[target["id"]] = asyncio.Queue()
            self._spawn(self._serve(queue))
        for _ in range(copies):
            if "pending_webhooks" in event:
                event["pending_webhooks"] += 1
            self._enter()
            queue.put_nowait((event, target, delivery))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _enter(self) -> None:
        self._busy += 1
        self._idle.clear()

    def _leave(self) -> None:
        self._busy -= 1
        if self._busy == 0:
            self._idle.set()

    async def _serve(self, queue: asyncio.Queue[tuple[Json, Json, Delivery]]) -> None:
        while True:
            batch = [await queue.get()]
            if self.faults.shuffle_window_s > 0:
                await asyncio.sleep(self.faults.shuffle_window_s)
                while not queue.empty():
                    batch.append(queue.get_nowait())
                self._random.shuffle(batch)
            for event, target, delivery in batch:
                await self._attempt(event, target, delivery, 0)

    async def _attempt(self, event: Json, target: Json, delivery: Delivery, attempt: int) -> None:
        try:
            status = await self._post(event, target)
            delivery.attempts += 1
            delivery.statuses.append(status)
            if status is not None and 200 <= status < 300:
                delivery.outcome = "delivered"
                if "pending_webhooks" in event:
                    event["pending_webhooks"] -= 1
            elif attempt < len(self.faults.retry_delays_s):
                self._spawn(self._retry(event, target, delivery, attempt))
            elif delivery.outcome == "pending":
                delivery.outcome = "failed"
        finally:
            self._leave()

    async def _retry(self, event: Json, target: Json, delivery: Delivery, attempt: int) -> None:
        await asyncio.sleep(self.faults.retry_delays_s[attempt])
        self._enter()
        await self._attempt(event, target, delivery, attempt + 1)

    async def _post(self, event: Json, target: Json) -> int | None:
        body = _payload(event)
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False)
        # The receiver checks the signature's age against real time, whatever the server's clock.
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": sign(body, target["_secrets"], int(time.time())),
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        }
        try:
            response = await self._client.post(url_of(target), content=body, headers=headers)
        except httpx.HTTPError:
            return None
        return response.status_code

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is being delivered (retries that lie ahead do not count)."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def forget(self) -> None:
        """Drop what is queued and what was recorded."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._queues.clear()
        self.deliveries.clear()
        self._busy = 0
        self._idle.set()

    async def close(self) -> None:
        """End every task and connection."""
        await self.forget()
        if self._client is not None:
            await self._client.aclose()

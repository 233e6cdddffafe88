"""Leave first: ask Meterline whether an action may be spent on, before it is done."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from meterline_client.attribution import Attribution
from meterline_client.errors import (
    AuthorizationDeniedError,
    AuthorizationUnavailableError,
    ServiceUnreachableError,
)
from meterline_client.service_connection import Answer
from meterline_client.signals import SignalBoard


class Poster(Protocol):
    """What posts JSON to Meterline."""

    def post(
        self,
        path: str,
        body: bytes,
        *,
        timeout_s: float | None = None,
        is_repeatable: bool = True,
    ) -> Answer:
        """Post one JSON body; raise ServiceUnreachableError when no answer came."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave to spend: the authorization's id, or None where the meter failed open."""

    authorization: str | None
    remaining: str | None = None
    expires_at: str | None = None


class Authorizer:
    """Asks for authorizations and gives back those that were not used."""

    def __init__(
        self, service: Poster, signals: SignalBoard, *, fail_open: bool, timeout_s: float
    ) -> None:
        self._service = service
        self._signals = signals
        self._fail_open = fail_open
        self._timeout_s = timeout_s

    def ask(self, attribution: Attribution, asked: Mapping[str, Any]) -> Leave:
        """Ask for leave to spend an estimate: `asked` holds it, and what else the contract takes.

        Raises AuthorizationDeniedError when Meterline says no, and AuthorizationUnavailableError
        when it gives no answer and the meter fails closed.
        """
        request = {
            "customer": attribution.customer,
            "user": attribution.user,
            "action": attribution.action,
            **asked,
        }
        body = json.dumps({name: value for name, value in request.items() if value is not None})
        try:
            # Asked twice, it would be held twice.
            answer = self._service.post(
                "/v1/authorizations",
                body.encode(),
                timeout_s=self._timeout_s,
                is_repeatable=False,
            )
        except ServiceUnreachableError as error:
            return self._go_without(str(error))
        decision = _read_object(answer.body)
        verdict = decision.get("decision")
        if answer.status < 500 and verdict == "deny":
            raise AuthorizationDeniedError(
                str(decision.get("code", "denied")), str(decision.get("message", "Denied."))
            )
        authorization = decision.get("authorization")
        if 200 <= answer.status < 300 and verdict == "allow":
            return Leave(
                authorization if isinstance(authorization, str) else None,
                _text(decision.get("remaining")),
                _text(decision.get("expires_at")),
            )
        return self._go_without(f"Meterline answered {answer.status} {decision.get('code', '')}")

    def give_back(self, authorization: str, events: int = 0) -> None:
        """Release what is held, once so many events of a lease are counted.

        A release that fails is no loss: what is held expires by itself.
        """
        body = json.dumps({"events": events} if events else {}).encode()
        path = f"/v1/authorizations/{authorization}/release"
        try:
            answer = self._service.post(path, body, timeout_s=self._timeout_s)
        except ServiceUnreachableError as error:
            problem: str | None = str(error)
        else:
            # 404: a lease that was used up, or whose time was over.
            is_gone = answer.status < 300 or (events > 0 and answer.status == 404)
            problem = None if is_gone else f"Meterline answered {answer.status}"
        if problem is not None:
            self._signals.raise_signal(
                "authorization_unavailable",
                f"an authorization was not released, and is held until it expires: {problem}",
                authorization=authorization,
            )

    def _go_without(self, reason: str) -> Leave:
        self._signals.raise_signal(
            "authorization_unavailable",
            f"no answer to a request for leave to spend ({reason}); "
            + ("the call goes on" if self._fail_open else "the call is refused"),
        )
        if not self._fail_open:
            raise AuthorizationUnavailableError(f"leave to spend cannot be asked for: {reason}")
        return Leave(None)


def _read_object(body: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


class _Block(NamedTuple):
    """One authorization in use: open calls, events so far, and whether its block has ended."""

    is_lease: bool
    open_calls: int = 0
    events: int = 0
    has_ended: bool = False


class Holds:
    """The authorizations in use, so that what no event will settle is given back, and once only.

    A stream may end after the block that asked for leave; its event still settles it. Of a lease
    the rest goes with the last of its events.
    """

    def __init__(self, give_back: Callable[[str, int], None]) -> None:
        self._give_back = give_back
        self._lock = threading.Lock()
        self._blocks: dict[str, _Block] = {}
        self._releases: set[threading.Thread] = set()

    def begin(self, authorization: str, *, is_lease: bool) -> None:
        """A block asked for this authorization, and begins."""
        with self._lock:
            self._blocks[authorization] = _Block(is_lease)

    def open_call(self, authorization: str) -> None:
        """A call under it is about to be made."""
        with self._lock:
            block = self._blocks.get(authorization)
            if block is not None:
                self._blocks[authorization] = block._replace(open_calls=block.open_calls + 1)

    def end_call(self, authorization: str, *, settled: bool) -> None:
        """A call under it ended, with an event that names it or without one."""
        with self._lock:
            block = self._blocks.get(authorization)
            if block is None:
                return
            self._blocks[authorization] = block._replace(
                open_calls=block.open_calls - 1, events=block.events + settled
            )
        self._give_back_when_idle(authorization)

    def leave(self, authorization: str) -> None:
        """The block ended; calls of its own may still be open."""
        with self._lock:
            block = self._blocks.get(authorization)
            if block is None:
                return
            self._blocks[authorization] = block._replace(has_ended=True)
        self._give_back_when_idle(authorization)

    def finish(self, timeout_s: float, *, leave_all: bool = False) -> None:
        """Wait until what was released is given back; `leave_all` ends every block first."""
        give_up_at_s = time.monotonic() + timeout_s
        with self._lock:
            blocks = list(self._blocks)
        for authorization in blocks if leave_all else ():
            self.leave(authorization)
        with self._lock:
            releases = list(self._releases)
        for release in releases:
            release.join(max(0.0, give_up_at_s - time.monotonic()))

    def _give_back_when_idle(self, authorization: str) -> None:
        with self._lock:
            block = self._blocks.get(authorization)
            if block is None or not block.has_ended or block.open_calls:
                return
            del self._blocks[authorization]
            if block.events and not block.is_lease:
                return
            # Often called from an event loop or a finalizer, where waiting for an answer is out.
            release = threading.Thread(
                target=self._release,
                args=(authorization, block.events),
                name="meterline-release",
                daemon=True,
            )
            self._releases.add(release)
            release.start()

    def _release(self, authorization: str, events: int) -> None:
        try:
            self._give_back(authorization, events)
        finally:
            with self._lock:
                self._releases.discard(threading.current_thread())

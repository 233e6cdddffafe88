"""Leave first: ask Meterline whether an action may be spent on, before it is done."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

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

    def give_back(self, authorization: str) -> None:
        """Release what is held. A release that fails is no loss: it expires by itself."""
        try:
            answer = self._service.post(
                f"/v1/authorizations/{authorization}/release", b"{}", timeout_s=self._timeout_s
            )
        except ServiceUnreachableError as error:
            problem: str | None = str(error)
        else:
            problem = None if answer.status < 300 else f"Meterline answered {answer.status}"
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


class Holds:
    """The authorizations in use, so that what no event will settle is given back, and once only.

    A stream may end after the block that asked for leave; its event still settles it.
    """

    def __init__(self, release: Callable[[str], None]) -> None:
        self._release = release
        self._lock = threading.Lock()
        self._open_calls: dict[str, int] = {}
        self._settled: set[str] = set()
        self._left: set[str] = set()

    def begin(self, authorization: str) -> None:
        """A block asked for this authorization, and begins."""
        with self._lock:
            self._open_calls[authorization] = 0

    def open_call(self, authorization: str) -> None:
        """A call under it is about to be made."""
        with self._lock:
            if authorization in self._open_calls:
                self._open_calls[authorization] += 1

    def end_call(self, authorization: str, *, settled: bool) -> None:
        """A call under it ended, with an event that settles it or without one."""
        with self._lock:
            if authorization not in self._open_calls:
                return
            self._open_calls[authorization] -= 1
            if settled:
                self._settled.add(authorization)
        self._give_back_when_idle(authorization)

    def leave(self, authorization: str) -> None:
        """The block ended; calls of its own may still be open."""
        with self._lock:
            self._left.add(authorization)
        self._give_back_when_idle(authorization)

    def _give_back_when_idle(self, authorization: str) -> None:
        with self._lock:
            if authorization not in self._left or self._open_calls.get(authorization, 1):
                return
            settled = authorization in self._settled
            del self._open_calls[authorization]
            self._left.discard(authorization)
            self._settled.discard(authorization)
        if not settled:
            self._release(authorization)

"""Whose call it is: the customer and user that a call is attributed to, kept in a context.

`contextvars` carry it into asyncio tasks and `asyncio.to_thread`; plain threads do not inherit a
context, so hand them work through `carry` or an `AttributedThreadPool`.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from meterline_client.errors import CustomerMissingError

if TYPE_CHECKING:
    from typing import Protocol

    class VerifiedIdentity(Protocol):
        """What a verified session says: who signed in, and for which organisation."""

        @property
        def user(self) -> str:
            """The person."""

        @property
        def organisation(self) -> str | None:
            """The organisation the person acts for, if any."""


P = ParamSpec("P")
R = TypeVar("R")

# What the contract takes (POST /v1/usage): a name that it refuses must fail before money is spent.
MAX_LABEL_CHARACTERS = 128
"""The longest user, action, provider, model or authorization."""
MAX_ID_CHARACTERS = 200
"""The longest event id or source."""
_CUSTOMER = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_UNFIT = r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]"


class Attribution(NamedTuple):
    """Who is billed (`customer`), which person it was (`user`) and what for (`action`)."""

    customer: str
    user: str | None = None
    action: str | None = None
    authorization: str | None = None

    def checked(self) -> Attribution:
        """Return itself if the contract takes its names, or raise ValueError."""
        if not isinstance(self.customer, str) or not re.fullmatch(_CUSTOMER, self.customer):
            raise ValueError(
                "customer must be 1 to 64 letters, digits, dots, dashes or underscores, "
                "the first a letter or a digit"
            )
        for name in ("user", "action", "authorization"):
            value = getattr(self, name)
            if value is not None:
                check_label(name, value)
        return self


class Unmetered(NamedTuple):
    """The platform pays itself, for this reason."""

    reason: str


_current: contextvars.ContextVar[Attribution | Unmetered | None] = contextvars.ContextVar(
    "meterline_attribution", default=None
)


def check_label(what: str, value: object, max_characters: int = MAX_LABEL_CHARACTERS) -> str:
    """Return a text fit for an event, or raise ValueError."""
    if not isinstance(value, str) or not 1 <= len(value) <= max_characters:
        raise ValueError(f"{what} must be a string of 1 to {max_characters} characters")
    if re.search(_UNFIT, value):
        raise ValueError(f"{what} must hold no control characters and no half surrogates")
    return value


def clip_label(value: str | None) -> str | None:
    """Make a provider's text fit for an event: evidence that is cut beats an event refused."""
    if value is None or (len(value) <= MAX_LABEL_CHARACTERS and value.isprintable() and value):
        return value
    return re.sub(_UNFIT, "", value)[:MAX_LABEL_CHARACTERS] or None


def find_attribution() -> Attribution:
    """Return who is acting. Raises CustomerMissingError when nobody is, or the platform itself."""
    attribution = find_payer()
    if isinstance(attribution, Unmetered):
        raise CustomerMissingError(f"no customer to bill: {attribution.reason} is not metered")
    return attribution


def find_payer() -> Attribution | Unmetered:
    """Return who pays for the next call. Raises CustomerMissingError when that is not known."""
    payer = _current.get()
    if payer is None:
        raise CustomerMissingError(
            "no customer to bill: make the call inside `with acting_for(customer):`"
        )
    return payer


def set_attribution(customer: str, *, user: str | None = None, action: str | None = None) -> None:
    """Attribute every later call of this context: for a web framework's per-request context."""
    _current.set(Attribution(customer, user, action).checked())


def clear_attribution() -> None:
    """Nobody is acting from here on in this context."""
    _current.set(None)


@contextlib.contextmanager
def acting_for(
    customer: str, *, user: str | None = None, action: str | None = None
) -> Iterator[Attribution]:
    """Attribute the calls made inside to a customer, and to one of its users if known."""
    with _attributed(Attribution(customer, user, action)) as attribution:
        yield attribution


@contextlib.contextmanager
def acting_for_session(
    identity: VerifiedIdentity,
    *,
    customer_of: Callable[[Any], str] | None = None,
    action: str | None = None,
) -> Iterator[Attribution]:
    """Attribute the calls made inside to a verified session.

    The customer is what `customer_of` answers; without it the organisation, or else the user,
    where a person is a customer of their own.
    """
    customer = customer_of(identity) if customer_of else identity.organisation or identity.user
    with _attributed(Attribution(customer, identity.user, action)) as attribution:
        yield attribution


@contextlib.contextmanager
def doing(action: str) -> Iterator[Attribution]:
    """Name the action of the calls made inside, for the customer who is acting already."""
    with _attributed(find_attribution()._replace(action=action)) as attribution:
        yield attribution


@contextlib.contextmanager
def authorized_by(authorization: str) -> Iterator[Attribution]:
    """Let the events of the calls made inside settle an authorization."""
    with _attributed(find_attribution()._replace(authorization=authorization)) as attribution:
        yield attribution


@contextlib.contextmanager
def unmetered(reason: str) -> Iterator[None]:
    """Meter nothing inside: for calls that the platform pays itself. The reason is required."""
    token = _current.set(Unmetered(check_label("reason", reason)))
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def _attributed(attribution: Attribution) -> Iterator[Attribution]:
    token = _current.set(attribution.checked())
    try:
        yield attribution
    finally:
        _current.reset(token)


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """Bind a function to the present context, to be run in a thread that does not inherit it.

    Each call runs in a copy, since one context cannot be entered by two threads at once.
    """
    context = contextvars.copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.copy().run(function, *args, **kwargs)

    return run

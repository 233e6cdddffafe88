"""What can go wrong around a metered call, each with its own name."""

from __future__ import annotations


class MeterlineError(Exception):
    """The base of every error that this package raises on purpose."""


class CustomerMissingError(MeterlineError):
    """A call has no customer to bill: nobody is acting, so the provider is not called."""


class SpoolFullError(MeterlineError):
    """No further event can be kept safely, so no further call is let through to be unbilled."""


class ClientUnsupportedError(MeterlineError, TypeError):
    """The object given to `wrap` is no client that this package knows how to meter."""


class MeterClosedError(MeterlineError):
    """The meter was closed: a call through it would not be billed."""


class ServiceUnreachableError(MeterlineError):
    """Meterline gave no answer: refused, reset, timed out, or not HTTP."""


class AuthorizationDeniedError(MeterlineError):
    """Meterline refused leave to spend. `message` is meant for the user, `code` for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class AuthorizationUnavailableError(MeterlineError):
    """Leave to spend could not be asked for, and the meter is set to fail closed."""

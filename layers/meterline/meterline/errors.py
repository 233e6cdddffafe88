"""What can go wrong, named. `meterline.http` says which HTTP answer each one becomes."""

from __future__ import annotations


class MeterlineError(Exception):
    """The root of all errors that the service raises on purpose."""


class ConfigurationError(MeterlineError):
    """The deployment or a checked-in file says something that cannot be right."""


class StorageUnavailableError(MeterlineError):
    """The storage answered late, not at all, or asked us to slow down: nothing is decided."""


class StorageError(MeterlineError):
    """The storage refused a request that we made; `code` is its own word for why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class BillingUnavailableError(MeterlineError):
    """The billing layer answered late, not at all, or refused our key: nothing is known anew."""


class BillingCustomerTakenError(MeterlineError):
    """Another customer has that id at the billing layer: two would be billed as one."""


class UnauthenticatedError(MeterlineError):
    """No API key, or one that we do not know."""


class LinkUsedError(MeterlineError):
    """A link that starts one session has started it already."""


class ForbiddenError(MeterlineError):
    """A known API key without the scope that the call needs."""


class RateLimitedError(MeterlineError):
    """A known API key that makes too many calls; there is room again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotFoundError(MeterlineError):
    """What the call names does not exist."""


class InvalidRequestError(MeterlineError):
    """The request as a whole cannot be read; `code` is stable and part of the contract."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class RejectedEventError(MeterlineError):
    """One event cannot be taken; `code` is stable and part of the contract."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SupersededError(MeterlineError):
    """Another run saved its state in between: what we were about to save is stale."""


class UnreadablePageCallError(MeterlineError):
    """A call of a page cannot be read. People see the message, so there is no code."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class InvoiceFinalError(MeterlineError):
    """The invoice is final: it can be neither held nor changed."""


class SearchedTooLongError(MeterlineError):
    """There is more to look through than one call has time for."""

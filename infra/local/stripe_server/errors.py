"""Refusals in Stripe's own words: status, type, code and the JSON body that the SDK reads."""

from __future__ import annotations

from typing import Any


class StripeError(Exception):
    """An answer other than 2xx, as Stripe's API gives it (API reference, errors)."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.code = code
        self.param = param

    def body(self) -> dict[str, Any]:
        """The JSON body: {"error": {...}}."""
        error: dict[str, Any] = {"message": self.message, "type": self.kind}
        if self.code is not None:
            error["code"] = self.code
            error["doc_url"] = f"https://stripe.com/docs/error-codes/{self.code.replace('_', '-')}"
        if self.param is not None:
            error["param"] = self.param
        return {"error": error}


def invalid_request(
    message: str, *, code: str | None = None, param: str | None = None, status: int = 400
) -> StripeError:
    """400 invalid_request_error."""
    return StripeError(status, "invalid_request_error", message, code=code, param=param)


def missing_resource(noun: str, object_id: str, *, param: str = "id") -> StripeError:
    """resource_missing: 404 when the URL names the object, 400 when a parameter does."""
    return invalid_request(
        f"No such {noun}: '{object_id}'",
        code="resource_missing",
        param=param,
        status=404 if param == "id" else 400,
    )


def idempotency_mismatch(message: str) -> StripeError:
    """400 idempotency_error."""
    return StripeError(400, "idempotency_error", message)


def unauthorized(message: str) -> StripeError:
    """401, which the SDK raises as AuthenticationError."""
    return StripeError(401, "invalid_request_error", message)


def lock_timeout() -> StripeError:
    """409 on truly parallel calls for one object (error code lock_timeout)."""
    return StripeError(
        409,
        "invalid_request_error",
        "This object cannot be accessed right now because another API request or Stripe process "
        "is currently accessing it. If you see this error intermittently, retry the request.",
        code="lock_timeout",
    )


def rate_limited() -> StripeError:
    """429, which the SDK raises as RateLimitError."""
    return StripeError(
        429, "invalid_request_error", "Request rate limit exceeded.", code="rate_limit"
    )


def server_failure(status: int) -> StripeError:
    """5xx api_error."""
    return StripeError(status, "api_error", "An unknown error occurred.")


def card_declined() -> StripeError:
    """402 card_error."""
    return StripeError(402, "card_error", "Your card was declined.", code="card_declined")

"""HTTP: the one place where errors become answers, and where a call is let in or turned away.

Errors are `application/problem+json` (RFC 9457) with a stable `code`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.exceptions import NotFoundError as NoSuchRouteError
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEventV2
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from meterline.errors import (
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    RateLimitedError,
    StorageUnavailableError,
    UnauthenticatedError,
)
from meterline.failures import list_places
from meterline.schemas.locations import write_location

MAX_BODY_BYTES = 2_000_000
"""Bytes of a body. An event for a function has at most 6,291,456 bytes (Lambda's quotas), and API
Gateway puts the body into it as text within JSON: two bytes for a quotation mark, and up to six
for two of another script. So what is shorter always arrives, and is answered by ourselves."""
_MAX_DIGITS = 4_300
"""What Python reads of a whole number unless it is told otherwise (its documentation, `int`)."""
MAX_FIELD_ERRORS = 20
"""Fields that one answer complains about."""
_PROBLEM_TYPE = "application/problem+json"
_JSON_TYPES = frozenset(
    {
        "application/json",
        "application/cloudevents+json",
        "application/cloudevents-batch+json",
    }
)


def answer(status: int, body: object, headers: Mapping[str, str] | None = None) -> Response[str]:
    """A JSON answer."""
    return Response(status, "application/json", to_json(body).decode(), headers=dict(headers or {}))


def problem(
    status: int,
    code: str,
    title: str,
    *,
    headers: Mapping[str, str] | None = None,
    **members: object,
) -> Response[str]:
    """A problem+json answer; `members` are further facts that a program can use."""
    body = {"type": "about:blank", "title": title, "status": status, "code": code, **members}
    return Response(status, _PROBLEM_TYPE, to_json(body).decode(), headers=dict(headers or {}))


def unavailable(**members: object) -> Response[str]:
    """The answer when the storage did not decide in time: sending all of it again is safe."""
    return problem(
        503,
        "storage_unavailable",
        "The storage did not answer in time. Send the whole call again; nothing counts twice.",
        headers={"Retry-After": "1"},
        **members,
    )


def make_app(logger: Logger) -> APIGatewayHttpResolver:
    """A router whose errors are problems."""
    app = APIGatewayHttpResolver()

    def explain_unavailable(error: StorageUnavailableError) -> Response[str]:
        logger.warning("storage unavailable", reason=str(error))
        return unavailable()

    def explain_unexpected(error: Exception) -> Response[str]:
        logger.error("unexpected error", error=type(error).__name__, places=list_places(error))
        return problem(500, "internal_error", "Something went wrong on our side.")

    explanations: dict[type[Exception], Callable[[Any], Response[str]]] = {
        UnauthenticatedError: lambda error: problem(
            401, "unauthenticated", str(error), headers={"WWW-Authenticate": "Bearer"}
        ),
        ForbiddenError: lambda error: problem(403, "forbidden", str(error)),
        RateLimitedError: lambda error: problem(
            429, "rate_limited", str(error), headers={"Retry-After": str(error.retry_after_s)}
        ),
        NotFoundError: lambda error: problem(404, "not_found", str(error)),
        NoSuchRouteError: lambda _: problem(404, "not_found", "There is nothing at this address."),
        InvalidRequestError: lambda error: problem(error.status, error.code, str(error)),
        ValidationError: _explain_invalid_body,
        StorageUnavailableError: explain_unavailable,
        Exception: explain_unexpected,
    }
    for kind, explain in explanations.items():
        app.exception_handler(kind)(explain)
    return app


def _explain_invalid_body(error: ValidationError) -> Response[str]:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    errors = [
        {"field": write_location(each["loc"]), "message": each["msg"]}
        for each in found[:MAX_FIELD_ERRORS]
    ]
    return problem(422, "invalid_body", "The body is not what the call takes.", errors=errors)


def _read_int(digits: str) -> int | float:
    """A whole number; one of more digits than Python reads is infinite, which models refuse."""
    return int(digits) if len(digits) <= _MAX_DIGITS else math.inf


def read_json(event: APIGatewayProxyEventV2) -> Any:
    """The body of a call, read as JSON; raises `InvalidRequestError` saying what is wrong."""
    content_type = (event.headers.get("content-type") or "").partition(";")[0].strip().lower()
    if content_type not in _JSON_TYPES:
        raise InvalidRequestError(
            "unsupported_media_type", f"Send one of {', '.join(sorted(_JSON_TYPES))}.", status=415
        )
    if (event.headers.get("content-encoding") or "identity").strip().lower() != "identity":
        raise InvalidRequestError(
            "unsupported_content_encoding", "Send the body as it is, not compressed.", status=415
        )
    body = (event.body or "").encode("utf-8", "surrogatepass")
    if event.is_base64_encoded:
        try:
            body = base64.b64decode(body, validate=True)
        except binascii.Error:
            raise InvalidRequestError("invalid_json", "The body cannot be decoded.") from None
    if len(body) > MAX_BODY_BYTES:
        raise InvalidRequestError(
            "body_too_large", f"A body may hold at most {MAX_BODY_BYTES} bytes.", status=413
        )
    if not body.strip():
        raise InvalidRequestError("empty_body", "The call has no body.")
    # Python's writers say NaN: that is for the model to refuse, event by event.
    try:
        return from_json(body, allow_inf_nan=True, cache_strings="keys")
    except ValueError as error:
        reason = error
    # What is left may still be JSON: half a surrogate pair, as text cut short has it, is (RFC 8259,
    # 8.2), and must cost its own event only.
    try:
        return json.loads(body, parse_int=_read_int)
    except (ValueError, RecursionError):
        raise InvalidRequestError("invalid_json", f"The body is not JSON: {reason}.") from None

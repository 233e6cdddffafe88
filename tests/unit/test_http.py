"""The border itself: bodies, and errors as problems."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEventV2
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.errors import (
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    StorageError,
    StorageUnavailableError,
    UnauthenticatedError,
)
from meterline.http import MAX_BODY_BYTES, MAX_FIELD_ERRORS, answer, make_app, problem, read_json
from meterline.schemas.customers import CustomerInput

LAMBDA_EVENT_BYTES = 6_291_456
"""What Lambda takes in a call (Lambda's quotas, "6 MB each for request and response")."""


def make_call(
    body: str | None,
    content_type: str | None = "application/json",
    *,
    is_base64: bool = False,
    path: str = "/thing",
    **headers: str,
) -> dict[str, Any]:
    if content_type is not None:
        headers["content-type"] = content_type
    return {
        "version": "2.0",
        "rawPath": path,
        "headers": {name.replace("_", "-"): value for name, value in headers.items()},
        "requestContext": {"http": {"method": "POST", "path": path}, "stage": "$default"},
        "body": body,
        "isBase64Encoded": is_base64,
    }


def read(body: str | None, content_type: str | None = "application/json", **told: Any) -> Any:
    return read_json(APIGatewayProxyEventV2(make_call(body, content_type, **told)))


def refuse(body: str | None, content_type: str | None = "application/json", **told: Any) -> str:
    with pytest.raises(InvalidRequestError) as refused:
        read(body, content_type, **told)
    return refused.value.code


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/cloudevents+json",
        "application/cloudevents-batch+json ; charset=UTF-8",
    ],
)
def test_json_is_read_by_any_of_its_names(content_type: str) -> None:
    assert read('{"a": [1, "b", null]}', content_type) == {"a": [1, "b", None]}


def test_a_body_in_base64_is_decoded_first() -> None:
    encoded = base64.b64encode('{"a": "\u20ac"}'.encode()).decode()
    assert read(encoded, is_base64=True) == {"a": "\u20ac"}
    assert refuse("%%%", is_base64=True) == "invalid_json"


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/xml", "json"])
def test_another_content_type_is_refused(content_type: str | None) -> None:
    assert refuse("{}", content_type) == "unsupported_media_type"


def test_a_compressed_body_is_refused_by_name() -> None:
    assert refuse("{}", content_encoding="gzip") == "unsupported_content_encoding"
    assert read("{}", content_encoding="identity") == {}


@pytest.mark.parametrize("body", [None, "", " \n\t"])
def test_no_body_is_said_to_be_none(body: str | None) -> None:
    assert refuse(body) == "empty_body"


@pytest.mark.parametrize("body", ["{", "[1,]", "{'a': 1}", "1 2", "\x00", "[" * 100_000])
def test_what_is_not_json_is_said_not_to_be(body: str) -> None:
    assert refuse(body) == "invalid_json"


def test_a_body_is_measured_in_bytes() -> None:
    assert read('"' + "x" * (MAX_BODY_BYTES - 2) + '"')
    assert refuse('"' + "x" * (MAX_BODY_BYTES - 1) + '"') == "body_too_large"
    assert refuse('"' + "\u20ac" * (MAX_BODY_BYTES // 3 + 1) + '"') == "body_too_large"


@pytest.mark.parametrize("is_ascii", [True, False])
@pytest.mark.parametrize(
    "piece", ['"",', r'"\",', "\n", "\u00e9", "\u20ac", "\U0001f9fe"], ids=ascii
)
def test_the_longest_body_fits_into_an_event_however_it_is_escaped(
    piece: str, is_ascii: bool
) -> None:
    body = piece * (MAX_BODY_BYTES // len(piece.encode()))
    assert MAX_BODY_BYTES - 4 < len(body.encode()) <= MAX_BODY_BYTES
    # API Gateway takes 10,240 bytes of request line and headers, and tells some of them twice.
    event = {"headers": {"x": '"' * 10_240}, "rawPath": '"' * 10_240, "body": body}
    assert len(json.dumps(event, ensure_ascii=is_ascii).encode()) <= LAMBDA_EVENT_BYTES


def test_half_a_surrogate_pair_is_json_and_no_text() -> None:
    assert read(r'["cut \ud83d", "whole \ud83e\uddfe"]') == ["cut \ud83d", "whole \U0001f9fe"]


def test_nan_is_left_to_the_model() -> None:
    [nan, endless] = read("[NaN, -Infinity]")
    assert math.isnan(nan)
    assert endless == -math.inf


CONTEXT = LambdaContext()


def resolve(action: Callable[[], Response[str]], path: str = "/thing") -> tuple[int, Any, Any]:
    app = make_app(Logger(service="test", level="CRITICAL"))
    app.post("/thing")(action)
    told = app.resolve(make_call("{}", path=path), CONTEXT)
    headers = {name.lower(): value for name, value in told.get("headers", {}).items()}
    return told["statusCode"], headers, json.loads(told["body"])


def fail(error: Exception) -> Callable[[], Response[str]]:
    def action() -> Response[str]:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnauthenticatedError("Who?"), 401, "unauthenticated"),
        (ForbiddenError("No."), 403, "forbidden"),
        (NotFoundError("Not here."), 404, "not_found"),
        (InvalidRequestError("no_events", "None."), 400, "no_events"),
        (InvalidRequestError("unknown_plan", "None.", status=422), 422, "unknown_plan"),
        (StorageUnavailableError("late"), 503, "storage_unavailable"),
        (StorageError("AccessDeniedException", "secret detail"), 500, "internal_error"),
        (RuntimeError("secret detail"), 500, "internal_error"),
    ],
)
def test_every_error_is_a_problem(error: Exception, status: int, code: str) -> None:
    answered, headers, told = resolve(fail(error))
    assert answered == told["status"] == status
    assert told["code"] == code
    assert headers["content-type"] == "application/problem+json"
    assert "secret" not in json.dumps(told)


def test_who_must_say_who_they_are_is_told_how() -> None:
    _, headers, _ = resolve(fail(UnauthenticatedError("Who?")))
    assert headers["www-authenticate"] == "Bearer"


def test_when_to_come_back_is_said() -> None:
    _, headers, _ = resolve(fail(StorageUnavailableError("late")))
    assert headers["retry-after"] == "1"


def test_an_address_without_a_route_is_a_problem() -> None:
    status, _, told = resolve(lambda: answer(200, {}), path="/nothing")
    assert (status, told["code"]) == (404, "not_found")


def validate(told: dict[str, Any]) -> tuple[int, Any]:
    def action() -> Response[str]:
        CustomerInput.model_validate(told)
        return answer(200, {})

    status, _, body = resolve(action)
    return status, body


def test_an_invalid_body_says_which_fields_are_wrong() -> None:
    status, told = validate({"name": 17, "colour": "red"})
    assert (status, told["code"]) == (422, "invalid_body")
    assert {error["field"] for error in told["errors"]} == {"name", "plan", "colour"}
    assert all(error["message"] for error in told["errors"])


def test_an_answer_does_not_grow_with_the_mistakes() -> None:
    _, told = validate({f"field-{place}": 1 for place in range(1_000)})
    assert len(told["errors"]) == MAX_FIELD_ERRORS
    _, told = validate({"x" * 100_000: 1})
    assert len(json.dumps(told)) < 1_000


def test_an_answer_can_name_a_field_that_is_no_text() -> None:
    status, told = validate({"cut \ud83d": 1})
    assert (status, told["code"]) == (422, "invalid_body")


def test_a_problem_has_what_programs_need() -> None:
    told = json.loads(str(problem(409, "busy", "Busy.", limit="3").body))
    assert told == {
        "type": "about:blank",
        "title": "Busy.",
        "status": 409,
        "code": "busy",
        "limit": "3",
    }

"""Holds answers of the deployed API against the document that it serves."""

from __future__ import annotations

from functools import cache
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tests.e2e.conftest import Answer, Api


@cache
def read_document(api: Api) -> dict[str, Any]:
    """The document as it is served."""
    answer = api.call("GET", "/openapi.json")
    assert answer.status == 200, answer.body[:500]
    document: dict[str, Any] = answer.told
    return document


def check_described(api: Api, method: str, path: str, answer: Answer) -> None:
    """The document has the answer's status for that call, its media type, and its shape.

    `path` is the document's, such as `/v1/customers/{id}`. Raises AssertionError.
    """
    document = read_document(api)
    responses = document["paths"][path][method.lower()]["responses"]
    assert str(answer.status) in responses, f"{method} {path} says nothing of {answer.status}"
    content = responses[str(answer.status)]["content"]
    media = answer.headers["content-type"].partition(";")[0]
    assert media in content, f"{method} {path} {answer.status} says nothing of {media}"
    schema = {**content[media]["schema"], "components": document["components"]}
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(answer.told)]
    assert not errors, f"{method} {path} {answer.status}: {errors[0]}"

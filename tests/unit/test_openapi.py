"""The OpenAPI document says what the template routes, what the source answers, and no more."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from cfnlint.decode.cfn_yaml import load as load_template  # type: ignore[import-untyped]
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from openapi_spec_validator import validate

from meterline.errors import RejectedEventError
from meterline.http import unavailable
from meterline.schemas.customers import CustomerInput
from meterline.schemas.events import MAX_EVENTS, list_events, read_event
from meterline.schemas.openapi import OPERATIONS, PROBLEMS, REJECTIONS, build_document
from meterline.services.report_usage import Rejection

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = build_document()


def find_calls(*names: str) -> Iterator[tuple[str, list[ast.expr]]]:
    """Every call in the service's source of a function or class with one of these names."""
    folders = (REPOSITORY / "layers" / "meterline" / "meterline", REPOSITORY / "functions")
    for folder in folders:
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id in names
                ):
                    status = [each.value for each in node.keywords if each.arg == "status"]
                    yield node.func.id, [*node.args, *status]


def read_literal(node: ast.expr) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


def read_problem_codes() -> set[tuple[str, int]]:
    """Code and status of every problem that the source can answer."""
    found = set()
    for name, arguments in find_calls("problem", "InvalidRequestError"):
        literals = [read_literal(each) for each in arguments]
        if name == "problem" and isinstance(literals[1], str):
            found.add((literals[1], literals[0]))
        elif name == "InvalidRequestError":
            code, _message, status = [*literals, 400][:3]
            assert isinstance(code, str), "a code must stand where it can be found"
            found.add((code, status))
    for _, arguments in find_calls("InvalidLimitError"):
        found.add((read_literal(arguments[1]), 422))
    return found


def resolve(schema: dict[str, Any]) -> Draft202012Validator:
    """A validator of a schema that may refer to the document's components."""
    return Draft202012Validator(
        {**schema, "components": DOCUMENT["components"]},
        format_checker=Draft202012Validator.FORMAT_CHECKER,
    )


def list_media() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every media type of every body and answer."""
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            for media, told in operation.get("requestBody", {}).get("content", {}).items():
                yield f"{where} {media}", told
            for status, response in operation["responses"].items():
                for media, told in response["content"].items():
                    yield f"{where} {status} {media}", told


def test_the_document_is_openapi() -> None:
    validate(DOCUMENT)


def test_it_describes_every_route_of_the_template_and_no_other() -> None:
    template = load_template(str(REPOSITORY / "template.yaml"))
    routed = {
        resource["Properties"]["RouteKey"]
        for resource in template["Resources"].values()
        if resource["Type"] == "AWS::ApiGatewayV2::Route"
    }
    assert routed == {f"{operation.method} {operation.path}" for operation in OPERATIONS}


def test_every_route_of_the_functions_is_one_of_the_document() -> None:
    served = set()
    for handler in (REPOSITORY / "functions").glob("*/handler.py"):
        for node in ast.walk(ast.parse(handler.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "app"
                and node.func.attr in ("get", "put", "post", "delete", "patch")
            ):
                path = re.sub(r"<\w+>", "{id}", str(read_literal(node.args[0])))
                served.add(f"{node.func.attr.upper()} {path}")
    assert served == {
        f"{operation.method} {re.sub(r'{[a-z]+}', '{id}', operation.path)}"
        for operation in OPERATIONS
    }


def test_every_code_of_a_problem_in_the_source_is_in_the_document_with_its_status() -> None:
    listed = {(code, status) for code, statuses in PROBLEMS.items() for status in statuses}
    assert read_problem_codes() == listed


def test_every_code_of_a_rejected_event_in_the_source_is_in_the_document() -> None:
    found = {read_literal(arguments[0]) for _, arguments in find_calls("RejectedEventError")}
    found |= {
        read_literal(arguments[2])
        for _, arguments in find_calls("Rejection")
        if isinstance(read_literal(arguments[2]), str)
    }
    # `RejectedEventError(code, …)` in the base module is its own definition.
    assert found - {None} == set(REJECTIONS)


def test_every_code_of_a_problem_is_one_that_some_call_answers() -> None:
    answered = {code for operation in OPERATIONS for code in operation.codes}
    assert answered == set(PROBLEMS)


def test_every_example_is_what_its_schema_says() -> None:
    checked = 0
    for where, told in list_media():
        for name, example in told.get("examples", {}).items():
            errors = list(resolve(told["schema"]).iter_errors(example["value"]))
            assert not errors, f"{where} {name}: {errors[0].message}"
            checked += 1
    assert checked == 36


def test_every_example_of_a_body_is_read() -> None:
    for where, told in list_media():
        for example in told.get("examples", {}).values():
            if where.startswith("post /v1/usage application"):
                assert [read_event(event) for event in list_events(example["value"])]
            elif where.startswith("put /v1/customers/{id} application"):
                CustomerInput.model_validate(example["value"])


def test_every_example_of_an_answer_is_one_that_its_model_takes() -> None:
    for operation in OPERATIONS:
        if operation.answer is not None:
            operation.answer.model_validate(operation.example)


def test_the_answer_of_a_storage_in_trouble_is_as_described() -> None:
    rejection = Rejection(3, None, "invalid_event", "An event must be a JSON object.")
    counts = {"accepted": 2, "duplicates": 1, "ignored": 0, "rejected": [asdict(rejection)]}
    responses = DOCUMENT["paths"]["/v1/usage"]["post"]["responses"]
    schema = responses["503"]["content"]["application/problem+json"]["schema"]
    for answer in (unavailable(), unavailable(**counts, undecided=5)):
        assert answer.status_code == 503
        assert not list(resolve(schema).iter_errors(json.loads(str(answer.body))))
    wrong = json.loads(str(unavailable(**counts | {"accepted": -1}).body))
    assert list(resolve(schema).iter_errors(wrong))


def good_event(**data: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": "a",
        "source": "s",
        "type": "meterline.usage",
        "subject": "acme",
        "data": {"meter": "credits", **data},
    }


@pytest.mark.parametrize(
    "event",
    [
        {},
        17,
        good_event(usage={"input_tokens": -1}),
        good_event(usage={"input_tokens": "1"}),
        good_event(usage={}),
        good_event(quantity="1e3"),
        good_event(quantity="-1"),
        good_event(quantity=-1),
        good_event(quantity=1.5),
        good_event(quantity=True),
        good_event(cached="yes"),
        good_event(colour="red"),
        {**good_event(), "type": ""},
        {**good_event(), "subject": "a b"},
        {**good_event(), "id": "\x00"},
        {**good_event(), "id": "x" * 201},
    ],
)
def test_what_the_document_refuses_is_refused(event: Any) -> None:
    schema = {"$ref": "#/components/schemas/UsageEvent"}
    assert list(resolve(schema).iter_errors(event))
    # That a quantity is plain decimal notation is judged when it is parsed.
    if not isinstance(event, dict) or not isinstance(event.get("data", {}).get("quantity"), str):
        with pytest.raises(RejectedEventError):
            read_event(event)


def test_the_document_takes_as_many_events_as_the_call() -> None:
    content = DOCUMENT["paths"]["/v1/usage"]["post"]["requestBody"]["content"]
    schema = content["application/cloudevents-batch+json"]["schema"]
    event = good_event(quantity="1")
    assert not list(resolve(schema).iter_errors([event] * MAX_EVENTS))
    assert list(resolve(schema).iter_errors([event] * (MAX_EVENTS + 1)))
    assert len(list_events([event] * MAX_EVENTS)) == MAX_EVENTS

"""Checks a request against the SDK's own description of it, the TypedDicts of `stripe.params`.

`shape_of("billing.MeterEventCreateParams")` compiles one TypedDict; `read` turns a decoded form
(or JSON, for v2) into typed values and lists what is wrong with it: unknown and missing keys,
wrong types, values outside an enum. The SDK writes an open enum as `Literal[...] | str`; here
only the listed values pass, because nothing else is known to work.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib import import_module
from typing import (
    Any,
    ForwardRef,
    Literal,
    NotRequired,
    Protocol,
    Required,
    Union,
    get_args,
    get_origin,
)

import stripe
from stripe._request_options import RequestOptions
from typing_extensions import is_typeddict

_INTEGER = re.compile(r"-?\d{1,19}")
_OPTION_KEYS = frozenset(RequestOptions.__annotations__)
"""What the SDK takes out of the parameters before it sends them."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a request, in Stripe's words."""

    param: str
    code: str | None
    message: str


class Shape(Protocol):
    """One type of `stripe.params`, able to read a raw value."""

    def accepts(self, raw: object) -> bool:
        """Whether the raw value is of the right kind (mapping, list or scalar)."""

    def read(self, raw: object, where: str, problems: list[Problem]) -> Any:
        """The typed value; what is wrong is appended to `problems`."""


def _is_scalar(raw: object) -> bool:
    return not isinstance(raw, dict | list)


@dataclass(frozen=True, slots=True)
class _Text:
    def accepts(self, raw: object) -> bool:
        return isinstance(raw, str)

    def read(self, raw: object, where: str, problems: list[Problem]) -> Any:
        if not isinstance(raw, str):
            problems.append(Problem(where, None, f"Invalid string: {raw!r}"))
        return raw


@dataclass(frozen=True, slots=True)
class _Integer:
    def accepts(self, raw: object) -> bool:
        if isinstance(raw, bool):
            return False
        return isinstance(raw, int) or (isinstance(raw, str) and bool(_INTEGER.fullmatch(raw)))

    def read(self, raw: object, where: str, problems: list[Problem]) -> Any:
        if self.accepts(raw):
            return int(str(raw))
        problems.append(Problem(where, "parameter_invalid_integer", f"Invalid integer: {raw}"))
        return None


@dataclass(frozen=True, slots=True)
class _Boolean:
    def accepts(self, raw: object) -> bool:
        return isinstance(raw, bool) or raw in ("true", "false")

    def read(self, raw: object, where: str, problems: list[Problem]) -> Any:
        if self.accepts(raw):
            return raw in (True, "true")
        problems.append(Problem(where, None, f"Invalid boolean: {raw}"))
        return None


@dataclass(frozen=True, slots=True)
class _Number:
    """Decimal and float parameters: both travel as decimal text."""

    def accepts(self, raw: object) -> bool:
        if isinstance(raw, bool) or not isinstance(raw, str | int):
            return False
        try:
            return Decimal(raw).is_finite()
        except InvalidOperation:
            return False

    def read(self, raw: object, where: str, problems: list[Problem]) -> Any:
        if self.accepts(raw):
            return Decimal(str(raw))
        problems.append(Problem(where, None, f"Invalid decimal: {raw}"))
        return None


@dataclass(frozen=True, slots=True)
class _Choice:
    values: frozenset[object]

    def accepts(self, raw: object) -> bool:
        return _is_scalar(raw) and raw in self.values

    def read(self, raw: object, where: str, problems: list[Problem]) -> Any:
        if not self.accepts(raw):
            allowed = ", ".join(sorted(str(value) for value in self.values))
            problems.append(Problem(where, None, f"Invalid {where}: must be one of {allowed}"))
        return raw


@dataclass(frozen=True, slots=True)
class _List:
    item: Shape

    def accepts(self, raw: object) -> bool:
        if isinstance(raw, list):
            return True
        return isinstance(raw, dict) and all(str(key).isdigit() for key in raw)

    def read(self, raw: object, where: str, problems: list[Problem]) -> Any:
        if isinstance(raw, dict) and self.accepts(raw):
            raw = [raw[key] for key in sorted(raw, key=int)]
        if not isinstance(raw, list):
            problems.append(Problem(where, None, "Invalid array"))
            return None
        return [
            self.item.read(item, f"{where}[{index}]", problems) for index, item in enumerate(raw)
        ]


@dataclass(frozen=True, slots=True)
class _Map:
    value: Shape

    def accepts(self, raw: object) -> bool:
        return isinstance(raw, dict)

    def read(self, raw: object, where: str, problems: list[Problem]) -> Any:
        if not isinstance(raw, dict):
            problems.append(Problem(where, None, "Invalid object"))
            return None
        return {
            key: self.value.read(value, f"{where}[{key}]", problems) for key, value in raw.items()
        }


@dataclass(frozen=True, slots=True)
class _OneOf:
    arms: Sequence[Shape]

    def accepts(self, raw: object) -> bool:
        return any(arm.accepts(raw) for arm in self.arms)

    def read(self, raw: object, where: str, problems: list[Problem]) -> Any:
        for arm in self.arms:
            if arm.accepts(raw):
                return arm.read(raw, where, problems)
        return self.arms[-1].read(raw, where, problems)


class Record:
    """One TypedDict: which keys it has, which of them must be there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fields: dict[str, Shape] = {}
        self.required: frozenset[str] = frozenset()

    def accepts(self, raw: object) -> bool:
        """Any mapping."""
        return isinstance(raw, dict)

    def read(self, raw: object, where: str, problems: list[Problem]) -> Any:
        """The typed keys; unknown ones are named and left out."""
        if not isinstance(raw, dict):
            problems.append(Problem(where, None, "Invalid object"))
            return None
        typed: dict[str, Any] = {}
        for key, value in raw.items():
            path = f"{where}[{key}]" if where else key
            shape = self.fields.get(key)
            if shape is None:
                problems.append(
                    Problem(path, "parameter_unknown", f"Received unknown parameter: {path}")
                )
            else:
                typed[key] = shape.read(value, path, problems)
        for key in self.required:
            if key not in raw:
                path = f"{where}[{key}]" if where else key
                problems.append(
                    Problem(path, "parameter_missing", f"Missing required param: {path}.")
                )
        return typed


def _compile(annotation: Any, scope: Mapping[str, Any]) -> Shape | None:
    """The shape of an annotation, or None for what only the SDK's Python side knows."""
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        # The SDK's own annotations, which it writes as text to keep its imports cheap.
        return _compile(eval(annotation, dict(scope)), scope)  # noqa: S307
    if is_typeddict(annotation):
        return _compile_record(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (NotRequired, Required):
        return _compile(arguments[0], scope)
    if origin is Literal:
        return _Choice(frozenset(arguments))
    if origin in (Union, types.UnionType):
        return _compile_union(arguments, scope)
    if origin is list:
        item = _compile(arguments[0], scope)
        return _List(item) if item else None
    if origin is dict:
        value = _compile(arguments[1], scope)
        return _Map(value) if value else None
    scalars: dict[Any, Shape] = {
        str: _Text(),
        int: _Integer(),
        bool: _Boolean(),
        Decimal: _Number(),
        float: _Number(),
        type(None): _Choice(frozenset([None])),
    }
    return scalars.get(annotation)


def _compile_union(arguments: Sequence[Any], scope: Mapping[str, Any]) -> Shape | None:
    arms = [shape for shape in (_compile(argument, scope) for argument in arguments) if shape]
    choices: set[object] = set()
    others: list[Shape] = []
    for arm in arms:
        if isinstance(arm, _OneOf):
            others.extend(arm.arms)
        elif isinstance(arm, _Choice):
            choices |= arm.values
        else:
            others.append(arm)
    if choices - {"", None}:
        others = [arm for arm in others if not isinstance(arm, _Text)]
    merged = [*([_Choice(frozenset(choices))] if choices else []), *others]
    if not merged:
        return None
    return merged[0] if len(merged) == 1 else _OneOf(merged)


_RECORDS: dict[Any, Record] = {}


def _compile_record(typed_dict: Any) -> Record:
    if typed_dict in _RECORDS:
        return _RECORDS[typed_dict]
    record = _RECORDS[typed_dict] = Record(typed_dict.__name__)
    scope = vars(sys.modules[typed_dict.__module__])
    for key, annotation in typed_dict.__annotations__.items():
        if key in _OPTION_KEYS:
            continue
        shape = _compile(annotation, scope)
        if shape is not None:
            record.fields[key] = shape
    record.required = frozenset(typed_dict.__required_keys__) - _OPTION_KEYS
    return record


@cache
def shape_of(name: str) -> Record:
    """The shape of `stripe.params.<name>`, for instance `billing.MeterCreateParams`."""
    module_path, _, class_name = name.rpartition(".")
    module = import_module(f"{stripe.__name__}.params" + (f".{module_path}" if module_path else ""))
    return _compile_record(getattr(module, class_name))

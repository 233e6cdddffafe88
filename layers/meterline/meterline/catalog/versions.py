"""Versions of rate cards and plans: which one counts at a moment, and what may be added.

A version counts from its `effective_from` until the next one's; the oldest also counts for all
time before it. So what was rated or priced once is never rated or priced in another way.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Generic, TypeVar

from meterline.catalog import CATALOG_DIR, InvalidCatalogError, load_meters, read_plans_text
from meterline.catalog.rate_cards import read_rate_card
from meterline.domain.pricing import Plan
from meterline.domain.rating import RateCard

MIN_NOTICE = timedelta(minutes=15)
"""How long before it counts a version must be known. Functions keep what they read for a minute,
events may be five minutes ahead of us: by then all of them have read it."""
MAX_CONTENT_BYTES = 300_000
"""An item of DynamoDB holds 400 KB."""

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
T = TypeVar("T")


class CatalogRefusedError(Exception):
    """A version that may not be applied: it would change what was, or what is about to be."""


class Kind(StrEnum):
    """What a catalog file is about."""

    RATE_CARD = "rate_card"
    PLANS = "plans"


@dataclass(frozen=True, slots=True)
class CatalogVersion:
    """One version of a file as it was applied, word for word."""

    kind: Kind
    version: str
    effective_from: datetime
    content: str
    applied_at: datetime | None = None
    """None: it is only in a file."""

    @property
    def digest(self) -> str:
        """Of what it says, whatever its comments and spaces."""
        said = repr(_flatten(_read_toml(self.content)))
        return hashlib.sha256(said.encode()).hexdigest()


class Effective(Generic[T]):
    """Things by the moment from which each counts."""

    def __init__(self, things: Sequence[tuple[datetime, T]]) -> None:
        ordered = sorted(things, key=lambda thing: thing[0])
        if not ordered:
            raise InvalidCatalogError("there is no version at all")
        self._starts = [start for start, _ in ordered]
        self._things = [thing for _, thing in ordered]
        self._newest = self._starts[-1]

    def at(self, moment: datetime) -> T:
        """The one that counts at that moment."""
        if moment >= self._newest:  # Nearly always.
            return self._things[-1]
        return self._things[max(0, bisect_right(self._starts, moment) - 1)]


def read_version(kind: Kind, content: str) -> CatalogVersion:
    """Read and check a whole file. Raises `InvalidCatalogError`."""
    if len(content.encode()) > MAX_CONTENT_BYTES:
        raise InvalidCatalogError(f"{kind}: more than {MAX_CONTENT_BYTES} bytes")
    READERS[kind](content)
    document = _read_toml(content)
    version, since = document.get("version"), document.get("effective_from")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise InvalidCatalogError(f"{kind}.version: up to 64 letters, digits, dots and dashes")
    if isinstance(since, str):
        try:
            since = datetime.fromisoformat(since)
        except ValueError:
            since = None
    if not isinstance(since, datetime) or since.utcoffset() is None:
        raise InvalidCatalogError(f"{kind}.effective_from: a time with its zone is needed")
    return CatalogVersion(kind, version, since.astimezone(UTC).replace(microsecond=0), content)


def load_bundled(kind: Kind) -> CatalogVersion:
    """The version that is part of the code: what counts where none was ever applied."""
    return read_version(kind, (CATALOG_DIR / f"{kind}.toml").read_text("utf-8"))


def plan_apply(
    known: Sequence[CatalogVersion], new: CatalogVersion, now: datetime
) -> tuple[CatalogVersion, ...]:
    """What has to be written so that `new` is applied; nothing where it is already.

    Where none was applied, the bundled version is written with it: from then on an edited file in
    the code changes nothing. Raises `CatalogRefusedError`.
    """
    baseline = () if known else (load_bundled(new.kind),)
    for old in (*known, *baseline):
        if old.version == new.version:
            if old.digest != new.digest or old.effective_from != new.effective_from:
                raise CatalogRefusedError(
                    f"{new.kind} {new.version} is applied with other content and stays as it is: "
                    f"give the file a new version and a later effective_from"
                )
            return () if known else baseline
        if old.effective_from == new.effective_from:
            raise CatalogRefusedError(
                f"{new.kind} {old.version} counts from {old.effective_from:%Y-%m-%dT%H:%M:%SZ} too"
            )
    if new.effective_from < now + MIN_NOTICE:
        raise CatalogRefusedError(
            f"{new.kind} {new.version} would count from {new.effective_from:%Y-%m-%dT%H:%M:%SZ}, "
            f"but the past keeps its prices: effective_from must be at least "
            f"{MIN_NOTICE.seconds // 60} minutes ahead"
        )
    return (*baseline, new)


def list_differences(old: CatalogVersion, new: CatalogVersion) -> list[str]:
    """What `new` says otherwise, a line for each: `+` added, `-` gone, `~` changed."""
    before, after = (_flatten(_read_toml(version.content)) for version in (old, new))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if key not in before:
            lines.append(f"+ {key} = {after[key]}")
        elif key not in after:
            lines.append(f"- {key} = {before[key]}")
        elif before[key] != after[key]:
            share = "" if key == "version" else _percent(before[key], after[key])
            lines.append(f"~ {key}: {before[key]} -> {after[key]}{share}")
    return lines


def _read_plans(content: str) -> Mapping[str, Plan]:
    return read_plans_text(content, load_meters())


READERS: Mapping[Kind, Callable[[str], Any]] = {
    Kind.RATE_CARD: read_rate_card,
    Kind.PLANS: _read_plans,
}


def read_rate_cards(versions: Sequence[CatalogVersion]) -> Effective[RateCard]:
    """The rate cards by the moment from which each counts."""
    return Effective([(each.effective_from, read_rate_card(each.content)) for each in versions])


def read_plan_books(versions: Sequence[CatalogVersion]) -> Effective[Mapping[str, Plan]]:
    """The plans by the moment from which they count."""
    return Effective([(each.effective_from, _read_plans(each.content)) for each in versions])


def _read_toml(content: str) -> dict[str, Any]:
    try:
        return tomllib.loads(content, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise InvalidCatalogError(str(error)) from error


def _flatten(value: Any, where: str = "") -> dict[str, str]:
    """A document as paths and values. A rate is named by its provider and models, not its place,
    but its place is a value: the first that covers a model counts."""
    if isinstance(value, dict):
        return {
            path: found
            for key, each in value.items()
            for path, found in _flatten(each, f"{where}.{key}" if where else key).items()
        }
    if isinstance(value, list) and value and isinstance(value[0], dict):
        flat: dict[str, str] = {}
        for place, each in enumerate(value):
            name = str(place)
            if "models" in each:
                name = f"{each.get('provider')} {' '.join(map(str, each['models']))}"
                flat[f"{where}[{name}].place"] = str(place)
            flat |= _flatten(each, f"{where}[{name}]")
        return flat
    return {where: str(value)}


def _percent(before: str, after: str) -> str:
    try:
        old, new = Decimal(before), Decimal(after)
        return f" ({(new - old) / old:+.1%})" if old else ""
    except ArithmeticError:
        return ""

"""The public record of pricing changes, from `changelog.toml` in this folder."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from meterline.catalog import CATALOG_DIR, InvalidCatalogError

_TEXTS = ("title", "reason", "effect")


@dataclass(frozen=True, slots=True)
class PricingChange:
    """One change: when it counts from, what, why, and what it does to existing customers."""

    date: date
    title: str
    reason: str
    effect: str


@cache
def load_changelog() -> Sequence[PricingChange]:
    """The changes of this deployment, newest first; `InvalidCatalogError` for a wrong file."""
    return read_changelog(CATALOG_DIR / "changelog.toml")


def read_changelog(path: Path) -> Sequence[PricingChange]:
    """Read a changelog file."""
    try:
        told: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise InvalidCatalogError(f"{path.name}: {error}") from error
    changes = []
    for place, change in enumerate(told.get("changes", [])):
        if set(change) != {"date", *_TEXTS}:
            raise InvalidCatalogError(f"{path.name}: changes[{place}] must have {_TEXTS} and date")
        if type(change["date"]) is not date or not all(
            isinstance(change[text], str) and change[text] for text in _TEXTS
        ):
            raise InvalidCatalogError(f"{path.name}: changes[{place}] has a value of another type")
        changes.append(PricingChange(**change))
    if [change.date for change in changes] != sorted(
        (change.date for change in changes), reverse=True
    ):
        raise InvalidCatalogError(f"{path.name}: the newest change comes first")
    return changes

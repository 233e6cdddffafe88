"""`catalog`: rate cards and plans as files; see what differs, apply what is to count.

A change never touches what was: a version counts from its `effective_from` on, an event is rated
by the version of its time, a period is priced by the version of its start, and an applied version
cannot be changed, only followed by another.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from infra.cli.stack_access import open_stack, stack_option
from meterline.adapters.dynamodb_catalog import DynamoCatalog
from meterline.catalog import CATALOG_DIR, InvalidCatalogError
from meterline.catalog.versions import (
    CatalogRefusedError,
    CatalogVersion,
    Kind,
    list_differences,
    load_bundled,
    plan_apply,
    read_version,
)
from meterline.errors import SupersededError

_file = click.Path(exists=True, dir_okay=False, path_type=Path)


def _file_options(function: click.decorators.FC) -> click.decorators.FC:
    for kind, words in ((Kind.PLANS, "Plans"), (Kind.RATE_CARD, "Rate card")):
        function = click.option(
            f"--{kind.replace('_', '-')}",
            type=_file,
            default=CATALOG_DIR / f"{kind}.toml",
            help=f"{words} file; the one in the catalog by default.",
        )(function)
    return function


@click.group("catalog")
def command() -> None:
    """Rate cards and plans: list versions, see differences, apply a file."""


@command.command("list")
@stack_option
def list_versions(stack_name: str) -> None:
    """Every applied version, and from when it counts."""
    catalog = _open_catalog(stack_name)
    now = datetime.now(UTC)
    for kind in Kind:
        known = _read_known(catalog, kind)
        in_force = _in_force(known, now)
        for version in known:
            mark = "*" if version is in_force else " "
            applied = f"applied {_time(version.applied_at)}" if version.applied_at else "bundled"
            click.echo(
                f"{mark} {kind} {version.version} from {_time(version.effective_from)}, {applied}"
            )


@command.command("diff")
@_file_options
@stack_option
def diff(stack_name: str, rate_card: Path, plans: Path) -> None:
    """What the files say otherwise than the versions that count last."""
    catalog = _open_catalog(stack_name)
    for kind, path in ((Kind.RATE_CARD, rate_card), (Kind.PLANS, plans)):
        _print_differences(_read_known(catalog, kind)[-1], _read_file(kind, path))


@command.command("apply")
@_file_options
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@stack_option
def apply(stack_name: str, rate_card: Path, plans: Path, *, dry_run: bool) -> None:
    """Let the files count from their `effective_from` on. A second run changes nothing."""
    catalog = _open_catalog(stack_name)
    now = datetime.now(UTC)
    new = [_read_file(Kind.RATE_CARD, rate_card), _read_file(Kind.PLANS, plans)]
    # Both files are judged before either is written.
    try:
        writes = [plan_apply(catalog.list_versions(each.kind), each, now) for each in new]
    except CatalogRefusedError as error:
        raise click.ClickException(str(error)) from error
    for each, wanted in zip(new, writes, strict=True):
        if not wanted:
            click.echo(f"keep   {each.kind} {each.version}")
            continue
        _print_differences(_read_known(catalog, each.kind)[-1], each)
        for version in wanted:
            words = "would apply" if dry_run else "apply "
            click.echo(
                f"{words} {version.kind} {version.version} from {_time(version.effective_from)}"
            )
            if not dry_run:
                _add(catalog, version, now)
        if each.kind is Kind.PLANS and not dry_run:
            click.echo(f"next:  setup --plans {plans} --move-at-renewal, for Stripe's prices")


def _add(catalog: DynamoCatalog, version: CatalogVersion, now: datetime) -> None:
    try:
        catalog.add_version(version, now)
    except SupersededError:
        known = {each.version: each for each in catalog.list_versions(version.kind)}
        if known[version.version].digest != version.digest:
            raise click.ClickException(
                f"somebody else has just applied another {version.kind} {version.version}"
            ) from None


def _open_catalog(stack_name: str) -> DynamoCatalog:
    stack = open_stack(stack_name)
    return DynamoCatalog(stack.wire(), stack.table("Accounts"))


def _read_known(catalog: DynamoCatalog, kind: Kind) -> Sequence[CatalogVersion]:
    """The applied versions, the oldest first; the bundled one where there is none."""
    return catalog.list_versions(kind) or [load_bundled(kind)]


def _in_force(known: Sequence[CatalogVersion], now: datetime) -> CatalogVersion:
    return [known[0], *(each for each in known if each.effective_from <= now)][-1]


def _read_file(kind: Kind, path: Path) -> CatalogVersion:
    try:
        return read_version(kind, path.read_text("utf-8"))
    except InvalidCatalogError as error:
        raise click.ClickException(f"{path.name}: {error}") from error


def _print_differences(old: CatalogVersion, new: CatalogVersion) -> None:
    lines = list_differences(old, new)
    click.echo(f"{new.kind}: {old.version} -> {new.version}, {len(lines)} differences")
    for line in lines:
        click.echo(f"  {line}")


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"

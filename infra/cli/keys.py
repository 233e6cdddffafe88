"""`keys`: API keys, made, listed and revoked. A key is shown once; the stack keeps its hash."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import UTC, datetime

import click

from infra.cli.stack_access import open_stack, stack_option
from meterline.adapters.dynamodb_accounts import CACHE_S, DynamoAccounts
from meterline.domain.api_keys import KEY_PREFIX, ApiKey, Scope, hash_key

_SHOWN = 12
"""Characters of a hash that name a key: enough to tell a million keys apart."""


@click.group("keys")
def command() -> None:
    """API keys: make, list and revoke them."""


@command.command("create")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    required=True,
    help="What it opens; may be given twice.",
)
@click.option("--name", required=True, help="Whose it is: an app, a person.")
@stack_option
def create(stack_name: str, scopes: tuple[str, ...], name: str) -> None:
    """Make a key and print it, this once."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    accounts = _open_accounts(stack_name)
    accounts.add_key(ApiKey(hash_key(key), name, frozenset(map(Scope, scopes)), datetime.now(UTC)))
    click.echo(key)
    click.echo(f"Kept as {hash_key(key)[:_SHOWN]}. It is not shown again.", err=True)


@command.command("list")
@stack_option
def list_keys(stack_name: str) -> None:
    """Every key, one a line: hash, scopes, when made, when revoked, name."""
    for key in _open_accounts(stack_name).list_keys():
        revoked = f"revoked {key.revoked_at:%Y-%m-%d}" if key.revoked_at else "valid"
        scopes = ",".join(sorted(key.scopes))
        click.echo(
            f"{key.hash[:_SHOWN]}\t{scopes}\t{key.created_at:%Y-%m-%d}\t{revoked}\t{key.name}"
        )


@command.command("revoke")
@click.argument("key_hash", metavar="HASH")
@stack_option
def revoke(stack_name: str, key_hash: str) -> None:
    """Revoke the key whose hash begins with HASH, as `list` shows it."""
    accounts = _open_accounts(stack_name)
    found = [key for key in accounts.list_keys() if key.hash.startswith(key_hash)]
    if len(found) != 1:
        raise click.ClickException(f"{len(found)} keys begin with {key_hash!r}")
    [key] = found
    if key.revoked_at is None:
        accounts.add_key(replace(key, revoked_at=datetime.now(UTC)))
    click.echo(
        f"{key.hash[:_SHOWN]} {key.name} is revoked; within {CACHE_S:.0f} s nobody takes it."
    )


def _open_accounts(stack_name: str) -> DynamoAccounts:
    stack = open_stack(stack_name)
    return DynamoAccounts(stack.wire(), stack.table("Accounts"))

"""`keys`: API keys, made, listed, rotated and revoked. A key is shown once; its hash is kept."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import click

from infra.cli.operator import Trail, actor_option
from infra.cli.stack_access import Stack, open_stack, stack_option
from meterline.adapters.dynamodb_accounts import CACHE_S, DynamoAccounts
from meterline.adapters.dynamodb_key_calls import DynamoKeyCalls
from meterline.domain.api_keys import DEFAULT_CALLS_PER_S, KEY_PREFIX, ApiKey, Scope, hash_key

_SHOWN = 12
"""Characters of a hash that name a key: enough to tell a million keys apart."""
_RATE = click.IntRange(1, 1_000_000)


def _check_name(_ctx: click.Context, param: click.Parameter, name: str) -> str:
    """A name that a line of `list` can show."""
    if not name.strip() or not name.isprintable():
        raise click.BadParameter("must be one line of text", param=param)
    return name


@click.group("keys")
def command() -> None:
    """API keys: make, list, rotate and revoke them."""


@command.command("create")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    required=True,
    help="What it opens; may be given twice.",
)
@click.option("--name", required=True, callback=_check_name, help="Whose it is: an app, a person.")
@click.option(
    "--rate", type=_RATE, default=DEFAULT_CALLS_PER_S, show_default=True, help="Calls a second."
)
@actor_option
@stack_option
def create(stack_name: str, scopes: tuple[str, ...], name: str, rate: int, actor: str) -> None:
    """Make a key and print it, this once."""
    secret, stack = _make_secret(), open_stack(stack_name)
    key = ApiKey(hash_key(secret), name, frozenset(map(Scope, scopes)), datetime.now(UTC))
    _open_accounts(stack).add_key(replace(key, calls_per_s=rate))
    _record(stack, actor, "create key", key, ",".join(sorted(key.scopes)))
    _tell(secret)


@command.command("list")
@stack_option
def list_keys(stack_name: str) -> None:
    """Every key, one a line: hash, scopes, made, state, calls a second, last used, name."""
    stack = open_stack(stack_name)
    wire, table = stack.wire(), stack.table("Accounts")
    keys = DynamoAccounts(wire, table).list_keys()
    last_used = DynamoKeyCalls(wire, table).last_used([key.hash for key in keys])
    now = datetime.now(UTC)
    for key in keys:
        used = last_used.get(key.hash)
        columns = (
            key.hash[:_SHOWN],
            ",".join(sorted(key.scopes)),
            f"{key.created_at:%Y-%m-%d}",
            _describe_state(key, now),
            f"{key.calls_per_s}/s",
            f"used {used:%Y-%m-%dT%H:%MZ}" if used is not None else "never used",
            key.name,
        )
        click.echo("\t".join(columns))


@command.command("rotate")
@click.argument("key_hash", metavar="HASH")
@click.option(
    "--valid-for",
    "days",
    type=click.FloatRange(0, 365),
    default=7,
    show_default=True,
    help="Days for which the old key counts beside the new one.",
)
@click.option("--rate", type=_RATE, help="Calls a second; as before without it.")
@actor_option
@stack_option
def rotate(stack_name: str, key_hash: str, days: float, rate: int | None, actor: str) -> None:
    """Make a key like the one whose hash begins with HASH, and let that one end.

    Both in one write: there is no moment without a key.
    """
    stack = open_stack(stack_name)
    accounts = _open_accounts(stack)
    old = _find_key(accounts, key_hash)
    now = datetime.now(UTC)
    if not old.is_valid(now):
        raise click.ClickException(f"{old.hash[:_SHOWN]} {old.name} is not valid any more")
    secret = _make_secret()
    new = replace(
        old,
        hash=hash_key(secret),
        created_at=now,
        expires_at=None,
        calls_per_s=rate or old.calls_per_s,
    )
    ending = min(now + timedelta(days=days), old.expires_at or datetime.max.replace(tzinfo=UTC))
    accounts.rotate_key(replace(old, expires_at=ending), new)
    _record(stack, actor, "rotate key", old, f"{new.hash[:_SHOWN]} in its place")
    _tell(secret)
    click.echo(f"{old.hash[:_SHOWN]} {old.name} counts until {ending:%Y-%m-%dT%H:%MZ}.", err=True)


@command.command("revoke")
@click.argument("key_hash", metavar="HASH")
@actor_option
@stack_option
def revoke(stack_name: str, key_hash: str, actor: str) -> None:
    """Revoke the key whose hash begins with HASH, as `list` shows it."""
    stack = open_stack(stack_name)
    accounts = _open_accounts(stack)
    key = _find_key(accounts, key_hash)
    if key.revoked_at is None:
        accounts.add_key(replace(key, revoked_at=datetime.now(UTC)))
        _record(stack, actor, "revoke key", key, "revoked")
    click.echo(
        f"{key.hash[:_SHOWN]} {key.name} is revoked; within {CACHE_S:.0f} s nobody takes it."
    )


def _make_secret() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(32)


def _tell(secret: str) -> None:
    click.echo(secret)
    click.echo(f"Kept as {hash_key(secret)[:_SHOWN]}. It is not shown again.", err=True)


def _find_key(accounts: DynamoAccounts, key_hash: str) -> ApiKey:
    found = [key for key in accounts.list_keys() if key.hash.startswith(key_hash)]
    if len(found) != 1:
        raise click.ClickException(f"{len(found)} keys begin with {key_hash!r}")
    return found[0]


def _describe_state(key: ApiKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if key.expires_at is None:
        return "valid"
    word = "until" if key.is_valid(now) else "expired"
    return f"{word} {key.expires_at:%Y-%m-%dT%H:%MZ}"


def _record(stack: Stack, actor: str, action: str, key: ApiKey, outcome: str) -> None:
    trail = Trail(stack, stack.wire(), actor, "")
    trail.record(action, f"{key.hash[:_SHOWN]} {key.name}", outcome)


def _open_accounts(stack: Stack) -> DynamoAccounts:
    return DynamoAccounts(stack.wire(), stack.table("Accounts"))

"""The operator's access to Stripe: where the key comes from, and a client made with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meterline.adapters.stripe_access import StripeAccess

if TYPE_CHECKING:
    import stripe


def stripe_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which Stripe, and where its key is: for `read_key`."""
    key_file = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in (
        click.option("--live", is_flag=True, help="Needed with a live key."),
        click.option("--key-file", type=key_file, help="Holds the key; otherwise STRIPE_API_KEY."),
        click.option("--stripe-url", help="Another server that speaks Stripe's API."),
    ):
        function = option(function)
    return function


def read_key(key_file: Path | None, *, live: bool) -> str:
    """The key from a file or STRIPE_API_KEY, never from the command line; live only if meant."""
    # As Latin-1 any file can be read.
    told = key_file.read_text("latin-1") if key_file else os.environ.get("STRIPE_API_KEY", "")
    key = told.strip()
    if not key:
        raise click.UsageError("no Stripe key: set STRIPE_API_KEY or give --key-file")
    if not (key.isascii() and key.isprintable() and " " not in key):
        # HTTP cannot send it, and would say so with the key in its words.
        raise click.UsageError("what should be a Stripe key is more than one word of ASCII")
    if "_live_" in key[:8] and not live:
        raise click.UsageError("this is a live key: add --live if you mean it")
    return key


def describe_error(error: stripe.StripeError) -> str:
    """What Stripe said, or why it could not be asked, in one line."""
    # Without an answer its own words are where to write to; the cause has the address.
    words = error.user_message if error.http_status or not error.__cause__ else error.__cause__
    return " ".join(f"Stripe: {words or error}".split())


def access_stripe(key: str, stripe_url: str | None) -> StripeAccess:
    """The way to Stripe, or to another server that speaks its API."""
    return StripeAccess(lambda: key, api_base=stripe_url, timeout_s=30.0)


def open_client(key: str, stripe_url: str | None) -> stripe.StripeClient:
    """A client of Stripe, or of another server that speaks its API."""
    return access_stripe(key, stripe_url).open()

"""A local Stripe: a small stateful server that speaks Stripe's API to the official SDK.

    python -m infra.local.stripe_server --port 0 --key sk_test_local --ready-file PATH

or, inside a test:

    with LocalStripe() as local:
        client = local.client()

It keeps the rules that a metering system depends on; control.py says what a test can switch,
and README.md in this folder what is spoken and what is not.
"""

from infra.local.stripe_server.serving import DEFAULT_KEY, LocalStripe, StripeControl

__all__ = ["DEFAULT_KEY", "LocalStripe", "StripeControl"]

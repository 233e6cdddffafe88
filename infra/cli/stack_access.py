"""The operator's access to a deployed stack: its outputs, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import boto3
import botocore.exceptions
import click

from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_wire import DynamoWire
from meterline.domain.customers import Customer

_PAGE = 100


class _Outputs(dict[str, str]):
    """A stack's outputs. One that is asked for and missing says what kind of stack it is."""

    def __missing__(self, name: str) -> str:
        raise click.ClickException(
            f"the stack has no output {name}: it is another one, or deployed by an older version"
        )


@dataclass(frozen=True)
class Stack:
    """A deployed stack, as its outputs describe it."""

    outputs: Mapping[str, str]

    def table(self, name: str) -> str:
        """The name of a table: `Events`, `Totals`, `Emissions` or `Accounts`."""
        return self.outputs[f"{name}Table"]

    def wire(self) -> DynamoWire:
        """DynamoDB, with the operator's own credentials."""
        return DynamoWire()


def stack_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option that names the stack. Region, credentials and endpoint are AWS's usual ones."""
    return click.option(
        "--stack",
        "stack_name",
        default="meterline-production",
        show_default=True,
        help="The CloudFormation stack.",
    )(function)


def open_stack(stack_name: str) -> Stack:
    """Look the stack up. Raises `click.ClickException` with AWS's reason."""
    try:
        described = boto3.client("cloudformation").describe_stacks(StackName=stack_name)
    except (
        botocore.exceptions.BotoCoreError,
        botocore.exceptions.ClientError,
        ValueError,  # That is how botocore refuses an AWS_ENDPOINT_URL that is no address.
    ) as error:
        raise click.ClickException(f"stack {stack_name}: {error}") from error
    [stack] = described["Stacks"]
    told = stack.get("Outputs", [])
    return Stack(_Outputs((output["OutputKey"], output["OutputValue"]) for output in told))


def each_customer(accounts: DynamoAccounts) -> Iterator[Customer]:
    """All customers, page by page."""
    after: str | None = None
    while page := accounts.list_customers(_PAGE, after):
        yield from page
        after = page[-1].id


def choose_customers(accounts: DynamoAccounts, named: Sequence[str]) -> Sequence[str]:
    """The customers `named`, or all without any. A misspelled one is a usage error, status 2: what
    is asked about it would look like a clean answer."""
    if not named:
        return [customer.id for customer in each_customer(accounts)]
    known = accounts.known(named)
    for name in named:
        if name not in known:
            raise click.UsageError(f"there is no customer {name!r}")
    return named

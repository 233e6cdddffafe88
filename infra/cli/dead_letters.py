"""`dead-letters`: what the emitter set aside, why, and its second chance."""

from __future__ import annotations

from datetime import UTC, datetime

import boto3
import click

from infra.cli.operator import Trail, reason_options
from infra.cli.stack_access import Stack, open_stack, stack_option
from meterline.adapters.sqs_parked import ParkedMessage, SqsParked


@click.group("dead-letters")
def command() -> None:
    """Usage that could not be billed: list it with its reasons, have it tried again."""


@command.command("list")
@stack_option
def list_messages(stack_name: str) -> None:
    """When, customer and meter, code, what it says; the first ten of each customer and meter."""
    stack = open_stack(stack_name)
    with _open(stack).look() as messages:
        for message in messages:
            at = datetime.fromtimestamp(message.sent_at_ms / 1000, UTC)
            code = message.code or "received_too_often"
            click.echo(f"{at:%Y-%m-%dT%H:%M:%SZ}\t{message.group}\t{code}\t{message.message}")
        click.echo(f"{len(messages)} messages", err=True)


@command.command("redrive")
@click.option("--group", help="CUSTOMER#METER: of this one alone.")
@reason_options
@stack_option
def redrive(stack_name: str, group: str | None, actor: str, reason: str) -> None:
    """Have the emitter try again. It knows what was sent: nothing is billed twice."""
    stack = open_stack(stack_name)
    trail = Trail(stack, stack.wire(), actor, reason)
    queue_url = stack.outputs["EmissionsQueueUrl"]
    sqs = boto3.client("sqs")
    parked = _open(stack)
    trail.record("redrive", group or "all", "begun")
    moved = 0
    while True:
        with parked.look() as messages:
            wanted = [each for each in messages if group in (None, each.group)]
            readable = [each for each in wanted if each.due is not None]
            for message in readable:
                _send(sqs, queue_url, message)
                parked.remove(message)
        moved += len(readable)
        # Of one group no more than ten are seen at once: go on until nothing more comes.
        if not readable:
            break
    left = len(wanted)
    trail.record("redrive", group or "all", f"{moved} moved, {left} left")
    click.echo(f"{moved} moved, {left} left" + (": they cannot be read" if left else ""))


def _send(sqs: object, queue_url: str, message: ParkedMessage) -> None:
    # As it is: that it was parked is what has the refused events tried again. The message's own
    # id keeps it single if the removal is lost.
    sqs.send_message(  # type: ignore[attr-defined]  # boto3's clients are made at run time
        QueueUrl=queue_url,
        MessageBody=message.body,
        MessageGroupId=message.group,
        MessageDeduplicationId=f"redrive-{message.id}",
    )


def _open(stack: Stack) -> SqsParked:
    return SqsParked(stack.outputs["EmissionsDeadLetterQueueUrl"], boto3.client("sqs"))

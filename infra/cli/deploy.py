"""`deploy`: build and deploy to AWS, so that a first deployment that fails leaves nothing.

CloudFormation takes back what a failed first deployment made, and cannot take back a table that is
protected from deletion: the stack would end in ROLLBACK_FAILED. So a first deployment comes in two
steps, all of it without that protection and then the protection.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import click

REPOSITORY = Path(__file__).resolve().parents[2]
_NOT_THERE = "does not exist"
"""AWS has no code of its own for it: a ValidationError with these words."""


_PROFILES: Mapping[str, Mapping[str, Any]] = {
    name: settings
    for name, settings in tomllib.loads((REPOSITORY / "samconfig.toml").read_text()).items()
    # `version` is not a profile, and `local` is the emulator's.
    if isinstance(settings, dict) and name != "local"
}


@click.command("deploy")
@click.argument("profile", type=click.Choice([*_PROFILES]))
def command(profile: str) -> None:
    """Build and deploy, as PROFILE of samconfig.toml says: what `make deploy` does."""
    settings = _PROFILES[profile]
    region = settings["global"]["parameters"].get("region")
    try:
        cloudformation = boto3.client("cloudformation", region_name=region)
    except botocore.exceptions.BotoCoreError as error:
        raise click.ClickException(str(error)) from error
    _run_sam(["build", "--config-env", profile])
    deploy(profile, settings, cloudformation, _run_sam)


def deploy(
    profile: str,
    settings: Mapping[str, Any],
    cloudformation: Any,
    run_sam: Callable[[Sequence[str]], None],
) -> None:
    """Deploy in one step, or in two if the stack is not there yet.

    Raises `click.ClickException` with what stands in the way.
    """
    stack = settings["global"]["parameters"]["stack_name"]
    # sam ends a value at its first space and drops the rest without a word.
    overrides = [
        override.replace(" ", "\\ ")
        for override in settings["deploy"]["parameters"]["parameter_overrides"]
    ]
    # Said every time: sam keeps the parameters of before that nobody names.
    steps = ["ProtectTables=true"]
    if _is_first(cloudformation, stack):
        click.echo(f"{stack} is new: all of it first, then its tables' protection from deletion.")
        steps.insert(0, "ProtectTables=false")
    for place, step in enumerate(steps):
        if place and _is_first(cloudformation, stack):
            # sam ends well all the same; the second step would make the tables, protected.
            raise click.ClickException(f"{stack}: its change set was not executed")
        run_sam(["deploy", "--config-env", profile, "--parameter-overrides", *overrides, step])


def _is_first(cloudformation: Any, stack: str) -> bool:
    try:
        [told] = cloudformation.describe_stacks(StackName=stack)["Stacks"]
    except botocore.exceptions.ClientError as error:
        if _NOT_THERE in str(error):
            return True
        raise click.ClickException(f"stack {stack}: {error}") from error
    except botocore.exceptions.BotoCoreError as error:
        raise click.ClickException(f"stack {stack}: {error}") from error
    if told["StackStatus"] == "ROLLBACK_COMPLETE":
        # What is left of a first deployment that failed: a name without resources, in the way.
        click.echo(f"{stack} failed at its first deployment: what is left of it is deleted.")
        cloudformation.delete_stack(StackName=stack)
        cloudformation.get_waiter("stack_delete_complete").wait(StackName=stack)
        return True
    # A change set that nobody executed makes a stack of no resources.
    return bool(told["StackStatus"] == "REVIEW_IN_PROGRESS")


def _run_sam(arguments: Sequence[str]) -> None:
    sam = Path(sys.executable).parent / "sam"
    ended = subprocess.run([str(sam), *arguments], cwd=REPOSITORY, check=False)  # noqa: S603 - ours
    if ended.returncode:
        raise click.ClickException(f"sam {arguments[0]} ended with status {ended.returncode}")

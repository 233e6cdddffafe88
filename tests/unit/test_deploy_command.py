"""`deploy`: what it asks of sam, for a stack that is there, is not, or failed at its first try."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import click
import pytest
from click.testing import CliRunner
from samcli.cli.types import CfnParameterOverridesType

from infra.cli.deploy import command, deploy

SETTINGS = {
    "global": {"parameters": {"stack_name": "meterline-staging"}},
    "deploy": {"parameters": {"parameter_overrides": ["Stage=staging"]}},
}
PROTECTED = [
    *("deploy", "--config-env", "staging", "--parameter-overrides"),
    *("Stage=staging", "ProtectTables=true"),
]
UNPROTECTED = [*PROTECTED[:-1], "ProtectTables=false"]


class FakeStacks:
    """CloudFormation with at most one stack, known by its status."""

    def __init__(self, status: str | None, refusal: str = "does not exist") -> None:
        self.status = status
        self.deleted = False
        self._refusal = refusal

    def describe_stacks(self, **named: str) -> dict[str, Any]:
        if self.status is None:
            raise botocore.exceptions.ClientError(
                {"Error": {"Code": "ValidationError", "Message": f"{named} {self._refusal}"}},
                "DescribeStacks",
            )
        return {"Stacks": [{"StackStatus": self.status}]}

    def delete_stack(self, **named: str) -> None:
        assert named == {"StackName": "meterline-staging"}
        self.status = None
        self.deleted = True

    def get_waiter(self, name: str) -> FakeStacks:
        assert name == "stack_delete_complete"
        return self

    def wait(self, **_named: str) -> None:
        assert self.status is None


def run_deploy(stacks: FakeStacks) -> list[list[str]]:
    asked: list[list[str]] = []

    def note(arguments: Sequence[str]) -> None:
        asked.append(list(arguments))
        stacks.status = "CREATE_COMPLETE"

    deploy("staging", SETTINGS, stacks, note)
    return asked


def test_a_stack_that_is_there_is_deployed_at_once_and_protected() -> None:
    assert run_deploy(FakeStacks("UPDATE_COMPLETE")) == [PROTECTED]


@pytest.mark.parametrize("status", [None, "REVIEW_IN_PROGRESS"])
def test_a_new_stacks_tables_are_protected_once_all_of_it_stands(status: str | None) -> None:
    assert run_deploy(FakeStacks(status)) == [UNPROTECTED, PROTECTED]


def test_what_is_left_of_a_first_deployment_that_failed_is_cleared_away() -> None:
    stacks = FakeStacks("ROLLBACK_COMPLETE")
    assert run_deploy(stacks) == [UNPROTECTED, PROTECTED]
    assert stacks.deleted


def test_a_first_change_set_that_nobody_confirmed_is_not_followed_by_protected_tables() -> None:
    stacks, asked = FakeStacks(None), []

    def decline(arguments: Sequence[str]) -> None:
        asked.append(list(arguments))
        # What `sam deploy` leaves behind, with status 0, where it was told no.
        stacks.status = "REVIEW_IN_PROGRESS"

    with pytest.raises(click.ClickException, match="not executed"):
        deploy("staging", SETTINGS, stacks, decline)
    assert asked == [UNPROTECTED]


def test_a_first_step_that_fails_is_not_followed_by_the_second() -> None:
    asked = []

    def fail(arguments: Sequence[str]) -> None:
        asked.append(list(arguments))
        raise click.ClickException("sam deploy ended with status 1")

    with pytest.raises(click.ClickException):
        deploy("staging", SETTINGS, FakeStacks(None), fail)
    assert asked == [UNPROTECTED]


@pytest.mark.parametrize("value", ["https://a.example https://b.example", "Acme <a@acme.example>"])
@pytest.mark.parametrize("written", ["{}", '"{}"'])
def test_a_parameter_with_spaces_reaches_sam_whole(value: str, written: str) -> None:
    settings = {
        **SETTINGS,
        "deploy": {"parameters": {"parameter_overrides": [f"Name={written.format(value)}", "X=1"]}},
    }
    asked: list[list[str]] = []
    deploy(
        "staging", settings, FakeStacks("UPDATE_COMPLETE"), lambda told: asked.append(list(told))
    )
    [arguments] = asked
    overrides = arguments[arguments.index("--parameter-overrides") + 1 :]
    read = CfnParameterOverridesType().convert(tuple(overrides), None, None)
    assert read == {"Name": value, "X": "1", "ProtectTables": "true"}


def test_a_stack_that_cannot_be_looked_up_is_not_taken_for_a_new_one() -> None:
    with pytest.raises(click.ClickException, match="may not"):
        run_deploy(FakeStacks(None, "may not be described by you"))


@pytest.mark.parametrize("profile", ["foo", "local", "version", ""])
def test_a_profile_that_is_not_there_is_refused_before_anything_is_built(profile: str) -> None:
    ended = CliRunner().invoke(command, [profile])
    assert ended.exit_code == 2
    assert f"'{profile}' is not one of 'staging', 'production'" in ended.output


def test_without_a_region_nothing_is_built_and_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    ended = CliRunner().invoke(command, ["staging"])
    assert ended.exit_code == 1
    assert ended.output == "Error: You must specify a region.\n"

"""The runbook: a page for every alarm, no page for none, and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from cfnlint.decode.cfn_yaml import load as load_template  # type: ignore[import-untyped]

from infra.cli.__main__ import main

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = {
    page.stem: page.read_text()
    for page in (REPOSITORY / "infra/runbook").glob("*.md")
    if page.stem != "README"
}
ALARMS = [
    name
    for name, resource in load_template(str(REPOSITORY / "infra/observability.yaml"))[
        "Resources"
    ].items()
    if resource["Type"] == "AWS::CloudWatch::Alarm"
]
COMMAND = re.compile(r"`(?:python -m infra\.cli )((?:[a-z-]+ ?)+)")


def find_page(alarm: str) -> str:
    is_shared = alarm.endswith("ErrorsAlarm") and alarm != "ApiServerErrorsAlarm"
    return "FunctionErrors" if is_shared else re.sub(r"(By[A-Z][a-z]+)?Alarm$", "", alarm)


def test_every_alarm_has_a_page_and_every_page_an_alarm() -> None:
    assert {find_page(alarm) for alarm in ALARMS} == set(PAGES)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_page_says_what_it_means_and_what_to_do(page: str) -> None:
    text = PAGES[page]
    assert text.startswith(f"# {page}\n")
    assert "**What it means.**" in text
    assert "\n1. " in text


def test_every_command_of_the_runbook_exists() -> None:
    found = {told.strip() for text in PAGES.values() for told in COMMAND.findall(text)}
    assert len(found) >= 8
    for told in found:
        command: click.Command | None = main
        for word in told.split():
            if not isinstance(command, click.Group):
                break
            command = command.get_command(click.Context(command), word)
            assert command is not None, f"there is no `{told}`"

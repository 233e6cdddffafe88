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
DOCUMENTS = ("README.md", "infra/guardrails.md", "infra/threat_model.md", "infra/runbook/*.md")
COMMAND = re.compile(r"`[^`\n]*python -m infra\.cli ([^`]+)`|^ *[^\s`]+ -m infra\.cli (.+)$", re.M)
"""A command within a sentence, which may be broken over two lines, or on a line of its own."""


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


def list_commands() -> list[str]:
    texts = [path.read_text() for each in DOCUMENTS for path in sorted(REPOSITORY.glob(each))]
    found = {inline or own for text in texts for inline, own in COMMAND.findall(text)}
    return sorted(" ".join(told.split()) for told in found)


def test_the_documents_name_commands_in_sentences_and_on_lines() -> None:
    assert len(list_commands()) >= 20


@pytest.mark.parametrize("told", list_commands())
def test_a_command_in_a_document_exists_with_its_options(told: str) -> None:
    words = told.split()
    command: click.Command = main
    while isinstance(command, click.Group) and words:
        word = words.pop(0)
        found = command.get_command(click.Context(command), word)
        assert found is not None, f"there is no `{word}`"
        command = found
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known

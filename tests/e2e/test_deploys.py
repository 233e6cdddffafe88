"""The template comes up as it stands, and what is behind its addresses answers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.local.stack import REPOSITORY, LocalStack
from tests.e2e.conftest import Api


class _AnyTag(yaml.SafeLoader):
    """Reads CloudFormation's short forms as nothing: only the names of outputs are wanted."""


_AnyTag.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


def make_event(event_id: str, customer: str, quantity: str = "1") -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": "tests/deploys",
        "type": "meterline.usage",
        "subject": customer,
        "time": datetime.now(UTC).isoformat(),
        "data": {"meter": "credits", "quantity": quantity},
    }


def test_every_output_of_the_template_is_there(stack: LocalStack) -> None:
    template = yaml.load((REPOSITORY / "template.yaml").read_text(), _AnyTag)
    assert set(stack.outputs) == set(template["Outputs"])
    assert all(stack.outputs.values())


def test_a_call_over_http_reaches_report_usage(api: Api) -> None:
    assert api.put_customer("deploys").status == 200
    first = api.report(make_event("reaches", "deploys", "1.5"))
    assert first.status == 202, first.body
    assert first.told == {"accepted": 1, "duplicates": 0, "ignored": 0, "rejected": []}
    second = api.report(make_event("reaches", "deploys", "1.5"))
    assert second.told["accepted"] == 0


def test_what_is_reported_reaches_the_ledger(api: Api, stack: LocalStack) -> None:
    assert api.put_customer("deploys-ledger").status == 200
    assert api.report(make_event("kept", "deploys-ledger")).told["accepted"] == 1
    pages = stack.client("dynamodb").get_paginator("scan")
    keys = [
        item["k"]["S"]
        for page in pages.paginate(TableName=stack.outputs["EventsTable"], ConsistentRead=True)
        for item in page["Items"]
    ]
    [kept] = [key for key in keys if key.startswith("deploys-ledger\x1f")]
    assert kept.endswith("\x1fkept")


def test_a_call_without_a_key_is_turned_away(api: Api) -> None:
    answer = api.call("POST", "/v1/usage", body=b"{}")
    assert answer.status == 401
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_address_without_a_route_is_the_gateways_own_404(api: Api) -> None:
    assert api.call("GET", "/v1/nothing", key=api.admin_key).status == 404


def test_sixty_four_clients_at_once_are_all_answered(api: Api) -> None:
    assert api.put_customer("deploys-crowd").status == 200

    def report(client: int) -> int:
        return int(api.report(make_event(f"crowd-{client}", "deploys-crowd")).told["accepted"])

    with ThreadPoolExecutor(64) as clients:
        assert list(clients.map(report, range(64))) == [1] * 64


def test_a_body_over_api_gateways_limit_is_refused_before_any_function(api: Api) -> None:
    answer = api.call("POST", "/v1/usage", key=api.usage_key, body=b" " * (10 * 1024 * 1024 + 1))
    assert answer.status == 413


def test_a_function_sees_its_layers_and_no_other_package(stack: LocalStack) -> None:
    python = stack.directory / "tmp" / "python"
    probe = [str(python), "-c", "import pydantic"]
    ended = subprocess.run(probe, capture_output=True, check=False)
    assert ended.returncode != 0
    assert b"No module named 'pydantic'" in ended.stderr


def test_a_first_deployment_that_fails_leaves_no_table_and_one_that_stands_is_protected(
    stack: LocalStack,
) -> None:
    cloudformation, dynamodb = stack.client("cloudformation"), stack.client("dynamodb")
    template = (REPOSITORY / "infra/storage.yaml").read_text()
    tables = re.findall(r"(?m)^  (\w+Table):$", template)
    assert len(tables) >= 6
    broken = "Resources:\n  Broken:\n    Type: AWS::SQS::Queue\n    DependsOn: [{}]\n".format(
        ", ".join(tables)
    )
    broken += "    Properties: {FifoQueue: true, QueueName: no-fifo-name}\n"

    def deploy(action: str, protect: str, text: str) -> str:
        getattr(cloudformation, f"{action}_stack")(
            StackName="first-try",
            TemplateBody=text,
            Parameters=[
                {"ParameterKey": "Stage", "ParameterValue": "staging"},
                {"ParameterKey": "ProtectTables", "ParameterValue": protect},
            ],
        )
        while True:
            [told] = cloudformation.describe_stacks(StackName="first-try")["Stacks"]
            if not told["StackStatus"].endswith("_IN_PROGRESS"):
                return str(told["StackStatus"])
            time.sleep(0.1)

    def list_tables() -> list[str]:
        found: list[str] = dynamodb.list_tables()["TableNames"]
        return [table for table in found if table.startswith("first-try")]

    failing = template.replace("Resources:\n", broken, 1)
    assert deploy("create", "false", failing) == "ROLLBACK_COMPLETE"
    assert list_tables() == []
    cloudformation.delete_stack(StackName="first-try")
    cloudformation.get_waiter("stack_delete_complete").wait(
        StackName="first-try", WaiterConfig={"Delay": 0.1}
    )

    def list_protected() -> list[bool]:
        return [
            dynamodb.describe_table(TableName=table)["Table"]["DeletionProtectionEnabled"]
            for table in list_tables()
        ]

    # CloudFormation here deletes protected tables too; on AWS it could not have.
    assert deploy("create", "false", template) == "CREATE_COMPLETE"
    assert list_protected() == [False] * len(tables)
    assert deploy("update", "true", template) == "UPDATE_COMPLETE"
    assert list_protected() == [True] * len(tables)
    for table in list_tables():
        with pytest.raises(dynamodb.exceptions.ClientError, match="deletion"):
            dynamodb.delete_table(TableName=table)


def list_running(group: int) -> list[int]:
    """Processes of a process group that have not ended, zombies left out."""
    running = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, of_group = file.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of_group) == group and state != "Z":
            running.append(int(file.parent.name))
    return running


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads process groups in /proc")
def test_a_stack_ends_with_its_owner_even_if_that_is_killed() -> None:
    program = (
        "import sys\n"
        "from urllib.error import HTTPError\n"
        "from urllib.request import Request, urlopen\n"
        "from infra.local.stack import LocalStack\n"
        "stack = LocalStack('orphan')\n"
        "stack.start()\n"
        "try:\n"
        "    urlopen(Request(stack.api_url + '/v1/usage', method='POST'))\n"
        "except HTTPError as error:\n"
        "    print(error.code, *stack.process_ids, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        status, emulator, gateway = map(int, owner.stdout.readline().split())
        assert status == 401
        # The emulator, and the function that has just answered.
        assert len(list_running(emulator)) >= 2
        owner.send_signal(signal.SIGKILL)
    deadline_s = time.monotonic() + 120
    while running := list_running(emulator) + list_running(gateway):
        assert time.monotonic() < deadline_s, f"still there: {running}"
        time.sleep(0.1)

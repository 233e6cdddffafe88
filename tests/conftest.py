"""What tests of every kind share: parts that must be installed, and DynamoDB Local."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dynamodb_local import is_installed, run_dynamodb_local

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLE_TRACES = REPOSITORY.parent / "shared" / "data"


def _may_be_skipped(reason: str) -> bool:
    """On CI a test may stay out for one reason: no sample traces lie beside the checkout."""
    if os.environ.get("CI") != "true":
        return True
    return "sample traces" in reason and not SAMPLE_TRACES.exists()


def _refuse_to_leave(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "socket.connect":
        return
    address = arguments[1]
    if not isinstance(address, tuple):
        return
    host = str(address[0])
    try:
        stays = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        stays = False
    if not stays:
        raise AssertionError(f"a test may not leave this machine, but connected to {address}")


def _forget_surroundings(*prefixes: str) -> None:
    for name in list(os.environ):
        if name.upper().startswith(prefixes):
            del os.environ[name]


def pytest_configure() -> None:
    """Keep every connection on this machine, unless the contract suite is to meet Stripe.

    Whose machine it is does not matter: its AWS account, its terminal and its proxies are not seen.
    """
    _forget_surroundings("AWS_", "POWERTOOLS_", "COLUMNS", "LINES", "FORCE_COLOR")
    os.environ |= {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    if not os.environ.get("STRIPE_API_KEY"):
        _forget_surroundings("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        sys.addaudithook(_refuse_to_leave)


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)
    if not _may_be_skipped(reason):
        report.outcome = "failed"
        report.longrepr = f"On CI nothing is skipped that can be installed. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    """On CI, a skipped test is a failed one."""
    report: pytest.TestReport = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Any:
    """On CI, a skipped file is a failed one."""
    report: pytest.CollectReport = yield
    _fail_if_skipped(report)
    return report


@pytest.fixture(scope="session")
def dynamodb_local() -> Iterator[str]:
    """The URL of a DynamoDB Local of this session, in memory. `make dynamodb-local` fetches it."""
    if not is_installed():
        pytest.skip("needs DynamoDB Local: install Java and run `make dynamodb-local`")
    with run_dynamodb_local() as url:
        yield url

"""Each control is taken out of a copy of the service; its test must fail there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SERVICE = REPOSITORY / "layers/meterline"
CONTROLS = "tests/unit/test_controls.py"


@dataclass(frozen=True)
class Removal:
    """A control without which the service runs on: `there` becomes `instead` in one file."""

    control: str
    """What its tests' names begin with."""
    file: str
    there: str
    instead: str


REMOVALS = {
    "nobody is warned": Removal(
        "soft_limit",
        "domain/thresholds.py",
        "thresholds = [Threshold(Happening.SOFT_LIMIT_CROSSED, name, warn)]",
        "thresholds: list[Threshold] = []",
    ),
    "what is set as a stop stops nothing": Removal(
        "hard_limit",
        "domain/limits.py",
        "stop = Stop(StopCause.HARD_LIMIT, most)",
        "pass",
    ),
    "nothing is held": Removal(
        "hard_limit",
        "services/authorize_usage.py",
        "return self._reserve(asked.customer, terms, limits, hold, stop, now)",
        'return Decision(True, "allowed", "Go ahead.")',
    ),
    "overage is not blocked": Removal(
        "kill_switch",
        "domain/limits.py",
        "elif limits.block_overage:",
        "elif False:",
    ),
    "a preview costs nothing": Removal("preview", "domain/previews.py", "after - before)", "0)"),
    "a preview knows of no limit": Removal(
        "preview", "domain/previews.py", "stop is not None and committed + likely > stop", "False"
    ),
    "the breaker never trips": Removal(
        "breaker", "domain/breaker.py", "if hour < threshold:", "if hour >= 0:"
    ),
    "nobody looks at the pace": Removal(
        "breaker",
        "services/watch_usage.py",
        "self._break(customer, meter, budget, now, watch)",
        "pass",
    ),
    "who is frozen may go on": Removal(
        "breaker", "services/authorize_usage.py", "if standing.is_frozen:", "if False:"
    ),
    "no invoice is a spike": Removal(
        "invoice_check", "services/check_invoice.py", "if spike is None:", "if True:"
    ),
    "a spike is not held": Removal(
        "invoice_check",
        "services/check_invoice.py",
        "if self._hold is not None:\n            # Where",
        "if False:\n            # Where",
    ),
}


def run_controls(service: Path, control: str = "") -> subprocess.CompletedProcess[str]:
    """The tests of a control, or of all, on the service as it lies there."""
    places = [str(REPOSITORY), str(service), str(REPOSITORY / "layers/client")]
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"),
            *("-o", f"pythonpath={' '.join(places)}", "-k", control, CONTROLS),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The service, to be broken."""
    copied = tmp_path / "service"
    shutil.copytree(SERVICE, copied, ignore=shutil.ignore_patterns("__pycache__"))
    return copied


def test_with_all_controls_in_place_their_tests_pass_on_a_copy(copy: Path) -> None:
    ran = run_controls(copy)
    assert ran.returncode == 0, ran.stdout
    controls = {removal.control for removal in REMOVALS.values()}
    tests = re.findall(r"^def test_(\w+)", (REPOSITORY / CONTROLS).read_text(), re.MULTILINE)
    for test in tests:
        assert any(test.startswith(control) for control in controls), f"{test} is of no control"


@pytest.mark.parametrize("what", REMOVALS)
def test_without_its_control_a_test_fails(copy: Path, what: str) -> None:
    removal = REMOVALS[what]
    file = copy / "meterline" / removal.file
    text = file.read_text()
    assert text.count(removal.there) == 1, f"{removal.file} does not say it so any more"
    file.write_text(text.replace(removal.there, removal.instead))
    ran = run_controls(copy, removal.control)
    # 1: tests ran, and some failed (pytest's exit codes).
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "AssertionError" in ran.stdout or "ValueError" in ran.stdout, ran.stdout

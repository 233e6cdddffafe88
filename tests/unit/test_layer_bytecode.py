"""A layer holds bytecode of the runtime's own version, or none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LAYER = Path(__file__).resolve().parents[2] / "layers" / "meterline"
OWN_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def build(to: Path, runtime_version: str) -> subprocess.CompletedProcess[str]:
    """Build the service's layer as for the cloud, with this interpreter at hand for bytecode."""
    return subprocess.run(
        [
            "make",
            "--silent",
            "build-MeterlineLayer",
            f"ARTIFACTS_DIR={to}",
            f"RUNTIME_VERSION={runtime_version}",
            f"RUNTIME_PYTHON={sys.executable}",
        ],
        cwd=LAYER,
        capture_output=True,
        text=True,
        check=True,
    )


def test_every_module_comes_with_its_bytecode(tmp_path: Path) -> None:
    told = build(tmp_path, OWN_VERSION)
    assert (told.stdout, told.stderr) == ("", "")
    modules = list((tmp_path / "python").rglob("*.py"))
    assert modules
    for module in modules:
        [compiled] = (module.parent / "__pycache__").glob(f"{module.stem}.*.pyc")
        # Flags 1: by hash, never checked: no date in an archive makes it stale (PEP 552).
        assert compiled.read_bytes()[4:8] == b"\x01\0\0\0"


def test_bytecode_of_another_version_is_left_out_and_that_is_told(tmp_path: Path) -> None:
    told = build(tmp_path, "9.9")
    assert "no bytecode" in told.stdout
    assert list((tmp_path / "python").rglob("*.py"))
    assert not list((tmp_path / "python").rglob("*.pyc"))

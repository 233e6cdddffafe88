"""The layers as `sam build` makes them, and workers that see nothing else.

The development environment has more in it (awscrt, pyOpenSSL) that botocore would use if it could.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.measuring import REPOSITORY

_BUILDS = REPOSITORY / ".local" / "bench-layers"
_SOURCES = {
    "dependencies": ("Makefile", "requirements.txt"),
    "meterline": ("Makefile", "meterline"),
}
_TARGETS = {"dependencies": "build-DependenciesLayer", "meterline": "build-MeterlineLayer"}


def build_layers() -> list[Path]:
    """The layers' `python` directories, built for this interpreter unless they are up to date."""
    return [_build(layer) for layer in ("meterline", "dependencies")]


def _build(layer: str) -> Path:
    source = REPOSITORY / "layers" / layer
    digest = hashlib.sha256(str(Path(sys.executable).resolve()).encode())
    for name in _SOURCES[layer]:
        for path in sorted([source / name, *(source / name).rglob("*")]):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(source)).encode() + path.read_bytes())
    built = _BUILDS / f"{layer}-{digest.hexdigest()[:16]}"
    if built.exists():
        return built / "python"
    for old in _BUILDS.glob(f"{layer}-*"):
        shutil.rmtree(old)
    unfinished = _BUILDS / f"new-{layer}-{os.getpid()}"
    tools = Path(sys.executable).parent
    subprocess.run(
        ["make", "--silent", _TARGETS[layer], f"ARTIFACTS_DIR={unfinished}"],
        cwd=source,
        env={
            **os.environ,
            "LAYER_PYTHON": sys.executable,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        },
        stdout=subprocess.DEVNULL,
        check=True,
    )
    unfinished.rename(built)
    return built / "python"


def interpreter() -> list[str]:
    """This Python without any installed package."""
    return [str(Path(getattr(sys, "_base_executable", sys.executable)).resolve()), "-S"]


def run_worker(
    module: str, layers: list[Path], environment: Mapping[str, str], timeout_s: float = 240
) -> dict[str, Any]:
    """Run a worker on the layers alone; what it reports."""
    ended = subprocess.run(
        [*interpreter(), "-m", module],
        cwd=REPOSITORY,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(map(str, [*layers, REPOSITORY])),
            **environment,
        },
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout_s,
        check=True,
    )
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found

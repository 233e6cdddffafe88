"""Amazon's own DynamoDB on this machine, in memory. `make dynamodb-local` fetches it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import find_free_port, wait_for_port

_DIRECTORY = Path(__file__).resolve().parents[1] / ".local" / "dynamodb-local"


def is_installed() -> bool:
    """Whether it and Java are here."""
    return shutil.which("java") is not None and (_DIRECTORY / "DynamoDBLocal.jar").exists()


@contextmanager
def run_dynamodb_local() -> Iterator[str]:
    """The URL of one that ends with the block."""
    port = find_free_port()
    command = ["java", "-Djava.library.path=./DynamoDBLocal_lib", "-jar", "DynamoDBLocal.jar"]
    process = subprocess.Popen(
        [*command, "-inMemory", "-disableTelemetry", "-port", str(port)],
        cwd=_DIRECTORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()

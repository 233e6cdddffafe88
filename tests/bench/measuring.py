"""What the workers share: handlers as they are deployed, CPU per unit, medians of rounds.

Standard library only, so that workers import it beside the layers as they are deployed.
"""

from __future__ import annotations

import gc
import importlib.util
import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FUNCTIONS = REPOSITORY / "functions"

LambdaHandler = Callable[[dict[str, Any], Any], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class InvocationContext:
    """Lambda's context object, as far as handlers read it."""

    function_name: str
    memory_limit_in_mb: int = 1024
    aws_request_id: str = "c6af9ac6-7b61-11e6-9a41-93e8deadbeef"
    log_stream_name: str = "2026/11/22/[$LATEST]0123456789abcdef"

    @property
    def invoked_function_arn(self) -> str:
        """The function's ARN."""
        return f"arn:aws:lambda:us-east-1:123456789012:function:{self.function_name}"

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        """Time is not what is measured here: always plenty."""
        return 29_000


class CountedOutput(io.StringIO):
    """Standard output of a function: its log lines are counted, not kept."""

    count_bytes = 0

    def write(self, text: str) -> int:
        """Count the text."""
        self.count_bytes += len(text.encode())
        return len(text)


class Function:
    """A function's handler, imported from its own folder; what it logs is counted."""

    def __init__(self, name: str) -> None:
        os.environ["POWERTOOLS_SERVICE_NAME"] = name
        os.environ["AWS_LAMBDA_FUNCTION_NAME"] = name
        spec = importlib.util.spec_from_file_location(
            f"{name}_handler", FUNCTIONS / name / "handler.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        self._output = CountedOutput()
        with redirect_stdout(self._output):
            spec.loader.exec_module(module)
        self._handle: LambdaHandler = module.lambda_handler
        self._context = InvocationContext(name)

    def __call__(self, event: dict[str, Any]) -> dict[str, Any]:
        """Invoke it."""
        with redirect_stdout(self._output):
            return self._handle(event, self._context)

    def take_log_bytes(self) -> int:
        """Bytes logged since this was asked last."""
        taken, self._output.count_bytes = self._output.count_bytes, 0
        return taken


@dataclass(slots=True)
class Samples:
    """CPU (all threads of this process) and wall time of rounds, in ms per unit."""

    cpu_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)

    def take(self, work: Callable[[], object], units: int) -> None:
        """Measure one round of `units`."""
        gc.collect()
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        work()
        self.wall_ms.append((time.perf_counter() - wall_s) * 1000 / units)
        self.cpu_ms.append((time.process_time() - cpu_s) * 1000 / units)

    def summary(self) -> dict[str, float]:
        """The medians, as the workers report them."""
        return {"cpu_ms": median(self.cpu_ms), "wall_ms": median(self.wall_ms)}


def report(found: Mapping[str, Any]) -> None:
    """Hand a worker's findings to the bench: one line of JSON, the last on standard output."""
    sys.stdout.write(json.dumps(found) + "\n")

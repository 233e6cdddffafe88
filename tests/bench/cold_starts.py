"""Cold starts under the Lambda runtime emulator, next to empty functions.

The runtime interface emulator (shipped with aws-sam-cli) starts the runtime at the first
invocation, with the real runtime client and the layers alone. What is taken is the time to the
first answer. An empty function imports the same base packages and does nothing.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import awslambdaric
import samcli
from samcli.yamlhelper import yaml_parse

from tests.bench.built_layers import interpreter
from tests.bench.measuring import FUNCTIONS, REPOSITORY
from tests.bench.usage_mix import call_of
from tests.ports import find_free_port, wait_for_port

_MACHINES = {"x86_64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
_RUNTIME_PACKAGES = ("awslambdaric", "runtime_client", "simplejson", "snapshot_restore_py")
_WARM_CALLS = 5
_API_BASE = (
    "from aws_lambda_powertools import Logger",
    "from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response",
    "from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEventV2",
    "from pydantic import BaseModel",
)
_STORAGE_BASE = ("import botocore.session", "import botocore.auth", "import urllib3")
_STRIPE_BASE = ("from pydantic import BaseModel", "import boto3", "import stripe")
_METRICS_BASE = ("from aws_lambda_powertools import Logger, Metrics",)
_IMPORTED = "import handler\n\n\ndef lambda_handler(event, context):\n    return {}\n"
_MADE = {
    "Metrics": "metrics = Metrics()",
    "Logger": "logger = Logger()",
    "APIGatewayHttpResolver": "app = APIGatewayHttpResolver()",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A function, the imports of its empty twin, and a call that needs no other service.

    Where there is no such call, the function is imported and something else answers.
    """

    name: str
    base: Sequence[str]
    call: Mapping[str, Any] | None


def _http_call(method: str, path: str) -> dict[str, Any]:
    call = call_of([], "wrong")
    # Without a key: the answer is a 401, and no table is asked.
    del call["headers"]["authorization"]
    call["requestContext"]["http"] |= {"method": method, "path": path}
    return call | {"rawPath": path, "routeKey": f"{method} {path}"}


CANDIDATES = (
    Candidate(
        "report_usage",
        (*_METRICS_BASE, *_API_BASE, *_STORAGE_BASE),
        _http_call("POST", "/v1/usage"),
    ),
    Candidate(
        "authorize_usage",
        (*_METRICS_BASE, *_API_BASE, *_STORAGE_BASE),
        _http_call("POST", "/v1/authorizations"),
    ),
    Candidate(
        "preview_usage",
        (*_API_BASE, *_STORAGE_BASE),
        _http_call("POST", "/v1/previews"),
    ),
    Candidate(
        "unfreeze_customer",
        (*_API_BASE, *_STORAGE_BASE),
        _http_call("GET", "/v1/customers/acme/notifications"),
    ),
    Candidate(
        "manage_customers",
        (*_API_BASE, *_STORAGE_BASE),
        _http_call("GET", "/v1/customers/acme"),
    ),
    Candidate(
        "serve_openapi",
        (
            *_API_BASE,
            "from pydantic import TypeAdapter",
            "from pydantic.json_schema import models_json_schema",
        ),
        _http_call("GET", "/openapi.json"),
    ),
    Candidate(
        "project_usage",
        (*_METRICS_BASE, *_STORAGE_BASE, "from pydantic import BaseModel", "import boto3"),
        {"shardId": "shardId-1", "Records": []},
    ),
    Candidate(
        "emit_usage",
        (*_METRICS_BASE, *_STORAGE_BASE, *_STRIPE_BASE),
        {"Records": []},
    ),
    Candidate(
        "show_usage",
        (*_METRICS_BASE, *_API_BASE, *_STORAGE_BASE),
        _http_call("GET", "/v1/customers/acme/usage"),
    ),
    Candidate(
        "serve_dashboard",
        (*_METRICS_BASE, *_API_BASE, *_STORAGE_BASE, "import jinja2"),
        _http_call("GET", "/pricing/changelog"),
    ),
    Candidate(
        "compare_usage",
        (*_METRICS_BASE, *_API_BASE, *_STORAGE_BASE, *_STRIPE_BASE),
        None,
    ),
    Candidate(
        "receive_stripe_webhook",
        (*_METRICS_BASE, *_API_BASE, *_STORAGE_BASE, "import boto3"),
        _http_call("GET", "/"),
    ),
    Candidate(
        "apply_stripe_event",
        (*_METRICS_BASE, *_API_BASE, *_STORAGE_BASE, *_STRIPE_BASE),
        {"Records": []},
    ),
    Candidate(
        "poll_stripe_events",
        (*_METRICS_BASE, *_API_BASE, *_STORAGE_BASE, *_STRIPE_BASE),
        None,
    ),
)


_CHOICES = {
    "STREAM_SHARDS": "many",
    "BREAKER_MODE": "freeze",
    "INVOICE_SPIKES": "tell",
    "LATE_USAGE_POLICY": "bill",
}
"""Variables that take one of a few words."""


def read_environment(function: str) -> dict[str, str]:
    """The function's variables as the template names them, with values that lead nowhere."""
    resources = yaml_parse((REPOSITORY / "template.yaml").read_text())["Resources"]
    logical_id = "".join(part.capitalize() for part in function.split("_")) + "Function"
    declared = resources[logical_id]["Properties"]["Environment"]["Variables"]
    values: dict[str, str] = {}
    for name, value in declared.items():
        if isinstance(value, str):
            values[name] = value
        elif name.endswith("_URL"):
            values[name] = f"http://127.0.0.1:9/1/{name.lower()}.fifo"
        elif name in _CHOICES:
            values[name] = _CHOICES[name]
        elif name == "BREAKER_MODE":
            values[name] = "freeze"
        elif name != "STRIPE_API_BASE":
            values[name] = name.lower()
    return values


def write_empty_function(candidate: Candidate) -> str:
    """The source of the function that imports the candidate's base packages and does nothing."""
    imports = "\n".join(dict.fromkeys(candidate.base))
    made = "\n".join(line for name, line in _MADE.items() if name in imports)
    return (
        f"{imports}\n\n{made}\n\n\ndef lambda_handler(event, context):\n"
        '    return {"statusCode": 200, "body": "{}"}\n'
    )


def measure_cold_starts(
    layers: Sequence[Path], rounds: int, environment: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Ms by function: first answer and warm answer, of the function and of its twin.

    Of all rounds the quickest: what else the machine does can only add to a start.
    """
    found: dict[str, dict[str, list[float]]] = {
        candidate.name: {"cold": [], "warm": [], "empty_cold": [], "empty_warm": []}
        for candidate in CANDIDATES
    }
    with tempfile.TemporaryDirectory(prefix="meterline-bench-") as directory:
        runtime = link_runtime(Path(directory))
        for _ in range(rounds):
            for candidate in CANDIDATES:
                empty = Path(directory) / candidate.name
                empty.mkdir(exist_ok=True)
                (empty / "handler.py").write_text(write_empty_function(candidate))
                (empty / "imported.py").write_text(_IMPORTED)
                for prefix, folder in (("", FUNCTIONS / candidate.name), ("empty_", empty)):
                    path = [folder, empty, *layers, runtime]
                    cold_ms, warm_ms = _start_once(candidate, path, environment)
                    found[candidate.name][prefix + "cold"].append(cold_ms)
                    found[candidate.name][prefix + "warm"].append(warm_ms)
    return {
        name: {kind: min(times) for kind, times in kinds.items()} for name, kinds in found.items()
    }


def link_runtime(directory: Path) -> Path:
    """What AWS has in /var/runtime: the runtime client, and nothing else of this environment."""
    runtime = directory / "runtime"
    runtime.mkdir()
    packages = Path(awslambdaric.__file__).parents[1]
    for name in _RUNTIME_PACKAGES:
        for found in packages.glob(f"{name}*"):
            if not found.name.endswith(".dist-info"):
                (runtime / found.name).symlink_to(found)
    return runtime


def _start_once(
    candidate: Candidate, path: Sequence[Path], environment: Mapping[str, str]
) -> tuple[float, float]:
    """Milliseconds to the first answer, and the median of those to the next ones."""
    with emulated_runtime(candidate, path, environment) as port:
        times = []
        for _ in range(1 + _WARM_CALLS):
            began_s = time.perf_counter()
            answer = invoke(port, candidate.call or {})
            times.append((time.perf_counter() - began_s) * 1000)
            if "errorMessage" in answer:
                raise AssertionError(f"{candidate.name}: {answer}")
    return times[0], median(times[1:])


@contextmanager
def emulated_runtime(
    candidate: Candidate, path: Sequence[Path], environment: Mapping[str, str]
) -> Iterator[int]:
    """The port at which the function can be invoked; nothing of it is started before that."""
    port, api_port = find_free_port(), find_free_port()
    binary = f"aws-lambda-rie-{_MACHINES[platform.machine()]}"
    command = [str(Path(samcli.__file__).parent / "local" / "rapid" / binary)]
    command += ["--log-level", "error"]
    command += ["--runtime-interface-emulator-address", f"127.0.0.1:{port}"]
    command += ["--runtime-api-address", f"127.0.0.1:{api_port}"]
    module = "imported" if candidate.call is None else "handler"
    command += [*interpreter(), "-m", "awslambdaric", f"{module}.lambda_handler"]
    process = subprocess.Popen(
        command,
        cwd=path[0],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            # The function folder is the developer's: nothing is to be written into it.
            "PYTHONDONTWRITEBYTECODE": "1",
            "AWS_LAMBDA_FUNCTION_NAME": candidate.name,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
            "AWS_LAMBDA_FUNCTION_TIMEOUT": "29",
            "POWERTOOLS_METRICS_NAMESPACE": "Meterline",
            "LOG_LEVEL": "INFO",
            **read_environment(candidate.name),
            **environment,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for_port(port, process)
        yield port
    finally:
        # The runtime is a child of the emulator, in its group.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def invoke(port: int, event: Mapping[str, Any]) -> dict[str, Any]:
    """Call the function once; what it answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(
            "POST", "/2015-03-31/functions/function/invocations", json.dumps(event).encode()
        )
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()

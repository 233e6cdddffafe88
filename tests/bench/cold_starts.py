"""Cold starts under the Lambda runtime emulator, next to empty functions.

The runtime interface emulator (shipped with aws-sam-cli) starts the runtime at the first
invocation, with the real runtime client and the layers alone. What is taken is the time to the
first answer. An empty function has the same base packages: it imports from third-party packages
just what the function's own code imports from them when it starts, makes the logger, the metrics
and the router that it would make, and does nothing.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
_IMPORTED = "import handler\n\n\ndef lambda_handler(event, context):\n    return {}\n"
_RECORDER = """
import builtins, json, sys

real, statements = builtins.__import__, {}


def recorded(name, names=None, local=None, members=(), level=0):
    importer = (names or {}).get("__name__", "")
    if level == 0 and (importer == "handler" or importer.partition(".")[0] == "meterline"):
        statements.setdefault((name, tuple(members or ())))
    return real(name, names, local, members, level)


builtins.__import__ = recorded
import handler

third_party = lambda name: name not in sys.stdlib_module_names and name != "meterline"
print(json.dumps([
    f"from {name} import {', '.join(members)}" if members else f"import {name}"
    for name, members in statements if third_party(name.partition(".")[0]) and name != "handler"
]))
"""
_MADE = {
    "Metrics": "metrics = Metrics()",
    "Logger": "logger = Logger()",
    "APIGatewayHttpResolver": "app = APIGatewayHttpResolver()",
}


_NOBODY: dict[str, Any] = {"Records": []}


def _http_call(method: str, path: str) -> dict[str, Any]:
    call = call_of([], "wrong")
    # Without a key: the answer is a 401, and no table is asked.
    del call["headers"]["authorization"]
    call["requestContext"]["http"] |= {"method": method, "path": path}
    return call | {"rawPath": path, "routeKey": f"{method} {path}"}


CALLS: Mapping[str, Mapping[str, Any]] = {
    "report_usage": _http_call("POST", "/v1/usage"),
    "authorize_usage": _http_call("POST", "/v1/authorizations"),
    "preview_usage": _http_call("POST", "/v1/previews"),
    "unfreeze_customer": _http_call("GET", "/v1/customers/acme/notifications"),
    "manage_customers": _http_call("GET", "/v1/customers/acme"),
    "show_usage": _http_call("GET", "/v1/customers/acme/usage"),
    "trace_usage": _http_call("GET", "/v1/customers/acme/invoices"),
    "serve_openapi": _http_call("GET", "/openapi.json"),
    "serve_dashboard": _http_call("GET", "/pricing/changelog"),
    "receive_stripe_webhook": _http_call("GET", "/"),
    "project_usage": {"shardId": "shardId-1", "Records": []},
    "emit_usage": _NOBODY,
    "apply_stripe_event": _NOBODY,
    "notify": _NOBODY,
}
"""A call of each function that has one which needs no other service. The others are imported, and
something else answers."""


def list_functions() -> list[str]:
    """The template's functions, by the names of their folders."""
    return [
        Path(resource["Properties"]["CodeUri"]).name
        for resource in _read_resources().values()
        if resource["Type"] == "AWS::Serverless::Function"
    ]


_CHOICES = {
    "STREAM_SHARDS": "many",
    "BREAKER_MODE": "freeze",
    "INVOICE_SPIKES": "tell",
    "LATE_USAGE_POLICY": "bill",
}
"""Variables that take one of a few words."""


def read_environment(function: str) -> dict[str, str]:
    """The function's variables as the template names them, with values that lead nowhere."""
    resources = _read_resources()
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
        elif name != "STRIPE_API_BASE":
            values[name] = name.lower()
    return values


def _read_resources() -> dict[str, Any]:
    resources: dict[str, Any] = yaml_parse((REPOSITORY / "template.yaml").read_text())["Resources"]
    return resources


def find_base_imports(
    function: str, layers: Sequence[Path], environment: Mapping[str, str]
) -> list[str]:
    """The statements with which the function's own code, handler and layer, imports third-party
    packages when it starts. Not what those import in turn."""
    found = subprocess.run(
        [*interpreter(), "-c", _RECORDER],
        env=_write_environment(function, [FUNCTIONS / function, *layers], environment),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    statements: list[str] = json.loads(found.stdout.splitlines()[-1])
    return statements


def write_empty_function(base: Sequence[str]) -> str:
    """The source of a function that imports these packages, and makes of them what every function
    makes, and does nothing."""
    imports = "\n".join(base)
    made = "\n".join(
        line for name, line in _MADE.items() if re.search(rf"\b{name}\b", imports) is not None
    )
    return (
        f"{imports}\n\n{made}\n\n\ndef lambda_handler(event, context):\n"
        '    return {"statusCode": 200, "body": "{}"}\n'
    )


def measure_cold_starts(
    layers: Sequence[Path],
    rounds: int,
    environment: Mapping[str, str],
    functions: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Ms by function: first answer and warm answer, of the function and of its twin in turns.

    Of all rounds the quickest: what else the machine does can only add to a start.
    """
    functions = functions or list_functions()
    found: dict[str, dict[str, list[float]]] = {
        name: {"cold": [], "warm": [], "empty_cold": [], "empty_warm": []} for name in functions
    }
    with tempfile.TemporaryDirectory(prefix="meterline-bench-") as directory:
        runtime = link_runtime(Path(directory))
        for name in functions:
            empty = Path(directory) / name
            empty.mkdir()
            base = find_base_imports(name, layers, environment)
            (empty / "handler.py").write_text(write_empty_function(base))
            (empty / "imported.py").write_text(_IMPORTED)
        for _ in range(rounds):
            for name in functions:
                empty = Path(directory) / name
                for prefix, folder in (("", FUNCTIONS / name), ("empty_", empty)):
                    path = [folder, empty, *layers, runtime]
                    cold_ms, warm_ms = _start_once(name, path, environment)
                    found[name][prefix + "cold"].append(cold_ms)
                    found[name][prefix + "warm"].append(warm_ms)
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
    function: str, path: Sequence[Path], environment: Mapping[str, str]
) -> tuple[float, float]:
    """Milliseconds to the first answer, and the median of those to the next ones."""
    with emulated_runtime(function, path, environment) as port:
        times = []
        for _ in range(1 + _WARM_CALLS):
            began_s = time.perf_counter()
            answer = invoke(port, CALLS.get(function, {}))
            times.append((time.perf_counter() - began_s) * 1000)
            if "errorMessage" in answer:
                raise AssertionError(f"{function}: {answer}")
    return times[0], median(times[1:])


@contextmanager
def emulated_runtime(
    function: str, path: Sequence[Path], environment: Mapping[str, str]
) -> Iterator[int]:
    """The port at which the function can be invoked; nothing of it is started before that."""
    port, api_port = find_free_port(), find_free_port()
    binary = f"aws-lambda-rie-{_MACHINES[platform.machine()]}"
    command = [str(Path(samcli.__file__).parent / "local" / "rapid" / binary)]
    command += ["--log-level", "error"]
    command += ["--runtime-interface-emulator-address", f"127.0.0.1:{port}"]
    command += ["--runtime-api-address", f"127.0.0.1:{api_port}"]
    module = "handler" if function in CALLS else "imported"
    command += [*interpreter(), "-m", "awslambdaric", f"{module}.lambda_handler"]
    process = subprocess.Popen(
        command,
        cwd=path[0],
        env=_write_environment(function, path, environment),
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


def _write_environment(
    function: str, path: Sequence[Path], environment: Mapping[str, str]
) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        # The function folder is the developer's: nothing is to be written into it.
        "PYTHONDONTWRITEBYTECODE": "1",
        "AWS_LAMBDA_FUNCTION_NAME": function,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
        "AWS_LAMBDA_FUNCTION_TIMEOUT": "29",
        "POWERTOOLS_METRICS_NAMESPACE": "Meterline",
        "LOG_LEVEL": "INFO",
        **read_environment(function),
        **environment,
    }


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

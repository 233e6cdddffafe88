"""The stack on this machine: the emulator, `sam deploy`, and addresses that work as they stand.

    with LocalStack("demo", stripe_url="http://127.0.0.1:4000") as stack:
        httpx.post(f"{stack.api_url}/v1/usage", ...)
        stack.client("dynamodb").scan(TableName=stack.outputs["EventsTable"])

Every stack is new: its ports are chosen by the system, its state is in a directory of its own
beneath `.local/`, and both end with the `with` block or with the process, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import boto3

REPOSITORY = Path(__file__).resolve().parents[2]
LOCAL = REPOSITORY / ".local"
REGION = "us-east-1"
_BUCKET = "meterline-local"
# The emulator's own: it takes them for its account's root.
_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
# AWS has no such actions: it asks for PartiQLInsert, SendMessage and ChangeMessageVisibility, which
# the template grants on the one table or queue (service authorization reference).
_BATCH_ACTIONS = {
    "ReportUsageRole": "dynamodb:BatchExecuteStatement",
    "ProjectUsageRole": "sqs:SendMessageBatch",
    "EmitUsageRole": "sqs:ChangeMessageVisibilityBatch",
    "ReconcileUsageRole": "sqs:SendMessageBatch",
    # Not a batch: the emulator asks for all identities where AWS asks for the sender's.
    "NotifyRole": "ses:SendEmail",
}
EMULATOR_POLICY = "emulator"
"""Of what a role may do here, what the template does not grant: the actions above."""
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
_KEPT_BUILDS = 3
# What a build of the layers depends on.
_BUILD_INPUTS = ("template.yaml", "infra/*.yaml", "layers/**/*")


class StackFailedError(Exception):
    """The stack did not come up; the message ends with what its log said last."""


def _last_lines(log: Path, count: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class LocalStack:
    """The template, deployed on an emulator that only this object uses.

    `resources` says what each resource is called here, nested stacks' included, by its name in the
    template; `permissions_file` has what each role was allowed so far.

    `name` tells stacks apart in `.local/`. `stripe_url` is where functions find Stripe (empty:
    Stripe itself), `stripe_key` what they show there. `enforce_iam` makes the emulator hold every
    function to its role. Raises StackFailedError.
    """

    def __init__(
        self,
        name: str,
        *,
        stripe_url: str = "",
        stripe_key: str = "sk_test_local",
        enforce_iam: bool = False,
        log_level: str = "INFO",
    ) -> None:
        self._name = name
        self._kept = contextlib.ExitStack()
        self.directory = LOCAL
        self.outputs: Mapping[str, str] = {}
        self.resources: Mapping[str, str] = {}
        self.api_url = ""
        self.aws_url = ""
        self._stripe_url = stripe_url
        self._stripe_key = stripe_key
        self._enforce_iam = enforce_iam
        self._log_level = log_level
        self._stack_name = ""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._session: boto3.Session | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the emulator, build and deploy. Raises StackFailedError."""
        LOCAL.mkdir(exist_ok=True)
        with _locked(LOCAL / "stacks.lock"):
            _sweep_directories()
            self.directory = Path(tempfile.mkdtemp(prefix=f"{self._name}-", dir=LOCAL))
            self._kept.enter_context(_locked(self.directory / "owner.lock"))
        (self.directory / "tmp").mkdir()
        template = self._build()
        self._start_emulator()
        self._store_secret()
        self._prepare_notifications()
        self._deploy(template)
        if self._enforce_iam:
            self._grant_what_only_the_emulator_asks_for()
        self.api_url = self.open_gateway(self.api_host)

    def stop(self) -> None:
        """End every process of this stack and throw its state away; its logs stay."""
        while self._processes:
            _end(self._processes.pop())
        if self.directory != LOCAL:
            shutil.rmtree(self.directory / "tmp", ignore_errors=True)
        self._kept.close()

    @property
    def api_host(self) -> str:
        """What the emulator knows the API as."""
        return f"{self.outputs['ApiId']}.execute-api.localhost"

    @property
    def permissions_file(self) -> Path:
        """Lines of `role's ARN, action, resource's ARN` in tabs, each once."""
        return self.directory / "permissions.tsv"

    @property
    def process_ids(self) -> list[int]:
        """The emulator's and the gateways' process ids, each the leader of a group of its own."""
        return [process.pid for process in self._processes]

    def client(self, service: str, **settings: Any) -> Any:
        """A boto3 client of the emulator."""
        # boto3 takes a quarter of a second to import, which `--help` need not wait for.
        import boto3

        if self._session is None:
            self._session = boto3.Session(
                aws_access_key_id=_CREDENTIALS["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=_CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
                region_name=REGION,
            )
        return self._session.client(service, endpoint_url=self.aws_url, **settings)  # type: ignore[call-overload]

    def open_gateway(
        self, host: str, *, calls: int = 8, waiting: int = 256, rate: float | None = None
    ) -> str:
        """An address on 127.0.0.1 for what the emulator knows as `host`.

        It has room for so many calls at once, for so many that wait, and for so many a second;
        others are told 429.
        """
        port = self.aws_url.rpartition(":")[2]
        command = ["infra.local.emulator_gateway", "--upstream-port", port, "--host", host]
        command += ["--calls", str(calls), "--waiting", str(waiting)]
        command += [] if rate is None else ["--rate", str(rate)]
        gateway = self._spawn(command, "gateway.log", dict(os.environ), stdout=subprocess.PIPE)
        assert gateway.stdout is not None
        line = gateway.stdout.readline().strip()
        if not line:
            raise StackFailedError(_last_lines(self.directory / "gateway.log"))
        return f"http://127.0.0.1:{int(line)}"

    def environment(self) -> dict[str, str]:
        """The environment in which AWS tools and SDKs talk to this stack."""
        return {
            **_plain_environment(),
            "AWS_ENDPOINT_URL": self.aws_url,
            **_CREDENTIALS,
            "AWS_DEFAULT_REGION": REGION,
        }

    def _spawn(
        self,
        module: list[str],
        log: str,
        environment: dict[str, str],
        stdout: int | IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        with (self.directory / log).open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, "-m", *module],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=stdout or output,
                stderr=output,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def _start_emulator(self) -> None:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while True:
            port = _free_port()
            emulator = self._spawn(
                ["infra.local.emulator_process"], "emulator.log", self._emulator_environment(port)
            )
            while emulator.poll() is None:
                if _answers(port):
                    self.aws_url = f"http://127.0.0.1:{port}"
                    return
                if time.monotonic() > deadline_s:
                    raise StackFailedError(_last_lines(self.directory / "emulator.log"))
                time.sleep(0.05)
            # Somebody else may have taken the port between its choice and its use.
            self._processes.remove(emulator)
            _end(emulator)
            log = _last_lines(self.directory / "emulator.log")
            if "already in use" not in log or time.monotonic() > deadline_s:
                raise StackFailedError(log)

    def _emulator_environment(self, port: int) -> dict[str, str]:
        tmp = self.directory / "tmp"
        return {
            **_plain_environment(),
            "GATEWAY_PORT": str(port),
            "BIND_HOST": "127.0.0.1",
            "LAMBDA_EXECUTOR": "local",
            "LAMBDA_ACCOUNT_CONCURRENCY": "0",
            "AUTH": str(self._enforce_iam).lower(),
            # Listeners on ports of their own that nothing here needs.
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "TMPDIR": str(tmp),
            "STATE_DIR": str(tmp / "state"),
            "S3_DATA_DIR": str(tmp / "s3"),
            "DOCKER_HOST": f"unix://{tmp}/no-docker.sock",
            "LOG_LEVEL": "INFO",
            **_CREDENTIALS,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
            "TZ": "UTC",
            "FUNCTION_PYTHON": str(self._write_function_python()),
            "PERMISSIONS_FILE": str(self.permissions_file),
        }

    def _write_function_python(self) -> Path:
        """An interpreter without any installed package: functions see their layers alone."""
        base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        wrapper = self.directory / "tmp" / "python"
        wrapper.write_text(f'#!/bin/sh\nexec "{base}" -S "$@"\n')
        wrapper.chmod(0o755)
        return wrapper

    def _store_secret(self) -> None:
        self.client("s3").create_bucket(Bucket=_BUCKET)
        self.client("secretsmanager").create_secret(
            Name="meterline/stripe", SecretString=json.dumps({"api_key": self._stripe_key})
        )

    def _prepare_notifications(self) -> None:
        """Mail goes to the emulator."""
        self.client("ses").verify_domain_identity(Domain="meterline.example")

    def store_webhook_secrets(self, secrets: Mapping[str, str]) -> None:
        """Put the webhooks' signing secrets, as the setup command writes them, in their place."""
        manager, name = self.client("secretsmanager"), "meterline/stripe-webhooks"
        text = json.dumps(dict(secrets))
        try:
            manager.create_secret(Name=name, SecretString=text)
        except manager.exceptions.ResourceExistsException:
            manager.put_secret_value(SecretId=name, SecretString=text)

    def open_webhook_gateway(self) -> str:
        """An address on 127.0.0.1 for Stripe's webhooks: the function URL of this stack."""
        host = self.outputs["StripeWebhookUrl"].partition("://")[2].strip("/").partition(":")[0]
        return self.open_gateway(host)

    def _build(self) -> Path:
        """`sam build` for this interpreter, once for each state of what it is made of."""
        digest = _digest_of_inputs()
        builds = LOCAL / "sam"
        built = builds / digest / "template.yaml"
        builds.mkdir(exist_ok=True)
        with _locked(builds / "lock"):
            if built.exists():
                built.parent.touch()
                return built
            environment = {
                **_plain_environment(),
                "LAYER_PYTHON": sys.executable,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            }
            cache = builds / f"cache-{sys.implementation.cache_tag}"
            # Built where it stays: the built template names the functions' folders relatively.
            self._run_sam(
                "build",
                {"--build-dir": built.parent, "--cache-dir": cache},
                environment,
            )
            _remove_old_builds(builds)
        return built

    def _deploy(self, template: Path) -> None:
        settings = tomllib.loads((REPOSITORY / "samconfig.toml").read_text())["local"]
        self._stack_name = settings["global"]["parameters"]["stack_name"]
        overrides = [
            *settings["deploy"]["parameters"]["parameter_overrides"],
            f"LogLevel={self._log_level}",
        ]
        if self._stripe_url:
            overrides.append(f"StripeApiBase={self._stripe_url}")
        self._run_sam(
            "deploy",
            {"--template-file": template, "--config-file": REPOSITORY / "samconfig.toml"},
            {**self.environment(), "SAM_CLI_POLL_DELAY": "0.2"},
            "--parameter-overrides",
            *overrides,
        )
        cloudformation = self.client("cloudformation")
        [stack] = cloudformation.describe_stacks(StackName=self._stack_name)["Stacks"]
        self.outputs = {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}
        self.resources = self._list_resources()

    def _grant_what_only_the_emulator_asks_for(self) -> None:
        """Let roles make batch calls, which the emulator authorizes under the call's own name."""
        iam = self.client("iam")
        for role, action in _BATCH_ACTIONS.items():
            statement = {"Effect": "Allow", "Action": action, "Resource": "*"}
            iam.put_role_policy(
                RoleName=self.resources[role],
                PolicyName=EMULATOR_POLICY,
                PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [statement]}),
            )

    def read_logs(self, function: str) -> list[str]:
        """What a function (`ReportUsage`, …) has logged so far, line by line."""
        logs = self.client("logs")
        group = self.resources[f"{function}LogGroup"]
        pages = logs.get_paginator("filter_log_events").paginate(logGroupName=group)
        return [event["message"].rstrip() for page in pages for event in page["events"]]

    def _list_resources(self) -> dict[str, str]:
        pages = self.client("cloudformation").get_paginator("list_stack_resources")
        found: dict[str, str] = {}
        stacks = [self._stack_name]
        while stacks:
            for page in pages.paginate(StackName=stacks.pop()):
                for each in page["StackResourceSummaries"]:
                    found[each["LogicalResourceId"]] = each["PhysicalResourceId"]
                    if each["ResourceType"] == "AWS::CloudFormation::Stack":
                        stacks.append(each["PhysicalResourceId"])
        return found

    def _run_sam(
        self,
        command: str,
        options: Mapping[str, Path],
        environment: dict[str, str],
        *further: str,
    ) -> None:
        sam = Path(sys.executable).parent / "sam"
        arguments = [str(each) for option in options.items() for each in option]
        log = self.directory / f"{command}.log"
        with log.open("wb") as output:
            ended = subprocess.run(  # noqa: S603 - our own arguments
                [str(sam), command, "--config-env", "local", *arguments, *further],
                cwd=REPOSITORY,
                env={**environment, "SAM_CLI_TELEMETRY": "0"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if ended.returncode:
            raise StackFailedError(_last_lines(log))


def _plain_environment() -> dict[str, str]:
    """This process's environment without what would reach an AWS account or change Python."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "PYTHON", "STRIPE_", "VIRTUAL_ENV"))
    }


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/_ministack/health")
        return connection.getresponse().status == 200
    except (ConnectionError, TimeoutError):
        return False
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and its workers to end, and make sure that they did."""
    if process.stdin is not None:
        process.stdin.close()
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    # The functions' processes are of the emulator's group.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _digest_of_inputs() -> str:
    digest = hashlib.sha256(sys.implementation.cache_tag.encode())
    digest.update(str(Path(sys.executable).resolve()).encode())
    for pattern in _BUILD_INPUTS:
        for path in sorted(REPOSITORY.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(REPOSITORY)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_old_builds(builds: Path) -> None:
    finished = [path.parent for path in builds.glob("*/template.yaml")]
    finished.sort(key=lambda each: each.stat().st_mtime, reverse=True)
    for old in finished[_KEPT_BUILDS:]:
        shutil.rmtree(old)


def _sweep_directories() -> None:
    """Remove what is left of stacks whose owners are gone: nobody holds their locks any more."""
    for owner in LOCAL.glob("*/owner.lock"):
        with owner.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(owner.parent, ignore_errors=True)

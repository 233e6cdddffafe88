"""The AWS emulator as a process that ends when whoever started it does.

Run as `python -m infra.local.emulator_process`, with the emulator's settings in the environment and
a pipe on standard input: when the pipe closes, by whatever end its owner came to, so does this.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any

from infra.local.owned_process import end_with_owner


def stream_partiql_inserts() -> None:
    """Let a PartiQL INSERT appear in the table's stream, as it does on AWS.

    ministack 1.5.33 writes the item and no stream record, so a ledger that is filled by
    BatchExecuteStatement would have no totals.
    """
    from ministack.services import dynamodb

    insert = dynamodb._partiql_insert

    def insert_and_stream(table: dict[str, Any], parsed: dict[str, Any]) -> Any:
        answer = insert(table, parsed)
        if answer[0] == 200:
            item = parsed["item"]
            item = item["M"] if set(item) == {"M"} else item
            dynamodb._emit_stream_event(parsed["table"], "INSERT", None, item)
        return answer

    dynamodb._partiql_insert = insert_and_stream


def share_layers() -> None:
    """Unpack a layer once, for all processes, as AWS mounts one copy for all of them.

    ministack 1.5.33 unpacks every layer for every process of every function: seconds each.
    What a process gets instead is a layer that leads to the shared copy.
    """
    from ministack.services import lambda_svc

    resolve = lambda_svc._resolve_layer_zip
    shared = Path(tempfile.mkdtemp(prefix="layers-"))
    lock = threading.Lock()

    def resolve_shared(attachment: Any) -> bytes | None:
        archive: bytes | None = resolve(attachment)
        if archive is None:
            return None
        directory = shared / hashlib.sha256(archive).hexdigest()
        with lock:
            if not directory.exists():
                with zipfile.ZipFile(io.BytesIO(archive)) as packed:
                    packed.extractall(directory)
        leading = io.BytesIO()
        with zipfile.ZipFile(leading, "w") as packed:
            packed.writestr(
                "python/lib/python3/site-packages/layer.pth", f"{directory / 'python'}\n"
            )
        return leading.getvalue()

    lambda_svc._resolve_layer_zip = resolve_shared


def find_leading_keys(body: bytes) -> list[str]:
    """The partition keys `pk` of the items that a call to DynamoDB names."""
    found: list[str] = []
    waiting: list[Any] = [json.loads(body)] if b'"pk"' in body else []
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, dict):
            match each.get("pk"):
                case {"S": str(key)}:
                    found.append(key)
                case _:
                    waiting += each.values()
    return found


def tell_leading_keys() -> None:
    """Let conditions on `dynamodb:LeadingKeys` decide, as they do on AWS.

    ministack 1.5.33 tells a policy nothing of a call's keys, and so lets any of them through.
    """
    from ministack.core import iam_actions

    tell = iam_actions.dynamodb_service_context

    def tell_with_keys(body: bytes) -> dict[str, Any]:
        keys = find_leading_keys(body)
        return {**tell(body), **({"dynamodb:LeadingKeys": keys} if keys else {})}

    iam_actions.dynamodb_service_context = tell_with_keys


def note_permissions(file: Path) -> None:
    """Write down, once each, what roles were allowed: role, action, resource, with tabs between."""
    from ministack.core import iam_evaluator

    evaluate = iam_evaluator.evaluate
    noted: set[tuple[str, str, str]] = set()
    lock = threading.Lock()

    def evaluate_and_note(context: Any, *policies: Any) -> Any:
        result = evaluate(context, *policies)
        use = (context.principal_arn, context.action, context.resource_arn)
        if result.decision == "Allow" and use not in noted:
            with lock, file.open("a") as notes:
                noted.add(use)
                notes.write("\t".join(use) + "\n")
        return result

    iam_evaluator.evaluate = evaluate_and_note


def run_emulator() -> None:
    """Run the emulator in this process; functions run on `FUNCTION_PYTHON`.

    Where `PERMISSIONS_FILE` is set, the permissions that roles use are written down there.
    """
    from ministack import app

    stream_partiql_inserts()
    share_layers()
    tell_leading_keys()
    if file := os.environ.get("PERMISSIONS_FILE"):
        note_permissions(Path(file))
    end_with_owner()
    # The emulator runs functions on its own interpreter, where every package of the development
    # environment could be imported. Functions are to see their layers alone.
    sys.executable = os.environ["FUNCTION_PYTHON"]
    sys.argv = ["ministack"]
    app.main()


if __name__ == "__main__":
    run_emulator()

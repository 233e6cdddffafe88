"""The AWS emulator as a process that ends when whoever started it does.

Run as `python -m infra.local.emulator_process`, with the emulator's settings in the environment and
a pipe on standard input: when the pipe closes, by whatever end its owner came to, so does this.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

_GRACE_S = 5.0


def end_with_owner(grace_s: float = _GRACE_S) -> None:
    """End this process group when standard input closes: asked first, then by force."""

    def wait_for_owner() -> None:
        while sys.stdin.buffer.read(4096):
            continue
        # Without a group of its own, the group is the owner's.
        alone = os.getpgid(0) == os.getpid()
        if alone:
            threading.Timer(grace_s, os.killpg, (0, signal.SIGKILL)).start()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait_for_owner, name="owner", daemon=True).start()


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


def run_emulator() -> None:
    """Run the emulator in this process; functions run on `FUNCTION_PYTHON`."""
    from ministack import app

    stream_partiql_inserts()
    end_with_owner()
    # The emulator runs functions on its own interpreter, where every package of the development
    # environment could be imported. Functions are to see their layers alone.
    sys.executable = os.environ["FUNCTION_PYTHON"]
    sys.argv = ["ministack"]
    app.main()


if __name__ == "__main__":
    run_emulator()

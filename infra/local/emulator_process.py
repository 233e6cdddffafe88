"""The AWS emulator as a process that ends when whoever started it does.

Run as `python -m infra.local.emulator_process`, with the emulator's settings in the environment and
a pipe on standard input: when the pipe closes, by whatever end its owner came to, so does this.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

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


def run_emulator() -> None:
    """Run the emulator in this process; functions run on `FUNCTION_PYTHON`."""
    from ministack import app

    end_with_owner()
    # The emulator runs functions on its own interpreter, where every package of the development
    # environment could be imported. Functions are to see their layers alone.
    sys.executable = os.environ["FUNCTION_PYTHON"]
    sys.argv = ["ministack"]
    app.main()


if __name__ == "__main__":
    run_emulator()

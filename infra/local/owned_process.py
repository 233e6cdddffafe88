"""Processes that end when whoever started them does, by whatever end that one came to."""

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

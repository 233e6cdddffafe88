"""Ports of 127.0.0.1 for servers that tests start."""

from __future__ import annotations

import random
import socket
import subprocess
import time

_dice = random.SystemRandom()


def find_free_port() -> int:
    """A port that is free now, and that no connection is given as its own before it is used.

    Systems take those from 32768 on (Linux) or 49152 on (IANA), and tests make thousands of
    connections: one of them would have a port that was free a moment ago.
    """
    while True:
        port = _dice.randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_for_port(port: int, process: subprocess.Popen[bytes], timeout_s: float = 240.0) -> None:
    """Wait until the process listens there; AssertionError when it ended or took too long."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except (ConnectionRefusedError, TimeoutError):
            assert process.poll() is None, f"the server ended with {process.returncode}"
            assert time.monotonic() < deadline_s, f"nothing listens on port {port}"
            time.sleep(0.05)
        else:
            return

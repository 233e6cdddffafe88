"""Run the local Stripe until SIGTERM or Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

import click

from infra.local.owned_process import end_with_owner
from infra.local.stripe_server.serving import DEFAULT_KEY, bind, build_server


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _write_ready(path: Path, url: str, key: str) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps({"url": url, "key": key, "pid": os.getpid()}))
    draft.replace(path)


@click.command()
@click.option("--port", default=0, show_default=True, help="0 lets the system choose a free one.")
@click.option("--key", default=DEFAULT_KEY, show_default=True, help="The one API key it takes.")
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Written once it answers: JSON with url, key and pid.",
)
@click.option(
    "--check-requests/--no-check-requests",
    default=True,
    show_default=True,
    help="Refuse what stripe.params does not describe.",
)
@click.option("--owned", is_flag=True, help="End when standard input closes.")
@click.option("--seed", default=0, show_default=True, help="Of the ids that it gives.")
def main(
    port: int, key: str, ready_file: Path | None, check_requests: bool, owned: bool, seed: int
) -> None:
    """A local Stripe on 127.0.0.1."""
    # uvicorn stops gracefully and then raises the signal again for whoever handled it before.
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    if owned:
        end_with_owner()
    listener = bind(port)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = build_server(key=key, check_requests=check_requests, seed=seed)

    def announce() -> None:
        server.ready.wait()
        if ready_file is not None:
            _write_ready(ready_file, url, key)
        click.echo(f"local Stripe on {url}")

    threading.Thread(target=announce, daemon=True).start()
    server.run([listener])


if __name__ == "__main__":
    main()

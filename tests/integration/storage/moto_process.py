"""moto's server, one request at a time: `python -m tests.integration.storage.moto_process PORT`.

moto checks, then acts, and holds no lock in between: of four concurrent transactions with the same
condition its own threaded server lets three through (5.2.5). DynamoDB's writes to an item come one
after the other (developer guide, conditional writes), and so they do here.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from threading import Lock
from typing import TYPE_CHECKING

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_moto = DomainDispatcherApplication(create_backend_app)
_turn = Lock()


def serve_in_turn(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """moto's answer, made before the next request is looked at."""
    with _turn:
        return list(_moto(environ, start_response))


if __name__ == "__main__":
    # A line for each of thousands of requests.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    # Threads read and answer, so that a kept connection keeps nobody else waiting.
    make_server("127.0.0.1", int(sys.argv[1]), serve_in_turn, threaded=True).serve_forever()

"""TLS as this machine trusts it, for all connections of a process.

Loading the machine's certificates takes OpenSSL 50 ms and leaves the interpreter free: begun
first, it is done by the time that all else of a start is.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from ssl import SSLContext, create_default_context


@cache
def begin_trusted_tls() -> Future[SSLContext]:
    """Begin to load it, once in a process."""
    thread = ThreadPoolExecutor(1, "certificates")
    loading = thread.submit(create_default_context)
    thread.shutdown(wait=False)
    return loading


def trusted_tls() -> SSLContext:
    """The context, as soon as it is loaded."""
    return begin_trusted_tls().result()

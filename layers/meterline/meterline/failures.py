"""What a log may say of an error that nobody foresaw: its kind and its place, not its words.

The words of an exception may quote what a customer sent, and logs hold no personal data.
"""

from __future__ import annotations

import traceback


def list_places(error: BaseException) -> list[str]:
    """Where it came from, `folder/file:line` each, the innermost last."""
    return [
        f"{'/'.join(frame.f_code.co_filename.rsplit('/', 2)[-2:])}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]

"""The exception for input that cannot be used, and the hint for a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AdaRecError(Exception):
    """Raised for input that cannot be used.

    The message is one line. It names what is wrong, where it is, and what would be right. The command line prints it on
    stderr and exits with code 2.
    """


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """``; the nearest is 'x'`` for the known name that is most like a misspelt one; empty if none is like it."""
    by_lower_case = {each.lower(): each for each in known}
    matches = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    return f"; the nearest is {by_lower_case[matches[0]]!r}" if matches else ""

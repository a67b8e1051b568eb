"""The exceptions of dynbench, and how an error names what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DynbenchError(Exception):
    """Base of all that dynbench raises on purpose."""


class UserError(DynbenchError):
    """Something the user can put right; the message is one sentence that names what was given and what is accepted.

    The command line prints it after `Error:` and ends with exit code 2.
    """


def suggestion(given: str, known: Iterable[str], *, most: int = 3) -> str:
    """The end of a sentence about a name that there is not: 'did you mean a or b?', or what is accepted."""
    names = list(known)
    near = difflib.get_close_matches(given, names, n=most, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else f"accepted: {', '.join(names) or 'none'}"

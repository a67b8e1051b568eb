"""A user's own strategy, engine, target, load or quantity: loaded by `path/to/file.py:NAME`, as models are."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dynbench.errors import UserError, suggestion
from dynbench.paths import load_object


def load_part(reference: str, folder: Path, what: str, members: Iterable[str]) -> Any:
    """Loads a part; a class is instantiated without arguments.

    Args:
        reference: `package.module:NAME` or `path/to/file.py:NAME`.
        folder: where a relative path starts.
        what: it is to be: 'a strategy', 'an engine'.
        members: methods and attributes that it must have.

    Raises:
        UserError: it cannot be loaded or made, or lacks a member; the sentence names that.
    """
    part = load_object(reference, folder)
    if inspect.isclass(part):
        try:
            part = part()
        except Exception as e:
            raise UserError(f"{reference}() raised {type(e).__name__}: {e}") from e
    for member in members:
        if not hasattr(part, member):
            raise UserError(f"{reference} is not {what}: it has no {member!r}; see docs/ for the protocol")
    if not isinstance(name := getattr(part, "name", None), str) or not name:
        raise UserError(f"{reference} is not {what}: its 'name' is {name!r}, it must be a non-empty string")
    return part


def choose(reference: str, known: Mapping[str, Any], folder: Path, what: str, members: Iterable[str]) -> Any:
    """A part that comes with dynbench, by its name, or one of the user's own, by a reference.

    Raises:
        UserError: there is no such part, or a part of the user's own does not fit its protocol.
    """
    if reference in known:
        return known[reference]
    if ":" not in reference:
        noun = what.split()[-1]
        raise UserError(f"unknown {noun} {reference!r}; {suggestion(reference, known)}, or your own as FILE.py:NAME")
    part = load_part(reference, folder, what, members)
    if part.name in known:
        raise UserError(f"{reference} is named {part.name!r}, which is the name of {what} that comes with dynbench")
    return part

"""Where things lie: files that come with dynbench, its cache, and a user's own functions."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from dynbench.errors import UserError

_PACKAGE = Path(__file__).resolve().parent


def project_dir(kind: Literal["workloads", "hardware"]) -> Path:
    """The folder of the workload files or of the hardware profiles.

    A wheel carries them inside the package (`dynbench/_workloads`); in a checkout or an editable install they lie
    beside it, so that an edit is seen at once.
    """
    installed = _PACKAGE / f"_{kind}"
    return installed if installed.is_dir() else _PACKAGE.parent / kind


def cache_dir() -> Path:
    """Where downloads are kept: `DYNBENCH_CACHE`, else `~/.cache/dynbench`. It may not exist yet."""
    return Path(os.environ.get("DYNBENCH_CACHE") or "~/.cache/dynbench").expanduser()


def load_function(reference: str, relative_to: Path) -> Callable[..., Any]:
    """Imports a function by name.

    Args:
        reference: `package.module:function` or `path/to/file.py:function`.
        relative_to: the folder a relative path starts from. Modules beside the file, or in this folder, can be
            imported too, after everything that is installed.

    Raises:
        UserError: the reference is malformed, there is no such file, module or function, or importing it fails.
    """
    where, colon, name = reference.rpartition(":")
    if not (colon and where and name.isidentifier()):
        raise UserError(f"{reference!r} names no function: 'package.module:function' or 'path/to/file.py:function'")
    try:
        module = _load_file(relative_to / where) if where.endswith(".py") else _load_module(where, relative_to)
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"{reference}: importing it fails: {type(e).__name__}: {e}") from e
    function = getattr(module, name, None)
    if not callable(function):
        own = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = difflib.get_close_matches(name, own, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"{reference}: {where} has no function {name!r}{hint}")
    return function


def _load_module(name: str, folder: Path) -> ModuleType:
    _also_import_from(folder)
    return importlib.import_module(name)


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:  # one file is one module, so that its classes are the same wherever it is asked for
        return sys.modules[name]
    _also_import_from(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _also_import_from(folder: Path) -> None:
    folder = folder.resolve()
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

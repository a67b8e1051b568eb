"""Where things are: the files that come with dynbench, its cache, and a user's own Python objects."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from dynbench.errors import UserError, suggestion

REPOSITORY = "https://github.com/dynbench/dynbench"
_PACKAGE = Path(__file__).resolve().parent


def project_dir(kind: Literal["workloads", "hardware"]) -> Path:
    """The folder of the workload files or of the hardware profiles.

    A wheel carries them inside the package (`dynbench/_workloads`); in a checkout or an editable install they are
    beside it, so that an edit takes effect at once.
    """
    installed = _PACKAGE / f"_{kind}"
    return installed if installed.is_dir() else _PACKAGE.parent / kind


def workload_files() -> dict[str, Path]:
    """The workloads that come with dynbench, by name."""
    return {p.stem: p for p in sorted(project_dir("workloads").glob("*.toml"))}


def weights_path(folder: Path, name: str) -> Path:
    """The file of a model's weights.

    Args:
        folder: of the workload file.
        name: as the workload file gives it, relative to `folder`.

    Raises:
        UserError: there is no such file. Of a workload that comes with dynbench, the message says where the weights
            are: a wheel and a source distribution carry those of the default suite only.
    """
    path = folder / Path(name).expanduser()
    if path.is_file():
        return path
    if folder.resolve() == project_dir("workloads").resolve():
        raise UserError(
            f"the weights {path.name} are not installed: a package has those of the default suite only; "
            f"all are in the repository: git clone {REPOSITORY} && pip install -e dynbench"
        )
    raise UserError(f"there is no weights file {path}")


def cache_dir() -> Path:
    """The folder for downloads: `DYNBENCH_CACHE`, else `~/.cache/dynbench`. It may not exist yet."""
    return Path(os.environ.get("DYNBENCH_CACHE") or "~/.cache/dynbench").expanduser()


def own_hardware_dir() -> Path:
    """The folder of the profiles that `dynbench calibrate` writes: `DYNBENCH_HARDWARE`, else one in `~/.config`."""
    return Path(os.environ.get("DYNBENCH_HARDWARE") or "~/.config/dynbench/hardware").expanduser()


def load_object(reference: str, relative_to: Path) -> Any:
    """Imports what a reference names.

    Args:
        reference: `package.module:NAME` or `path/to/file.py:NAME`.
        relative_to: the folder that a relative path starts from. Modules in this folder, or beside the file, can be
            imported as well; installed ones take precedence.

    Raises:
        UserError: the reference is malformed, there is no such file, module or name, or importing it fails.
    """
    where, colon, name = reference.rpartition(":")
    if not (colon and where and name.isidentifier()):
        raise UserError(f"{reference!r} names nothing: it must be 'package.module:NAME' or 'path/to/file.py:NAME'")
    try:
        module = _load_file(relative_to / where) if where.endswith(".py") else _load_module(where, relative_to)
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"{reference}: importing it fails: {type(e).__name__}: {e}") from e
    if not hasattr(module, name):
        own = [n for n, v in vars(module).items() if not n.startswith("_") and not isinstance(v, ModuleType)]
        raise UserError(f"{reference}: {where} has no {name!r}; {suggestion(name, own)}")
    return getattr(module, name)


def load_function(reference: str, relative_to: Path) -> Callable[..., Any]:
    """Imports a function by name; see `load_object`.

    Raises:
        UserError: as `load_object`, or it cannot be called.
    """
    function = load_object(reference, relative_to)
    if not callable(function):
        raise UserError(f"{reference} is {type(function).__name__}, not a function")
    return function


def _load_module(name: str, folder: Path) -> ModuleType:
    _also_import_from(folder)
    return importlib.import_module(name)


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:  # a file is imported once, so that its classes are the same for everyone
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

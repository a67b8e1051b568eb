"""What was probably meant by something that names no workload."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from pathlib import Path

from dynbench.errors import suggestion

MOST = 3  # names that are suggested
ALL = "`dynbench list workloads` shows all"


def instead_of(given: str, known: Mapping[str, Path]) -> str:
    """A sentence for what is neither a workload that comes with dynbench nor a workload file.

    Args:
        given: a name or a path that is no file, or Python code.
        known: the workloads that come with dynbench: name and file.
    """
    file, _, function = given.partition(":")
    if file.endswith(".py"):
        return _of_python(Path(file), function)
    path, none = Path(given), f"no workload {given!r}, and no such file"
    if path.suffix == ".toml":
        if path.stem in known:
            return f"{none}; the workload that comes with dynbench is {path.stem}, without .toml"
        near = suggestion(given, sorted(str(other) for other in path.parent.glob("*.toml")))
        return none + (f"; {near}" if near.startswith("did you mean") else "")
    from dynbench.store.run import holds_run  # imported late: only who mistyped waits for it

    if holds_run(path):
        return (
            f"{given} is a run directory, no workload; `--resume {given}` goes on with it, `dynbench report` shows it"
        )
    return f"{none}; {_near(given, known)}"


def _of_python(file: Path, function: str) -> str:
    """What to write for a model in a file of the user's own; the file is read, not run."""
    if not os.path.isfile(file):
        return f"there is no file {file}; a workload is a TOML file that names the model as {file.name}:FUNCTION"
    there = _functions(file)
    model = function or (there[0] if len(there) == 1 else "FUNCTION")
    choice = "" if function or len(there) < 2 else f" (there are {', '.join(there)})"
    lines = [
        "schema = 1",
        f'name = "{file.stem}"',
        f'title = "{file.stem}"',
        f'model = "{file.name}:{model}"',
        f'inputs = {{ name = "{file.name}:INPUTS" }}',
    ]
    return (
        f"{file} is Python code; a workload is a TOML file that names the functions which make the model and its "
        f"inputs{choice}. Write {file.with_suffix('.toml')} of {len(lines)} lines: {' | '.join(lines)}; see "
        "docs/add-a-model.md"
    )


def _functions(file: Path) -> list[str]:
    """Functions of a module, those that need no argument; none where it is no Python."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = [node for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return [f.name for f in found if len(f.args.posonlyargs) + len(f.args.args) == len(f.args.defaults)]


def _near(given: str, known: Mapping[str, Path]) -> str:
    """The nearest names: those that hold it, then those whose networks do, then those that are spelled alike."""
    word = given.lower().replace("-", "_")
    if len(word) > 2 and word.isidentifier():
        holding = [name for name in known if word in name]
        made = [name for name, file in known.items() if name not in holding and f".{word}:" in _text(file)]
        if near := [*holding, *made]:
            more = f" ({len(near) - MOST} more; {ALL})" if len(near) > MOST else ""
            return f"did you mean {' or '.join(near[:MOST])}?{more}"
    spelled = suggestion(given, known, most=MOST)
    return spelled if spelled.startswith("did you mean") else ALL


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

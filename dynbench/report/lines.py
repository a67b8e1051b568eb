"""Lines of code of a network in our form and in its authors', counted by the same rule.

Counted are the lines that define one network: the classes and functions that are named in `lines.toml`, with the gates,
routers, policies and exits among them. A line counts if it holds code: blank lines, comments and docstrings do not.
Training loops, losses, data, counting of FLOPs, and other variants in the same file are left out on both sides.
"""

from __future__ import annotations

import ast
import io
import tokenize
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
DATA = Path(__file__).with_name("lines.toml")
_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """A network that exists in both forms.

    Attributes:
        method: and which variant of it.
        workloads: what the names of ours begin with.
        backbone: whether the static part is counted, in words.
        form: how the authors' code carries out what is decided.
        repository: 'owner/name', on GitHub.
        commit: at which it was counted, once.
        theirs: file -> names of the classes and functions that were counted there.
        their_lines: how many.
        ours: the same of this package.
    """

    method: str
    workloads: tuple[str, ...]
    backbone: str
    form: str
    repository: str
    commit: str
    theirs: Mapping[str, Sequence[str]]
    their_lines: int
    ours: Mapping[str, Sequence[str]]

    @property
    def our_lines(self) -> int:
        """Counted in the package that writes the report."""
        return sum(code_lines((PACKAGE / file).read_text(encoding="utf-8"), names) for file, names in self.ours.items())


def code_lines(source: str, names: Sequence[str]) -> int:
    """How many lines of the named top-level classes and functions hold code.

    Args:
        source: a Python file.
        names: of classes and functions, defined at its top level; decorators belong to them.

    Raises:
        ValueError: one of them is not there.
    """
    tree = ast.parse(source)
    defined = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)}
    if lacking := [name for name in names if name not in defined]:
        raise ValueError(f"no class or function is named {lacking[0]!r} at the top level")
    with_code = _lines_with_code(source)
    counted: set[int] = set()
    for name in names:
        node = defined[name]
        begin = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        of_text = {line for inner in ast.walk(node) for line in _docstring(inner)}
        counted |= (with_code & set(range(begin, (node.end_lineno or begin) + 1))) - of_text
    return len(counted)


def _lines_with_code(source: str) -> set[int]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {line for t in tokens if t.type not in _NO_CODE for line in range(t.start[0], t.end[0] + 1)}


def _docstring(node: ast.AST) -> Iterator[int]:
    """The lines of a docstring: a string that stands alone, first in a class or function."""
    body = getattr(node, "body", None)
    if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not body:
        return
    first = body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        yield from range(first.lineno, (first.end_lineno or first.lineno) + 1)


@cache
def compared() -> tuple[Compared, ...]:
    """Every network of `lines.toml`."""
    with DATA.open("rb") as file:
        table = tomllib.load(file)
    return tuple(
        Compared(
            method=entry["method"],
            workloads=tuple(entry["workloads"]),
            backbone=entry["backbone"],
            form=entry["form"],
            repository=entry["theirs"]["repository"],
            commit=entry["theirs"]["commit"],
            theirs=entry["theirs"]["names"],
            their_lines=entry["theirs"]["lines"],
            ours=entry["ours"]["names"],
        )
        for entry in table["networks"]
    )

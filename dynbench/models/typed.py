"""A list of submodules whose class the type checker knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def module_list(modules: Iterable[M]) -> list[M]:
    """An `nn.ModuleList`; for the type checker a list, so that its items keep their class."""
    return nn.ModuleList(modules)  # type: ignore[return-value]

"""torch.compile, region by region: decision points stay in Python, what lies between them is compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dynbench.dynamic import DecisionPoint, regions

# Blocks of one class share a code object, and dynamo's limits count per code object: a deep network has dozens of
# blocks, each with a few shapes. Going over must be an error, not a silent return to eager.
_LIMIT = 1024


class Compile:
    """Compiles with torch.compile's defaults: a second size makes sizes symbolic, 1 is compiled apart.

    Args:
        backend: of torch.compile.
    """

    name = "compile"

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self.backend = backend

    def refuses(self, device: str) -> str | None:
        """Also refuses where compiling a small function fails: no C++ compiler, no Triton, no headers."""
        return _try(device)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Compiles the model's regions when they are first called, in place."""
        torch._dynamo.config.recompile_limit = _LIMIT
        torch._dynamo.config.accumulated_recompile_limit = _LIMIT
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        for region in compiled_regions(model):
            region.compile(backend=self.backend)
        return model


def compiled_regions(model: nn.Module) -> list[nn.Module]:
    """The largest modules without a decision point in them: the whole of a static net; gates, bodies, experts, stages.

    Between the points, single layers (a lone convolution) are left out: there is nothing in them to fuse.
    """
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        if any(isinstance(m, DecisionPoint) for m in module.modules()) or isinstance(module, nn.ModuleList):
            for child in module.children():
                visit(child)
        elif any(True for _ in module.children()) and not any(module is f for f in found):
            found.append(module)

    visit(model)
    inside = {id(m) for f in found for m in f.modules()}
    return found + [r for r in regions(model) if id(r) not in inside]


@functools.cache
def _try(device: str) -> str | None:
    try:
        probe = torch.compile(lambda x: (x * 2 + 1).relu())
        with torch.no_grad():
            probe(torch.ones(8, device=device))
    except Exception as e:  # noqa: BLE001  (whatever the compiler lacks)
        lines = [line for line in str(e).splitlines() if line.strip()] or [type(e).__name__]
        return f"torch.compile does not work on {device} here: {lines[0]}"
    return None

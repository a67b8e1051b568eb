"""torch.compile, region by region: decision points stay in Python, what lies between them is compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from dynbench.dynamic.regions import Region

# Blocks of one class share a code object, and dynamo's limits count per code object: a deep network has dozens of
# blocks, each with a few shapes. Going over must be an error, not a silent return to eager.
_LIMIT = 1024


class Compile:
    """torch.compile with its defaults: a second size makes sizes symbolic, 1 is compiled apart.

    Args:
        backend: of torch.compile.
    """

    name = "compile"
    as_written = False

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self.backend = backend

    def facts(self) -> dict[str, object]:
        """The version of torch and the backend."""
        return {"torch": torch.__version__, "backend": str(self.backend)}

    def refuses(self, device: str) -> str | None:
        """Also where compiling a small function fails: no C++ compiler, no Triton, no headers."""
        return _try(device)

    def prepare(self, region: Region) -> Callable[..., Any]:
        """Compiles when it is first called. A single layer between the points stays: there is nothing to fuse in it."""
        if region.leaf and region.fixed:
            return region.module
        torch._dynamo.config.recompile_limit = _LIMIT
        torch._dynamo.config.accumulated_recompile_limit = _LIMIT
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        return torch.compile(region.module.forward, backend=self.backend)


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

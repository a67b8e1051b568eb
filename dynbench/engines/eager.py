"""The engine that changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dynbench.dynamic.regions import Region


class Eager:
    """PyTorch's operators one after the other, as written."""

    name = "eager"
    as_written = True

    def facts(self) -> dict[str, object]:
        """The version of torch."""
        return {"torch": torch.__version__}

    def refuses(self, device: str) -> str | None:
        """Works everywhere."""
        return None

    def prepare(self, region: Region) -> Callable[..., Any]:
        """Nothing to do."""
        return region.module

"""dynbench: does the computation that a dynamic neural network saves turn into time and energy saved?

Names are imported when they are first used, so that `import dynbench` and `dynbench --help` take no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dynbench.version import __version__

if TYPE_CHECKING:
    from dynbench.api import Results as Results
    from dynbench.api import open_run as open_run
    from dynbench.api import run as run
    from dynbench.api import verify as verify
    from dynbench.data import Inputs as Inputs
    from dynbench.data import pad as pad
    from dynbench.dynamic import Ahead as Ahead
    from dynbench.dynamic import Choice as Choice
    from dynbench.dynamic import DecisionPoint as DecisionPoint
    from dynbench.dynamic import Each as Each
    from dynbench.dynamic import Execution as Execution
    from dynbench.dynamic import Exits as Exits
    from dynbench.dynamic import Loop as Loop
    from dynbench.dynamic import Patches as Patches
    from dynbench.dynamic import Pick as Pick
    from dynbench.dynamic import Program as Program
    from dynbench.dynamic import Route as Route
    from dynbench.dynamic import Skip as Skip
    from dynbench.dynamic import Trace as Trace
    from dynbench.dynamic import Weights as Weights
    from dynbench.dynamic import Width as Width
    from dynbench.errors import UserError as UserError
    from dynbench.experiment.spec import Options as Options
    from dynbench.meters.accuracy import Score as Score
    from dynbench.store.quantity import Quantity as Quantity
    from dynbench.strategies import Strategy as Strategy
    from dynbench.unavailable import Unavailable as Unavailable

_POINTS = (
    "Ahead",
    "Choice",
    "DecisionPoint",
    "Each",
    "Execution",
    "Exits",
    "Loop",
    "Patches",
    "Pick",
    "Program",
    "Route",
    "Skip",
    "Trace",
    "Weights",
    "Width",
)
_WHERE = {
    "Results": "dynbench.api",
    "open_run": "dynbench.api",
    "run": "dynbench.api",
    "verify": "dynbench.api",
    "UserError": "dynbench.errors",
    "Inputs": "dynbench.data",
    "Options": "dynbench.experiment.spec",
    "Quantity": "dynbench.store.quantity",
    "Score": "dynbench.meters.accuracy",
    "Strategy": "dynbench.strategies",
    "Unavailable": "dynbench.unavailable",
    "pad": "dynbench.data",
    **dict.fromkeys(_POINTS, "dynbench.dynamic"),
}

__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'dynbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})

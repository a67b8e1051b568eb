"""A check against a file instead of a base: through a static network that is measured now and was measured then."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dynbench.analysis.statistics import quotient
from dynbench.devices.cpu import cpu_model
from dynbench.errors import UserError
from dynbench.experiment.spec import Options
from dynbench.experiment.trees import CannotTell
from dynbench.store.files import write_text
from dynbench.store.gate import Gate
from dynbench.store.schema import Interval

VERSION = 2  # the sides keep their memory since


def read(file: Path) -> dict[str, Any]:
    """What `save` wrote.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"cannot read baseline {file}: {e.strerror}; `dynbench check --save {file}` writes one") from e
    except ValueError as e:
        raise UserError(f"baseline {file} is not JSON: {e}") from e
    if not isinstance(table, dict) or table.get("dynbench_check") != VERSION:
        raise UserError(f"{file} is no baseline that `dynbench check --save` wrote with this version")
    return table


def against(
    stored: dict[str, Any], cell: str, options: Options, stream_hash: str, change: Interval, tells: float
) -> tuple[Interval, float]:
    """Now / then of the time against the static network, and what both measurements can tell.

    Raises:
        CannotTell: it was measured on another machine or device, with other threads or inputs, or lacks the cell.
    """
    then = stored["cells"].get(cell)
    if then is None:
        raise CannotTell(f"the baseline has no {cell}; it has {', '.join(stored['cells'])}")
    unlike = {
        "machine": cpu_model(), "device": options.device, "threads": options.threads, "stream_hash": stream_hash,
    }  # fmt: skip
    for what, now in unlike.items():
        if stored[what] != now:
            raise CannotTell(
                f"the baseline was measured with a different value of {what.replace('_', ' ')}: {stored[what]}, "
                f"not {now}"
            )
    before = Interval.model_validate(then["ratio"])
    return quotient(change, before), math.hypot(tells, then["resolution"])


def save(file: Path, gate: Gate, stream_hash: str, cells: dict[str, dict[str, Any]]) -> None:
    """Writes a file for `read`; of each cell `ratio`, `resolution` and `facts`."""
    table = {
        "dynbench_check": VERSION, "workload": gate.workload, "head": gate.head, "machine": gate.machine,
        "device": gate.device, "threads": gate.threads, "started": gate.started,
        "stream_hash": stream_hash, "cells": cells,
    }  # fmt: skip
    write_text(file, json.dumps(table, indent=1) + "\n")

"""Numbers and names as text, for sentences, tables and the command line alike; here digits are chosen."""

from __future__ import annotations

import math

from dynbench.names import without_micro_batches
from dynbench.store.schema import Arm, Interval

ENGINE_NAMES = {
    "eager": "eager PyTorch",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "cuda_graph": "CUDA graphs",
}


def significant(value: float, digits: int = 3) -> str:
    """To so many significant digits, never in powers of ten between 0.0001 and 10^9."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.{digits - 1}e}"
    behind = max(digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}")))), 0)
    return f"{value:,.{behind}f}"


def percent(share: float, digits: int = 0) -> str:
    """'31 %' for 0.31."""
    return f"{100 * share:.{digits}f} %"


def times(value: float, digits: int = 2) -> str:
    """'1.83x'."""
    return f"{_fixed(value, digits)}x"


def interval(found: Interval) -> str:
    """'1.54 to 2.07', with a digit more where rounding would move an end onto 1."""
    digits = digits_of(found)
    return f"{_fixed(found.low, digits)} to {_fixed(found.high, digits)}"


def times_with_interval(found: Interval) -> str:
    """'1.83x (1.54 to 2.07)'."""
    return f"{times(found.value)} ({interval(found)})"


def digits_of(found: Interval) -> int:
    """Digits behind the point that keep both ends of an interval on their side of 1."""
    return 3 if any(round(end, 2) == 1 and end != 1 for end in (found.low, found.high)) else 2


def change_text(factor: float) -> str:
    """'+9.8 %' for a factor of 1.098."""
    return f"{100 * (factor - 1):+.1f} %"


def change_interval(found: Interval) -> str:
    """'+9.1 to +10.6', in percent."""
    return f"{100 * (found.low - 1):+.1f} to {100 * (found.high - 1):+.1f}"


def change_with_interval(found: Interval) -> str:
    """'+9.8 % (+9.1 to +10.6)' for a factor of 1.098."""
    return f"{change_text(found.value)} ({change_interval(found)})"


def bytes_(value: float) -> str:
    """'25.3 GB', powers of 1000."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{significant(value / size)} {unit}"
    return f"{value:g} B"


def seconds(value: float) -> str:
    """'2 min 13 s'."""
    whole = round(value)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def way_in_words(arm: Arm) -> str:
    """How a network is run, after its name: 'as one ONNX Runtime graph', 'in eager PyTorch (8 items at a time)'."""
    engine = ENGINE_NAMES.get(arm.engine, arm.engine)
    if arm.control == "graph":
        where = f"as one {engine} graph"
    elif arm.kind == "strategy" and arm.engine != "eager":
        where = f"with its parts in {engine}"
    else:
        where = f"in {engine}"
    form, size = without_micro_batches(arm.form)
    said = [] if form == "plain" else [part.replace("_", " ") for part in form.split("+")]
    said += [] if size is None else [f"{size} item{'' if size == 1 else 's'} at a time"]
    return f"{where} ({', '.join(said)})" if said else where


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if abs(value) >= 0.1 else f"{value:.2g}"

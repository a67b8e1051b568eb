"""The names of what comes with dynbench: a command line is checked and completed without importing torch."""

from __future__ import annotations

import re

STRATEGY_NAMES = ("dense", "masking", "compaction", "cascading", "batch_union", "specialised", "per_sample")
ENGINE_NAMES = ("eager", "compile", "onnxruntime", "openvino", "cuda_graph")
LOAD_NAMES = ("closed loop",)
TARGET_NAMES = ("local",)
SOURCE_NAMES = ("learned", "synthetic", "published")
DTYPES = ("float32", "float64", "bfloat16", "float16")
AUTO = "auto"  # instead of strategies: only networks in their fastest way

_MICRO_BATCHES = re.compile(r"micro_batches_([1-9]\d*)")


def without_micro_batches(form: str) -> tuple[str, int | None]:
    """A form's name without its last part 'micro_batches_N', and N; as it is, and None, where there is none.

    An example: 'folded+micro_batches_8' is ('folded', 8), and 'micro_batches_8' is ('plain', 8).
    """
    *others, last = form.split("+")
    found = _MICRO_BATCHES.fullmatch(last)
    return (form, None) if found is None else ("+".join(others) or "plain", int(found[1]))


def in_micro_batches(form: str, size: int) -> str:
    """The name of a form whose batches are computed `size` items at a time."""
    part = f"micro_batches_{size}"
    return part if form == "plain" else f"{form}+{part}"

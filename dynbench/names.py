"""The names of what comes with dynbench: a command line is checked and completed without importing torch."""

from __future__ import annotations

STRATEGY_NAMES = ("dense", "masking", "compaction", "cascading", "batch_union", "specialised", "per_sample")
ENGINE_NAMES = ("eager", "compile", "onnxruntime", "openvino", "cuda_graph")
LOAD_NAMES = ("closed loop",)
TARGET_NAMES = ("local",)
SOURCE_NAMES = ("learned", "synthetic", "published")
DTYPES = ("float32", "float64", "bfloat16", "float16")
AUTO = "auto"  # instead of strategies: only networks in their fastest way

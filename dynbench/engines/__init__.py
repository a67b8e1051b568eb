"""What executes regions, and the forms a network can be brought into."""

from __future__ import annotations

from dynbench.engines.base import PROTOCOL, CannotPrepare, Engine, prepared
from dynbench.engines.compile import Compile, RegionReport, compiled_regions
from dynbench.engines.cuda_graph import CudaGraph
from dynbench.engines.eager import Eager
from dynbench.engines.forms import FORMS, Form, MicroBatches, applicable, apply_form
from dynbench.engines.onnxruntime import OnnxRuntime
from dynbench.engines.openvino import OpenVino

ENGINES: dict[str, Engine] = {
    "eager": Eager(),
    "compile": Compile(),
    "onnxruntime": OnnxRuntime(),
    "openvino": OpenVino(),
    "cuda_graph": CudaGraph(),
}

__all__ = [
    "ENGINES",
    "FORMS",
    "PROTOCOL",
    "CannotPrepare",
    "Compile",
    "CudaGraph",
    "Eager",
    "Engine",
    "Form",
    "MicroBatches",
    "OnnxRuntime",
    "OpenVino",
    "RegionReport",
    "applicable",
    "apply_form",
    "compiled_regions",
    "prepared",
]

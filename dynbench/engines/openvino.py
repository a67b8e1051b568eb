"""OpenVINO on the CPU, region by region, from the ONNX graphs that engine onnxruntime uses as well."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Collection
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynbench.dynamic.regions import Region
from dynbench.engines import signal_stack
from dynbench.engines.exported import OPSET, Session, sessions

FLOAT32, BFLOAT16 = "f32", "bf16"


class OpenVino:
    """Every region is a model that OpenVINO compiled for the CPU, with a free batch dimension.

    It computes in the network's own type: float32, also where the processor has shorter formats, or bfloat16, where the
    processor has it; with torch's number of threads. `exported.sessions` says which regions and calls stay as written.
    """

    name = "openvino"
    title = "OpenVINO"
    as_written = False

    def facts(self) -> dict[str, object]:
        """Versions, settings and the opset; that it is not installed, where it is not."""
        if missing():
            return {"openvino": "not installed"}
        return {
            "openvino": version("openvino"),
            "onnx": version("onnx"),
            "torch": torch.__version__,
            "opset": OPSET,
            **{key.lower(): value for key, value in _settings(FLOAT32).items()},
            "computes_bfloat16": computes_bfloat16(),
        }

    def refuses(self, device: str) -> str | None:
        """Other devices than the CPU, and where it is not installed."""
        if why := missing():
            return why
        return None if device == "cpu" else f"engine 'openvino' runs on the CPU only, not on {device}"

    def prepare(self, region: Region) -> Callable[..., Any]:
        """Exports the region for its example and proves it.

        Raises:
            CannotPrepare: it cannot be exported or compiled, or a model answers otherwise than the module.
        """
        return sessions(region, self)

    def load(self, graph: bytes, outputs: list[str], device: torch.device) -> Session:
        """A compiled model. `exported.Runtime` says more."""
        import openvino

        core = openvino.Core()
        with signal_stack.kept():
            model = core.read_model(graph)
            short = any(port.element_type == openvino.Type.bf16 for port in (*model.inputs, *model.outputs))
            request = core.compile_model(model, "CPU", _settings(BFLOAT16 if short else FLOAT32)).create_infer_request()
        names = [port.get_any_name() for port in request.model_inputs]
        of_bfloat16 = [port.element_type == openvino.Type.bf16 for port in request.model_outputs]

        def run(inputs: dict[str, Tensor]) -> list[Tensor]:
            arrays = {name: _given(inputs[name].contiguous()) for name in names}
            answer = request.infer(arrays, share_inputs=True)  # the outputs are copies: the next call overwrites them
            return [_taken(answer[i], of_bfloat16[i]) for i in range(len(outputs))]

        return Session(frozenset(names), run)

    def unknown_dtypes(self, device: torch.device) -> Collection[torch.dtype]:
        """What it would compute in float32 all the same."""
        return (torch.float64,) if computes_bfloat16() else (torch.float64, torch.bfloat16)

    def explained(self, complaint: str) -> str | None:
        """About operators that it does not know."""
        found = re.search(r"OpenVINO does not support the following ONNX operations: ([\w.]+)", complaint)
        return None if found is None else f"OpenVINO does not know operator {found[1]}"


def missing() -> str | None:
    """That it is not installed, and how it is; None: it is."""
    found = importlib.util.find_spec("openvino") is not None
    return None if found else "openvino is not installed: pip install 'dynbench[openvino]'"


@cache
def computes_bfloat16() -> bool:
    """Whether the processor multiplies numbers of bfloat16, so that OpenVINO does too."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _given(x: Tensor) -> Any:
    """An array for OpenVINO that shares the tensor's memory; numpy has no bfloat16."""
    if x.dtype != torch.bfloat16:
        return x.numpy()
    import openvino

    return openvino.Tensor(x.view(torch.int16).numpy(), openvino.Shape(list(x.shape)), openvino.Type.bf16)


def _taken(y: NDArray[Any], of_bfloat16: bool) -> Tensor:
    """A tensor that shares an array's memory; OpenVINO calls two bytes of bfloat16 a float16."""
    return torch.from_numpy(y.view(np.int16)).view(torch.bfloat16) if of_bfloat16 else torch.from_numpy(y)


def _settings(precision: str) -> dict[str, Any]:
    """Of a compiled model."""
    return {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_HYPER_THREADING": True,  # else it takes half of the threads on such a core
        "ENABLE_CPU_PINNING": False,  # where the process may run is not its business
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }

"""OpenVINO on the CPU, region by region, from the ONNX graphs that engine onnxruntime uses as well."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Collection
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from dynbench.dynamic.regions import Region
from dynbench.engines import signal_stack
from dynbench.engines.exported import OPSET, Session, sessions


class OpenVino:
    """Every region is a model that OpenVINO compiled for the CPU, with a free batch dimension.

    It computes in float32, also where the processor has shorter formats, and with torch's number of threads.
    `exported.sessions` says which regions and calls stay as written.
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
            **{key.lower(): value for key, value in _settings().items()},
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
            request = core.compile_model(core.read_model(graph), "CPU", _settings()).create_infer_request()
        names = [port.get_any_name() for port in request.model_inputs]

        def run(inputs: dict[str, Tensor]) -> list[Tensor]:
            arrays = {name: inputs[name].contiguous().numpy() for name in names}
            answer = request.infer(arrays, share_inputs=True)  # the outputs are copies: the next call overwrites them
            return [torch.from_numpy(answer[i]) for i in range(len(outputs))]

        return Session(frozenset(names), run)

    def unknown_dtypes(self, device: torch.device) -> Collection[torch.dtype]:
        """What it would compute in float32 all the same, and what numpy does not have."""
        return torch.float64, torch.bfloat16

    def explained(self, complaint: str) -> str | None:
        """About operators that it does not know."""
        found = re.search(r"OpenVINO does not support the following ONNX operations: ([\w.]+)", complaint)
        return None if found is None else f"OpenVINO does not know operator {found[1]}"


def missing() -> str | None:
    """That it is not installed, and how it is; None: it is."""
    found = importlib.util.find_spec("openvino") is not None
    return None if found else "openvino is not installed: pip install 'dynbench[openvino]'"


def _settings() -> dict[str, Any]:
    """Of a compiled model."""
    return {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_HYPER_THREADING": True,  # else it takes half of the threads on such a core
        "ENABLE_CPU_PINNING": False,  # where the process may run is not its business
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }

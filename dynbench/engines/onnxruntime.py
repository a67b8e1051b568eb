"""ONNX Runtime, region by region: decision points stay in Python, what lies between them is one session each."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from dynbench.dynamic.regions import Region
from dynbench.engines.exported import OPSET, Session, WrongPlace, sessions
from dynbench.engines.providers import Bound, available, providers, refusal, runtime_version, why_not_on


class OnnxRuntime:
    """Every region is a session of ONNX Runtime with a free batch dimension, on the CPU with torch's number of threads.

    On a GPU the CUDA execution provider runs it, on tensors that stay on the device. `exported.sessions` says which
    regions and calls stay as written.
    """

    name = "onnxruntime"
    title = "ONNX Runtime"
    as_written = False

    def facts(self) -> dict[str, object]:
        """Versions, the execution providers that there are, and the opset."""
        return {
            "onnxruntime": runtime_version(),
            "onnx": version("onnx"),
            "torch": torch.__version__,
            "providers": available(),
            "opset": OPSET,
        }

    def refuses(self, device: str) -> str | None:
        """Where a package or the provider for a GPU is missing, and devices that have none."""
        return refusal(device)

    def prepare(self, region: Region) -> Callable[..., Any]:
        """Exports the region for its example and proves it.

        Raises:
            CannotPrepare: it cannot be exported or loaded, or a session answers otherwise than the module.
        """
        return sessions(region, self)

    def load(self, graph: bytes, outputs: list[str], device: torch.device) -> Session:
        """A session on the device. `Runtime` says more."""
        import onnxruntime as ort

        session = ort.InferenceSession(graph, _options(ort), providers=providers(device))
        if why := why_not_on(session, device):
            raise WrongPlace(why)
        run, bound = session._sess.run, Bound(session, device)  # below its checks of arguments, which cost 1 us a call

        def on_cpu(inputs: dict[str, Tensor]) -> list[Tensor]:
            arrays = {name: t.contiguous().numpy() for name, t in inputs.items()}
            return [torch.from_numpy(array) for array in run(outputs, arrays, None)]

        def on_gpu(inputs: dict[str, Tensor]) -> list[Tensor]:
            return bound(inputs, outputs)

        names = frozenset(value.name for value in session.get_inputs())
        return Session(names, on_cpu if device.type == "cpu" else on_gpu)

    def unknown_dtypes(self, device: torch.device) -> Collection[torch.dtype]:
        """bfloat16 on the CPU."""
        return (torch.bfloat16,) if device.type == "cpu" else ()

    def explained(self, complaint: str) -> str | None:
        """About operators that it does not have for some dtypes, or that fail."""
        if found := re.search(r"implementation for (\w+)\(\d+\)", complaint):
            return f"ONNX Runtime has no {found[1]} for these dtypes"
        if found := re.search(r"while running (\w+) node", complaint):
            return f"operator {found[1]} fails, as where the number of items of the example is a constant in the graph"
        return None


def _options(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_cpu_mem_arena = False  # as fast, and memory goes back, so that what the next call needs can be seen
    options.log_severity_level = 4  # errors are raised as well
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # one pool for each of many sessions
    return options

"""ONNX Runtime's execution providers: which one serves a device, and sessions on tensors that stay on a GPU."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {"cpu": CPU, "cuda": CUDA}  # by the kind of device
NO_CUDA = (
    "the installed onnxruntime has no CUDAExecutionProvider: pip uninstall onnxruntime, then "
    "pip install onnxruntime-gpu, which takes its place"
)

# TensorProto.DataType, which `bind_input` takes: numpy has no bfloat16.
_ELEMENT = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int8: 3,
    torch.int16: 5,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.float64: 11,
    torch.bfloat16: 16,
}


def refusal(device: str) -> str | None:
    """Why ONNX Runtime cannot be used on a device ('cpu', 'cuda:0') here, in a sentence; None: it can."""
    for package in ("onnxruntime", "onnx"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install {package}"
    kind = torch.device(device).type
    if kind not in PROVIDERS:
        return f"ONNX Runtime is used on {' and '.join(PROVIDERS)} devices only, not on {device}"
    return None if PROVIDERS[kind] in available() else NO_CUDA


def available() -> list[str]:
    """The providers that this build of ONNX Runtime has, of those used here."""
    import onnxruntime

    return [name for name in PROVIDERS.values() if name in onnxruntime.get_available_providers()]


def runtime_version() -> str:
    """Of ONNX Runtime, whichever of its packages is installed."""
    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return version("onnxruntime-gpu")


def providers(device: torch.device) -> list[Any]:
    """What a session for a device is created with."""
    if device.type == "cpu":
        return [CPU]
    precise = not (torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32)
    options = {
        "device_id": str(device.index or 0),
        "user_compute_stream": str(_stream(device.index or 0).cuda_stream),
        "arena_extend_strategy": "kSameAsRequested",  # each session has an arena of its own
        "use_tf32": "0" if precise else "1",
    }
    return [(CUDA, options), CPU]  # the CPU computes sizes and shapes


def why_not_on(session: Any, device: torch.device) -> str | None:
    """Why a session does not run on the device that it was created for; None: it does."""
    wanted, got = PROVIDERS[device.type], session.get_providers()
    if got[0] == wanted:
        return None
    why = ", because libraries of CUDA or cuDNN that it needs cannot be loaded" if wanted == CUDA else ""
    return f"runs on {', '.join(got)} instead of {wanted}{why}"


class Bound:
    """Calls a session on tensors of its device: nothing goes through the host, and the host does not wait.

    On a GPU a session works on a stream beside torch's, because ONNX Runtime takes torch's default stream for none. One
    waits for the other on the device.

    Args:
        session: of `onnxruntime.InferenceSession`, created with `providers(device)`.
        device: of all its inputs and outputs.
    """

    def __init__(self, session: Any, device: torch.device) -> None:
        import onnxruntime

        self._session, self._kind, self._index = session, device.type, device.index or 0
        self._options = onnxruntime.RunOptions()
        if device.type == "cuda":
            self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def __call__(self, inputs: dict[str, Tensor], outputs: list[str]) -> list[Tensor]:
        """The outputs asked for, in order."""
        binding = self._session.io_binding()
        held = {name: t.contiguous() for name, t in inputs.items()}
        for name, t in held.items():
            binding.bind_input(name, self._kind, self._index, _ELEMENT[t.dtype], tuple(t.shape), t.data_ptr())
        for name in outputs:
            binding.bind_output(name, self._kind, self._index)
        with in_turn(self._kind, self._index):
            self._session.run_with_iobinding(binding, self._options)
        return [torch.from_dlpack(value) for value in binding.get_outputs()]


@contextmanager
def in_turn(kind: str, index: int) -> Iterator[None]:
    """ONNX Runtime's work inside comes after torch's before, and before torch's afterwards. Nothing to do on a CPU."""
    if kind != "cuda":
        yield
        return
    own, ours = torch.cuda.current_stream(index), _stream(index)
    ours.wait_stream(own)
    yield
    own.wait_stream(ours)


@functools.cache
def _stream(index: int) -> torch.cuda.Stream:
    """On which ONNX Runtime works on a GPU."""
    return torch.cuda.Stream(index)

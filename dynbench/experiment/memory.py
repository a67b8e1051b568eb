"""Peak memory of an arm on a CPU: in a fresh process, because a process that ran others remembers what they needed."""

from __future__ import annotations

import ctypes
import functools
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dynbench import devices
from dynbench.dynamic import Trace
from dynbench.dynamic.faults import ModelError, in_a_line
from dynbench.dynamic.items import Arguments, map_items
from dynbench.experiment.arms import runnable
from dynbench.experiment.networks import Stream
from dynbench.experiment.parts import load_engine
from dynbench.experiment.spec import Options, Workload, parse_spec
from dynbench.launch import ForkServer, LocalLauncher, ProcessLost
from dynbench.launch.channel import Channel
from dynbench.meters.memory import peak_bytes
from dynbench.store.schema import Arm
from dynbench.unavailable import Measured, Unavailable

PROBE_TIMEOUT_S = 60.0
WARM_TIMEOUT_S = 240.0  # the first call may compile; less than manager.HANG_S


@dataclass(frozen=True)
class ProbeRequest:
    """One call of one arm.

    Attributes:
        spec: the workload.
        options: of the run.
        arm: which.
        inputs: one batch [n, ...], on the CPU and in the dtype of the run.
        trace: the decisions to replay; None: the model's own.
        start: index of the batch's first item in the stream.
        items: of the stream.
    """

    spec: Workload
    options: Options
    arm: Arm
    inputs: Stream
    trace: Trace | None
    start: int
    items: int

    @property
    def engine(self) -> str:
        """The arm's engine, as the options name it."""
        asked = {load_engine(name).name: name for name in self.options.engines}
        return asked.get(self.arm.engine, self.arm.engine)

    @property
    def warm(self) -> bool:
        """Whether the call is measured after another one: so it is for all arms of a run if an engine prepares."""
        return self.options.deployed or not all(load_engine(name).as_written for name in self.options.engines)

    def save(self, folder: Path) -> dict[str, Any]:
        """The request as a message; its tensors are written to `folder`."""
        _save(self.inputs, folder / "inputs.pt")
        if self.trace is not None:
            self.trace.save(folder / "trace")
        return {
            "spec": self.spec.model_dump(mode="json", by_alias=True),
            "file": str(self.spec.file),
            "options": self.options.model_copy(update={"engines": [self.engine]}).model_dump(mode="json"),
            "arm": self.arm.model_dump(mode="json"),
            "folder": str(folder),
            "replays": self.trace is not None,
            "warm": self.warm,
            "start": self.start,
            "items": self.items,
        }

    @classmethod
    def load(cls, message: dict[str, Any]) -> ProbeRequest:
        """Reads what `save` made of a request.

        Raises:
            UserError: the workload is not accepted any more.
        """
        folder = Path(message["folder"])
        return cls(
            spec=parse_spec(message["spec"], Path(message["file"])),
            options=Options.model_validate(message["options"]),
            arm=Arm.model_validate(message["arm"]),
            inputs=_load(folder / "inputs.pt"),
            trace=Trace.load(folder / "trace") if message["replays"] else None,
            start=message["start"],
            items=message["items"],
        )


def _save(inputs: Stream, file: Path) -> None:
    own = map_items(lambda t: t.clone(), inputs)  # a part of a stream would be saved with the whole of it
    torch.save((own.by_position, own.by_name) if isinstance(own, Arguments) else own, file)


def _load(file: Path) -> Stream:
    inputs = torch.load(file, weights_only=True)
    return Arguments(*inputs[0], **inputs[1]) if isinstance(inputs, tuple) else inputs


def cell_peak_bytes(request: ProbeRequest) -> Measured:
    """Peak memory growth of the call, in bytes; weights, inputs and the interpreter are not counted.

    The call is the first of its process, so what PyTorch allocates once is counted. In a run with an engine that
    prepares networks, such as one that compiles them at the first call, neither is: every arm is called once before.

    Returns:
        Bytes; Unavailable, with the reason, where the system or the fresh process does not give it.
    """
    timeout_s = WARM_TIMEOUT_S if request.warm else PROBE_TIMEOUT_S
    server = _fork_server()
    try:
        process = server.fork(f"{__name__}:probe")
    except ProcessLost as e:
        server.close()
        _fork_server.cache_clear()
        return Unavailable(unavailable=f"a fresh process could not be started: {e}")
    try:
        process.send(request.save(server.scratch))
        answer = process.receive(timeout_s)
    except ProcessLost as e:
        silent = f"the fresh process did not answer within {timeout_s:.0f} s"
        return Unavailable(unavailable=silent if e.cause == "silent" else f"the fresh process died ({e.ending})")
    finally:
        process.kill()
    return answer["bytes"] if "bytes" in answer else Unavailable(unavailable=answer["unavailable"])


def probe(channel: Channel) -> None:
    """The fresh process: answers one request."""
    try:
        message = channel.receive()
        found = _measured(ProbeRequest.load(message), message["warm"])
    except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
        cause = e.__cause__ if isinstance(e, ModelError) and isinstance(e.__cause__, Exception) else e
        found = Unavailable(unavailable=f"the fresh process failed: {in_a_line(cause)}")
    channel.send(found.model_dump() if isinstance(found, Unavailable) else {"bytes": found})


@torch.inference_mode()
def _measured(request: ProbeRequest, warm: bool) -> Measured:
    torch.set_num_threads(request.options.threads)
    call = runnable(request.spec, request.options, request.arm, request.inputs, request.trace, request.items)
    if warm:
        call(request.start, request.inputs)
        if not _give_back_free_memory():
            return Unavailable(unavailable="memory that was freed after the first call cannot be given back here")
    return peak_bytes(lambda: call(request.start, request.inputs), devices.device("cpu"))


def _give_back_free_memory() -> bool:
    """Gives freed memory back to the system, where it would hide growth; False: the C library cannot (glibc can)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return trim is not None


@functools.cache
def _fork_server() -> ForkServer:
    """Has imported torch and run nothing; ends with this process."""
    return ForkServer(LocalLauncher(show_stderr=False), [__name__], environment={})

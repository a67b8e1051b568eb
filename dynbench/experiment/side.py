"""One side of a check, its own process: prepares a workload from its own source tree and runs it call by call.

A nursery imports torch and dynbench once, with the side's tree first on the path and the thread environment set, and
forks a fresh process for each request on its standard input; the workload is prepared after the fork. The child
connects back to the parent and serves it, a JSON object a line, blocked as long as nothing is asked of it.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

READY = "ready 2"  # with the version of what can be asked: a base may bring a dynbench of its own
STRATEGIES_BY_CHOICE = ("cascading", "compaction", "batch_union", "masking")  # the first that the model does not refuse


def main() -> None:
    """The nursery: forks until standard input ends."""
    import torch  # what takes long is imported here, once for all children

    import dynbench.experiment.build
    import dynbench.experiment.plan
    import dynbench.meters.required  # noqa: F401

    torch.set_grad_enabled(False)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    gc.freeze()
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        address = line.strip()
        if os.fork() == 0:
            os.close(0)
            _child(address)
            os._exit(0)


def _child(address: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    channel = connection.makefile("rw", encoding="utf-8")

    def tell(**what: Any) -> None:
        channel.write(json.dumps(what) + "\n")
        channel.flush()

    side = Side()
    side.scattered = scattered_heap()
    for line in channel:
        request = json.loads(line)
        try:
            tell(**getattr(side, request.pop("do"))(**request))
        except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
            traceback.print_exc()
            tell(error=" ".join(f"{e}".split()) or type(e).__name__, kind=type(e).__name__)


def scattered_heap() -> list[Any]:
    """Blocks of random sizes that stay where they are, so that what comes later lies elsewhere in every process.

    Children of one nursery have its address space: where their buffers lie relative to each other would be the same in
    all of them and another one in those of the other side, which no number of children averages out. (Two sides of the
    same code on a small network once differed by 4 % so; some of that may have been what glibc did with memory, which
    `sides.KEEPING` ended later.)
    """
    import torch

    chance = random.Random(time.time_ns() ^ os.getpid())
    blocks = [torch.empty(64 * chance.randrange(1, 2048), dtype=torch.uint8) for _ in range(400)]
    return [block for block in blocks if chance.random() < 0.5]


class Side:
    """A workload of one source tree, ready to be called."""

    scattered: list[Any]

    def prepare(
        self, file: str, options: dict[str, Any], tree: str, names: list[str], static: bool, stream_file: str,
        cores: list[int] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Builds the workload.

        Args:
            file: the workload file, in the tree.
            options: of the run.
            tree: where all first-party code must come from.
            names: top-level names of first-party packages and modules.
            static: call the primary baseline instead of the strategies, under their names.
            stream_file: where the first child leaves the stream for the others: making it anew takes long.
            cores: to stay on from now on; None: any.

        Returns:
            `cells` (what can be called: strategy, batch size and number of batches), `stream_hash`, and `foreign`:
            first-party modules that lie elsewhere.
        """
        import torch

        from dynbench import devices
        from dynbench.dynamic import Execution
        from dynbench.experiment.build import prepare
        from dynbench.experiment.plan import refusal
        from dynbench.experiment.spec import Options, load_spec
        from dynbench.strategies import STRATEGIES

        chosen = Options.model_validate(options)
        torch.set_num_threads(chosen.threads)
        kept = Path(stream_file)
        self._p = p = prepare(load_spec(file), chosen, _load_stream(kept))
        if not kept.exists():
            _save_stream(kept, p.dataset)
        self._device = devices.device(chosen.device)
        asked = chosen.strategies or [next(s for s in STRATEGIES_BY_CHOICE if refusal(p, s) is None)]
        for name in asked:
            if why := refusal(p, name):
                raise ValueError(f"{name}: {why}")
        self._cells: list[tuple[str, Callable[[int, Any], Any], list[Any], Any]] = []
        for name in asked:
            for size in p.batch_sizes:
                ex = Execution(STRATEGIES[name]())
                call = _static(p.baselines[p.spec.primary.name]) if static else _calling(ex, p.model, p.items)
                self._cells.append((f"{name}, batch {size}", call, p.batches(size), ex))
        if cores is not None:
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), cores)
        return {
            "cells": [{"name": name, "batches": len(batches)} for name, _, batches, _ in self._cells],
            "stream_hash": p.stream_hash,
            "foreign": foreign_modules(tree, names),
        }

    def call(self, cell: int, first: int, count: int, warm: bool) -> dict[str, Any]:
        """Times up to `count` batches from `first` on, the device drained before and after each, in ns.

        Args:
            cell: which.
            first: batch.
            count: of batches.
            warm: run the first of them before, untimed: another process has had the caches.
        """
        import torch

        from dynbench.meters.latency import time_batches

        _, run, batches, _ = self._cells[cell]
        mine = batches[first : first + count]
        with torch.inference_mode():
            if warm:
                run(*mine[0])
            return {"ns": sum(timing.duration_ns for timing in time_batches(run, mine, self._device))}

    def exact(self, cell: int, answers_to: str) -> dict[str, Any]:
        """What does not depend on the clock: work, waits, decisions; the answers are written to a file.

        Raises:
            ValueError: answers are no tensors.
        """
        import torch
        from safetensors.torch import save_file

        from dynbench.dynamic import Execution
        from dynbench.dynamic.items import tensors
        from dynbench.meters.flops import FlopCounter
        from dynbench.meters.required import PartCosts
        from dynbench.meters.syncs import count_syncs

        p = self._p
        _, run, batches, ex = self._cells[cell]
        counter = FlopCounter()
        recording = Execution(ex.strategy, record=True, profile=counter)
        with torch.inference_mode():
            with counter:
                parts = [recording.run(p.model, x, start=start, items=p.items) for start, x in batches]
            assert recording.trace is not None
            required = PartCosts(p.model, batches[0][1]).required(recording.trace)
            syncs, _ = count_syncs(lambda: [run(start, x) for start, x in batches], self._device)
        named = {f"{i}.{j}": t.contiguous().cpu() for i, part in enumerate(parts) for j, t in enumerate(tensors(part))}
        save_file(named, answers_to)

        def plain(value: Any) -> float | str:
            return f"unavailable: {value.unavailable}" if hasattr(value, "unavailable") else float(value)

        return {
            "executed FLOPs": plain(counter.flops),
            "required FLOPs": plain(required.total),
            "operator calls": float(counter.operator_calls),
            "host waits": plain(syncs),
            "decisions": recording.trace.hash(),
        }


def _load_stream(file: Path) -> Any:
    import numpy as np

    from dynbench.data import Dataset

    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as kept:
        labels = kept.get("labels")
        return Dataset(kept["inputs"], labels, str(kept["description"]), int(kept["classes"]))


def _save_stream(file: Path, stream: Any) -> None:
    import numpy as np

    aside = file.with_name(f"{os.getpid()}.npz")
    labels = {} if stream.labels is None else {"labels": stream.labels}
    np.savez(aside, inputs=stream.inputs, description=stream.description, classes=stream.classes, **labels)
    aside.replace(file)


def _calling(ex: Any, model: Any, items: int) -> Callable[[int, Any], Any]:
    return lambda start, x: ex.run(model, x, start=start, items=items)


def _static(net: Any) -> Callable[[int, Any], Any]:
    return lambda start, x: net(x)


def foreign_modules(tree: str, names: list[str]) -> list[str]:
    """First-party modules of this process that lie outside the tree: 'package.module (file)'."""
    root = Path(tree).resolve()
    found = []
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in names and file and not Path(file).resolve().is_relative_to(root):
            found.append(f"{name} ({file})")
    return found


if __name__ == "__main__":
    main()

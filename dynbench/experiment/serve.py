"""What the measuring process can be asked to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from dynbench import devices
from dynbench.experiment.accuracy import accuracies
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.measure import measure_group
from dynbench.experiment.parts import load_engine
from dynbench.experiment.plan import describe, groups
from dynbench.experiment.scaling import scaling_of
from dynbench.experiment.spec import Options, load_spec
from dynbench.experiment.ways import engines_tried
from dynbench.store.schema import Cell
from dynbench.store.walks import read_walked


class Server:
    """Holds the prepared workloads of one run.

    Args:
        tell: sends an event to the parent.
        stop: whether the user wants it to end.
    """

    def __init__(self, tell: Callable[..., None], stop: Callable[[], bool]) -> None:
        self._tell, self._stop = tell, stop
        self._prepared: dict[str, Prepared] = {}

    def serve(self, request: dict[str, Any]) -> None:
        """Does what `request["do"]` says and sends the result.

        Raises:
            UserError: it cannot be done, in one sentence.
        """
        options = Options.model_validate(request["options"])
        torch.set_num_threads(options.threads)
        what = request["do"]
        if what == "describe":
            names = dict.fromkeys([*options.engines, *(engines_tried(options.device) if options.deployed else ())])
            engines = {engine.name: engine.facts() for engine in map(load_engine, names)}
            self._tell("described", hardware=devices.device(options.device).describe(), engines=engines)
            return
        p = self._workload(request, options)
        if what == "prepare":
            run = request["run"]
            info = describe(p, None if run is None else Path(run))
            self._tell("prepared", info=info.model_dump(mode="json"), groups=groups(p))
        elif what == "measure":
            for other in self._prepared.values():
                if other is not p:
                    other.release()
            source = next(s for s in p.sources if s.decisions.label == request["label"])
            result = measure_group(
                p,
                source,
                request["batch_size"],
                [Cell.model_validate(c) for c in request["cells"]],
                run=Path(request["run"]),
                process=request["process"],
                without=set(request["without"]),
                tell=self._tell,
                stop=self._stop,
            )
            memory_share = psutil.Process().memory_info().rss / psutil.virtual_memory().total
            self._tell("measured", **result, memory_share=memory_share)
        elif what == "accuracy":
            found = accuracies(p)
            self._tell("accuracy", accuracies={k: v.model_dump(mode="json") for k, v in found.items()})
        elif what == "scaling":
            measured = scaling_of(p, read_walked(Path(request["run"]), p.spec.name))
            self._tell("scaling", scaling=measured.model_dump(mode="json"))

    def _workload(self, request: dict[str, Any], options: Options) -> Prepared:
        file = request["file"]
        if file not in self._prepared:
            devices.device(options.device)  # says in one sentence when it is not there
            self._prepared[file] = prepare(load_spec(file), options)
        return self._prepared[file]

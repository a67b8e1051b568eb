"""Named ranges around what a network does, and ONNX Runtime's record under the same names."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dynbench.analysis.timeline import Span, nested
from dynbench.dynamic import Execution, Skip
from dynbench.meters.timeline import Ranges, named_regions, operator_events, read_trace, record, write_trace
from dynbench.strategies import Compaction


class Gate(nn.Module):
    """Runs the body for items whose first entry is above 0."""

    def forward(self, x: Tensor, carry: None) -> tuple[Tensor, None]:
        return x[:, 0], carry


class Skipping(nn.Module):
    """One Skip, and a head behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = Skip("skip", Gate(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.skip(x, None)[0])


def test_phases_points_and_regions_are_ranges_around_their_operators(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = Skipping().eval(), torch.randn(8, 8)
    execution = Execution(Compaction(), profile=Ranges())
    file = tmp_path / "x.pt.trace.json"
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    with torch.inference_mode(), named_regions(network, [*names, "one that an engine replaced"]):
        record([partial(execution.run, network, x)] * 2, "cpu", file)
    root = nested(read_trace(file))
    batch = root.below["batch"]
    assert batch.calls == 2
    seen = {name.partition(" ")[0] for name in _names(batch)}
    assert {"decide", "body", "region"} <= seen
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def _names(span: Span) -> set[str]:
    found, left = set[str](), [span]
    while left:
        one = left.pop()
        found |= set(one.below)
        left += one.below.values()
    return found


def node(name: str, op: str, ts: int, dur: int) -> dict[str, object]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "args": {"op_name": op}, "ts": ts, "dur": dur, "tid": 7}


def test_nodes_of_a_graph_lie_in_the_ranges_of_their_modules(tmp_path: Path) -> None:
    events = [
        node("/skips/0/gate/Gemm", "Gemm", 0, 10),
        node("/skips/0/gate/Sigmoid", "Sigmoid", 12, 3),
        node("/skips/0/Either", "If", 20, 50),
        node("/block1/conv/Conv", "Conv", 22, 30),
        node("/skips/0/ScatterND", "ScatterND", 72, 8),
        node("/Shape", "Shape", 90, 1),
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 91, "tid": 7},
    ]
    known = {"skips.0.gate": "region skips.0.gate", "block1": "region block1", "skips.0": "Skip skips.0"}
    found = operator_events(events, known)
    file = tmp_path / "x.pt.trace.json"
    write_trace(file, found)
    root = nested(read_trace(file))
    assert list(root.below) == ["region skips.0.gate", "Skip skips.0", "(network)"]
    assert set(root.below["region skips.0.gate"].below) == {"Gemm", "Sigmoid"}
    point = root.below["Skip skips.0"]
    assert set(point.below) == {"If", "ScatterND"}
    branch = point.below["If"].below["region block1"]
    assert (branch.total_us, set(branch.below)) == (30, {"Conv"})

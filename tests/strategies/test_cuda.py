"""On a GPU every strategy gives the answer that the CPU gives, and masking never waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynbench.dynamic import Execution
from dynbench.dynamic.items import map_items, tensors
from dynbench.strategies import STRATEGIES, Masking, PerSample
from tests.networks import accepted, make

pytestmark = pytest.mark.cuda


def moved(args: Any) -> Any:
    return map_items(lambda t: t.cuda(), args)


@pytest.mark.parametrize(("name", "strategy"), accepted(without=["moe_exits", "capacity_exits"]))
@torch.inference_mode()
def test_the_gpu_s_answer_is_the_cpu_s(name: str, strategy: str) -> None:
    net, args = make(name)
    ex = Execution(PerSample(), record=True)
    expected = ex.run(net, *args)
    assert ex.trace is not None
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    replayed = Execution(STRATEGIES[strategy](), replay=ex.trace.to("cuda"))
    got = replayed.run(net.cuda(), *moved(args))
    for a, b in zip(tensors(got), tensors(expected), strict=True):
        assert torch.allclose(a.cpu(), b, atol=1e-4)


@pytest.mark.parametrize("name", ["pyramid", "ponder", "one_expert", "generated"])
@torch.inference_mode()
def test_masking_never_waits_for_the_device(name: str) -> None:
    net, args = make(name)
    net, args = net.cuda(), moved(args)
    ex = Execution(Masking(), record=True)
    ex.run(net, *args)
    assert ex.trace is not None
    replay = Execution(Masking(), replay=ex.trace)
    replay.run(net, *args)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        replay.run(net, *args)
    finally:
        torch.cuda.set_sync_debug_mode("default")

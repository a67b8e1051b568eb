"""GARN: two states for two ends, the reward of guidance, and the same answer under every strategy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynbench.dynamic import Execution
from dynbench.models.accounting import static_macs
from dynbench.models.garn import GARN, guidance
from dynbench.models.ram import RAM, UNIT
from dynbench.strategies import Masking
from tests.models.same_answer import DYNAMIC, assert_same_answer

SMALL: dict[str, Any] = {"glimpses": 4, "size": 4, "scales": 2, "image": 20, "hidden": 32, "width": 16}


def make(**args: Any) -> GARN:
    torch.manual_seed(0)
    net = GARN(**{**SMALL, **args})
    with torch.no_grad():
        net.look.body.place.weight.mul_(8)  # type: ignore[union-attr, operator]
        net.classifier.weight.mul_(6)
    return net.eval()


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 1, 20, 20, generator=torch.Generator().manual_seed(1)) * 2


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("halt", [None, "confidence"])
def test_every_strategy_answers_alike(halt: Any, strategy: str) -> None:
    assert_same_answer(make(halt=halt, threshold=0.2), images(), strategy)


def test_places_are_those_of_a_ram_with_the_state_for_places_and_classes_of_one_with_the_other() -> None:
    net, x = make(), images()
    halves = {}
    for which in ("what", "where"):
        ram = RAM(**SMALL).eval()
        state = {k.replace(f"core.{which}.", "core."): v for k, v in net.state_dict().items()}
        ram.load_state_dict({k: v for k, v in state.items() if k in ram.state_dict()})
        halves[which] = ram
    with torch.inference_mode():
        first = Execution(Masking(), record=True)
        first.run(halves["where"], x)
        assert first.trace is not None
        said = Execution(Masking(), replay=first.trace).run(halves["what"], x)
        assert torch.allclose(net(x), said, atol=1e-5)


def test_the_second_state_costs_one_more_core_at_each_glimpse() -> None:
    assert static_macs(GARN(), (1, 28, 28)) - static_macs(RAM(), (1, 28, 28)) == 6 * 131_072


def test_label_and_reward_teach_apart() -> None:
    net, x = make().train(), images()
    kept: list[Tensor] = []
    said = Execution(Masking(), observe=lambda point, mu, place: kept.append(mu)).run(net, x)

    def taught(what: Tensor) -> set[str]:
        net.zero_grad()
        what.backward(retain_graph=True)
        return {name.rsplit(".", 1)[0] for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}

    label, reward = taught(said[:, 0].sum()), taught(torch.stack(kept).sum())
    seeing = {f"glimpse.{m}" for m in ("what1", "where1", "what2", "where2")}
    assert label == {*seeing, "core.what.i2h", "core.what.h2h", "classifier"}
    assert reward == {"core.where.i2h", "core.where.h2h", "look.body.hidden", "look.body.place"}


def test_guidance_rewards_the_first_visit_of_each_region() -> None:
    boxes = torch.tensor([[[0, 0, 10, 10], [10, 10, 20, 20]]])  # the upper left and the lower right quarter

    def place(x: int, y: int) -> list[int]:  # the middle of a pixel
        return [(2 * x + 1 - 20) * UNIT // 20, (2 * y + 1 - 20) * UNIT // 20]

    path = [place(15, 3), place(3, 3), place(9, 9), place(10, 10), place(0, 0), place(19, 19)]
    found = guidance(torch.tensor(path).unsqueeze(1), boxes, (20, 20))
    assert found.flatten().tolist() == [0, 1, 0, 1, 0, 0]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), steps=st.integers(1, 6), n=st.integers(1, 4), regions=st.integers(1, 3))
def test_guidance_is_what_following_the_path_gives(seed: int, steps: int, n: int, regions: int) -> None:
    torch.manual_seed(seed)
    locations, corner = torch.randint(-UNIT, UNIT + 1, (steps, n, 2)), torch.randint(0, 20, (n, regions, 2))
    boxes = torch.cat([corner, corner + torch.randint(1, 15, (n, regions, 2))], -1)
    got = guidance(locations, boxes, (16, 24))
    for i in range(n):
        visited: set[int] = set()
        for t in range(steps):
            x = int((locations[t, i, 0] / UNIT + 1) / 2 * 24)
            y = int((locations[t, i, 1] / UNIT + 1) / 2 * 16)
            here = {r for r, (x0, y0, x1, y1) in enumerate(boxes[i].tolist()) if x0 <= x < x1 and y0 <= y < y1}
            assert got[t, i] == float(bool(here - visited))
            visited |= here

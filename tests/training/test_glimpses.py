"""The recipes of RAM and GARN on next to nothing, and what their losses teach."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dynbench.errors import UserError
from dynbench.models.garn import GARN
from dynbench.models.ram import RAM, UNIT
from dynbench.training import train_workload
from dynbench.training.glimpses import Hybrid, Looking, choose_limit, glimpse, log_pi, middle, returns

SMALL: dict[str, Any] = {"glimpses": 3, "size": 4, "scales": 2, "image": 24, "hidden": 16, "width": 16}
QUICK = {"epochs": 1, "items": 64, "batch_size": 32}


def train(
    out: Path, kind: str, args: dict[str, Any], inputs: dict[str, Any], name: str, **options: Any
) -> dict[str, Any]:
    plain = {"model": "dynbench.models.ram:PlainCNN", "weights": "weights/cnn_tiny.safetensors"}
    table = {
        "name": name,
        "model_args": args,
        "inputs": {"name": "digit_scenes", "options": {"size": 24, **inputs}},
        "baselines": [{"name": "all"}, {**plain, "model_args": {"image": 24, "widths": [2, 4]}}],
        "train": {"recipe": f"dynbench.training.glimpses:train_{kind}", "options": {**QUICK, **options}},
    }
    train_workload(table, out, progress=False)
    made: dict[str, Any] = json.loads((out / f"{kind}_tiny.json").read_text())
    return made


@pytest.mark.parametrize("halt", ["confidence", "learned", None])
def test_ram_its_baseline_and_its_control_are_trained_with_cards(tmp_path: Path, halt: Any) -> None:
    args = {**SMALL, "halt": halt}
    options = {"halting": {"epochs": 3, "epsilon": 0.5}} if halt else {}
    card = train(tmp_path, "ram", args, {}, "ram_tiny", **options)
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{net}_tiny.{kind}" for net in ("ram", "cnn") for kind in ("json", "safetensors")
    }
    RAM(**args).load_state_dict(load_file(tmp_path / "ram_tiny.safetensors"))
    assert card["args"] == args and set(card["stages"]) == {"shown", "hybrid"}
    assert len(card["accuracy_after_each_glimpse"]) == len(card["random_places"]["accuracy_after_each_glimpse"]) == 3
    assert card["accuracy_after_each_glimpse"][-1] == card["static_twin"]["accuracy"]
    mean = sum((k + 1) * share for k, share in enumerate(card["glimpses"]["shares"]))
    assert card["glimpses"]["mean"] == pytest.approx(mean, abs=1e-3)
    if halt is None:
        assert mean == 3 and card["halting"] is None and card["computation"] == 1
    else:
        assert card["halting"]["kind"] == halt and card["computation"] == pytest.approx(mean / 3, abs=0.02)


def test_garn_is_trained_with_and_without_guidance(tmp_path: Path) -> None:
    inputs = {"digits": 2, "rule": "equal"}
    card = train(tmp_path, "garn", {**SMALL, "num_classes": 2}, inputs, "garn_tiny")
    assert 0 <= card["unguided"]["accuracy"] <= 1 and card["unguided"]["epochs"] == 2
    assert 0 < card["regions_found"] <= 1 and card["stages"]["hybrid"]["settings"]["guided"] is True
    assert "guidance" not in card["recipe"]
    GARN(**SMALL, num_classes=2).load_state_dict(load_file(tmp_path / "garn_tiny.safetensors"))


def batch(n: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 14, (n, 1, 2), generator=generator)
    boxes = torch.cat([corner, corner + 8], -1).flatten(1)
    label = torch.randint(10, (n, 1), generator=generator)
    return torch.rand(n, 1, 24, 24, generator=generator), torch.cat([label, boxes], 1)


def net(kind: type[RAM] = RAM) -> RAM:
    torch.manual_seed(0)
    return kind(**SMALL).train()


def taught(model: RAM, **settings: Any) -> set[str]:
    torch.manual_seed(1)
    Hybrid(Looking(epochs=1, **settings))(model, *batch()).backward()
    return {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_rewards_teach_where_to_look_and_random_places_do_not() -> None:
    seen = {"glimpse", "core", "classifier"}
    assert taught(net()) == seen | {"look", "baseline"}
    assert taught(net(), places="shown") == seen | {"look"}
    assert taught(net(), places="random") == seen
    assert taught(net(), rl_weight=0.0) == seen | {"baseline"}


def test_without_joint_the_state_learns_as_if_there_were_no_rewards() -> None:
    def of_core(**settings: Any) -> Tensor:
        model = net()
        taught(model, **settings)
        grad = model.core.i2h.weight.grad  # type: ignore[union-attr]
        assert isinstance(grad, Tensor)
        return grad

    assert torch.equal(of_core(joint=False), of_core(rl_weight=0.0))
    assert not torch.equal(of_core(joint=True), of_core(rl_weight=0.0))


def test_shown_places_draw_the_locator_to_the_regions() -> None:
    model, (x, y) = net(GARN), batch()
    target = middle(y[:, 1:].unflatten(1, (1, 4)), (24, 24))

    def distance() -> float:
        with torch.no_grad():
            _, _, mu, _ = glimpse(model, x, lambda t, mu: mu, torch.zeros(16, 2))
        return float((mu - target).abs().mean())

    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    before, loss = distance(), Hybrid(Looking(epochs=1, places="shown", rl_weight=0.1))
    for _ in range(60):
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
    assert distance() < 0.7 * before


def test_guidance_alone_draws_glimpses_into_the_regions() -> None:
    """REINFORCE on the simplest of tasks: every region is the same, and half of the draws meet it by chance."""
    model, (x, y) = net(GARN), batch(64)
    model.std = 0.4
    y[:, 1:] = torch.tensor([14, 14, 24, 24])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    loss = Hybrid(Looking(epochs=1, guided=True, rl_weight=1.0))

    def met() -> float:
        with torch.no_grad():
            _, places, _, _ = glimpse(model, x, lambda t, mu: mu, torch.zeros(64, 2))
        return float(((places[1:] / UNIT + 1) * 12 >= 14).all(-1).float().mean())

    before = met()
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
    assert before < 0.5 < met()


def test_log_pi_is_that_of_a_normal_distribution_of_two_coordinates() -> None:
    mu, drawn = torch.tensor([[0.1, -0.2]]), torch.tensor([[0.3, 0.0]])
    want = -2 * math.log(0.2 * math.sqrt(2 * math.pi)) - 0.5 * (0.2**2 + 0.2**2) / 0.2**2
    assert float(log_pi(mu, drawn, 0.2)) == pytest.approx(want, rel=1e-5)


def test_a_choice_earns_what_follows_it() -> None:
    right = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # after glimpse 0, 1, 2
    assert returns(right, 2).tolist() == [[0.5, 0.5], [1.0, 0.0]]
    assert returns(right[-1:], 2).tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_the_limit_is_the_one_of_fewest_glimpses_that_keeps_the_accuracy() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.3, 0.2], [0.9, 0.9, 0.9, 0.4]])
    right = torch.tensor([[True, True, False, False], [True, True, True, False], [True, True, True, True]])
    limit, taken, kept = choose_limit(scores, right, 0.0)
    assert 0.4 <= limit < 0.8 and taken == pytest.approx((1 + 1 + 2 + 3) / 4) and kept == 1
    _, taken, kept = choose_limit(scores, right, 0.25)
    assert kept == 0.75 and taken < (1 + 1 + 2 + 3) / 4
    assert choose_limit(scores, torch.tensor([[False] * 4, [False] * 4, [True] * 4]), 0.0)[1:] == (3, 1)


def test_places_there_are_none_of_are_refused() -> None:
    with pytest.raises(UserError, match="places = 'everywhere'; accepted: policy, shown or random"):
        Looking(epochs=1, places="everywhere")


def test_regions_are_shown_from_left_to_right() -> None:
    boxes = torch.tensor([[[12, 0, 24, 12], [0, 6, 12, 18]], [[0, 0, 2, 2], [10, 10, 14, 14]]])
    want = [[[-0.5, 0.0], [-11 / 12, -11 / 12]], [[0.5, -0.5], [0.0, 0.0]]]
    assert torch.allclose(middle(boxes, (24, 24)), torch.tensor(want))

"""Joint training of exits: files and cards of the recipe, the loss, and how thresholds are chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dynbench.errors import UserError
from dynbench.models.branchynet import branchynet
from dynbench.models.msdnet import msdnet, plain
from dynbench.training import train_workload
from dynbench.training.exits import JointLoss, budgets, choose_budget, every_logits, outcome, round_as_stored

ARGS = {
    "blocks": 3,
    "base": 1,
    "step": 1,
    "channels": 4,
    "growth": 2,
    "growth_factors": [1, 2],
    "bottleneck_factors": [1, 2],
    "num_classes": 10,
}
QUICK = {"epochs": 1, "items": 64, "batch_size": 32, "lr": 0.05}


def train(out: Path, resume: bool = False, **options: Any) -> None:
    table = {
        "name": "msdnet_tiny",
        "model": "dynbench.models.msdnet:msdnet",
        "model_args": ARGS,
        "inputs": {"name": "digits", "options": {"size": 16}},
        "baselines": [{"name": "last", "primary": True, "model": "dynbench.models.msdnet:plain", "model_args": ARGS}],
        "train": {"recipe": "dynbench.training.exits:train", "options": {"exits": {**QUICK, **options}}},
    }
    train_workload(table, out, resume=resume, progress=False)


@pytest.mark.parametrize("rule", ["grid", "budget"])
def test_network_and_twin_are_trained_alike_with_a_card_each(tmp_path: Path, rule: str) -> None:
    train(tmp_path, rule=rule)
    names = ("msdnet_tiny", "msdnet_tiny_plain")
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("json", "safetensors")}
    card, twin = (json.loads((tmp_path / f"{n}.json").read_text()) for n in names)
    assert card["settings"] == twin["settings"] and card["args"] == twin["args"] == ARGS
    assert card["static_twin"]["accuracy"] == twin["accuracy"] and twin["model"] == "dynbench.models.msdnet:plain"
    assert sum(card["exit_shares"]) == pytest.approx(1, abs=1e-3)
    macs = [e["macs"] for e in card["exits"]]
    assert macs == sorted(macs) and card["macs"] == pytest.approx(
        sum(s * m for s, m in zip(card["exit_shares"], macs, strict=True)), rel=1e-3
    )
    own = [(s, e["accuracy_on_its_own"]) for s, e in zip(card["exit_shares"], card["exits"], strict=True)]
    assert card["accuracy"] == pytest.approx(sum(s * a for s, a in own if a is not None), abs=1e-3)
    assert card["rule"]["kind"] == rule
    if rule == "grid":
        assert card["rule"]["accuracy"] >= card["rule"]["last_accuracy"]
    stored = load_file(tmp_path / "msdnet_tiny.safetensors")
    assert stored["policy.thresholds"].tolist() == card["rule"]["thresholds"]
    assert all((v.dtype == torch.float16) == (v.dim() > 1) for v in stored.values() if v.is_floating_point())
    msdnet(**ARGS).load_state_dict(stored)
    plain(**ARGS).load_state_dict(load_file(tmp_path / "msdnet_tiny_plain.safetensors"))


def test_what_is_finished_stays_and_a_network_may_start_from_its_twin(tmp_path: Path) -> None:
    train(tmp_path, lr=1e-9)
    before = (tmp_path / "msdnet_tiny_plain.safetensors").read_bytes()
    (tmp_path / "msdnet_tiny.json").unlink()
    train(tmp_path, resume=True, lr=1e-9, from_twin=True)  # nothing is learned: weights show where it began
    assert (tmp_path / "msdnet_tiny_plain.safetensors").read_bytes() == before
    twin = load_file(tmp_path / "msdnet_tiny_plain.safetensors")
    net = msdnet(**ARGS)
    net.load_state_dict(load_file(tmp_path / "msdnet_tiny.safetensors"))
    for name, value in net.twin.named_parameters():
        assert torch.allclose(value, twin[name].float(), atol=1e-3), name


def test_a_model_without_exits_is_refused(tmp_path: Path) -> None:
    table = {
        "name": "resnet_tiny",
        "model": "dynbench.models.resnet:resnet",
        "model_args": {"depth": 8},
        "inputs": {"name": "digits"},
        "train": {"recipe": "dynbench.training.exits:train", "options": QUICK},
    }
    with pytest.raises(UserError, match="has no every_exit"):
        train_workload(table, tmp_path, progress=False)


@pytest.mark.parametrize(("options", "says"), [({"rule": "luck"}, "grid or budget"), ({"weights": [1.0]}, "3 exits")])
def test_settings_that_fit_nothing_are_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        train(tmp_path, **options)


class Said(nn.Module):
    """Exits with constant logits."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def every_exit(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.logits


def test_the_loss_is_the_weighted_sum_of_cross_entropies() -> None:
    a, b = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 0])
    each = [float(F.cross_entropy(z, y)) for z in (a, b)]
    assert float(JointLoss((1.0, 0.3))(Said(a, b), a, y)) == pytest.approx(each[0] + 0.3 * each[1])
    assert float(JointLoss()(Said(a, b), a, y)) == pytest.approx(sum(each))
    with pytest.raises(UserError, match="the 2 exits need one each"):
        JointLoss((1.0,))(Said(a, b), a, y)


def sure(classes: list[int], confidences: list[float]) -> Tensor:
    """Logits of two classes with these answers and confidences."""
    p = torch.tensor(confidences)
    rows = torch.stack([p, 1 - p], 1).log()
    return torch.where(torch.tensor(classes).view(-1, 1) == 0, rows, rows.flip(1))


SAID = [sure([0, 1, 0, 0], [0.9, 0.8, 0.7, 0.6]), sure([0, 1, 1, 1], [0.99] * 4)]
LABELS = torch.tensor([0, 1, 1, 1])


def test_outcome_charges_everybody_the_exit_they_leave_at() -> None:
    assert outcome(SAID, LABELS, [1.0, 3.0], [0.75]) == (1.0, 2.0)
    assert outcome(SAID, LABELS, [1.0, 3.0], [0.65]) == (0.75, 1.5)
    assert outcome(SAID, LABELS, [1.0, 3.0], [2.0]) == (1.0, 3.0)


def test_the_cheapest_budget_without_loss_is_chosen() -> None:
    chosen = choose_budget(SAID, LABELS, [1.0, 3.0], epsilon=0.0)
    assert (chosen.accuracy, chosen.macs) == (1.0, 2.0)
    assert choose_budget(SAID, LABELS, [1.0, 3.0], epsilon=0.25).macs == 1.5
    sweep = budgets(SAID, LABELS, [1.0, 3.0])
    assert len(sweep) == 39 and sweep[0].macs < sweep[-1].macs
    bad_last = [SAID[0], sure([1, 0, 0, 0], [0.99] * 4)]
    assert choose_budget(bad_last, LABELS, [1.0, 3.0], epsilon=-4.0).accuracy == max(
        b.accuracy for b in budgets(bad_last, LABELS, [1.0, 3.0])
    )


def test_values_are_rounded_as_they_are_stored_and_vectors_are_not() -> None:
    torch.manual_seed(0)
    net = branchynet("lenet", thresholds=[0.1234567])
    before = net.heads[0][2].weight.detach().clone()
    round_as_stored(net)
    after = net.heads[0][2].weight.detach()
    assert not torch.equal(before, after) and torch.equal(after, before.half().float())
    assert float(net.policy.thresholds) == pytest.approx(0.1234567, rel=1e-7)


def test_logits_of_every_exit_are_those_of_the_model_batch_by_batch() -> None:
    torch.manual_seed(0)
    net, x = branchynet("lenet").eval(), torch.randn(260, 1, 28, 28)
    said = every_logits(net, x)
    with torch.inference_mode():
        for mine, theirs in zip(said, net.every_exit(x), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-5)

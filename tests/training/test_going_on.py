"""Training that is killed, again and again and at every step, ends with the bits of one that was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.errors import UserError
from dynbench.training import train_workload
from dynbench.training.cascade import RuleSettings
from dynbench.training.interrupts import Interrupts
from dynbench.training.session import Session, Settings, cross_entropy
from tests.training.test_dmasking import WORKLOAD as SEARCH

QUICK = {"epochs": 2, "items": 64, "batch_size": 32}
DIGITS = {"name": "digits", "options": {"size": 16}}
OTHER_ONES_EACH_EPOCH = {"name": "cluttered_digits", "options": {"size": 16}}
SEEING = {"glimpses": 3, "size": 4, "scales": 2, "image": 24, "hidden": 16, "width": 16, "halt": "learned"}


def recipe(name: str, **options: Any) -> dict[str, Any]:
    return {"recipe": f"dynbench.training.{name}", "options": options}


# kinds of loops: AdamW, SGD in three stages with gradients that only clipping still counts (DeepMoE's frozen stage),
# those outside `fit`, and a loss that counts its steps
RECIPES: dict[str, dict[str, Any]] = {
    "adamw": {
        "name": "moe_tiny",
        "inputs": {"name": "text", "options": {"context": 16}},
        "model_args": {"layers": 1, "width": 16, "heads": 2, "experts": 4, "k": 2, "context": 16},
        "train": recipe("lm:train", **QUICK),
    },
    "frozen parameters": {
        "name": "deepmoe8_tiny",
        "inputs": DIGITS,
        "model_args": {"depth": 8, "embedding": [4, 8]},
        "train": recipe("deepmoe:train", **{**QUICK, "epochs": 1}),
    },
    "learned rules": {
        "name": "idk_tiny",
        "inputs": DIGITS,
        "model_args": {"depths": [8, 8], "rule": "learned"},
        "train": recipe("cascade:train", **{**QUICK, "epochs": 1}, rule={"epochs": 2, "cost_weights": [0.1]}),
    },
    "branches and policies": {
        "name": "epnet_tiny",
        "inputs": DIGITS,
        "model_args": {"depth": 8, "policy": "mdp", "width": 4},
        "train": recipe("epnet:train", **QUICK, policy={"prices": [0.1], "epochs": 2}),
    },
    "a classifier": {
        "name": "early_tiny",
        "inputs": {"name": "text", "options": {"context": 8}},
        "model_args": {
            "layers": 3,
            "width": 16,
            "heads": 2,
            "context": 24,
            "max_new_tokens": 6,
            "measure": "classifier",
        },
        "train": recipe(
            "early_exit_lm:train",
            lm={"epochs": 1, "items": 64},
            rule={"epochs": 8, "items": 8, "prompts": 16, "candidates": 3},
        ),
    },
    "a halting unit": {
        "name": "ram_tiny",
        "inputs": {"name": "digit_scenes", "options": {"size": 24}},
        "model_args": SEEING,
        "train": recipe("glimpses:train_ram", **{**QUICK, "epochs": 1}, halting={"epochs": 2, "epsilon": 0.5}),
    },
    "a search": SEARCH,
}


class Killed(BaseException):
    pass


def killed_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    left = iter(range(steps - 1))

    def check(self: Interrupts) -> None:
        if next(left, None) is None:
            raise Killed

    monkeypatch.setattr(Interrupts, "check", check)


def made(out: Path) -> dict[str, Any]:
    """Files without the times in them."""
    return {
        p.name: p.read_bytes() if p.suffix != ".json" else _without_times(json.loads(p.read_text()))
        for p in out.iterdir()
    }


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k != "seconds"}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", RECIPES)
def test_killed_after_every_fourth_step_it_makes_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_workload(RECIPES[kind], whole, progress=False)
    sittings, done = 0, False
    while not done:
        sittings += 1
        killed_after(monkeypatch, 4)
        try:
            train_workload(RECIPES[kind], parts, progress=False, keep_every_s=0)
            done = True
        except Killed:
            assert (parts / "unfinished" / "training.json").is_file() and sittings < 100
    assert sittings > 1
    assert made(parts) == made(whole)


class Remembers:
    """A loss that depends on how often it was called and on numbers of its own."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.calls, self.mean, self._killed_at = 0, torch.zeros(2), killed_at

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self._killed_at:
            raise Killed
        self.mean = 0.5 * self.mean + torch.rand(2)
        return cross_entropy(model, x, y) * (1 + self.calls) * self.mean.sum()

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls, self.mean = state["calls"], state["mean"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("killed_at", [2, 3, 4, 6])
def test_a_loss_s_own_state_and_what_was_lost_since_the_last_checkpoint_come_back(
    tmp_path: Path, optimizer: str, killed_at: int
) -> None:
    """Six steps in two epochs; a checkpoint after every step, or after none: then it begins anew."""
    settings = Settings(epochs=2, items=96, batch_size=32, crop=2, flip=True, optimizer=optimizer)
    whole, loss = network(), Remembers()
    session(tmp_path / "whole").fit("net", whole, loss, settings)
    for every_s in (0.0, 1e9):
        out = tmp_path / f"{every_s:g}"
        with pytest.raises(Killed):
            session(out, every_s).fit("net", network(), Remembers(killed_at), settings)
        assert (out / "unfinished" / "net.checkpoint").is_file() == (every_s == 0)
        again, after = network(), Remembers()
        session(out, every_s, resume=True).fit("net", again, after, settings)
        assert after.calls == loss.calls == 6 and torch.equal(after.mean, loss.mean)
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_gradients_that_nothing_learns_from_but_clipping_counts_come_back(tmp_path: Path) -> None:
    def frozen() -> nn.Module:
        net = network()
        net.register_parameter("still", nn.Parameter(torch.zeros(1), requires_grad=False))
        net.still.grad = torch.full((1,), 100.0)
        return net

    def killed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if float(model.still.grad) < 100:  # the second step
            raise Killed
        return cross_entropy(model, x, y)

    settings = Settings(epochs=1, items=96, batch_size=32)
    whole, again = frozen(), frozen()
    session(tmp_path / "whole").fit("net", whole, cross_entropy, settings)
    with pytest.raises(Killed):
        session(tmp_path / "parts", 0.0).fit("net", frozen(), killed, settings)
    session(tmp_path / "parts", 0.0, resume=True).fit("net", again, cross_entropy, settings)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr": 0.5}, r"another settings\.lr: 0\.2 then, 0\.5 now"),
        ({"seed": 1}, r"another settings\.seed: 0 then, 1 now"),
        ({"items": 32}, r"another settings\.items: 96 then, 32 now"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    settings: dict[str, Any] = {"epochs": 1, "items": 96, "batch_size": 32}
    with pytest.raises(Killed):
        session(tmp_path, 0.0).fit("net", network(), Remembers(2), Settings(**settings))
    with pytest.raises(UserError, match=says):
        session(tmp_path, resume=True).fit("net", network(), Remembers(), Settings(**{**settings, **change}))


def test_other_data_under_the_same_settings_are_refused(tmp_path: Path) -> None:
    settings = Settings(epochs=1, items=96, batch_size=32)
    with pytest.raises(Killed):
        session(tmp_path, 0.0).fit("net", network(), Remembers(2), settings)
    other = session(tmp_path, resume=True)
    other.workload["inputs"] = {"name": "digits", "options": {"size": 16}}
    with pytest.raises(UserError, match="of a training with another data"):
        other.fit("net", network(), Remembers(), settings)


def test_epochs_are_those_asked_for_but_a_rule_s_steps_stay(tmp_path: Path) -> None:
    table = RECIPES["learned rules"]
    train_workload(table, tmp_path, progress=False, epochs=3)
    card = json.loads((tmp_path / "resnet8_tiny.json").read_text())
    assert card["epochs"] == 3 and card["recipe"] == "dynbench train idk_tiny --epochs 3"
    made = session(tmp_path)
    made.epochs = 7
    assert made.settings(Settings, "resnet", epochs=2).epochs == 7
    assert made.settings(RuleSettings, "rule", epochs=2).epochs == 2


def session(out: Path, every_s: float = 30.0, resume: bool = False) -> Session:
    out.mkdir(exist_ok=True)
    workload = {"name": "own_tiny", "inputs": OTHER_ONES_EACH_EPOCH}
    made = Session(workload, out, torch.device("cpu"), resume=resume, progress=False)
    made.keeping.every_s = every_s
    return made


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10))


def test_time_is_what_decides_when_a_step_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, kept = iter(range(0, 10_000, 7)), list[int]()  # every look at the clock is 7 s later

    def keep(path: Path, facts: dict[str, Any], parts: Any) -> None:
        kept.append(facts["done"])

    monkeypatch.setattr("dynbench.training.keeping.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("dynbench.training.keeping.write_checkpoint", keep)
    training = session(tmp_path, 30.0)
    training.keeping.kept_at = 0.0
    steps = training.steps("net", Settings(epochs=1))
    assert list(steps(20)) == list(range(20))
    assert kept[-1] == 20 and len(kept) > 3 and all(3 <= b - a <= 5 for a, b in zip(kept[:-2], kept[1:-1], strict=True))

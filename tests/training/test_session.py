"""The training loop: seeded, resumable, and strict about its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.errors import UserError
from dynbench.models.resnet import resnet
from dynbench.training import train_workload
from dynbench.training.session import Session, Settings, augment, cross_entropy, one_cycle

CPU = torch.device("cpu")


def workload(name: str = "own_tiny", **train: Any) -> dict[str, Any]:
    inputs = {"name": "cluttered_digits", "options": {"size": 16}}
    return {"name": name, "inputs": inputs, "train": train}


def session(out: Path, resume: bool = False, **train: Any) -> Session:
    return Session(workload(**train), out, CPU, resume=resume, progress=False)


def network() -> nn.Module:
    torch.manual_seed(0)
    return resnet(8)


SHORT = Settings(epochs=3, items=64, batch_size=32, crop=2, flip=True)


class Interrupted(Exception):
    pass


def interrupted_at(step: int) -> Any:
    steps = iter(range(step))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if next(steps, None) is None:
            raise Interrupted
        return cross_entropy(model, x, y)

    return loss


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_interrupted_training_goes_on_exactly_as_it_would_have(tmp_path: Path, optimizer: str) -> None:
    settings = Settings(epochs=3, items=64, batch_size=32, crop=2, flip=True, optimizer=optimizer)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = network()
    session(tmp_path / "a").fit("net", whole, cross_entropy, settings)
    with pytest.raises(Interrupted):
        session(tmp_path / "b").fit("net", network(), interrupted_at(3), settings)
    again = network()
    session(tmp_path / "b", resume=True).fit("net", again, cross_entropy, settings)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_without_resume_training_begins_anew(tmp_path: Path) -> None:
    nets = []
    for resume in (False, False, True):
        nets.append(network())
        session(tmp_path, resume).fit("net", nets[-1], cross_entropy, SHORT)
    first, second, resumed = (net.conv1.weight for net in nets)
    assert torch.equal(first, second) and torch.equal(first, resumed)
    assert not torch.equal(first, network().conv1.weight)


def test_another_seed_trains_another_network(tmp_path: Path) -> None:
    weights = []
    for seed in (0, 1):
        net = network()
        session(tmp_path).fit("net", net, cross_entropy, Settings(epochs=1, items=32, batch_size=32, seed=seed))
        weights.append(net.conv1.weight)
    assert not torch.equal(*weights)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    def loss(net: nn.Module) -> float:
        x, y = s.tensors(s.inputs("train", limit=256))
        with torch.inference_mode():
            return float(cross_entropy(net.eval(), x, y))

    s, net = session(tmp_path), network()
    before = loss(net)
    s.fit("net", net, cross_entropy, Settings(epochs=6, items=256, batch_size=32, lr=0.05))
    assert loss(net) < before


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [one_cycle(100, 0.25, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[25] == pytest.approx(1) and rates[100] == pytest.approx(0.001)
    assert rates[:26] == sorted(rates[:26]) and rates[25:] == sorted(rates[25:], reverse=True)


def test_a_shifted_image_is_the_image_elsewhere_and_zero_around() -> None:
    torch.manual_seed(0)
    x = torch.zeros(64, 1, 9, 9)
    x[:, :, 4, 4] = 1
    moved = augment(x, crop=2, flip=False)
    assert moved.sum((1, 2, 3)).eq(1).all()
    places = moved[:, 0].flatten(1).argmax(1)
    rows, columns = places // 9, places % 9
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4, 5, 6}


def test_about_half_of_the_images_are_mirrored_whole() -> None:
    torch.manual_seed(0)
    x = torch.rand(100, 3, 4, 5)
    mirrored = augment(x, crop=0, flip=True)
    flipped = [torch.equal(m, o.flip(2)) for m, o in zip(mirrored, x, strict=True)]
    kept = [torch.equal(m, o) for m, o in zip(mirrored, x, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True)) and 30 < sum(flipped) < 70


def test_a_stage_s_own_settings_count_before_the_general_ones(tmp_path: Path) -> None:
    s = session(tmp_path, options={"lr": 0.3, "items": 5, "resnet": {"lr": 0.7}})
    settings = s.settings(Settings, "resnet", epochs=4, items=9)
    assert (settings.epochs, settings.items, settings.lr) == (4, 5, 0.7)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epoch": 3}, "unknown key 'epoch'"),
        ({"resnet": {"learning_rate": 3}}, "unknown key 'learning_rate' for resnet"),
        ({"optimizer": "adam"}, "sgd or adamw"),
        ({"epochs": 0}, "epochs = 0"),
    ],
)
def test_settings_that_are_not_accepted_are_named(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        session(tmp_path, options=options).settings(Settings, "resnet", epochs=1)


def test_a_workload_without_recipe_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no \\[train\\] table"):
        train_workload({"name": "plain"}, tmp_path)


@pytest.mark.usefixtures("no_gpu")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        train_workload(workload(recipe="dynbench.training.lm:train"), tmp_path, device="cuda")


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        train_workload(workload(recipe="dynbench.training.lm:train"), tmp_path / "file" / "out")

"""Neural module networks on SHAPES: modules learn from answers alone, each in all questions that use it.

Ours: several questions about each generated scene, whose features are computed once; a first stage without relations of
relations; Adam with weight decay instead of AdaDelta.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.data.shapes import RELATED
from dynbench.dynamic import Execution
from dynbench.dynamic.program import MODULE, NONE
from dynbench.models.nmn import NMN, nmn
from dynbench.strategies import Compaction
from dynbench.training.evaluation import accuracy, logits
from dynbench.training.session import Session, Settings

STAGES: dict[str, dict[str, Any]] = {
    "simple": {"epochs": 3, "items": 6400, "related": (0.6, 0.4, 0.0)},
    "all": {"epochs": 8, "items": 6400},
}


@dataclass
class Asking(Settings):
    """Settings of a stage.

    Attributes:
        questions: number of questions about each scene.
        related: shares of questions with 0, 1 and 2 relations.
    """

    batch_size: int = 32
    lr: float = 4e-3
    warm_up: float = 0.1
    optimizer: str = "adamw"
    precision: str = "float32"
    weight_decay: float = 1e-4
    questions: int = 8
    related: tuple[float, float, float] = RELATED


def train(session: Session) -> None:
    """The module network `nmn_{suffix}`, in two stages; `[train.options.simple]` and `[train.options.all]`."""
    name = f"nmn_{session.suffix}"
    if session.finished(name):
        return
    args: dict[str, Any] = session.workload.get("model_args", {})
    stages = {stage: session.settings(Asking, stage, **defaults) for stage, defaults in STAGES.items()}
    torch.manual_seed(stages["simple"].seed)
    net = nmn(**args)
    about = {}
    for stage, settings in stages.items():
        about[stage] = asking(session, settings).fit(f"{name}_{stage}", net, several, settings)
    facts = evaluate(session, net)
    session.say(f"{name}: accuracy {facts['accuracy']:.4f}, static twin {facts['static_twin']['accuracy']:.4f}")
    session.save(name, net, session.card("dynbench.models.nmn:nmn", args=args, **facts, stages=about))
    for stage in stages:
        session.forget(f"{name}_{stage}")


def asking(session: Session, settings: Asking) -> Session:
    """The same session, with several questions about each scene of the training part."""
    inputs = session.workload["inputs"]
    options = {**inputs.get("options", {}), "questions": settings.questions, "related": settings.related}
    return replace(session, workload={**session.workload, "inputs": {**inputs, "options": options}})


def several(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy: scenes with questions x [n, 3 + Q, H, W], answers y [n, Q] -> scalar."""
    assert isinstance(model, NMN)
    y = y.view(len(x), -1)
    features = model.stem(x[:, :3]).repeat_interleave(y.shape[1], 0)  # [n Q, C, S, S]
    outputs = model.program(features, x[:, 3:].flatten(0, 1))  # the static twin: the same function
    return F.cross_entropy(outputs.float(), y.flatten())


def evaluate(session: Session, net: NMN) -> dict[str, Any]:
    """For the card: accuracy on the test part, by number of modules as in the paper's table 2; and on other data."""
    x, y = session.tensors(session.inputs("test"))
    facts = _scores(net, x, y)
    for title, split, other in (
        ("validation", "validation", session),
        ("generated", "test", replace(session, data_dir=None)),
    ):
        data = other.inputs(split)
        facts[title] = {"description": data.description, **_scores(net, *session.tensors(data))}
    return facts


def _scores(net: NMN, x: Tensor, y: Tensor) -> dict[str, Any]:
    outputs = logits(lambda part: Execution(Compaction()).run(net, part), x)
    nodes = (net.parse(x[:, 3])[:, :, MODULE] != NONE).sum(1).to(y.device)
    by_nodes = {str(k): accuracy(outputs[nodes == k], y[nodes == k]) for k in nodes.unique().tolist()}
    return {
        "accuracy": accuracy(outputs, y),
        "accuracy_by_modules": by_nodes,
        "majority": round(max((y == k).double().mean().item() for k in y.unique()), 5),
        "static_twin": {"name": "the largest layout for everybody", "accuracy": accuracy(logits(net, x), y)},
        "modules_run": round(nodes.double().mean().item(), 4),
    }

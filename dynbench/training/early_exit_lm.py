"""A decoder with a loss at every layer, the calibration of its exit threshold, and a small draft model.

Schuster et al., "Confident Adaptive Language Modeling", NeurIPS 2022: loss, classifier, and calibration by Learn then
Test (Angelopoulos et al., arXiv 2110.01052). The draft, for speculative decoding, is distilled from the decoder.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import DecisionPoint, Execution
from dynbench.models.decoder import (
    EXIT,
    Confidence,
    Decoder,
    Measure,
    accounted_macs,
    decoder,
    exit_loss,
    layer_states,
    layers_run,
)
from dynbench.models.moe_gpt import GPT
from dynbench.strategies import Compaction
from dynbench.training.evaluation import STORED, dtype_name, round_parameters
from dynbench.training.keeping import Steps, unkept
from dynbench.training.session import Session, Settings

LANGUAGE_MODEL = ("layers", "width", "heads", "context", "vocab", "ff_multiple")
BATCH = 128
CALIBRATION = (
    "Learn then Test, a fixed sequence of thresholds from 1 down, Hoeffding's p-value; the risk is the mean share of "
    "generated tokens that differ from those of all layers; where no threshold is shown to be safe: 1, unproven"
)


@dataclass
class RuleSettings(Settings):
    """Settings of calibration, and of the classifier: `epochs` are steps, each on all of `items` windows.

    Attributes:
        delta: accepted mean share of tokens that differ from those of all layers.
        epsilon: accepted probability of a larger share on other data from the same distribution.
        candidates: number of thresholds tried, evenly spaced from 1 to 0.
        prompts: number of held-out prompts for calibration.
    """

    passes: ClassVar[bool] = False
    delta: float = 0.25
    epsilon: float = 0.05
    candidates: int = 41
    prompts: int = 1024


def train(session: Session) -> None:
    """The decoder `decoder_{suffix}` and its exit rule, `exit_{suffix}`.

    `[train.options.lm]` and `[train.options.rule]` hold their settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    net = train_decoder(session, args)
    name = f"exit_{session.suffix}"
    if session.finished(name):
        return
    settings = session.settings(RuleSettings, "rule", epochs=300, items=256, lr=0.01)
    steps = session.steps(name, settings)
    found = {measure: rule(session, args, net, measure, settings, steps) for measure in get_args(Measure)}
    policy, facts = found[args["measure"]]
    session.say(f"{name}: threshold {facts['threshold']}, {facts['mean_layers']} of {len(net.blocks)} layers per token")
    facts["by_measure"] = {measure: about for measure, (_, about) in found.items() if measure != args["measure"]}
    parts = {"net": f"decoder_{session.suffix}", "policy": name}
    card = session.card("dynbench.models.decoder:decoder", args=args, weights_by_part=parts, **facts)
    session.save(name, policy, card)


def train_plain(session: Session) -> None:
    """The decoder alone, `decoder_{suffix}`."""
    train_decoder(session, session.workload.get("model_args", {}))


def train_speculative(session: Session) -> None:
    """The decoder `decoder_{suffix}` and its draft `draft_{suffix}`.

    `[train.options.lm]` and `[train.options.draft]` hold their settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    target = train_decoder(session, args.get("target", {}))
    name = f"draft_{session.suffix}"
    if session.finished(name):
        return
    own = {k: v for k, v in args.get("draft", {}).items() if k in LANGUAGE_MODEL}
    settings = _settings(session, "draft", epochs=12)
    torch.manual_seed(settings.seed)
    draft = decoder(**own).net
    facts = _windows(session, draft).fit(name, draft, Distil(target), settings)
    facts |= scores(session, draft)
    session.say(f"{name}: {facts['bits_per_byte']:.3f} bits per byte")
    session.save(name, draft, session.card("dynbench.models.decoder:decoder", args=own, **facts), STORED)


def train_decoder(session: Session, args: dict[str, Any]) -> GPT:
    """The language model of a decoder, trained by the loss of every layer; loaded if it is finished."""
    name = f"decoder_{session.suffix}"
    own = {k: v for k, v in args.items() if k in LANGUAGE_MODEL}
    settings = _settings(session, "lm", epochs=14)
    torch.manual_seed(settings.seed)
    net = decoder(**own).net
    if session.finished(name):
        session.load(net, name)
        return net.eval()
    facts = _windows(session, net).fit(name, net, every_layer, settings)
    facts |= scores(session, net)
    session.say(f"{name}: bits per byte {facts['bits_per_byte']:.3f}")
    card = session.card("dynbench.models.decoder:decoder", args=own, **facts)
    card["cautions"] += overfitted(facts["bits_per_byte_by_layer"])
    session.save(name, net, card, STORED)
    return net


def every_layer(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss of every layer: tokens x and the next ones y [n, T] -> scalar."""
    assert isinstance(net, GPT)
    return exit_loss(net, x, y)


class Distil:
    """Distillation of the draft: cross-entropy with the target's probabilities."""

    def __init__(self, target: GPT) -> None:
        self.target = target.eval()

    def __call__(self, draft: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Tokens x [n, T] -> scalar; labels are not used."""
        with torch.no_grad():
            p = self.target(x).float().softmax(-1)
        return F.cross_entropy(draft(x).float().flatten(0, 1), p.flatten(0, 1))


def _settings(session: Session, stage: str, epochs: int) -> Settings:
    adamw: dict[str, Any] = {"batch_size": 32, "lr": 2e-3, "warm_up": 0.1, "weight_decay": 0.1, "optimizer": "adamw"}
    return session.settings(Settings, stage, epochs=epochs, **adamw)


def _windows(session: Session, net: GPT) -> Session:
    """The same session with windows of the length of the network's context instead of a prompt's."""
    inputs = session.workload["inputs"]
    options = {**inputs.get("options", {}), "context": net.context}
    return dataclasses.replace(session, workload={**session.workload, "inputs": {**inputs, "options": options}})


@torch.inference_mode()
def scores(session: Session, net: GPT) -> dict[str, Any]:
    """For the card: bits per byte of every layer on each part, with weights as stored."""
    round_parameters(net)
    net.eval()
    by_part: dict[str, list[float]] = {}
    for part in ("train", "validation", "test"):
        x, y = _part(_windows(session, net), part, 500)
        nats = torch.zeros(len(net.blocks), dtype=torch.float64)
        for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True):
            for i, state in enumerate(layer_states(net, a)):
                outputs = net.head(net.norm(state)).float().flatten(0, 1)
                nats[i] += F.cross_entropy(outputs, b.flatten(), reduction="sum").double().cpu()
        by_part[part] = [round(v, 4) for v in (nats / y.numel() / math.log(2)).tolist()]
    return {
        "stored_as": dtype_name(STORED),
        "bits_per_byte": by_part["test"][-1],
        "bits_per_byte_by_layer": by_part,
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def overfitted(bits: dict[str, list[float]]) -> list[str]:
    """For the card: a caution if the training part is memorised; `bits` per byte of each layer, by part."""
    train, held_out = bits["train"][-1], bits["validation"]
    best = min(range(len(held_out)), key=held_out.__getitem__)
    if held_out[-1] - train < 0.3:
        return []
    return [
        f"Overfitted: the last layer has {train:.2f} bits per byte on the training part and {held_out[-1]:.2f} on the "
        f"validation part, where layer {best + 1} of {len(held_out)} is the best with {held_out[best]:.2f}."
    ]


def _part(session: Session, part: str, limit: int | None) -> tuple[Tensor, Tensor]:
    return session.tensors(session.inputs(part, limit=limit))


def rule(
    session: Session, args: dict[str, Any], net: GPT, measure: Measure, settings: RuleSettings, steps: Steps = unkept
) -> tuple[Confidence, dict[str, Any]]:
    """A policy with this measure, a trained classifier and a calibrated threshold; and facts for the card."""
    torch.manual_seed(settings.seed)
    model = decoder(**{**args, "measure": measure}).to(session.device).eval()
    model.net.load_state_dict(net.state_dict())
    policy = model.policy
    assert policy is not None
    facts: dict[str, Any] = {"measure": measure}
    if policy.classifier is not None:
        x, _ = _part(_windows(session, net), "train", settings.items)
        facts["classifier_accuracy"] = learn_classifier(policy.classifier, net, x, settings, steps)
    held_out = session.inputs("validation", limit=settings.prompts)
    x, _ = session.tensors(held_out)
    full = texts(model, x, Execution(Compaction(), choose=none_leaves))

    def risk(threshold: float) -> Tensor:
        policy.threshold.fill_(threshold)
        return difference(texts(model, x, Execution(Compaction())), full)

    candidates = torch.linspace(1, 0, settings.candidates).tolist()
    threshold, risks = learn_then_test(risk, candidates, settings.delta, settings.epsilon)
    policy.threshold.fill_(1.0 if threshold is None else threshold)
    return policy, {
        **facts,
        "threshold": None if threshold is None else round(threshold, 4),
        **evaluate(session, model),
        "calibration": {
            "rule": CALIBRATION,
            "delta": settings.delta,
            "epsilon": settings.epsilon,
            "risks": {f"{t:.3f}": round(r, 4) for t, r in risks.items()},
            "held_out_data": {"description": held_out.description, "content_hash": held_out.content_hash},
        },
    }


def none_leaves(point: DecisionPoint, scores: Tensor) -> Tensor | None:
    """For `Execution(choose=...)`: all layers for every token; other points make their own decisions."""
    return torch.zeros_like(scores) if point.name == EXIT else None


@torch.inference_mode()
def texts(model: Decoder, x: Tensor, ex: Execution) -> Tensor:
    """The texts generated after the prompts x [n, S]: [n, N]."""
    starts = range(0, len(x), BATCH)
    return torch.cat([ex.run(model, x[i : i + BATCH], start=i, items=len(x)) for i in starts])


def difference(text: Tensor, full: Tensor) -> Tensor:
    """Share of the tokens of `full` [n, N], without its -1s, that differ in `text`: [n]."""
    written = full >= 0
    return ((text != full) & written).double().sum(1) / written.double().sum(1)


def learn_then_test(
    risk: Callable[[float], Tensor], candidates: Sequence[float], delta: float, epsilon: float
) -> tuple[float | None, dict[float, float]]:
    """The last threshold of a fixed sequence before the first that cannot be shown to be safe.

    Args:
        risk: of each held-out sample at a threshold, [n] from 0 to 1.
        candidates: from the safest on.
        delta: accepted mean risk.
        epsilon: accepted probability that the threshold has a higher mean risk.

    Returns:
        The threshold, None if not even the first can be shown to be safe; the mean risks of those tried.
    """
    chosen, means = None, {}
    for threshold in candidates:
        risks = risk(threshold)
        means[threshold] = float(risks.mean())
        # Hoeffding: p-value of the hypothesis that the mean risk is above delta
        p = math.exp(-2 * len(risks) * max(0.0, delta - means[threshold]) ** 2)
        if p > epsilon:
            break
        chosen = threshold
    return chosen, means


def learn_classifier(classifier: nn.Linear, net: GPT, x: Tensor, settings: Settings, steps: Steps = unkept) -> float:
    """Trains M to predict whether a layer's likeliest token is that of the last layer; the network is fixed.

    Args:
        classifier: d -> 1; trained in place.
        net: the language model.
        x: [n, T] tokens.
        settings: epochs are steps here.
        steps: of the training.

    Returns:
        Its accuracy over layers and tokens.
    """
    with torch.no_grad():
        parts = [torch.stack(layer_states(net, part)) for part in x.split(BATCH)]  # [L, n, T, d] each
        states = torch.cat(parts, 1).flatten(1, 2)  # [L, n * T, d]
        likeliest = torch.stack([net.head(net.norm(state)).argmax(-1) for state in states])  # [L, n * T]
    inputs, same = states[:-1].flatten(0, 1), (likeliest[:-1] == likeliest[-1]).flatten().to(states.dtype)
    optimizer = torch.optim.Adam(classifier.parameters(), settings.lr)
    for _ in steps(settings.epochs, classifier=classifier, optimizer=optimizer):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(classifier(inputs).squeeze(-1), same).backward()
        optimizer.step()
    with torch.no_grad():
        right = (classifier(inputs).squeeze(-1) > 0) == same.bool()
    return round(float(right.double().mean()), 4)


def evaluate(session: Session, model: Decoder) -> dict[str, Any]:
    """For the card: layers run by tokens, the share of tokens equal to those of all layers, and computation."""
    x, _ = _part(session, "test", 256)
    ex = Execution(Compaction(), record=True)
    text = texts(model, x, ex)
    everything = Execution(Compaction(), choose=none_leaves, record=True)
    full = texts(model, x, everything)
    assert ex.trace is not None and everything.trace is not None
    written, depth = layers_run(model, ex.trace)
    macs, words = accounted_macs(model, ex.trace, tuple(x.shape[1:]))
    plain = Decoder(model.net, None, model.length, model.stop)
    dense, _ = accounted_macs(plain, everything.trace, tuple(x.shape[1:]))
    left = depth[written].bincount(minlength=len(model.net.blocks) + 1)[1:].double()
    return {
        "mean_layers": round(float(depth[written].double().mean()), 4),
        "share_of_tokens_by_layer": [round(v, 4) for v in (left / left.sum()).tolist()],
        "same_tokens": round(1 - float(difference(text, full).mean()), 4),
        "computation": round(macs / dense, 4),
        "computation_rule": f"{words}; relative to all layers and one output layer per token",
    }

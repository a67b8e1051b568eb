"""How right answers are, by the task that they are answers to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dynbench.errors import DynbenchError
from dynbench.store.schema import Accuracy

IGNORE = -100  # the label of what is not judged, such as padding: torch's own convention


class CannotJudge(DynbenchError):
    """Answers and labels do not fit each other or the task; the message is the reason, for 'not measured: ...'."""


class Score(NamedTuple):
    """What a metric of one's own returns.

    Attributes:
        value: how right the answers are; with the unit '%', a share of 0 to 1.
        name: of the metric: 'mean IoU'.
        unit: '%', or that of the value ('mm'), or nothing.
        higher_is_better: else lower is.
    """

    value: float
    name: str
    unit: str = ""
    higher_is_better: bool = True


@dataclass(frozen=True)
class Rules:
    """How a task is judged, apart from its kind.

    Attributes:
        ignore: the label of what is not judged.
        threshold: above which an answer says yes; None: 0, as answers are logits.
        token: what has a label of its own in a text: 'byte', 'token'.
    """

    ignore: int = IGNORE
    threshold: float | None = None
    token: str = "token"


def judged(kind: str | None, answers: Tensor, labels: Tensor, rules: Rules | None = None) -> Accuracy:
    """How right answers are.

    Args:
        kind: of `KINDS`; None: that which types and shapes leave no doubt about.
        answers: [n, ...].
        labels: [n, ...].
        rules: of the task.

    Raises:
        CannotJudge: answers and labels do not fit the kind, or, without one, each other in one way only.
    """
    rules = rules or Rules()
    found = KINDS[kind or recognised(answers, labels, rules)](answers.cpu(), labels.cpu(), rules)
    if not math.isfinite(float(found.value)):  # type: ignore[arg-type]
        raise CannotJudge(f"the {found.metric} is {found.value}: the answers are not all finite numbers")
    return found


def recognised(answers: Tensor, labels: Tensor, rules: Rules | None = None) -> str:
    """The only kind that types, shapes and values of answers and labels allow; regression and the like never are.

    Raises:
        CannotJudge: none, or more than one.
    """
    rules = rules or Rules()
    found = [kind for kind, (dims, at) in _CLASS_AXIS.items() if _fits(answers, labels, dims, at, rules)]
    if "tokens" in found and rules.token == "byte":
        return "language"
    if len(found) == 1:
        return found[0]
    say = f'[task] kind says it: {", ".join(KINDS)}, none, or "file.py:function"'
    which = f"answers {_told(answers)} and labels {_told(labels, values=True)}"
    raise CannotJudge(f"{which} leave open how they are judged; {say}")


_CLASS_AXIS = {"classes": (1, 1), "tokens": (2, 2), "pixels": (3, 1), "positions": (2, 1)}
"""Dimensions of the labels, and which one of the answers is the class; 'positions' is only known to be another way."""


def _fits(answers: Tensor, labels: Tensor, dims: int, at: int, rules: Rules) -> bool:
    """Whether answers are scores of classes for everything that has a label."""
    if not answers.is_floating_point() or labels.is_floating_point() or labels.is_complex():
        return False
    if labels.dim() != dims or answers.dim() != dims + 1 or answers.shape[at] < 2:
        return False
    if answers.movedim(at, -1).shape[:-1] != labels.shape:
        return False
    known = labels[labels != rules.ignore]
    return bool(known.numel()) and int(known.min()) >= 0 and int(known.max()) < answers.shape[at]


def _told(t: Tensor, *, values: bool = False) -> str:
    """'[64, 12] float32'; with the values of whole numbers '[64] int64 (0 to 9)'."""
    told = f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}"
    whole = values and t.numel() and not (t.is_floating_point() or t.is_complex() or t.dtype == torch.bool)
    return f"{told} ({int(t.min())} to {int(t.max())})" if whole else told


# --- one of several classes ------------------------------------------------------------------------------------------


def classes(answers: Tensor, labels: Tensor, rules: Rules) -> Accuracy:
    """Share of items whose highest score is their label: scores [n, C] or classes [n] long, labels [n]."""
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if not answers.is_floating_point() and answers.shape == labels.shape:
        return _share_right(answers == labels, labels, rules, "top-1 accuracy")
    return _highest(answers, labels, rules, "classes", "top-1 accuracy")


def tokens(answers: Tensor, labels: Tensor, rules: Rules) -> Accuracy:
    """Share of tokens whose highest score is their label: scores [n, T, V], labels [n, T]."""
    return _highest(answers, labels, rules, "tokens", "token accuracy")


def pixels(answers: Tensor, labels: Tensor, rules: Rules) -> Accuracy:
    """Share of pixels whose highest score is their label: scores [n, C, H, W], labels [n, H, W]."""
    return _highest(answers, labels, rules, "pixels", "pixel accuracy")


def language(answers: Tensor, labels: Tensor, rules: Rules) -> Accuracy:
    """Mean negative log2-probability of the next token; a model of V tokens that guesses evenly has log2 V.

    Args:
        answers: logits [n, T, V].
        labels: the next tokens [n, T] long.
        rules: of the task.
    """
    _require_fit(answers, labels, "tokens", rules)
    nats = torch.nn.functional.cross_entropy(
        answers.double().flatten(0, 1), labels.long().flatten(), ignore_index=rules.ignore
    )
    return Accuracy(
        value=nats.item() / math.log(2),
        metric=f"bits per {rules.token}",
        unit="",
        higher_is_better=False,
        items=labels.shape[0],
    )


def _highest(answers: Tensor, labels: Tensor, rules: Rules, kind: str, metric: str) -> Accuracy:
    _require_fit(answers, labels, kind, rules)
    return _share_right(answers.argmax(_CLASS_AXIS[kind][1]) == labels, labels, rules, metric)


def _require_fit(answers: Tensor, labels: Tensor, kind: str, rules: Rules) -> None:
    dims, at = _CLASS_AXIS[kind]
    if not _fits(answers, labels, dims, at, rules):
        shape = {"classes": "[n, C]", "tokens": "[n, T, V]", "pixels": "[n, C, H, W]"}[kind]
        raise CannotJudge(
            f"{kind} are judged by scores {shape} and integer labels of 0 to the last class (or {rules.ignore}) for "
            f"each of them; answers are {_told(answers)}, labels {_told(labels)}"
        )


def _share_right(right: Tensor, labels: Tensor, rules: Rules, metric: str) -> Accuracy:
    known = labels != rules.ignore
    if not bool(known.any()):
        raise CannotJudge("no item has a label that is judged")
    items = int(known.reshape(known.shape[0], -1).any(1).sum())
    return Accuracy(value=right[known].double().mean().item(), metric=metric, unit="%", items=items)


# --- yes or no, and numbers ------------------------------------------------------------------------------------------


def binary(answers: Tensor, labels: Tensor, rules: Rules) -> Accuracy:
    """Share of items of which yes or no is right: answers [n] or [n, 1], labels [n] or [n, 1] of 0 and 1."""
    answers, labels = _alike(answers, labels, "binary")
    if answers.dim() != 1:
        raise CannotJudge(f"binary is judged by one number for each item; answers are {_told(answers)}")
    said, right = _yes_or_no(answers, labels, rules)
    return _share_right(said == right, labels, rules, "binary accuracy")


def multilabel(answers: Tensor, labels: Tensor, rules: Rules) -> Accuracy:
    """F1 of all labels together: answers [n, L], labels [n, L] of 0 and 1."""
    answers, labels = _alike(answers, labels, "multilabel")
    said, right = _yes_or_no(answers, labels, rules)
    known = labels != rules.ignore
    hits, wrong = int((said & right & known).sum()), int(((said != right) & known).sum())
    if hits + wrong == 0:
        raise CannotJudge("micro F1 has no value where neither answers nor labels say yes")
    return Accuracy(value=2 * hits / (2 * hits + wrong), metric="micro F1", unit="%", items=labels.shape[0])


def regression(answers: Tensor, labels: Tensor, rules: Rules) -> Accuracy:
    """Mean absolute error: answers and labels of one shape, [n] or [n, ...]; NaN labels are not judged."""
    answers, labels = _alike(answers, labels, "regression")
    known = ~labels.double().isnan()
    if not bool(known.any()):
        raise CannotJudge("no item has a label that is judged")
    error = (answers.double() - labels.double())[known].abs().mean().item()
    return Accuracy(value=error, metric="mean absolute error", unit="", higher_is_better=False, items=labels.shape[0])


def _alike(answers: Tensor, labels: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Answers and labels of one shape; [n, 1] is [n].

    Raises:
        CannotJudge: they have different shapes, or answers are no real numbers.
    """
    one, other = (t[:, 0] if t.dim() == 2 and t.shape[1] == 1 else t for t in (answers, labels))
    if one.shape != other.shape or not one.is_floating_point() or other.is_complex():
        raise CannotJudge(
            f"{kind} is judged by a real number for each label; answers are {_told(answers)}, labels {_told(labels)}"
        )
    return one, other


def _yes_or_no(answers: Tensor, labels: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
    known = labels[labels != rules.ignore]
    if not bool(((known == 0) | (known == 1)).all()):
        raise CannotJudge(f"yes and no are labels of 1 and 0; labels go from {known.min()} to {known.max()}")
    if rules.threshold is None and bool(((answers >= 0) & (answers <= 1)).all()):
        raise CannotJudge(
            "all answers lie between 0 and 1: [task] threshold = 0.5 if they are probabilities, 0.0 if they are logits"
        )
    return answers > (rules.threshold or 0.0), labels == 1


KINDS: dict[str, Callable[[Tensor, Tensor, Rules], Accuracy]] = {
    "classes": classes,
    "tokens": tokens,
    "language": language,
    "pixels": pixels,
    "binary": binary,
    "multilabel": multilabel,
    "regression": regression,
}
"""The kinds of tasks by name."""

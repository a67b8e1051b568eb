"""Accuracy of the dynamic network and of its baselines, on held-out labelled inputs, with the model's own decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dynbench.data.dataset import map_arrays
from dynbench.dynamic import Execution
from dynbench.dynamic.items import called, joined_answers, map_items, named_tensors
from dynbench.errors import UserError
from dynbench.experiment.build import Prepared
from dynbench.experiment.networks import Stream, to_batch
from dynbench.experiment.plan import control_strategy
from dynbench.meters.accuracy import CannotJudge, Rules, Score, judged
from dynbench.paths import load_function
from dynbench.store.schema import Accuracy
from dynbench.strategies import Masking
from dynbench.unavailable import Unavailable

BATCH = 50


@torch.inference_mode()
def accuracies(p: Prepared) -> dict[str, Accuracy]:
    """By network: 'dynamic', and the name of each baseline and opaque network; of those that cannot be judged why."""
    runs: dict[str, Callable[[Stream], Any]] = {
        name: partial(called, network) for name, network in {**p.baselines, **p.opaque}.items()
    }
    control = control_strategy(p)
    strategy = Masking() if control is None else p.strategy(control)
    runs["dynamic"] = lambda x: Execution(strategy).run(p.model, x)
    return {name: _accuracy(p, run) for name, run in runs.items()}


def _accuracy(p: Prepared, run: Callable[[Stream], Any]) -> Accuracy:
    try:
        return _judged(p, run)
    except Exception as e:  # noqa: BLE001 (a user's model and metric may raise anything; all else is measured)
        known = isinstance(e, CannotJudge | UserError)
        why = " ".join((str(e) if known else f"{type(e).__name__}: {e}").split())
        return Accuracy(value=Unavailable(unavailable=why), metric="accuracy")


def _judged(p: Prepared, run: Callable[[Stream], Any]) -> Accuracy:
    """How right the answers of a network are.

    Raises:
        CannotJudge: there is nothing to judge by, or answers and labels do not fit.
        UserError: the metric cannot be loaded.
    """
    task = p.spec.task
    if task.kind == "none":
        raise CannotJudge("the workload's task is none")
    if p.evaluation is None:
        raise CannotJudge("the inputs have no labels, or run.accuracy_items is 0")
    answers = _answers(p, run)
    labels = map_arrays(torch.from_numpy, p.evaluation.labels)
    if task.kind is not None and ":" in task.kind:
        return _by_own_metric(load_function(task.kind, p.spec.folder), task.kind, answers, labels, len(p.evaluation))
    for what, part in (("answer", answers), ("labels", labels)):
        if not isinstance(part, Tensor):
            kind = type(part).__name__
            raise CannotJudge(f'the {what} to be judged: {kind}, not one array; [task] kind = "file.py:function" can')
    return judged(task.kind, answers, labels, Rules(task.ignore, task.threshold, p.evaluation.token))


def _answers(p: Prepared, run: Callable[[Stream], Any]) -> Any:
    """The entry that is judged of the answers to all labelled inputs, on the CPU."""
    assert p.evaluation is not None
    own = p.spec.task.kind is not None and ":" in p.spec.task.kind
    found, sizes = [], []
    for begin in range(0, len(p.evaluation), BATCH):
        part = p.evaluation[begin : begin + BATCH]
        answer = entry(run(to_batch(part.inputs, p.device, p.dtype)), p.spec.task.answer, whole=own)
        found.append(map_items(lambda t: (t.float() if t.is_floating_point() else t).cpu(), answer))
        sizes.append(len(part))
    return joined_answers(found, sizes)


def entry(answer: Any, which: str | int | None, *, whole: bool = False) -> Any:
    """The entry of an answer that is judged.

    Args:
        answer: of a model; a tensor alone is itself the entry.
        which: a key, a place, an attribute, or a path of these with dots; None: its only tensor with items.
        whole: without `which`, the answer as it is.

    Raises:
        CannotJudge: there is no such entry, or it is not said which of several.
    """
    if isinstance(answer, Tensor) or (which is None and whole):
        return answer
    tensors = {name: t for name, t in named_tensors(answer) if t.dim()}
    if which is None:
        if len(tensors) != 1:
            names = f"with {', '.join(tensors)}" if tensors else "without a tensor"
            raise CannotJudge(f"the answer is a {type(answer).__name__} {names}: [task] answer says which is judged")
        return next(iter(tensors.values()))
    found = answer
    for step in [which] if isinstance(which, int) or _has(answer, which) else which.split("."):
        if not _has(found, step):
            raise CannotJudge(f"[task] answer = {which!r}: the answer has {', '.join(tensors) or 'no tensor'}")
        found = _get(found, step)
    return found


def _has(part: Any, step: str | int) -> bool:
    if isinstance(part, Mapping) and step in part:
        return True
    place = int(step) if str(step).lstrip("-").isdecimal() else None
    if isinstance(part, (tuple, list)) and place is not None:
        return -len(part) <= place < len(part)
    return isinstance(step, str) and not isinstance(part, Tensor) and hasattr(part, step)


def _get(part: Any, step: str | int) -> Any:
    if isinstance(part, Mapping) and step in part:
        return part[step]
    return part[int(step)] if str(step).lstrip("-").isdecimal() else getattr(part, str(step))


def _by_own_metric(metric: Callable[[Any, Any], Any], name: str, answers: Any, labels: Any, items: int) -> Accuracy:
    """What a metric of the user's own says.

    Raises:
        CannotJudge: it raises, or returns something else than a score.
    """
    wanted = "dynbench.Score(value, name, unit, higher_is_better)"
    try:
        said = metric(answers, labels)
    except Exception as e:
        raise CannotJudge(f"{name} raised {type(e).__name__}: {e}") from e
    try:
        score = Score(**said) if isinstance(said, Mapping) else Score(*said)
        value = float(score.value)
    except (TypeError, ValueError) as e:
        raise CannotJudge(f"{name} returned {said!r:.80}, not {wanted}") from e
    if not (isinstance(score.name, str) and isinstance(score.unit, str) and score.name):
        raise CannotJudge(f"{name} returned {said!r:.80}, not {wanted}")
    if not torch.isfinite(torch.tensor(value)) or (score.unit == "%" and not 0 <= value <= 1):
        raise CannotJudge(f"{name} returned {value:g} {score.unit}; a finite number is wanted, in % a share of 0 to 1")
    return Accuracy(
        value=value,
        metric=score.name,
        unit=score.unit,
        higher_is_better=bool(score.higher_is_better),
        items=items,
    )

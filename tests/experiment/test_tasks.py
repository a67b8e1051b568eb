"""A workload says its task and which entry of the answer is judged; what cannot be judged costs nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynbench.errors import UserError
from dynbench.experiment.accuracy import accuracies
from dynbench.experiment.build import prepare
from dynbench.experiment.spec import Options, load_spec
from dynbench.store.schema import Accuracy
from dynbench.unavailable import Unavailable

NET = """
import typing
from dataclasses import dataclass
import numpy as np
import torch
from torch import nn
import dynbench
from dynbench import Exits

LABELS = np.arange(64) % 4
ONE_HOT = 3 * np.eye(4, dtype="float32")[LABELS]

class Pair(typing.NamedTuple):
    box: torch.Tensor
    logits: torch.Tensor

@dataclass
class Output:
    logits: torch.Tensor
    loss: float = 0.5

class Head(nn.Module):
    def __init__(self, form): super().__init__(); self.form = form
    def forward(self, x):
        box = x[:, :2] * 0
        return {"tensor": x, "dict": {"logits": x, "box": box}, "pair": Pair(box, x), "output": Output(x),
                "nested": {"a": [box, {"b": x}]}, "number": -x[:, :1] + 1}[self.form]

class Net(nn.Module):  # hands its input on, so it is right every time
    def __init__(self, form, fails=False):
        super().__init__()
        self.exits = Exits("exit", [nn.Identity(), nn.Identity()], [nn.Identity(), nn.Identity()],
                           lambda a, s, k: a[:, 0] > 0)
        self.head, self.fails = Head(form), fails
    def forward(self, x):
        if self.fails and x.shape[0] > 40: raise RuntimeError("too many\\nitems")
        return self.head(self.exits(x))

class Boxes(nn.Module):  # as many boxes per image as its label says
    def __init__(self): super().__init__(); self.exits = Net("tensor").exits
    def forward(self, x):
        return [{"boxes": row.expand(int(row.argmax()), 4)} for row in self.exits(x)]

def net(form="tensor", fails=False): return Net(form, fails)
def boxes(): return Boxes()
def classes(): return ONE_HOT, LABELS
def first(): return ONE_HOT, (LABELS == 0).astype("float32")
def unlabelled(): return ONE_HOT
def many(): return dynbench.Inputs(ONE_HOT, labels={"class": LABELS})

def mean_level(answers, labels): return dynbench.Score(float(answers.max()), "mean level", "dB", False)
def share_of_boxes(answers, labels):
    right = [len(a["boxes"]) == int(n) for a, n in zip(answers, labels["class"], strict=True)]
    return {"value": sum(right) / len(right), "name": "count accuracy", "unit": "%"}
def raises(answers, labels): raise KeyError("x")
def a_number(answers, labels): return 0.5
def too_large(answers, labels): return 83.0, "mean IoU", "%"
"""


def found(folder: Path, *, inputs: str = "classes", model: str = "net", **lines: str) -> dict[str, Accuracy]:
    """The accuracies of a workload with these lines: 'task', 'model_args'."""
    (folder / "net.py").write_text(NET, encoding="utf-8")
    own = "\n".join(f"{key} = {value}" for key, value in lines.items())
    text = (
        f'schema = 1\nname = "own"\ntitle = "Own"\nmodel = "net.py:{model}"\ninputs = {{ name = "net.py:{inputs}" }}\n'
    )
    (folder / "own.toml").write_text(f"{text}{own}\n", encoding="utf-8")
    return accuracies(prepare(load_spec(str(folder / "own.toml")), Options(batch_sizes=[1, 8])))


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ("tensor", None),
        ("output", None),  # its only tensor
        ("output", '"logits"'),
        ("dict", '"logits"'),
        ("pair", '"logits"'),
        ("pair", "1"),
        ("pair", '"1"'),
        ("nested", '"a.1.b"'),
    ],
)
def test_the_entry_that_is_named_is_judged(tmp_path: Path, form: str, answer: str | None) -> None:
    task = {"task": f"{{ answer = {answer} }}"} if answer else {}
    by_name = found(tmp_path, model_args=f'{{ form = "{form}" }}', **task)
    assert set(by_name) == {"dense", "dynamic"}
    for accuracy in by_name.values():
        assert (accuracy.value, accuracy.metric, accuracy.unit, accuracy.items) == (1.0, "top-1 accuracy", "%", 64)


@pytest.mark.parametrize(
    ("lines", "inputs", "why"),
    [
        ({"model_args": '{ form = "dict" }'}, "classes", "a dict with logits, box: [task] answer says which"),
        ({"model_args": '{ form = "dict" }', "task": '{ answer = "x" }'}, "classes", "the answer has logits, box"),
        ({"model_args": '{ form = "pair" }', "task": "{ answer = 2 }"}, "classes", "the answer has box, logits"),
        ({"model_args": '{ form = "number" }'}, "first", "leave open how they are judged"),
        ({"task": '{ kind = "none" }'}, "classes", "the workload's task is none"),
        ({}, "unlabelled", "the inputs have no labels"),
        ({}, "many", "labels to be judged: dict, not one array"),
        ({"model_args": "{ fails = true }"}, "classes", "RuntimeError: too many"),
        ({"task": '{ kind = "net.py:raises" }'}, "classes", "net.py:raises raised KeyError"),
        ({"task": '{ kind = "net.py:a_number" }'}, "classes", "net.py:a_number returned 0.5, not dynbench.Score"),
        ({"task": '{ kind = "net.py:too_large" }'}, "classes", "in % a share of 0 to 1"),
        ({"task": '{ kind = "net.py:nothing" }'}, "classes", "has no 'nothing'"),
    ],
)
def test_what_cannot_be_judged_is_not_and_says_why(
    tmp_path: Path, lines: dict[str, str], inputs: str, why: str
) -> None:
    for accuracy in found(tmp_path, inputs=inputs, **lines).values():
        assert isinstance(accuracy.value, Unavailable) and why in accuracy.value.unavailable
        assert "\n" not in accuracy.value.unavailable


def test_yes_and_no_by_one_logit_are_judged_where_that_is_the_task(tmp_path: Path) -> None:
    by_name = found(
        tmp_path, inputs="first", model_args='{ form = "number" }', task='{ kind = "binary", threshold = 0.0 }'
    )
    assert by_name["dynamic"].value == 0.0 and by_name["dynamic"].metric == "binary accuracy"  # wrong every time


def test_numbers_are_judged_by_their_distance(tmp_path: Path) -> None:
    by_name = found(tmp_path, inputs="first", model_args='{ form = "number" }', task='{ kind = "regression" }')
    accuracy = by_name["dynamic"]
    assert accuracy.value == pytest.approx(0.25 * 3 + 0.75) and not accuracy.in_percent
    assert accuracy.metric == "mean absolute error" and not accuracy.higher_is_better


def test_a_metric_of_one_s_own_has_its_name_unit_and_direction(tmp_path: Path) -> None:
    accuracy = found(tmp_path, task='{ kind = "net.py:mean_level" }')["dynamic"]
    assert (accuracy.value, accuracy.metric, accuracy.unit) == (3.0, "mean level", "dB")
    assert not accuracy.higher_is_better and not accuracy.in_percent


def test_a_metric_of_one_s_own_is_given_the_entries_of_every_item_and_all_labels(tmp_path: Path) -> None:
    accuracy = found(tmp_path, model="boxes", inputs="many", task='{ kind = "net.py:share_of_boxes" }')["dynamic"]
    assert (accuracy.value, accuracy.metric, accuracy.in_percent) == (1.0, "count accuracy", True)


def test_an_unknown_task_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.kind = 'clases': did you mean classes"):
        found(tmp_path, task='{ kind = "clases" }')

"""Models that take several inputs, and answer in any form, are compared and measured as those of one tensor are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dynbench.dynamic.items import Arguments
from dynbench.errors import UserError
from dynbench.experiment.arms import runnable
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.graphs import proved_dynamic
from dynbench.experiment.memory import ProbeRequest
from dynbench.experiment.networks import build_baseline
from dynbench.experiment.spec import Baseline, Options, load_spec
from dynbench.experiment.verify import verify_workloads
from dynbench.graph import CannotTrace
from dynbench.store.schema import Arm

NET = """
from collections import OrderedDict
from dataclasses import dataclass
import numpy as np
import torch
from torch import nn
import dynbench
from dynbench import Exits

rng = np.random.default_rng(0)
IDS = rng.integers(1, 100, (64, 6))
MASK = np.arange(6) < rng.integers(2, 7, 64)[:, None]
LABELS = rng.integers(0, 2, 64)

class Layer(nn.Module):
    def __init__(self): super().__init__(); self.inner = nn.Linear(8, 8)
    def forward(self, state):
        x, mask = state
        return torch.relu(self.inner(x)) * mask[..., None], mask

class Head(nn.Module):
    def __init__(self): super().__init__(); self.out = nn.Linear(8, 2)
    def forward(self, state): return self.out(state[0].mean(1))

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(100, 8)
        self.exits = Exits("exit", [Layer() for _ in range(3)], [Head() for _ in range(3)],
                           lambda a, s, k: a[:, 0] > a[:, 1])
    def forward(self, ids, mask=None):
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        return self.exits((self.embed(ids), mask))

class OneDict(Encoder):
    def forward(self, batch): return super().forward(batch["ids"], batch["mask"])

class Any(Encoder):
    def forward(self, *args, **kwargs): return super().forward(*args, **kwargs)

class Out(OrderedDict):
    def __getattr__(self, name):
        try: return self[name]
        except KeyError as e: raise AttributeError(name) from e

@dataclass
class State:
    hidden: torch.Tensor
    name: str = "state"

class Steps(nn.Module):  # hands on an object of its own
    def __init__(self, kind): super().__init__(); self.kind, self.inner = kind, nn.Linear(6, 6)
    def forward(self, s): return self.kind(hidden=torch.relu(self.inner(s.hidden)))

class Read(nn.Module):
    def __init__(self, kind): super().__init__(); self.kind, self.out = kind, nn.Linear(6, 6)
    def forward(self, s): return self.kind(hidden=self.out(s.hidden))

class Objects(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.exits = Exits("exit", [Steps(kind) for _ in range(3)], [Read(kind) for _ in range(3)],
                           lambda a, s, k: a.hidden[:, 0] > 0)
    def forward(self, x): return self.exits(self.kind(hidden=x.float() / 100))

class Auxiliary(nn.Module):  # a number for the whole batch beside the answer
    def __init__(self): super().__init__(); self.inner = Encoder()
    def forward(self, ids):
        y = self.inner(ids)
        return {"y": y, "balance": y.mean(), "count": 3}

class Boxes(nn.Module):  # a different number of boxes for each item
    def __init__(self): super().__init__(); self.inner = Encoder()
    def forward(self, ids):
        return [{"boxes": y.expand(int(i[0]) % 3, 2), "score": y.sum()} for y, i in zip(self.inner(ids), ids)]

def encoder(): return Encoder()
def one_dict(): return OneDict()
def any_arguments(): return Any()
def outputs(): return Objects(Out)
def dataclasses(): return Objects(State)
def auxiliary(): return Auxiliary()
def boxes(): return Boxes()

def ids(): return IDS
def pair(): return IDS, MASK.astype(int)
def labelled(): return IDS, LABELS
def said_labels(): return dynbench.Inputs(IDS, labels=LABELS)
def by_position(): return dynbench.Inputs((IDS, MASK), labels=LABELS)
def by_name(): return dynbench.Inputs({"ids": IDS, "mask": MASK})
def as_one(): return dynbench.Inputs(({"ids": IDS, "mask": MASK},))
def wrong_name(): return dynbench.Inputs({"ids": IDS, "msk": MASK})
def three(): return dynbench.Inputs((IDS, MASK, MASK))
def real_numbers(): return torch.randn(64, 6, requires_grad=True).to(torch.bfloat16), None
def yes_and_no(): return MASK, None
"""


def workload(folder: Path, model: str, inputs: str) -> Path:
    (folder / "net.py").write_text(NET, encoding="utf-8")
    file = folder / "own.toml"
    file.write_text(
        f'schema = 1\nname = "own"\ntitle = "Own"\nmodel = "net.py:{model}"\ninputs = {{ name = "net.py:{inputs}" }}\n'
    )
    return file


def prepared(folder: Path, model: str, inputs: str) -> Prepared:
    return prepare(load_spec(str(workload(folder, model, inputs))), Options(batch_sizes=[1, 8]))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("encoder", "by_position"),
        ("encoder", "by_name"),
        ("encoder", "said_labels"),
        ("one_dict", "as_one"),
        ("any_arguments", "by_name"),
        ("outputs", "ids"),
        ("dataclasses", "ids"),
        ("auxiliary", "ids"),
        ("boxes", "ids"),
    ],
)
def test_every_strategy_gives_the_same_answer(tmp_path: Path, model: str, inputs: str) -> None:
    asked = [load_spec(str(workload(tmp_path, model, inputs)))]
    verdicts = list(verify_workloads(asked, Options(strategies=["masking", "compaction", "cascading", "per_sample"])))
    compared = [v for v in verdicts if v.strategy]
    assert len(compared) == 4 and all(v.ok and v.refused is None for v in verdicts), verdicts


@torch.inference_mode()
def test_several_inputs_reach_the_model_as_they_are_said(tmp_path: Path) -> None:
    by_position, by_name = (prepared(tmp_path, "encoder", form) for form in ("by_position", "by_name"))
    ids, mask = by_position.inputs.by_position
    assert ids.dtype == torch.long and mask.dtype == torch.bool and by_name.inputs.by_name["mask"].equal(mask)
    whole = by_position.model(ids, mask)
    assert not torch.allclose(whole, by_position.model(ids))
    trace = by_position.trace(by_position.sources[0], 8)
    assert trace.items == 64 and trace == by_name.trace(by_name.sources[0], 8)


@pytest.mark.parametrize(
    ("model", "inputs", "says"),
    [
        ("encoder", "pair", r"the model takes inputs \(ids, mask\): return dynbench\.Inputs\(\(a, b\)\)"),
        ("encoder", "labelled", r"dynbench\.Inputs\(a, labels=b\) if the second is labels"),
        ("any_arguments", "pair", "the model takes several inputs"),
        ("encoder", "wrong_name", r"net.py:encoder takes \(ids, mask\) and is given \(ids=, msk=\)"),
        ("encoder", "three", "too many positional arguments"),
        ("one_dict", "by_name", r"takes \(batch\) and is given \(ids=, mask=\)"),
        (
            "encoder",
            "real_numbers",
            r"^embed \(Embedding\), net\.py line \d+ takes whole numbers \(int64\) and was given",
        ),
        ("encoder", "yes_and_no", r"takes whole numbers \(int64\) and was given \[\d+, 6\] bool$"),
    ],
)
def test_inputs_are_never_guessed(tmp_path: Path, model: str, inputs: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        prepared(tmp_path, model, inputs)


@pytest.mark.parametrize("model", ["one_dict", "any_arguments", "auxiliary"])
def test_a_pair_is_inputs_and_labels_where_it_can_be_nothing_else(tmp_path: Path, model: str) -> None:
    if model == "one_dict":  # takes one input, which is no array: what is wrong then is the model's to say
        with pytest.raises(UserError):
            prepared(tmp_path, model, "labelled")
    else:
        found = prepared(tmp_path, model, "labelled")
        assert isinstance(found.inputs, torch.Tensor) and found.evaluation is not None


def test_a_number_for_the_whole_batch_is_named(tmp_path: Path) -> None:
    (note,) = prepared(tmp_path, "auxiliary", "ids").notes
    assert "entry balance, count belongs to the whole batch and is not compared" in note


def test_several_inputs_are_no_graph_yet_and_that_is_one_sentence(tmp_path: Path) -> None:
    p = prepared(tmp_path, "encoder", "by_name")
    with pytest.raises(CannotTrace, match="takes several inputs, and a graph takes one tensor"):
        proved_dynamic(p, p.sources[0], single=False, replay=False)


@torch.inference_mode()
@pytest.mark.parametrize("form", ["channels_last", "micro_batches_3"])
def test_a_baseline_in_a_form_takes_several_inputs(tmp_path: Path, form: str) -> None:
    p = prepared(tmp_path, "encoder", "by_name")
    net = build_baseline(Baseline(name="formed", form=form), p.spec, p.model, p.inputs[:1])
    assert torch.allclose(net(**p.inputs.by_name), p.model(**p.inputs.by_name), atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("inputs", ["by_position", "by_name", "ids"])
def test_a_request_for_a_fresh_process_carries_several_inputs(tmp_path: Path, inputs: str) -> None:
    p = prepared(tmp_path, "encoder", inputs)
    start, x = p.batches(8)[1]
    arm = Arm(kind="strategy", strategy="compaction", live=True)
    request = ProbeRequest(p.spec, p.options, arm, x, None, start, p.items)
    folder = tmp_path / "request"
    folder.mkdir()
    again = ProbeRequest.load(request.save(folder))
    assert type(again.inputs) is type(x) and isinstance(x, Arguments) == (inputs != "ids")
    call = runnable(again.spec, again.options, again.arm, again.inputs, None, again.items)
    assert call.network is not p.model
    right = p.strategy("compaction")
    assert torch.allclose(call(start, again.inputs), run(p, right, x))


def run(p: Prepared, strategy: object, x: object) -> torch.Tensor:
    from dynbench.dynamic import Execution

    answer: torch.Tensor = Execution(strategy).run(p.model, x)  # type: ignore[arg-type]
    return answer


def test_a_slice_of_several_inputs_is_the_batch_of_these_items() -> None:
    x = Arguments(torch.arange(6), {"m": torch.arange(12).view(6, 2)}, scale=torch.tensor(2.0))
    part = x[2:4]
    assert len(part) == 2 and part.by_position[0].tolist() == [2, 3]
    assert np.array_equal(part.by_position[1]["m"], [[4, 5], [6, 7]]) and part.by_name["scale"].item() == 2.0

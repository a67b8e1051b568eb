"""What belongs to a whole batch is left out and named; what an opaque network answers is inspected as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dynbench import devices
from dynbench.errors import UserError
from dynbench.experiment.arms import running_arm
from dynbench.experiment.build import prepare
from dynbench.experiment.diagnose import Facts, diagnose
from dynbench.experiment.networks import build_model
from dynbench.experiment.plan import planned_cells
from dynbench.experiment.spec import Options, Workload, parse_spec
from dynbench.experiment.verify import Verdict, verify_workloads

FOLDER = Path(__file__).parent / "usual"
QUICK = Options(time_limit_s=0.05, precision=0.9)


def spec(model: str, *, run: dict[str, Any] | None = None, **more: Any) -> Workload:
    table = {
        "schema": 1,
        "name": "late",
        "title": "A network",
        "model": model,
        "inputs": {"name": "late.py:features"},
        "run": {"batch_sizes": [4], "stream_samples": 8, **(run or {})},
        **more,
    }
    return parse_spec(table, FOLDER / "w.toml")


def verdicts(workload: Workload) -> list[Verdict]:
    return list(verify_workloads([workload], QUICK))


@pytest.mark.parametrize("kinds", [3, 4, 8, 12])  # as many as a batch has items, and other numbers
def test_a_vector_of_the_whole_batch_is_left_out_and_named(kinds: int) -> None:
    said, *found = verdicts(spec("late.py:loaded", model_args={"kinds": kinds}))
    assert said.said is not None and "entry load, moments belongs to the whole batch" in said.said
    assert {v.strategy for v in found if v.refused is None} >= {"masking", "compaction"}
    assert all(v.ok and v.finding is None for v in found)


def test_where_nothing_would_be_left_the_difference_is_shown() -> None:
    found = verdicts(spec("late.py:only_of_the_batch"))
    assert not all(v.ok for v in found)


@pytest.mark.parametrize(("net", "name"), [("random", "not deterministic"), ("over_the_batch", "depends on the batch")])
def test_an_opaque_network_without_a_right_answer_is_found_by_verify_and_in_a_run(net: str, name: str) -> None:
    beside = {"name": "theirs", "model": f"late.py:{net}"}
    workload = spec("late.py:late", opaque=[beside])
    (found,) = [v for v in verdicts(workload) if v.finding is not None]
    assert found.strategy == "theirs" and name in str(found.finding)
    p = prepare(workload, QUICK)
    source = next(s for s in p.sources if s.decisions.label == "learned")
    cell = next(c for c in planned_cells(p, source, 4) if c.arm.kind == "opaque")
    with torch.inference_mode():
        arm = running_arm(p, source, cell, devices.device("cpu"))
        work = diagnose(p, source, arm, Facts.of(p, source, 4))
    assert work.columns["status"] == "failed" and name in work.columns["reason"]


def test_an_opaque_network_that_answers_otherwise_is_different_in_verify() -> None:
    beside = {"name": "theirs", "model": "late.py:late_static", "same_answer_as": "dynamic"}
    (found,) = [v for v in verdicts(spec("late.py:late", opaque=[beside])) if v.strategy == "theirs"]
    assert found.finding is None and not found.ok and found.largest > found.tolerance


def test_weights_of_a_layer_that_the_first_forward_makes_are_loaded(tmp_path: Path) -> None:
    made = prepare(spec("late.py:late"), QUICK).model
    saved = {name: torch.rand_like(value) for name, value in made.state_dict().items()}
    assert "stages.0.project.weight" in saved
    file = tmp_path / "w.safetensors"
    save_file(saved, file)
    workload = spec("late.py:late", weights=str(file))
    with pytest.raises(UserError, match=r"has stages.0.project.*which the model lacks"):
        build_model(workload, FOLDER)
    own = prepare(workload, QUICK).model.state_dict()
    assert own.keys() == saved.keys() and all(torch.equal(own[name], value) for name, value in saved.items())
    save_file(saved | {"other": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="has other, which the model lacks"):
        prepare(workload, QUICK)

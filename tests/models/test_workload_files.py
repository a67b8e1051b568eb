"""The workloads that come with dynbench are complete: models, baselines, inputs, weights and their cards."""

from __future__ import annotations

import json

import pytest
import torch

from dynbench.experiment.networks import build_model
from dynbench.experiment.spec import ModelRef, Workload, load_spec
from dynbench.paths import load_function, workload_files

WORKLOADS = sorted(workload_files())


def refs(spec: Workload) -> list[ModelRef]:
    return [spec, *(b for b in spec.baselines if b.model != "self:dense")]


def weight_files(ref: ModelRef) -> list[str]:
    return [f for f in (ref.weights, *ref.weights_by_part.values()) if f is not None]


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_has_one_primary_baseline_and_recipes_that_exist(name: str) -> None:
    spec = load_spec(name)
    assert [b.primary for b in spec.baselines].count(True) == 1
    assert spec.name == name
    trained = any(weight_files(ref) for ref in refs(spec))
    assert trained == (spec.train is not None)
    if spec.train is not None:
        assert callable(load_function(spec.train.recipe, spec.folder))


@pytest.mark.parametrize("name", WORKLOADS)
def test_models_and_baselines_build_with_their_weights_and_answer_alike_in_shape(name: str) -> None:
    spec = load_spec(name)
    shapes = set()
    for ref in refs(spec):
        net = build_model(ref, spec.folder)
        x = torch.zeros(1, *net.input_shape((3, 32, 32)))
        with torch.inference_mode():
            shapes.add(tuple(net(x.long() if spec.inputs.name == "text" else x).shape))
    assert len(shapes) == 1


@pytest.mark.parametrize("name", WORKLOADS)
def test_weights_are_small_and_have_a_card_that_says_how_they_were_made(name: str) -> None:
    spec = load_spec(name)
    for file in {f for ref in refs(spec) for f in weight_files(ref)}:
        path = spec.folder / file
        assert path.stat().st_size < 3_000_000, file
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert {"model", "test_data", "machine", "recipe"} <= card.keys(), file


@pytest.mark.parametrize("name", WORKLOADS)
def test_claims_say_where_they_were_made(name: str) -> None:
    for claim in load_spec(name).claims:
        assert claim.where and claim.unit and claim.value > 0

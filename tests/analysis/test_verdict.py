"""Verdicts say what the numbers bear out, and no more."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.analysis.verdict import verdict
from dynbench.store.schema import Cell, Speedup
from dynbench.unavailable import Unavailable
from tests.analysis.cells import NO, RESNET, accuracy, baseline, cell, decisions, flops, info, latency

SKIPNET = flops(dense=145.0, region=100.0, total=104.0, executed=104.0)  # ideal 1.45
FASTER, SAME, SLOWER = (1.2, 1.17, 1.24), (1.01, 0.98, 1.04), (0.9, 0.88, 0.92)


def compaction(speedup: tuple[float, float, float] | None = FASTER, **changes: Any) -> Cell:
    return cell("compaction", speedup, **{"flops": SKIPNET, **changes})


def say(*cells: Cell, **about: Any) -> str:
    return verdict(info(**about), list(cells), "this CPU")


def test_a_skipping_network_that_is_faster() -> None:
    assert say(baseline(), compaction(), cell("masking", SLOWER, flops=SKIPNET), cell("dense", SAME)) == (
        "SkipNet-38 skips 31 % of the computation of ResNet-38 at 0.4 points less top-1 accuracy "
        "(92.1 against 92.5 %). On this CPU compaction turns that into 1.20x against ResNet-38 at batch 32 "
        "(95 % CI 1.17 to 1.24), masking into 0.90x; the ideal is 1.45x."
    )


def test_a_difference_that_may_be_none_is_not_called_one() -> None:
    text = say(baseline(), compaction(SAME), cell("masking", SLOWER))
    assert "On this CPU no strategy is measurably faster than ResNet-38 at batch 32: " in text
    assert "compaction gives 1.01x (95 % CI 0.98 to 1.04), masking 0.90x; the ideal is 1.45x." in text
    assert "masking into 1.01x (not told apart from 1x)" in say(compaction(), cell("masking", SAME))


def test_a_certain_gain_goes_before_a_larger_uncertain_one() -> None:
    text = say(compaction((1.05, 1.03, 1.07)), cell("cascading", (1.1, 0.95, 1.3)))
    assert "compaction turns that into 1.05x" in text
    assert "cascading into 1.10x (not told apart from 1x)" in text


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 1.0), st.floats(1.0, 1.2), st.floats(1.0, 1.2)), min_size=1, max_size=4))
def test_faster_and_slower_are_said_only_of_intervals_without_one(parts: list[tuple[float, float, float]]) -> None:
    speedups = [(low * a, low, low * a * b) for low, a, b in parts]
    text = say(*(cell(f"s{i}", s, flops=SKIPNET) for i, s in enumerate(speedups)))
    assert ("turns that into" in text) == any(low > 1 for _, low, _ in speedups)
    assert ("is slower than" in text) == all(high < 1 for _, _, high in speedups)


def test_slower_everywhere() -> None:
    text = say(compaction(SLOWER), cell("masking", (0.8, 0.79, 0.81)))
    assert "every strategy measured is slower than ResNet-38 at batch 32: compaction gives 0.90x" in text
    assert "On this CPU compaction is slower than ResNet-38 at batch 32: " in say(compaction(SLOWER))


def test_an_interval_is_not_rounded_onto_one() -> None:
    assert "1.010x against ResNet-38 at batch 32 (95 % CI 1.004 to 1.020)" in say(compaction((1.01, 1.004, 1.02)))


def test_a_tiny_speedup_keeps_its_digits() -> None:
    assert "0.034x (95 % CI 0.033 to 0.035)" in say(compaction((0.0341, 0.0331, 0.0352)))


def test_a_smaller_batch_is_told_where_it_ends_otherwise() -> None:
    small = cell("per_sample", (1.3, 1.25, 1.35), batch_size=1, flops=SKIPNET)
    text = say(compaction(SLOWER), small)
    assert text.endswith("At batch 1 per-sample execution gives 1.30x (95 % CI 1.25 to 1.35).")
    assert "At batch 1" not in say(compaction(FASTER), small)
    assert "At batch 1 everything is slower: " in say(compaction(FASTER), compaction(SLOWER, batch_size=1))
    assert "At batch 1 nothing is measurably faster: " in say(compaction(FASTER), compaction(SAME, batch_size=1))


def test_what_a_network_does_comes_before_what_it_saves() -> None:
    text = say(cell("cascading", FASTER, flops=SKIPNET), actions=["leaves early"], title="IDK cascade")
    assert text.startswith("IDK cascade leaves early and saves 31 % of the computation of ResNet-38 at 0.4 points")
    text = say(compaction(), actions=["uses 1 of 4 experts per item", "skips", "leaves early"])
    assert "uses 1 of 4 experts per item, skips, leaves early and saves 31 % of" in text
    assert "decides what to compute and saves 31 % of" in say(compaction(), actions=[])


def test_a_metric_where_lower_is_better_is_called_so() -> None:
    bits = {"metric": "bits per byte", "higher_is_better": False}
    learned = {"dynamic": accuracy(2.31, **bits), RESNET: accuracy(2.25, **bits)}
    text = say(compaction(), accuracies=learned)
    assert "of the computation of ResNet-38, at 2.310 against 2.250 bits per byte, lower is better." in text


def test_made_up_decisions_are_called_so_and_have_no_accuracy() -> None:
    text = say(compaction(decisions=decisions("synthetic keep=0.50", 0.5)))
    assert text.startswith("With made-up decisions (keep-rate 0.50) SkipNet-38 skips 31 % of the computation of")
    assert "published rate (keep-rate 0.70)" in say(compaction(decisions=decisions("published", 0.7)))


def test_learned_decisions_go_before_made_up_ones() -> None:
    made_up = compaction((1.4, 1.3, 1.5), decisions=decisions("synthetic keep=0.25", 0.25), batch_size=128)
    text = say(made_up, compaction())
    assert "1.20x" in text and "1.40x" not in text and "made-up" not in text


def test_accuracy_says_what_it_can() -> None:
    few = {"dynamic": accuracy(0.921, 1000), RESNET: accuracy(0.925, 1000)}
    assert "(92.1 against 92.5 %, less than 1000 inputs can resolve)." in say(compaction(), accuracies=few)
    more = {"dynamic": accuracy(0.95), RESNET: accuracy(0.925)}
    assert "at 2.5 points more top-1 accuracy (95.0 against 92.5 %)." in say(compaction(), accuracies=more)
    same = {"dynamic": accuracy(0.925), RESNET: accuracy(0.925)}
    assert "at the same top-1 accuracy (92.5 against 92.5 %)." in say(compaction(), accuracies=same)
    alone = {"dynamic": accuracy(0.9)}
    assert ", at 90.0 % top-1 accuracy (ResNet-38 unknown)." in say(compaction(), accuracies=alone)
    none = {"dynamic": accuracy(Unavailable(unavailable="no labels."))}
    assert ", its accuracy unavailable (no labels)." in say(compaction(), accuracies=none)
    assert ", its accuracy not measured." in say(compaction(), accuracies={})
    assert ", with untrained weights." in say(compaction(), accuracies={}, weights=None)


def test_a_baseline_that_is_the_model_without_its_decisions_is_called_the_dense_network() -> None:
    assert "of the computation of the dense network" in say(baseline(static_twin=True), compaction())
    assert "of the computation of ResNet-38" in say(baseline(), compaction())


def test_strategies_under_several_engines_are_told_apart() -> None:
    compiled = compaction((1.4, 1.3, 1.5), engine="compile")
    text = say(baseline(), compaction(), compiled, cell("per_sample", SLOWER, batch_size=1, engine="compile"))
    assert "On this CPU compaction, compile turns that into 1.40x against ResNet-38 at batch 32" in text
    assert ", compaction into 1.20x; " in text
    assert "At batch 1 everything is slower: per-sample execution, compile gives 0.90x" in text


def test_nothing_saved_is_not_called_a_saving() -> None:
    more = say(compaction((1.1, 1.05, 1.15), flops=flops(100.0, 112.0, 112.0, 112.0)))
    assert "skips and asks for 12 % more computation than ResNet-38" in more
    assert "compaction gives 1.10x" in more and "turns that into" not in more
    assert "saves nothing against ResNet-38" in say(compaction(flops=flops(100.0, 100.0, 100.0, 100.0)))


def test_a_missing_ideal_is_said_with_its_reason() -> None:
    text = say(compaction(flops=SKIPNET.model_copy(update={"dense": Unavailable(unavailable="operator x")})))
    assert "SkipNet-38 skips part of its computation at 0.4 points less" in text
    assert "; how much computation that saves is unavailable (operator x). On this CPU compaction turns" in text
    assert "the ideal" not in text


def test_strategies_that_failed_beside_others_are_named() -> None:
    text = say(compaction(), cell("cascading", status="failed", reason="wrong answer: differs by 3."))
    assert text.endswith("the ideal is 1.45x. At batch 32 cascading failed (wrong answer: differs by 3).")


def test_nothing_timed_gives_the_reasons() -> None:
    text = say(
        cell("cascading", status="refused", reason="no Loop or Exits"),
        *(
            cell(name, status="failed", reason="out of memory", batch_size=size)
            for name in ("masking", "compaction")
            for size in (1, 8)
        ),
        cell("per_sample", status="interrupted"),
    )
    assert text.endswith(
        "Nothing was timed: cascading was refused (no Loop or Exits); masking, compaction failed (out of memory); "
        "per-sample execution was interrupted."
    )


def test_without_a_baseline_there_is_no_speedup() -> None:
    failed = baseline(status="failed", reason="out of memory")
    text = say(compaction(None, latency=latency(), flops=SKIPNET), failed)
    assert text.endswith("as there is no measured primary baseline: ResNet-38 failed (out of memory).")
    assert say(compaction(None, flops=None), accuracies={}).endswith("no measured primary baseline.")


@pytest.mark.parametrize("cells", [[], [cell("dense", SAME)], [baseline()]])
def test_no_dynamic_strategy(cells: list[Cell]) -> None:
    assert say(*cells) == "SkipNet-38: no dynamic strategy was measured."


def test_cells_of_other_workloads_are_left_aside() -> None:
    other = compaction((3.0, 2.9, 3.1)).model_copy(update={"workload": "other"})
    assert "3.00x" not in say(compaction(), other)


def test_unavailable_numbers_do_not_matter_to_the_speedup() -> None:
    unknown = SKIPNET.model_copy(update={"executed": NO, "accounted": NO, "required_total": NO})
    assert "the ideal is 1.45x" in say(compaction(flops=unknown))


def test_static_networks_are_set_against_the_primary_one() -> None:
    dense = cell("dense", (5.3, 5.1, 5.5), batch_size=4)
    other = cell("FBNetV2-L1", (2.0, 1.9, 2.1), kind="baseline", batch_size=4)
    static = info(points={}, title="FBNetV2-F4", model="dynbench.models.fbnet:fbnet")
    said = verdict(static, [dense, other, baseline(4)], "this CPU")
    assert said == (
        "FBNetV2-F4: nothing depends on the input. On this CPU at batch 4, against ResNet-38: fbnet 5.30x, "
        "FBNetV2-L1 2.00x."
    )


def test_a_ratio_inside_the_resolution_is_no_gain_and_says_why() -> None:
    small = cell(
        "compaction",
        None,
        flops=flops(),
        latency=latency(),
        speedups=[Speedup(value=1.04, low=1.02, high=1.06, baseline=RESNET, primary=True, resolution=0.067)],
    )
    said = verdict(info(), [small, baseline()], "this CPU")
    assert "no strategy is measurably faster than ResNet-38 at batch 32: compaction gives 1.04x" in said
    assert "(95 % CI 1.02 to 1.06; the baseline measured twice may differ by 6.7 %)" in said

"""Verdicts and choices where networks were measured in their fastest ways."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.analysis.gap import gap, is_written
from dynbench.analysis.headline import choices, contest, headline
from dynbench.analysis.verdict import verdict
from dynbench.store.schema import Cell, Speedup, WorkloadInfo
from tests.analysis.cells import RESNET, accuracy, baseline, cell, decisions, flops, info, latency

SMALL = "ResNet-20"
IDEAL = flops(dense=145.0, region=100.0, total=104.0, executed=104.0)
FASTER, SAME, SLOWER = (1.2, 1.17, 1.24), (1.01, 0.98, 1.04), (0.8, 0.78, 0.82)
Ratio = tuple[float, float, float]
LESS_ACCURATE = {"dynamic": accuracy(0.921), RESNET: accuracy(0.911), SMALL: accuracy(0.901)}
GRAPH: dict[str, Any] = {"engine": "onnxruntime", "control": "graph"}


def against(name: str, ratio: Ratio, *, primary: bool = False, resolution: float | None = 0.01) -> Speedup:
    value, low, high = ratio
    return Speedup(value=value, low=low, high=high, baseline=name, primary=primary, resolution=resolution)


def dynamic(ratio: Ratio | None, *more: Speedup, size: int = 32, **changes: Any) -> Cell:
    """The dynamic network in its fastest way, against ResNet-38 in its own."""
    speedups = [*([] if ratio is None else [against(RESNET, ratio, primary=True)]), *more]
    way = {**GRAPH, "live": True, "latency": latency(), "flops": IDEAL, "deployed": True, "batch_size": size}
    return cell("compaction", **{**way, "deployed_speedups": speedups, **changes})


def static(name: str = RESNET, size: int = 32, **changes: Any) -> Cell:
    fixed = {"deployed": True, "latency": latency(), "primary": name == RESNET, "batch_size": size}
    speedups = [] if name == RESNET else [against(RESNET, (1.5, 1.4, 1.6), primary=True)]
    return cell(name, kind="baseline", **{**GRAPH, **fixed, "deployed_speedups": speedups, **changes})


def written(ratio: Ratio = FASTER, size: int = 32) -> list[Cell]:
    return [cell("compaction", ratio, flops=IDEAL, batch_size=size), baseline(size)]


def say(*cells: Cell, **about: Any) -> str:
    text = verdict(info(**{"accuracies": LESS_ACCURATE, **about}), list(cells), "this CPU")
    assert "nan" not in text.lower() and "None" not in text
    return text


def test_another_end_at_a_small_batch_is_said_of_networks_as_written() -> None:
    deployed = [c for size in (1, 32) for c in (dynamic((1.3, 1.25, 1.35), size=size), static(size=size))]
    text = say(*written(), *written(SLOWER, size=1), *deployed)
    assert text.endswith("At batch 1, as written, everything is slower: compaction gives 0.80x (95 % CI 0.78 to 0.82).")


def test_deployed_comes_before_as_written() -> None:
    assert say(*written(), dynamic((1.3, 1.25, 1.35)), static()) == (
        "SkipNet-38 skips 31 % of the computation of ResNet-38 at 1.0 points more top-1 accuracy "
        "(92.1 against 91.1 %). Deployed against deployed, on this CPU, compaction as one ONNX Runtime graph is faster "
        "than ResNet-38 as one ONNX Runtime graph at batch 32: 1.30x (95 % CI 1.25 to 1.35); the ideal is 1.45x. "
        "As written, in eager PyTorch, compaction gives 1.20x against ResNet-38 at batch 32 (95 % CI 1.17 to 1.24)."
    )


def test_faster_as_written_but_slower_deployed() -> None:
    text = say(*written(), dynamic(SLOWER), static())
    assert "is slower than ResNet-38 as one ONNX Runtime graph at batch 32: 0.80x (95 % CI 0.78 to 0.82)" in text
    assert "As written, in eager PyTorch, compaction gives 1.20x against" in text
    assert text.endswith(
        "ResNet-38 is 1.25x as fast at batch 32 (95 % CI 1.22 to 1.28), but less accurate (91.1 "
        "against 92.1 % top-1 accuracy)."
    )


def test_not_told_apart() -> None:
    text = say(*written(), dynamic(SAME), static())
    assert "compaction as one ONNX Runtime graph is not measurably faster than ResNet-38" in text
    wide = dynamic(None, against(RESNET, (1.04, 1.02, 1.06), primary=True, resolution=0.067))
    assert "may differ by 6.7 %" in say(*written(), wide, static())


def test_each_network_is_named_with_its_own_way() -> None:
    host = dynamic(FASTER, engine="onnxruntime", control="host", live=False)
    text = say(*written(), host, static(engine="eager", control="host", form="folded+channels_last"))
    assert "compaction with its parts in ONNX Runtime is faster than ResNet-38 in eager PyTorch (folded," in text


def test_a_smaller_batch_is_told_where_it_ends_otherwise() -> None:
    text = say(*written(), dynamic(FASTER), static(), dynamic(SLOWER, size=1), static(size=1))
    assert (
        "At batch 1 compaction as one ONNX Runtime graph is slower than ResNet-38 as one ONNX Runtime graph: " in text
    )
    same = say(*written(), dynamic(FASTER), static(), dynamic(FASTER, size=1), static(size=1))
    assert "At batch 1" not in same


SMALL_IS_FASTER = against(SMALL, (0.5, 0.48, 0.52))
AS_ACCURATE = {"dynamic": accuracy(0.92), RESNET: accuracy(0.91), SMALL: accuracy(0.93)}


def test_a_static_network_that_is_better_is_the_first_sentence() -> None:
    cells = [*written(), dynamic(FASTER, SMALL_IS_FASTER), static(), static(SMALL)]
    text = say(*cells, accuracies=AS_ACCURATE)
    assert text.startswith(
        "Use ResNet-20: it is 2.00x as fast as SkipNet-38 at batch 32 (95 % CI 1.92 to 2.08), each in its fastest way, "
        "and more accurate (93.0 against 92.0 % top-1 accuracy). SkipNet-38 skips 31 %"
    )
    few = AS_ACCURATE | {SMALL: accuracy(0.93, 1000)}
    assert "a difference too small for 1000 inputs to resolve). SkipNet" in say(*cells, accuracies=few)
    equal = AS_ACCURATE | {SMALL: accuracy(0.92)}
    assert "and as accurate (92.0 against 92.0 % top-1 accuracy)." in say(*cells, accuracies=equal)


def test_both_ends_of_the_batch_sizes_are_said_where_they_differ() -> None:
    both = [dynamic(FASTER, SMALL_IS_FASTER, size=size) for size in (1, 8, 32)]
    text = say(*both, *(static(size=size) for size in (1, 8, 32)), accuracies=AS_ACCURATE)
    assert text.startswith("Use ResNet-20: it is 2.00x as fast as SkipNet-38 at batch 32 (95 % CI 1.92 to 2.08) and ")
    assert "2.00x at batch 1 (95 % CI 1.92 to 2.08), each in its fastest way" in text
    one = [dynamic(FASTER, SMALL_IS_FASTER, size=1), dynamic(FASTER, against(SMALL, SAME))]
    assert say(*one, static(), static(size=1), accuracies=AS_ACCURATE).startswith("At batch 1 use ResNet-20: it is ")
    other = [dynamic(FASTER, SMALL_IS_FASTER), dynamic(SLOWER, against(SMALL, SAME), size=1)]
    accuracies = AS_ACCURATE | {RESNET: accuracy(0.94)}
    text = say(*other, static(), static(size=1), accuracies=accuracies)
    assert text.startswith("At batch 32 use ResNet-20: it is 2.00x") and "At batch 1 use ResNet-38: it is 1.25x" in text


def test_a_static_network_that_is_faster_but_less_accurate_comes_last() -> None:
    text = say(*written(), dynamic(FASTER, SMALL_IS_FASTER), static(), static(SMALL))
    assert "Use" not in text
    assert text.endswith(
        "ResNet-20 is 2.00x as fast at batch 32 (95 % CI 1.92 to 2.08), but less accurate (90.1 against 92.1 % top-1 "
        "accuracy)."
    )


def test_lower_may_be_better() -> None:
    bits = {"metric": "bits per byte", "higher_is_better": False}
    told = {"dynamic": accuracy(2.3, **bits), SMALL: accuracy(2.2, **bits)}
    cells = [dynamic(FASTER, SMALL_IS_FASTER), static(), static(SMALL)]
    assert "and better (2.200 against 2.300 bits per byte, lower is better)." in say(*cells, accuracies=told)
    worse = told | {SMALL: accuracy(2.4, **bits)}
    assert "Use" not in say(*cells, accuracies=worse)


def test_as_written_a_static_network_is_recommended_only_where_no_ways_were_tried() -> None:
    slow = written(SLOWER)
    assert say(*slow, accuracies=AS_ACCURATE | {RESNET: accuracy(0.94)}).startswith(
        "Use ResNet-38: it is 1.25x as fast as SkipNet-38 at batch 32 (95 % CI 1.22 to 1.28), both as written, and more"
    )
    assert "Use" not in say(*slow, dynamic(FASTER), static(), accuracies=AS_ACCURATE | {RESNET: accuracy(0.94)})


def test_made_up_decisions_recommend_nothing() -> None:
    made_up = decisions("synthetic keep=0.50", 0.5)
    found = [dynamic(FASTER, SMALL_IS_FASTER, decisions=made_up), static(decisions=made_up)]
    assert "Use" not in say(*found, accuracies=AS_ACCURATE)


def test_what_failed_is_said_with_its_reason() -> None:
    failed = dynamic(None, status="failed", reason="wrong answer: differs by 3.")
    text = say(*written(), failed, static())
    assert "Deployed against deployed was not measured: compaction, live decisions, onnxruntime, graph failed " in text
    assert "(wrong answer: differs by 3). On this CPU compaction turns that into 1.20x" in text
    assert "was not measured: no way of the dynamic network could be timed." in say(*written(), static())
    assert "was not measured: no way of ResNet-38 could be timed." in say(*written(), dynamic(None))
    base = static(status="failed", reason="out of memory")
    assert "ResNet-38, onnxruntime, graph failed (out of memory)." in say(*written(), dynamic(None), base)
    small = [dynamic(FASTER, size=1), static(size=1)]
    text = say(*written(), *small, failed, static())
    assert "at batch 1: 1.20x" in text and "At batch 32 compaction, live decisions, onnxruntime, graph failed" in text


def test_only_deployed_cells() -> None:
    text = say(dynamic(FASTER), static())
    assert text.endswith("at batch 32: 1.20x (95 % CI 1.17 to 1.24); the ideal is 1.45x.")


def test_the_way_as_written_may_be_the_fastest() -> None:
    plain = cell(
        "compaction", FASTER, flops=IDEAL, deployed=True, deployed_speedups=[against(RESNET, FASTER, primary=True)]
    )
    text = say(plain, baseline(deployed=True))
    assert "compaction in eager PyTorch is faster than ResNet-38 in eager PyTorch at batch 32: 1.20x" in text
    assert "As written, in eager PyTorch, compaction gives 1.20x" in text
    assert is_written(plain) and is_written(baseline(deployed=True)) and not is_written(static())


def test_without_deployed_cells_nothing_is_said_of_them() -> None:
    assert "eployed" not in say(*written())


def test_static_networks_without_decisions_are_compared_in_their_fastest_ways_too() -> None:
    nothing = info(points={}, title="FBNet", model="m:fbnet")
    own = cell("dense", (2.0, 1.9, 2.1))
    said = verdict(nothing, [own, baseline(), static(), static(SMALL)], "this CPU")
    assert said.endswith("fbnet 2.00x. Each in its fastest way: ResNet-20 1.50x.")


def test_the_headline_is_deployed_against_deployed_at_the_largest_batch() -> None:
    cells = [*written((3.0, 2.9, 3.1)), dynamic(SLOWER), static(), dynamic(FASTER, size=1), static(size=1)]
    best = headline("skipnet38", cells)
    found = contest("skipnet38", cells)
    assert best is not None and best.speedup.value == 0.8
    assert found is not None and found.best_written is not None and found.best_written.speedup.value == 3.0
    assert list(found.deployed) == [32, 1]


def test_ideal_and_losses_of_a_deployed_cell_are_of_the_deployed_pair() -> None:
    found = gap(dynamic(FASTER))
    assert found.speedup == 1.2 and found.efficiency == pytest.approx(1.2 / 1.45)
    assert found.speedup * math.prod(found.losses.values()) == pytest.approx(found.ideal)


def chosen(*cells: Cell, **about: Any) -> list[tuple[int, str | None, float | None, str]]:
    told: WorkloadInfo = info(**{"accuracies": LESS_ACCURATE, **about})
    return [
        (c.cell.batch_size, c.cell.arm.baseline, None if c.speedup is None else c.speedup.value, c.why)
        for c in choices(told, list(cells))
    ]


def test_the_network_to_use() -> None:
    assert chosen(dynamic(FASTER), static()) == [(32, None, 1.2, "faster than ResNet-38")]
    better = [dynamic(FASTER, SMALL_IS_FASTER), static(), static(SMALL)]
    why = "faster than the dynamic network, and at least as accurate"
    assert chosen(*better, accuracies=AS_ACCURATE) == [(32, SMALL, 1.5, why)]
    assert chosen(dynamic(SLOWER), static()) == [(32, None, 0.8, "more accurate than ResNet-38, though slower")]
    unknown = {"accuracies": {}, "weights": None}
    assert chosen(dynamic(SLOWER), static(), **unknown) == [(32, RESNET, None, "the dynamic network is slower")]
    unclear = "the dynamic network is not measurably faster"
    assert chosen(dynamic(SAME), static(), **unknown) == [(32, RESNET, None, unclear)]
    both = [dynamic(FASTER), static(), dynamic(FASTER, size=1), static(size=1)]
    assert [size for size, *_ in chosen(*both)] == [1, 32]
    assert chosen(*written()) == [] and chosen(baseline()) == []


RATIOS = st.tuples(st.floats(0.05, 20), st.floats(1.0, 1.5), st.floats(1.0, 1.5)).map(
    lambda parts: (parts[0], parts[0] / parts[1], parts[0] * parts[2])
)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(RATIOS, RATIOS, RATIOS, st.floats(0, 1), st.floats(0, 1))
def test_any_ratio_and_accuracy_can_be_said(a: Ratio, b: Ratio, c: Ratio, ours: float, theirs: float) -> None:
    found = {"dynamic": accuracy(ours), RESNET: accuracy(0.5, 100), SMALL: accuracy(theirs, 0)}
    cells = [*written(c), dynamic(a, against(SMALL, b)), static(), static(SMALL)]
    text = say(*cells, accuracies=found)
    static_ones = ((a, RESNET, 0.5), (b, SMALL, theirs))
    better = [(r[0], -value, name) for r, name, value in static_ones if is_slower(r) and value >= ours]
    use = min(better, default=None, key=lambda one: one[:2])
    assert text.startswith("Use ") == (use is not None)
    assert use is None or text.startswith(f"Use {use[2]}: ")
    assert len(chosen(*cells, accuracies=found)) == 1


def is_slower(ratio: Ratio) -> bool:
    value, _, high = ratio
    return high < 1 and value < 1 / 1.01

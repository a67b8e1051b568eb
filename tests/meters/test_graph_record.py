"""A graph's record is divided among the regions of a network, on records whose times are known."""

from __future__ import annotations

from typing import Any

import pytest

from dynbench.meters.graph_record import BETWEEN, MOVING, CallOf, Node, divided, lines, runs_of, without_recording

REGIONS = ("stem", "blocks.0.body", "policy")


def node(name: str, operator: str, ts: int, dur: int, items: int = 4) -> dict[str, Any]:
    shapes = [{"float": [items, 8]}, {"float": [8, 8]}]
    args = {"op_name": operator, "input_type_shape": shapes}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": args}


def run(ts: int, dur: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur, "args": {}}


RECORD = [
    run(0, 100),
    node("/stem/Conv", "Conv", 2, 20),
    node("/blocks.0/If", "If", 30, 50),
    node("/blocks.0/Gather", "Gather", 32, 6),
    node("/blocks/0/body/MatMul", "MatMul", 40, 20, items=2),
    node("/blocks/0/body/inner/Relu", "Relu", 62, 8, items=2),
    node("ReorderOutput", "ReorderOutput", 72, 2),
    node("/policy_1/Softmax", "Softmax", 85, 5),
    run(200, 10),
    node("/stem/Conv", "Conv", 201, 4, items=1),
]


def test_a_call_has_its_nodes_and_a_branch_what_is_left_of_it() -> None:
    first, second = runs_of(RECORD[::-1])
    assert [(n.module, n.operator, n.us, n.items) for n in first] == [
        ("stem", "Conv", 20.0, 4),
        ("blocks.0", "If", 50.0 - 6 - 20 - 8 - 2, 4),
        ("blocks.0", "Gather", 6.0, 4),
        ("blocks.0.body", "MatMul", 20.0, 2),
        ("blocks.0.body.inner", "Relu", 8.0, 2),
        ("", "ReorderOutput", 2.0, 4),
        ("policy_1", "Softmax", 5.0, 4),
    ]
    assert [n.us for n in second] == [4.0]


def test_times_go_to_regions_and_add_up_to_the_whole() -> None:
    calls, rest = divided(runs_of(RECORD)[0], 90.0, REGIONS)
    assert calls == [CallOf("stem", 4, 20.0), CallOf("blocks.0.body", 2, 30.0), CallOf("policy", 4, 5.0)]
    assert rest == {MOVING: 6.0, BETWEEN: pytest.approx(14 + 90 - 75)}
    assert sum(c.us for c in calls) + sum(rest.values()) == pytest.approx(90)


def test_nodes_of_a_region_that_others_come_between_are_one_call_and_a_second_name_is_another() -> None:
    nodes = [Node(m, "Mul", 2.0, 3) for m in ("policy", "stem", "policy", "policy_1", "stem.inner")]
    calls, _ = divided(nodes, 10.0, REGIONS)
    assert calls == [CallOf("policy", 3, 4.0), CallOf("stem", 3, 4.0), CallOf("policy", 3, 2.0)]


def test_what_recording_takes_is_the_same_of_every_node() -> None:
    assert without_recording([12, 102, 32], 116) == pytest.approx([2, 92, 22])
    assert without_recording([12, 102, 32], 500) == [12, 102, 32]
    assert sum(without_recording([3.0] * 10 + [100.0], 50)) == pytest.approx(50)
    assert without_recording([], 5) == []


def test_t_of_n_of_a_region_is_the_line_through_its_calls_and_does_not_fall() -> None:
    calls = [CallOf("body", n, 10 + 3.0 * n) for n in (1, 5, 9, 30)] + [CallOf("body", 5, 1e6), CallOf("body", 5, 25.0)]
    calls += [CallOf("gate", n, 8.0 - 0.1 * n) for n in (1, 2, 30)] + [CallOf("stem", 7, 50.0)]
    found = lines(calls)
    assert found["body"] == ([1, 30], pytest.approx([13, 100]))
    assert found["gate"][1][0] == found["gate"][1][1] > 0
    assert found["stem"] == ([7], [50.0])


def test_a_node_of_no_region_that_moves_nothing_lies_between() -> None:
    calls, rest = divided([Node("cascade", "Softmax", 3.0, 4), Node("", "Reorder", 1.0, 4)], 4.0, REGIONS)
    assert calls == [] and rest == {BETWEEN: 4.0, MOVING: 0.0}

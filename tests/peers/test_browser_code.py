"""The parts of the page that compute, against their counterparts here."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynbench.analysis.statistics import median_interval
from dynbench.deploy.agents.browser import runtime

AGENT = Path(runtime.__file__).parent
pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


@pytest.fixture
def node(tmp_path: Path) -> Any:
    """Runs a script that may import the page's modules, and returns what it prints as JSON."""
    for file in AGENT.glob("*.js"):
        shutil.copy(file, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')

    def run(script: str, given: Any = None) -> Any:
        (tmp_path / "given.json").write_text(json.dumps(given))
        head = "import fs from 'node:fs'; const given = JSON.parse(fs.readFileSync('given.json'));\n"
        done = subprocess.run(
            ["node", "--input-type=module", "-e", head + script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    run.folder = tmp_path  # type: ignore[attr-defined]
    return run


def test_the_sha256_of_its_own_is_the_known_one(node: Any) -> None:
    draw = np.random.default_rng(0)
    contents = [draw.bytes(n) for n in (0, 1, 3, 55, 56, 57, 63, 64, 65, 119, 120, 128, 1000, 1 << 20)]
    for i, content in enumerate(contents):
        (node.folder / f"{i}.bin").write_bytes(content)
    found = node(
        "import {sha256Here} from './sha256.js';"
        "console.log(JSON.stringify(given.map((i) => sha256Here(new Uint8Array(fs.readFileSync(i + '.bin'))))))",
        list(range(len(contents))),
    )
    assert found == [hashlib.sha256(c).hexdigest() for c in contents]


def test_arrays_are_read_as_numpy_wrote_them_and_others_refused(node: Any) -> None:
    draw = np.random.default_rng(0)
    arrays = [
        draw.standard_normal((2, 3, 4)).astype(np.float32),
        draw.standard_normal(5),
        draw.integers(-(2**40), 2**40, (3, 2)),
        draw.integers(-9, 9, (7,)).astype(np.int32),
        draw.random((2, 2)) < 0.5,
        np.float32(3.5).reshape(()),
        np.zeros((0, 3), np.float32),
    ]
    for i, array in enumerate(arrays):
        np.save(node.folder / f"{i}.npy", array)
    read = (
        "import {parseNpy} from './npy.js'; const read = (f) => parseNpy(new Uint8Array(fs.readFileSync(f)), f);"
        "console.log(JSON.stringify(given.map((f) => { try { const a = read(f);"
        "return [a.dtype, a.shape, Array.from(a.data, Number)]; } catch (e) { return e.message; } })))"
    )
    found = node(read, [f"{i}.npy" for i in range(len(arrays))])
    assert found == [[str(a.dtype), list(a.shape), a.ravel().astype(float).tolist()] for a in arrays]
    np.save(node.folder / "order.npy", np.asfortranarray(np.ones((2, 3))))
    np.save(node.folder / "half.npy", np.ones(2, np.float16))
    (node.folder / "cut.npy").write_bytes((node.folder / "0.npy").read_bytes()[:-1])
    (node.folder / "text.npy").write_text("no array at all")
    wrong = node(read, ["order.npy", "half.npy", "cut.npy", "text.npy"])
    reasons = ("of another kind", "of another kind", "shorter or longer", "is no .npy file")
    for message, reason in zip(wrong, reasons, strict=True):
        assert reason in message


def test_the_interval_of_the_median_is_that_of_the_reports(node: Any) -> None:
    draw = np.random.default_rng(0)
    samples = [np.exp(0.05 * draw.standard_normal(n)).tolist() for n in (6, 8, 10, 20, 21, 40, 160, 640, 1500)]
    found = node(
        "import {halfWidth} from './measure.js'; console.log(JSON.stringify(given.map(halfWidth)))",
        samples,
    )
    for ratios, width in zip(samples, found, strict=True):
        right = median_interval(ratios)
        middle = float(np.median(ratios))
        assert math.isclose(width, (right.high - right.low) / 2 / middle, rel_tol=1e-9), len(ratios)


def compared(node: Any, run: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Two items in one batch, with one decision each: what came is compared with what is right."""
    right = {
        "answer": {"dtype": "float32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]},
        "decision": {"dtype": "bool", "shape": [2], "data": [1, 0]},
        "reached": {"dtype": "bool", "shape": [2], "data": [1, 1]},
    } | changes
    usual = {
        "answer": {"type": "float32", "data": [1.0, 2.0, 3.0, 4.0]},
        "chose": {"type": "bool", "data": [1, 0]},
        "who": {"type": "int64", "data": [0, 1]},
    } | run
    found: dict[str, Any] = node(
        "import {compared} from './measure.js';"
        "const number = (v) => ({nan: NaN, inf: Infinity})[v] ?? v;"
        "for (const a of [...Object.values(given.right), ...Object.values(given.run)]) a.data = a.data.map(number);"
        "const arm = {answers: [{output: 'answer', file: 'answer'}],"
        "decisions: [{sizes: [], decision: 'chose', items: 'who', expected: 'decision', reached: 'reached'}]};"
        "const found = compared(arm, 2, [given.run], given.right, 1e-4);"
        "console.log(JSON.stringify({...found, error: String(found.error)}))",
        {"right": right, "run": usual},
    )
    return found | {"error": float(found["error"])}


def test_what_is_the_same_differs_in_nothing(node: Any) -> None:
    assert compared(node, {}) == {"error": 0.0, "decisions": 2, "decisions_differ": 0}
    swapped = {"chose": {"type": "bool", "data": [0, 1]}, "who": {"type": "int64", "data": [1, 0]}}
    assert compared(node, swapped)["decisions_differ"] == 0


def test_answers_are_compared_relative_to_the_largest(node: Any) -> None:
    assert compared(node, {"answer": {"type": "float32", "data": [1.0, 2.5, 3.0, 4.0]}})["error"] == 0.125


@pytest.mark.parametrize(
    ("data", "kind", "error"),
    [
        (["nan", 2, 3, 4], "float32", math.nan),
        (["inf", 2, 3, 4], "float32", math.inf),
        ([1, 2, 3], "float32", math.inf),
        ([1, 2, 3, 4], "float64", math.inf),
    ],
)
def test_answers_of_another_nature_are_never_the_same(node: Any, data: list[Any], kind: str, error: float) -> None:
    found = compared(node, {"answer": {"type": kind, "data": data}})["error"]
    assert found == error or (math.isnan(found) and math.isnan(error))


def test_nan_and_infinity_in_the_same_place_are_the_same(node: Any) -> None:
    data = ["nan", "inf", 3.0, 4.0]
    right = {"dtype": "float32", "shape": [2, 2], "data": data}
    assert compared(node, {"answer": {"type": "float32", "data": data}}, answer=right)["error"] == 0.0


@pytest.mark.parametrize(
    ("chose", "who", "differ"),
    [
        ([0, 0], [0, 1], 1),  # decided otherwise
        ([1], [0], 1),  # not asked
        ([1, 0, 1], [0, 1, 1], 2),  # asked twice
        ([1, 0], [0, 2], 2),  # no such item
        ([1, 0], [-1, 1], 2),
    ],
)
def test_decisions_are_compared_item_by_item(node: Any, chose: list[int], who: list[int], differ: int) -> None:
    run = {"chose": {"type": "bool", "data": chose}, "who": {"type": "int64", "data": who}}
    assert compared(node, run)["decisions_differ"] == differ


def test_items_that_decide_otherwise_are_not_compared(node: Any) -> None:
    run = {
        "answer": {"type": "float32", "data": [9.0, 9.0, 3.0, 4.0]},
        "chose": {"type": "bool", "data": [0, 0]},
    }
    assert compared(node, run) == {"error": 0.0, "decisions": 2, "decisions_differ": 1}


def test_orders_are_drawn_evenly_and_are_the_same_for_the_same_seed(node: Any) -> None:
    found = node(
        "import {random, shuffled} from './measure.js'; const draw = (seed) => { const next = random(seed);"
        "return Array.from({length: 600}, () => shuffled([0, 1, 2], next).join('')); };"
        "console.log(JSON.stringify([draw(0), draw(0), draw(1)]))"
    )
    first, again, other = found
    assert first == again != other
    counts = [first.count(order) for order in ("012", "021", "102", "120", "201", "210")]
    assert sum(counts) == 600 and min(counts) > 60


def test_a_sample_spans_fifty_steps_of_the_clock(node: Any) -> None:
    script = "import {repeats} from './measure.js'; console.log(JSON.stringify(given.map(([b, s]) => repeats(b, s))))"
    assert node(script, [[5, 0.1], [4.9, 0.1], [1, 0.1], [0.1, 1], [0, 1], [1, 0.005]]) == [1, 2, 5, 500, 5000, 1]


def test_what_fell_back_to_the_cpu_is_named(node: Any) -> None:
    place = "session_state.cc:1380 VerifyEachNodeIsAssignedToAnEp]"
    several = "\n".join(
        [
            f"{place}  Node(s) placed on [CPUExecutionProvider]. Number of nodes: 3",
            f"{place}    NonZero (a)",
            f"{place}    NonZero (b)",
            f"{place}    Shape (c)",
            f"{place}  Node(s) placed on [WebGpuExecutionProvider]. Number of nodes: 7",
            f"{place}    Conv (d)",
            "allocation_planner.cc:2 other]    Conv (e)",
        ]
    )
    alone = f"{place}  All nodes placed on [WebGpuExecutionProvider]. Number of nodes: 340"
    script = (
        "globalThis.crossOriginIsolated = true; const {placed} = await import('./ort.js');"
        "console.log(JSON.stringify(given.map((t) => placed('g.onnx', t))))"
    )
    assert node(script, [several, alone, "nothing"]) == [
        "placement: g.onnx, branches aside: 7 nodes on the GPU; on the CPU: 2 NonZero, 1 Shape",
        "placement: g.onnx, branches aside: 340 nodes on the GPU; on the CPU: none",
        "placement: g.onnx: unavailable: the runtime did not say",
    ]


def test_devices_and_browsers_are_told_by_their_user_agents(node: Any) -> None:
    agents = [
        "Mozilla/5.0 (Linux; Android 16; Pixel 8 Build/X) AppleWebKit/537.36 Chrome/156.0.0.0 Mobile Safari/537.36",
        "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 SamsungBrowser/29.0 Chrome/156.0.0.0 Safari/537.36",
        "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) AppleWebKit/605.1.15 Version/19.1 Mobile Safari/604.1",
        "Mozilla/5.0 (X11; Linux x86_64; rv:150.0) Gecko/20100101 Firefox/150.0",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 HeadlessChrome/156.0.0.0 Safari/537.36",
    ]
    found = node(
        "const {browserName, systemName, guessedName} = await import('./device.js');"
        "console.log(JSON.stringify(given.map((a) => [browserName(a), systemName(a), guessedName(a)])))",
        agents,
    )
    assert found == [
        ["Chrome 156", "Android 16", "Pixel 8"],
        ["Samsung Internet 29.0", "Android 10", "Android 10 device"],
        ["Safari 19.1", "iOS 19.1", "iPhone"],
        ["Firefox 150", "Linux", "Linux device"],
        ["Chrome, headless 156", "Linux", "Linux device"],
    ]

"""`dynbench compile`: what it prints, and that a check needs no torch; tests/deploy is about the bundles."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dynbench.deploy import bundle
from dynbench.deploy.bundle import Checked
from tests.cli import TINY, call
from tests.cli.test_bad_input import refused

WITHOUT_TORCH = """
import sys

sys.modules["torch"] = None
from dynbench.cli import main

main(["compile", "--check", sys.argv[1]])
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle, and what was printed as it was written."""
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    result = call("compile", TINY, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result.stdout


def test_graphs_are_listed_with_their_work_and_what_was_proved(compiled: tuple[Path, str]) -> None:
    out, printed = compiled
    *lines, proved, place = printed.splitlines()
    assert [line.split()[0] for line in lines] == [
        "dynamic.onnx",
        "single.onnx",
        "static.onnx",
        "dynamic.here.onnx",
        "single.here.onnx",
        "static.here.onnx",
    ]
    assert lines[0].endswith("of plain)") and "MFLOP per item" in lines[2] and "of plain" not in lines[2]
    assert proved.startswith("proved with decisions learned, replayed, none, all, one at batch 1, 2, 4, 7; ")
    assert place == f"bundle: {out} (python {out / 'run.py'})"


def test_the_same_seed_gives_the_same_inputs_and_another_one_others(compiled: tuple[Path, str], tmp_path: Path) -> None:
    for seed in (0, 1):
        assert call("compile", TINY, "--out", tmp_path / str(seed), "--seed", seed).exit_code == 0
    right = {file.name: file.read_bytes() for file in compiled[0].iterdir() if file.name != "manifest.json"}
    assert {name: (tmp_path / "0" / name).read_bytes() for name in right} == right
    assert (tmp_path / "1" / "inputs.npy").read_bytes() != right["inputs.npy"]


def test_a_check_needs_no_torch(compiled: tuple[Path, str]) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(compiled[0])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" same\n") == len(done.stdout.splitlines()) == 18


@pytest.mark.parametrize(
    ("error", "differ", "words"),
    [
        (0.5, 0, "dynamic.onnx at batch 7 answers otherwise than expected, by 0.5 of the largest value"),
        (0.0, 3, "dynamic.onnx at batch 7 decides otherwise than expected: 3 of 100 decisions differ"),
        (float("nan"), 0, "by nan of the largest value"),
    ],
)
def test_a_difference_is_exit_code_1_and_the_first_one_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: float, differ: int, words: str
) -> None:
    def check(folder: Path, left_out: Callable[[str], None]) -> Iterator[Checked]:
        yield Checked("dynamic.onnx", 1, 0.0, 100, 0, 1e-4)
        yield Checked("dynamic.onnx", 7, error, 100, differ, 1e-4)
        yield Checked("static.onnx", 7, 1.0, 0, 0, 1e-4)

    monkeypatch.setattr(bundle, "check", check)
    result = call("compile", "--check", tmp_path)
    assert result.exit_code == 1 and words in result.stderr and "Traceback" not in result.output
    said = [line.partition(")  ")[2].partition(",")[0] for line in result.stdout.splitlines()]
    assert said == ["same", "DIFFERENT", "DIFFERENT"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "give a workload and --out DIR, or --check DIR"),
        ([TINY], "give a workload and --out DIR"),
        (["--out", "somewhere"], "give a workload and --out DIR"),
        (["--check", "nowhere"], "nowhere is no bundle"),
        (["--check", TINY], "is no bundle"),
        (["--check", "nowhere", "--out", "somewhere"], "--check proves the bundle in a folder"),
        (["--check", "nowhere", "--opset", "17"], "--check proves the bundle in a folder"),
        ([TINY, "--out", "somewhere", "--opset", "12"], "opset 12: graphs are written in opset 13 to 20"),
        (["skipnet38_digit", "--out", "somewhere"], "did you mean skipnet38_digits"),
        (["all", "--out", "somewhere"], "all"),
    ],
)
def test_wrong_use_is_one_sentence(
    args: list[object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused("compile", *args)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("opset", [13, 20])
def test_a_bundle_of_another_opset_is_proved_again(opset: int, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert call("compile", TINY, "--out", out, "--opset", opset).exit_code == 0
    manifest, _ = bundle.read(out)
    assert manifest.opset == opset
    assert call("compile", "--check", out).exit_code == 0

"""What a user got wrong: one sentence on stderr, exit code 2, no traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli import QUICK, TINY, call


def refused(*args: object) -> str:
    """The sentence with which a command line is refused."""
    result = call(*args)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    lines = result.stderr.splitlines()
    assert [line.startswith("Error: ") for line in lines].count(True) == 1
    assert lines[-1].startswith("Error: ")
    return lines[-1]


@pytest.fixture
def workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a copy of the tiny workload with some text replaced; its folder is the working folder."""
    shutil.copy(TINY.with_name("net.py"), tmp_path)
    monkeypatch.chdir(tmp_path)

    def write(*changes: tuple[str, str]) -> Path:
        text = TINY.read_text(encoding="utf-8")
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "w.toml").write_text(text, encoding="utf-8")
        return tmp_path / "w.toml"

    return write


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["rum"], ["'rum'", "'run'"]),
        (["run", "--bach", "1"], ["--bach", "--batch"]),
        (["run", "skipnet38_digit"], ["skipnet38_digit", "did you mean skipnet38_digits"]),
        (["run", "nowhere.toml"], ["nowhere.toml", "no such file"]),
        (["run", TINY, "--strategy", "compacton"], ["'compacton'", "did you mean compaction"]),
        (["run", TINY, "--strategy", "dense,,masking"], ["--strategy", "empty name"]),
        (["run", TINY, "--device", "cdua"], ["'cdua'", "cuda"]),
        (["run", TINY, "--device", "tpu"], ["'tpu'", "did you mean cpu?"]),
        (["run", TINY, "--dtype", "float31"], ["'float31'", "float32"]),
        (["run", TINY, "--engine", "egaer"], ["'egaer'", "eager"]),
        (["run", TINY, "--decisions", "learnt"], ["'learnt'", "learned"]),
        (["run", TINY, "--batch", "0"], ["--batch", "'0'", "whole numbers from 1"]),
        (["run", TINY, "--batch", "1,x"], ["--batch", "'1,x'", "whole numbers from 1"]),
        (["run", TINY, "--threads", "0"], ["--threads", "0"]),
        (["run", TINY, "--time-limit", "0"], ["--time-limit", "0"]),
        (["run", "--resume", "nowhere"], ["nowhere", "no run"]),
        (["run", TINY, "--resume", "nowhere"], ["--resume", "no other option"]),
        (["verify", "skipnet38_digit"], ["did you mean skipnet38_digits"]),
        (["verify", TINY, "--device", "cup"], ["'cup'", "did you mean cpu?"]),
        (["train", "moe_txt"], ["'moe_txt'", "moe_text"]),
        (["train", TINY], ["tiny", "[train]"]),
        (["report", "nowhere"], ["nowhere", "no run"]),
        (["report"], ["no run under runs/"]),
        (["export", "nowhere"], ["nowhere", "no run"]),
        (["list", "workload"], ["'workload'", "workloads"]),
        (["cost", "skipnt"], ["'skipnt'", "did you mean skipnet"]),
        (["cost", "skipnet", "--set", "dept=8"], ["'dept'", "accepted: depth, gate, num_classes, dataset"]),
        (["cost", "skipnet", "--set", "depth"], ["--set depth", "NAME=VALUE"]),
        (["cost", "skipnet", "--set", "depth=39"], ["depth=39", "6n+2"]),
        (["cost", "skipnet", "--set", "depth=deep"], ["depth='deep'", "TypeError"]),
        (["cost", "resnet", "--input", "3x32x"], ["3x32x", "such as 3x32x32"]),
        (["cost", "resnet", "--input", "1x32x32"], ["(1, 32, 32)", "3 channels"]),
        (["cost", "nowhere.py:build"], ["nowhere.py", "no file"]),
        (["cost", "nowhere.at:all"], ["nowhere.at:all", "No module named"]),
        (["cost", "dynbench.models.skipnet:skipnt"], ["'skipnt'", "did you mean skipnet"]),
        (["cost", "builtins:dict"], ["gave dict, not a torch.nn.Module"]),
        (["doctor", "--seconds", "0"], ["--seconds", "0"]),
    ],
    ids=lambda value: " ".join(Path(str(a)).name for a in value) if isinstance(value, list) else None,
)
def test_a_command_line_that_makes_no_sense_is_refused(
    args: list[object], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = refused(*args)
    assert all(word in sentence for word in words), sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("command", ["run", "verify", "train"])
def test_cuda_where_there_is_none_is_refused(command: str) -> None:
    assert "'cuda'" in refused(command, TINY, "--device", "cuda")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[run]", "[run"), ["w.toml", "not valid TOML", "line"]),
        (("batch_sizes = [1, 4]", 'batch_sizes = "many"'), ["w.toml", "run.batch_sizes", "'many'"]),
        (("batch_sizes = [1, 4]", "batch_sizes = [0]"), ["w.toml", "run.batch_sizes", "0"]),
        (("batch_sizes = [1, 4]", "batch_size = [1]"), ["batch_size", "did you mean batch_sizes"]),
        (('title = "A tiny network"', ""), ["w.toml", "title", "missing"]),
        (
            ("[run]", '[[claims]]\nmetric = "m"\nvalue = nan\nunit = "x"\nwhere = "t"\nhow = "timed"\n[run]'),
            ["claims.0.value", "finite"],
        ),
        (("net.py:make", "net.py:mak"), ["'mak'", "make"]),
        (("net.py:make", "net.py:raises"), ["net.py:raises", "ValueError: depth must be odd"]),
        (("net.py:items", "net.py:item"), ["'item'", "items"]),
        (
            ('model = "net.py:make"', 'model = "net.py:make"\nweights = "w.safetensors"'),
            ["w.safetensors", "shape (1, 8)"],
        ),
    ],
)
def test_a_workload_file_that_makes_no_sense_is_refused(
    workload: Callable[..., Path], change: tuple[str, str], words: list[str]
) -> None:
    file = workload(change)
    state = {"stem.weight": torch.zeros(1, 8)}
    save_file(state, file.with_name("w.safetensors"))
    sentence = refused("run", file, "--dry-run")
    assert all(word in sentence for word in words), sentence


def test_a_run_of_nothing_that_works_is_refused(workload: Callable[..., Path]) -> None:
    file = workload(("net.py:make", "net.py:raises"))
    assert "depth must be odd" in refused("run", file, *QUICK, "--out", "out")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here already")
    assert str(tmp_path / "file") in refused("run", TINY, "--out", tmp_path / "file" / "run")


def test_a_folder_that_holds_another_run_is_refused(finished: Path) -> None:
    assert "--resume" in refused("run", TINY, *QUICK, "--out", finished)


def test_a_trace_that_cannot_be_replayed_is_refused(workload: Callable[..., Path], finished: Path) -> None:
    (trace,) = (f.with_suffix("") for f in (finished / "traces").glob("*.json"))
    file = workload()
    again = ("run", file, "--dry-run", "--decisions")
    assert call(*again, f"replay:{trace}", "--batch", "4").exit_code == 0
    assert "recorded on stream" in refused(*again, f"replay:{trace}", "--batch", "4", "--seed", "1")
    broken = file.with_name("broken")
    shutil.copy(f"{trace}.safetensors", f"{broken}.safetensors")
    about = json.loads(Path(f"{trace}.json").read_text())
    Path(f"{broken}.json").write_text(json.dumps({**about, "hash": "0" * 16}))
    assert "corrupt" in refused(*again, f"replay:{broken}", "--batch", "4")
    assert "nowhere" in refused(*again, "replay:nowhere")


def test_a_corrupt_manifest_is_refused(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "manifest.json").write_text("{")
    for command in ("report", "export"):
        assert "manifest.json is corrupt" in refused(command, copy)


@pytest.mark.parametrize("command", ["report", "export"])
def test_an_unknown_format_is_refused(command: str, finished: Path) -> None:
    assert "'hmtl'" in refused(command, finished, "--format", "hmtl")

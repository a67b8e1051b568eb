"""What a shell completes, asked as a shell asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from dynbench.cli import completion, main
from dynbench.names import ENGINE_NAMES
from dynbench.paths import workload_files
from tests.cli.test_help import HEAVY

ASKED = """
import json, sys
from dynbench.cli import main
try:
    main(prog_name="dynbench")
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def completed(*words: str) -> list[str]:
    """What the last word may become."""
    shell = ShellComplete(main, {}, "dynbench", "_DYNBENCH_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1]) if item.type == "plain"]


@pytest.mark.parametrize("command", ["run", "check", "verify", "compile", "train", "trace", "partition", "search"])
def test_workloads_are_completed_by_name(command: str) -> None:
    assert completed(command, "idk_") == [name for name in workload_files() if name.startswith("idk_")] != []


def test_all_and_files_are_completed_where_they_are_accepted() -> None:
    assert completed("run", "al") == completed("verify", "al") == ["all"] and completed("check", "al") == []
    shell = ShellComplete(main, {}, "dynbench", "_DYNBENCH_COMPLETE")
    assert "file" in {item.type for item in shell.get_completions(["run"], "my")}


def test_options_are_completed_by_what_they_accept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed("run", "--engine", "") == list(ENGINE_NAMES)
    assert completed("run", "--dtype", "float") == ["float32", "float64", "float16"]
    assert completed("trace", "--strategy", "ba") == ["batch_union"]
    (tmp_path / "0000:01:00.0").mkdir()
    monkeypatch.setattr(completion, "NVIDIA", tmp_path)
    assert completed("run", "--device", "c") == ["cpu", "cuda", "cuda:0"]


def test_of_several_names_the_last_is_completed_and_none_twice() -> None:
    assert completed("run", "--strategy", "masking,") == [
        f"masking,{name}" for name in ("dense", "compaction", "cascading", "batch_union", "specialised", "per_sample")
    ]
    assert completed("run", "--decisions", "learned,l") == []


def test_a_shell_gets_its_answer_without_any_heavy_library() -> None:
    asked = {"_DYNBENCH_COMPLETE": "bash_complete", "COMP_WORDS": "dynbench run skipnet38_d", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", ASKED], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert "plain,skipnet38_digits\n" in done.stdout
    assert not HEAVY & {name.strip('", []\n') for name in done.stderr.split(",")}

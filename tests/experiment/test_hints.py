"""What is said to somebody who names something that is no workload."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynbench.experiment.hints import instead_of
from dynbench.experiment.spec import load_spec
from dynbench.paths import workload_files
from tests.cli import call

CODE = """
raise SystemExit("this file is not run")

def make(): ...
def items(split, seed=0): ...
def _own(): ...
"""


def said(given: object) -> str:
    return instead_of(str(given), workload_files())


def test_a_part_of_a_name_and_the_name_of_a_model_lead_to_workloads() -> None:
    assert "did you mean skipnet110_synthetic or skipnet38_cifar10 or" in said("skipnet")
    assert "did you mean branchynet_resnet110_synthetic or blockdrop" in said("resnet")  # whose baselines are
    assert "did you mean idk_digits or" in said("idkdigits")
    assert said("xyzzy").endswith("`dynbench list workloads` shows all") and "did you mean" not in said("xyzzy")


def test_python_code_is_answered_by_the_smallest_workload_file_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_net.py").write_text(CODE)
    result = call("run", "my_net.py")
    assert result.exit_code == 2
    for line in ("schema = 1", 'name = "my_net"', 'model = "my_net.py:make"', "docs/add-a-model.md"):
        assert line in result.output
    assert 'model = "my_net.py:other"' in said("my_net.py:other")
    assert "there is no file other.py" in said("other.py")


def test_that_file_is_a_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_net.py").write_text(CODE)
    lines = said("my_net.py:make").partition(" lines: ")[2].partition("; see")[0].split(" | ")
    Path("my_net.toml").write_text("\n".join(lines).replace("INPUTS", "items"))
    spec = load_spec("my_net.toml")
    assert (spec.name, spec.model, spec.inputs.name) == ("my_net", "my_net.py:make", "my_net.py:items")


@pytest.mark.parametrize("code", ["def (", "\0", "é" * 10])
def test_a_file_that_is_no_python_is_named_all_the_same(code: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_bytes(code.encode("latin-1"))
    assert "net.py:FUNCTION" in said(tmp_path / "net.py")


def test_a_missing_file_leads_to_one_of_nearly_its_name(tmp_path: Path) -> None:
    assert said(tmp_path / "missing.toml") == f"no workload {str(tmp_path / 'missing.toml')!r}, and no such file"
    (tmp_path / "mine.toml").touch()
    assert said(tmp_path / "mien.toml").endswith(f"did you mean {tmp_path / 'mine.toml'}?")
    assert said("idk_digits.toml").endswith("comes with dynbench is idk_digits, without .toml")


@pytest.mark.parametrize(
    "given", ["a" * 3000, "a" * 3000 + ".py", "a" * 3000 + ".toml", "a" * 3000 + "@b=1", "", ".", ":"]
)
def test_whatever_is_given_is_refused_in_a_sentence(given: str) -> None:
    result = call("run", given)
    assert result.exit_code == 2 and result.output.lstrip().startswith("Error: ")


def test_a_run_directory_is_known_as_one(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    assert f"--resume {tmp_path}" in said(tmp_path)

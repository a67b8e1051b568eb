"""calibrate, whatif and advise by the real commands, on a tiny run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dynbench.devices.profiles import calibrated, load_profile, write_profile
from dynbench.store.scaling import read_scaling
from tests.cli import TINY, call


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with T(n); not to be changed."""
    out = tmp_path_factory.mktemp("scaled") / "run"
    asked = ("--as-written", "--scaling", "--time-limit", "0.3", "--precision", "50", "--strategy", "masking,cascading")
    result = call("run", TINY, *asked, "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hardware") / "here.toml"
    result = call("calibrate", "--out", out)
    assert result.exit_code == 0, result.output
    return out


def test_a_run_holds_the_scaling_of_its_regions_and_arms(scaled: Path) -> None:
    (found,) = read_scaling(scaled)
    own = found.network(None, "eager", "plain")
    assert own is not None and {p.name for p in own.parts} >= {"blocks.0.body", "exits.heads.0"}
    assert all(p.sizes[0] == 1 and p.sizes[-1] == 4 for p in own.parts)
    assert {(u.arm.strategy, u.batch_size) for u in found.usages} == {
        (s, b) for s in ("masking", "cascading") for b in (1, 4)
    }
    assert found.missing == []


def test_the_report_marks_what_is_predicted(scaled: Path) -> None:
    text = (scaled / "report.md").read_text()
    assert "## The cost model: predicted" in text and "no wait (predicted)" in text


def test_whatif_prints_levers_and_the_largest(scaled: Path) -> None:
    result = call("whatif", scaled, "--no-wait", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["predicted"] and all(list(r["predicted_wins"]) == ["no wait"] for r in found["predicted"])
    assert all(r["predicted_wins"]["no wait"] >= 1 for r in found["predicted"])
    shown = call("whatif", scaled)
    assert shown.exit_code == 0 and "Predicted: " in shown.output


def test_whatif_on_the_same_device_changes_nothing(scaled: Path, profile: Path) -> None:
    result = call("whatif", scaled, "--device", profile, "--calibration", profile, "--json")
    assert result.exit_code == 0, result.output
    assert all(abs(r["predicted_elsewhere"] - 1) < 1e-6 for r in json.loads(result.output)["predicted"])


def test_a_profile_of_another_machine_is_named(scaled: Path, profile: Path, tmp_path: Path) -> None:
    other = load_profile(profile).model_copy(update={"name": "Another CPU", "match": "Another CPU"})
    write_profile(tmp_path / "other.toml", other)
    result = call("whatif", scaled, "--device", profile, "--calibration", tmp_path / "other.toml")
    assert result.exit_code == 2 and "it is of Another CPU with 1 threads" in result.output


def test_calibrate_writes_a_profile_that_is_read_back(profile: Path) -> None:
    found = calibrated(str(profile))
    assert found.calibration is not None and found.calibration.threads == 1
    assert {"matmul", "convolution", "copy", "gather", "scatter", "wait", "point"} <= found.calibration.figures.keys()
    assert all(f.low <= f.value <= f.high for f in found.calibration.figures.values())
    assert found.ceilings["memory_bytes_per_s"] > 0


def test_advise_names_what_to_deploy_and_the_runner_up(scaled: Path) -> None:
    result = call("advise", scaled, "--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.output)
    first = found["candidates"][0]
    assert first["misses"] == "" and found["sentence"].startswith("For A tiny network, deploy ")
    assert all(first["item_ms"] <= c["item_ms"] for c in found["candidates"] if not c["misses"])
    shown = call("advise", scaled, "--batch", "4")
    assert shown.exit_code == 0 and "deploy" in shown.output


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--slo-ms", "0"), "0"),
        (("--slo-ms", "nan"), "nan"),
        (("--slo-ms", "-1"), "-1"),
        (("--slo-ms", "1e-9"), "nothing measured"),
        (("--batch", "3"), "measured were 1, 4"),
        (("--accuracy", "nan"), "nan"),
    ],
)
def test_a_wish_that_cannot_be_met_is_a_sentence(scaled: Path, asked: tuple[str, ...], said: str) -> None:
    result = call("advise", scaled, *asked)
    assert result.exit_code == 2 and said in result.output and "Traceback" not in result.output


def test_bad_input_is_a_sentence(scaled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bare = tmp_path / "bare"
    shutil.copytree(scaled, bare)
    (bare / "scaling.jsonl").unlink()
    for arguments, said in [
        (("whatif", bare), "dynbench run --scaling"),
        (("whatif", scaled, "--device", "nowhere"), "unknown device profile 'nowhere'"),
        (("whatif", scaled, "--device", "nvidia-h200"), "was not calibrated"),
        (("whatif", scaled, "--calibration", "x.toml"), "--device"),
        (("advise", "skipnet38_digits"), "`dynbench run skipnet38_digits` makes one"),
        (("advise", "no such thing"), "neither a run directory nor a workload"),
        (("calibrate", "--out", tmp_path / "x.txt"), "NAME.toml"),
        (("calibrate", "--device", "cuda:99"), "not available"),
    ]:
        result = call(*arguments)
        assert result.exit_code == 2 and said in result.output, result.output

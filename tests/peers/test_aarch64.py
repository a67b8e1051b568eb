"""Both agents as programs of aarch64 under qemu: answers are equal, emulation is noticed, and nothing is timed."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dynbench.deploy.agents.native import program as native
from dynbench.deploy.agents.python_agent import __file__ as PYTHON_AGENT
from dynbench.deploy.job import Job, Result, Timing, write_job
from dynbench.deploy.targets.local import Local
from dynbench.deploy.targets.outcome import proved
from dynbench.deploy.targets.profile import Reach
from dynbench.errors import UserError
from tests.peers.debian import arm_agent, arm_packages, arm_root, qemu
from tests.peers.test_ssh import bundle

__all__ = ["bundle"]  # fixture

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="aarch64 is emulated on x86-64 only")
SLOW = Timing(warm_up_s=0.0, rounds_min=1, time_limit_s=0.05, batch_sizes=[1, 4], deadline_s=1500)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> native.Program:
    return arm_agent(tmp_path_factory.mktemp("aarch64"))


@pytest.fixture(scope="module")
def wrapper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Starts a program of aarch64."""
    script = tmp_path_factory.mktemp("qemu") / "aarch64"
    root, packages = arm_root(), arm_packages()
    script.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {qemu()} -L {root} "$@"\n')
    script.chmod(0o755)
    return script


@pytest.fixture(scope="module")
def job(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Job]:
    folder = tmp_path_factory.mktemp("jobs") / "job"
    return folder, write_job(bundle, folder, SLOW)


def on_aarch64(wrapper: Path, command: list[str], agent: str, job: tuple[Path, Job]) -> Result:
    """What an agent finds there, proved as a target proves it."""
    folder, asked = job
    for name in ("result.json", "result.sha256"):
        (folder / name).unlink(missing_ok=True)
    done = subprocess.run([str(wrapper), *command, str(folder)], capture_output=True, text=True, timeout=1600)
    assert done.returncode == 0, done.stderr
    content, digest = (folder / "result.json").read_bytes(), (folder / "result.sha256").read_text()
    return proved(content, digest, asked, agent, "emulated")


def test_answers_are_equal_and_nothing_is_timed(
    wrapper: Path, built: native.Program, job: tuple[Path, Job], tmp_path: Path
) -> None:
    python = [str(arm_root() / "usr" / "bin" / "python3.13"), PYTHON_AGENT]
    found = {
        "native": on_aarch64(wrapper, [str(built.agent)], "native", job),
        "python": on_aarch64(wrapper, python, "python", job),
    }
    assert found["native"].checks == found["python"].checks and len(found["native"].checks) == 4
    for result in found.values():
        assert result.emulated and result.device.architecture == "aarch64"
        assert all(float(check.error) < 1e-5 and not check.decisions_differ for check in result.checks)
        assert any(check.decisions for check in result.checks)
        for arm in result.arms:
            assert (arm.reason, arm.rounds, arm.load_ms, arm.first_run_ms) == (None, [], None, None)
        assert result.sustained is None and result.memory_bytes is None and result.readings == {}
    here = Local("here", Reach(kind="local", python=sys.executable))
    place = here.run(job[0], "python", deadline_s=600, progress=lambda _: None)
    right = Result.model_validate_json(place.read_bytes())
    assert not right.emulated
    for ours, theirs in zip(found["native"].checks, right.checks, strict=True):
        assert (ours.arm, ours.batch_size, ours.decisions) == (theirs.arm, theirs.batch_size, theirs.decisions)


def test_it_is_refused_where_the_machine_is_another(built: native.Program, job: tuple[Path, Job]) -> None:
    assert (built.machine, built.loader) == ("aarch64", "/lib/ld-linux-aarch64.so.1")
    here = Local("here", Reach(kind="local", agent="native", program=built.agent))
    with pytest.raises(UserError, match="it is x86_64, and the native agent .* is for aarch64: build it for x86_64"):
        here.run(job[0], "native", deadline_s=60, progress=lambda _: None)
    (step,) = here.doctor()
    assert step.level == "missing" and "is for aarch64" in step.text

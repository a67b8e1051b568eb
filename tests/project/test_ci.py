"""What CI runs: it installs what tests need, and lets no test but those that need a GPU be skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of .ci/run, and all programs that it finds: it is run by root, and `make` succeeds."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    (tmp_path / "bin").mkdir()
    for name in ("sh", "dirname", "cat", "mktemp", "rm"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    program(tmp_path, "id", "echo 0")
    program(tmp_path, "apt-get", 'echo "apt-get $*" >>log')
    program(tmp_path, "make", 'echo "make $* with DYNBENCH_CI=$DYNBENCH_CI" >>log')
    for name in ("chromium", "initdb", "c++", "aarch64-linux-gnu-g++", "cmake", "npm", "sshd", "ssh", "adb", "ip"):
        program(tmp_path, name, "exit 0")
    return tmp_path


def program(checkout: Path, name: str, script: str) -> None:
    file = checkout / "bin" / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def ci(checkout: Path) -> subprocess.CompletedProcess[str]:
    """What .ci/run does with only these programs."""
    env = {"PATH": str(checkout / "bin")}
    return subprocess.run(["sh", ".ci/run"], cwd=checkout, env=env, capture_output=True, text=True)


MADE = [f"make {target} with DYNBENCH_CI=1" for target in ("lint", "test", "test-devices")]


def test_where_everything_is_there_nothing_is_installed(checkout: Path) -> None:
    done = ci(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (checkout / "log").read_text().splitlines() == MADE


def test_what_is_missing_is_installed_quietly(checkout: Path) -> None:
    for name in ("chromium", "c++", "npm"):
        (checkout / "bin" / name).unlink()
    done = ci(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    installed = ["apt-get update", "apt-get install -y --no-install-recommends chromium g++ npm"]
    assert (checkout / "log").read_text().splitlines() == [*installed, *MADE]


def test_without_permission_to_install_what_is_missing_is_reported(checkout: Path) -> None:
    (checkout / "bin" / "chromium").unlink()
    program(checkout, "id", "echo 1000")
    done = ci(checkout)
    assert done.returncode == 0 and "tests will fail without: chromium" in done.stderr
    assert (checkout / "log").read_text().splitlines() == MADE


def test_a_failed_installation_is_shown(checkout: Path) -> None:
    (checkout / "bin" / "chromium").unlink()
    program(checkout, "apt-get", "echo no network; exit 100")
    done = ci(checkout)
    assert done.stderr.splitlines() == [
        "no network",
        ".ci/run: tests will fail without: chromium (apt-get: see above)",
    ]


@pytest.mark.parametrize("failing", ["lint", "test", "test-devices"])
def test_all_parts_run_and_each_can_fail(checkout: Path, failing: str) -> None:
    program(checkout, "make", f'echo "make $*" >>log; [ "$1" != {failing} ]')
    assert ci(checkout).returncode != 0
    assert (checkout / "log").read_text().splitlines() == ["make lint", "make test", "make test-devices"]


def test_in_ci_only_tests_that_need_a_gpu_may_be_skipped(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cuda\n")
    (tmp_path / "test_a.py").write_text(
        "import pytest\n"
        "@pytest.mark.cuda\n"
        "@pytest.mark.skip\n"
        "def test_on_a_gpu(): pass\n"
        "def test_passes(): pass\n"
        "def test_skips(): pytest.skip('there is no browser')\n"
    )
    (tmp_path / "test_b.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    pytest_ = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors")
    outcomes = {}
    for ci in ("", "1"):
        env = {**os.environ, "DYNBENCH_CI": ci, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(pytest_, cwd=tmp_path, env=env, capture_output=True, text=True)
        outcomes[ci] = done.stdout
    assert "1 passed, 3 skipped" in outcomes[""]
    assert "1 failed, 1 passed, 1 skipped, 1 error" in outcomes["1"]
    assert "there is no browser" in outcomes["1"] and "no_such_module" in outcomes["1"]

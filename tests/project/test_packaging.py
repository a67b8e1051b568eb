"""What is installed is complete: as a wheel, from a source distribution, and editable.

The clean environments borrow the libraries of this one, so that nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ("workloads", "hardware")
BUILT_FROM = ("dynbench", *DATA, "pyproject.toml", "README.md", "LICENSE", "constraints.txt")


def call(*words: object, cwd: Path) -> str:
    """Output of a command that must succeed, in an environment that knows no checkout."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    done = subprocess.run([str(w) for w in words], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass
class Environment:
    """A virtual environment that sees this one's libraries, but not its dynbench."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Environment:
        """Makes an empty one."""
        call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        (packages,) = folder.glob("lib/python3*/site-packages")
        libraries = [p for p in sys.path if p.endswith("-packages")]
        (packages / "borrowed.pth").write_text("\n".join(libraries) + "\n")
        return cls(folder)

    def install(self, *what: object) -> None:
        """Installs without looking anywhere else."""
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.folder / "bin/python")
        plain = ("--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed", "--quiet")
        call(*pip, "install", *plain, *what, cwd=self.folder)

    def dynbench(self, *args: object, cwd: Path) -> str:
        """What the installed command says."""
        return call(self.folder / "bin/dynbench", *args, cwd=cwd)

    def titles(self, cwd: Path) -> dict[str, str]:
        """The workloads it knows."""
        rows = json.loads(self.dynbench("list", "workloads", "--json", cwd=cwd))
        return {row["name"]: row["title"] for row in rows}

    def package(self) -> Path:
        """Where its dynbench lies."""
        code = "import dynbench, pathlib; print(pathlib.Path(dynbench.__file__).parent)"
        return Path(call(self.folder / "bin/python", "-c", code, cwd=self.folder).strip())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, as a checkout has them."""
    folder = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """A wheel made from the checkout."""
    call(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", source / "dist", cwd=source)
    (found,) = (source / "dist").glob("*.whl")
    return found


def workload_names() -> set[str]:
    """The workloads of the checkout."""
    return {f.stem for f in (ROOT / "workloads").glob("*.toml")}


def test_a_wheel_holds_the_data_inside_the_package_and_nothing_beside_it(source: Path, wheel: Path) -> None:
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    files = {
        f"{d}/{f.relative_to(source / d)}" for d in ("dynbench", *DATA) for f in (source / d).rglob("*") if f.is_file()
    }
    expected = {f"dynbench/_{f}" if f.startswith(DATA) else f for f in files}
    assert inside == expected
    assert "dynbench/data/excerpt.txt" in inside
    assert any(f.startswith("dynbench/report/templates/") for f in inside)


def test_a_wheel_works_in_a_clean_environment_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    env = Environment.make(tmp_path / "env")
    env.install(wheel)
    assert env.package().is_relative_to(tmp_path / "env")
    assert env.titles(tmp_path).keys() == workload_names()
    assert "moe_text" in env.dynbench("run", "moe_text", "--batch", "1", "--dry-run", cwd=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_a_source_distribution_makes_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    call(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", tmp_path, cwd=source)
    (packed,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(packed) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    call(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, cwd=folder)
    (again,) = tmp_path.glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_an_editable_install_sees_an_edited_workload_at_once(source: Path, tmp_path: Path) -> None:
    checkout = shutil.copytree(source, tmp_path / "checkout", ignore=shutil.ignore_patterns("dist"))
    env = Environment.make(tmp_path / "env")
    env.install("--editable", checkout)
    assert env.package() == checkout / "dynbench"
    file = checkout / "workloads" / "moe_text.toml"
    before = env.titles(tmp_path)
    assert before.keys() == workload_names()
    file.write_text(file.read_text().replace(before["moe_text"], "An edited title"))
    assert env.titles(tmp_path)["moe_text"] == "An edited title"

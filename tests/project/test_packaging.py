"""What is installed is complete: as a wheel, from a source distribution, and editable.

The clean environments use the libraries of this one, so that nothing is downloaded.
"""

from __future__ import annotations

import email.parser
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from dynbench.errors import UserError
from dynbench.experiment.spec import DEFAULT_SUITE
from dynbench.paths import REPOSITORY, project_dir, weights_path

ROOT = Path(__file__).parents[2]
DATA = ("workloads", "hardware")
DOCUMENTS = ("docs", "README.md", "CHANGELOG.md", "LICENSE", "constraints.txt")
BUILT_FROM = ("dynbench", *DATA, "pyproject.toml", *DOCUMENTS)
MOST_BYTES = 15e6  # of a wheel


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command in an environment in which no checkout can be imported."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    return subprocess.run([str(w) for w in words], cwd=cwd, env=env, capture_output=True, text=True)


def call(*words: object, cwd: Path) -> str:
    """The output of a command that must succeed."""
    done = run(*words, cwd=cwd)
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
        """The output of the installed command."""
        return call(self.folder / "bin/dynbench", *args, cwd=cwd)

    def titles(self, cwd: Path) -> dict[str, str]:
        """The titles of its workloads, by name."""
        rows = json.loads(self.dynbench("list", "workloads", "--json", cwd=cwd))
        return {row["name"]: row["title"] for row in rows}

    def package(self) -> Path:
        """The folder of its dynbench."""
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


def weights_in(table: object) -> set[str]:
    """The files that a workload's table names as weights, of its own model and of its baselines."""
    if isinstance(table, list):
        return set().union(*map(weights_in, table))
    if not isinstance(table, dict):
        return set()
    own = {table["weights"]} if "weights" in table else set()
    return own.union(table.get("weights_by_part", {}).values(), *map(weights_in, table.values()))


def weights_of_the_default_suite() -> set[str]:
    """Relative to the folder of the workloads."""
    files = (ROOT / "workloads" / f"{name}.toml" for name in DEFAULT_SUITE)
    return weights_in([tomllib.loads(file.read_text(encoding="utf-8")) for file in files])


def test_a_wheel_holds_the_data_inside_the_package_and_the_weights_of_the_default_suite(
    source: Path, wheel: Path
) -> None:
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    files = {
        f"{d}/{f.relative_to(source / d)}" for d in ("dynbench", *DATA) for f in (source / d).rglob("*") if f.is_file()
    }
    carried = {f"workloads/{name}" for name in weights_of_the_default_suite()}
    assert carried <= files
    expected = {f for f in files if not f.endswith(".safetensors")} | carried
    assert inside == {f"dynbench/_{f}" if f.startswith(DATA) else f for f in expected}
    assert {"dynbench/data/excerpt.txt", "dynbench/py.typed"} <= inside
    assert any(f.startswith("dynbench/report/templates/") for f in inside)
    assert wheel.stat().st_size < MOST_BYTES


def test_a_wheel_says_where_the_project_is(wheel: Path) -> None:
    (name,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".dist-info/METADATA"))
    metadata = email.parser.Parser().parsestr(zipfile.ZipFile(wheel).read(name).decode())
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL", []))
    assert urls.keys() == {"Homepage", "Repository", "Documentation", "Changelog", "Issues"}
    assert urls["Repository"] == REPOSITORY and all(url.startswith(REPOSITORY) for url in urls.values())


def test_a_wheel_works_in_a_clean_environment_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    env = Environment.make(tmp_path / "env")
    env.install(wheel)
    assert env.package().is_relative_to(tmp_path / "env")
    assert env.titles(tmp_path).keys() == workload_names()
    assert "moe_text" in env.dynbench("run", "moe_text", "--batch", "1", "--dry-run", cwd=tmp_path)
    refused = run(env.folder / "bin/dynbench", "verify", "epnet_digits", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == (
        "Error: the weights epnet_digits.safetensors are not installed: a package has those of the default suite only; "
        f"all are in the repository: git clone {REPOSITORY} && pip install -e dynbench"
    )
    assert not (tmp_path / "runs").exists()


def test_weights_are_found_in_the_checkout_and_missing_ones_of_a_user_s_own_workload_are_just_missing(
    tmp_path: Path,
) -> None:
    for name in weights_of_the_default_suite():
        assert weights_path(project_dir("workloads"), name) == ROOT / "workloads" / name
    with pytest.raises(UserError) as caught:
        weights_path(tmp_path, "mine.safetensors")
    assert str(caught.value) == f"there is no weights file {tmp_path}/mine.safetensors"


def test_a_source_distribution_is_as_small_and_makes_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    call(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", tmp_path, cwd=source)
    (packed,) = tmp_path.glob("*.tar.gz")
    assert packed.stat().st_size < MOST_BYTES
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

"""Where the files of ONNX Runtime Web are found, and what is refused."""

from __future__ import annotations

import io
import json
import stat
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from dynbench.deploy.agents.browser import runtime
from dynbench.deploy.agents.browser.runtime import FILES, PACKAGE, TESTED, find, obtain
from dynbench.errors import UserError

ALL = [name for names in FILES.values() for name in names]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No runtime of this machine is found, and the tested files are made up."""
    monkeypatch.setenv("DYNBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DYNBENCH_ORT_WEB", raising=False)
    monkeypatch.setattr(runtime, "SHA256", {name: sha256(name.encode()).hexdigest() for name in ALL})


def install(folder: Path, version: str = TESTED, names: list[str] = ALL) -> Path:
    """A package as npm installs it below `folder`."""
    package = folder / "node_modules" / PACKAGE
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text(json.dumps({"name": PACKAGE, "version": version}))
    for name in names:
        (package / "dist" / name).write_bytes(name.encode())
    return package


def npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program `npm` that is found first."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def archive(place: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(place, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_there_is_none(tmp_path: Path) -> None:
    assert find(near=tmp_path) is None


def test_it_is_found_in_node_modules_here_and_above(tmp_path: Path) -> None:
    package = install(tmp_path)
    for near in (tmp_path, tmp_path / "a" / "b"):
        found = find(near=near)
        assert found is not None and found.folder == package / "dist"
        assert (found.version, found.providers) == (TESTED, ("wasm", "webgpu"))
        assert sorted(found.names) == sorted(ALL)


@pytest.mark.parametrize("named", ["node_modules/onnxruntime-web", "node_modules/onnxruntime-web/dist", "."])
def test_a_folder_that_is_named_may_be_the_package_its_files_or_what_npm_installed_into(
    tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = install(tmp_path / "x")
    install(tmp_path / "near")
    found = find(tmp_path / "x" / named, near=tmp_path / "near")
    assert found is not None and (found.folder, found.source) == (package / "dist", "runtime_folder")
    monkeypatch.setenv("DYNBENCH_ORT_WEB", str(tmp_path / "x" / named))
    found = find(near=tmp_path / "near")
    assert found is not None and (found.folder, found.source) == (package / "dist", "DYNBENCH_ORT_WEB")


def test_a_folder_that_is_named_and_has_none_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path)
    with pytest.raises(UserError, match=f"runtime_folder: {tmp_path}/none has no onnxruntime-web"):
        find(tmp_path / "none", near=tmp_path)
    monkeypatch.setenv("DYNBENCH_ORT_WEB", str(tmp_path / "none"))
    with pytest.raises(UserError, match="DYNBENCH_ORT_WEB: "):
        find(near=tmp_path)


def test_without_the_files_of_webgpu_there_is_webassembly(tmp_path: Path) -> None:
    install(tmp_path, names=list(FILES["wasm"]))
    found = find(near=tmp_path)
    assert found is not None and found.providers == ("wasm",) and found.names == FILES["wasm"]


def test_another_version_is_taken_and_named(tmp_path: Path) -> None:
    package = install(tmp_path, version="9.9.9")
    (package / "dist" / ALL[0]).write_text("other")
    found = find(near=tmp_path)
    assert found is not None and found.version == "9.9.9"


def test_the_version_of_files_without_their_package_is_in_their_first_lines(tmp_path: Path) -> None:
    for name in FILES["wasm"]:
        (tmp_path / name).write_text("/*!\n * ONNX Runtime Web v9.8.7\n */" if name.startswith("ort.") else name)
    found = find(tmp_path)
    assert found is not None and found.version == "9.8.7"
    (tmp_path / FILES["wasm"][0]).write_text("?")
    found = find(tmp_path)
    assert found is not None and found.version == "unknown"


def test_a_changed_file_of_the_tested_version_is_refused(tmp_path: Path) -> None:
    package = install(tmp_path)
    (package / "dist" / FILES["wasm"][2]).write_text("evil")
    with pytest.raises(UserError, match=f"{FILES['wasm'][2]} is not the file of onnxruntime-web {TESTED}"):
        find(near=tmp_path)


def test_npm_is_asked_once_and_its_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = {"package/../../evil": b"x", "package/dist/more": b"x"}
    archive(tmp_path / "a.tgz", {f"package/dist/{name}": name.encode() for name in ALL} | evil)
    npm(tmp_path / "bin", monkeypatch, f'echo "$@" >> {tmp_path}/asked; cp {tmp_path}/a.tgz "$5"')
    said: list[str] = []
    got = obtain(said.append)
    assert got.version == TESTED and got.providers == ("wasm", "webgpu") and "npm" in said[0]
    assert sorted(path.name for path in got.folder.iterdir()) == sorted(ALL)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{PACKAGE}-{TESTED}"]
    assert (tmp_path / "asked").read_text().startswith(f"pack {PACKAGE}@{TESTED} --silent --pack-destination ")
    again = find(near=tmp_path)
    assert again is not None and (again.folder, again.source) == (got.folder, "cache")


def test_another_file_than_was_tested_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path / "a.tgz", {f"package/dist/{name}": b"evil" for name in ALL})
    npm(tmp_path / "bin", monkeypatch, f'cp {tmp_path}/a.tgz "$5"')
    with pytest.raises(UserError, match="npm gave another ort.wasm.min.mjs"):
        obtain()
    assert find(near=tmp_path) is None


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'npm error code E404' >&2; exit 1", "npm error code E404"),
        ("exit 0", "is no package"),
        ('echo nonsense > "$5/a.tgz"', "is no package"),
    ],
)
def test_what_npm_cannot_do_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    npm(tmp_path / "bin", monkeypatch, script)
    with pytest.raises(UserError, match=why) as e:
        obtain()
    assert "\n" not in str(e.value)


def test_without_npm_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm is missing.*npm install onnxruntime-web@.*runtime_folder"):
        obtain()

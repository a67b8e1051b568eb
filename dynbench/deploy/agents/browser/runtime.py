"""Where the files of ONNX Runtime Web come from: a folder of its npm package, or one that is obtained once by npm.

The page loads nothing from other hosts, so these files must be on the machine that serves it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dynbench.errors import UserError
from dynbench.files import make_folder, write_bytes
from dynbench.paths import cache_dir
from dynbench.scratch import scratch

PACKAGE = "onnxruntime-web"
TESTED = "1.30.0"
FOLDER_VARIABLE = "DYNBENCH_ORT_WEB"
NPM_S = 300.0  # the package has 33 MB

# The files of the version that dynbench is tested with; each provider needs three.
FILES = {
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": (
        "ort.webgpu.min.mjs",
        "ort-wasm-simd-threaded.asyncify.mjs",
        "ort-wasm-simd-threaded.asyncify.wasm",
    ),
}
SHA256 = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
REMEDY = (
    f"run `npm install {PACKAGE}@{TESTED}` in this folder, or name the folder of the package by `runtime_folder` or "
    f"{FOLDER_VARIABLE}"
)


@dataclass(frozen=True)
class Runtime:
    """Files of ONNX Runtime Web.

    Attributes:
        folder: where they lie.
        version: of the package.
        providers: 'wasm', and 'webgpu' where its files are there too.
        source: how the folder was found, for people.
    """

    folder: Path
    version: str
    providers: tuple[str, ...]
    source: str

    @property
    def names(self) -> tuple[str, ...]:
        """All files that a page may ask for."""
        return tuple(name for provider in self.providers for name in FILES[provider])


def find(folder: Path | None = None, near: Path | None = None) -> Runtime | None:
    """The runtime's files on this machine.

    Looked for in `folder`, else in the folder that the environment names, else in `node_modules` of the folder `near`
    (the current one) and those above it, else in dynbench's cache. Nothing is downloaded.

    Args:
        folder: of the package or of its files, given by the user.
        near: where to look for `node_modules`.

    Returns:
        None: there is none.

    Raises:
        UserError: a folder that was named has no runtime, or a file of the tested version was changed.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if folder is not None:
        return _named(folder, "runtime_folder")
    if named:
        return _named(Path(named), FOLDER_VARIABLE)
    for place, source in _usual(near if near is not None else Path.cwd()):
        if (found := _in(place, source)) is not None:
            return found
    return None


def obtain(say: Callable[[str], None] = lambda _: None) -> Runtime:
    """Downloads the tested version by npm, once, into dynbench's cache; every file is compared with its known hash.

    Args:
        say: is told what is done.

    Raises:
        UserError: npm is missing or fails, a file is another one than was tested, or the cache cannot be written.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"{PACKAGE} is not installed and npm is missing, which would download it: {REMEDY}")
    say(f"downloading {PACKAGE} {TESTED} by npm (33 MB, once)")
    make_folder(cache_dir())
    with scratch("npm", cache_dir()) as folder:
        _pack(npm, folder)
        files = _unpacked(folder)
    make_folder(_cached() / "dist")
    write_bytes(_cached() / "package.json", json.dumps({"name": PACKAGE, "version": TESTED}).encode())
    for name, content in files.items():
        write_bytes(_cached() / "dist" / name, content)
    found = _in(_cached(), "downloaded by npm")
    assert found is not None
    return found


def _usual(near: Path) -> Iterator[tuple[Path, str]]:
    near = near.absolute()
    for parent in (near, *near.parents):
        yield parent / "node_modules" / PACKAGE, "node_modules"
    yield _cached(), "cache"


def _cached() -> Path:
    return cache_dir() / f"{PACKAGE}-{TESTED}"


def _named(folder: Path, source: str) -> Runtime:
    folder = folder.expanduser()
    found = _in(folder, source) or _in(folder / "node_modules" / PACKAGE, source)
    if found is None:
        raise UserError(f"{source}: {folder} has no {PACKAGE}: no {FILES['wasm'][0]} in it or in its folder dist")
    return found


def _in(place: Path, source: str) -> Runtime | None:
    """The runtime in a folder of the package, or in one with its files only."""
    for folder in (place / "dist", place):
        try:
            providers = tuple(p for p, names in FILES.items() if all((folder / name).is_file() for name in names))
        except OSError:  # a folder that may not be read
            continue
        if "wasm" in providers:
            version = _version(folder)
            if version == TESTED:
                _compare(folder, [name for p in providers for name in FILES[p]])
            return Runtime(folder, version, providers, source)
    return None


def _version(folder: Path) -> str:
    """From the package's description, else from the licence line of the file itself."""
    try:
        said = json.loads((folder.parent / "package.json").read_bytes())
        if said.get("name") == PACKAGE:
            return str(said["version"])
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    try:
        head = (folder / FILES["wasm"][0]).read_bytes()[:400].decode("utf-8", "replace")
    except OSError as e:
        raise UserError(f"cannot read {folder / FILES['wasm'][0]}: {e.strerror or e}") from e
    found = re.search(r"ONNX Runtime Web v(\d+\.\d+\.\d+\S*)", head)
    return found[1] if found else "unknown"


def _compare(folder: Path, names: list[str]) -> None:
    for name in names:
        try:
            content = (folder / name).read_bytes()
        except OSError as e:
            raise UserError(f"cannot read {folder / name}: {e.strerror or e}") from e
        if hashlib.sha256(content).hexdigest() != SHA256[name]:
            raise UserError(
                f"{folder / name} is not the file of {PACKAGE} {TESTED}: its sha256 differs; install it anew"
            )


def _pack(npm: str, scratch: Path) -> None:
    command = [npm, "pack", f"{PACKAGE}@{TESTED}", "--silent", "--pack-destination", str(scratch)]
    try:
        done = subprocess.run(
            command, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=NPM_S, check=False
        )
    except subprocess.TimeoutExpired as e:
        raise UserError(f"npm did not download {PACKAGE} {TESTED} within {NPM_S:.0f} s: {REMEDY}") from e
    except OSError as e:
        raise UserError(f"npm cannot be started: {e.strerror or e}; {REMEDY}") from e
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(f"npm cannot download {PACKAGE} {TESTED}: {said[0] if said else 'no message'}; {REMEDY}")


def _unpacked(scratch: Path) -> dict[str, bytes]:
    """The files that are needed out of the one archive in a folder, by their known names only."""
    files: dict[str, bytes] = {}
    try:
        (archive,) = scratch.glob("*.tgz")
        with tarfile.open(archive, "r:gz") as tar:
            for name, right in SHA256.items():
                member = tar.extractfile(f"package/dist/{name}")
                content = member.read() if member else b""
                if hashlib.sha256(content).hexdigest() != right:
                    raise UserError(f"npm gave another {name} than that of {PACKAGE} {TESTED}: its sha256 differs")
                files[name] = content
    except (OSError, ValueError, KeyError, tarfile.TarError) as e:
        raise UserError(f"what npm downloaded is no package {PACKAGE}: {e}") from e
    return files

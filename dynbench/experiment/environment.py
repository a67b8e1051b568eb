"""What a manifest says of the software, the process and the repository."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

from dynbench.launch import THREAD_VARIABLES

ALLOCATOR = ("LD_PRELOAD", "GLIBC_TUNABLES")  # and MALLOC_*: what decides when memory goes back to the system
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow", "safetensors", "pydantic")


def software() -> dict[str, object]:
    """Versions of what measures."""
    versions: dict[str, object] = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def git_state(folder: Path) -> dict[str, object]:
    """Commit and cleanliness of the repository `folder` lies in; why not, where there is none."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"unavailable": "not in a git repository, or git is not installed"}


def process_environment(threads: int) -> dict[str, object]:
    """Threads, memory allocator and load of the machine as the run starts."""
    return {
        "threads": threads,
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "load_average_1min": os.getloadavg()[0],
        "allocator": {k: v for k, v in sorted(os.environ.items()) if k in ALLOCATOR or k.startswith("MALLOC_")},
        "cpu_affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "unavailable",
        "executable": Path(sys.executable).name,
    }

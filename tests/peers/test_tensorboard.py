"""A trace in a real TensorBoard server with torch-tb-profiler."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli import TINY, call

WAIT_S = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two traces, one by torch and one by ONNX Runtime."""
    path = tmp_path_factory.mktemp("traces")
    assert call("trace", TINY, "--batch", 8, "--batches", 2, "--out", path / "host").exit_code == 0
    assert call("trace", TINY, "--graph", "--batch", 8, "--batches", 2, "--out", path / "graph").exit_code == 0
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """Its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield f"http://127.0.0.1:{port}/data/plugin/pytorch_profiler"
    process.terminate()
    process.wait(30)


def _asked(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.loads(answer.read())


def _runs(server: str) -> set[str]:
    """The runs that the plugin has loaded, when there are two."""
    end, found = time.monotonic() + WAIT_S, set[str]()
    while time.monotonic() < end and len(found) < 2:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            found = set(_asked(f"{server}/runs")["runs"])
        time.sleep(0.5)
    return found


def test_the_plugin_opens_both_traces_and_lists_their_operators(server: str) -> None:
    assert _runs(server) == {"host", "graph"}
    for run, operator in (("host", "aten::linear"), ("graph", "Gemm")):
        (worker,) = _asked(f"{server}/workers?run={run}&view=Operator")
        span = _asked(f"{server}/spans?run={run}&worker={worker}")[0]
        table = _asked(f"{server}/operation/table?run={run}&worker={worker}&span={span}&group_by=Operation")
        names = {row["name"] for row in table["data"]}
        assert operator in names, names

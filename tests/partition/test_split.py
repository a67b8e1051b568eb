"""Partition with a second process for the cloud: the same answers, its end noticed, nothing unpickled."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynbench.devices.link import Line, PeerLost
from dynbench.devices.network import Network
from dynbench.errors import DynbenchError, UserError
from dynbench.launch.channel import Channel
from dynbench.partition.cloud import accept, serve
from dynbench.partition.half import Half, ModelSource
from dynbench.partition.messages import pack, unpack
from dynbench.partition.records import Settings
from dynbench.partition.remote import Cloud
from dynbench.partition.split import of_model, of_workload

NEAR = Network("near", 0.0)
SMALL: dict[str, Any] = {"image": 24, "patch": 4, "zoom": 2, "widths": [4, 4], "classifier_widths": [4, 8]}
CINET = ModelSource(model="dynbench.models.cinet:CiNet", args=SMALL, shape=(1, 24, 24), low=(-3.0,), high=(3.0,))

WORKLOAD = """
schema = 1
name = "own"
title = "CiNet in small"
model = "dynbench.models.cinet:CiNet"
model_args = { image = 24, patch = 4, zoom = 2, widths = [4, 4], classifier_widths = [4, 8] }
inputs = { name = "digit_scenes", options = { size = 24 } }

[[baselines]]
name = "the same"
primary = true

[[baselines]]
name = "plain"
model = "dynbench.models.ram:PlainCNN"
model_args = { image = 24, widths = [2, 4] }

[run]
accuracy_items = 40
"""


@pytest.fixture(scope="module")
def half() -> Half:
    return Half(CINET)


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    running = Cloud(CINET, NEAR)
    yield running
    assert running.close() == 0  # it ends by itself, and cleanly
    with pytest.raises(ProcessLookupError):
        os.kill(running.pid, 0)


def image(seed: int) -> Tensor:
    return torch.randn(1, 1, 24, 24, generator=torch.Generator().manual_seed(seed))


def test_the_second_process_answers_as_this_one_at_every_cut(half: Half, cloud: Cloud) -> None:
    assert cloud.pid != os.getpid()
    for cut in range(half.layers):
        crossing, x = half.chain.crossings[cut], image(cut)
        parts = half.to_wire(half.run(0, cut, [x]), crossing)
        assert [p.dtype == torch.uint8 for p in parts] == list(crossing.pixels)
        (answer,) = cloud.ask(parts, do="layers", after=f"{cut}")
        (want,) = half.answer(parts, {"do": "layers", "after": f"{cut}"})
        assert torch.allclose(answer, want, atol=1e-6)
        if not any(crossing.pixels):
            assert torch.allclose(answer, half.chain.model(x), atol=1e-5)


def test_a_jpeg_file_is_decoded_there(half: Half, cloud: Cloud) -> None:
    pytest.importorskip("cv2")
    from dynbench.data.pixels import jpeg

    file = jpeg(half.pixels.encode(image(0).numpy())[0], 95)
    parts = [torch.frombuffer(bytearray(file), dtype=torch.uint8)]
    (answer,) = cloud.ask(parts, do="jpeg")
    assert torch.allclose(answer, half.answer(parts, {"do": "jpeg"})[0], atol=1e-6)


def test_what_it_cannot_do_is_told_and_it_goes_on(half: Half, cloud: Cloud) -> None:
    with pytest.raises(DynbenchError, match="failed: IndexError"):
        cloud.ask([image(0)], do="layers", after="99")
    (answer,) = cloud.ask(half.to_wire([image(1)], half.chain.crossings[0]), do="layers", after="0")
    assert answer.shape == (1, 10)


def test_a_peer_that_hangs_or_dies_is_told_and_nothing_is_left_of_it(half: Half) -> None:
    parts = half.to_wire([image(0)], half.chain.crossings[0])
    with Cloud(CINET, NEAR, timeout_s=1.0) as cloud:
        os.kill(cloud.pid, signal.SIGSTOP)
        with pytest.raises(PeerLost, match="process that plays the cloud is lost: .*silent for 1 s"):
            cloud.ask(parts, do="layers", after="0")
        os.kill(cloud.pid, signal.SIGKILL)
        with pytest.raises(PeerLost, match="process that plays the cloud is lost: .*it ended with -9"):
            cloud.ask(parts, do="layers", after="0")
    with pytest.raises(ProcessLookupError):
        os.kill(cloud.pid, 0)


def stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Another program is started in place of the process that plays the cloud."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_what_the_process_cannot_build_is_told_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stands_in(tmp_path, monkeypatch, """echo '{"error": "no such network"}'""")
    with pytest.raises(DynbenchError, match="^no such network$"):
        Cloud(CINET, NEAR)


def test_a_process_that_ends_before_it_is_ready_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stands_in(tmp_path, monkeypatch, "echo out of luck >&2; exit 7")
    with pytest.raises(PeerLost, match=r"not ready: the process ended \(exit code 7\); last words: out of luck"):
        Cloud(CINET, NEAR)


def test_the_process_says_what_it_cannot_build() -> None:
    source = asdict(ModelSource(model="dynbench.models.cinet:CiNet", args={"patch": 100}, shape=(1, 60, 60)))
    here, there = socket.socketpair()
    with here, there:
        parent, child = (Channel(end.fileno(), end.fileno()) for end in (here, there))
        parent.send({"source": source, "threads": 1})
        assert serve(child) == 1
        assert "pixels do not fit an image" in parent.receive(5)["error"]


def test_only_who_knows_the_secret_is_served_and_nobody_is_waited_for_for_ever() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:
        accepted = pool.submit(accept, server, "right", 5.0, None)
        stranger, friend = (Line(socket.create_connection(server.getsockname()), 5) for _ in range(2))
        stranger.send(b"wrong")
        with pytest.raises(PeerLost):
            stranger.receive()
        friend.send(b"right")
        line = accepted.result(5)
        assert line is not None
        line.send(b"yes")
        assert friend.receive() == b"yes"
        for end in (stranger, friend, line):
            end.close()
        server.settimeout(0.01)
        assert accept(server, "right", 5.0, None) is None


def test_messages_are_tensors_and_words() -> None:
    parts = [torch.arange(6, dtype=torch.uint8).view(1, 6), torch.randn(2, 3), torch.tensor([[5]])]
    again, facts = unpack(pack(parts, do="layers", after="3"))
    assert facts == {"do": "layers", "after": "3"}
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(parts, again, strict=True))
    assert unpack(pack([])) == ([], {})
    assert unpack(pack([], error="no")) == ([], {"error": "no"})


class Harm:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("message", [b"", b"hello", pickle.dumps(Harm()), b"\xff" * 64, pack([torch.zeros(2)])[:-1]])
def test_what_is_no_message_is_refused_and_nothing_is_unpickled(message: bytes) -> None:
    with pytest.raises(PeerLost, match="not a message"):
        unpack(message)


def test_a_workload_has_its_baselines_cut_and_jpeg_files_beside(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    file = tmp_path / "own.toml"
    file.write_text(WORKLOAD)
    network = Network("x", 50.0, 10.0, up_mbit_s=1.0, down_mbit_s=1.0)
    own, plain = of_workload(str(file), Settings(network, slower=3.0, qualities=[50, 95], rounds=3))
    assert [p.network for p in (own, plain)] == ["CiNet in small", "plain"]
    for p in (own, plain):
        cuts = [w for w in p.placements if w.after is not None]
        assert [w.after for w in cuts] == list(range(len(cuts)))
        assert [w.quality for w in p.placements[len(cuts) :]] == [50, 95]
        assert p.best == min(range(len(cuts)), key=lambda i: p.placements[i].total_ms)
        assert sum(w.share_best or 0 for w in cuts) == pytest.approx(1)
        for w in p.placements:
            assert w.total_ms == pytest.approx(w.device_ms + w.network_ms + w.cloud_ms)
            assert (w.network_ms == 0) == (w.sent_bytes == 0) == (w.where == "all on the device")
            if w.sent_bytes:  # the answer of ten floats has a header as well
                assert w.network_ms == pytest.approx(50 + 8e-3 * w.sent_bytes, abs=8e-3 * 300)
        assert cuts[-1].device_ms == pytest.approx(3 * cuts[0].cloud_ms)  # one machine, three times slower
        assert p.items == 40 and p.accuracy is not None
        low, high = (w.content_bytes for w in p.placements[len(cuts) :])
        assert low < high and all(w.accuracy is not None for w in p.placements[len(cuts) :])
    patch = next(w for w in own.placements if w.where == "after crop")
    assert patch.content_bytes == 16 and patch.sends == "1x4x4 pixels" and patch.accuracy is not None
    assert own.placements[0].content_bytes == 24 * 24
    assert own.as_json()["ways"][own.best]["best"] is True


def test_without_opencv_there_are_cuts_and_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    file = tmp_path / "own.toml"
    file.write_text(WORKLOAD.replace("accuracy_items = 40", "accuracy_items = 2"))
    own, _ = of_workload(str(file), Settings(NEAR, rounds=1))
    assert own.no_jpeg is not None and "pip install" in own.no_jpeg
    assert all(w.quality is None for w in own.placements) and own.items == 2


def test_predicted_and_measured_are_of_the_same_requests() -> None:
    network = Network("x", 5.0, 2.0)
    args = {"image": 24, "widths": [2, 4]}
    p = of_model("plain_cnn", "dynbench.models.ram:PlainCNN", args, None, Settings(network, rounds=3, requests=3))
    measured = {w.where: w.measured for w in p.placements if w.measured is not None}
    assert {"all in the cloud", "all on the device"} <= set(measured)
    assert all(m.requests == 3 for m in measured.values())
    trips = network.round_trips_ms(3, 0)
    whole = measured["all in the cloud"]
    assert whole.predicted_ms == pytest.approx(p.placements[0].cloud_ms + sorted(trips)[1], rel=1e-6)
    assert whole.total_ms >= sorted(trips)[1]  # what is waited for is a lower bound
    assert measured["all on the device"].predicted_ms == pytest.approx(p.placements[-1].device_ms)


def test_tokens_are_cut_too(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(20, 3))\n"
    )
    p = of_model("net", f"{tmp_path}/net.py:build", {}, (5,), Settings(NEAR, rounds=2))
    assert [w.sends for w in p.placements] == ["5", "20", "nothing"] and p.accuracy is None
    assert p.placements[0].content_bytes == 5 * 8


def test_what_cannot_be_cut_is_told() -> None:
    with pytest.raises(UserError, match="cannot be cut"):
        of_model("x", "dynbench.models.viola_jones:viola_jones", {}, None, Settings(NEAR))

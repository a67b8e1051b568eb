"""CiNet cut between a phone and this machine: the phone is a network of its own, behind a line of few bits per second.

The line is a pair of virtual interfaces. Its rate is shaped by the kernel's token bucket in both directions, and its
delay by netem where the kernel has it; without netem the delay is that of the pair, a fraction of a millisecond.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from dynbench.deploy.targets.base import Failed
from dynbench.deploy.targets.profile import DeviceProfile
from dynbench.devices.network import Network
from dynbench.partition.on_target import Where, on_target, workload_on_target
from dynbench.partition.records import Settings
from tests.partition.test_split import CINET, WORKLOAD
from tests.peers.test_ssh import SSHD

HERE, PHONE = "10.213.77.1", "10.213.77.2"  # a network that this test alone has
MBIT_S, DELAY_MS = 2.0, 20
SETTINGS = Settings(network=Network("none", 0.0), rounds=10, requests=15)
pytestmark = [
    pytest.mark.skipif(SSHD is None or not shutil.which("ssh"), reason="no OpenSSH server is installed"),
    pytest.mark.skipif(
        any(not shutil.which(p, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") for p in ("ip", "tc", "nsenter")),
        reason="ip, tc and nsenter are not installed (iproute2, util-linux)",
    ),
    pytest.mark.skipif(os.getuid() != 0, reason="a network of its own is made as root only"),
]


@dataclass(frozen=True)
class Line:
    """The line to the phone.

    Attributes:
        profile: the phone.
        delayed: netem adds `DELAY_MS` in each direction.
    """

    profile: DeviceProfile
    delayed: bool


def do(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30)


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    monkeypatch.setenv("DYNBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
    holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo up && exec sleep 600"], stdout=subprocess.PIPE)
    near, far = f"dbn{os.getpid() % 100000}", f"dbf{os.getpid() % 100000}"
    there = ("nsenter", f"--net=/proc/{holder.pid}/ns/net")
    server = None
    try:
        assert holder.stdout is not None
        if not holder.stdout.readline():
            pytest.skip("no network of its own can be made")
        made = do("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", str(holder.pid))
        if made.returncode:
            pytest.skip(f"no pair of virtual interfaces can be made: {made.stderr.strip()}")
        for command in (
            ("ip", "addr", "add", f"{HERE}/24", "dev", near),
            ("ip", "link", "set", near, "up"),
            (*there, "ip", "addr", "add", f"{PHONE}/24", "dev", far),
            (*there, "ip", "link", "set", far, "up"),
            (*there, "ip", "link", "set", "lo", "up"),
        ):
            assert do(*command).returncode == 0, command
        delayed = all([shaped((), near), shaped(there, far)])
        server = phone(tmp_path, there)
        reach = {"kind": "ssh", "host": PHONE, "port": 22, "identity": str(tmp_path / "user"), "accept_new_host": True}
        reach |= {"python": sys.executable, "folder": str(tmp_path)}
        yield Line(DeviceProfile.model_validate({"title": "A phone", "target": reach}), delayed)
    finally:
        if server is not None:
            server.kill()
            server.wait()
        do("ip", "link", "del", near)
        holder.kill()
        holder.wait()


def shaped(inside: tuple[str, ...], device: str) -> bool:
    """Limits what an interface sends; returns whether it is delayed, too."""
    netem = ("root", "handle", "1:", "netem", "delay", f"{DELAY_MS}ms", "limit", "10000")
    delayed = do(*inside, "tc", "qdisc", "add", "dev", device, *netem).returncode == 0
    place = ("parent", "1:1", "handle", "10:") if delayed else ("root",)
    bucket = ("tbf", "rate", f"{MBIT_S:g}mbit", "burst", "3000", "latency", "2s")
    made = do(*inside, "tc", "qdisc", "add", "dev", device, *place, *bucket)
    if made.returncode:
        pytest.skip(f"the kernel shapes no traffic: {made.stderr.strip()}")
    return delayed


def phone(folder: Path, there: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """An ssh server in the other network."""
    assert SSHD is not None
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    (folder / "config").write_text(
        f"Port 22\nListenAddress {PHONE}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile {folder}/pid\nPermitRootLogin yes\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    command = [*there, SSHD, "-D", "-f", str(folder / "config")]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_cinet_is_cut_where_the_patch_is_sent_and_the_line_is_seen(line: Line, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(WORKLOAD)
    found = workload_on_target(str(own), Where("phone", line.profile), SETTINGS, None, lambda _: None)
    cinet = found[0]
    assert [split.wrong for split in found] == [0, 0] and all(split.answered for split in found)
    whole, patch = cinet.cuts[0], min((c for c in cinet.cuts if c.sent_bytes), key=lambda c: c.sent_bytes)
    assert (whole.sends, patch.sends) == ("1x24x24 pixels", "1x4x4 pixels")
    for cut in (whole, patch):  # no request is faster than its bytes on this line
        least_ms = cut.sent_bytes * 8e-3 / MBIT_S + 2 * DELAY_MS * line.delayed
        burst_ms = 3000 * 8e-3 / MBIT_S
        assert cut.transfer_ms > max(0.0, least_ms - burst_ms) and cut.measured_ms.value > max(0.0, least_ms - burst_ms)
        assert cut.measured_ms.value > cut.transfer_ms * 0.5
    assert cinet.cuts[-1].transfer_ms == 0


def test_the_bandwidth_of_the_line_is_in_what_is_measured(line: Line) -> None:
    """Twelve thousand bytes of one image take four times the burst: the kernel's bucket is seen."""
    from dataclasses import replace

    source = replace(CINET, args={**CINET.args, "image": 120}, shape=(1, 120, 120))
    x = torch.rand(2, 1, 120, 120, generator=torch.Generator().manual_seed(0))
    found = on_target(source, "CiNet, larger", x, Where("phone", line.profile), SETTINGS, lambda _: None)
    raw = found.cuts[0]
    assert raw.sent_bytes == 120 * 120
    assert raw.transfer_ms > (raw.sent_bytes - 3000) * 8e-3 / MBIT_S
    assert raw.measured_ms.value > (raw.sent_bytes - 3000) * 8e-3 / MBIT_S
    assert found.measured.sent_bytes < raw.sent_bytes and found.predicted.sent_bytes < raw.sent_bytes


def test_a_device_that_cannot_reach_this_machine_says_so(line: Line) -> None:
    x = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    where = Where("phone", line.profile, address="127.0.0.1")  # of the phone: nobody listens there
    with pytest.raises(Failed, match=r"this machine cannot be reached from the device at 127\.0\.0\.1"):
        on_target(CINET, "CiNet", x, where, SETTINGS, lambda _: None)

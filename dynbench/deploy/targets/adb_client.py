"""The adb client of this machine, and the one device that it talks to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from dynbench.deploy.targets.profile import Reach
from dynbench.deploy.targets.ssh_client import COMMAND_S, MARKER, Client, Said, Unreachable
from dynbench.errors import UserError

CONNECT_S = 15.0
FILES_S = 600.0  # a job by a slow cable or wireless
NOT_THERE = re.compile(rb"(error|adb): device (offline|'.*' not found)")
ENABLE = "enable USB debugging in its developer options, connect it, and look at `adb devices`"
REMEDIES = {
    "unauthorized": "does not trust this machine yet: unlock it and accept the key that it shows",
    "authorizing": "is still asking whether it may trust this machine: unlock it and accept the key that it shows",
    "offline": "is offline: connect it again, or run `adb reconnect`",
    "no permissions": "may not be opened by this user: install android-sdk-platform-tools-common",
    "recovery": "is in its recovery mode: start it normally",
    "sideload": "is in its recovery mode: start it normally",
    "bootloader": "is in its boot loader: start it normally",
}


def devices_in(listing: str) -> dict[str, str]:
    """State by serial number, from what `adb devices` prints."""
    rows = (line.split("\t", 1) for line in listing.splitlines() if "\t" in line)
    return {serial.strip(): state.strip() for serial, state in rows}


def chosen(states: dict[str, str], serial: str) -> str:
    """The serial number of the device to use.

    Args:
        states: of all devices that adb sees.
        serial: that was asked for; empty: the only one there is.

    Raises:
        UserError: there are several, and none was named.
        Unreachable: there is none, or it cannot be used as it is.
    """
    if not serial:
        if len(states) > 1:
            raise UserError(
                f"adb sees several devices ({', '.join(sorted(states))}): name one by `serial = ...` in the target's "
                "file, or by ANDROID_SERIAL"
            )
        if not states:
            raise Unreachable(f"adb sees no device: {ENABLE}")
        (serial,) = states
    if serial not in states:
        others = f" (it sees {', '.join(sorted(states))})" if states else ""
        raise Unreachable(f"adb does not see the device {serial}{others}: {ENABLE}")
    state = states[serial]
    if state == "device":
        return serial
    remedy = next((text for start, text in REMEDIES.items() if state.startswith(start)), f"is in the state {state!r}")
    raise Unreachable(f"the device {serial} {remedy}")


class AdbClient(Client):
    """One device, by the plain adb binary; ANDROID_ADB_SERVER_PORT and ANDROID_SERIAL hold as they do for adb."""

    def __init__(self, reach: Reach) -> None:
        super().__init__(reach)
        self.serial = reach.serial or os.environ.get("ANDROID_SERIAL", "")
        self._found = False

    def __enter__(self) -> Self:
        if shutil.which("adb") is None:
            raise UserError("adb is not installed on this machine: install Android's platform tools (package adb)")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Nothing: the server of adb belongs to the user, who may have other devices."""

    def _find(self) -> None:
        """Connects by network where the serial number is HOST:PORT, and looks which device it is."""
        self._connect()
        done = self._adb("devices", limit_s=CONNECT_S)
        if done.returncode:
            raise Unreachable(f"adb does not work on this machine: {_last(done.stderr) or 'no message'}")
        self.serial = chosen(devices_in(done.stdout.decode("utf-8", "replace")), self.serial)
        self._found = True

    def _connect(self) -> None:
        if ":" in self.serial:  # its exit code says nothing, so the list of devices is looked at
            self._adb("connect", self.serial, limit_s=CONNECT_S)

    def _adb(self, *words: str, limit_s: float) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                ["adb", *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired as e:
            raise Unreachable(f"adb {words[0]} does not end within {limit_s:.0f} s") from e

    def ask(self, script: str, given: bytes = b"") -> Said:
        """Runs a script of `sh` on the device.

        Args:
            script: what is run.
            given: must be empty: files are sent by `put`.

        Raises:
            ValueError: something is given.
            Unreachable: it was not run to its end, as far as is known here.
        """
        if given:
            raise ValueError("adb sends files by put, not by the standard input of a script")
        # adb answers 0 when the device vanishes: the marker alone says that the script came to its end.
        wrapped = f"( {script}\n); r=$?; printf '\\n{MARKER}%s\\n' \"$r\""
        if not self._found:
            self._find()
        done = self._adb("-s", self.serial, "shell", "-T", wrapped, limit_s=COMMAND_S)
        if NOT_THERE.match(done.stderr) and not done.stdout:  # the script was not begun, and it may be back by network
            self._find()
            done = self._adb("-s", self.serial, "shell", "-T", wrapped, limit_s=COMMAND_S)
        out, marker, code = done.stdout.rpartition(f"\n{MARKER}".encode())
        if not marker or not code.strip().isdigit():
            raise Unreachable(f"{self.serial} vanished: {_last(done.stderr) or 'adb says nothing'}")
        words = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        return Said(code.strip() == b"0", out, "\n".join(words))

    def put(self, files: list[Path], folder: str) -> str:
        """Sends files into a folder of the device. Returns what adb complains about; empty: nothing.

        Raises:
            Unreachable: it does not end.
        """
        done = self._adb("-s", self.serial, "push", *(str(f) for f in files), f"{folder}/", limit_s=FILES_S)
        return "" if done.returncode == 0 else _last(done.stderr) or _last(done.stdout) or "no message"


def _last(words: bytes) -> str:
    lines = [line for line in words.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else ""

"""Where a cell runs: devices behind one small interface. Importing this does not import torch."""

from __future__ import annotations

import difflib
import re

from dynbench.devices.base import Device, EnergySensor, Event
from dynbench.devices.cpu import Cpu
from dynbench.devices.cuda import Cuda
from dynbench.errors import UserError

__all__ = ["Cpu", "Cuda", "Device", "EnergySensor", "Event", "device", "known_devices"]


def known_devices() -> list[tuple[str, str | None]]:
    """The names a user can give, and why each cannot be used here (None: it can)."""
    found: list[Device] = [Cpu()]
    first = Cuda(0)
    if first.available() is None:
        import torch

        found += [Cuda(i) for i in range(torch.cuda.device_count())]
    else:
        found.append(first)
    return [(d.name, d.available()) for d in found]


def device(name: str) -> Device:
    """The device of this name: 'cpu', 'cuda' (the first GPU) or 'cuda:N', which becomes torch's current GPU.

    Raises:
        UserError: an unknown name, or a device that is not there.
    """
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None and name != "cpu":
        near = difflib.get_close_matches(name, ["cpu", "cuda", "cuda:0"], n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown device {name!r}: it is cpu, cuda or cuda:N{hint}")
    found: Device = Cpu() if match is None else Cuda(int(match[1] or 0))
    why = found.available()
    if why is not None:
        raise UserError(f"device {name!r} is not available: {why}")
    if isinstance(found, Cuda):
        found.make_current()
    return found

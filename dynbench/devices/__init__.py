"""Where a cell runs: devices behind one small interface. Importing this does not import torch."""

from __future__ import annotations

import re

from dynbench.devices.base import Device, EnergySensor, Event
from dynbench.devices.cpu import Cpu
from dynbench.devices.cuda import Cuda
from dynbench.errors import UserError, suggestion

__all__ = ["Cpu", "Cuda", "Device", "EnergySensor", "Event", "device", "known_devices"]


def known_devices() -> list[tuple[str, str | None]]:
    """The devices of this machine by name, with why each cannot be used (None: it can)."""
    found: list[Device] = [Cpu()]
    first = Cuda(0)
    if first.available() is None:
        import torch

        found += [Cuda(i) for i in range(torch.cuda.device_count())]
    else:
        found.append(first)
    return [(d.name, d.available()) for d in found]


def device(name: str) -> Device:
    """The device of this name: 'cpu', 'cuda' (the first GPU) or 'cuda:N'. A GPU becomes torch's current one.

    Raises:
        UserError: an unknown name, or a device that this machine does not have.
    """
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None and name != "cpu":
        raise UserError(f"unknown device {name!r}; {suggestion(name, ['cpu', 'cuda', 'cuda:N'], most=1)}")
    found: Device = Cpu() if match is None else Cuda(int(match[1] or 0))
    why = found.available()
    if why is not None:
        raise UserError(f"device {name!r} is not available: {why}")
    if isinstance(found, Cuda):
        found.make_current()
    return found

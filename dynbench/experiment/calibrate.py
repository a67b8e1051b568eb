"""Measures the ceilings and overheads of a device: `dynbench calibrate`."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dynbench import devices
from dynbench.devices.profiles import Calibration, Figure, Profile
from dynbench.dynamic.regions import find_regions
from dynbench.engines import ENGINES
from dynbench.errors import DynbenchError
from dynbench.meters.calibration import ROUNDS, Benchmark, Rate, best, ceilings, measure, overheads
from dynbench.version import __version__


def calibrate(device_name: str, threads: int, *, thorough: bool = False) -> tuple[Profile, list[Rate], str | None]:
    """Measures a device.

    Args:
        device_name: 'cpu', 'cuda', 'cuda:N'.
        threads: of the CPU.
        thorough: more sizes and three times as many rounds.

    Returns:
        The profile, every figure at every size, and why there is none of an engine's session, if so.

    Raises:
        UserError: the device is not there.
    """
    device = devices.device(device_name)
    torch.set_num_threads(threads)
    where, dtype = torch.device(device.name), torch.float32
    benchmarks, why = [*ceilings(where, dtype, thorough=thorough), *overheads(where)], None
    try:
        benchmarks.append(_session(where))
    except (DynbenchError, ImportError) as e:
        why = str(e).splitlines()[0]
    rates = measure(benchmarks, device, ROUNDS * (3 if thorough else 1))
    highest = best(rates)
    name = str(device.describe()["name"])
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    products = max(highest[kind].value for kind in ("matmul", "convolution"))
    profile = Profile(
        name=name,
        match=re.escape(name),
        source=f"measured by dynbench {__version__}, {threads} thread{'' if threads == 1 else 's'}, {date[:10]}",
        ceilings={"memory_bytes_per_s": highest["copy"].value, "flops_per_s": {"float32": products}},
        calibration=Calibration(
            device=device.name,
            threads=threads,
            dtype="float32",
            torch=torch.__version__,
            date=date,
            figures={
                n: Figure(value=r.value, low=r.low, high=r.high, unit=r.unit, at=r.at) for n, r in highest.items()
            },
        ),
    )
    return profile, rates, why


def _session(where: torch.device) -> Benchmark:
    """A call of a session of ONNX Runtime that computes next to nothing.

    Raises:
        CannotPrepare: it is not there, or does not run on this device.
    """
    engine = ENGINES["onnxruntime"]
    if why := engine.refuses(where.type if where.type == "cpu" else str(where)):
        raise DynbenchError(why)
    module = nn.Linear(4, 4).to(where).eval()
    x = torch.ones(1, 4, device=where)
    with torch.inference_mode():
        (region,) = find_regions(module, lambda m: m(x))
        call: Callable[..., Any] = engine.prepare(region)
    return Benchmark("session call", "a product of 4 numbers in ONNX Runtime", "s", lambda: call(x))

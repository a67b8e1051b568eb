"""Where to cut a network between a device and the cloud: layer times measured, the network given, cuts compared.

Beside the cuts stand fair baselines: the image in 8 bits per value, and as a JPEG file, with the accuracy of what
arrives. Times of layers and of coding a JPEG file are measured on this machine; the device may be declared to be so
many times slower; the network is a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynbench import devices, hooks
from dynbench.analysis.partition import Cut, all_cuts, best, pays_from, shares_best
from dynbench.data import Dataset, load_inputs, stream
from dynbench.data.pixels import Pixels, from_jpeg, jpeg, jpeg_round_trip, why_no_jpeg
from dynbench.devices.base import Device
from dynbench.devices.link import framed_bytes
from dynbench.errors import UserError
from dynbench.experiment.build import inputs_name
from dynbench.experiment.spec import Workload, load_spec
from dynbench.meters.chain import layer_times_ms
from dynbench.partition.accuracy import Accuracies
from dynbench.partition.end_to_end import measured
from dynbench.partition.half import OWN, Half, ModelSource
from dynbench.partition.messages import pack
from dynbench.partition.records import Partition, Placement, Settings

ITEMS = 500  # at most, of a workload's inputs
DRAWS = 1000  # of the round trip, for how often a cut is the best one


def of_workload(workload: str, settings: Settings, data_dir: Path | None = None) -> list[Partition]:
    """The workload's network and each of its baselines that is another one, as static twins, on its inputs.

    Raises:
        UserError: one cannot be built, or not be cut.
    """
    spec = load_spec(workload)
    data = load_inputs(inputs_name(spec), "test", data_dir=data_dir, seed=settings.seed, **spec.inputs.options)
    if not isinstance(data.inputs, np.ndarray):
        raise UserError(f"{spec.file}: a network is cut between layers of one input, and this one takes several")
    data = stream(data, max(min(spec.run.accuracy_items, len(data), ITEMS), 1), settings.seed)
    parts = [(OWN, spec.title), *((b.name, b.name) for b in spec.baselines if b.model != "self:dense")]
    return [_partition(source_of(spec, part, data, settings), title, settings, data) for part, title in parts]


def of_model(
    model: str, reference: str, args: dict[str, Any], shape: Sequence[int] | None, settings: Settings
) -> Partition:
    """A model as its static twin, on made-up inputs.

    Args:
        model: its name, for the report.
        reference: `package.module:function` or `path/to/file.py:function`.
        args: of the function.
        shape: of one input; default: as the model says, else 3 x 32 x 32.
        settings: network and devices among them.

    Raises:
        UserError: it cannot be built or cut.
    """
    source = ModelSource(model=reference, args=args, device=settings.device)
    net = source.build()
    dims = tuple(shape or hooks.of(net).input_shape())
    channels = dims[0] if len(dims) == 3 else 1
    source = replace(
        source,
        shape=dims,
        tokens=any(isinstance(m, nn.Embedding) for m in net.modules()),
        low=[-3.0] * channels,
        high=[3.0] * channels,
    )
    return _partition(source, model, settings, None)


def source_of(spec: Workload, part: str, data: Dataset, settings: Settings) -> ModelSource:
    """A network of a workload, with the range of its pixels."""
    x = data.inputs
    pixels = Pixels.of(x) if x.ndim == 4 else Pixels((0.0,), (1.0,))
    return ModelSource(
        workload=str(spec.file),
        part=part,
        shape=x.shape[1:],
        tokens=x.dtype.kind != "f",
        low=pixels.low,
        high=pixels.high,
        device=settings.device,
    )


def _partition(source: ModelSource, title: str, settings: Settings, data: Dataset | None) -> Partition:
    half, network = Half(source, settings.threads), settings.network
    x = source.example() if data is None else torch.from_numpy(data.inputs[:1]).to(source.device)
    here_ms, there_ms, whole_ms = _layer_times(half, x, settings)
    sent = [framed_bytes(len(half.request(cut, x))) for cut in range(half.layers)] + [0]
    received = framed_bytes(len(pack(half.run(0, half.layers, [x]))))
    cuts = all_cuts(
        [ms * settings.slower for ms in here_ms],
        there_ms,
        sent,
        lambda sent_bytes: network.request_ms(sent_bytes, received),
    )
    shares = shares_best(cuts, network.round_trip_ms, network.round_trips_ms(DRAWS, settings.seed))
    accuracies = Accuracies(half, data)
    placements = [_cut_placement(half, cut, shares.get(cut.after, 0.0), accuracies) for cut in cuts]
    images = data is not None and half.chain.crossings[0].pixels == (True,)
    no_jpeg = why_no_jpeg() if images else None
    if data is not None and images and no_jpeg is None:
        placements += [
            _jpeg_placement(half, quality, data, cuts[0], received, settings, accuracies)
            for quality in settings.qualities
        ]
    chosen = best(cuts).after
    if settings.requests:
        inputs = x if data is None else torch.from_numpy(data.inputs).to(source.device)
        placements = measured(half, placements, chosen, inputs, settings)
    return Partition(
        network=title,
        placements=placements,
        best=chosen,
        whole_ms=whole_ms * settings.slower,
        sending_pays_from=pays_from(cuts, settings.slower),
        accuracy=accuracies.on_device(),
        items=accuracies.items,
        no_jpeg=no_jpeg,
    )


def _layer_times(half: Half, x: Tensor, settings: Settings) -> tuple[list[float], list[float], float]:
    """Times in ms of each layer on the device and in the cloud, and of the whole network on the device."""
    here_ms, whole_ms = layer_times_ms(half.chain, x, devices.device(settings.device), settings.rounds)
    if settings.cloud == settings.device:
        return here_ms, here_ms, whole_ms
    other = Half(replace(half.source, device=settings.cloud), settings.threads)
    clock = devices.device(settings.cloud)
    there_ms, _ = layer_times_ms(other.chain, x.to(settings.cloud), clock, settings.rounds)
    return here_ms, there_ms, whole_ms


def _cut_placement(half: Half, cut: Cut, share: float, accuracies: Accuracies) -> Placement:
    crossing, on_device = half.chain.crossings[cut.after], cut.after == half.layers
    where, sends = in_words(half, cut.after)
    lossy = not on_device and any(crossing.pixels) and all(crossing.pixels)
    return Placement(
        where=where,
        after=cut.after,
        sends=sends,
        device_ms=cut.device_ms,
        content_bytes=0 if on_device else crossing.bytes,
        sent_bytes=cut.sent_bytes,
        network_ms=cut.network_ms,
        cloud_ms=cut.cloud_ms,
        total_ms=cut.total_ms,
        share_best=share,
        accuracy=accuracies.after(cut.after) if lossy else None,
    )


def in_words(half: Half, after: int) -> tuple[str, str]:
    """Where a cut is, and what crosses it."""
    crossing = half.chain.crossings[after]
    if after == half.layers:
        return "all on the device", "nothing"
    where = "all in the cloud" if after == 0 else f"after {half.chain.layers[after - 1].name}"
    return where, " and ".join(_in_words(s, p) for s, p in zip(crossing.shapes, crossing.pixels, strict=True))


def _in_words(shape: tuple[int, ...], pixels: bool) -> str:
    size = "x".join(map(str, shape)) or "1"
    return f"{size} pixels" if pixels else size


def _jpeg_placement(
    half: Half,
    quality: int,
    data: Dataset,
    raw: Cut,
    received_bytes: int,
    settings: Settings,
    accuracies: Accuracies,
) -> Placement:
    """A JPEG file of the whole image: coding is measured, and the mean size of the files counts."""
    coded = half.pixels.encode(data.inputs)
    arrived, sizes = jpeg_round_trip(coded, quality)
    header = framed_bytes(len(pack([torch.zeros(1, dtype=torch.uint8)], do="jpeg"))) - 1
    content = round(float(sizes.mean()))
    clock = devices.device("cpu")
    few = coded[: settings.rounds]
    files = [jpeg(image, quality) for image in few]
    device_ms = _median_ms(clock, few, partial(jpeg, quality=quality)) * settings.slower
    cloud_ms = _median_ms(clock, files, partial(from_jpeg, channels=coded.shape[1])) + raw.cloud_ms
    network_ms = settings.network.request_ms(content + header, received_bytes)
    return Placement(
        where=f"all in the cloud, JPEG of quality {quality}",
        after=None,
        sends="JPEG file",
        device_ms=device_ms,
        content_bytes=content,
        sent_bytes=content + header,
        network_ms=network_ms,
        cloud_ms=cloud_ms,
        total_ms=device_ms + network_ms + cloud_ms,
        quality=quality,
        accuracy=accuracies.of(half.pixels.decode(arrived)),
    )


def _median_ms(clock: Device, items: Iterable[Any], work: Callable[[Any], Any]) -> float:
    spent_ns = []
    for item in items:
        start = clock.clock_ns()
        work(item)
        spent_ns.append(clock.clock_ns() - start)
    return float(np.median(np.array(spent_ns))) / 1e6

"""`dynbench partition`: where to cut a network between a device and the cloud."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynbench.cli.common import Sizes, data_option, device_option, flat, json_option, print_json, print_table

if TYPE_CHECKING:
    from dynbench.devices.network import Network
    from dynbench.partition.split import Partition, Question, Way

AT_LEAST_0 = click.FloatRange(min=0)
BUSY = 1.5  # times as long as predicted, with no network in it
ABOVE_0 = click.FloatRange(min=0, min_open=True)


@click.command("partition", short_help="Where to cut a network between device and cloud.")
@click.argument("what", metavar="MODEL|WORKLOAD|FILE.toml")
@click.option(
    "--network",
    "network_name",
    default="lte",
    show_default=True,
    metavar="NAME|FILE.toml",
    help="What lies between: wifi, lte, 3g, home, campus, .. (see hardware/networks), or a file like these.",
)
@click.option("--up", "up_mbit_s", type=ABOVE_0, metavar="MBIT/S", help="Another bandwidth from device to cloud.")
@click.option("--down", "down_mbit_s", type=ABOVE_0, metavar="MBIT/S", help="Another bandwidth back.")
@click.option("--round-trip", "round_trip_ms", type=AT_LEAST_0, metavar="MS", help="Another mean round trip.")
@click.option("--jitter", "jitter_ms", type=AT_LEAST_0, metavar="MS", help="Another standard deviation of it.")
@click.option(
    "--slower",
    type=ABOVE_0,
    default=1.0,
    show_default=True,
    metavar="FACTOR",
    help="The device is declared to be so many times slower than this machine.",
)
@click.option(
    "--measure",
    "requests",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Send N requests each to a second process that plays the cloud, over a shaped loopback.",
)
@click.option(
    "--jpeg",
    "qualities",
    multiple=True,
    type=Sizes(),
    metavar="QUALITY,..",
    help="JPEG qualities to compare with.  [default: 50,75,95]",
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="An argument of a MODEL.")
@click.option("--input", "shape", metavar="3x32x32", help="Shape of one input of a MODEL.")
@device_option
@click.option(
    "--cloud-device", "cloud", default="cpu", show_default=True, metavar="cpu|cuda|cuda:N", help="What plays the cloud."
)
@click.option("--rounds", type=click.IntRange(min=1), default=30, show_default=True, help="Timed passes over layers.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the round trips and of the inputs.")
@data_option
@json_option
def command(
    what: str, network_name: str, up_mbit_s: float | None, down_mbit_s: float | None, round_trip_ms: float | None,
    jitter_ms: float | None, slower: float, requests: int, qualities: tuple[list[int], ...], settings: tuple[str, ...],
    shape: str | None, device: str, cloud: str, rounds: int, seed: int, data_dir: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Every cut of a network's chain of layers: time on the device, bytes sent, time of the network and in the cloud.

    Layers are timed on this machine; the network is a model; networks with decisions are cut as their static twins. A
    WORKLOAD also has its baselines cut, JPEG files of its images beside them, and accuracies of what arrives.
    """
    from dynbench import devices
    from dynbench.devices.network import load_network
    from dynbench.errors import UserError
    from dynbench.partition.split import Question

    for name in (device, cloud):
        devices.device(name)
    chosen = flat(qualities) or [50, 75, 95]
    if max(chosen) > 100:
        raise UserError(f"--jpeg {max(chosen)}: the quality of a JPEG file is 1 to 100")
    network = load_network(network_name).but(
        up_mbit_s=up_mbit_s, down_mbit_s=down_mbit_s, round_trip_ms=round_trip_ms, jitter_ms=jitter_ms
    )
    question = Question(network, slower, device, cloud, chosen, rounds, requests, 1, seed)
    found = _ask(what, question, settings, shape, data_dir)
    if as_json:
        print_json(_json(question, found))
    else:
        _print(question, found)


def _ask(
    what: str, question: Question, settings: tuple[str, ...], shape: str | None, data_dir: Path | None
) -> list[Partition]:
    from dynbench.cli.cost import arguments, find_model, shape_of
    from dynbench.errors import UserError
    from dynbench.experiment import workload_files
    from dynbench.partition.split import of_model, of_workload
    from dynbench.models import MODELS

    if what in workload_files() or what.endswith(".toml"):
        if settings or shape:
            raise UserError(f"--set and --input are for a MODEL; the workload {what} says its own")
        return of_workload(what, question, data_dir)
    args = arguments(what, find_model(what), settings)
    return [of_model(what, MODELS.get(what, what), args, None if shape is None else shape_of(shape), question)]


def _json(question: Question, found: list[Partition]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "network": asdict(question.network),
        "declared": {"device_slower_than_here": question.slower},
        "measured": ["device_ms before the declared factor", "cloud_ms", "sent_bytes", "accuracy", "measured"],
        "modelled": ["network_ms"],
        "caveats": _caveats(question),
        "partitions": [p.as_json() for p in found],
    }


def _print(question: Question, found: list[Partition]) -> None:
    click.echo(_network(question.network))
    for p in found:
        click.secho(f"\n{p.network}", bold=True)
        print_table([_row(p, i, way) for i, way in enumerate(p.ways)])
        for sentence in _sentences(p, question):
            click.echo(sentence)
    click.echo()
    for caveat in _caveats(question):
        click.echo(f"- {caveat}")


def _network(n: Network) -> str:
    rate = "bytes make no difference" if n.up_mbit_s is None else f"{n.up_mbit_s:g} Mbit/s up"
    back = "" if n.down_mbit_s is None else f", {n.down_mbit_s:g} down"
    jitter = f" (standard deviation {n.jitter_ms:g})" if n.jitter_ms else ""
    title = n.title if n.status != "own" else ""
    return f"Network {n.name}{f': {title}' if title else ''}; {rate}{back}, {n.round_trip_ms:g} ms round trip{jitter}"


def _row(p: Partition, index: int, way: Way) -> dict[str, Any]:
    row: dict[str, Any] = {
        "": "best" if index == p.best else "",
        "cut": way.where,
        "sends": way.sends,
        "sent_bytes": way.sent_bytes,
        "device_ms": f"{way.device_ms:.2f}",
        "network_ms": f"{way.network_ms:.2f}",
        "cloud_ms": f"{way.cloud_ms:.2f}",
        "total_ms": f"{way.total_ms:.2f}",
    }
    if any(0 < (w.share_best or 0) < 1 for w in p.ways):
        row["best_in_%"] = None if way.share_best is None else f"{100 * way.share_best:.0f}"
    if p.accuracy is not None:
        row["accuracy_%"] = f"{100 * way.accuracy:.1f}" if way.accuracy is not None else None
    if any(w.measured for w in p.ways):
        m = way.measured
        row["predicted_ms"] = None if m is None else f"{m.predicted_ms:.2f}"
        row["measured_ms"] = None if m is None else f"{m.total_ms:.2f}"
    return row


def _sentences(p: Partition, question: Question) -> list[str]:
    chosen, first = p.ways[p.best], p.ways[0]
    said = f"Best cut: {chosen.where}, {chosen.total_ms:.2f} ms; sending the input takes {first.total_ms:.2f} ms"
    files = [w for w in p.ways if w.quality is not None]
    if files:
        quickest = min(files, key=lambda w: w.total_ms)
        said += f", as JPEG of quality {quickest.quality} {quickest.total_ms:.2f} ms"
    sentences = [said + "."]
    if p.no_jpeg is not None:
        sentences.append(f"JPEG files: unavailable, {p.no_jpeg}.")
    if p.sending_pays_from is not None:
        sentences.append(
            f"Some cut is faster than all on the device if that is {p.sending_pays_from:.3g} times as slow as this "
            f"machine or more (declared: {question.slower:g})."
        )
    alone = next((w.measured for w in p.ways if w.measured is not None and not w.sent_bytes), None)
    if alone is not None and alone.total_ms > BUSY * alone.predicted_ms:
        sentences.append(
            f"Doubt: all on the device took {alone.total_ms / alone.predicted_ms:.1f} times as long as predicted, so "
            "this machine was busy while it was measured."
        )
    if p.accuracy is not None:
        sentences.append(
            f"Accuracy with nothing lost: {100 * p.accuracy:.1f} % on {p.items} inputs; the column has what arrives as "
            "pixels of 8 bits or as JPEG."
        )
    return sentences


def _caveats(question: Question) -> list[str]:
    n = question.network
    said = [
        "Measured: the layers one by one, and coding of JPEG files, on this machine, with one thread and one input at "
        "a time. Packing a message and handing it to a socket is not predicted.",
        f"Modelled, not measured: the network{f' ({n.source})' if n.source else ''}. No packet is lost, no connection "
        "is made, and its rate does not vary.",
    ]
    if question.slower != 1:
        said.append(f"Declared, not measured: a device {question.slower:g} times slower than this machine.")
    if question.requests:
        said.append(
            f"measured_ms is the median of {question.requests} requests from end to end: device and cloud are two "
            "processes of this machine, which share its caches and cores, over a loopback socket paced by a token "
            "bucket, the round trip waited for. predicted_ms is for the median of the same round trips"
            + (", without the declared slowness." if question.slower != 1 else ".")
        )
    return said

"""`dynbench partition`: where to cut a network between a device and the cloud."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynbench.cli import completion
from dynbench.cli.common import (
    SEED,
    Finite,
    Sizes,
    data_option,
    device_option,
    echo,
    flat,
    in_a_line,
    json_option,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from dynbench.partition.records import Partition, Settings

AT_LEAST_0 = Finite(min=0)
MODELLED = (
    "network_name", "up_mbit_s", "down_mbit_s", "round_trip_ms", "jitter_ms", "slower", "qualities", "arguments",
    "shape", "device", "cloud",
)  # fmt: skip
ABOVE_0 = Finite(min=0, min_open=True)


@click.command("partition", short_help="Where to cut a network between device and cloud.")
@click.argument("what", metavar="MODEL|WORKLOAD|FILE.toml", shell_complete=completion.workload)
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
    "--target",
    metavar="NAME|FILE.toml",
    help="Measure the device's part on this device, over the link that there is; the cloud's part is this machine.",
)
@click.option(
    "--cloud-address",
    metavar="HOST[:PORT]",
    help="With --target: this machine as the device sees it.  [default: where its connection came from, any port]",
)
@click.option(
    "--jpeg",
    "qualities",
    multiple=True,
    type=Sizes(),
    metavar="QUALITY,..",
    help="JPEG qualities to compare with.  [default: 50,75,95]",
)
@click.option("--set", "arguments", multiple=True, metavar="NAME=VALUE", help="An argument of a MODEL.")
@click.option("--input", "shape", metavar="3x32x32", help="Shape of one input of a MODEL.")
@device_option
@click.option(
    "--cloud-device",
    "cloud",
    default="cpu",
    show_default=True,
    metavar="cpu|cuda|cuda:N",
    shell_complete=completion.device,
    help="What plays the cloud.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=30, show_default=True, help="Timed passes over layers.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the round trips and of the inputs.")
@data_option
@json_option
def command(
    what: str,
    network_name: str,
    up_mbit_s: float | None,
    down_mbit_s: float | None,
    round_trip_ms: float | None,
    jitter_ms: float | None,
    slower: float,
    requests: int,
    target: str | None,
    cloud_address: str | None,
    qualities: tuple[list[int], ...],
    arguments: tuple[str, ...],
    shape: str | None,
    device: str,
    cloud: str,
    rounds: int,
    seed: int,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Every cut of a network's chain of layers: time on the device, bytes sent, time of the network and in the cloud.

    Layers are timed on this machine; the network is a model; networks with decisions are cut as their static twins. A
    WORKLOAD also has its baselines cut, JPEG files of its images beside them, and accuracies of what arrives.

    With --target nothing is modelled: device, link and this machine are measured, one by one and together.
    """
    from dynbench import devices
    from dynbench.devices.network import load_network
    from dynbench.errors import UserError
    from dynbench.partition.records import Settings

    for name in (device, cloud):
        devices.device(name)
    chosen = flat(qualities) or [50, 75, 95]
    if max(chosen) > 100:
        raise UserError(f"--jpeg {max(chosen)}: the quality of a JPEG file is 1 to 100")
    network = load_network(network_name).but(
        up_mbit_s=up_mbit_s, down_mbit_s=down_mbit_s, round_trip_ms=round_trip_ms, jitter_ms=jitter_ms
    )
    settings = Settings(
        network=network,
        slower=slower,
        device=device,
        cloud=cloud,
        qualities=chosen,
        rounds=rounds,
        requests=requests,
        seed=seed,
    )
    if target is not None:
        _on_target(what, target, cloud_address, settings, data_dir, as_json=as_json)
        return
    if cloud_address is not None:
        raise UserError("--cloud-address is for a device: give --target, too")
    found = _partitions(what, settings, arguments, shape, data_dir)
    if as_json:
        print_json(_json(settings, found))
    else:
        _print(settings, found)


def _on_target(
    what: str, target: str, address: str | None, settings: Settings, data_dir: Path | None, *, as_json: bool
) -> None:
    """The same where nothing is modelled."""
    from dynbench.deploy.targets.find import find_device
    from dynbench.errors import UserError
    from dynbench.experiment import workload_files
    from dynbench.partition.on_target import REQUESTS, Where, workload_on_target
    from dynbench.partition.target_words import target_caveats, target_rows, target_sentences

    context = click.get_current_context()
    source = click.core.ParameterSource.DEFAULT
    for name in MODELLED:
        if context.get_parameter_source(name) is not source:
            option = next(p.opts[0] for p in context.command.params if p.name == name)
            raise UserError(f"{option} does not go with --target: device and link are measured")
    if not (what in workload_files() or what.endswith(".toml")):
        raise UserError(f"--target needs a workload, whose inputs are sent; {what} is none of `dynbench list`")
    host, port = _host_and_port(address)
    where = Where(*find_device(target), host, port)
    found = workload_on_target(what, where, settings, data_dir, lambda text: echo(text, err=True))
    caveats = target_caveats(where, settings.requests or REQUESTS)
    if as_json:
        print_json({"target": where.name, "caveats": caveats, "splits": [split.as_json() for split in found]})
        return
    for split in found:
        click.secho(f"\n{in_a_line(split.network)}, {len(split.cuts)} of {split.cuts_of_all} cuts", bold=True)
        print_table(target_rows(split))
        for sentence in target_sentences(split):
            echo(sentence)
    echo()
    for caveat in caveats:
        echo(f"- {caveat}")


def _host_and_port(address: str | None) -> tuple[str | None, int]:
    """Of HOST, HOST:PORT or [ADDRESS]:PORT."""
    from dynbench.errors import UserError

    if address is None:
        return None, 0
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]\s]+))(?::(\d{1,5}))?", address)
    if found is None or not 0 <= int(found[3] or 0) <= 65535:
        raise UserError(f"--cloud-address {address}: HOST, or HOST:PORT with a port up to 65535, is accepted")
    return found[1] or found[2], int(found[3] or 0)


def _partitions(
    what: str, settings: Settings, given: tuple[str, ...], shape: str | None, data_dir: Path | None
) -> list[Partition]:
    from dynbench.cli.cost import arguments, find_model, shape_of
    from dynbench.errors import UserError
    from dynbench.experiment import workload_files
    from dynbench.models import MODELS
    from dynbench.partition.split import of_model, of_workload

    if what in workload_files() or what.endswith(".toml"):
        if given or shape:
            raise UserError(f"--set and --input are for a MODEL; the workload {what} says its own")
        return of_workload(what, settings, data_dir)
    args = arguments(what, find_model(what), given)
    return [of_model(what, MODELS.get(what, what), args, None if shape is None else shape_of(shape), settings)]


def _json(settings: Settings, found: list[Partition]) -> dict[str, Any]:
    from dataclasses import asdict

    from dynbench.partition.words import caveats

    return {
        "network": asdict(settings.network),
        "declared": {"device_slower_than_here": settings.slower},
        "measured": ["device_ms before the declared factor", "cloud_ms", "sent_bytes", "accuracy", "measured"],
        "modelled": ["network_ms"],
        "caveats": caveats(settings),
        "partitions": [partition.as_json() for partition in found],
    }


def _print(settings: Settings, found: list[Partition]) -> None:
    from dynbench.partition.words import caveats, network_in_words, rows, sentences

    echo(network_in_words(settings.network))
    for partition in found:
        click.secho(f"\n{in_a_line(partition.network)}", bold=True)
        print_table(rows(partition))
        for sentence in sentences(partition, settings.slower):
            echo(sentence)
    echo()
    for caveat in caveats(settings):
        echo(f"- {caveat}")

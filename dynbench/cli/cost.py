"""`dynbench cost`: what a model costs on paper."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import click

from dynbench.cli.common import echo, json_option, print_json, print_table
from dynbench.errors import UserError, suggestion

Made = TypeVar("Made")
WORDS = {"true": True, "false": False, "none": None, "null": None}


@click.command("cost", short_help="What a model costs on paper.")
@click.argument("model")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="An argument of the model, such as depth=74."
)
@click.option("--input", "shape", metavar="3x32x32", help="Shape of one input; tokens, for a model with an embedding.")
@json_option
def command(model: str, settings: tuple[str, ...], shape: str | None, as_json: bool) -> None:
    """Parameters and multiply-accumulates (MACs) of MODEL, its exits and its decision points, for one input.

    MODEL is a name of `dynbench list models`, `package.module:function` or `path/to/file.py:function`.
    """
    build = find_model(model)
    given = arguments(model, build, settings)
    dims = None if shape is None else shape_of(shape)
    found = _cost(model, build, given, dims)
    if as_json:
        print_json(found)
    else:
        _print(found)


def find_model(model: str) -> Callable[..., Any]:
    """The function that builds a model.

    Raises:
        UserError: there is none of this name.
    """
    from dynbench.models import MODELS
    from dynbench.paths import load_function

    if ":" not in model and model not in MODELS:
        raise UserError(
            f"unknown model {model!r}; {suggestion(model, MODELS)} (or package.module:function, or "
            "path/to/file.py:function)"
        )
    return load_function(MODELS.get(model, model), Path.cwd())


def arguments(model: str, build: Callable[..., Any], settings: tuple[str, ...]) -> dict[str, Any]:
    """A model's arguments from `--set NAME=VALUE`.

    Raises:
        UserError: it has no such argument.
    """
    try:
        parameters = inspect.signature(build).parameters
    except ValueError:  # some built-in classes have no signature
        parameters = MappingProxyType({})
    accepted = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    found = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: give NAME=VALUE, such as depth=74")
        if name not in accepted and not open_ended:
            raise UserError(
                f"--set {setting}: {model} has no argument {name!r}; accepted: {', '.join(accepted) or 'none'}"
            )
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    """A Python literal, else the text itself, so that gate=rnn needs no quotes."""
    try:
        return WORDS[text.lower()] if text.lower() in WORDS else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


MOST_NUMBERS = 1 << 30  # of an item: 4 GiB in float32


def shape_of(text: str) -> tuple[int, ...]:
    """The shape that `--input 3x32x32` means.

    Raises:
        UserError: the text is malformed.
    """
    sizes = text.split("x")
    if not all(s.isdecimal() and len(s) < 20 and int(s) > 0 for s in sizes):
        raise UserError(f"--input {text}: give whole numbers from 1 joined by x, such as 3x32x32")
    shape = tuple(int(s) for s in sizes)
    if (numbers := math.prod(shape)) > MOST_NUMBERS:
        raise UserError(f"--input {text}: that is {numbers:.3g} numbers; at most {MOST_NUMBERS:.3g} are accepted")
    return shape


def _cost(
    model: str, build: Callable[..., Any], arguments: dict[str, Any], shape: tuple[int, ...] | None
) -> dict[str, Any]:
    from torch import nn

    from dynbench import hooks
    from dynbench.meters.cost import cost

    def counted() -> dict[str, Any]:
        net = build(**arguments)
        if not isinstance(net, nn.Module):
            raise UserError(f"{model} gave {type(net).__name__}, not a torch.nn.Module")
        return cost(net, hooks.of(net).example(shape))

    try:
        return without_memory(counted)
    except UserError:
        raise
    except Exception as e:
        call = ", ".join(f"{k}={v!r}" for k, v in arguments.items())
        where = "" if shape is None else f" on an input {shape}"
        raise UserError(f"{model}({call}){where} raised {type(e).__name__}: {e}") from e


def without_memory(make: Callable[[], Made]) -> Made:
    """What `make` returns with torch's 'meta' as default device; if that fails, with the CPU.

    A model on 'meta' needs no memory, but it cannot look at values while it is built or run.
    """
    import torch

    try:
        with torch.device("meta"):
            return make()
    except Exception:  # noqa: BLE001  (code of others: any error may come of 'meta')
        with torch.device("cpu"):
            return make()


def _print(found: dict[str, Any]) -> None:
    for key in ("params", "macs", "flops"):
        value = found[key]
        echo(f"{key:8}{value:>18,}" if isinstance(value, int) else f"{key:8}unavailable: {value['unavailable']}")
    if "required_macs" in found:
        echo("", f"{found['required_macs']:,} MACs with its decisions, which always require the same")
    if found["exits"]:
        echo("", "MACs of an input that leaves at an exit, heads included")
        print_table([{"exit": k, "macs": f"{macs:,}"} for k, macs in enumerate(found["exits"])])
    if found["decision_points"]:
        echo("", "Decision points: MACs of one visit by one item")
        print_table(
            [
                {**point, "region_macs": f"{point['region_macs']:,}", "gate_macs": f"{point['gate_macs']:,}"}
                for point in found["decision_points"]
            ]
        )

"""Networks from what a workload says of them: the model with its weights, static networks, opaque ones, their forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.data.dataset import map_arrays
from dynbench.dynamic import Execution, points
from dynbench.dynamic.items import Arguments, called, first, map_items
from dynbench.engines import Engine, MicroBatches, apply_form, prepared
from dynbench.errors import UserError
from dynbench.experiment.dtypes import cast, input_dtype
from dynbench.experiment.ready import detach_computed, first_pass, is_unfinished
from dynbench.experiment.signature import check_call
from dynbench.experiment.spec import Baseline, ModelRef, Opaque, Workload
from dynbench.experiment.weights import NotThere, load_weights
from dynbench.names import without_micro_batches
from dynbench.paths import load_function, weights_path
from dynbench.strategies import Dense, Masking

Stream = Tensor | Arguments  # of each tensor the first dimension is the item
WEIGHTS_SEED = 0


def build_model(ref: ModelRef, folder: Path, finish: Callable[[nn.Module], None] | None = None) -> nn.Module:
    """The model of a reference, with its weights, in eval mode, in the types that it is built with, on the CPU.

    Weights that come from no file are drawn from the same seed every time: a run can be repeated, and two revisions of
    a model that is not trained yet can be compared.

    Args:
        ref: what to build.
        folder: where relative paths start.
        finish: gives the model a first pass. Called where a file has weights of which the model has none yet.

    Raises:
        UserError: the function is not there, raises, gives no module, or the weights do not fit.
    """
    make = load_function(ref.model, folder)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(WEIGHTS_SEED)
            model = make(**ref.model_args)
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"{ref.model}({_arguments(ref)}) raised {type(e).__name__}: {e}") from e
    if not isinstance(model, nn.Module):
        raise UserError(f"{ref.model} returned {type(model).__name__}, not a torch.nn.Module")
    model.eval()
    try:
        _load(model, ref, folder)
    except NotThere:
        if finish is None:
            raise
        finish(model)
        _load(model, ref, folder)
    detach_computed(model)
    return model.eval()


def _load(model: nn.Module, ref: ModelRef, folder: Path) -> None:
    """Fills a model with the weights of its reference.

    Raises:
        NotThere: there are weights for something that the model lacks.
        UserError: the weights do not fit.
    """
    if ref.weights is not None:
        load_weights(model, weights_path(folder, ref.weights))
    for part, file in ref.weights_by_part.items():
        try:
            module = model.get_submodule(part)
        except AttributeError as e:
            raise NotThere(f"{ref.model} has no part {part!r} for weights {file}") from e
        load_weights(module, weights_path(folder, file))


def _arguments(ref: ModelRef) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in ref.model_args.items())


def finished_by(inputs: Any) -> Callable[[nn.Module], None]:
    """What gives a model on the CPU its first pass, over inputs of a data set or of a batch [n, ...]."""

    def finish(model: nn.Module) -> None:
        cpu, dtype = torch.device("cpu"), input_dtype(model)
        if isinstance(inputs, Tensor | Arguments):
            x = map_items(lambda t: to_tensor(t, cpu, dtype).clone(), inputs)
        else:
            x = to_batch(inputs, cpu, dtype)
        first_pass(model, x)

    return finish


def to_batch(inputs: Any, device: torch.device, dtype: torch.dtype) -> Stream:
    """Inputs of a data set on the device: a tensor, or several arguments; only floating point takes the dtype."""
    parts = map_arrays(lambda array: to_tensor(array, device, dtype), inputs)
    if isinstance(parts, tuple):
        return Arguments(*parts)
    return Arguments(**parts) if isinstance(parts, dict) else parts


def to_tensor(array: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    """An input array on the device; only floating point takes the dtype."""
    tensor = torch.from_numpy(array) if not isinstance(array, Tensor) else array
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


def build_baseline(baseline: Baseline, spec: Workload, model: nn.Module, example: Stream) -> nn.Module:
    """A baseline on the device of `example`, in the dtype and shape of inputs that the model takes, in its form.

    Raises:
        UserError: the model cannot be built, or not be brought into the form.
    """
    # static networks run outside any execution, where every point is its static twin
    net = model if baseline.model == "self:dense" else _built_like(baseline, spec, model, example)
    form, size = without_micro_batches(baseline.form)
    try:
        formed = _in_form(net, form, example, called)
    except Exception as e:
        raise UserError(f"{spec.file}: baseline {baseline.name!r}: form {baseline.form!r}: {e}") from e
    return formed if size is None else MicroBatches(formed, size)


def build_formed(model: nn.Module, form: str, spec: Workload, example: Stream) -> nn.Module:
    """The workload's own model in a form, with its decision points.

    Raises:
        UserError: it cannot be brought into the form.
    """
    try:
        return _in_form(model, form, example, lambda net, x: Execution(Masking()).run(net, x))
    except Exception as e:
        raise UserError(f"{spec.file}: form {form!r}: {e}") from e


def _in_form(net: nn.Module, form: str, example: Stream, run: Callable[[nn.Module, Any], Any]) -> nn.Module:
    """A network in a form that `run` reaches all of; the network itself where the form is 'plain'."""
    if form == "plain":
        return net
    with torch.no_grad():  # in inference mode the tensors of the copy would have no versions
        return Formed(*apply_form(form, net, example, run))


def build_opaque(opaque: Opaque, spec: Workload, model: nn.Module, example: Stream) -> nn.Module:
    """An opaque network on the device of `example`, for the inputs that the model takes; that itself, where it is one.

    Raises:
        UserError: it cannot be built, or has decision points.
    """
    own = spec.model_kind == "opaque" and opaque.name == spec.opaque_networks[0].name
    net = model if own else _built_like(opaque, spec, model, example)
    if found := next(iter(points(net)), None):
        raise UserError(f"{spec.file}: {opaque.model} has decision points ({found!r}, ...), so it is not opaque")
    return net


def _built_like(ref: ModelRef, spec: Workload, model: nn.Module, example: Stream) -> nn.Module:
    """A network on the device of `example` that takes the same inputs as the model; its weights all have a shape."""
    net = build_model(ref, spec.folder, finished_by(example)).to(first(example).device)
    if input_dtype(net) != input_dtype(model):
        cast(net, input_dtype(model))
    check_call(net, example, ref.model)
    if is_unfinished(net):
        first_pass(net, example, Dense())
    return net


def prepare_network(network: nn.Module, engine: Engine, x: Stream) -> nn.Module:
    """A network whose regions an engine executes; they are found in one pass under masking, over inputs x [n, ...].

    Raises:
        CannotPrepare: the engine cannot prepare it.
    """
    with torch.inference_mode():
        return prepared(network, engine, lambda net: Execution(Masking()).run(net, x))


class Formed(nn.Module):
    """A network in a form that wants its inputs prepared."""

    def __init__(self, model: nn.Module, prepare: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model, self.prepare = model, prepare

    def forward(self, *inputs: Any, **by_name: Any) -> Any:
        """The network's answer."""
        if len(inputs) == 1 and not by_name:
            return self.model(self.prepare(inputs[0]))
        return self.prepare(Arguments(*inputs, **by_name)).call(self.model)

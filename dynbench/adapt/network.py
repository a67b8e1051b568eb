"""What all adaptations need: a copy of a network that shares its tensors, modules by name, inputs to try it with."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from dynbench import hooks
from dynbench.dynamic.items import tensors
from dynbench.errors import UserError, suggestion

Inputs = tuple[Tensor, ...]
Example = Tensor | Inputs | None
SIZES = (2, 3)  # items in the batches that a network is tried with: what differs between them follows their number


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode, whose parameters and buffers are the model's own tensors.

    Raises:
        UserError: not a module that can be taken apart, or one that cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"what is adapted is a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(
            f"{type(model).__name__} is scripted, and cannot be taken apart: adapt the module it was made of"
        )
    if hasattr(model, "_orig_mod"):
        raise UserError("the model is compiled (torch.compile): adapt the module inside it, `model._orig_mod`")
    own = {id(t): t for t in chain(model.parameters(), model.buffers())}
    try:
        return copy.deepcopy(model, own).eval()
    except Exception as e:
        raise UserError(f"{type(model).__name__} cannot be copied: {type(e).__name__}: {_line(e)}") from e


def module_named(model: nn.Module, name: str) -> nn.Module:
    """The module of a dotted name, as in `named_modules`.

    Raises:
        UserError: there is none of this name; the sentence has the nearest.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if name and name in modules:
        return modules[name]
    names = [n for n in modules if n]
    near = difflib.get_close_matches(str(name), names, cutoff=0.4)
    known = names if near else [n for n, _ in model.named_children()]
    raise UserError(f"{type(model).__name__} has no module {name!r}: {suggestion(str(name), known)}")


def module_names(names: Any, argument: str) -> list[str]:
    """A list of different names, checked.

    Raises:
        UserError: a single string, nothing, something else than strings, or a name twice.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise UserError(f"{argument}={names!r}: it is a list of names of modules, as in named_modules")
    found = list(names)
    if not found or not all(isinstance(n, str) for n in found):
        raise UserError(f"{argument}={found!r}: it is a list of at least one name of a module, as in named_modules")
    if twice := [n for n in found if found.count(n) > 1]:
        raise UserError(f"{argument} has {twice[0]!r} twice")
    return found


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Puts a module in the place of the one of this name."""
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = new


def batches(model: nn.Module, example: Example) -> list[Inputs]:
    """Inputs for 2 items and for 3, by repeating those of an example.

    Args:
        model: whose inputs they are.
        example: inputs [n, ...], n from 1; None: random ones in the shape that the model says (`input_shape`), by
            default images [3, 32, 32].

    Raises:
        UserError: the example is something else, or has no items; or the model takes tokens and there is none.
    """
    inputs = _made_up(model) if example is None else example if isinstance(example, tuple) else (example,)
    if not inputs or not all(isinstance(t, Tensor) and t.dim() and t.shape[0] for t in inputs):
        got = ", ".join(said(t) for t in inputs) or "nothing"
        raise UserError(f"example: one tensor [n, ...], or a tuple of some, with at least one item; not {got}")
    if len({t.shape[0] for t in inputs}) > 1:
        got = ", ".join(said(t) for t in inputs)
        raise UserError(f"example: all inputs have the same number of items, the first dimension; not {got}")
    return [tuple(t[torch.arange(n, device=t.device) % t.shape[0]] for t in inputs) for n in SIZES]


def _made_up(model: nn.Module) -> Inputs:
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    shape, generator = hooks.of(model).input_shape(), torch.Generator().manual_seed(0)
    vocabularies = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    if not vocabularies:
        x = torch.randn(max(SIZES), *shape, generator=generator).to(like.device, like.dtype)
        return (x,)
    if not hasattr(model, "input_shape"):
        raise UserError(f"{type(model).__name__} takes tokens: give example=, some of its inputs, such as ids [2, 16]")
    return (torch.randint(min(vocabularies), (max(SIZES), *shape), generator=generator).to(like.device),)


def tried(model: nn.Module, inputs: Inputs) -> Any:
    """The model's answer.

    Raises:
        UserError: it raises; the sentence has the shapes of the inputs.
    """
    try:
        with torch.no_grad():
            return model(*inputs)
    except UserError:
        raise
    except Exception as e:
        shapes = ", ".join(said(t) for t in inputs)
        raise UserError(
            f"{type(model).__name__} raised {type(e).__name__} for inputs {shapes}: {_line(e)}; example= says what its "
            "inputs are"
        ) from e


def check_same(adapted: nn.Module, net: nn.Module, inputs: list[Inputs]) -> None:
    """Checks that the static twin of an adapted network answers exactly as the network did.

    Raises:
        UserError: it does not, or the network does not answer the same twice.
    """
    for batch in inputs:
        want = tried(net, batch)
        if not same(want, tried(net, batch)):
            raise UserError(
                f"{type(net).__name__} does not answer the same twice for the same inputs, in evaluation mode"
            )
        if not same(want, tried(adapted, batch)):
            raise UserError(
                f"{type(net).__name__} answers otherwise once it is adapted: its forward pass does more than call its "
                "modules in turn"
            )


def same(a: Any, b: Any) -> bool:
    """Whether two answers have the same tensors, NaN included."""
    mine, yours = list(tensors(a)), list(tensors(b))
    return len(mine) == len(yours) and all(
        x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all()) for x, y in zip(mine, yours, strict=True)
    )


def said(value: Any) -> str:
    """What a value is, in an error: the shape of a tensor, else its type."""
    return str([int(size) for size in value.shape]) if isinstance(value, Tensor) else type(value).__name__


def _line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [""])[0]


class StandsFor(nn.Module):
    """In the place of another module, whose attributes it has as well."""

    def _stood_for(self) -> Iterator[nn.Module]:
        """The module, if it is still there."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_modules" in self.__dict__ and not name.startswith("__"):
                for module in self._stood_for():
                    return getattr(module, name)
            raise


def name_tensors(
    module: nn.Module, outer: Callable[[str], str], is_new: Callable[[str], bool], also: Iterable[str] = ()
) -> None:
    """Gives the tensors of a module other names in its `state_dict`, those that they had before it was adapted.

    A dictionary of the original loads as well: then the new parts keep the weights that they have.

    Args:
        module: complete.
        outer: name within the module -> name in the state dict; several may have the same, if they are one tensor.
        is_new: whether a tensor, by its name within the module, belongs to a part that the original lacks.
        also: further names that a dictionary may have, of tensors that it has under another name too.
    """
    names = {inner: outer(inner) for inner in module.state_dict()}
    new = {name for inner, name in names.items() if is_new(inner)}
    known = {*names.values(), *also}

    def save(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict[str, Any]) -> None:
        found = {prefix + name: state.pop(prefix + inner) for inner, name in names.items() if prefix + inner in state}
        state.update(found)

    def load(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        if not any(prefix + name in state for name in new):
            own = module.state_dict()
            state.update({prefix + name: own[name] for name in new})
        found = {prefix + inner: state[prefix + name] for inner, name in names.items() if prefix + name in state}
        for name in known:
            state.pop(prefix + name, None)
        state.update(found)

    module.register_state_dict_post_hook(save)
    module.register_load_state_dict_pre_hook(load)

"""Language models of the package transformers as workloads: their mixtures of experts, and early exit from a decoder.

A workload names one of these functions, and a folder that holds a model (`config.json` and safetensors), or a
configuration, whose weights are then random:

    model = "dynbench.adapt.transformers:mixture_of_experts"
    model_args = { source = "path/to/Mixtral-8x7B", context = 128 }

Nothing is downloaded. Inputs are token ids [n, T].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.adapt.calls import only_call, watch
from dynbench.adapt.exits import confident, exits_at
from dynbench.adapt.experts import TOLERANCE, difference, of_all, of_chosen
from dynbench.adapt.network import StandsFor, said
from dynbench.dynamic import Each, Route, current
from dynbench.errors import UserError, suggestion

PROVENANCE = "the package transformers, adapted"

Source = str | Path | Mapping[str, Any] | nn.Module


def causal_lm(source: Source, context: int = 64) -> LanguageModel:
    """A language model as the library computes it: the baseline of those below.

    Args:
        source: a folder with a model; or a configuration, a dict with its `model_type`, whose weights are random; or a
            model for causal language modelling, made already.
        context: T, tokens of an input.

    Returns:
        `(input_ids [n, T] long, attention_mask [n, T] of 0 and 1, or None) -> logits [n, T, vocabulary]`.

    Raises:
        UserError: transformers is not installed, there is no such model, or it has no room for the context.
    """
    return LanguageModel(_loaded(source), context).eval()


def mixture_of_experts(source: Source, context: int = 64) -> LanguageModel:
    """A language model whose mixtures of experts are Routes, named after their layers; the items are the tokens.

    For models of the kind of Mixtral, Qwen2-MoE and Qwen3-MoE, whose blocks hold a `gate` and `experts`; an expert that
    all tokens share stays as it is. The stacked parameters of the experts become a module for each expert, which shares
    their memory, and keep their names in the state dict.

    Args:
        source: as in `causal_lm`. A model made already is changed.
        context: T, tokens of an input.

    Returns:
        `(input_ids [n, T] long, attention_mask [n, T] of 0 and 1, or None) -> logits [n, T, vocabulary]`. Under an
        execution it answers as the library does, up to rounding; outside any, every token goes through every expert.

    Raises:
        UserError: as `causal_lm`; or the model has no mixture of experts, or one of another kind.
    """
    net = causal_lm(source, context)
    blocks = {name: m for name, m in net.lm.named_modules() if {"gate", "experts"} <= dict(m.named_children()).keys()}
    kind = type(net.lm).__name__
    if not blocks:
        raise UserError(f"{kind} has no mixture of experts: no module with a `gate` and `experts`")
    _, calls = watch(net, (_ids(net, 2),), {f"{name}.gate": block.gate for name, block in blocks.items()})
    for name, block in blocks.items():
        x = only_call(net.lm, f"{name}.gate", calls).args[0]
        _route(name, block, x)
    return net


def early_exit(
    source: Source,
    exits: Sequence[int] | None = None,
    threshold: float = 0.9,
    context: int = 64,
    masked: bool = False,
) -> nn.Module:
    """The next token after a prompt, by a decoder that a prompt may leave early; the items are the prompts.

    After some layers the state of the last token goes through the model's own last norm and output layer. Where the
    likeliest token is likelier than the threshold, it is the answer, and the layers above are not computed.

    Args:
        source: as in `causal_lm`: models of the kind of Llama, Mistral, Qwen, Phi, GPT-NeoX or GPT-2.
        exits: layers after which a prompt may leave, from 1 to one less than there are; None: every second one.
        threshold: probability above which a prompt leaves.
        context: T, tokens of a prompt.
        masked: a mask [n, T] comes with the ids, 0 for padding, which is on the left.

    Returns:
        `(input_ids [n, T] long[, attention_mask [n, T]]) -> logits [n, vocabulary]`. Outside any execution it answers
        as all layers do.

    Raises:
        UserError: as `causal_lm`; or no such layer, or a decoder of another kind.
    """
    lm = _loaded(source)
    net = NextToken(lm, context).eval()
    layers = len(list(net.get_submodule(net.layers).children()))
    chosen = list(range(2, layers, 2)) if exits is None else list(exits)
    if not chosen or any(isinstance(e, bool) or not isinstance(e, int) or not 1 <= e < layers for e in chosen):
        raise UserError(f"exits={chosen}: layers of {type(lm).__name__} to leave after, from 1 to {layers - 1}")
    inputs: tuple[Tensor, ...] = (_ids(net, 2),)
    if masked:
        inputs = (*inputs, torch.ones_like(inputs[0]).index_fill(1, torch.tensor([0], device=inputs[0].device), 0))
    net.check(lm, inputs)
    norm = net.get_submodule(net.norm)
    heads = {f"{net.layers}.{e - 1}": _Head(norm, net.head) for e in sorted(set(chosen))}
    return exits_at(net, heads, confident(threshold), example=inputs)


class LanguageModel(nn.Module):
    """A causal language model of transformers as a module of tensors.

    Args:
        lm: the model.
        context: T, tokens of an input.

    Raises:
        UserError: a context that is not 1 to what the model has positions for.
    """

    def __init__(self, lm: Any, context: int) -> None:
        super().__init__()
        most = getattr(lm.config, "max_position_embeddings", None) or context
        if isinstance(context, bool) or not isinstance(context, int) or not 1 <= context <= most:
            raise UserError(f"context={context!r}: 1 to {most} tokens, for which {type(lm).__name__} has positions")
        self.lm, self.context = lm, context

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [T] tokens."""
        return (self.context,)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids [n, T] long, mask [n, T] of 0 and 1 or None -> logits [n, T, vocabulary]."""
        mask = _mask(input_ids, attention_mask)
        logits: Tensor = self.lm(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        return logits


def _mask(input_ids: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask; in a graph always one, as without it the library looks for sequences that are packed into one."""
    return torch.ones_like(input_ids) if mask is None and torch.jit.is_tracing() else mask


# --- loading ---


def _loaded(source: Source) -> Any:
    """The model, in evaluation mode."""
    if isinstance(source, nn.Module):
        return source.eval()
    try:
        import transformers
    except ImportError as e:
        raise UserError("language models need the package transformers: pip install 'dynbench[transformers]'") from e
    auto = transformers.AutoModelForCausalLM
    if isinstance(source, Mapping):
        return auto.from_config(_configuration(transformers, dict(source))).eval()
    folder = Path(source).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(
            f"source={str(source)!r}: no folder with a config.json of a model of transformers, from {Path.cwd()}"
        )
    try:
        return auto.from_pretrained(folder, local_files_only=True, dtype="auto").eval()
    except Exception as e:
        raise UserError(f"transformers cannot load {folder}: {type(e).__name__}: {_line(e)}") from e


def _configuration(transformers: Any, given: dict[str, Any]) -> Any:
    kind = given.pop("model_type", None)
    known = list(transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES)
    if kind not in known:
        hint = suggestion(str(kind), known) if kind else "such as 'mixtral'"
        raise UserError(f"source: model_type={kind!r} is none that transformers {transformers.__version__} has: {hint}")
    try:
        return transformers.AutoConfig.for_model(kind, **given)
    except Exception as e:
        raise UserError(f"source: transformers refuses this configuration of {kind}: {_line(e)}") from e


def _line(e: Exception) -> str:
    return " ".join(str(e).split())[:300]


def _ids(net: LanguageModel | NextToken, n: int) -> Tensor:
    """Some token ids [n, T] for a network with an `input_shape`."""
    embedding = next(m for m in net.modules() if isinstance(m, nn.Embedding))
    generator = torch.Generator().manual_seed(0)
    shape = (n, *net.input_shape(()))
    return torch.randint(embedding.num_embeddings, shape, generator=generator).to(embedding.weight.device)


# --- mixtures of experts ---


class _Expert(nn.Module):
    """One expert of a stack: W_down (act(W_gate x) * W_up x)."""

    def __init__(self, gate_up: Tensor, down: Tensor, act: Any) -> None:
        super().__init__()
        self.gate_up, self.down = nn.Parameter(gate_up, gate_up.requires_grad), nn.Parameter(down, down.requires_grad)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """x [n, d] -> y [n, d]."""
        gate, up = F.linear(x, self.gate_up).chunk(2, -1)
        return F.linear(self.act(gate) * up, self.down)


class _Router(nn.Module):
    """The scores of a router, without its choice: x [n, d] -> [n, E]."""

    def __init__(self, gate: Any) -> None:
        super().__init__()
        self.weight, self.bias = gate.weight, getattr(gate, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, d] -> scores [n, E]."""
        return F.linear(x, self.weight, self.bias)


class _Later(nn.Module):
    """In the place of a block's gate: the Route behind it decides. What this returns is passed on to it, not used."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, x, x


class _Routed(StandsFor):
    """In the place of a block's experts: a Route of the tokens."""

    def __init__(self, route: Route) -> None:
        super().__init__()
        self.each = Each(route)

    def _stood_for(self) -> Iterator[nn.Module]:
        yield self.each.inner

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """x [n * T, d], tokens sample by sample -> y [n * T, d]."""
        ex = current()
        if ex is None:
            y: Tensor = self.each.inner(x)
            return y
        tokens = int(x.shape[0]) // int(ex.frame.ids.shape[0])
        y = self.each(x.view(-1, tokens, x.shape[1]))
        return y.view(-1, x.shape[1])


@torch.no_grad()
def _route(name: str, block: Any, x: Tensor) -> None:
    """Makes a Route of the gate and the experts of a block, which answers to x [n, d] as they do."""
    gate, experts = block.gate, block.experts
    stacks: list[Any] = [getattr(experts, part, None) for part in ("gate_up_proj", "down_proj")]
    if not all(isinstance(t, nn.Parameter) and t.dim() == 3 for t in stacks) or not hasattr(experts, "act_fn"):
        raise UserError(
            f"{name}.experts is {said(experts)}: experts are taken apart that have gate_up_proj [E, 2 m, d], down_proj "
            "[E, d, m] and act_fn, as those of Mixtral and Qwen"
        )
    choice = gate(x)
    if not isinstance(choice, tuple) or len(choice) != 3 or not isinstance(getattr(gate, "weight", None), Tensor):
        raise UserError(
            f"{name}.gate is {said(gate)}: routers are taken that return (scores, weights [n, k], chosen [n, k])"
        )
    _, weights, chosen = choice
    each = [_Expert(a, b, experts.act_fn) for a, b in zip(*(t.data.unbind(0) for t in stacks), strict=True)]
    router, y = _Router(gate), experts(x, chosen, weights)
    worst = []
    for rule in (of_chosen, of_all):
        route = Route(name, router, each, chosen.shape[1], rule)
        worst.append(difference(route, x, y, router(x)))
        if worst[-1] <= TOLERANCE:
            break
    else:
        raise UserError(
            f"{name} chooses or adds its experts in another way than by a softmax over scores: the answer differs by "
            f"{min(worst):.1g} of its largest value"
        )
    block.gate, block.experts = _Later(), _Routed(route)
    _keep_names(block, len(each), "bias" in dict(gate.named_parameters()))


def _keep_names(block: nn.Module, experts: int, bias: bool) -> None:
    """Gives the tensors of a routed block the names and the form that they had in its state dict."""
    stacked = {
        f"experts.{outer}": [f"experts.each.inner.experts.{e}.{inner}" for e in range(experts)]
        for outer, inner in (("gate_up_proj", "gate_up"), ("down_proj", "down"))
    }
    router = {f"gate.{part}": f"experts.each.inner.router.{part}" for part in ("weight", *["bias"] * bias)}

    def save(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict[str, Any]) -> None:
        for outer, inner in router.items():
            state[prefix + outer] = state.pop(prefix + inner)
        for outer, parts in stacked.items():
            state[prefix + outer] = torch.stack([state.pop(prefix + part) for part in parts])

    def load(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        for outer, inner in router.items():
            if prefix + outer in state:
                state[prefix + inner] = state.pop(prefix + outer)
        for outer, parts in stacked.items():
            if prefix + outer in state:
                rows = state.pop(prefix + outer).unbind(0)
                state.update({prefix + part: row for part, row in zip(parts, rows, strict=True)})

    block.register_state_dict_post_hook(save)
    block.register_load_state_dict_pre_hook(load)


# --- early exit ---


class _LastToken(nn.Module):
    """The state of the last token: x [n, T, d] -> [n, d]."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


class _Head(nn.Module):
    """The model's last norm and output layer, on the last token's state: x [n, T, d] -> logits [n, vocabulary]."""

    def __init__(self, norm: nn.Module, output: nn.Module) -> None:
        super().__init__()
        self.norm, self.output = norm, output

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.output(self.norm(x[:, -1]))
        return logits


class NextToken(nn.Module):
    """The next token after a prompt, by a decoder and its output layer.

    Args:
        lm: a causal language model of transformers.
        context: T, tokens of a prompt.

    Attributes:
        layers: name of the list of the decoder's layers.
        norm: name of its last norm.

    Raises:
        UserError: a context that the model has no positions for, or a decoder whose layers or last norm are not found.
    """

    LAYERS = ("layers", "h", "blocks")
    NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f")

    def __init__(self, lm: Any, context: int) -> None:
        super().__init__()
        self.context = LanguageModel(lm, context).context
        self.decoder, self.last, self.head = lm.base_model, _LastToken(), lm.get_output_embeddings()
        parts = dict(self.decoder.named_children())
        layers, norms = ([n for n in names if n in parts] for names in (self.LAYERS, self.NORMS))
        if not layers or not norms or self.head is None:
            raise UserError(
                f"{type(lm).__name__} is not built as decoders usually are: of its parts {', '.join(parts)} none is "
                f"called {', '.join(self.LAYERS)}, or none {', '.join(self.NORMS)}; use dynbench.adapt.exits_at"
            )
        self.layers, self.norm = f"decoder.{layers[0]}", f"decoder.{norms[0]}"

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [T] tokens."""
        return (self.context,)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids [n, T] long, mask [n, T] of 0 and 1 or None -> logits [n, vocabulary]."""
        mask = _mask(input_ids, attention_mask)
        states = self.decoder(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
        logits: Tensor = self.head(self.last(states))
        return logits

    @torch.no_grad()
    def check(self, lm: Any, inputs: tuple[Tensor, ...]) -> None:
        """Checks that this is what the whole language model computes.

        Raises:
            UserError: it is not: the model does more to its logits.
        """
        mine, whole = self(*inputs), LanguageModel(lm, self.context)(*inputs)[:, -1]
        if not bool((mine - whole).abs().max() <= TOLERANCE * whole.abs().max()):
            raise UserError(
                f"{type(lm).__name__} does more than its decoder and output layer, such as scaling its logits"
            )

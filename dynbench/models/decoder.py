"""Greedy decoding with a cache of keys and values, with all layers for every token or as many as the token needs.

Schuster, Fisch, Gupta, Dehghani, Bahri, Tran, Tay, Metzler, "Confident Adaptive Language Modeling" (CALM), NeurIPS 2022
(arXiv 2207.07061). From the paper, as quoted by others: the three confidence measures, the decaying threshold, the
propagation of an early state to the layers above, the loss and the calibration (in `dynbench.training.early_exit_lm`).
Reconstruction: the network. CALM exits in the decoder of an encoder-decoder (T5); here it is a decoder-only network on
bytes.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Exits, Loop, Pool, Shared, Skip, Trace
from dynbench.models.accounting import linear_macs
from dynbench.models.moe_gpt import GPT, Block, dense_gpt
from dynbench.models.sharing import shared_once
from dynbench.models.typed import module_list

PAPER = "Schuster et al., Confident Adaptive Language Modeling, NeurIPS 2022"
PROVENANCE = "reconstruction: the exits of the paper as others quote it, in a small decoder of bytes"

Measure = Literal["softmax", "saturation", "classifier"]
EXIT = "exit"  # name of the decision point at which tokens leave


class Own(NamedTuple):
    """The positions of each sequence's new tokens, where they differ between sequences.

    Attributes:
        at: positions [n, m] long.
        bias: [n, 1, m, T], added to the attention scores: 0 up to each token, minus infinity after it.
    """

    at: Tensor
    bias: Tensor

    @classmethod
    def of(cls, at: Tensor, cache: Pool) -> Own:
        """Positions [n, m] in a cache [n, layers, 2, T, d]."""
        memory: Tensor = cache.memory.value
        later = torch.arange(memory.shape[3], device=at.device) > at.unsqueeze(-1)
        bias = torch.zeros(later.shape, dtype=memory.dtype, device=at.device).masked_fill(later, -math.inf)
        return cls(at, bias.unsqueeze(1))


Places = int | Own  # position of the first new token, the same for all sequences; or each sequence's own positions


class Layer(nn.Module):
    """Block k on new tokens; keys and values of earlier tokens come from the cache [n, layers, 2, T, d]."""

    def __init__(self, block: Block, k: int) -> None:
        super().__init__()
        self.block, self.k = block, k

    def forward(self, x: Tensor, cache: Pool, at: Places) -> Tensor:
        """x [n, m, d] -> y [n, m, d]; writes the new keys and values, then attends to all up to each token."""
        block, attention = self.block, self.block.attention
        q, kv = attention.qkv(block.norm1(x)).tensor_split((x.shape[-1],), -1)  # [n, m, d], [n, m, 2 d]
        self.write(kv, cache, at)
        m = x.shape[1]
        if isinstance(at, int):
            past, bias = cache.read(self.k, slice(None), slice(0, at + m)), None  # [n, 2, t, d]
        else:
            past, bias = cache.read(self.k), at.bias
        keys, values = past.unflatten(-1, (attention.heads, -1)).permute(1, 0, 3, 2, 4)  # [n, h, t, d/h] each
        q = q.unflatten(-1, (attention.heads, -1)).transpose(1, 2)  # [n, h, m, d/h]
        y = F.scaled_dot_product_attention(q, keys, values, bias, is_causal=bias is None and m > 1)
        x = x + attention.out(y.transpose(1, 2).flatten(2))
        out: Tensor = x + block.feed_forward(block.norm2(x))
        return out

    def write(self, kv: Tensor, cache: Pool, at: Places) -> None:
        """Writes keys and values [n, m, 2 d] into the cache."""
        kv = kv.unflatten(-1, (2, -1))  # [n, m, 2, d]
        if isinstance(at, int):
            cache.write(kv.transpose(1, 2), self.k, slice(None), slice(at, at + kv.shape[1]))
        else:
            cache.write(kv, self.k, slice(None), at.at)

    def fill(self, x: Tensor, cache: Pool, at: Places) -> None:
        """State propagation: x [n, m, d], the state with which a token left, takes the place of this layer's input.

        It is projected by this layer's own W_K and W_V. (Copying the keys and values of the layer below instead is
        reported to cost 15 points of ROUGE-L.)
        """
        w = self.block.attention.qkv.weight
        self.write(F.linear(self.block.norm1(x), w[w.shape[1] :]), cache, at)


class Cached(nn.Module):
    """A GPT on new tokens, with earlier ones in a cache."""

    def __init__(self, net: GPT) -> None:
        super().__init__()
        self.net = net
        self.layers = module_list(Layer(block, k) for k, block in enumerate(net.blocks))

    def cache(self, n: int, length: int) -> Pool:
        """An empty cache for `n` sequences of up to `length` tokens: [n, layers, 2, T, d]."""
        weight = self.net.token.weight
        return Pool.new(n, len(self.layers), 2, length, weight.shape[1], like=weight)

    def embed(self, tokens: Tensor, at: Places) -> Tensor:
        """tokens [n, m] -> x [n, m, d]."""
        table = self.net.position.weight
        position = table[at : at + tokens.shape[1]] if isinstance(at, int) else table[at.at]
        x: Tensor = self.net.token(tokens) + position
        return x

    def logits(self, x: Tensor) -> Tensor:
        """The output layer, shared by all exits: x [n, ..., d] -> logits [n, ..., vocab]."""
        logits: Tensor = self.net.head(self.net.norm(x))
        return logits

    def forward(self, tokens: Tensor, cache: Pool, at: Places) -> Tensor:
        """tokens [n, m] -> the last layer's states [n, m, d]."""
        x = self.embed(tokens, at)
        for layer in self.layers:
            x = layer(x, cache, at)
        return x


class Place(NamedTuple):
    """A step's place in the text, the same for all sequences.

    Attributes:
        at: position of the input token.
        limit: lambda'(t), the confidence with which a token leaves, [].
    """

    at: int
    limit: Tensor | None


class Token(NamedTuple):
    """A token on its way through the layers.

    Attributes:
        x: d^i [n, d], the state after layer i.
        before: d^(i-1) [n, d], for the saturation measure; else None.
        cache: keys and values.
        place: a `Place`.
    """

    x: Tensor
    before: Tensor | None
    cache: Pool
    place: Shared


class Exit(NamedTuple):
    """The answer of an exit.

    Attributes:
        logits: [n, vocab]; None where the confidence measure does not use them.
        x: d^i [n, d].
        depth: i [n] long, the layer after which the token left, from 0.
    """

    logits: Tensor | None
    x: Tensor
    depth: Tensor


class Stage(nn.Module):
    """Layer i as a stage: Token -> Token."""

    def __init__(self, layer: Layer, keeps_before: bool) -> None:
        super().__init__()
        self.layer, self.keeps_before = layer, keeps_before

    def forward(self, token: Token) -> Token:
        """d^(i-1) -> d^i."""
        x = self.layer(token.x.unsqueeze(1), token.cache, token.place.value.at).squeeze(1)
        return token._replace(x=x, before=token.x if self.keeps_before else None)


class Head(nn.Module):
    """The exit after layer i: Token -> Exit.

    Args:
        cached: the network.
        i: the layer.
        with_logits: whether the confidence measure uses logits. CALM's softmax measure pays for the output layer at
            every exit.
    """

    def __init__(self, cached: Cached, i: int, with_logits: bool) -> None:
        super().__init__()
        self.cached, self.i, self.with_logits = cached, i, with_logits

    def forward(self, token: Token) -> Exit:
        """The answer of a token that leaves here."""
        depth = torch.full(token.x.shape[:1], self.i, device=token.x.device)
        return Exit(self.cached.logits(token.x) if self.with_logits else None, token.x, depth)


class Confidence(nn.Module):
    """A token leaves when its confidence c(d^i) reaches lambda'(lambda, t).

    Args:
        measure: 'softmax': the difference of the two largest probabilities; 'saturation': the cosine of d^i and
            d^(i-1), from the second layer on; 'classifier': sigmoid(M d^i), one linear classifier for all layers.
        width: d.
        threshold: lambda; part of the weights, as it is calibrated.
        tau: rate at which the threshold decays.
        length: N, the longest text.
    """

    threshold: Tensor

    def __init__(self, measure: Measure, width: int, threshold: float, tau: float, length: int) -> None:
        super().__init__()
        self.measure, self.tau, self.length = measure, tau, length
        self.register_buffer("threshold", torch.tensor(threshold))
        self.classifier = nn.Linear(width, 1) if measure == "classifier" else None

    def limit(self, t: int) -> Tensor:
        """lambda'(lambda, t) = clip_[0,1](0.9 lambda + 0.1 exp(-tau t / N)): early tokens affect all later ones."""
        return (0.9 * self.threshold + 0.1 * math.exp(-self.tau * t / self.length)).clamp(0, 1)

    def measured(self, answer: Exit, token: Token, i: int) -> Tensor:
        """c(d^i) [n]."""
        if self.classifier is not None:
            return torch.sigmoid(self.classifier(answer.x).squeeze(-1))
        if answer.logits is not None:
            best = answer.logits.softmax(-1).topk(2, -1).values
            return best[:, 0] - best[:, 1]
        assert token.before is not None
        return F.cosine_similarity(token.x, token.before, dim=-1)

    def forward(self, answer: Exit, token: Token, i: int) -> Tensor:
        """[n] bool: whether the token leaves after layer i."""
        c, limit = self.measured(answer, token, i), token.place.value.limit
        leaves = c >= limit
        return torch.zeros_like(leaves) if self.measure == "saturation" and i == 0 else leaves


class Reached(nn.Module):
    """The gate of layer k: whether the token reached it, which follows from where it left."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, left: tuple[Tensor, Tensor, Pool, Shared], carry: None) -> tuple[Tensor, None]:
        """depth [n] -> scores [n], positive where the token has run layer k."""
        return left[0] - self.k + 0.5, None


class Kept(nn.Module):
    """For a layer that has run: its keys and values are in the cache already."""

    def forward(self, left: tuple[Tensor, Tensor, Pool, Shared]) -> Tensor:
        """Does nothing; returns the depth."""
        return left[0]


class Fill(nn.Module):
    """For a skipped layer: its keys and values are computed from the state with which the token left."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, left: tuple[Tensor, Tensor, Pool, Shared]) -> Tensor:
        """Writes into the cache; returns the depth."""
        depth, x, cache, place = left
        self.layer.fill(x.unsqueeze(1), cache, place.value.at)
        return depth


class EveryLayer(nn.Module):
    """Plain decoding: every token goes through every layer."""

    def __init__(self, cached: Cached) -> None:
        super().__init__()
        self.cached = cached

    def forward(self, token: Tensor, cache: Pool, at: int, t: int) -> Tensor:
        """token [n] -> logits [n, vocab]."""
        return self.cached.logits(self.cached(token.unsqueeze(1), cache, at).squeeze(1))


class EarlyExit(nn.Module):
    """CALM: each token leaves after the first layer with enough confidence, and the cache is filled above it."""

    def __init__(self, cached: Cached, policy: Confidence) -> None:
        super().__init__()
        self.cached, self.policy = cached, policy
        layers = cached.layers
        stages = [Stage(layer, keeps_before=policy.measure == "saturation") for layer in layers]
        heads = [Head(cached, i, with_logits=policy.measure == "softmax") for i in range(len(layers))]
        self.exits = Exits(EXIT, stages, heads, policy)
        # Outside an execution a Skip runs its body, which fills nothing: right, as then all layers have run.
        self.fills = nn.ModuleList(
            Skip(f"layer{k}", Reached(k), Kept(), Fill(layer)) for k, layer in enumerate(layers) if k > 0
        )

    def forward(self, token: Tensor, cache: Pool, at: int, t: int) -> Tensor:
        """token [n] -> logits [n, vocab] of the layer after which it left."""
        place = Shared(Place(at, self.policy.limit(t)))
        x = self.cached.embed(token.unsqueeze(1), at).squeeze(1)
        logits, x, depth = self.exits(Token(x, None, cache, place))
        for fill in self.fills:
            fill((depth, x, cache, place))
        return self.cached.logits(x) if logits is None else logits


class Decoding(NamedTuple):
    """The text generated so far.

    Attributes:
        token: [n] long, the last one.
        text: [n, N] long, the generated tokens; -1: none yet.
        cache: keys and values.
        start: position of the last token of the prompt, the same for all.
    """

    token: Tensor
    text: Tensor
    cache: Pool
    start: Shared


class Step(nn.Module):
    """One step of greedy decoding: the likeliest next token."""

    def __init__(self, trunk: EveryLayer | EarlyExit) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, state: Decoding, t: int) -> Decoding:
        """Generates token t."""
        token = self.trunk(state.token, state.cache, state.start.value + t, t).argmax(-1)
        text = state.text.clone()  # the old one may still be in use
        text[:, t] = token
        return state._replace(token=token, text=text)


class Decoder(nn.Module):
    """Generates the continuation of a prompt.

    Args:
        net: the language model.
        policy: which tokens leave early; None: all layers for every token.
        length: N, the maximum number of generated tokens.
        stop: the token that ends a text; None: every text has N tokens.
    """

    def __init__(self, net: GPT, policy: Confidence | None, length: int, stop: int | None) -> None:
        super().__init__()
        self.net, self.policy, self.length, self.stop = net, policy, length, stop
        self.cached = Cached(net)
        trunk = EveryLayer(self.cached) if policy is None else EarlyExit(self.cached, policy)
        self.decode = Loop("decode", Step(trunk), None if stop is None else self._stops, length, self._text)
        shared_once(self)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [S] tokens, the longest prompt that fits the context."""
        return (self.net.context - self.length,)

    def forward(self, prompt: Tensor) -> Tensor:
        """Prompt [n, S] long -> text [n, N] long, up to and including the stop token, then -1.

        Raises:
            ValueError: prompt and text are longer than the context.
        """
        n, length = prompt.shape[0], prompt.shape[1] + self.length
        if length > self.net.context:
            raise ValueError(
                f"a prompt of {prompt.shape[1]} and {self.length} new tokens do not fit the context of "
                f"{self.net.context}"
            )
        cache, start = self.cached.cache(n, length), prompt.shape[1] - 1
        if start:
            self.cached(prompt[:, :-1], cache, 0)  # prefill; the last token of the prompt is the first step's input
        state = Decoding(prompt[:, -1], prompt.new_full((n, self.length), -1), cache, Shared(start))
        text: Tensor = self.decode(state)
        return text

    def _stops(self, text: Tensor, state: Decoding, t: int) -> Tensor:
        assert self.stop is not None
        return torch.eq(state.token, self.stop)

    def _text(self, state: Decoding, t: int) -> Tensor:
        return state.text


def decoder(
    layers: int = 6,
    width: int = 128,
    heads: int = 4,
    context: int = 64,
    vocab: int = 256,
    ff_multiple: float = 4,
    max_new_tokens: int = 16,
    stop: int | None = None,
    measure: Measure | None = None,
    threshold: float = 0.9,
    tau: float = 4.0,
) -> Decoder:
    """A GPT that decodes greedily, with or without early exits.

    Args:
        layers: blocks, L.
        width: d, of the residual stream.
        heads: of attention.
        context: longest prompt and text together.
        vocab: number of tokens; 256: bytes.
        ff_multiple: hidden width of a feed-forward layer in units of `width`.
        max_new_tokens: N, the maximum number of generated tokens.
        stop: token that ends a text, such as 10, a line's end; None: every text has N tokens.
        measure: of confidence: 'softmax', 'saturation' or 'classifier'; None: all layers for every token.
        threshold: lambda, of the confidence.
        tau: rate at which the threshold decays along the text; 0: constant.

    Raises:
        ValueError: heads do not divide the width, an unknown measure, fewer than two layers to exit from, a threshold
            outside 0 to 1, no room for a prompt, or a stop token outside the vocabulary.
    """
    if measure is not None and measure not in get_args(Measure):
        raise ValueError(f"measure={measure!r}: confidence is measured by {', '.join(map(repr, get_args(Measure)))}")
    if measure is not None and layers < 2:
        raise ValueError(f"layers={layers}: early exit needs at least two layers")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} lies outside 0 to 1")
    if not 1 <= max_new_tokens < context:
        raise ValueError(f"max_new_tokens={max_new_tokens}: from 1 to {context - 1}, below the context")
    if stop is not None and not 0 <= stop < vocab:
        raise ValueError(f"stop={stop} is no token; tokens are 0 to {vocab - 1}")
    net = dense_gpt(layers, width, heads, context, vocab, ff_multiple)
    policy = None if measure is None else Confidence(measure, width, threshold, tau, max_new_tokens)
    return Decoder(net, policy, max_new_tokens, stop)


def layer_states(net: GPT, tokens: Tensor) -> list[Tensor]:
    """d^i of every layer i at every position, without a cache, for training: tokens [n, T] -> L times [n, T, d]."""
    x = net.token(tokens) + net.position.weight[: tokens.shape[1]]
    states = []
    for block in net.blocks:
        x = block(x)
        states.append(x)
    return states


def depth_weights(layers: int) -> list[float]:
    """Weights of the layers' losses, w_i = i / sum_j j."""
    return [i / (layers * (layers + 1) / 2) for i in range(1, layers + 1)]


def exit_loss(net: GPT, tokens: Tensor, targets: Tensor) -> Tensor:
    """sum_i w_i L_i, L_i the loss of layer i through the shared output layer; tokens, targets [n, T] -> scalar."""
    states = layer_states(net, tokens)
    total = tokens.new_zeros((), dtype=torch.float32)
    for w, x in zip(depth_weights(len(states)), states, strict=True):
        logits = net.head(net.norm(x)).float()
        total = total + w * F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return total


def layers_run(model: Decoder, trace: Trace) -> tuple[Tensor, Tensor]:
    """The depth of every token.

    Returns:
        written [items, N] bool: whether the token was generated; depth [items, N] long: the number of layers it ran.
    """
    n, layers, items = model.length, len(model.net.blocks), trace.items
    written = torch.ones(items, n, dtype=torch.bool)
    if ("decode", (n,)) in trace.entries:
        halted = trace.entries["decode", (n,)].value.view(items, n).cpu()
        written[:, 1:] = (~halted[:, :-1]).cumprod(1).bool()
    depth = torch.full((items, n), layers)
    if (EXIT, (n, layers)) in trace.entries:
        left = trace.entries[EXIT, (n, layers)].value.view(items, n, layers).cpu()
        depth = 1 + (~left[:, :, :-1]).cumprod(2).sum(2)
    return written, depth


def accounted_macs(model: Decoder, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As CALM counts, in our reading: the layers that a token runs, keys and values above, and every confidence.

    Attention between positions is left out; the prompt runs all layers.
    """
    (prompt,) = shape
    written, depth = layers_run(model, trace)
    block = linear_macs(model.net.blocks[0])
    width, layers, head = model.net.token.weight.shape[1], len(model.net.blocks), model.net.head.weight.numel()
    macs = depth * block + (layers - depth) * 2 * width * width  # [items, N]
    measure = None if model.policy is None else model.policy.measure
    macs = macs + (depth * head if measure == "softmax" else head)
    if measure == "classifier":
        macs = macs + depth.clamp(max=layers - 1) * width
    generated = float((macs * written).double().sum(1).mean())
    rule = "layers run per token, keys and values of those skipped, output layers and classifiers asked, the prompt"
    return (prompt - 1) * layers * block + generated, f"{rule}; attention between positions not counted"

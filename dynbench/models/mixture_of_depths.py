"""Mixture-of-Depths: only the tokens that a router scores highest go through a block, the others bypass it.

Raposo, Ritter, Richards, Lillicrap, Humphreys, Santoro, "Mixture-of-Depths: Dynamically allocating compute in
transformer-based language models", 2024 (arXiv 2404.02258). From the paper: the k tokens of each sequence with the
highest weight r_i = w . x_i go through a block, with attention among these only (eq. 1); k is the capacity, 12.5 % of
the sequence in the best networks, so shapes are static; every other block is routed; r_i multiplies the block's update,
through which the router learns. The top k of a sequence are not known while it is generated: a small predictor, trained
alongside without affecting the network, predicts for each token whether it would be among them (section 3.5). No code
was published.

Reconstruction: the update f(x) = block(x) - x; the predictor's width; everything at the size of a small decoder of
bytes. A prompt is routed by the predictors too, all tokens at once under a mask: only decoding saves computation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Loop, Pick, Pool, Shared, Skip, Trace
from dynbench.models.accounting import linear_macs, run_rate
from dynbench.models.decoder import Decoding, Step
from dynbench.models.moe_gpt import Block, FeedForward, Router
from dynbench.models.sharing import shared_once
from dynbench.models.typed import module_list

PAPER = "Raposo et al., Mixture-of-Depths: Dynamically allocating compute in transformer-based language models, 2024"
PROVENANCE = (
    "routing as in the paper, in a small decoder of bytes; what a block adds and the predictor's width are ours"
)


class Weight(Router):
    """r = w . x, in float32: x [n, T, d] -> scores [n, T]."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)

    def forward(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        """x [..., d] -> r [...]."""
        return super().forward(x).squeeze(-1)


class Predictor(nn.Module):
    """Predicts from a token alone whether it would be among the top k of its sequence: a logit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, width // 4), nn.GELU(), nn.Linear(width // 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> logits [...]; no gradient reaches the network."""
        logits: Tensor = self.net(x.detach()).squeeze(-1)
        return logits


def attend(block: Block, x: Tensor, there: Tensor | None) -> Tensor:
    """A block's causal attention among present tokens: x [n, T, d], places `there` [n, T'] -> update [n, T, d]."""
    if there is None:
        y: Tensor = block.attention(block.norm1(x))
        return y
    present = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device).scatter(1, there, True)
    return masked_attention(block, x, present)


def masked_attention(block: Block, x: Tensor, present: Tensor) -> Tensor:
    """The same with a mask [n, T]; absent tokens attend to themselves, so that no row of the softmax is empty."""
    attention, t = block.attention, x.shape[1]
    q, k, v = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    causal = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
    itself = torch.eye(t, dtype=torch.bool, device=x.device)
    visible = causal & (present.unsqueeze(1) | itself)  # [n, T, T]
    y = F.scaled_dot_product_attention(q, k, v, visible.unsqueeze(1))
    out: Tensor = attention.out(y.transpose(1, 2).flatten(2))
    return out


def weighed(block: Block, x: Tensor, h: Tensor, r: Tensor | None) -> Tensor:
    """x + r f(x), f the update of the whole block, h that of its attention. Without r: the plain block."""
    f = h + block.feed_forward(block.norm2(x + h))
    return x + f if r is None else x + r.unsqueeze(-1).to(f.dtype) * f  # eq. 1


class Routed(nn.Module):
    """A block on the picked tokens."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, there: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        """Tokens x [n, k, d], their weights r [n, k] -> [n, k, d]."""
        return weighed(self.block, x, attend(self.block, x, there), r)


def as_they_are(scores: Tensor) -> Tensor:
    """The weights are the scores themselves."""
    return scores


class MoD(nn.Module):
    """A decoder in which every `every`-th block processes only a share of the tokens.

    Args:
        layers: blocks.
        width: d.
        heads: of attention.
        context: longest sequence.
        vocab: number of tokens.
        ff_multiple: hidden width of a feed-forward layer in units of the width.
        capacity: share of a sequence's tokens that a routed block processes, rounded down, at least one.
        every: blocks every, 2 every, ... (counted from 1) are routed; 1: all.
        whole: for whole sequences, whose top k can be picked; else only the parts for decoding are built.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        context: int,
        vocab: int,
        ff_multiple: float,
        capacity: float,
        every: int,
        whole: bool = True,
    ) -> None:
        super().__init__()
        self.context, self.capacity = context, capacity
        self.token, self.position = nn.Embedding(vocab, width), nn.Embedding(context, width)
        ff = round(ff_multiple * width)
        self.blocks = module_list(Block(width, heads, FeedForward(width, ff)) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocab, bias=False)
        self.routed = [k for k in range(layers) if (k + 1) % every == 0]
        self.weights = nn.ModuleDict({str(k): Weight(width) for k in self.routed})
        self.predictors = nn.ModuleDict({str(k): Predictor(width) for k in self.routed})
        for m in self.modules():
            if isinstance(m, nn.Linear):  # as in `dynbench.models.moe_gpt`, so that the dense twin is its GPT
                nn.init.trunc_normal_(m.weight, std=math.sqrt(0.1 / m.in_features))
            elif isinstance(m, nn.Embedding):
                nn.init.normal_(m.weight, std=0.02)
        self.picks = nn.ModuleDict({str(k): self._pick(k) for k in (self.routed if whole else ())})
        shared_once(self)

    def _pick(self, k: int) -> Pick:
        gate, body = self.weights[str(k)], Routed(self.blocks[k])
        return Pick(f"route{k}", gate, body, self.room, weigh=as_they_are, back=True, consumes=True)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [T] tokens."""
        return (self.context,)

    def room(self, tokens: int) -> int:
        """k, the number of tokens out of `tokens` that a routed block processes."""
        return max(int(self.capacity * tokens), 1)

    def embed(self, tokens: Tensor, at: int = 0) -> Tensor:
        """tokens [n, T], the first at position `at` -> x [n, T, d]."""
        x: Tensor = self.token(tokens) + self.position.weight[at : at + tokens.shape[1]]
        return x

    def logits(self, x: Tensor) -> Tensor:
        """The output layer: x [..., d] -> logits [..., vocab]."""
        logits: Tensor = self.head(self.norm(x))
        return logits

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [n, T] long, T at most the context -> logits [n, T, vocab]; each block's top k of the sequence."""
        x = self.embed(tokens)
        for k, block in enumerate(self.blocks):
            x = self.picks[str(k)](x) if str(k) in self.picks else block(x)
        return self.logits(x)

    def training_form(self, tokens: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The same written out, with predictions and targets for training the predictors (section 3.5).

        Args:
            tokens: [n, T] long.

        Returns:
            Logits [n, T, vocab], and for each routed block its predictor's logits [n, T] and the picked tokens [n, T]
            bool.
        """
        x, targets = self.embed(tokens), []
        for k, block in enumerate(self.blocks):
            if k not in self.routed:
                x = block(x)
                continue
            r = self.weights[str(k)](x)
            at = r.topk(self.room(x.shape[1]), 1).indices.sort(1).values  # [n, k], in the order of the text
            rows = at.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            picked = x.gather(1, rows)
            y = weighed(block, picked, attend(block, picked, None), r.gather(1, at))
            targets.append((self.predictors[str(k)](x), torch.zeros_like(r, dtype=torch.bool).scatter(1, at, True)))
            x = x.scatter(1, rows, y.to(x.dtype))
        return self.logits(x), targets

    def causal(self, tokens: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """All positions at once, routed by the predictors as in decoding.

        Args:
            tokens: [n, T] long.

        Returns:
            Logits [n, T, vocab], and by routed block the tokens that went through it, [n, T] bool. A token's row does
            not depend on later tokens, unlike those of `forward`.
        """
        x, through = self.embed(tokens), dict[int, Tensor]()
        for k, block in enumerate(self.blocks):
            x = self.masked_block(k, x, through) if k in self.routed else block(x)
        return self.logits(x), through

    def masked_block(self, k: int, x: Tensor, through: dict[int, Tensor]) -> Tensor:
        """Block k routed by its predictor: x [n, T, d] -> [n, T, d]; records the tokens processed in `through`."""
        block = self.blocks[k]
        present = through[k] = self.predictors[str(k)](x) > 0
        y = weighed(block, x, masked_attention(block, x, present), self.weights[str(k)](x))
        return torch.where(present.unsqueeze(-1), y, x)

    def accounted(self, trace: Trace, tokens: int) -> tuple[float, str]:
        """All MACs of a sequence of so many tokens."""
        block, head, width = linear_macs(self.blocks[0]), self.head.weight.numel(), self.token.weight.shape[1]
        routed, k = len(self.routed), self.room(tokens)
        macs = (len(self.blocks) - routed) * (tokens * block + 2 * tokens * tokens * width)
        macs += tokens * (head + routed * width) + routed * (k * block + 2 * k * k * width)
        return macs, "all products, attention and routers included"


class Cache(NamedTuple):
    """The cache of the tokens so far.

    Attributes:
        kv: keys and values, [n, layers, 2, T, d].
        seen: added to the attention scores, [n, layers, T]: 0 where a token went through the block, else -inf.
    """

    kv: Pool
    seen: Pool


class OneToken(NamedTuple):
    """A token on its way through the blocks.

    Attributes:
        x: [n, d].
        cache: a `Cache`.
        at: its position, the same for all.
    """

    x: Tensor
    cache: Cache
    at: Shared


class CachedBlock(nn.Module):
    """Block k on one new token, with attention to the tokens that went through the block."""

    def __init__(self, net: MoD, k: int) -> None:
        super().__init__()
        self.block = net.blocks[k]
        self.weight = net.weights[str(k)] if k in net.routed else None
        self.k = k

    def forward(self, token: OneToken) -> OneToken:
        """x [n, d] -> x + r f(x), or the plain block where it is not routed; writes keys and values."""
        (x, cache, where), attention = token, self.block.attention
        at = where.value
        q, kv = attention.qkv(self.block.norm1(x)).tensor_split((x.shape[-1],), -1)  # [n, d], [n, 2 d]
        cache.kv.write(kv.unflatten(-1, (2, -1)), self.k, slice(None), at)
        cache.seen.write(torch.zeros_like(x[:, 0]), self.k, at)
        past, bias = cache.kv.read(self.k, slice(None), slice(0, at + 1)), cache.seen.read(self.k, slice(0, at + 1))
        keys, values = past.unflatten(-1, (attention.heads, -1)).permute(1, 0, 3, 2, 4)  # [n, h, t, d/h] each
        q = q.view(len(x), attention.heads, 1, -1)
        y = F.scaled_dot_product_attention(q, keys, values, bias[:, None, None])  # [n, h, 1, d/h]
        r = None if self.weight is None else self.weight(x)
        return token._replace(x=weighed(self.block, x, attention.out(y.flatten(1)), r))


class Gate(nn.Module):
    """The predictor as a gate."""

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, token: OneToken, carry: None) -> tuple[Tensor, None]:
        """x [n, d] -> scores [n], positive where the token goes through the block."""
        return self.predictor(token.x), None


class Trunk(nn.Module):
    """All blocks for one token, each routed one by its predictor."""

    def __init__(self, net: MoD) -> None:
        super().__init__()
        self.net = net
        blocks = [CachedBlock(net, k) for k in range(len(net.blocks))]
        self.blocks = nn.ModuleList(
            Skip(f"route{k}", Gate(net.predictors[str(k)]), block, consumes=True) if k in net.routed else block
            for k, block in enumerate(blocks)
        )

    def forward(self, token: Tensor, cache: Cache, at: int, t: int) -> Tensor:
        """token [n] -> logits [n, vocab]."""
        state = OneToken(self.net.embed(token.unsqueeze(1), at).squeeze(1), cache, Shared(at))
        for k, block in enumerate(self.blocks):
            state = block(state)[0] if k in self.net.routed else block(state)
        return self.net.logits(state.x)


class MoDDecoder(nn.Module):
    """Generates the continuation of a prompt greedily, each token routed by the predictors.

    Args:
        net: the language model.
        length: N, the number of generated tokens.
    """

    def __init__(self, net: MoD, length: int) -> None:
        super().__init__()
        self.net, self.length = net, length
        self.decode = Loop("decode", Step(Trunk(net)), None, length, self._text)  # type: ignore[arg-type]
        shared_once(self)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [S] tokens, the longest prompt that fits the context."""
        return (self.net.context - self.length,)

    def forward(self, prompt: Tensor) -> Tensor:
        """Prompt [n, S] long -> text [n, N] long.

        Raises:
            ValueError: prompt and text are longer than the context.
        """
        n, start = prompt.shape[0], prompt.shape[1] - 1
        if start + 1 + self.length > self.net.context:
            raise ValueError(
                f"a prompt of {start + 1} and {self.length} new tokens do not fit the context of {self.net.context}"
            )
        cache = self._cache(n, start + self.length)
        if start:
            self._read(prompt[:, :-1], cache)  # the last token of the prompt is the first step's input
        text = prompt.new_full((n, self.length), -1)
        answer: Tensor = self.decode(Decoding(prompt[:, -1], text, cache, Shared(start)))  # type: ignore[arg-type]
        return answer

    def _cache(self, n: int, length: int) -> Cache:
        like, layers = self.net.token.weight, len(self.net.blocks)
        kv, seen = Pool.new(n, layers, 2, length, like.shape[1], like=like), Pool.new(n, layers, length, like=like)
        seen.memory.value.fill_(-math.inf)
        return Cache(kv, seen)

    def _read(self, tokens: Tensor, cache: Cache) -> None:
        """Reads a prompt as `MoD.causal` does, and writes keys and values."""
        net, here = self.net, slice(0, tokens.shape[1])
        x, through = net.embed(tokens), dict[int, Tensor]()
        for k, block in enumerate(net.blocks):
            kv = block.attention.qkv(block.norm1(x)).tensor_split((x.shape[-1],), -1)[1]
            cache.kv.write(kv.unflatten(-1, (2, -1)).transpose(1, 2), k, slice(None), here)
            bias = torch.zeros_like(x[..., 0])
            if k in net.routed:
                x = net.masked_block(k, x, through)
                bias = bias.masked_fill(~through[k], -math.inf)
            else:
                x = block(x)
            cache.seen.write(bias, k, here)

    def _text(self, state: Decoding, t: int) -> Tensor:
        return state.text

    def accounted(self, trace: Trace, tokens: int) -> tuple[float, str]:
        """MACs of a prompt of so many tokens and of the generated text, without attention between positions."""
        net, new, old = self.net, self.length, tokens - 1
        block, head, width = linear_macs(net.blocks[0]), net.head.weight.numel(), net.token.weight.shape[1]
        ran = sum(run_rate(trace, f"route{k}", (new,)) for k in net.routed)
        predictor = linear_macs(net.predictors)
        plain = len(net.blocks) - len(net.routed)
        always = (old + new) * plain * block + old * len(net.routed) * block + new * (head + predictor)
        rule = "layers run per token, predictors, routers and output layer; attention between positions not counted"
        return always + ran * new * (block + width), rule


def mixture_of_depths(
    layers: int = 4,
    width: int = 128,
    heads: int = 4,
    context: int = 64,
    vocab: int = 256,
    ff_multiple: float = 4,
    capacity: float = 0.125,
    every: int = 2,
) -> MoD:
    """The language model: each routed block processes the top k tokens of a sequence.

    Args:
        layers: blocks.
        width: d, of the residual stream.
        heads: of attention.
        context: longest sequence.
        vocab: number of tokens; 256: bytes.
        ff_multiple: hidden width of a feed-forward layer in units of `width`.
        capacity: share of a sequence's tokens that a routed block processes, rounded down, at least one token.
        every: every `every`-th block is routed; 1: all.

    Raises:
        ValueError: heads do not divide the width, a capacity outside 0 to 1, or no block to route.
    """
    return _mod(layers, width, heads, context, vocab, ff_multiple, capacity, every, whole=True)


def _mod(
    layers: int,
    width: int,
    heads: int,
    context: int,
    vocab: int,
    ff_multiple: float,
    capacity: float,
    every: int,
    whole: bool,
) -> MoD:
    if width % heads:
        raise ValueError(f"width={width} is not a multiple of heads={heads}")
    if not 0 < capacity <= 1:
        raise ValueError(f"capacity={capacity}: the share of tokens is above 0 and at most 1")
    if not 1 <= every <= layers:
        raise ValueError(f"every={every} of {layers} blocks: from 1 to the number of blocks, so that one is routed")
    return MoD(layers, width, heads, context, vocab, ff_multiple, capacity, every, whole)


def mod_decoder(
    layers: int = 4,
    width: int = 128,
    heads: int = 4,
    context: int = 64,
    vocab: int = 256,
    ff_multiple: float = 4,
    capacity: float = 0.125,
    every: int = 2,
    max_new_tokens: int = 32,
) -> MoDDecoder:
    """The same network decoding greedily, routed by its predictors.

    Args:
        layers: blocks.
        width: d, of the residual stream.
        heads: of attention.
        context: longest prompt and text together.
        vocab: number of tokens; 256: bytes.
        ff_multiple: hidden width of a feed-forward layer in units of `width`.
        capacity: with which the predictors were trained.
        every: every `every`-th block is routed; 1: all.
        max_new_tokens: N, the number of generated tokens.

    Raises:
        ValueError: as for `mixture_of_depths`, or no room for a prompt.
    """
    if not 1 <= max_new_tokens < context:
        raise ValueError(f"max_new_tokens={max_new_tokens}: from 1 to {context - 1}, below the context")
    net = _mod(layers, width, heads, context, vocab, ff_multiple, capacity, every, whole=False)
    return MoDDecoder(net, max_new_tokens)


def accounted_macs(model: MoD | MoDDecoder, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As the paper counts: every product of a forward pass, with attention only among a block's tokens.

    A decoder's prompt runs every block; attention between positions is then left out.
    """
    return model.accounted(trace, *shape)

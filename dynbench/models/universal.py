"""Adaptive computation time (ACT), a recurrent network that ponders, and a Universal Transformer.

Graves, "Adaptive Computation Time for Recurrent Neural Networks", 2016 (arXiv 1603.08983): halting rule, ponder cost
and `act_rnn` are the paper's, section 2. Dehghani, Gouws, Vinyals, Uszkoreit, Kaiser, "Universal Transformers", ICLR
2019 (arXiv 1807.03819): one block repeated in depth, position and time signals, halting for each position, the state
of a halted position copied forward.

Ours, where the second paper is silent or its code differs: the halting probability is that of the new state, as in
Graves; the key and value of a halted position stay those computed for the step after its last, time signal included, so
that a halted position costs nothing more; and the network is a byte-level decoder without an encoder, of a size that
trains on a CPU.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Each, Loop, Shared, Trace, current
from dynbench.models.accounting import decided, linear_macs
from dynbench.models.checks import check_least
from dynbench.models.sharing import shared_once

PAPER = (
    "Graves, Adaptive Computation Time for Recurrent Neural Networks, 2016; "
    "Dehghani et al., Universal Transformers, ICLR 2019"
)
PROVENANCE = "reconstruction from the papers: rule and block as described there, at a size that trains on a CPU"

Halting = Literal["act", "none"]
Norm = Literal["pre", "post"]


class Pondering(NamedTuple):
    """The state of an item from step to step.

    The probability of a state is added one step later, when it is known that the item did not halt there.

    Attributes:
        s: [m, d] s_n, the state.
        mean: [m, d] sum of p s over the earlier steps.
        total: [m] sum of p over the earlier steps.
        h: [m] h_n, the halting probability of s.
        about: other data of the item that a step needs.
    """

    s: Tensor
    mean: Tensor
    total: Tensor
    h: Tensor
    about: Any


class ACT(nn.Module):
    """The halting rule of Graves, section 2.1, for any state, and the answer of an item that halts.

    h_n = sigmoid(W s_n + b); an item halts at N = min {n: h_1 + .. + h_n >= 1 - epsilon}, at the latest at the last
    step; p_n = h_n before N, and the remainder R = 1 - (h_1 + .. + h_{N-1}) at N; the answer is the mean state
    sum_n p_n s_n, the ponder cost rho = N + R.

    If an item is made to go on, by the static twin or a forced decision, its h_n may sum to more than 1: p_n is capped
    by the remaining probability. Otherwise the cap has no effect.

    Args:
        width: d.
        epsilon: of the rule; with it an item may halt at its first step.
        bias: initial b: the larger, the sooner items halt.
    """

    def __init__(self, width: int, epsilon: float = 0.01, bias: float = 1.0) -> None:
        super().__init__()
        self.epsilon, self.probability = epsilon, nn.Linear(width, 1)
        nn.init.constant_(self.probability.bias, bias)

    @property
    def halt(self) -> nn.Module | None:
        """The halting rule of a Loop."""
        return self

    def start(self, s: Tensor, about: Any) -> Pondering:
        """s [m, d], the state before the first step."""
        nothing = s.new_zeros(s.shape[0])
        return Pondering(s, torch.zeros_like(s), nothing, nothing, about)

    def move(self, state: Pondering, s: Tensor) -> Pondering:
        """An item that did not halt at `state`; its next state is s [m, d]."""
        p = torch.minimum(state.h, 1 - state.total)  # p_n of the step before; 0 before the first
        h = torch.sigmoid(self.probability(s).squeeze(1))  # h_n
        mean = state.mean + p.unsqueeze(1) * state.s
        return Pondering(s, mean, state.total + p, h.to(p.dtype), state.about)

    def answer(self, state: Pondering, k: int) -> tuple[Tensor, Tensor]:
        """The mean state [m, d] and ponder cost [m] of an item that halts here; k counts from 0."""
        remainder = 1 - state.total
        return state.mean + remainder.unsqueeze(1) * state.s, k + 1 + remainder

    def forward(self, answer: Any, state: Pondering, k: int) -> Tensor:
        """Whether an item halts after step k: [m] bool."""
        return state.total + state.h >= 1 - self.epsilon


class LastState(nn.Module):
    """In place of ACT: a fixed number of steps, with the last state as the answer."""

    halt: nn.Module | None = None

    def start(self, s: Tensor, about: Any) -> Pondering:
        """s [m, d], the state before the first step."""
        nothing = s.new_zeros(s.shape[0])
        return Pondering(s, s, nothing, nothing, about)

    def move(self, state: Pondering, s: Tensor) -> Pondering:
        """The next state is s [m, d]."""
        return state._replace(s=s)

    def answer(self, state: Pondering, k: int) -> tuple[Tensor, Tensor]:
        """The state [m, d], and the number of steps [m]; k counts from 0."""
        return state.s, torch.full_like(state.h, k + 1)


def signals(steps: int, context: int, width: int) -> Tensor:
    """P [steps, context, d], the signals of position i and time t (Universal Transformers, section 2.1).

    P^t_{i,2j} = sin(i / 10000^{2j/d}) + sin(t / 10000^{2j/d}), odd indices with cosines; i and t count from 1.
    """

    def wave(n: int) -> Tensor:
        rate = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)  # [d / 2]
        angle = torch.arange(1, n + 1, dtype=torch.float64).unsqueeze(1) * rate
        return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)[:, :width]  # [n, d]

    return (wave(steps).unsqueeze(1) + wave(context)).float()


class Memory:
    """Keys and values of every position of every sample of a batch; those of halted positions stay unchanged.

    Args:
        kv: [n, T, 2 d].
        heads: of attention.
        causal: a position attends to itself and earlier positions only.
    """

    def __init__(self, kv: Tensor, heads: int, causal: bool) -> None:
        self.samples, self.length = kv.shape[:2]
        self.kv, self.heads, self.causal = kv.flatten(0, 1), heads, causal  # [n * T, 2 d]

    def write(self, slot: Tensor, kv: Tensor) -> None:
        """Writes kv [m, 2 d] of the positions at `slot` [m], sample * T + position, in ascending order."""
        if slot.shape[0] < self.kv.shape[0]:
            # autograd may need the old memory
            put = torch.Tensor.index_copy if torch.is_grad_enabled() else torch.Tensor.index_copy_
            self.kv = put(self.kv, 0, slot, kv)
            return
        ex = current()
        live = None if ex is None else ex.frame.live
        # under masking, halted positions are computed but not kept
        self.kv = kv if live is None else torch.where(live.unsqueeze(1), kv, self.kv)

    def attend(self, slot: Tensor, q: Tensor) -> Tensor:
        """Attention for queries q [m, d] of the positions at `slot` [m], in ascending order -> [m, d]."""
        if torch.jit.is_tracing() and current() is not None:
            raise NotImplementedError("the memory that positions share is sized by who is left, and written in place")
        m, d = q.shape
        k, v = self.kv.view(self.samples, self.length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # [n, h, T, d / h]
        if m == self.kv.shape[0]:
            q = q.view(self.samples, self.length, self.heads, -1).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # [n, h, T, d / h]
            return y.transpose(1, 2).reshape(m, d)
        # Queries are padded to the number of rows of the sample with the most queries.
        sample, position = slot // self.length, slot % self.length
        present, sample = sample.unique_consecutive(return_inverse=True)
        counts = sample.bincount()
        rank = torch.arange(m, device=slot.device) - (counts.cumsum(0) - counts).index_select(0, sample)
        rows = int(counts.max())
        at = sample * rows + rank  # [m]
        few = present.shape[0]
        if few < self.samples:
            k, v = k.index_select(0, present), v.index_select(0, present)
        padded = q.new_zeros(few * rows, d).index_copy_(0, at, q).view(few, rows, self.heads, -1).transpose(1, 2)
        mask = None
        if self.causal:
            last = position.new_zeros(few * rows).index_copy_(0, at, position)
            mask = torch.arange(self.length, device=slot.device) <= last.view(few, 1, rows, 1)
        y = F.scaled_dot_product_attention(padded, k, v, attn_mask=mask)  # [few, h, rows, d / h]
        return y.transpose(1, 2).reshape(few * rows, d).index_select(0, at)


class Transition(nn.Module):
    """The position-wise feed-forward function: x [m, d]."""

    def __init__(self, width: int, ff: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, ff), nn.Linear(ff, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [m, d] -> y [m, d]."""
        y: Tensor = self.down(F.relu(self.up(x)))
        return y


class Ponder(nn.Module):
    """The recurrent block, for the positions that have not halted; the item of its decision is the position.

    With x = H^{t-1} + P^t, norm 'post' is A^t = LayerNorm(x + Attention(x)), H^t = LayerNorm(A^t + Transition(A^t))
    (section 2.1); 'pre' is A^t = x + Attention(LayerNorm(x)), H^t = A^t + Transition(LayerNorm(A^t)). The positions of
    a sample step together, because each attends to all.

    Args:
        width: d.
        heads: of attention.
        ff: hidden width of the transition.
        steps: T, the maximum.
        context: longest sequence.
        causal: a position attends to itself and earlier positions only.
        norm: 'pre' or 'post'.
        rule: ACT or LastState.
    """

    signal: Tensor

    def __init__(
        self, width: int, heads: int, ff: int, steps: int, context: int, causal: bool, norm: Norm, rule: ACT | LastState
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.norm, self.rule = heads, causal, norm, rule
        self.query, self.key_value = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.transition = Transition(width, ff)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.register_buffer("signal", signals(steps, context, width), persistent=False)  # P
        self.loop = Loop("ponder", self.step, rule.halt, steps, rule.answer, scope="sample")

    def shown(self, x: Tensor) -> Tensor:
        """The input of attention, H + P or its norm: x [..., d]."""
        y: Tensor = self.norm1(x) if self.norm == "pre" else x
        return y

    def remember(self, x: Tensor) -> Memory:
        """H^0, x [n, T, d] -> keys and values for the first step."""
        return Memory(self.key_value(self.shown(x + self.signal[0, : x.shape[1]])), self.heads, self.causal)

    def forward(self, x: tuple[Tensor, Tensor, Shared]) -> tuple[Tensor, Tensor]:
        """(H^0 [m, d], slot [m], memory) -> answers [m, d] and ponder costs [m], m = n * T."""
        s, slot, memory = x
        y: tuple[Tensor, Tensor] = self.loop(self.rule.start(s, (slot, memory)))
        return y

    def step(self, state: Pondering, k: int) -> Pondering:
        """Step k for the positions that have not halted, [m, ..]."""
        slot, shared = state.about
        memory: Memory = shared.value
        position = slot % memory.length
        x = state.s + self.signal[k].index_select(0, position)
        y = x + self.out(memory.attend(slot, self.query(self.shown(x))))
        if self.norm == "pre":
            s = y + self.transition(self.norm2(y))  # y is A^t
        else:
            a = self.norm1(y)  # A^t
            s = self.norm2(a + self.transition(a))
        if k + 1 < self.loop.max_steps:
            ahead = s + self.signal[k + 1].index_select(0, position)
            memory.write(slot, self.key_value(self.shown(ahead)))
        return self.rule.move(state, s)


class UniversalTransformer(nn.Module):
    """Tokens in, one recurrent block, a distribution over tokens out at every position.

    Args:
        block: `Ponder`.
        width: d.
        context: longest sequence.
        vocab: number of tokens.
    """

    def __init__(self, block: Ponder, width: int, context: int, vocab: int) -> None:
        super().__init__()
        self.context, self.scale = context, math.sqrt(width)
        self.token, self.head = nn.Embedding(vocab, width), nn.Linear(width, vocab, bias=False)
        nn.init.normal_(self.token.weight, std=1 / self.scale)
        self.ponder = Each(block)
        self.norm = nn.LayerNorm(width) if block.norm == "pre" else nn.Identity()
        shared_once(self)  # the halting unit belongs to the block and to its loop

    @property
    def block(self) -> Ponder:
        """The recurrent block."""
        return cast(Ponder, self.ponder.inner)

    @property
    def loop(self) -> Loop:
        """The loop over steps."""
        return self.block.loop

    @property
    def rule(self) -> ACT | LastState:
        """The halting rule."""
        return self.block.rule

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [T] tokens."""
        return (self.context,)

    def pondered(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [n, T] long -> logits [n, T, vocab] and ponder costs rho = N + R [n, T]."""
        x = self.scale * self.token(tokens)  # H^0 [n, T, d]
        slot = torch.arange(tokens.numel(), device=tokens.device).view(tokens.shape)
        y, rho = self.ponder((x, slot, Shared(self.block.remember(x))))
        return self.head(self.norm(y)), rho

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [n, T] long, T at most the context -> logits [n, T, vocab]."""
        return self.pondered(tokens)[0]


class PonderingRNN(nn.Module):
    """A recurrent network with a variable number of steps at each symbol (Graves, section 2).

    s_t^n = tanh(W [x_t, delta_{n,1}] + U s_t^{n-1} + c): the flag delta marks a new symbol; the mean state
    s_t = sum_n p_n s_t^n is the answer and is carried to the next symbol. The item is the sample; the symbol is a
    further coordinate of its decisions, because the loop is visited at each symbol.

    Args:
        rule: ACT.
        width: d.
        steps: maximum for a symbol.
        context: longest sequence.
        vocab: number of symbols.
    """

    def __init__(self, rule: ACT, width: int, steps: int, context: int, vocab: int) -> None:
        super().__init__()
        self.context, self.rule = context, rule
        self.token, self.head = nn.Embedding(vocab, width), nn.Linear(width, vocab)
        self.input, self.recurrent = nn.Linear(width + 1, width), nn.Linear(width, width, bias=False)
        self.loop = Loop("ponder", self.step, rule, steps, rule.answer)
        shared_once(self)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [T] symbols."""
        return (self.context,)

    def step(self, state: Pondering, k: int) -> Pondering:
        """Step k at one symbol, [n, ..]."""
        first = state.about
        flag = torch.full_like(first[:, :1], float(k == 0))
        s = torch.tanh(self.input(torch.cat([first, flag], 1)) + self.recurrent(state.s))
        return self.rule.move(state, s)

    def pondered(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [n, T] long -> logits [n, T, vocab] and ponder costs rho = N + R [n, T]."""
        x = self.token(tokens)  # [n, T, d]
        s, states, costs = torch.zeros_like(x[:, 0]), [], []
        for t in range(tokens.shape[1]):
            with _visit(t, tokens.shape[1]):
                s, rho = self.loop(self.rule.start(s, x[:, t]))
            states.append(s)
            costs.append(rho)
        return self.head(torch.stack(states, 1)), torch.stack(costs, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [n, T] long -> logits [n, T, vocab]."""
        return self.pondered(tokens)[0]


def _visit(t: int, size: int) -> AbstractContextManager[Any]:
    """Visit t of a point that is visited `size` times."""
    ex = current()
    return nullcontext() if ex is None else ex.at(t, size)


def universal_transformer(
    steps: int = 6,
    halting: Halting | None = "act",
    width: int = 128,
    heads: int = 4,
    ff_multiple: float = 4,
    context: int = 64,
    vocab: int = 256,
    causal: bool = True,
    norm: Norm = "pre",
    epsilon: float = 0.01,
    bias: float = 1.0,
) -> UniversalTransformer:
    """A Universal Transformer: a decoder without an encoder, or with `causal=False` an encoder.

    Args:
        steps: T, the maximum for each position.
        halting: 'act' for each position; 'none' or None: each takes all steps and answers with its last state.
        width: d.
        heads: of attention.
        ff_multiple: hidden width of the transition in units of `width`.
        context: longest sequence.
        vocab: number of tokens; 256: bytes.
        causal: a position attends to itself and earlier positions only.
        norm: position of the layer norms: 'post', after each sum, as in the paper, or 'pre', before each function and
            at the end, which is easier to train.
        epsilon: of ACT, above 0 and below 1.
        bias: initial bias of the halting probability.

    Raises:
        ValueError: an argument out of its range, or heads that do not divide the width.
    """
    _check(halting, epsilon, steps=steps, width=width, heads=heads, context=context, vocab=vocab)
    if width % heads:
        raise ValueError(f"width={width} is not a multiple of heads={heads}")
    if norm not in ("pre", "post"):
        raise ValueError(f"norm={norm!r}: layer norms are 'pre' or 'post'")
    rule = ACT(width, epsilon, bias) if halting == "act" else LastState()
    block = Ponder(width, heads, round(ff_multiple * width), steps, context, causal, norm, rule)
    return UniversalTransformer(block, width, context, vocab)


def act_rnn(
    steps: int = 8, width: int = 128, context: int = 64, vocab: int = 256, epsilon: float = 0.01, bias: float = 1.0
) -> PonderingRNN:
    """A recurrent network with adaptive computation time.

    Args:
        steps: M, the maximum for each symbol.
        width: of the state.
        context: longest sequence.
        vocab: number of symbols.
        epsilon: of ACT, above 0 and below 1.
        bias: initial bias of the halting probability (the paper: 1).

    Raises:
        ValueError: an argument out of its range.
    """
    _check("act", epsilon, steps=steps, width=width, context=context, vocab=vocab)
    return PonderingRNN(ACT(width, epsilon, bias), width, steps, context, vocab)


def _check(halting: str | None, epsilon: float, **counts: int) -> None:
    if halting not in (None, "none", "act"):
        raise ValueError(f"halting={halting!r}: halting is 'act', or 'none' (all steps)")
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon={epsilon}: epsilon lies between 0 and 1")
    check_least(1, **counts)


def ponder_steps(model: UniversalTransformer | PonderingRNN, trace: Trace) -> Tensor:
    """The number of steps at each position, [items * positions], by the decisions of a stream."""
    going_on = ~decided(trace, model.loop.name).value.view(-1, model.loop.max_steps)[:, :-1]
    return 1 + going_on.cumprod(1).sum(1)


def accounted_macs(
    model: UniversalTransformer | PonderingRNN, trace: Trace, shape: tuple[int, ...]
) -> tuple[float, str]:
    """As the papers count: the mean number of steps, each of the same cost; without halting unit and attention."""
    (length,) = shape
    head = model.head.weight.numel()
    step = linear_macs(model) - head - linear_macs(model.rule)
    steps = float(ponder_steps(model, trace).double().mean())
    rule = "mean ponder steps times the parameters of a step, halting unit and attention between positions not counted"
    return length * (head + steps * step), rule

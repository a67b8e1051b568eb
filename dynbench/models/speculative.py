"""Speculative decoding: a small draft model guesses some tokens ahead, the target model verifies them in one pass.

Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", ICML 2023 (arXiv 2211.17192).
From the paper, as quoted by others: the acceptance rule, in its sampled and its greedy form, and the formulae at the
end of this file. Reconstruction: the networks, small decoders of bytes, and the handling of their caches.

More is computed than by the target alone, yet it may be faster: a target that reads gamma + 1 tokens at once hardly
takes longer than for one token if its time goes into loading weights or launching operators.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Loop, Pool, Shared, Trace, current
from dynbench.models.accounting import linear_macs
from dynbench.models.decoder import Cached, Own, decoder
from dynbench.models.moe_gpt import GPT
from dynbench.models.sharing import shared_once

PAPER = "Leviathan et al., Fast Inference from Transformers via Speculative Decoding, ICML 2023"
PROVENANCE = "reconstruction: the paper's rule of acceptance, with small decoders of bytes"

Method = Literal["greedy", "sample"]
# Purposes of random numbers: with the item's coordinates and the seed, a purpose is the address of a number.
GUESS, ACCEPT, REPLACE, ALONE = range(4)


class Speculation(NamedTuple):
    """The texts generated so far, which may differ in length.

    Attributes:
        last: [n, 2] long, the last two tokens.
        emitted: [n] long, number of tokens generated so far, at most N.
        text: [n, N] long, the generated tokens; -1: none, yet or after the end.
        draft: cache of the draft's keys and values.
        target: cache of the target's keys and values.
        start: position of the last token of the prompt, the same for all.
    """

    last: Tensor
    emitted: Tensor
    text: Tensor
    draft: Pool
    target: Pool
    start: Shared


class Sampler:
    """Chooses tokens from logits: the likeliest, or a random sample.

    Args:
        method: 'greedy' or 'sample'.
        seed: of all random numbers. A number is a function of the seed, the item, its purpose and its index.
    """

    def __init__(self, method: Method, seed: int) -> None:
        self.method, self.seed = method, seed

    def pick(self, logits: Tensor, item: Tensor, purpose: int, index: int) -> Tensor:
        """logits [n, vocab], item [n] -> tokens [n]."""
        if self.method == "greedy":
            return logits.argmax(-1)
        return draw(probabilities(logits), uniform(self.seed, item, purpose, index))

    def verify(self, q: Tensor, guess: Tensor, p: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Algorithm 1 of the paper: the number of accepted guesses, and the token after them.

        Args:
            q: [n, gamma, vocab] logits of the draft.
            guess: [n, gamma] long, tokens chosen from q.
            p: [n, gamma + 1, vocab] logits of the target at the same positions and the next one.
            item: [n] long.

        Returns:
            accepted [n] long, a; tokens [n, gamma + 1] long, of which the first a + 1 are kept.
        """
        n, gamma = guess.shape
        if self.method == "greedy":
            tokens = p.argmax(-1)  # the target's own choice, valid while all guesses before it are accepted
            return (tokens[:, :gamma] == guess).long().cumprod(1).sum(1), tokens
        p, q = probabilities(p), probabilities(q)
        p_guess = p[:, :gamma].gather(2, guess.unsqueeze(2)).squeeze(2)  # [n, gamma]
        q_guess = q.gather(2, guess.unsqueeze(2)).squeeze(2)
        u = torch.stack([uniform(self.seed, item, ACCEPT, j) for j in range(gamma)], 1)
        accepted = (u * q_guess < p_guess).long().cumprod(1).sum(1)  # each with probability min(1, p / q)
        # p'(x) = norm(max(0, p - q)) at the rejected guess; p itself if none was rejected
        rest = (p - F.pad(q, (0, 0, 0, 1))).clamp(min=0)  # [n, gamma + 1, vocab]
        rest = rest.gather(1, accepted.view(n, 1, 1).expand(-1, 1, rest.shape[2])).squeeze(1)
        replacement = draw(rest, uniform(self.seed, item, REPLACE, 0))
        kept = torch.arange(gamma + 1, device=p.device) < accepted.unsqueeze(1)
        return accepted, torch.where(kept, F.pad(guess, (0, 1)), replacement[:, None])


def probabilities(logits: Tensor) -> Tensor:
    """[..., vocab], in double precision, to depend as little as possible on the dtype of the networks."""
    return logits.double().softmax(-1)


def draw(weights: Tensor, u: Tensor) -> Tensor:
    """The token at u [n] in 0 .. 1 of the cumulative weights [n, vocab], which need not sum to 1 -> [n] long."""
    up_to = weights.cumsum(-1)
    return (up_to <= u.unsqueeze(1) * up_to[:, -1:]).sum(-1).clamp(max=weights.shape[1] - 1)


def uniform(seed: int, item: Tensor, purpose: int, index: int) -> Tensor:
    """A float64 number in [0, 1) for each item [n] long: splitmix64 of the seed and the coordinates."""
    z = _mix(torch.full_like(item, seed))
    for coordinate in (item, purpose, index):
        z = _mix(z + coordinate)
    return _shifted(z, 11).double() * 2.0**-53


def _mix(z: Tensor) -> Tensor:
    """One output of splitmix64 (Steele, Lea, Flood, 2014) for state z, int64 with wrap-around."""
    z = z - 7046029254386353131  # 0x9E3779B97F4A7C15
    z = (z ^ _shifted(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shifted(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # as for an unsigned z


def _items(like: Tensor, k: int, steps: int) -> Tensor:
    """[n] long: coordinates of the current items; outside an execution the batch is taken to be the stream."""
    ex = current()
    return torch.arange(like.shape[0], device=like.device) * steps + k if ex is None else ex.frame.ids


class Iteration(nn.Module):
    """gamma guesses and their verification: one to gamma + 1 new tokens."""

    def __init__(self, draft: Cached, target: Cached, sampler: Sampler, gamma: int, length: int, stop: int) -> None:
        super().__init__()
        self.draft, self.target, self.sampler = draft, target, sampler
        self.gamma, self.length, self.stop = gamma, length, stop

    def begin(self, prompt: Tensor) -> Speculation:
        """Both models read the prompt [n, S] up to its last token, excluded."""
        (n, size), room = prompt.shape, prompt.shape[1] + self.length + self.gamma
        draft, target = self.draft.cache(n, room), self.target.cache(n, room)
        self.draft(prompt[:, :-1], draft, 0)
        self.target(prompt[:, :-1], target, 0)
        text = prompt.new_full((n, self.length), -1)
        return Speculation(prompt[:, -2:], prompt.new_zeros(n), text, draft, target, Shared(size - 1))

    def forward(self, state: Tensor | Speculation, k: int) -> Speculation:
        """Before the first iteration the state is the prompt [n, S] long."""
        s = self.begin(state) if isinstance(state, Tensor) else state
        item = _items(s.emitted, k, self.length)
        here = (s.start.value + s.emitted).unsqueeze(1)  # [n, 1]: position of the last token
        q, guess = self._guess(s, item, here)
        # Cache entries of rejected guesses are overwritten: the next iteration begins at or before them.
        tokens = torch.cat([s.last[:, 1:], guess], 1)  # [n, gamma + 1]
        ahead = here + torch.arange(self.gamma + 1, device=here.device)
        p = self.target.logits(self.target(tokens, s.target, Own.of(ahead, s.target)))  # [n, gamma + 1, vocab]
        accepted, new = self.sampler.verify(q, guess, p, item)
        return self._written(s, accepted, new)

    def _guess(self, s: Speculation, item: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
        """q [n, gamma, vocab] and the guesses [n, gamma].

        The draft has not read its own last guess, which may be the last token but one: it begins with two tokens.
        """
        tokens, at = s.last, torch.cat([here - 1, here], 1)
        logits, guesses = [], []
        for j in range(self.gamma):
            logits.append(self.draft.logits(self.draft(tokens, s.draft, Own.of(at, s.draft))[:, -1]))
            guesses.append(self.sampler.pick(logits[-1], item, GUESS, j))
            tokens, at = guesses[-1].unsqueeze(1), here + j + 1
        return torch.stack(logits, 1), torch.stack(guesses, 1)

    def _written(self, s: Speculation, accepted: Tensor, new: Tensor) -> Speculation:
        """Appends the first a + 1 of the tokens `new` [n, gamma + 1], up to N tokens and the stop token."""
        place = torch.arange(self.length, device=new.device) - s.emitted.unsqueeze(1)  # [n, N]: index into `new`
        fresh = (place >= 0) & (place <= accepted.unsqueeze(1))
        text = torch.where(fresh, new.gather(1, place.clamp(0, self.gamma)), s.text)
        stops = (text == self.stop).long()
        text = torch.where(stops.cumsum(1) - stops > 0, -1, text)  # nothing after the first stop token
        row = torch.cat([s.last[:, 1:], new], 1)
        last = row.gather(1, torch.stack([accepted, accepted + 1], 1))
        return s._replace(last=last, emitted=(s.emitted + accepted + 1).clamp(max=self.length), text=text)


class Alone(nn.Module):
    """The static twin: the target generates N tokens, one after the other."""

    def __init__(self, target: Cached, sampler: Sampler, length: int) -> None:
        super().__init__()
        self.target, self.sampler, self.length = target, sampler, length

    def forward(self, prompt: Tensor) -> Tensor:
        """Prompt [n, S] long -> text [n, N] long."""
        n, size = prompt.shape
        cache, token, text = self.target.cache(n, size + self.length), prompt[:, -1], []
        self.target(prompt[:, :-1], cache, 0)
        for t in range(self.length):
            logits = self.target.logits(self.target(token.unsqueeze(1), cache, size - 1 + t).squeeze(1))
            token = self.sampler.pick(logits, _items(token, t, self.length), ALONE, 0)
            text.append(token)
        return torch.stack(text, 1)


class Speculative(nn.Module):
    """Generates the continuation of a prompt: the target's own, or a sample from the target's distribution.

    Args:
        target: the language model.
        draft: the small model that guesses.
        gamma: guesses per iteration.
        length: N, the maximum number of generated tokens, and of iterations.
        stop: the token that ends a text; None: every text has N tokens.
        sampler: chooses tokens.
    """

    def __init__(self, target: GPT, draft: GPT, gamma: int, length: int, stop: int | None, sampler: Sampler) -> None:
        super().__init__()
        self.target, self.draft, self.gamma, self.length = target, draft, gamma, length
        stop = -2 if stop is None else stop  # -2 is no token
        ahead = Cached(target)
        self.iteration = Iteration(Cached(draft), ahead, sampler, gamma, length, stop)
        self.speculate = Loop(
            "speculate", self.iteration, self._ends, length, self._text, static=Alone(ahead, sampler, length)
        )
        shared_once(self)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [S] tokens, the longest prompt that fits."""
        return (min(self.target.context, self.draft.context) - self.length - self.gamma,)

    def forward(self, prompt: Tensor) -> Tensor:
        """Prompt [n, S] long -> text [n, N] long, up to and including the stop token, then -1.

        Raises:
            ValueError: a prompt of one token, or prompt, text and guesses are longer than a context.
        """
        (most,) = self.input_shape(())
        if not 2 <= prompt.shape[1] <= most:
            raise ValueError(f"a prompt of {prompt.shape[1]} tokens: there is room for 2 to {most}")
        text: Tensor = self.speculate(prompt)
        return text

    def _ends(self, text: Tensor, state: Speculation, k: int) -> Tensor:
        return (state.emitted >= self.length) | (text == self.iteration.stop).any(1)

    def _text(self, state: Speculation, k: int) -> Tensor:
        return state.text


def speculative(
    target: dict[str, Any] | None = None,
    draft: dict[str, Any] | None = None,
    gamma: int = 4,
    max_new_tokens: int = 32,
    stop: int | None = None,
    method: Method = "greedy",
    seed: int = 0,
) -> Speculative:
    """Speculative decoding by two decoders of bytes.

    Args:
        target: arguments of `dynbench.models.decoder.decoder` for the language model: layers, width, ...
        draft: the same for the draft; default: one layer.
        gamma: guesses per iteration.
        max_new_tokens: N, the maximum number of generated tokens.
        stop: token that ends a text; None: every text has N tokens.
        method: 'greedy': exactly the target's likeliest tokens; 'sample': samples from the target's distribution.
        seed: of the samples.

    Raises:
        ValueError: no guess, an unknown method, different vocabularies, no room, or arguments that `decoder` refuses.
    """
    if method not in get_args(Method):
        raise ValueError(f"method={method!r}: tokens are chosen by {' or '.join(map(repr, get_args(Method)))}")
    if gamma < 1:
        raise ValueError(f"gamma={gamma}: the draft guesses at least one token")
    common: dict[str, Any] = {"max_new_tokens": max_new_tokens, "stop": stop}
    net = decoder(**(target or {}), **common).net
    small = decoder(**({"layers": 1} if draft is None else draft), **common).net
    vocabularies = [n.token.weight.shape[0] for n in (net, small)]
    if vocabularies[0] != vocabularies[1]:
        raise ValueError(f"target and draft have vocabularies of {vocabularies[0]} and {vocabularies[1]} tokens")
    model = Speculative(net, small, gamma, max_new_tokens, stop, Sampler(method, seed))
    if model.input_shape(())[0] < 2:
        raise ValueError(f"no room for a prompt: {max_new_tokens} new tokens and {gamma} guesses fill the context")
    return model


def expected_tokens(alpha: float, gamma: int) -> float:
    """Equation 1: (1 - alpha^(gamma + 1)) / (1 - alpha), tokens per iteration.

    Args:
        alpha: probability that a guess is accepted, the same for each: E sum_x min(p(x), q(x)).
        gamma: guesses per iteration.
    """
    return float(gamma + 1) if alpha == 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)


def expected_speedup(alpha: float, gamma: int, c: float) -> float:
    """Theorem 3.8: expected_tokens / (gamma c + 1), if the target takes as long for gamma + 1 tokens as for one.

    Args:
        alpha: see `expected_tokens`.
        gamma: guesses per iteration.
        c: time of the draft for one token, relative to the target's.
    """
    return expected_tokens(alpha, gamma) / (gamma * c + 1)


def expected_operations(alpha: float, gamma: int, c: float) -> float:
    """Theorem 3.11: (gamma c + gamma + 1) / expected_tokens, operations relative to those of the target alone.

    Args:
        alpha: see `expected_tokens`.
        gamma: guesses per iteration.
        c: operations of the draft for one token, relative to the target's (c-hat in the paper).
    """
    return (gamma * c + gamma + 1) / expected_tokens(alpha, gamma)


def iterations(model: Speculative, trace: Trace) -> Tensor:
    """The number of iterations of each item, [items] long."""
    halted = trace.entries["speculate", (model.length,)].value.view(trace.items, model.length).cpu()
    return 1 + (~halted[:, :-1]).cumprod(1).sum(1)


def accounted_macs(model: Speculative, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As the paper counts (section 3.4): gamma tokens of the draft and gamma + 1 of the target per iteration."""
    (prompt,) = shape
    draft, target = ((linear_macs(net), net.head.weight.numel()) for net in (model.draft, model.target))
    each = model.gamma * draft[0] + (model.gamma + 1) * target[0]
    reading = (prompt - 1) * (draft[0] - draft[1] + target[0] - target[1])
    macs = reading + each * float(iterations(model, trace).double().mean())
    rule = "active parameters times tokens: gamma of the draft and gamma + 1 of the target per iteration, both prompts"
    return macs, f"{rule}; attention between positions not counted"

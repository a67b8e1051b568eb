"""Small networks that together use every decision point, nested in many ways. Each factory returns (net, args)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic import Ahead, Each, Exits, Loop, Op, Pick, Program, Route, Shared, Skip, Weights, Width, current
from dynbench.strategies import STRATEGIES

DYNAMIC = [name for name in STRATEGIES if name != "dense"]  # dense computes another function: the static twin
REFUSALS = {  # strategy -> why it is refused for some networks
    "cascading": "lets items leave a Loop or Exits early; this model has none",
    "batch_union": "slices a layer to the channels that a batch uses; this model has no Width",
    "specialised": "keeps a layer for each task or width; this model has no Weights with few, known codes",
}


def mlp(d: int, m: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d, m), nn.GELU(), nn.Linear(m, d))


def top_softmax(scores: Tensor, chosen: Tensor) -> Tensor:
    """Softmax over the chosen; a dropped choice (-1) weighs nothing."""
    w = scores.gather(1, chosen.clamp(min=0)).softmax(-1)
    return torch.where(chosen >= 0, w, torch.zeros_like(w))


class Attention(nn.Module):
    def __init__(self, d: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [n, h, T, d/h]
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class RecurrentGate(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(d, 10), nn.Linear(10, 1)

    def forward(self, x: Tensor, carry: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = self.cell(x.mean(1), carry)
        return 20 * self.out(h).squeeze(1), (h, c)


class SkipThenRoute(nn.Module):
    """A sample-level Skip with a recurrent gate, then a token-level Route."""

    def __init__(self, k: int, d: int, capacity: float | None) -> None:
        super().__init__()
        self.attn = Skip(f"skip{k}", RecurrentGate(d), nn.Sequential(nn.LayerNorm(d), Attention(d)))
        experts = [mlp(d, 2 * d) for _ in range(4)]
        self.moe = Each(Route(f"moe{k}", nn.Linear(d, 4), experts, 2, top_softmax, capacity_factor=capacity))

    def forward(self, state: Any) -> Any:
        x, carry, table = state
        x, carry = self.attn(x, carry)
        return x + self.moe(x) + table.value, carry, table


class MeanHead(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d, 5)

    def forward(self, state: Any) -> Tensor:
        return self.linear(state[0].mean(1))


def confident(answer: Tensor, state: Any, k: int) -> Tensor:
    return answer.softmax(-1).amax(-1) > 0.27


def moe_exits(n: int = 6, d: int = 16, capacity: float | None = None) -> tuple[nn.Module, tuple[Any, ...]]:
    net = Exits("exit", [SkipThenRoute(k, d, capacity) for k in range(3)], [MeanHead(d) for _ in range(3)], confident)
    zero = torch.zeros(n, 10)
    return net, ((torch.randn(n, 5, d), (zero, zero.clone()), Shared(torch.randn(d))),)


def capacity_exits(n: int = 6) -> tuple[nn.Module, tuple[Any, ...]]:
    return moe_exits(n, capacity=1.0)


class Stage(nn.Module):
    """Halves the feature map, so that states change shape from stage to stage."""

    def __init__(self, k: int, c: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(c, 2 * c, 3, stride=2, padding=1)
        body = nn.Sequential(nn.Conv2d(2 * c, 2 * c, 3, padding=1), nn.BatchNorm2d(2 * c), nn.ReLU())
        self.skip = Skip(f"block{k}", lambda x, carry: (x.mean((1, 2, 3)), carry), body, consumes=True)
        shortcut = nn.Conv2d(2 * c, 2 * c, 1)
        body = nn.Conv2d(2 * c, 2 * c, 3, padding=1)
        self.wide = Skip(f"wide{k}", lambda x, carry: (-x.mean((1, 2, 3)), carry), body, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.skip(self.down(x))
        return self.wide(y)[0]


def pyramid(n: int = 6) -> tuple[nn.Module, tuple[Any, ...]]:
    heads = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * 2 ** (k + 1), 3)) for k in range(3)]
    net = Exits("exit", [Stage(k, 4 * 2**k) for k in range(3)], heads, lambda a, s, k: a.softmax(-1).amax(-1) > 0.36)
    return net, (torch.randn(n, 4, 16, 16),)


def pyramid_channels_last(n: int = 6) -> tuple[nn.Module, tuple[Any, ...]]:
    net, (x,) = pyramid(n)
    return net.to(memory_format=torch.channels_last), (x.to(memory_format=torch.channels_last),)


class Ponder(nn.Module):
    """Adaptive computation time; a Skip is visited at every step; a small Exits sits inside the loop."""

    def __init__(self, d: int = 12) -> None:
        super().__init__()
        self.cell, self.p = mlp(d, 24), nn.Linear(d, 1)
        self.inner = Skip("inner", lambda x, c: (x[:, 0], c), mlp(d, 24))
        self.exits = Exits(
            "early", [mlp(d, 24), mlp(d, 24)], [nn.Identity(), nn.Identity()], lambda a, s, k: a[:, 1] > 0
        )
        self.loop = Loop("ponder", self.step, lambda a, s, k: s[2] + s[3] >= 0.99, 5)

    def step(self, state: Any, k: int) -> Any:
        x, total_state, total, p = state
        total_state, total = total_state + p[:, None] * x, total + p
        x = torch.tanh(self.cell(x) + x)
        x, _ = self.inner(x)
        x = x + self.exits(x)
        return x, total_state, total, torch.sigmoid(2 * self.p(x).squeeze(1))

    def forward(self, x: Tensor) -> Tensor:
        zero = x.new_zeros(x.shape[0])
        x, total_state, total, _ = self.loop((x, torch.zeros_like(x), zero, zero.clone()))
        return total_state + (1 - total)[:, None] * x


def ponder(n: int = 7) -> tuple[nn.Module, tuple[Any, ...]]:
    return Ponder(), (torch.randn(n, 12),)


class Itself(nn.Module):
    def forward(self, state: Any, k: int) -> Tensor:
        return state[0]


class Lockstep(nn.Module):
    """The items are tokens; a step looks at what every token of its sample, halted or not, has left in a memory."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.cell = nn.Linear(2 * d, d)
        self.loop = Loop("lockstep", self.step, lambda a, s, k: a[:, 0] > 0.2, 4, Itself(), scope="sample")

    def step(self, state: Any, k: int) -> Any:
        x, slot, memory = state
        left, tokens = memory.value
        seen = left.unflatten(0, (-1, tokens)).mean(1).index_select(0, slot // tokens)
        x = torch.tanh(x + self.cell(torch.cat([x, seen], 1)))
        ex = current()
        live = None if ex is None else ex.frame.live
        new = x if live is None else torch.where(live[:, None], x, left.index_select(0, slot))
        memory.value = left.index_copy(0, slot, new), tokens
        return x, slot, memory

    def forward(self, x: Tensor) -> Tensor:
        n, tokens = x.shape[:2]
        slot = torch.arange(n * tokens).view(n, tokens)
        return Each(self.loop)((x, slot, Shared((x.flatten(0, 1), tokens)))).sum(1)


def lockstep(n: int = 5) -> tuple[nn.Module, tuple[Any, ...]]:
    return Lockstep(), (torch.randn(n, 6, 8),)


class ScaledLinear(nn.Module):
    """Rows of [W | b] scaled per item."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.linear = nn.Linear(a, b)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.linear(x) if scale is None else self.linear(x) * scale

    def special(self, scale: Tensor) -> Callable[[Tensor], Tensor]:
        w, b = self.linear.weight * scale[:, None], self.linear.bias * scale
        return lambda x: nn.functional.linear(x, w, b)


class Generated(nn.Module):
    def __init__(self, d: int = 8, tasks: int = 3) -> None:
        super().__init__()
        self.tasks = nn.Embedding(tasks, d)
        self.layers = nn.ModuleList(
            Weights(f"task{i}", lambda c: c, lambda c: self.tasks(c), ScaledLinear(d, d), codes=tasks, together=i > 0)
            for i in range(2)
        )

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x, task))
        return x


def generated(n: int = 7) -> tuple[nn.Module, tuple[Any, ...]]:
    return Generated(), (torch.randn(n, 8), torch.randint(0, 3, (n,)))


class Hidden(nn.Module):
    """Two linear layers with a gated hidden layer; a channel that is not used drops a row, and a column."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(d, hidden), nn.Linear(hidden, d)

    def forward(self, given: Any, mask: Tensor | None = None) -> Tensor:
        """(x [n, d], scale [n, hidden] or None), mask [n, hidden] -> [n, d]."""
        x, scale = given
        h = torch.relu(self.up(x))
        if mask is not None:
            h = torch.where(mask, h if scale is None else h * scale, 0.0)
        return self.down(h)

    def special(self, mask: Tensor) -> Callable[..., Tensor]:
        """mask [hidden] -> a function of (x, scale), and of which of these channels each item uses."""
        i = mask.nonzero().squeeze(1)
        w, b, down = self.up.weight[i], self.up.bias[i], self.down.weight[:, i]

        def sliced(given: Any, inner: Tensor | None = None) -> Tensor:
            x, scale = given
            if i.shape[0] == 0:
                return self.down.bias.expand(x.shape[0], -1).clone()
            h = torch.relu(nn.functional.linear(x, w, b))
            h = h if scale is None else h * scale[:, i]
            h = h if inner is None else torch.where(inner, h, 0.0)
            return nn.functional.linear(h, down, self.down.bias)

        return sliced


def kept(scores: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, scores + 1, 0.0)


class Widths(nn.Module):
    """Skips around Widths: free masks with scales that follow the decision, then prefixes."""

    def __init__(self, d: int = 6) -> None:
        super().__init__()
        self.free = Width("free", nn.Linear(d, 10), Hidden(d, 10), weigh=kept)
        prefix = Width("prefix", nn.Linear(d, 5), Unweighed(d, 5), rule=longest, nested=True)
        self.skip = Skip("skip", lambda x, carry: (x[:, 0], carry), prefix)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.free(x, x.flip(1))
        return self.skip(x)[0]


class Unweighed(nn.Module):
    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.layer = Hidden(d, hidden)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.layer((x, None), mask)

    def special(self, mask: Tensor) -> Callable[..., Tensor]:
        sliced = self.layer.special(mask)
        return lambda x, inner=None: sliced((x, None), inner)


def longest(scores: Tensor) -> Tensor:
    """The channels up to the one with the highest score."""
    return torch.arange(scores.shape[1]) <= scores.argmax(1, keepdim=True)


def widths(n: int = 7) -> tuple[nn.Module, tuple[Any, ...]]:
    return Widths(), (torch.randn(n, 6),)


class Mixed(nn.Module):
    """A layer whose weights are a mixture of its own for every item."""

    def __init__(self, d: int, kernels: int) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(kernels, d, d))

    def forward(self, x: Tensor, shares: Tensor | None = None) -> Tensor:
        if shares is None:
            return x @ self.kernels.mean(0)
        return torch.einsum("nd,nk,kde->ne", x, shares, self.kernels)

    def special(self, shares: Tensor) -> Callable[[Tensor], Tensor]:
        w = torch.einsum("k,kde->de", shares, self.kernels)
        return lambda x: x @ w


class FirstOf(nn.Module):
    """A gate without memory."""

    def __init__(self, scores: nn.Module) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, x: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return self.scores(x)[:, 0], carry


class Mixture(nn.Module):
    def __init__(self, d: int = 6, kernels: int = 3, *, skip: bool = True) -> None:
        super().__init__()
        mixed = Weights("mixed", nn.Linear(d, kernels), lambda a: a.softmax(-1), Mixed(d, kernels), shared=False)
        self.layer = Skip("skip", FirstOf(nn.Linear(d, 1)), mixed) if skip else mixed

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y[0] if isinstance(y, tuple) else y


def mixture(n: int = 6) -> tuple[nn.Module, tuple[Any, ...]]:
    return Mixture(), (torch.randn(n, 6),)


def fixed_loop(n: int = 4) -> tuple[nn.Module, tuple[Any, ...]]:
    cell = mlp(6, 12)
    return Loop("fixed", lambda s, k: s + cell(s), None, 3), (torch.randn(n, 6),)


def one_expert(n: int = 8) -> tuple[nn.Module, tuple[Any, ...]]:
    """Route with k=1, unweighted, one of the experts being nothing."""
    return Route("pick", nn.Linear(6, 4), [mlp(6, 12), None, nn.Linear(6, 6), mlp(6, 6)]), (torch.randn(n, 6),)


class Informed(nn.Module):
    """A body with a Skip that was decided before: fewer items reach it than were decided about."""

    def __init__(self, inner: Skip) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, state: Any) -> Any:
        x, decided = state
        return self.inner(x, decided)[0] * 2, decided


class DecidedAhead(nn.Module):
    """One policy for four Skips of each stage: the bare ones, one with `otherwise`, one inside a Skip with a gate."""

    def __init__(self, k: int, d: int) -> None:
        super().__init__()
        self.plain = Skip(f"plain{k}", None, mlp(d, d), consumes=True)
        self.other = Skip(f"other{k}", None, mlp(d, d), nn.Linear(d, d))
        self.inner = Skip(f"inner{k}", None, mlp(d, d))
        self.outer = Skip(f"outer{k}", lambda s, carry: (s[0][:, 0], carry), Informed(self.inner))
        self.policy = Ahead(f"policy{k}", nn.Linear(d, 3), [self.plain, self.other, self.inner])

    def forward(self, x: Tensor) -> Tensor:
        decided = self.policy(x)
        x, decided = self.plain(x + 1, decided)
        x, decided = self.other(x, decided)
        return self.outer((x, decided))[0][0]


def ahead(n: int = 7, d: int = 8) -> tuple[nn.Module, tuple[Any, ...]]:
    heads = [nn.Linear(d, 3) for _ in range(3)]
    net = Exits("exit", [DecidedAhead(k, d) for k in range(3)], heads, lambda a, s, k: a.softmax(-1).amax(-1) > 0.5)
    return net, (2 * torch.randn(n, d),)


class Leaf(nn.Module):
    """A value of x, by word."""

    def __init__(self, d: int, words: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(words, d, d) / d**0.5)

    def forward(self, what: Any) -> Tensor:
        x, _, word = what
        return (self.weight[word] @ x[:, :, None]).squeeze(2)


class Sometimes(nn.Module):
    """A module of one argument that contains a Skip."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.skip = Skip("sometimes", lambda a, carry: (a[:, 0], carry), mlp(d, d))

    def forward(self, what: Any) -> Tensor:
        _, (a,), _ = what
        return torch.tanh(self.skip(a)[0])


class Pondering(nn.Module):
    """A module of x and one argument, with a Loop that halts."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.cell = nn.Linear(2 * d, d)
        self.loop = Loop("pondering", self.step, lambda a, s, k: a[:, 1] > 0.1, 3, Itself())

    def step(self, state: Any, k: int) -> Any:
        a, x = state
        return torch.tanh(self.cell(torch.cat([a, x], 1))), x

    def forward(self, what: Any) -> Tensor:
        x, (a,), _ = what
        return self.loop((a, x))


class Difference(nn.Module):
    def forward(self, what: Any) -> Tensor:
        _, (a, b), _ = what
        return a - b / 2


class Answer(nn.Module):
    """A head of none, one or two arguments."""

    def __init__(self, d: int, arguments: int) -> None:
        super().__init__()
        self.linear = nn.Linear(max(d * arguments, d), 3)

    def forward(self, what: Any) -> Tensor:
        x, args, _ = what
        return self.linear(torch.cat(args, 1) if args else x)


def random_layouts(n: int, nodes: int, ops: list[int], heads: list[int], words: int = 3, least: int = 1) -> Tensor:
    """Layouts [n, N, 4] of modules that take so many arguments, of any length."""
    pick = lambda options: int(options[int(torch.randint(len(options), ()))])  # noqa: E731
    layouts = torch.full((n, nodes, 4), -1)
    for layout in layouts:
        length = int(torch.randint(least, nodes + 1, ()))
        for j in range(length):
            last = j == length - 1
            takes, begin = (heads, len(ops)) if last else (ops, 0)
            op = pick([begin + e for e, t in enumerate(takes) if t == 0 or j > 0])
            layout[j, :2] = torch.tensor([op, pick(range(words))])
            for a in range(takes[op - begin]):
                layout[j, 2 + a] = pick(range(j))
    return layouts


class Composed(nn.Module):
    """Programs over modules with decision points inside; x [n, d], layouts [n, N, 4] or x [n, T, d], [n, T, N, 4]."""

    def __init__(self, d: int, nodes: int) -> None:
        super().__init__()
        ops = [
            Op(Leaf(d, 3), 0),
            Op(Sometimes(d), 1, looks=False),
            Op(Pondering(d), 1),
            Op(Difference(), 2, looks=False),
        ]
        heads = [Op(Answer(d, 0), 0), Op(Answer(d, 1), 1, looks=False), Op(Answer(d, 2), 2, looks=False)]
        self.program = Program("program", lambda layouts: layouts.cpu(), ops, heads, (d,), nodes)
        self.parts = Each(self.state)

    def state(self, state: Any) -> Tensor:
        return self.program(*state)

    def forward(self, x: Tensor, layouts: Tensor) -> Tensor:
        return self.program(x, layouts) if x.dim() == 2 else self.parts((x, layouts))


TAKES: tuple[list[int], list[int]] = ([0, 1, 1, 2], [0, 1, 2])


def programs(n: int = 8, d: int = 5, nodes: int = 6) -> tuple[nn.Module, tuple[Any, ...]]:
    return Composed(d, nodes), (torch.randn(n, d), random_layouts(n, nodes, *TAKES))


def programs_of_parts(n: int = 4, d: int = 5, nodes: int = 4, parts: int = 3) -> tuple[nn.Module, tuple[Any, ...]]:
    layouts = random_layouts(n * parts, nodes, *TAKES).unflatten(0, (n, parts))
    return Composed(d, nodes), (torch.randn(n, parts, d), layouts)


class Among(nn.Module):
    """Attention among the parts that are there, then what follows; or each part weighed."""

    def __init__(self, d: int, then: nn.Module | None) -> None:
        super().__init__()
        self.attn, self.then = Attention(d), then

    def forward(self, x: Tensor, there: Tensor | None, weights: Tensor | None = None) -> Tensor:
        attn = self.attn
        q, k, v = attn.qkv(x).unflatten(-1, (3, attn.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = None
        if there is not None:
            seen = torch.zeros(x.shape[:2], dtype=torch.bool).scatter(1, there, True)[:, None, None]
        y = nn.functional.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)
        x = x + attn.out(y if weights is None else y * weights.unsqueeze(-1))
        return x if self.then is None else self.then(x, there)


class First(nn.Module):
    """The first part's answer."""

    def forward(self, x: Tensor, there: Tensor | None) -> Tensor:
        return x[:, 0]


class Picking(nn.Module):
    """Parts that come back, weighed; then parts that are dropped, twice, one inside the other, all but the first."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.score = nn.Linear(d, 1)
        self.back = Pick("back", self.scores, Among(d, None), lambda t: t // 2, weigh=torch.tanh, back=True)
        inner = Pick("inner", self.others, Among(d, First()), lambda t: 2, always=1)
        self.drop = Pick("drop", self.others, Among(d, inner), lambda t: 4, always=1)

    def scores(self, x: Tensor, there: Tensor | None) -> Tensor:
        return self.score(x).squeeze(-1)

    def others(self, x: Tensor, there: Tensor | None) -> Tensor:
        return self.score(x[:, 1:]).squeeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.back(x))


def picking(n: int = 5, d: int = 8) -> tuple[nn.Module, tuple[Any, ...]]:
    return Picking(d), (torch.randn(n, 9, d),)


NETWORKS: dict[str, Callable[..., tuple[nn.Module, tuple[Any, ...]]]] = {
    f.__name__: f
    for f in (
        moe_exits,
        capacity_exits,
        pyramid,
        pyramid_channels_last,
        ponder,
        lockstep,
        generated,
        widths,
        mixture,
        fixed_loop,
        one_expert,
        picking,
        ahead,
        programs,
        programs_of_parts,
    )
}


def make(name: str, n: int | None = None, seed: int = 0) -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(seed)
    net, args = NETWORKS[name]() if n is None else NETWORKS[name](n)
    return net.eval(), args


@functools.cache
def _accepts(strategy: str, name: str) -> bool:
    return STRATEGIES[strategy]().refuses(make(name)[0]) is None


def accepted(strategies: Iterable[str] = DYNAMIC, without: Collection[str] = ()) -> list[tuple[str, str]]:
    """The (network, strategy) pairs that are not refused, but for some networks, to parametrize tests with."""
    networks = [name for name in NETWORKS if name not in without]
    return [(name, strategy) for name in networks for strategy in strategies if _accepts(strategy, name)]

"""Networks as people build them, each with something that gets in the way of copying, counting or looking inside."""

import warnings

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dynbench.dynamic import Exits, Loop, Skip

warnings.filterwarnings("ignore", category=DeprecationWarning)
warnings.filterwarnings("ignore", category=FutureWarning)


def sure(answer, state, k):
    return answer.softmax(-1).amax(-1) > 0.3


def layer(width=8):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU())


def exits(stage=layer, head=lambda: nn.Linear(8, 5), policy=sure):
    return Exits("exit", [stage() for _ in range(3)], [head() for _ in range(3)], policy)


def weight_norm():
    return exits(lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 8)), nn.ReLU()))


def spectral_norm():
    return exits(lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(8, 8)), nn.ReLU()))


def closure():
    cell = layer()
    return Loop("loop", lambda s, k: s + cell(s), lambda a, s, k: s.mean(1) > 0.1, 3)


class InFirstForward(nn.Module):
    """Makes a layer, a dropout and a table when it sees its input."""

    def forward(self, x):
        if not hasattr(self, "project"):
            self.project, self.drop = nn.Linear(x.shape[1], 8), nn.Dropout(0.5)
            self.table = nn.Parameter(torch.rand(8))
        return torch.relu(self.drop(self.project(x))) + self.table


def in_first_forward():
    return exits(InFirstForward)


def lazy():
    return exits(lambda: nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU()), lambda: nn.LazyLinear(5))


def lazy_static():
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(5))


class TiedTokens(nn.Module):
    """Token ids in; embedding and output layer share their weight."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        stages = [layer() for _ in range(3)]
        self.exits = Exits("exit", stages, [self.head] * 3, lambda a, s, k: a[:, -1].softmax(1).amax(1) > 0.15)

    def forward(self, tokens):
        return self.exits(self.embed(tokens))


def tied_tokens():
    return TiedTokens()


def scripted():
    return exits(lambda: torch.jit.script(layer()))


def traced():
    return exits(lambda: torch.jit.trace(layer(), torch.zeros(2, 8)))


def parallel():
    return nn.DataParallel(exits())


def compiled():
    return torch.compile(exits(), backend="eager")


def compiled_in_place():
    net = nn.Sequential(layer(), exits())
    net.compile(backend="eager")
    return net


def compiled_part():
    return nn.Sequential(layer(), torch.compile(nn.Sequential(layer(), exits()), backend="eager"))


def compiled_stages():
    return exits(lambda: torch.compile(layer(), backend="eager"))


def int8():
    return torch.ao.quantization.quantize_dynamic(exits().eval(), {nn.Linear})


class Packed(nn.Module):
    """Ids padded with 0, packed for the recurrence; the text is read again where it was not clear."""

    def __init__(self):
        super().__init__()
        self.embed, self.again = nn.Embedding(11, 8, padding_idx=0), Skip("again", Mean(), Reading(), consumes=False)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens):
        y, _ = self.again(self.embed(tokens))
        return self.head(y.mean(1))


class PackedState(nn.Module):
    """A packed sequence is what the point is given."""

    def __init__(self):
        super().__init__()
        self.embed, self.again = nn.Embedding(11, 8), Skip("again", MeanOfData(), nn.Identity())

    def forward(self, tokens):
        lengths = torch.full((tokens.shape[0],), tokens.shape[1])
        x, _ = self.again(pack_padded_sequence(self.embed(tokens), lengths, batch_first=True))
        return pad_packed_sequence(x, batch_first=True)[0]


class MeanOfData(nn.Module):
    def forward(self, x, carry):
        return x.data.mean(1)[: int(x.batch_sizes[0])], carry


def packed_state():
    return PackedState()


class Mean(nn.Module):
    def forward(self, x, carry):
        return x.mean((1, 2)), carry


class Reading(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x):
        lengths = x.abs().sum(2).ne(0).sum(1).clamp(min=1).cpu()
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])[0]


def packed():
    return Packed()


def static():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))


def whole_script():
    return torch.jit.script(static())


def features(split, seed=0):
    return np.random.default_rng(seed).normal(size=(64, 8)).astype("float32")


def tokens(split, seed=0):
    ids = np.random.default_rng(seed).integers(1, 11, (64, 6))
    ids[::3, 4:] = 0
    return ids

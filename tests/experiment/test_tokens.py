"""What each token of a language model costs, on a network whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dynbench.experiment import Options, load_spec
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.tokens import study_tokens

NET = '''
import torch
from torch import nn
from dynbench import Each, Skip


class Rare(nn.Module):
    """The body runs for tokens from 8 on."""

    def forward(self, x, carry):
        return x[:, 0] - 0.5, carry


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.skip = Each(Skip("skip", Rare(), nn.Linear(4, 4)))
        self.out = nn.Linear(4, 16)

    def forward(self, tokens):  # [n, T] -> [n, T, 16]
        x = torch.stack([(tokens >= 8).float(), tokens / 16, tokens * 0.0, tokens * 0.0], -1)
        x = self.skip(x)[0]
        return self.out(x)


def build():
    torch.manual_seed(0)
    return Net().eval()


def text(split, seed=0):
    return torch.arange(64).reshape(8, 8) % 16, None  # every other sample has only tokens from 8 on


def pictures(split, seed=0):
    return torch.rand(8, 4), None
'''


def prepared(folder: Path, inputs: str = "text", net: str = NET) -> Prepared:
    (folder / "net.py").write_text(net)
    file = folder / "net.toml"
    file.write_text(
        f'schema = 1\nname = "net"\ntitle = "Net"\nmodel = "net.py:build"\ninputs = {{ name = "net.py:{inputs}" }}\n'
        'run = { batch_sizes = [4], decisions = ["learned"], stream_samples = 8, accuracy_items = 0 }\n'
    )
    return prepare(load_spec(str(file)), Options())


def test_work_and_entropy_of_tokens_are_those_of_the_decisions(tmp_path: Path) -> None:
    found = study_tokens(prepared(tmp_path))
    assert found is not None and (found.samples, found.tokens) == (8, 8)
    assert found.spread > 0.1
    assert np.mean(found.by_position) == pytest.approx(1)
    assert found.by_position == pytest.approx([1.0] * 8)  # half of the samples run it at every place
    assert found.with_position is not None and found.with_position.value == pytest.approx(0, abs=1e-9)
    assert found.with_entropy is not None
    assert found.with_entropy.low <= found.with_entropy.value <= found.with_entropy.high
    assert len(found.by_entropy) == 8 and all(0 <= bits <= 4 for bits, _ in found.by_entropy)
    assert found.by_entropy == sorted(found.by_entropy)
    assert np.mean([work for _, work in found.by_entropy]) == pytest.approx(1)


def test_tokens_that_all_cost_the_same_have_no_spread(tmp_path: Path) -> None:
    found = study_tokens(prepared(tmp_path, net=NET.replace("x[:, 0] - 0.5", "x[:, 1] + 1")))
    assert found is not None and found.spread == pytest.approx(0)
    assert found.with_entropy is None and found.with_position is None


def test_what_is_no_sequence_of_tokens_is_not_studied(tmp_path: Path) -> None:
    net = NET.replace("[(tokens >= 8).float(), tokens / 16, tokens * 0.0, tokens * 0.0]", "[tokens] * 4")
    assert study_tokens(prepared(tmp_path, "pictures", net)) is None

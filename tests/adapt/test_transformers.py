"""Language models of transformers, from small configurations: the answers are the library's own."""

from __future__ import annotations

import builtins
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynbench.adapt.transformers import NextToken, causal_lm, early_exit, mixture_of_experts
from dynbench.dynamic import points
from dynbench.errors import UserError
from dynbench.experiment.networks import build_model
from dynbench.experiment.spec import load_spec
from tests.adapt.same_answer import TOLERANCE, assert_same_answer, difference, run
from tests.models.same_answer import decided_both_ways

SMALL: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QWEN = SMALL | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
MIXTURES = {
    "mixtral": SMALL | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": QWEN | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 20},
    "qwen3_moe": QWEN | {"model_type": "qwen3_moe", "head_dim": 8, "norm_topk_prob": True},
}
DEEP = SMALL | {"num_hidden_layers": 4}
DECODERS = {
    "llama": DEEP | {"model_type": "llama"},
    "qwen2": DEEP | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": DEEP | {"model_type": "qwen3", "head_dim": 8},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 31,
        "n_embd": 16,
        "n_layer": 4,
        "n_head": 2,
        "n_positions": 16,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
IDS = torch.randint(0, 31, (5, 4), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[0, :2] = MASK[3, :1] = 0


def made(configuration: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return causal_lm(configuration, 4)


def given(masked: bool, n: int = len(IDS)) -> tuple[Tensor, ...]:
    return (IDS[:n], MASK[:n]) if masked else (IDS[:n],)


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_mixture_of_experts_answers_as_the_library_does(kind: str) -> None:
    own = made(MIXTURES[kind])
    net = mixture_of_experts(copy.deepcopy(own.lm), 4)
    assert list(points(net)) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    with torch.inference_mode():
        for masked in (False, True):
            for n in (1, 5):
                want = own(*given(masked, n))
                for strategy in ("masking", "compaction", "per_sample"):
                    answer, trace = run(net, given(masked, n), strategy)
                    assert difference(answer, want) < TOLERANCE, (masked, n, strategy)
    assert trace.entries["model.layers.0.mlp", (4,)].value.shape == (20, 2)  # the items are the tokens
    assert decided_both_ways(trace)
    assert_same_answer(net, (IDS[:3],))


@pytest.mark.parametrize("kind", MIXTURES)
def test_its_weights_keep_their_names_and_form(kind: str) -> None:
    own = made(MIXTURES[kind])
    net = mixture_of_experts(copy.deepcopy(own.lm), 4)
    state = own.lm.state_dict()
    assert net.lm.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.lm.state_dict().items())
    changed = {name: tensor + 0.01 for name, tensor in state.items()}
    net.lm.load_state_dict(changed)
    own.lm.load_state_dict(changed)
    with torch.inference_mode():
        assert difference(run(net, (IDS,), "compaction")[0], own(IDS)) < TOLERANCE


def test_its_experts_share_the_memory_of_the_stacks() -> None:
    lm = made(MIXTURES["mixtral"]).lm
    stack = lm.model.layers[0].mlp.experts.down_proj
    net = mixture_of_experts(lm, 4)
    experts = points(net)["model.layers.0.mlp"].experts
    assert [e.down.data_ptr() for e in experts] == [row.data_ptr() for row in stack]


@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "masked"])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_with_early_exit_is_the_library_s_until_it_leaves(kind: str, masked: bool) -> None:
    own = made(DECODERS[kind])
    net = early_exit(copy.deepcopy(own.lm), exits=[1, 3], threshold=0.4, context=4, masked=masked)
    assert points(net)["exit"].exits == 3
    with torch.inference_mode():
        for n in (1, 5):
            assert torch.equal(net(*given(masked, n)), NextToken(own.lm, 4).eval()(*given(masked, n)))
            assert difference(net(*given(masked, n)), own(*given(masked, n))[:, -1]) < TOLERANCE
    if kind in ("llama", "gpt2"):
        assert_same_answer(net, given(masked), ("all", "random"))


def test_an_early_answer_is_the_model_s_own_output_layer_s() -> None:
    own = made(DECODERS["llama"])
    net = early_exit(copy.deepcopy(own.lm), exits=[2], threshold=0.0, context=4)
    shallow = copy.deepcopy(own)
    shallow.lm.model.layers = shallow.lm.model.layers[:2]
    with torch.inference_mode():
        assert difference(run(net, (IDS,), "cascading")[0], shallow(IDS)[:, -1]) < TOLERANCE


def test_a_mixture_of_experts_may_have_exits_as_well() -> None:
    own = made(MIXTURES["mixtral"] | {"num_hidden_layers": 3})
    net = early_exit(mixture_of_experts(copy.deepcopy(own.lm), 4).lm, exits=[1, 2], threshold=0.4, context=4)
    assert len(points(net)) == 4
    assert_same_answer(net, (IDS[:3],))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    made(MIXTURES["qwen3_moe"]).lm.save_pretrained(path)
    return path


def test_a_folder_is_loaded(folder: Path) -> None:
    own, net = causal_lm(str(folder), 4), mixture_of_experts(folder, 4)
    with torch.inference_mode():
        assert torch.equal(own(IDS), made(MIXTURES["qwen3_moe"])(IDS))
        assert difference(run(net, (IDS,), "compaction")[0], own(IDS)) < TOLERANCE


def test_a_workload_names_the_function_and_the_folder(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "qwen.toml"
    file.write_text(
        f"""schema = 1
name = "qwen"
title = "A small mixture of experts"
model = "dynbench.adapt.transformers:mixture_of_experts"
model_args = {{ source = "{folder}", context = 4 }}
inputs = {{ name = "text", options = {{ context = 4 }} }}
"""
    )
    spec = load_spec(str(file))
    model = build_model(spec, spec.folder)
    assert not model.training
    assert model.input_shape(()) == (4,)


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no folder": (causal_lm, {"source": "no/such/folder"}, "source='no/such/folder': no folder with a config.json"),
    "a kind": (causal_lm, {"source": SMALL | {"model_type": "mixtrel"}}, "model_type='mixtrel' .*did you mean mixtral"),
    "no kind": (causal_lm, {"source": SMALL}, "model_type=None is none that transformers .* such as 'mixtral'"),
    "context": (causal_lm, {"source": DECODERS["llama"], "context": 17}, "context=17: 1 to 16 tokens"),
    "no experts": (mixture_of_experts, {"source": DECODERS["llama"]}, "LlamaForCausalLM has no mixture of experts"),
    "layers": (early_exit, {"source": DECODERS["llama"], "exits": [4]}, r"exits=\[4\]: .* from 1 to 3"),
    "no layer": (early_exit, {"source": DECODERS["llama"], "exits": []}, r"exits=\[\]: .* from 1 to 3"),
    "threshold": (early_exit, {"source": DECODERS["llama"], "threshold": 7}, r"confident\(7\): a probability"),
    "scaled logits": (
        early_exit,
        {"source": DEEP | {"model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": 1.0}},
        "Gemma2ForCausalLM does more than its decoder and output layer",
    ),
    "another decoder": (
        early_exit,
        {"source": DEEP | {"model_type": "opt", "ffn_dim": 24, "word_embed_proj_dim": 16}},
        "OPTForCausalLM is not built as decoders usually are",
    ),
    "other experts": (
        mixture_of_experts,
        {"source": MIXTURES["mixtral"] | {"model_type": "jetmoe"}},
        "has no mixture of experts|experts are taken apart that have",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_adapted_is_said_in_a_sentence(what: str) -> None:
    make, change, sentence = WRONG[what]
    with pytest.raises(UserError, match=sentence) as said:
        make(**{"context": 4} | change)
    assert "\n" not in str(said.value)


def test_without_the_package_the_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'dynbench\[transformers\]'"):
        causal_lm(DECODERS["llama"], 4)

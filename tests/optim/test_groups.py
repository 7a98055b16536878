"""Every parameter has one role, and only matrices have weight decay."""

from typing import Any

import pytest
import torch
from families import SHAPES, shape
from torch import nn

from pretrain.errors import ConfigError
from pretrain.optim.config import AdamWConfig, MuonConfig, OptimizerConfig, StableAdamWConfig
from pretrain.optim.groups import group_table, parameter_names


def role(name: str, tie_embeddings: bool) -> str:
    """The rule, written against names rather than modules."""
    vectors = ("norm", "_scale.", "value_embedding")
    if name.startswith("blocks.") and not any(part in name for part in vectors) and name.endswith("weight"):
        return "matrices"
    if name == "head.dense.weight" or (name == "head.weight" and not tie_embeddings):
        return "head"
    return "rest"


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_every_parameter_is_in_exactly_one_list(family: str, tie_embeddings: bool) -> None:
    model = shape(family, tie_embeddings=tie_embeddings).build(50, causal=True)
    names = parameter_names(model)
    everything = dict(model.named_parameters())
    assert sorted(names.matrices + names.head + names.rest) == sorted(everything)
    for role_name in ("matrices", "head", "rest"):
        assert getattr(names, role_name) == [name for name in everything if role(name, tie_embeddings) == role_name]
    assert all(everything[name].ndim == 2 for name in names.matrices)
    assert ("head.weight" in everything) is not tie_embeddings


@pytest.mark.parametrize("family", sorted(SHAPES.keys() - {"mup"}))  # which scales rates and decay: test_mup.py
@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig()])
def test_norms_biases_and_embeddings_do_not_decay(family: str, tie_embeddings: bool, config: OptimizerConfig) -> None:
    config = type(config)(learning_rate=0.01, weight_decay=0.5)
    model = shape(family, tie_embeddings=tie_embeddings).build(50, causal=True)
    optimizer = config.build(model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if role(name, tie_embeddings) == "rest" else 0.5), name
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}


def test_vectors_of_a_model_of_your_own_do_not_decay() -> None:
    """Norms are norms under any name, such as ln_1 of nanoGPT."""
    model = nn.Module()
    model.ln_1, model.lm_head = nn.LayerNorm(4), nn.Linear(4, 6, bias=False)
    model.gain = nn.Parameter(torch.ones(4))
    names = parameter_names(model)
    assert (names.matrices, names.head) == ([], ["lm_head.weight"])
    assert sorted(names.rest) == ["gain", "ln_1.bias", "ln_1.weight"]


def test_muon_takes_the_matrices_of_the_blocks_at_a_rate_of_their_own() -> None:
    model = shape("llama").build(50, causal=True)
    config = MuonConfig(
        learning_rate=0.01, matrix_learning_rate_ratio=3.0, momentum=0.9, beta1=0.8, beta2=0.7, eps=1e-9
    )
    optimizer = config.build(model)
    first, *others = optimizer.param_groups
    assert first["matrices"] is True
    assert [first["lr"], first["momentum"], first["newton_schulz_steps"]] == [pytest.approx(0.03), 0.9, 5]
    assert len(first["params"]) == 2 * 7
    assert [group["matrices"] for group in others] == [False, False]
    assert [(group["lr"], group["betas"], group["eps"]) for group in others] == [(0.01, (0.8, 0.7), 1e-9)] * 2


def test_a_rate_over_that_of_the_optimizer_is_one_over_that_of_the_matrices() -> None:
    groups = {"ups": {"match": ["*.up.weight"], "learning_rate_ratio": 0.5}}
    config = MuonConfig(learning_rate=0.01, matrix_learning_rate_ratio=3.0, groups=groups)
    model = shape("llama").build(50, causal=True)
    up = model.get_parameter("blocks.0.feed_forward.up.weight")
    rates = [group["lr"] for group in config.build(model).param_groups if any(each is up for each in group["params"])]
    assert rates == [pytest.approx(0.015)]


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig()])
def test_a_model_without_blocks_has_no_empty_group(config: OptimizerConfig) -> None:
    optimizer = config.build(nn.Sequential(nn.Embedding(5, 4)))
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]
    optimizer.param_groups[0]["params"][0].grad = torch.ones(5, 4)
    optimizer.step()


def test_an_optimizer_of_no_kind_cannot_be_built() -> None:
    with pytest.raises(TypeError, match=r"optimizer '\?' has no build\(\)"):
        OptimizerConfig().build(nn.Linear(1, 1))


GROUPED = {
    "embedding": {"match": ["*embedding*"], "learning_rate_ratio": 3.0, "betas": [0.8, 0.9]},
    "queries": {"match": ["*query.weight", "*key.weight"], "weight_decay": 0.0, "learning_rate": 0.5},
    "attention": {"match": ["blocks.*.attention.*"], "learning_rate_ratio": 0.5},
}


@pytest.mark.parametrize("kind", [AdamWConfig, StableAdamWConfig, MuonConfig])
def test_groups_by_patterns_change_what_they_name_and_the_first_wins(kind: type[AdamWConfig]) -> None:
    groups = GROUPED if kind is not MuonConfig else {**GROUPED, "attention": {**GROUPED["attention"], "betas": None}}
    model = shape("llama").build(50, causal=True)
    optimizer = kind(learning_rate=0.01, weight_decay=0.3, groups=groups).build(model)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found = {name: of[id(parameter)] for name, parameter in model.named_parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(of) == len(found)
    for name, group in found.items():
        is_matrix = role(name, False) != "rest"
        rate, decay, betas = 0.01, 0.3 if is_matrix else 0.0, (0.9, 0.95)
        if "embedding" in name:
            rate, betas = 0.03, (0.8, 0.9)
        elif name.endswith(("query.weight", "key.weight")):
            rate, decay = 0.5, 0.0
        elif ".attention." in name:
            rate = 0.005
        assert (group["lr"], group["weight_decay"], group["betas"]) == (pytest.approx(rate), decay, betas), name
    table = group_table(optimizer, model)
    assert len(table) == len(optimizer.param_groups)
    assert any("learning rate 0.5, weight decay 0" in line and "query.weight and" in line for line in table)


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ({"a": {"match": ["*.quary.weight"]}}, r"groups\.a\.match=\*\.quary\.weight matches no trained parameter\. "
         r"Names near it: .*query\.weight"),
        ({"a": {"match": ["*"], "weight_decay": 0.1}, "b": {"match": ["*query*"], "weight_decay": 0.0}},
         r"groups\.b\.match=\[\*query\*\] gets no parameter: .* optimizer\.groups\.a has all .* a name after b: "
         r"optimizer\.groups\.a=null 'optimizer\.groups\.a_others=\{match: \[\"\*\"\], weight_decay: 0\.1\}'\."),
        ({"a": {"match": ["*norm*"]}, "b": {"match": ["*.up.*"]}, "c": {"match": ["*final_norm*", "*0.*.up.*"]}},
         r"groups\.c\.match=.* optimizer\.groups\.a and optimizer\.groups\.b have all of these"),
        ({"a": {"match": []}}, r"groups\.a\.match=\[\] is not a list of patterns"),
        ({"a": {"weight_decay": 0.0}}, r"groups\.a\.match=null is not a list of patterns"),
        ({"a": 3}, r"groups\.a=3 is not a group\. Write"),
        ({"a": {"match": ["*"], "weight_decays": 0.0}}, r"weight_decays is not a setting of a group.*weight_decay"),
        ({"a": {"match": ["*"], "betas": [0.9]}}, r"groups\.a\.betas=\[0\.9\] is not a pair .*betas=\[0\.9,0\.95\]"),
        ({"a": {"match": ["*"], "learning_rate": 0}}, r"groups\.a\.learning_rate=0 .*Try optimizer\.groups\.a\."),
        ({"a": {"match": ["*"], "learning_rate": 1.0, "learning_rate_ratio": 2.0}}, r"give one rate in two ways"),
        ({"a": {"match": ["*query*"], "betas": [0.9, 0.9]}}, r"no meaning for blocks\.0\..*, a matrix that Muon"),
    ],
)  # fmt: skip
def test_wrong_groups_are_refused(groups: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        MuonConfig(groups=groups).build(shape("llama").build(50, causal=True))

"""muP: at the base width nothing changes; wider models start and learn with activations of one size."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from families import CAUSAL, SHAPES, random_model, shape
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from pretrain.errors import ConfigError
from pretrain.interop.width_factors import standard_shape
from pretrain.models.choices import Parametrization
from pretrain.models.config import TransformerConfig
from pretrain.models.init import initial_tensor, initialize
from pretrain.models.lora import add_adapters
from pretrain.models.lora_config import LoraConfig
from pretrain.models.transformer import LabelHead, Transformer
from pretrain.optim.config import AdamWConfig, MuonConfig, StableAdamWConfig, UpdateScale

WIDTHS = (64, 128, 256, 512)


def mup(config: TransformerConfig, **changes: Any) -> TransformerConfig:
    return replace(config, parametrization=Parametrization.mup, **changes)


@pytest.mark.parametrize("family", SHAPES)
def test_at_the_base_width_it_is_the_standard_parametrization(family: str) -> None:
    plain = standard_shape(shape(family))
    ours = mup(plain, base_width=plain.d_model, base_head_dim=plain.attention_head_dim)
    assert not ours.differences(plain)
    models = [config.build(50, family in CAUSAL).eval() for config in (plain, ours)]
    for model, config in zip(models, (plain, ours), strict=True):
        initialize(model, config, 0)
    tokens = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(*(model.head(model(tokens)) for model in models))
    for optimizer in (AdamWConfig(), MuonConfig(), StableAdamWConfig()):
        groups = [
            [(g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.build(m).param_groups] for m in models
        ]
        assert groups[0] == groups[1]


def test_initial_weights_scores_and_logits_follow_the_width() -> None:
    config = mup(shape("bert"), base_width=8, base_head_dim=2)  # 4 times as wide, heads too
    assert config.width_multiplier == 4.0
    assert config.score_scale == pytest.approx(2**-0.5 / 4)
    assert replace(config, attention_scale=0.5).score_scale == pytest.approx(0.5 / 4)
    size = torch.Size([300, 200])
    for name, factor in {
        "blocks.0.attention.query.weight": 0.5, "blocks.1.feed_forward.up.weight": 0.5, "head.dense.weight": 0.5,
        "embeddings.tokens.weight": 1.0, "head.weight": 1.0, "blocks.1.attention.value_embedding.weight": 1.0,
    }.items():  # fmt: skip
        assert_close(initial_tensor(name, size, config, 0), factor * initial_tensor(name, size, shape("bert"), 0))
    model = random_model(config, 50, causal=False)
    hidden = torch.randn(3, 32)
    assert model.head.norm is not None
    assert model.head.dense is not None
    features = model.head.norm(torch.nn.functional.gelu(model.head.dense(hidden)))
    assert_close(model.head(hidden), features @ model.head.weight.T / 4 + model.head.bias)
    labels, plain = (LabelHead(each, 3) for each in (config, shape("bert")))
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter)
    labels.load_state_dict(plain.state_dict())
    assert plain.bias is not None
    assert_close(labels(hidden), (plain(hidden) - plain.bias) / 4 + plain.bias)


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        (AdamWConfig, 0.25),
        (StableAdamWConfig, 0.25),
        (MuonConfig, 0.5),
        (partial(MuonConfig, update_scale=UpdateScale.spectral), 1.0),  # of one spectral norm at every width
    ],
)
def test_rates_of_matrices_follow_the_width(
    kind: Callable[..., AdamWConfig], factor: float, tie_embeddings: bool
) -> None:
    """Rate times decay stays; embeddings, the head, norms and biases keep their rate; groups of the user's count."""
    model = mup(shape("gpt", tie_embeddings=tie_embeddings), base_width=8).build(50, causal=True)
    groups = {"up": {"match": ["*up.weight"], "learning_rate": 0.02}}
    optimizer = kind(learning_rate=0.01, weight_decay=0.5, groups=groups).build(model)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") and name.endswith("weight") and "norm" not in name:
            rate = 0.02 if "up" in name else 0.01
            assert found[id(parameter)] == (pytest.approx(rate * factor), pytest.approx(0.5 / factor)), name
        else:
            assert found[id(parameter)] == (0.01, 0.5 if name == "head.weight" else 0.0), name
    dense = mup(shape("bert"), base_width=8).build(50, causal=False)  # AdamW has it with every optimizer
    groups = kind(learning_rate=0.01, weight_decay=0.5).build(dense).param_groups
    rates = [(g["lr"], g["weight_decay"]) for g in groups if any(p is dense.head.dense.weight for p in g["params"])]
    assert rates == [pytest.approx((0.0025, 2.0))]


@pytest.mark.parametrize("kind", [AdamWConfig, MuonConfig])
def test_rates_of_adapters_follow_the_width_that_they_read(kind: type[AdamWConfig]) -> None:
    """Of `a` (rank, width), as of matrices under AdamW; not of `b` (width, rank)."""
    model = mup(shape("gpt"), base_width=8).build(50, causal=True)
    add_adapters(model, LoraConfig(rank=2))
    optimizer = kind(learning_rate=0.01, weight_decay=0.5).build(model)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert len(found) == len(trained) > 0
    for name, parameter in trained.items():
        expected = (0.0025, 2.0) if name.endswith(".lora.a") else (0.01, 0.5)
        assert found[id(parameter)] == pytest.approx(expected), name


@pytest.mark.parametrize("base", [8, 32])
def test_scaled_embeddings_are_of_one_size_at_every_width(base: int) -> None:
    config = mup(shape("gemma"), base_width=base)
    embeddings = config.build(50, causal=True).embeddings
    tokens = torch.arange(10).unsqueeze(0)
    assert_close(embeddings(tokens, tokens), embeddings.tokens(tokens) * base**0.5)


def changes_of_logits(parametrization: Parametrization, kind: type[AdamWConfig]) -> list[float]:
    """Return for each width how far five steps at one rate move the logits: their root mean square."""
    tokens = torch.randint(64, (4, 33), generator=torch.Generator().manual_seed(0))
    sizes = []
    for width in WIDTHS:
        plain = TransformerConfig(n_layers=2, d_model=width, n_heads=width // 32, d_ff=2 * width, context_length=32)
        config = mup(plain, base_width=64) if parametrization is Parametrization.mup else plain
        model = config.build(64, causal=True)
        initialize(model, config, 0)
        optimizer = kind(learning_rate=0.01, weight_decay=0.0).build(model)
        before = logits(model, tokens).detach()
        for _ in range(5):
            cross_entropy(logits(model, tokens).flatten(0, 1), tokens[:, 1:].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
        sizes.append(float((logits(model, tokens).detach() - before).square().mean().sqrt()))
    return sizes


def logits(model: Transformer, tokens: Tensor) -> Tensor:
    found: Tensor = model.head(model(tokens[:, :-1]))
    return found


@pytest.mark.long
@pytest.mark.parametrize("kind", [AdamWConfig, MuonConfig])
def test_steps_move_the_logits_as_far_at_every_width(kind: type[AdamWConfig]) -> None:
    """The coordinate check of Yang et al. 2022, appendix D.1: the standard one moves wide models further."""
    ours, plain = (changes_of_logits(each, kind) for each in (Parametrization.mup, Parametrization.standard))
    assert max(ours) < 1.6 * min(ours), ours
    assert plain[-1] > 2.0 * plain[0], plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parametrization": Parametrization.mup}, r"model.base_width=null .* Try model.base_width=256\."),
        (
            {"base_width": 8},
            r"model.base_width=8 is of muP, .* Try model.parametrization=mup, or model.base_width=null",
        ),
        ({"base_head_dim": 8}, r"model.base_head_dim=8 is of muP"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shape("gpt", **changes)


def test_another_base_width_computes_something_else() -> None:
    config = mup(shape("gpt"), base_width=8)
    assert config.differences(mup(shape("gpt"), base_width=16)) == {"base_width": (8, 16)}
    assert config.differences(shape("gpt")) == {"base_width": (8, None)}

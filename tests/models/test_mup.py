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
from pretrain.models.transformer import Transformer
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

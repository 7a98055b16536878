"""Initial weights depend on the seed and the parameter name alone, and have the expected std."""

import math

import pytest
import torch
from families import shape
from torch.testing import assert_close

from pretrain.models.choices import Init, ResidualInit
from pretrain.models.init import initial_tensor, initialize

BIG = torch.Size([300, 200])


def test_the_draw_depends_on_the_seed_and_the_name_alone() -> None:
    config = shape("gpt")
    models = []
    for _ in range(2):
        torch.rand(7)  # the global generator is of no account
        model = config.build(50, causal=True)
        initialize(model, config, seed=3)
        models.append(dict(model.named_parameters()))
    before = torch.get_rng_state()
    for name, parameter in models[0].items():
        assert torch.equal(parameter, models[1][name])
        assert torch.equal(parameter, initial_tensor(name, parameter.shape, config, seed=3))
    assert torch.equal(before, torch.get_rng_state())
    deeper = shape("gpt", n_layers=2, n_heads=2, context_length=64)  # other settings, same names
    assert torch.equal(initial_tensor("blocks.0.attention.key.weight", BIG, config, 3),
                       initial_tensor("blocks.0.attention.key.weight", BIG, deeper, 3))  # fmt: skip
    draws = [initial_tensor(name, BIG, config, seed) for seed in (3, 4) for name in ("a.weight", "b.weight")]
    assert all(not torch.equal(one, two) for i, one in enumerate(draws) for two in draws[:i])
    correlations = torch.corrcoef(torch.stack([draw.flatten() for draw in draws])) - torch.eye(4)
    assert correlations.abs().max() < 0.02


@pytest.mark.parametrize("family", ["gpt", "llama", "bert", "modern_bert"])
def test_biases_start_at_zero_and_norms_at_one(family: str) -> None:
    config = shape(family)
    model = config.build(50, causal=True)
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    initialize(model, config, seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert 0 < parameter.std() < 0.03, name
            assert parameter.isfinite().all(), name


@pytest.mark.parametrize("residual", list(ResidualInit))
def test_matrices_that_write_into_the_stream_are_scaled(residual: ResidualInit) -> None:
    config = shape("gpt", n_layers=8, init_std=0.05, residual_init=residual)
    into = {ResidualInit.plain: 0.05, ResidualInit.scaled: 0.05 / 4, ResidualInit.zero: 0.0}[residual]
    for name, std in {
        "blocks.7.attention.output.weight": into,
        "blocks.0.feed_forward.down.weight": into,
        "blocks.0.attention.value.weight": 0.05,
        "blocks.0.feed_forward.up.weight": 0.05,
        "embeddings.tokens.weight": 0.05,
        "head.weight": 0.05,
    }.items():
        values = initial_tensor(name, BIG, config, 0)
        assert values.dtype == torch.float32
        assert values.std().item() == pytest.approx(std, rel=0.02)
        assert abs(values.mean().item()) <= 4 * std / math.sqrt(values.numel())


def test_a_zero_start_makes_every_block_the_identity() -> None:
    config = shape("gpt", residual_init=ResidualInit.zero)
    model = config.build(50, causal=True)
    initialize(model, config, seed=0)
    tokens = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        assert_close(model(tokens), model.final_norm(model.embeddings(tokens, tokens)))


def test_a_truncated_normal_ends_at_two_standard_deviations() -> None:
    cut = initial_tensor("a.weight", BIG, shape("gpt", init=Init.truncated_normal), 0)
    assert 0.0395 < cut.abs().max() <= 0.04
    assert cut.std().item() == pytest.approx(0.02 * 0.8796, rel=0.02)  # of a normal cut at two of its deviations
    assert initial_tensor("a.weight", BIG, shape("gpt"), 0).abs().max() > 0.06

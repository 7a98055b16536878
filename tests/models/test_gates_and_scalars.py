"""Attention gates, value embeddings and residual scalars: formulas, initial values, counts, exact resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import random_model, shape
from same_state import assert_same_state
from torch.testing import assert_close

from pretrain.errors import ConfigError
from pretrain.interop.families import FAMILIES
from pretrain.models.attention import attend
from pretrain.models.choices import AttentionGate, ResidualInit
from pretrain.models.config import TransformerConfig
from pretrain.models.init import initial_tensor, initialize
from pretrain.models.masks import build_mask
from pretrain.models.size import training_flops_per_token
from pretrain.models.transformer import TokenInputs
from pretrain.training.train import run

TOKENS = torch.randint(50, (2, 6), generator=torch.Generator().manual_seed(1))
MASK = build_mask(True, None, None, 6, TOKENS.device)


@pytest.mark.parametrize("gate", list(AttentionGate))
@torch.no_grad()
def test_gate_and_value_embedding_equal_their_formulas(gate: AttentionGate) -> None:
    """Four heads of eight channels, two of keys and values; the second of two layers has the embedding."""
    model = random_model(shape("gated", attention_gate=gate, qk_norm=False), 50, True)
    assert model.blocks[0].attention.value_embedding is None
    attention = model.blocks[1].attention
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(2))
    q, k, v = (part.unflatten(-1, (-1, 8)).transpose(1, 2) for part in attention.project(x))
    for head in range(2):
        share = 2 / (1 + (-x @ attention.value_gate.weight[head]).exp())
        v[:, head] += share.unsqueeze(-1) * attention.value_embedding.weight[TOKENS][..., 8 * head : 8 * head + 8]
    y = attend(q, k, v, MASK, 0.0)
    for head in range(4):
        if gate is AttentionGate.head:
            y[:, head] /= 1 + (-x @ attention.gate.weight[head]).exp().unsqueeze(-1)
        if gate is AttentionGate.channel:
            y[:, head] /= 1 + (-x @ attention.gate.weight[8 * head : 8 * head + 8].T).exp()
    assert_close(attention(x, MASK, None, None, TOKENS), attention.output(y.transpose(1, 2).flatten(2)))


@torch.no_grad()
def test_a_block_reads_the_scaled_stream_and_the_scaled_embeddings() -> None:
    block = random_model(shape("gated"), 50, True).blocks[0]
    plain = random_model(shape("gated", residual_scalars=False), 50, True).blocks[0]
    plain.load_state_dict({name: value for name, value in block.state_dict().items() if "_scale" not in name})
    x, embedded = torch.randn(2, 2, 6, 32, generator=torch.Generator().manual_seed(3)).unbind()
    mixed = block.residual_scale.weight * x + block.embedding_scale.weight * embedded
    inputs = TokenInputs(TOKENS, embedded)
    assert_close(block(x, MASK, None, None, inputs), plain(mixed, MASK, None, None, inputs))


def test_the_last_layer_has_a_value_embedding_and_so_every_second_before_it() -> None:
    def layers(n_layers: int, every: int) -> list[int]:
        config = shape("llama", n_layers=n_layers, value_embeddings_every=every)
        return [layer for layer in range(n_layers) if config.has_value_embedding(layer)]

    assert layers(6, 2) == [1, 3, 5]
    assert layers(5, 2) == [0, 2, 4]
    assert layers(5, 3) == [1, 4]
    assert layers(3, 1) == [0, 1, 2]
    assert layers(3, 0) == []


@torch.no_grad()
def test_scalars_and_value_gates_start_without_an_effect() -> None:
    """The stream times 1 and no embeddings; a value embedding times 1."""
    config = shape("gated", norm_unit_offset=True)
    model = config.build(50, True)
    initialize(model, config, 0)
    for block in model.blocks:
        assert (block.residual_scale.weight.item(), block.embedding_scale.weight.item()) == (1.0, 0.0)
    assert not model.blocks[1].attention.value_gate.weight.any()
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(4))
    added = model.blocks[1].attention._token_values(x, TOKENS)
    assert_close(added.transpose(1, 2).flatten(2), model.blocks[1].attention.value_embedding(TOKENS))


@pytest.mark.parametrize(("embedding", "head"), [(None, None), (1.0, 0.0), (0.3, 0.1)])
def test_embedding_and_head_start_with_deviations_of_their_own(embedding: float | None, head: float | None) -> None:
    config = shape("gpt", tie_embeddings=False, embedding_init_std=embedding, head_init_std=head)
    big = torch.Size([300, 200])
    expected = {"embeddings.tokens": embedding, "head": head, "embeddings.positions": None, "blocks.0.up": None}
    for name, std in expected.items():
        found = initial_tensor(f"{name}.weight", big, config, 0).std().item()
        assert found == pytest.approx(0.02 if std is None else std, rel=0.02), name
    assert config.differences(shape("gpt", tie_embeddings=False)) == {}  # the same weights compute the same


@torch.no_grad()
def test_zero_writers_and_a_zero_head_start_at_the_uniform_distribution() -> None:
    config = shape("gated", residual_init=ResidualInit.zero, head_init_std=0.0)
    model = config.build(50, True)
    initialize(model, config, 0)
    assert_close(F.log_softmax(model.head(model(TOKENS)), -1).exp(), torch.full((2, 6, 50), 1 / 50))


def test_operations_count_the_matmuls_of_the_gates() -> None:
    """Of two layers of 32 channels, with four heads of eight, and two of keys and values in the second."""
    plain = training_flops_per_token(shape("llama"), 50)
    of = {
        "head": shape("llama", attention_gate=AttentionGate.head),
        "channel": shape("llama", attention_gate=AttentionGate.channel),
        "values": shape("llama", value_embeddings_every=2),
        "scalars": shape("llama", residual_scalars=True),
    }
    extra = {name: training_flops_per_token(config, 50) - plain for name, config in of.items()}
    assert extra == {"head": 6 * 2 * 32 * 4, "channel": 6 * 2 * 32 * 32, "values": 6 * 32 * 2, "scalars": 0}


@pytest.mark.parametrize(
    "setting", [{"attention_gate": AttentionGate.head}, {"value_embeddings_every": 1}, {"residual_scalars": True}]
)
def test_no_architecture_of_transformers_has_them(setting: dict[str, Any]) -> None:
    config: TransformerConfig = shape("llama", **setting)
    assert all(setting.keys() <= family.obstacles(config).keys() for family in FAMILIES)


@pytest.mark.long
def test_resume_is_exact_and_another_base_width_is_refused(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model.attention_gate=head", "model.value_embeddings_every=2", "model.residual_scalars=true"]
    words += ["model.tie_embeddings=false", "model.head_init_std=0.0", "model.embedding_init_std=1.0"]
    words += ["model.parametrization=mup", "model.base_width=8", "optimizer=muon", "optimizer.learning_rate=0.01"]
    words += ["trainer.max_steps=6", "checkpoint.every_n_steps=3", "checkpoint.keep=0"]
    whole = Path(run(tiny.plan(*words, f"paths.run_dir={tmp_path / 'whole'}")).folder)
    told = "export is not possible: no supported architecture of transformers computes exactly this model, because of "
    assert f"{told}model.attention_gate=head" in capsys.readouterr().out
    copy = tmp_path / "copy" / "checkpoints"
    copy.mkdir(parents=True)
    (whole / "checkpoints" / "step-00000003").rename(copy / "step-00000003")
    resumed = Path(run(tiny.plan(*words, "resume=auto", f"paths.run_dir={tmp_path / 'copy'}")).folder)
    assert_same_state(whole, resumed)
    starts = [*words, f"init_from={whole}", f"paths.run_dir={tmp_path / 'start'}"]
    for changed, before in (
        ("base_width=4", "base_width=8"),
        ("d_model=32", "d_model=16"),
        ("attention_gate=none", "attention_gate=head"),
    ):
        with pytest.raises(ConfigError, match=f"has model.{before}, .* this run has model.{changed}"):
            run(tiny.plan(*starts, f"model.{changed}"))
    with pytest.raises(ConfigError, match=r"model\.base_width"):
        tiny.plan(*words, f"resume={whole}", "model.base_width=4")

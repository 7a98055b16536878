"""A plain nn.Module as a model: its inputs, its state, and runs that it does not support."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from pretrain.errors import ConfigError
from pretrain.inference.dtype import count_parameters, prepare_for_inference
from pretrain.inference.generate import Decoding, generate_tokens
from pretrain.inference.sampling import Sampling
from pretrain.models.config import ModelConfig, transformer_of
from pretrain.models.interface import allocate, blocks_of, build_model, hidden_states, inputs_of
from pretrain.parallel.mesh import load_parameters


class Sums(nn.Module):
    """The hidden state of a position is the mean of the embeddings so far, times a buffer."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, 8)
        self.head = nn.Linear(8, vocab_size)
        self.head.weight = self.tokens.weight
        self.register_buffer("scale", torch.arange(1.0, 9.0), persistent=False)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        counts = torch.arange(1, tokens.shape[1] + 1, device=tokens.device).unsqueeze(-1)
        return self.tokens(tokens).cumsum(1) / counts * self.scale


@dataclass
class SumsConfig(ModelConfig):
    kind: str = "sums"

    def build(self, vocab_size: int, causal: bool) -> nn.Module:  # type: ignore[override]
        return Sums(vocab_size)


def built(vocab_size: int = 11):
    """Return the model as a run builds it: on the meta device, then with memory and values."""
    config = SumsConfig(context_length=32)
    with torch.device("meta"):
        model = build_model(config, vocab_size, causal=True)
    allocate(model, "cpu", lambda: build_model(config, vocab_size, causal=True))
    load_parameters(model, lambda name, shape: config.initial_value(name, shape, 0))
    return model


def test_buffers_have_the_values_of_build_and_shared_parameters_stay_shared() -> None:
    model = built()
    assert torch.equal(model.scale, torch.arange(1.0, 9.0))
    assert model.head.weight is model.tokens.weight
    assert 0.01 < float(model.tokens.weight.detach().std()) < 0.03
    assert not model.head.bias.any()
    assert torch.equal(model.tokens.weight, built().tokens.weight)
    assert count_parameters(model) == 11 * 8 + 11
    assert (model.config.context_length, model.vocab_size, model.causal) == (32, 11, True)


def test_a_module_gets_the_inputs_that_its_forward_takes() -> None:
    model, rows = built(), torch.tensor([[1, 2, 3]])
    assert inputs_of(model) == {"positions"}
    assert not blocks_of(model)
    expected = model(rows)
    assert torch.equal(hidden_states(model, rows, torch.arange(3).unsqueeze(0), torch.zeros_like(rows)), expected)

    class Wrapper(nn.Module):
        def forward(self, tokens, **inputs):
            return inputs

    inputs = {"positions", "documents", "is_causal", "token_types"}
    assert hidden_states(Wrapper(), rows, is_causal=torch.ones(1)).keys() == inputs


def test_a_module_without_cache_completes_rows_of_any_length_as_it_would_one_by_one() -> None:
    model = built()
    decoding = Decoding(
        6, Sampling(temperature=0.0), end_ids=frozenset({10}), suppress_tokens=torch.zeros(11, dtype=torch.bool)
    )
    prompts = [[1], [2, 3, 4, 5], [6, 7]]
    steps = zip(*generate_tokens(model, prompts, decoding), strict=True)
    together = [[token and token.token for token in row] for row in steps]
    alone = [[step[0].token for step in generate_tokens(model, [prompt], decoding)] for prompt in prompts]
    assert [[token for token in row if token is not None] for row in together] == alone
    text = [1]
    for token in alone[0]:
        assert int(model.head(model(torch.tensor([text])))[0, -1].argmax()) == token
        text.append(token)
    with pytest.raises(ConfigError, match="a prompt of 40 tokens fills the model's context of 32 tokens"):
        generate_tokens(model, [[1] * 40], decoding)


def test_what_only_a_transformer_can_is_refused() -> None:
    config = SumsConfig()
    with pytest.raises(ConfigError, match=r"model\.kind=sums is not a transformer, and only .*transformer is exported"):
        transformer_of(config, "is exported")
    with pytest.raises(ConfigError, match=r"dtype=int8 quantizes transformers.*Sums\. Try dtype=fp32"):
        prepare_for_inference(built(), "cpu", "int8")
    with pytest.raises(ConfigError, match=r"model\.kind=sums has no head that classifies texts"):
        build_model(config, 11, causal=True, n_labels=2)
    with pytest.raises(TypeError, match=r"model '\?' has no build\(\)"):
        ModelConfig().build(11, causal=True)
    assert config.training_flops_per_token(11) == 6 * (11 * 8 + 11)
    assert (config.parameter_count(11), config.least_tensors) == (None, 0)

"""Inference matmuls give the same numbers, from the same parameters."""

import pytest
import torch
from families import SHAPES, random_model, shape
from torch import nn

from pretrain.kernels.onednn_linear import install_for_inference

VOCAB = 50


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (4, 1), (3, 6)])
def test_states_and_logits_are_the_same(family: str, size: tuple[int, int]) -> None:
    causal = "bert" not in family
    plain, model = (random_model(shape(family), VOCAB, causal) for _ in range(2))
    install_for_inference(model, model.head)
    tokens = torch.randint(VOCAB, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = plain(tokens), model(tokens)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.head(found), plain.head(expected), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("family", SHAPES)
def test_parameters_and_gradients_are_the_same(family: str) -> None:
    plain, model = (random_model(shape(family), VOCAB, "bert" not in family) for _ in range(2))
    install_for_inference(model, model.head)
    tokens = torch.tensor([[3, 4, 5]])
    for each in (plain, model):
        each.head(each(tokens)).square().mean().backward()
    assert (model.head.weight is model.embeddings.tokens.weight) is model.config.tie_embeddings
    expected, found = (dict(each.named_parameters()) for each in (plain, model))
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        assert torch.equal(parameter, expected[name])
        assert (parameter.grad is None) is (expected[name].grad is None)
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-4, rtol=1e-3)


def test_other_number_formats_and_devices_stay_as_they_are() -> None:
    half = random_model(shape("gpt"), VOCAB, causal=True).to(torch.bfloat16)
    elsewhere = random_model(shape("gpt"), VOCAB, causal=True).to("meta")
    for model in (half, elsewhere):
        install_for_inference(model, model.head)
        assert {type(each) for each in model.modules() if isinstance(each, nn.Linear)} == {nn.Linear}
        assert model.head.weight.is_contiguous()


def test_what_is_moved_or_cast_later_multiplies_as_ever() -> None:
    plain, model = (random_model(shape("gpt"), VOCAB, causal=True) for _ in range(2))
    install_for_inference(model, model.head)
    tokens = torch.tensor([[3, 4, 5]])
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.head(model(tokens)), plain.head(plain(tokens)))
        model, plain = model.to(torch.bfloat16), plain.to(torch.bfloat16)
        torch.testing.assert_close(model(tokens), plain(tokens), atol=0.1, rtol=0.1)

"""The residual stream in 16 bits: its dtype in every block, norms in float32."""

from collections.abc import Callable

import families
import pytest
import torch
from families import random_model, shape
from torch import Tensor, nn
from torch.nn import functional

from pretrain.models.interface import blocks_of, hidden_states
from pretrain.models.layers import RMSNorm, use_half_stream
from pretrain.models.transformer import Transformer

BF16, TOKENS = torch.bfloat16, torch.arange(48).view(2, 24) % 131


def dtypes_of_stream(model: Transformer) -> list[torch.dtype]:
    """Return the list of dtypes that its blocks will get and return."""
    seen: list[torch.dtype] = []
    for block in blocks_of(model):
        block.register_forward_hook(lambda _, inputs, x: seen.extend([inputs[0].dtype, x.dtype]))
    return seen


def return_float32_from_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let norms return float32 in autocast, as they do on GPUs and not on CPUs."""
    for norm in (RMSNorm, nn.LayerNorm):

        def forward(self: nn.Module, x: Tensor, forward: Callable[..., Tensor] = norm.forward) -> Tensor:
            return forward(self, x).float()

        monkeypatch.setattr(norm, "forward", forward)


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "norms of a gpu"])
@pytest.mark.parametrize("name", families.SHAPES)
def test_the_stream_is_in_16_bits_in_every_block(name: str, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if gpu:
        return_float32_from_norms(monkeypatch)
    plain, half = (random_model(shape(name), 131, name in families.CAUSAL) for _ in range(2))
    use_half_stream(half)
    seen, usual = dtypes_of_stream(half), dtypes_of_stream(plain)
    with torch.no_grad(), torch.autocast("cpu", BF16):
        found, expected = hidden_states(half, TOKENS), hidden_states(plain, TOKENS)
    assert set(seen) == {BF16}
    assert torch.float32 in usual  # without the setting
    exact = hidden_states(plain, TOKENS).detach()
    errors = [float((each.float() - exact).norm() / exact.norm()) for each in (found, expected)]
    assert 0 < min(errors) < max(errors) < 0.05
    assert torch.equal(hidden_states(half, TOKENS), exact)  # nothing without autocast, as in generation


def test_a_norm_of_the_stream_computes_in_float32() -> None:
    """Its weight is not rounded: 1 + 2^-9 has no bf16."""
    norm = RMSNorm(64, eps=0.0)
    with torch.no_grad():
        norm.weight.fill_(1.0 + 2.0**-9)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).to(BF16)
    expected = functional.rms_norm(x.float(), (64,), norm.weight, 0.0)
    with torch.autocast("cpu", BF16):
        assert not torch.equal(norm(x).float(), expected)
        norm.half_stream = True
        assert torch.equal(norm(x), expected)

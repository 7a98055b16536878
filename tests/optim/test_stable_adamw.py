"""StableAdamW equals a slow float64 reference written from its paper; sharded, it equals itself."""

import math

import pytest
import torch
from families import random_model, shape
from torch import Tensor
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing import assert_close

from pretrain.optim.config import StableAdamWConfig
from pretrain.optim.groups import parameter_names
from pretrain.optim.stable_adamw import StableAdamW, placements_of_sums


def reference(weight: Tensor, gradients: list[Tensor], rate: float, decay: float) -> tuple[Tensor, list[float]]:
    """Algorithm 2 of Wortsman et al. 2023 with beta1 0.8, beta2 0.99, eps 1e-6; also the clipped rates."""
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    rates = []
    for t, gradient in enumerate(gradients, start=1):
        beta1 = 0.8 * (1 - 0.8 ** (t - 1)) / (1 - 0.8**t)
        beta2 = 0.99 * (1 - 0.99 ** (t - 1)) / (1 - 0.99**t)
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        rms = math.sqrt((gradient**2 / second.clamp(min=1e-12)).mean().item())
        rates.append(rate / max(1.0, rms))
        weight = weight - rates[-1] * decay * weight - rates[-1] * first / (second.sqrt() + 1e-6)
    return weight, rates


def test_steps_equal_the_papers_algorithm_and_a_burst_is_clipped() -> None:
    model = random_model(shape("llama"), 50, causal=True)
    config = StableAdamWConfig(learning_rate=0.02, weight_decay=0.3, beta1=0.8, beta2=0.99, eps=1e-6)
    optimizer = config.build(model)
    assert isinstance(optimizer, StableAdamW)
    draw = torch.Generator().manual_seed(3)
    before = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    seen: dict[str, list[Tensor]] = {name: [] for name in before}
    for burst in (1.0, 0.5, 20.0, 1.0):
        for name, parameter in model.named_parameters():
            parameter.grad = burst * torch.randn(parameter.shape, generator=draw)
            seen[name].append(parameter.grad.double())
        optimizer.step()
    rest = set(parameter_names(model).rest)
    for name, parameter in model.named_parameters():
        expected, rates = reference(before[name], seen[name], 0.02, 0.0 if name in rest else 0.3)
        assert_close(parameter.double(), expected, rtol=2e-5, atol=2e-6)
        assert rates[2] < 0.02 / 1.5  # the burst outgrew the second moment
        assert set(optimizer.state[parameter]) == {"step", "exp_avg", "exp_avg_sq"}


def test_parameters_without_a_gradient_are_left_alone_and_zeros_move_nothing() -> None:
    model = random_model(shape("llama"), 50, causal=True)
    optimizer = StableAdamWConfig(weight_decay=0.0, beta1=0.0, beta2=0.0).build(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.get_parameter("blocks.0.attention.query.weight").grad = torch.zeros_like(
        model.get_parameter("blocks.0.attention.query.weight")
    )
    calls = []
    assert optimizer.step(lambda: calls.append(torch.is_grad_enabled()) or 1.5) == 1.5  # type: ignore[func-returns-value]
    assert calls == [True]
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert len(optimizer.state) == 1


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_debiasing_keeps_its_digits(decay: float) -> None:
    from pretrain.optim.stable_adamw import _debiasing

    steps = torch.tensor([1.0, 2.0, 1000.0])
    exact = torch.tensor([1 - decay ** int(step) for step in steps], dtype=torch.float64)
    assert_close(_debiasing(decay, steps).double(), exact, rtol=1e-6, atol=0)


def test_shards_of_matrices_that_are_split_twice_are_summed_too() -> None:
    """Of FSDP2 behind tensor parallelism, whose strided shards do not call themselves shards."""
    twice = [_StridedShard(0, split_factor=2), Shard(0)]
    assert placements_of_sums(twice) == [Partial(), Partial()]
    assert placements_of_sums([Replicate(), Shard(0), Shard(1)]) == [Replicate(), Partial(), Partial()]

"""Muon equals a slow float64 reference; its AdamW part equals AdamW bit for bit."""

from typing import Any

import pytest
import torch
from families import random_model, shape
from torch import Tensor, nn
from torch.testing import assert_close

from pretrain.models.transformer import Transformer
from pretrain.optim.config import MuonConfig, NewtonSchulz, UpdateScale
from pretrain.optim.groups import parameter_names
from pretrain.optim.muon import _POLAR_EXPRESS, Muon, coefficients, orthogonalize


def slow_orthogonal(matrix: Tensor, steps: int) -> Tensor:
    """Each step maps every singular value s to 3.4445 s - 4.775 s^3 + 2.0315 s^5."""
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(steps):
        x = 3.4445 * x - 4.775 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return x


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (12, 5), (5, 12), (3, 200)])
def test_singular_values_come_close_to_1(size: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *size, generator=draw) * torch.tensor([1e-3, 1.0, 1e4]).view(3, 1, 1)
    before = matrices.clone()
    found = orthogonalize(matrices, steps=5)
    assert torch.equal(matrices, before)
    assert found.shape == matrices.shape
    assert found.dtype == matrices.dtype
    for one, expected in zip(found, matrices, strict=True):
        assert_close(one.double(), slow_orthogonal(expected.double(), 5), rtol=1e-3, atol=2e-4)
    if size != (8, 8):  # a random square matrix has singular values near 0
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_the_directions_are_those_of_the_gradient() -> None:
    matrix = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix.unsqueeze(0), steps=5)[0]
    inside = u.T @ found @ v.T  # diagonal where found keeps the directions
    assert_close(inside, torch.diag(inside.diagonal()), atol=1e-4, rtol=0)
    assert inside.diagonal().min() > 0.6


def test_a_zero_gradient_moves_nothing() -> None:
    assert not orthogonalize(torch.zeros(2, 4, 6), steps=5).any()


def gradients(model: nn.Module, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw)


def build(**changes: Any) -> tuple[Transformer, Muon]:
    model = random_model(shape("llama"), 50, causal=True)
    optimizer = MuonConfig(**{"learning_rate": 0.02, "weight_decay": 0.3, **changes}).build(model)
    assert isinstance(optimizer, Muon)
    return model, optimizer


def test_three_steps_equal_the_slow_formula() -> None:
    model, optimizer = build(momentum=0.8, matrix_learning_rate_ratio=2.0)
    names = parameter_names(model).matrices
    expected = {name: p.detach().double() for name, p in model.named_parameters() if name in names}
    momentum = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step in range(3):
        gradients(model, step)
        for group in optimizer.param_groups:
            group["lr"] *= 0.9  # the schedule's part
        optimizer.step()
        rate = 0.02 * 2.0 * 0.9 ** (step + 1)
        for name in names:
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            momentum[name] = 0.8 * momentum[name] + 0.2 * gradient.double()
            nesterov = 0.8 * momentum[name] + 0.2 * gradient.double()
            scale = 0.2 * max(gradient.shape) ** 0.5  # root mean square 0.2, as AdamW's
            expected[name] = (1 - rate * 0.3) * expected[name] - rate * scale * slow_orthogonal(nesterov, 5)
    for name in names:
        assert_close(model.get_parameter(name).double(), expected[name], rtol=1e-3, atol=2e-5)


def slow_polar(matrix: Tensor, steps: int) -> Tensor:
    """Polar Express on singular values: each polynomial is best on its interval, at values 1 % smaller."""
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    values = values / (1.01 * matrix.norm())
    for a, b, c in _POLAR_EXPRESS[:steps]:
        values = values / 1.01
        values = a * values + b * values**3 + c * values**5
    return u @ torch.diag(values) @ v


def test_polar_express_is_the_best_polynomial_of_each_interval_and_leaves_less_than_the_quintic() -> None:
    low, high = 1e-3, 1.0
    for a, b, c in _POLAR_EXPRESS:
        values = torch.linspace(low, high, 200_001, dtype=torch.float64)
        errors = a * values + b * values**3 + c * values**5 - 1.0
        assert -errors[0] == pytest.approx(float(errors.max()), abs=2e-6)  # the largest error at both ends, and inside
        assert errors[-1] == pytest.approx(float(errors.max()), abs=2e-6)
        low, high = 1.0 + float(errors.min()), 1.0 + float(errors.max())
    assert high - low < 1e-9
    matrices = torch.randn(4, 40, 48, generator=torch.Generator().manual_seed(2))
    spread = {}
    for kind in NewtonSchulz:
        found = orthogonalize(matrices, 5, kind)
        spread[kind] = float((torch.linalg.svdvals(found) - 1.0).abs().max())
    assert spread[NewtonSchulz.polar_express] < 0.15 < 0.25 < spread[NewtonSchulz.quintic]
    for one, matrix in zip(orthogonalize(matrices, 5, NewtonSchulz.polar_express), matrices, strict=True):
        assert_close(one.double(), slow_polar(matrix.double(), 5), rtol=1e-3, atol=1e-4)


def test_all_options_together_equal_a_slow_reference_over_three_steps() -> None:
    """Polar Express, NorMuon's rows, a rising momentum and cautious decay, in float64 from their papers."""
    model, optimizer = build(
        momentum=0.9, momentum_start=0.6, momentum_warmup_steps=2, row_beta2=0.8, cautious_weight_decay=True,
        newton_schulz_coefficients=NewtonSchulz.polar_express,
    )  # fmt: skip
    config = MuonConfig(momentum=0.9, momentum_start=0.6, momentum_warmup_steps=2)
    names = parameter_names(model).matrices
    expected = {name: p.detach().double() for name, p in model.named_parameters() if name in names}
    buffers = {name: torch.zeros_like(value) for name, value in expected.items()}
    moments = {name: torch.zeros(len(value), 1, dtype=torch.float64) for name, value in expected.items()}
    decayed = 0.0
    for step, momentum in enumerate((0.6, 0.75, 0.9)):
        gradients(model, step)
        config.before_step(optimizer, step)
        optimizer.step()
        for name in names:
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            buffers[name] = momentum * buffers[name] + (1 - momentum) * gradient.double()
            update = slow_polar(momentum * buffers[name] + (1 - momentum) * gradient.double(), 5)
            moments[name] = 0.8 * moments[name] + 0.2 * (update**2).mean(dim=1, keepdim=True)
            update = update / moments[name].sqrt()
            update = 0.2 * update / update.square().mean().sqrt()
            same_sign = (update * expected[name] >= 0).double()
            decayed += float(same_sign.mean()) / len(names) / 3
            expected[name] = expected[name] - 0.02 * (0.3 * same_sign * expected[name] + update)
    for name in names:
        assert_close(model.get_parameter(name).double(), expected[name], rtol=1e-3, atol=5e-5)
        assert optimizer.state[model.get_parameter(name)]["row_second_moment"].shape == (len(expected[name]), 1)
    assert 0.3 < decayed < 0.9  # some numbers decay, and some do not


@pytest.mark.parametrize("size", [(64, 64), (64, 16), (16, 64)])
def test_an_update_has_the_root_mean_square_of_adamws(size: tuple[int, int]) -> None:
    update = (
        orthogonalize(torch.randn(1, *size, generator=torch.Generator().manual_seed(0)), 5) * 0.2 * max(size) ** 0.5
    )
    assert 0.13 < update.square().mean().sqrt().item() < 0.25


def test_the_other_groups_take_the_step_of_torchs_adamw_to_the_bit() -> None:
    model, optimizer = build()
    twin = random_model(shape("llama"), 50, causal=True)
    names = parameter_names(twin)
    groups = [
        {"params": [twin.get_parameter(name) for name in names.head], "weight_decay": 0.3},
        {"params": [twin.get_parameter(name) for name in names.rest], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(3):
        for module, chosen in ((model, optimizer), (twin, reference)):
            gradients(module, step)
            chosen.step()
    for name in names.head + names.rest:
        assert torch.equal(model.get_parameter(name), twin.get_parameter(name)), name
    assert all(set(optimizer.state[model.get_parameter(name)]) == {"momentum_buffer"} for name in names.matrices)


def test_parameters_without_a_gradient_are_left_alone() -> None:
    model, optimizer = build()
    gradients(model, 0)
    idle = {"blocks.0.attention.query.weight", "blocks.1.feed_forward.up.weight", "head.weight", "final_norm.weight"}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name in idle:
        model.get_parameter(name).grad = None
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) is (name in idle), name
        assert (parameter in optimizer.state) is (name not in idle), name
    model.zero_grad()
    optimizer.step()  # nothing has one


def test_a_closure_is_called_once_with_gradients_enabled() -> None:
    model, optimizer = build()
    calls = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        gradients(model, 0)
        return 1.5

    assert optimizer.step(closure) == 1.5
    assert calls == [True]
    assert len(optimizer.param_groups) == 3


def test_the_last_polynomial_of_polar_express_goes_on_as_it_is() -> None:
    *_, seventh, last, again = coefficients(NewtonSchulz.polar_express, 9)
    assert last == again == (1.875, -1.25, 0.375)
    assert seventh == pytest.approx(
        (1.8750014808534479 / 1.01, -1.2500016453999487 / 1.01**3, 0.3750001645474248 / 1.01**5)
    )


@pytest.mark.parametrize(("rows", "columns"), [(24, 96), (96, 24), (32, 32)])
@pytest.mark.parametrize("row_beta2", [0.0, 0.9])
def test_a_spectral_update_has_singular_values_of_the_shape(rows: int, columns: int, row_beta2: float) -> None:
    """sqrt(max(1, rows / columns)), by the polynomial that converges to an orthogonal matrix."""
    model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(columns, rows, bias=False)])})
    config = MuonConfig(
        learning_rate=0.5, weight_decay=0.0, newton_schulz_steps=12, row_beta2=row_beta2,
        newton_schulz_coefficients=NewtonSchulz.converging, update_scale=UpdateScale.spectral,
    )  # fmt: skip
    optimizer = config.build(model)
    weight = model.get_parameter("blocks.0.weight")
    before = weight.detach().clone()
    # singular values of a geometric series: even the smallest must come close to 1
    u, _, v = torch.linalg.svd(torch.randn(rows, columns, generator=torch.Generator().manual_seed(5)), False)
    weight.grad = u @ torch.diag(torch.logspace(0, -2, min(rows, columns))) @ v
    optimizer.step()
    step = (before - weight.detach()) / 0.5
    expected = max(1, rows / columns) ** 0.5
    assert step.square().mean().sqrt().item() == pytest.approx(expected / max(rows, columns) ** 0.5, rel=1e-3)
    if not row_beta2:
        assert_close(torch.linalg.svdvals(step), torch.full((min(rows, columns),), expected), rtol=1e-3, atol=0)


def test_even_rows_of_a_spectral_update_of_low_rank_do_not_make_it_larger() -> None:
    """One singular value: its rows were of unlike size and are alike, and the whole has the norm of the update."""
    model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(48, 48, bias=False)])})
    config = MuonConfig(
        learning_rate=0.5, weight_decay=0.0, row_beta2=0.9, newton_schulz_steps=12, update_scale=UpdateScale.spectral,
        newton_schulz_coefficients=NewtonSchulz.converging,
    )  # fmt: skip
    optimizer, weight = config.build(model), model.get_parameter("blocks.0.weight")
    before = weight.detach().clone()
    weight.grad = torch.linspace(1, 3, 48)[:, None] * torch.ones(1, 48)
    optimizer.step()
    step = (before - weight.detach()) / 0.5
    assert step.norm().item() == pytest.approx(1.0, rel=1e-2)
    assert_close(step.norm(dim=1), torch.full((48,), 48**-0.5), rtol=1e-2, atol=0)

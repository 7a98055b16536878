"""GELU by tanh in chunks has the values and derivatives of torch, and is used only where it is faster."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.kernels import gelu
from pretrain.kernels.gelu import gelu_tanh


def value_and_derivative(function: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    found = function(x)
    found.backward(torch.ones_like(found))
    assert x.grad is not None
    return found.detach(), x.grad


@pytest.mark.parametrize("piece", [7, 1000, 1 << 20])
def test_values_and_derivatives_are_those_of_torch(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gelu, "MIN_NUMEL", 0)
    monkeypatch.setattr(gelu, "CHUNK", piece)
    monkeypatch.setattr(gelu._GeluTanh, "forward", counted := Counted(gelu._GeluTanh.forward))
    x = torch.cat([torch.linspace(-12, 12, 2000), torch.tensor([0.0, -0.0, 1e-30, 1e4, -1e4, 1.0])]).view(2, -1)
    found, derivative = value_and_derivative(gelu_tanh, x[:, :-1])  # not contiguous
    expected, expected_derivative = value_and_derivative(lambda x: F.gelu(x, approximate="tanh"), x[:, :-1].double())
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(derivative, expected_derivative.float(), rtol=1e-5, atol=1e-5)
    assert counted.calls == 1


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Any) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.function(*arguments)


def test_what_is_no_training_in_float32_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gelu._GeluTanh, "apply", None)  # cannot be called
    x = torch.randn(gelu.MIN_NUMEL, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(gelu_tanh(x), F.gelu(x, approximate="tanh"))
    for other in (x[:-1], x.detach(), x.double(), x.bfloat16(), x.to("meta")):
        assert gelu_tanh(other).dtype is other.dtype
    with pytest.raises(TypeError, match="not callable"):
        gelu_tanh(x)

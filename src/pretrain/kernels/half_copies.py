"""16-bit copies of a model's matrices, made once a step instead of at each use under autocast.

Autocast casts a float32 matrix at every use of every micro-batch: 6 bytes a number, read and written. With a copy that
is made once, forward and backward pass read 2. Gradients go to the float32 matrix by the same cast as before, so that
no bit of a training changes.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.kernels.matmul import Matmul
from pretrain.kernels.onednn_linear import OneDnnLinear


class CopiedLinear(nn.Linear):
    """An `nn.Linear` that under autocast multiplies by the copy of its matrix."""

    half_copy: Tensor
    without_autocast: type[nn.Linear]  # the class it had before

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., K) through the layer, (..., N)."""
        if not torch.is_autocast_enabled(x.device.type):
            return self.without_autocast.forward(self, x)
        return F.linear(x, with_gradient(self.weight, self.half_copy), self.bias)


class CopiedMatmul(Matmul):
    """The matmuls of a head and its loss, which under autocast multiply by the copy of the head's matrix."""

    def __init__(self, half_copy: Tensor, without_autocast: Matmul) -> None:
        self.half_copy = half_copy
        self.without_autocast = without_autocast

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.dtype is not torch.float32 or not torch.is_autocast_enabled(x.device.type):
            return self.without_autocast.linear(x, weight, bias)
        return F.linear(x, with_gradient(weight, self.half_copy), bias)

    def cast(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        return self.half_copy if dtype is self.half_copy.dtype else weight.to(dtype)

    def add_gradient(self, total: Tensor, grad: Tensor, x: Tensor) -> None:
        self.without_autocast.add_gradient(total, grad, x)


def with_gradient(weight: Tensor, half_copy: Tensor) -> Tensor:
    """Return the copy of a matrix, whose gradient becomes that of the float32 `weight`, same shape."""
    if not torch.is_grad_enabled() or not weight.requires_grad:
        return half_copy
    linked: Tensor = _WithGradient.apply(weight, half_copy)
    return linked


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, half_copy: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return half_copy.view_as(half_copy)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None


class _Copy(NamedTuple):
    owner: nn.Module  # whose `weight` is copied
    half: Tensor  # stays where it is, as CUDA graphs ask


class HalfCopies:
    """The copies of a model's matrices: those of its linear layers and of a head of ours."""

    def __init__(self, model: nn.Module, half: torch.dtype) -> None:
        """Make the copies of a model that has its weights already, and let its layers use them, in place."""
        self._copies: list[_Copy] = []
        for module in model.modules():
            if type(module) in (nn.Linear, OneDnnLinear):
                linear: Any = module
                linear.half_copy, linear.without_autocast = self._add(linear, half), type(linear)
                linear.__class__ = CopiedLinear
            elif isinstance(matmul := getattr(module, "matmul", None), Matmul):
                head: Any = module
                head.matmul = CopiedMatmul(self._add(head, half), matmul)

    def _add(self, owner: Any, half: torch.dtype) -> Tensor:
        copy: Tensor = owner.weight.detach().to(half)
        self._copies.append(_Copy(owner, copy))
        return copy

    @property
    def tensors(self) -> list[Tensor]:
        """The copies."""
        return [copy.half for copy in self._copies]

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast the weights as they are now, into the same memory."""
        weights: list[Any] = [copy.owner.weight for copy in self._copies]
        torch._foreach_copy_(self.tensors, weights)

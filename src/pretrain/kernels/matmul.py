"""The matmuls of a head and its loss, as one object that a faster kernel can replace."""

import torch
import torch.nn.functional as F
from torch import Tensor


class Matmul:
    """Matmuls with a vocabulary's or labels' weight, by torch; `onednn_linear.install` replaces it where that pays."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return `F.linear` of x (..., K) with weight (N, K) and bias (N,): (..., N)."""
        return F.linear(x, weight, bias)

    def add_gradient(self, total: Tensor, grad: Tensor, x: Tensor) -> None:
        """Add the transposed grad (M, N) times x (M, K) to a float32 total (N, K), in place."""
        if grad.dtype == total.dtype:
            total.addmm_(grad.t(), x)
        elif total.is_cuda:
            torch.addmm(total, grad.t(), x, out_dtype=total.dtype, out=total)
        else:
            total += F.linear(grad.t(), x.t())


def matmul_of(head: object) -> Matmul:
    """Return a head's own matmuls, or torch's for a head that has none."""
    matmul = getattr(head, "matmul", None)
    return matmul if isinstance(matmul, Matmul) else Matmul()

"""The matmuls of a head and its loss, as an object that a faster kernel can replace."""

import torch
import torch.nn.functional as F
from torch import Tensor


class Matmul:
    """A head's matmuls by torch; `onednn_linear.install` replaces it if oneDNN is faster."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return `F.linear` of x (..., K) with weight (N, K) and bias (N,): (..., N)."""
        return F.linear(x, weight, bias)

    def cast(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the head's matrix (N, K) in the dtype of a matmul."""
        return weight.to(dtype)

    def add_gradient(self, total: Tensor, grad: Tensor, x: Tensor) -> None:
        """Add grad^T @ x, of grad (M, N) and x (M, K), to the float32 total (N, K), in place."""
        if grad.dtype == total.dtype:
            total.addmm_(grad.t(), x)
        elif total.is_cuda:
            torch.addmm(total, grad.t(), x, out_dtype=total.dtype, out=total)
        else:
            total += F.linear(grad.t(), x.t())


def matmul_of(head: object) -> Matmul:
    """Return `head.matmul`, or torch's matmuls if the head has none."""
    matmul = getattr(head, "matmul", None)
    return matmul if isinstance(matmul, Matmul) else Matmul()

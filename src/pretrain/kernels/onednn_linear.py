"""Products with a weight in float32 on AMD processors with AVX-512: by oneDNN, which takes half of MKL's time there.

torch leaves such products to MKL, which keeps to 256 bits on processors that are not Intel's
(`benchmarks/matmul.py` races the two). Everywhere else, and where a product is over before Python has chosen,
`product` is `F.linear`.
"""

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEW = 1 << 22  # multiplications


PIECE = 1 << 21  # numbers of a large gradient that are made at once, so that caches hold them


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `F.linear` of x (..., K) with weight (N, K) and bias (N,): shape (..., N)."""
    if not _goes_to_onednn(x, weight):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return by_onednn(x, weight, bias)
    found: Tensor = _Product.apply(x, weight, bias)
    return found


def add_product(total: Tensor, rows: Tensor, others: Tensor) -> None:
    """Add the transposed rows (M, N) times the others (M, K) to a float32 total (N, K)."""
    if rows.dtype != total.dtype and total.is_cuda:
        torch.addmm(total, rows.t(), others, out_dtype=total.dtype, out=total)
    elif rows.dtype != total.dtype:
        total += product(rows.t(), others.t())
    elif _goes_to_onednn(rows, others.t()):
        for part in _pieces(*total.shape):
            total[part] += _transposed_product(rows[:, part], others)
    else:
        total.addmm_(rows.t(), others)


class Linear(nn.Linear):
    """A linear layer that multiplies by `product`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., K) through the layer, (..., N)."""
        return product(x, self.weight, self.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return by_onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows, flat = grad.flatten(0, -2), x.flatten(0, -2)
        return (
            by_onednn(grad, weight.t(), None) if of_x else None,
            _gradient(rows, flat) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _gradient(rows: Tensor, others: Tensor) -> Tensor:
    """Return the transposed rows (M, N) times the others (M, K), contiguous."""
    parts = _pieces(rows.shape[1], others.shape[1])
    if len(parts) == 1 or rows.shape[1] < 8 * others.shape[1]:  # no vocabulary
        return _transposed_product(rows, others).contiguous()
    found = rows.new_empty(rows.shape[1], others.shape[1])
    for part in parts:
        found[part] = _transposed_product(rows[:, part], others)
    return found


def _pieces(rows: int, columns: int) -> list[slice]:
    count = -(-rows * columns // PIECE)
    size = -(-rows // count)
    return [slice(start, start + size) for start in range(0, rows, size)]


def _transposed_product(rows: Tensor, others: Tensor) -> Tensor:
    """Return the transposed rows (M, N) times the others (M, K), made the way that transposes fewer numbers.

    oneDNN takes its second matrix either way round, its first by the row only. torch transposes what is contiguous
    several times as fast as a part of it.
    """
    rows = rows.contiguous()
    if 2 * (others.numel() + rows.shape[1] * others.shape[1]) < rows.numel():
        return by_onednn(others.t(), rows.t(), None).t()
    return by_onednn(rows.t(), others.t(), None)


def _goes_to_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        type(weight) in (Tensor, nn.Parameter)  # not one that devices share, or that is held in 8 bits
        and amd_with_avx512()
        and x.device.type == "cpu"
        and x.dtype is weight.dtype is torch.float32
        and x.numel() * len(weight) >= FEW
        and not torch.is_autocast_enabled("cpu")
    )


def onednn_products() -> tuple[Any, ...]:
    """Return the operators that oneDNN's products are to torch, plain and compiled; none if torch was built without."""
    plain, compiled = torch.ops.mkldnn._linear_pointwise, torch.ops.pretrain.product
    return (plain.default, compiled.default) if torch.backends.mkldnn.is_available() else ()


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return oneDNN's product of x (..., K) with weight (N, K) and bias (N,), float32, on a processor; no gradients."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # of a part of a matrix it takes a hundred times as long
    if torch.compiler.is_compiling():  # the compiler takes oneDNN's operator for weights that never change
        return _opaque(x, weight, bias)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


@torch.library.custom_op("pretrain::product", mutates_args=())
def _opaque(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


@torch.compiler.assume_constant_result  # the compiler looks into what is cached
def amd_with_avx512() -> bool:
    """Whether this is a processor on which oneDNN's products are the faster ones."""
    return _looked_up()


@cache
def _looked_up() -> bool:
    facts = Path("/proc/cpuinfo")
    if sys.platform != "linux" or not facts.exists() or not torch.backends.mkldnn.is_available():
        return False
    amd = re.search(r"^vendor_id\s*:\s*AuthenticAMD$", facts.read_text(encoding="utf8"), re.M)
    return amd is not None and torch.backends.cpu.get_cpu_capability() == "AVX512"

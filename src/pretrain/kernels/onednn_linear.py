"""float32 matmuls by oneDNN, for CPUs on which torch's default, MKL, is slower.

- Training: on AMD CPUs with AVX-512, MKL uses 256-bit instructions only, and oneDNN takes half its time
  (`benchmarks/matmul.py` compares them). `install` swaps the matmuls of a built model on such CPUs.
- Inference: each new token is a matmul of one or a few positions with every matrix. On an AMD EPYC, one position with
  GPT-2's vocabulary takes MKL 6.8 ms if the matrix is stored by columns and 12.0 ms if by rows, as in training; oneDNN
  takes 10 ms. Eight positions take MKL 27 ms and oneDNN 17 ms. `install_for_inference` stores wide matrices by columns
  and uses MKL only for one position with such a matrix.

Models are built of `nn.Linear` and `Matmul`; both functions change a built model in place. Parameters, their names and
values, and `isinstance(layer, nn.Linear)` stay the same.
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

from pretrain.kernels.matmul import Matmul

MIN_MULTIPLICATIONS = 1 << 22  # a smaller matmul takes less time than the choice in Python
MAX_CACHED = 1 << 21  # numbers of a large gradient computed in one chunk, which fits into the caches


@cache
def amd_with_avx512() -> bool:
    """Return whether this is a CPU on which oneDNN's matmuls are faster than MKL's."""
    cpuinfo = Path("/proc/cpuinfo")
    if sys.platform != "linux" or not cpuinfo.exists() or not torch.backends.mkldnn.is_available():
        return False
    amd = re.search(r"^vendor_id\s*:\s*AuthenticAMD$", cpuinfo.read_text(encoding="utf8"), re.M)
    return amd is not None and torch.backends.cpu.get_cpu_capability() == "AVX512"


def install(model: nn.Module) -> None:
    """Swap in oneDNN's matmuls if they are faster on this CPU; a second call changes nothing."""
    if amd_with_avx512():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDnnLinear
            elif type(getattr(module, "matmul", None)) is Matmul:
                module.matmul = OneDnnMatmul()  # type: ignore[assignment]


def install_for_inference(model: nn.Module, vocabulary_head: nn.Module | None) -> None:
    """Swap in the fastest matmuls without gradients, if the model is float32 on an x86 CPU."""
    parameter = next(model.parameters())
    available = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32 or not available:
        return
    for module in model.modules():
        if isinstance(module, nn.Linear) and type(module) in (nn.Linear, OneDnnLinear):
            module.__class__ = InferenceLinear
            if module.out_features > module.in_features:
                _store_by_columns(module.weight)
    if vocabulary_head is not None:
        vocabulary_head.matmul = InferenceMatmul()  # type: ignore[assignment]
        _store_by_columns(vocabulary_head.weight)


def _store_by_columns(weight: Any) -> None:
    weight.data = weight.data.t().contiguous().t()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `F.linear` of x (..., K), weight (N, K) and bias (N,): (..., N), by oneDNN if large and float32."""
    if not _suits_onednn(x, weight):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return by_onednn(x, weight, bias)
    y: Tensor = _OneDnnLinearFunction.apply(x, weight, bias)
    return y


def inference_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `F.linear` as `linear`, for weights stored by columns; with gradients or not float32, by torch."""
    one_position = x.numel() == x.shape[-1] and not weight.is_contiguous()
    unsuitable = x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
    if one_position or unsuitable or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    return by_onednn(x, weight, bias)


class OneDnnLinear(nn.Linear):
    """An `nn.Linear` that computes `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., K) through the layer, (..., N)."""
        return linear(x, self.weight, self.bias)


class InferenceLinear(nn.Linear):
    """An `nn.Linear` that computes `inference_linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., K) through the layer, (..., N)."""
        return inference_linear(x, self.weight, self.bias)


class OneDnnMatmul(Matmul):
    """The matmuls of a head and its loss by oneDNN."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, weight, bias)

    def add_gradient(self, total: Tensor, grad: Tensor, x: Tensor) -> None:
        if grad.dtype != total.dtype or not _suits_onednn(grad, x.t()):
            return super().add_gradient(total, grad, x)
        for part in _parts(*total.shape):
            total[part] += _transposed_matmul(grad[:, part], x)
        return None


class InferenceMatmul(Matmul):
    """The matmuls of a head whose weight is stored by columns."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return inference_linear(x, weight, bias)


class _OneDnnLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return by_onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        flat_grad, flat_x = grad.flatten(0, -2), x.flatten(0, -2)
        return (
            by_onednn(grad, weight.t(), None) if needs_x else None,
            _weight_gradient(flat_grad, flat_x) if needs_weight else None,
            flat_grad.sum(0) if needs_bias else None,
        )


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Return grad^T @ x, of grad (M, N) and x (M, K), contiguous (N, K)."""
    parts = _parts(grad.shape[1], x.shape[1])
    if len(parts) == 1 or grad.shape[1] < 8 * x.shape[1]:  # too few outputs to be a vocabulary
        return _transposed_matmul(grad, x).contiguous()
    gradient = grad.new_empty(grad.shape[1], x.shape[1])
    for part in parts:
        gradient[part] = _transposed_matmul(grad[:, part], x)
    return gradient


def _parts(rows: int, columns: int) -> list[slice]:
    count = -(-rows * columns // MAX_CACHED)
    size = -(-rows // count)
    return [slice(start, start + size) for start in range(0, rows, size)]


def _transposed_matmul(grad: Tensor, x: Tensor) -> Tensor:
    """Return grad^T @ x, of grad (M, N) and x (M, K), in the order that transposes fewer numbers.

    oneDNN accepts its second matrix in either layout, its first by rows only. torch transposes a contiguous matrix
    several times as fast as a slice of one.
    """
    grad = grad.contiguous()
    if 2 * (x.numel() + grad.shape[1] * x.shape[1]) < grad.numel():
        return by_onednn(x.t(), grad.t(), None).t()
    return by_onednn(grad.t(), x.t(), None)


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.numel() * weight.shape[0] >= MIN_MULTIPLICATIONS  # first: most often the reason to refuse
        and type(weight) in (Tensor, nn.Parameter)  # not a DTensor or an int8 matrix
        and x.device.type == "cpu"
        and x.dtype is weight.dtype is torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def onednn_matmul_ops() -> tuple[Any, ...]:
    """Return the torch operators of oneDNN's matmul, eager and compiled; none if torch was built without oneDNN."""
    eager, compiled = torch.ops.mkldnn._linear_pointwise, torch.ops.pretrain.onednn_linear
    return (eager.default, compiled.default) if torch.backends.mkldnn.is_available() else ()


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return oneDNN's `F.linear` of x (..., K), weight (N, K) and bias (N,), float32 on the CPU; no gradients."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # oneDNN takes a hundred times as long for a strided slice
    if torch.compiler.is_compiling():  # the compiler would treat oneDNN's operator as one with constant weights
        return _opaque(x, weight, bias)
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


@torch.library.custom_op("pretrain::onednn_linear", mutates_args=())
def _opaque(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))

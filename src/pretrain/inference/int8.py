"""Weights in 8 bits for inference on CPUs: a quarter of the bytes a token.

Each row of a matrix (one output channel) has its own scale. There are two matmuls, and the result of both differs from
float32 only by the rounding of the weights:

- `IntegerMatmul`, on x86 processors with VNNI instructions. Activations are rounded to 16 bits with one scale a
  position, and multiplied as two rows of bytes in one integer matmul, which loads the matrix once. A position does not
  depend on its neighbors. With activations in 8 bits the perplexity of SmolLM2-135M rises by 4 %, in 16 bits by 0.4 %,
  for a tenth more time.
- `BlockedMatmul`, on other processors. The matrix is converted to float32 block by block, small enough for the caches.
  On an AMD EPYC limited to AVX2 it takes half the time of float32 for the vocabulary's matrix, twice the time for small
  ones.

The first uses oneDNN's kernel through torch. Alternatives, measured on the matrices of GPT-2 small with one row:
torchao 0.18 without a compiler is slower than float32 (0.6 times), and so is `torch._weight_int8pack_mm` unless
activations are rounded to bfloat16; `torch._int_mm` takes a quarter to a half longer for two rows. FBGEMM's kernels
generate a quarter faster, but they need torch's quantized tensors, which will be removed
(https://github.com/pytorch/pytorch/issues/184982).
"""

import logging
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import ConfigError
from pretrain.models.attention import Attention
from pretrain.models.transformer import Transformer, VocabularyHead

LARGEST = 32_000  # activations are scaled to at most this, as 256 (high - MIDDLE) + (low - MIDDLE)
MIDDLE = 128  # of a byte
SMALLEST = 1e-30  # divisor of a row: rows of zeros give zeros
BLOCK = 1 << 20  # numbers of a matrix that are converted to float32 together: 4 MiB

log = logging.getLogger(__name__)


class Int8Matrix(nn.Module):
    """A weight (N, K) in 8 bits. `F.linear` accepts it; no other function does."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = weight.shape
        weight = weight.detach().float()
        scales = (weight.abs().amax(1) / 127).clamp_(min=SMALLEST)
        rounded = (weight / scales.unsqueeze(1)).round_().to(torch.int8)
        self.matmul = IntegerMatmul(rounded, scales) if has_integer_matmul() else BlockedMatmul(rounded, scales)

    def __len__(self) -> int:
        """Return N."""
        return self.shape[0]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Tensor:
        """Return `F.linear` of x (..., K) with this matrix and a bias (N,) or none, float32 (..., N)."""
        if function is not F.linear:
            raise TypeError(f"an int8 matrix works with F.linear only, not with {function}")
        return _linear(*args, **(kwargs or {}))

    def train(self, mode: bool = True) -> "Int8Matrix":
        """Do nothing, or raise ConfigError for training mode."""
        if mode:
            raise ConfigError("dtype=int8 is for inference only. To train a model, load it with dtype=fp32.")
        return super().train(mode)

    def _save_to_state_dict(self, *arguments: Any) -> None:
        raise ConfigError("dtype=int8 is for inference only. To save a model, load it with dtype=fp32.")


def _linear(x: Tensor, matrix: Int8Matrix, bias: Tensor | None = None) -> Tensor:
    y, unit = matrix.matmul(x.reshape(-1, x.shape[-1]).float())
    y = y.mul_(unit) if bias is None else torch.addcmul(bias, y, unit)
    return y.view(*x.shape[:-1], -1)


class IntegerMatmul:
    """Integer matmul with an int8 matrix (N, K) and scales (N,), for VNNI instructions."""

    def __init__(self, rounded: Tensor, scales: Tensor) -> None:
        self.scales = scales / LARGEST  # activations are multiplied by LARGEST
        self.bias = rounded.sum(1, dtype=torch.int32) * self.scales * -MIDDLE  # subtracts MIDDLE from each byte
        self.zeros = torch.zeros(len(rounded), dtype=torch.int64)
        self.rounding = torch.tensor(257 * MIDDLE + 0.5)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, (2, rounded.shape[1]))  # layout for one position

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (M, N) and u (M, 1), float32, with y u = x (M, K) times the transposed matrix."""
        unit = torch.linalg.vector_norm(x, torch.inf, 1, keepdim=True).clamp_(min=SMALLEST)
        integers = torch.addcdiv(self.rounding, x, unit, value=LARGEST).to(torch.uint16)  # truncates positive numbers
        pairs = integers.view(torch.uint8).view(*x.shape, 2)
        both = pairs.permute(2, 0, 1).reshape(2 * len(x), -1)  # all low bytes, then all high ones
        low, high = _in_integers(both, self.packed, self.scales, self.zeros, self.bias).view(2, len(x), -1)
        return low.add_(high, alpha=256), unit


class BlockedMatmul:
    """Float32 matmul with an int8 matrix (N, K) and scales (N,), block by block."""

    def __init__(self, rounded: Tensor, scales: Tensor) -> None:
        self.rounded, self.scales = rounded, scales

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (M, N) and u (N,), float32, with y u = x (M, K) times the transposed matrix."""
        rows = max(1, BLOCK // x.shape[1])
        if len(self.rounded) <= rows:
            return x @ self.rounded.float().t(), self.scales
        y = x.new_empty(len(x), len(self.rounded))
        block = x.new_empty(rows, x.shape[1])
        for start in range(0, len(self.rounded), rows):
            part = self.rounded[start : start + rows]
            y[:, start : start + rows] = x @ block[: len(part)].copy_(part).t()
        return y, self.scales


def has_integer_matmul() -> bool:
    """Return whether the processor has VNNI, torch has oneDNN, and their int8 matmul is exact."""
    capabilities = torch.cpu.get_capabilities()
    has_vnni = bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))
    return has_vnni and torch.backends.mkldnn.is_available() and _large_bytes_do_not_saturate()


@cache
def _large_bytes_do_not_saturate() -> bool:
    """Run a small matmul: without VNNI, as under ONEDNN_MAX_CPU_ISA=AVX2, oneDNN adds pairs in 16 bits."""
    count = 64
    ones, zeros = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    packed = torch.ops.onednn.qlinear_prepack(torch.full((1, count), 127, dtype=torch.int8), (1, count))
    y = _in_integers(torch.full((1, count), 255, dtype=torch.uint8), packed, ones, zeros, None)
    return y.item() == 255 * 127 * count


def _in_integers(x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None) -> Tensor:
    """Return x (M, K), uint8, times a packed matrix (N, K) and its scales, plus a bias (N,): float32 (M, N)."""
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 0, packed, scales, zeros, bias, 1.0, 0, torch.float32, "none", [], ""
    )
    return y


class FusedQKVAttention(Attention):
    """Attention with one matrix for queries, keys and values: activations are rounded once."""

    def __init__(self, parts: Attention) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(parts.__dict__)
        layers = [self.query, self.key, self.value]
        self.sizes = [layer.out_features for layer in layers]
        self.qkv = nn.Linear(layers[0].in_features, sum(self.sizes), layers[0].bias is not None, device="meta")
        self.qkv.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]))
        if layers[0].bias is not None:
            self.qkv.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]))
        del self.query, self.key, self.value

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return queries (B, T, H x D), and keys and values (B, T, K x D), of x (B, T, d_model)."""
        return self.qkv(x).split(self.sizes, dim=-1)


def quantize(model: Transformer) -> None:
    """Quantize a model's matrices to 8 bits, the output head's too, but not the embedding."""
    if not has_integer_matmul():
        log.warning(
            "dtype=int8: this processor has no VNNI instructions for int8 matmuls, so matrices are converted to "
            "float32 block by block: about as fast as dtype=fp32, in less memory."
        )
    for block in model.blocks:
        assert isinstance(block.attention, Attention)
        block.attention = FusedQKVAttention(block.attention)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear | VocabularyHead):
            weight = module.weight
            del module.weight
            module.weight = Int8Matrix(weight)  # type: ignore[assignment]

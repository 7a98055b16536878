"""Matrices in 8 bits for reading a model on a processor: a quarter of the bytes that each new token has to fetch.

Each row of a matrix (one output channel) has a scale of its own. There are two ways to multiply by it, and only the
rounding of the weights shows in both:

- `BytesTimesBytes`, on x86 processors with VNNI instructions. What comes in is rounded to 16 bits, scaled anew for each
  position, and multiplied as two rows of bytes in one integer product, which fetches the matrix once. A position does
  not depend on its neighbours. Rounded to 8 bits, the perplexity of SmolLM2-135M rises by 4 %, to 16 by 0.4 %, for a
  tenth more time.
- `PiecesInFloat32`, everywhere else. The matrix is turned into float32 piece by piece, small enough for the caches. On
  an AMD EPYC held to AVX2 that takes half as long as float32 for a vocabulary's matrix, twice as long for small ones.

The kernel of the first is oneDNN's, by way of torch. What else there is, on the matrices of GPT-2 small and a row at a
time: torchao 0.18 is slower than float32 without a compiler (0.6 times), and so is `torch._weight_int8pack_mm` unless
what comes in is rounded to bfloat16; `torch._int_mm` takes a quarter to a half longer for two rows. With FBGEMM's
kernels the model writes a quarter faster still, but they take torch's quantized tensors, which will be removed
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

LARGEST = 32_000  # a number is scaled to at most this, and is 256 (high - MIDDLE) + (low - MIDDLE)
MIDDLE = 128  # of a byte
SMALLEST = 1e-30  # that a row is divided by: rows of zeros give zeros
PIECE = 1 << 20  # numbers of a matrix that are turned into float32 at once: 4 MiB

log = logging.getLogger(__name__)


class Int8Matrix(nn.Module):
    """A matrix (N, K) in 8 bits in the place of a weight: `F.linear` multiplies by it, and it can do nothing else."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = weight.shape
        weight = weight.detach().float()
        scales = (weight.abs().amax(1) / 127).clamp_(min=SMALLEST)
        rounded = (weight / scales.unsqueeze(1)).round_().to(torch.int8)
        self.way = BytesTimesBytes(rounded, scales) if multiplies_bytes() else PiecesInFloat32(rounded, scales)

    def __len__(self) -> int:
        """Return N."""
        return self.shape[0]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Tensor:
        """Return `F.linear` of x (..., K) with this matrix and a bias (N,) or none, float32 (..., N)."""
        if function is not F.linear:
            raise TypeError(f"a matrix in int8 is there for F.linear only, and was given to {function}")
        return _linear(*args, **(kwargs or {}))

    def train(self, mode: bool = True) -> "Int8Matrix":
        """Stay as it is; raises ConfigError where it is to be trained."""
        if mode:
            raise ConfigError("dtype=int8 is for inference only. To train a model, load it with dtype=fp32.")
        return super().train(mode)

    def _save_to_state_dict(self, *arguments: Any) -> None:
        raise ConfigError("dtype=int8 is for inference only. To save a model, load it with dtype=fp32.")


def _linear(x: Tensor, matrix: Int8Matrix, bias: Tensor | None = None) -> Tensor:
    found, unit = matrix.way.product(x.reshape(-1, x.shape[-1]).float())
    found = found.mul_(unit) if bias is None else torch.addcmul(bias, found, unit)
    return found.view(*x.shape[:-1], -1)


class BytesTimesBytes:
    """Multiplies by a matrix of bytes (N, K) with scales (N,) in integers: for processors with VNNI instructions."""

    def __init__(self, rounded: Tensor, scales: Tensor) -> None:
        self.scales = scales / LARGEST  # what comes in is multiplied by LARGEST
        self.of_middle = rounded.sum(1, dtype=torch.int32) * self.scales * -MIDDLE  # what takes MIDDLE off each byte
        self.zeros = torch.zeros(len(rounded), dtype=torch.int64)
        self.rounding = torch.tensor(257 * MIDDLE + 0.5)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, (2, rounded.shape[1]))  # laid out for one position

    def product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (M, N) and u (M, 1), float32, such that y u is x (M, K) times the transposed matrix."""
        unit = torch.linalg.vector_norm(x, torch.inf, 1, keepdim=True).clamp_(min=SMALLEST)
        whole = torch.addcdiv(self.rounding, x, unit, value=LARGEST).to(torch.uint16)  # cuts off: nothing is negative
        pairs = whole.view(torch.uint8).view(*x.shape, 2)
        both = pairs.permute(2, 0, 1).reshape(2 * len(x), -1)  # all low bytes, then all high ones
        low, high = _in_integers(both, self.packed, self.scales, self.zeros, self.of_middle).view(2, len(x), -1)
        return low.add_(high, alpha=256), unit


class PiecesInFloat32:
    """Multiplies by a matrix of bytes (N, K) with scales (N,) piece by piece in float32: for every processor."""

    def __init__(self, rounded: Tensor, scales: Tensor) -> None:
        self.rounded, self.scales = rounded, scales

    def product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (M, N) and u (N,), float32, such that y u is x (M, K) times the transposed matrix."""
        count = max(1, PIECE // x.shape[1])
        if len(self.rounded) <= count:
            return x @ self.rounded.float().t(), self.scales
        found = x.new_empty(len(x), len(self.rounded))
        piece = x.new_empty(count, x.shape[1])
        for start in range(0, len(self.rounded), count):
            part = self.rounded[start : start + count]
            found[:, start : start + count] = x @ piece[: len(part)].copy_(part).t()
        return found, self.scales


def multiplies_bytes() -> bool:
    """Whether this processor multiplies bytes, has a library that has it do so, and that library gets it right."""
    known = torch.cpu.get_capabilities()
    has_vnni = bool(known.get("avx512_vnni") or known.get("avx_vnni"))
    return has_vnni and torch.backends.mkldnn.is_available() and _large_bytes_do_not_saturate()


@cache
def _large_bytes_do_not_saturate() -> bool:
    """Try it: without VNNI, as under ONEDNN_MAX_CPU_ISA=AVX2, oneDNN adds pairs of products up in 16 bits."""
    count = 64
    ones, zeros = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    packed = torch.ops.onednn.qlinear_prepack(torch.full((1, count), 127, dtype=torch.int8), (1, count))
    found = _in_integers(torch.full((1, count), 255, dtype=torch.uint8), packed, ones, zeros, None)
    return found.item() == 255 * 127 * count


def _in_integers(x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None) -> Tensor:
    """Return bytes x (M, K) times a packed matrix (N, K) and its scales, plus a bias (N,): float32 (M, N)."""
    found: Tensor = torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 0, packed, scales, zeros, bias, 1.0, 0, torch.float32, "none", [], ""
    )
    return found


class JointAttention(Attention):
    """Attention with one matrix for queries, keys and values: what comes in is rounded once, and fetched for once."""

    def __init__(self, parts: Attention) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(parts.__dict__)
        layers = [self.query, self.key, self.value]
        self.widths = [layer.out_features for layer in layers]
        self.joint = nn.Linear(layers[0].in_features, sum(self.widths), layers[0].bias is not None, device="meta")
        self.joint.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]))
        if layers[0].bias is not None:
            self.joint.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]))
        del self.query, self.key, self.value

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return queries (B, T, H x D), and keys and values (B, T, K x D), of x (B, T, d_model)."""
        return self.joint(x).split(self.widths, dim=-1)


def quantize(model: Transformer) -> None:
    """Put the matrices of a model into 8 bits, its vocabulary's too; the embedding that may share it stays as it is."""
    if not multiplies_bytes():
        log.warning(
            "dtype=int8: this processor has no VNNI instructions for products of bytes, so that matrices are turned "
            "into float32 piece by piece: about as fast as dtype=fp32, in less memory."
        )
    for block in model.blocks:
        assert isinstance(block.attention, Attention)
        block.attention = JointAttention(block.attention)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear | VocabularyHead):
            weight = module.weight
            del module.weight
            module.weight = Int8Matrix(weight)  # type: ignore[assignment]

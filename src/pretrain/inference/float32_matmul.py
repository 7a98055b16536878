"""Matrix products of a model that is only read, in float32 on a processor: of few rows, by the faster of two libraries.

A new token fetches every matrix for one row, or for a few side by side. torch leaves such products to MKL. On an AMD
EPYC its product of one row with the vocabulary of GPT-2 small takes 6.8 ms if the columns of the matrix lie together in
memory and 12.0 ms if its rows do, as they do in training; oneDNN's takes 10. Of eight rows MKL takes 27 ms, oneDNN 17.
So wide matrices are turned in memory, and all goes to oneDNN but one row with such a matrix. Shapes, names and values
of the weights stay what they were, and where a gradient is wanted torch computes as ever.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.kernels.onednn_linear import Linear, by_onednn
from pretrain.models.transformer import Transformer, VocabularyHead


def optimize_for_inference(model: Transformer) -> None:
    """Have a model that is only read multiply faster; one that is not in float32 on an x86 processor stays as it is."""
    parameter = next(model.parameters())
    libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32 or not libraries:
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is Linear:
                setattr(module, name, _Linear(child))
    if isinstance(model.head, VocabularyHead):
        model.head = _Head(model.head)


def _turn(weight: Tensor) -> None:
    """Lay the columns of a matrix together in memory."""
    weight.data = weight.data.t().contiguous().t()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `F.linear` of x (..., K) with weight (N, K) and bias (N,), shape (..., N)."""
    alone = x.numel() == x.shape[-1] and not weight.is_contiguous()
    elsewhere = x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
    if alone or elsewhere or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    return by_onednn(x, weight, bias)


class _Linear(nn.Linear):
    """A linear layer that multiplies by `_product`, with the parameters of another one."""

    def __init__(self, plain: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(plain.__dict__)
        if self.out_features > self.in_features:
            _turn(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., K) through the layer, (..., N)."""
        return _product(x, self.weight, self.bias)


class _Head(VocabularyHead):
    """A vocabulary head that multiplies by `_product`, with the parameters of another one."""

    def __init__(self, plain: VocabularyHead) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(plain.__dict__)
        _turn(self.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of hidden states (..., d_model)."""
        return _product(self.features(hidden), self.weight, self.bias)

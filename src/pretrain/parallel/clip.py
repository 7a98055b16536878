"""The norm of a whole gradient, however it is spread."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm, float32 (), of all gradients together; the same on every process.

    Sharded gradients are grouped by mesh, for norms over different meshes cannot be stacked.
    """
    by_mesh: dict[object, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        by_mesh[gradient.device_mesh if isinstance(gradient, DTensor) else None].append(gradient)
    norms = [torch.nn.utils.get_total_norm(group, foreach=True) for group in by_mesh.values()]
    if len(norms) == 1:
        return _plain(norms[0])
    return torch.linalg.vector_norm(torch.stack([_plain(norm) for norm in norms]))


def _plain(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm

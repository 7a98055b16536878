"""Processes that share matrices: each matrix is whole on one of them, its owner, for an update that needs it whole.

Sharded matrices go to their owners by one all-to-all, and the updates come back by another, as in Dion (Ahn et al.
2025, https://arxiv.org/abs/2504.05295) and torchtitan. Copies are whole already: one all-gather brings the updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement
from torch.distributed.tensor.placement_types import _StridedShard

MOST_COPIES = 8  # processes that share copies: as a rule those of one machine, between which sending is fast

Parts = list[Tensor]  # a matrix, and a column with a number for each of its rows if there is one


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor that may be sharded; they share memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def newton_schulz_flops(shape: torch.Size) -> float:
    """Return the operations of one Newton-Schulz iteration: two matmuls with the long side, one without."""
    short, long = sorted(shape)
    return 4.0 * short * short * long + 2.0 * short**3


def assign(costs: Sequence[float], owners: int) -> list[list[int]]:
    """Return the indices that each owner has: the most expensive first, each to whom has the least so far."""
    loads = [0.0] * owners
    owned: list[list[int]] = [[] for _ in range(owners)]
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        least = loads.index(min(loads))
        loads[least] += costs[index]
        owned[least].append(index)
    return [sorted(indices) for indices in owned]


@dataclass(frozen=True)
class Region:
    """The part of a matrix that one process has."""

    rows: slice
    columns: slice

    def of(self, whole: Tensor) -> Tensor:
        """Return this part of a matrix, or of a column with a number for each row; it shares memory."""
        return whole[self.rows, self.columns if whole.shape[1] > 1 else slice(None)]


def regions(shape: torch.Size, sizes: Sequence[int], placements: Sequence[Placement]) -> list[Region]:
    """Return the part of each process of a mesh of `sizes`, in the order of its ranks.

    Each axis splits what the axes before it left; one with strided shards splits last (FSDP2 after tensor parallelism).
    """
    order = sorted(range(len(sizes)), key=lambda axis: isinstance(placements[axis], _StridedShard))
    found = []
    for rank in range(prod(sizes)):
        bounds = [(0, size) for size in shape]
        for axis in order:
            coordinate = rank // prod(sizes[axis + 1 :]) % sizes[axis]
            if (dim := getattr(placements[axis], "dim", None)) is not None:
                (first, end) = bounds[dim]
                each = -(-(end - first) // sizes[axis])
                bounds[dim] = (min(first + coordinate * each, end), min(first + (coordinate + 1) * each, end))
        found.append(Region(*(slice(*bound) for bound in bounds)))
    return found


class Alone:
    """This process has whole matrices and shares none."""

    def gather(self, parts: Sequence[Parts], dtype: torch.dtype) -> dict[int, Parts]:
        """Return the matrices that this process owns, whole, by their index; what is sent is sent in `dtype`."""
        return dict(enumerate(parts))

    def scatter(self, wholes: Mapping[int, Parts], parts: Sequence[Parts], dtype: torch.dtype) -> list[Parts]:
        """Return what this process needs of every matrix, in the shapes of `parts`, from the `wholes` of all owners."""
        return [wholes[index] for index in range(len(parts))]


class OwnedCopies(Alone):
    """Every process of a group has copies of all matrices, and owns some of them."""

    def __init__(self, shapes: Sequence[torch.Size], group: Any) -> None:
        self.group, self.rank = group, torch.distributed.get_rank(group)
        self.owned = assign([newton_schulz_flops(shape) for shape in shapes], torch.distributed.get_world_size(group))

    def gather(self, parts: Sequence[Parts], dtype: torch.dtype) -> dict[int, Parts]:
        return {index: parts[index] for index in self.owned[self.rank]}

    def scatter(self, wholes: Mapping[int, Parts], parts: Sequence[Parts], dtype: torch.dtype) -> list[Parts]:
        shapes = [_shapes(parts, indices) for indices in self.owned]
        longest = max(sum(map(prod, each)) for each in shapes)
        sent = torch.zeros(longest, dtype=dtype, device=parts[0][0].device)
        _copy(_views(sent, shapes[self.rank]), [part for whole in wholes.values() for part in whole])
        received = sent.new_empty(len(shapes) * longest)
        torch.distributed.all_gather_single(received, sent, group=self.group)
        views = [_views(each, of) for each, of in zip(received.split(longest), shapes, strict=True)]
        return _by_matrix(self.owned, views, parts)


class OwnedShards(Alone):
    """Every process of a group has a shard of each matrix, and owns some of them."""

    def __init__(self, shapes: Sequence[torch.Size], layout: list[list[Region]], group: Any) -> None:
        """`layout` holds the part of each matrix that each process of the group has."""
        self.group, self.rank, self.layout = group, torch.distributed.get_rank(group), layout
        self.shapes = shapes
        self.owned = assign([newton_schulz_flops(shape) for shape in shapes], torch.distributed.get_world_size(group))

    def gather(self, parts: Sequence[Parts], dtype: torch.dtype) -> dict[int, Parts]:
        wholes = {}
        for index in self.owned[self.rank]:
            rows, columns = self.shapes[index]
            matrix, *numbers = parts[index]
            wholes[index] = [matrix.new_empty(rows, columns, dtype=dtype)]
            wholes[index] += [each.new_empty(rows, 1, dtype=dtype) for each in numbers]
        sent = [[part for index in indices for part in parts[index]] for indices in self.owned]
        parts_by_process = self._parts_by_process(wholes)
        buffer = _buffer_of(sent, parts, dtype)
        received = self._exchange(sent, buffer, [[view.shape for view in views] for views in parts_by_process])
        _copy(
            [view for views in parts_by_process for view in views], [piece for pieces in received for piece in pieces]
        )
        return wholes

    def scatter(self, wholes: Mapping[int, Parts], parts: Sequence[Parts], dtype: torch.dtype) -> list[Parts]:
        shapes = [_shapes(parts, indices) for indices in self.owned]
        sent = self._parts_by_process(wholes)
        return _by_matrix(self.owned, self._exchange(sent, _buffer_of(sent, parts, dtype), shapes), parts)

    def _parts_by_process(self, wholes: Mapping[int, Parts]) -> list[list[Tensor]]:
        """Return the part of each process of the matrices owned here; the tensors share memory with the matrices."""
        ranks = range(len(self.owned))
        return [[self.layout[index][rank].of(part) for index in wholes for part in wholes[index]] for rank in ranks]

    def _exchange(self, sent: list[list[Tensor]], buffer: Tensor, shapes: list[list[torch.Size]]) -> list[list[Tensor]]:
        """Send each process its list of tensors, by a buffer for all; return what each has sent, of these shapes."""
        lengths = [sum(tensor.numel() for tensor in tensors) for tensors in sent]
        tensors = [tensor for each in sent for tensor in each]
        _copy(_views(buffer, [tensor.shape for tensor in tensors]), tensors)
        expected = [sum(map(prod, each)) for each in shapes]
        received = buffer.new_empty(sum(expected))
        torch.distributed.all_to_all_single(received, buffer, expected, lengths, group=self.group)
        return [_views(each, of) for each, of in zip(received.split(expected), shapes, strict=True)]


def _buffer_of(sent: list[list[Tensor]], parts: Sequence[Parts], dtype: torch.dtype) -> Tensor:
    """Return memory for all tensors that are sent, on the device of `parts`; a process without a matrix sends none."""
    return parts[0][0].new_empty(sum(tensor.numel() for tensors in sent for tensor in tensors), dtype=dtype)


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors, of which there may be none."""
    if targets:
        torch._foreach_copy_(targets, sources)


def _shapes(parts: Sequence[Parts], indices: Sequence[int]) -> list[torch.Size]:
    return [part.shape for index in indices for part in parts[index]]


def _views(buffer: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return tensors of these shapes that lie one after another at the start of a buffer."""
    sizes = [prod(shape) for shape in shapes]
    flat = buffer[: sum(sizes)].split(sizes)
    return [each.view(shape) for each, shape in zip(flat, shapes, strict=True)]


def _by_matrix(owned: list[list[int]], received: list[list[Tensor]], parts: Sequence[Parts]) -> list[Parts]:
    """Return what the owners have sent, in the order of `parts`."""
    ordered: dict[int, Parts] = {}
    for indices, tensors in zip(owned, received, strict=True):
        left = iter(tensors)
        ordered |= {index: [next(left) for _ in parts[index]] for index in indices}
    return [ordered[index] for index in range(len(parts))]


def sharing_key(parameter: nn.Parameter) -> Any:
    """Return what parameters have in common whose matrices the same processes share; None for those of one process."""
    if isinstance(parameter, DTensor):
        axes = _split_axes(parameter)
        return (parameter.device_mesh, tuple(axes)) if axes else None
    is_group = torch.distributed.is_available() and torch.distributed.is_initialized()
    return "copies" if is_group and torch.distributed.get_world_size() > 1 else None


def share(parameters: Sequence[nn.Parameter]) -> Alone:
    """Return who owns which of the parameters, all matrices with one `sharing_key`; a collective call.

    Copies of a sharded model (HSDP) each have owners of their own, so that nothing is sent between machines. Copies
    of DDP are shared by up to MOST_COPIES neighboring processes.
    """
    shapes, first = [parameter.shape for parameter in parameters], parameters[0]
    if sharing_key(first) is None:
        return Alone()
    if not isinstance(first, DTensor):
        return OwnedCopies(shapes, _neighbors())
    mesh, axes = first.device_mesh, _split_axes(first)
    sizes, known, layout = [mesh.size(axis) for axis in axes], {}, []
    for parameter in parameters:
        assert isinstance(parameter, DTensor)
        placements = tuple(parameter.placements[axis] for axis in axes)
        if (key := (parameter.shape, placements)) not in known:
            known[key] = regions(parameter.shape, sizes, placements)
        layout.append(known[key])
    return OwnedShards(shapes, layout, _group_of(mesh, axes))


def _split_axes(parameter: DTensor) -> list[int]:
    """Return the axes of a parameter's mesh that split it."""
    mesh, placements = parameter.device_mesh, parameter.placements
    return [axis for axis, place in enumerate(placements) if not place.is_replicate() and mesh.size(axis) > 1]


def _group_of(mesh: DeviceMesh, axes: list[int]) -> Any:
    """Return the process group along some axes of a mesh, its ranks in their order."""
    if len(axes) == 1:
        return mesh.get_group(axes[0])
    names = mesh.mesh_dim_names
    assert names is not None
    with unset_fake_temporarily():  # a dry run simulates tensors, and a mesh needs real ones
        return mesh[tuple(names[axis] for axis in axes)]._flatten().get_group()


def _neighbors() -> Any:
    """Return the group of the processes that share copies with this one: as many as divide all, up to MOST_COPIES."""
    ranks = torch.distributed.get_world_size()
    size = max(size for size in range(1, MOST_COPIES + 1) if ranks % size == 0)
    if size == ranks:
        return torch.distributed.group.WORLD
    return torch.distributed.new_subgroups(size)[0]

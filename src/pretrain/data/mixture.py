"""Mix several sources in exact proportions: the source of a sample is a function of its index."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import xxhash

from pretrain.data.collate import Rows
from pretrain.data.config import DataConfig
from pretrain.data.token_store.store import Store
from pretrain.data.train_stream import RowOrigin, ShuffledRows
from pretrain.errors import DataError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Pair:
    """A node of the tree: two branches share its samples; a branch is a source index or another pair."""

    weight: int  # of the first branch
    total: int  # of both
    first: "_Pair | int"
    second: "_Pair | int"

    def first_count(self, samples: int) -> int:
        """Return how many of the pair's first `samples` samples go to the first branch: its exact share, rounded."""
        return (2 * samples * self.weight + self.total) // (2 * self.total)


class Proportions:
    """The source of each sample of a mixture, and its sample index within that source: a function of the index alone.

    The sources are the leaves of a Huffman tree: the two lightest nodes are joined until one is left. A node splits its
    samples between its two branches by rounding, so a branch's count is within 1/2 of its share of the node's count.
    On the path to a source these errors add up, each multiplied by the shares below it. Only the source's own share can
    be above 2/3, because an inner node is joined with a node of at least half its weight. So for any weights and any
    number of sources, a source's count in the first n samples differs from its exact share by less than
    (1 + 1 + 2/3 + (2/3)^2 + ...) / 2 = 2. The arithmetic uses unbounded integers: sample 10^12 is as exact as sample 0.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        scale = math.lcm(*(weight.denominator for weight in weights))
        integers = [int(weight * scale) for weight in weights]
        self.shares = [Fraction(weight, sum(integers)) for weight in integers]
        heap: list[tuple[int, int, _Pair | int]] = [(weight, number, number) for number, weight in enumerate(integers)]
        heapq.heapify(heap)
        nodes = len(heap)
        while len(heap) > 1:
            (less, _, first), (more, _, second) = heapq.heappop(heap), heapq.heappop(heap)
            nodes += 1  # breaks ties between equal weights
            heapq.heappush(heap, (less + more, nodes, _Pair(less, less + more, first, second)))
        self.root = heap[0][2]

    def __call__(self, sample_indices: npt.NDArray[np.integer]) -> tuple[Ints, Ints]:
        """Return each sample's source index, and its sample index within that source; both int64 (samples,)."""
        pairs = np.array([self._locate(sample) for sample in sample_indices.tolist()], np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def counts(self, samples: int) -> list[int]:
        """Return how many of the first `samples` samples each source has."""
        counts = [0] * len(self.shares)
        stack = [(self.root, samples)]
        while stack:
            branch, count = stack.pop()
            if isinstance(branch, _Pair):
                first = branch.first_count(count)
                stack += [(branch.first, first), (branch.second, count - first)]
            else:
                counts[branch] = count
        return counts

    def _locate(self, sample: int) -> tuple[int, int]:
        """Return the source index of one sample, and its sample index within that source."""
        branch = self.root
        while isinstance(branch, _Pair):
            before = branch.first_count(sample)
            if branch.first_count(sample + 1) > before:
                branch, sample = branch.first, before
            else:
                branch, sample = branch.second, sample - before
        return branch, sample


@dataclass(frozen=True)
class OwnOrder:
    """The order of rows of a stage that reads rows of its own, from the first one on."""

    stage: str
    first: int  # sample of the run that reads the first row
    seed: int  # of the order


def own_order(stage: str, first: int, seed: int) -> OwnOrder:
    """Return the order of a stage of a run with this seed."""
    return OwnOrder(stage, first, xxhash.xxh3_64_intdigest(f"stage {stage}".encode(), seed=seed % 2**64))


class MixtureDataset:
    """The rows of a run in training order, each from one source; a single source is a mixture of one.

    Without state: the rows of a step depend on the seed and the step alone, for any number of ranks and micro-batches.
    """

    def __init__(
        self, streams: dict[str, ShuffledRows], weights: Mapping[str, Fraction], own_order: OwnOrder | None = None
    ) -> None:
        self.streams = streams
        self.first = own_order.first if own_order else 0
        self.prefix = f"{own_order.stage}/" if own_order else ""  # of the ids of rows: other stages have other rows
        self.proportions = Proportions([weights[name] for name in streams])
        self.shares = dict(zip(streams, self.proportions.shares, strict=True))

    def rows(self, sample_indices: npt.NDArray[np.integer]) -> Rows:
        """Return the rows of these samples, (len(sample_indices), row_length)."""
        if len(self.streams) == 1:
            return next(iter(self.streams.values())).rows(sample_indices - self.first)
        sources, indices = self.proportions(sample_indices - self.first)
        parts = [
            stream.rows(indices[sources == number])
            for number, stream in enumerate(self.streams.values())
            if (sources == number).any()
        ]
        positions = np.argsort(np.argsort(sources, kind="stable"))  # of each sample in `parts`, joined
        return Rows.joined(parts)[positions]

    def row_origins(self, sample_indices: npt.NDArray[np.integer]) -> list[RowOrigin]:
        """Return the origin of each sample's row; its id is <source>:<row>, or <row> for a single source."""
        sources, indices = self.proportions(sample_indices - self.first)
        streams = list(self.streams.items())
        origins = []
        for source, index in zip(sources.tolist(), indices, strict=True):
            name, stream = streams[source]
            row = int(stream.order(index))
            number = f"{name}:{row}" if name else str(row)
            origins.append(RowOrigin(f"{self.prefix}{number}", name, stream, row))
        return origins

    def is_open(self) -> bool:
        """Return False: all text was read before the run."""
        return False

    def is_waiting(self, samples: int) -> bool:
        """Return False: every row exists."""
        return False

    @property
    def rows_per_epoch(self) -> int | None:
        """Rows of an epoch of the training text; None for several sources, whose epochs differ in length."""
        return len(next(iter(self.streams.values()))) if len(self.streams) == 1 else None

    def tokens(self) -> dict[str, int]:
        """Return how many training tokens each source has."""
        return {name: stream.store.n_tokens for name, stream in self.streams.items()}

    def epochs(self, samples: int) -> dict[str, float]:
        """Return how many epochs of each source the first `samples` samples of the run make, from `first` on."""
        counts = self.proportions.counts(max(0, samples - self.first))
        return {name: count / len(stream) for (name, stream), count in zip(self.streams.items(), counts, strict=True)}


def mixture_dataset(
    stores: dict[str, Store], config: DataConfig, row_length: int, pad_id: int, seed: int | OwnOrder
) -> MixtureDataset:
    """Return the training rows of a run from the stores of its sources, in the order of a seed or of a stage.

    Each source is shuffled with its own seed. Raises DataError if a source has no rows.
    """
    own_order = seed if isinstance(seed, OwnOrder) else None
    number = seed.seed if isinstance(seed, OwnOrder) else seed
    streams = {}
    for name, store in stores.items():
        try:
            streams[name] = ShuffledRows(store, config, row_length, pad_id, _seed_of(name, number))
        except DataError as error:
            raise DataError(f"source {name}: {error}" if name else str(error)) from error
    return MixtureDataset(streams, config.weights({name: len(stream) for name, stream in streams.items()}), own_order)


def _seed_of(source: str, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(source.encode(), seed=seed % 2**64) if source else seed
